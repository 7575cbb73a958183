"""The layers of a network by name: which there are, and their activations read or edited inside a `with`
block.

record             read outputs by layer name
edit               replace outputs by layer name
pool               one value an image and unit
poolings           how each of several layers is pooled
as_maps            one map an image and unit
LAYOUTS            where a layout has its batch and its units
LayerInfo          what is known of one layer: name, kind, units and layout, observed by running the network
get_layer          the module of a dotted name
list_layers        every layer that can be recorded
resolve_layers     layers from names, globs, "all" or "every"
check_layer_names  the same names, checked without running the network
first_tensor       the tensor that stands for a module's output
evaluating         evaluation mode for the block

A layer is a dotted string of `named_modules()`; no hook outlives its block. Layouts, and where their axes
are:

    conv [B, K, h, w]   nhwc [B, h, w, K]   tokens [B, T, K]   tokens_first [T, B, K]   fc [B, K]
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass

import torch
from torch import nn, Tensor

from neuronym.common.checks import unknown


@contextmanager
def record(
    model: nn.Module, layers: list[str] | tuple[str, ...], fn: Callable[[str, Tensor], object] | None = None
) -> Iterator[dict]:
    """Yield a dict that each forward pass of `model` refills with {layer: fn(layer, output)}, or copies of
    the outputs.

    `fn` runs inside the hook, on the detached output (of a tuple its first float tensor), before a later
    in-place operation can rewrite it; a result that shares the output's memory is copied. Blocks may be
    nested: hooks run in the order in which the blocks were entered, so a `record` inside an `edit` sees the
    edited values. Errors: KeyError for an unknown name, before any hook is set; RuntimeError when a layer
    runs twice in a pass, runs outside a pass of `model`, or has not run when the pass ends.
    """
    acts: dict[str, object] = {}

    def keep(name: str, output: Tensor) -> None:
        value = output.detach() if fn is None else fn(name, output.detach())
        acts[name] = value.clone() if isinstance(value, Tensor) and _same_memory(value, output) else value

    with _hooked(model, layers, keep, start=acts.clear):
        yield acts


@contextmanager
def edit(model: nn.Module, edits: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace the output of each layer by edits[layer](output) in every forward pass of `model` within the
    block.

    Of a tuple the first float tensor is replaced. Errors: as in `record`, and ValueError for an edit that
    does not return a tensor of the output's shape.
    """

    def change(name: str, output: Tensor) -> Tensor:
        value = edits[name](output)
        if not isinstance(value, Tensor) or value.shape != output.shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"an edit returns a tensor of the output's shape {list(output.shape)}, that of '{name}' "
                f"gave {got}"
            )
        return value

    with _hooked(model, list(edits), change):
        yield


def pool(output: Tensor, layout: str, how: str, batch: int) -> Tensor:
    """One value per image and unit: output in any layout -> [B, K].

    "avg" and "max" run over positions (all tokens, class token included), "cls" takes the first token; "fc"
    has no positions and is returned as it is. The result may share memory with `output`. Errors: ValueError
    when the batch axis of the layout has not `batch` entries, for an unknown layout or pooling, and for "cls"
    without tokens.
    """
    axes, batch_axis = _axes(layout)
    if output.ndim != axes or output.shape[batch_axis] != batch:
        raise ValueError(
            f"layout '{layout}' has {axes} axes with the batch ({batch}) at axis {batch_axis}, got shape "
            f"{list(output.shape)}; list the layers of this model again"
        )
    if how not in ("avg", "max", "cls"):
        raise ValueError(f"pooling is 'avg', 'max' or 'cls', got {how!r}")
    if layout == "fc":
        return output
    if how == "cls":
        if not layout.startswith("tokens"):
            raise ValueError(f"'cls' pooling needs tokens, got layout '{layout}'; use 'avg' or 'max'")
        return output.select(1 - batch_axis, 0)
    positions = {"conv": (2, 3), "nhwc": (1, 2), "tokens": (1,), "tokens_first": (0,)}[layout]
    return output.mean(positions) if how == "avg" else output.amax(positions)


def poolings(layers: Sequence[LayerInfo], how: str) -> dict[str, str]:
    """How each of several layers is pooled: {name: how}.

    "auto" is "cls" where a layer has a class token and "avg" elsewhere, the winners of
    docs/protocols/default_name.md; a class token is there when one token more than a square grid is (with
    registers beside it there are more, and tokens are averaged). "cls" is taken where there are tokens, and
    "avg" beside them, so that it goes with `layers=all` of a ViT, whose first convolution has none; where no
    layer has tokens it stays, and `pool` refuses it.
    """
    tokens = {layer.name: layer.layout.startswith("tokens") for layer in layers}
    if how == "auto":
        return {
            layer.name: "cls" if tokens[layer.name] and _class_token(layer) else "avg" for layer in layers
        }
    mixed = how == "cls" and any(tokens.values())
    return {name: "avg" if mixed and not has else how for name, has in tokens.items()}


