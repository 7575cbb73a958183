"""neuronym.similarity.kernels against loops in float64: odd sizes, ties, words of bits that are not full."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

kernels = pytest.importorskip("neuronym.similarity.kernels", reason="numba is not installed")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("J", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products(J, dtype):
    x, rest, gain, out = (
        drawn(23, 11).to(dtype),
        drawn(J).to(dtype),
        drawn(J).to(dtype),
        torch.empty(3, 11, dtype=dtype),
    )
    top = torch.randint(23, (3, J), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    kernels.products(x, top, rest, gain, out)
    expected = [
        [
            math.prod(float(rest[j]) + float(gain[j]) * float(x[top[k, j], c]) for j in range(J))
            for c in range(11)
        ]
        for k in range(3)
    ]
    assert_close(
        out.double(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-5 if dtype == torch.float32 else 1e-12,
        atol=0,
    )


def test_powers():
    P, rows, cols, a = 3 * drawn(23, 37), torch.tensor([4, 0, 22]), slice(5, 36), 7.0
    P[4, 9], P[0, 5] = -80, 0  # exp(-560) is no float: it counts as nearly none
    shift, scale = torch.tensor([1.0, 0, -2]), torch.tensor([1.0, 0.5, 1e-3])
    expected = (a * P[rows, cols].double() - shift[:, None]).exp()
    total, extremes = torch.tensor([1.0, 0, 0]), torch.tensor([[math.inf, 0], [1e-6, 1e30], [math.inf, 0]])
    kernels.add_powers(P, rows, cols, a, shift, total, extremes)
    assert_close(total.double(), expected.sum(1) + torch.tensor([1.0, 0, 0]), rtol=1e-5, atol=0)
    assert_close(extremes[2].double(), torch.stack([expected[2].min(), expected[2].max()]), rtol=1e-5, atol=0)
    assert 0 <= extremes[0, 0] < 2e-38 and extremes[1, 1] == 1e30
    for width in (31, 40, 8, 1):
        out = torch.zeros(3, 31)
        kernels.write_powers(P, rows[1:], cols, a, shift[1:], scale[1:], out, 1, width)
        tiles = [out.flatten()[3 * c : 3 * min(c + width, 31)].view(3, -1) for c in range(0, 31, width)]
        assert_close(torch.cat(tiles, 1)[1:].double(), scale[1:, None] * expected[1:], rtol=1e-5, atol=2e-38)
        assert not torch.cat(tiles, 1)[0].any()


@pytest.mark.parametrize("a", [10.0, -3, 0, 400])
@pytest.mark.parametrize("M", [1, 5, 37])
def test_raised_rows_are_a_softmax(M, a):
    """Of some rows of a matrix, and in place: the same, bit by bit."""
    P, rows = drawn(23, M), torch.tensor([4, 0, 22])
    shares, outs = (a * P[rows].double()).softmax(1), (torch.empty(3, M), P[rows])
    for given, out in zip((rows, rows[:0]), outs):
        scale, low, high = torch.empty(3, 3)
        arrays = (x.numpy() for x in (out, scale, low, high))
        assert kernels.raise_rows(P.numpy(), given.numpy(), np.float32(a), *arrays)
        assert_close((out * scale[:, None]).double(), shares, rtol=2e-4, atol=2e-38)
        assert_close(low.double(), shares.amin(1), rtol=2e-4, atol=2e-38)
        assert_close(high.double(), shares.amax(1), rtol=2e-4, atol=0)
    assert torch.equal(*outs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_found(value):
    P = drawn(5, 37)
    P[3, 11] = value
    out, of_rows = np.empty((1, 37), np.float32), np.empty((3, 1), np.float32)
    for row in range(5):
        assert kernels.raise_rows(P.numpy(), np.array([row]), np.float32(2), out, *of_rows) == (row != 3)
        others = np.array([i for i in range(5) if i != row])
        assert kernels.others_sound(P.numpy(), others) == (row != 3)
    assert not kernels.raise_rows(P.numpy(), np.array([0]), np.float32(3e38), out, *of_rows)


def test_logarithms():
    @kernels.compiled
    def of(x, out):
        for i in range(len(x)):
            out[i] = kernels.logarithm(x[i])

    x = torch.cat([10 ** (8 * drawn(1000)), torch.tensor([1.0, 2**-126, 3e38, 0.70710677, 0.7071069])])
    out = torch.empty_like(x)
    of(x.clamp_(2**-126, 3e38).numpy(), out.numpy())
    assert_close(out.double(), x.double().log(), rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("N, n", [(1, 1), (9, 4), (700, 100), (1601, 28), (1601, 1500)])
def test_the_strongest_are_the_first_of_a_stable_sort(N, n):
    """Values all different, few different ones, mostly 0, all equal, and high ones where no sample looks."""
    Q = drawn(N, 7)
    Q[:, 1], Q[:, 2], Q[:, 3] = Q[:, 1].round(), Q[:, 2].sub(2).relu(), -0.0
    Q[N // 2 :, 3] = 0
    Q[1 :: N // kernels.SAMPLED + 1, 4] += 10
    Q[:, 5] = Q[:, 5].sort(descending=True).values
    top = kernels.strongest(Q, n)
    expected = [sorted(range(N), key=lambda i: (-column[i], i))[:n] for column in Q.T.tolist()]
    assert top.tolist() == expected
    rows, numbers = kernels.numbered(top, N)
    assert rows.tolist() == sorted(set(top.flatten().tolist()))
    assert torch.equal(rows[numbers.long()], top) and numbers.dtype == torch.int32


@pytest.mark.parametrize("p", [3, 1, 2.5])
@pytest.mark.parametrize("U", [9, 64, 131])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reorder_errors(U, p, dtype):
    """Equal values, all of them or in groups that reach over words of bits, are ranked upwards from the first
    image.
    """
    values = drawn(7, U).to(dtype)
    values[1], values[2], values[3, ::2], values[4] = (
        1,
        values[2].round(),
        -0.0,
        values[4].abs().sqrt().round(),
    )
    values[3, 1::2] = 0
    n, a = 9, drawn(5, 9, seed=2).to(dtype).sort(dim=1, descending=True).values
    top = torch.stack(
        [torch.randperm(U, generator=torch.Generator().manual_seed(k))[:n] for k in range(5)]
    ).int()
    errors, means = kernels.reorder_errors(values, top, a, p)
    for c in range(7):
        for k in range(5):
            seen, rising = [float(values[c, i]) for i in top[k]], sorted(a[k].tolist())
            rank = [sum((other, i) < (seen[j], j) for i, other in enumerate(seen)) for j in range(n)]
            error = sum(abs(float(a[k, j]) - rising[rank[j]]) ** p for j in range(n)) / n
            assert math.isclose(errors[c, k], error, rel_tol=1e-5, abs_tol=1e-12)
            assert math.isclose(means[c, k], sum(seen) / n, rel_tol=1e-5, abs_tol=1e-6)
