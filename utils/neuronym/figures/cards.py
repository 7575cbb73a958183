"""Unit cards: labels, most active images, and where in them a unit fires.

unit_cards                 labels and measurements -> a figure of chosen units
cards_from_best_to_worst   units worth drawing: from the best-scored label to the worst
collect                    cards of some units of a layer
draw                       cards as a figure
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from neuronym import cache
from neuronym.activations import activation_maps, activation_spec
from neuronym.common.memory import top_images
from neuronym.common.types import Target
from neuronym.common.units import Units, units_by_layer
from neuronym.datasets.probe import Probe
from neuronym.figures.style import DPI, palette
from neuronym.hooks import LayerInfo
from neuronym.measurements import Measurements
from neuronym.models.preprocess import seen

SCHEMA = 1
HEAT = "inferno"
TILE, GAP, ROOM = 192, 12, 400  # side of a picture, space around it, width of the texts; in pixels


def unit_cards(
    labels: pd.DataFrame, data: Measurements, units: Units | Mapping[str, Units] = 5, images: int = 6
) -> Figure:
    """A figure with a card of each chosen unit: its labels, its most active images, and where in them it
    fires.

    `labels` is a labels table (of one method), `data` what it was made from or the whole of it; units are
    chosen as in `neuronym.common.units`, label:WORD among `labels`. Errors: ValueError for units that are not
    there and for labels of other layers.

    >>> from neuronym import clip_dissect, measure
    >>> data = measure("microworld:resnet", "fc", "microworld:60", "microworld", "microworld:atoms")
    >>> figure = unit_cards(clip_dissect(data), data, units=[3, 17], images=4)
    """
    known = [layer for layer in data.layers if layer in set(labels["layer"])]
    if not known:
        raise ValueError(
            f"the labels are of layers {', '.join(dict.fromkeys(labels['layer']))}, the measurements of "
            f"{', '.join(data.layers)}; give those that belong together"
        )
    wanted = units_by_layer(units, {layer: data.sizes[layer] for layer in known}, labels)
    classes = data.classes
    cards = [
        card
        for layer, some in wanted.items()
        for card in collect(
            data.target,
            data.probe,
            data.layers[layer],
            data.Q[layer],
            labels,
            some,
            images,
            names=classes if classes and layer == data.target.layers[-1] else None,
            device=data.I.device,
        )
    ]
    return draw(cards, images)


def cards_from_best_to_worst(table: pd.DataFrame, layer: str, n: int) -> Sequence[int]:
    """n units of a layer at even steps from the highest best-label score to the lowest, so that failures show
    too.
    """
    best = table[(table["layer"] == layer) & (table["rank"] == 1)].sort_values(
        "score", ascending=False, kind="stable"
    )
    n = min(n, len(best))
    return [int(best["unit"].iloc[round(i * (len(best) - 1) / max(n - 1, 1))]) for i in range(n)]


def collect(
    target: Target,
    probe: Probe,
    layer: LayerInfo,
    Q: Tensor,
    table: pd.DataFrame,
    units: Sequence[int],
    images: int = 6,
    names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    keep: bool = False,
) -> list[dict]:
    """A card of each unit, to `draw`; Q [N, K] are the layer's activations, `table` its labels.

    Pictures are shown as the network sees them, so that a map lies where the unit fired. A token layer whose
    patches are no square (beside class and register tokens) is shown by its last square of tokens. `names`
    are the true ones of all units of the layer. With `keep`, pictures and maps are cached.
    """
    best = top_images(Q[:, units], min(images, len(Q))).T.tolist()  # [units][images]
    rows = sorted({row for some in best for row in some})
    spec = activation_spec(target, probe, layer) | {"schema": SCHEMA, "units": list(units), "rows": rows}
    found = (
        cache.bundle("cards", spec, lambda: _look(target, probe, layer, rows, units, device))
        if keep
        else _look(target, probe, layer, rows, units, device)
    )
    cards = []
    for u, (unit, some) in enumerate(zip(units, best)):
        labels = table[(table["layer"] == layer.name) & (table["unit"] == unit)].sort_values("rank")
        at = [rows.index(row) for row in some]
        cards.append(
            {
                "title": f"{layer.name}  unit {unit}",
                "labels": list(zip(labels["label"], labels["score"])),
                "truth": names[unit] if names is not None else None,
                "images": [Image.fromarray(found["pictures"][i].numpy()) for i in at],
                "maps": found["maps"][at, u].numpy() if "maps" in found else None,
            }
        )
    return cards


def draw(cards: Sequence[Mapping], images: int = 6) -> Figure:
    """A figure of one row per card: title, labels with scores and, if known, the true name; then its most
    active images.

    A card holds title, labels [(label, score)], images, and optionally truth and maps [h, w] of each image,
    whose positive part lies over the image as heat, all on the unit's own scale. The pictures of all cards
    are one raster of the resolution figures are saved at; texts stay texts.
    """
    width, height = ROOM + images * (TILE + GAP), len(cards) * (TILE + 2 * GAP)
    fig = plt.figure(figsize=(width / DPI, height / DPI))
    ax = fig.add_axes((ROOM / width, 0, 1 - ROOM / width, 1))
    ax.axis("off")
    raster = np.concatenate([_strip(card["images"][:images], card.get("maps"), images) for card in cards])
    ax.imshow(raster, interpolation="none", aspect="auto")
    for i, card in enumerate(cards):
        _write(fig, card, top=1 - (i * (TILE + 2 * GAP) + GAP) / height, tall=TILE / height)
    return fig


def _look(
    target: Target,
    probe: Probe,
    layer: LayerInfo,
    rows: list[int],
    units: Sequence[int],
    device: str | torch.device,
) -> dict[str, Tensor]:
    """ "pictures" [n, h, w, 3] bytes of the given images and, of a layer with positions, "maps" [n, units, h,
    w].
    """
    decoded = [probe.image(row) for row in rows]
    found = {"pictures": torch.from_numpy(np.stack([seen(target.preprocess, image) for image in decoded]))}
    if layer.layout != "fc":
        side = math.isqrt(layer.shape[0])
        some = replace(probe, items=[np.asarray(image) for image in decoded])  # not decoded once more
        found["maps"] = activation_maps(
            target,
            some,
            layer,
            range(len(rows)),
            units=units,
            device=device,
            grid=(side, side) if layer.layout.startswith("tokens") else None,
        )
    return found


def _strip(images: Sequence[Image.Image], maps: Sequence[np.ndarray] | None, places: int) -> np.ndarray:
    """A row of tiles, white where there is no picture: [TILE + 2 GAP, places (TILE + GAP), 4] bytes."""
    row = Image.new("RGB", (places * (TILE + GAP), TILE + 2 * GAP), "white")
    top = max((float(np.max(m)) for m in maps), default=0) if maps is not None else 0
    for i, image in enumerate(images):
        scale = TILE / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        small = image.size[0] < 100  # its pixels are meant to be seen
        tile = image.convert("RGB") if small else image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        if top > 0:
            tile = _heated(tile, np.clip(np.asarray(maps[i], dtype=np.float32) / top, 0, 1))
        tile = tile.resize(size, Image.Resampling.NEAREST)
        row.paste(tile, (i * (TILE + GAP) + (TILE - size[0]) // 2, GAP + (TILE - size[1]) // 2))
    return np.asarray(row.convert("RGBA"))  # matplotlib draws three channels in float64, and slower


def _heated(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image with heat [h, w] from 0 to 1 over it, the denser the hotter."""
    heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR))
    colour = (255 * plt.get_cmap(HEAT)(heat)[..., :3]).astype(np.uint8)
    density = np.clip(255 * (0.15 + 0.6 * heat), 0, 255 * 0.7).astype(np.uint8)
    return Image.composite(Image.fromarray(colour), image, Image.fromarray(density))


def _write(fig: Figure, card: Mapping, top: float, tall: float) -> None:
    """The texts of a card, from `top` downwards over the height of a tile (both in parts of the figure)."""
    labels, truth = card["labels"], card.get("truth")
    title = (
        card["title"] if len(card["title"]) <= 26 else "…" + card["title"][-25:]
    )  # the end tells units of one network apart
    fig.text(0, top, title, fontsize=8, weight="bold", va="top")
    if truth is not None:
        hit = bool(labels) and labels[0][0] == truth
        fig.text(
            0,
            top - 0.18 * tall,
            f"true name: {truth} {'(found)' if hit else ''}",
            fontsize=7,
            va="top",
            color=palette()[2 if hit else 3],
        )
    first = 0.38 if truth is not None else 0.22
    for i, (label, score) in enumerate(labels[:4]):
        shown = label if len(label) < 24 else label[:22] + ".."
        fig.text(
            0,
            top - (first + 0.17 * i) * tall,
            f"{shown}  ({score:.3g})",
            fontsize=7 if i else 8,
            va="top",
            color="0.4" if i else "black",
        )
