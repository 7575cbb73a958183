"""Layouts that are found out: units and positions of every kind of layer, grids of patches, and what is
asked.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn, Tensor

from neuronym.hooks import list_layers, maps_of, record, resolve_layers
from neuronym.layouts import LayerInfo, layouts_from

SQUARE = torch.zeros(1, 3, 32, 32)


class Step(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Vit(nn.Module):
    """Patches of a convolution with tokens before and after them, two encoder layers."""

    def __init__(self, before=1, after=0, patch=(8, 8), order=None):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 24, patch, patch)
        self.before = nn.Parameter(torch.randn(1, before, 24))
        self.after = nn.Parameter(torch.randn(1, after, 24))
        self.order, self.drop = order, nn.Identity()
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(24, 2, 48, batch_first=True, norm_first=True) for _ in range(2))
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.order is None else x[:, self.order]
        some = [part.expand(len(x), -1, -1) for part in (self.before, self.after)]
        return self.head(self.blocks(self.drop(torch.cat([some[0], x, some[1]], 1))).mean(1))


def of(model: nn.Module, example: Tensor = SQUARE, layouts=None) -> dict[str, LayerInfo]:
    torch.manual_seed(0)
    return {layer.name: layer for layer in list_layers(model.eval(), example, layouts)}


@pytest.mark.parametrize(
    "step",
    [
        nn.Conv1d(6, 10, 3, padding=1),
        nn.BatchNorm1d(6),
        nn.GroupNorm(2, 6),
        nn.InstanceNorm1d(6),
        nn.MaxPool1d(2),
        nn.AvgPool1d(2),
        nn.AdaptiveMaxPool1d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv1d(6, 10, 1), nn.BatchNorm1d(10), nn.ReLU()),
        Step(lambda x: x.sin()),
    ],
    ids=lambda step: type(step).__name__,
)
def test_units_of_one_dimensional_layers_are_their_channels(step):
    head = nn.Sequential(Step(lambda x: x.mean(2)), nn.LazyLinear(3))
    found = of(nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.Flatten(2), step, head))
    assert found["1"].layout == "conv1d" and found["1"].units == 6 and found["1"].grid == (4, 4)
    assert found["2"].layout == "conv1d" and found["2"].units in (6, 10)


@pytest.mark.parametrize("fixed", [False, True])
def test_flattened_maps_of_either_order(fixed):
    """`fixed` networks run on pictures of one size alone."""
    end = nn.Sequential(nn.Flatten(), nn.LazyLinear(3)) if fixed else Step(lambda x: x.mean((1, 2)))
    first = of(nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.Flatten(2), nn.Tanh(), end))
    last = of(nn.Sequential(nn.Conv2d(3, 6, 8, 8), Step(lambda x: x.flatten(2).mT), nn.Tanh(), end))
    assert [first[name].layout for name in "12"] == ["conv1d"] * 2
    assert [last[name].layout for name in "12"] == ["tokens"] * 2


def test_a_product_over_the_patches_has_the_channels_as_units():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm = nn.Conv2d(3, 24, 8, 8), nn.LayerNorm(24)
            self.mix, self.hidden, self.back = nn.Linear(16, 16), nn.Linear(16, 40), nn.Linear(40, 16)

        def forward(self, x):
            x = self.norm(self.patches(x).flatten(2).mT).mT
            return self.back(self.hidden(self.mix(x)).relu()).mean((1, 2))

    found = of(Mixer())
    assert (found["norm"].layout, found["norm"].units) == ("tokens", 24)
    assert (found["mix"].layout, found["mix"].units, found["mix"].grid) == ("conv1d", 24, (4, 4))
    assert (found["hidden"].units, found["hidden"].grid) == (40, None)  # its positions are channels


@pytest.mark.parametrize("before, after", [(0, 0), (1, 0), (2, 0), (5, 0), (9, 0), (0, 4), (1, 3)])
def test_patches_are_told_from_the_tokens_around_them(before, after):
    model = Vit(before, after)
    for name in ("drop", "blocks.0", "blocks.1", "blocks.1.linear1"):
        [layer] = resolve_layers(model, name, SQUARE)
        assert (layer.grid, layer.start) == ((4, 4), before), name
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), record(model.eval(), ["drop"]) as acts:
        model(x)
        expected = model.patches(x)
    torch.testing.assert_close(maps_of(acts["drop"], of(model)["drop"]), expected)


@pytest.mark.parametrize(
    "size, patch, grid",
    [((56, 64), (4, 4), (14, 16)), ((32, 32), (4, 8), (8, 4)), ((64, 16), (8, 8), (8, 2))],
)
def test_grids_are_oblong_where_the_picture_or_the_patches_are(size, patch, grid):
    layer = of(Vit(1, patch=patch), torch.zeros(1, 3, *size))["blocks.1"]
    assert (layer.grid, layer.start) == (grid, 1)


def test_patches_in_another_order_have_no_maps():
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    found = of(Vit(1, patch=(4, 4), order=order))
    assert found["blocks.1"].grid is None and found["blocks.1"].layout == "tokens"
    with pytest.raises(ValueError, match=r"65 positions do not tell where.*pass grid=\(h, w\)"):
        maps_of(torch.zeros(1, 65, 24), found["blocks.1"])


def test_patches_without_a_convolution():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(3 * 64, 12), nn.Linear(12, 3)

        def forward(self, x):
            cut = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            return self.head(self.embed(cut).mean(1))

    assert of(Cut(), torch.zeros(1, 3, 32, 48))["embed"].grid == (4, 6)


def test_values_between_tokens_are_no_units():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm, self.qkv = nn.Conv2d(3, 24, 8, 8), nn.LayerNorm(24), nn.Linear(24, 72)
            self.soft, self.q, self.head = nn.Softmax(-1), nn.Identity(), nn.Linear(24, 3)

        def forward(self, x):
            x = self.norm(self.patches(x).flatten(2).mT)
            q, k, v = self.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
            return self.head((self.soft(self.q(q) @ k.mT) @ v).transpose(1, 2).flatten(2).mean(1))

    model = Attention()
    assert {"soft", "q"}.isdisjoint(of(model)) and "qkv" in of(model)
    for name, why in (("soft", "from token to token"), ("q", "split between heads")):
        with pytest.raises(ValueError, match=f"'{name}' of Attention cannot be recorded: it gives .*{why}"):
            resolve_layers(model, name, SQUARE)


def test_what_nothing_tells_is_asked():
    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.odd, self.head = nn.Linear(3 * 32 * 32, 77), nn.Identity(), nn.Linear(77, 3)

        def forward(self, x):
            return self.head(self.odd(self.first(x.flatten(1)).unflatten(1, (7, 11))).flatten(1))

    with pytest.raises(
        ValueError, match="'odd' of Vectors.*nothing tells which axis.*layout='tokens' or 'conv1d'"
    ):
        resolve_layers(Vectors(), "odd", SQUARE)
    for layouts, units in (("conv1d", 7), ("odd=tokens", 11), ({"o*": "conv1d"}, 7)):
        assert resolve_layers(Vectors(), "odd", SQUARE, layouts)[0].units == units


def test_layouts_that_a_user_says():
    assert layouts_from("") == {} and layouts_from("nhwc") == {"": "nhwc"}
    assert layouts_from("mix*=conv1d, a.**=tokens") == {"mix*": "conv1d", "a.**": "tokens"}
    with pytest.raises(ValueError, match="one of fc, tokens.*got 'NCL'; write layout='conv1d'"):
        layouts_from("x=NCL")
