"""The layers of a network by name: which there are, and their activations read or edited inside a `with`
block.

record             read outputs by layer name
edit               replace outputs by layer name
swapped            what a module gives, one tensor replaced
pool               one value an image and unit
poolings           how each of several layers is pooled
told_poolings      which of them have no class token, in words
as_maps            one map an image and unit
maps_of            the same by the grid that was found for a layer
get_layer          the module of a dotted name
list_layers        every layer that can be recorded
resolve_layers     layers from names, globs, "all" or "every"
suggest_layers     four depths of "all", and the output layer
check_layer_names  the same names, checked without running the network

A layer is a dotted string of `named_modules()`; no hook outlives its block. Layouts are those of
`neuronym.layouts`.

    NAME      | one layer, by its dotted name; `neuronym layers TARGET` prints them | layer4.1.conv2
    NAME,NAME | several | layer3,layer4,fc
    *         | any letters within one dotted part | blocks.*
    **        | any letters, dots too | blocks.**
    all       | the stem, stages and head, or the blocks where there is a single stack of them
    every     | all that can be recorded
    NAME@sae:FILE | features of a sparse autoencoder as units (`neuronym.sparse`); `pooling=max`, `avg`, or
                `share` of active positions | layer4@sae:runs/topk.safetensors
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import replace

import torch
from torch import nn, Tensor

from neuronym.blocks import body_of, core_of
from neuronym.common.checks import unknown
from neuronym.layouts import axes_of, Findings, layer_of, LayerInfo, layouts_from, matches, POSITION_AXES
from neuronym.sparse import (
    check_fits,
    FeatureLayer,
    features_of,
    loaded_sae,
    short_names,
    SparseAutoencoder,
    split_name,
    with_features,
)
from neuronym.trials import eager, first_tensor, Trial, try_out

Layouts = str | Mapping[str, str] | None


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

    Of a tuple the first float tensor is replaced. Features that are edited move the layer's output by what
    the change decodes to. Errors: as in `record`, and ValueError for an edit that does not return a tensor of
    the output's shape.
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

    "avg", "max" and "share" (of positions above 0) run over positions (all tokens, class token included),
    "cls" takes the first token; "fc" has no positions and is returned as it is. The result may share memory
    with `output`. Errors: ValueError when the batch axis of the layout has not `batch` entries, for an
    unknown layout or pooling, and for "cls" without tokens.
    """
    axes, batch_axis, _ = axes_of(layout)
    if output.ndim != axes or output.shape[batch_axis] != batch:
        raise ValueError(
            f"layout '{layout}' has {axes} axes with the batch ({batch}) at axis {batch_axis}, got shape "
            f"{list(output.shape)}; list the layers of this model again"
        )
    if how not in ("avg", "max", "share", "cls"):
        raise ValueError(f"pooling is 'avg', 'max', 'share' or 'cls', got {how!r}")
    if layout == "fc":
        return output
    if how == "cls":
        if not layout.startswith("tokens"):
            raise ValueError(f"'cls' pooling needs tokens, got layout '{layout}'; use 'avg' or 'max'")
        return output.select(1 - batch_axis, 0)
    positions = POSITION_AXES[layout]
    if how == "share":
        return (output > 0).float().mean(positions)
    return output.mean(positions) if how == "avg" else output.amax(positions)


def poolings(layers: Sequence[LayerInfo], how: str) -> dict[str, str]:
    """How each of several layers is pooled: {name: how}.

    "auto" is "cls" where a layer has a class token and "avg" elsewhere, the winners of
    docs/protocols/default_name.md; a class token is there where tokens stand before the patches. "cls" is
    taken where there are tokens, unless the patches are known to be all of them, and "avg" beside them, so
    that it goes with `layers=all` of a ViT, whose first convolution has none. Errors: ValueError for "cls"
    where no layer has tokens, or all tokens are patches.
    """
    tokens = {layer.name: layer.layout.startswith("tokens") for layer in layers}
    if how == "auto":
        led = {layer.name: tokens[layer.name] and layer.grid and layer.start for layer in layers}
        return {name: "cls" if first else "avg" for name, first in led.items()}
    if how != "cls":
        return dict.fromkeys(tokens, how)
    bare = {layer.name for layer in layers if layer.grid and not layer.start}
    classed = {name: has and name not in bare for name, has in tokens.items()}
    if not any(classed.values()):
        names = list(classed)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(f"'cls' pooling needs tokens with a class token, got {shown}; use 'avg' or 'max'")
    return {name: "cls" if has else "avg" for name, has in classed.items()}


