"""CLIP-Dissect's labels: settings by layer, the paper's preset, and what functions cannot say."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from neuronym.dissect import (
    cautions,
    chosen_options,
    clip_dissect,
    DEFAULT,
    labels_of_units,
    options_by_layer,
    PAPER,
    scored_layers,
)
from neuronym.measurements import measure
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score, SIMILARITIES


@pytest.fixture(scope="module")
def data():
    return measure("microworld:resnet", "layer1,fc", "microworld:150", "microworld", "microworld:atoms")


def labels(table: pd.DataFrame, layer: str) -> list[str]:
    return table[table["layer"] == layer]["label"].tolist()


def test_the_paper_has_other_settings_for_the_final_layer(data):
    found = clip_dissect(data, preset="paper", k=1)
    assert set(found["method"]) == {"soft_wpmi"}
    for layer, options in (("layer1", PAPER["inner"]), ("fc", PAPER["final"])):
        expected = score(data.P, data.Q[layer], "soft_wpmi", **options).argmax(1)
        assert labels(found, layer) == [data.concepts[i] for i in expected.tolist()]
    assert PAPER["inner"] == {"a": 10, "lam": 1, "top_k": 100}
    assert PAPER["final"] == {"a": 2, "lam": 0.6, "top_k": 28}
    few = options_by_layer(["layer1", "fc"], DEFAULT, "fc", 40, "paper")
    assert [few[layer]["top_k"] for layer in ("layer1", "fc")] == [40, 28]


def test_layers_of_other_options_are_scored_with_theirs_in_any_order(data):
    Q = {"layer1": data.Q["layer1"], "fc": data.Q["fc"], "again": data.Q["layer1"]}
    options = {"layer1": {"a": 3}, "fc": {"a": 5}, "again": {"a": 3}}
    found = dict(scored_layers(data.P, Q, "soft_wpmi", options))
    assert set(found) == set(Q)
    for layer, q in Q.items():
        expected = score(data.P, q, "soft_wpmi", **options[layer])
        torch.testing.assert_close(found[layer], expected, rtol=1e-5, atol=1e-3)


def test_the_default_is_a_similarity_function(data):
    assert DEFAULT in SIMILARITIES
    assert set(clip_dissect(data, k=1)["method"]) == {DEFAULT}


def test_the_default_knows_the_last_layer(data):
    """It is named by the sum with the cubed cosine twice, others by the standardised one."""
    found = clip_dissect(data, k=1)
    for layer, function, options in (
        ("layer1", "standardised_correlation", {}),
        ("fc", "combined_correlation", {"cubed": 2}),
    ):
        best = score(data.P, data.Q[layer], function, **options).argmax(1)
        assert labels(found, layer) == [data.concepts[i] for i in best.tolist()]
    assert options_by_layer(["layer1", "fc"], DEFAULT, "fc", 40)["layer1"] == {"final": False}
    alone = labels_of_units(data.P, {"fc": data.Q["fc"]}, data.concepts)["fc"]
    best = score(data.P, data.Q["fc"], "standardised_correlation").argmax(
        1
    )  # nobody said that it is the last
    assert alone == [data.concepts[i] for i in best.tolist()]
    with pytest.raises(TypeError, match="final must be True for the last layer and False for others, got 1"):
        score(data.P, data.Q["fc"], DEFAULT, final=1)


def test_options_of_wpmi_as_parameters():
    assert chosen_options(DEFAULT) == chosen_options("soft_wpmi") == {}
    assert chosen_options("wpmi", 3.0, 0.0, 7) == {"a": 3.0, "lam": 0.0, "top_k": 7}
    with pytest.raises(
        ValueError, match="a, pmi_images are of wpmi and soft_wpmi, got similarity correlation; le"
    ):
        chosen_options("correlation", 3.0, pmi_images=7)


def test_one_unit_has_no_prior_and_that_is_said():
    I, T = (torch.nn.functional.normalize(torch.rand(n, 6) - 0.2, dim=1) for n in (30, 9))
    P, q = FactoredMatrix(I, T), torch.rand(30, 1)
    assert score(P, q, "soft_wpmi").abs().max() < 1e-5  # every concept scores 0: this is what is said
    [said] = cautions("soft_wpmi", {"a": 1, "b": 7}, P)
    assert "scores 0 for every concept in a, whose one unit" in said
    assert cautions("soft_wpmi", {"a": 1}, P, 0.5) == cautions("soft_wpmi", {"a": 2}, P) == []
    assert cautions("wpmi", {"a": 1}, P) == cautions(DEFAULT, {"a": 1}, P) == []
    assert len(cautions("wpmi", {"a": 1}, P, 1)) == 1


def test_concepts_that_rank_reorder_never_chooses_are_counted():
    P = torch.rand(400, 5)
    P[:, 3] -= 2
    assert not (score(P, torch.rand(400, 8), "rank_reorder").argmax(1) == 3).any()
    [said] = cautions("rank_reorder", {"a": 8}, P)
    assert said.startswith("rank_reorder hardly ever chooses 1 of 5 concepts")
    assert cautions("rank_reorder", {"a": 8}, P.abs()) == []


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"similarity": "soft_wmpi"}, KeyError, "no similarity function 'soft_wmpi'; nearest: soft_wpmi"),
        ({"preset": "papr"}, KeyError, "no preset 'papr'; nearest: paper"),
        (
            {"preset": "paper", "a": 3},
            ValueError,
            "preset 'paper' sets a, lam and top_k, and a came beside it",
        ),
        ({"a": 3}, ValueError, "has no option 'a'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(data, options, error, message):
    with pytest.raises(error, match=message):
        clip_dissect(data, **options)
