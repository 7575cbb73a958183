"""neuronym.second_order.pool: all pairs of neuron and head, and what none writes, are the representation;
against torch's own attention and literal loops; what must not matter.
"""

from __future__ import annotations

import math
import runpy
from dataclasses import replace

import pytest
import torch
from torch import nn

from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe
from neuronym.datasets.tasks import load_task
from neuronym.models.clips import load_clip
from neuronym.runs.folders import ROOT
from neuronym.second_order import effects
from neuronym.second_order.naming import second_order
from neuronym.second_order.pool import (
    has_pool,
    Pool,
    pool_contributions,
    pool_effects,
    pool_factors,
    read_pool,
)
from tests.helpers.lens import same

K, H, D, d, SIDE = 6, 3, 12, 5, 2


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def pool():
    """An attention pool of six channels, three heads, inner width twelve; no term vanishes."""
    shapes = [(1 + SIDE**2, K), (D, K), (D,), (D, K), (D, K), (D,), (d, D), (d,)]
    return Pool("random", nn.Identity(), H, *(random(*shape, seed=i) for i, shape in enumerate(shapes)))


@pytest.fixture(scope="module")
def maps():
    return random(4, K, SIDE, SIDE, seed=20).relu()


def literal(pool, x):
    """phi [K, H, d], rest [d], embedding [d] of one map x [K, h, w], from the formulas, number by number."""
    places = [[float(v) for v in column] for column in x.flatten(1).T]
    T, size = len(places), D // H
    tokens = [[math.fsum(p[n] for p in places) / T for n in range(K)], *places]
    moved = [[t[n] + float(pool.positions[i, n]) for n in range(K)] for i, t in enumerate(tokens)]

    def linear(matrix, bias, row, vector):
        return math.fsum(float(matrix[row, n]) * vector[n] for n in range(K)) + float(bias[row])

    phi, rest = torch.zeros(K, H, d, dtype=torch.float64), pool.out_bias.clone()
    key_bias = random(D, seed=30)  # of any value: it cannot change the attention
    for h in range(H):
        rows = range(h * size, (h + 1) * size)
        q = [linear(pool.q, pool.q_bias, row, moved[0]) for row in rows]
        keys = [[linear(pool.k, key_bias, row, y) for row in rows] for y in moved]
        logits = [math.fsum(a * b for a, b in zip(q, key)) / math.sqrt(size) for key in keys]
        powers = [math.exp(z - max(logits)) for z in logits]
        for i, power in enumerate(powers):
            a = power / math.fsum(powers)
            for row in rows:
                rest += a * float(pool.v_bias[row]) * pool.out[:, row]
                for n in range(K):
                    rest += a * float(pool.v[row, n] * pool.positions[i, n]) * pool.out[:, row]
                    phi[n, h] += a * float(pool.v[row, n]) * tokens[i][n] * pool.out[:, row]
    return phi, rest


def test_pairs_are_the_literal_ones_and_add_up(pool, maps):
    s, rest, rep = pool_contributions(pool, maps)
    V = pool_factors(pool).V()
    pairs = torch.einsum("bhk,khd->bkhd", s, V)
    same(pairs.sum((1, 2)) + rest, rep)
    for i, x in enumerate(maps):
        phi, others = literal(pool, x)
        scale = 100 / (phi.sum((0, 1)) + others).norm()
        same(pairs[i], scale * phi)
        same(rest[i], scale * others)
    assert rest.norm(dim=1).min() > 1 and s.min() >= 0
    same(pool_factors(pool).V([4, 1]), V[[4, 1]])


