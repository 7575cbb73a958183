"""Figures of published labels.

agreement_by_layer  share of neurons that two methods call by a common word, with chance
ratings_by_layer    mean human rating of scoring functions
iou_by_layer        NetDissect's IoU and its rule for a detector
texts_by_method     how close labels are to texts, with controls
common_labels       how often a method's commonest labels come
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from neuronym.figures.style import as_written, legend_beside, MARKERS
from neuronym.published.values import DETECTOR, LAYERS


@as_written
def agreement_by_layer(table: pd.DataFrame) -> Figure:
    """Columns pair, layer, agreement, chance; the hollow mark is chance."""
    import seaborn as sns  # brings scipy.stats, a second

    layers = [layer for layer in LAYERS if layer in set(table["layer"])]
    pairs = list(dict.fromkeys(table["pair"]))
    fig, ax = plt.subplots(figsize=(5.6, 2.8))
    for i, (pair, colour) in enumerate(zip(pairs, sns.color_palette("colorblind", len(pairs)))):
        some = table[table["pair"] == pair].set_index("layer").reindex(layers)
        at = [x + 0.12 * (i - (len(pairs) - 1) / 2) for x in range(len(layers))]
        ax.vlines(at, some["chance"], some["agreement"], color=colour, lw=1)
        ax.plot(at, some["agreement"], MARKERS[i], color=colour, ms=4.5, label=pair)
        ax.plot(at, some["chance"], MARKERS[i], mfc="white", color=colour, ms=4.5)
    ax.set_xticks(range(len(layers)), layers)
    ax.set(ylabel="neurons whose labels\nshare a word", ylim=(0, None))
    legend_beside(ax, title="methods (hollow: neurons moved)")
    fig.tight_layout()
    return fig


@as_written
def ratings_by_layer(ratings: pd.DataFrame) -> Figure:
    """Mean rating of each scoring function by layer, 95 % bootstrap intervals over neurons (both raters'
    mean).
    """
    import seaborn as sns  # brings scipy.stats, a second

    by_neuron = ratings.groupby(["layer", "unit", "scoring"], as_index=False)["rating"].mean()
    fig, ax = plt.subplots(figsize=(5.2, 2.6))
    sns.pointplot(
        by_neuron,
        x="layer",
        y="rating",
        hue="scoring",
        order=sorted(by_neuron["layer"].unique()),
        dodge=0.4 if by_neuron["scoring"].nunique() > 1 else False,
        linestyle="none",
        markers=list(MARKERS[: by_neuron["scoring"].nunique()]),
        markersize=4,
        err_kws={"linewidth": 1},
        seed=0,
        ax=ax,
    )
    ax.set(xlabel="", ylabel="human rating, 1 to 5")
    legend_beside(ax, title="scoring function")
    fig.tight_layout()
    return fig


@as_written
def iou_by_layer(table: pd.DataFrame) -> Figure:
    """Distribution of the score (IoU) by layer for every network; columns model, layer, score."""
    import seaborn as sns  # brings scipy.stats, a second

    networks = list(dict.fromkeys(table["model"]))
    fig, axes = plt.subplots(1, len(networks), figsize=(2.9 * len(networks), 2.5), sharey=True, squeeze=False)
    for ax, network in zip(axes[0], networks):
        some = table[table["model"] == network]
        order = [layer for layer in LAYERS if layer in set(some["layer"])]
        sns.boxplot(
            some,
            x="layer",
            y="score",
            order=order,
            ax=ax,
            width=0.6,
            fliersize=1,
            color=sns.color_palette("colorblind")[0],
        )
        ax.axhline(DETECTOR, color=".4", lw=0.8, ls="--")
        ax.set(title=network, xlabel="", ylabel="IoU of NetDissect's label")
    fig.tight_layout()
    return fig


@as_written
def texts_by_method(table: pd.DataFrame) -> Figure:
    """Columns panel, whose, value, low, high, shuffled, constant: a bar for each method, marks for the
    controls.
    """
    import seaborn as sns  # brings scipy.stats, a second

    panels = list(dict.fromkeys(table["panel"]))
    fig, axes = plt.subplots(1, len(panels), figsize=(2.3 * len(panels) + 1.2, 2.8), squeeze=False)
    for ax, panel in zip(axes[0], panels):
        some = table[table["panel"] == panel]
        at = range(len(some))
        sns.barplot(
            some,
            x="whose",
            y="value",
            order=some["whose"],
            color=sns.color_palette("colorblind")[0],
            width=0.6,
            ax=ax,
        )
        ax.vlines(at, some["low"], some["high"], color=".2", lw=1)
        ax.plot(at, some["shuffled"], "o", mfc="white", color=".2", ms=4.5, label="labels of other neurons")
        ax.plot(
            at,
            some["constant"],
            "_",
            color=sns.color_palette("colorblind")[3],
            ms=12,
            mew=2,
            label="best constant label",
        )
        ax.set(
            title=panel,
            xlabel="",
            ylabel="mean closeness of texts" if ax is axes[0][0] else "",
            ylim=(0, None),
        )
        ax.tick_params(axis="x", labelrotation=40)
        plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    legend_beside(axes[0][-1])
    fig.tight_layout()
    return fig


@as_written
def common_labels(labels: pd.DataFrame, most: int = 5) -> Figure:
    """The commonest labels of rank 1 of every method and the share of its neurons that have them; one
    network's labels.
    """
    import seaborn as sns  # brings scipy.stats, a second

    best = labels[labels["rank"] == 1]
    methods = list(dict.fromkeys(best["method"]))
    columns = 2
    rows = -(-len(methods) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(6.4, 0.28 * most * rows + 0.55 * rows), squeeze=False, sharex=True
    )
    for ax in axes.flat[len(methods) :]:
        ax.axis("off")
    for ax, method in zip(axes.flat, methods):
        shares = best.loc[best["method"] == method, "label"].value_counts(normalize=True)
        top = shares.head(most).rename_axis("label").reset_index(name="share")
        sns.barplot(top, x="share", y="label", color=sns.color_palette("colorblind")[0], width=0.7, ax=ax)
        ax.set_yticks(
            range(len(top)),
            [label if len(label) < 30 else label[:28] + "..." for label in top["label"]],
            fontsize=7,
        )
        ax.set(
            title=f"{method}: {len(shares)} labels of {(best['method'] == method).sum()} neurons",
            ylabel="",
            xlabel="share of neurons" if ax in axes[-1] else "",
        )
    fig.tight_layout()
    return fig
