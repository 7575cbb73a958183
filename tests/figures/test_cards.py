"""What a unit card shows and how it is drawn: the unit's labels, its most active images as the network sees
them, maps of any layout.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from neuronym import activations
from neuronym.common.types import Target
from neuronym.datasets.probe import load_probe
from neuronym.dissect import clip_dissect
from neuronym.figures import cards, style
from neuronym.hooks import resolve_layers
from neuronym.measurements import measure
from neuronym.models.preprocess import HALF, Preprocess, preprocess_text
from neuronym.similarity.labels import labels_table

matplotlib.use("Agg")


class Tokens(nn.Module):
    """Sixteen patches behind `extra` tokens, whose only unit is the patch's mean red."""

    def __init__(self, extra):
        super().__init__()
        self.block, self.extra = nn.Identity(), extra

    def forward(self, x):
        red = nn.functional.avg_pool2d(x[:, :1], 16).flatten(2).transpose(1, 2)  # [B, 16, 1]
        return self.block(torch.cat([red[:, :1].expand(-1, self.extra, -1) * 0, red], 1)).mean(1)


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
def test_cards_of_token_layers(extra):
    preprocess = Preprocess(64, 64, "bicubic", HALF, HALF)
    target = Target(
        "own",
        Tokens(extra).eval(),
        preprocess,
        preprocess_text(preprocess),
        None,
        f"tokens{extra}",
        ("block",),
        torch.zeros(1, 3, 64, 64),
    )
    probe = load_probe("microworld:23")
    (layer,) = resolve_layers(target.model, "block", target.example)
    Q = activations.unit_activations(target, probe, [layer])["block"]
    table = labels_table(
        torch.tensor([[1.0, 3, 2]]), ["a", "b", "c"], model="own", layer="block", method="m", k=2
    )
    (card,) = cards.collect(target, probe, layer, Q, table, [0], images=3)
    assert (
        card["labels"] == [("b", 3.0), ("c", 2.0)]
        and card["maps"].shape == (3, 4, 4)
        and card["truth"] is None
    )
    best = int(Q[:, 0].argmax())
    expected = nn.functional.avg_pool2d(preprocess(probe.image(best))[None, :1], 16)[0, 0]
    torch.testing.assert_close(torch.from_numpy(card["maps"][0]), expected)
    assert card["images"][0].tobytes() == probe.image(best).tobytes()


class Colours(nn.Module):
    """Three maps, the picture's colours, and their means."""

    def __init__(self):
        super().__init__()
        self.maps, self.fc = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
        self.maps.weight.data, self.fc.weight.data = torch.eye(3)[:, :, None, None], torch.eye(3)

    def forward(self, x):
        return self.fc(self.maps(x).mean((2, 3)))


def test_cards_of_several_units_and_of_the_cache(monkeypatch):
    preprocess = Preprocess(64, 64, "bicubic", HALF, HALF)
    target = Target(
        "own",
        Colours().eval(),
        preprocess,
        preprocess_text(preprocess),
        None,
        "colours",
        ("fc",),
        torch.zeros(1, 3, 64, 64),
    )
    probe = load_probe("microworld:23")
    maps, fc = layers = resolve_layers(target.model, "maps,fc", target.example)
    Q = activations.unit_activations(target, probe, layers)
    table = labels_table(torch.eye(3), ["r", "g", "b"], model="own", layer="maps", method="m", k=1)
    given = target, probe, maps, Q["maps"], table
    both = cards.collect(*given, [2, 0], images=4, names=["r", "g", "b"], keep=True)
    for card, unit in zip(both, (2, 0)):
        (single,) = cards.collect(*given, [unit], images=4)
        best = Q["maps"][:, unit].argsort(descending=True, stable=True)[:4].tolist()
        assert card["truth"] == card["labels"][0][0] == "rgb"[unit] and card["title"] == f"maps  unit {unit}"
        for image, heat, alone, row in zip(card["images"], card["maps"], single["maps"], best, strict=True):
            assert image.tobytes() == probe.image(row).tobytes()
            torch.testing.assert_close(torch.from_numpy(heat), preprocess(probe.image(row))[unit])
            torch.testing.assert_close(torch.from_numpy(heat), torch.from_numpy(alone))
    assert cards.collect(target, probe, fc, Q["fc"], table, [1])[0]["maps"] is None
    looked, look = [], cards._look
    monkeypatch.setattr(cards, "_look", lambda *given: looked.append(len(given[3])) or look(*given))
    again = cards.collect(*given, [2, 0], images=4, keep=True)
    assert all((a["maps"] == b["maps"]).all() and a["images"] == b["images"] for a, b in zip(again, both))
    assert looked == [1]  # all is cached: one picture is compared
    target.model.maps.register_forward_hook(lambda module, inputs, output: 2 * output)  # no key tells
    doubled = cards.collect(*given, [2, 0], images=4, keep=True)
    assert all((a["maps"] == 2 * b["maps"]).all() for a, b in zip(doubled, both)) and len(looked) == 3


