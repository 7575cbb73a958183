"""Everything drawn: figures for papers, progress, and the widget that browses units.

style             one look for all figures
progress          a bar in JupyterLab, plain lines when headless
image_grid        pictures in a grid
unit_card         one unit: its labels with scores, its top images, where it fires
unit_cards        several of them as one figure
scores_by_layer   distribution of the best scores, layer by layer
labels_by_category  share of labels of each kind, layer by layer
training_report   says how a training stage goes; read_curves and training_curves show it afterwards
save_figure       png and pdf, without dates
explorer          browse units with ipywidgets
"""
from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

HEAT = "inferno"


def style() -> None:
    """Set the look of all figures: seaborn's colour-blind palette, small sans text, no chart junk."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind",
                  rc={"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "pdf.fonttype": 42})


def progress(items: Iterable, total: int | None = None, text: str = "") -> Iterator:
    """Pass `items` through and say how far it is: a widget bar when interactive, else a line after ten seconds, then ever rarer."""
    if not os.environ.get("NEURONYM_HEADLESS") and "ipykernel" in sys.modules:
        from tqdm.auto import tqdm
        yield from tqdm(items, total=total, desc=text)
        return
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None
    began = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= max(10, (now - began) / 10):  # a run of an hour prints some 40 lines
            said = now
            left = f", {(now - began) / done * (total - done):.0f} s left" if total else ""
            print(f"{text}: {done}/{total or '?'} after {now - began:.0f} s{left}", flush=True)


def image_grid(images: Sequence[Image.Image], titles: Sequence[str] | None = None, columns: int = 8, size: float = 1.1) -> Figure:
    """Pictures in a grid, `size` inches each."""
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size * (1.25 if titles else 1)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            ax.imshow(images[i], interpolation="nearest" if images[i].width < 100 else "auto")
            if titles:
                ax.set_title(textwrap.fill(titles[i], int(18 * size)), fontsize=6.5)
    fig.tight_layout(pad=.3)
    return fig


def unit_card(axes: Sequence[Axes], title: str, labels: Sequence[tuple[str, float]], images: Sequence[Image.Image],
              maps: Sequence[np.ndarray] | None = None, truth: str | None = None) -> None:
    """Draw one unit into a row of axes: labels with scores in the first, top images (most active first) in the others.

    `maps` [h, w] each, non-negative part shown as a heat-map over its image, all on the unit's own scale.
    """
    text, *places = axes
    text.axis("off")
    title = title if len(title) <= 26 else "…" + title[-25:]  # the end tells units of one network apart
    text.text(0, 1, title, fontsize=8, weight="bold", va="top", transform=text.transAxes)
    if truth is not None:
        hit = labels and labels[0][0] == truth
        text.text(0, .82, f"true name: {truth} {'(found)' if hit else ''}", fontsize=7, va="top", transform=text.transAxes,
                  color=sns.color_palette("colorblind")[2 if hit else 3])
    first = .62 if truth is not None else .78
    for i, (label, score) in enumerate(labels[:4]):
        shown = label if len(label) < 24 else label[:22] + ".."
        text.text(0, first - .17 * i, f"{shown}  ({score:.3g})", fontsize=7 if i else 8, va="top", transform=text.transAxes,
                  color="black" if i == 0 else "0.4")
    top = max((float(np.max(m)) for m in maps), default=0) if maps is not None else 0
    for i, ax in enumerate(places):
        ax.axis("off")
        if i >= len(images):
            continue
        ax.imshow(images[i], interpolation="nearest" if images[i].width < 100 else "auto")
        if maps is not None and top > 0:
            heat = np.clip(np.asarray(maps[i], dtype=np.float32) / top, 0, 1)
            big = np.asarray(Image.fromarray(heat).resize(images[i].size, Image.Resampling.BILINEAR))
            ax.imshow(big, cmap=HEAT, vmin=0, vmax=1, alpha=np.clip(.15 + .6 * big, 0, .7))


def unit_cards(cards: Sequence[Mapping], images: int = 6) -> Figure:
    """One row per card; a card holds the arguments of `unit_card` (title, labels, images, maps, truth)."""
    fig, axes = plt.subplots(len(cards), images + 1, figsize=(2.1 + 1.02 * images, 1.08 * len(cards)), squeeze=False,
                             gridspec_kw={"width_ratios": [2] + [1] * images, "wspace": .04, "hspace": .1})
    for row, card in zip(axes, cards):
        unit_card(row, **{**card, "images": card["images"][:images]})
    fig.subplots_adjust(left=.01, right=.995, top=.99, bottom=.01)
    return fig


def scores_by_layer(table: pd.DataFrame) -> Figure:
    """Box plot of the best label's score for every layer; scores compare within one method and concept set only."""
    best = table[table["rank"] == 1]
    layers = list(dict.fromkeys(best["layer"]))
    fig, ax = plt.subplots(figsize=(4.6, .34 * len(layers) + 1))
    sns.boxplot(best, x="score", y="layer", order=layers, ax=ax, color=sns.color_palette("colorblind")[0], width=.6, fliersize=1.5)
    counts = best.groupby("layer")["unit"].nunique()
    ax.set_yticks(range(len(layers)), [f"{name} (n={counts[name]})" for name in layers])
    ax.set(xlabel=f"score of the best label ({best['method'].iloc[0]})", ylabel="")
    fig.tight_layout()
    return fig


