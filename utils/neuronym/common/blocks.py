"""Scoring in bounded memory: a matrix taken in blocks, sizes from a budget, a stable sort, checked inputs.

Embedded            P = I T' known by its factors, to be given in place of a matrix
block, largest      some rows and columns of P; a bound of its values
fit, slices         how many items a budget holds, and the ranges of so many
order               indices that sort
strongest           the most activated images of units
first_largest       the largest of every row
used                the different ones among chosen images
compiled_loops      loops in machine code, where there are any
in_threads          work on parts, one a thread
checked             the inputs of every similarity function, or a sentence on what is wrong with them
or_one              a divisor without zeros
number, whole       an option's value, or a sentence
"""
from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from types import ModuleType

import torch
from torch import Tensor

MEMORY = 2**28   # bytes, the budget of those who name none
CACHED = 2**23   # bytes that a processor works on quickly: on a CPU, larger temporaries only cost time
SORTING_BYTES_PER_VALUE = 40  # at the most, for each value that `order` sorts


@dataclass(frozen=True)
class Embedded:
    """Concept-activation matrix P = I T' of image embeddings I [N, d] and text embeddings T [M, d], made in blocks."""

    I: Tensor
    T: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.I), len(self.T)


def block(P: Tensor | Embedded, rows: Tensor | None, cols: slice, out: Tensor) -> Tensor:
    """P[rows, cols], written to out [U, m] and returned: rows ascend without repeats, None is all of them.

    Uses as much again, and d values a column.
    """
    rows = None if rows is None or len(rows) == P.shape[0] else rows
    if isinstance(P, Tensor):
        return out.copy_(P[:, cols] if rows is None else P[:, cols].index_select(0, rows))
    T = P.T[cols].to(out.dtype)
    for part in slices(len(out), at_hand(out.nbytes, out.device) // (T.shape[1] * out.itemsize)):
        I = P.I[part] if rows is None else P.I.index_select(0, rows[part])
        torch.matmul(I.to(out.dtype), T.T, out=out[part])
    return out


def largest(P: Tensor | Embedded) -> float:
    """A bound of |P|: its largest value, or by the norms of its factors."""
    if isinstance(P, Tensor):
        low, high = P.aminmax()
        return max(float(high), -float(low))
    return math.prod(float(torch.linalg.vector_norm(X, dim=1, dtype=torch.float64).max()) for X in (P.I, P.T))


def fit(memory: int, *stages: tuple[int, int, int]) -> list[int]:
    """How many items fit into memory, at least one, for each stage (bytes beside them, bytes of one, their number)."""
    least = max(beside + one for beside, one, _ in stages)
    if memory < least:
        raise ValueError(f"memory {memory} bytes is too small for these sizes; pass at least {least}")
    return [min(count, (memory - beside) // one) for beside, one, count in stages]


def at_hand(memory: int, device: torch.device, cached: int = CACHED) -> int:
    """Bytes to work on at a time, for speed: the whole budget, but on a CPU what its caches hold."""
    return min(memory, cached) if device.type == "cpu" else memory


def slices(count: int, step: int) -> Iterator[slice]:
    """0..count in ranges of `step`, at least 1."""
    step = max(1, step)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def order(values: Tensor) -> Tensor:
    """Indices that sort the last axis ascending, equal values in order of index."""
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return values.sort(dim=-1, stable=True).indices
    # floats as integers of the same order, with the index below them: numpy sorts such keys about ten times faster
    bits = (values + 0.).contiguous().view(torch.int32)  # adding 0 makes -0 equal to 0
    keys = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF)).long()
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(values.shape[-1]))
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(0xFFFFFFFF)


