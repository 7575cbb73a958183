"""Correlation, cubed cosine and soft correlation, added; and the default similarity function, which adds them
for the last layer of a network.

layered_correlation   the default: `standardised_correlation` for inner layers, the sum for the last
by_kind               which function and options that is
combined_correlation  the sum of the three
softmax_scales        what takes exponentials to shares of the softmax over concepts
concept_columns       what units' columns are multiplied with, of some concepts
share_columns         the part of it that comes from the softmax

The two correlations have the columns of units in common, so that the columns of concepts are added before
they are multiplied: two products in place of three. All columns of a block of concepts are made together, of
P that is read twice (once for what the softmax divides by), and made from embeddings once where it fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from neuronym.common.checks import check_number
from neuronym.common.memory import items_within, slices
from neuronym.similarity.columns import centred_columns, cubed_columns, extremes, taken
from neuronym.similarity.matrix import block, check_range, checked, compiled_loops, FactoredMatrix
from neuronym.similarity.pmi import IMAGES_AT_ONCE, SAFE, WIDE
from neuronym.similarity.softened import mean_spread, SHARPNESS, softmax_noise
from neuronym.similarity.standardised import standardised_correlation

CUBED = 2.0  # weight of the cubed cosine for the last layer: the winner of docs/protocols/default_name.md
PADDED = 16  # values between rows of columns: rows a power of two apart would share few places of a cache


def layered_correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    final: bool = False,
    sharpness: float = SHARPNESS,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """The default: for inner layers `standardised_correlation`, for the last (`final`) `combined_correlation`
    with the cubed cosine twice. P [N, M], Q [N, K] -> scores [K, M]

    Units of the last layer answer few images, which show one thing, most of all: the cubed cosine sees these.
    Units of inner layers answer many images a little (docs/results/default_name.md). What is given a network
    and its layers knows which is the last; here it is told.
    """
    if not isinstance(final, bool):
        raise TypeError(f"final must be True for the last layer and False for others, got {final!r}")
    function, options = by_kind(final)
    return function(P, Q, sharpness=sharpness, units=units, memory=memory, **options)


def by_kind(final: bool) -> tuple[Callable, dict[str, float]]:
    """The function that `layered_correlation` is for the last layer, or for others, and its options."""
    return (combined_correlation, {"cubed": CUBED}) if final else (standardised_correlation, {})


@torch.no_grad()
def combined_correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    sharpness: float = SHARPNESS,
    cubed: float = 1,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """Sum of correlation, cubed cosine and soft correlation. P [N, M], Q [N, K] -> scores [K, M]

    S = r(Q, P) + w c(Q)' c(P) + r(Q, X): `correlation`, `cos_similarity_cubed` with eps 0 (so that the scale
    of a unit changes nothing) and `soft_correlation`, each from -1 to 1; w = `cubed` is the second's weight.

    The three see other things: all images alike, the strongest ones, and what stands out in each image. Each
    is best somewhere and far behind elsewhere; docs/results/default_name.md has the comparison.
    """
    check_number("sharpness", sharpness)
    check_number("cubed", cubed)
    layers, chosen, dtype, d, memory = checked(P, Q, units, memory)
    (N, M), size, counts = P.shape, dtype.itemsize, [len(some) for some in chosen]
    device = layers[0].device
    loops = compiled_loops(device, "column_loops") if dtype == torch.float32 else None
    unit, column = 6 * N * size, ((4 if loops else 6) * N + 2 * d) * size
    held, usual = 8 * N * size + 16 * d * d, min(M, WIDE)
    whole, blocks = N * M * size, held + usual * column + min(WIDE, sum(counts)) * unit
    if d and whole + blocks <= memory:
        P, d, memory = torch.matmul(P.I.to(dtype), P.T.to(dtype).T), 0, memory - whole
    some, k, m = items_within(
        memory, (held, 24 * max(d, M), N), (held + column, unit, sum(counts)), (held + unit, column, usual)
    )
    k = max(1, min(k, (memory - held - m * column) // unit))
    m = max(1, min(m, (memory - held - k * unit) // column))
    spread = mean_spread(P, some)
    slope = sharpness / spread if spread else 0
    scales, most = softmax_scales(loops, P, slope, dtype, min(some, IMAGES_AT_ONCE))
    check_range(slope, most / abs(slope) if slope else 0, dtype)
    noise, scores = softmax_noise(1, most, dtype), layers[0].new_empty(sum(counts), M, dtype=dtype)
    ready = isinstance(P, Tensor) and P.dtype == dtype and P.is_contiguous()
    made, store = (
        None if ready else scores.new_empty(N * m),
        scores.new_empty(2, N * (m + PADDED)) if loops else None,
    )
    for part in slices(sum(counts), k):
        centred, cubes_of_units = columns_of_units(loops, taken(layers, chosen, part).to(dtype))
        for cols in slices(M, m):
            X, some = P, cols
            if made is not None:
                some = slice(0, cols.stop - cols.start)
                X = block(P, None, cols, made[: N * some.stop].view(N, -1))
            both, cubes = concept_columns(loops, X, some, slope, scales, noise, store)
            found = torch.matmul(centred.T, both, out=scores[part, cols])
            found.addmm_(cubes_of_units.T, cubes, alpha=cubed)
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


def softmax_scales(
    loops: ModuleType | None, P: Tensor | FactoredMatrix, slope: float, dtype: torch.dtype, some: int
) -> tuple[Tensor, float]:
    """Shift, the largest slope P of every image or 0, and the sum over concepts of exp(slope P - shift), as
    [N, 2], `some` images at once; and the largest |slope P|.
    """
    N, most, T = P.shape[0], 0.0, None if isinstance(P, Tensor) else P.T.to(dtype).T
    scales = (P if T is None else P.I).new_empty(N, 2, dtype=dtype)
    for rows in slices(N, some):
        x = P[rows].to(dtype) if T is None else torch.matmul(P.I[rows].to(dtype), T)
        if loops:
            largest = loops.scale_rows(x.detach().contiguous(), slope, scales[rows])
        else:
            x = x * slope
            high, largest = x.amax(1, keepdim=True), float(x.abs().max())
            if largest <= SAFE * math.log(torch.finfo(dtype).max):
                high.zero_()  # one rounding less
            scales[rows] = torch.cat([high, x.sub_(high).exp_().sum(1, keepdim=True)], 1)
        most = max(most, largest)
    return scales, most


def columns_of_units(loops: ModuleType | None, q: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of units [N, k], centred, and centred and cubed, of length 1."""
    if not loops:
        return centred_columns(q.clone()), cubed_columns(q.clone(), 0)
    made, q = [], q.contiguous()
    for power, normalise in ((1, centred_columns), (3, lambda X: cubed_columns(X, 0))):
        Y = torch.empty_like(q)
        scales, _, odd = loops.measure_columns(q, 0, q.shape[1], power, 0, Y)
        if odd is not None:
            Y[:, torch.from_numpy(odd)] = normalise(q[:, torch.from_numpy(odd)])
        made.append(Y.mul_(scales))
    return made[0], made[1]