def told_poolings(layers: Sequence[LayerInfo], how: str) -> str:
    """One line on the layers that "cls" leaves to "avg", "" where there are none; layers of one value an
    image have nothing to be averaged.
    """
    chosen = poolings(layers, how) if how == "cls" else {}
    left = [layer.name for layer in layers if chosen.get(layer.name) == "avg" and layer.layout != "fc"]
    return f"no class token, averaged over positions: {', '.join(left)}" if left else ""


def as_maps(
    output: Tensor, layout: str, grid: tuple[int, int] | None = None, start: int | None = None
) -> Tensor:
    """One map per image and unit: output in any layout but "fc" -> [B, K, h, w]; may share memory with
    `output`.

    Tokens, and positions of "conv1d", are laid out by `grid`, rows and columns, row after row from the token
    `start` on (`LayerInfo` has both), by default the last ones: what comes before are class token and
    registers. Errors: ValueError without a grid, since a number of tokens tells none: 14 x 16 patches and a
    class token are 15 x 15.
    """
    axes, batch_axis, unit_axis = axes_of(layout)
    if output.ndim != axes:
        raise ValueError(f"layout '{layout}' has {axes} axes, got an output of shape {list(output.shape)}")
    if layout == "fc":
        raise ValueError("an 'fc' layer has one value per image and no maps; choose a layer with positions")
    if layout == "conv":
        return output
    if layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    tokens = output.movedim((batch_axis, unit_axis), (0, 2))  # [B, T, K]
    count = tokens.shape[1]
    if grid is None:
        raise ValueError(
            f"{count} positions do not tell where in the picture they are; pass grid=(h, w), which a layer "
            "has whose positions are patches"
        )
    if not 0 < grid[0] * grid[1] <= count:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} needs as many tokens, got {count}")
    first = count - grid[0] * grid[1] if start is None else start
    return tokens[:, first : first + grid[0] * grid[1]].transpose(1, 2).unflatten(2, grid)  # [B, K, h, w]


def maps_of(output: Tensor, layer: LayerInfo, grid: tuple[int, int] | None = None) -> Tensor:
    """`as_maps` of a layer's output, by the grid that was found for it unless another is given."""
    start = layer.start if grid is None or grid == layer.grid else None
    return as_maps(output, layer.layout, grid or layer.grid, start)


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
    # all names are checked before the first hook is set
    modules = {name: get_layer(model, split_name(name)[0]) for name in layers}
    saes = {name: loaded_sae(file) for name in layers if (file := split_name(name)[1])}
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
            if name not in saes:
                value = act(name, tensor)
                return None if value is None else swapped(output, tensor, value)
            sae = saes[name].to(tensor.device)
            features = features_of(sae, tensor)
            value = act(name, features)
            if value is None or value is features:
                return None
            return swapped(output, tensor, with_features(sae, tensor, features, value))

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

    scripted = [name for name, module in modules.items() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise ValueError(f"layer '{scripted[0]}' of {network} cannot be recorded: it {SCRIPTED}")
    with ExitStack() as stack:
        stack.enter_context(eager())
        stack.callback(model.register_forward_pre_hook(begin).remove)
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook_of(name)).remove)
        stack.callback(model.register_forward_hook(finish).remove)
        yield


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def swapped(output: object, tensor: Tensor, value: Tensor) -> object:
    """The output of a module with `value` in place of the tensor that it gave."""
    if output is tensor:
        return value
    items = [value if item is tensor else item for item in output]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)


