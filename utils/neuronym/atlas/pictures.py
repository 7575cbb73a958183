"""The pictures of an atlas: every image that a unit shows is stored once, on sheets of 64, and where in it
a unit fires is a line beside it.

Sheets         images on sheets, in the order in which units ask for them
write_sheets   sheets as WebP files
write_picture  one picture of a file as WebP
remembered     images of a probing set, each read once as long as memory for them lasts
as_seen        images of a probing set as the network sees them
where_firing   for units and some images of each, where in the image the unit fires
outline        a line around where a map is at half of its highest value or more
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn, Tensor

from neuronym import hooks
from neuronym.common.types import Progress
from neuronym.datasets.probe import Probe
from neuronym.measurements import Measurements
from neuronym.models.preprocess import seen
from neuronym.similarity.sparse_columns import over_blocks, SparseColumns
from neuronym.trials import evaluating

KEPT = 2**28  # bytes of images that are kept, to be read once
ACROSS = 8  # pictures in a row of a sheet, and rows
QUALITY = 86
CELLS = 16  # the most of a side of a map


@dataclass
class Sheets:
    """Images of one probing set on sheets: row of the probe -> place, given in the order of asking."""

    places: dict[int, int] = field(default_factory=dict)

    def place(self, rows: Sequence[int]) -> list[int]:
        """Places of images, new ones at the end."""
        return [self.places.setdefault(int(row), len(self.places)) for row in rows]


def write_sheets(
    sheets: Sheets,
    picture: Callable[[int], Image.Image],
    folder: Path,
    size: int,
    progress: Progress | None = None,
) -> int:
    """Write NNNN.webp of 64 pictures each, `size` pixels a side; returns the bytes written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, each, written = list(sheets.places), ACROSS**2, 0
    starts = range(0, len(rows), each)
    for number, start in enumerate(starts if progress is None else progress(starts, len(starts), "sheets")):
        some = rows[start : start + each]
        file = folder / f"{number:04d}.webp"
        sheet([picture(row) for row in some], size).save(file, quality=QUALITY, method=4)
        written += file.stat().st_size
    return written


def write_picture(source: Path, file: Path, size: int) -> int:
    """Write the picture of `source` as WebP, its longer side at most `size` pixels; returns the bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        smaller = picture.convert("RGB")
    smaller.thumbnail((size, size), Image.Resampling.LANCZOS)
    smaller.save(file, quality=QUALITY, method=4)
    return file.stat().st_size


def sheet(pictures: Sequence[Image.Image], size: int) -> Image.Image:
    """Pictures in rows of ACROSS, `size` pixels a side, or less where all of them are smaller."""
    side = min(size, max(max(picture.size) for picture in pictures))
    whole = Image.new("RGB", (ACROSS * side, -(-len(pictures) // ACROSS) * side))
    for i, picture in enumerate(pictures):
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        whole.paste(picture, (i % ACROSS * side, i // ACROSS * side))
    return whole


def remembered(probe: Probe, most: int = KEPT) -> Callable[[int], Image.Image]:
    """row -> that image of the probing set, a copy of one that was read before; of `most` bytes in all."""
    kept: dict[int, Image.Image] = {}
    held = 0

    def image(row: int) -> Image.Image:
        nonlocal held
        if row in kept:
            return kept[row].copy()
        found = probe.image(row)
        size = found.width * found.height * len(found.getbands())
        if held + size <= most:
            kept[row], held = found.copy(), held + size
        return found

    return image


def as_seen(
    data: Measurements, image: Callable[[int], Image.Image] | None = None
) -> Callable[[int], Image.Image]:
    """row -> that image of the probing set (of `image`) as the network sees it."""
    ends: dict = {}
    read = image or data.probe.image
    return lambda row: seen(data.target.preprocess, read(row), ends)


def where_firing(
    data: Measurements,
    rows: Mapping[str, Tensor],
    batch_size: int = 32,
    progress: Progress | None = None,
    image: Callable[[int], Image.Image] | None = None,
    units: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Where each unit fires in some images: rows {layer: [n, K]} -> {layer: [K, n, h, w]} bytes, 255 for the
    image's highest value and 0 for nothing or below; of an image on which the unit's activation is below
    zero, 255 for its lowest value and 0 for nothing or above. Layers without positions are left out. With
    `units` {layer: K of its units} rows are of these.

    One forward pass over the different images serves all layers. A map larger than 16 cells a side is made
    smaller by the largest value in each cell.
    """
    placed = {
        name: info for name, info in data.layers.items() if info.grid or info.layout in ("conv", "nhwc")
    }
    layers = {name: info for name, info in placed.items() if name in rows}
    if not layers:
        return {}
    wanted = {name: rows[name].cpu() for name in layers}
    below = {name: _below(data.Q[name], rows[name], units and units[name]).cpu() for name in layers}
    distinct = torch.cat([some.flatten() for some in wanted.values()]).unique()
    found: dict[str, Tensor] = {}
    model, read = data.target.model, image or data.probe.image
    place = next(model.parameters()).device

    def keep(name: str, output: Tensor) -> Tensor:
        maps = hooks.maps_of(output, layers[name]).float()
        return cells(maps if units is None else maps[:, list(units[name])])

    starts = range(0, len(distinct), batch_size)
    with torch.inference_mode(), evaluating(model), hooks.record(model, list(layers), keep) as acts:
        for start in starts if progress is None else progress(starts, len(starts), "where units fire"):
            some = distinct[start : start + batch_size]
            images = [data.target.preprocess(read(int(row))) for row in some]
            model(torch.stack(images).to(place))
            for name, maps in acts.items():
                _spread(found, name, maps.cpu(), some, wanted[name], below[name])
    return {name: _bytes(maps) for name, maps in found.items()}


