"""Many edits in one pass: the same bits as one edit at a time, and no module twice that need not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuronym.evaluation.replay import under_each
from neuronym.hooks import edit
from neuronym.microworld.networks import micro_vit, MicroResNet


class Odd(nn.Module):
    """A shared module, a tuple, an operation in place, and a branch around the edited layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.ReLU(inplace=True)
        self.twice = nn.Conv2d(4, 4, 1)
        self.pair = Pair()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        y = self.shared(self.first(x))
        z = self.twice(y)
        z += 1
        a, b = self.pair(self.shared(z))
        return self.last((a + b["low"] + y).mean((2, 3)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x, {"low": self.inner(x)}


@pytest.mark.parametrize(
    "build, layers",
    [
        (lambda: MicroResNet(5, 4), ["layer4", "layer4.relu1", "conv1", "fc"]),
        (lambda: MicroResNet(5, 4), ["layer3.bn1"]),
        (lambda: micro_vit(5, 24, 2), ["encoder.layers.encoder_layer_1.mlp.0", "encoder.ln"]),
        (Odd, ["pair.inner"]),
        (Odd, ["twice", "last"]),
    ],
)
def test_passes_give_what_single_edits_give(build, layers):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(2, 3, 64, 64)
    edits = [{}, *({name: lambda y: y * 0.5} for name in layers), dict.fromkeys(layers, lambda y: y + 1)]
    with torch.inference_mode():
        together = list(under_each(model, x, edits))
        for given, found in zip(edits, together):
            with edit(model, given):
                assert torch.equal(model(x), found)
        assert torch.equal(model(x), together[0])
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_comes_before_the_first_edited_layer_runs_once():
    model, ran = MicroResNet(5, 4).eval(), []
    forward = model.layer3.conv1.forward
    model.layer3.conv1.forward = lambda x: ran.append("layer3") or forward(x)
    with torch.inference_mode():
        halved = {"layer4": lambda y: y / 2}
        some = list(under_each(model, torch.randn(2, 3, 64, 64), [{}, halved, halved]))
    assert ran == ["layer3"] and not torch.equal(some[0], some[1])
    assert (
        model.layer3.conv1.forward(torch.zeros(1, 8, 8, 8)).shape[1] == 16 and len(ran) == 2
    )  # its own again