def _class_token(layer: LayerInfo) -> bool:
    count = layer.shape[0]
    return count > 1 and math.isqrt(count - 1) ** 2 == count - 1


def as_maps(output: Tensor, layout: str, grid: tuple[int, int] | None = None) -> Tensor:
    """One map per image and unit: output in any layout but "fc" -> [B, K, h, w]; may share memory with
    `output`.

    The patch tokens are the last h * w ones; what comes before them (class token, registers) is dropped.
    Without `grid` the tokens are a square grid, with or without one class token. Errors: ValueError when that
    does not fit.
    """
    axes, batch_axis = _axes(layout)
    if output.ndim != axes:
        raise ValueError(f"layout '{layout}' has {axes} axes, got an output of shape {list(output.shape)}")
    if layout == "fc":
        raise ValueError("an 'fc' layer has one value per image and no maps; choose a layer with positions")
    if layout == "conv":
        return output
    if layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    tokens = output if batch_axis == 0 else output.transpose(0, 1)  # [B, T, K]
    count = tokens.shape[1]
    if grid is None:
        side = math.isqrt(
            count
        )  # a square plus one is itself a square only for count 1, so this is unambiguous
        if count - side * side not in (0, 1):
            raise ValueError(
                f"{count} tokens are no square grid with or without class token; pass grid=(h, w)"
            )
        grid = (side, side)
    if not 0 < grid[0] * grid[1] <= count:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} needs as many tokens, got {count}")
    return tokens[:, count - grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)  # [B, K, h, w]


