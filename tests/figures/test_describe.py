"""Figures of Describe-and-Dissect: what they show is what they are given, and no text lies on another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from neuronym.datasets.probe import Probe
from neuronym.figures import describe
from neuronym.figures.describe import ablation, pruning_effect, Strip, strip_of, strips

LONG = (
    "a very long caption of a large building with many windows and a clock, seen from far below on a rainy "
    "day " * 3
)
CAPTIONS = ["a red star", LONG, "supercalifragilistic" * 5, "$x_2$ costs \\$5 & <b>", "two\nlines\tof text"]
CANDIDATES = [
    ("red star", 0.5),
    ("sea", 0.125),
    ("a phrase that is far too long for the list of candidates", 0.25),
    ("?", float("nan")),
    ("none", float("-inf")),
]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def unit(**changed) -> Strip:
    sizes = [(64, 64), (200, 100), (100, 200), (300, 300), (64, 32)]
    boxes = [[(0, 75, 150, 300)], [], [(0, 0, 75, 75), (300, 300, 375, 375)], [], []]
    made = Strip(
        "layer3 unit 7",
        "red star",
        [Image.new("RGB", size, "grey") for size in sizes],
        boxes,
        CAPTIONS,
        CANDIDATES,
    )
    return replace(made, **changed)


def strip(unit, **options):
    return strips([unit], **options)


def texts(fig) -> list[str]:
    return [text.get_text() for text in fig.axes[0].texts]


def overlaps(fig) -> list[tuple[str, str]]:
    """Pairs of texts whose ink meets, and texts that leave the figure."""
    fig.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in fig.axes[0].texts]
    met = [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, other in boxes[:i]
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 3
    ]
    width, height = fig.bbox.size + 1
    return met + [(a, "edge") for a, b in boxes if b.x0 < -1 or b.x1 > width or b.y0 < -1 or b.y1 > height]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"label": LONG, "truth": "star"},
        {"captions": [LONG] * 5, "candidates": []},
        {"candidates": [(LONG, i / 7) for i in range(20)], "title": "a.long.layer.name unit 1234"},
    ],
)
def test_no_text_lies_on_another_or_leaves_the_figure(changed):
    assert overlaps(strips([unit(**changed), unit(), unit(captions=[""] * 5)])) == []


def test_texts_that_would_meet_are_found():
    fig = strip(unit())
    fig.axes[0].text(0.1, 0.14, "on the label", fontsize=9, va="center")
    assert overlaps(fig) == [("on the label", "red star")]


def test_texts_are_shown_as_they_are():
    fig = strip(unit())
    found = texts(fig)
    assert not any(text.get_parse_math() for text in fig.axes[0].texts)  # a dollar sign begins no formula
    assert (
        found[:2] == ["red star", "layer3 unit 7"] and "a red star" in found and "two lines of text" in found
    )
    assert " ".join(found).replace("\\", "").find("$x_2$ costs $5 & <b>") > 0
    assert "supercalifragilistic" * 5 in "".join(found)
    assert sum(t.endswith("…") for t in found) == 2  # of the long caption and of the long candidate


def test_lines_hold_the_whole_text_where_there_is_room():
    text = "one two three four five six seven eight nine ten eleven twelve"
    lines = describe._wrapped(text, 0.9, 9)
    assert " ".join(lines) == text and len(lines) > 2
    assert all(describe._width(line, describe.SMALL) <= 0.9 for line in lines)
    fewer = describe._wrapped(text, 0.9, 2)
    assert len(fewer) == 2 and fewer[0] == lines[0] and fewer[1].endswith("…")
    assert describe._width(fewer[1], describe.SMALL) <= 0.9
    assert "".join(describe._wrapped("x" * 90, 0.9, 9)) == "x" * 90
    assert describe._wrapped("", 1, 3) == [] and describe._wrapped(" a  b ", 1, 3) == ["a b"]


def test_boxes_lie_on_their_pictures():
    fig = strip(unit())
    ax = fig.axes[0]
    extents = [image.get_extent() for image in ax.images]  # left, right, bottom, top
    assert [round((e[1] - e[0]) / (e[2] - e[3]), 3) for e in extents] == [1, 2, 0.5, 1, 2]
    assert len({round(e[2], 6) for e in extents}) == 1  # they stand on one line
    outlines = [
        p for p in ax.patches if isinstance(p, Rectangle) and not p.get_fill() and p.get_linewidth() < 2
    ]
    # picture; left, top, width and height in parts of it
    expected = [(0, 0.0, 0.2, 0.4, 0.6), (2, 0, 0, 0.2, 0.2), (2, 0.8, 0.8, 0.2, 0.2)]
    assert len(outlines) == 3
    for patch, (i, x, y, w, h) in zip(outlines, expected):
        left, right, bottom, top = extents[i]
        wide, tall = right - left, bottom - top
        assert np.allclose(
            [patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()],
            [left + x * wide, top + y * tall, w * wide, h * tall],
        )
    assert outlines[1].get_edgecolor() != outlines[2].get_edgecolor()


def test_candidates_stand_by_score_and_the_chosen_one_is_marked():
    fig = strip(unit(label="sea"))
    ax = fig.axes[0]
    bars = [p for p in ax.patches if p.get_fill()]
    assert np.allclose([p.get_width() / bars[0].get_width() for p in bars], [1, 0.5, 0.25])
    assert [p.get_facecolor()[:3] == bars[2].get_facecolor()[:3] for p in bars] == [False, False, True]
    found = texts(fig)
    assert [t for t in found if t in ("0.5", "0.25", "0.125", "–")] == ["0.5", "0.25", "0.125", "–", "–"]
    assert {t.get_text() for t in ax.texts if t.get_weight() == "bold"} == {"sea"}
    below = strip(unit(candidates=[("up", 0.4), ("down", -0.4)], label="down")).axes[0]
    up, down = [p for p in below.patches if p.get_fill()]
    assert up.get_x() == pytest.approx(down.get_x() + down.get_width())
    assert up.get_width() == pytest.approx(down.get_width())


def test_the_label_is_among_the_candidates_shown():
    many = [(f"word{i}", 1 - i / 20) for i in range(12)]
    found = [
        t for t in texts(strip(unit(candidates=many, label="word10"), candidates=4)) if t.startswith("word")
    ]
    assert found == ["word10", "word0", "word1", "word2", "word10"]
    found = [
        t for t in texts(strip(unit(candidates=many, label="word3"), candidates=4)) if t.startswith("word")
    ]
    assert found == ["word3", "word0", "word1", "word2", "word3"]


def test_fewer_pictures_and_the_truth():
    fig = strip(unit(truth="star"), pictures=2)
    assert len(fig.axes[0].images) == 2 and "✓ true name: star" in texts(fig)
    colour = {}
    for label in ("Red star", "red", "starfish", "two stars"):
        shown = {
            t.get_text(): t.get_color()
            for t in strip(unit(truth="star", label=label), pictures=1).axes[0].texts
        }
        (truth,) = (text for text in shown if "true name: star" in text)
        colour[label] = truth[0], shown[truth]  # a mark, and a colour
    assert colour["two stars"] == colour["Red star"] and colour["red"] == colour["starfish"]
    assert colour["two stars"][0] == "✓" and colour["red"][0] == "✗"
    assert colour["two stars"][1] != colour["red"][1]
    assert strip(unit(truth="a (b"), pictures=1) and strip(
        unit(pictures=[], boxes=[], captions=[], candidates=[])
    )


def test_a_strip_comes_from_examples():
    @dataclass
    class Example:
        image: int
        box: tuple | None

    images = Probe(
        "p", ["a", "b"], None, "f", [], [np.full((4, 4, 3), value, np.uint8) for value in (10, 200)]
    )
    made = strip_of(
        "u", "l", images, [Example(1, (0, 0, 9, 9)), Example(0, None)], ["x", "y"], [("l", 1.0)], size=9
    )
    assert [np.asarray(p)[0, 0, 0] for p in made.pictures] == [200, 10]
    assert made.boxes == [[(0, 0, 9, 9)], []] and made.size == 9


def test_strips_say_what_is_wrong():
    with pytest.raises(ValueError, match="got none"):
        strips([])
    with pytest.raises(ValueError, match="'layer3 unit 7' has 5 pictures, 5 boxes, 1 captions"):
        strip(unit(captions=["a"]))


def test_ablation_shows_every_variant_once():
    variants = (("crops", "with", 0.6), ("crops", "without", 0.5), ("summary", "none", 0.4))
    table = pd.DataFrame(
        [
            (part, variant, group, m + 0.1 * (group == "inner"), m - 0.2, m + 0.3)
            for part, variant, m in variants
            for group in ("final", "inner")
        ],
        columns=["part", "variant", "group", "mean", "low", "high"],
    )
    (ax,) = ablation(table).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["with", "without", "none"]
    for container, shift in zip(ax.containers, (0, 0.1)):
        assert np.allclose(container.lines[0].get_xdata(), np.array([0.6, 0.5, 0.4]) + shift)
        ends = np.array([segment[:, 0] for segment in container.lines[2][0].get_segments()])
        assert np.allclose(ends, [[0.4, 0.9], [0.3, 0.8], [0.2, 0.7]])
    assert [t.get_text() for t in ax.texts] == ["crops", "summary"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["final", "inner"]
    (plain,) = ablation(table[table["group"] == "final"][["variant", "mean", "low", "high"]]).axes
    assert plain.get_legend() is None and not plain.texts
    assert np.allclose(plain.containers[0].lines[0].get_xdata(), [0.6, 0.5, 0.4])


def effects(word: str, loss: float) -> pd.DataFrame:
    rows = [
        (
            "AP",
            condition,
            on,
            3,
            5,
            0.5,
            loss * (condition == "named") + 0.1 * (on == "others"),
            -0.1,
            0.9,
            0.2,
        )
        for condition in ("none", "named", "random")
        for on in ("matching", "others", "difference")
    ]
    return pd.DataFrame(rows, columns="metric condition on draws units score loss low high p".split()).assign(
        word=word
    )


def test_pruning_shows_named_and_random_units():
    fig = pruning_effect(pd.concat([effects("red", 0.4), effects("sea", 0.2)]))
    assert [ax.get_title() for ax in fig.axes] == ["red\n5 units", "sea\n5 units"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["units named so", "random units"]
    for ax, loss in zip(fig.axes, (0.4, 0.2)):
        for container, more in zip(ax.containers, (0, 0.1)):
            assert np.allclose(container.lines[0].get_xdata(), [loss + more, more])
        assert ax.get_xlabel() == "loss of\naverage precision"
    assert pruning_effect(effects("red", 0.4).drop(columns="word")).axes[0].get_title() == "5 units"
    one = effects("red", 0.4).assign(units=1, metric="top-1")
    assert pruning_effect(one).axes[0].get_title() == "red\n1 unit"
    assert pruning_effect(one).axes[0].get_xlabel() == "loss of\ntop-1 accuracy"
    with pytest.raises(ValueError, match="one metric, got AP, top-1"):
        pruning_effect(pd.concat([effects("red", 0.4), effects("red", 0.4).assign(metric="top-1")]))
