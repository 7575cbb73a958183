"""Figures of Describe-and-Dissect: how a unit came to its name, what each step is for, what pruning by name
costs.

Strip           one unit: pictures with crops, captions, candidates with scores, label
strip_of        the strip of a unit from its examples
strips_of       strips of the described units of a layer
strips          units below each other
ablation        how good names are by variant
pruning_effect  loss on the classes named and on the others
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from PIL import Image

from neuronym.common.text import counted, names_it
from neuronym.common.types import Box
from neuronym.datasets.probe import Probe
from neuronym.describe.pipeline import best_labels, CaptionedExamples, Described
from neuronym.figures.style import as_written, DPI, legend_beside, legible, MARKERS, palette

TILE, GAP, LIST = (
    0.92,
    0.07,
    2.45,
)  # inches: side of a picture, space between, width of the list of candidates
TITLE, LINE, LINES = (
    0.27,
    0.088,
    5,
)  # height of a title and of a line of a caption; lines of the longest caption
ROW = 0.122  # height of a candidate
SMALL = 5.5  # points
LEAST = 1e-3  # loss that a figure shows at least


@dataclass(frozen=True)
class Strip:
    """What is drawn of a unit; each picture with the boxes on it (in pixels of a size x size copy) and a
    caption.
    """

    title: str  # "layer3 unit 7"
    label: str
    pictures: Sequence[Image.Image]
    boxes: Sequence[Sequence[Box]]
    captions: Sequence[str]
    candidates: Sequence[tuple[str, float]]
    truth: str | None = None
    size: int = 375


def strip_of(
    title: str,
    label: str,
    probe: Probe,
    examples: Sequence,
    captions: Sequence[str],
    candidates: Sequence[tuple[str, float]],
    truth: str | None = None,
    size: int = 375,
) -> Strip:
    """The strip of a unit from its `examples.Example`s (image, box), strongest first, each with its
    caption.
    """
    return Strip(
        title,
        label,
        [probe.image(e.image) for e in examples],
        [[e.box] if e.box else [] for e in examples],
        captions,
        candidates,
        truth,
        size,
    )


def strips_of(
    described: Described,
    captioned: CaptionedExamples,
    probe: Probe,
    most: int = 5,
    names: Sequence[str] | None = None,
) -> list[Strip]:
    """Strips of at most so many described units of a layer, at even steps; `names` are the true ones of
    all units.
    """
    labelled = list(zip(described.candidates, best_labels(described)))
    found = []
    for unit, label in labelled[:: max(1, len(labelled) // most)][:most]:
        candidates = list(zip(described.candidates[unit], described.scores[unit].tolist()))
        examples = captioned.examples[unit]
        strip = strip_of(
            f"{described.layer}, unit {unit}",
            label,
            probe,
            examples,
            [""] * len(examples) if captioned.together else captioned.captions[unit],
            candidates,
            names[unit] if names else None,
        )
        found.append(strip)
    return found


@as_written
def strips(units: Sequence[Strip], pictures: int = 5, candidates: int = 8) -> Figure:
    """A row a unit: label and title; the first pictures, each with its box and, below, its caption;
    candidates.

    The label's candidate is highlighted; of candidates without a score (nan, or below all: no picture could
    be drawn of them) only the text is shown. Texts are drawn as they are, shortened where there is no room.
    Errors: ValueError without units, and for a strip whose pictures, boxes and captions are not equally many.
    """
    if not units:
        raise ValueError("strips need a unit or more, got none")
    for unit in units:
        if not len(unit.pictures) == len(unit.boxes) == len(unit.captions):
            raise ValueError(
                f"a strip has boxes and a caption for each picture, '{unit.title}' has "
                f"{len(unit.pictures)} pictures, {len(unit.boxes)} boxes, {len(unit.captions)} captions; "
                "caption every example that is shown"
            )
    wrapped = [
        [_wrapped(caption, TILE + 0.2 * GAP, LINES) for caption in unit.captions[:pictures]] for unit in units
    ]
    tiles = [
        max((TILE * p.height / max(p.size) for p in unit.pictures[:pictures]), default=0) for unit in units
    ]
    heights = [
        TITLE
        + max(
            tile + LINE * (0.6 + max(map(len, some), default=0)),
            ROW * (min(len(unit.candidates), candidates) + 0.5),
        )
        + GAP
        for unit, tile, some in zip(units, tiles, wrapped)
    ]
    width, height = pictures * (TILE + GAP) + LIST, sum(heights)
    fig = plt.figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))  # in inches, from the top
    ax.axis("off")
    top = 0.0
    for unit, lines, tile, tall in zip(units, wrapped, tiles, heights):
        _row(ax, unit, lines, top, tile, pictures, candidates)
        top += tall
    return fig


@as_written
def ablation(table: pd.DataFrame, xlabel: str = "labels that name the true concept") -> Figure:
    """Columns variant, mean, low, high, and optionally part (crops, summary, ...) and group.

    A row a variant, a colour a group, in the order of the table; a line between parts, and a dashed one
    through the first variant of each group.
    """
    table = table.assign(**{name: "" for name in ("part", "group") if name not in table})
    rows, groups = (
        table[["part", "variant"]].drop_duplicates().to_numpy().tolist(),
        list(dict.fromkeys(table["group"])),
    )
    fig, ax = plt.subplots(figsize=(4.8, 0.24 * len(rows) + 0.8))
    for g, (group, colour) in enumerate(zip(groups, palette(len(groups)))):
        some = table[table["group"] == group].reset_index(drop=True)
        y = [
            rows.index([part, variant]) + (g - (len(groups) - 1) / 2) * 0.5 / len(groups)
            for part, variant in zip(some["part"], some["variant"])
        ]
        _points(ax, some["mean"], y, some["low"], some["high"], (colour, MARKERS[g]), legible(str(group)))
        ax.axvline(some["mean"][0], color=colour, lw=0.7, ls="--", alpha=0.6, zorder=0)
    parts = [part for part, _ in rows]
    for edge in range(1, len(rows)):
        if parts[edge] != parts[edge - 1]:
            ax.axhline(edge - 0.5, color=".85", lw=0.8)
    for part in dict.fromkeys(filter(None, parts)):
        ax.annotate(
            part,
            (1.02, parts.index(part) + (parts.count(part) - 1) / 2),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            va="center",
            color=".35",
            annotation_clip=False,
        )
    ax.set(
        yticks=range(len(rows)),
        yticklabels=[variant for _, variant in rows],
        ylim=(len(rows) - 0.5, -0.5),
        xlabel=xlabel,
    )
    if len(groups) > 1:
        ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(groups), frameon=False)
    fig.tight_layout()
    return fig


@as_written
def pruning_effect(table: pd.DataFrame) -> Figure:
    """A panel a word (column `word`, if there is one), rows named and random units, a colour for classes that
    match and for others: loss with 95 % interval; `table` is that of `pruning.effect_table`, of one metric.
    """
    metrics = list(dict.fromkeys(table["metric"]))
    if len(metrics) != 1:
        raise ValueError(
            f"a figure of pruning shows one metric, got {', '.join(metrics) or 'none'}; choose one"
        )
    table = table if "word" in table else table.assign(word="")
    words, conditions = list(dict.fromkeys(table["word"])), ["named", "random"]
    fig, axes = plt.subplots(
        1, len(words), figsize=(1.75 * len(words) + 1.9, 1.75), sharey=True, squeeze=False
    )
    for ax, word in zip(axes[0], words):
        some = table[(table["word"] == word) & table["condition"].isin(conditions)]
        for shift, on, name, mark in zip(
            (-0.13, 0.13),
            ("matching", "others"),
            ("classes named so", "other classes"),
            zip(palette(), MARKERS),
        ):
            part = some[some["on"] == on].set_index("condition").loc[conditions]
            _points(ax, part["loss"], np.arange(2) + shift, part["low"], part["high"], mark, name)
        count = int(some["units"].iloc[0])
        ax.axvline(0, color=".4", lw=0.8, ls="--", zorder=0)
        left, right = ax.get_xlim()
        ax.set_xlim(min(left, -LEAST), max(right, LEAST))
        ax.set(
            yticks=range(2),
            yticklabels=["units named so", "random units"],
            ylim=(1.5, -0.5),
            title=f"{word}\n{counted(count, 'unit')}" if word else counted(count, "unit"),
        )
        measure = "average precision" if metrics[0] == "AP" else f"{metrics[0]} accuracy"
        ax.set_xlabel(f"loss of\n{measure}", fontsize=8)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(2))
    legend_beside(axes[0][-1], at=1.02)
    fig.tight_layout()
    return fig


def _points(
    ax: Axes, x: pd.Series, y: Sequence[float], low: pd.Series, high: pd.Series, mark: tuple, label: str
) -> None:
    """Points with intervals; `mark` is a colour and a marker."""
    ax.errorbar(
        x,
        y,
        xerr=[(x - low).clip(lower=0), (high - x).clip(lower=0)],
        fmt=mark[1],
        ms=3.2,
        lw=1,
        color=mark[0],
        label=label,
    )


def _row(
    ax: Axes,
    unit: Strip,
    captions: Sequence[Sequence[str]],
    top: float,
    tile: float,
    pictures: int,
    candidates: int,
) -> None:
    """One strip from `top` downwards, in inches; its pictures stand on one line, the highest is `tile`
    high.
    """
    right = _width(unit.title, 7) + 0.05
    room = pictures * (TILE + GAP) + LIST - right - 0.1
    hit = names_it(unit.label, unit.truth) if unit.truth else None
    truth = f"{'✓' if hit else '✗'} true name: {unit.truth}" if unit.truth else ""
    label = _cut(unit.label, room - 0.1 - (_width(truth, 6.5) if truth else 0), 9, "bold")
    _text(ax, 0, top + 0.13, label, 9, weight="bold")
    _text(ax, pictures * (TILE + GAP) + LIST - 0.02, top + 0.13, unit.title, 7, ha="right", color=".4")
    if truth:
        at, colour = _width(label, 9, "bold") + 0.1, palette()[2 if hit else 3]
        _text(ax, at, top + 0.13, truth, 6.5, color=colour)
    for i, (picture, boxes, lines) in enumerate(zip(unit.pictures[:pictures], unit.boxes, captions)):
        _picture(ax, picture, boxes, unit.size, i * (TILE + GAP), top + TITLE + tile)
        for n, line in enumerate(lines):
            _text(ax, i * (TILE + GAP), top + TITLE + tile + LINE * (n + 0.8), line, SMALL)
    left = pictures * (TILE + GAP) + 0.1
    negative = all(score <= 0 for _, score in unit.candidates)
    told = (
        "candidates, by score (nearer to 0 is better)"
        if negative
        else "candidates, by score (more is better)"
    )
    _text(ax, left, top + TITLE - 0.01, told, 5.5, color=".45")
    _candidates(ax, unit, left, top + TITLE + 0.06, candidates)


def _picture(
    ax: Axes, picture: Image.Image, boxes: Sequence[Box], size: int, left: float, bottom: float
) -> None:
    """A picture in its own shape, the longer side a tile; boxes outlined in white and a colour, to be seen on
    any.
    """
    scale = TILE / max(picture.size)
    w, h = picture.width * scale, picture.height * scale
    left, top = left + (TILE - w) / 2, bottom - h
    picture = picture.convert("RGB")
    if picture.width >= 100:  # smaller ones are drawn to have their pixels seen
        picture = picture.resize((max(1, round(w * DPI)), max(1, round(h * DPI))), Image.Resampling.LANCZOS)
    ax.imshow(
        np.asarray(picture), extent=(left, left + w, bottom, top), interpolation="nearest", aspect="auto"
    )
    for box, colour in zip(boxes, np.resize(["#e69f00", "#cc79a7", "#56b4e9", "#009e73"], len(boxes))):
        corner = (left + box[0] / size * w, top + box[1] / size * h)
        for lw, edge in ((2.2, "white"), (1.1, colour)):
            ax.add_patch(
                Rectangle(
                    corner,
                    (box[2] - box[0]) / size * w,
                    (box[3] - box[1]) / size * h,
                    fill=False,
                    lw=lw,
                    edgecolor=edge,
                )
            )


def _candidates(ax: Axes, unit: Strip, left: float, top: float, most: int) -> None:
    """Candidates from the best to the worst: text, bar and number; the label's is always among them."""

    def key(score: float) -> float:
        return score if math.isfinite(score) else -math.inf

    ranked = sorted(unit.candidates, key=lambda pair: -key(pair[1]))
    chosen = next((i for i, (text, _) in enumerate(ranked) if text == unit.label), None)
    shown = ranked[:most] if chosen is None or chosen < most else [*ranked[: most - 1], ranked[chosen]]
    scores = [score for _, score in shown if math.isfinite(score)]
    low, high = min([0, *scores]), max([0, *scores])
    words, bar = 1.4, 0.5
    blue = palette()[0]
    for i, (text, score) in enumerate(shown):
        y, mine = top + ROW * (i + 0.5), text == unit.label
        weight = "bold" if mine else "normal"
        _text(
            ax,
            left,
            y,
            _cut(text, words - 0.06, 6.3, weight),
            6.3,
            weight=weight,
            color="black" if mine else ".25",
        )
        if math.isfinite(score):
            start, end = sorted(left + words + bar * (v - low) / ((high - low) or 1) for v in (0, score))
            ax.add_patch(
                Rectangle((start, y - 0.3 * ROW), end - start, 0.6 * ROW, color=blue if mine else ".75", lw=0)
            )
        number = f"{score:.3g}" if abs(score) < 100 else f"{score:,.0f}" if math.isfinite(score) else "–"
        _text(ax, left + words + bar + 0.05, y, number, 6, color="black" if mine else ".4")
    if shown and low < 0:
        zero = left + words + bar * -low / (high - low)
        ax.plot([zero, zero], [top, top + ROW * len(shown)], color=".4", lw=0.5)


