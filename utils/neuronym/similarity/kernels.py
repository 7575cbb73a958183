"""The loops of the similarity functions that torch has no operation for, compiled for the processor by numba.

compiled        how numba compiles; `exact`, where sums may become nan
bits_of, float_of, power, logarithm   floats as integers and back; powers of two, natural logarithms
strongest       the most activated images of each unit
numbered        the different ones among these
add_powers      exp(a P) of a block: its sums and extremes (softmax)
write_powers    exp(a P) itself
raise_rows      both at once, of whole rows; `others_sound`, whether the others are finite
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
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

from neuronym.common.memory import first_largest, slices, stable_order

LOG2E, LN2 = np.float32(math.log2(math.e)), np.float32(math.log(2))
SERIES = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
LOG_SERIES = (  # of log(1 + x) / x^3 - 1 / x^2 + 1 / 2x, from 1 / sqrt 2 to sqrt 2 (Cephes)
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
LOG_SERIES = tuple(map(np.float32, LOG_SERIES))
ONE_HALF, MANTISSA, LARGEST = np.float32(0.5), np.int32(23), np.float32(np.finfo(np.float32).max)
# sums and products may be taken in another order; inputs are never nan, and zero needs no sign
compiled = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nnan", "nsz"}
)
# as compiled, but sums may become nan: that is how values that are not finite are found
exact = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"}
)


@intrinsic
def bits_of(context, x):
    """A float32's bits as an int32."""
    signature = numba.int32(numba.float32)
    return signature, lambda _, builder, __, given: builder.bitcast(given[0], ir.IntType(32))


@intrinsic
def float_of(context, bits):
    """The float32 of these bits."""
    signature = numba.float32(numba.int32)
    return signature, lambda _, builder, __, given: builder.bitcast(given[0], ir.FloatType())


@compiled
def power(t):
    """2^t for t from -126 (below, as there) to 127: 2^f, |f| <= 1/2, by its series (wrong by 5e-9), and the
    whole part by a float's exponent.
    """
    t = max(t, np.float32(-126))
    whole = np.floor(t + ONE_HALF)
    f = t - whole
    series = SERIES[7]
    for k in (6, 5, 4, 3, 2, 1, 0):
        series = series * f + SERIES[k]
    return float_of(bits_of(series) + (np.int32(whole) << MANTISSA))


@compiled
def logarithm(x):
    """Natural logarithm of a normal positive float32."""
    bits = bits_of(x)
    whole = (bits - np.int32(0x3F3504F3)) >> MANTISSA  # so that what is left is near 1: above 1 / sqrt 2
    y = float_of(bits - (whole << MANTISSA)) - np.float32(1)
    square, series = y * y, LOG_SERIES[0]
    for k in (1, 2, 3, 4, 5, 6, 7, 8):
        series = series * y + LOG_SERIES[k]
    return series * y * square - ONE_HALF * square + y + np.float32(whole) * LN2


