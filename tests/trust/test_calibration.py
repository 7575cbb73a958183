"""Trust and rightness: against literal loops and scikit-learn, on perfect, useless and truly calibrated
trust.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, roc_auc_score

from neuronym.common.statistics import auroc
from neuronym.trust.signals import (
    auroc_intervals,
    brier,
    expected_calibration_error,
    reliability,
    risk_coverage,
)

K = 83


def made(seed=0, n=K, calibrated=True) -> tuple[np.ndarray, np.ndarray]:
    """Trust with ties, and rightness of just that probability, or independent of it."""
    dice = np.random.default_rng(seed)
    trust = dice.integers(0, 21, n) / 20
    return trust, dice.random(n) < (trust if calibrated else 0.4)


def literal_auroc(trust, right):
    pairs = [
        (t > u) + 0.5 * (t == u) for t, r in zip(trust, right) for u, s in zip(trust, right) if r and not s
    ]
    return sum(pairs) / len(pairs) if pairs else 0.5


# --- auroc


def test_auroc_is_the_literal_one():
    for seed in range(4):
        trust, right = made(seed)
        found = auroc(torch.from_numpy(trust), torch.from_numpy(right))
        assert (
            found == pytest.approx(literal_auroc(trust, right)) == pytest.approx(roc_auc_score(right, trust))
        )
        assert auroc(-trust, right) == pytest.approx(1 - found) and auroc(
            trust * 7 - 3, right
        ) == pytest.approx(found)
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1 and auroc([1, 2, 3], [1, 1, 0]) == 0
    assert auroc([1, 1, 1], [1, 0, 0]) == 0.5 == auroc([1, 2], [True, True]) == auroc([1, 2], [0, 0])


def test_bootstrap_counts_neurons_as_often_as_they_are_drawn():
    """Every draw by hand: the neurons of the seed's draws, with both of their values, in the literal
    function.
    """
    trust, right = made(1, 23)
    found = auroc_intervals(pd.DataFrame({"t": trust}), right, seed=5, draws=60)
    drawn = np.random.default_rng(5).integers(23, size=(60, 23))
    values = [literal_auroc(trust[rows], right[rows]) for rows in drawn if 0 < right[rows].sum() < 23]
    assert found.iloc[0].tolist() == [
        "t",
        23,
        right.sum(),
        pytest.approx(literal_auroc(trust, right)),
        *(pytest.approx(x) for x in np.quantile(values, [0.025, 0.975])),
    ]


def test_trust_scores_see_the_same_neurons():
    trust, right = made(2)
    table = pd.DataFrame({"t": trust, "squared": trust**2 + 1, "opposite": -trust, "constant": 1.0})
    found = auroc_intervals(table, right, draws=300).set_index("trust")
    assert found.loc["t"].tolist() == pytest.approx(found.loc["squared"].tolist())
    assert found.loc["opposite", ["auroc", "low"]].tolist() == pytest.approx(
        (1 - found.loc["t", ["auroc", "high"]]).tolist()
    )
    assert found.loc["constant", ["auroc", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
    few = right & (np.cumsum(right) == 1)  # one right label: draws without it are left out
    assert auroc_intervals(table[["t"]], few, draws=200)[["low", "high"]].notna().all(axis=None)
    assert auroc_intervals(table[["t"]], right | True)[["auroc", "low", "high"]].values.tolist() == [
        [0.5, 0, 1]
    ]


def test_auroc_intervals_cover():
    """Normal trust, one standard deviation higher for right labels: the true AUROC is Phi(1 / sqrt 2)."""
    dice, true, held, width = np.random.default_rng(3), 0.5 * (1 + math.erf(0.5)), 0, []
    for i in range(300):
        right = dice.random(90) < 0.4
        found = auroc_intervals(pd.DataFrame({"t": dice.normal(right, 1)}), right, seed=i, draws=200).iloc[0]
        held += found["low"] <= true <= found["high"]
        width.append(found["high"] - found["low"])
    assert 263 <= held <= 297 and 0.15 < np.mean(width) < 0.3


# --- reliability


def test_reliability_is_the_literal_one():
    trust, right = made(4)
    table = reliability(trust, right, bins=6)
    order = sorted(range(K), key=lambda i: trust[i])
    bins = {}
    for i in order:
        ties = [p for p, j in enumerate(order) if trust[j] == trust[i]]
        bins.setdefault(math.floor((ties[0] + ties[-1] + 1) / 2 / K * 6), []).append(i)
    assert table["bin"].tolist() == list(range(len(bins))) and table["units"].sum() == K
    for row, rows in zip(table.itertuples(), (bins[b] for b in sorted(bins))):
        n = len(rows)
        assert row.units == n and row.trust == pytest.approx(sum(trust[i] for i in rows) / n)
        assert row.right == pytest.approx(sum(right[i] for i in rows) / n)
        wilson = binomtest(sum(int(right[i]) for i in rows), n).proportion_ci(0.95, "wilson")
        assert (row.low, row.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    expected = sum(len(rows) / K * abs(np.mean(trust[rows]) - np.mean(right[rows])) for rows in bins.values())
    assert expected_calibration_error(trust, right, 6) == pytest.approx(expected)
    mixed = np.random.default_rng(0).permutation(K)
    pd.testing.assert_frame_equal(reliability(trust[mixed], right[mixed], bins=6), table)


def test_bins_are_equal_without_ties_and_hold_ties_together():
    distinct = (np.arange(40) * 7 % 40) / 40
    assert reliability(distinct, distinct > 0.3, 8)["units"].tolist() == [5] * 8
    assert reliability(distinct, distinct > 0.3, 100)["units"].tolist() == [1] * 40
    table = reliability([0.2] * 9 + [0.9], [0] * 8 + [1, 1], 5)
    assert table["units"].tolist() == [9, 1] and table["trust"].tolist() == pytest.approx([0.2, 0.9])
    assert len(reliability([0.5] * 4, [1, 0, 1, 1])) == 1


def test_calibrated_trust_is_within_its_intervals():
    """Of 2,000 bins of trust that is the probability of being right, about 95 % hold their own trust."""
    inside, bins = 0, 0
    for seed in range(200):
        trust = np.random.default_rng(seed).random(400)
        table = reliability(trust, np.random.default_rng(900 + seed).random(400) < trust)
        inside += int(((table["low"] <= table["trust"]) & (table["trust"] <= table["high"])).sum())
        bins += len(table)
    assert bins == 2000 and 0.93 < inside / bins < 0.985
    trust, right = made(5, 20_000)
    assert (
        expected_calibration_error(trust, right) < 0.015 < 0.1 < expected_calibration_error(trust**3, right)
    )
    assert brier(trust, right) < brier(trust**3, right) < brier(1 - trust, right)


def test_brier_by_hand():
    trust, right = made(6)
    assert brier(trust, right) == pytest.approx(sum((t - r) ** 2 for t, r in zip(trust, right)) / K)
    assert brier(trust, right) == pytest.approx(brier_score_loss(right, trust))
    assert brier([1, 0], [1, 0]) == 0 and brier([0.5] * 4, [0, 1, 1, 0]) == 0.25


# --- risk and coverage


def test_risk_coverage_by_hand():
    table = risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0])
    assert table["threshold"].tolist() == [0.9, 0.5, 0.1] and table["units"].tolist() == [1, 3, 4]
    assert table["coverage"].tolist() == [0.25, 0.75, 1] and table["right"].tolist() == pytest.approx(
        [1, 2 / 3, 0.5]
    )


def test_perfect_and_useless_trust():
    right = np.arange(K) % 3 == 0
    assert auroc(right, right) == 1 and brier(right, right) == 0 == expected_calibration_error(right, right)
    perfect = risk_coverage(right.astype(float), right)
    assert perfect["right"].tolist() == [1, pytest.approx(right.mean())]
    trust, right = made(8, 30_000, calibrated=False)
    assert abs(auroc(trust, right) - 0.5) < 0.02


ERRORS = [
    (lambda f: f([0.1, 0.2], [True]), "equal K, at least one, got \\[2\\] and \\[1\\]"),
    (lambda f: f([], []), "at least one"),
    (lambda f: f([[0.1]], [[True]]), "trust and right \\[K\\]"),
    (lambda f: f([0.1, math.nan], [True, False]), "trust must be"),
    (lambda f: f([0.1, math.inf], [True, False]), "trust must be"),
    (lambda f: f([0.1, 0.2], [0.5, 1]), "right must be true or false, got 0.5"),
    (lambda f: f([0.1, 0.2], [math.nan, 1]), "right must be true or false, got nan"),
]


@pytest.mark.parametrize("call, message", ERRORS)
@pytest.mark.parametrize("function", [auroc, reliability, expected_calibration_error, brier, risk_coverage])
def test_errors(function, call, message):
    with pytest.raises(ValueError, match=message):
        call(function)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: reliability([1.2, 0.1], [1, 0]), "from 0 to 1, got 1.2; give a probability"),
        (lambda: brier([-0.2, 0.1], [1, 0]), "from 0 to 1, got -0.2"),
        (lambda: reliability([0.2], [1], bins=0), "bins must be a positive whole number"),
        (lambda: auroc_intervals(pd.DataFrame({"t": [0.1, 0.2]}), [1, 0], draws=0), "draws must be"),
        (lambda: auroc_intervals(pd.DataFrame({"t": [0.1, 0.2]}), [1]), "equal K"),
        (lambda: auroc_intervals(pd.DataFrame(index=[0, 1]), [1, 0]), "a column for each trust score"),
        (lambda: auroc_intervals(pd.DataFrame({"t": [0.1, 0.2]}), [1, 0], level=3), "level must be"),
    ],
)
def test_errors_of_shares_and_tables(call, message):
    with pytest.raises(ValueError, match=message):
        call()
