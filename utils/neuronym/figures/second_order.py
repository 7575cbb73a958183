"""Figures of the second-order lens.

explained_by_layer  how much of a neuron's effect lies along one direction
ablations_by_layer  accuracy without some effects
accuracy_by_words   accuracy when directions are sums of m words
neuron_cards        neurons with words and the images they push most, either way
mask_strip          pictures, heat, masks and truth
rates               shares by source and pair, with their means
correlations        distribution over neurons, by method
curves              several curves against settings, side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from neuronym.common.types import Target
from neuronym.datasets.probe import Probe
from neuronym.figures import cards
from neuronym.figures.style import as_written, palette
from neuronym.hooks import LayerInfo


@as_written
def explained_by_layer(table: pd.DataFrame) -> Figure:
    """Columns layer, explained: share of the top deviations' squared length along the first direction, by
    neuron.
    """
    import seaborn as sns  # brings scipy.stats, a second

    layers = sorted(table["layer"].unique())
    fig, ax = plt.subplots(figsize=(4.6, 0.34 * len(layers) + 1))
    sns.boxplot(
        table,
        x="explained",
        y="layer",
        order=layers,
        orient="h",
        ax=ax,
        width=0.6,
        fliersize=1.2,
        color=palette()[0],
    )
    ax.set(xlabel="variance of the largest effects along one direction", ylabel="MLP layer", xlim=(0, 1))
    fig.tight_layout()
    return fig


@as_written
def ablations_by_layer(table: pd.DataFrame, base: float) -> Figure:
    """Columns layer, ablation, accuracy; `base` is the accuracy with nothing ablated."""
    import seaborn as sns  # brings scipy.stats, a second

    layers = list(dict.fromkeys(table["layer"]))
    fig, ax = plt.subplots(figsize=(5.2, 2.6))
    # side by side, since curves that say "nothing is lost" would hide each other
    sns.pointplot(
        table,
        x="layer",
        y="accuracy",
        hue="ablation",
        order=layers,
        dodge=0.5 if table["ablation"].nunique() > 1 else False,
        linestyle="none",
        ax=ax,
        markersize=4,
        markers=["o", "s", "D", "^"][: table["ablation"].nunique()],
    )
    ax.axhline(base, color=".4", lw=0.8, ls="--", zorder=0)
    ax.text(len(layers) - 0.48, base, " nothing\n ablated", fontsize=7, color=".4", va="center")
    ax.set(xlabel="MLP layer", ylabel="zero-shot accuracy")
    ax.legend(
        title="ablated",
        fontsize=7,
        title_fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.14, 0.5),
        frameon=False,
    )
    fig.tight_layout()
    return fig


@as_written
def accuracy_by_words(table: pd.DataFrame, base: float, removed: float) -> Figure:
    """Columns words, pool, accuracy; `base` with all effects as they are, `removed` with none."""
    import seaborn as sns  # brings scipy.stats, a second

    fig, ax = plt.subplots(figsize=(4.8, 2.6))
    sns.lineplot(
        table,
        x="words",
        y="accuracy",
        hue="pool",
        style="pool",
        markers=True,
        dashes=False,
        ax=ax,
        lw=1.2,
        markersize=5,
    )
    for height, text in ((base, "all effects"), (removed, "no effects")):
        ax.axhline(height, color=".4", lw=0.8, ls="--", zorder=0)
        ax.text(
            1.01, height, f" {text}", fontsize=7, color=".4", va="center", transform=ax.get_yaxis_transform()
        )
    ax.set_xscale("log", base=2)
    ticks = sorted(table["words"].unique())
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set(xlabel="words per neuron, m", ylabel="zero-shot accuracy")
    ax.legend(
        title="text pool",
        fontsize=7,
        title_fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.2, 0.5),
        frameon=False,
    )
    fig.tight_layout()
    return fig


@as_written
def neuron_cards(
    target: Target,
    probe: Probe,
    layer: LayerInfo,
    along: Tensor,
    table: pd.DataFrame,
    units: Sequence[int],
    images: int = 6,
    device: str = "cpu",
) -> Figure:
    """Two rows a neuron: its words and the images it pushes most along its direction, then those it pushes
    against it.

    along [N, K] are `effects.projections` on the neurons' directions; `table` holds their words.
    """
    rows = []
    for unit in units:
        for sign, title in ((1, f"neuron {unit}"), (-1, f"neuron {unit}, other way")):
            (card,) = cards.collect(
                target, probe, layer, sign * along, table, [unit], images=images, device=device
            )
            rows.append(card | {"title": title} | ({"labels": []} if sign < 0 else {}))
    value = "how far the image is pushed along the neuron's direction"
    return cards.draw(rows, images, "", f"{value} (in brackets: the coefficient of a word)")


@as_written
def mask_strip(
    pictures: Sequence[Image.Image], scores: Tensor, masks: Tensor, truth: Tensor, titles: Sequence[str]
) -> Figure:
    """A column a picture: the picture, its scores [n, H, W] in 0..1, the mask made of them, and the true
    mask.
    """
    rows = ("image", "neurons", "mask", "truth")
    fig, axes = plt.subplots(4, len(pictures), figsize=(1.05 * len(pictures), 4.5), squeeze=False)
    for i, picture in enumerate(pictures):
        drawn = (np.asarray(picture), scores[i].cpu().numpy(), masks[i].cpu().numpy(), truth[i].cpu().numpy())
        for ax, shown in zip(axes[:, i], drawn):
            ax.imshow(
                shown,
                cmap=None if shown.ndim == 3 else "viridis" if shown.dtype != bool else "gray",
                vmin=0,
                vmax=None if shown.ndim == 3 else 1,
                interpolation="nearest",
            )
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[0, i].set_title(titles[i], fontsize=7)
    for ax, row in zip(axes[:, 0], rows):
        ax.set_ylabel(row, fontsize=8)
    fig.tight_layout(pad=0.3)
    return fig


@as_written
def rates(table: pd.DataFrame, y: str) -> Figure:
    """Mean of `y` in percent, a row for each "source", a column for each "pair" and one for all of them."""
    import seaborn as sns  # brings scipy.stats, a second

    sources, columns = list(dict.fromkeys(table["source"])), list(dict.fromkeys(table["pair"]))
    shares = 100 * table.astype({y: float}).pivot_table(
        index="source", columns="pair", values=y, margins=True, margins_name="mean"
    )
    shares = shares.loc[sources, [*columns, "mean"]].rename(columns=lambda name: name.replace(" < ", "\n< "))
    fig, ax = plt.subplots(figsize=(0.74 * shares.shape[1] + 1.6, 0.3 * len(shares) + 1.1))
    sns.heatmap(
        shares,
        annot=True,
        fmt=".0f",
        cmap="Blues",
        vmin=0,
        vmax=100,
        linewidths=0.5,
        ax=ax,
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "% fooled"},
    )
    ax.axvline(len(columns), color="white", lw=4)
    ax.set(xlabel="taken for < drawn", ylabel="words")
    ax.tick_params(axis="x", labelsize=7, rotation=0, length=0)
    ax.tick_params(axis="y", rotation=0, length=0)
    fig.tight_layout()
    return fig


@as_written
def correlations(table: pd.DataFrame) -> Figure:
    """Box per method of a correlation over neurons; columns method, predicted, correlation."""
    import seaborn as sns  # brings scipy.stats, a second

    methods = list(dict.fromkeys(table["method"]))
    fig, ax = plt.subplots(figsize=(5.4, 0.42 * len(methods) + 1.1))
    sns.boxplot(
        table, x="correlation", y="method", hue="predicted", order=methods, ax=ax, width=0.7, fliersize=1
    )
    ax.axvline(0, color=".4", lw=0.8, ls="--", zorder=0)
    ax.set(xlabel="correlation with held-out images, by neuron", ylabel="")
    ax.legend(
        title="predicted",
        fontsize=7,
        title_fontsize=7,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )
    fig.tight_layout()
    return fig


@as_written
def curves(panels: Mapping[str, tuple[str, pd.DataFrame]]) -> Figure:
    """A panel for each setting {what is varied: (what is measured, table)}; tables have columns value,
    metric, score.
    """
    import seaborn as sns  # brings scipy.stats, a second

    fig, axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels), 3.1), squeeze=False)
    for ax, (name, (label, table)) in zip(axes[0], panels.items()):
        sns.lineplot(
            table,
            x="value",
            y="score",
            hue="metric",
            style="metric",
            markers=True,
            dashes=False,
            ax=ax,
            lw=1.2,
            markersize=5,
        )
        ax.set_xscale("log", base=2)
        ticks = sorted(table["value"].unique())
        ax.set_xticks(ticks, [str(t) for t in ticks], fontsize=7)
        ax.set(xlabel=name, ylabel=label)
        ax.legend(title="", fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.28), frameon=False)
    fig.tight_layout()
    return fig
