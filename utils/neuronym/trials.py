"""A few passes of a network, before any work: what its modules give, and whether it is a function of one
image.

Trial        what the passes told
try_out      a network and an example -> Trial
holds        whether what they told is of the network as it is now
refuse       one sentence for a network that is no function of one image
evaluating   evaluation mode for the block
first_tensor the tensor that stands for a module's output
hooked_modules  modules by name that hooks can be set on

Two images pass, then three in the order of memory that passes on CPUs use, then two of another size; the
first image is the same in both: it must come out the same.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn, Tensor
from torch.nn.parameter import is_lazy

from neuronym.layouts import Seen

SAMPLE = 256  # values of a layer that are compared between passes
ALIKE, WITHIN = 1e-3, 1e-2  # how far they may differ, of the largest: of the output, of layers inside
FAINT = 0.02  # a change of a position that is little, of the largest
ENLARGED = 128  # pictures up to this side are enlarged to see which axes are positions, others made smaller


@dataclass
class Trial:
    """Each module as seen (`neuronym.layouts.Seen`), in the order in which they finished; why the network is
    no function of one image, "" where it is; whether pictures may be laid out with channels last; the type
    of what the network gives where that is no float tensor, as "int64"; and of what network and size of
    pictures all this is.
    """

    seen: dict[str, Seen]
    finished: list[str]
    unsteady: str = ""
    channels_last: bool = True
    output_kind: str = ""
    network: tuple = ()
    size: tuple[int, ...] = ()


@dataclass
class _Pass:
    """Values of one image in one pass: of each module, and of what the network gives."""

    values: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    output: Tensor | None = None


def try_out(model: nn.Module, example: Tensor) -> Trial:
    """Run the model in evaluation mode, without gradients, on a few pictures like the example [1, C, H, W].

    Errors: ValueError in one sentence for a network that cannot run on images, or that is TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"no layer can be read in TorchScript ({model.original_name}), where hooks do not run; give the "
            "nn.Module that it was made from"
        )
    if example.ndim != 4 or len(example) < 1:
        raise ValueError(f"expected an example [1, C, H, W], got {list(example.shape)}")
    weight = next(model.parameters(), example)
    kind = weight.dtype if weight.is_floating_point() else example.dtype
    image = example[:1].to(weight.device, kind if kind.is_floating_point else torch.float32)
    modules = hooked_modules(model)
    trial = Trial({name: Seen() for name in modules}, [])
    two, three, other = _pictures(image)
    with evaluating(model), torch.no_grad(), eager():
        first = _watched(model, modules, trial, two, "two")
        try:
            second = _watched(model, modules, trial, three, "three", torch.channels_last)
            trial.channels_last = not _differs(first, second)
        except ValueError:
            trial.channels_last = False
        if not trial.channels_last:
            second = _watched(model, modules, trial, three, "three")
        differs = _differs(first, second)
        if differs:
            again = _differs(first, _watched(model, {}, trial, two, ""))
            trial.unsteady = (
                f"gives other values each time for the same image ({again})"
                if again
                else f"gives an image other values beside other images ({differs})"
            )
        try:
            _watched(model, modules, trial, other, "other")
        except ValueError:
            pass  # what ran before it failed has told
    trial.network, trial.size = _parts(model), tuple(example.shape[1:])
    return trial


def holds(trial: Trial | None, model: nn.Module, example: Tensor) -> bool:
    """Whether a trial is of this model, its modules the same objects with weights of the same shapes, on
    pictures of the example's size [., C, H, W].
    """
    return trial is not None and (trial.network, trial.size) == (_parts(model), tuple(example.shape[1:]))


def refuse(model: nn.Module, trial: Trial) -> None:
    """ValueError for a network that is no function of one image."""
    if trial.unsteady:
        way = (
            "give F.dropout training=self.training"
            if "each time" in trial.unsteady
            else "keep running statistics in its norms (track_running_stats=True)"
        )
        raise ValueError(
            f"a network to be named is a function of one image, and {type(model).__name__} {trial.unsteady}; "
            f"{way}, or name it as it is with allow_random=True"
        )


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


@contextmanager
def eager() -> Iterator[None]:
    """Have compiled parts run as they were written, since hooks set later do not run in compiled ones."""
    compiled = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def first_tensor(output: object) -> Tensor | None:
    """The output itself, or the first float tensor of a tuple or list, of quantised numbers what they stand
    for; None when there is none.
    """
    for item in output if isinstance(output, (tuple, list)) else [output]:
        if isinstance(item, Tensor) and item.is_quantized:
            return item.dequantize()
        if isinstance(item, Tensor) and item.is_floating_point():
            return item
    return None


def hooked_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by their first name; TorchScript and what is in it takes no hooks."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    }


def _parts(model: nn.Module) -> tuple:
    """Every module by name, not kept alive, with the shapes of its own weights."""
    return tuple(
        (
            name,
            weakref.ref(module),
            tuple(() if is_lazy(weight) else weight.shape for weight in module.parameters(recurse=False)),
        )
        for name, module in model.named_modules()
    )


