"""Unit cards: labels, most active images, and where in them a unit fires.

unit_cards                labels and measurements -> a figure of chosen units
layer_cards               labels and measurements -> cards of chosen units, layer by layer
cards_from_best_to_worst  units worth drawing: from the best-scored label to the worst
collect                   cards of some units of a layer
draw                      cards as a figure
sheets                    many cards as several figures

A picture stands as it is, in the colours that a label such as "red" is judged by; a small one below it has a
line around where the unit fires at half of its largest value or more, and is darker elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neuronym import cache
from neuronym.activations import activation_maps, activation_spec
from neuronym.common.memory import top_images
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Target
from neuronym.common.units import Units, units_by_layer
from neuronym.datasets.probe import Probe
from neuronym.figures.lines import Line
from neuronym.figures.style import as_written, COLOURS, DPI
from neuronym.hooks import LayerInfo
from neuronym.measurements import Measurements
from neuronym.models.preprocess import seen
from neuronym.passes import ALIKE, differ_by

SCHEMA = 1
TILE, GAP = 192, 12  # picture and the space around it, in pixels like those below
INSET, BELOW = 84, 30  # picture that shows where the unit fires; values where there is none
ROOM, MARGIN = 430, 16  # texts, edge
CAPITALS = 0.76  # height of high letters, in parts of their size
FIRING, DARKER = 0.5, 0.62  # of the unit's largest value; what is left of the brightness elsewhere
DARKENED = np.array([int(value * DARKER) for value in range(256)], np.uint8)  # of each value
PAGE, TALLEST = 40, 160  # cards of a figure among several; of one figure, whose pixels have to fit its file
MANY = 400  # cards of a layer
IN_CARDS = ["unit", "rank", "label", "score", "note", "trust", "abstain", "calibrated"]  # of a labels table


@as_written
def unit_cards(
    labels: pd.DataFrame, data: Measurements, units: Units | Mapping[str, Units] = 5, images: int = 6
) -> Figure:
    """A figure with a card of each chosen unit: its labels, its most active images, and where in them it
    fires.

    `labels` is a labels table (of one method), `data` what it was made from or the whole of it; units are
    chosen as in `neuronym.common.units`, label:WORD among `labels`. Errors: ValueError for units that are not
    there, for more than TALLEST of them and for labels of other layers.

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
    if (count := sum(map(len, wanted.values()))) > TALLEST:
        raise ValueError(
            f"a figure has at most {TALLEST} cards, got {count} units by {units!r}; draw some of them"
        )
    cards = layer_cards(labels, data, wanted, images)
    return draw([card for some in cards.values() for card in some], images, str(labels["method"].iloc[0]))


def layer_cards(
    labels: pd.DataFrame,
    data: Measurements,
    units: Mapping[str, Sequence[int]],
    images: int = 6,
    keep: bool = False,
) -> dict[str, list[dict]]:
    """Cards of units {layer: units}, to `draw`; with `keep` their pictures and maps are cached.

    Of a layer there are at most MANY, evenly spread where more are asked for, which a line tells.
    """
    classes, cards = data.classes, {}
    for layer, wanted in units.items():
        some = [wanted[i] for i in evenly_spaced(min(MANY, len(wanted)), len(wanted))]
        if len(some) < len(wanted):
            print(f"{layer}: cards of {MANY} units, evenly spread over the {len(wanted)} asked for")
        cards[layer] = []
        for start in range(0, len(some), PAGE):  # maps are of all pictures and units looked at together
            cards[layer] += collect(
                data.target,
                data.probe,
                data.layers[layer],
                data.Q[layer],
                labels,
                some[start : start + PAGE],
                images,
                names=classes if classes and layer == data.target.layers[-1] else None,
                device=data.I.device,
                keep=keep,
            )
    return cards


