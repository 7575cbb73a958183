"""neuronym.second_order.heads: heads add up to what attention gives, TextSpan against the literal algorithm,
the table.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from neuronym import hooks
from neuronym.datasets.probe import load_probe
from neuronym.models.clips import load_clip
from neuronym.second_order import effects
from neuronym.second_order.heads import block_heads, head_outputs, head_words, text_span
from neuronym.second_order.pool import read_pool
from neuronym.second_order.tower import _openai, tokens
from tests.helpers.lens import same


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_heads_of_a_vit_add_up_to_its_attention(visual, images):
    """In float64: their sum, and the output bias, are torch's attention as the last norm passes it on."""
    kept, handles = {}, []
    for i, block in enumerate(visual.transformer.resblocks):
        handles.append(block.register_forward_hook(lambda m, a, out, i=i: kept.update({i: out})))
        handles.append(
            block.attn.register_forward_hook(lambda m, a, out, i=i: kept.update({("o", i): out[0]}))
        )
    embedding = visual(images)
    for handle in handles:
        handle.remove()
    tower, post = _openai(visual), visual.ln_post
    with hooks.record(visual, tower.streams, partial(tokens, tower)) as acts:
        visual(images)
    streams = [acts[name] for name in tower.streams]  # the one before the first block too
    found = block_heads(tower, streams, [0, 1, 2, 3])
    x = kept[3][0]
    sd = (x.var(1, correction=0, keepdim=True) + post.eps).sqrt()
    for i, ours in found.items():
        o = kept["o", i][0] - visual.transformer.resblocks[i].attn.out_proj.bias
        literal = (o - o.mean(1, keepdim=True)) / sd * post.weight @ visual.proj
        same(ours.sum(1), 100 * literal / embedding.norm(dim=1, keepdim=True))
        assert ours.shape == (len(images), 3, 7) and ours.norm(dim=2).min() > 1e-3


def test_heads_of_a_pool_add_up_to_the_representation():
    clip, probe = load_clip("microworld:rn"), load_probe("microworld:20")
    (found,) = head_outputs(clip, probe, batch_size=7).values()
    rep, bias = effects.representations(clip, probe), read_pool(clip).out_bias
    rest = rep - found.sum(1)  # the last bias alone, of any length
    assert found.shape == (20, 8, 128)
    torch.testing.assert_close(
        rest / rest.norm(dim=1, keepdim=True), (bias / bias.norm()).expand(20, -1), rtol=0, atol=1e-3
    )


def literal_span(outputs, T, m, rank):
    """The algorithm with loops over texts, and projections by the pseudo-inverse."""
    first = torch.linalg.svd(outputs, full_matrices=False).Vh[:rank]
    texts = T @ torch.linalg.pinv(first) @ first
    left, chosen, shares = outputs - outputs.mean(0), [], []
    total = math.fsum(float(v) ** 2 for v in left.flatten())
    for _ in range(m):
        j = max(range(len(T)), key=lambda j: float((left @ texts[j]).var()))
        r = texts[j].clone()
        before = float(left.pow(2).sum())
        left = left - torch.outer(left @ r / (r @ r), r)
        texts = texts - torch.outer(texts @ r / (r @ r), r)
        chosen.append(j)
        shares.append((before - float(left.pow(2).sum())) / total)
    return chosen, shares


@pytest.mark.parametrize("rank", [3, 80])
def test_text_span_is_the_literal_algorithm(rank):
    outputs, T = random(40, 9) @ random(9, 9, seed=1) + 3, random(30, 9, seed=2)
    chosen, shares = text_span(outputs, T, 3, rank)
    expected = literal_span(outputs, T, 3, rank)
    assert chosen.tolist() == expected[0] and shares.tolist() == pytest.approx(expected[1], rel=1e-9)
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert text_span(outputs[mixed], T, 3, rank)[0].tolist() == chosen.tolist()


def test_text_span_ends_where_nothing_is_left():
    outputs, T = random(40, 1) @ random(1, 9, seed=1), random(30, 9, seed=2)
    chosen, shares = text_span(outputs, T, 5)
    assert len(chosen) == 1 and shares.tolist() == pytest.approx([1])
    chosen, shares = text_span(random(40, 9), T, 30)
    assert len(chosen) == 9 and float(shares.sum()) == pytest.approx(1)
    assert len(text_span(torch.ones(40, 9), T, 5)[0]) == 0


@pytest.mark.parametrize("name, last, layers", [("rn", 1, 1), ("vit", 1, 1), ("vit", 9, 6)])
def test_words_of_heads_are_rows_of_the_labels_table(name, last, layers):
    table = head_words(f"microworld:{name}", "microworld:60", "microworld:atoms", last, m=3)
    first = "attnpool" if name == "rn" else f"transformer.resblocks.{6 - layers} heads"
    assert table["layer"].unique()[0] == first and table["layer"].nunique() == layers
    assert table["rank"].max() == 3
    assert table["method"].unique().tolist() == ["textspan"]
    assert not table.duplicated(["layer", "unit", "rank"]).any()
    shares = table.groupby(["layer", "unit"])["score"].sum()
    assert 0 < shares.min() and shares.max() <= 1


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"of one d, got \[5, 4\] and \[5, 3\]"):
        text_span(random(5, 4), random(5, 3), 2)
    with pytest.raises(ValueError, match="m must be a positive whole number, got 0"):
        text_span(random(5, 4), random(5, 4), 0)
    with pytest.raises(ValueError, match="last must be a positive whole number, got 0"):
        head_words("microworld:rn", "microworld:20", "microworld:atoms", 0)
