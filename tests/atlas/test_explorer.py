"""The explorer: what it answers, what is chosen in it, what exported notebooks show of it."""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym import clip_dissect
from neuronym.atlas.explorer import answered, Answers, as_network, explorer, static_table
from tests.atlas.conftest import HOSTILE


@pytest.fixture
def answers(network) -> Answers:
    return Answers(network)


def test_details_come_one_unit_at_a_time(answers):
    said, _ = answered(answers, {"id": "1", "path": "units/1/0003"}, [])
    [told] = said["content"]
    assert (
        said["id"] == "1"
        and len(told["p"]) == 20
        and told["h"]["high"] == pytest.approx(told["v"][0], rel=1e-3)
    )
    first = answered(answers, {"id": "2", "path": "units/0/0005"}, [])[0]["content"][0]
    assert len(first["w"]) == 8 and any(first["w"])


def test_cards_have_the_highest_images_of_any_range_of_units(answers, measured, monkeypatch):
    q = torch.cat(list(measured.Q.values()), 1)
    wanted = q.topk(3, dim=0).values.T
    monkeypatch.setattr("neuronym.atlas.explorer.TOPS", 20)  # a range begins and ends within a layer
    found = [np.frombuffer(base64.b64decode(answers.tops(n)), np.int32).reshape(-1, 3) for n in range(4)]
    rows = torch.from_numpy(np.concatenate(found)).long()
    torch.testing.assert_close(q.T.gather(1, rows), wanted)


def test_pictures_are_sent_and_mistakes_told(answers):
    said, [content] = answered(answers, {"id": "3", "picture": 4}, [])
    assert Image.open(io.BytesIO(content)).format == "WEBP" and "error" not in said
    assert "error" in answered(answers, {"id": "4", "path": "units/9/0000"}, [])[0]
    assert "cannot identify" in answered(answers, {"id": "5", "look": True}, [b"no picture"])[0]["error"]


def test_a_picture_finds_its_units(answers, measured):
    row = int(measured.Q["fc"][:, 7].argmax())
    file = io.BytesIO()
    measured.probe.image(row).save(file, "png")
    found = dict(answered(answers, {"id": "6", "look": True}, [file.getvalue()])[0]["content"])
    assert found[24 + 7] > 1


def test_chosen_units_are_what_the_parameter_units_takes(answers, measured):
    chosen = answers.units([2, 24, 75])
    assert chosen == {"conv1": [2], "fc": [0, 51]} and measured.units(chosen) == chosen


def test_the_static_table_escapes_texts(network):
    html = static_table(network)
    assert HOSTILE not in html and "&lt;/script&gt;" in html


def test_a_widget_where_anywidget_is(measured):
    pytest.importorskip("anywidget", reason="pip install anywidget")
    labels = clip_dissect(measured, "cos_similarity", k=2)
    widget = explorer(measured, labels)
    widget.chosen = [2, 24]
    assert widget.selected == {"conv1": [2], "fc": [0]} and widget.told == "conv1=ids:2;fc=ids:0"
    assert widget.meta["shard"] == 1 and widget.meta["across"] == 1


def test_the_plain_explorer_without_anywidget(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    labels = clip_dissect(measured, "cos_similarity", k=1, units="ids:0-3")
    assert type(explorer(measured, labels)).__module__.startswith("ipywidgets")


def test_only_one_method_is_ranked(measured):
    first, second = (clip_dissect(measured, name, k=1) for name in ("cos_similarity", "correlation"))
    import pandas as pd

    network = as_network(measured, pd.concat([first, second], ignore_index=True))
    assert network.main == "cos_similarity" and set(network.labels["method"]) == {"cos_similarity"}
    assert set(network.methods["method"]) == {"cos_similarity", "correlation"}