def strongest(Q: Tensor, units: Tensor, n: int, dtype: torch.dtype, some: int) -> Tensor:
    """The n images that activate each unit most, descending, ties by lower index: [units, n]; `some` units at once."""
    top, cpu = torch.empty(len(units), n, dtype=torch.int64, device=Q.device), Q.device.type == "cpu"
    threads = torch.get_num_threads() if cpu else 1

    def find(share: slice) -> None:
        for part in slices(share.stop - share.start, some // threads):
            part = slice(share.start + part.start, share.start + part.stop)
            q = Q.new_empty(part.stop - part.start, len(Q), dtype=dtype)                    # [some, N]
            for rows in slices(len(Q), 64 if cpu else len(Q)):  # transposing little by little is faster
                q[:, rows] = Q[rows][:, units[part]].T
            top[part] = first_largest(q, n)

    in_threads(len(units), min(threads, some), find)
    return top                                                                              # [units, n]


def first_largest(values: Tensor, n: int) -> Tensor:
    """Indices of the n largest of each row, descending, equal ones by lower index: values [r, N] -> [r, n]."""
    best = values.topk(min(n + 1, values.shape[1]), dim=1)
    top, equal = best.indices[:, :n].clone(), best.values[:, 1:] == best.values[:, :-1]
    tied = equal.any(1)  # topk puts equal values in any order ...
    chosen = top[tied].sort(dim=1).values
    top[tied] = chosen.gather(1, order(values[tied].gather(1, chosen).neg()))
    tied = equal[:, n - 1:].any(1)  # ... and takes any of those that equal the last
    top[tied] = order(values[tied].neg())[:, :n]
    return top


def used(top: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """The different images among top [K, n], ascending, and top as int32 indices of these."""
    present = torch.zeros(N, dtype=torch.bool, device=top.device)
    present[top] = True
    number_of = present.cumsum(0, dtype=torch.int32).sub_(1)
    return present.nonzero()[:, 0], number_of[top]


def compiled_loops(module: str, device: torch.device) -> ModuleType | None:
    """`neuronym.similarity.kernels` or `neuronym.similarity.rank_kernel`, for CPUs and where numba is installed."""
    try:
        return importlib.import_module(f"neuronym.similarity.{module}") if device.type == "cpu" else None
    except (ImportError, RuntimeError):  # the latter where numba finds no folder it may keep its results in
        return None


def in_threads(count: int, n: int, work: Callable[[slice], None]) -> None:
    """Call work with n equal parts of 0..count, each in a thread in which torch uses no others.

    Torch's own threads share every single operation, and wait for the next one without leaving their processor.
    """
    n = max(1, min(n, count))
    if n == 1:
        return work(slice(0, count))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n) as pool:
            list(pool.map(work, (slice(count * i // n, count * (i + 1) // n) for i in range(n))))
    finally:
        torch.set_num_threads(before)


def or_one(x: Tensor) -> Tensor:
    """x with 1 for 0, to divide by."""
    return torch.where(x == 0, 1, x)


def checked(P: Tensor | Embedded, Q: Tensor | Sequence[Tensor], units: Sequence[int] | None,
            memory: int) -> tuple[list[Tensor], list[Tensor], torch.dtype, int]:
    """The layers as a list, the units to score of each, the dtype to compute in, and the width d of embeddings (or 0)."""
    layers = {"Q": Q} if isinstance(Q, Tensor) or not isinstance(Q, Sequence) else {f"Q[{i}]": q for i, q in enumerate(Q)}
    factors = {"I": P.I, "T": P.T} if isinstance(P, Embedded) else {"P": P}
    for name, X in (factors | layers).items():
        if not isinstance(X, Tensor) or X.ndim != 2 or 0 in X.shape or X.is_complex():
            got = f"{X.dtype} {list(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(f"expected {name} as a real torch tensor of two axes, none empty, got {got}")
    if not layers or (units is not None and len(layers) > 1):
        raise ValueError(f"expected one layer or more, and units for one layer only, got {len(layers)} layers")
    given = factors | layers
    if len({X.device for X in given.values()}) > 1:
        found = ", ".join(f"{name} on {X.device}" for name, X in given.items())
        raise ValueError(f"expected all tensors on one device, got {found}; move them with .to(device)")
    if isinstance(P, Embedded) and P.I.shape[1] != P.T.shape[1]:
        raise ValueError(f"expected I [N, d] and T [M, d] with equal d, got {P.I.shape[1]} and {P.T.shape[1]}")
    for name, X in layers.items():
        if P.shape[0] != len(X):
            raise ValueError(f"expected {'I [N, d]' if 'I' in given else 'P [N, M]'} and {name} [N, K] with equal N, "
                             f"got {P.shape[0]} and {len(X)}")
    axes = {"P": "image concept", "I": "image dimension", "T": "concept dimension"}
    for name, X in given.items():
        _finite(name, X, *axes.get(name, "image unit").split())
    whole("memory", memory)
    dtype = torch.float64 if any(X.dtype == torch.float64 for X in given.values()) else torch.float32
    chosen = [_units(units, X.shape[1]).to(X.device) for X in layers.values()]
    return [X.detach() for X in layers.values()], chosen, dtype, P.I.shape[1] if isinstance(P, Embedded) else 0


def number(name: str, value: float, low: float | None = None, high: float | None = None) -> None:
    """ValueError unless the value is a finite number within the limits."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not real or (low is not None and value < low) or (high is not None and value > high):
        limits = (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
        raise ValueError(f"{name} must be a finite number{limits}, got {value!r}")


def whole(name: str, value: int, most: int | None = None, of: str = "") -> None:
    """ValueError unless the value is a whole number from 1, and no more than there are `of`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{name} {value} exceeds {of}; pass {name}<={most}")


def _finite(name: str, X: Tensor, row: str, column: str) -> None:
    for part in slices(len(X), 2**22 // X.shape[1]):
        if not bool(X[part].sum().isfinite()) and not bool(X[part].isfinite().all()):  # a sum alone may overflow
            i, j = (~X[part].isfinite()).nonzero()[0].tolist()
            raise ValueError(f"{name} must be finite, got {X[part][i, j].item()} at {row} {part.start + i}, "
                             f"{column} {j}; leave that {row} or {column} out")


def _units(units: Sequence[int] | None, K: int) -> Tensor:
    if units is None:
        return torch.arange(K)
    listed = units.tolist() if hasattr(units, "tolist") else list(units) if isinstance(units, Sequence) else []
    if not listed or not isinstance(listed, list) or not all(
            isinstance(unit, Integral) and not isinstance(unit, bool) and 0 <= unit < K for unit in listed):
        raise ValueError(f"units must be a list of indices from 0 to {K - 1} (K {K}), got {units}")
    return torch.tensor(listed)
