"""A metric of many runs: means, intervals, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuronym.figures.sweeps import check_column, metric_figure, metric_means
from neuronym.runs.collect import of_value

RUNS = pd.DataFrame(
    {
        "target": ["a", "a", "a", "b", "b"],
        "k": [1, 2, 2, 1, 2],
        "x": [0.1, 0.2, 0.6, 0.5, None],
        "said": ["0.5", "yes", "no", "", ""],
        "smoke": [True] * 5,
    }
)


def test_means_are_of_the_runs_that_share_both():
    means = metric_means(RUNS, "x", "k", "target")
    assert means[["k", "target", "runs"]].values.tolist() == [[1, "a", 1], [1, "b", 1], [2, "a", 2]]
    assert np.allclose(means["mean"], [0.1, 0.5, 0.4])
    assert means["low"].isna().tolist() == [True, True, False]
    assert means["low"][2] == pytest.approx(0.2) and means["high"][2] == pytest.approx(0.6)


@pytest.mark.parametrize("against, group", [("target", ""), ("k", "target"), ("target", "k")])
def test_every_group_is_in_the_figure(against, group):
    fig = metric_figure(metric_means(RUNS, "x", against, group), "x", against, group)
    (ax,) = fig.axes
    assert ax.get_xlabel() == against and "mean over runs" in ax.get_ylabel()
    legend = ax.get_legend()
    shown = [text.get_text() for text in legend.get_texts()] if legend else []
    assert shown == ([] if not group else sorted({str(v) for v in RUNS[group]}))


def test_columns_are_checked():
    assert check_column(RUNS, "x", numbers=True) == "x"
    both = RUNS.assign(**{"metric.k": 1.0})  # a metric with a parameter's name
    assert check_column(both, "k", numbers=True) == "metric.k" and check_column(both, "k") == "k"
    with pytest.raises(KeyError, match="no parameter of these runs 'targt'; nearest: target"):
        check_column(RUNS, "targt")
    with pytest.raises(ValueError, match="'smoke' has no numbers in these runs"):
        check_column(RUNS, "smoke", numbers=True)


def test_runs_are_chosen_by_a_value():
    assert len(of_value(RUNS, "k:2")) == 3 and of_value(RUNS, "") is RUNS
    for where, said in (("k", "name:value"), ("j:1", "no parameter"), ("k:3", "no value of k")):
        with pytest.raises((KeyError, ValueError), match=said):
            of_value(RUNS, where)
