"""Pictures of an atlas: sheets, and lines around where a unit fires."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
from PIL import Image

from neuronym import measure
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
    layer = "layer1.bn2"  # of values below zero too
    data = measure("microworld:resnet", f"{layer},fc", "microworld:150", "microworld", ["red", "blue"])
    rows = data.Q[layer].argsort(dim=0, descending=True)[[0, 1, 75, -1]]  # [4, K]
    found = pictures.where_firing(data, {layer: rows, "fc": rows[:, :1]}, batch_size=7)
    assert set(found) == {layer} and found[layer].shape == (24, 4, 16, 16)
    below = (data.Q[layer].gather(0, rows) < 0).double()
    unit = int((below.sum(0) % 4).argmax())
    assert 0 < below[:, unit].sum() < 4
    maps = activation_maps(data.target, data.probe, data.layers[layer], rows[:, unit].tolist(), [unit])
    maps = maps[:, 0].double() * (1 - 2 * below[:, unit, None, None])
    cells = maps.unfold(1, 2, 2).unfold(2, 2, 2).amax((3, 4)).clamp_min(0)
    wanted = (cells / cells.amax((1, 2), keepdim=True) * 255).round()
    np.testing.assert_allclose(found[layer][unit], wanted.numpy(), atol=1)
    one = pictures.where_firing(data, {layer: rows[:, [unit]]}, units={layer: [unit]})
    np.testing.assert_allclose(one[layer][0], found[layer][unit], atol=1)


def points_of(line: str) -> np.ndarray:
    """The places that a path of steps comes to."""
    places = []
    for part in re.findall("M[^M]+", line):
        start, steps = ([*map(int, re.findall(r"-?\d+", text))] for text in part.split("l"))
        places.append(np.cumsum(np.reshape(start + steps, (-1, 2)), axis=0))
    return np.concatenate(places)


def test_the_line_surrounds_what_is_at_the_level():
    one = np.zeros((8, 8))
    one[2:4, 5:7] = 255
    line = pictures.outline(one, 127.5)
    points = points_of(line)
    assert line.count("M") == 1 and (points[0] == points[-1]).all()
    assert 55 <= points[:, 0].min() and points[:, 0].max() <= 95
    assert 18 <= points[:, 1].min() and points[:, 1].max() <= 57
    assert pictures.outline(np.zeros((4, 4)), 127.5) == ""
    one[:] = 0
    one[2, 5] = 255
    assert pictures.outline(one, 254.9) == ""  # an area of no size
    edge = pictures.outline(np.full((4, 4), 255.0), 127.5)
    assert edge.count("M") == 1 and {0, 100} <= set(points_of(edge).ravel().tolist())
