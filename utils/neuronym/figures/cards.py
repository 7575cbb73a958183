"""Unit cards: labels, most active images, and where in them a unit fires.

unit_cards                labels and measurements -> a figure of chosen units
layer_cards               labels and measurements -> cards of chosen units, layer by layer
cards_from_best_to_worst  units worth drawing: from the best-scored label to the worst
collect                   cards of some units of a layer
draw                      cards as a figure

A picture keeps its own colours, by which a label such as "red" is judged: a line goes around where the unit
fires at half of its largest value or more, and the rest is a little darker.
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
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from neuronym import cache
from neuronym.activations import activation_maps, activation_spec
from neuronym.common.memory import top_images
from neuronym.common.types import Target
from neuronym.common.units import Units, units_by_layer
from neuronym.datasets.probe import Probe
from neuronym.figures.style import as_written, COLOURS, DPI
from neuronym.hooks import LayerInfo
from neuronym.measurements import Measurements
from neuronym.models.preprocess import seen

SCHEMA = 1
TILE, GAP = 192, 12  # picture and the space around it, in pixels like those below
ROOM, MARGIN, BELOW = 430, 16, 30  # texts, edge, values
FIRING, DARKER = 0.5, 0.62  # of the unit's largest value; what is left of the brightness elsewhere


@as_written
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
    cards = layer_cards(labels, data, wanted, images)
    return draw([card for some in cards.values() for card in some], images, str(labels["method"].iloc[0]))


def layer_cards(
    labels: pd.DataFrame,
    data: Measurements,
    units: Mapping[str, Sequence[int]],
    images: int = 6,
    keep: bool = False,
) -> dict[str, list[dict]]:
    """Cards of units {layer: units}, to `draw`; with `keep` their pictures and maps are cached."""
    classes = data.classes
    return {
        layer: collect(
            data.target,
            data.probe,
            data.layers[layer],
            data.Q[layer],
            labels,
            some,
            images,
            names=classes if classes and layer == data.target.layers[-1] else None,
            device=data.I.device,
            keep=keep,
        )
        for layer, some in units.items()
    }


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
                "values": Q[some, unit].tolist(),
                "maps": found["maps"][at, u].numpy() if "maps" in found else None,
            }
        )
    return cards


@as_written
def draw(
    cards: Sequence[Mapping], images: int = 6, method: str = "", value: str = "the unit's activation"
) -> Figure:
    """A figure of one row per card: title, labels with scores and, if known, the true name; then its most
    active images, each with the unit's activation.

    A card holds title, labels [(label, score)], images, and optionally values of these, truth, and maps [h,
    w] of each image, whose positive part tells where the unit fires, all on the unit's own scale. The
    pictures of all cards are one raster of the resolution figures are saved at; texts stay texts.
    """
    row, foot = TILE + 2 * GAP + BELOW, 44
    width, height = ROOM + images * (TILE + GAP) + MARGIN, len(cards) * row + foot
    fig = plt.figure(figsize=(width / DPI, height / DPI))
    ax = fig.add_axes((ROOM / width, foot / height, images * (TILE + GAP) / width, 1 - foot / height))
    ax.axis("off")
    raster = np.concatenate([_strip(card, images) for card in cards])
    ax.imshow(raster, interpolation="none", aspect="auto")
    for i, card in enumerate(cards):
        _write(fig, card, MARGIN / width, top=1 - (i * row + GAP) / height, pixel=1 / height)
    score = f"score: {method}, higher is better; " if method else ""
    place = "the line surrounds where the unit is at half of its largest activation or more"
    note = f"{score}below a picture: {value}; {place}"
    fig.text(MARGIN / width, 8 / height, note, fontsize=6, color="0.4", va="bottom", parse_math=False)
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


def _strip(card: Mapping, places: int) -> np.ndarray:
    """A row of tiles with values below, white where there is no picture: [TILE + 2 GAP + BELOW, places (TILE
    + GAP), 4] bytes.
    """
    row = Image.new("RGB", (places * (TILE + GAP), TILE + 2 * GAP + BELOW), "white")
    pencil, font = ImageDraw.Draw(row), ImageFont.load_default(20)
    maps, values = card.get("maps"), card.get("values")
    top = max((float(np.max(m)) for m in maps), default=0) if maps is not None else 0
    for i, image in enumerate(card["images"][:places]):
        scale = TILE / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        small = image.size[0] < 100  # its pixels are meant to be seen
        tile = image.convert("RGB").resize(
            size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        )
        if top > 0:
            tile = _outlined(tile, np.clip(np.asarray(maps[i], dtype=np.float32) / top, 0, 1))
        left = i * (TILE + GAP)
        row.paste(tile, (left + (TILE - size[0]) // 2, GAP + (TILE - size[1]) // 2))
        if values is not None:
            place = (left + TILE / 2, GAP + TILE + BELOW / 2 + 2)
            pencil.text(place, f"{values[i]:.3g}", fill=(110, 110, 110), font=font, anchor="mm")
    return np.asarray(row.convert("RGBA"))  # matplotlib draws three channels in float64, and slower


def _outlined(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image, darker where heat [h, w] from 0 to 1 is below FIRING, a white line in a black one around
    the rest.
    """
    heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR))
    inside = Image.fromarray(((heat >= FIRING) * 255).astype(np.uint8))
    if not inside.getbbox():
        return Image.eval(image, lambda value: int(value * DARKER))
    white = inside.filter(ImageFilter.MaxFilter(5))
    black = white.filter(ImageFilter.MaxFilter(5))
    out = Image.composite(image, Image.eval(image, lambda value: int(value * DARKER)), inside)
    out.paste((0, 0, 0), mask=ImageChops.subtract(black, white))
    out.paste((255, 255, 255), mask=ImageChops.subtract(white, inside))
    return out


def _write(fig: Figure, card: Mapping, left: float, top: float, pixel: float) -> None:
    """The texts of a card, from `top` downwards; `pixel` is one in parts of the figure's height."""
    labels, truth = card["labels"], card.get("truth")
    title = (
        card["title"] if len(card["title"]) <= 30 else "…" + card["title"][-29:]
    )  # the end tells units apart
    fig.text(left, top, title, fontsize=8, weight="bold", va="top", parse_math=False)
    y = 38
    if truth is not None:
        mark = "✓" if labels and labels[0][0] == truth else "✗"
        text = f"{mark} true name: {truth}"
        colour = COLOURS[2] if mark == "✓" else COLOURS[3]
        fig.text(left, top - y * pixel, text, fontsize=7, va="top", color=colour, parse_math=False)
        y += 32
    for i, (label, score) in enumerate(labels[: 4 if truth is None else 3]):
        shown = label if len(label) <= 24 else label[:23] + "…"
        fig.text(
            left,
            top - y * pixel,
            f"{shown}  ({score:.3g})",
            fontsize=7 if i else 8,
            va="top",
            color="0.4" if i else "black",
            parse_math=False,
        )
        y += 34 if i else 38
