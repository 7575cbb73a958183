"""Figures of how far names can be trusted.

null_scores        scores of labels beside those of shuffled units
signals_by_layer   how stable labels are, layer by layer
auroc_forest       which signal tells right labels from wrong ones
reliability_curve  share right against trust
coverage_curve     share right among the most trusted
meanings           one label against several, on images held out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neuronym.figures.style import as_written, DASHES, legend_beside, legible, MARKERS


@as_written
def null_scores(scores: Mapping[str, np.ndarray], null: Mapping[str, np.ndarray]) -> Figure:
    """A panel a layer: histogram of the units' best scores over that of units whose activations were
    shuffled.
    """
    import seaborn as sns  # brings scipy.stats, a second

    fig, axes = plt.subplots(1, len(scores), figsize=(1.75 * len(scores), 1.7), squeeze=False)
    own, chance = sns.color_palette("colorblind")[0], ".7"
    for ax, (layer, values) in zip(axes[0], scores.items()):
        edges = np.histogram_bin_edges(np.concatenate([values, null[layer].ravel()]), 30)
        ax.hist(null[layer].ravel(), edges, density=True, color=chance, label="shuffled")
        ax.hist(values, edges, density=True, histtype="step", color=own, lw=1.3, label="units")
        ax.set(title=layer, yticks=[], xlabel="best score")
    axes[0][0].set_ylabel("density")
    legend_beside(axes[0][-1], at=1.02)
    fig.tight_layout()
    return fig


@as_written
def signals_by_layer(table: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Mean over units of each share, with 95 % intervals over units, for each layer."""
    import seaborn as sns  # brings scipy.stats, a second

    layers = list(dict.fromkeys(table["layer"]))
    long = table.melt("layer", list(columns), "signal", "share")
    fig, ax = plt.subplots(figsize=(5, 0.42 * len(layers) + 0.9))
    sns.pointplot(
        long,
        x="share",
        y="layer",
        hue="signal",
        order=layers,
        dodge=0.5 if long["signal"].nunique() > 1 else False,
        linestyle="none",
        markers=list(MARKERS[: long["signal"].nunique()]),
        ax=ax,
        markersize=3.5,
        err_kws={"linewidth": 0.9},
        seed=0,
    )
    ax.set(xlabel="share of cases in which a unit gets the same label", ylabel="", xlim=(0, 1.02))
    legend_beside(ax)
    fig.tight_layout()
    return fig


@as_written
def auroc_forest(table: pd.DataFrame) -> Figure:
    """Columns group, trust, auroc, low, high: a row a signal, a colour a group."""
    import seaborn as sns  # brings scipy.stats, a second

    groups, names = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["trust"]))
    fig, ax = plt.subplots(figsize=(4.6, 0.26 * len(names) + 0.9))
    for g, (group, colour) in enumerate(zip(groups, sns.color_palette("colorblind"))):
        some = table[table["group"] == group].set_index("trust").reindex(names)
        y = np.arange(len(names)) + (g - (len(groups) - 1) / 2) * 0.6 / len(groups)
        ax.errorbar(
            some["auroc"],
            y,
            xerr=[(some["auroc"] - some["low"]).clip(0), (some["high"] - some["auroc"]).clip(0)],
            fmt=MARKERS[g],
            ms=3,
            lw=0.9,
            color=colour,
            label=legible(group),
        )
    ax.axvline(0.5, color=".4", lw=0.8, ls="--", zorder=0)
    ax.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
        xlim=(0.2, 1.02),
        xlabel="right label has more trust than a wrong one (AUROC)",
    )
    legend_beside(ax)
    fig.tight_layout()
    return fig


@as_written
def reliability_curve(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """A panel a signal, a line a group: share right against mean trust, with Wilson intervals; {signal:
    {group: table}}.
    """
    import seaborn as sns  # brings scipy.stats, a second

    fig, axes = plt.subplots(1, len(tables), figsize=(1.9 * len(tables) + 1, 2.1), sharey=True, squeeze=False)
    for ax, (signal, groups) in zip(axes[0], tables.items()):
        ax.plot([0, 1], [0, 1], color=".6", lw=0.8, ls="--")
        for (group, some), colour, marker in zip(groups.items(), sns.color_palette("colorblind"), MARKERS):
            ax.errorbar(
                some["trust"],
                some["right"],
                yerr=[(some["right"] - some["low"]).clip(0), (some["high"] - some["right"]).clip(0)],
                fmt=f"{marker}-",
                ms=3,
                lw=0.9,
                elinewidth=0.7,
                color=colour,
                label=legible(group),
            )
        ax.set(title=signal, xlabel="trust", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("labels that are right")
    legend_beside(axes[0][-1], at=1.02)
    fig.tight_layout()
    return fig


@as_written
def coverage_curve(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """A panel a group, a line a signal: share right among the labels kept; {group: {signal:
    `signals.risk_coverage`}}.
    """
    import seaborn as sns  # brings scipy.stats, a second

    fig, axes = plt.subplots(1, len(tables), figsize=(2.3 * len(tables) + 1, 2.1), sharey=True, squeeze=False)
    for ax, (group, signals) in zip(axes[0], tables.items()):
        colours = sns.color_palette("colorblind", len(signals))
        for (signal, some), colour, line in zip(signals.items(), colours, cycle(DASHES)):
            ax.plot(some["coverage"], some["right"], lw=1.1, ls=line, color=colour, label=signal)
        ax.set(title=group, xlabel="share of labels kept", ylim=(-0.03, 1.03), xlim=(0, 1.02))
    axes[0][0].set_ylabel("labels that are right")
    legend_beside(axes[0][-1], at=1.02)
    fig.tight_layout()
    return fig


@as_written
def meanings(table: pd.DataFrame) -> Figure:
    """Columns layer, kind, correlation, shuffled: mean correlation on images held out, beside that of other
    units' labels.
    """
    import seaborn as sns  # brings scipy.stats, a second

    layers, kinds = list(dict.fromkeys(table["layer"])), list(dict.fromkeys(table["kind"]))
    fig, ax = plt.subplots(figsize=(4.8, 0.42 * len(layers) + 0.9))
    sns.pointplot(
        table,
        x="correlation",
        y="layer",
        hue="kind",
        order=layers,
        hue_order=kinds,
        dodge=0.5 if len(kinds) > 1 else False,
        linestyle="none",
        markers=list(MARKERS[: len(kinds)]),
        ax=ax,
        markersize=3.5,
        err_kws={"linewidth": 0.9},
        seed=0,
    )
    sns.pointplot(
        table,
        x="shuffled",
        y="layer",
        hue="kind",
        order=layers,
        hue_order=kinds,
        dodge=0.5 if len(kinds) > 1 else False,
        linestyle="none",
        ax=ax,
        markersize=3,
        markers="x",
        errorbar=None,
        legend=False,
    )
    ax.axvline(0, color=".4", lw=0.8, ls="--", zorder=0)
    ax.set(xlabel="correlation with the unit, images held out (x: labels of other units)", ylabel="")
    legend_beside(ax)
    fig.tight_layout()
    return fig
