"""Figures of the second-order lens.

explained_by_layer  how much of a neuron's effect lies along one direction
ablations_by_layer  accuracy without some effects
accuracy_by_words   accuracy when directions are sums of m words
neuron_cards        neurons with words and the images they push most, either way
words_read          pictures with the words read from them
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
from neuronym.figures.style import as_written, hatch, image_grid, legend_beside, MARKERS, palette
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
    ax.set(xlabel="variance of the largest effects along one direction", ylabel="layer", xlim=(0, 1))
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
        markers=list(MARKERS[: table["ablation"].nunique()]),
    )
    ax.axhline(base, color=".4", lw=0.8, ls="--", zorder=0)
    ax.text(len(layers) - 0.48, base, " nothing\n ablated", fontsize=7, color=".4", va="center")
    ax.set(xlabel="layer", ylabel="zero-shot accuracy")
    legend_beside(ax, at=1.14, title="ablated")
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
        **_told_apart(table["pool"]),
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
    legend_beside(ax, at=1.2, title="text pool")
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
) -> dict[str, Figure]:
    """Figures of two rows a neuron: its words and the images it pushes most along its direction, with where
    it fires; then those it pushes against it, as they are, with their negative values.

    along [N, K] are `effects.projections` on the neurons' directions; `table` holds their words. There are
    several figures, in pages, when many units are asked for: {"neurons": ..., "neurons_2": ...}.
    """
    rows = []
    for unit in units:
        (with_it,) = cards.collect(target, probe, layer, along, table, [unit], images=images, device=device)
        (against,) = cards.collect(target, probe, layer, -along, table, [unit], images=images, device=device)
        values = [-value for value in against["values"]]
        rows.append(with_it | {"title": f"neuron {unit}"})
        title = f"neuron {unit}, other way"
        rows.append(against | {"title": title, "labels": [], "values": values, "maps": None})
    value = "how far the image is pushed along the neuron's direction, below 0 against it"
    note = f"{value} (in brackets: the coefficient of a word)"
    figures, page = {}, cards.PAGE
    for start in range(0, len(rows), page):
        name = f"neurons_{start // page + 1}" if start else "neurons"
        figures[name] = cards.draw(rows[start : start + page], images, "", note)
    if len(figures) > 1:
        print(f"neurons: {len(units)} neurons, {page // 2} a figure")
    return figures


@as_written
def words_read(
    probe: Probe, reading: Tensor, words: Sequence[str], truth: Tensor | None = None, images: int = 6
) -> Figure:
    """The first images with the six words of largest `reading` [N, M], marked true or not where `truth`
    [N, M] is known.
    """
    titles = []
    for i, best in enumerate(reading[:images].topk(min(6, reading.shape[1]), dim=1).indices.tolist()):
        marks = [("✓ " if truth[i, j] else "✗ ") if truth is not None else "" for j in best]
        titles.append("\n".join(mark + words[j] for mark, j in zip(marks, best)))
    pictures = [probe.image(i) for i in range(len(titles))]
    return image_grid(pictures, titles, columns=images, size=1.4)


@as_written
def mask_strip(
    pictures: Sequence[Image.Image], scores: Tensor, masks: Tensor, truth: Tensor, titles: Sequence[str]
) -> Figure:
    """A column a picture: the picture, its scores [n, H, W] in 0..1, the mask made of them with its IoU, and
    the true mask; `titles` say what the CLIP calls them.
    """
    rows = ("image", "what neurons say", "mask made of it", "true mask")
    fig, axes = plt.subplots(4, len(pictures), figsize=(1.05 * len(pictures), 4.7), squeeze=False)
    for i, picture in enumerate(pictures):
        heat, mask, true = (part[i].cpu().numpy() for part in (scores, masks, truth))
        for ax, shown in zip(axes[:, i], (np.asarray(picture), heat, mask, true)):
            ax.imshow(
                shown,
                cmap=None if shown.ndim == 3 else "viridis" if shown.dtype != bool else "gray",
                vmin=0,
                vmax=None if shown.ndim == 3 else 1,
                interpolation="nearest",
            )
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        axes[0, i].set_title(titles[i], fontsize=7, parse_math=False)
        iou = np.logical_and(mask, true).sum() / max(1, np.logical_or(mask, true).sum())
        axes[2, i].set_xlabel(f"IoU {iou:.2f}", fontsize=7, labelpad=2)
    for ax, row in zip(axes[:, 0], rows):
        ax.set_ylabel(row, fontsize=7)
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
        cbar_kws={"label": "pictures that fool the CLIP, %"},
    )
    ax.axvline(len(columns), color="white", lw=4)
    ax.set(xlabel="class it is taken for < class drawn", ylabel="source of the words")
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
    ax.set(
        xlabel="correlation of what the words predict with\nwhat the neuron does on held-out images",
        ylabel="",
    )
    legend_beside(ax, title="predicted")
    hatch(ax, table["predicted"].nunique())
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
            **_told_apart(table["metric"]),
            ax=ax,
            lw=1.2,
            markersize=5,
        )
        ax.set_xscale("log", base=2)
        ticks = sorted(table["value"].unique())
        ax.set_xticks(ticks, [str(t) for t in ticks], fontsize=7)
        ax.set_xlabel(name, fontsize=8)
        ax.set_ylabel(label, fontsize=8)
        ax.legend(title="", fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.28), frameon=False)
    fig.tight_layout(w_pad=1.5)
    return fig


def _told_apart(groups: pd.Series) -> dict[str, list]:
    """Markers and dashes for seaborn's lines, one for each of the groups."""
    n, patterns = groups.nunique(), ("", (4, 1.5), (4, 1.5, 1, 1.5), (1, 1), (5, 1, 1, 1, 1, 1))
    return {
        "markers": [MARKERS[i % len(MARKERS)] for i in range(n)],
        "dashes": [patterns[i % len(patterns)] for i in range(n)],
    }
