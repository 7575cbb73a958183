"""Which layers a network has: their names, units and layouts, observed by running it.

LayerInfo          what is known of one layer
list_layers        every layer that can be recorded
resolve_layers     layers from names, globs, "all" or "every"
check_layer_names  the same names, checked without running the network

Their activations are read by `neuronym.hooks`, which also tells the layouts.

    NAME      | one layer, by its dotted name; `neuronym layers TARGET` prints them | layer4.1.conv2
    NAME,NAME | several | layer3,layer4,fc
    *         | any letters within one dotted part | blocks.*
    **        | any letters, dots too | blocks.**
    all       | the stem, stages and head, or the blocks where there is a single stack of them
    every     | all that can be recorded
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn, Tensor

from neuronym.common.checks import unknown
from neuronym.hooks import evaluating, first_tensor, LAYOUTS

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
