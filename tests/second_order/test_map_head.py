"""neuronym.second_order.map_head: all pairs of neuron and head, and what none writes, are SigLIP's embedding;
against torch's own attention in float64; the labels table; what is refused.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from neuronym import hooks
from neuronym.datasets.probe import load_probe
from neuronym.models.clips import load_clip
from neuronym.models.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from neuronym.models.weights import random_start
from neuronym.second_order import effects
from neuronym.second_order.heads import head_words
from neuronym.second_order.map_head import (
    _hugging_face,
    _timm,
    map_contributions,
    map_effects,
    map_factors,
    map_heads,
    map_layers,
    map_representation,
    MapBlock,
    MapHead,
    read_map_head,
)
from neuronym.second_order.naming import second_order
from neuronym.second_order.tower import Norm
from tests.helpers.lens import same

transformers = pytest.importorskip("transformers")
from tests.models.test_clips import save_hf  # noqa: E402


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
    head, post = _hugging_face("double", tower), tower.post_layernorm
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
    s, rep, _ = map_contributions(head, x, neurons)
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
    same(map_contributions(head, x, neurons, alone)[2], rest * scale[:, None])
    assert total.norm(dim=1).min() > 1


def literal(head, x, neurons, after):
    """phi {layer: [K, H, d]} and rest [d] of one image, number by number, before any scale: x [T, D] the last
    stream, neurons {layer: [T, K]}, the pool's own MLP as a function of what heads carry.
    """
    T, D, H = len(x), x.shape[1], head.heads
    gamma, beta, size = head.post.gamma.tolist(), head.post.beta.tolist(), x.shape[1] // head.heads
    means = [math.fsum(row) / D for row in x.tolist()]
    sds = [
        math.sqrt(math.fsum((v - m) ** 2 for v in row) / D + head.post.eps)
        for row, m in zip(x.tolist(), means)
    ]
    y = [
        [(v - m) / sd * g + b for v, g, b in zip(row, gamma, beta)]
        for row, m, sd in zip(x.tolist(), means, sds)
    ]
    phi = {l: torch.zeros(p.shape[1], H, D, dtype=torch.float64) for l, p in neurons.items()}
    left, carried = x.clone(), head.out_bias.clone()
    for l, p in neurons.items():
        for i in range(T):
            for n in range(p.shape[1]):
                left[i] -= p[i, n] * head.blocks[l].write[:, n]
    rest = head.out_bias.clone()
    for h in range(H):
        logits = [math.fsum(a * b for a, b in zip(head.asks[h].tolist(), token)) for token in y]
        powers = [math.exp(z - max(logits)) for z in logits]
        a = [power / math.fsum(powers) for power in powers]
        for e in range(h * size, (h + 1) * size):
            value, column = head.v[e].tolist(), head.out[:, e]
            for i in range(T):
                said = math.fsum(v * u for v, u in zip(value, y[i])) + float(head.v_bias[e])
                carried += a[i] * said * column
                centred = (left[i] - left[i].mean()).tolist()
                others = [v / sds[i] * g + b for v, g, b in zip(centred, gamma, beta)]
                said = math.fsum(v * u for v, u in zip(value, others)) + float(head.v_bias[e])
                rest += a[i] * said * column
                for l, p in neurons.items():
                    w = head.blocks[l].write
                    for n in range(p.shape[1]):
                        middle = math.fsum(w[:, n].tolist()) / D
                        read = math.fsum(
                            v * g * (u - middle) for v, g, u in zip(value, gamma, w[:, n].tolist())
                        )
                        phi[l][n, h] += a[i] * float(p[i, n]) / sds[i] * read * column
    added = after(carried)
    return phi, rest + added, carried + added


def test_pairs_number_by_number():
    """A pool of three tokens, width six, two heads and two layers of three and two neurons, all random."""
    D, H, T = 6, 2, 3
    blocks = [MapBlock("", "", "", random(D, K, seed=K), random(D, seed=9), lambda x: x) for K in (3, 2)]
    post = Norm(random(D, seed=1), random(D, seed=2), 1e-5)
    sizes = [(H, D), (D, D), (D,), (D, D), (D,)]
    matrices = [random(*size, seed=10 + i) for i, size in enumerate(sizes)]
    mlp = random(D, D, seed=20)
    head = MapHead(
        "random", nn.Identity(), "", "", tuple(blocks), post, H, *matrices, lambda A: (A @ mlp).tanh()
    )
    x, neurons = random(2, T, D, seed=30), {0: random(2, T, 3, seed=31), 1: random(2, T, 2, seed=32)}
    others = x - sum(p @ blocks[l].write.T for l, p in neurons.items())
    s, rep, rest = map_contributions(head, x, neurons, others)
    for i in range(2):
        phi, left, whole = literal(head, x[i], {l: p[i] for l, p in neurons.items()}, head.after)
        scale = 100 / whole.norm()
        same(rep[i], scale * whole)
        same(rest[i], scale * left)
        for l in neurons:
            same(torch.einsum("hk,khd->khd", s[l][i], map_factors(head, l).V()), scale * phi[l])
        same(sum(p.sum((0, 1)) for p in phi.values()) + left, whole)


def test_effects_of_a_probe_and_their_words(clip):
    probe = load_probe("microworld:30")
    (found, rest), (other, again) = map_effects(clip, probe, [0, 1], 7), map_effects(clip, probe, [1], 30)
    assert found[1].shape == (30, 20, 3, 12)
    torch.testing.assert_close(found[1].s, other[1].s, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].rep, effects.representations(clip, probe), rtol=0, atol=1e-3)
    whole = rest + sum(effects.materialize(of_layer).sum(1) for of_layer in found.values())
    torch.testing.assert_close(whole, found[1].rep, rtol=0, atol=1e-3)
    torch.testing.assert_close(again, rest, rtol=0, atol=1e-3)
    words = ["red", "a dog", "the sea", "grass"]
    table = second_order(clip, probe, words, "1", "ids:2,5", m=2, top=10)
    assert table[["unit", "rank"]].values.tolist() == [[2, 1], [2, 2], [5, 1], [5, 2]]
    assert set(table["layer"]) == {"encoder.layers.1.mlp.activation_fn"}
    pairs = second_order(clip, probe, words, "all", "ids:2", heads=True, m=1, top=10)
    assert len(pairs) == 2 * 3 and pairs.groupby("layer")["share"].sum().tolist() == pytest.approx([1, 1])


@torch.no_grad()
def test_heads_add_up_to_what_the_pool_carries(clip):
    """Against torch's own attention in float64, the bias of its last matrix left out."""
    tower = copy.deepcopy(clip.model.vision_model).double()
    x = random(3, 4, 12, seed=5)
    y = tower.post_layernorm(x)
    A = tower.head.attention(tower.head.probe.expand(3, -1, -1), y, y)[0][:, 0]
    scale = 100 / tower.head(y).norm(dim=1, keepdim=True)
    head = _hugging_face("double", tower)
    same(map_heads(head, x).sum(1), (A - tower.head.attention.out_proj.bias) * scale)
    same(map_representation(head, x), tower.head(y) * scale)