def _pictures(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two pictures; the second of them three times, its upper edge changed in the second and its lower in the
    third; two of another size.
    """
    height, width = image.shape[2:]
    dice = torch.Generator().manual_seed(0)
    noise = torch.rand(1, image.shape[1], height, width, generator=dice) - 0.5
    first = image + noise.to(image.device, image.dtype)
    edge = max(1, min(height, width) // 32)
    upper, lower = first.clone(), first.clone()
    upper[:, :, :edge] = upper[:, :, :edge] * -2 + 1
    lower[:, :, -edge:] = lower[:, :, -edge:] * -2 + 1
    # larger pictures may read beyond a table of positions, which a GPU does not survive
    larger = max(height, width) <= ENLARGED and image.device.type == "cpu"
    sides = (height + 32, width + 64) if larger else (_smaller(height, 2), _smaller(width, 1))
    other = torch.nn.functional.interpolate(first, sides)
    return torch.cat([first * 3 + 1, first]), torch.cat([first, upper, lower]), torch.cat([other, other])


def _smaller(side: int, steps: int) -> int:
    return max(side - 32 * steps, (side + 1) // 2)


def _watched(
    model: nn.Module,
    modules: dict[str, nn.Module],
    trial: Trial,
    images: Tensor,
    which: str,
    order: torch.memory_format = torch.contiguous_format,
) -> _Pass:
    """One pass, whose shapes go into the trial; ValueError when it fails."""
    found, given = _Pass(), {}
    row = 1 if len(images) == 2 else 0  # of one picture: what images before it change shows, and those behind
    for seen in trial.seen.values() if which else ():
        getattr(seen, which).clear()
    if which == "three":
        trial.finished.clear()

    def hook_of(name: str):
        def hook(module, inputs, output):
            tensor, seen = first_tensor(output), trial.seen[name]
            getattr(seen, which).append(None if tensor is None else tuple(tensor.shape))
            if which == "three":
                trial.finished.append(name)
                if isinstance(output, Tensor):
                    alive, inner = given.get(id(output), (lambda: None, None))
                    seen.inner = inner if alive() is output else None
                    given[id(output)] = weakref.ref(output), name
            if tensor is not None and which != "other":
                found.values[name] = _sampled(tensor, len(images), row)
                if which == "three" and tensor.ndim == 3 and len(tensor) == 3:
                    seen.edges = {axis: _changed(tensor, axis) for axis in (1, 2)}

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook_of(name)).remove)
        try:
            output = model(images.to(memory_format=order))
        except SystemExit as error:
            raise ValueError(
                f"{type(model).__name__} calls exit() in its forward pass on images {list(images.shape)}, "
                "which would end the run; raise an error there"
            ) from error
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{type(model).__name__} cannot run on images {list(images.shape)} alone "
                f"({type(error).__name__}: {first}); of a network that takes more give its image tower "
                "(model.visual), beside another its own preprocessing"
            ) from error
    tensor = _any_tensor(output)
    other = _any_tensor(output, _itself) if tensor is None else None
    trial.output_kind = "" if other is None else str(other.dtype).removeprefix("torch.")
    if tensor is not None:
        found.output = _sampled(tensor, len(images), row).get(0)
    return found


def _any_tensor(output: object, of: Callable[[Tensor], Tensor | None] = first_tensor) -> Tensor | None:
    """The first float tensor, or what `of` takes, in what a network gives, tables and objects of outputs
    too.
    """
    values = output.values() if hasattr(output, "values") and not isinstance(output, Tensor) else output
    if isinstance(values, Tensor):
        return of(values)
    if isinstance(values, (str, bytes)):  # whose parts are texts again, without end
        return None
    try:
        return next((t for t in (_any_tensor(value, of) for value in values) if t is not None), None)
    except TypeError:
        return None


def _itself(x: Tensor) -> Tensor:
    return x


def _sampled(x: Tensor, batch: int, row: int) -> dict[int, Tensor]:
    """Some values of one image, along each of the first two axes that may be the batch."""
    found = {}
    for axis in range(min(2, x.ndim)):
        if x.shape[axis] == batch:
            values = x.detach().select(axis, row).flatten()
            # a copy, before an operation in place rewrites it
            found[axis] = values[:: max(1, len(values) // SAMPLE)][:SAMPLE].to(torch.float32, copy=True)
    return found


def _changed(x: Tensor, axis: int) -> tuple[list[int], list[int]]:
    """Positions along an axis of x [3, ., .] at which the second and the third image differ from the
    first.
    """
    allowed = 1e-5 * float(x[0].abs().max().clamp_min(1e-12))
    apart = (x[1:] - x[0]).abs().amax(3 - axis)  # [2, positions]
    reached = apart > allowed
    # where some change a little, positions have attended to changed ones: nothing is told from where
    mixed = reached & (apart < FAINT * apart.amax(1, keepdim=True))
    reached |= mixed.any(1, keepdim=True)
    return tuple(row.nonzero()[:, 0].tolist() for row in reached)


def _differs(first: _Pass, second: _Pass) -> str:
    """How far one image comes out another in two passes, in words; "" where it comes out the same."""
    largest = max((float(v.abs().max()) for one in first.values.values() for v in one.values()), default=0.0)
    pairs = [("output", first.output, second.output, ALIKE)]
    for name, values in first.values.items():
        both = values.keys() & second.values.get(name, {}).keys()
        if len(both) == 1:
            [axis] = both
            pairs.append((f"'{name}'", values[axis], second.values[name][axis], WITHIN))
    for name, a, b, allowed in pairs:
        if a is None or b is None or a.shape != b.shape or not len(a):
            continue
        scale = max(float(a.abs().max()), 1e-5 * largest, 1e-12)
        gap = float((a - b).abs().max()) / scale
        if gap > allowed:
            return f"{name}: {gap:.1%} of the largest value"
    return ""
