"""What a unit card shows: the unit's labels, its most active images as the network sees them, maps of any layout."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from utils import activations, cards
from utils.hooks import resolve_layers
from utils.labels import labels_table
from utils.models import Target
from utils.preprocess import HALF, Preprocess, describe
from utils.probe import load_probe


class Tokens(nn.Module):
    """Sixteen patches behind `extra` tokens, whose only unit is the patch's mean red."""

    def __init__(self, extra):
        super().__init__()
        self.block, self.extra = nn.Identity(), extra

    def forward(self, x):
        red = nn.functional.avg_pool2d(x[:, :1], 16).flatten(2).transpose(1, 2)  # [B, 16, 1]
        return self.block(torch.cat([red[:, :1].expand(-1, self.extra, -1) * 0, red], 1)).mean(1)


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
def test_cards_of_token_layers(extra):
    preprocess = Preprocess(64, 64, "bicubic", HALF, HALF)
    target = Target("own", Tokens(extra).eval(), preprocess, describe(preprocess), None, f"tokens{extra}", ("block",), torch.zeros(1, 3, 64, 64))
    probe = load_probe("microworld:23")
    layer, = resolve_layers(target.model, "block", target.example)
    Q = activations.unit_activations(target, probe, [layer])["block"]
    table = labels_table(torch.tensor([[1., 3, 2]]), ["a", "b", "c"], model="own", layer="block", method="m", k=2)
    card, = cards.collect(target, probe, layer, Q, table, [0], images=3)
    assert card["labels"] == [("b", 3.), ("c", 2.)] and card["maps"].shape == (3, 4, 4) and card["truth"] is None
    best = int(Q[:, 0].argmax())
    expected = nn.functional.avg_pool2d(preprocess(probe.image(best))[None, :1], 16)[0, 0]
    torch.testing.assert_close(torch.from_numpy(card["maps"][0]), expected)
    assert card["images"][0].tobytes() == probe.image(best).tobytes()


class Colours(nn.Module):
    """Three maps, the picture's colours, and their means."""

    def __init__(self):
        super().__init__()
        self.maps, self.fc = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
        self.maps.weight.data, self.fc.weight.data = torch.eye(3)[:, :, None, None], torch.eye(3)

    def forward(self, x):
        return self.fc(self.maps(x).mean((2, 3)))


def test_cards_of_several_units_and_of_the_cache(monkeypatch):
    preprocess = Preprocess(64, 64, "bicubic", HALF, HALF)
    target = Target("own", Colours().eval(), preprocess, describe(preprocess), None, "colours", ("fc",), torch.zeros(1, 3, 64, 64))
    probe = load_probe("microworld:23")
    maps, fc = layers = resolve_layers(target.model, "maps,fc", target.example)
    Q = activations.unit_activations(target, probe, layers)
    table = labels_table(torch.eye(3), ["r", "g", "b"], model="own", layer="maps", method="m", k=1)
    given = target, probe, maps, Q["maps"], table
    both = cards.collect(*given, [2, 0], images=4, names=["r", "g", "b"], keep=True)
    for card, unit in zip(both, (2, 0)):
        single, = cards.collect(*given, [unit], images=4)
        best = Q["maps"][:, unit].argsort(descending=True, stable=True)[:4].tolist()
        assert card["truth"] == card["labels"][0][0] == "rgb"[unit] and card["title"] == f"maps  unit {unit}"
        for image, heat, alone, row in zip(card["images"], card["maps"], single["maps"], best, strict=True):
            assert image.tobytes() == probe.image(row).tobytes()
            torch.testing.assert_close(torch.from_numpy(heat), preprocess(probe.image(row))[unit])
            torch.testing.assert_close(torch.from_numpy(heat), torch.from_numpy(alone))
    assert cards.collect(target, probe, fc, Q["fc"], table, [1])[0]["maps"] is None
    monkeypatch.setattr(cards, "_look", lambda *_: pytest.fail("everything is cached"))
    again = cards.collect(*given, [2, 0], images=4, keep=True)
    assert all((a["maps"] == b["maps"]).all() and a["images"] == b["images"] for a, b in zip(again, both))


def test_spread_goes_from_the_best_unit_to_the_worst():
    scores = torch.tensor([[.1], [.9], [.5], [.7], [.3]])
    table = labels_table(scores, ["a"], model="n", layer="l", method="m", k=1)
    assert cards.spread(table, "l", 3) == [1, 2, 0] and cards.spread(table, "l", 1) == [1] and len(cards.spread(table, "l", 99)) == 5
