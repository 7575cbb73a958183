"""Networks with layers of every kind, small."""

from __future__ import annotations

from clip.model import VisionTransformer as ClipViT
from torch import nn, Tensor
from torchvision.models.vision_transformer import VisionTransformer


class Net(nn.Module):
    """One of everything: in-place ReLU after a norm, a shared and an unused module, a tuple, a dictionary,
    tokens.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.act = nn.ReLU(inplace=True)
        self.shared = nn.Tanh()
        self.attn = nn.MultiheadAttention(7, 1, batch_first=True)
        self.both = Both()
        self.unused = nn.Linear(7, 7)
        self.fc = nn.Linear(7, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.act(self.norm(self.conv(x)))))
        tokens = x.flatten(2).transpose(1, 2)  # [B, T, 7]
        tokens = self.both(self.attn(tokens, tokens, tokens)[0])["tokens"]
        return self.fc(tokens.mean(1))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.inner(x)}


def tiny_vit() -> VisionTransformer:
    return VisionTransformer(
        image_size=24, patch_size=8, num_layers=3, num_heads=2, hidden_dim=14, mlp_dim=22, num_classes=11
    )


def tiny_clip_vit() -> ClipViT:
    return ClipViT(input_resolution=24, patch_size=8, width=64, layers=3, heads=1, output_dim=13)
