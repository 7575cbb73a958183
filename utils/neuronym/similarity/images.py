"""Sums of logarithms over a unit's top images where each image meets all concepts once: P is made once, and
the result [K, M] is what products are gathered in.

shares_of       softmax over concepts of some images
sums_by_images  l of `similarity.pmi`, or None where the range of float32 does not allow it

A block of images after the other: its rows of P, their softmax over all concepts, and of every unit the
factors (p_j x_ic + rest_j) / c_ij of those of its top images that are in the block. The scale
c_ij = sqrt(least * largest such factor of the image) keeps products near 1; when the product of a unit might
leave the range still, its logarithm is put aside and it begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from neuronym.common.memory import in_threads, slices
from neuronym.similarity.kernels import compiled
from neuronym.similarity.matrix import check_range, FactoredMatrix, largest
from neuronym.similarity.pmi import IMAGES_AT_ONCE, SAFE

CONCEPTS = 256  # of these images whose shares a processor's cache holds


def needed(P: Tensor | FactoredMatrix, U: int, K: int, top_k: int) -> int:
    """Bytes that `sums_by_images` uses beside its result."""
    M, d = P.shape[1], 0 if isinstance(P, Tensor) else P.T.shape[1]
    block = min(U, IMAGES_AT_ONCE) * 4 * (M + d + 2) + 8 * CONCEPTS * K
    return block + 24 * K * top_k + (4 * d * M if d and P.T.dtype != torch.float32 else 0)


def sums_by_images(
    P: Tensor | FactoredMatrix,
    rows: Tensor,
    top: Tensor,
    a: float,
    trust: Callable[[float], tuple[float, float]],
    spare: int,
) -> Tensor | None:
    """l_kc = sum over j of log(p_j x_ic + rest_j), x the softmax of a P[rows], i = top_kj: top [K, J] int32
    -> [K, M].

    (p_j, rest_j) = trust(j / J). None when the factors of a unit and a block leave the range by themselves,
    or when `spare` bytes do not hold what must be put aside.
    """
    (K, J), M, U, tiny = top.shape, P.shape[1], len(rows), 1e3 * torch.finfo(torch.float32).tiny
    trusted = np.array([trust(j / J) for j in range(J)])
    pairs = _Pairs(top.numpy().view(np.uint32), trusted[:, 0].copy(), np.maximum(trusted[:, 1], tiny))
    example = P if isinstance(P, Tensor) else P.I
    l, aside = example.new_empty(K, M, dtype=torch.float32), None
    store = l.new_empty(min(U, IMAGES_AT_ONCE), M)
    T = None if isinstance(P, Tensor) else P.T.to(l.dtype).T
    for part in slices(U, IMAGES_AT_ONCE):
        x = store[: part.stop - part.start]
        shares_of(P, T, rows[part], a, x)
        low, high = x.amin(1), x.amax(1)  # `aminmax` takes ten times as long
        if not float(low.min()) > 0:
            check_range(a, largest(P), l.dtype)
        full = pairs.of_block(part, low, high)
        if full is None or (len(full) and aside is None and l.nbytes > spare):
            return None
        if len(full):
            aside = torch.zeros_like(l) if aside is None else aside
            aside[full] += l[full].log_()
            l[full] = 1

        def multiply(share: slice) -> None:
            multiply_block(
                x.numpy(), *pairs.arrays(), l.numpy(), share.start, share.stop, CONCEPTS, not part.start
            )

        in_threads(M, torch.get_num_threads(), multiply)
    constant = torch.from_numpy(pairs.constant).to(l.dtype)[:, None]
    for cols in slices(M, CONCEPTS):
        some = l[:, cols].log_().add_(constant)
        if aside is not None:
            some.add_(aside[:, cols])
    return l


def shares_of(P: Tensor | FactoredMatrix, T: Tensor | None, rows: Tensor, a: float, x: Tensor) -> None:
    """Softmax over concepts of a P[rows] into x."""
    whole = int(rows[-1]) - int(rows[0]) + 1 == len(rows)  # they ascend
    X = P if T is None else P.I
    some = X[int(rows[0]) : int(rows[-1]) + 1] if whole else None
    if T is not None:
        some = X.index_select(0, rows) if some is None else some
        torch.matmul(some.to(x.dtype), T, out=x).mul_(a)
    elif some is not None:
        torch.mul(some.to(x.dtype), a, out=x)
    elif X.dtype == x.dtype:
        torch.index_select(X, 0, rows, out=x).mul_(a)
    else:
        x.copy_(X.index_select(0, rows)).mul_(a)
    torch.softmax(x, 1, out=x)


class _Pairs:
    """Units and those of their top images that are in a block, with the rest and gain of each factor."""

    def __init__(self, top: np.ndarray, trusts: np.ndarray, rests: np.ndarray) -> None:
        self.top, self.trusts, self.rests = top, trusts, rests
        K = len(top)
        self.begin, self.image = np.zeros(K + 1, np.int64), np.empty(top.size, np.uint32)
        self.rest, self.gain = np.empty((2, top.size), np.float32)
        self.constant, self.spread = np.zeros((2, K))
        self.full = np.zeros(K, np.bool_)

    def of_block(self, part: slice, low: Tensor, high: Tensor) -> Tensor | None:
        """Go to the images of a block, whose least and largest shares these are; returns units whose product
        must begin anew, or None when that does not help.
        """
        limit = SAFE * math.log(np.finfo(np.float32).max)
        extremes = low.numpy(), high.numpy()
        given = self.top, self.trusts, self.rests, part.start, part.stop, *extremes, limit
        if not pair(
            *given, self.begin, self.image, self.rest, self.gain, self.constant, self.spread, self.full
        ):
            return None
        return torch.from_numpy(self.full.nonzero()[0])

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.begin, self.image, self.rest, self.gain


@compiled
def pair(top, trusts, rests, start, stop, low, high, limit, begin, image, rest, gain, constant, spread, full):
    (K, J), n = top.shape, 0
    for k in range(K):
        own = 0.0
        for j in range(J):
            i = top[k, j]
            if start <= i < stop:
                least = trusts[j] * low[i - start] + rests[j]
                most = trusts[j] * high[i - start] + rests[j]
                scale = 1 / math.sqrt(least * most)
                image[n], rest[n], gain[n] = i - start, rests[j] * scale, trusts[j] * scale
                constant[k] += 0.5 * math.log(least * most)
                own += 0.5 * math.log(most / least)
                n += 1
        if own > limit:
            return False
        full[k] = spread[k] + own > limit
        spread[k] = own if full[k] else spread[k] + own
        begin[k + 1] = n
    return True


@compiled
def multiply_block(x, begin, image, rest, gain, out, first, last, width, fresh):
    for start in range(first, last, width):
        stop = min(last, start + width)
        m = stop - start
        for k in range(len(out)):
            row, at, end = out[k][start:stop], begin[k], begin[k + 1]
            if fresh:
                row[:] = 1
            while at + 8 <= end:  # eight factors for each time a product is read and written
                x0, x1 = x[image[at]][start:stop], x[image[at + 1]][start:stop]
                x2, x3 = x[image[at + 2]][start:stop], x[image[at + 3]][start:stop]
                x4, x5 = x[image[at + 4]][start:stop], x[image[at + 5]][start:stop]
                x6, x7 = x[image[at + 6]][start:stop], x[image[at + 7]][start:stop]
                r0, r1, r2, r3 = rest[at], rest[at + 1], rest[at + 2], rest[at + 3]
                r4, r5, r6, r7 = rest[at + 4], rest[at + 5], rest[at + 6], rest[at + 7]
                g0, g1, g2, g3 = gain[at], gain[at + 1], gain[at + 2], gain[at + 3]
                g4, g5, g6, g7 = gain[at + 4], gain[at + 5], gain[at + 6], gain[at + 7]
                for c in range(m):
                    four = (r0 + g0 * x0[c]) * (r1 + g1 * x1[c]) * ((r2 + g2 * x2[c]) * (r3 + g3 * x3[c]))
                    more = (r4 + g4 * x4[c]) * (r5 + g5 * x5[c]) * ((r6 + g6 * x6[c]) * (r7 + g7 * x7[c]))
                    row[c] *= four * more
                at += 8
            while at + 2 <= end:
                x0, x1 = x[image[at]][start:stop], x[image[at + 1]][start:stop]
                r0, r1, g0, g1 = rest[at], rest[at + 1], gain[at], gain[at + 1]
                for c in range(m):
                    row[c] *= (r0 + g0 * x0[c]) * (r1 + g1 * x1[c])
                at += 2
            if at < end:
                x0, r0, g0 = x[image[at]][start:stop], rest[at], gain[at]
                for c in range(m):
                    row[c] *= r0 + g0 * x0[c]
