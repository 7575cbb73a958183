"""Trust at the cost of a second: literal signals and chance, maps, abstention at a risk; networks of random
weights and probing sets of three images get no trusted name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from neuronym.datasets.images import read_image
from neuronym.dissect import clip_dissect
from neuronym.measurements import measure
from neuronym.models.preprocess import Preprocess
from neuronym.models.targets import load_target
from neuronym.models.weights import random_start
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score
from neuronym.trust.probability import (
    EVIDENCE,
    evidence,
    fit_map,
    is_probability,
    kept,
    probability,
    QUICK,
    ratios,
    shipped,
)
from neuronym.trust.quick import held_out_chance, label_trust, quick_trust, with_trust
from neuronym.trust.untrained import shuffled_weights, standing_out, stands_out, untrained

N, K, M = 40, 5, 6


@pytest.fixture
def world() -> tuple[FactoredMatrix, torch.Tensor, list[int]]:
    dice = torch.Generator().manual_seed(0)
    I, T = (
        nn.functional.normalize(torch.randn(n, 4, generator=dice, dtype=torch.float64), dim=1) for n in (N, M)
    )
    Q = torch.randn(N, K, generator=dice, dtype=torch.float64)
    Q[:, 0] += 4 * (I @ T[2])
    Q[:, 4] = 3.0  # constant
    return FactoredMatrix(I, T), Q, [2, 0, 1, 5, 3]


def literal_softmax(P: np.ndarray, slope: float) -> np.ndarray:
    powers = np.exp(slope * P)
    return powers / powers.sum(1, keepdims=True)


def slope_of(P: np.ndarray) -> float:
    return 2 / np.mean([math.sqrt(sum((x - row.mean()) ** 2 for x in row) / M) for row in P])


def test_ratios_are_the_literal_ones(world):
    factors, Q, labels = world
    P = (factors.I @ factors.T.T).numpy()
    a = slope_of(P)
    low, high = -500.0, 500.0
    for _ in range(200):  # an image shows one concept on average
        b = (low + high) / 2
        shown = np.mean([sum(1 / (1 + math.exp(-(a * p + b))) for p in row) for row in P])
        low, high = (low, b) if shown > 1 else (b, high)
    found = ratios(factors, Q, labels)
    for X, names in ((1 / (1 + np.exp(-(a * P + b))), ("ratio", "foreseen")), (literal_softmax(P, a), None)):
        for k in range(K - 1):
            r = [float(np.corrcoef(Q[:, k].numpy(), X[:, m])[0, 1]) for m in range(M)]
            ratio = min(max(r[labels[k]] / max(r), 0), 1)
            if names:
                assert found["foreseen"][k] == pytest.approx(r[labels[k]], abs=1e-9)
            assert found["ratio" if names else "soft_ratio"][k] == pytest.approx(ratio, abs=1e-8)
    assert found.loc[4].tolist() == [0, 0, 0] and list(found) == list(QUICK)
    alone = ratios(FactoredMatrix(factors.I, factors.T[:1]), Q, [0] * K)
    assert not alone.to_numpy().any()
    with pytest.raises(ValueError, match="one label for each of 5 units"):
        ratios(factors, Q, [0])


def test_evidence_is_the_literal_one(world):
    factors, Q, labels = world
    P = (factors.I @ factors.T.T).numpy()
    X, found = literal_softmax(P, slope_of(P)), evidence(factors, Q, labels)
    assert found[list(QUICK)].equals(ratios(factors, Q, labels)) and set(EVIDENCE) < set(found)
    for k, c in enumerate(labels):
        assert found["prevalence"][k] == pytest.approx(math.log10(M * X[:, c].sum() / N))
        z = math.atanh(found["foreseen"][k]) * math.sqrt(N - 3)
        assert found["evidence"][k] == pytest.approx(math.log(1 + max(0, z)))
    assert found["images"].tolist() == pytest.approx([math.log10(N)] * K)
    assert found["few"].tolist() == pytest.approx([1 / math.sqrt(N)] * K)
    pd.testing.assert_frame_equal(evidence(factors, Q, labels, memory=20_000), found, rtol=1e-9)
    alone = evidence(FactoredMatrix(factors.I, factors.T[:1]), Q, [0] * K)
    assert not alone[["prevalence", "ratio", "soft_ratio", "evidence"]].to_numpy().any()
    few = evidence(FactoredMatrix(factors.I[:2], factors.T), Q[:2], labels)
    assert not few["evidence"].any() and np.isfinite(few.to_numpy()).all()
    assert few["few"].tolist() == pytest.approx([1 / math.sqrt(20)] * K)


def test_trust_of_labels_is_the_map_of_evidence(world):
    factors, Q, labels = world
    found, by = evidence(factors, Q, labels), shipped("evidence")
    for k, trust in enumerate(label_trust(factors, Q, labels)):
        z = by["offset"]
        for signal, weight, mean, scale in zip(by["signals"], by["weights"], by["mean"], by["scale"]):
            z += weight * (found[signal][k] - mean) / scale
        assert trust == pytest.approx(1 / (1 + math.exp(-z)))
    some = label_trust(factors, Q, labels, named=[True, False, True, True, False])
    assert (some == 0).tolist() == [False, True, False, False, True]
    few = FactoredMatrix(factors.I[:19], factors.T)
    assert not label_trust(few, Q[:19], labels).any()
    assert not label_trust(factors, Q, labels, untrained="its weights are random").any()


def test_chance_is_the_literal_one(world):
    factors, Q, labels = world
    found = held_out_chance(factors, Q, labels, 30, generator=torch.Generator().manual_seed(5))
    X = literal_softmax((factors.I @ factors.T.T).numpy(), slope_of((factors.I @ factors.T.T).numpy()))
    dice = torch.Generator().manual_seed(5)
    deals = [torch.randperm(N, generator=dice).numpy() for _ in range(30)]
    for k in range(K - 1):
        q, x = Q[:, k].numpy(), X[:, labels[k]]
        own = np.corrcoef(q, x)[0, 1]
        as_good = sum(np.corrcoef(q, x[deal])[0, 1] >= own for deal in deals)
        assert float(found[k]) == pytest.approx((1 + as_good) / 31)
    assert found[0] == 1 / 31 and found[4] == 1
    same = held_out_chance(factors, Q, labels, 30, generator=torch.Generator().manual_seed(5), memory=200)
    assert torch.equal(same, found)


def test_chance_is_uniform_where_nothing_goes_along(world):
    factors, _, _ = world
    Q = torch.randn(N, 300, generator=torch.Generator().manual_seed(3))
    p = held_out_chance(factors, Q, torch.arange(300) % M, 99)
    assert abs(float(p.mean()) - 0.5) < 0.06 and abs(float((p <= 0.1).double().mean()) - 0.1) < 0.05


def test_a_map_orders_and_is_the_formula():
    dice = np.random.default_rng(0)
    table = pd.DataFrame(dice.random((400, 3)), columns=list(QUICK))
    near = dice.random(400) < table["ratio"]
    learnt = fit_map(table, near)
    row = table.iloc[7]
    z = learnt["offset"] + sum(
        w * (row[s] - m) / c
        for s, w, m, c in zip(learnt["signals"], learnt["weights"], learnt["mean"], learnt["scale"])
    )
    assert probability(table, learnt)[7] == pytest.approx(1 / (1 + math.exp(-z)))
    assert probability(table, learnt).mean() == pytest.approx(near.mean(), abs=0.02)
    with pytest.raises(ValueError, match="a map is fitted to near names and others"):
        fit_map(table, np.ones(400))


@pytest.mark.parametrize("name", ["ratio", "quick", "all", "evidence"])
def test_the_shipped_maps_rise_with_the_ratio(name):
    found = shipped(name)
    assert "docs/protocols/trust" in found["source"] and "ratio" in found["signals"]
    ends = pd.DataFrame([dict.fromkeys(found["signals"], 0.0), dict.fromkeys(found["signals"], 1.0)])
    if name == "evidence":  # 1,000 images
        ends = ends.assign(images=3, few=0.03, evidence=[0.0, 3.0])
    low, high = probability(ends, found)
    assert low < 0.2 and high > 0.9


def test_names_at_a_chosen_risk_by_hand():
    trust = [0.2, 0.95, 0.9, 0.9, 0.85, 0.1]
    assert kept(trust, 0.9).tolist() == [False, True, True, True, True, False]
    assert kept(trust, 0.91).tolist() == [False, True, True, True, False, False]
    assert kept(trust, 0.95).tolist() == [False, True, False, False, False, False]
    assert not kept(trust, 0.99).any() and not len(kept([], 0.5))
    tied = [1.0, 0.8, 0.8]  # with one of the two the mean would be .9
    assert kept(tied, 0.89).tolist() == [True, False, False]


def test_stands_out_by_hand():
    chance = torch.tensor([[0.5, 0.0], [0.4, 0.1], [0.3, 0.2], [0.2, 0.1]])
    own = torch.tensor([[0.45, 0.1], [0.0, 0.9]])
    assert stands_out(own, chance).tolist() == [False, True]


def test_weights_come_back_whatever_happens():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), shuffled_weights(net, 0):
        assert not torch.equal(net[0].weight, before["0.weight"])
        assert torch.equal(net[0].weight.flatten().sort().values, before["0.weight"].flatten().sort().values)
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_units_that_do_the_same_are_looked_at_again(monkeypatch):
    """Where two shuffles leave it open, six more are made, and a layer that stands out hardly more
    than a shuffled one counts 0.
    """
    data = measure("microworld:resnet", "layer3,fc", "microworld:24", "microworld", "microworld:atoms")
    monkeypatch.setattr("neuronym.trust.untrained.ENOUGH_OUT", 0)
    monkeypatch.setattr("neuronym.trust.untrained.LEARNED", 1.1)
    found, Q = standing_out(data), []
    for seed in range(8):
        with shuffled_weights(data.target.model, seed):
            target = replace(data.target, weights_key=f"shuffled {seed}")
            Q.append(measure(target, "layer3,fc", data.probe, data.clip, data.concepts).Q)
    for layer, share in found.items():
        own, *others = (score(data.P, q[layer], "soft_correlation") for q in (data.Q, *Q))
        pooled, *of_shuffled = (
            float(stands_out(one, torch.cat([x for x in others if x is not one])).double().mean())
            for one in (own, *others)
        )
        assert share == pytest.approx(pooled if pooled > (1 + max(of_shuffled)) / 2 else 0)


def test_pictures_are_decoded_once_for_all_shuffles(tmp_path, monkeypatch):
    """And as many as memory holds are kept; what comes out does not change."""
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (200, 200, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found, decoded = [], []
    monkeypatch.setattr(
        "neuronym.datasets.probe.read_image", lambda path: decoded.append(path) or read_image(path)
    )
    for memory in (2**28, 10 * 200 * 200 * 3):
        monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / f"cache {memory}"))
        data = measure("microworld:resnet", "layer3", f"folder:{tmp_path}", "microworld", "microworld:atoms")
        decoded.clear()
        found.append(standing_out(data, memory=memory))
        looked_at = 3 * 3 * 2  # by three networks: rows that are compared, of each of two layers at most
        assert len(decoded) <= (24 if memory == 2**28 else 24 + 3 * 14) + looked_at
        decoded.clear()
        assert standing_out(data, memory=memory) == found[-1]  # from the cache
        assert len(decoded) <= looked_at
    assert found[0] == found[1] and set(found[0]) == {"layer3", "fc"}


def trusted(data) -> tuple[pd.DataFrame, list[str]]:
    """What `labelling` does."""
    labels = clip_dissect(data)
    naming, test = data.split(0.4)
    named = {name: score(naming.P, q, "combined_correlation").argmax(1) for name, q in naming.Q.items()}
    found, told = quick_trust(data, test, labels, named, untrained=untrained(standing_out(data)))
    return with_trust(labels, found), told


def random_network(seed: int):
    with random_start(seed):
        layers = []
        for width, before in ((24, 3), (32, 24), (48, 32)):
            layers += [nn.Conv2d(before, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 20))
    return load_target(net, preprocess=Preprocess(64, 64), name="random")


def test_a_network_with_random_weights_gets_no_trusted_name():
    data = measure(random_network(7), "all", "microworld:150", "microworld", "microworld:atoms")
    labels, told = trusted(data)
    best = labels[labels["rank"] == 1]
    assert best["abstain"].mean() >= 0.95 and best["trust"].isna().equals(best["abstain"])
    assert "were its weights loaded?" in told[0]


def test_a_trained_network_is_trusted_and_its_first_layer_alone_too():
    for layers in ("layer4,fc", "conv1"):
        data = measure("microworld:resnet", layers, "microworld:150", "microworld", "microworld:atoms")
        labels, told = trusted(data)
        best = labels[labels["rank"] == 1]
        assert best["abstain"].mean() < 0.5 and best["trust"].dropna().between(0, 1).all()
        assert best["trust"].isna().equals(best["abstain"]) and not best["calibrated"].any()
        assert told[-1].startswith("trust: an order of names, no probability but with the microworld's")
    assert (labels.groupby("unit")["trust"].nunique(dropna=False) == 1).all()


def test_trust_is_a_probability_for_enough_scenes_with_the_words_of_its_map():
    data = measure("microworld:resnet", "fc", "microworld:500", "microworld", "microworld")
    photos = replace(data, probe=replace(data.probe, items=[Path("photo.png")] * 500))
    others = data.rows(range(499)), photos, replace(data, concepts=data.concepts[:52])
    assert is_probability(data) and not any(is_probability(other) for other in others)
    labels, told = trusted(data)
    assert labels["calibrated"].all() and told[-1] == "trust: how likely a name is near"


def test_three_images_are_too_few_for_any_name():
    data = measure("microworld:resnet", "layer4,fc", "microworld:3", "microworld", "microworld:atoms")
    labels, told = trusted(data)
    assert labels["abstain"].mean() >= 0.95 and (labels["trust"].dropna() == 0).all()
    assert told == ["no name is better than chance on 1 image held out; probe with more images"]