def test_spread_goes_from_the_best_unit_to_the_worst():
    scores = torch.tensor([[0.1], [0.9], [0.5], [0.7], [0.3]])
    table = labels_table(scores, ["a"], model="n", layer="l", method="m", k=1)
    assert (
        cards.cards_from_best_to_worst(table, "l", 3) == [1, 2, 0]
        and cards.cards_from_best_to_worst(table, "l", 1) == [1]
        and len(cards.cards_from_best_to_worst(table, "l", 99)) == 5
    )


def test_cards_go_by_trust_and_say_it_where_the_table_has_it():
    table = pd.DataFrame({"layer": "l", "unit": [0, 1, 2], "rank": 1, "label": "x", "score": [3.0, 2.0, 1.0]})
    table["trust"], table["abstain"] = [0.2, 0.9, np.nan], [False, False, True]
    assert cards.cards_from_best_to_worst(table, "l", 3) == [1, 0, 2]

    def told(labels):
        return [cards._trust_of(labels[labels["unit"] == unit], labels) for unit in range(3)]

    away = "not trusted: no better than chance"
    said = told(table.assign(calibrated=True))
    assert said == ["trust 0.20", "trust 0.90", away]
    in_order = ["trust: 2 of 2 in order, uncalibrated", "trust: 1 of 2 in order, uncalibrated", away]
    ranks = pd.concat([table, table.assign(rank=2)])
    assert told(table) == told(ranks.assign(calibrated=False)) == in_order
    assert told(table.assign(trust=[0.2, 0.9, 1.0])) == in_order  # a table of before
    assert told(table.drop(columns=["trust", "abstain"])) == [""] * 3
    figure = cards.draw([a_card() | {"trust": said[2]}], 4)
    assert said[2] in [text.get_text() for text in figure.artists]


def a_card(layer="layer1", unit=3, maps=True):
    images = [Image.new("RGB", (64, 64), (40 * i, 90, 120)) for i in range(4)]
    heat = [np.random.default_rng(i).random((4, 4)) for i in range(4)] if maps else None
    return {
        "title": f"{layer} unit {unit}",
        "labels": [("red", 0.5), ("star", 0.25)],
        "images": images,
        "maps": heat,
        "truth": "red",
    }


def texts(fig):
    return [line.get_text() for line in fig.artists]


