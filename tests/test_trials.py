"""Passes at loading: whether a network is a function of one image, and sentences for what cannot run."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from neuronym.activations import target_layers
from neuronym.measurements import measure
from neuronym.models.targets import load_target
from neuronym.trials import evaluating, refuse, try_out

SQUARE = torch.zeros(1, 3, 32, 32)


class Net(nn.Module):
    def __init__(self, step):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)
        self.step, self.calls = step, 0

    def forward(self, x):
        self.calls += 1
        return self.fc(self.step(self, self.norm(self.conv(x)).relu_()).mean((2, 3)))


@pytest.mark.parametrize(
    "step",
    [
        lambda net, x: x,
        lambda net, x: F.dropout(x, training=net.training),
        lambda net, x: x - x.mean((1, 2, 3), keepdim=True),
        lambda net, x: x.double().float(),
        lambda net, x: x * 1e-12,
        lambda net, x: x * 0,
    ],
)
def test_functions_of_one_image_are_taken(step):
    trial = try_out(Net(step), SQUARE)
    assert trial.unsteady == "" and trial.channels_last


@pytest.mark.parametrize(
    "step, why",
    [
        (lambda net, x: F.dropout(x), "each time for the same image"),
        (lambda net, x: x + 0.1 * torch.randn_like(x), "each time"),
        (lambda net, x: x * (1 + net.calls), "each time"),
        (lambda net, x: F.batch_norm(x, None, None, training=True), "beside other images"),
        (lambda net, x: x - x.mean(), "beside other images"),
        (lambda net, x: x.flip(0), "beside other images"),
        (lambda net, x: x / x.amax(), "beside other images"),
        (lambda net, x: x.cumsum(0), "beside other images"),
        (lambda net, x: x + x[-1:].detach(), "beside other images"),
    ],
    ids="dropout noise state batch_norm mean order largest before behind".split(),
)
def test_others_are_refused(step, why):
    model = Net(step)
    trial = try_out(model, SQUARE)
    with pytest.raises(
        ValueError, match=f"a function of one image, and Net gives .*{why}.*allow_random=True"
    ):
        refuse(model, trial)


def test_an_order_of_memory_that_a_network_does_not_take():
    def viewed(net, x):
        return x.view(len(x), -1).unflatten(1, x.shape[1:])

    assert not try_out(Net(viewed), SQUARE).channels_last
    assert not try_out(
        Net(lambda net, x: x.contiguous() if x.is_contiguous() else x * 2), SQUARE
    ).channels_last


@pytest.mark.parametrize(
    "model, message",
    [
        (
            nn.Bilinear(3, 3, 2),
            "Bilinear cannot run on images .2, 3, 32, 32. alone .TypeError: .*model.visual",
        ),
        (
            nn.Conv2d(1, 2, 3),
            "cannot run on images .*expected input.* to have 1 channels.*its own preprocessing",
        ),
        (
            torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 3))),
            "no layer can be read in TorchScript .Sequential.",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_networks_that_cannot_run(model, message):
    with pytest.raises(ValueError, match=message) as found:
        try_out(model, SQUARE)
    assert "\n" not in str(found.value)


def test_a_trial_leaves_the_network_as_it_was():
    model = Net(lambda net, x: x)
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try_out(model, SQUARE)
    assert model.training and not model.norm.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(len(m._forward_hooks) for m in model.modules())


def small(image):
    return torch.full((3, 32, 32), image.getpixel((0, 0))[0] / 255)


def test_what_a_network_is_loaded_with_chooses_its_layers_too():
    """Three forward passes at loading, of 2, 3 and 2 pictures, and none for any list of layers."""
    net, sizes = Net(lambda net, x: x), []
    net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    target = load_target(net, preprocess=small)
    assert sizes == [2, 3, 2]
    for names in ("all", "every", "conv,fc", ["norm"], "**"):
        target_layers(target, names)
    measure(target, "conv", [Image.new("RGB", (9, 9))] * 2, "microworld", ["red"])
    assert sizes[:4] == [2, 3, 2, 2] and len(sizes) == 4  # the pass itself


def test_other_modules_than_were_tried_are_tried_anew():
    target = load_target(Net(lambda net, x: x), preprocess=small)
    assert [layer.units for layer in target_layers(target, "fc")] == [5]
    for change in (
        lambda: setattr(target.model, "fc", nn.Linear(6, 4)),
        lambda: setattr(target.model.conv, "bias", None),
        lambda: setattr(target, "example", torch.zeros(1, 3, 40, 40)),
        lambda: setattr(target, "model", copy.deepcopy(target.model)),
    ):
        change()
        target.model.calls = 0
        assert [layer.units for layer in target_layers(target, "fc")] == [4] and target.model.calls == 3


def test_a_train_that_returns_nothing():
    class Frozen(nn.Linear):
        def train(self, mode=True):
            super().train(mode)

    model = Frozen(2, 2)
    with evaluating(model):
        assert not model.training
    assert model.training
