"""Orders of units, pairs of redundant ones, and curves of smaller networks, each written out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neuronym.applications import orders
from neuronym.applications.channels import trace
from neuronym.applications.names import labels_list, named_here, read_names
from neuronym.applications.surgery import Fold, masked, with_means
from neuronym.common.tables import write_table
from neuronym.measurements import measure
from neuronym.similarity.labels import write_labels
from neuronym.trust.quick import quick_trust
from tests.applications.test_edited import target
from tests.applications.test_surgery import resnet, X


def test_units_are_ordered():
    Q = torch.tensor([[1.0, -3.0, 0.0, 2.0], [1.0, 3.0, 0.5, -2.0]])
    assert orders.by_activation(Q) == [2, 0, 3, 1]
    model = resnet()
    found = orders.by_magnitude(model, trace(model, X), "layer2")
    norms = [
        sum(w[k].abs().sum().item() for w in (model.layer2.conv2.weight, model.layer2.down[0].weight))
        for k in range(12)
    ]
    assert found == sorted(range(12), key=lambda k: norms[k])
    labels = pd.DataFrame(
        {"layer": "a", "unit": [0, 2, 3, 3], "rank": [1, 1, 1, 2], "trust": [0.9, 0.1, 0.5, 0]}
    )
    assert orders.by_trust(labels, "a", 5) == [1, 4, 2, 3, 0]
    with pytest.raises(ValueError, match="an order by trust needs labels with a column"):
        orders.by_trust(labels.drop(columns="trust"), "a", 5)
    assert sorted(orders.at_random(9, np.random.default_rng(0))) == list(range(9))


def test_redundant_pairs_are_those_of_the_definition():
    """Literally: the best pair left, the less active one goes, by numpy's own correlation."""
    dice = np.random.default_rng(2)
    base = dice.random((40, 3))
    Q = np.concatenate([base, base * [0.5, 2, 1] + 0.2 * dice.random((40, 3)), dice.random((40, 2))], 1)
    names = ["a", "b", "c", "a", "b", "other", "a", ""]
    for labels, least in ((names, 0.5), (None, 0.2)):
        r, left, wanted = np.corrcoef(Q.T), set(range(8)), []
        while True:
            pairs = [
                (r[i, j], -i, -j)
                for i in left
                for j in left
                if i < j and r[i, j] >= least and (labels is None or labels[i] == labels[j] != "")
            ]
            if not pairs:
                break
            _, i, j = max(pairs)
            i, j = (-i, -j) if Q[:, -i].mean() <= Q[:, -j].mean() else (-j, -i)
            wanted.append((i, j, *np.polyfit(Q[:, j], Q[:, i], 1)))
            left.remove(i)
        found = orders.redundant(torch.from_numpy(Q), labels, least)
        assert [fold[:2] for fold in found] == [pair[:2] for pair in wanted] and found
        np.testing.assert_allclose([fold[2:] for fold in found], [pair[2:] for pair in wanted])
    assert orders.gone({"x": found}) == {"x": [fold.gone for fold in found]}


def test_a_curve_is_the_accuracy_of_masked_networks():
    t = target(resnet())
    x = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        truth = t.model(x).argmax(1)
    queue = {
        "activation": {"layer4": list(range(48)), "layer2.relu1": list(range(12))},
        "random/0": {"layer4": list(range(47, -1, -1)), "layer2.relu1": list(range(12))},
        "random/1": {"layer4": list(range(48)), "layer2.relu1": list(range(11, -1, -1))},
        "redundant": {"layer4": [Fold(0, 1, 0.0)] * 1, "layer2.relu1": [Fold(2, 3, 0.0)]},
    }
    amounts = orders.amounts_of([0.5, 1], {"layer4": 48, "layer2.relu1": 12}) + [
        {"layer4": 1, "layer2.relu1": 1}
    ]
    assert amounts[1] == {"layer4": 47, "layer2.relu1": 11}, "one stays"
    table = orders.prune_curve(t, queue, x, truth, amounts, resamples=20)
    assert table["accuracy"].iloc[0] == 1 and table["order"].iloc[0] == "whole"
    assert len(table) == 1 + 3 + 3 + 1, "an order of one pair reaches one amount alone"
    for amount in amounts[:2]:
        found = []
        for name in ("random/0", "random/1"):
            units = {layer: queue[name][layer][:n] for layer, n in amount.items()}
            with torch.inference_mode():
                found.append((masked(t.model, X, units)(x).argmax(1) == truth).double().mean().item())
        row = table[(table["order"] == "random") & (table["units"] == sum(amount.values()))].iloc[0]
        assert row["accuracy"] == pytest.approx(np.mean(found)) and row["draws"] == 2
        assert (
            row["loss"] == pytest.approx(1 - row["accuracy"]) and row["low"] <= row["accuracy"] <= row["high"]
        )
        assert row["share"] == pytest.approx(sum(amount.values()) / 60) and 0 < row["weights"] < 1
    with pytest.raises(
        ValueError, match="layers to prune hold units of their own, 'conv1' and 'layer1' hold"
    ):
        orders.prune_curve(t, {"a": {"conv1": [0], "layer1": [0]}}, x, truth, amounts)
    kept = {layer: torch.full((K,), 0.3) for layer, K in (("layer4", 48), ("layer2.relu1", 12))}
    of_means = orders.prune_curve(t, {"a": queue["activation"]}, x, truth, amounts[2:], kept, resamples=5)
    one = with_means(t.model, X, {layer: {0: 0.3} for layer in kept})
    with torch.inference_mode():
        assert of_means["accuracy"].iloc[1] == (one(x).argmax(1) == truth).double().mean().item()
    cost = orders.cost({"whole": t}, x, 1)
    assert (
        cost["weights"].iloc[0] == sum(p.numel() for p in t.model.parameters()) and cost["time"].iloc[0] == 1
    )


def test_names_come_from_runs_and_files(tmp_path):
    data = measure("microworld:resnet", "fc", "microworld:120", "microworld", "microworld:atoms")
    naming, testing = data.split(0.5)
    labels, told = named_here(naming, testing)
    index = {word: i for i, word in enumerate(data.concepts)}
    as_labelling, _ = quick_trust(
        naming, testing, labels, {"fc": [index[label] for label in labels["label"]]}
    )
    assert labels["trust"].equals(as_labelling["trust"]) and "trust: an order of names" in told[-1]
    assert labels_list(labels, "fc", 52)[:2] == labels["label"].tolist()[:2]
    write_labels(labels.drop(columns="trust"), tmp_path)
    assert "trust" not in read_names(tmp_path)
    index = [data.concepts.index(label) for label in labels["label"]]
    trust = labels.rename(columns={"label": "name"}).drop(columns=["rank", "method", "model"])
    write_table(trust.assign(label=index, trust=0.25), tmp_path / "trust.csv")
    both = read_names(tmp_path)
    assert both["trust"].eq(0.25).all() and both["label"].tolist() == labels["label"].tolist()
    alone = read_names(tmp_path / "trust.csv")
    assert alone["rank"].eq(1).all() and alone["label"].tolist() == labels["label"].tolist()
    with pytest.raises(FileNotFoundError, match="no labels at .*: neither a file nor a folder with"):
        read_names(tmp_path / "none")
