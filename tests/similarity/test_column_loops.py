"""neuronym.similarity.column_loops against loops in float64."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from torch.testing import assert_close

loops = pytest.importorskip("neuronym.similarity.column_loops", reason="numba is not installed")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("N", [1, 64, 131])
def test_measure(N, degree, dtype):
    X = (drawn(N, 9) + 2).to(dtype)
    X[:, 3], X[:, 4], X[:, 5] = 7, 0, X[:, 5] * 1e-30
    if N > 1:
        X[0, 6] = math.nan
    Y = torch.empty(N, 6, dtype=dtype)
    scales, mean, odd = loops.measure_columns(X, 2, 6, degree, 0.25, Y)
    for c in range(6):
        column = X[:, 2 + c].tolist()
        about = math.fsum(column) / N if degree else 0
        powers = [(x - about) ** (degree or 1) for x in column]
        norm = math.sqrt(math.fsum(y * y for y in powers))
        usual = 1 < norm * float(torch.finfo(dtype).max) ** 0.25 < math.inf
        assert usual or bool(odd[c])
        if usual and not odd[c]:
            assert math.isclose(scales[c], 1 / max(norm, 0.25), rel_tol=1e-5)
            if degree:
                assert_close(Y[:, c].double(), torch.tensor(powers).double(), rtol=1e-4, atol=1e-4)
                assert math.isclose(mean[c], about, rel_tol=1e-6)
        else:
            assert scales[c] == 1
    assert not N > 1 or (odd[2] and odd[4]) and not odd[0]


def test_level_out():
    X, rows, cols = drawn(5, 9), drawn(5, seed=1), drawn(4, seed=2)
    expected = X.clone()
    expected[:, 3:7] *= rows[:, None] * cols
    loops.level_out(X, slice(3, 7), rows, cols)
    assert_close(X, expected)


def test_spread_of_rows():
    P = drawn(5, 37) + 3
    expected = statistics.mean(statistics.pstdev(row) for row in P.double().tolist())
    assert math.isclose(loops.spread_of_rows(P), expected, rel_tol=1e-12)
    assert math.isnan(loops.spread_of_rows(P.fill_(math.nan)))


def test_moments():
    X = drawn(50, 2100).abs()
    X[:, 7], X[:, 8] = 0.3, 0.3 + 1e-6 * X[:, 8]
    moments = loops.Moments(2100)
    moments.add(X[:20])
    assert moments.far_from_zero(20)
    moments.add(X[20:])
    few = loops.Moments(3)
    few.add(drawn(50, 3).contiguous())
    assert not few.far_from_zero(50)
    scales = moments.scales(None, 50, 1e-3)
    norms = (X.double() - X.double().mean(0)).norm(dim=0)
    assert scales[7] == scales[8] == 0
    used = [c for c in range(2100) if c not in (7, 8)]
    assert_close(scales[used].double(), 1 / norms[used], rtol=1e-5, atol=0)
    assert moments.scales(torch.full((2100,), 1e7), 50, 1e-6)[9] == 0


def literal_unit(column):
    mean = math.fsum(column) / len(column)
    apart = [x - mean for x in column]
    norm = math.sqrt(math.fsum(x * x for x in apart))
    return [x / norm for x in apart], apart


@pytest.mark.parametrize("N, m", [(3, 1), (131, 70)])
def test_combine(N, m):
    """Columns of a softmax and of P, each of length 1, added; constant, tiny and few different shares."""
    P, slope = drawn(N, m + 4) + 2, 1.5
    P[:, 0], P[:, 1] = -60, -20 + 0.1 * P[:, 1]
    scales, cols = torch.empty(N, 2), slice(1, m + 1)
    most = loops.scale_rows(P, slope, scales)
    assert math.isclose(most, slope * float(P.abs().max()), rel_tol=1e-6)
    shares = (slope * P.double()).softmax(1)
    both, cubes = torch.empty(2, N, m)
    odd = loops.combine(P, cols, slope, scales, 1e-6, both, cubes)
    assert not odd.any()
    for c in range(m):
        column, share = (X[:, 1 + c].double().tolist() for X in (P, shares))
        unit, apart = literal_unit(column)
        of_shares = literal_unit(share)[0]
        expected = [x + y for x, y in zip(unit, of_shares)]
        assert_close(both[:, c].double(), torch.tensor(expected).double(), rtol=1e-3, atol=2e-4)
        powers = [x**3 for x in apart]
        norm = math.sqrt(math.fsum(x * x for x in powers))
        assert_close(cubes[:, c], torch.tensor([x / norm for x in powers]), rtol=1e-2, atol=2e-4)
    loops.combine(P, cols, slope, scales, 10.0, both, cubes)  # all shares are alike but for rounding
    unit = literal_unit(P[:, 1].double().tolist())[0]
    assert_close(both[:, 0], torch.tensor(unit), rtol=1e-3, atol=2e-4)
    assert loops.combine(P, slice(0, 1), slope, scales, 1e-6, both[:, :1].clone(), cubes[:, :1].clone())[0]


@pytest.mark.parametrize("slope", [7.0, -3, 0, 300])
def test_share_rows(slope):
    """Of a matrix, and in place."""
    P = drawn(5, 37)
    expected, out, own = (slope * P.double()).softmax(1), torch.empty(5, 37), P.clone()
    for given, x in ((P, out), (P[:0], own)):
        most = loops.share_rows(given.numpy(), np.float32(slope), x.numpy())
        assert math.isclose(most, abs(slope) * float(P.abs().max()), rel_tol=1e-6)
    assert torch.equal(out, own)
    assert_close(out.double(), expected, rtol=1e-4, atol=2e-38)
