"""Smaller networks give what masked ones give; folding is its formula; what cannot go is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuronym.applications.channels import trace
from neuronym.applications.surgery import difference, Fold, folded, masked, removed, size, with_means
from neuronym.evaluation.replay import under_each
from neuronym.hooks import record
from neuronym.microworld.networks import micro_vit, MicroResNet

X = torch.zeros(1, 3, 64, 64)
MLP = "encoder.layers.encoder_layer_1.mlp"


def resnet(width: int = 6, classes: int = 5) -> nn.Module:
    """Random weights, and running statistics and norms that are not those of a fresh network."""
    torch.manual_seed(0)
    model = MicroResNet(classes, width).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(0, 0.3)
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = micro_vit(5, 24, 2).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


class Depthwise(nn.Module):
    """A depthwise convolution, a gate that multiplies, a shortcut, and a mean over positions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.depth(torch.relu(self.first(x))))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head((x + self.second(x)).mean((2, 3)))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(32768, 2))


@pytest.mark.parametrize(
    "build, units",
    [
        (resnet, {"layer1.relu1": [0, 5]}),
        (resnet, {"layer4": [3, 4, 40]}),
        (resnet, {"layer2": [0], "layer3": [1, 2, 23], "layer4.relu1": range(47)}),
        (resnet, {"conv1": [2], "layer1": [4]}),
        (vit, {f"{MLP}.1": [0, 7, 40], f"{MLP.replace('1', '0')}.0": [1]}),
        (Depthwise, {"first": [0, 7]}),
        (Depthwise, {"squeeze": [1]}),
    ],
)
def test_the_smaller_network_is_the_masked_one(build, units):
    model = build().eval()
    graph = trace(model, X)
    smaller, mask = removed(model, X, units, graph), masked(model, X, units, graph)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole, small, large = model(x), smaller(x), mask(x)
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, large, rtol=1e-3, atol=1e-4)
    assert size(smaller)[0] < size(mask)[0] == size(model)[0] and size(smaller)[1] < size(model)[1]
    assert sum(p.numel() for p in model.parameters()) == size(build())[0], "the network itself stays"


def test_the_mask_is_what_turning_units_off_is():
    """For units that one layer holds: hooks that write 0, which know nothing of channels."""
    for model, layer, gone in ((resnet(), "layer3.relu1", [0, 9]), (vit(), f"{MLP}.1", [5, 11, 30])):
        axis = 1 if "relu" in layer else -1

        def off(y):
            y = y.clone()
            y.movedim(axis, -1)[..., gone] = 0
            return y

        x = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            (found,) = under_each(model, x, [{layer: off}])
            torch.testing.assert_close(removed(model, X, {layer: gone})(x), found, rtol=1e-4, atol=1e-5)


def test_what_goes_from_a_shortcut_goes_from_all_that_share_it():
    model = resnet()
    channels = trace(model, X).channels("conv1")
    assert channels is trace(model, X).channels("conv1") or set(channels.writers) == {
        "conv1.0",
        "layer1.conv2",
    }
    assert channels.readers == {"layer1.conv1": 1, "layer2.conv1": 1, "layer2.down.0": 1}
    assert trace(model, X).channels("layer4").readers == {"fc": 4}  # four quarters of the picture
    smaller = removed(model, X, {"conv1": [0], "layer1": [1]})
    assert smaller.conv1[0].out_channels == smaller.layer1.bn2.num_features == 4
    assert smaller.layer2.down[0].in_channels == 4


@pytest.mark.parametrize(
    "build, layer, units, message",
    [
        (resnet, "fc", [0], "units of layer 'fc' of MicroResNet cannot be removed.*the network's output"),
        (resnet, "layer2", range(12), "a unit of layer 'layer2' must stay, got all 12 to remove"),
        (resnet, "layer2", [12], "units of layer 'layer2' lie within 0 .. 11, got 12"),
        (vit, "encoder.ln", [0], "cannot be removed, only turned off: .*layernorm|LayerNorm"),
        (vit, "encoder.layers.encoder_layer_0.mlp.3", [0], "an addition or product beside others"),
        (grouped, "0", [0], "grouped convolution '1'"),
    ],
)
def test_what_cannot_be_removed_is_said(build, layer, units, message):
    with pytest.raises(ValueError, match=message):
        removed(build(), X, {layer: units})


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(x).mean((2, 3)) if x.sum() > 0 else self.a(-x).mean((2, 3))


