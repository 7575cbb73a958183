"""Where the units of a layer live in a network: what writes them, what reads them, and what they share.

Channels   the modules that a layer's units run through
Graph      those of all layers, read off a network's operations by torch.fx
trace      a network -> its Graph

A block that adds its input to its output makes both hold the same channels: units there are written in
several places, and can only go in all of them. Where units meet an operation that mixes them otherwise (a
norm over units, attention, a reshape), or are the network's output, the Graph says so in words.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn, Tensor

from neuronym.common.checks import unknown
from neuronym.sparse import AT_FILE

_CONV, _BATCH_NORM = nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm
# of every value by itself
_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)
_SAME = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
_MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
_FUNCTIONS = {  # functions and methods by their names, and the kind of module that does the same
    **dict.fromkeys(("relu", "relu_", "relu6", "gelu", "silu", "tanh", "sigmoid", "hardswish"), "pointwise"),
    **dict.fromkeys(("dropout", "dropout_", "stochastic_depth", "contiguous", "clone"), "same"),
    **dict.fromkeys(("adaptive_avg_pool2d", "avg_pool2d", "adaptive_avg_pool1d", "avg_pool1d"), "mean"),
    **dict.fromkeys(("max_pool2d", "boolean_dispatch", "max_pool1d"), "maximum"),
    **dict.fromkeys(("flatten",), "flatten"),
    **dict.fromkeys(("add", "add_", "iadd", "mul", "mul_", "imul", "sub"), "join"),
    **dict.fromkeys(("size", "dim", "_assert", "getattr", "eq", "ne", "floordiv"), "shape"),
}
LINEAR = ("same", "mean", "flatten")  # kinds that give a x for a times x, and a constant for a constant
READS = ("convolution", "linear")


@dataclass
class Channels:
    """The units of a layer in the network: `writers` (convolutions and linear layers that give them), `each`
    (batch norms and depthwise convolutions, with weights for each), `readers` {module: its inputs for a
    unit}, `layers` (modules that give them), `last` (those of them that the readers see up to averaging over
    positions), and why they cannot be removed, "" where they can.
    """

    units: int
    writers: list[str] = field(default_factory=list)
    each: list[str] = field(default_factory=list)
    readers: dict[str, int] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass
class Operation:
    """One operation: its kind, the module behind it ("" for a function), what it reads and what reads it;
    `does` names the function or class; of its output the shape, the axis of units, how many entries there
    belong to one (flattened positions), and the number of its channels in the Graph (None where it has
    none).
    """

    name: str
    kind: str
    module: str
    does: str
    inputs: list[Operation] = field(default_factory=list, repr=False)
    readers: list[Operation] = field(default_factory=list, repr=False)
    shape: tuple[int, ...] = ()
    axis: int = 1
    spread: int = 1
    channels: int | None = None


@dataclass
class Graph:
    """The operations of a network: `given` {layer: Operation that gives its output}, `space` {number of
    channels: Channels}.
    """

    network: str
    given: dict[str, Operation]
    space: dict[int, Channels]

    def step(self, layer: str) -> Operation:
        """The operation that gives a layer's output; KeyError for a layer that is not there, ValueError for
        features of one.
        """
        if AT_FILE in layer:
            raise ValueError(
                f"'{layer}' has features of an autoencoder, which are no channels of {self.network}: they "
                "can be turned off, not removed; name a layer of the network"
            )
        if layer not in self.given:
            raise unknown(f"layer of {self.network} whose units can be followed", layer, self.given)
        return self.given[layer]

    def channels(self, layer: str) -> Channels:
        """Where a layer's units live; ValueError where they cannot be removed, which says why."""
        step = self.step(layer)
        found = self.space.get(step.channels) if step.channels is not None else None
        why = (
            f"they come out of {_said(step)}"
            if found is None
            else "each of them is several values there"
            if step.spread > 1
            else found.refused
        )
        if why:
            free = [self.space[self.given[name].channels] for name in self.given if self._free(name)]
            able = list(dict.fromkeys((one.last or one.layers)[-1] for one in free))
            raise ValueError(
                f"units of layer '{layer}' of {self.network} cannot be removed, only turned off: {why}; "
                f"those of {', '.join(able[:6]) or 'no layer'} can"
            )
        return found

    def _free(self, layer: str) -> bool:
        step = self.given[layer]
        return step.channels is not None and step.spread == 1 and not self.space[step.channels].refused


