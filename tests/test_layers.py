"""Layers by name: observed units and layouts, globs, what is meant by all, refusals."""

from __future__ import annotations

import pytest
import torch
from clip.model import ModifiedResNet
from torch import nn
from torchvision.models import resnet18, swin_t

from neuronym.layers import check_layer_names, LayerInfo, list_layers, resolve_layers
from tests.helpers.layered import Net, tiny_clip_vit, tiny_vit


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def named(layers: list[LayerInfo]) -> list[str]:
    return [layer.name for layer in layers]


def test_list_layers_observes_units_shapes_and_layouts(net):
    found = {layer.name: layer for layer in list_layers(net, torch.zeros(1, 3, 6, 5))}
    assert list(found) == [
        "conv",
        "norm",
        "act",
        "attn",
        "both.inner",
        "fc",
    ]  # no shared, unused or dictionary module
    assert found["conv"] == LayerInfo("conv", "Conv2d", 7, (7, 6, 5), "conv")
    assert found["attn"] == LayerInfo("attn", "MultiheadAttention", 7, (30, 7), "tokens")
    assert found["fc"] == LayerInfo("fc", "Linear", 11, (11,), "fc")
    assert hooks_of(net) == 0


def test_list_layers_changes_nothing(net):
    net.train()
    net.norm.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    list_layers(net, torch.zeros(1, 3, 6, 6))
    assert net.training and net.act.training and not net.norm.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    "model, layer, layout, shape",
    [
        (tiny_vit(), "encoder.layers.encoder_layer_1", "tokens", (10, 14)),
        (tiny_vit(), "encoder.layers.encoder_layer_1.self_attention", "tokens", (10, 14)),
        (tiny_clip_vit(), "transformer.resblocks.1", "tokens_first", (10, 64)),
        (tiny_clip_vit(), "transformer.resblocks.1.mlp.c_fc", "tokens_first", (10, 256)),
        (tiny_clip_vit(), "ln_pre", "tokens", (10, 64)),
        (tiny_clip_vit(), "ln_post", "fc", (64,)),
    ],
    ids=["vit", "vit attention", "clip", "clip mlp", "clip ln_pre", "clip ln_post"],
)
def test_token_layouts(model, layer, layout, shape):
    [info] = resolve_layers(model, layer, torch.zeros(1, 3, 24, 24))
    assert (info.layout, info.shape, info.units) == (layout, shape, shape[-1])


@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_channels_last_layouts(size):
    # swin's first stage keeps [B, h, w, K]; attention inside windows folds the batch and is left out
    found = {
        layer.name: layer for layer in list_layers(swin_t(num_classes=11).eval(), torch.zeros(1, 3, *size))
    }
    assert found["features.0.0"].layout == "conv"
    assert (
        found["features.0.1"].layout
        == found["features.1"].layout
        == found["features.1.0.mlp.1"].layout
        == "nhwc"
    )
    assert found["features.1"].units == 96 and found["features.1"].shape == (size[0] // 4, size[1] // 4, 96)


def test_a_square_of_units_takes_the_layout_before_it():
    class Permute(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    conv = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
    rows = nn.Sequential(nn.Conv2d(3, 6, 1), Permute(), nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU())
    example = torch.zeros(1, 3, 6, 6)  # every output is [B, 6, 6, 6]
    assert [layer.layout for layer in list_layers(conv, example)] == ["conv"] * 3
    assert [layer.layout for layer in list_layers(rows, example)][2:] == ["nhwc"] * 3
    assert list_layers(rows, example, {"1": "nhwc"})[1].layout == "nhwc"
    with pytest.raises(ValueError, match="layout 'tokens' does not fit '1'.*possible: conv, nhwc"):
        list_layers(rows, example, {"1": "tokens"})


@pytest.mark.parametrize(
    "patterns, names",
    [
        ("fc", ["fc"]),
        ("fc, conv", ["fc", "conv"]),
        (["conv", "fc", "conv"], ["conv", "fc"]),
        ("*", ["conv", "norm", "act", "attn", "fc"]),
        ("**", ["conv", "norm", "act", "attn", "both.inner", "fc"]),
        ("both.*", ["both.inner"]),
        ("**inner", ["both.inner"]),
        ("[cf]*", ["conv", "fc"]),
        ("every", ["conv", "norm", "act", "attn", "both.inner", "fc"]),
    ],
)
def test_resolve_names_and_globs(net, patterns, names):
    assert named(resolve_layers(net, patterns, torch.zeros(1, 3, 6, 6))) == names


@pytest.mark.parametrize(
    "patterns, error, message",
    [
        ("layer4", KeyError, "no layer 'layer4'; known: conv, norm"),
        ("convs", KeyError, "nearest: conv"),
        ("conv.*", KeyError, "no layer 'conv.*'"),
        ("shared", ValueError, "'shared' of Net cannot be recorded: it runs 2 times"),
        ("unused", ValueError, "'unused' of Net cannot be recorded: it does not run"),
        ("both", ValueError, "returns no float tensor"),
        ("", ValueError, "no layers named"),
        ([], ValueError, "no layers named"),
    ],
)
def test_resolve_refuses(net, patterns, error, message):
    with pytest.raises(error, match=message.replace("*", r"\*")):
        resolve_layers(net, patterns, torch.zeros(1, 3, 6, 6))
    assert hooks_of(net) == 0


def test_all_gives_stages_or_blocks_and_the_final_layer():
    x24, x32 = torch.zeros(1, 3, 24, 24), torch.zeros(1, 3, 32, 32)
    stages = ["layer1", "layer2", "layer3", "layer4"]
    assert named(resolve_layers(resnet18(num_classes=11), "all", x32)) == ["conv1", *stages, "fc"]
    assert named(resolve_layers(ModifiedResNet((1, 2, 1, 1), 16, 2, 32, 4), "all", x32)) == [
        "conv1",
        "conv2",
        "conv3",
        *stages,
        "attnpool",
    ]
    assert named(resolve_layers(tiny_vit(), "all", x24)) == [
        "conv_proj",
        *(f"encoder.layers.encoder_layer_{i}" for i in range(3)),
        "heads.head",
    ]
    assert named(resolve_layers(tiny_clip_vit(), "all", x24)) == [
        "conv1",
        *(f"transformer.resblocks.{i}" for i in range(3)),
    ]
    assert named(resolve_layers(swin_t(num_classes=11), "all", x32)) == [
        *(f"features.{i}" for i in range(8)),
        "head",
    ]


def test_all_of_a_plain_stack_gives_convolutions_and_linear_layers():
    features = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.ReLU())
    head = nn.Sequential(nn.Linear(5, 13), nn.ReLU(), nn.Dropout(), nn.Linear(13, 11))
    model = nn.Sequential()
    parts = {"features": features, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": head}
    for name, part in parts.items():
        model.add_module(name, part)
    assert named(resolve_layers(model, "all", torch.zeros(1, 3, 8, 8))) == [
        "features.0",
        "features.3",
        "head.0",
        "head.3",
    ]


def test_all_of_efficientnet_lite():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    assert named(resolve_layers(model, "all", torch.zeros(1, 3, 224, 224))) == [
        "_conv_stem",
        *(f"_blocks.{i}" for i in range(16)),
        "_conv_head",
        "_fc",
    ]


# recording


def test_names_of_layers_are_checked_without_running_the_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Linear(4, 5)))
    check_layer_names(model, "all,0, 1.1,every,1.*")
    with pytest.raises(KeyError, match="no layer '2'; "):
        check_layer_names(model, ["0", "2"])
