"""Labels that are phrases: what they claim of an image, and whether they name a true concept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from neuronym.common import text
from neuronym.datasets.probe import load_probe
from neuronym.evaluation import explanations
from neuronym.evaluation.explanations import score_methods
from neuronym.evaluation.presence import true_presence
from neuronym.microworld.world import caption, CONCEPTS, concepts


@pytest.fixture(scope="module")
def probe():
    return load_probe("microworld:120")


def test_a_concept_as_text_is_shown_where_it_is_true(probe):
    assert torch.equal(explanations.phrase_presence(probe, CONCEPTS), true_presence(probe, CONCEPTS))


def test_an_image_shows_its_own_caption_and_seldom_another(probe):
    scenes = [probe.scene(i) for i in range(probe.N)]
    for phrasing in range(4):
        found = explanations.phrase_presence(probe, [caption(s, phrasing) for s in scenes])
        assert found.diagonal().all() and found.double().mean() < 0.05


def test_phrases_are_conjunctions_of_one_thing(probe):
    phrases = ["small red circle", "striped star at night", "two blue rings"]
    found = explanations.phrase_presence(probe, phrases + ["striped star", "night"])
    for i in range(probe.N):
        things = probe.scene(i).things
        assert found[i, 0] == any((t.size, t.colour, t.shape) == ("small", "red", "circle") for t in things)
        assert found[i, 1] == (bool(found[i, 3]) and bool(found[i, 4]))
        assert not found[i, 2] or (len(things) == 2 and "blue ring" in concepts(probe.scene(i)))


def test_two_things_are_two(probe):
    both = explanations.phrase_presence(probe, ["a circle and a circle", "a circle"])
    for i in range(probe.N):
        circles = sum(t.shape == "circle" for t in probe.scene(i).things)
        assert both[i].tolist() == [circles >= 2, circles >= 1]


def test_unknown_texts_are_in_no_image(probe):
    assert not explanations.phrase_presence(probe, ["a photograph of the president", ""]).any()
    assert explanations.phrase_presence(probe, []).shape == (120, 0)


@pytest.mark.parametrize(
    "label, name, named",
    [
        ("blue rings", "ring", True),
        ("a string", "ring", False),
        ("Great White Shark!", "great white shark", True),
        ("white great shark", "great white shark", False),
        ("shark", "great white shark", False),
        ("", "ring", False),
        ("ring", "", False),
        ("red stars", "red star", True),
    ],
)
def test_names_it(label, name, named):
    assert text.names_it(label, name) is named


def test_naming_beside_labels_dealt_to_others():
    names = [f"name{i}" for i in range(40)]
    found = explanations.naming_rate(
        [f"a {n}" for n in names[:30]] + ["nothing"] * 10, names, torch.Generator().manual_seed(0)
    )
    assert (
        found["named"] == 0.75 and 0.55 < found["low"] < 0.75 < found["high"] < 0.9 and found["units"] == 40
    )
    exact = binomtest(30, 40).proportion_ci(0.95, "wilson")
    assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high))
    assert 0 < found["shuffled"] < 0.05  # 30 labels, each right at one unit of 40
    with pytest.raises(ValueError, match="3 labels and 2 names"):
        explanations.naming_rate(["a"] * 3, ["a"] * 2, torch.Generator())
    with pytest.raises(ValueError, match="0 labels"):
        explanations.naming_rate([], [], torch.Generator())


def test_a_copied_caption_names_but_says_more():
    names = ["ring", "red star", "moon"]
    labels = ["a large ring on the sand at night", "red stars", "sea"]
    several = [[labels[0], "grey rings"], ["star", "red stars"], ["sea", ""]]
    found = explanations.naming_rate(labels, names, torch.Generator(), several=several)
    assert found["named"] == found["any"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx((1 / 4 + 2 / 2 + 0) / 3)
    assert found["words"] == pytest.approx((4 + 2 + 1) / 3) and found["shortest"] == (2 + 2) / 2
    none = explanations.naming_rate(["a"], ["moon"], torch.Generator(), several=[["sea"]])
    assert none["any"] == none["precision"] == 0 and "shortest" not in none and none["words"] == 1
    perfect = explanations.naming_rate(["moon"] * 52, ["moon"] * 52, torch.Generator())
    assert perfect["low"] == pytest.approx(0.931, abs=1e-3) and perfect["high"] == 1
    with pytest.raises(ValueError, match="those of 1 for 3 names"):
        explanations.naming_rate(labels, names, torch.Generator(), several=[["a"]])


def test_free_labels_are_scored_like_concepts(probe):
    labels = {"fc": {"phrases": ["small red circle", "night"], "concepts": ["circle", "night"]}}
    explained, texts = explanations.from_labels(labels)
    present = explanations.phrase_presence(probe, texts)
    where = [texts.index(t) for t in ("small red circle", "night", "circle")]
    Q = torch.rand(120, 2, generator=torch.Generator().manual_seed(0))
    table = score_methods(explained, present, {"fc": Q}, {"fc": 0.1}, ["correlation"])
    expected = [np.corrcoef(Q[:, u], present[:, where[w]])[0, 1] for u, w in ((0, 0), (1, 1), (0, 2), (1, 1))]
    assert table["correlation"].tolist() == pytest.approx(expected, abs=1e-5)
    assert table["method"].tolist() == ["phrases"] * 2 + ["concepts"] * 2
