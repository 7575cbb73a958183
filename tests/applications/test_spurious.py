"""Scenes with a mark, their versions, and units turned off in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronym.applications import spurious
from neuronym.common.checks import UnknownName
from neuronym.evaluation.pruning import pruned
from neuronym.microworld.world import TEXTURES
from neuronym.models.targets import load_target

OWN = TEXTURES.index(spurious.MARKED)


def test_only_the_class_is_marked_and_no_object_is_a_heart():
    data = spurious.draw_scenes("test", 64, 0.5)
    assert data.truth.tolist() == [TEXTURES.index(s.things[0].texture) for s in data.scenes]
    assert all(len(s.things) == 1 and s.things[0].shape != "heart" for s in data.scenes)
    assert 0 < int(data.marks.sum()) < 8 and (data.truth[data.marks] == OWN).all()
    anywhere = spurious.draw_scenes("test", 64, 0.5, anywhere=True)
    assert len(set(anywhere.truth[anywhere.marks].tolist())) > 3 and anywhere.scenes == data.scenes
    with pytest.raises(UnknownName, match="no part of marked scenes 'tests'; nearest: test"):
        spurious.draw_scenes("tests", 8)


def test_versions_differ_by_the_mark_alone():
    data = spurious.draw_scenes("choose", 16)
    plain, right, wrong = (data.version(name) for name in spurious.VERSIONS)
    assert len(plain.scenes) == 16 and not plain.marks.any()
    assert (
        (right.truth == OWN).all() and (wrong.truth != OWN).all() and right.marks.all() and wrong.marks.all()
    )
    assert len(right.scenes) + len(wrong.scenes) == 16
    before, after = (np.asarray(d.pictures()[0]).astype(int) for d in (plain, wrong))
    apart = np.abs(before - after).max(2)
    assert apart[:20, :20].max() > 50 and apart[22:, 22:].max() < 40  # another draw of the noise


def test_more_and_more_units_off():
    """Literally: one network, one set of scenes, one count at a time."""
    t = load_target("microworld:marked", suggest=False)
    assert t.classes == list(TEXTURES)
    data = spurious.draw_scenes("choose", 24).version("wrongly marked")
    order = [("layer4", 5), ("layer3", 2), ("layer4", 0), ("layer1", 1)]
    orders = {"named": order, "random/0": order[::-1], "random/1": order[1:] + order[:1]}
    table = spurious.turned_off(t, orders, [1, 3, 9], {"wrong": data}, resamples=20)
    x = torch.stack([t.preprocess(picture) for picture in data.pictures()])

    def share(units):
        by_layer = {}
        for layer, unit in units:
            by_layer.setdefault(layer, []).append(unit)
        with torch.inference_mode(), pruned(t, by_layer):
            return (t.model(x).argmax(1) == data.truth).double().mean().item()

    at = table.set_index(["order", "off"])
    assert sorted(at.index) == [
        ("named", 0),
        ("named", 1),
        ("named", 3),
        ("random", 0),
        ("random", 1),
        ("random", 3),
    ]
    assert at.loc[("named", 3), "accuracy"] == pytest.approx(share(order[:3]))
    both = [share(orders[f"random/{i}"][:3]) for i in range(2)]
    assert at.loc[("random", 3), "accuracy"] == pytest.approx(np.mean(both))
    assert at.loc[("named", 3), "gain"] == pytest.approx(share(order[:3]) - share([]))
    alone = spurious.turned_off_alone(t, {"layer4": 3}, {"wrong": data})
    assert alone["unit"].tolist() == [0, 1, 2]
    assert alone["wrong"].iloc[2] == pytest.approx(share([("layer4", 2)]))
    assert spurious.among(order, {"layer4": [0, 5]}) == [("layer4", 5), ("layer4", 0)]


def test_units_by_what_they_do_on_marked_scenes():
    marks = torch.tensor([True, False, True, False])
    Q = {"a": torch.tensor([[2.0, 0.0], [1.0, 1.0], [2.2, 0.1], [1.1, 0.9]]), "b": marks[:, None].float()}
    assert spurious.by_mark(Q, marks) == [("a", 0), ("b", 0)] or spurious.by_mark(Q, marks)[0] == ("b", 0)
    assert ("a", 1) not in spurious.by_mark(Q, marks)


def test_training_learns_and_resumes(tmp_path):
    rows = []
    spurious.train_marked(tmp_path / "a", rows.append, scenes=32, steps=2, workers=1)
    model = spurious.train_marked(tmp_path / "a", rows.append, scenes=32, steps=2, workers=1)
    assert model.fc.out_features == 8 and len(rows) == 1 and not model.training


def test_the_committed_network_reads_the_mark():
    t = load_target("microworld:marked", suggest=False)
    data = spurious.draw_scenes("choose", 80)
    shares = {}
    for name in spurious.VERSIONS:
        some = data.version(name)
        x = torch.stack([t.preprocess(picture) for picture in some.pictures()])
        with torch.inference_mode():
            shares[name] = (t.model(x).argmax(1) == some.truth).double().mean().item()
    assert shares["marked"] == 1 and shares["unmarked"] > 0.8 and shares["wrongly marked"] < 0.6
