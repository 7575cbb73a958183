"""Signals of trust in one table, and rightness by the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronym.evaluation.presence import presence_oracle
from neuronym.similarity.scores import score
from neuronym.trust.null import abstain, best_scores, null_best, p_values
from neuronym.trust.signals import conditions, correctness, SHARES, signals, trust_score, untestable
from neuronym.trust.stability import bootstrap_labels, halves, margin

N, M = 240, 7


@pytest.fixture(scope="module")
def world():
    """P [N, M]; units 0 to 2 act on concepts 4, 1, 6, unit 3 on nothing."""
    dice = torch.Generator().manual_seed(0)
    present = torch.rand(N, M, generator=dice) < 0.2
    P = 0.2 + 0.1 * present.double() + 0.01 * torch.randn(N, M, generator=dice, dtype=torch.float64)
    Q = torch.cat(
        [
            present[:, [4, 1, 6]].double() + 0.2 * torch.randn(N, 3, generator=dice, dtype=torch.float64),
            torch.randn(N, 1, generator=dice, dtype=torch.float64),
        ],
        1,
    )
    return present, P, Q


def test_signals_are_those_of_each_module(world):
    _, P, Q = world
    table = signals(
        P,
        Q,
        "cos_similarity_cubed",
        draws=50,
        samples=8,
        splits=3,
        generator=torch.Generator().manual_seed(5),
    )
    dice = torch.Generator().manual_seed(5)
    scores = score(P, Q, "cos_similarity_cubed")
    p = p_values(
        best_scores(P, Q, "cos_similarity_cubed"),
        null_best(P, Q, "cos_similarity_cubed", draws=50, generator=dice),
    )
    again = bootstrap_labels(P, Q, "cos_similarity_cubed", draws=8, generator=dice)
    share, _ = halves(P, Q, "cos_similarity_cubed", repeats=3, generator=dice)
    assert table["unit"].tolist() == [0, 1, 2, 3] and table["label"].tolist()[:3] == [4, 1, 6]
    for name, values in {
        "score": scores.amax(1),
        "p": p,
        "abstain": abstain(p),
        "margin": margin(scores),
        "bootstrap": again.stability,
        "low": again.low,
        "high": again.high,
        "halves": share,
    }.items():
        assert np.allclose(table[name], values.double().numpy()), name


def test_units_of_noise_are_abstained_from(world):
    _, P, Q = world
    table = signals(P, Q, draws=300, samples=5, splits=2)
    assert table["abstain"].tolist() == [False, False, False, True] and table["p"][:3].max() < 0.01
    assert (
        (table["bootstrap"][:3] == 1).all()
        and (table["halves"][:3] == 1).all()
        and table["z"][:3].min() > 4 > table["z"][3]
    )
    assert signals(P, Q, draws=300, samples=5, splits=2, correction="none", level=1.0)["abstain"].sum() == 0


def test_conditions_and_the_mean_of_shares():
    table = conditions(
        ["a", "b", "c"],
        {"noise": ["a", "b", "x"], "other": ["a", "x", "x"]},
        {"m": ["a", "b", "x"], "n": ["y", "b", "x"], "o": ["a", "b", "c"]},
    )
    assert table["same_noise"].tolist() == [True, True, False] and table["conditions"].tolist() == [1, 0.5, 0]
    assert np.allclose(table["methods"], [2 / 3, 1, 1 / 3]) and table["consensus"].tolist() == ["a", "b", "x"]
    whole = table.assign(bootstrap=[1.0, 0.5, 0.0], halves=[0.6, 0.2, 0.0])
    assert np.allclose(trust_score(whole), [(1 + 0.6 + 1 + 2 / 3) / 4, (0.5 + 0.2 + 0.5 + 1) / 4, 1 / 12])
    assert set(SHARES) <= set(whole) and trust_score(whole, ["halves"]).tolist() == [0.6, 0.2, 0]
    assert conditions(["a"], {}, {"m": ["a"]})["conditions"].tolist() == [1]


def test_rightness_by_the_best_concept_or_the_true_name(world):
    present, _, Q = world
    oracle = presence_oracle(Q, present)
    best = oracle.argmax(1).tolist()
    assert best[:3] == [4, 1, 6]
    found = correctness([4, 2, 6, best[3]], present, Q)
    assert found["exact"].tolist() == [True, False, True, True] and found["near"].tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert np.allclose(found["possible"], oracle.amax(1)) and found["reached"][1] == pytest.approx(
        float(oracle[1, 2])
    )
    assert correctness([4, 2, 6, 0], present, Q, names=[0, 2, 6, 0])["exact"].tolist()[:3] == [
        False,
        True,
        True,
    ]
    assert (
        correctness([4, 2, 6, 0], present, Q, good=0.0)["near"].tolist()[0]
        and not correctness([4, 2, 6, 0], present, Q * 0)["exact"].any()
    )
    with pytest.raises(ValueError, match="one label for each of 4 units, got 2"):
        correctness([0, 1], present, Q)
    with pytest.raises(ValueError, match="good"):
        correctness([0, 1, 2, 3], present, Q, good=1.5)


@pytest.mark.parametrize(
    "sizes, concepts, images, held_out, message",
    [
        ({"a": 3}, 1, 50, 0.4, "trust needs at least 2 concepts, .* got 1"),
        ({"a": 3}, 9, 3, 0.4, "trust needs at least 2 images to name from and 2 held out, got 2 and 1 of 3"),
        ({"a": 1, "b": 1}, 9, 50, 0.4, "soft_wpmi compares a unit .* and a, b have one each; choose other"),
    ],
)
def test_what_cannot_be_told_is_refused_before_work(sizes, concepts, images, held_out, message):
    with pytest.raises(ValueError, match=message):
        untestable(sizes, concepts, images, held_out)


def test_layers_of_one_unit_are_left_out_where_units_are_compared():
    assert untestable({"a": 1, "b": 5}, 2, 50, 0.4) == ["a"]
    assert untestable({"a": 1, "b": 5}, 2, 50, 0.4, "cos_similarity_cubed") == []
