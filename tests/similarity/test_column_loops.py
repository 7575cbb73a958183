"""neuronym.similarity.column_loops against loops in float64."""

from __future__ import annotations

import math
import statistics

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
