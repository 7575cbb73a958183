"""Figures of names and trust: what they show is what the tables say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from neuronym.evaluation.sanity import printed_sanity
from neuronym.figures import evaluation, trust


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def labels(ax) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def means() -> pd.DataFrame:
    rows = [
        (g, m, metric, v + (g == "final") * 0.1, v - 0.1, v + 0.3, 5)
        for g in ("inner", "final")
        for metric in ("correlation", "iou")
        for m, v in (("good", 0.6), ("bad", 0.2), ("oracle", 0.5), ("shuffled", 0.65))
    ]
    return pd.DataFrame(rows, columns=["group", "method", "metric", "mean", "low", "high", "units"])


def test_methods_stand_in_order_with_bounds_above_and_controls_below():
    fig = evaluation.methods_by_metric(means(), ["correlation", "iou"], ["oracle"])
    axes = fig.axes
    assert [ax.get_title() for ax in axes] == ["correlation", "iou"] and labels(axes[0]) == [
        "oracle",
        "good",
        "bad",
        "shuffled",
    ]
    for container, shift in zip(axes[1].containers, (0, 0.1)):
        assert np.allclose(container.lines[0].get_xdata(), np.array([0.5, 0.6, 0.2, 0.65]) + shift)
    ends = axes[0].containers[0].lines[2][0].get_segments()[1][:, 0]
    assert np.allclose(ends, [0.5, 0.9])


def test_sanity_table_shows_the_shares():
    columns = pd.MultiIndex.from_tuples([("missing", "theory", "here"), ("passes", "all", "published")])
    passes = printed_sanity()["passes", "all"]
    table = pd.DataFrame([[1.0, passed] for passed in passes], index=passes.index, columns=columns)
    (ax,) = evaluation.sanity_table(table).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["missing\ntheory\nhere", "passes\npublished"]
    assert [t.get_text() for t in ax.texts] == [f"{x:.2f}" for passed in passes for x in (1.0, float(passed))]


def test_accuracy_responses_and_ranges():
    table = pd.DataFrame({"setting": ["a", "a", "b"], "similarity": ["x", "y", "x"], "top1": [0.5, 0.7, 0.9]})
    (ax,) = evaluation.accuracy_by(table, "setting").axes
    by_function = {line.get_label(): line for line in ax.lines if line.get_label() in ("x", "y")}
    assert labels(ax) == ["a", "b"] and list(by_function["x"].get_xdata()) == [0.5, 0.9]
    assert list(by_function["y"].get_xdata()) == [0.7]
    assert by_function["x"].get_marker() != by_function["y"].get_marker()
    (ax,) = evaluation.responses(
        pd.DataFrame({"layer": ["l"] * 6, "method": ["m", "n"] * 3, "auc": np.linspace(0.4, 0.9, 6)})
    ).axes
    assert labels(ax) == ["l"] and ax.get_xlim()[0] < 0 and ax.get_xlim()[1] > 1
    hatches = [handle.get_hatch() for handle in ax.get_legend().legend_handles]
    assert len(set(hatches)) == 2  # boxes differ without their colours
    assert {box.get_hatch() for c in ax.containers for box in c.boxes} == set(hatches)
    (ax,) = evaluation.ranges(
        pd.DataFrame({"layer": ["l"] * 3, "share": [0.001, 0.05, 1.0], "present": [0.9, 0.5, 0.1]})
    ).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1%", "5.0%", "all"] and np.allclose(
        ax.lines[0].get_ydata(), [0.9, 0.5, 0.1]
    )


def test_null_and_stability():
    fig = trust.null_scores(
        {"a": np.arange(9.0), "b": np.ones(3)}, {"a": np.zeros((5, 1)), "b": np.zeros((5, 3))}
    )
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    table = pd.DataFrame({"layer": ["a", "a", "b"], "bootstrap": [0.2, 0.4, 0.9], "halves": [0.0, 1.0, 1.0]})
    (ax,) = trust.signals_by_layer(table, ["bootstrap", "halves"]).axes
    assert labels(ax) == ["a", "b"]
    assert sorted(
        round(float(x), 6)
        for line in ax.lines
        for x in line.get_xdata()
        if len(line.get_xdata()) == 2 and line.get_linestyle() == "None"
    ) == [0.3, 0.5, 0.9, 1]


def test_auroc_reliability_coverage_and_meanings():
    table = pd.DataFrame(
        {
            "group": ["in", "in", "out"],
            "trust": ["p", "q", "p"],
            "auroc": [0.7, 0.5, 0.9],
            "low": [0.6, 0.4, 0.8],
            "high": [0.8, 0.6, 1.0],
        }
    )
    (ax,) = trust.auroc_forest(table).axes
    assert labels(ax) == ["p", "q"] and np.allclose(ax.containers[0].lines[0].get_xdata(), [0.7, 0.5])
    bins = pd.DataFrame(
        {
            "bin": [0, 1],
            "units": [4, 4],
            "trust": [0.2, 0.8],
            "right": [0.25, 1.0],
            "low": [0.1, 0.6],
            "high": [0.6, 1.0 - 1e-17],
        }
    )
    fig = trust.reliability_curve({"s": {"g": bins}, "t": {"g": bins}})
    assert [ax.get_title() for ax in fig.axes] == ["s", "t"] and np.allclose(
        fig.axes[1].containers[0].lines[0].get_ydata(), [0.25, 1]
    )
    kept = pd.DataFrame({"coverage": [0.5, 1.0], "right": [1.0, 0.6]})
    fig = trust.coverage_curve({"g": {"s": kept, "t": kept}, "h": {"s": kept}})
    assert len(fig.axes[0].lines) == 2 and np.allclose(fig.axes[1].lines[0].get_ydata(), [1, 0.6])
    table = pd.DataFrame(
        {
            "layer": ["a"] * 4,
            "kind": ["single", "clusters"] * 2,
            "correlation": [0.1, 0.3, 0.3, 0.5],
            "shuffled": [0.0] * 4,
        }
    )
    (ax,) = trust.meanings(table).axes
    assert labels(ax) == ["a"]
