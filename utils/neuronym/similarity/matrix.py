"""The concept-activation matrix P that is never held: made in blocks from embeddings; inputs of all
similarities.

FactoredMatrix  P = I T' known by its factors, to be given in place of a matrix
block           some rows and columns of P
largest         a bound of its values
check_range     whether so many times these stay in a dtype's range
compiled_loops  loops in machine code, where there are any
checked         the inputs of every similarity function; ValueError says what is wrong with them
check_finite    whether all of their values are numbers
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from types import ModuleType

import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.memory import budget, slices, working_bytes


@dataclass(frozen=True)
class FactoredMatrix:
    """Concept-activation matrix P = I T' of image embeddings I [N, d] and text embeddings T [M, d], made in
    blocks.
    """

    I: Tensor
    T: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.I), len(self.T)


def block(P: Tensor | FactoredMatrix, rows: Tensor | None, cols: slice, out: Tensor) -> Tensor:
    """P[rows, cols], written to out [U, m] and returned: rows ascend without repeats, None is all of them.

    Uses as much again, and d values a column.
    """
    rows = None if rows is None or len(rows) == P.shape[0] else rows
    if isinstance(P, Tensor):
        return out.copy_(P[:, cols] if rows is None else P[:, cols].index_select(0, rows))
    T = P.T[cols].to(out.dtype)
    for part in slices(len(out), working_bytes(out.nbytes, out.device) // (T.shape[1] * out.itemsize)):
        I = P.I[part] if rows is None else P.I.index_select(0, rows[part])
        torch.matmul(I.to(out.dtype), T.T, out=out[part])
    return out


def largest(P: Tensor | FactoredMatrix) -> float:
    """A bound of |P|: its largest value, or by the norms of its factors."""
    if isinstance(P, Tensor):
        low, high = P.aminmax()
        return max(float(high), -float(low))
    return math.prod(float(torch.linalg.vector_norm(X, dim=1, dtype=torch.float64).max()) for X in (P.I, P.T))


def check_range(a: float, most: float, dtype: torch.dtype) -> None:
    """ValueError when a P leaves the dtype's range, |P| <= most."""
    if not abs(a) * most < torch.finfo(dtype).max:
        raise ValueError(
            f"a {a} times P overflows {str(dtype).removeprefix('torch.')}; "
            "pass a smaller a, or float64 inputs"
        )


def compiled_loops(device: torch.device, name: str = "kernels") -> ModuleType | None:
    """`neuronym.similarity.kernels`, or another module of loops, for CPUs and where numba is installed."""
    try:
        return importlib.import_module(f"neuronym.similarity.{name}") if device.type == "cpu" else None
    except (ImportError, RuntimeError):  # the latter where numba finds no folder it may keep its results in
        return None


def checked(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    units: Sequence[int] | None,
    memory: int | None,
    finite: bool = True,
) -> tuple[list[Tensor], list[Tensor], torch.dtype, int, int]:
    """The layers as a list, the units to score of each, the dtype to compute in, the width d of embeddings
    (or 0), and the bytes to use. With finite=False the caller finds out what is not finite, and has
    `check_finite` say where.
    """
    factors, layers = _named(P, Q)
    for name, X in (factors | layers).items():
        if not isinstance(X, Tensor) or X.ndim != 2 or 0 in X.shape or X.is_complex():
            got = f"{X.dtype} {list(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(f"expected {name} as a real torch tensor of two axes, none empty, got {got}")
    if not layers or (units is not None and len(layers) > 1):
        raise ValueError(
            f"expected one layer or more, and units for one layer only, got {len(layers)} layers"
        )
    given = factors | layers
    device = next(iter(given.values())).device
    if any(X.device != device for X in given.values()):
        found = ", ".join(f"{name} on {X.device}" for name, X in given.items())
        raise ValueError(f"expected all tensors on one device, got {found}; move them with .to(device)")
    if isinstance(P, FactoredMatrix) and P.I.shape[1] != P.T.shape[1]:
        raise ValueError(
            f"expected I [N, d] and T [M, d] with equal d, got {P.I.shape[1]} and {P.T.shape[1]}"
        )
    for name, X in layers.items():
        if P.shape[0] != len(X):
            raise ValueError(
                f"expected {'I [N, d]' if 'I' in given else 'P [N, M]'} and {name} [N, K] with equal N, "
                f"got {P.shape[0]} and {len(X)}"
            )
    if finite:
        check_finite(P, Q)
    if memory is not None:
        check_positive_int("memory", memory)
    dtype = torch.float64 if any(X.dtype == torch.float64 for X in given.values()) else torch.float32
    chosen = [_units(units, X.shape[1]).to(X.device) for X in layers.values()]
    return (
        [X.detach() for X in layers.values()],
        chosen,
        dtype,
        P.I.shape[1] if isinstance(P, FactoredMatrix) else 0,
        budget(memory, device, dtype.itemsize * _values(P, layers)),
    )


def _values(P: Tensor | FactoredMatrix, layers: dict[str, Tensor]) -> int:
    """How many values would let every function work on all of P at once."""
    (N, M), K = P.shape, sum(layer.shape[1] for layer in layers.values())
    return 8 * (N * M + N * K + K * M)


def check_finite(P: Tensor | FactoredMatrix | None, Q: Tensor | Sequence[Tensor]) -> None:
    """ValueError for the first value of P, or of its factors, or of Q, that is not finite; of Q alone
    without P.
    """
    factors, layers = _named(P, Q)
    axes = {"P": "image concept", "I": "image dimension", "T": "concept dimension"}
    for name, X in (factors | layers).items():
        _finite(name, X, *axes.get(name, "image unit").split())


def _named(P: Tensor | FactoredMatrix | None, Q: Tensor | Sequence[Tensor]) -> tuple[dict, dict]:
    """P or its factors, and the layers, by the names that messages have for them."""
    one = isinstance(Q, Tensor) or not isinstance(Q, Sequence)
    return (
        {"I": P.I, "T": P.T} if isinstance(P, FactoredMatrix) else {} if P is None else {"P": P},
        {"Q": Q} if one else {f"Q[{i}]": q for i, q in enumerate(Q)},
    )


def _finite(name: str, X: Tensor, row: str, column: str) -> None:
    for part in slices(len(X), 2**22 // X.shape[1]):
        some = X if part.stop == len(X) and not part.start else X[part]
        if not math.isfinite(float(some.sum())) and not bool(some.isfinite().all()):  # a sum may overflow
            i, j = (~some.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{name} must be finite, got {some[i, j].item()} at {row} {part.start + i}, "
                f"{column} {j}; leave that {row} or {column} out"
            )


def _units(units: Sequence[int] | None, K: int) -> Tensor:
    if units is None:
        return torch.arange(K)
    listed = (
        units.tolist() if hasattr(units, "tolist") else list(units) if isinstance(units, Sequence) else []
    )
    if (
        not listed
        or not isinstance(listed, list)
        or not all(
            isinstance(unit, Integral) and not isinstance(unit, bool) and 0 <= unit < K for unit in listed
        )
    ):
        raise ValueError(f"units must be a list of indices from 0 to {K - 1} (K {K}), got {units}")
    return torch.tensor(listed)
