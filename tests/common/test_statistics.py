"""Intervals and corrections: by hand, against scipy, and on made-up data whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom, false_discovery_control
from sklearn.metrics import average_precision_score, roc_auc_score

from neuronym.common.statistics import (
    as_p_values,
    benjamini_hochberg,
    column_auroc,
    column_precision,
    correlation,
    cross_correlation,
    draw_neurons,
    holm,
    interval,
    means,
    paired,
    paired_interval,
    rank_of,
    sort_columns,
    wilson,
)


def within(count: int, n: int, p: float, tails: float = 1e-5) -> bool:
    """Whether a count of n is one that a chance of p gives."""
    return binom.ppf(tails, n, p) <= count <= binom.ppf(1 - tails, n, p)


def literal_holm(p):
    """Reject one after another, smallest first: the adjusted p is the least level at which a hypothesis
    falls.
    """
    out = []
    for p_i in p:
        smaller = [q for q in p if q <= p_i]
        out.append(min(1, max(q * (len(p) - sum(r < q for r in p)) for q in smaller)))
    return out


def literal_benjamini_hochberg(p):
    return [min([1] + [q * len(p) / sum(r <= q for r in p) for q in p if q >= p_i]) for p_i in p]


P_VALUES = [
    [0.01, 0.04, 0.03],
    [0.5],
    [0.2, 0.2, 0.2, 0.01, 1, 0],
    list(np.random.default_rng(1).random(31) ** 3),
]


@pytest.mark.parametrize("p", P_VALUES)
def test_corrections_are_their_definitions(p):
    np.testing.assert_allclose(holm(p), literal_holm(p), rtol=1e-12)
    np.testing.assert_allclose(benjamini_hochberg(p), literal_benjamini_hochberg(p), rtol=1e-12)
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), rtol=1e-12)
    assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all() and (benjamini_hochberg(p) >= p).all()


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg, as_p_values])
def test_corrections_take_p_values_only(correct):
    p = np.random.default_rng(2).random(9)
    deal = np.random.default_rng(3).permutation(9)
    assert (correct(p[deal]) == correct(p)[deal]).all() and len(correct([])) == 0
    for wrong in ([0.1, 1.2], [-0.1], [float("nan")], [[0.1]], 0.3):
        with pytest.raises(ValueError, match="from 0 to 1"):
            correct(wrong)


def test_corrections_hold_their_promise():
    """Without a true effect any rejection is false; with 15 of 40 true ones the share of false ones is 25/40
    of level.
    """
    dice, n = np.random.default_rng(4), 2000
    uniform = dice.random((n, 40))
    for correct in (holm, benjamini_hochberg):
        false = sum((correct(p) <= 0.05).any() for p in uniform)
        assert false <= binom.ppf(1 - 1e-5, n, 0.05) and false >= binom.ppf(1e-5, n, 0.04)
    uniform[:, :15] **= 12
    shares, missed = [], []
    for p in uniform:
        found = benjamini_hochberg(p) <= 0.1
        shares.append(found[15:].sum() / max(found.sum(), 1))
        missed.append((holm(p) <= 0.1)[:15].mean() <= found[:15].mean())
    assert abs(np.mean(shares) - 0.1 * 25 / 40) < 0.008 and all(missed)


def test_intervals_of_means_and_differences_cover():
    """Of 300 intervals of each mean, and of a difference of methods that go together, about 95 % hold the
    truth.
    """
    dice, held, difference = np.random.default_rng(5), np.zeros(2, int), 0
    for i in range(300):
        shared = dice.normal(0, 2, 60)
        table = pd.DataFrame({"a": shared + dice.normal(1, 0.3, 60), "b": shared + dice.normal(0.8, 0.3, 60)})
        found = means(table, seed=i, draws=400)
        held += ((found["low"] <= [1, 0.8]) & (found["high"] >= [1, 0.8])).to_numpy()
        d, low, high = paired_interval(table["a"], table["b"], seed=i, draws=400)
        difference += low <= 0.2 <= high
        assert (
            low < d < high and high - low < 0.5 * (found["high"] - found["low"]).min()
        )  # pairing is worth it
    assert all(within(count, 300, 0.94, 1e-4) for count in (*held, difference))


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(level):
    from scipy.stats import binomtest

    hits, n = np.array([0, 1, 7, 30, 52]), np.array([1, 9, 8, 31, 52])
    low, high = wilson(hits / n, n, level)
    for i in range(5):
        exact = binomtest(int(hits[i]), int(n[i])).proportion_ci(level, "wilson")
        assert (low[i], high[i]) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert wilson(1, 52)[0] < 1 and wilson(0.5, 10)[0] == pytest.approx(1 - wilson(0.5, 10)[1])
    for wrong in ((1.1, 3), (0.5, 0), (float("nan"), 2)):
        with pytest.raises(ValueError, match="a share is from 0 to 1, of one case or more"):
            wilson(*wrong)


def test_neurons_are_drawn_jointly():
    """The interval of each column is that of the column alone with the same seed, and all columns see the
    same neurons.
    """
    x = np.random.default_rng(6).normal(size=37)
    found = means(
        pd.DataFrame({"x": x, "lower": x - 3, "opposite": -x, "constant": 2.0}), seed=4, draws=300
    ).set_index("method")
    assert list(found) == ["mean", "low", "high"] and found.loc["x", "mean"] == pytest.approx(x.mean())
    assert tuple(found.loc["x", ["low", "high"]]) == pytest.approx(interval(x, 4, 300), abs=1e-14)
    np.testing.assert_allclose(found.loc["lower"], found.loc["x"] - 3, atol=1e-12)
    np.testing.assert_allclose(
        found.loc["opposite", ["low", "high"]], -found.loc["x", ["high", "low"]], atol=1e-12
    )
    assert found.loc["constant"].tolist() == [2, 2, 2]
    d, low, high = paired_interval(x, x - 3, draws=300)
    assert (d, low, high) == pytest.approx((3, 3, 3))
    assert paired_interval(x, x**2, seed=7)[1:] == interval(x - x**2, 7)
    table = paired(pd.DataFrame({"a": x, "b": x**2}), seed=7)
    assert tuple(table.loc[0, ["difference", "low", "high"]]) == paired_interval(x, x**2, seed=7)


def test_strata_keep_their_size():
    """Within layers that are constant nothing is left to vary; a literal draw within layers gives the same
    means.
    """
    table = pd.DataFrame({"layer": [2, 1, 2, 2, 1], "a": [5.0, 1, 5, 5, 1]})
    assert means(table, stratified=True, draws=200).iloc[0, 1:].tolist() == [3.4, 3.4, 3.4]
    assert means(table, draws=200)["low"][0] < 3
    for drawn in draw_neurons(5, 1, 7, table["layer"]):
        assert drawn.shape == (7, 5) and (table["layer"].to_numpy()[drawn] == [2, 2, 2, 1, 1]).all()
    assert len(np.concatenate(list(draw_neurons(3, 0, 2500)))) == 2500
    assert np.unique(np.concatenate(list(draw_neurons(3, 0, 400)))).tolist() == [0, 1, 2]


def test_blocks_of_draws_do_not_matter():
    whole = np.random.default_rng(8).integers(11, size=(2300, 11))
    assert (np.concatenate(list(draw_neurons(11, 8, 2300))) == whole).all()


ERRORS = [
    (lambda: paired_interval([1.0, 2], [1.0]), "one of each method for every neuron"),
    (lambda: paired_interval([1.0, float("nan")], [1.0, 2]), "finite values"),
    (lambda: paired_interval([], []), "at least one"),
    (lambda: interval([1.0], level=1.5), "level must be"),
    (lambda: interval([1.0], draws=0), "draws must be a positive whole number, got 0"),
    (lambda: means(pd.DataFrame({"a": [1.0]}), stratified=True), "need a column 'layer', got columns a"),
    (lambda: means(pd.DataFrame({"a": [1.0, float("inf")], "b": [1, 2]})), "1 neurons lack one"),
    (lambda: means(pd.DataFrame({"a": ["x"]})), "columns of numbers"),
    (lambda: means(pd.DataFrame({"layer": [1.0]})), "columns of numbers"),
    (lambda: means(pd.DataFrame({"a": []})), "got 0 rows"),
]


@pytest.mark.parametrize("call, message", ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scale", [1, 1e-13, 1e200, -3])
def test_every_pair_of_columns_is_correlated_whatever_its_scale(scale):
    g = torch.Generator().manual_seed(2)
    Q, present = torch.randn(23, 7, generator=g).double(), torch.rand(23, 11, generator=g) > 0.6
    found = cross_correlation(Q * scale, present)
    literal = np.corrcoef(Q.numpy().T * np.sign(scale), present.double().numpy().T)[:7, 7:]
    np.testing.assert_allclose(found.numpy(), literal, rtol=1e-12, atol=1e-15)
    own = correlation(Q * scale, present[:, :7])
    np.testing.assert_allclose(own.numpy(), found[:, :7].diagonal().numpy(), rtol=1e-12, atol=1e-15)


def test_what_is_constant_correlates_with_nothing():
    Q = torch.stack([torch.full((9,), 0.1), torch.arange(9.0)], 1)
    present = torch.stack([torch.ones(9), torch.arange(9) % 2], 1).bool()
    assert (
        cross_correlation(Q, present).count_nonzero() == cross_correlation(Q[:, 1:], present).count_nonzero()
    )
    with pytest.raises(ValueError, match="equal N, got 9 and 8"):
        cross_correlation(Q, present[1:])


def test_areas_and_precisions_are_those_of_scikit_learn():
    g = torch.Generator().manual_seed(5)
    values = torch.randint(6, (31, 4), generator=g).float()  # many ties
    true = torch.rand(31, 4, generator=g) > 0.7
    true[:, 3] = False
    order = sort_columns(values)
    areas, precisions = column_auroc(order, true, ~true), column_precision(order, true)
    for k in range(3):
        assert areas[k].item() == pytest.approx(roc_auc_score(true[:, k], values[:, k]), rel=1e-12)
        assert precisions[k].item() == pytest.approx(
            average_precision_score(true[:, k], values[:, k]), rel=1e-12
        )
    assert areas[3].isnan() and precisions[3] == 0


def test_rows_drawn_twice_count_twice():
    values, true = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, True, False, True])
    times = torch.tensor([[2, 1, 3, 1], [1, 1, 1, 1]]).T  # two draws
    found = column_auroc(sort_columns(values[:, None]), times * true[:, None], times * ~true[:, None])
    long, right = values.repeat_interleave(times[:, 0]), true.repeat_interleave(times[:, 0])
    assert found.tolist() == [roc_auc_score(right, long), roc_auc_score(true, values)]


def test_rank_of_counts_what_is_higher_and_of_equal_ones_what_is_before():
    scores = torch.tensor([[1.0, 1, 1], [0, 2, 2], [3, 1, 3]])
    assert rank_of(scores, torch.tensor([1, 2, 0])).tolist() == [2, 2, 1]


def test_paired_takes_yes_and_no():
    table = pd.DataFrame({"a": [True, False, True, True], "b": [False, False, True, False]})
    found = paired(table)
    assert found["difference"].tolist() == [0.5]
    pd.testing.assert_frame_equal(found, paired(table.astype(float)))
    mixed = paired(table.assign(c=[0.25, 0.5, 0.5, 1.0]))
    assert mixed["difference"].tolist() == pytest.approx([0.5, 0.1875, -0.3125])
    with pytest.raises(ValueError, match="numbers, or yes and no, for every neuron, 'word' holds"):
        paired(table.assign(word="x"))


@pytest.mark.parametrize("scale", [1e-9, 1, 3.7, 1e9])
def test_differences_of_rounding_are_none_and_ties(scale):
    """.1 + .2 against .3 is no difference, and .3 - .2 ties with .1 - 0."""
    from scipy.stats import wilcoxon

    a = np.array([0.1 + 0.2] * 12 + [0.5, 0.6, 0.7, 0.8, 0.9, 0.3, 0.7])
    b = np.array([0.3] * 12 + [0.55, 0.68, 0.81, 0.95, 1.09, 0.2, 0.8])
    exact = np.array([0.0] * 12 + [-5, -8, -11, -15, -19, 10, -10])
    found = paired(pd.DataFrame({"a": a * scale, "b": b * scale}))
    assert found["p"].tolist() == [wilcoxon(exact).pvalue]
    same = paired(pd.DataFrame({"a": a[:12] * scale, "b": b[:12] * scale}))
    assert same["p"].tolist() == [1.0]


def test_small_differences_of_small_values_count():
    a, b = np.array([1e9, 3e-9, 5e-9, 7e-9]), np.array([1e9, 1e-9, 2e-9, 1e-9])
    assert paired(pd.DataFrame({"a": a, "b": b}))["p"].tolist() == [0.25]  # the least of three differences
