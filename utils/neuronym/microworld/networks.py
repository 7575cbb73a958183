"""The microworld's target networks: a small residual CNN and a small vision transformer.

MicroResNet    conv1, layer1..layer4, fc; written here because torchvision's ResNet stem is made for 224 pixels
micro_vit      torchvision's VisionTransformer with a convolutional stem
build_target   either of them from its weights alone
"""
from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, basic block)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU()
        self.down = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + (x if self.down is None else self.down(x)))


class MicroResNet(nn.Module):
    """Images [B, 3, 64, 64] -> logits [B, classes]; every ReLU runs once, so every module can be recorded."""

    def __init__(self, classes: int, width: int = 24):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = Block(width, width, 1)  # [B, w, 32, 32]
        self.layer2 = Block(width, 2 * width, 2)  # [B, 2w, 16, 16]
        self.layer3 = Block(2 * width, 4 * width, 2)  # [B, 4w, 8, 8]
        self.layer4 = Block(4 * width, 8 * width, 2)  # [B, 8w, 4, 4]
        self.pool = nn.AdaptiveAvgPool2d(2)  # four quarters, so that "left" and "top" can be told
        self.fc = nn.Linear(8 * width * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.fc(self.pool(x).flatten(1))


def micro_vit(classes: int, width: int = 96, depth: int = 6) -> VisionTransformer:
    """A vision transformer over an 8 x 8 grid; a convolutional stem (Xiao et al. 2021) lets a small one learn shapes soon."""
    stem = [ConvStemConfig(c, 3, 2, norm_layer=nn.BatchNorm2d) for c in (width // 4, width // 2, width)]
    return VisionTransformer(image_size=64, patch_size=8, num_layers=depth, num_heads=4, hidden_dim=width, mlp_dim=2 * width,
                             num_classes=classes, conv_stem_configs=stem, norm_layer=partial(nn.LayerNorm, eps=1e-6))


def build_target(weights: dict[str, torch.Tensor]) -> nn.Module:
    """The microworld target that `weights` belong to, in evaluation mode and float32."""
    if "class_token" in weights:
        depth = sum(name.endswith("ln_1.weight") for name in weights)
        model = micro_vit(weights["heads.head.weight"].shape[0], weights["class_token"].shape[-1], depth)
    else:
        model = MicroResNet(weights["fc.weight"].shape[0], weights["conv1.0.weight"].shape[0])
    model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in weights.items()})
    return model.eval()