def test_words_of_its_heads(clip):
    table = head_words(clip, "microworld:30", ["red", "a dog", "the sea", "grass"], m=2)
    assert table["layer"].unique().tolist() == ["head.attention"] and table["unit"].nunique() == 3
    assert table.groupby("unit")["score"].sum().between(0, 1).all()


# timm's, which open_clip has


@pytest.fixture(scope="module")
def trunks():
    """A SigLIP tower of timm, float64, whose biases and norms are no trivial ones."""
    timm = pytest.importorskip("timm", reason="pip install timm")
    sizes = dict(patch_size=16, embed_dim=12, depth=3, num_heads=3, mlp_ratio=2, class_token=False)
    with random_start(0):
        trunk = timm.models.VisionTransformer(32, **sizes, global_pool="map", num_classes=0)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g)
    return trunk.eval().requires_grad_(False)


def held(trunk, clip):
    """A Clip around the tower, as open_clip holds it."""
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.trunk = trunk
    whole = dict(name="theirs", model=model, weights_key="theirs", d=12)
    return replace(clip, **whole, encode_image=lambda x: nn.functional.normalize(trunk(x), dim=1))


@torch.no_grad()
def test_timms_pairs_and_what_no_neuron_writes_add_up(trunks, clip):
    """Pairs literally, by torch's own attention with weights cut out of timm's."""
    head = read_map_head(held(trunks, clip))
    assert (head.pool, head.embeddings, head.last) == ("attn_pool", "norm_pre", "blocks.2")
    trunk = copy.deepcopy(trunks).double()
    head, images = _timm("double", trunk), random(3, 3, 32, 32, seed=1)
    names = [head.embeddings, *(b.attention for b in head.blocks), *(b.neurons for b in head.blocks)]
    with hooks.record(trunk, [*names, head.last]) as acts:
        theirs = trunk(images)
    neurons = {i: acts[block.neurons] for i, block in enumerate(head.blocks)}
    others = acts[head.embeddings] + sum(acts[b.attention] + b.write_bias for b in head.blocks)
    s, rep, rest = map_contributions(head, acts[head.last], neurons, others)
    scale = 100 / theirs.norm(dim=1, keepdim=True)
    same(rep, theirs * scale)
    V = {i: map_factors(head, i).V() for i in neurons}
    same(sum(torch.einsum("bhk,khd->bd", s[i], V[i]) for i in neurons) + rest, rep)

    pool, x = trunk.attn_pool, acts[head.last]
    plain = nn.MultiheadAttention(12, 3, batch_first=True).double()
    plain.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
    plain.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
    plain.out_proj.load_state_dict(pool.proj.state_dict())
    y = trunk.norm(x)
    A, a = plain(pool.latent.expand(3, -1, -1), y, y, average_attn_weights=False)
    same(map_heads(head, x).sum(1), (A[:, 0] - pool.proj.bias) * scale)
    sd = (x.var(-1, correction=0, keepdim=True) + trunk.norm.eps).sqrt()
    for layer, n, h in ((0, 3, 1), (2, 17, 2)):
        w = trunk.blocks[layer].mlp.fc2.weight[:, n]
        moved = neurons[layer][:, :, n, None] * w
        moved = (moved - moved.mean(-1, keepdim=True)) / sd * trunk.norm.weight
        rows = slice(4 * h, 4 * h + 4)
        value = moved @ pool.kv.weight[12:][rows].T @ pool.proj.weight[:, rows].T
        literal = (a[:, h, 0, :, None] * value).sum(1) * scale
        same(s[layer][:, h, n, None] * V[layer][n, h], literal)
    assert rest.norm(dim=1).min() > 1