def trace(model: nn.Module, example: Tensor) -> Graph:
    """The Graph of a network; example [1, C, H, W]. Errors: ValueError for one that torch.fx cannot follow
    (control flow that depends on values, or code of others that refuses).
    """
    model = model.eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
        module = fx.GraphModule(model, graph)
        shapes = _Shapes(module)
        with torch.no_grad():
            shapes.run(example)
    except Exception as error:  # whatever the network's own code raises over a symbol
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the channels of {type(model).__name__} cannot be followed, torch.fx says: {told}; its units "
            "can be turned off, not removed"
        ) from None
    steps = _steps(graph, dict(model.named_modules()), shapes.found)
    return _joined(type(model).__name__, steps, tracer.given)


class _Tracer(fx.Tracer):
    """Notes which node gives each module's output; convolutions and norms of others are taken as wholes."""

    def __init__(self):
        super().__init__(autowrap_functions=(F.adaptive_avg_pool2d,))
        self.given: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, (_CONV, nn.Linear, _BATCH_NORM)) or super().is_leaf_module(m, name)

    def call_module(self, m, forward, args, kwargs):
        output, name = super().call_module(m, forward, args, kwargs), self.path_of_module(m)
        if isinstance(output, fx.Proxy):
            self.given[name] = "" if name in self.given else output.node.name
        return output


