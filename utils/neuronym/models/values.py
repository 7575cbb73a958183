"""Tensors, arrays, scripted networks and compiled code as parts for a hash: what they hold, and nothing of
where.

tensor_parts     of a tensor of any layout, quantised or wrapped
array_parts      of a NumPy array
script_parts     of what torch.jit made: what it would save
code_parts       of compiled Python
state_of         attributes of an object
tells_its_state  whether a class says itself what its objects hold

A part is a tuple (tag, texts), bytes, or a list of things to be walked like any other.
"""

from __future__ import annotations

import io
import types
import zipfile

import numpy as np
import torch
from torch import nn, Tensor

Part = tuple | bytes | memoryview | list


def tensor_parts(x: Tensor, path: str) -> list[Part]:
    """Type, shape, layout and bytes; of a tensor made of tensors (packed weights), these and what binds them.

    Errors: ValueError for one that has no values; `path` says where it stands.
    """
    if x.is_nested:
        return [("nested tensor", str(x.dtype)), list(x.detach().unbind())]
    parts: list[Part] = [("tensor", str(x.dtype), str(list(x.shape)), str(x.layout))]
    if x.is_meta:
        raise ValueError(f"{path} is on the meta device and has no values; load weights into it first")
    x = x.detach()
    if hasattr(x, "__tensor_flatten__"):
        names, context = x.__tensor_flatten__()
        return [*parts, [names, context, *(getattr(x, name) for name in names)]]
    if x.is_quantized:
        per_channel = x.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        scale = (
            (x.q_per_channel_scales(), x.q_per_channel_zero_points())
            if per_channel
            else (x.q_scale(), x.q_zero_point())
        )
        parts.append(list(scale))
        x = x.int_repr()
    if x.layout is not torch.strided:
        x = x.coalesce() if x.layout is torch.sparse_coo else x
        held = [x.indices(), x.values()] if x.layout is torch.sparse_coo else [x.to_dense()]
        return [*parts, held]
    x = x.cpu().contiguous()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.resolve_neg()
    return [*parts, x.reshape(-1).view(torch.uint8).numpy().data]


def array_parts(x: np.ndarray) -> list[Part]:
    """Type, shape and bytes; of an array of objects these."""
    head = ("array", str(x.dtype), str(x.shape))
    return [head, x.ravel().tolist() if x.dtype.hasobject else np.ascontiguousarray(x).tobytes()]


def script_parts(scripted: torch.jit.ScriptModule | torch.jit.ScriptFunction) -> list[Part] | None:
    """Code, constants, attributes and tensors that it would save; None where it cannot be saved."""
    file = io.BytesIO()
    try:
        if isinstance(scripted, torch.jit.ScriptFunction):
            file.write(scripted.save_to_buffer())
        else:
            torch.jit.save(scripted, file)
    except RuntimeError:
        return None
    parts: list[Part] = [("script",)]
    with zipfile.ZipFile(file) as archive:
        for entry in sorted(archive.namelist()):
            name = entry.partition("/")[2]
            # lines of source; a random id
            if not name.endswith(".debug_pkl") and not name.startswith(".data/"):
                parts.append((name, archive.read(entry)))
    return parts


def code_parts(code: types.CodeType, doc: str | None = None) -> list[Part]:
    """Code without file, lines and docstring."""
    kinds = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x2F)
    parts: list[Part] = [("code", repr(kinds), code.co_code, code.co_exceptiontable, repr(code.co_names))]
    for i, value in enumerate(code.co_consts):
        if isinstance(value, types.CodeType):
            parts += code_parts(value)
        elif isinstance(value, frozenset):
            parts.append(("set", *sorted(map(repr, value))))
        elif not (i == 0 and type(value) is type(doc) and value == doc):
            parts.append(("constant", repr(value)))
    return parts


def state_of(thing: object) -> dict[str, object]:
    """Attributes of an object, in __dict__ and in __slots__."""
    state = dict(getattr(thing, "__dict__", {}))
    for base in type(thing).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            stored = f"_{base.__name__.lstrip('_')}{name}" if private else name
            if name not in ("__dict__", "__weakref__") and hasattr(thing, stored):
                state[name] = getattr(thing, stored)
    return state


def tells_its_state(cls: type) -> bool:
    """Whether an installed class says itself what its objects hold, as those do whose state is in C."""
    own = [base for base in cls.__mro__[:-1] if not issubclass(base, nn.Module)]
    return any({"__getstate__", "__reduce__", "__reduce_ex__"} & vars(base).keys() for base in own)