def outline(map: np.ndarray, level: float) -> str:
    """A line around where a map [h, w] is at `level` or more, as an SVG path in a picture of 100 x 100; ""
    where it nowhere is. Values are of the middles of cells, and between them linear.
    """
    from contourpy import contour_generator

    edged = np.pad(np.pad(np.asarray(map, dtype=float), 1, mode="edge"), 1)  # it ends where the picture ends
    y, x = (np.concatenate([[-1e-3, 0], (np.arange(n) + 0.5) / n, [1, 1 + 1e-3]]) * 100 for n in map.shape)
    return "".join(_path(np.rint(line).astype(int)) for line in contour_generator(x, y, edged).lines(level))


def _path(points: np.ndarray) -> str:
    """A line through points [n, 2], in steps, which take fewer letters than places; "" around a point."""
    steps = np.diff(points, axis=0)
    told = " ".join(f"{x} {y}" for x, y in steps[steps.any(1)].tolist())
    return f"M{points[0, 0]} {points[0, 1]}l{told}".replace(" -", "-") if told else ""


def cells(maps: Tensor) -> Tensor:
    """The highest values of maps [B, K, h, w] and, their sign turned, the lowest, [2, B, K, at most CELLS,
    at most CELLS], 0 where that is below 0.
    """
    smaller = [min(CELLS, n) for n in maps.shape[2:]]
    return torch.stack([nn.functional.adaptive_max_pool2d(some, smaller) for some in (maps, -maps)]).relu_()


def _below(q: Tensor | SparseColumns, rows: Tensor, units: Sequence[int] | None) -> Tensor:
    """Of the images rows [n, K], those on which a unit's activation q [N, all units] is below zero."""
    rows, q = rows.to(q.device), q if units is None else q[:, list(units)]
    return over_blocks(lambda some, q: q.gather(0, rows[:, some]) < 0, q, axis=1)


def _spread(found: dict, name: str, maps: Tensor, some: Tensor, wanted: Tensor, below: Tensor) -> None:
    """Put the maps [2, b, K, h, w] of the images `some` where `wanted` [n, K] asks for them."""
    if name not in found:
        found[name] = torch.zeros(wanted.shape[1], wanted.shape[0], *maps.shape[3:])
    which, unit = torch.isin(wanted, some).nonzero(as_tuple=True)
    place = torch.searchsorted(some, wanted[which, unit])
    found[name][unit, which] = maps[below[which, unit].long(), place, unit]


def _bytes(maps: Tensor) -> np.ndarray:
    highest = maps.amax((2, 3), keepdim=True).clamp_min(1e-12)
    return (maps / highest * 255).round().byte().numpy()


def mean_bytes(probe: Probe, picture: Callable[[int], Image.Image], size: int, samples: int = 64) -> float:
    """Bytes that a picture takes on a sheet, from one sheet of pictures spread over the probing set."""
    import io

    rows = np.unique(np.linspace(0, probe.N - 1, min(samples, probe.N)).astype(int))
    file = io.BytesIO()
    sheet([picture(int(row)) for row in rows], size).save(file, "webp", quality=QUALITY, method=4)
    return len(file.getvalue()) / len(rows)
