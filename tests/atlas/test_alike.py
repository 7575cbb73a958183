"""Units that are alike: by correlation, one to one, on a map, and for one picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from neuronym import clip_dissect
from neuronym.atlas import alike
from neuronym.common.subsets import split_evenly


def made(N=60, K=5, L=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, K, generator=generator), torch.randn(N, L, generator=generator)


@pytest.mark.parametrize("memory", [2**28, 2000])
def test_closest_units_are_those_of_highest_correlation(memory):
    a, b = made()
    numbers, units, r = alike.closest({"a": a, "b": b}, "a", k=3, memory=memory)
    whole = np.corrcoef(torch.cat([a, b], 1).T.numpy())[:5]
    np.fill_diagonal(whole, -np.inf)
    for unit in range(5):
        order = np.argsort(-whole[unit], kind="stable")[:3]
        assert (numbers[unit] * 5 + units[unit]).tolist() == order.tolist()
        np.testing.assert_allclose(r[unit].numpy(), whole[unit][order], atol=1e-5)


def test_matches_are_the_best_of_all_assignments_and_tested_on_other_images():
    a, b = made()
    table = alike.matched(a, b, 0.4)
    naming, test = split_evenly(60, 0.4)
    r = np.corrcoef(a[naming].T.numpy(), b[naming].T.numpy())[:5, 5:]
    best = max(sum(r[i, j] for j, i in enumerate(some)) for some in itertools.permutations(range(5), 4))
    assert table["a"].is_unique and table["b"].is_unique and len(table) == 4
    assert table["r"].sum() == pytest.approx(best, abs=1e-6)
    one = table.iloc[0]
    held = np.corrcoef(a[test][:, int(one.a)].numpy(), b[test][:, int(one.b)].numpy())[0, 1]
    assert one.held == pytest.approx(held, abs=1e-6)


def test_the_same_units_in_another_order_match_perfectly():
    a, _ = made()
    order = torch.tensor([3, 1, 4, 0, 2])
    table = alike.matched(a, a[:, order])
    assert order[table["b"].tolist()].tolist() == table["a"].tolist()
    assert table["held"].min() > 0.999


def test_other_images_cannot_be_matched():
    a, b = made()
    with pytest.raises(ValueError, match="over the same images, got 60 and 30"):
        alike.matched(a, b[:30])


def test_units_that_fire_together_lie_together():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(80, 3, generator=generator)
    Q = torch.cat([base[:, [k]] + 0.05 * torch.randn(80, 12, generator=generator) for k in range(3)], 1)
    places = alike.unit_map({"layer": Q}, seed=0)
    assert places.shape == (36, 2) and np.abs(places).max() == pytest.approx(1, abs=1e-6)
    centres = np.stack([places[12 * k : 12 * k + 12].mean(0) for k in range(3)])
    spread = max(np.linalg.norm(places[12 * k : 12 * k + 12] - centres[k], axis=1).max() for k in range(3))
    apart = min(np.linalg.norm(centres[i] - centres[j]) for i, j in itertools.combinations(range(3), 2))
    assert apart > spread
    np.testing.assert_array_equal(places, alike.unit_map({"layer": Q}, seed=0))


def test_a_picture_excites_the_units_as_a_pass_says(measured):
    labels = clip_dissect(measured, "cos_similarity", k=1)
    row = int(measured.Q["fc"][:, 7].argmax())
    table = alike.excited(measured, measured.probe.image(row), labels, k=60)
    mine = table[(table["layer"] == "fc") & (table["unit"] == 7)].iloc[0]
    q = measured.Q["fc"][:, 7]
    assert mine["activation"] == pytest.approx(float(q[row]), abs=1e-4)
    assert mine["z"] == pytest.approx(float((q[row] - q.mean()) / q.std(correction=0)), abs=1e-3)
    assert table["z"].is_monotonic_decreasing and mine["label"]