@contextmanager
def _hooked(
    model: nn.Module,
    layers: list[str] | tuple[str, ...],
    act: Callable[[str, Tensor], Tensor | None],
    start: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Call act(layer, output) once a pass for each layer; a tensor that it returns takes the output's
    place.
    """
    if isinstance(layers, str):
        raise ValueError(f"layers is a list of names, got the string {layers!r}")
    modules = {
        name: get_layer(model, name) for name in layers
    }  # all names are checked before the first hook is set
    network = type(model).__name__
    ran: set[str] | None = None  # None outside a forward pass of the model

    def hook_of(name: str) -> Callable:
        def hook(module, inputs, output):
            if ran is None:
                raise RuntimeError(
                    f"layer '{name}' ran outside a forward pass of {network}; pass the module that is "
                    "called (of a CLIP its image tower, model.visual)"
                )
            if name in ran:
                raise RuntimeError(
                    f"layer '{name}' ran twice in one forward pass; choose a module that runs once"
                )
            ran.add(name)
            tensor = first_tensor(output)
            if tensor is None:
                raise RuntimeError(
                    f"layer '{name}' gives no float tensor but {type(output).__name__}; "
                    "choose one of list_layers"
                )
            value = act(name, tensor)
            return None if value is None else _replaced(output, tensor, value)

        return hook

    def begin(module, inputs):
        nonlocal ran
        ran = set()
        start()

    def finish(module, inputs, output):
        nonlocal ran
        missing, ran = [name for name in modules if name not in ran], None
        if missing:
            raise RuntimeError(
                f"layer '{missing[0]}' did not run in this forward pass of {network} (its parent may "
                "use its weights directly); choose one of list_layers"
            )

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin).remove)
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook_of(name)).remove)
        stack.callback(model.register_forward_hook(finish).remove)
        yield


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _replaced(output: object, tensor: Tensor, value: Tensor) -> object:
    if output is tensor:
        return value
    items = [value if item is tensor else item for item in output]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


def _axes(layout: str) -> tuple[int, int]:
    """Number of axes and batch axis of a layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"a layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout][:2]


LAYOUTS = {
    "fc": (2, 0, 1),
    "tokens": (3, 0, 2),
    "tokens_first": (3, 1, 2),
    "conv": (4, 0, 1),
    "nhwc": (4, 0, 3),
}
"""layout -> number of axes, batch axis, unit axis."""
_CHANNELS_FIRST = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.InstanceNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class LayerInfo:
    """One layer: dotted name, class name, number of units, output shape without the batch axis, layout."""

    name: str
    kind: str
    units: int
    shape: tuple[int, ...]
    layout: str


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`; KeyError with the nearest names when there is none."""
    modules = {key: module for key, module in model.named_modules(remove_duplicate=False) if key}
    if name not in modules:
        raise unknown("layer", name, modules)
    return modules[name]


def list_layers(model: nn.Module, example: Tensor, layouts: dict[str, str] | None = None) -> list[LayerInfo]:
    """Every layer that can be recorded, in the order of `named_modules()`; example [1, 3, H, W].

    The batch axis is observed, not assumed: the model runs (in evaluation mode, without gradients) on 2 and
    on 3 copies of the example, and the one axis that goes from 2 to 3 is the batch. Left out are modules that
    do not run, that run more than once (a shared activation), that return no float tensor (a dictionary; of a
    tuple the first float tensor counts), or whose batch is folded into another axis (attention windows).

    Outputs with four axes are "nhwc" for Linear and plain LayerNorm, "conv" for 2-d convolutions, norms and
    poolings. Any other module (containers, activations, permutations) gets the reading whose map has the
    aspect ratio of the example; if both have it (a square map with as many units as columns), the layout of
    the module that finished just before it with the same shape. `layouts` {glob: layout} overrides all this.
    """
    return [layer for layer in _survey(model, example, layouts).values() if isinstance(layer, LayerInfo)]


def resolve_layers(
    model: nn.Module, patterns: str | list[str], example: Tensor, layouts: dict[str, str] | None = None
) -> list[LayerInfo]:
    """The layers meant by names and globs (a list, or one comma-separated string), in the order given, each
    once.

    `*` stays within one dotted part and `**` crosses dots: "blocks.*" gives the blocks, "blocks.**" all
    inside them. "every" is each layer of `list_layers`. "all" is the network's body at the resolution one
    talks about: stem, stages and head (conv1, layer1 .. layer4, fc), or the blocks where there is a single
    stack (blocks.0 .. blocks.15, head). The rule: go through the model's children; open a child that gives no
    tensor of its own, and a child that is the only one among its siblings to hold a list of blocks (a block
    is a composite module with a forward of its own); of the rest keep what has weights and is no norm, a
    Sequential that ends in a Linear under that Linear's name. A network without any list of blocks (VGG)
    gives its convolutions and linear layers. Errors: KeyError for a pattern that matches nothing, ValueError
    for a layer that exists but cannot be recorded.
    """
    survey = _survey(model, example, layouts)
    listed = {name: layer for name, layer in survey.items() if isinstance(layer, LayerInfo)}
    parts = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        raise ValueError(f"no layers named in {patterns!r}; give names, globs, 'all' or 'every'")
    names: list[str] = []
    for part in parts:
        if part in listed:
            names.append(part)
        elif part in survey:
            raise ValueError(
                f"layer '{part}' of {type(model).__name__} cannot be recorded: it {survey[part]}"
            )
        elif part in ("all", "every"):
            names += _body(model, listed) if part == "all" else list(listed)
        else:
            matches = [name for name in listed if _matches(name, part)]
            if not matches:
                raise unknown("layer", part, listed)
            names += matches
    return [listed[name] for name in dict.fromkeys(names)]


def check_layer_names(model: nn.Module, patterns: str | list[str]) -> None:
    """KeyError for a name or glob that fits no module, told without running the network."""
    parts = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for part in filter(None, map(str.strip, parts)):
        if part not in ("all", "every") and not any(_matches(name, part) for name in modules):
            raise unknown("layer", part, modules)


def first_tensor(output: object) -> Tensor | None:
    """The output itself, or the first float tensor of a tuple or list; None when there is none."""
    items = output if isinstance(output, (tuple, list)) else [output]
    return next((item for item in items if isinstance(item, Tensor) and item.is_floating_point()), None)


def _matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a glob: `*` and `?` stay within one part, `**` crosses dots, [0-9] is one of
    a set.
    """
    words = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[\w-]+\])", pattern)
    regex = "".join(
        words.get(part, part if part.startswith("[") and part.endswith("]") else re.escape(part))
        for part in parts
    )
    return re.fullmatch(regex, name) is not None


def _survey(model: nn.Module, example: Tensor, layouts: dict[str, str] | None) -> dict[str, LayerInfo | str]:
    """Each module's LayerInfo, or the words that say why it cannot be recorded, from runs on 2 and on 3
    images.
    """
    if example.ndim != 4 or len(example) < 1:
        raise ValueError(f"expected an example [1, 3, H, W], got {list(example.shape)}")
    modules = {name: module for name, module in model.named_modules() if name}
    shapes: dict[str, dict[int, list]] = {name: {2: [], 3: []} for name in modules}
    finished: list[str] = []  # in order of completion: children before parents
    weight = next(model.parameters(), example)
    image = example[:1].to(weight.device, weight.dtype if weight.is_floating_point() else example.dtype)
    size = 2

    def hook_of(name: str):
        def hook(module, inputs, output):
            tensor = first_tensor(output)
            shapes[name][size].append(None if tensor is None else tuple(tensor.shape))
            finished.append(name)

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook_of(name)).remove)
        for size in (2, 3):
            model(torch.cat([image] * size))

    found: dict[str, LayerInfo | str] = {}
    aspect, before = example.shape[2] / example.shape[3], None
    for name in dict.fromkeys(finished):
        override = next(
            (layout for pattern, layout in (layouts or {}).items() if _matches(name, pattern)), None
        )
        found[name] = _describe(name, modules[name], shapes[name], aspect, before, override)
        before = found[name] if isinstance(found[name], LayerInfo) else before
    return {name: found.get(name, "does not run in a forward pass") for name in modules}


def _describe(
    name: str,
    module: nn.Module,
    shapes: dict[int, list],
    aspect: float,
    before: LayerInfo | None,
    override: str | None,
) -> LayerInfo | str:
    if len(shapes[2]) != 1 or len(shapes[3]) != 1:
        return f"runs {max(len(shapes[2]), len(shapes[3]))} times in one forward pass (a shared module)"
    two, three = shapes[2][0], shapes[3][0]
    if two is None or three is None:
        return "returns no float tensor"
    axes = [axis for axis, (a, b) in enumerate(zip(two, three)) if a != b]
    if len(axes) != 1 or len(two) != len(three) or (two[axes[0]], three[axes[0]]) != (2, 3):
        return f"has no batch axis of its own: two images give shape {list(two)}, three give {list(three)}"
    batch = axes[0]
    shape = two[:batch] + two[batch + 1 :]
    fitting = [layout for layout, (count, axis, _) in LAYOUTS.items() if (count, axis) == (len(two), batch)]
    if override is not None and override not in fitting:
        raise ValueError(
            f"layout '{override}' does not fit '{name}', which gives shape {list(two)} for two images; "
            f"possible: {', '.join(fitting) or 'none'}"
        )
    if not fitting:
        return f"has no known layout: two images give shape {list(two)}"
    layout = override or (fitting[0] if len(fitting) == 1 else _conv_or_nhwc(module, shape, aspect, before))
    return LayerInfo(name, type(module).__name__, two[LAYOUTS[layout][2]], shape, layout)


def _conv_or_nhwc(module: nn.Module, shape: tuple[int, ...], aspect: float, before: LayerInfo | None) -> str:
    if (
        isinstance(module, nn.Linear) or type(module) is nn.LayerNorm
    ):  # subclasses of LayerNorm may permute inside
        return "nhwc"
    if isinstance(module, _CHANNELS_FIRST):
        return "conv"
    conv, nhwc = (abs(math.log(h / w / aspect)) for h, w in (shape[1:], shape[:2]))
    if abs(conv - nhwc) > 1e-9:
        return "conv" if conv < nhwc else "nhwc"
    return before.layout if before is not None and before.shape == shape else "conv"


def _body(model: nn.Module, listed: dict[str, LayerInfo]) -> list[str]:
    """The layers of "all", see `resolve_layers`."""
    plain = not _holds_blocks(model)

    def walk(module: nn.Module, prefix: str) -> Iterator[str]:
        holders = [child for child in module.children() if _holds_blocks(child)]
        for key, child in module.named_children():
            name = prefix + key
            stack = (
                plain
                and isinstance(child, _LISTS)
                and sum(isinstance(c, _WEIGHTED) for c in child.children()) > 1
            )
            if name not in listed or stack or (len(holders) == 1 and child is holders[0]):
                yield from walk(child, name + ".")
            elif _has_units(child):
                last = list(child.named_children())[-1:] if isinstance(child, nn.Sequential) else []
                linear = f"{name}.{last[0][0]}" if last and isinstance(last[0][1], nn.Linear) else name
                yield linear if linear in listed else name

    return list(walk(model, ""))


def _holds_blocks(module: nn.Module) -> bool:
    lists = (inner for inner in module.modules() if isinstance(inner, _LISTS))
    return any(_is_block(child) for inner in lists for child in inner.children())


def _is_block(module: nn.Module) -> bool:
    # a convolution may own a padding module, and a Sequential of conv, norm and ReLU is one step and no block
    return not isinstance(module, _LISTS + _WEIGHTED) and next(module.children(), None) is not None


def _has_units(module: nn.Module) -> bool:
    if next(module.parameters(), None) is None:
        return False
    composite = next(module.children(), None) is not None
    return composite or isinstance(module, _WEIGHTED) or "norm" not in type(module).__name__.lower()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode and give every module its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
