"""wpmi and soft_wpmi, the similarity functions that weigh how well a unit's top images predict a concept.

Both sum logarithms of p_j x_ic + rest_j over a unit's top images i, where x is the softmax over concepts of a P. With
scales c_j = exp((the least + the largest such logarithm) / 2), which keep products near 1,
    sum_j log(p_j x_ic + rest_j) = sum_j log c_j + log of the product over j of (p_j / c_j x_ic + rest_j / c_j),
where a product is broken off only when it might leave the range of its dtype: there are two multiplications and an
addition for each image and concept, and for each concept about one logarithm instead of top_k.

Rounding, in units of u = 2^-24 (float32) or 2^-53: x is off by |a P| + 8, as in any softmax, and each factor and product
by 4 more, so that a sum of top_k logarithms is off by at most top_k (|a P| + 12) u beside its own rounding.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from neuronym.common.blocks import (
    at_hand,
    checked,
    compiled_loops,
    Embedded,
    fit,
    in_threads,
    MEMORY,
    number,
    SORTING_BYTES_PER_VALUE,
    strongest,
    used,
    whole,
)
from neuronym.similarity.softmax import SAFE, softmax_tiles

WIDE = 1024    # concepts in a block of P: enough for a fast matrix product
TILES = 2**25  # bytes of tiles worked on at once on a CPU; the narrower, the worse memory reads P


@torch.no_grad()
def wpmi(P: Tensor | Embedded, Q: Tensor | Sequence[Tensor], *, top_k: int | None = None, a: float = 2, lam: float = .6,
         eps: float = 1e-7, units: Sequence[int] | None = None, memory: int = MEMORY) -> Tensor | list[Tensor]:
    """Weighted pointwise mutual information of unit and concept. P [N, M], Q [N, K] -> scores [K, M]

    S = l(c|k) - lam l(c): l(c|k) = sum over the top_k images of unit k of log(softmax over concepts(a P) + eps), and
    l(c) = log of the mean over all K units of exp l(c|k). top_k=None: 28, or N when there are fewer images.
    """
    number("eps", eps, 0)
    return _pmi(P, Q, units, memory, top_k, 28, a, lam, lambda share: (1, eps))


@torch.no_grad()
def soft_wpmi(P: Tensor | Embedded, Q: Tensor | Sequence[Tensor], *, top_k: int | None = None, a: float = 10,
              lam: float = 1, p_start: float = .998, p_end: float = .97, eps: float = 1e-7,
              units: Sequence[int] | None = None, memory: int = MEMORY) -> Tensor | list[Tensor]:
    """WPMI that trusts the j-th image with probability p_j = p_start - (j / top_k)(p_start - p_end). -> scores [K, M]

    As wpmi, with l(c|k) = sum over j, in order of activation, of log(1 + p_j (softmax over concepts(a P) - 1) + eps).
    top_k=None: 100, or N when there are fewer images.
    """
    def trust(share: float) -> tuple[float, float]:
        p = p_start - share * (p_start - p_end)
        return p, 1 - p + eps

    number("p_start", p_start, 0, 1)
    number("p_end", p_end, 0, 1)
    number("eps", eps, 0)
    return _pmi(P, Q, units, memory, top_k, 100, a, lam, trust)


def _pmi(P: Tensor | Embedded, Q: Tensor | Sequence[Tensor], units: Sequence[int] | None, memory: int, top_k: int | None,
         usual: int, a: float, lam: float, trust: Callable[[float], tuple[float, float]]) -> Tensor | list[Tensor]:
    """S = l - lam (logsumexp of l over a layer's units - log K), l = sum over j of log(p_j x + rest_j).

    (p_j, rest_j) = trust(j / top_k), x the softmax over concepts of a P.
    """
    number("a", a)
    number("lam", lam)
    layers, units, dtype, d = checked(P, Q, units, memory)
    (N, M), sizes, size = P.shape, [layer.shape[1] for layer in layers], dtype.itemsize
    top_k = min(usual, N) if top_k is None else top_k
    whole("top_k", top_k, N, f"N {N} images")
    K = sum(sizes)
    loops = compiled_loops("kernels", layers[0].device)
    threads = torch.get_num_threads() if loops else 1
    U, work = min(N, K * top_k), at_hand(memory, layers[0].device, TILES)
    held, column = 24 * K * top_k + (24 + 6 * size) * N, (3 * U + 4 * K + 2 * d) * size
    some, m = fit(memory, (held, N * SORTING_BYTES_PER_VALUE, K), (held, column, min(M, max(WIDE, work // (U * size)))))
    threads = min(threads, m)
    width = max(1, min(m // threads, max(32, work // threads // (U * size))))  # of a tile that a thread works on

    # no other rows of P are needed; the prior is that of the layer, so all its units are scored
    top = torch.cat([strongest(layer, torch.arange(K_l, device=layer.device), top_k, dtype, some)
                     for layer, K_l in zip(layers, sizes)])
    rows, top = used(top, N)
    keep = (memory - held - column * m) // (U * m * size)
    extremes, blocks = softmax_tiles(P, rows, a, dtype, m, keep, width, work)
    runs, constant = _runs(top, trust, extremes)
    scores = [extremes.new_empty(len(chosen), M) for chosen in units]
    for tiles in blocks:
        def score_some(part: slice) -> None:
            for concepts, x in tiles[part]:
                l = _sum_of_logs(loops, x, runs, constant, K)
                for likely, chosen, out in zip(l.split(sizes), units, scores):
                    prior = likely.logsumexp(0).sub_(math.log(len(likely))).mul_(lam)
                    torch.sub(likely[chosen], prior, out=out[:, concepts])

        in_threads(len(tiles), threads, score_some)
    return scores[0] if isinstance(Q, Tensor) else scores


def _runs(top: Tensor, trust: Callable[[float], tuple[float, float]],
          extremes: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], float]:
    """Images [K, run], rests and gains [run] of runs of factors whose product stays in range, and the sum of log c_j."""
    J, info = top.shape[1], torch.finfo(extremes.dtype)
    low, high = extremes[:, 0][top].amin(0).tolist(), extremes[:, 1][top].amax(0).tolist()  # of the j-th images
    rests, gains, edges, constant, spread = [], [], [0], 0., 0.
    for j in range(J):
        p, rest = trust(j / J)
        rest = max(rest, 1e3 * info.tiny)
        least, largest = (math.log(p * x + rest) for x in (low[j], high[j]))
        middle = (least + largest) / 2
        rests.append(rest / math.exp(middle))
        gains.append(p / math.exp(middle))
        if spread + (largest - middle) > SAFE * math.log(info.max) and j > edges[-1]:
            edges.append(j)
            spread = 0.
        constant, spread = constant + middle, spread + largest - middle
    rests, gains = extremes.new_tensor(rests), extremes.new_tensor(gains)
    return [tuple(y[..., i:j].contiguous() for y in (top, rests, gains)) for i, j in zip(edges, edges[1:] + [J])], constant


def _sum_of_logs(loops: ModuleType | None, x: Tensor, runs: list[tuple[Tensor, Tensor, Tensor]], constant: float,
                 K: int) -> Tensor:
    """l_kc = constant + sum over runs of log of products of (rest_j + gain_j x_ic), i = top_kj: x [U, m] -> l [K, m]."""
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