def concept_columns(
    loops: ModuleType | None,
    P: Tensor,
    cols: slice,
    slope: float,
    scales: Tensor,
    noise: float,
    store: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Columns [N, m] of some concepts: centred P and shares of the softmax, each of length 1, added; and
    centred cubes of length 1; where there is a `store` [2, at least N (m + PADDED)], in that. `scales` and
    `noise` are those of `softmax_scales` and `softmax_noise`.
    """
    if not loops:
        return _stepwise(P[:, cols], slope, scales, noise)
    N, m = len(P), cols.stop - cols.start
    store = P.new_empty(2, N * (m + PADDED)) if store is None else store[:, : N * (m + PADDED)]
    both, cubes = (part.view(N, m + PADDED) for part in store)
    odd = loops.combine(P.detach(), cols, slope, scales, noise, both, cubes)
    both, cubes = both[:, :m], cubes[:, :m]
    if odd.any():
        odd = torch.from_numpy(odd)
        both[:, odd], cubes[:, odd] = _stepwise(P[:, cols][:, odd], slope, scales, noise)
    return both, cubes


def _stepwise(p: Tensor, slope: float, scales: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    shares = share_columns(p, slope, scales, noise)
    return shares.add_(centred_columns(p.clone())), cubed_columns(p.clone(), 0)


def share_columns(p: Tensor, slope: float, scales: Tensor, noise: float) -> Tensor:
    """Centred columns of shares of the softmax, of length 1, or 0 where only rounding tells them apart."""
    x = (p * slope).sub_(scales[:, :1]).exp_().div_(scales[:, 1:])
    low, high = extremes(x)
    return centred_columns(x).masked_fill_(high - low <= noise * high, 0)
