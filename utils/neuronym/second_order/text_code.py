"""Sparse text codes: directions as sums of a few words of a pool.

text_pool     text features -> the pool of atoms, centred and normalised
coefficients  what the words chosen by `neuronym.second_order.text_code` are multiplied by, for all of them or
              the first n
reconstruct   the sums
code_table    words and coefficients as a labels table

K units, M words (atoms), d width, m words a unit.

Orthogonal matching pursuit over many units at once: which few words make up each direction.

matching_pursuit  the words of every unit, in the order in which they are chosen
check_matrices    the inputs, or a sentence on what is wrong with them
working_dtype     float64 for float64, else float32

K units, M words (atoms), d width, m words a unit. Codes are nested: the first n columns of `order` are the
code of n; `neuronym.second_order.text_code` makes the pool and the coefficients.

The best atom of each of many residuals, exactly, at the cost of coarse products.

The largest of M correlations |t_j . r| is nearly all of the cost of a matching pursuit. They are first
computed coarsely, in bfloat16 where the processor is faster at it, with a bound on the error; only atoms that
may be the best by that bound are compared in float64. Which atom is chosen does not depend on the coarse
numbers.

coarse_dtype  what to compute coarsely in
screened      atoms with their coarse copy and its errors
Atoms         what that gives
best_atoms    the atom of largest correlation with each residual

From neurons' sparse text codes to words for an image, a class, and an image that fools the network.

concepts_in_images  every word scored for every image by the neurons active in it (section 5, concept
                    discovery)
words_for           words by what neurons that read a direction contribute to it (section 5, adversarial
                    images)
speaking_neurons    the neurons whose directions lie most along a given one
allowed_words       words that do not give the wrong class away
naming              what finds a name, or its plural, in a text
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import unknown, check_positive_int
from neuronym.common.memory import working_bytes, CACHED, items_within, in_threads, MEMORY, nonzero, slices
from neuronym.common.text import name_pattern
from neuronym.common.types import Progress
from neuronym.similarity.labels import COLUMNS

NORMS = ("unit", "per_dimension", "none")


@torch.no_grad()
def text_pool(T: Tensor, text_norm: str = "unit") -> Tensor:
    """Text features T [M, d] as atoms [M, d]: 100 T less the mean over the pool, then normalised.

    "unit" (corrected): every row to norm 100; "per_dimension" (as released): every one of the d columns to
    norm 100 over the vocabulary; "none": neither. What is zero stays zero. KeyError for an unknown norm;
    ValueError for fewer than two texts.
    """
    if text_norm not in NORMS:
        raise unknown("text norm", text_norm, NORMS)
    check_matrices(T=T)
    if len(T) < 2:
        raise ValueError(
            "expected a pool of two texts or more, got one, of which nothing is left after its mean; add texts"
        )
    pool = T.detach().double() * 100
    size = pool.abs()
    pool -= pool.mean(0)
    pool.masked_fill_(
        pool.abs() <= 16 * torch.finfo(pool.dtype).eps * size, 0
    )  # rounding errors must not become a row
    if text_norm != "none":
        pool *= 100 / nonzero(pool.norm(dim=1 if text_norm == "unit" else 0, keepdim=True))
    return pool.to(working_dtype(T))


@torch.no_grad()
def coefficients(R: Tensor, T: Tensor, order: Tensor) -> Tensor:
    """Least-squares coefficients of the chosen atoms: R [K, d], T [M, d], order [K, n] -> gamma [K, n], 0 for
    -1.

    In float64, by the normal equations and two refinements; order may be any prefix of that of
    `matching_pursuit`.
    """
    check_matrices(R=R, T=T)
    if order.ndim != 2 or len(order) != len(R):
        raise ValueError(
            f"expected order [K, n] with a row for each of {len(R)} units, got {list(order.shape)}"
        )
    gamma = R.new_zeros(order.shape, dtype=torch.promote_types(working_dtype(R), working_dtype(T)))

    def solve(share: slice) -> None:
        some = CACHED // (8 * max(1, order.shape[1]) * (R.shape[1] + 2 * order.shape[1]))
        for part in slices(share.stop - share.start, some):
            part = slice(share.start + part.start, share.start + part.stop)
            gamma[part] = _least_squares(R[part].double(), _chosen(T, order[part]), order[part] < 0).to(
                gamma.dtype
            )

    in_threads(len(R), torch.get_num_threads() if R.device.type == "cpu" else 1, solve)
    return gamma


@torch.no_grad()
def reconstruct(gamma: Tensor, order: Tensor, T: Tensor) -> Tensor:
    """The sums of chosen atoms: gamma [K, n], order [K, n], T [M, d] -> R_hat [K, d]."""
    if gamma.shape != order.shape:
        raise ValueError(
            f"expected gamma and order of one shape, got {list(gamma.shape)} and {list(order.shape)}"
        )
    R_hat = T.new_zeros(len(gamma), T.shape[1], dtype=torch.promote_types(gamma.dtype, working_dtype(T)))
    for part in slices(len(gamma), CACHED // (8 * max(1, order.shape[1]) * T.shape[1])):
        R_hat[part] = torch.einsum("kn,knd->kd", gamma[part].double(), _chosen(T, order[part])).to(
            R_hat.dtype
        )
    return R_hat


def code_table(
    order: Tensor,
    gamma: Tensor,
    words: Sequence[str],
    *,
    model: str,
    layer: str,
    units: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Codes as a labels table: method second_order, score the coefficient, rank 1 that of largest absolute
    value.

    order, gamma [K, n]; `units` names the rows when they are not 0..K-1. Units of fewer words have fewer
    rows.
    """
    units = list(range(len(order))) if units is None else [int(unit) for unit in units]
    if gamma.shape != order.shape or len(units) != len(order):
        raise ValueError(
            f"expected order and gamma [K, n] and K units, got {list(order.shape)}, {list(gamma.shape)} "
            f"and {len(units)} units"
        )
    if order.numel() and int(order.max()) >= len(words):
        raise ValueError(
            f"expected a word for every atom of the pool, got {len(words)} words and atom {int(order.max())}"
        )
    by_size = gamma.abs().masked_fill(order < 0, -1).sort(dim=1, descending=True, stable=True).indices
    order, gamma = order.gather(1, by_size), gamma.gather(1, by_size)
    rows, ranks = (order >= 0).nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "model": model,
            "layer": layer,
            "unit": [units[row] for row in rows.tolist()],
            "method": "second_order",
            "rank": (ranks + 1).cpu().numpy(),
            "label": [words[j] for j in order[rows, ranks].tolist()],
            "score": gamma[rows, ranks].double().cpu().numpy(),
        },
        columns=COLUMNS,
    )


