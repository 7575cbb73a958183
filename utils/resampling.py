"""Intervals and tests that say what was resampled.

interval   bootstrap interval of a mean over neurons
paired     differences of methods rated on the same neurons: mean, interval, Wilcoxon's test, Holm's correction
holm       p-values corrected for their number
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

DRAWS = 10_000


def interval(values: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = .95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; resampled are the values, one for each neuron."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"a bootstrap takes finite values, at least one, got {x.shape} with {int((~np.isfinite(x)).sum())} "
                         "that are not")
    dice = np.random.default_rng(seed)
    means = np.concatenate([x[dice.integers(len(x), size=(some, len(x)))].mean(1)
                            for some in np.diff([*range(0, draws, 1000), draws])])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Every pair of columns of a table with one row a neuron: mean difference, its interval, p of Wilcoxon's signed-rank
    test (differences of zero left out), and p after Holm's correction for the number of pairs.

    Errors: ValueError for values that are missing: a test on pairs needs both.
    """
    from scipy.stats import wilcoxon

    if table.isna().any(axis=None):
        raise ValueError(f"paired methods need a value for every neuron, {int(table.isna().any(axis=1).sum())} neurons lack "
                         "one; drop them for all methods")
    rows = []
    for a, b in combinations(table.columns, 2):
        d = (table[a] - table[b]).to_numpy(np.float64)
        p = float(wilcoxon(d).pvalue) if (d != 0).any() else 1.
        rows.append((a, b, d.mean(), *interval(d, seed), p))
    found = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p"])
    return found.assign(holm=holm(found["p"]))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm (1979): the k-th smallest of n p-values times n - k + 1, never below an earlier one, at most 1."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1)
    return out
