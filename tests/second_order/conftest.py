"""One random ViT, its images and effects, and a CLIP with a probe."""

from __future__ import annotations

import pytest
import torch

from neuronym.datasets.probe import load_probe
from neuronym.second_order import effects
from tests.helpers.clips import small_clip
from tests.helpers.lens import clip_of, effects_of, N, transformer


@pytest.fixture(scope="module")
def visual():
    network, g = transformer(), torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # biases too, so that no term vanishes
        scale = 0.6 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return network


@pytest.fixture(scope="module")
def images():
    return torch.randn(N, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def made(visual, images):
    """Effects of layer 1 and the effects formed, [N, 48, 7]."""
    found = effects_of(visual, images, 1)
    return found, effects.materialize(found)


# the cached pass


@pytest.fixture
def small(tmp_path):
    return clip_of(small_clip(), tmp_path), load_probe("microworld:11")
