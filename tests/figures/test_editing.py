"""Figures of edits show what their tables say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from neuronym.figures.editing import CONDITIONS, effect_curves, off_curves, prune_curves, SIDES


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def effects(words) -> pd.DataFrame:
    rows = [
        {"word": word, "strength": s, "condition": kind, "metric": metric, "on": on, "units": 3}
        for word in words
        for s in (0.0, 0.5, 2.0)
        for kind in CONDITIONS
        for metric in ("accuracy", "output")
        for on in SIDES
    ]
    change = -np.arange(len(rows)) / len(rows)
    return pd.DataFrame(rows).assign(change=change, change_low=change - 0.1, change_high=change + 0.1)


@pytest.mark.parametrize("words", [["$ring$"], ["ring", "sea"]])
def test_a_line_passes_through_the_whole_network(words):
    table = effects(words)
    fig = effect_curves(table, "output", "change", "symlog")
    panels = [ax for ax in fig.axes if ax.lines]
    assert len(panels) == 2 * len(words) and panels[0].get_title() == f"{words[0]}\n3 units"
    lines = [line for line in panels[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == len(CONDITIONS)
    for line, kind in zip(lines, CONDITIONS):
        rows = table.query(f"condition == '{kind}' and metric == 'output' and on == 'matching'")
        rows = rows[rows["word"] == words[0]]
        assert line.get_xdata().tolist() == [0, 0.5, 1, 2]
        assert line.get_ydata().tolist() == [*rows["change"][:2], 0, rows["change"].iloc[2]]


def test_orders_are_lines_from_the_whole_network_on():
    orders = ["whole", "a", "a", "b", "b"]
    table = pd.DataFrame(
        {"order": orders, "share": [0, 0.5, 0.9, 0.5, 0.9], "accuracy": [1, 0.8, 0.6, 0.7, 0.5]}
    )
    table = table.assign(low=table["accuracy"] - 0.1, high=table["accuracy"] + 0.1)
    fig = prune_curves(table, {"a": "the first", "b": "the second", "c": "not there"}, 0.5)
    lines = [
        line for line in fig.axes[0].lines if line.get_label() in ("the first", "the second", "not there")
    ]
    assert [line.get_ydata().tolist() for line in lines] == [[1, 0.8, 0.6], [1, 0.7, 0.5]]


def test_sets_of_scenes_are_panels():
    rows = [
        {"order": order, "off": n, "scenes": scenes, "accuracy": 1 - n / 4}
        for order in ("a", "b")
        for n in (0, 2)
        for scenes in ("x", "y")
    ]
    table = pd.DataFrame(rows)
    table = table.assign(accuracy_low=table["accuracy"] - 0.1, accuracy_high=table["accuracy"] + 0.1)
    fig = off_curves(table, ["y", "x"], {"b": "first", "a": "second"})
    assert [ax.get_title() for ax in fig.axes] == ["y", "x"]
    assert [line.get_label() for line in fig.axes[0].lines] == ["first", "second"]
    assert fig.axes[1].lines[0].get_ydata().tolist() == [1, 0.5]
