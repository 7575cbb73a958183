"""Attention crops: against a literal version, loops over pixels and flood fill, and on maps drawn by hand."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym.common.checks import UnknownName
from neuronym.describe.crops import (
    attention_crops,
    box_iou,
    BOX_ORDER,
    crops_of,
    distinct,
    eight_bit,
    enlarged,
    ENLARGEMENTS,
    otsu,
    outer_boxes,
    OVERLAP,
)


def literal_otsu(values: list[int]) -> int:
    """The lowest t with the largest n0 n1 (m0 - m1)^2; 255 where there are no two classes."""
    best, chosen = Fraction(0), 255
    for t in range(256):
        low, high = [v for v in values if v <= t], [v for v in values if v > t]
        if low and high:
            gap = Fraction(sum(low), len(low)) - Fraction(sum(high), len(high))
            if len(low) * len(high) * gap**2 > best:
                best, chosen = len(low) * len(high) * gap**2, t
    return chosen


def flood(start: tuple[int, int], inside, steps: list[tuple[int, int]]) -> set[tuple[int, int]]:
    found, waiting = {start}, [start]
    while waiting:
        y, x = waiting.pop()
        for dy, dx in steps:
            there = (y + dy, x + dx)
            if there not in found and inside(*there):
                found.add(there)
                waiting.append(there)
    return found


SIDES = [(0, 1), (1, 0), (0, -1), (-1, 0)]
AROUND = SIDES + [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def literal_boxes(above: np.ndarray, ties: str = "place") -> list[tuple[int, int, int, int]]:
    """Components over sides and corners that touch, over a side, the background reached from outside the
    picture; OpenCV lists those met later, line by line, first.
    """
    h, w = above.shape

    def on(y: int, x: int) -> bool:
        return 0 <= y < h and 0 <= x < w and bool(above[y, x])

    outside = flood((-1, -1), lambda y, x: -1 <= y <= h and -1 <= x <= w and not on(y, x), SIDES)
    seen, boxes = set(), []
    for y in range(h):
        for x in range(w):
            if on(y, x) and (y, x) not in seen:
                one = flood((y, x), on, AROUND)
                seen |= one
                if any((a + dy, b + dx) in outside for a, b in one for dy, dx in SIDES):
                    ys, xs = [a for a, _ in one], [b for _, b in one]
                    boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    if ties == "place":
        boxes.sort(key=lambda b: (b[1], b[0]))
    else:
        boxes.reverse()
    return sorted(boxes, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1]))


def literal_iou(a: tuple, b: tuple) -> Fraction:
    p, q = ({(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (a, b))
    return Fraction(len(p & q), len(p | q))


def literal_distinct(boxes: list, covered: tuple, most: int) -> list:
    kept = []
    for box in boxes:
        if len(kept) < most and literal_iou(box, covered) < Fraction(4, 5):
            if not [other for other in kept if literal_iou(box, other) > Fraction(1, 2)]:
                kept.append(box)
    return kept


def literal_enlarged(small: np.ndarray, height: int, width: int) -> np.ndarray:
    def taps(i: int, n: int, big: int) -> list[tuple[int, Fraction]]:
        at = min(
            max(Fraction(2 * i + 1, 2) * Fraction(n, big) - Fraction(1, 2), Fraction(0)), Fraction(n - 1)
        )
        low = at.numerator // at.denominator
        return [(low, 1 - (at - low)), (min(low + 1, n - 1), at - low)]

    h, w = small.shape
    return np.array(
        [
            [
                float(
                    sum(int(small[y, x]) * a * b for y, a in taps(i, h, height) for x, b in taps(j, w, width))
                )
                for j in range(width)
            ]
            for i in range(height)
        ]
    )


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (7, 7), (13, 4)])
def test_otsu_is_the_literal_one(shape):
    maps = torch.cat(
        [
            eight_bit(noise(9, *shape)),
            (noise(9, *shape, seed=1).abs() * 3).byte(),
            torch.full((1, *shape), 77, dtype=torch.uint8),
        ]
    )
    assert otsu(maps).tolist() == [literal_otsu(one.flatten().tolist()) for one in maps]
    assert otsu(maps[4]).item() == otsu(maps)[4] and otsu(maps[4]).shape == ()
    assert otsu(maps[:18].view(2, 3, 3, *shape)).flatten().tolist() == otsu(maps)[:18].tolist()


def test_otsu_ties_and_constant_maps():
    def of(*values: int) -> int:
        return otsu(torch.tensor([values], dtype=torch.uint8)).item()

    assert of(10, 200) == 10, "any t from 10 to 199 splits alike: the lowest"
    assert of(0, 1, 2) in (0, 1), "1 + 2 values and 2 + 1 split alike: rounding decides"
    assert of(0, 0, 0) == of(255, 255) == of(9) == 255


def test_otsu_of_a_large_map_counts_exactly():
    small = eight_bit(noise(1, 9, 9))
    assert otsu(small.repeat(1, 90, 90)) == otsu(small) == literal_otsu(small.flatten().tolist())


def test_scale_goes_from_minimum_to_maximum():
    maps = torch.stack([noise(3, 5), noise(3, 5) * 1e-3 - 4, -noise(3, 5).abs() * 1e6])
    found = eight_bit(maps)
    for one, byte in zip(maps.double(), found):
        low, high = one.min().item(), one.max().item()
        literal = [[(v - low) / (high - low) * 255 for v in row] for row in one.tolist()]
        assert (
            byte.min() == 0
            and byte.max() == 255
            and np.abs(byte.numpy() - np.array(literal)).max() <= 0.5 + 1e-6
        )
    assert torch.equal(eight_bit(maps[1]), found[1]) and found.dtype == torch.uint8
    assert torch.equal(eight_bit(maps * 8), found), "another unit of measure"


def test_constant_up_to_rounding_is_constant():
    maps = torch.full((2, 4, 5), 0.3)
    maps[1, 2, 2] += 3e-8
    assert maps[1].max() > maps[1].min() and not eight_bit(maps).any()
    assert eight_bit(maps.double() + torch.eye(5)[:4].double() * 1e-9).max() == 255


def test_wrap_is_the_released_cast():
    values = torch.tensor([[1.0, 1.01, 3.7, 10.3, 0, 0.5, -0.5, -3.7]])
    assert eight_bit(values, "wrap").tolist() == [[255, 1, 175, 66, 0, 127, 256 - 127, (-943) % 256]]
    assert eight_bit(torch.tensor([[1e30, -1e30]]), "wrap").shape == (1, 2)
    assert eight_bit(values.abs() / 20, "wrap").tolist() == [
        [int(v / 20 * 255) for v in values.abs()[0].tolist()]
    ]


@pytest.mark.parametrize("height, width", [(11, 13), (7, 20), (5, 3)])
def test_enlarged_is_bilinear(height, width):
    small = eight_bit(noise(2, 5, 3))
    found = enlarged(small, height, width)
    for one, large in zip(small, found):
        assert np.abs(large.numpy() - literal_enlarged(one.numpy(), height, width)).max() <= 0.5 + 1e-3
    assert found.shape == (2, height, width) and found.dtype == torch.uint8


def test_a_map_larger_than_the_picture_is_averaged():
    fine = torch.zeros(1, 12, 12, dtype=torch.uint8)
    fine[0, ::4, ::4] = 200  # of each 4 x 4 pixels one, and none of the four in the middle
    assert 5 < enlarged(fine, 3, 3)[0, 1, 1] < 25


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_outer_boxes_are_the_literal_ones(share):
    rng = np.random.default_rng(int(share * 10))
    for h, w in [(1, 1), (1, 9), (7, 12), (13, 13), (17, 11), (19, 23)]:
        for _ in range(6):
            above = rng.random((h, w)) < share
            assert outer_boxes(above) == literal_boxes(above), above.astype(int)
            assert outer_boxes(above, "found") == literal_boxes(above, "found"), above.astype(int)
    assert outer_boxes(np.ones((3, 4), bool)) == [(0, 0, 4, 3)] and outer_boxes(np.zeros((3, 4), bool)) == []


def test_what_is_in_a_hole_is_left_out():
    above = np.zeros((12, 12), bool)
    above[1:10, 1:10], above[3:8, 3:8], above[5, 5] = True, False, True
    above[11, 11] = True
    assert outer_boxes(above) == literal_boxes(above) == [(1, 1, 10, 10), (11, 11, 12, 12)]
    above[4:7, 7:11] = False  # the hole opens
    assert outer_boxes(above) == literal_boxes(above) == [(1, 1, 10, 10), (5, 5, 6, 6), (11, 11, 12, 12)]


def test_corners_touch():
    above = np.eye(5, dtype=bool)
    assert outer_boxes(above) == [(0, 0, 5, 5)]
    ring = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)  # closed over corners: its middle is a hole
    assert outer_boxes(np.kron(ring, np.ones((3, 3), bool))) == [(0, 0, 9, 9)]


def test_iou_and_the_rules():
    boxes = [
        (0, 0, 9, 9),
        (0, 0, 10, 8),
        (0, 0, 6, 6),
        (0, 0, 6, 3),
        (0, 3, 6, 7),
        (0, 1, 6, 6),
        (7, 7, 10, 10),
        (9, 0, 10, 1),
    ]
    for a in boxes:
        assert box_iou(a, a) == 1
        for b in boxes:
            assert box_iou(a, b) == float(literal_iou(a, b))
    every = (0, 0, 10, 10)
    assert (
        distinct(boxes, every, 9) == literal_distinct(boxes, every, 9) == [boxes[i] for i in (2, 3, 4, 6, 7)]
    )
    assert box_iou(boxes[1], every) == 0.8, "not below .8"
    assert box_iou(boxes[2], boxes[3]) == OVERLAP, "at most .5"
    assert distinct(boxes, every, 2) == boxes[2:4] and distinct(boxes, every, 0) == []
    rng = np.random.default_rng(3)
    for _ in range(40):
        corners = rng.integers(0, 9, (14, 2))
        some = [
            (int(x), int(y), int(x + 1 + rng.integers(8)), int(y + 1 + rng.integers(8))) for x, y in corners
        ]
        assert distinct(some, (1, 0, 11, 12), 5) == literal_distinct(some, (1, 0, 11, 12), 5)


@pytest.mark.parametrize("heatmap", ["scale", "wrap"])
@pytest.mark.parametrize("shape, size", [((4, 4), 31), ((5, 7), 40), ((9, 6), 23), ((40, 37), 29)])
def test_all_of_it(shape, size, heatmap):
    maps = noise(5, *shape, seed=size) * 2
    found = crops_of(maps, size, 3, heatmap)
    for one, boxes in zip(maps, found):
        large = enlarged(eight_bit(one[None], heatmap), size, size, ENLARGEMENTS[heatmap])[0].numpy()
        above = large > literal_otsu(large.flatten().tolist())
        assert boxes == literal_distinct(literal_boxes(above, BOX_ORDER[heatmap]), (0, 0, size, size), 3)
        assert attention_crops(one, size, 3, heatmap) == boxes
    assert sum(map(len, found)) > 4
    assert crops_of(maps, size, 3, heatmap, memory=16 * size * size) == found, "one map at a time"


def released_boxes(values: np.ndarray, size: int) -> list[tuple[int, int, int, int]]:
    """The released code's crops of one map, by its own steps: torch's cast to bytes, Pillow's enlargement,
    OpenCV's Otsu and outer contours in OpenCV's order, boxes by area, overlap at most .5 with each kept one
    and below .8 with the whole.
    """
    import cv2

    small = torch.from_numpy(values).mul(255).byte().numpy()
    large = np.array(Image.fromarray(small).resize((size, size)))
    _, binary = cv2.threshold(large, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    kept = []
    for x, y, w, h in sorted(map(cv2.boundingRect, contours), key=lambda r: -r[2] * r[3]):
        box = (x, y, x + w, y + h)
        if len(kept) < 4 and literal_iou(box, (0, 0, size, size)) < Fraction(4, 5):
            if all(literal_iou(box, other) <= Fraction(1, 2) for other in kept):
                kept.append(box)
    return kept


def maps_of_all_kinds(n: int = 6) -> torch.Tensor:
    """Smooth and rough maps, of many strengths and of both signs, and the odd ones."""
    dice = np.random.default_rng(20)
    smooth = dice.random((n, 9, 9)).cumsum(1).cumsum(2) / 81 - dice.random((n, 1, 1))
    rough = np.maximum(dice.standard_normal((n, 9, 9)), 0)
    both = np.concatenate([smooth, rough, -rough])
    odd = np.zeros((8, 9, 9))
    odd[1], odd[2], odd[3, 4, 4], odd[4, 0, 0] = 0.5, -1, 1, 300
    odd[5, ::2, ::2], odd[6, 2:7, 2:7], odd[7, :, 4:] = 1, 1, 255.5 / 255
    scaled = [both * strength for strength in (0.01, 0.3, 1, 3.7, 40)]
    return torch.from_numpy(np.concatenate([*scaled, odd])).float()


def test_wrap_gives_the_released_crops():
    maps = maps_of_all_kinds()
    found = crops_of(maps, 61, 4, "wrap")
    for one, boxes in zip(maps.numpy(), found, strict=True):
        assert boxes == released_boxes(one, 61)
    assert {len(boxes) for boxes in found} == {0, 1, 2, 3, 4}
    large = [crops_of(one[None], 375, 4, "wrap")[0] for one in maps[::9]]
    assert large == [released_boxes(one, 375) for one in maps[::9].numpy()]


def test_wrap_gives_what_the_release_gave():
    """Boxes that the released code itself gave for these maps, on the CPU: released_crops.json."""
    golden = json.loads((Path(__file__).parent / "released_crops.json").read_text(encoding="utf-8"))
    found = crops_of(maps_of_all_kinds(), 375, 4, "wrap")
    assert [[list(box) for box in boxes] for boxes in found] == golden


def blobs() -> torch.Tensor:
    """A map of 12 x 12 with a large and a small blob, all of it negative."""
    maps = torch.full((12, 12), -9.0)
    maps[1:5, 1:7], maps[8:10, 9:11] = -1, -2
    return maps


def test_two_blobs_of_a_negative_map():
    found = attention_crops(blobs(), 120)
    for box, true in zip(found, [(10, 10, 70, 50), (90, 80, 110, 100)], strict=True):
        assert np.abs(np.array(box) - true).max() <= 5, "blobs end half way to the next value"
    assert attention_crops(blobs(), 120, most=1) == found[:1] and attention_crops(blobs(), 120, most=0) == []
    assert attention_crops(blobs()) and len(attention_crops(-blobs())) == 0, (
        "nearly all of the picture is no crop"
    )


def test_a_constant_map_has_no_box():
    assert attention_crops(torch.full((7, 7), -2.5)) == [] and attention_crops(torch.zeros(1, 1)) == []
    assert crops_of(torch.zeros(0, 7, 7)) == []


def test_field_moves_and_scales_boxes():
    small = attention_crops(blobs(), 60)
    assert attention_crops(blobs(), 100, field=(30, 20, 90, 80)) == [
        (a + 30, b + 20, c + 30, d + 20) for a, b, c, d in small
    ]
    beyond = attention_crops(blobs(), 40, field=(-10, -20, 50, 40))
    (_, _, a, b), (c, d, _, e) = small
    assert beyond == [(0, 0, a - 10, b - 20), (c - 10, d - 20, 40, e - 20)], "the picture's rim cuts them"
    assert attention_crops(blobs(), 20, field=(-25, -40, 35, 20)) == [], "what is left of it is outside"


def test_a_box_of_nearly_all_that_a_map_covers_is_no_crop():
    most = torch.ones(10, 20)
    most[:, 0] = 0
    assert attention_crops(most, 100) == [] and attention_crops(most, 100, field=(30, 30, 70, 70)) == []
    assert attention_crops(most, 100, field=(60, 60, 140, 140)) == [], (
        "of which only a quarter is in the picture"
    )
    most[:, :8] = 0
    assert len(attention_crops(most, 100, field=(30, 30, 70, 70))) == 1


def test_wrapping_sees_noise_where_activations_are_strong():
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    hill = 9 * torch.exp(-((y - 5) ** 2 + (x - 6) ** 2) / 8)
    assert len(attention_crops(hill)) == 1 and attention_crops(hill, heatmap="wrap") != attention_crops(hill)
    weak = hill / hill.max()
    assert box_iou(attention_crops(weak)[0], attention_crops(weak, heatmap="wrap")[0]) > 0.9


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: attention_crops(torch.zeros(2, 3, 3)),
            ValueError,
            r"a map \[H, W\], got .* \[2, 3, 3\]; use crops_of",
        ),
        (lambda: attention_crops([[1.0]]), ValueError, "got list"),
        (lambda: crops_of(torch.zeros(3, 3)), ValueError, r"expected real maps \[n, H, W\], none empty"),
        (lambda: crops_of(torch.zeros(2, 0, 3)), ValueError, r"none empty, got torch.float32 \[2, 0, 3\]"),
        (
            lambda: attention_crops(torch.tensor([[1.0, float("nan")]])),
            ValueError,
            "maps must be finite, got nan",
        ),
        (
            lambda: attention_crops(blobs(), heatmap="wrapped"),
            UnknownName,
            "no heatmap 'wrapped'; nearest: wrap",
        ),
        (lambda: attention_crops(blobs(), size=0), ValueError, "size must be a positive whole number, got 0"),
        (
            lambda: attention_crops(blobs(), most=-1),
            ValueError,
            "most must be a positive whole number, got -1",
        ),
        (
            lambda: attention_crops(blobs(), field=(9, 9, 9, 20)),
            ValueError,
            r"field is .* got \(9, 9, 9, 20\)",
        ),
        (
            lambda: attention_crops(blobs(), 20, field=(20, 0, 40, 20)),
            ValueError,
            "field is .* part of the 20 x 20",
        ),
        (lambda: crops_of(blobs()[None], memory=9), ValueError, "memory 9 bytes is too small"),
        (
            lambda: otsu(torch.zeros(3, 3)),
            ValueError,
            r"8-bit maps .* got torch.float32 \[3, 3\]; use eight_bit",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
