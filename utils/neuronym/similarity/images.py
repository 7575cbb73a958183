"""(Soft-)WPMI where each image meets all concepts once: P is made once, and the result [K, M] is what
products are gathered in.

needed            bytes that it takes beside its result
scores_by_images  scores of `similarity.pmi`, or None where memory does not hold what must be put aside

A block of images after the other: the powers exp(a P) of its rows, and of every unit the factors
(p_j x_ic + rest_j) / 2^e of those of its top images that are in the block, x_ic the power divided by the sum
of its row. Whole numbers e keep products near 1; before the product of a unit might leave the range still,
its logarithm is put aside and it begins anew. With C_k = log 2 times the sum of e, the prior of a concept is
log of the mean over units of exp(C_k) times the product: it takes no exponentials of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from neuronym.common.memory import in_threads, slices
from neuronym.similarity.kernels import bits_of, compiled, float_of, logarithm, others_sound, raise_rows
from neuronym.similarity.matrix import check_finite, check_range, FactoredMatrix, largest
from neuronym.similarity.pmi import IMAGES_AT_ONCE, less_prior, SAFE

CONCEPTS = 256  # of these images whose powers a processor's cache holds
LIMIT = SAFE * 128  # bits by which a product may be away from 1
GOES_ON, BEGINS, ANEW = 0, 1, 2  # how a run of factors begins


def needed(P: Tensor | FactoredMatrix, U: int, K: int, top_k: int) -> int:
    """Bytes that `scores_by_images` uses beside its result."""
    M, d = P.shape[1], 0 if isinstance(P, Tensor) else P.T.shape[1]
    block = min(U, IMAGES_AT_ONCE) * 4 * (M + d + 4)
    return block + 40 * K * top_k + (4 * d * M if d and P.T.dtype != torch.float32 else 0)


def scores_by_images(
    P: Tensor | FactoredMatrix,
    rows: Tensor,
    top: Tensor,
    a: float,
    trust: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    sizes: Sequence[int],
    lam: float,
    spare: int,
) -> Tensor | None:
    """l - lam prior of each layer, l_kc = sum over j of log(p_j x_ic + rest_j), x the softmax of a P[rows],
    i = top_kj: top [K, J] int32, layers of `sizes` units -> [K, M].

    (p_j, rest_j) = trust(j / J). None when `spare` bytes do not hold what must be put aside.
    """
    K, M, U = len(top), P.shape[1], len(rows)
    example = P if isinstance(P, Tensor) else P.I
    scores = example.new_empty(K, M, dtype=torch.float32)
    runs, aside = Runs(top, trust), None
    store = Powers(P, rows, a, min(U, IMAGES_AT_ONCE), M)
    store.check_others()
    for part in slices(U, IMAGES_AT_ONCE):
        x, of_images = store.of(part)
        count = runs.of_block(part, of_images)
        if aside is None and (runs.kind[:count] == ANEW).any():
            if scores.nbytes > spare:
                return None
            aside = torch.zeros_like(scores)
        put = (scores if aside is None else aside).numpy()

        def multiply(share: slice) -> None:
            made = runs.image, runs.factors, runs.begin, runs.unit, runs.kind, count
            multiply_block(x, *made, scores.numpy(), put, share.start, share.stop, CONCEPTS)

        in_threads(M, torch.get_num_threads(), multiply)
    return _less_prior(scores, aside, runs.constant * math.log(2), sizes, lam)


def _less_prior(
    scores: Tensor, aside: Tensor | None, constant: np.ndarray, sizes: Sequence[int], lam: float
) -> Tensor:
    """Scores from products, in place."""
    threads, start = torch.get_num_threads(), 0
    for size in sizes:
        part, own = slice(start, start + size), constant[start : start + size]
        products, start, most = scores[part].numpy(), start + size, float(own.max())
        if aside is None:
            weights = np.exp(own - most) / size
            given = products, own.astype(np.float32), weights, most, lam
            in_threads(
                products.shape[1], threads, lambda some: finish(*given, some.start, some.stop, CONCEPTS)
            )
        else:
            scores[part].log_().add_(aside[part]).add_(torch.from_numpy(own).float()[:, None])
            less_prior(scores[part], None, lam)
    return scores


class Powers:
    """exp(a P - shift) of blocks of rows in one store, of which each row's largest is 1."""

    def __init__(self, P: Tensor | FactoredMatrix, rows: Tensor, a: float, most: int, M: int) -> None:
        self.P, self.rows, self.a = P, rows, a
        self.given = isinstance(P, Tensor) and P.dtype == torch.float32 and P.is_contiguous()
        example = P if isinstance(P, Tensor) else P.I
        self.T = None if isinstance(P, Tensor) else P.T.to(torch.float32).T
        self.store = example.new_empty(most, M, dtype=torch.float32)
        self.of_rows = np.empty((3, most), np.float32)

    def of(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Powers of a block [n, M]; of each row 1 / their sum, the least and the largest share [3, n]."""
        rows, x = self.rows[part], self.store[: part.stop - part.start]
        if self.given:
            source, where = self.P.detach(), rows
        else:
            source, where = self.made(rows, x), rows[:0]
        scale, low, high = self.of_rows[:, : len(rows)]
        sound = []

        def raise_some(share: slice) -> None:
            given = source.numpy(), where.numpy()[share], np.float32(self.a), x.numpy()[share]
            sound.append(raise_rows(*given, scale[share], low[share], high[share]))

        in_threads(len(rows), torch.get_num_threads(), raise_some)
        if not all(sound):
            check_finite(self.P, ())
            check_range(self.a, largest(self.P), torch.float32)
        return x.numpy(), self.of_rows[:, : len(rows)]

    def check_others(self) -> None:
        """ValueError where images that no unit asks for have values that are not finite."""
        if self.T is None and len(self.rows) < len(self.P):
            if not self.given or not others_sound(self.P.detach().numpy(), self.rows.numpy()):
                check_finite(self.P, ())

    def made(self, rows: Tensor, x: Tensor) -> Tensor:
        """P[rows] in float32, in x."""
        X = self.P if self.T is None else self.P.I
        first, last = int(rows[0]), int(rows[-1]) + 1
        some = X[first:last] if last - first == len(rows) else X.index_select(0, rows)  # they ascend
        if self.T is None:
            return x.copy_(some)
        return torch.matmul(some.to(x.dtype), self.T, out=x)


class Runs:
    """Of a block, for each unit, runs of factors: rest + gain x, x the power of one of its top images."""

    def __init__(self, top: Tensor, trust: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
        (K, J), tiny = top.shape, 1e3 * torch.finfo(torch.float32).tiny
        self.top = top.numpy().view(np.uint32)
        self.trusts, rests = (np.zeros(J) + values for values in trust(np.arange(J) / J))
        self.rests = np.maximum(rests, tiny)
        most = K * J + K  # of runs
        self.image, self.factors = np.empty(K * J, np.uint32), np.empty((2, K * J), np.float32)
        self.begin, self.unit = np.zeros((2, most + 1), np.int32)
        self.kind, self.of_units = np.zeros(most, np.uint8), np.zeros((3, K))

    @property
    def constant(self) -> np.ndarray:
        """Sum of e of each unit."""
        return self.of_units[0]

    def of_block(self, part: slice, of_images: np.ndarray) -> int:
        """Go to the images of a block, of which 1 / sum, least and largest share are given; returns how many
        runs it has.
        """
        given = self.top, self.trusts, self.rests, part.start, part.stop, of_images
        return pair(*given, self.image, self.factors, self.begin, self.unit, self.kind, self.of_units)


@compiled
def pair(top, trusts, rests, start, stop, of_images, image, factors, begin, unit, kind, units):
    scale, least, most = of_images
    rest, gain = factors
    constant, low, high = units
    (K, J), n, run = top.shape, 0, 0
    for k in range(K):
        opened = start == 0
        if opened:
            begin[run], unit[run], kind[run] = n, k, BEGINS
            run += 1
        for j in range(J):
            i = np.int64(top[k, j]) - start
            if i < 0 or i >= stop - start:
                continue
            # logarithms to base 2 by a float's bits: too small by .087 at the most
            below = np.float32(trusts[j] * least[i] + rests[j])
            above = np.float32(trusts[j] * most[i] + rests[j])
            down = bits_of(below) / 2.0**23 - 127
            up = bits_of(above) / 2.0**23 - 127 + 0.087
            e = math.floor((low[k] + high[k] + down + up) / 2 + 0.5)
            if low[k] + down - e < -LIMIT or high[k] + up - e > LIMIT:
                if not opened or begin[run - 1] < n:
                    begin[run], unit[run], kind[run] = n, k, ANEW
                    run += 1
                    opened = True
                low[k] = high[k] = 0
                e = math.floor((down + up) / 2 + 0.5)
            elif not opened:
                begin[run], unit[run], kind[run] = n, k, GOES_ON
                run += 1
                opened = True
            e = max(-120, min(e, 120))
            power = float_of(np.int32(127 - e) << np.int32(23))
            image[n], rest[n], gain[n] = i, rests[j] * power, trusts[j] * scale[i] * power
            constant[k] += e
            low[k] += down - e
            high[k] += up - e
            n += 1
    begin[run] = n
    return run


@compiled
def multiply_block(x, image, factors, begin, unit, kind, count, out, aside, first, last, width):
    rest, gain = factors
    for start in range(first, last, width):
        stop = min(last, start + width)
        m = stop - start
        for run in range(count):
            row, at, end = out[unit[run]][start:stop], begin[run], begin[run + 1]
            if kind[run] == ANEW:
                put = aside[unit[run]][start:stop]
                for c in range(m):
                    put[c] += logarithm(row[c])
            if kind[run] != GOES_ON:
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


@compiled
def finish(products, constant, weights, most, lam, first, last, width):
    mean, prior = np.empty(width), np.empty(width, np.float32)
    for start in range(first, last, width):
        m = min(last, start + width) - start
        mean[:] = 0
        for k in range(len(products)):
            row, weight = products[k][start : start + m], weights[k]
            for c in range(m):
                mean[c] += weight * row[c]
        for c in range(m):
            prior[c] = lam * (math.log(mean[c]) + most)
        for k in range(len(products)):
            row, own = products[k][start : start + m], constant[k]
            for c in range(m):
                row[c] = logarithm(row[c]) + own - prior[c]
