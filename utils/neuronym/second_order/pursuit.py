"""Orthogonal matching pursuit over many units at once: which few words make up each direction.

matching_pursuit  the words of every unit, in the order in which they are chosen
check_matrices    ValueError for inputs that cannot be
working_dtype     float64 for float64, else float32
Atoms             words with their coarse copy and its errors
coarse_dtype      what to compute coarsely in
bfloat16_pays     whether products of bfloat16 are faster here
screened          words -> Atoms
best_atoms        the word of largest correlation with each residual

K units, M words (atoms), d width, m words a unit. Codes are nested: the first n columns of `order` are the
code of n; `second_order.text_code` makes the pool and the coefficients.

The largest of M correlations |t_j . r| is nearly all of the cost. They are first computed coarsely, in
bfloat16 where the processor is faster at it, with a bound on the error; only words that may be the best by
that bound are compared in float64. Which word is chosen does not depend on the coarse numbers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.memory import CACHED, in_threads, items_within, MEMORY, nonzero, slices, working_bytes
from neuronym.common.types import Progress

GROUP = 192  # units of one product: more make products hardly faster


@torch.no_grad()
def matching_pursuit(
    R: Tensor, T: Tensor, m: int, *, memory: int = MEMORY, progress: Progress | None = None
) -> Tensor:
    """Orthogonal matching pursuit (Pati 1993): R [K, d] in the atoms T [M, d] -> order [K, m], int64, of
    chosen atoms.

    At every step the atom of largest |t_j . residual|, not divided by |t_j|, ties by lower index; then least
    squares on all chosen. A unit ends, -1 from there on, when its residual is orthogonal to all atoms (zero
    among these) or the best atom depends on those chosen, up to rounding. `memory` bytes beside inputs and
    result; progress(groups, total, text) wraps the loop. ValueError for unequal d, m > M, inputs that are not
    finite.
    """
    check_matrices(R=R, T=T)
    check_positive_int("m", m, len(T), f"the pool of {len(T)} texts")
    check_positive_int("memory", memory)
    dtype, cpu = torch.promote_types(working_dtype(R), working_dtype(T)), R.device.type == "cpu"
    R, T = R.detach().to(dtype), T.detach().to(dtype)
    coarse = coarse_dtype(dtype, R.device)
    M, d = math.ceil(len(T) / BLOCK) * BLOCK, T.shape[1]
    threads = max(1, min(torch.get_num_threads(), len(R), memory // (4 * CACHED))) if cpu else 1
    one = m * d * dtype.itemsize + M * coarse.itemsize + M // BLOCK * 32 + 80 * d
    [units] = items_within(memory, (M * d * coarse.itemsize + CACHED * (threads if cpu else 8), one, len(R)))
    groups = list(slices(len(R), min(units, GROUP * threads) if cpu else units))
    atoms, order = screened(T, coarse), torch.full((len(R), m), -1, device=R.device)
    for group in groups if progress is None else progress(groups, len(groups), "matching pursuit"):
        in_threads(group.stop - group.start, threads, partial(_pursue, R[group], atoms, order[group]))
    return order


def check_matrices(**given: Tensor) -> None:
    """ValueError unless all are finite real matrices, none empty, of one width and on one device."""
    for name, X in given.items():
        if not isinstance(X, Tensor) or X.ndim != 2 or 0 in X.shape or X.is_complex():
            got = f"{X.dtype} {list(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(f"expected {name} as a real torch tensor of two axes, none empty, got {got}")
        finite = X.isfinite().all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ValueError(f"{name} must be finite, but row {row} is not; leave it out")
    if len({(X.shape[1], X.device) for X in given.values()}) > 1:
        found = ", ".join(f"{name} {list(X.shape)} on {X.device}" for name, X in given.items())
        raise ValueError(f"expected equal widths d on one device, got {found}")


def working_dtype(X: Tensor) -> torch.dtype:
    return X.dtype if X.dtype == torch.float64 else torch.float32


def _pursue(R: Tensor, atoms: Atoms, order: Tensor, share: slice) -> None:
    """The pursuit of R[share], written to order[share]; all directions and atoms are taken at norm 1."""
    (K, d), m = R[share].shape, order.shape[1]
    rows, r = torch.arange(share.start, share.stop, device=R.device), _unit(R[share])
    Q = R.new_empty(K, m, d)  # orthonormal bases of the chosen atoms
    C, tops = (atoms.coarse.new_empty(K * len(atoms.coarse) // n) for n in (1, BLOCK))
    noise = 16 * torch.finfo(R.dtype).eps  # of what should be 0, beside 1
    for n in range(m):
        left = (torch.linalg.vector_norm(r, dim=1) > noise).nonzero()[:, 0]
        if len(left) < len(rows):
            rows, r = rows[left], r[left]
            # in place: a basis is only ever moved down
            for part in slices(len(left), 16 if Q.device.type == "cpu" else len(rows) // 8):
                Q[part] = Q[left[part]]
        if not len(rows):
            return
        best = best_atoms(atoms, r, C, tops)
        t = _unit(atoms.T[best])
        q = _orthogonal(Q[: len(rows)], n, t.clone())
        norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)
        ends = ((t * r).sum(1).abs() <= noise) | (norm[:, 0] <= noise * math.sqrt(d))
        order[rows, n] = best.masked_fill(ends, -1)
        q /= norm
        Q[: len(rows), n] = q
        r -= (q * r).sum(1, keepdim=True) * q
        r.masked_fill_(ends[:, None], 0)  # so that the next step leaves these units out


def _unit(X: Tensor) -> Tensor:
    """Rows over their norms, which in float32 might overflow."""
    return (X.double() / nonzero(torch.linalg.vector_norm(X, dim=1, keepdim=True, dtype=torch.float64))).to(
        X.dtype
    )


def _orthogonal(Q: Tensor, n: int, t: Tensor) -> Tensor:
    """t [U, d] less its projection on the first n of Q [U, m, d], in place: Gram-Schmidt, twice."""
    for part in (
        slices(len(t), working_bytes(Q.nbytes, Q.device, CACHED // 2) // max(1, n * t.shape[1] * t.itemsize))
        if n
        else ()
    ):
        basis, v = Q[part, :n], t[part, None]
        for _ in range(2):
            v -= (v @ basis.mT) @ basis  # rows times matrices: columns take eight times as long
    return t


BLOCK = 32  # atoms whose largest correlation is looked at before any of them
TILE = 2048  # atoms of one product, whose correlations stay in cache; BLOCK divides it
COMPARED = 8  # atoms of a residual that a GPU compares exactly
BITS = {
    torch.bfloat16: (torch.int16, 2**15 - 1),
    torch.float32: (torch.int32, 2**31 - 1),
    torch.float64: (torch.int64, 2**63 - 1),
}


@dataclass(frozen=True)
class Atoms:
    """T [M, d] and a coarse copy [M', d], over the largest norm and filled up with zeros to whole blocks.

    A coarse correlation c of atom j and a residual of norm 1 is off by at most `error` + `size` (the rounding
    error of the residual) + `products` + `rounding` |c|, all over the largest norm.
    """

    T: Tensor
    coarse: Tensor
    error: float
    size: float
    products: float
    rounding: float


def coarse_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 where products of it are clearly faster, measured, since what a processor says of itself is no
    measure.
    """
    if dtype != torch.float32 or device.type != "cpu":
        return dtype
    return torch.bfloat16 if bfloat16_pays() else dtype


@lru_cache
def bfloat16_pays() -> bool:
    """Whether products of bfloat16 take less than two thirds of the time here: measured once, by turns, so
    that other work on the machine meets both. Results do not depend on it.
    """
    seconds = {}
    factors = {
        kind: [torch.ones(size, dtype=kind) for size in ((1024, 512), (512, 128))]
        for kind in (torch.float32, torch.bfloat16)
    }
    for turn in range(12):
        if turn == 3 and seconds[torch.bfloat16] > seconds[torch.float32]:
            break  # where it is made up of other instructions it takes thirty times as long
        for kind, (A, B) in factors.items():
            start = time.perf_counter()
            A @ B
            seconds[kind] = min(seconds.get(kind, math.inf), time.perf_counter() - start)
    return 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]