def test_timms_variants_are_refused(trunks, clip):
    other = copy.deepcopy(trunks)
    other.blocks[1].ls2 = nn.Linear(12, 12)
    with pytest.raises(ValueError, match="the residual stream, rebuilt .* is off by .*; use hf:"):
        read_map_head(held(other, clip))
    other = copy.deepcopy(trunks)
    other.attn_pool.k_norm = nn.LayerNorm(4)
    with pytest.raises(ValueError, match="the embedding, rebuilt from its parts, is off by"):
        read_map_head(held(other, clip))


def test_open_clips_siglip(trunks, monkeypatch):
    """The whole model of open_clip around a small tower that timm makes by name."""
    open_clip = pytest.importorskip("open_clip", reason="install the extra 'open_clip' to run this")
    import timm

    monkeypatch.setattr(timm, "create_model", lambda name, **options: copy.deepcopy(trunks))
    vision = dict(image_size=32, timm_model_name="vit_base_patch16_siglip_224", timm_pool="map")
    vision |= dict(timm_model_pretrained=False, timm_proj="none")
    text = dict(context_length=8, vocab_size=50, width=16, heads=1, layers=1)
    model = open_clip.CustomTextCLIP(12, vision, text).eval().requires_grad_(False)
    clip = replace(load_clip("microworld:vit"), name="open_clip", model=model, weights_key="open_clip", d=12)
    clip = replace(
        clip,
        encode_image=lambda x: model.encode_image(x, normalize=True),
        preprocess=Preprocess(32, 32, "bicubic", CLIP_MEAN, CLIP_STD),
    )
    found, rest = map_effects(clip, load_probe("microworld:5"), [0, 1, 2])
    assert found[2].shape == (5, 24, 3, 12)
    whole = rest + sum(effects.materialize(of_layer).sum(1) for of_layer in found.values())
    torch.testing.assert_close(whole, effects.representations(clip, load_probe("microworld:5")))


def test_bad_input_is_refused_in_a_sentence(clip, tmp_path):
    head = read_map_head(clip)
    assert map_layers(head, "all") == [0, 1] and map_layers(head, "1, 0,1") == [0, 1]
    for text in ("2", "0,-1", "first", ""):
        with pytest.raises(ValueError, match=f"numbers from 0 to 1 separated by commas, got '{text}'"):
            map_layers(head, text)
    with pytest.raises(ValueError, match="no SigLIP with an attention pool: it has a CLIP; use hf:"):
        read_map_head(load_clip("microworld:vit"))
    other = load_clip(save_hf(tmp_path, "siglip"))
    other.model.vision_model.encoder.layers[0].register_forward_hook(lambda m, a, out: 1.1 * out)
    with pytest.raises(ValueError, match=r"the residual stream, rebuilt from its parts, is off by .*%"):
        read_map_head(other)
