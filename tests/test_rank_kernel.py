"""neuronym.similarity.kernels against loops in float64: ties, words of bits that are not full."""

from __future__ import annotations

import math

import pytest
import torch
from test_kernels import drawn

rank_kernel = pytest.importorskip("neuronym.similarity.kernels", reason="numba is not installed")


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
    errors, means = rank_kernel.reorder_errors(values, top, a, p)
    for c in range(7):
        for k in range(5):
            seen, rising = [float(values[c, i]) for i in top[k]], sorted(a[k].tolist())
            rank = [sum((other, i) < (seen[j], j) for i, other in enumerate(seen)) for j in range(n)]
            error = sum(abs(float(a[k, j]) - rising[rank[j]]) ** p for j in range(n)) / n
            assert math.isclose(errors[c, k], error, rel_tol=1e-5, abs_tol=1e-12)
            assert math.isclose(means[c, k], sum(seen) / n, rel_tol=1e-5, abs_tol=1e-6)
