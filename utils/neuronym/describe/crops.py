"""Attention crops (Describe-and-Dissect, step 1): the parts of a picture where a unit's map is high.

attention_crops  boxes of one map, largest first
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

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import items_within, MEMORY, slices, working_bytes
from neuronym.common.types import Box
from neuronym.models.preprocess import SIZE

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
    With `heatmap` "wrap" bytes, enlargement and the order of equally large boxes are the released code's,
    with "scale" what they should be. `field` is the part of the picture that the map covers, by default all
    of it; where it reaches beyond the picture, boxes end with the picture. Errors: ValueError for values that
    are not finite, an empty map or field; KeyError for an unknown heatmap.
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
                for x, y, r, b in outer_boxes(above, BOX_ORDER[heatmap])
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


def outer_boxes(above: np.ndarray, ties: str = "place") -> list[Box]:
    """Bounding boxes of the outer contours of bool [H, W], by area of the box, largest first.

    An outer contour belongs to pixels that touch each other, corners included, and are not inside a hole of
    others: OpenCV's external ones. Ties go by top, then left; with `ties` "found" as OpenCV lists them.
    """
    import cv2

    contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [(x, y, x + width, y + height) for x, y, width, height in map(cv2.boundingRect, contours)]
    places = sorted(boxes, key=lambda box: box[1::-1]) if ties == "place" else boxes
    return sorted(places, key=_area, reverse=True)  # which keeps the order of equal ones


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
FIELDS_OF = {"scale": "seen", "wrap": "whole"}  # which part of the picture they are of
BOX_ORDER = {"scale": "place", "wrap": "found"}  # which of two equally large boxes comes first


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
