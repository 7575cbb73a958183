"""The loops of the similarity functions over columns, compiled for the processor by numba.

measure_columns  columns to be multiplied, centred and raised to a power, and the scale of each
level_out        products of such columns, scaled
is_compiled      whether these loops take a matrix
Moments          sums, squares and extremes of columns, a block of images after the other
spread_of_rows   how far apart an image's values are
share_rows       the softmax of some rows
scale_rows       what takes exponentials of rows to shares
combine          columns of concepts for the two correlations, added, and centred cubes

Each runs on one thread and releases Python's lock. Importing this module fails without numba: callers then
use torch, as on a GPU. Sums over images are kept in float64, of parts of 64 images in the dtype given.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from neuronym.common.memory import in_threads
from neuronym.similarity.kernels import bits_of, compiled, exact, float_of, LN2, LOG2E, ordered, power

PART = 64  # images whose sums are taken in the dtype given


def is_compiled(*matrices: Tensor) -> bool:
    """Whether the loops take these matrices: of one dtype, float32 or float64, rows one after the other."""
    dtype = matrices[0].dtype
    return dtype in (torch.float32, torch.float64) and all(
        X.dtype == dtype and X.is_contiguous() for X in matrices
    )


def measure_columns(
    X: Tensor, start: int, width: int, degree: int, eps: float, Y: Tensor | None
) -> tuple[Tensor, Tensor, np.ndarray | None]:
    """1 / max(norm, eps) of (X - mean)^degree for some columns of X [N, M], of X itself for degree 0; the
    means, where they are taken; and which columns are odd, if any, whose scale is 1.

    Y [N, width] takes the powers. Odd are columns whose squares may overflow or vanish, or are not finite, or
    that may be constant but for rounding.
    """
    values = X.numpy()
    scales, mean, odd = (np.empty(width, dtype) for dtype in (values.dtype, values.dtype, np.bool_))
    limit = float(np.finfo(values.dtype).max) ** 0.25
    if degree:
        count = measure_powers(values, start, degree, eps, limit, Y.numpy(), mean, scales, odd)
    else:
        count = measure_values(values, start, limit, eps, scales, odd)
    return torch.from_numpy(scales), torch.from_numpy(mean), odd if count else None


def level_out(products: Tensor, cols: slice, of_rows: Tensor, of_cols: Tensor) -> None:
    """Multiply products[:, cols] by of_rows [K] and of_cols [m], in place."""
    scale_products(products.numpy(), cols.start, of_rows.numpy(), of_cols.numpy())


def spread_of_rows(P: Tensor) -> float:
    """Mean over images of the standard deviation (divided by M) of each row: P [N, M]."""
    return float(deviate(P.numpy()))


def scale_rows(P: Tensor, slope: float, scales: Tensor) -> float:
    """The largest slope P of each row of P [n, M] float32, and the sum of exp(slope P - that), into
    scales [n, 2]; returns the largest |slope P|.
    """
    return float(sum_rows(P.numpy(), np.float32(slope), scales.numpy()))


def combine(
    P: Tensor, cols: slice, slope: float, scales: Tensor, noise: float, both: Tensor, cubes: Tensor
) -> np.ndarray:
    """Columns of some concepts: into both [N, m] centred P and centred shares of the softmax of slope P, each
    of length 1, added (the latter 0 where they differ by noise times the largest at the most); into cubes the
    cubes of centred P, of length 1. Returns which columns are odd, that are to be made step by step. P [N, M]
    is float32.
    """
    m = cols.stop - cols.start
    odd = np.empty(m, np.bool_)
    limit = float(np.finfo(np.float32).max) ** 0.25
    given = P.numpy(), cols.start, np.float32(slope), scales.numpy(), noise, limit

    def make(part: slice) -> None:
        combine_columns(*given, both.numpy(), cubes.numpy(), odd, part.start, part.stop)

    in_threads(m, torch.get_num_threads(), make)
    return odd


class Moments:
    """Sums, squares (float64) and extremes of M columns, of a block of rows after the other."""

    def __init__(self, M: int) -> None:
        self.sums, self.squares = np.zeros((2, M))
        self.low, self.high = np.full((2, M), np.inf, np.float32)
        self.high *= -1

    def add(self, x: Tensor) -> None:
        """Add rows x [n, M]."""
        add_columns(x.numpy(), self.sums, self.squares, self.low, self.high)

    def far_from_zero(self, n: int) -> bool:
        """Whether the mean of any column of n values is above seven times its spread."""
        return nearly_constant(self.sums, self.squares, n)

    def scales(self, middle: Tensor | None, n: int, noise: float) -> Tensor:
        """1 / the norm of each centred column of n values, or 0 where values differ by noise times the
        largest at the most; middle [M] has been taken off all.
        """
        scales = np.empty_like(self.low)
        middle = np.zeros_like(self.low) if middle is None else middle.numpy()
        invert_spreads(self.sums, self.squares, self.low, self.high, middle, n, noise, scales)
        return torch.from_numpy(scales)


@exact
def measure_values(X, start, limit, eps, scales, odd):
    N, m = len(X), len(scales)
    part, total = np.empty(m, X.dtype), np.zeros(m)
    for first in range(0, N, PART):
        part[:] = 0
        for n in range(first, min(N, first + PART)):
            x = X[n][start : start + m]
            for c in range(m):
                part[c] += x[c] * x[c]
        for c in range(m):
            total[c] += part[c]
    count = 0
    for c in range(m):
        norm = math.sqrt(total[c])
        odd[c] = not (1 <= norm * limit and norm < limit)
        count += odd[c]
        scales[c] = 1 if odd[c] else 1 / max(norm, eps)
    return count


@exact
def measure_powers(X, start, degree, eps, limit, Y, mean, scales, odd):
    (N, m), one = Y.shape, X[0, 0] * 0 + 1
    part, total = np.empty(m, X.dtype), np.zeros(m)
    for first in range(0, N, PART):
        part[:] = 0
        for n in range(first, min(N, first + PART)):
            x = X[n][start : start + m]
            for c in range(m):
                part[c] += x[c]
        for c in range(m):
            total[c] += part[c]
    for c in range(m):
        mean[c] = total[c] / N
    total[:] = 0
    for first in range(0, N, PART):
        part[:] = 0
        for n in range(first, min(N, first + PART)):
            x, y = X[n][start : start + m], Y[n]
            if degree == 1:
                for c in range(m):
                    y[c] = x[c] - mean[c]
            else:
                for c in range(m):
                    apart = x[c] - mean[c]
                    y[c] = apart * apart * apart
            for c in range(m):
                part[c] += y[c] * y[c]
        for c in range(m):
            total[c] += part[c]
    count, root = 0, math.sqrt(N)
    for c in range(m):
        norm = math.sqrt(total[c])
        flat = norm <= root * (1e-4 * abs(mean[c])) ** degree
        odd[c] = flat or not (1 <= norm * limit and norm < limit)
        count += odd[c]
        scales[c] = one if odd[c] else one / max(norm, eps)
    return count


@exact
def scale_products(products, start, of_rows, of_cols):
    m = len(of_cols)
    for k in range(len(products)):
        row, scale = products[k][start : start + m], of_rows[k]
        for c in range(m):
            row[c] *= scale * of_cols[c]


@compiled
def deviate(P):
    (N, M), spreads = P.shape, 0.0
    for n in range(N):
        x = P[n]
        total = 0.0
        for c in range(M):
            total += x[c]
        mean, squares = total / M, 0.0
        for c in range(M):
            apart = x[c] - mean
            squares += apart * apart
        spreads += math.sqrt(squares / M)
    return spreads / N


@compiled
def add_columns(x, sums, squares, low, high):
    n, M = x.shape
    some, same = np.empty((2, 1024), np.float32)
    for start in range(0, M, 1024):
        stop = min(M, start + 1024)
        s, q, l, h = sums[start:stop], squares[start:stop], low[start:stop], high[start:stop]
        for first in range(0, n, PART):
            some[:], same[:] = 0, 0
            for r in range(first, min(n, first + PART)):
                row = x[r, start:stop]
                for c in range(stop - start):
                    some[c] += row[c]
                    same[c] += row[c] * row[c]
                for c in range(stop - start):
                    l[c] = row[c] if row[c] < l[c] else l[c]
                    h[c] = row[c] if row[c] > h[c] else h[c]
            for c in range(stop - start):
                s[c] += some[c]
                q[c] += same[c]


@compiled
def nearly_constant(sums, squares, n):
    for c in range(len(sums)):
        if squares[c] * n < 1.02 * sums[c] * sums[c]:
            return True
    return False


@compiled
def invert_spreads(sums, squares, low, high, middle, n, noise, scales):
    for c in range(len(sums)):
        spread = squares[c] - sums[c] * sums[c] / n
        flat = spread <= 0 or high[c] - low[c] <= noise * (high[c] + middle[c])
        scales[c] = 0 if flat else 1 / math.sqrt(spread)


@compiled
def share_rows(P, slope, out):
    """The softmax of slope P, or of slope times what out has where there are no rows of P, into out [n, M];
    the largest |slope P|.
    """
    a, most = slope * LOG2E, np.float32(0)
    for n in range(len(out)):
        x, added = out[n], np.float32(0)
        if len(P):
            x[:] = P[n]
        first = last = ordered(bits_of(x[0]))
        for c in range(len(x)):
            one = ordered(bits_of(x[c]))
            first, last = min(first, one), max(last, one)
        ends = a * float_of(ordered(first)), a * float_of(ordered(last))
        high = max(ends[0], ends[1])
        for c in range(len(x)):
            one = power(a * x[c] - high)
            x[c] = one
            added += one
        scale = np.float32(1) / added
        for c in range(len(x)):
            x[c] *= scale
        most = max(most, abs(ends[0]), abs(ends[1]))
    return most * LN2


@compiled
def sum_rows(P, slope, scales):
    a, most = slope * LOG2E, np.float32(0)
    for n in range(len(P)):
        x, added = P[n], np.float32(0)
        first = last = ordered(bits_of(x[0]))
        for c in range(len(x)):
            one = ordered(bits_of(x[c]))
            first, last = min(first, one), max(last, one)
        ends = a * float_of(ordered(first)), a * float_of(ordered(last))
        high = max(ends[0], ends[1])
        for c in range(len(x)):
            added += power(a * x[c] - high)
        scales[n, 0], scales[n, 1] = high * LN2, added
        most = max(most, abs(ends[0]), abs(ends[1]))
    return most * LN2


TOGETHER = 64  # columns whose values, of all images, a processor's cache holds


@exact
def combine_columns(P, start, slope, scales, noise, limit, both, cubes, odd, begin, end):
    N, a, root = len(P), slope * LOG2E, math.sqrt(len(P))
    sums, parts = np.empty((3, TOGETHER)), np.empty((3, TOGETHER), np.float32)
    low, high = np.empty((2, TOGETHER), np.int32)
    middle, scale = np.empty((2, TOGETHER), np.float32), np.empty((4, TOGETHER), np.float32)
    for first in range(begin, end, TOGETHER):
        m = min(TOGETHER, end - first)
        at = start + first
        sums[:] = 0
        low[:], high[:] = np.int32(2**31 - 1), 0
        for some in range(0, N, PART):
            parts[:] = 0
            for n in range(some, min(N, some + PART)):
                p, x = P[n][at : at + m], both[n][first : first + m]
                less, factor = scales[n, 0] * LOG2E, 1 / scales[n, 1]
                for c in range(m):
                    share = power(a * p[c] - less) * factor
                    x[c] = share
                    low[c], high[c] = min(low[c], bits_of(share)), max(high[c], bits_of(share))
                    parts[0, c] += p[c]
                    parts[1, c] += share
            for c in range(m):
                sums[0, c] += parts[0, c]
                sums[1, c] += parts[1, c]
        for c in range(m):
            middle[0, c], middle[1, c] = sums[0, c] / N, sums[1, c] / N
            scale[3, c] = 1 / float_of(high[c])
        sums[:] = 0
        for some in range(0, N, PART):
            parts[:] = 0
            for n in range(some, min(N, some + PART)):
                p, x = P[n][at : at + m], both[n][first : first + m]
                for c in range(m):
                    apart, share = p[c] - middle[0, c], (x[c] - middle[1, c]) * scale[3, c]
                    square = apart * apart
                    parts[0, c] += square
                    parts[1, c] += square * square * square
                    parts[2, c] += share * share
            for c in range(m):
                for i in range(3):
                    sums[i, c] += parts[i, c]
        for c in range(m):
            norm, cubed = math.sqrt(sums[0, c]), math.sqrt(sums[1, c])
            flat = 1e-4 * abs(middle[0, c])
            odd[first + c] = (
                not (1 <= norm * limit and norm < limit and 1 <= cubed * limit and cubed < limit)
                or norm <= root * flat
                or cubed <= root * flat**3
            )
            least, most = float_of(low[c]), float_of(high[c])
            level = most - least <= noise * most or sums[2, c] == 0
            scale[0, c], scale[1, c] = 1 / norm, 1 / cubed
            scale[2, c] = 0 if level else scale[3, c] / math.sqrt(sums[2, c])
        for n in range(N):
            p, x, y = P[n][at : at + m], both[n][first : first + m], cubes[n][first : first + m]
            for c in range(m):
                apart, share = p[c] - middle[0, c], x[c] - middle[1, c]
                x[c] = apart * scale[0, c] + share * scale[2, c]
                y[c] = apart * apart * apart * scale[1, c]
