"""The literal second-order lens against released outputs, openai-clip's own forward, its sum, and values by
hand.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from neuronym.common.checks import openai_package
from tests.helpers import reference_lens as lens

SIZES = {"input_resolution": 16, "patch_size": 8, "width": 12, "layers": 3, "heads": 3, "output_dim": 7}
LAYER, TOP = 1, 100  # of the released outputs
SOME = slice(0, 192, 13)  # of their 192 units


def transformer(**sizes):
    openai_package()
    from clip.model import VisionTransformer

    return VisionTransformer(**{**SIZES, **sizes}).double().eval()


@pytest.fixture
def visual():
    """All parameters random, biases and layer norms included, so that no term vanishes."""
    network, g = transformer(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.6 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return network


@pytest.fixture(scope="module")
def golden(shared):
    tensors = load_file(shared / "golden" / "second_order_a.safetensors")
    network = transformer(input_resolution=32, patch_size=8, width=48, layers=4, heads=4, output_dim=24)
    prefix = "model.visual."
    network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    return network, tensors


def picture(seed=1):
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected):
    assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# the network


def test_forward_is_the_network_in_float64(visual):
    for module in visual.modules():
        if isinstance(module, nn.LayerNorm):  # openai-clip's rounds to float32
            module.forward = nn.LayerNorm.forward.__get__(module)
    seen, blocks = {}, visual.transformer.resblocks
    for j, block in enumerate(blocks):
        for name, part in (
            ("ln_1", block.ln_1),
            ("attn", block.attn),
            ("gelu", block.mlp.gelu),
            ("mlp", block.mlp),
        ):
            part.register_forward_hook(lambda module, args, out, at=(name, j): seen.update({at: (args, out)}))
    kept = lens.forward(visual, picture())
    with torch.no_grad():
        assert_close(kept["representation"], visual(picture()[None])[0], rtol=1e-12, atol=1e-12)
        for j, block in enumerate(blocks):
            x, y = seen["ln_1", j][0][0][:, 0], seen["ln_1", j][1]
            weights = block.attn(y, y, y, average_attn_weights=False)[1][0, :, 0]
            assert_close(torch.tensor(kept["attention"][j], dtype=torch.float64), weights)
            close(kept["mean"][j], x.mean(1))
            close(kept["sd"][j], (x.var(1, unbiased=False) + block.ln_1.eps).sqrt())
            close(kept["streams"][2 * j], x)
            close(kept["sources"][1 + 2 * j], seen["attn", j][1][0][:, 0])
            close(kept["post"][j], seen["gelu", j][1][:, 0])
            close(kept["sources"][2 + 2 * j], seen["mlp", j][1][:, 0])
    close(torch.stack(kept["sources"]).cumsum(0), torch.stack(kept["streams"]))


def test_representation_equals_the_released(golden):
    visual, tensors = golden
    for i in (0, 79, 159):
        assert_close(
            lens.forward(visual, tensors["images"][i])["representation"].float(),
            tensors["representation"][i],
            rtol=1e-5,
            atol=1e-5,
        )


# effects


def test_effects_equal_the_released(golden):
    visual, tensors = golden
    units = list(range(192))[SOME]
    for i in (3, 158):
        phi = lens.effects(visual, tensors["images"][i], LAYER, units)
        assert_close(phi.float(), tensors["effects"][i, units], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("layer", [0, 1])
def test_effects_and_everything_else_are_the_representation(visual, layer):
    rep = lens.forward(visual, picture())["representation"]
    phi, rest = lens.effects(visual, picture(), layer), lens.everything_else(visual, picture(), layer)
    assert phi.shape == (48, 7) and phi.sum(0).norm() > 1 and rest.norm() > 1
    assert_close(phi.sum(0) + rest, 100 * rep / rep.norm(), rtol=0, atol=1e-9)


def test_the_released_effects_sum_too(golden):
    visual, tensors = golden
    rep, rest = tensors["representation"][4], lens.everything_else(visual, tensors["images"][4], LAYER)
    assert_close(
        tensors["effects"][4].double().sum(0) + rest, 100 * (rep / rep.norm()).double(), rtol=0, atol=5e-5
    )


def test_units_that_write_nothing_share_one_remainder(visual):
    with torch.no_grad():
        visual.transformer.resblocks[1].mlp.c_proj.weight[:, [5, 2]] = 0
    phi = lens.effects(visual, picture(), 1, [5, 2, 3])
    close(phi[0], phi[1])
    assert phi[0].norm() > 1e-2 and (phi[2] - phi[0]).norm() > 1e-2


def test_the_last_layer_has_no_effects(visual):
    rep = lens.forward(visual, picture())["representation"]
    assert lens.effects(visual, picture(), 2, [0, 47]).eq(0).all()
    close(lens.everything_else(visual, picture(), 2), 100 * rep / rep.norm())


# directions


def test_norms_and_directions_equal_the_released(golden):
    _, tensors = golden
    phi = tensors["effects"][:, SOME]
    mean, deviations = lens.mean_and_deviations(phi)
    assert_close(mean, phi.double().mean(0))
    lengths = torch.tensor(lens.norms(deviations)).sort(0).values[-TOP:].T  # [K, 100]
    assert_close(lengths.float(), tensors["norms"][SOME], rtol=1e-5, atol=5e-6)
    signed = 0
    for n, (released, ascending) in enumerate(zip(tensors["pcs"][SOME].double(), tensors["norms"][SOME])):
        r, theta, _, images = lens.principal_direction(deviations[:, n], TOP)
        positive = int((deviations[images, n] @ r > 0).sum())
        assert len(set(images)) == TOP and positive >= TOP / 2
        assert_close(theta, float(ascending[0]), rtol=1e-5, atol=5e-6)
        signed += positive > TOP / 2
        sign = (
            1 if positive > TOP / 2 else torch.sign(released @ r)
        )  # by an exact half the release left it to chance
        assert_close((sign * r).float(), released.float(), rtol=0, atol=2e-5)
    assert signed > 6


def test_direction_by_hand():
    rows = torch.tensor([[0.0, 0.1], [3, 0], [-4, 0], [0, -0.2], [-5, 0], [0, 2]])
    r, theta, explained, images = lens.principal_direction(rows, 3)
    assert images == [1, 2, 4] and theta == 3 and explained == pytest.approx(1)
    close(r, torch.tensor([-1.0, 0]).double())  # two of three project positively
    r, theta, explained, images = lens.principal_direction(rows, 4)
    assert images == [5, 1, 2, 4] and theta == 2 and explained == pytest.approx(50 / 54)
    raw = torch.linalg.svd(rows[images].double(), full_matrices=False)[2][0]
    close(r.abs(), torch.tensor([1.0, 0]).double())
    close(r, -raw)  # two of four are not more than half
    assert lens.principal_direction(torch.ones(5, 2), 3)[3] == [2, 1, 0]  # equal lengths
    off_centre = torch.tensor([[5.0, 1], [5, -1], [5, 1], [5, -1]])  # centred, it would be the second axis
    close(lens.principal_direction(off_centre, 4)[0], torch.tensor([1.0, 0]).double())


# ablations

REP = torch.tensor([60.0, 80])
PHI = torch.tensor([[4.0, 4], [0, 3], [-1, 0]])
MEAN = torch.tensor([[1.0, 0], [0, 1], [0, 0]])  # d = (3, 4), (0, 2), (-1, 0)
R = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])


@pytest.mark.parametrize(
    "how, expected",
    [
        ("all", [58, 74]),
        ("without_significant", [57, 76]),
        ("without_insignificant", [61, 78]),
        ("rank_1", [58 + 3 - 0.36, 74 + 2 - 0.48]),
    ],
)
def test_ablations_by_hand(how, expected):
    theta = [4.9, 2, 1.1]  # the second unit is at its threshold, hence not above it
    close(lens.ablate(REP, PHI, MEAN, how, theta, R), torch.tensor(expected, dtype=torch.float64))


def test_unknown_ablation():
    with pytest.raises(KeyError, match="both"):
        lens.ablate(REP, PHI, MEAN, "both")
