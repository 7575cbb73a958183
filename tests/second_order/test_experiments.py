"""neuronym.second_order.experiments: each table against the parts it is made of, on effects small enough to
be formed.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from neuronym.second_order import effects, experiments
from neuronym.second_order.experiments import Layer, ZeroShotTask
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients, text_pool
from tests.helpers import reference_lens as literal
from tests.helpers import reference_omp
from tests.helpers.lens import effects_of

TOP = 9


@pytest.fixture(scope="module")
def study(visual, images):
    """Layers 0 and 1, fitted on 15 images, tested on the other 8, with so many classes that they are easily
    missed.
    """
    layers = {}
    for number in (0, 1):
        fitted, held = effects_of(visual, images[:15], number), effects_of(visual, images[15:], number)
        about = effects.mean(fitted)
        layers[number] = Layer(
            held, about, effects.principal_directions(fitted, about, effects.norms(fitted, about), TOP)
        )
    rep, g = layers[0].effects.rep, torch.Generator().manual_seed(3)
    near = rep[:, None] + torch.randn(8, 500, 7, generator=g, dtype=torch.float64)  # of 100
    head = torch.nn.functional.normalize(near.flatten(0, 1), dim=1)
    return layers, ZeroShotTask(head, (rep @ head.T).argmax(1))


def phi_of(layer):
    about = layer.about
    phi = effects.materialize(layer.effects)
    return phi, effects.materialize(
        effects.Effects(about.s[None], about.B[None], layer.effects.factors, layer.effects.rep[:1])
    )[0]


def test_ablations(study):
    layers, exam = study
    table = experiments.ablations(layers, exam)
    assert list(table["layer"].unique()) == ["0", "1", "together"] and len(table) == 12
    names = {
        "all": "all",
        "significant": "without_significant",
        "insignificant": "without_insignificant",
        "all but rank 1": "rank_1",
    }
    for how, name in names.items():
        without = {}
        for number, layer in layers.items():
            phi, mean = phi_of(layer)
            rep, d = layer.effects.rep, layer.directions
            without[number] = torch.stack(
                [literal.ablate(rep[i], phi[i], mean, name, d.threshold, d.r) for i in range(8)]
            )
            got = table.set_index(["layer", "ablation"])["accuracy"]
            assert got[str(number), how] == exam.accuracy(without[number])
        both = without[0] + without[1] - layers[0].effects.rep
        assert got["together", how] == exam.accuracy(both)
    assert table["accuracy"].nunique() > 2


def test_against_indirect(study):
    layers, exam = study
    phi, _ = phi_of(layers[1])
    table, directions = experiments.against_indirect(
        {"a": phi, "b": phi.flip(0)}, layers[1].effects.rep, exam, share=0.5
    )
    mean, deviations = literal.mean_and_deviations(phi)
    r, _, explained, _ = zip(*(literal.principal_direction(deviations[:, n], 4) for n in range(48)))
    assert_close(table["explained"][0], sum(explained) / 48, rtol=1e-9, atol=0)
    assert_close((directions["a"] * torch.stack(r)).sum(1).abs(), torch.ones(48, dtype=torch.float64))
    assert table["accuracy"][0] == exam.accuracy(layers[1].effects.rep - deviations.sum(1))
    assert table["explained"][1] == pytest.approx(table["explained"][0])


def pool(words=31, seed=8):
    return text_pool(
        torch.randn(words, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def coded(layer, rows, unit=True):
    """rep less the deviations of a layer, and with their parts along the rows."""
    phi, mean = phi_of(layer)
    rows = rows / rows.norm(dim=1, keepdim=True) if unit else rows
    return torch.einsum("nkd,kd->nk", phi - mean, rows) @ rows - (phi - mean).sum(1)


def literal_sums(layer, atoms, m):
    codes = reference_omp.matching_pursuit(layer.directions.r, atoms, m)
    return torch.stack([sum(gamma * atoms[j] for j, gamma in code) for code in codes]), [
        [j for j, _ in c] for c in codes
    ]


def test_by_words_is_nested(study):
    layers, exam = study
    atoms = pool()
    table = experiments.by_code_length(layers, exam, {"pool": atoms, "few": atoms[:3]}, [1, 2, 4])
    assert table[["pool", "words"]].values.tolist() == [
        ["pool", 1],
        ["pool", 2],
        ["pool", 4],
        ["few", 1],
        ["few", 2],
    ]
    assert table["cosine"][:3].is_monotonic_increasing
    for row, m in ((0, 1), (2, 4)):
        sums = {l: literal_sums(layer, atoms, m)[0] for l, layer in layers.items()}
        kept = layers[0].effects.rep + sum(coded(layer, sums[l]) for l, layer in layers.items())
        assert table["accuracy"][row] == exam.accuracy(kept)
        cosines = [torch.cosine_similarity(sums[l], layer.directions.r) for l, layer in layers.items()]
        assert_close(table["cosine"][row], float(torch.cat(cosines).mean()))


def test_by_threshold(study, visual, images):
    layers, exam = study
    lengths = {
        l: effects.norms(effects_of(visual, images[:15], l), layer.about) for l, layer in layers.items()
    }
    for n, how, value in experiments.by_threshold(layers, exam, lengths, [1, 5]).itertuples(index=False):
        kept = layers[0].effects.rep.clone()
        for l, layer in layers.items():
            phi, mean = phi_of(layer)
            marked = (phi - mean).norm(dim=2) > lengths[l].sort(0, descending=True).values[n - 1]
            marked = marked if how == "significant ablated" else ~marked
            kept -= ((phi - mean) * marked[..., None]).sum(1)
        assert value == exam.accuracy(kept)


def test_variants_are_compared_with_the_first(study):
    layers, exam = study
    table = experiments.variants(
        layers, exam, {"usual": (pool(), False), "same": (pool(), True), "other": (pool(seed=9), False)}, 3
    ).set_index("variant")
    assert table.loc["usual", "words shared"] == table.loc["same", "words shared"] == 1
    assert table.loc["same", "cosine"] == table.loc["usual", "cosine"]
    assert table.loc["other", "words shared"] < 0.3 and table.loc["other", "same first word"] < 0.3
    found = {
        name: {l: literal_sums(layer, pool(seed=seed), 3) for l, layer in layers.items()}
        for name, seed in (("usual", 8), ("other", 9))
    }
    shared = [
        len(set(a) & set(b)) / len(set(a) | set(b))
        for l in layers
        for a, b in zip(found["usual"][l][1], found["other"][l][1])
    ]
    assert table.loc["other", "words shared"] == pytest.approx(sum(shared) / len(shared))
    kept = layers[0].effects.rep + sum(
        coded(layer, found["usual"][l][0], unit=False) for l, layer in layers.items()
    )
    assert table.loc["same", "accuracy"] == exam.accuracy(kept)


def test_discovery(study):
    layers, _ = study
    atoms, layer = pool(), layers[1]
    order = matching_pursuit(layer.directions.r, atoms, 4)
    truth = torch.rand(8, 31, generator=torch.Generator().manual_seed(5)) < 0.3
    table, reading = experiments.discovery(layer, atoms, order, [1, 4, 16], truth, first=5)
    assert table["words"].tolist() == [1] * 3 + [4] * 3 and table["precision"].between(0, 1).all()
    gamma = code_coefficients(layer.directions.r, atoms, order)
    scores, push = torch.zeros(8, 31, dtype=torch.float64), layer.projection()
    for i in range(8):
        for n in range(48):
            R = sum(gamma[n, j] * atoms[order[n, j]] for j in range(4))
            scores[i] += push[i, n] * (atoms @ R)
    assert_close(reading, scores)
    top = scores.sort(dim=1, descending=True).indices[:, :5]
    hits = [float(truth[i, j]) for i in range(8) for j in top[i]]
    assert table.set_index(["words", "way"]).loc[(4, "reading"), "precision"] == pytest.approx(sum(hits) / 40)
    untold, same = experiments.discovery(layer, atoms, order, [4])
    assert untold.empty and torch.equal(same, reading)


def test_simulations():
    present = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    values = torch.stack([2 * present[:, 0] + 1, -present[:, 1]], 1)
    table = experiments.simulations(
        {"right": torch.eye(2), "wrong": torch.eye(2).flip(0)}, {"truth": present}, {"effect": values}
    )
    by = table.set_index(["method", "unit"])["correlation"]
    assert (
        by["right", 0] == pytest.approx(1)
        and by["right", 1] == pytest.approx(-1)
        and by["wrong", 0] == pytest.approx(0)
    )
    assert isinstance(table, pd.DataFrame) and len(table) == 4
