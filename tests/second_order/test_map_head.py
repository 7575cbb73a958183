"""neuronym.second_order.map_head: all pairs of neuron and head, and what none writes, are SigLIP's embedding;
against torch's own attention in float64; the labels table; what is refused.
"""

from __future__ import annotations

import copy

import pytest
import torch

from neuronym.datasets.probe import load_probe
from neuronym.models.clips import load_clip
from neuronym.second_order import effects
from neuronym.second_order.map_head import (
    _matrices,
    map_contributions,
    map_effects,
    map_factors,
    map_layers,
    read_map_head,
)
from neuronym.second_order.naming import second_order
from tests.helpers.lens import same

transformers = pytest.importorskip("transformers")
from tests.models.test_clips import save_hf  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    clip = load_clip(save_hf(tmp_path_factory.mktemp("siglip"), "siglip"))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.model.vision_model.parameters():  # biases too, so that no term vanishes
            parameter += 0.5 * torch.randn(parameter.shape, generator=g)
    return clip


@torch.no_grad()
def test_pairs_and_what_no_neuron_writes_add_up(clip):
    """What none writes from the formula: the stream without neurons through frozen norm and attention."""
    tower = copy.deepcopy(clip.model.vision_model).double()
    head, post = _matrices("double", tower), tower.post_layernorm
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = {}
    for i, layer in enumerate(tower.encoder.layers):
        layer.mlp.activation_fn.register_forward_hook(lambda m, a, out, i=i: kept.update({i: out}))
    tower.encoder.register_forward_hook(lambda m, a, out: kept.update(x=out.last_hidden_state))
    theirs = tower(images).pooler_output
    neurons, x = {0: kept[0], 1: kept[1]}, kept["x"]

    pool, (H, D) = tower.head, (head.heads, x.shape[-1])
    y = post(x)
    A, a = pool.attention(
        pool.probe.expand(3, -1, -1), y, y, need_weights=True, average_attn_weights=False
    )  # a [b, H, 1, T]
    scale = 100 / theirs.norm(dim=1)
    s, rep = map_contributions(head, x, neurons)
    same(rep, theirs * scale[:, None])

    sd = (x.var(-1, correction=0, keepdim=True) + post.eps).sqrt()
    V, O = pool.attention.in_proj_weight[2 * D :], pool.attention.out_proj.weight
    total = torch.zeros_like(theirs)
    alone = x.clone()
    for l, p in neurons.items():
        w = tower.encoder.layers[l].mlp.fc2.weight
        alone -= p @ w.T
        directions = map_factors(head, l).V()  # [K, H, d]
        total += torch.einsum("bhk,khd->bd", s[l], directions)
        for n in (0, 7, 19):
            moved = p[:, :, n, None] * w[:, n]  # what it adds to every token
            moved = (moved - moved.mean(-1, keepdim=True)) / sd * post.weight
            for h in range(H):
                rows = slice(h * D // H, (h + 1) * D // H)
                literal = (a[:, h, 0, :, None] * (moved @ V[rows].T @ O[:, rows].T)).sum(1)
                same(s[l][:, h, n, None] * directions[n, h], literal * scale[:, None])
    frozen = (alone - alone.mean(-1, keepdim=True)) / sd * post.weight + post.bias
    rest = pool.attention.out_proj.bias + pool.mlp(pool.layernorm(A))[:, 0]
    for h in range(H):
        rows = slice(h * D // H, (h + 1) * D // H)
        value = frozen @ V[rows].T + pool.attention.in_proj_bias[2 * D :][rows]
        rest = rest + (a[:, h, 0, :, None] * value).sum(1) @ O[:, rows].T
    same(total + rest * scale[:, None], rep)
    assert total.norm(dim=1).min() > 1


def test_effects_of_a_probe_and_their_words(clip):
    probe = load_probe("microworld:30")
    found, other = map_effects(clip, probe, [0, 1], 7), map_effects(clip, probe, [1], 30)
    assert found[1].shape == (30, 20, 3, 12)
    torch.testing.assert_close(found[1].s, other[1].s, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].rep, effects.representations(clip, probe), rtol=0, atol=1e-3)
    words = ["red", "a dog", "the sea", "grass"]
    table = second_order(clip, probe, words, "1", "ids:2,5", m=2, top=10)
    assert table[["unit", "rank"]].values.tolist() == [[2, 1], [2, 2], [5, 1], [5, 2]]
    assert set(table["layer"]) == {"encoder.layers.1.mlp.activation_fn"}
    pairs = second_order(clip, probe, words, "all", "ids:2", heads=True, m=1, top=10)
    assert len(pairs) == 2 * 3 and pairs.groupby("layer")["share"].sum().tolist() == pytest.approx([1, 1])


def test_bad_input_is_refused_in_a_sentence(clip, tmp_path):
    assert list(map_layers(clip, "all")[1]) == [0, 1]
    for text in ("2", "0,-1", "first", ""):
        with pytest.raises(ValueError, match=f"numbers from 0 to 1 separated by commas, got '{text}'"):
            map_layers(clip, text)
    with pytest.raises(ValueError, match="no SigLIP with an attention pool: it has a CLIP; use hf:"):
        read_map_head(load_clip("microworld:vit"))
    other = load_clip(save_hf(tmp_path, "siglip"))
    other.model.vision_model.encoder.layers[0].register_forward_hook(lambda m, a, out: 1.1 * out)
    with pytest.raises(ValueError, match=r"the residual stream, rebuilt from its parts, is off by .*%"):
        read_map_head(other)