def test_the_representation_is_that_of_the_network():
    """In float64, of openai-clip's own pool: pairs and rest against its forward pass."""
    clip = load_clip("microworld:rn")
    visual = clip.model.visual
    module = visual.attnpool.double()
    maps = random(3, 512, 2, 2, seed=3).relu()
    pool = read_pool(load_clip("microworld:rn"))
    pool = replace(pool, **{k: v.double() for k, v in vars(pool).items() if isinstance(v, torch.Tensor)})
    s, rest, rep = pool_contributions(pool, maps)
    with torch.no_grad():
        theirs = module(maps)
    found = effects.Effects(s, torch.zeros_like(rep), pool_factors(pool), rep)
    total = effects.materialize(found).sum(1) + rest
    same(total.detach(), 100 * theirs / theirs.norm(dim=1, keepdim=True))


def test_effects_of_a_probe_whatever_the_batch(tmp_path, monkeypatch):
    clip, probe = load_clip("microworld:rn"), load_probe("microworld:30")
    found, rest = pool_effects(clip, probe, 7)
    assert found.shape == (30, 512, 8, 128) and found.B.abs().max() == 0
    total = effects.materialize(found).sum(1) + rest
    torch.testing.assert_close(total, effects.representations(clip, probe), rtol=0, atol=1e-4)
    torch.testing.assert_close(total, found.rep, rtol=0, atol=1e-4)
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path))
    again, other = pool_effects(clip, probe, 30)
    torch.testing.assert_close(again.s, found.s, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, rest, rtol=1e-4, atol=1e-4)
    about = effects.mean(found)
    lengths = effects.norms(found, about)
    literal_lengths = (effects.materialize(found) - effects.materialize(found).mean(0)).norm(dim=2)
    torch.testing.assert_close(lengths, literal_lengths, rtol=1e-3, atol=1e-4)


# words


def test_words_of_a_resnet():
    table = second_order("microworld:rn", "microworld:60", "microworld:atoms", units="ids:0-5", m=3, top=20)
    assert table["layer"].unique().tolist() == ["layer4"] and table["unit"].unique().tolist() == [*range(6)]
    assert table["rank"].max() == 3 and not table[["unit", "rank"]].duplicated().any()
    one = second_order(
        "microworld:rn", "microworld:60", "microworld:atoms", units="layer4=ids:3", m=3, top=20
    )
    assert one["label"].tolist() == table[table["unit"] == 3]["label"].tolist()


@pytest.mark.parametrize("name, heads", [("rn", [str(h) for h in range(8)]), ("vit", ["4.0", "5.0"])])
def test_words_of_every_head(name, heads):
    layers = {"rn": "all", "vit": "3"}[name]
    table = second_order(
        f"microworld:{name}", "microworld:60", "microworld:atoms", layers, "ids:2,9", heads=True, m=2, top=20
    )
    first = table[table["rank"] == 1]
    assert set(heads) <= set(first["head"]) and len(first) == 2 * first["head"].nunique()
    of_unit = first.groupby("unit")["share"].sum()
    assert of_unit.tolist() == pytest.approx([1, 1]) and (first["share"] >= 0).all()


def test_the_study_of_the_docs_runs_on_few_scenes():
    run = runpy.run_path(str(ROOT / "docs" / "protocols" / "resnet_lens.py"))
    run["study"].__globals__.update(DRAWS=5, MASKS="microworld:12", NEURONS=(10,))
    clip, words = load_clip("microworld:rn"), load_concepts("microworld:atoms")
    tables = run["study"](clip, load_probe("microworld:60"), load_task("microworld:40").probe, words)
    mean = tables["words"].set_index(["by", "predicted", "method"])["mean"]
    for by in ("CLIP", "truth"):
        own = mean[by, "effect", "lens, 1 word"]
        assert own > 0.1 > mean[by, "effect", "lens, 1 word, other neurons'"]
        assert mean[by, "effect", "lens, 16 words"] > own
    values = tables["summary"].set_index("metric")["value"]
    assert values["largest gap of the sum, of 100"] < 1e-3 and 0 < values["explained by rank 1, least"] <= 1
    assert (tables["heads"]["share"] > tables["heads"]["of random texts"]).all() and len(tables["heads"]) == 8
    ways = ["10 neurons", "10 pairs", "10 pairs, activation alone", "all pairs"]
    segments = tables["segments"].set_index("method")
    assert set(ways) < set(segments.index) and segments["mean_iou"].between(0, 1).all()
    assert (segments["iou low"] <= segments["iou high"]).all()
    assert tables["pairs"]["rank"].tolist() == [*range(1, 9)] * 2
    assert tables["pairs"]["share"].iloc[:8].sum() == pytest.approx(1, abs=1e-3)


