"""Figures of how good names are.

methods_by_metric   mean of each metric for each method, with intervals
sanity_table        which metrics pass which sanity test, beside the published shares
accuracy_by         accuracy of final-layer names by setting
responses           how much more pictures of a label excite a unit than other images do
legible             names for legends
ranges              how often a label is true of a unit's most active images

Figures of how far names can be trusted.

null_scores       scores of labels beside those of shuffled units
signals_by_layer  how stable labels are, layer by layer
auroc_forest      which signal tells right labels from wrong ones
reliability       share right against trust
coverage          share right among the most trusted
meanings          one label against several, on images held out

Figures of published labels.

agreement_by_layer  share of neurons that two methods call by a common word, with chance
ratings_by_layer    mean human rating of scoring functions
iou_by_layer        NetDissect's IoU and its rule for a detector
texts_by_method     how close labels are to texts, with controls
common_labels       how often a method's commonest labels come
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neuronym.figures.style import legible, palette
from neuronym.published.labels import DETECTOR, LAYERS

CONTROLS = ("shuffled", "constant")


def methods_by_metric(table: pd.DataFrame, metrics: Sequence[str], bounds: Sequence[str] = ()) -> Figure:
    """A column a metric, a row a method, a colour a group of layers; `table` is that of
    `method_tables.means`.

    Methods stand in the order of their first metric, in the mean over groups; `bounds` (what knows the truth)
    above, controls below.
    """
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
    colours = palette(len(groups))
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
                xerr=[some["mean"] - some["low"], some["high"] - some["mean"]],
                fmt="o",
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
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    fig.tight_layout()
    return fig


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


def accuracy_by(
    table: pd.DataFrame, by: str, value: str = "top1", label: str = "label is the true name"
) -> Figure:
    """`value` for each setting in the column `by`, a colour for each similarity function."""
    import seaborn as sns  # brings scipy.stats, a second

    order = list(dict.fromkeys(table[by]))
    fig, ax = plt.subplots(figsize=(5, 0.42 * len(order) + 1))
    sns.stripplot(
        table, x=value, y=by, hue="similarity", order=order, ax=ax, dodge=True, jitter=False, size=5
    )
    for edge in range(1, len(order)):
        ax.axhline(edge - 0.5, color=".9", lw=0.8)
    ax.set(xlabel=label, ylabel="")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


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
        xlabel="a picture of the label excites the unit more than another image (AUC)",
        ylabel="",
        xlim=(-0.02, 1.02),
    )
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


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
        marker="o",
        ax=ax,
        errorbar=None,
        lw=1.2,
        markersize=4,
    )
    ax.set(xscale="log", xlabel="images with the highest activation", ylabel="show the label")
    ticks = sorted(table["share"].unique())
    ax.set_xticks(ticks, [f"{t:.1%}" if t < 1 else "all" for t in ticks])
    ax.minorticks_off()
    ax.legend(title="", fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


def null_scores(scores: Mapping[str, np.ndarray], null: Mapping[str, np.ndarray]) -> Figure:
    """A panel a layer: histogram of the units' best scores over that of units whose activations were
    shuffled.
    """
    fig, axes = plt.subplots(1, len(scores), figsize=(1.75 * len(scores), 1.7), squeeze=False)
    own, chance = palette()[0], ".7"
    for ax, (layer, values) in zip(axes[0], scores.items()):
        edges = np.histogram_bin_edges(np.concatenate([values, null[layer].ravel()]), 30)
        ax.hist(null[layer].ravel(), edges, density=True, color=chance, label="shuffled")
        ax.hist(values, edges, density=True, histtype="step", color=own, lw=1.3, label="units")
        ax.set(title=layer, yticks=[], xlabel="best score")
    axes[0][0].set_ylabel("density")
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    fig.tight_layout()
    return fig


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
        dodge=0.5,
        linestyle="none",
        ax=ax,
        markersize=3.5,
        err_kws={"linewidth": 0.9},
        seed=0,
    )
    ax.set(xlabel="share of cases in which a unit gets the same label", ylabel="", xlim=(0, 1.02))
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


def auroc_forest(table: pd.DataFrame) -> Figure:
    """Columns group, trust, auroc, low, high: a row a signal, a colour a group."""
    groups, names = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["trust"]))
    fig, ax = plt.subplots(figsize=(4.6, 0.26 * len(names) + 0.9))
    for g, (group, colour) in enumerate(zip(groups, palette())):
        some = table[table["group"] == group].set_index("trust").reindex(names)
        y = np.arange(len(names)) + (g - (len(groups) - 1) / 2) * 0.6 / len(groups)
        ax.errorbar(
            some["auroc"],
            y,
            xerr=[some["auroc"] - some["low"], some["high"] - some["auroc"]],
            fmt="o",
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
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


def reliability(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """A panel a signal, a line a group: share right against mean trust, with Wilson intervals; {signal:
    {group: table}}.
    """
    fig, axes = plt.subplots(1, len(tables), figsize=(1.9 * len(tables) + 1, 2.1), sharey=True, squeeze=False)
    for ax, (signal, groups) in zip(axes[0], tables.items()):
        ax.plot([0, 1], [0, 1], color=".6", lw=0.8, ls="--")
        for (group, some), colour in zip(groups.items(), palette()):
            ax.errorbar(
                some["trust"],
                some["right"],
                yerr=[(some["right"] - some["low"]).clip(0), (some["high"] - some["right"]).clip(0)],
                fmt="o-",
                ms=3,
                lw=0.9,
                elinewidth=0.7,
                color=colour,
                label=legible(group),
            )
        ax.set(title=signal, xlabel="trust", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("labels that are right")
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    fig.tight_layout()
    return fig


def coverage(tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """A panel a group, a line a signal: share right among the labels kept; {group: {signal:
    `calibration.risk_coverage`}}.
    """
    fig, axes = plt.subplots(1, len(tables), figsize=(2.3 * len(tables) + 1, 2.1), sharey=True, squeeze=False)
    for ax, (group, signals) in zip(axes[0], tables.items()):
        for (signal, some), colour in zip(signals.items(), palette(len(signals))):
            ax.plot(some["coverage"], some["right"], lw=1.1, color=colour, label=signal)
        ax.set(title=group, xlabel="share of labels kept", ylim=(-0.03, 1.03), xlim=(0, 1.02))
    axes[0][0].set_ylabel("labels that are right")
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    fig.tight_layout()
    return fig


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
        dodge=0.5,
        linestyle="none",
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
        dodge=0.5,
        linestyle="none",
        ax=ax,
        markersize=3,
        markers="x",
        errorbar=None,
        legend=False,
    )
    ax.axvline(0, color=".4", lw=0.8, ls="--", zorder=0)
    ax.set(xlabel="correlation with the unit, images held out (x: labels of other units)", ylabel="")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


def agreement_by_layer(table: pd.DataFrame) -> Figure:
    """Columns pair, layer, agreement, chance; the hollow mark is chance."""
    layers = [layer for layer in LAYERS if layer in set(table["layer"])]
    pairs = list(dict.fromkeys(table["pair"]))
    fig, ax = plt.subplots(figsize=(5.6, 2.8))
    for i, (pair, colour) in enumerate(zip(pairs, palette(len(pairs)))):
        some = table[table["pair"] == pair].set_index("layer").reindex(layers)
        at = [x + 0.12 * (i - (len(pairs) - 1) / 2) for x in range(len(layers))]
        ax.vlines(at, some["chance"], some["agreement"], color=colour, lw=1)
        ax.plot(at, some["agreement"], "o", color=colour, ms=4.5, label=pair)
        ax.plot(at, some["chance"], "o", mfc="white", color=colour, ms=4.5)
    ax.set_xticks(range(len(layers)), layers)
    ax.set(ylabel="neurons whose labels\nshare a word", ylim=(0, None))
    ax.legend(
        title="methods (hollow: neurons moved)",
        fontsize=7,
        title_fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    fig.tight_layout()
    return fig


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
        dodge=0.4,
        linestyle="none",
        markersize=4,
        err_kws={"linewidth": 1},
        seed=0,
        ax=ax,
    )
    ax.set(xlabel="", ylabel="human rating, 1 to 5")
    ax.legend(
        title="scoring function",
        fontsize=7,
        title_fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    fig.tight_layout()
    return fig


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
            color=palette()[0],
        )
        ax.axhline(DETECTOR, color=".4", lw=0.8, ls="--")
        ax.set(title=network, xlabel="", ylabel="IoU of NetDissect's label")
    fig.tight_layout()
    return fig


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
            color=palette()[0],
            width=0.6,
            ax=ax,
        )
        ax.vlines(at, some["low"], some["high"], color=".2", lw=1)
        ax.plot(at, some["shuffled"], "o", mfc="white", color=".2", ms=4.5, label="labels of other neurons")
        ax.plot(
            at,
            some["constant"],
            "_",
            color=palette()[3],
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
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    fig.tight_layout()
    return fig


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
        sns.barplot(top, x="share", y="label", color=palette()[0], width=0.7, ax=ax)
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
