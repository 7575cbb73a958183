"""neuronym.figures.second_order: every figure is drawn from a small table, says what it shows, and leaves
none open.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image

from neuronym.datasets.probe import load_probe
from neuronym.figures import second_order
from neuronym.models.clips import load_clip
from neuronym.second_order.lens import clip_target
from neuronym.similarity.labels import COLUMNS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(fig) -> str:
    fig.canvas.draw()
    return " ".join(t.get_text() for t in fig.findobj(plt.Text))


def test_explained_has_a_row_for_each_layer():
    fig = second_order.explained_by_layer(
        pd.DataFrame({"layer": [3, 3, 8, 8], "explained": [0.2, 0.3, 0.4, 0.9]})
    )
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["3", "8"] and ax.get_xlim() == (0, 1)


def test_ablations_show_every_number():
    table = pd.DataFrame(
        [
            ("0", "all", 0.5),
            ("0", "significant", 0.6),
            ("together", "all", 0.2),
            ("together", "significant", 0.4),
        ],
        columns=["layer", "ablation", "accuracy"],
    )
    fig = second_order.ablations_by_layer(table, base=0.7)
    shown = sorted(round(float(y), 6) for line in fig.axes[0].lines for y in line.get_ydata())
    assert {0.2, 0.4, 0.5, 0.6, 0.7} <= set(shown) and "nothing" in texts(fig) and "together" in texts(fig)


def test_accuracy_by_words_has_both_limits():
    table = pd.DataFrame([("a", 1, 0.3), ("a", 4, 0.5), ("b", 1, 0.2)], columns=["pool", "words", "accuracy"])
    fig = second_order.accuracy_by_words(table, base=0.6, removed=0.1)
    assert {"1", "4", " all effects", " no effects", "a", "b"} <= {
        t.get_text() for t in fig.findobj(plt.Text)
    }


def test_neurons_have_two_rows_each():
    clip, probe = load_clip("microworld:vit"), load_probe("microworld:9")
    target, layers = clip_target(clip)
    along = torch.randn(9, 512, generator=torch.Generator().manual_seed(0))
    table = pd.DataFrame([("m", layers[4].name, 7, "second_order", 1, "red ring", 0.5)], columns=COLUMNS)
    (fig,) = second_order.neuron_cards(target, probe, layers[4], along, table, [7], images=3).values()
    said = texts(fig)
    assert "red ring" in said and "neuron 7, other way" in said and said.count("neuron 7") == 2


def test_what_a_neuron_pushes_the_other_way_stands_as_it_is_with_values_below_zero(monkeypatch):
    clip, probe = load_clip("microworld:vit"), load_probe("microworld:9")
    target, layers = clip_target(clip)
    along = torch.randn(9, 512, generator=torch.Generator().manual_seed(0))
    table = pd.DataFrame([("m", layers[4].name, 7, "second_order", 1, "red ring", 0.5)], columns=COLUMNS)
    drawn = []
    monkeypatch.setattr(second_order.cards, "draw", lambda rows, *_: drawn.append(rows))
    monkeypatch.setattr(second_order.cards, "PAGE", 2)
    figures = second_order.neuron_cards(target, probe, layers[4], along, table, [7, 9], images=3)
    assert list(figures) == ["neurons", "neurons_2"] and [len(rows) for rows in drawn] == [2, 2]
    with_it, against = drawn[0]
    assert with_it["values"] == sorted(along[:, 7].tolist(), reverse=True)[:3] and with_it["maps"] is not None
    assert against["values"] == sorted(along[:, 7].tolist())[:3] and against["maps"] is None


def test_words_read_from_an_image_are_marked_true_or_not():
    probe, reading = load_probe("microworld:3"), torch.tensor([[0.1, 0.3, 0.2]] * 3)
    said = texts(second_order.words_read(probe, reading, ["a", "b", "c"], reading > 0.15))
    assert said.count("✓ b\n✓ c\n✗ a") == 3
    assert "b\nc\na" in texts(second_order.words_read(probe, reading, ["a", "b", "c"]))


def test_masks_are_drawn_in_four_rows():
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    scores = torch.rand(2, 8, 8)
    fig = second_order.mask_strip(pictures, scores, scores > 0.5, scores > 0.6, ["ring", "star"])
    said = texts(fig)
    assert len(fig.axes) == 8 and {"image", "ring", "star"} <= set(said.split())
    assert all(row in said for row in ("what neurons say", "mask made of it", "true mask"))
    iou = float((scores[1] > 0.6).sum() / (scores[1] > 0.5).sum())
    assert f"IoU {iou:.2f}" in said


def test_rates_and_correlations_and_curves():
    rows = pd.DataFrame(
        [("a < b", s, r, s == "x") for s in "xy" for r in range(4)],
        columns=["pair", "source", "repeat", "fooled"],
    )
    said = texts(second_order.rates(rows, "fooled")).split()
    assert said.count("100") >= 2 and said.count("0") >= 2 and "mean" in said
    rows = pd.DataFrame(
        {"method": ["m", "n"] * 3, "predicted": ["effect"] * 6, "correlation": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    )
    assert "m" in texts(second_order.correlations(rows)).split()
    table = pd.DataFrame({"value": [1, 2], "metric": ["u", "u"], "score": [0.1, 0.2]})
    fig = second_order.curves({"first": ("accuracy", table), "second": ("precision", table)})
    assert len(fig.axes) == 2 and {"first", "second", "accuracy", "precision", "u"} <= set(texts(fig).split())