def literal_auroc(x, truth):
    pairs = [(a, b) for a, t in zip(x, truth) if t for b, u in zip(x, truth) if not u]
    return sum(1 if a > b else 0.5 if a == b else 0 for a, b in pairs) / len(pairs) if pairs else 0.5


def test_do_words_say_when_a_neuron_fires_runs_on_few_scenes():
    run = runpy.run_path(str(ROOT / "docs" / "protocols" / "lens_words.py"))
    x, truth = random(30, 4, seed=1).mul(3).round(), random(30, 5, seed=2) > 0.4
    truth[:, 3], truth[:, 4] = True, False
    A = run["auroc_matrix"](x, truth)
    for n in range(4):
        expected = [literal_auroc(x[:, n].tolist(), truth[:, m].tolist()) for m in range(5)]
        assert A[n].tolist() == pytest.approx(expected, abs=1e-12)
    word, sign = torch.tensor([0, 1, 1, 2]), torch.tensor([1.0, -1.0, 1.0, 0.0])
    table, own = run["by_method"](A, {"a": (word, sign)}, torch.tensor([1]))
    signed = [float(A[0, 0]), 1 - float(A[1, 1]), float(A[2, 1]), 0.5]
    assert own["a"].tolist() == pytest.approx(signed) and table["auroc"][0] == pytest.approx(sum(signed) / 4)
    assert table["strongest"].tolist() == pytest.approx([signed[1], float(torch.maximum(A, 1 - A)[1].max())])
    everywhere = [1 - float(A[0, 1]), float(A[0, 1]), 0.5], [float(A[1, 0]), float(A[1, 1]), 0.5]
    everywhere += (
        [float(A[2, 0]), 1 - float(A[2, 1]), 0.5],
        [float(A[3, 0]), 1 - float(A[3, 1]), float(A[3, 1])],
    )
    others = [sum(row) / 3 for row in everywhere]
    assert table["other words"][0] == pytest.approx(sum(others) / 4)
    clip, words = load_clip("microworld:rn"), load_concepts("microworld:atoms")
    said, codes = run["study"](clip, load_probe("microworld:150"), load_probe("microworld:60", seed=1), words)
    said = said.set_index(["value", "method"])
    assert said.loc[("effect", "lens, 1 word"), "low"] > 0.05
    assert said.loc[("effect", "best word"), "auroc"] >= said["auroc"].max() - 1e-9
    assert codes["16 words"][0] > codes["1 words"][0] > 0.1 > abs(codes["16 words, other neurons'"][0])


# bad input


def test_bad_input_is_refused_in_a_sentence():
    clip = load_clip("microworld:vit")
    assert not has_pool(clip)
    with pytest.raises(ValueError, match="clip 'microworld:vit' has a VisionTransformer; use microworld:rn"):
        read_pool(clip)
    with pytest.raises(ValueError, match="reads its last layer, layer4, got layers '8,9' for clip"):
        second_order("microworld:rn", "microworld:60", "microworld:atoms", "8,9")
    other = load_clip("microworld:rn")
    other.model.visual.attnpool.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(ValueError, match="is none of CLIP's: the embedding, rebuilt .* is off by .*%; use a"):
        read_pool(other)
    other = load_clip("microworld:rn")
    other.model.visual.attnpool.k_proj = nn.Identity()
    with pytest.raises(ValueError, match="none of CLIP's: 'Identity' object has no attribute 'weight'"):
        read_pool(other)