class _Shapes(fx.Interpreter):
    """Runs the graph and keeps the shape of what each node gives, () where that is no tensor."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.found: dict[str, tuple[int, ...]] = {}

    def run_node(self, node: fx.Node):
        output = super().run_node(node)
        self.found[node.name] = tuple(output.shape) if isinstance(output, Tensor) else ()
        return output


def _steps(graph: fx.Graph, modules: dict[str, nn.Module], shapes: dict[str, tuple]) -> dict[str, Operation]:
    """The nodes in order, by name, with kinds."""
    steps: dict[str, Operation] = {}
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        kind = _kind_of_module(module) if module is not None else _kind(node)
        step = Operation(
            node.name,
            kind,
            node.target if module is not None else "",
            _function(node) if module is None else type(module).__name__.lower(),
            [steps[one.name] for one in node.all_input_nodes],
            shape=shapes.get(node.name, ()),
        )
        if kind in ("flatten", "average"):
            step.kind = _kind_of_axes(node, step, module)
        for one in step.inputs:
            one.readers.append(step)
        steps[node.name] = step
    return steps


def _kind(node: fx.Node) -> str:
    if node.op in ("placeholder", "get_attr", "output"):
        return node.op
    name = _function(node)
    if node.target is operator.getitem or name == "getitem":
        return "item"
    return "average" if name == "mean" else _FUNCTIONS.get(name, f"other {name}")


def _function(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _kind_of_module(module: nn.Module) -> str:
    kinds = {"pointwise": _POINTWISE, "same": _SAME, "mean": _MEANS, "maximum": _MAXIMA}
    for kind, classes in kinds.items():
        if isinstance(module, classes):
            return kind
    if isinstance(module, nn.Flatten):
        return "flatten"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _BATCH_NORM):
        return "each"
    if isinstance(module, _CONV) and not isinstance(module, nn.modules.conv._ConvTransposeNd):
        alone = module.groups == module.in_channels == module.out_channels
        return "convolution" if module.groups == 1 else "each" if alone else "other grouped convolution"
    return f"other {type(module).__name__}"


def _kind_of_axes(node: fx.Node, step: Operation, module: nn.Module | None) -> str:
    """ "flatten" where all but the first axis become one, "mean" where positions alone are averaged."""
    before = step.inputs[0].shape
    if step.kind == "flatten":
        whole = len(before) >= 2 and step.shape == (before[0], int(torch.tensor(before[1:]).prod()))
        return "flatten" if whole else "other flatten"
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, (list, tuple)):
        return "other mean"
    dims = sorted(d % len(before) for d in dims)
    return "mean" if dims == list(range(2, len(before))) else "other mean"


def _joined(network: str, steps: dict[str, Operation], given: dict[str, str]) -> Graph:
    """Channels from the operations: what carries, adds or multiplies units makes two of them one."""
    space: dict[int, Channels] = {}

    def fresh(step: Operation, why: str = "") -> None:
        step.channels = len(space)
        space[step.channels] = Channels(step.shape[step.axis], refused=why)

    def unite(a: int, b: int) -> int:
        if a == b:
            return a
        keep, gone = space[a], space.pop(b)
        keep.writers += gone.writers
        keep.each += gone.each
        keep.readers |= gone.readers
        keep.refused = keep.refused or gone.refused
        space[b] = keep  # both numbers lead to it
        for step in steps.values():
            if step.channels == b:
                step.channels = a
        return a

    def refuse(some: Sequence[Operation], why: str) -> None:
        for one in some:
            if one.channels is not None and not space[one.channels].refused:
                space[one.channels].refused = why

    for step in steps.values():
        inputs = [one for one in step.inputs if one.shape]
        known = [one for one in inputs if one.channels is not None]
        if step.kind in READS:
            step.axis = 1 if step.kind == "convolution" else len(step.shape) - 1
            if known:
                source = known[0]
                if source.axis == step.axis and not (step.kind == "convolution" and source.spread > 1):
                    space[source.channels].readers[step.module] = source.spread
                else:
                    refuse(known, f"they go into {_said(step)} along another axis")
            fresh(step)
            space[step.channels].writers.append(step.module)
        elif step.kind == "output":
            refuse(known, "they are the network's output")
        elif step.kind == "shape" or not step.shape:
            continue
        elif step.kind in ("each", "pointwise", "same", "mean", "maximum", "flatten") and known:
            source = known[0]
            if step.kind in ("each", "mean", "maximum", "flatten") and source.axis != 1:
                refuse(known, f"they go into {_said(step)} along another axis")
                continue
            step.axis, step.spread, step.channels = source.axis, source.spread, source.channels
            if step.kind == "flatten":
                step.spread *= step.shape[1] // source.shape[1]
            if step.kind == "each":
                space[step.channels].each.append(step.module)
        elif step.kind == "join" and known:
            alike = len({(one.axis, one.spread, one.shape[one.axis]) for one in known}) == 1
            if len(inputs) == len(known) and alike:
                first = known[0]
                for other in known[1:]:
                    unite(first.channels, other.channels)
                step.axis, step.spread, step.channels = first.axis, first.spread, first.channels
            else:
                refuse(known, f"they go into {_said(step)} beside others")
        else:
            refuse(known, f"they go into {_said(step)}")
    at = {layer: steps[name] for layer, name in given.items() if name and layer and steps[name].shape}
    for layer, step in at.items():
        if step.channels is not None and step.spread == 1:
            space[step.channels].layers.append(layer)
            if _seen_by_all(step, space[step.channels]):
                space[step.channels].last.append(layer)
    for layer, name in given.items():
        if not name and layer in at:
            refuse([at[layer]], f"'{layer}' runs twice")
    return Graph(network, at, space)


def _seen_by_all(step: Operation, channels: Channels) -> bool:
    """Whether every reader of the channels reads this step's output, up to averages over positions."""
    found, waiting = set(), [step]
    while waiting:
        for reader in waiting.pop().readers:
            if reader.kind in LINEAR:
                waiting.append(reader)
            elif reader.kind in READS:
                found.add(reader.module)
    return found == set(channels.readers) and bool(found)


def _said(step: Operation) -> str:
    names = {"join": "an addition or product", "each": "norm"}
    what = names.get(step.kind, step.kind.removeprefix("other "))
    return f"{what} '{step.module}'" if step.module else what