def _chosen(T: Tensor, order: Tensor) -> Tensor:
    """The chosen atoms in float64, zeros for -1: [K, n, d]."""
    return T[order.clamp(min=0)].double().masked_fill_((order < 0)[:, :, None], 0)


def _least_squares(R: Tensor, A: Tensor, absent: Tensor) -> Tensor:
    """Solutions gamma [K, n] of gamma A = R for R [K, d], A [K, n, d], in float64."""
    G = A @ A.mT
    G.diagonal(dim1=1, dim2=2)[absent] = 1
    L, failed = torch.linalg.cholesky_ex(G)
    pivots = L.diagonal(dim1=1, dim2=2)
    dependent = (failed > 0) | ~(pivots.amin(1) > 1e-4 * pivots.amax(1))
    gamma = torch.zeros_like(A[:, :, :1])
    for _ in range(3):  # refined with the residuals of R, the squared condition of G costs nothing
        gamma += torch.cholesky_solve(A @ (R[:, :, None] - A.mT @ gamma), L)
    for k in dependent.nonzero()[:, 0].tolist():  # nearly, at least: refining would not converge
        gamma[k] = torch.linalg.lstsq(
            A[k].T, R[k, :, None], driver="gelsd" if R.device.type == "cpu" else None
        ).solution
    return gamma[:, :, 0]


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
            for part in slices(len(left), 16):  # in place: a basis is only ever moved down
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
        r[ends] = 0  # so that the next step leaves these units out


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
    seconds = {}
    factors = {
        kind: [torch.ones(size, dtype=kind) for size in ((1024, 512), (512, 128))]
        for kind in (torch.float32, torch.bfloat16)
    }
    for _ in range(12):  # by turns, so that other work on the machine meets both
        for kind, (A, B) in factors.items():
            start = time.perf_counter()
            A @ B
            seconds[kind] = min(seconds.get(kind, math.inf), time.perf_counter() - start)
    return torch.bfloat16 if 1.5 * seconds[torch.bfloat16] < seconds[torch.float32] else dtype


