"""Scenes changed in one attribute, and what a unit's changes say: literal sums, planted units."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch

from neuronym.measurements import measure
from neuronym.microworld.world import CONCEPTS, concepts
from neuronym.trust.counterfactual import (
    attribute_shares,
    ATTRIBUTES,
    causal_scores,
    changes,
    drawn_scenes,
    pairs,
)


def test_a_pair_differs_in_one_attribute():
    found = pairs(12)
    assert len(found.before) == len(found.after) == len(found.attribute) == 12 * len(ATTRIBUTES)
    for before, after, attribute in zip(found.before, found.after, found.attribute):
        first, then = (
            {"place": s.place, "light": s.light, "seed": s.seed, "position": s.things[0].position}
            | {k: v for k, v in asdict(s.things[0]).items() if k not in ("x", "y", "radius")}
            | {"count": len(s.things)}
            for s in (before, after)
        )
        differ = [k for k in first if first[k] != then[k]]
        if attribute == "count":  # things stand elsewhere then
            assert "count" in differ and set(differ) <= {"count", "position", "angle"}
        else:
            assert differ == [attribute]
    assert pairs(3) == pairs(3) and pairs(3).before[0] != pairs(3, seed=1).before[0]


def test_causal_scores_are_the_literal_ones():
    dice = torch.Generator().manual_seed(0)
    dQ = torch.randn(30, 4, generator=dice, dtype=torch.float64)
    dC = torch.randint(-1, 2, (30, 5), generator=dice).double()
    dQ[:, 3], dC[:, 4] = 0, 0
    found = causal_scores(dQ, dC)
    for k in range(4):
        for c in range(5):
            products = math.fsum(float(dQ[p, k]) * float(dC[p, c]) for p in range(30))
            lengths = math.sqrt(math.fsum(float(x) ** 2 for x in dQ[:, k]))
            lengths *= math.sqrt(math.fsum(float(x) ** 2 for x in dC[:, c]))
            assert float(found[k, c]) == pytest.approx(products / lengths if lengths else 0, abs=1e-12)


def test_a_unit_that_follows_a_concept_has_the_largest_score_there():
    found = pairs(60)
    probe, rows = drawn_scenes([*found.before, *found.after])
    scenes = dict(zip(rows.tolist(), [*found.before, *found.after]))
    wanted = ["red", "striped", "night", "large", "left"]
    Q = torch.tensor([[float(word in concepts(scenes[i])) for word in wanted] for i in range(probe.N)])
    dQ, dC = changes(found, Q, rows, CONCEPTS)
    scores = causal_scores(dQ, dC)
    assert [CONCEPTS[i] for i in scores.argmax(1).tolist()] == wanted
    assert torch.allclose(scores.amax(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(causal_scores(-dQ, dC), -scores)
    shares = attribute_shares(dQ, found.attribute)
    expected = ["colour", "texture", "place", "size", "position"]
    assert list(shares) == list(ATTRIBUTES) and shares.idxmax(axis=1).tolist() == expected
    assert shares.max(axis=1).round(9).tolist()[:4] == [1] * 4  # what stands elsewhere may leave the left


def test_units_of_the_final_layer_change_with_their_own_names():
    found = pairs(30)
    probe, rows = drawn_scenes([*found.before, *found.after])
    data = measure("microworld:resnet", "fc", probe, "microworld", "microworld:atoms")
    dQ, dC = changes(found, data.Q["fc"], rows, data.classes)
    moved = dC.abs().sum(0) > 0
    scores = causal_scores(dQ, dC)[moved][:, moved]
    assert (scores.argmax(1) == torch.arange(len(scores))).double().mean() > 0.9
