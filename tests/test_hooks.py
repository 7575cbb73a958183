"""Hooks: recorded and replaced values, pooling, maps, refusals, and that no hook outlives its block."""

from __future__ import annotations

import pytest
import torch
from torch import nn, Tensor
from torchvision.models import resnet50

from neuronym.hooks import as_maps, edit, get_layer, pool, record
from neuronym.layers import list_layers, resolve_layers
from tests.helpers.layered import Net

B = 5


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(B, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_get_layer(net):
    assert get_layer(net, "both.inner") is net.both.inner
    with pytest.raises(KeyError, match="no layer 'norn'; nearest: norm"):
        get_layer(net, "norn")
    with pytest.raises(KeyError):
        get_layer(net, "")


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
    assert "1.linear1" in [layer.name for layer in list_layers(model, example)]
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
@pytest.mark.parametrize("how", ["avg", "max", "cls"])
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
            expected = {"avg": values.mean(), "max": values.max(), "cls": values[0]}[how]
            torch.testing.assert_close(got[b, k], expected)


@pytest.mark.parametrize(
    "layout, how, batch, message",
    [
        ("tokens", "avg", 13, r"batch \(13\) at axis 0, got shape \[5, 13, 7\]"),
        ("tokens_first", "cls", 13, r"batch \(13\) at axis 1, got shape \[13, 5, 7\]"),
        ("conv", "mean", B, "pooling is 'avg', 'max' or 'cls', got 'mean'"),
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


def test_square_token_grids_with_and_without_class_token():
    x = torch.randn(B, 10, 7)
    torch.testing.assert_close(as_maps(x, "tokens")[:, :, 1, 2], x[:, 6])
    torch.testing.assert_close(as_maps(x[:, 1:], "tokens"), as_maps(x, "tokens"))


@pytest.mark.parametrize(
    "layout, grid, message",
    [
        ("fc", None, "no maps"),
        ("tokens", None, r"13 tokens are no square grid.*pass grid=\(h, w\)"),
        ("tokens", (4, 4), "a grid of 4 x 4 needs as many tokens, got 13"),
    ],
)
def test_maps_refuse(layout, grid, message):
    with pytest.raises(ValueError, match=message):
        as_maps(laid_out(layout), layout, grid)
