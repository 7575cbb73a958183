"""A unit's examples (Describe-and-Dissect, step 1): images and crops of them, ranked together by activation.

Example          an image of the probe or a crop of it, and what the unit makes of it
examples         the strongest of every unit, each image decoded once for all units
picture          an example as it is captioned and shown
attention_crops  the parts of a picture where a unit's map is high, as boxes, largest first
crops_of         the same of many maps
eight_bit        activation maps as 8-bit maps: one of HEATMAPS
enlarged         8-bit maps at another size, as ENLARGEMENTS has it for each of HEATMAPS
otsu             the threshold that splits the values of a map best
outer_boxes      bounding boxes of what is above the threshold, largest first
box_iou          how far two boxes cover each other
distinct         the boxes that are kept
HEATMAPS         name -> what makes bytes of a map

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
from torch.nn import functional as F

from neuronym import hooks
from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import items_within, MEMORY, slices, top_images, working_bytes
from neuronym.common.types import Box, Device, Progress
from neuronym.datasets.probe import batches, Probe
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


OVERLAP = 0.5  # a box that covers a kept one further is left out
NEARLY_ALL = 0.8  # and one that covers as much of the picture


def attention_crops(
    map: Tensor, size: int = SIZE, most: int = 4, heatmap: str = "scale", *, field: Box | None = None
) -> list[Box]:
    """Boxes of one map [H, W] in a picture of size x size, largest first; see `crops_of`. A constant map has
    none.
    """
    if not isinstance(map, Tensor) or map.ndim != 2:
        raise ValueError(f"expected a map [H, W], got {_what(map)}; use crops_of for several")
    return crops_of(map[None], size, most, heatmap, field=field)[0]


@torch.no_grad()
def crops_of(
    maps: Tensor,
    size: int = SIZE,
    most: int = 4,
    heatmap: str = "scale",
    *,
    field: Box | None = None,
    memory: int = MEMORY,
) -> list[list[Box]]:
    """Boxes of each map in a picture of size x size, largest first: maps [n, H, W] -> n lists of at most
    `most` boxes.

    8-bit map, enlarged to the picture, binary by its Otsu threshold, `outer_boxes`, then `distinct` ones.
    With `heatmap` "wrap" bytes and enlargement are the released code's, with "scale" what they should be.
    `field` is the part of the picture that the map covers, by default all of it; where it reaches beyond the
    picture, boxes end with the picture. Errors: ValueError for values that are not finite, an empty map or
    field; KeyError for an unknown heatmap.
    """
    check_positive_int("size", size)
    if most:
        check_positive_int("most", most)
    left, top, right, bottom = field or (0, 0, size, size)
    if not (left < min(right, size) and top < min(bottom, size) and right > 0 and bottom > 0):
        raise ValueError(
            f"field is left, top, right, bottom of a part of the {size} x {size} picture, got {field}"
        )
    covered = (max(left, 0), max(top, 0), min(right, size), min(bottom, size))
    small = eight_bit(_checked_map(maps, 3), heatmap)  # [n, H, W]
    width, height, found = right - left, bottom - top, []
    pixels = 16 * width * height  # bytes for one map
    items_within(memory, (0, pixels, len(maps)))
    for part in slices(len(maps), working_bytes(memory, torch.device("cpu")) // pixels):
        large = enlarged(small[part].cpu(), height, width, ENLARGEMENTS[heatmap])  # [some, height, width]
        for above in (large > otsu(large)[:, None, None]).numpy():
            boxes = [
                (max(x + left, 0), max(y + top, 0), min(r + left, size), min(b + top, size))
                for x, y, r, b in outer_boxes(above)
            ]
            found.append(
                distinct([box for box in boxes if box[0] < box[2] and box[1] < box[3]], covered, most)
            )
    return found


def eight_bit(maps: Tensor, heatmap: str = "scale") -> Tensor:
    """Activation maps as bytes: maps [..., H, W] -> uint8 [..., H, W].

    "scale": each map from its minimum at 0 to its maximum at 255, rounded; 0 where it is constant up to
    rounding. "wrap": 255 x cut to a whole number, modulo 256, as the released code had it: 1.01 becomes 1,
    and a strong activation noise.
    """
    if heatmap not in HEATMAPS:
        raise unknown("heatmap", heatmap, HEATMAPS)
    return HEATMAPS[heatmap](_checked_map(maps))


def enlarged(maps: Tensor, height: int, width: int, how: str = "bilinear") -> Tensor:
    """8-bit maps at another size, rounded: uint8 [n, H, W] -> uint8 [n, height, width], on the CPU.

    "bilinear", values at the middle of pixels, stays between a map's own values, so that no overshoot moves
    the threshold; where a map is larger than asked, its pixels are averaged (antialias). "bicubic" is what
    the released code did: Pillow's, whose overshoot ends at 0 and 255.
    """
    import cv2

    if how not in ("bilinear", "bicubic"):
        raise unknown("enlargement", how, ("bilinear", "bicubic"))
    shrinks = maps.shape[1] > height or maps.shape[2] > width
    if how == "bilinear" and shrinks:
        large = F.interpolate(maps[:, None].float(), (height, width), mode="bilinear", antialias=True)
        return large[:, 0].round_().clamp_(0, 255).byte()
    found = np.empty((len(maps), height, width), np.uint8)
    for one, large in zip(maps.numpy(), found):
        if how == "bicubic":
            large[:] = Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)
        else:  # of floats, as OpenCV's of bytes counts in steps of 1/2048
            large[:] = np.rint(cv2.resize(one.astype(np.float32), (width, height)))
    return torch.from_numpy(found)


def otsu(maps: Tensor) -> Tensor:
    """Otsu's threshold of each map: uint8 [..., H, W] -> int64 [...]; what is above it is the foreground.

    The t that maximises n0 n1 (m0 - m1)^2, with n0 values of mean m0 up to t and n1 of mean m1 above; of
    equally good ones the lowest, but for rounding; OpenCV's. A constant map has no two classes: its
    threshold is 255, which nothing is above.
    """
    import cv2

    if maps.dtype != torch.uint8 or maps.ndim < 2 or not maps.numel():
        raise ValueError(f"expected 8-bit maps [..., H, W], none empty, got {_what(maps)}; use eight_bit")
    found = []
    for one in maps.flatten(0, -3).cpu().numpy() if maps.ndim > 2 else [maps.cpu().numpy()]:
        constant = one.min() == one.max()
        found.append(255 if constant else int(cv2.threshold(one, 0, 255, cv2.THRESH_OTSU)[0]))
    return torch.tensor(found, device=maps.device).view(maps.shape[:-2])


def outer_boxes(above: np.ndarray) -> list[Box]:
    """Bounding boxes of the outer contours of bool [H, W], by area of the box, largest first, ties by top,
    then left.

    An outer contour belongs to pixels that touch each other, corners included, and are not inside a hole of
    others: OpenCV's external ones.
    """
    import cv2

    contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [(x, y, x + width, y + height) for x, y, width, height in map(cv2.boundingRect, contours)]
    return sorted(boxes, key=lambda box: (-_area(box), box[1], box[0]))


def box_iou(a: Box, b: Box) -> float:
    """Area that two boxes share, divided by the area that either covers."""
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / (_area(a) + _area(b) - both)


def distinct(boxes: Sequence[Box], covered: Box, most: int = 4) -> list[Box]:
    """The first `most` boxes, in order, whose IoU is at most .5 with each kept one and below .8 with all
    covered.

    Covered is the picture, or the part that a map covers: a box of nearly all of it shows the network nothing
    else.
    """
    kept: list[Box] = []
    for box in boxes:
        if len(kept) == most:
            break
        if box_iou(box, covered) < NEARLY_ALL and all(box_iou(box, other) <= OVERLAP for other in kept):
            kept.append(box)
    return kept


def _scaled(maps: Tensor) -> Tensor:
    x = maps.double()
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    rounding = torch.finfo(maps.dtype if maps.is_floating_point() else torch.float64).eps
    constant = high - low <= 4 * rounding * torch.maximum(high.abs(), low.abs())
    return ((x - low) / (high - low).masked_fill(constant, 1) * 255).round().masked_fill(constant, 0).byte()


def _wrapped(maps: Tensor) -> Tensor:
    # in the maps' own dtype, as released; the remainder first, since a value may be too large for any whole
    # number
    return (maps * 255).trunc().fmod(256).long().remainder(256).byte()


HEATMAPS: dict[str, Callable[[Tensor], Tensor]] = {"scale": _scaled, "wrap": _wrapped}
"""name -> function of maps [..., H, W]."""

ENLARGEMENTS = {"scale": "bilinear", "wrap": "bicubic"}  # how maps of each are enlarged
FIELDS_OF = {"scale": "seen", "wrap": "whole"}  # and which part of the picture they are of


def _checked_map(maps: Tensor, axes: int | None = None) -> Tensor:
    if (
        not isinstance(maps, Tensor)
        or (maps.ndim != axes if axes else maps.ndim < 2)
        or 0 in maps.shape[-2:]
        or maps.is_complex()
    ):
        raise ValueError(
            f"expected real maps [{'n' if axes else '...'}, H, W], none empty, got {_what(maps)}"
        )
    if not bool(maps.isfinite().all()):
        raise ValueError(
            f"maps must be finite, got {maps[~maps.isfinite()][0].item()}; check weights and image"
        )
    return maps.detach()


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _what(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
