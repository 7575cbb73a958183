"""neuronym.figures.published: what is in the table is in the figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from neuronym.figures import published


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_agreement_shows_shares_and_chance():
    table = pd.DataFrame(
        {
            "pair": ["a ~ b", "a ~ b", "a ~ c"],
            "layer": ["layer1", "fc", "fc"],
            "agreement": [0.5, 0.4, 0.2],
            "chance": [0.1, 0.05, 0.02],
        }
    )
    (ax,) = published.agreement_by_layer(table).axes
    heights = {round(float(y), 6) for line in ax.lines for y in line.get_ydata() if y == y}
    assert heights == {0.5, 0.4, 0.2, 0.1, 0.05, 0.02} and [t.get_text() for t in ax.get_xticklabels()] == [
        "layer1",
        "fc",
    ]


def test_ratings_are_means_over_neurons_of_both_raters():
    ratings = pd.DataFrame(
        [
            ("layer1", u, s, r, 1 + u + (r == "E2"))
            for u in range(3)
            for s in ("x", "y")
            for r in ("E1", "E2")
        ],
        columns=["layer", "unit", "scoring", "rater", "rating"],
    )
    (ax,) = published.ratings_by_layer(ratings).axes
    assert any(abs(float(y) - 2.5) < 1e-9 for line in ax.lines for y in line.get_ydata())


def test_iou_has_a_panel_for_each_network():
    table = pd.DataFrame(
        {"model": ["m", "m", "n"], "layer": ["layer1", "fc", "fc"], "score": [0.01, 0.2, 0.3]}
    )
    axes = published.iou_by_layer(table).axes
    assert [ax.get_title() for ax in axes] == ["m", "n"] and [
        t.get_text() for t in axes[0].get_xticklabels()
    ] == ["layer1", "fc"]


def test_texts_show_values_intervals_and_controls():
    table = pd.DataFrame(
        {
            "panel": ["p", "p", "q"],
            "whose": ["a", "b", "a"],
            "value": [0.5, 0.4, 0.2],
            "low": [0.45, 0.3, 0.1],
            "high": [0.55, 0.5, 0.3],
            "shuffled": [0.11, 0.12, 0.13],
            "constant": [0.21, float("nan"), 0.23],
        }
    )
    axes = published.texts_by_method(table).axes
    assert [ax.get_title() for ax in axes] == ["p", "q"] and [
        t.get_text() for t in axes[0].get_xticklabels()
    ] == ["a", "b"]
    assert [round(bar.get_height(), 6) for bar in axes[0].patches] == [0.5, 0.4]
    assert [line.get_ydata().tolist()[0] for line in axes[0].lines[-2:]] == [0.11, 0.21]
    assert [segment[:, 1].tolist() for segment in axes[0].collections[0].get_segments()] == [
        [0.45, 0.55],
        [0.3, 0.5],
    ]


def test_common_labels_are_shares_of_each_method():
    table = pd.DataFrame(
        {
            "method": ["a"] * 4 + ["b"] * 2 + ["c"],
            "rank": 1,
            "label": ["dog", "sea", "dog", "dog", "x" * 40, "y", "z"],
        }
    )
    axes = published.common_labels(table, most=1).axes
    assert axes[0].get_title() == "a: 2 labels of 4 neurons" and [
        bar.get_width() for bar in axes[0].patches
    ] == [0.75]
    assert axes[1].get_yticklabels()[0].get_text() == "x" * 28 + "..." and len(axes) == 4
