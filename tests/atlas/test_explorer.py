"""The explorer: what it answers, what is chosen in it, what exported notebooks show of it."""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuronym import clip_dissect
from neuronym.atlas.alike import unit_map
from neuronym.atlas.contents import Network, quantised
from neuronym.atlas.explorer import answered, Answers, as_network, explorer, explorer_of, static_table
from tests.atlas.conftest import HOSTILE


@pytest.fixture
def answers(network) -> Answers:
    return Answers([network])


def test_details_come_one_unit_at_a_time(answers):
    said, _ = answered(answers, {"id": "1", "path": "units/1/0003"}, [])
    [told] = said["content"]
    assert (
        said["id"] == "1"
        and len(told["p"]) == 20
        and told["h"]["high"] == pytest.approx(told["v"][0], rel=1e-3)
    )
    first = answered(answers, {"id": "2", "path": "units/0/0005"}, [])[0]["content"][0]
    assert len(first["w"]) == 20 and any(first["w"])


def test_cards_have_the_highest_images_of_any_range_of_units(answers, measured, monkeypatch):
    q = torch.cat(list(measured.Q.values()), 1)
    wanted = q.topk(3, dim=0).values.T
    monkeypatch.setattr("neuronym.atlas.explorer.TOPS", 20)  # a range begins and ends within a layer
    found = [np.frombuffer(base64.b64decode(answers.tops(n)), np.int32).reshape(-1, 3) for n in range(4)]
    rows = torch.from_numpy(np.concatenate(found)).long()
    torch.testing.assert_close(q.T.gather(1, rows), wanted)


def test_pictures_are_sent_and_mistakes_told(answers):
    said, [content] = answered(answers, {"id": "3", "picture": 4, "sheets": 0}, [])
    assert Image.open(io.BytesIO(content)).format == "WEBP" and "error" not in said
    assert "error" in answered(answers, {"id": "4", "path": "units/9/0000"}, [])[0]
    assert "cannot identify" in answered(answers, {"id": "5", "look": True}, [b"no picture"])[0]["error"]


def test_a_picture_finds_its_units(answers, measured):
    row = int(measured.Q["fc"][:, 7].argmax())
    file = io.BytesIO()
    measured.probe.image(row).save(file, "png")
    found = answered(answers, {"id": "6", "look": True}, [file.getvalue()])[0]["content"]
    deviations = {unit: z for unit, z, _ in found}
    assert deviations[24 + 7] > 1 and list(deviations.values()) == sorted(deviations.values())[::-1]
    assert any(isinstance(seen, float) for *_, seen in found)


def test_chosen_units_are_what_the_parameter_units_takes(answers, measured):
    chosen = answers.units([2, 24, 75])
    assert chosen == {"microworld:resnet": {"conv1": [2], "fc": [0, 51]}}
    assert measured.units(chosen["microworld:resnet"]) == chosen["microworld:resnet"]


def test_columns_come_when_the_page_asks_for_them(answers, network):
    start = answers.start("An explorer")
    assert (
        list(start["columns"]) == ["label", "held"]
        and start["mapped"]
        and start["help"]["columns"]["clarity"]
    )
    for name in ("score", "clarity"):
        column = answered(answers, {"id": "7", "path": f"columns/{name}"}, [])[0]["content"]
        assert column == quantised(network.units[name].to_numpy())
    places = [answers.column(name) for name in "xy"]
    assert places == [quantised(column) for column in unit_map(network.data.Q).T]


@pytest.fixture
def two(network) -> list[Network]:
    """A network twice: of two runs, over the same images."""
    return [network, replace(network, data=replace(network.data))]


def test_several_networks_are_compared(two):
    answers = Answers(two)
    start = answers.start("Two")
    assert [one["name"] for one in start["networks"]] == ["microworld:resnet", "microworld:resnet (2)"]
    assert start["matches"] == [(0, 2), (1, 2), (0, 3), (1, 3)]
    paired = answered(answers, {"id": "8", "path": "matches/1-3"}, [])[0]["content"]
    assert paired["a"] == paired["b"] and min(paired["held"]) > 0.99
    told = answered(answers, {"id": "9", "path": "units/3/0005"}, [])[0]["content"][0]
    assert {number for number, *_ in told["n"]} == {2, 3}
    assert {number // 2 for number, *_ in told["m"]} == {0, 1}  # names alike are of both networks
    assert answers.units([2, 76 + 24]) == {
        "microworld:resnet": {"conv1": [2]},
        "microworld:resnet (2)": {"fc": [0]},
    }
    assert static_table(two).count("<td>microworld:resnet (2)</td>") == 76


def test_the_picture_made_for_a_unit_is_shown(network, tmp_path):
    Image.new("RGB", (300, 300), "red").save(tmp_path / "made.png")
    made = replace(network, made={("fc", 3): (tmp_path / "made.png", "made")})
    [told] = Answers([made]).details(1, 3)
    kind, content = told["x"]["made"]["src"].split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/webp;base64" and picture.size == (128, 128)


def test_the_static_table_escapes_texts(network):
    html = static_table([network])
    assert HOSTILE not in html and "&lt;/script&gt;" in html


def test_a_widget_where_anywidget_is(measured):
    pytest.importorskip("anywidget", reason="pip install anywidget")
    labels = clip_dissect(measured, "cos_similarity", k=2)
    widget = explorer(measured, labels)
    widget.chosen = [2, 24]
    assert widget.selected == {"conv1": [2], "fc": [0]} and widget.told == "conv1=ids:2;fc=ids:0"
    assert widget.meta["shard"] == 1 and widget.meta["across"] == 1


def test_a_widget_of_two_networks_says_whose_units_are_chosen(two):
    pytest.importorskip("anywidget", reason="pip install anywidget")
    widget = explorer_of(two)
    widget.chosen = [2, 100]
    assert widget.selected == {"microworld:resnet": {"conv1": [2]}, "microworld:resnet (2)": {"fc": [0]}}
    assert widget.told == "microworld:resnet conv1=ids:2; microworld:resnet (2) fc=ids:0"


def test_the_plain_explorer_without_anywidget(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    labels = clip_dissect(measured, "cos_similarity", k=1, units="ids:0-3")
    assert type(explorer(measured, labels)).__module__.startswith("ipywidgets")


def test_the_plain_explorer_of_two_networks(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    layer, _, unit, told = explorer_of(two).children[0].children
    assert told.value == "152 of 152 units"
    layer.value = "microworld:resnet (2) fc"
    assert len(unit.options) == 52


def test_only_one_method_is_ranked(measured):
    first, second = (clip_dissect(measured, name, k=1) for name in ("cos_similarity", "correlation"))
    network = as_network(measured, pd.concat([first, second], ignore_index=True))
    assert network.main == "cos_similarity" and set(network.labels["method"]) == {"cos_similarity"}
    assert set(network.methods["method"]) == {"cos_similarity", "correlation"}
