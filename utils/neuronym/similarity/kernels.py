"""The loops of the similarity functions that torch has no operation for, compiled for the processor by numba.

compiled        how numba compiles
add_powers      exp(a P) of a block: its sums and extremes (softmax)
write_powers    exp(a P) itself
products        products over the top images of each unit, for some concepts (pmi)
reorder_errors  how far each concept reorders a unit's top images (rank_reorder)

Each runs on one thread and releases Python's lock, so that callers share the work among threads
(`memory.in_threads`). The first call compiles, for some seconds; the result is kept beside this file.
Importing this module fails without numba: callers then use torch, as on a GPU.

For rank_reorder ranks are found by counting bits, after one sort for all units: among n of U images, the rank
of one is the number of the others that come before it in the order of all U. These are kept as a set of bits,
and counted 64 at a time: n + U / 64 steps for a unit and concept, instead of a sort.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from torch import Tensor

from neuronym.common.memory import slices, stable_order

LOG2E = np.float32(math.log2(math.e))
SERIES = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
# sums and products may be taken in another order; inputs are never nan, and zero needs no sign
compiled = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nnan", "nsz"}
)


def add_powers(
    P: Tensor, rows: Tensor, cols: slice, a: float, shift: Tensor, total: Tensor, extremes: Tensor
) -> None:
    """Add sums of exp(a P[rows, cols] - shift) to total [U], and keep the least and largest in extremes [U,
    2].

    P [N, M] is float32.
    """
    P, rows, shift, total, extremes = (tensor.numpy() for tensor in (P, rows, shift, total, extremes))
    # floats that are not negative are in the order of their bits, and extremes of integers are fast
    sum_powers(
        P,
        rows,
        cols.start,
        cols.stop - cols.start,
        np.float32(a * LOG2E),
        shift,
        total,
        extremes.view(np.int32),
    )


def write_powers(
    P: Tensor,
    rows: Tensor,
    cols: slice,
    a: float,
    shift: Tensor,
    scale: Tensor,
    out: Tensor,
    start: int,
    width: int,
) -> None:
    """Put scale exp(a P[rows, cols] - shift) into tiles of `width` columns, each whole in out, one after the
    other.

    P [N, M] is float32; shift, scale [r]; out [U, m] as the memory of the tiles; its rows from `start` are
    written.
    """
    P, rows, shift, scale, out = (tensor.numpy() for tensor in (P, rows, shift, scale, out))
    fill_powers(P, rows, cols.start, np.float32(a * LOG2E), shift, scale, out, start, width)


def products(x: Tensor, top: Tensor, rest: Tensor, gain: Tensor, out: Tensor) -> None:
    """out_kc = product_j of (rest_j + gain_j x_ic), i = top_kj: x [U, m], top [K, J] int32; rest, gain [J];
    out [K, m].
    """
    multiply(x.numpy(), top.numpy().view(np.uint32), rest.numpy(), gain.numpy(), out.numpy())


@compiled
def sum_powers(P, rows, start, width, a, shift, total, extremes):
    powers, exponents = np.empty(width, np.float32), np.empty(width, np.int32)
    bits = powers.view(np.int32)
    for u in range(len(rows)):
        power(P[rows[u]][start : start + width], a, shift[u] * LOG2E, np.float32(1), powers, exponents)
        added, low, high = np.float32(0), extremes[u, 0], extremes[u, 1]
        for c in range(width):
            added += powers[c]
        for c in range(width):
            low = min(low, bits[c])
            high = max(high, bits[c])
        total[u] += added
        extremes[u, 0], extremes[u, 1] = low, high


@compiled
def fill_powers(P, rows, first, a, shift, scale, out, start, width):
    U, m = out.shape
    flat, exponents = out.ravel(), np.empty(width, np.int32)
    for u in range(len(rows)):
        for c in range(0, m, width):
            some = min(width, m - c)
            at = U * c + (start + u) * some
            power(
                P[rows[u]][first + c : first + c + some],
                a,
                shift[u] * LOG2E,
                scale[u],
                flat[at : at + some],
                exponents,
            )


@compiled
def power(x, a, shift, scale, out, exponents):
    """scale 2^(a x - shift): 2^f, |f| <= 1/2, by its series (wrong by 5e-9), and the whole part by a float's
    exponent.
    """
    for c in range(len(out)):
        t = max(a * x[c] - shift, np.float32(-126))
        whole = np.floor(t + np.float32(0.5))
        f = t - whole
        series = SERIES[7]
        for k in (6, 5, 4, 3, 2, 1, 0):
            series = series * f + SERIES[k]
        out[c] = series * scale
        exponents[c] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    powers_of_two = exponents.view(np.float32)
    for c in range(len(out)):
        out[c] *= powers_of_two[c]


@compiled
def multiply(x, top, rest, gain, out):
    K, J = top.shape
    m, fours = x.shape[1], J - J % 4
    for k in range(K):
        row = out[k]
        row[:] = 1
        for j in range(0, fours, 4):  # four factors for each time a product is read and written
            x0, x1, x2, x3 = x[top[k, j]], x[top[k, j + 1]], x[top[k, j + 2]], x[top[k, j + 3]]
            g0, g1, g2, g3 = gain[j], gain[j + 1], gain[j + 2], gain[j + 3]
            r0, r1, r2, r3 = rest[j], rest[j + 1], rest[j + 2], rest[j + 3]
            for c in range(m):
                row[c] *= (r0 + g0 * x0[c]) * (r1 + g1 * x1[c]) * ((r2 + g2 * x2[c]) * (r3 + g3 * x3[c]))
        for j in range(fours, J):
            x0, r0, g0 = x[top[k, j]], rest[j], gain[j]
            for c in range(m):
                row[c] *= r0 + g0 * x0[c]


GROUP_BYTES = 2**18  # values and places of the concepts taken together: they stay in a core's cache
# Indices are unsigned: numba then leaves out the test for negative ones, and the loops run three times as
# fast.
SIX, LOW, ONE = np.uint32(6), np.uint32(63), np.uint64(1)


def reorder_errors(values: Tensor, top: Tensor, a: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Mean_j |a_j - b_(r_j)|^p and mean_j of the values: values [m, U] of m concepts -> two [m, K].

    top [K, n] int32 indexes U; a [K, n] are the activations, descending, and b the same ascending; r_j is the
    rank of image j among the n, equal values ranked upwards from the first. One sort of all U serves every
    unit.
    """
    errors, means = values.new_empty(2, len(values), len(top))
    group = max(1, GROUP_BYTES // (values.shape[1] * (values.itemsize + 4)))
    for some in slices(len(values), group):
        reorder(
            values[some].numpy(),
            stable_order(values[some]).numpy(),
            top.numpy().view(np.uint32),
            a.numpy(),
            p,
            errors[some].numpy(),
            means[some].numpy(),
        )
    return errors, means


@compiled
def reorder(values, ascending, top, a, p, errors, means):
    (m, U), (K, n) = values.shape, top.shape
    places = np.empty((m, U), np.uint32)
    for c in range(m):
        first = 0
        for r in range(U):  # places among all U; equal values get that of the first of them
            if values[c, ascending[c, r]] != values[c, ascending[c, first]]:
                first = r
            places[c, ascending[c, r]] = first
    bits, below = np.empty((U + 63) // 64, np.uint64), np.empty((U + 63) // 64, np.uint32)
    taken, last = np.empty(n, np.uint32), np.uint32(n - 1)
    for k in range(K):
        for c in range(m):
            # the places that the unit's images take, as a set of bits: the rank of one is the number of bits
            # below it
            bits[:] = 0
            total = error = values[c, 0] * 0
            for j in range(n):
                total += values[c, top[k, j]]
                place = places[c, top[k, j]]
                if bits[place >> SIX] >> np.uint64(place & LOW) & ONE:
                    place = next_free(bits, place)
                bits[place >> SIX] |= ONE << np.uint64(place & LOW)
                taken[j] = place
            count = np.uint32(0)
            for word in range(len(bits)):
                below[word] = count
                count += ones(bits[word])
            if p == 3:
                for j in range(n):
                    gap = abs(a[k, j] - a[k, last - rank(bits, below, taken[j])])
                    error += gap * gap * gap
            else:
                for j in range(n):
                    error += abs(a[k, j] - a[k, last - rank(bits, below, taken[j])]) ** p
            errors[c, k], means[c, k] = error / n, total / n


@compiled
def next_free(bits, place):
    word = place >> SIX
    free = ~bits[word] >> np.uint64(place & LOW) << np.uint64(place & LOW)
    while free == 0:
        word += np.uint32(1)
        free = ~bits[word]
    return (word << SIX) + ones((free & (~free + ONE)) - ONE)


@compiled
def rank(bits, below, place):
    return below[place >> SIX] + ones(bits[place >> SIX] & ((ONE << np.uint64(place & LOW)) - ONE))


@compiled
def ones(word):
    """Number of set bits; the compiler makes one instruction of it."""
    word -= (word >> ONE) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.uint32((word * np.uint64(0x0101010101010101)) >> np.uint64(56))