@compiled
def ordered(bits):
    """Bits of floats as integers of the same order; extremes of integers are fast."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


SAMPLED = 384  # images, about, whose values say how high the strongest are


def strongest(Q: Tensor, n: int) -> Tensor:
    """The n images that activate each unit most, descending, ties by lower index: Q [N, K] float32 -> [K, n].

    A sample tells a value above which each unit has n images or some more; these alone are sorted. Units
    with fewer or far more there, as those of many equal values, are sorted whole.
    """
    (N, K), Q = Q.shape, Q.contiguous()
    step = max(1, N // SAMPLED)
    sample = np.sort(np.ascontiguousarray(Q.numpy()[::step].T), axis=1)
    place = n if step == 1 else math.ceil(n / step + 3 * math.sqrt(n / step)) + 2
    place, room = min(place, sample.shape[1]), min(N, max(n, 2 * place * step))
    keys, counts = np.full((K, room), np.iinfo(np.int64).max), np.zeros(K, np.int64)
    gather(Q.numpy(), sample[:, -place].copy(), keys, counts)
    keys.sort(axis=1)
    top = torch.from_numpy(keys[:, :n] & 0xFFFFFFFF)
    other = torch.from_numpy(((counts < n) | (counts > room)).nonzero()[0])
    if len(other):
        top[other] = first_largest(Q[:, other].T.contiguous(), n)
    return top


@compiled
def gather(Q, least, keys, counts):
    """Keys that sort values from the largest, equal ones by image, of values of at least so much."""
    (N, K), room = Q.shape, keys.shape[1]
    for n in range(N):
        for k in range(K):
            if Q[n, k] >= least[k]:
                if counts[k] < room:
                    place = ordered(bits_of(Q[n, k]))
                    place -= place >> np.int32(31)  # -0 where 0 is
                    keys[k, counts[k]] = (np.int64(~place) << np.int64(32)) + n
                counts[k] += 1


def numbered(top: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """The different images among top [K, n], ascending, and top as int32 indices of these."""
    images, numbers = np.zeros(N, np.int64), np.empty(top.shape, np.int32)
    count = number(top.numpy(), images, numbers)
    return torch.from_numpy(images[:count]), torch.from_numpy(numbers)


@compiled
def number(top, images, numbers):
    (K, n), places, count = top.shape, np.zeros(len(images), np.int32), 0
    for k in range(K):
        for j in range(n):
            places[top[k, j]] = 1
    for i in range(len(images)):
        if places[i]:
            places[i], images[count] = count, i
            count += 1
    for k in range(K):
        for j in range(n):
            numbers[k, j] = places[top[k, j]]
    return count


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
    for u in range(len(rows)):
        x, less = P[rows[u]][start : start + width], shift[u] * LOG2E
        added, low, high = np.float32(0), extremes[u, 0], extremes[u, 1]
        for c in range(width):
            bits = bits_of(power(a * x[c] - less))
            added += float_of(bits)
            low = min(low, bits)
            high = max(high, bits)
        total[u] += added
        extremes[u, 0], extremes[u, 1] = low, high


@compiled
def fill_powers(P, rows, first, a, shift, scale, out, start, width):
    (U, m), flat = out.shape, out.ravel()
    for u in range(len(rows)):
        less, factor = shift[u] * LOG2E, scale[u]
        for c in range(0, m, width):
            some = min(width, m - c)
            at = U * c + (start + u) * some
            x, y = P[rows[u]][first + c : first + c + some], flat[at : at + some]
            for i in range(some):
                y[i] = power(a * x[i] - less) * factor


@exact
def raise_rows(P, rows, a, out, scale, low, high):
    """exp(a P[rows] - the largest a P of the row) into out [U, M], or of what out has where there are no
    rows; 1 / their sums, and the least and largest share of each. Whether P and a P are finite.
    """
    sound, a, M = True, a * LOG2E, out.shape[1]
    for u in range(len(out)):
        x, total, added = out[u], np.float32(0), np.float32(0)
        if len(rows):
            x[:] = P[rows[u]]
        first = last = ordered(bits_of(x[0]))
        for c in range(M):
            one = ordered(bits_of(x[c]))
            first, last, total = min(first, one), max(last, one), total + x[c]
        ends = a * float_of(ordered(first)), a * float_of(ordered(last))
        sound &= abs(total) <= LARGEST and abs(ends[0]) <= LARGEST and abs(ends[1]) <= LARGEST
        most = max(ends[0], ends[1])
        for c in range(M):
            one = power(a * x[c] - most)
            x[c] = one
            added += one
        scale[u] = np.float32(1) / added
        low[u], high[u] = power(min(ends[0], ends[1]) - most) * scale[u], scale[u]
    return sound


@exact
def others_sound(P, rows):
    """Whether sums of all rows of P but these, which ascend, are finite."""
    at = 0
    for n in range(len(P)):
        if at < len(rows) and rows[at] == n:
            at += 1
            continue
        total = np.float32(0)
        for c in range(P.shape[1]):
            total += P[n, c]
        if not abs(total) <= LARGEST:
            return False
    return True


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
