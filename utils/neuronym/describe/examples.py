"""A unit's examples (Describe-and-Dissect, step 1): images and crops of them, ranked together by activation.

Example          an image of the probe or a crop of it, and what the unit makes of it
examples         the strongest of every unit, each image decoded once for all units
picture          an example as it is captioned and shown

A box is left, top, right, bottom in pixels; right and bottom are the first ones outside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuronym import hooks
from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import top_images
from neuronym.common.types import Box, Device, Progress
from neuronym.datasets.probe import batches, Probe
from neuronym.describe.crops import crops_of, FIELDS_OF, HEATMAPS
from neuronym.hooks import LayerInfo
from neuronym.models.preprocess import seen_of, SIZE
from neuronym.passes import inference_of

if TYPE_CHECKING:
    from neuronym.common.types import Target

FIELDS = ("seen", "whole")


@dataclass(frozen=True)
class Example:
    """Image `image` of the probe, at SIZE x SIZE, or the part of that in a box."""

    image: int
    box: Box | None
    activation: float


def examples(
    target: Target,
    layer: LayerInfo,
    units: Sequence[int],
    probe: Probe,
    Q: Tensor,
    *,
    images: int = 10,
    crops: int = 4,
    keep: int = 10,
    heatmap: str = "scale",
    field: str = "",
    pool: str = "avg",
    grid: tuple[int, int] | None = None,
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[int, list[Example]]:
    """The `keep` strongest examples of each unit, strongest first: {unit: examples}.

    The `images` highest in Q [N, K] are resized to SIZE x SIZE and pass the target. `attention_crops` of the
    unit's map of each give up to `crops` boxes; these parts, resized to SIZE x SIZE as well, pass it too. All
    are ranked by the activation of that picture, pooled as in Q, which itself is of images in their own
    proportions and not comparable. Ties: by image, the whole before its crops, these in their order.

    crops=0 is the paper's "no crops". Then, and in a layer without positions ("fc"), nothing passes the
    target: the examples are the highest images, with their activations in Q. `field` "seen" puts a map
    where the preprocessing took its pixels from (a central crop, say), "whole" over all of the picture,
    as the released code did; by default as `heatmap` has it. `heatmap` is as in `crops_of`, `grid` as in
    `hooks.as_maps`. Values do not depend on the units asked together, nor, up to rounding, on batch_size.
    In memory are a few batches of pictures, and the maps of one. Errors: ValueError for units out of
    range, a Q of another shape, fewer images than asked, values not finite.
    """
    units, Q = _checked(layer, units, probe, Q, images, crops, keep, heatmap, field)
    field = field or FIELDS_OF[heatmap]
    top = top_images(Q[:, units], images).T.tolist()  # [U, images]
    if layer.layout == "fc" or not crops:
        return {
            unit: [Example(i, None, float(Q[i, unit])) for i in mine[:keep]] for unit, mine in zip(units, top)
        }
    if layer.layout not in ("conv", "nhwc") and not (grid or layer.grid):
        raise ValueError(
            f"crops follow where a unit fires, and where the positions of '{layer.name}' are in the picture "
            "is not known; pass grid=(h, w), or crops=0"
        )
    users: dict[int, list[int]] = {}
    for unit, mine in zip(units, top):
        for image in mine:
            users.setdefault(image, []).append(unit)
    some = sorted(users)
    chosen = replace(
        probe, items=[probe.items[i] for i in some], ids=[probe.ids[i] for i in some], labels=None
    )
    part = seen_of(target.preprocess) if field == "seen" else None
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    found: dict[int, list[tuple]] = {unit: [] for unit in units}  # (-activation, image, order, box)

    with _reader(target, layer, pool, grid, batch_size, device, workers) as read:
        stream = batches(chosen, [_pixels], batch_size, workers=workers)
        if progress is not None:
            stream = progress(stream, -(-chosen.N // batch_size), f"examples of {layer.name}")
        for rows, [pixels] in stream:
            here, ids, shown = some[rows], chosen.ids[rows], list(pixels.permute(0, 2, 3, 1).numpy())
            pairs = [(i, unit) for i, image in enumerate(here) for unit in users[image]]
            values, maps = read(ids, shown, pairs, True)
            cuts: dict[tuple[int, Box], list[tuple[int, int]]] = {}  # equal boxes of several units pass once
            for (i, unit), value, boxes in zip(
                pairs, values, crops_of(maps, SIZE, crops, heatmap, field=part)
            ):
                found[unit].append((-value, here[i], 0, None))
                for order, box in enumerate(boxes, start=1):
                    cuts.setdefault((i, box), []).append((unit, order))
            values, _ = read(
                [f"{ids[i]} at {box}" for i, box in cuts],
                [shown[i][top:bottom, left:right] for i, (left, top, right, bottom) in cuts],
                [(j, unit) for j, mine in enumerate(cuts.values()) for unit, _ in mine],
                False,
            )
            ranks = [(unit, i, order, box) for (i, box), mine in cuts.items() for unit, order in mine]
            for (unit, i, order, box), value in zip(ranks, values):
                found[unit].append((-value, here[i], order, box))
    return {
        unit: [
            Example(image, box, -value)
            for value, image, _, box in sorted(mine, key=lambda one: one[:3])[:keep]
        ]
        for unit, mine in found.items()
    }


def picture(probe: Probe, example: Example) -> Image.Image:
    """The example as an RGB picture of SIZE x SIZE: the image resized (not in proportion), or its box
    resized.
    """
    if not 0 <= example.image < probe.N:
        raise ValueError(
            f"image numbers lie within 0 .. {probe.N - 1}, got {example.image}; pass the probe of the "
            "examples"
        )
    whole_one = _square(probe.image(example.image))
    return whole_one if example.box is None else _square(whole_one.crop(example.box))


@contextmanager
def _reader(
    target: Target,
    layer: LayerInfo,
    how: str,
    grid: tuple[int, int] | None,
    batch_size: int,
    device: Device,
    workers: int,
) -> Iterator[Callable[..., tuple[list[float], Tensor | None]]]:
    """Yield read(ids, pixels [h, w, 3] each, pairs (row, unit) by row, mapped): values and maps [pairs, h,
    w].
    """
    count, wanted, maps_too = 0, (), True

    def both(name: str, output: Tensor) -> tuple[Tensor, Tensor]:
        values = hooks.pool(output, layer.layout, how, count)[wanted].float().cpu()  # [pairs]
        return values, hooks.maps_of(output, layer, grid)[wanted].float().cpu() if maps_too else values

    def prepared(image: Image.Image) -> Tensor:
        return target.preprocess(_square(image))

    with inference_of(target, device) as place, hooks.record(target.model, [layer.name], both) as acts:

        def read(
            ids: list[str], shown: list[np.ndarray], pairs: list[tuple[int, int]], mapped: bool
        ) -> tuple[list[float], Tensor | None]:
            nonlocal count, wanted, maps_too
            if not pairs:
                return [], None
            first, maps_too, parts, (rows, units) = 0, mapped, [], torch.tensor(pairs).T
            for span, [inputs] in batches(
                Probe("", ids, None, "", [], shown), [prepared], batch_size, workers=workers
            ):
                for piece in place(inputs):
                    count, last = len(piece), min(first + len(piece), span.stop)  # one image is there twice
                    mine = (rows >= first) & (rows < last)
                    wanted = rows[mine] - first, units[mine]
                    target.model(piece)
                    parts.append(acts[layer.name])
                    first = last
            values, maps = (torch.cat(some) for some in zip(*parts))
            if not bool(values.isfinite().all()):
                row, unit = pairs[int((~values.isfinite()).nonzero()[0])]
                raise ValueError(
                    f"activations must be finite; '{layer.name}' of {target.name} gave another value for "
                    f"image '{ids[row]}' (unit {unit}); check weights and image"
                )
            return values.tolist(), maps if mapped else None

        yield read


def _square(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(_square(image)).transpose(2, 0, 1).copy())  # [3, SIZE, SIZE]


def _checked(
    layer: LayerInfo,
    units: Sequence[int],
    probe: Probe,
    Q: Tensor,
    images: int,
    crops: int,
    keep: int,
    heatmap: str,
    field: str,
) -> tuple[list[int], Tensor]:
    if not isinstance(Q, Tensor) or tuple(Q.shape) != (probe.N, layer.units):
        got = list(Q.shape) if isinstance(Q, Tensor) else type(Q).__name__
        raise ValueError(
            f"expected Q [N, K] of {probe.N} images of '{probe.name}' and {layer.units} units of "
            f"'{layer.name}', got {got}; pass the probe and the layer it was made with"
        )
    units = list(dict.fromkeys(int(unit) for unit in units))
    wrong = [unit for unit in units if not 0 <= unit < layer.units]
    if wrong or not units:
        raise ValueError(
            f"unit numbers of '{layer.name}' lie within 0 .. {layer.units - 1}, got "
            f"{wrong[0] if wrong else 'none'}"
        )
    check_positive_int("images", images, probe.N, f"the {probe.N} images of '{probe.name}'")
    check_positive_int("keep", keep)
    if crops:
        check_positive_int("crops", crops)
    if heatmap not in HEATMAPS:
        raise unknown("heatmap", heatmap, HEATMAPS)
    if field and field not in FIELDS:
        raise unknown("field", field, FIELDS)
    return units, Q.detach().cpu()
