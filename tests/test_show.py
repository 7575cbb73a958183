"""Figures are files that say what they should; progress is plain text when headless; the explorer draws what is chosen."""
from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils import show
from utils.labels import COLUMNS

matplotlib.use("Agg")


@pytest.fixture
def table():
    rows = [("net", layer, unit, "wpmi", rank, f"{'red' if unit % 2 else 'star'}{rank}", 1. / rank + unit)
            for layer in ("layer1", "fc") for unit in range(7) for rank in (1, 2)]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def a_card(layer="layer1", unit=3, maps=True):
    images = [Image.new("RGB", (64, 64), (40 * i, 90, 120)) for i in range(4)]
    heat = [np.random.default_rng(i).random((4, 4)) for i in range(4)] if maps else None
    return {"title": f"{layer} unit {unit}", "labels": [("red", .5), ("star", .25)], "images": images, "maps": heat, "truth": "red"}


def texts(fig):
    return [t.get_text() for t in fig.texts]


def tiles(fig, row=0):
    """The pictures of a row of `unit_cards`, as drawn."""
    (raster,) = (np.asarray(image.get_array())[..., :3] for ax in fig.axes for image in ax.images)
    top, step = row * (show.TILE + 2 * show.GAP) + show.GAP, show.TILE + show.GAP
    return [raster[top:top + show.TILE, i * step:i * step + show.TILE] for i in range(raster.shape[1] // step)]


def test_unit_cards_say_name_truth_and_score():
    fig = show.unit_cards([a_card(), a_card(maps=False)], images=5)
    assert texts(fig).count("red  (0.5)") == 2 and "true name: red (found)" in texts(fig)
    heated, plain = tiles(fig, 0), tiles(fig, 1)
    assert all(not (tile == tile[0, 0]).all() for tile in heated[:4])  # a heat-map lies over every image that has one
    assert [tuple(tile[0, 0]) for tile in plain if (tile == tile[0, 0]).all()] == [*((40 * i, 90, 120) for i in range(4)), (255, 255, 255)]


def test_a_dead_unit_draws_without_a_heat_map():
    card = a_card() | {"maps": [np.zeros((4, 4))] * 4}
    assert all((tile == tile[0, 0]).all() for tile in tiles(show.unit_cards([card], images=4)))


def test_heat_is_on_the_scale_of_the_unit_and_lies_where_it_fires():
    maps = np.zeros((4, 2, 2))
    maps[0, 0, 1], maps[1, 1, 0] = 8, .1
    strong, weak, *rest = tiles(show.unit_cards([a_card() | {"maps": maps, "images": [Image.new("RGB", (70, 70), "blue")] * 4}], images=4))
    assert strong[10, -10, 0] > 150 and strong[-10, 10, 0] < 40 and abs(weak.astype(int) - rest[0]).max() < 20


def test_small_pictures_keep_their_pixels_large_ones_their_shape():
    dots = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    wide = Image.new("RGB", (400, 200), "red")
    small, large = tiles(show.unit_cards([{"title": "t", "labels": [], "images": [dots, wide]}], images=2))
    assert (small == np.kron(np.asarray(dots), np.ones((3, 3, 1), np.uint8))).all()
    red = (large == (255, 0, 0)).all(2)
    assert red.sum() == show.TILE * show.TILE // 2 and red.any(0).all() and not red[0].any()


def test_layer_figures_count_units(table):
    fig = show.scores_by_layer(table)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["layer1 (n=7)", "fc (n=7)"]
    fig = show.labels_by_category(table, {"red1": "colour"})
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["colour", "other"]
    assert show.labels_by_category(table).axes


def test_saved_figures_are_the_same_file_twice(tmp_path, table):
    for folder in ("a", "b"):
        show.save_figure(show.scores_by_layer(table), tmp_path / folder, "x")
    for suffix in ("png", "pdf"):
        assert (tmp_path / "a" / f"x.{suffix}").read_bytes() == (tmp_path / "b" / f"x.{suffix}").read_bytes()


def test_saved_cards_keep_their_raster_and_their_texts(tmp_path):
    show.style()
    figures = {name: show.unit_cards([a_card(name), a_card(name, maps=False)], images=4) for name in ("all", "one")}
    saved = show.save_figures(figures, tmp_path)
    raster = np.concatenate([np.concatenate([t for t in tiles(figures["one"], row)], 1) for row in (0, 1)])
    drawn = np.asarray(Image.open(saved[1]).convert("RGB"))
    places = [drawn[top:top + show.TILE, left:left + show.TILE] for top in range(drawn.shape[0] - show.TILE + 1)
              for left in (drawn.shape[1] - 20 - show.GAP - show.TILE,) if (drawn[top, left] == raster[0, -show.TILE]).all()]
    assert any((place == raster[:show.TILE, -show.TILE:]).all() for place in places)  # not one pixel is resampled
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.pdf", "all.png", "one.png"]
    pdf = (tmp_path / "all.pdf").read_bytes()
    assert pdf.count(b"/Type /Page ") == 2 and b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_presented_figures_are_saved_shown_once_and_closed(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    fig = show.unit_cards([a_card()])
    show.present({"a": fig}, tmp_path)
    assert not plt.get_fignums() and len(shown) == 1 and shown[0].data == (tmp_path / "a.png").read_bytes()


def test_headless_progress_passes_items_and_prints_plain_lines(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setenv("NEURONYM_HEADLESS", "1")
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    assert list(show.progress("abcd", text="batches")) == list("abcd")
    assert capsys.readouterr().out == "batches: 2/4 after 12 s, 12 s left\nbatches: 4/4 after 24 s, 0 s left\n"


def test_training_curves_read_both_layouts(tmp_path):
    (tmp_path / "one").mkdir()
    line = '{"step": 50, "loss": 2.5, "seconds": 1}\n'
    (tmp_path / "one" / "curve.jsonl").write_text(line)
    (tmp_path / "two.jsonl").write_text(line)
    curves = show.read_curves(tmp_path)
    assert set(curves["stage"]) == {"one", "two"} and len(show.training_curves(curves).axes) == 2
    with pytest.raises(FileNotFoundError, match="no training curves"):
        show.read_curves(tmp_path / "one" / "none")


def test_explorer_redraws_what_is_chosen(table):
    asked = []
    box = show.explorer(table, lambda layer, unit: asked.append((layer, unit)) or a_card(layer, unit))
    layer, search, unit = box.children[0].children
    layer.value = "fc"
    search.value = "red"
    unit.value = 5
    assert unit.options == (1, 3, 5) and asked[0] == ("layer1", 0) and asked[-1] == ("fc", 5)
