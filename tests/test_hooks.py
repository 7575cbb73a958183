"""Layers and hooks: observed layouts, recorded values, refusals, and that no hook outlives its block."""

from __future__ import annotations

import pytest
import torch
from clip.model import ModifiedResNet
from clip.model import VisionTransformer as ClipViT
from torch import nn, Tensor
from torchvision.models import resnet18, resnet50, swin_t
from torchvision.models.vision_transformer import VisionTransformer

from neuronym.hooks import (
    as_maps,
    check_layer_names,
    edit,
    get_layer,
    LayerInfo,
    list_layers,
    pool,
    record,
    resolve_layers,
)

B = 5


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


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(B, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def named(layers: list[LayerInfo]) -> list[str]:
    return [layer.name for layer in layers]


def tiny_vit() -> VisionTransformer:
    return VisionTransformer(
        image_size=24, patch_size=8, num_layers=3, num_heads=2, hidden_dim=14, mlp_dim=22, num_classes=11
    )


def tiny_clip_vit() -> ClipViT:
    return ClipViT(input_resolution=24, patch_size=8, width=64, layers=3, heads=1, output_dim=13)


# layers


def test_get_layer(net):
    assert get_layer(net, "both.inner") is net.both.inner
    with pytest.raises(KeyError, match="no layer 'norn'; nearest: norm"):
        get_layer(net, "norn")
    with pytest.raises(KeyError):
        get_layer(net, "")


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
    assert found["attn"] == LayerInfo("attn", "MultiheadAttention", 7, (30, 7), "tokens", (6, 5), 0)
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


def test_record_gives_each_output_of_the_last_pass(net, images):
    with torch.no_grad(), record(net, ["conv", "norm", "attn", "fc"]) as acts:
        net(images[:2])
        out = net(images)
    with torch.no_grad():
        conv = net.conv(images)
        norm = net.norm(conv)
        tokens = torch.tanh(torch.tanh(norm.relu())).flatten(2).transpose(1, 2)
        attended = nn.functional.multi_head_attention_forward(
            *[tokens.transpose(0, 1)] * 3,
            7,
            1,
            net.attn.in_proj_weight,
            net.attn.in_proj_bias,
            None,
            None,
            False,
            0.0,
            net.attn.out_proj.weight,
            net.attn.out_proj.bias,
        )[0].transpose(0, 1)
    assert list(acts) == ["conv", "norm", "attn", "fc"]
    torch.testing.assert_close(acts["conv"], conv)
    torch.testing.assert_close(acts["norm"], norm)  # before the in-place ReLU
    torch.testing.assert_close(acts["attn"], attended)
    torch.testing.assert_close(acts["fc"], out)


@pytest.mark.parametrize(
    "fn", [None, lambda name, x: x, lambda name, x: x[:, 1:3], lambda name, x: x.flatten(1)]
)
def test_in_place_operations_do_not_rewrite_what_was_recorded(net, images, fn):
    with torch.no_grad(), record(net, ["norm"], fn) as acts:
        net(images)
    assert acts["norm"].min() < 0


def test_record_does_not_change_the_output_and_detaches(net, images):
    plain = net(images)
    with record(net, ["norm", "attn"]) as acts:
        recorded = net(images)
    torch.testing.assert_close(recorded, plain)
    assert recorded.requires_grad and not acts["norm"].requires_grad


@pytest.mark.parametrize(
    "layer, message",
    [
        ("shared", "'shared' ran twice"),
        ("unused", "'unused' did not run"),
        ("attn.out_proj", "'attn.out_proj' did not run"),
        ("both", "'both' gives no float tensor but dict"),
    ],
)
def test_record_refuses_at_the_pass(net, images, layer, message):
    with pytest.raises(RuntimeError, match=message), record(net, ["conv", layer]):
        net(images)
    assert hooks_of(net) == 0


def test_a_shared_activation_of_torchvision_is_refused():
    model = resnet50(num_classes=11).eval()
    with pytest.raises(RuntimeError, match="layer1.0.relu' ran twice"), record(model, ["layer1.0.relu"]):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="runs 3 times"):
        resolve_layers(model, "layer1.0.relu", torch.zeros(1, 3, 32, 32))