def labels_by_category(table: pd.DataFrame, category: Mapping[str, str] | None = None, most: int = 8) -> Figure:
    """Share of each layer's units whose label is of each kind; without `category` the `most` frequent labels are the kinds."""
    best = table[table["rank"] == 1]
    layers = list(dict.fromkeys(best["layer"]))
    if category:
        kind, title = best["label"].map(lambda label: category.get(label, "other")), "kind of label"
    else:
        often = set(best["label"].value_counts().index[:most])
        kind, title = best["label"].where(best["label"].isin(often), "other"), "label"
    share = pd.crosstab(best["layer"], kind, normalize="index").loc[layers]
    share = share[share.mean().sort_values(ascending=False).index]
    if "other" in share:
        share = share[[c for c in share if c != "other"] + ["other"]]
    fig, ax = plt.subplots(figsize=(5.6, .34 * len(layers) + 1))
    colours = [".85" if c == "other" else sns.color_palette("colorblind", share.shape[1])[i] for i, c in enumerate(share)]
    share.iloc[::-1].plot.barh(stacked=True, ax=ax, width=.75, color=colours, legend=False)
    ax.set(xlabel="share of units", ylabel="", xlim=(0, 1))
    ax.legend(title=title, fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1.01, .5), frameon=False)
    fig.tight_layout()
    return fig


def training_report(seconds: float = 10) -> Callable[[str, dict], None]:
    """A `report(stage, row)` that prints one line at most every `seconds`, and one when the stage changes."""
    last: dict = {"at": float("-inf"), "stage": None}

    def report(stage: str, row: Mapping) -> None:
        if stage != last["stage"] or time.monotonic() - last["at"] >= seconds:
            last.update(at=time.monotonic(), stage=stage)
            print(f"{stage}: step {row['step']}, loss {row['loss']:.3f}, {row['seconds']:.0f} s", flush=True)
    return report


def read_curves(folder: Path) -> pd.DataFrame:
    """Training curves below a folder: <stage>/curve.jsonl or <stage>.jsonl -> columns stage, step, loss, seconds."""
    files = sorted([*folder.glob("*/curve.jsonl"), *folder.glob("*.jsonl")])
    if not files:
        raise FileNotFoundError(f"no training curves (*.jsonl) below {folder}")
    return pd.concat([pd.read_json(f, lines=True).assign(stage=f.parent.name if f.stem == "curve" else f.stem) for f in files])


def training_curves(curves: pd.DataFrame) -> Figure:
    """Loss against step, a panel per stage."""
    stages = list(dict.fromkeys(curves["stage"]))
    fig, axes = plt.subplots(1, len(stages), figsize=(1.9 * len(stages), 1.9), squeeze=False)
    for ax, stage in zip(axes[0], stages):
        rows = curves[curves["stage"] == stage]
        ax.plot(rows["step"], rows["loss"], lw=1.2)
        ax.set(title=stage, xlabel="step", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("training loss")
    fig.tight_layout()
    return fig


def save_figure(fig: Figure, folder: Path, name: str) -> Path:
    """Write <name>.png (200 dpi) and <name>.pdf into `folder`, without dates, so that the same figure is the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.png", dpi=200, bbox_inches="tight", metadata={"Software": None})
    fig.savefig(folder / f"{name}.pdf", bbox_inches="tight", metadata={"CreationDate": None, "ModDate": None})
    return folder / f"{name}.png"


def explorer(table: pd.DataFrame, card: Callable[[str, int], Mapping]):
    """A widget that shows any unit: choose layer and unit, or search labels; `card(layer, unit)` gives `unit_card`'s arguments."""
    import ipywidgets as widgets
    from IPython.display import display
    best = table[table["rank"] == 1]
    layer = widgets.Dropdown(options=list(dict.fromkeys(best["layer"])), description="layer")
    search = widgets.Text(description="label has", continuous_update=False)
    unit = widgets.SelectionSlider(options=[0], description="unit", continuous_update=False)
    out = widgets.Output()

    def fill(*_) -> None:
        found = best[(best["layer"] == layer.value) & best["label"].str.contains(search.value, regex=False)]
        unit.options = found["unit"].tolist() or [0]

    def draw(*_) -> None:
        with out:
            out.clear_output(wait=True)
            fig = unit_cards([card(layer.value, unit.value)], images=8)
            display(fig)
            plt.close(fig)

    for widget, act in ((layer, fill), (search, fill), (unit, draw)):
        widget.observe(act, "value")
    fill()
    draw()
    return widgets.VBox([widgets.HBox([layer, search, unit]), out])
