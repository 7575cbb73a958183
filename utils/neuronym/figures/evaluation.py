"""Figures of how good names are.

methods_by_metric      mean of each metric for each method, with intervals
sanity_table           which metrics pass which sanity test, beside the published shares
accuracy_by            accuracy of final-layer names by setting
responses              how much more pictures of a label excite a unit than other images do
ranges                 how often a label is true of a unit's most active images
weights_by_similarity  weights between hidden and final units against the similarity of their labels
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neuronym.figures.style import as_written, hatch, legend_beside, legible, MARKERS, palette

CONTROLS = ("shuffled", "constant")


@as_written
def methods_by_metric(table: pd.DataFrame, metrics: Sequence[str], bounds: Sequence[str] = ()) -> Figure:
    """A column a metric, a row a method, a colour a group of layers; `table` is that of
    `explanations.method_means`.

    Methods stand in the order of their first metric, in the mean over groups; `bounds` (what knows the truth)
    above, controls below.
    """
    import seaborn as sns  # brings scipy.stats, a second

    groups = list(dict.fromkeys(table["group"]))
    order = (
        table[table["metric"] == metrics[0]]
        .groupby("method")["mean"]
        .mean()
        .sort_values(ascending=False)
        .index
    )
    methods = sorted(order, key=lambda m: (m in CONTROLS) - (m in bounds))
    fig, axes = plt.subplots(
        1,
        len(metrics),
        figsize=(1.9 * len(metrics) + 1.4, 0.2 * len(methods) + 1),
        sharey=True,
        squeeze=False,
    )
    colours = sns.color_palette("colorblind", len(groups))
    for ax, metric in zip(axes[0], metrics):
        for g, group in enumerate(groups):
            some = (
                table[(table["group"] == group) & (table["metric"] == metric)]
                .set_index("method")
                .loc[methods]
            )
            y = np.arange(len(methods)) + (g - (len(groups) - 1) / 2) * 0.25
            ax.errorbar(
                some["mean"],
                y,
                xerr=[(some["mean"] - some["low"]).clip(0), (some["high"] - some["mean"]).clip(0)],
                fmt=MARKERS[g],
                ms=3,
                lw=0.9,
                color=colours[g],
                label=legible(group),
            )
        for edge in (sum(m in bounds for m in methods), len(methods) - sum(m in CONTROLS for m in methods)):
            if 0 < edge < len(methods):
                ax.axhline(edge - 0.5, color=".8", lw=0.8)
        ax.set(title=metric, ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods)), yticklabels=methods)
        ax.grid(axis="x", color=".92")
        ax.set_axisbelow(True)
    legend_beside(axes[0][-1], at=1.02)
    fig.tight_layout()
    return fig


@as_written
def sanity_table(table: pd.DataFrame) -> Figure:
    """The table of `sanity.beside_published` as coloured shares, 0 to 1."""
    import seaborn as sns  # brings scipy.stats, a second

    fig, ax = plt.subplots(figsize=(0.72 * table.shape[1] + 2.2, 0.22 * len(table) + 1))
    sns.heatmap(
        table.astype(float).set_axis(
            ["\n".join(c for c in column if c != "all") for column in table], axis=1
        ),
        ax=ax,
        vmin=0,
        vmax=1,
        cmap=sns.color_palette("blend:#d55e00,#f7f7f7,#0072b2", as_cmap=True),
        annot=True,
        fmt=".2f",
        annot_kws={"size": 6.5},
        cbar=False,
        linewidths=0.5,
    )
    ax.set(xlabel="", ylabel="")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    plt.setp(ax.get_xticklabels(), rotation=0, fontsize=7)
    fig.tight_layout()
    return fig


@as_written
def accuracy_by(
    table: pd.DataFrame, by: str, value: str = "top1", label: str = "share of labels that are the true name"
) -> Figure:
    """`value` for each setting in the column `by`, a colour and a marker for each similarity function."""
    order, functions = list(dict.fromkeys(table[by])), list(dict.fromkeys(table["similarity"]))
    fig, ax = plt.subplots(figsize=(5, 0.42 * len(order) + 1))
    for i, (function, colour) in enumerate(zip(functions, palette(len(functions)))):
        some = table[table["similarity"] == function]
        shift = (i - (len(functions) - 1) / 2) * 0.8 / len(functions)
        at = [order.index(setting) + shift for setting in some[by]]
        ax.plot(some[value], at, MARKERS[i % len(MARKERS)], color=colour, ms=4.5, label=function)
    for edge in range(1, len(order)):
        ax.axhline(edge - 0.5, color=".9", lw=0.8)
    ax.set(xlabel=label, yticks=range(len(order)), yticklabels=order, ylim=(len(order) - 0.5, -0.5))
    legend_beside(ax)
    fig.tight_layout()
    return fig


@as_written
def responses(table: pd.DataFrame) -> Figure:
    """CoSy's AUC by layer and method: columns layer, method, auc, one row a unit."""
    import seaborn as sns  # brings scipy.stats, a second

    layers = list(dict.fromkeys(table["layer"]))
    fig, ax = plt.subplots(figsize=(5, 0.5 * len(layers) + 1))
    sns.boxplot(
        table, x="auc", y="layer", hue="method", order=layers, ax=ax, fliersize=1, linewidth=0.7, width=0.75
    )
    ax.axvline(0.5, color=".4", lw=0.8, ls="--", zorder=0)
    ax.set(
        xlabel="how often a picture of the label excites the unit more\nthan another image (AUC; .5: chance)",
        ylabel="",
        xlim=(-0.02, 1.02),
    )
    legend_beside(ax)
    hatch(ax, table["method"].nunique())
    fig.tight_layout()
    return fig


