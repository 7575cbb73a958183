"""A device that is not there: its tensors hold their values on the CPU and say that they are elsewhere.

Away        such a tensor
FakeDevice  within the block the device DEVICE exists; counts what a GPU would be waited for

Whatever mixes tensors of both places fails as it would on a GPU, but for what torch allows there: copies,
single values and indices on the CPU. With `doubles` False there is no float64, as on Apple's mps.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")  # the one device that torch lets be without hardware
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "mask",
    aten.equal: "equal",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.bincount: "bincount",
}
COPIES = (aten._to_copy, aten.to, aten.copy_)
INDEXED = (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_)


class Away(Tensor):
    """A tensor on DEVICE; `here` has its values."""

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )

    def __init__(self, here: Tensor):
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} ran on {DEVICE} outside of a FakeDevice")

    # what torch has not for such tensors, or makes of numbers without values on this device
    def tolist(self) -> list:
        return self.cpu().tolist()

    def new_tensor(self, data: object, dtype: torch.dtype | None = None, device=None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or DEVICE)

    def __getitem__(self, at: object) -> Tensor:
        return super().__getitem__(_listed(at))

    def __setitem__(self, at: object, value: object) -> None:
        super().__setitem__(_listed(at), value)

    def __repr__(self) -> str:
        return f"Away({self.here})"


class FakeDevice(TorchDispatchMode):
    """The block in which DEVICE exists; `waits` counts what a GPU would be waited for, by kind."""

    def __init__(self, doubles: bool = True):
        super().__init__()
        self.doubles, self.waits = doubles, Counter()

    def __enter__(self) -> FakeDevice:
        self.made = _Made().__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        away = [x for x in tensors if isinstance(x, Away)]
        packet = func.overloadpacket
        devices = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.device)]
        target = devices[0].type == DEVICE.type if devices else bool(away)
        if packet is aten.copy_:
            target = isinstance(args[0], Away)
        if not away and not target and not devices:
            return func(*args, **kwargs)
        self._check(func, packet, args, tensors, away)
        self._count(packet, args, away, target)
        known = {id(x.here): x for x in away}

        def back(x: object) -> object:
            if not isinstance(x, Tensor) or not target:
                return x
            if x.dtype in (torch.float64, torch.complex128) and not self.doubles:
                raise TypeError(f"{func} makes float64, which {DEVICE} does not have")
            with torch.inference_mode(False):  # inference tensors cannot be told what they are views of
                return known[id(x)] if id(x) in known else Away(x)

        inner = tree_map(_here, (args, kwargs))
        result = tree_map(back, func(*inner[0], **inner[1]))
        if torch.Tag.inplace_view in func.tags:  # the shape that it tells changes as well
            with no_dispatch():
                func(*args, **kwargs)
        return result

    def _check(self, func, packet, args, tensors: list[Tensor], away: list[Away]) -> None:
        here = [x for x in tensors if not isinstance(x, Away) and x.ndim]
        if any(x.is_meta and not isinstance(x, Away) for x in tensors):
            raise NotImplementedError(f"{func} gets a tensor that was made without values")
        if packet in INDEXED:  # indices may be on the CPU
            flat = [x for x in tree_flatten((args[0], args[2:]))[0] if isinstance(x, Tensor)]
            here = [x for x in flat if not isinstance(x, Away) and x.ndim]
        if here and away and packet not in COPIES:
            raise RuntimeError(
                f"{func} meets tensors {[list(x.shape) for x in away]} on {DEVICE} and "
                f"{[list(x.shape) for x in here]} on the CPU"
            )

    def _count(self, packet, args, away: list[Away], target: bool) -> None:
        if packet in WAITS and away:
            self.waits[WAITS[packet]] += 1
        elif packet in COPIES and away and not (target and isinstance(args[0], Away)):
            self.waits["to the CPU"] += 1
        elif packet in INDEXED:
            self.waits["mask"] += sum(
                isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]
            )


class _Made(TorchFunctionMode):
    """torch.tensor on DEVICE with its values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            place = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(place)
        return func(*args, **kwargs)


def _listed(at: object) -> object:
    """Lists and ranges in an index as tensors on DEVICE."""
    if isinstance(at, tuple):
        return tuple(_listed(one) for one in at)
    return torch.tensor(list(at)).to(DEVICE) if isinstance(at, (list, range)) else at


def _here(x: object) -> object:
    """A tensor's values, and the CPU for DEVICE."""
    if isinstance(x, torch.device) and x.type == DEVICE.type:
        return torch.device("cpu")
    return x.here if isinstance(x, Away) else x