def _text(ax: Axes, x: float, y: float, text: str, size: float, **more) -> None:
    """Text that stands for itself: a dollar sign in it begins no formula."""
    ax.text(
        x,
        y,
        text,
        fontsize=size,
        parse_math=False,
        **{"va": "center", "color": "black", "clip_on": False, **more},
    )


def _wrapped(text: str, width: float, most: int, size: float = SMALL) -> list[str]:
    """Lines of at most `width` inches, `most` of them, the last ended by an ellipsis when there is more."""
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < most:
        fits = _fits(rest, width, size)
        cut = fits if fits == len(rest) else rest.rfind(" ", 0, fits + 1)
        cut = cut if cut > 0 else max(1, fits)  # within a word that is longer than a line
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*lines[:-1], _cut(lines[-1] + " " + rest, width, size)] if rest else lines


def _cut(text: str, width: float, size: float, weight: str = "normal") -> str:
    """The text on one line, its end left out where it is wider than `width` inches."""
    text = " ".join(text.split())
    if _fits(text, width, size, weight) == len(text):
        return text
    return re.sub(r"[\s,;:]+$", "", text[: _fits(text, width, size, weight, "…")]) + "…"


def _fits(text: str, width: float, size: float, weight: str = "normal", end: str = "") -> int:
    """How many of the text's first letters go into `width` inches, with `end` behind them."""
    return max(
        0, bisect_right(range(len(text) + 1), width, key=lambda n: _width(text[:n] + end, size, weight)) - 1
    )


def _width(text: str, size: float, weight: str = "normal") -> float:
    """Width in inches of a text; drawn in pixels it can be a little wider than its outline."""
    font = FontProperties(family=plt.rcParams["font.family"], size=size, weight=weight)
    return 1.03 * text_to_path.get_text_width_height_descent(text, font, False)[0] / 72
