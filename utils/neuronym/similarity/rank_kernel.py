"""The loop of rank_reorder, compiled: ranks by counting bits, after one sort for all units.

reorder_errors   how far each concept reorders a unit's top images

Among n of U images, the rank of one is the number of the others that come before it in the order of all U. These are
kept as a set of bits, and counted 64 at a time: n + U / 64 steps for a unit and concept, instead of a sort.
"""
from __future__ import annotations

import numpy as np
from torch import Tensor

from neuronym.common.blocks import order, slices
from neuronym.similarity.kernels import compiled

GROUP_BYTES = 2**18  # values and places of the concepts taken together: they stay in a core's cache
# Indices are unsigned: numba then leaves out the test for negative ones, and the loops run three times as fast.
SIX, LOW, ONE = np.uint32(6), np.uint32(63), np.uint64(1)


def reorder_errors(values: Tensor, top: Tensor, a: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Mean_j |a_j - b_(r_j)|^p and mean_j of the values: values [m, U] of m concepts -> two [m, K].

    top [K, n] int32 indexes U; a [K, n] are the activations, descending, and b the same ascending; r_j is the rank of
    image j among the n, equal values ranked upwards from the first. One sort of all U serves every unit.
    """
    errors, means = values.new_empty(2, len(values), len(top))
    group = max(1, GROUP_BYTES // (values.shape[1] * (values.itemsize + 4)))
    for some in slices(len(values), group):
        reorder(values[some].numpy(), order(values[some]).numpy(), top.numpy().view(np.uint32), a.numpy(), p,
                errors[some].numpy(), means[some].numpy())
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
            # the places that the unit's images take, as a set of bits: the rank of one is the number of bits below it
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
                    error += abs(a[k, j] - a[k, last - rank(bits, below, taken[j])])**p
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
