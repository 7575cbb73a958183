"""utils.published_figures: what is in the table is in the figure."""
from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from utils import published_figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_agreement_shows_shares_and_chance():
    table = pd.DataFrame({"pair": ["a ~ b", "a ~ b", "a ~ c"], "layer": ["layer1", "fc", "fc"], "agreement": [.5, .4, .2],
                          "chance": [.1, .05, .02]})
    (ax,) = published_figures.agreement_by_layer(table).axes
    heights = {round(float(y), 6) for line in ax.lines for y in line.get_ydata() if y == y}
    assert heights == {.5, .4, .2, .1, .05, .02} and [t.get_text() for t in ax.get_xticklabels()] == ["layer1", "fc"]


def test_ratings_are_means_over_neurons_of_both_raters():
    ratings = pd.DataFrame([("layer1", u, s, r, 1 + u + (r == "E2")) for u in range(3) for s in ("x", "y") for r in ("E1", "E2")],
                           columns=["layer", "unit", "scoring", "rater", "rating"])
    (ax,) = published_figures.ratings_by_layer(ratings).axes
    assert any(abs(float(y) - 2.5) < 1e-9 for line in ax.lines for y in line.get_ydata())


def test_iou_has_a_panel_for_each_network():
    table = pd.DataFrame({"model": ["m", "m", "n"], "layer": ["layer1", "fc", "fc"], "score": [.01, .2, .3]})
    axes = published_figures.iou_by_layer(table).axes
    assert [ax.get_title() for ax in axes] == ["m", "n"] and [t.get_text() for t in axes[0].get_xticklabels()] == ["layer1", "fc"]