def screened(T: Tensor, dtype: torch.dtype) -> Atoms:
    """Bounds: |t . r - c| <= |t - t'| |r| + |t'| |r - r'| + 2 d u |t'| |r'| (sums of d products) + the
    output's rounding.
    """
    M, d = T.shape
    parts = list(slices(M, CACHED // (16 * d)))
    largest = (
        max(float(torch.linalg.vector_norm(T[part], dim=1, dtype=torch.float64).max()) for part in parts)
        or 1.0
    )
    coarse, error, size = T.new_zeros(math.ceil(M / BLOCK) * BLOCK, d, dtype=dtype), 0.0, 0.0
    for part in parts:
        exact = T[part].double() / largest
        rounded = coarse[part].copy_(exact).double()
        error = max(error, float((exact - rounded).norm(dim=1).max()))
        size = max(size, float(rounded.norm(dim=1).max()))
    products = (
        2.0 * d * 2.0 ** (-53 if dtype == torch.float64 else -24) + d * 2.0**-120
    )  # the latter for what underflows
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        products += 2.0**-7  # factors may be rounded to bfloat16
    return Atoms(T, coarse, error, size, products, 2.0**-8 if dtype == torch.bfloat16 else 0.0)


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


SIMILAR = 0.6  # cosine of sentence embeddings from which on a word counts as another name of the class


def concepts_in_images(strength: Tensor, order: Tensor, gamma: Tensor, words: int) -> Tensor:
    """Scores [N, M]: the sum over neurons of gamma times strength, for each of the M `words` of the pool.

    strength [N, K] is 0 where a neuron is not active: the length of its deviation where that is beyond its
    threshold, as released, or the deviation's part along r, whose sign says whether the words are there or
    missing. order, gamma [K, m] are the neurons' codes.
    """
    _check_codes("strength [N, K]", strength, strength.shape[1], order, gamma, words)
    units, places = (order >= 0).nonzero(as_tuple=True)
    at = torch.stack([order[units, places], units])
    values = gamma[units, places].to(strength.dtype)
    codes = torch.sparse_coo_tensor(at, values, (words, len(order)), check_invariants=True)
    return torch.sparse.mm(codes, strength.T).T


def words_for(
    v: Tensor,
    R: Tensor,
    order: Tensor,
    gamma: Tensor,
    words: Sequence[str],
    neurons: int = 100,
    summed: bool = True,
) -> list[tuple[str, float]]:
    """(word, score) by descending score: gamma (r . v) of the `neurons` with the largest |r . v|, summed over
    neurons.

    v [d], R [K, d], order and gamma [K, m]; the neurons of several layers go one after the other. Equation 6
    sums; without `summed` a word has its largest single score, as released, where duplicates are not added
    up.
    """
    _check_codes("R [K, d]", R, len(R), order, gamma, len(words))
    units, reads = speaking_neurons(v, R, neurons)
    chosen, parts = order[units], gamma[units] * reads[:, None]
    kept = chosen >= 0
    scores = torch.full((len(words),), 0.0 if summed else -torch.inf, dtype=parts.dtype, device=parts.device)
    scores = scores.scatter_reduce(0, chosen[kept], parts[kept], "sum" if summed else "amax")
    said = torch.zeros(len(words), dtype=torch.bool, device=parts.device)
    said[chosen[kept]] = True
    best = scores.masked_fill(~said, -torch.inf).sort(descending=True, stable=True)
    return [
        (words[j], value)
        for j, value in zip(best.indices.tolist(), best.values.tolist())
        if value > -torch.inf
    ]


def speaking_neurons(v: Tensor, R: Tensor, neurons: int) -> tuple[Tensor, Tensor]:
    """The neurons with the largest |r . v|, in descending order, and their r . v; v [d], R [K, d]."""
    check_positive_int("neurons", neurons)
    reads = R @ v
    units = reads.abs().topk(min(neurons, len(reads))).indices
    return units, reads[units]


def allowed_words(
    words: Sequence[str],
    wrong: str,
    encode: Callable[[list[str]], Tensor] | None = None,
    most: float = SIMILAR,
    block: Sequence[str] = (),
) -> list[str]:
    """The words that neither contain the class `wrong` (or its plural) nor a blocked word, nor mean nearly
    the same.

    `encode` gives unit rows of sentence embeddings; words whose cosine with `wrong` is `most` or more are
    left out.
    """
    given_away = name_pattern([wrong, *block])
    kept = [word for word in words if not given_away.search(word)]
    if encode is None or not kept:
        return kept
    near = encode(list(kept)) @ encode([wrong])[0]
    return [word for word, cosine in zip(kept, near.tolist()) if cosine < most]


def _check_codes(what: str, given: Tensor, neurons: int, order: Tensor, gamma: Tensor, words: int) -> None:
    if order.shape != gamma.shape or len(order) != neurons:
        raise ValueError(
            f"expected {what} and codes [K, m] with equal K, got {list(given.shape)}, {list(order.shape)} "
            f"and {list(gamma.shape)}"
        )
    if order.numel() and order.max() >= words:
        raise ValueError(
            f"codes are of a pool of {words} words, got word {int(order.max())}; pass the pool they were "
            "made with"
        )
