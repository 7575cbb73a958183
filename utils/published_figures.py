"""Figures of published labels.

agreement_by_layer  share of neurons that two methods call by a common word, with chance
ratings_by_layer    mean human rating of scoring functions
iou_by_layer        NetDissect's IoU and its rule for a detector
"""
from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from utils.published_values import DETECTOR, LAYERS


def agreement_by_layer(table: pd.DataFrame) -> Figure:
    """Columns pair, layer, agreement, chance; the hollow mark is chance."""
    layers = [layer for layer in LAYERS if layer in set(table["layer"])]
    pairs = list(dict.fromkeys(table["pair"]))
    fig, ax = plt.subplots(figsize=(5.6, 2.8))
    for i, (pair, colour) in enumerate(zip(pairs, sns.color_palette("colorblind", len(pairs)))):
        some = table[table["pair"] == pair].set_index("layer").reindex(layers)
        at = [x + .12 * (i - (len(pairs) - 1) / 2) for x in range(len(layers))]
        ax.vlines(at, some["chance"], some["agreement"], color=colour, lw=1)
        ax.plot(at, some["agreement"], "o", color=colour, ms=4.5, label=pair)
        ax.plot(at, some["chance"], "o", mfc="white", color=colour, ms=4.5)
    ax.set_xticks(range(len(layers)), layers)
    ax.set(ylabel="neurons whose labels\nshare a word", ylim=(0, None))
    ax.legend(title="methods (hollow: neurons moved)", fontsize=7, title_fontsize=7, loc="center left",
              bbox_to_anchor=(1.01, .5), frameon=False)
    fig.tight_layout()
    return fig


def ratings_by_layer(ratings: pd.DataFrame) -> Figure:
    """Mean rating of each scoring function by layer, 95 % bootstrap intervals over neurons (both raters' mean)."""
    by_neuron = ratings.groupby(["layer", "unit", "scoring"], as_index=False)["rating"].mean()
    fig, ax = plt.subplots(figsize=(5.2, 2.6))
    sns.pointplot(by_neuron, x="layer", y="rating", hue="scoring", order=sorted(by_neuron["layer"].unique()), dodge=.4,
                  linestyle="none", markersize=4, err_kws={"linewidth": 1}, seed=0, ax=ax)
    ax.set(xlabel="", ylabel="human rating, 1 to 5")
    ax.legend(title="scoring function", fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1.01, .5), frameon=False)
    fig.tight_layout()
    return fig


def iou_by_layer(table: pd.DataFrame) -> Figure:
    """Distribution of the score (IoU) by layer for every network; columns model, layer, score."""
    networks = list(dict.fromkeys(table["model"]))
    fig, axes = plt.subplots(1, len(networks), figsize=(2.9 * len(networks), 2.5), sharey=True, squeeze=False)
    for ax, network in zip(axes[0], networks):
        some = table[table["model"] == network]
        order = [layer for layer in LAYERS if layer in set(some["layer"])]
        sns.boxplot(some, x="layer", y="score", order=order, ax=ax, width=.6, fliersize=1, color=sns.color_palette("colorblind")[0])
        ax.axhline(DETECTOR, color=".4", lw=.8, ls="--")
        ax.set(title=network, xlabel="", ylabel="IoU of NetDissect's label")
    fig.tight_layout()
    return fig
