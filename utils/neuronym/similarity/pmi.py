"""wpmi and soft_wpmi, the similarity functions that weigh how well a unit's top images predict a concept.

TOP_IMAGES     how many images they read of each unit
wpmi           weighted pointwise mutual information
soft_wpmi      the same, trusting the j-th image the less the larger j
less_prior     scores of a layer from its sums
Source         where blocks of P come from: a matrix, or stores of what was made from embeddings
softmax_tiles  the softmax over concepts of a P, for some images and a few concepts at a time, in bounded
               memory

Both sum logarithms of p_j x_ic + rest_j over a unit's top images i, where x is the softmax over concepts of a
P. With scales c_j = exp((the least + the largest such logarithm) / 2), which keep products near 1,

    sum_j log(p_j x_ic + rest_j) = sum_j log c_j + log of the product over j of (p_j x_ic + rest_j) / c_j,

where a product is broken off only when it might leave the range of its dtype: there are two multiplications
and an addition for each image and concept, and for each concept about one logarithm instead of top_k. The
denominators of the softmax run over all concepts. So in compiled loops a block of images meets all concepts
at once (`similarity.images`); without them, in float64, and where that does not fit, a block of concepts
meets all images, and P is gone through twice: what the first time was made from embeddings is kept as far as
the memory goes.

Rounding, in units of u = 2^-24 (float32) or 2^-53: x is off by |a P| + 8, as in any softmax, and each factor
and product by 4 more, so that a sum of top_k logarithms is off by at most top_k (|a P| + 12) u beside its own
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import (
    distinct_images,
    in_threads,
    items_within,
    slices,
    SORTING_BYTES_PER_VALUE,
    strongest_images,
    working_bytes,
)
from neuronym.similarity.matrix import (
    block,
    check_finite,
    check_range,
    checked,
    compiled_loops,
    FactoredMatrix,
    largest,
)

TOP_IMAGES = {"wpmi": 28, "soft_wpmi": 100}  # that they read of each unit, unless told `top_k`
IMAGES_AT_ONCE = 512  # in a block that meets all concepts: enough for a fast matrix product
WIDE = 1024  # concepts in a block of P: enough for a fast matrix product
TILES = 2**25  # bytes of tiles worked on at once on a CPU; the narrower, the worse memory reads P


@torch.no_grad()
def wpmi(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    top_k: int | None = None,
    a: float = 2,
    lam: float = 0.6,
    eps: float = 1e-7,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """Weighted pointwise mutual information of unit and concept. P [N, M], Q [N, K] -> scores [K, M]

    S = l(c|k) - lam l(c): l(c|k) = sum over the top_k images of unit k of log(softmax over concepts(a P) +
    eps), and l(c) = log of the mean over all K units of exp l(c|k). top_k=None: 28, or N when there are fewer
    images.
    """
    check_number("eps", eps, 0)
    return _pmi(P, Q, units, memory, top_k, TOP_IMAGES["wpmi"], a, lam, lambda share: (1, eps))


@torch.no_grad()
def soft_wpmi(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    top_k: int | None = None,
    a: float = 10,
    lam: float = 1,
    p_start: float = 0.998,
    p_end: float = 0.97,
    eps: float = 1e-7,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """WPMI that trusts the j-th image with probability p_j = p_start - (j / top_k)(p_start - p_end). ->
    scores [K, M]

    As wpmi, with l(c|k) = sum over j, in order of activation, of log(1 + p_j (softmax over concepts(a P) - 1)
    + eps). top_k=None: 100, or N when there are fewer images.
    """

    def trust(share: float) -> tuple[float, float]:
        p = p_start - share * (p_start - p_end)
        return p, 1 - p + eps

    check_number("p_start", p_start, 0, 1)
    check_number("p_end", p_end, 0, 1)
    check_number("eps", eps, 0)
    return _pmi(P, Q, units, memory, top_k, TOP_IMAGES["soft_wpmi"], a, lam, trust)


def _pmi(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    units: Sequence[int] | None,
    memory: int,
    top_k: int | None,
    usual: int,
    a: float,
    lam: float,
    trust: Callable[[float], tuple[float, float]],
) -> Tensor | list[Tensor]:
    """S = l - lam (logsumexp of l over a layer's units - log K), l = sum over j of log(p_j x + rest_j).

    (p_j, rest_j) = trust(j / top_k), x the softmax over concepts of a P.
    """
    check_number("a", a)
    check_number("lam", lam)
    layers, chosen, dtype, d, memory = checked(P, Q, units, memory, finite=False)
    (N, M), sizes, size = P.shape, [layer.shape[1] for layer in layers], dtype.itemsize
    top_k = min(usual, N) if top_k is None else top_k
    check_positive_int("top_k", top_k, N, f"N {N} images")
    K = sum(sizes)
    loops = compiled_loops(layers[0].device)
    images = compiled_loops(layers[0].device, "images") if dtype == torch.float32 else None
    check_finite(None if images and isinstance(P, Tensor) else P, Q)  # rows of P are looked at as they come
    threads = torch.get_num_threads() if loops else 1
    U, work = min(N, K * top_k), working_bytes(memory, layers[0].device, TILES)
    held, column = 24 * K * top_k + (24 + 6 * size) * N, (3 * U + 4 * K + 2 * d) * size
    some, m = items_within(
        memory, (held, N * SORTING_BYTES_PER_VALUE, K), (held, column, min(M, max(WIDE, work // (U * size))))
    )
    threads = min(threads, m)
    width = max(
        1, min(m // threads, max(32, work // threads // (U * size)))
    )  # of a tile that a thread works on

    # no other rows of P are needed; the prior is that of the layer, so all its units are scored
    top = torch.cat([strongest_units(loops, layer, top_k, dtype, some) for layer in layers])
    rows, top = (loops.numbered if loops else distinct_images)(top, N)
    if images:
        beside = held if units is None else held + 4 * K * M
        spare = memory - beside - images.needed(P, len(rows), K, top_k)
        given = P, rows, top, a, trust, sizes, lam, spare
        if spare >= 0 and (found := images.scores_by_images(*given)) is not None:
            scores = [x if units is None else x[some] for x, some in zip(found.split(sizes), chosen)]
            return scores[0] if isinstance(Q, Tensor) else scores
        check_finite(P, ())
    keep = (memory - held - column * m) // (U * m * size)
    extremes, blocks = softmax_tiles(P, rows, a, dtype, m, keep, width, work)
    runs, constant = _runs(top, trust, extremes)
    scores = [extremes.new_empty(len(some), M) for some in chosen]
    for tiles in blocks:

        def score_some(part: slice) -> None:
            for concepts, x in tiles[part]:
                l = _sum_of_logs(loops, x, runs, constant, K)
                for likely, some, out in zip(l.split(sizes), chosen, scores):
                    prior = likely.logsumexp(0).sub_(math.log(len(likely))).mul_(lam)
                    torch.sub(likely[some], prior, out=out[:, concepts])

        in_threads(len(tiles), threads, score_some)
    return scores[0] if isinstance(Q, Tensor) else scores


def strongest_units(loops: ModuleType | None, layer: Tensor, n: int, dtype: torch.dtype, some: int) -> Tensor:
    """`strongest_images` of all units of a layer, in compiled loops where there are any."""
    K = layer.shape[1]
    if loops is None or dtype != torch.float32:
        return strongest_images(layer, torch.arange(K, device=layer.device), n, dtype, some)
    parts = [loops.strongest(layer[:, part].to(dtype), n) for part in slices(K, some)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def less_prior(l: Tensor, units: Tensor | None, lam: float) -> Tensor:
    """S of the units of a layer, or of some, from l [K, M], in place."""
    for cols in slices(l.shape[1], WIDE // 4):
        likely = l[:, cols]
        likely -= likely.logsumexp(0).sub_(math.log(len(l))).mul_(lam)
    return l if units is None else l[units]


def _runs(
    top: Tensor, trust: Callable[[float], tuple[float, float]], extremes: Tensor
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], float]:
    """Images [K, run], rests and gains [run] of runs of factors whose product stays in range, and the sum of
    log c_j.
    """
    J, info = top.shape[1], torch.finfo(extremes.dtype)
    low, high = (
        extremes[:, 0][top].amin(0).tolist(),
        extremes[:, 1][top].amax(0).tolist(),
    )  # of the j-th images
    rests, gains, edges, constant, spread = [], [], [0], 0.0, 0.0
    for j in range(J):
        p, rest = trust(j / J)
        rest = max(rest, 1e3 * info.tiny)
        least, largest = (math.log(p * x + rest) for x in (low[j], high[j]))
        middle = (least + largest) / 2
        rests.append(rest / math.exp(middle))
        gains.append(p / math.exp(middle))
        if spread + (largest - middle) > SAFE * math.log(info.max) and j > edges[-1]:
            edges.append(j)
            spread = 0.0
        constant, spread = constant + middle, spread + largest - middle
    rests, gains = extremes.new_tensor(rests), extremes.new_tensor(gains)
    return [
        tuple(y[..., i:j].contiguous() for y in (top, rests, gains)) for i, j in zip(edges, edges[1:] + [J])
    ], constant


def _sum_of_logs(
    loops: ModuleType | None, x: Tensor, runs: list[tuple[Tensor, Tensor, Tensor]], constant: float, K: int
) -> Tensor:
    """l_kc = constant + sum over runs of log of products of (rest_j + gain_j x_ic), i = top_kj: x [U, m] -> l
    [K, m].
    """
    l, product = x.new_full((K, x.shape[1]), constant), x.new_empty(K, x.shape[1])
    for top, rest, gain in runs:
        if loops:
            loops.products(x, top, rest, gain, product)
        else:
            product.fill_(1)
            for images, r, g in zip(top.T, rest, gain):
                product.mul_(x.index_select(0, images).mul_(g).add_(r))
        l.add_(product.log_())
    return l


SAFE = 0.7  # share of a dtype's range of exponents that powers, and products of them, may use


@dataclass(frozen=True)
class Source:
    """Where blocks of P[rows] come from: the matrix itself if there are no stores, or stores that hold a
    block each.
    """

    P: Tensor | FactoredMatrix
    rows: Tensor
    blocks: list[slice]
    stores: list[Tensor]

    def take(self, i: int, again: bool = False) -> tuple[Tensor, Tensor, slice]:
        """Block i as rows and columns of a matrix; `again`: it has been taken, and may be in its store
        still.
        """
        if not self.stores:
            return self.P, self.rows, self.blocks[i]
        width, last = self.blocks[i].stop - self.blocks[i].start, len(self.stores) - 1
        S = self.stores[min(i, last)][: len(self.rows) * width].view(-1, width)
        if not again or last <= i < len(self.blocks) - 1:  # blocks from the last store on have shared it
            block(self.P, self.rows, self.blocks[i], S)
        return S, torch.arange(len(S), device=S.device), slice(0, width)


def softmax_tiles(
    P: Tensor | FactoredMatrix,
    rows: Tensor,
    a: float,
    dtype: torch.dtype,
    m: int,
    keep: int,
    width: int,
    work: int,
) -> tuple[Tensor, Iterator[list[tuple[slice, Tensor]]]]:
    """Softmax x over concepts of a P[rows]: least and largest by image [U, 2], and an iterator of lists of
    (concepts, x).

    A list has the tiles [U, width] of a block of m concepts, in memory that the next list overwrites. `keep`
    blocks of P are kept; `work` bytes are worked on at a time. ValueError when a P overflows.
    """
    example = P if isinstance(P, Tensor) else P.I
    blocks = list(slices(P.shape[1], m))
    ready = isinstance(P, Tensor) and P.dtype == dtype
    stores = 0 if ready else min(len(blocks), 1 + keep)
    source = Source(
        P.detach() if ready else P,
        rows,
        blocks,
        [example.new_empty(len(rows) * m, dtype=dtype) for _ in range(stores)],
    )
    shift = example.new_zeros(len(rows), dtype=dtype)
    if _exceeds(P, a, dtype):
        shift -= math.inf
        for i in range(len(blocks)):
            for part, x in _parts(*source.take(i), a, None, dtype, work):
                torch.maximum(shift[part], x.amax(1), out=shift[part])
    total, extremes = torch.zeros_like(shift), shift.new_tensor([math.inf, 0]).repeat(len(rows), 1)
    for i in range(len(blocks)):
        _add_powers(*source.take(i), a, shift, total, extremes, work)
    scale = total.reciprocal()
    return extremes * scale[:, None], _tiles(source, a, shift, scale, width, work)


def _exceeds(P: Tensor | FactoredMatrix, a: float, dtype: torch.dtype) -> bool:
    """Whether exp(a P) may leave the safe range; ValueError when a P itself leaves that of the dtype."""
    most = largest(P)
    check_range(a, most, dtype)
    return abs(a) * most > SAFE * math.log(torch.finfo(dtype).max)


def _parts(
    S: Tensor, rows: Tensor, cols: slice, a: float, shift: Tensor | None, dtype: torch.dtype, work: int
) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows, each with exp(a S[rows, cols] - shift), or without a shift with a S[rows, cols]."""
    for part in slices(len(rows), work // ((cols.stop - cols.start) * dtype.itemsize)):
        x = S[:, cols].index_select(0, rows[part]).to(dtype).mul_(a)
        yield part, x if shift is None else x.sub_(shift[part, None]).exp_()


def _loops(S: Tensor, dtype: torch.dtype):
    return compiled_loops(S.device) if dtype == S.dtype == torch.float32 and S.is_contiguous() else None


def _add_powers(
    S: Tensor, rows: Tensor, cols: slice, a: float, shift: Tensor, total: Tensor, extremes: Tensor, work: int
) -> None:
    """Add the sums of exp(a S[rows, cols] - shift) to total [U], and keep the least and largest in extremes
    [U, 2].
    """
    if loops := _loops(S, total.dtype):
        return in_threads(
            len(rows),
            torch.get_num_threads(),
            lambda part: loops.add_powers(S, rows[part], cols, a, shift[part], total[part], extremes[part]),
        )
    for part, x in _parts(S, rows, cols, a, shift, total.dtype, work):
        total[part] += x.sum(1)
        low, high = x.aminmax(dim=1)
        extremes[part] = torch.stack(
            [torch.minimum(extremes[part, 0], low), torch.maximum(extremes[part, 1], high)], 1
        )


def _tiles(
    source: Source, a: float, shift: Tensor, scale: Tensor, width: int, work: int
) -> Iterator[list[tuple[slice, Tensor]]]:
    """(concepts, scale exp(a P - shift)) of every tile, from the last block to the first: the last is in its
    store.
    """
    U, store = len(scale), scale.new_empty(len(scale) * (source.blocks[0].stop - source.blocks[0].start))
    for i in reversed(range(len(source.blocks))):
        S, rows, cols = source.take(i, again=True)
        first, count = source.blocks[i].start, cols.stop - cols.start
        tiles = [
            (slice(first + some.start, first + some.stop), store[U * some.start : U * some.stop].view(U, -1))
            for some in slices(count, width)
        ]
        if loops := _loops(S, scale.dtype):
            out = store[: U * count].view(U, count)
            in_threads(
                U,
                torch.get_num_threads(),
                lambda part: loops.write_powers(
                    S, rows[part], cols, a, shift[part], scale[part], out, part.start, width
                ),
            )
        else:
            for part, powers in _parts(S, rows, cols, a, shift, scale.dtype, work):
                for concepts, x in tiles:
                    torch.mul(
                        powers[:, concepts.start - first : concepts.stop - first],
                        scale[part, None],
                        out=x[part],
                    )
        yield tiles