def test_a_pass_of_a_part_is_refused(net, images):
    with pytest.raises(RuntimeError, match="'conv' ran outside a forward pass of Net"), record(net, ["conv"]):
        net.conv(images)


def test_the_fast_path_of_encoder_layers_does_not_hide_submodules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(14, 2, 22, batch_first=True)).eval()
    example = torch.randn(1, 3, 7, 2)
    assert "1.linear1" in named(list_layers(model, example))
    with torch.inference_mode(), record(model, ["1.linear1", "1"]) as acts:
        recorded = model(example)
    with torch.inference_mode():
        torch.testing.assert_close(
            recorded, model(example)
        )  # looser than equal: without hooks another kernel runs
    assert acts["1.linear1"].shape == (1, 3, 22)


@pytest.mark.parametrize("leave", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_no_hook_survives_an_exception(net, images, leave):
    def raising(name, output):
        raise leave

    for fn in (raising, None):
        with pytest.raises(leave), record(net, ["conv", "fc"], fn):
            net(images)
            raise leave
    with pytest.raises(leave), edit(net, {"conv": lambda x: raising("conv", x)}):
        net(images)
    with pytest.raises(RuntimeError), record(net, ["conv"]):
        net(images[:, :2])  # the forward itself raises
    assert hooks_of(net) == 0
    with record(net, ["conv"]) as acts:
        net(images)
    assert acts["conv"].shape == (B, 7, 6, 6) and hooks_of(net) == 0


def test_names_are_checked_before_the_first_hook(net):
    for block in (record(net, ["conv", "nope"]), edit(net, {"conv": torch.relu, "nope": torch.relu})):
        with pytest.raises(KeyError, match="no layer 'nope'"), block:
            pytest.fail("entered")
        assert hooks_of(net) == 0
    with pytest.raises(ValueError, match="a list of names, got the string 'conv'"), record(net, "conv"):
        pass


def test_nested_blocks_remove_their_own_hooks(net, images):
    with torch.no_grad(), record(net, ["conv", "fc"]) as before, edit(net, {"conv": torch.zeros_like}):
        with record(net, ["conv"]) as after:
            net(images)
        outer = hooks_of(net)
        net(images[:2])
    assert before["conv"].abs().sum() > 0 and len(before["fc"]) == 2  # entered before the edit
    assert after["conv"].abs().sum() == 0 and len(after["conv"]) == B
    assert outer > 0 and hooks_of(net) == 0


def test_edit_replaces_outputs_also_in_tuples(net, images):
    with torch.no_grad():
        plain = net(images)
        with edit(net, {"attn": lambda x: 0 * x}):
            edited = net(images)
        expected = net.fc(net.both.inner(torch.zeros(B, 36, 7)).mean(1))
        torch.testing.assert_close(edited, expected)
        torch.testing.assert_close(net(images), plain)


@pytest.mark.parametrize("fn, got", [(lambda x: None, "NoneType"), (lambda x: x[:, 0], r"\[5, 6, 6\]")])
def test_edit_refuses_other_shapes(net, images, fn, got):
    with pytest.raises(ValueError, match=f"that of 'conv' gave {got}"), edit(net, {"conv": fn}):
        net(images)


# pooling and maps


def laid_out(layout: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(
        {
            "conv": (B, 7, 3, 4),
            "nhwc": (B, 3, 4, 7),
            "tokens": (B, 13, 7),
            "tokens_first": (13, B, 7),
            "fc": (B, 7),
        }[layout]
    )


@pytest.mark.parametrize("layout", ["conv", "nhwc", "tokens", "tokens_first", "fc"])
@pytest.mark.parametrize("how", ["avg", "max", "share", "cls"])
def test_pool_of_every_layout(layout, how):
    x = laid_out(layout)
    if how == "cls" and layout in ("conv", "nhwc"):
        with pytest.raises(ValueError, match="needs tokens"):
            pool(x, layout, how, B)
        return
    got = pool(x, layout, how, B)
    for b in range(B):
        for k in range(7):
            values = {
                "conv": lambda: x[b, k],
                "nhwc": lambda: x[b, :, :, k],
                "tokens": lambda: x[b, :, k],
                "tokens_first": lambda: x[:, b, k],
                "fc": lambda: x[b, k],
            }[layout]().flatten()
            share = values[0] if layout == "fc" else (values > 0).float().mean()
            expected = {"avg": values.mean(), "max": values.max(), "cls": values[0], "share": share}[how]
            torch.testing.assert_close(got[b, k], expected)


@pytest.mark.parametrize(
    "layout, how, batch, message",
    [
        ("tokens", "avg", 13, r"batch \(13\) at axis 0, got shape \[5, 13, 7\]"),
        ("tokens_first", "cls", 13, r"batch \(13\) at axis 1, got shape \[13, 5, 7\]"),
        ("conv", "mean", B, "pooling is 'avg', 'max', 'share' or 'cls', got 'mean'"),
    ],
)
def test_pool_refuses(layout, how, batch, message):
    with pytest.raises(ValueError, match=message):
        pool(laid_out(layout), layout, how, batch)
    with pytest.raises(ValueError, match="one of fc, tokens.*got 'image'"):
        pool(laid_out(layout), "image", "avg", B)
    with pytest.raises(ValueError, match="has 4 axes"):
        pool(laid_out("tokens"), "conv", "avg", B)


@pytest.mark.parametrize(
    "layout, grid, shape, at",
    [
        ("conv", None, (3, 4), lambda x, b, k, i, j: x[b, k, i, j]),
        ("nhwc", None, (3, 4), lambda x, b, k, i, j: x[b, i, j, k]),
        ("tokens", (3, 4), (3, 4), lambda x, b, k, i, j: x[b, 1 + 4 * i + j, k]),
        ("tokens_first", (2, 5), (2, 5), lambda x, b, k, i, j: x[3 + 5 * i + j, b, k]),
    ],
)
def test_maps_of_every_layout(layout, grid, shape, at):
    x = laid_out(layout)
    maps = as_maps(x, layout, grid)
    assert maps.shape == (B, 7, *shape)
    assert all(
        maps[b, k, i, j] == at(x, b, k, i, j)
        for b in range(B)
        for k in range(7)
        for i in range(shape[0])
        for j in range(shape[1])
    )


def test_tokens_around_the_patches_are_left_out():
    x = torch.randn(B, 10, 7)
    torch.testing.assert_close(as_maps(x, "tokens", (3, 3))[:, :, 1, 2], x[:, 6])
    torch.testing.assert_close(as_maps(x[:, 1:], "tokens", (3, 3)), as_maps(x, "tokens", (3, 3)))
    torch.testing.assert_close(as_maps(x, "tokens", (2, 3), start=0)[:, :, 1, 2], x[:, 5])
    torch.testing.assert_close(as_maps(x.transpose(1, 2), "conv1d", (3, 3)), as_maps(x, "tokens", (3, 3)))


@pytest.mark.parametrize(
    "layout, grid, message",
    [
        ("fc", None, "no maps"),
        ("tokens", None, r"13 positions do not tell where.*pass grid=\(h, w\)"),
        ("tokens", (4, 4), "a grid of 4 x 4 needs as many tokens, got 13"),
    ],
)
def test_maps_refuse(layout, grid, message):
    with pytest.raises(ValueError, match=message):
        as_maps(laid_out(layout), layout, grid)


def test_names_of_layers_are_checked_without_running_the_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Linear(4, 5)))
    check_layer_names(model, "all,0, 1.1,every,1.*")
    with pytest.raises(KeyError, match="no layer '2'; "):
        check_layer_names(model, ["0", "2"])