SCRIPTED = "is TorchScript, in which hooks do not run; give the nn.Module it was made from"


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`; KeyError with the nearest names when there is none."""
    modules = {key: module for key, module in model.named_modules(remove_duplicate=False) if key}
    if name not in modules:
        raise unknown("layer", name, modules)
    return modules[name]


def list_layers(model: nn.Module, example: Tensor, layouts: Layouts = None) -> list[LayerInfo]:
    """Every layer that can be recorded, in the order of `named_modules()`; example [1, C, H, W].

    The network runs a few times, in evaluation mode and without gradients (`neuronym.trials.try_out`): the
    one axis that goes from 2 to 3 when three images pass in place of two is the batch. Left out are modules
    that do not run, that run more than once (a shared activation), that return no float tensor (a dictionary;
    of a tuple the first float tensor counts), whose batch is folded into another axis (attention windows),
    and those of which nothing tells the axis of units. `layouts` {glob: layout}, or as in
    `neuronym.layouts.layouts_from`, overrides what is found out.
    """
    survey, _ = _survey(model, example, layouts)
    return [layer for layer in survey.values() if isinstance(layer, LayerInfo)]


def resolve_layers(
    model: nn.Module,
    patterns: str | list[str],
    example: Tensor,
    layouts: Layouts = None,
    trial: Trial | None = None,
) -> list[LayerInfo]:
    """The layers meant by names and globs (a list, or one comma-separated string), in the order given, each
    once.

    `*` stays within one dotted part and `**` crosses dots: "blocks.*" gives the blocks, "blocks.**" all
    inside them. "every" is each layer of `list_layers`. "all" is the network's body at the resolution one
    talks about: stem, stages and head (conv1, layer1 .. layer4, fc), or the blocks where there is a single
    stack (blocks.0 .. blocks.15, head). The rule: go through the model's children, inside of wrappers; open
    a child that gives no tensor of its own, and a child that is the only one among its siblings to hold a
    list of blocks (a block is a composite module with a forward of its own); of the rest keep what has
    weights and is no norm, a Sequential that ends in a Linear under that Linear's name. A network without any
    list of blocks (VGG) gives its convolutions and linear layers. A layer may be called by any name that its
    module has, and without the names of wrappers around the network. Behind "@sae:" stands a file of
    features, which every layer that the name before it means must fit; such a layer is called by the file's
    short name (`neuronym.sparse.short_names`). With a `trial` of the model nothing runs. Errors: KeyError for
    a pattern that matches nothing, ValueError for a layer that exists but cannot be recorded.
    """
    survey, others = _survey(model, example, layouts, trial)
    listed = {name: layer for name, layer in survey.items() if isinstance(layer, LayerInfo)}
    parts = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    parts = [part if isinstance(part, FeatureLayer) else part.strip() for part in parts if part.strip()]
    if not parts:
        raise ValueError(f"no layers named in {patterns!r}; give names, globs, 'all' or 'every'")
    names: list[str] = []
    saes: dict[str, SparseAutoencoder] = {}
    for pattern in parts:
        part, file = split_name(pattern)
        if not file and part in ("all", "every") and part not in survey:
            names += body_of(model, survey) if part == "all" else list(listed)
            continue
        found = _named(part, survey, others, listed) or _named(
            core_of(model)[0] + part, survey, others, listed
        )
        if not found:
            raise unknown("layer", part, listed)
        if file:
            saes[file] = loaded_sae(file)
        named = isinstance(pattern, FeatureLayer)
        names += [pattern] if named else [name + pattern.removeprefix(part) for name in found]
    layers = []
    for full in dict.fromkeys(short_names(dict.fromkeys(names)).values()):
        name, file = split_name(full)
        layer = survey[others.get(name, name)]
        if isinstance(layer, str):
            raise ValueError(f"layer '{name}' of {type(model).__name__} cannot be recorded: it {layer}")
        layer = replace(layer, name=name)
        layers.append(_of_features(layer, full, saes[file], file) if file else layer)
    return layers


def suggest_layers(
    model: nn.Module, trial: Trial, example: Tensor, layouts: Layouts = None
) -> tuple[str, ...]:
    """Four depths of what `resolve_layers` calls "all", and the last of them, which gives the output.

    Errors: ValueError for a network in which no layer can be recorded.
    """
    survey, _ = read_trial(model, trial, example, layouts)
    names = [name for name in body_of(model, survey) if isinstance(survey[name], LayerInfo)]
    if not names:
        reasons = [f"'{name}' {why}" for name, why in survey.items() if isinstance(why, str)]
        why = reasons[-1] if reasons else "it has no modules inside; wrap it, nn.Sequential(module)"
        raise ValueError(f"no layer of {type(model).__name__} can be recorded: {why}")
    *body, head = names
    depths = [body[math.ceil(len(body) * quarter / 4) - 1] for quarter in (1, 2, 3, 4)] if body else []
    return (*dict.fromkeys(depths), head)


def check_layer_names(model: nn.Module, patterns: str | list[str]) -> None:
    """KeyError for a name or glob that fits no module, told without running the network."""
    parts = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    prefix = core_of(model)[0]
    for pattern in filter(None, map(str.strip, parts)):
        part, file = split_name(pattern)
        if file:
            loaded_sae(file)
        if part in ("all", "every"):
            continue
        if not any(matches(name, glob) for name in modules for glob in (part, prefix + part)):
            raise unknown("layer", part, modules)


def _of_features(layer: LayerInfo, name: str, sae: SparseAutoencoder, file: str) -> LayerInfo:
    """A layer's features as a layer: the same positions, D units."""
    check_fits(sae, layer, file)
    _, batch_axis, unit_axis = axes_of(layer.layout)
    shape = list(layer.shape)
    shape[unit_axis - (batch_axis < unit_axis)] = sae.D
    return replace(layer, name=name, kind="SparseAutoencoder", units=sae.D, shape=tuple(shape))


def read_trial(
    model: nn.Module, trial: Trial, example: Tensor, layouts: Layouts = None
) -> tuple[dict[str, LayerInfo | str], dict[str, str]]:
    """What a few passes (`neuronym.trials.try_out`) told: each module's LayerInfo, or the words that say why
    it cannot be recorded, and {other name: first name} of modules that have several.
    """
    findings = Findings(tuple(example.shape[2:]), layouts_from(layouts))
    found: dict[str, LayerInfo | str] = {}
    modules = dict(model.named_modules())
    for name in dict.fromkeys(trial.finished):
        found[name] = layer_of(name, modules[name], trial.seen[name], findings)
        if isinstance(found[name], LayerInfo):
            findings.add(found[name])
    silent = {
        name: SCRIPTED if isinstance(module, torch.jit.ScriptModule) else "does not run in a forward pass"
        for name, module in modules.items()
        if name
    }
    firsts = {module: name for name, module in modules.items()}
    everywhere = ((name, firsts[module]) for name, module in model.named_modules(remove_duplicate=False))
    others = {name: first for name, first in everywhere if name != first}
    return {name: found.get(name, why) for name, why in silent.items()}, others


def _survey(
    model: nn.Module, example: Tensor, layouts: Layouts, trial: Trial | None = None
) -> tuple[dict, dict[str, str]]:
    return read_trial(model, trial or try_out(model, example), example, layouts)


def _named(pattern: str, survey: Mapping, others: Mapping[str, str], listed: Mapping) -> list[str]:
    """Names of layers that a name or glob means: first names, else others."""
    if pattern in survey or pattern in others:
        return [pattern]
    found = [name for name in listed if matches(name, pattern)]
    return found or [name for name, first in others.items() if first in listed and matches(name, pattern)]
