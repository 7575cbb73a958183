"""Figures of edits: effect against strength, accuracy against units removed or turned off.

effect_curves   a column of panels a word: its classes, the others
prune_curves    accuracy against the share removed, a line an order
off_curves      share of right answers against units turned off, a panel for each set of scenes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from neuronym.common.text import counted
from neuronym.figures.style import as_written, DASHES, legend_beside, MARKERS, palette

CONDITIONS = {"named": "units named so", "alike": "of equal mean activation", "random": "random units"}
SIDES = {"matching": "its classes", "others": "all other classes"}


@as_written
def effect_curves(
    table: pd.DataFrame, metric: str = "accuracy", said: str = "change of\naccuracy", scale: str = "linear"
) -> Figure:
    """Change of a metric against strength, with 95 % intervals: `table` is that of `effects.effect_curve`
    with a column `word`; upper panels the classes of the word, lower ones all others, the same scale for a
    row.
    """
    table = table[table["metric"] == metric]
    words = list(dict.fromkeys(table["word"]))
    size = (max(1.75 * len(words) + 0.7, 3.4), 3.6)
    shared = {"sharex": True, "sharey": "row", "squeeze": False}
    fig, axes = plt.subplots(2, len(words), figsize=size, **shared)
    for column, word in enumerate(words):
        of_word = table[table["word"] == word]
        units = counted(int(of_word["units"].iloc[0]), "unit")
        axes[0][column].set_title(f"{word}\n{units}")
        for ax, (on, side) in zip(axes[:, column], SIDES.items()):
            for (kind, name), colour, dash, mark in zip(CONDITIONS.items(), palette(), DASHES, MARKERS):
                some = of_word[(of_word["condition"] == kind) & (of_word["on"] == on)]
                some = _with_whole(some.sort_values("strength"), "strength", 1.0)
                _line(ax, some, ("strength", "change"), colour, dash, mark, name)
            ax.axvline(1, color=".8", lw=0.8, zorder=0)
            ax.axhline(0, color=".8", lw=0.8, zorder=0)
            ax.set_yscale(scale)
            if scale != "linear":
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter(NullFormatter())
            ax.xaxis.set_major_locator(MaxNLocator(4))
            if column == 0:
                ax.set_ylabel(f"{side}:\n{said}", fontsize=8)
        axes[1][column].set_xlabel("strength")
    _legend(fig, axes[0][0], 3)
    return fig


@as_written
def prune_curves(table: pd.DataFrame, said: Mapping[str, str], baseline: float | None = None) -> Figure:
    """Accuracy of `orders.prune_curve` against the share of units removed, a line for each order that `said`
    names, with 95 % intervals; `baseline` is what guessing gives.
    """
    fig, ax = plt.subplots(figsize=(4.6, 3.1))
    whole = table[table["order"] == "whole"].iloc[0]
    orders = [order for order in said if (table["order"] == order).any()]
    for i, (order, colour) in enumerate(zip(orders, palette(len(orders)))):
        some = table[table["order"] == order].sort_values("share")
        some = pd.concat([whole.to_frame().T, some]).infer_objects()
        style = (colour, DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)], said[order])
        _line(ax, some, ("share", "accuracy"), *style, low="low", high="high")
    if baseline is not None:
        ax.axhline(baseline, color=".6", lw=0.8, ls=":", zorder=0)
        ax.text(0, baseline, " guessing", fontsize=7, color=".4", va="bottom")
    ax.set(xlabel="share of units removed", ylabel="accuracy")
    legend_beside(ax)
    fig.tight_layout()
    return fig


@as_written
def off_curves(table: pd.DataFrame, scenes: Sequence[str], said: Mapping[str, str]) -> Figure:
    """Share of right answers of `spurious.turned_off` against units turned off, a panel for each set of
    scenes, a line for each order that `said` names, with 95 % intervals.
    """
    size, shared = (2.1 * len(scenes) + 0.4, 2.7), {"sharey": True, "squeeze": False}
    fig, axes = plt.subplots(1, len(scenes), figsize=size, **shared)
    orders = [order for order in said if (table["order"] == order).any()]
    for ax, name in zip(axes[0], scenes):
        for i, (order, colour) in enumerate(zip(orders, palette(len(orders)))):
            some = table[(table["scenes"] == name) & (table["order"] == order)].sort_values("off")
            style = (colour, DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)], said[order])
            _line(ax, some, ("off", "accuracy"), *style)
        ax.set(title=name, xlabel="units turned off", ylim=(0, 1.02))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0][0].set_ylabel("share right")
    _legend(fig, axes[0][0], 3)
    return fig


def _with_whole(some: pd.DataFrame, x: str, at: float) -> pd.DataFrame:
    """The rows with one for the whole network, at which nothing changes."""
    zero = {x: at, "change": 0.0, "change_low": 0.0, "change_high": 0.0}
    both = pd.concat([some[list(zero)], pd.DataFrame([zero])])
    return both.drop_duplicates(x).sort_values(x)


def _line(
    ax: Axes,
    some: pd.DataFrame,
    columns: tuple[str, str],
    colour: str,
    dash: object,
    mark: str,
    label: str,
    low: str = "",
    high: str = "",
) -> None:
    """A line with its interval as a band."""
    x, y = columns
    band = some[low or f"{y}_low"].astype(float), some[high or f"{y}_high"].astype(float)
    ax.fill_between(some[x].astype(float), *band, color=colour, alpha=0.16, lw=0)
    ax.plot(some[x], some[y], color=colour, ls=dash, marker=mark, ms=3, label=label)


def _legend(fig: Figure, ax: Axes, columns: int) -> None:
    """One legend for all panels, above them."""
    handles, labels = ax.get_legend_handles_labels()
    fig.tight_layout()
    narrow = fig.get_figwidth() < 5
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": 1 if narrow else columns}
    fig.legend(handles, labels, fontsize=7.5, frameon=False, **place)
