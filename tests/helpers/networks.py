"""A network with every layout of activations, a CLIP and a probe that count what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import nn, Tensor

from neuronym.datasets.probe import Probe
from neuronym.hooks import LayerInfo, list_layers

N, SIDE = 23, 6
LAYERS = ["conv", "norm", "nhwc", "tokens", "first", "fc"]


class Permute(nn.Module):
    def __init__(self, *order: int):
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Net(nn.Module):
    """Every layout in one pass, with an in-place ReLU after the norm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.act = nn.ReLU(inplace=True)
        self.nhwc = nn.Sequential(Permute(0, 2, 3, 1), nn.Linear(7, 9))
        self.tokens = nn.Linear(9, 8)
        self.first = nn.TransformerEncoderLayer(8, 2, 16)
        self.fc = nn.Linear(8, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.nhwc(self.act(self.norm(self.conv(x)))).flatten(1, 2))
        return self.fc(self.first(x.transpose(0, 1))[0])

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """The same by hand, each output with positions in the middle: [B, positions, K]."""
        conv = self.conv(x)
        norm = self.norm(conv)
        nhwc = self.nhwc(norm.relu())
        tokens = self.tokens(nhwc.flatten(1, 2))
        first = self.first(tokens.transpose(0, 1)).transpose(0, 1)
        return {
            "conv": conv.flatten(2).transpose(1, 2),
            "norm": norm.flatten(2).transpose(1, 2),
            "nhwc": nhwc.flatten(1, 2),
            "tokens": tokens,
            "first": first,
            "fc": self.fc(first[:, :1]),
        }


@dataclass
class FakeTarget:
    name: str
    model: nn.Module
    preprocess: Callable
    preprocess_spec: str = "to tensor"
    weights_key: str = "0123456789abcdef"
    channels_last: bool = True


@dataclass
class FakeClip:
    name: str
    model: nn.Module
    preprocess: Callable
    preprocess_spec: str = "to tensor"
    weights_key: str = "fedcba9876543210"
    d: int = 5
    channels_last: bool = True

    def encode_image(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.model(images), dim=1)


@dataclass(frozen=True)
class CountingProbe(Probe):
    """Counts decoded images, and stops like a user at image `stop_at`."""

    decoded: list[int] = field(default_factory=list)
    stop_at: int = -1

    def image(self, i: int) -> Image.Image:
        if i == self.stop_at:
            raise KeyboardInterrupt
        self.decoded.append(i)
        return super().image(i)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def inverted(image: Image.Image) -> Tensor:
    return -to_tensor(image)


def make_probe(seed: int = 0, fingerprint: str = "probe-a", stop_at: int = -1) -> CountingProbe:
    pixels = np.random.default_rng(seed).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    return CountingProbe(
        "noise", [f"image-{i}" for i in range(N)], None, fingerprint, [], list(pixels), [], stop_at
    )


def make_target(seed: int = 0, **fields) -> FakeTarget:
    torch.manual_seed(seed)
    model = Net().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return FakeTarget("net", model, **{"preprocess": to_tensor, **fields})


def make_clip(seed: int = 0, **fields) -> FakeClip:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()
    return FakeClip("clip", model, **{"preprocess": to_tensor, **fields})


def layers_of(target: FakeTarget, names: list[str] = LAYERS) -> list[LayerInfo]:
    found = {layer.name: layer for layer in list_layers(target.model, torch.zeros(1, 3, SIDE, SIDE))}
    return [found[name] for name in names]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1.3e-6, atol=1e-5)
