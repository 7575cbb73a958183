"""Pictures of an atlas: sheets, and lines around where a unit fires."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from neuronym.activations import activation_maps
from neuronym.atlas import pictures


def test_an_image_has_one_place_however_often_it_is_asked_for():
    sheets = pictures.Sheets()
    assert sheets.place([5, 9, 5]) == [0, 1, 0] and sheets.place([9, 2]) == [1, 2]


def test_sheets_hold_each_picture_at_its_place(tmp_path):
    sheets = pictures.Sheets()
    sheets.place(range(70))
    colours = np.random.default_rng(0).integers(0, 256, (70, 3))
    count = pictures.write_sheets(
        sheets, lambda row: Image.new("RGB", (40, 40), tuple(map(int, colours[row]))), tmp_path, 32
    )
    files = sorted(tmp_path.glob("*.webp"))
    assert [file.name for file in files] == ["0000.webp", "0001.webp"]
    assert count == sum(file.stat().st_size for file in files)
    with Image.open(files[1]) as second:
        assert second.size == (8 * 32, 32)
        found = np.asarray(second.convert("RGB"))[16, 5 * 32 + 16].astype(int)
    assert np.abs(found - colours[69]).max() < 12


def test_small_pictures_are_not_enlarged():
    assert pictures.sheet([Image.new("RGB", (20, 20))] * 9, 96).size == (160, 40)


def test_images_are_read_once_while_memory_lasts_and_are_copies():
    asked = []

    def read(row: int) -> Image.Image:
        asked.append(row)
        return Image.new("RGB", (10, 10), (row, 0, 0))

    image = pictures.remembered(SimpleNamespace(image=read), most=700)  # two of 300 bytes
    for row in (1, 2, 3, 1, 2, 3):
        found = image(row)
        assert found.getpixel((0, 0)) == (row, 0, 0)
        found.paste((255, 255, 255), (0, 0, 10, 10))  # whoever draws on one draws on a copy
    assert asked == [1, 2, 3, 3]


def test_where_units_fire_is_what_their_maps_say(measured):
    rows = measured.Q["conv1"].topk(2, dim=0).indices  # [2, K]
    found = pictures.where_firing(measured, {"conv1": rows, "fc": rows[:, :1]}, batch_size=7)
    assert set(found) == {"conv1"} and found["conv1"].shape[:2] == (24, 2)
    maps = activation_maps(
        measured.target, measured.probe, measured.layers["conv1"], rows[:, 6].tolist(), [6]
    )
    maps = torch.nn.functional.adaptive_max_pool2d(maps[:, 0].clamp_min(0), found["conv1"].shape[2:])
    wanted = (maps / maps.max() * 255).round()
    np.testing.assert_allclose(found["conv1"][6], wanted.numpy(), atol=1)


def test_the_line_surrounds_what_is_at_the_level():
    one = np.zeros((8, 8))
    one[2:4, 5:7] = 255
    line = pictures.outline(one, 127.5)
    points = np.array([[float(x) for x in point.split()] for point in re.split("[ML]", line) if point])
    assert line.count("M") == 1
    assert 55 <= points[:, 0].min() and points[:, 0].max() <= 95
    assert 18 <= points[:, 1].min() and points[:, 1].max() <= 57
    assert pictures.outline(np.zeros((4, 4)), 127.5) == ""
    edge = pictures.outline(np.full((4, 4), 255.0), 127.5)
    assert edge.count("M") == 1 and {"0", "100"} <= set(re.findall(r"\d+", edge))