def tiles(fig, row=0):
    """The pictures of a row of `draw`, as drawn; the rows before it have maps."""
    (raster,) = (np.asarray(image.get_array())[..., :3] for ax in fig.axes for image in ax.images)
    top = row * (cards.TILE + 2 * cards.GAP + cards.INSET + cards.GAP // 2) + cards.GAP
    step = cards.TILE + cards.GAP
    return [
        raster[top : top + cards.TILE, i * step : i * step + cards.TILE]
        for i in range(raster.shape[1] // step)
    ]


def small_tiles(fig):
    """The small pictures of the first row, that show where the unit fires."""
    (raster,) = (np.asarray(image.get_array())[..., :3] for ax in fig.axes for image in ax.images)
    top, step = cards.GAP + cards.TILE + cards.GAP // 2, cards.TILE + cards.GAP
    return [
        raster[top : top + cards.INSET, i * step : i * step + cards.INSET]
        for i in range(raster.shape[1] // step)
    ]


def test_unit_cards_say_name_truth_and_score():
    fig = cards.draw([a_card(), a_card(maps=False)], images=5)
    assert texts(fig).count("red  (0.5)") == 2 and "✓ true name: red" in texts(fig)
    as_they_are = [*((40 * i, 90, 120) for i in range(4)), (255, 255, 255)]
    for row in (0, 1):  # whatever is known of where a unit fires, pictures keep their colours
        assert [tuple(tile[0, 0]) for tile in tiles(fig, row) if (tile == tile[0, 0]).all()] == as_they_are
    assert not any((tile == tile[0, 0]).all() for tile in small_tiles(fig)[:4])
    assert "a line is around where the unit is" in texts(fig)[-1]
    assert "a line is around" not in texts(cards.draw([a_card(maps=False)], images=5))[-1]


def test_a_dead_unit_draws_without_a_line():
    card = a_card() | {"maps": [np.zeros((4, 4))] * 4}
    fig = cards.draw([card], images=4)
    assert all((tile == tile[0, 0]).all() for tile in tiles(fig) + small_tiles(fig))


def test_colours_stay_where_the_unit_fires_and_are_darker_elsewhere():
    """The first picture holds the unit's largest value at the upper right, the second a tenth of it."""
    maps = np.zeros((4, 2, 2))
    maps[0, 0, 1], maps[1, 1, 0] = 8, 0.8
    blue = [Image.new("RGB", (70, 70), (0, 0, 200))] * 4
    strong, weak, *_ = small_tiles(cards.draw([a_card() | {"maps": maps, "images": blue}], images=4))
    dark = int(200 * cards.DARKER)
    assert tuple(strong[10, -10]) == (0, 0, 200) and tuple(strong[-10, 10]) == (0, 0, dark)
    assert (weak == (0, 0, dark)).all()
    line = {tuple(pixel) for pixel in strong.reshape(-1, 3)}
    assert line == {(0, 0, 200), (0, 0, dark), (255, 255, 255), (0, 0, 0)}


def test_the_line_is_two_pixels_white_and_black_around_where_the_unit_fires():
    """Each pixel by the nearest that fires, beside it or at a corner."""
    heat = np.random.default_rng(0).random((6, 6), dtype=np.float32) ** 4
    photo = np.random.default_rng(1).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    found = np.asarray(cards._outlined(Image.fromarray(photo), heat))
    fires = np.argwhere(np.asarray(Image.fromarray(heat).resize((30, 30), 2)) >= cards.FIRING)
    assert 0 < len(fires) < 400
    for y, x in np.ndindex(30, 30):
        away = np.abs(fires - (y, x)).max(1).min()
        darker = (photo[y, x] * cards.DARKER).astype(np.uint8)
        assert (found[y, x] == [photo[y, x], 255, 0, darker][min(away, 3)]).all()


def test_values_stand_below_pictures_and_wrong_names_have_a_mark():
    card = a_card() | {
        "values": [1.0, 2.0, 3.0, 4.0],
        "truth": "blue",
        "labels": [("a label $x_$ of " + "w" * 30, 1)],
    }
    fig = cards.draw([card], images=4, method="wpmi")
    (raster,) = (np.asarray(image.get_array())[..., :3] for ax in fig.axes for image in ax.images)
    assert (raster[cards.GAP + cards.TILE + 4 :] < 200).any() and "✗ true name: blue" in texts(fig)
    assert any(text.startswith("a label $x_$ of ww") and "…" in text for text in texts(fig))
    assert any("score: wpmi, higher is better" in text for text in texts(fig))
    fig.canvas.draw()
    left = fig.axes[0].get_window_extent().x0
    assert all(text.get_window_extent().x1 < left for text in fig.artists[:-2])  # no text touches a picture


def test_small_pictures_keep_their_pixels_large_ones_their_shape():
    dots = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    wide = Image.new("RGB", (400, 200), "red")
    small, large = tiles(cards.draw([{"title": "t", "labels": [], "images": [dots, wide]}], images=2))
    assert (small == np.kron(np.asarray(dots), np.ones((3, 3, 1), np.uint8))).all()
    red = (large == (255, 0, 0)).all(2)
    assert red.sum() == cards.TILE * cards.TILE // 2 and red.any(0).all() and not red[0].any()


def test_saved_cards_keep_their_raster_and_their_texts(tmp_path):
    style.style()
    figures = {
        name: cards.draw([a_card(name), a_card(name, maps=False)], images=4) for name in ("all", "one")
    }
    saved = style.save_figures(figures, tmp_path)
    raster = np.concatenate([np.concatenate(list(tiles(figures["one"], row)), 1) for row in (0, 1)])
    drawn = np.asarray(Image.open(saved[1]).convert("RGB"))
    places = [
        drawn[top : top + cards.TILE, left : left + cards.TILE]
        for top in range(drawn.shape[0] - cards.TILE + 1)
        for left in (drawn.shape[1] - 20 - cards.GAP - cards.TILE,)
        if (drawn[top, left] == raster[0, -cards.TILE]).all()
    ]
    assert any(
        (place == raster[: cards.TILE, -cards.TILE :]).all() for place in places
    )  # not one pixel is resampled
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.pdf", "all.png", "one.pdf", "one.png"]
    pdf = (tmp_path / "all.pdf").read_bytes()
    assert pdf.count(b"/Type /Page ") == 1 and b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_many_cards_are_several_figures_and_one_figure_says_how_many_it_has(capsys, monkeypatch):
    monkeypatch.setattr(cards, "PAGE", 3)
    piles = {"layer1": [a_card(unit=i) for i in range(7)], "a.b": [a_card("a.b")]}
    found = dict(cards.sheets(piles, "wpmi"))
    assert list(found) == ["unit_cards", "cards_layer1", "cards_layer1_2", "cards_layer1_3", "cards_a_b"]
    assert [t for t in texts(found["cards_layer1_3"]) if "unit" in t][0] == "layer1 unit 6"
    assert capsys.readouterr().out == "cards_layer1: 7 cards, 3 a figure\n"
    assert dict(cards.sheets({})) == {}
    monkeypatch.setattr(cards, "TALLEST", 3)
    data = measure("microworld:resnet", "fc", "microworld:20", "microworld", "microworld:atoms")
    with pytest.raises(ValueError, match="a figure has at most 3 cards, got 52 units by 'all'"):
        cards.unit_cards(clip_dissect(data), data, "all")
    monkeypatch.setattr(cards, "MANY", 5)
    few = cards.layer_cards(clip_dissect(data), data, data.units("all"), images=2)["fc"]
    assert [card["title"] for card in few] == [f"fc  unit {unit}" for unit in (0, 10, 20, 31, 41)]
    assert capsys.readouterr().out == "fc: cards of 5 units, evenly spread over the 52 asked for\n"


def test_a_figure_of_as_many_cards_as_may_be_is_one_that_can_be_saved(tmp_path):
    tallest = cards.TILE + 2 * cards.GAP + cards.INSET + cards.GAP // 2
    assert (max(cards.TALLEST, cards.PAGE) * tallest + 44) < 2**16  # of a picture, by matplotlib


def test_a_unit_without_a_name_says_why():
    picture = Image.new("RGB", (20, 20), "red")
    card = {"title": "fc  unit 3", "labels": [], "note": "dead: 0 for every image", "images": [picture]}
    texts = [text.get_text() for text in cards.draw([card], 1).artists]
    assert "no name: dead" in texts and "0 for every image" in texts
