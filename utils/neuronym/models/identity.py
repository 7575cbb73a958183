"""What a network or a preprocessing computes, as a hash: the same in every process, another when anything it
reads differs.

identity     hash of a module: tensors, attributes, hooks, code of its classes and of what that code reads
identity_of  hash of any object, and where in it something could not be identified
weights_key  hash of a state dict's tensors by name, type, shape and bytes

An object is walked like a pickle would be, and nothing is run: tensors and arrays by their bytes, containers
by what they hold, functions by compiled code, defaults, closures and the globals they read (functions,
classes and values, to any depth), objects by class and state; what is imported inside a function is imported.
Code is taken without comments, docstrings, names of files and line numbers, so that a file may be moved or
commented. What comes from an installed package is known by its name, by that package's version (torch,
torchvision, numpy, Pillow and the standard library by name alone), and by what the user has put in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import nn, Tensor

from neuronym.models.walk import ORIGIN, PASSING, SIMPLE, Walk


def identity(module: nn.Module, only: Collection[str] | None = None, *extra: str) -> str:
    """16 hex for what a module computes. `only` restricts it to some of its top-level parts (one tower of a
    CLIP) and the module's own code and plain attributes; `extra` texts are hashed along.

    Where something in it cannot be identified (a lock, an open file), the hash is of this process alone, so
    that nothing it names is found by another, and a warning says what it was.
    """
    walk = Walk()
    if only is None:
        walk.of(module, type(module).__name__)
    else:
        walk.klass(type(module))
        own = vars(module)
        plain = {k: v for k, v in own.items() if isinstance(v, SIMPLE) and k not in PASSING | ORIGIN}
        walk.of(plain, type(module).__name__)
        walk.patches(own, type(module).__name__)
        for table in ("_parameters", "_buffers", "_modules"):
            parts = {k: v for k, v in own.get(table, {}).items() if k in only}
            walk.of(parts, table)
    for text in extra:
        walk.of(text, "extra")
    return walk.key(type(module).__name__)


def identity_of(thing: object, name: str = "") -> str:
    """16 hex for any object, as `identity`; `name` is what a warning calls it."""
    walk = Walk()
    walk.of(thing, name or type(thing).__name__)
    return walk.key(name or type(thing).__name__)


def weights_key(weights: Mapping[str, Tensor] | nn.Module) -> str:
    """16 hex of SHA-256 over the sorted (name, dtype, shape, bytes) of a state dict or module, on the
    CPU, uncast.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    found = hashlib.sha256()
    for name in sorted(tensors):
        if not isinstance(
            tensors[name], Tensor
        ):  # get_extra_state of some modules; not tensors, and not needed
            continue
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