def screened(T: Tensor, dtype: torch.dtype) -> Atoms:
    """Bounds: |t . r - c| <= |t - t'| |r| + |t'| |r - r'| + 2 d u |t'| |r'| (sums of d products) + the
    output's rounding.
    """
    M, d = T.shape
    parts = list(slices(M, CACHED // (16 * d)))
    norms = [torch.linalg.vector_norm(T[part], dim=1, dtype=torch.float64).max() for part in parts]
    largest = float(torch.stack(norms).max()) or 1.0
    coarse, found = T.new_zeros(math.ceil(M / BLOCK) * BLOCK, d, dtype=dtype), []
    for part in parts:
        exact = T[part].double() / largest
        rounded = coarse[part].copy_(exact).double()
        found.append(torch.stack([(exact - rounded).norm(dim=1).max(), rounded.norm(dim=1).max()]))
    error, size = torch.stack(found).amax(0).tolist()
    products = (
        2.0 * d * 2.0 ** (-53 if dtype == torch.float64 else -24) + d * 2.0**-120
    )  # the latter for what underflows
    if dtype == torch.float32 and not _exact_products():
        products += 2.0**-7  # factors may be rounded to bfloat16
    return Atoms(T, coarse, error, size, products, 2.0**-8 if dtype == torch.bfloat16 else 0.0)


def _exact_products() -> bool:
    """Whether float32 factors are multiplied as they are, as far as torch says."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch does not say once `backends.cuda.matmul.fp32_precision` was set: be careful
        return False


def best_atoms(atoms: Atoms, r: Tensor, C: Tensor, tops: Tensor) -> Tensor:
    """The atom of largest |t_j . r| in float64, ties by lower index: r [U, d], none zero -> [U]."""
    U, M, (bits, positive) = len(r), len(atoms.coarse), BITS[atoms.coarse.dtype]
    C, tops = C[: M * U].view(M, U), tops[: M // BLOCK * U].view(bits).view(-1, U)
    exact = r.double()
    unit = exact / exact.norm(dim=1, keepdim=True)
    rounded = unit.to(C.dtype)
    for part in slices(M, TILE if r.device.type == "cpu" else M):
        torch.mm(atoms.coarse[part], rounded.T, out=C[part])
        sizes = C[part].view(bits).bitwise_and_(positive)  # absolute values, as integers of the same order
        torch.amax(sizes.view(-1, BLOCK, U), 1, out=tops[part.start // BLOCK : part.stop // BLOCK])
    off = _off(atoms, unit, rounded)
    least = (tops.amax(0).view(C.dtype).double() * (1 - atoms.rounding) - 2 * off) / (1 + atoms.rounding)
    least = least.clamp(min=0).to(C.dtype).view(bits) - 1  # one below, as it may have been rounded up
    if r.device.type != "cpu":
        found = _best_of_few(atoms.T, exact, C.view(bits), tops, least)
        if found is not None:
            return found
    blocks, units = (tops >= least).nonzero(as_tuple=True)
    value, index = exact.new_full((U,), -1.0), torch.full((U,), len(atoms.T), device=r.device)
    work = working_bytes(2 * CACHED, r.device, CACHED // 8)
    for part in slices(len(blocks), CACHED // (128 * BLOCK)):
        u, j = units[part], blocks[part]
        at, offset = (C.view(bits).view(-1, BLOCK, U)[j, :, u] >= least[u, None]).nonzero(as_tuple=True)
        u, j = u[at], j[at] * BLOCK + offset
        u, j = u[j < len(atoms.T)], j[j < len(atoms.T)]
        found = [
            _products(atoms.T, j[some], exact, u[some]) for some in slices(len(j), work // (16 * r.shape[1]))
        ]
        if found:
            value, index = _better(value, index, u, j, torch.cat(found))
    return index


def _best_of_few(T: Tensor, r: Tensor, C: Tensor, tops: Tensor, least: Tensor) -> Tensor | None:
    """`best_atoms` where no residual has more than COMPARED blocks and atoms that may be the best, else None:
    a device is waited for once.
    """
    some = min(COMPARED, len(tops))
    top, blocks = tops.topk(some, dim=0)  # [some, U]
    at = (blocks[:, None] * BLOCK + torch.arange(BLOCK, device=r.device)[:, None]).flatten(
        0, 1
    )  # [some BLOCK, U]
    values, places = C.gather(0, at).topk(some, dim=0)
    j = at.gather(0, places)
    behind = [values[-1]] + ([top[-1]] if some < len(tops) else [])
    if bool((torch.stack(behind) >= least).any()):  # what comes behind may be the best too
        return None
    exact = [T.index_select(0, row.clamp(max=len(T) - 1)).double().mul_(r).sum(1).abs_() for row in j]
    exact = torch.stack(exact).masked_fill((values < least) | (j >= len(T)), -1)
    return j.masked_fill(exact < exact.amax(0), 2**62).amin(0)


def _off(atoms: Atoms, unit: Tensor, rounded: Tensor) -> Tensor:
    """What coarse correlations may be off by, before they are rounded themselves: [U]; 1 % for the rounding
    of this.
    """
    return 1.01 * (atoms.error + atoms.size * ((unit - rounded.double()).norm(dim=1) + atoms.products))


def _products(T: Tensor, j: Tensor, r: Tensor, u: Tensor) -> Tensor:
    """|t_j . r_u| for pairs (j, u), in float64, equal for equal atoms."""
    return T.index_select(0, j).double().mul_(r.index_select(0, u)).sum(1).abs_()


def _better(value: Tensor, index: Tensor, u: Tensor, j: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The best values and atoms of units after atoms j were found for units u, ties by lower index."""
    top = value.scatter_reduce(0, u, found, "amax")
    ties = found == top[u]
    first = torch.full_like(index, 2**62).scatter_reduce(0, u[ties], j[ties], "amin")
    return top, torch.where(top > value, first, torch.minimum(index, first))