def test_networks_that_cannot_be_followed_are_refused():
    with pytest.raises(ValueError, match="the channels of Branching cannot be followed, torch.fx says: "):
        trace(Branching(), X)


@pytest.mark.parametrize(
    "build, layer, reader",
    [(resnet, "layer4", "fc"), (resnet, "layer2.relu1", "layer2.conv2"), (vit, f"{MLP}.2", f"{MLP}.3")],
)
def test_folding_is_its_formula(build, layer, reader):
    """Literally, a weight at a time in float64; and with a true copy nothing changes."""
    model = build()
    folds = [Fold(2, 5, 0.5, 0.25), Fold(3, 2, 2.0), Fold(5, 0, -1.5, -1.0)]
    made = folded(model, X, {layer: folds})
    before = model.get_submodule(reader).weight.detach().double()
    K = trace(model, X).channels(layer).units
    spread = before.shape[1] // K
    rows = [list(row.unbind()) for row in before]
    wanted = [[row[k * spread : (k + 1) * spread] for k in range(K)] for row in rows]
    bias = model.get_submodule(reader).bias
    bias = torch.zeros(len(before)).double() if bias is None else bias.detach().double().clone()
    for gone, stays, factor, constant in folds:
        for o, row in enumerate(wanted):
            bias[o] += constant * sum(value.sum() for value in row[gone])
        for row in wanted:
            for p in range(spread):
                row[stays][p] = row[stays][p] + factor * row[gone][p]
                row[gone][p] = torch.zeros_like(row[gone][p])
    found = made.get_submodule(reader).weight
    for o, row in enumerate(wanted):
        flat = torch.stack([value for unit in row for value in unit])
        torch.testing.assert_close(found[o].double(), flat)
    torch.testing.assert_close(made.get_submodule(reader).bias.double(), bias)
    others = {n: v for n, v in model.state_dict().items() if not n.startswith(reader)}
    assert all(torch.equal(made.state_dict()[name], value) for name, value in others.items())


def test_a_true_copy_is_folded_without_a_trace():
    """Unit 4 of a block's middle is made .5 times unit 1: folded and removed, the network gives the same."""
    model = resnet()
    block = model.layer3
    with torch.no_grad():
        block.conv1.weight[4] = block.conv1.weight[1]
        for name in ("running_mean", "running_var"):
            getattr(block.bn1, name)[4] = getattr(block.bn1, name)[1]
        block.bn1.weight[4], block.bn1.bias[4] = block.bn1.weight[1] / 2, block.bn1.bias[1] / 2
    made = folded(model, X, {"layer3.relu1": [Fold(4, 1, 0.5)]})
    smaller = removed(made, X, {"layer3.relu1": [4]})
    assert difference(smaller, model, X) < 1e-5
    assert difference(removed(model, X, {"layer3.relu1": [4]}), model, X) > 1e-3
    constant = removed(model, X, {"layer3.relu1": [4]})  # a unit that says its mean everywhere
    with torch.no_grad():
        model.layer3.bn1.weight[4], model.layer3.bn1.bias[4] = 0, 0.75
    kept = removed(with_means(model, X, {"layer3.relu1": {4: 0.75}}), X, {"layer3.relu1": [4]})
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode(), record(kept, ["layer3"]) as found, record(model, ["layer3"]) as wanted:
        kept(x), model(x)
        inside = [maps["layer3"][:, :, 1:-1, 1:-1] for maps in (found, wanted)]
        torch.testing.assert_close(*inside, rtol=1e-4, atol=1e-5)
    assert difference(constant, model, X) > difference(kept, model, X)
    with pytest.raises(ValueError, match="means are of what is read, got layer 'conv1'"):
        with_means(model, X, {"conv1": {0: 1.0}})
    with pytest.raises(ValueError, match="units are folded where they are read, got layer 'layer3.bn1'"):
        folded(model, X, {"layer3.bn1": [Fold(4, 1, 0.5)]})
    with pytest.raises(ValueError, match="name another: its units are read in several forms"):
        folded(model, X, {"conv1": [Fold(4, 1, 0.5)]})
