"""A network made ready: what images become on the way to it, and that everything is as before afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuronym import passes
from neuronym.passes import inference, kept_memory


@pytest.mark.parametrize(
    "threads, side, size", [(2, 224, 4), (2, 260, 3), (16, 224, 32), (2, 64, 49), (1, 1000, 1)]
)
def test_a_cpu_gets_a_few_images_at_a_time(threads, side, size, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images = torch.zeros(50, 3, side, side).add_(torch.arange(50.0)[:, None, None, None])
    with inference(None) as place:
        pieces = list(place(images))
    assert [len(piece) for piece in pieces] == [size] * (50 // size) + [50 % size] * (50 % size > 0)
    assert torch.equal(torch.cat([piece[:, 0, 0, 0] for piece in pieces]), torch.arange(50.0))
    assert all(piece.is_contiguous(memory_format=torch.channels_last) for piece in pieces)


def test_more_images_pass_a_network_of_tokens_at_once():
    """Products of few rows are slow; convolutions make maps, of which few fit into a cache."""
    patches, images = nn.Conv2d(3, 4, 32, 32), torch.zeros(20, 3, 224, 224)
    for model, size in (
        (nn.Sequential(patches, nn.Linear(7, 5)), 16),
        (nn.Sequential(patches, nn.Conv2d(4, 4, 1)), 2),
    ):
        with inference(model) as place:
            assert len(next(place(images))) == min(20, size * torch.get_num_threads())


def test_images_take_the_kind_of_the_weights():
    with inference(nn.Conv2d(3, 1, 1).double()) as place:
        assert [piece.dtype for piece in place(torch.zeros(2, 3, 5, 7))] == [torch.float64]


def test_half_precision_is_for_the_block_only():
    model = nn.Conv2d(3, 1, 1)
    with inference(model, dtype="bfloat16") as place:
        [piece] = place(torch.zeros(2, 3, 5, 7))
        assert model(piece).dtype == torch.bfloat16 and torch.is_inference_mode_enabled()
    assert model(torch.zeros(2, 3, 5, 7)).dtype == torch.float32 and model(piece.clone()).requires_grad


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_kept_memory_is_left_alone_elsewhere(platform, monkeypatch):
    monkeypatch.setattr(passes.sys, "platform", platform)
    calls = []

    class Library:
        def __init__(self, name: str | None):
            self.mallopt = lambda *option: calls.append(option)

    monkeypatch.setattr(passes.ctypes, "CDLL", Library)
    with pytest.raises(KeyboardInterrupt), kept_memory():
        during = dict(calls)
        raise KeyboardInterrupt
    assert during == ({-3: 2**28, -1: 2**28} if platform == "linux" else {})
    assert dict(calls) == ({-3: 2**25, -1: 2**26} if platform == "linux" else {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_all_images_from_pinned_memory_at_once():
    images = torch.randn(50, 3, 224, 224).pin_memory()
    model = nn.Conv2d(3, 1, 1)
    with inference(model, "cuda") as place:
        for _ in range(20):
            [piece] = place(images)
            assert piece.is_cuda and torch.equal(piece.cpu(), images)
    assert not model.weight.is_cuda
