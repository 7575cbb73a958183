"""A network under many edits: what runs before the first edited layer runs once.

under_each   outputs of the same images under each of several edits
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack

import torch
from torch import nn, Tensor

from neuronym.hooks import edit, get_layer
from neuronym.sparse import split_name
from neuronym.trials import eager

Edits = Mapping[str, Callable[[Tensor], Tensor]]  # layer -> its output -> what takes its place
Log = list[tuple[nn.Module, object]]  # calls in order, with copies of what they gave


def under_each(model: nn.Module, images: Tensor, edits: Sequence[Edits]) -> Iterator[Tensor]:
    """model(images) under each of the edits ({} for none), as `hooks.edit` gives it, to the bit.

    Modules that finish before the first edited layer does are not run again: they give copies of what they
    gave, so that edits of late layers cost what follows these. The network is one that gives the same for the
    same images. Errors: those of `hooks.edit`.
    """
    layers = list(dict.fromkeys(name for one in edits for name in one))
    log = _calls_before(model, images, layers) if len(edits) > 1 and layers else []
    for one in edits:
        with _given(log), edit(model, dict(one)):
            yield model(images)


def _calls_before(model: nn.Module, images: Tensor, layers: Sequence[str]) -> Log:
    """The outermost calls of modules up to that of the first of the layers; none where code cannot be given
    its values.
    """
    edited = {get_layer(model, split_name(name)[0]) for name in layers}
    inside = [module for module in model.modules() if module is not model]
    if model in edited or any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return []
    log: Log = []
    starts: list[int] = []
    open_ = True

    def begin(module, inputs):
        starts.append(len(log))

    def finish(module, inputs, output):
        nonlocal open_
        start = starts.pop()
        if open_:
            del log[start:]  # what ran inside is part of it
            log.append((module, _copied(output)))
            open_ = module not in edited

    with ExitStack() as stack:
        stack.enter_context(eager())
        for module in inside:
            stack.callback(module.register_forward_pre_hook(begin).remove)
            stack.callback(module.register_forward_hook(finish).remove)
        model(images)
    return [] if open_ else log


@contextmanager
def _given(log: Log) -> Iterator[None]:
    """Within the block the modules of the log give what it says, call after call."""
    values: dict[nn.Module, list] = {}
    for module, output in log:
        values.setdefault(module, []).append(output)
    before = {module: module.__dict__.get("forward") for module in values}
    try:
        for module, given in values.items():
            module.forward = _Replayed(given, module.forward)
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward
            else:
                module.forward = own


class _Replayed:
    """A forward that gives copies of known outputs, and runs the module's own where there are no more."""

    def __init__(self, given: Sequence[object], own: Callable):
        self.left, self.own = iter(given), own

    def __call__(self, *args, **more):
        for output in self.left:
            return _copied(output)
        return self.own(*args, **more)


def _copied(output: object) -> object:
    """A copy that an operation in place cannot reach."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, Mapping):
        return type(output)({key: _copied(value) for key, value in output.items()})
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(_copied, output))
    return type(output)(map(_copied, output)) if isinstance(output, (tuple, list)) else output
