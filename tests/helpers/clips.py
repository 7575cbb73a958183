"""Small random CLIPs of openai-clip's own class."""

from __future__ import annotations

import torch
from PIL import Image

from neuronym.common.checks import openai_package
from neuronym.models.weights import random_start

TEXTS = ["a dog", "a red dog", "grass and sea", "the sea", "red"]


def small_clip(tower="vit", seed=0, vocabulary=49408, context=9, size=32):
    """clip.model.CLIP with towers of width 64 and two blocks."""
    openai_package()
    from clip.model import CLIP

    vision = (
        dict(vision_layers=2, vision_width=64, vision_patch_size=16)
        if tower == "vit"
        else dict(vision_layers=(1, 1, 1, 1), vision_width=16, vision_patch_size=None)
    )
    with random_start(seed):
        return CLIP(
            embed_dim=20,
            image_resolution=size,
            context_length=context,
            vocab_size=vocabulary,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=2,
            **vision,
        ).eval()


def batch_of(clip, n):
    size = clip.preprocess(Image.new("RGB", (50, 40))).shape[-1]
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))
