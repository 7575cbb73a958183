"""What the layers of a network give: activations by layer name, read or edited inside a `with` block.

record          read outputs by layer name
edit            replace outputs by layer name
pool            one value an image and unit
as_maps         one map an image and unit
LAYOUTS         where a layout has its batch and its units
get_layer       the module of a dotted name
first_tensor    the tensor that stands for a module's output
evaluating      evaluation mode for the block

A layer is a dotted string of `named_modules()`; no hook outlives its block. Which there are is told by
`neuronym.layers`. Layouts, and where their axes are:

    conv [B, K, h, w]   nhwc [B, h, w, K]   tokens [B, T, K]   tokens_first [T, B, K]   fc [B, K]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack

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


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`; KeyError with the nearest names when there is none."""
    modules = {key: module for key, module in model.named_modules(remove_duplicate=False) if key}
    if name not in modules:
        raise unknown("layer", name, modules)
    return modules[name]


def first_tensor(output: object) -> Tensor | None:
    """The output itself, or the first float tensor of a tuple or list; None when there is none."""
    items = output if isinstance(output, (tuple, list)) else [output]
    return next((item for item in items if isinstance(item, Tensor) and item.is_floating_point()), None)


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