@as_written
def ranges(table: pd.DataFrame) -> Figure:
    """Columns layer, share (of the images, the most active ones), present: how often the label is true of
    them.
    """
    import seaborn as sns  # brings scipy.stats, a second

    fig, ax = plt.subplots(figsize=(4.4, 2.4))
    sns.lineplot(
        table.assign(layer=table["layer"].map(legible)),
        x="share",
        y="present",
        hue="layer",
        style="layer",
        markers=list(MARKERS[: table["layer"].nunique()]),
        dashes=False,
        ax=ax,
        errorbar=None,
        lw=1.2,
        markersize=4,
    )
    ax.set(xscale="log", xlabel="images with the highest activation", ylabel="share that shows the label")
    ticks = sorted(table["share"].unique())
    ax.set_xticks(ticks, [f"{t:.1%}" if t < 1 else "all" for t in ticks])
    ax.minorticks_off()
    legend_beside(ax, title="")
    fig.tight_layout()
    return fig


@as_written
def weights_by_similarity(weight: np.ndarray, alike: np.ndarray, title: str = "") -> Figure:
    """Weights between hidden and final units against the similarity of their labels, both [C, K]: how many
    pairs lie where, and the mean similarity of twenty parts of equal size from small weights to large ones.
    """
    x, y = alike.ravel(), weight.ravel()
    fig, ax = plt.subplots(figsize=(4.2, 3))
    cells = ax.hexbin(x, y, gridsize=40, bins="log", mincnt=1, cmap="Greys", linewidths=0)
    fig.colorbar(cells, ax=ax, label="pairs of units", format="%g")
    order = np.argsort(y, kind="stable")
    parts = [part for part in np.array_split(order, 20) if len(part)]
    means = [x[part].mean() for part in parts], [y[part].mean() for part in parts]
    ax.plot(*means, "o-", color=palette()[0], ms=3, lw=1, label="mean of a twentieth of the pairs")
    ax.set(xlabel="cosine of the two units' labels", ylabel="weight to the final unit")
    ax.set_title(title, fontsize=8)
    ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.08), frameon=False)
    fig.tight_layout()
    return fig