def cards_from_best_to_worst(table: pd.DataFrame, layer: str, n: int) -> Sequence[int]:
    """n units of a layer at even steps from the most trusted name to the least, where the table has `trust`,
    else from the highest best-label score to the lowest, so that failures show too.
    """
    by = [column for column in ("trust", "score") if column in table]
    best = table[(table["layer"] == layer) & (table["rank"] == 1)].sort_values(
        by, ascending=False, kind="stable"
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

    Pictures are shown as the network sees them, so that a map lies where the unit fired; of a layer whose
    positions are no places in the picture that are known, there is none. `names` are the true ones of all
    units of the layer. With `keep`, pictures and maps are cached.
    """
    values = Q[:, units]
    best = top_images(values, min(images, len(values))).T.tolist()  # [units][images]
    rows = sorted({row for some in best for row in some})
    spec = activation_spec(target, probe, layer) | {"schema": SCHEMA, "units": list(units), "rows": rows}
    if layer.grid:
        spec |= {"grid": [*layer.grid, layer.start]}
    found = (
        cache.bundle(
            "cards",
            spec,
            lambda: _look(target, probe, layer, rows, units, device),
            check=lambda cached: _differ(cached, _look(target, probe, layer, rows[:1], units, device)),
        )
        if keep
        else _look(target, probe, layer, rows, units, device)
    )
    told = [name for name in IN_CARDS if name in table]
    cards, of_layer = [], table.loc[table["layer"] == layer.name, told]
    for u, (unit, some) in enumerate(zip(units, best)):
        labels = of_layer[of_layer["unit"] == unit].sort_values("rank")
        at = [rows.index(row) for row in some]
        cards.append(
            {
                "title": f"{layer.name}  unit {unit}",
                "labels": [(text, score) for text, score in zip(labels["label"], labels["score"]) if text],
                "note": str(labels["note"].iat[0]) if "note" in labels and len(labels) else "",
                "trust": _trust_of(labels, of_layer),
                "truth": names[unit] if names is not None else None,
                "images": [Image.fromarray(found["pictures"][i].numpy()) for i in at],
                "values": values[some, u].tolist(),
                "maps": found["maps"][at, u].numpy() if "maps" in found else None,
            }
        )
    return cards


def _trust_of(labels: pd.DataFrame, of_layer: pd.DataFrame) -> str:
    """What the labels table says of a unit's trust, "" where it says nothing: the probability where it is
    calibrated, else the place among the names of the layer.
    """
    if "abstain" in labels and labels["abstain"].any():
        return "not trusted: no better than chance"
    if not len(labels) or "trust" not in labels or not np.isfinite(labels["trust"].iat[0]):
        return ""
    own = labels["trust"].iat[0]
    if "calibrated" in labels and labels["calibrated"].all():
        return f"trust {own:.2f}"
    others = of_layer.drop_duplicates("unit")
    others = others.loc[~others["abstain"], "trust"] if "abstain" in others else others["trust"]
    return f"trust: {1 + (others > own).sum()} of {others.notna().sum()} in order, uncalibrated"


@as_written
def draw(
    cards: Sequence[Mapping], images: int = 6, method: str = "", value: str = "the unit's activation"
) -> Figure:
    """A figure of one row per card: title, labels with scores and, if known, the true name; then its most
    active images, each with the unit's activation.

    A card holds title, labels [(label, score)], images, and optionally a note in place of labels, values of
    the images, truth, trust (a text), and maps [h, w] of each image, whose positive part tells where the unit
    fires, all on the unit's own scale. The pictures of all cards are one raster of the resolution figures are
    saved at; texts stay texts.
    """
    strips, foot = [_strip(card, images) for card in cards], 44
    width, height = ROOM + images * (TILE + GAP) + MARGIN, sum(map(len, strips)) + foot
    fig = plt.figure(figsize=(width / DPI, height / DPI))
    ax = fig.add_axes((ROOM / width, foot / height, images * (TILE + GAP) / width, 1 - foot / height))
    ax.set_axis_off()
    ax.add_image(_Raster(ax, np.concatenate(strips)))
    top = GAP
    for card, strip in zip(cards, strips):
        _write(fig, card, MARGIN / width, top=1 - top / height, pixel=1 / height, lines=len(strip) - GAP)
        top += len(strip)
    notes = [f"below a picture: {value}"]
    if method:
        notes[0] = f"score: {method}, higher is better; {notes[0]}"
    if any(card.get("maps") is not None for card in cards):
        notes.append(
            "in the small picture a line is around where the unit is at half of its largest activation"
        )
    for i, note in enumerate(notes, 1):
        below = (13 + 20 * (len(notes) - i)) / height
        fig.add_artist(Line(MARGIN / width, below, note, fontsize=6, color="0.4", parse_math=False))
    return fig


def sheets(
    cards: Mapping[str, Sequence[Mapping]], method: str = "", first: str = "unit_cards"
) -> Iterator[tuple[str, Figure]]:
    """(name, figure), of cards {layer: cards} one with the first of each layer, and one for each layer, in
    pages of PAGE cards, drawn when they are asked for.
    """
    piles = {first: [of_layer[0] for of_layer in cards.values()]} if cards else {}
    piles |= {f"cards_{layer.replace('.', '_')}": of_layer for layer, of_layer in cards.items()}
    for name, pile in piles.items():
        if len(pile) > PAGE:
            print(f"{name}: {len(pile)} cards, {PAGE} a figure")
        for start in range(0, len(pile), PAGE):
            page = f"{name}_{start // PAGE + 1}" if start else name
            yield page, draw(pile[start : start + PAGE], method=method)


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
    if layer.layout in ("conv", "nhwc") or layer.grid:
        some = replace(probe, items=[np.asarray(image) for image in decoded])  # not decoded once more
        found["maps"] = activation_maps(target, some, layer, range(len(rows)), units=units, device=device)
    return found


def _differ(cached: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> str:
    """Why cached pictures and maps cannot be what they are for, of which the first is made anew; or ""."""
    same = cached.keys() == fresh.keys() and all(
        differ_by(cached[name][:1].float(), some.float()) <= ALIKE for name, some in fresh.items()
    )
    return "" if same else "the first picture or its maps are others now"


def _strip(card: Mapping, places: int) -> np.ndarray:
    """A row of tiles, below each a small one with where the unit fires, if that is known, and the value;
    white where there is no picture: [height, places (TILE + GAP), 4] bytes.
    """
    maps, values = card.get("maps"), card.get("values")
    top = max((float(np.max(m)) for m in maps), default=0) if maps is not None else 0
    below = BELOW if maps is None else INSET + GAP // 2
    row = Image.new("RGB", (places * (TILE + GAP), TILE + 2 * GAP + below), "white")
    pencil, font = ImageDraw.Draw(row), ImageFont.load_default(20)
    for i, image in enumerate(card["images"][:places]):
        left, image = i * (TILE + GAP), image.convert("RGB")
        tile = _fitted(image, TILE)
        row.paste(tile, (left + (TILE - tile.width) // 2, GAP + (TILE - tile.height) // 2))
        middle = left + TILE / 2
        if maps is not None:
            heat = np.clip(np.asarray(maps[i], dtype=np.float32) / top, 0, 1) if top > 0 else None
            small = _fitted(image, INSET)
            small = small if heat is None else _outlined(small, heat)
            place = left + (INSET - small.width) // 2, GAP + TILE + (INSET - small.height) // 2 + GAP // 2
            row.paste(small, place)
            middle = left + (INSET + TILE) / 2
        if values is not None:
            place = (middle, GAP + TILE + below / 2 + 2)
            pencil.text(place, f"{values[i]:.3g}", fill=(90, 90, 90), font=font, anchor="mm")
    return np.asarray(row.convert("RGBA"))  # matplotlib draws three channels in float64, and slower


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at `side`."""
    size = tuple(max(1, round(length * side / max(image.size))) for length in image.size)
    small = image.width < 100 and side > image.width  # its pixels are meant to be seen
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _outlined(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image, darker where heat [h, w] from 0 to 1 is below FIRING, a white line in a black one around
    the rest.
    """
    heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR))
    inside = heat >= FIRING
    white = _grown(inside)
    black = _grown(white)
    out = np.asarray(image)
    out = np.where(inside[..., None], out, DARKENED[out])
    out[black & ~white] = 0
    out[white & ~inside] = 255
    return Image.fromarray(out)


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask [h, w] and all that lies beside it, corners too."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    grown = rows.copy()
    grown[:, 1:] |= rows[:, :-1]
    grown[:, :-1] |= rows[:, 1:]
    return grown


class _Raster(AxesImage):
    """An image that fills its axes, in its own pixels where the figure is drawn in as many: sampling it anew
    takes longer than all else, and changes nothing.
    """

    def __init__(self, ax: Axes, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        super().__init__(ax, interpolation="none", origin="upper", extent=(0, width, height, 0))
        self.set_data(pixels)
        ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])  # even unseen ones take time

    def make_image(self, renderer, magnification=1.0, unsampled=False):
        left, bottom, width, height = self.axes.bbox.bounds
        same = (round(width), round(height)) == (self._A.shape[1], self._A.shape[0])
        if unsampled or magnification != 1 or not same:
            return super().make_image(renderer, magnification, unsampled)
        return self._A[::-1], round(left), round(bottom), Affine2D()  # renderers draw from below


def _write(fig: Figure, card: Mapping, left: float, top: float, pixel: float, lines: int) -> None:
    """The texts of a card, from `top` downwards, as many as go into `lines` pixels; `pixel` is one in parts
    of the figure's height.
    """

    def write(y: int, text: str, size: int, color: str = "black", weight: str = "normal") -> None:
        baseline = top - (y + CAPITALS * size * DPI / 72) * pixel
        fig.add_artist(
            Line(left, baseline, text, fontsize=size, color=color, weight=weight, parse_math=False)
        )

    labels, truth = card["labels"], card.get("truth")
    title = (
        card["title"] if len(card["title"]) <= 30 else "…" + card["title"][-29:]
    )  # the end tells units apart
    write(0, title, 8, plt.rcParams["text.color"], "bold")
    y = 38
    if truth is not None:
        mark = "✓" if labels and labels[0][0] == truth else "✗"
        write(y, f"{mark} true name: {truth}", 7, COLOURS[2] if mark == "✓" else COLOURS[3])
        y += 32
    if card.get("note"):
        what, _, why = card["note"].partition(": ")
        write(y, f"no name: {what}", 8, COLOURS[3])
        write(y + 34, why, 6, "0.4")
        return
    if card.get("trust"):
        write(y, card["trust"], 7, COLOURS[3] if card["trust"].startswith("not") else "0.2")
        y += 32
    for i, (label, score) in enumerate(labels):
        if y + 38 > lines:
            break
        shown = label if len(label) <= 24 else label[:23] + "…"
        write(y, f"{shown}  ({score:.3g})", 7 if i else 8, "0.4" if i else "black")
        y += 34 if i else 38
