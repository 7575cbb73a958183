"""A small random ViT of openai-clip, its effects by hooks, and a CLIP around it."""

from __future__ import annotations

from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from neuronym.common.checks import openai_package
from neuronym.models.clips import load_clip
from neuronym.second_order import effects
from neuronym.second_order.tower import _openai

SIZES = {"input_resolution": 16, "patch_size": 8, "width": 12, "layers": 4, "heads": 3, "output_dim": 7}
N = 23


def transformer(**sizes):
    """openai-clip's ViT in float64, whose layer norms round to float32 by themselves."""
    openai_package()
    from clip.model import VisionTransformer

    network = VisionTransformer(**{**SIZES, **sizes}).double().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = nn.LayerNorm.forward.__get__(module)
    return network


def effects_of(visual, images, layer):
    tower = _openai(visual)
    factors = effects.layer_factors(tower, layer)
    made, rep = effects.coefficients(tower, images, [factors])
    return effects.Effects(*made[layer], factors, rep)


def same(actual, expected):
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# towers


def clip_of(model, tmp_path):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")
    return load_clip(f"openai:ViT-B/32@{tmp_path / 'weights.safetensors'}")
