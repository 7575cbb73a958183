"""The similarity function that compares the concepts of one image, by the softmax over them, before units are
correlated with what stands out.

soft_correlation  Pearson's, of activations and the softmax over concepts
mean_spread       how far apart an image's cosines are: what finds the softmax's slope
softmax_noise     what differs by rounding alone, of shares in a softmax

In compiled loops a block of images meets all concepts at once: P is made once, exponentials are taken once,
and products [K, M] of blocks add up to the result, which is the only thing of that size. Where memory is
short, and on other devices, it is a block of concepts that meets all images (`pmi.softmax_tiles`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from neuronym.common.checks import check_number
from neuronym.common.memory import items_within, nonzero, slices, working_bytes
from neuronym.similarity.columns import centred_columns, extremes, largest_of, taken
from neuronym.similarity.matrix import (
    check_finite,
    check_range,
    checked,
    compiled_loops,
    FactoredMatrix,
    largest,
)
from neuronym.similarity.pmi import IMAGES_AT_ONCE, softmax_tiles, TILES, WIDE

UNITS = 256  # measured together
SHARPNESS = 2  # standard deviations, in nats, of an image's logits


@torch.no_grad()
def soft_correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    sharpness: float = SHARPNESS,
    slope: float | None = None,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """Pearson correlation of activations with the softmax over concepts of a P. P [N, M], Q [N, K] -> scores
    [K, M]

    S_kc = r(Q_k, X_c) over images, X_n = softmax over concepts of a P_n, a = sharpness / (mean over images n
    of the standard deviation over concepts of P_n), or the slope given.

    Not in CLIP-Dissect, but of its parts: the softmax of (soft-)WPMI, and correlation over all images in
    place of sums over the top ones. A cosine says little alone: all concepts rise in a picture that the CLIP
    finds easy. The softmax compares the concepts of one image, and leaves what stands out. A CLIP learns
    logits, a P + b with an a of its own that P lacks; how steep the softmax must be follows from how far
    apart its cosines are. With this a an image's logits have a standard deviation of `sharpness` nats on
    average, whatever the CLIP and however narrow its cone: at 2, a concept two standard deviations above an
    image's mean has e^4, 55 times, the share of an average one. Adding a constant to all cosines of an image,
    or scaling all of P, changes nothing.

    Columns that are constant but for rounding score 0: all of them where there is one concept only, or all
    cosines of every image are equal.
    """
    check_number("sharpness", sharpness)
    if slope is not None:
        check_number("slope", slope)
    layers, chosen, dtype, d, memory = checked(P, Q, units, memory, finite=False)
    counts = [len(units) for units in chosen]
    (N, M), size, count = P.shape, dtype.itemsize, sum(counts)
    loops = compiled_loops(layers[0].device, "column_loops") if dtype == torch.float32 else None
    most = min(N, IMAGES_AT_ONCE)
    held = (most * M + 2 * most * count + 10 * M + 2 * N * min(count, UNITS) + d * M) * size
    whole = bool(d and loops) and held + N * M * size <= memory
    if slope is not None or whole:
        check_finite(P, Q)
    if whole:  # the covariance of its factors takes longer than their product
        P, d = torch.matmul(P.I.to(dtype), P.T.to(dtype).T), 0
    if loops and max(held, 16 * d * d + 24 * most * d) <= memory and (d or P.is_contiguous()):
        slope = _slope(P, sharpness, IMAGES_AT_ONCE) if slope is None else slope
        chosen = [None] * len(layers) if units is None else chosen
        centred = [_Centred.of(loops, layer, some) for layer, some in zip(layers, chosen)]
        if not math.isfinite(slope) or not all(layer.sound for layer in centred):
            check_finite(P, Q)
        scores = _soft_by_images(loops, P, centred, slope)
    else:
        check_finite(P, Q)
        scores = _soft_by_concepts(P, layers, chosen, dtype, d, sharpness, slope, memory)
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


def _soft_by_images(
    loops: ModuleType, P: Tensor | FactoredMatrix, centred: list[_Centred], slope: float
) -> Tensor:
    """`soft_correlation` of a block of images after the other: the softmax over all concepts, its moments by
    concept, and its share of the products.
    """
    (N, M), most, dtype = P.shape, 0.0, torch.float32
    store, moments = centred[0].mean.new_empty(min(N, IMAGES_AT_ONCE), M), loops.Moments(M)
    T = None if isinstance(P, Tensor) else P.T.to(dtype).T
    scores = middle = None  # of shares: what is near constant is multiplied without its mean
    for rows in slices(N, IMAGES_AT_ONCE):
        x = store[: rows.stop - rows.start]
        if T is not None:
            torch.matmul(P.I[rows].to(dtype), T, out=x)
        given = (x[:0] if T is not None else P[rows].detach().to(dtype)).numpy()
        most = max(most, float(loops.share_rows(given, np.float32(slope), x.numpy())))
        if middle is not None:
            x -= middle
        moments.add(x)
        if scores is None and moments.far_from_zero(len(x)):
            middle = torch.from_numpy(moments.sums / len(x)).to(dtype)
            x -= middle
            moments = loops.Moments(M)
            moments.add(x)
        q = [layer.rows(rows) for layer in centred]
        q = torch.cat(q, 1) if len(q) > 1 else q[0]
        scores = torch.mm(q.T, x) if scores is None else scores.addmm_(q.T, x)
    check_range(slope, most / abs(slope) if slope else 0, dtype)
    of_units = torch.cat([layer.scale for layer in centred])
    loops.level_out(scores, slice(0, M), of_units, moments.scales(middle, N, softmax_noise(1, most, dtype)))
    return scores


@dataclass(frozen=True)
class _Centred:
    """Columns of units, centred some images at a time: (x / first - mean) scale is what `centred_columns`
    gives.
    """

    Q: Tensor
    units: Tensor | None
    first: Tensor | None
    mean: Tensor
    scale: Tensor
    sound: bool  # whether no unit is odd

    @classmethod
    def of(cls, loops: ModuleType, Q: Tensor, units: Tensor | None) -> _Centred:
        """Units are measured a few at a time; those that are odd (`column_loops`) step by step."""
        count = Q.shape[1] if units is None else len(units)
        means, scales, first, sound = [], [], None, True
        for part in slices(count, UNITS):
            q = (Q[:, part] if units is None else Q[:, units[part]]).float().contiguous()
            scale, mean, odd = loops.measure_columns(q, 0, q.shape[1], 1, 0, torch.empty_like(q))
            if odd is not None:
                odd, sound = torch.from_numpy(odd), False
                x = q[:, odd]
                low, high = extremes(x)
                first = torch.ones(count) if first is None else first
                first[part][odd] = nonzero(torch.maximum(high, -low))
                x = x / first[part][odd]
                mean[odd] = x.mean(0)
                x = x - mean[odd]
                most = nonzero(largest_of(x))
                scale[odd] = (1 / most / nonzero((x / most).norm(dim=0))).masked_fill_(low == high, 0)
            means, scales = [*means, mean], [*scales, scale]
        return cls(Q, units, first, torch.cat(means), torch.cat(scales), sound)

    def rows(self, rows: slice) -> Tensor:
        q = self.Q[rows] if self.units is None else self.Q[rows][:, self.units]
        return (q.float() if self.first is None else q.float() / self.first) - self.mean


def _slope(P: Tensor | FactoredMatrix, sharpness: float, some: int) -> float:
    apart = mean_spread(P, some)
    return sharpness / apart if apart else 0


def softmax_noise(slope: float, most: float, dtype: torch.dtype) -> float:
    """By how much shares in a softmax of slope P may differ by rounding alone, in parts of them: |P| <=
    most.
    """
    return 4 * torch.finfo(dtype).eps * (abs(slope) * most + 8)


def _soft_by_concepts(
    P: Tensor | FactoredMatrix,
    layers: list[Tensor],
    units: list[Tensor],
    dtype: torch.dtype,
    d: int,
    sharpness: float,
    slope: float | None,
    memory: int,
) -> Tensor:
    """`soft_correlation` where memory is short, or without compiled loops: some concepts at a time."""
    (N, M), size, count = P.shape, dtype.itemsize, sum(len(chosen) for chosen in units)
    work = working_bytes(memory, layers[0].device, TILES)
    held, column = (24 + 8 * size) * N + 16 * d * d, (3 * N + 2 * d) * size
    apart = (held, 24 * (d or M), N) if slope is None else (0, 1, 1)
    some, m, k = items_within(
        memory,
        apart,
        (held + 3 * N * size, column, min(M, max(WIDE, work // (N * size)))),
        (held + column, 3 * N * size, count),
    )
    free = memory - held - m * column
    k = max(1, min(k, free // (3 * N * size)))
    keep = (free - 3 * N * size * k) // (N * m * size)
    slope = _slope(P, sharpness, some) if slope is None else slope
    noise = softmax_noise(slope, largest(P), dtype)
    rows = torch.arange(N, device=layers[0].device)
    width = min(m, max(64, work // (N * size)))
    _, blocks = softmax_tiles(P, rows, slope, dtype, m, max(0, keep), width, work)
    scores, q = layers[0].new_empty(count, M, dtype=dtype), None
    for tiles in blocks:
        for cols, x in tiles:
            low, high = extremes(x)
            x = centred_columns(x).masked_fill_(high - low <= noise * high, 0)
            for part in slices(count, k):
                if q is None or k < count:
                    q = centred_columns(taken(layers, units, part).to(dtype))
                torch.matmul(q.T, x, out=scores[part, cols])
    return scores


@torch.no_grad()
def mean_spread(P: Tensor | FactoredMatrix, some: int = 1024) -> float:
    """Mean over images of the standard deviation over concepts (divided by M) of their cosines, `some` images
    at once.

    From embeddings without P: the variance of image n is i_n' C i_n, C the covariance of the texts.
    """
    if isinstance(P, Tensor):
        loops = compiled_loops(P.device, "column_loops")
        if loops and P.dtype == torch.float32 and P.is_contiguous():
            return loops.spread_of_rows(P.detach())
        spreads = [P[rows].double().std(1, correction=0) for rows in slices(len(P), some)]
        return float(torch.cat(spreads).mean())
    middle = P.T.mean(0, dtype=torch.float64)
    C = torch.zeros(len(middle), len(middle), dtype=torch.float64, device=middle.device)
    for rows in slices(len(P.T), some):
        T = P.T[rows].double() - middle
        C.addmm_(T.T, T)
    C /= len(P.T)
    spreads = []
    for rows in slices(len(P.I), some):
        I = P.I[rows].double()
        spreads.append(((I @ C) * I).sum(1).clamp(min=0).sqrt())
    return float(torch.cat(spreads).mean())
