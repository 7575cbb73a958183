"""The best atom of each of many residuals, exactly, at the cost of coarse products.

The largest of M correlations |t_j . r| is nearly all of the cost of a matching pursuit. They are first computed coarsely, in
bfloat16 where the processor is faster at it, with a bound on the error; only atoms that may be the best by that bound are
compared in float64. Which atom is chosen does not depend on the coarse numbers.

coarse_dtype  what to compute coarsely in
screened      atoms with their coarse copy and its errors
Atoms         what that gives
best_atoms    the atom of largest correlation with each residual
"""
from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.blocks import at_hand, CACHED, slices

BLOCK = 32    # atoms whose largest correlation is looked at before any of them
TILE = 2048   # atoms of one product, whose correlations stay in cache; BLOCK divides it
BITS = {torch.bfloat16: (torch.int16, 2**15 - 1), torch.float32: (torch.int32, 2**31 - 1),
        torch.float64: (torch.int64, 2**63 - 1)}


@dataclass(frozen=True)
class Atoms:
    """T [M, d] and a coarse copy [M', d], over the largest norm and filled up with zeros to whole blocks.

    A coarse correlation c of atom j and a residual of norm 1 is off by at most `error` + `size` (the rounding error of
    the residual) + `products` + `rounding` |c|, all over the largest norm.
    """

    T: Tensor
    coarse: Tensor
    error: float
    size: float
    products: float
    rounding: float


def coarse_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 where products of it are clearly faster, measured, since what a processor says of itself is no measure."""
    if dtype != torch.float32 or device.type != "cpu":
        return dtype
    seconds = {}
    factors = {kind: [torch.ones(size, dtype=kind) for size in ((1024, 512), (512, 128))]
               for kind in (torch.float32, torch.bfloat16)}
    for _ in range(12):  # by turns, so that other work on the machine meets both
        for kind, (A, B) in factors.items():
            start = time.perf_counter()
            A @ B
            seconds[kind] = min(seconds.get(kind, math.inf), time.perf_counter() - start)
    return torch.bfloat16 if 1.5 * seconds[torch.bfloat16] < seconds[torch.float32] else dtype


def screened(T: Tensor, dtype: torch.dtype) -> Atoms:
    """Bounds: |t . r - c| <= |t - t'| |r| + |t'| |r - r'| + 2 d u |t'| |r'| (sums of d products) + the output's rounding."""
    M, d = T.shape
    parts = list(slices(M, CACHED // (16 * d)))
    largest = max(float(torch.linalg.vector_norm(T[part], dim=1, dtype=torch.float64).max()) for part in parts) or 1.
    coarse, error, size = T.new_zeros(math.ceil(M / BLOCK) * BLOCK, d, dtype=dtype), 0., 0.
    for part in parts:
        exact = T[part].double() / largest
        rounded = coarse[part].copy_(exact).double()
        error = max(error, float((exact - rounded).norm(dim=1).max()))
        size = max(size, float(rounded.norm(dim=1).max()))
    products = 2. * d * 2.**(-53 if dtype == torch.float64 else -24) + d * 2.**-120  # the latter for what underflows
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        products += 2.**-7  # factors may be rounded to bfloat16
    return Atoms(T, coarse, error, size, products, 2.**-8 if dtype == torch.bfloat16 else 0.)


def best_atoms(atoms: Atoms, r: Tensor, C: Tensor, tops: Tensor) -> Tensor:
    """The atom of largest |t_j . r| in float64, ties by lower index: r [U, d], none zero -> [U]."""
    U, M, (bits, positive) = len(r), len(atoms.coarse), BITS[atoms.coarse.dtype]
    C, tops = C[:M * U].view(M, U), tops[:M // BLOCK * U].view(bits).view(-1, U)
    exact = r.double()
    unit = exact / exact.norm(dim=1, keepdim=True)
    rounded = unit.to(C.dtype)
    for part in slices(M, TILE if r.device.type == "cpu" else M):
        torch.mm(atoms.coarse[part], rounded.T, out=C[part])
        sizes = C[part].view(bits).bitwise_and_(positive)  # absolute values, as integers of the same order
        torch.amax(sizes.view(-1, BLOCK, U), 1, out=tops[part.start // BLOCK:part.stop // BLOCK])
    off = _off(atoms, unit, rounded)
    least = (tops.amax(0).view(C.dtype).double() * (1 - atoms.rounding) - 2 * off) / (1 + atoms.rounding)
    least = least.clamp(min=0).to(C.dtype).view(bits) - 1  # one below, as it may have been rounded up
    blocks, units = (tops >= least).nonzero(as_tuple=True)
    value, index = exact.new_full((U,), -1.), torch.full((U,), len(atoms.T), device=r.device)
    work = at_hand(2 * CACHED, r.device, CACHED // 8)
    for part in slices(len(blocks), CACHED // (128 * BLOCK)):
        u, j = units[part], blocks[part]
        at, offset = (C.view(bits).view(-1, BLOCK, U)[j, :, u] >= least[u, None]).nonzero(as_tuple=True)
        u, j = u[at], j[at] * BLOCK + offset
        u, j = u[j < len(atoms.T)], j[j < len(atoms.T)]
        found = [_products(atoms.T, j[some], exact, u[some]) for some in slices(len(j), work // (16 * r.shape[1]))]
        if found:
            value, index = _better(value, index, u, j, torch.cat(found))
    return index


def _off(atoms: Atoms, unit: Tensor, rounded: Tensor) -> Tensor:
    """What coarse correlations may be off by, before they are rounded themselves: [U]; 1 % for the rounding of this."""
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
