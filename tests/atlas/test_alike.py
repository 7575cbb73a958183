"""Units that are alike: by correlation, one to one, on a map, and for one picture."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from neuronym import clip_dissect
from neuronym.atlas import alike
from neuronym.common.statistics import standard_columns
from neuronym.common.subsets import split_evenly
from tests.similarity.test_sparse_columns import sparse


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
        own, other = (np.argsort(-some, kind="stable")[:3] for some in (whole[unit, :5], whole[unit, 5:]))
        assert numbers[unit].tolist() == [0, 0, 0, 1, 1, 1]
        assert units[unit].tolist() == [*own, *other]
        expected = [*whole[unit][own], *whole[unit][5 + other]]
        np.testing.assert_allclose(r[unit].numpy(), expected, atol=1e-5)


def test_one_layer_has_closest_units_of_its_own():
    a, _ = made()
    numbers, units, r = alike.closest({"a": a}, "a", k=9)
    assert numbers.shape == units.shape == (5, 5) and (r[:, -1] == -torch.inf).all()  # the unit itself


def named(layer, labels, trust) -> pd.DataFrame:
    columns = {"unit": range(len(labels)), "label": labels, "trust": trust, "held": 0.5}
    return pd.DataFrame({"layer": layer, **columns})


@pytest.mark.parametrize("memory", [2**28, 1])
def test_units_of_like_names_are_those_of_highest_cosine(memory, measured):
    rng = np.random.default_rng(0)
    words = ["red", "orange", "circle", "large circle", "night", "", "xyzzy"]
    first = [named(name, rng.choice(words, n), rng.random(n)) for name, n in (("a", 9), ("b", 8))]
    first[1]["trust"] = np.nan
    tables = [pd.concat(first, ignore_index=True), named("a", rng.choice(words, 7), rng.random(7))]
    found = alike.same_names(tables, 0, measured, k=2, memory=memory)
    assert list(found) == ["a", "b"] and [len(some) for some in found.values()] == [9, 8]
    units = pd.concat(tables, ignore_index=True)
    units["number"] = [0] * 9 + [1] * 8 + [2] * 7
    worth = units["trust"].fillna(units["held"])
    with torch.inference_mode():
        T = measured.clip.encode_text(words[:5]).double().numpy()
    T /= np.linalg.norm(T, axis=1, keepdims=True)

    known = [i for i, word in enumerate(words[:5]) if (units["label"] == word).any()]
    level = np.quantile((T @ T.T)[np.ix_(known, known)][np.triu_indices(len(known), 1)], 0.95)

    def cosine(x: str, y: str) -> float:
        known = x in words[:5] and y in words[:5]
        return 1.0 if x == y else float(T[words.index(x)] @ T[words.index(y)]) if known else 0.0

    for i, own in units[units["number"] < 2].iterrows():
        expected = []
        for group in ([own["number"]], [1 - own["number"]], [2]):
            there = units[units["number"].isin(group) & (units["label"] != "") & (units.index != i)]
            like = [(-cosine(own["label"], y), -worth[j], j) for j, y in there["label"].items()]
            expected += [(j, -r) for r, _, j in sorted(like)[:2] if -r > level and own["label"]]
        mine = found[own["layer"]][own["unit"]]
        assert [(a, b) for a, b, _ in mine] == [tuple(units.loc[j, ["number", "unit"]]) for j, _ in expected]
        np.testing.assert_allclose([r for *_, r in mine], [r for _, r in expected], atol=6e-4)


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
    assert places.shape == (36, 2)
    np.testing.assert_allclose([places.min(0), places.max(0)], [[-1, -1], [1, 1]], atol=1e-6)
    centres = np.stack([places[12 * k : 12 * k + 12].mean(0) for k in range(3)])
    spread = max(np.linalg.norm(places[12 * k : 12 * k + 12] - centres[k], axis=1).max() for k in range(3))
    apart = min(np.linalg.norm(centres[i] - centres[j]) for i, j in itertools.combinations(range(3), 2))
    assert apart > spread
    np.testing.assert_array_equal(places, alike.unit_map({"layer": Q}, seed=0))


def test_more_units_than_a_map_takes_stand_by_two_components():
    from sklearn.decomposition import PCA

    Q = torch.randn(30, 60, generator=torch.Generator().manual_seed(5)).cumsum(1).relu()
    units = standard_columns(Q).T.numpy()
    few = PCA(2, svd_solver="full").fit_transform(units)
    expected = 2 * (few - few.min(0)) / (few.max(0) - few.min(0)) - 1
    for q in ({"a": Q}, {"a": Q[:, :25], "b": sparse(Q[:, 25:])}):
        places = alike.unit_map(q, most=59)
        for mine, other in zip(places.T, expected.T):  # which way an axis points says nothing
            other = other if np.dot(mine - mine.mean(), other - other.mean()) > 0 else -other
            np.testing.assert_allclose(mine, other, atol=1e-4)


def test_a_picture_excites_the_units_as_a_pass_says(measured):
    labels = clip_dissect(measured, "cos_similarity", k=1)
    row = int(measured.Q["fc"][:, 7].argmax())
    table = alike.excited(measured, measured.probe.image(row), labels, k=60)
    mine = table[(table["layer"] == "fc") & (table["unit"] == 7)].iloc[0]
    q = measured.Q["fc"][:, 7]
    assert mine["activation"] == pytest.approx(float(q[row]), abs=1e-4)
    assert mine["z"] == pytest.approx(float((q[row] - q.mean()) / q.std(correction=0)), abs=1e-3)
    assert table["z"].is_monotonic_decreasing and mine["label"]
    text = measured.clip.encode_text([mine["label"]])[0].double()
    seen = measured.I.double() @ text
    assert mine["seen"] == pytest.approx(float((seen[row] - seen.mean()) / seen.std(correction=0)), abs=1e-3)
