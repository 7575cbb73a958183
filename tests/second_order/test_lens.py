"""neuronym.second_order.lens: every kind of tower through the same functions; run on by editing the network,
pairs on the map literally, and parts that add up.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from neuronym import hooks
from neuronym.activations import unit_activations
from neuronym.datasets.probe import load_probe
from neuronym.models.clips import load_clip
from neuronym.second_order import ablation, effects, experiments
from neuronym.second_order.lens import clip_target, lens_effects, lens_numbers, read_lens
from neuronym.second_order.pool import pool_factors
from neuronym.second_order.segmentation import attention_heat, neuron_heat, pair_heat
from tests.helpers.clips import small_clip
from tests.helpers.lens import clip_of

N = 5


def resnet(tmp_path):
    """openai-clip's ResNet, random, whose pool looks at 2 x 2 places and whose norms are no trivial ones."""
    model, g = small_clip("rn", size=64), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=g)
    return clip_of(model, tmp_path)


def siglip(tmp_path):
    pytest.importorskip("transformers")
    from tests.models.test_clips import save_hf

    return load_clip(save_hf(tmp_path, "siglip"))


MAKERS = {"resnet": resnet, "siglip": siglip}


@pytest.fixture(params=MAKERS)
def tower(request, tmp_path):
    """(kind, CLIP, probe, its images)."""
    clip, probe = MAKERS[request.param](tmp_path), load_probe(f"microworld:{N}")
    return request.param, clip, probe, torch.stack([clip.preprocess(probe.image(i)) for i in range(N)])


def test_layers_and_units(tower):
    kind, clip, probe, _ = tower
    lens = read_lens(clip)
    layers = {"resnet": [4], "siglip": [0, 1]}[kind]
    assert lens_numbers(lens, "all") == layers and lens_numbers(lens, str(layers[-1])) == layers[-1:]
    target, infos = clip_target(clip, lens)
    assert [*infos] == layers and [info.name for info in infos.values()] == list(target.layers)
    found, rest = lens_effects(clip, probe, layers)
    assert all(found[layer].shape[1] == infos[layer].units for layer in layers)
    Q = unit_activations(target, probe, [*infos.values()])
    for layer, info in infos.items():
        mean = ablation.mean_activations(clip, probe, layer, batch_size=2)
        assert_close(Q[info.name].mean(0), mean.mean(0), rtol=1e-4, atol=1e-5)
    message = {"resnet": "layer4, got layers '9' for clip", "siglip": "numbers from 0 to 1 separated"}[kind]
    for wrong in (lambda: lens_numbers(lens, "9"), lambda: lens.checked([9])):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_indirect_effects_by_editing_the_network(tower):
    kind, clip, probe, x = tower
    lens = read_lens(clip)
    layer = min(lens.neurons)
    mean = ablation.mean_activations(clip, probe, layer)
    units = mean.flatten(0, -2).amax(0).topk(3).indices.tolist()  # of random weights some are dead
    ours = ablation.indirect_effects(clip, probe, layer, units, mean, together=2)
    with torch.no_grad():
        whole = 100 * clip.encode_image(x)
    assert ours.shape == (N, 3, clip.d) and ours.norm(dim=2).amax(0).min() > 0
    for k, unit in enumerate(units):

        def to_mean(p, unit=unit):
            p = p.clone()
            if kind == "resnet":
                p[:, unit] = mean[:, unit].view(p.shape[2:])
            else:
                p[:, :, unit] = mean[:, unit]
            return p

        with torch.no_grad(), hooks.edit(lens.module, {lens.neurons[layer]: to_mean}):
            assert_close(ours[:, k], whole - 100 * clip.encode_image(x), rtol=1e-3, atol=2e-4)
    drop = ablation.logit_drop(
        clip, probe, layer, units[:1], torch.tensor([[0], [3]]), mean, torch.eye(clip.d)
    )
    assert_close(drop[0], ours[[0, 3], 0].mean(0), rtol=1e-3, atol=1e-4)


def test_heat_whatever_the_batch(tower):
    kind, clip, probe, _ = tower
    lens = read_lens(clip)
    layer, classes = max(lens.neurons), torch.tensor([1, 0, 1, 1, 0])
    target, infos = clip_target(clip, lens)
    weights = {"one": {layer: torch.rand(2, infos[layer].units)}}
    heat = neuron_heat(clip, probe, weights, classes)["one"]
    assert heat.shape == (N, 2, 2) and heat.std() > 0
    assert_close(neuron_heat(clip, probe, weights, classes, 2)["one"], heat, rtol=1e-4, atol=1e-5)
    for i in range(N):
        with torch.no_grad(), hooks.record(lens.module, [lens.neurons[layer]]) as acts:
            lens.module(clip.preprocess(probe.image(i))[None])
            p = acts[lens.neurons[layer]][0]
        places = p.flatten(1).T if kind == "resnet" else p
        assert_close(heat[i].flatten(), places @ weights["one"][layer][classes[i]], rtol=1e-4, atol=1e-4)
    looked = attention_heat(clip, probe)
    assert_close(looked.sum((1, 2)), torch.ones(N), rtol=1e-5, atol=1e-5)  # no class token takes a share
    assert_close(attention_heat(clip, probe, 2), looked, rtol=1e-4, atol=1e-6)


def test_what_is_written_adds_up(tower):
    _, clip, probe, _ = tower
    found, rest = lens_effects(clip, probe, lens_numbers(read_lens(clip), "all"), 2)
    table = experiments.written_by(found, rest).set_index("by")
    assert table["share"].sum() == pytest.approx(1, abs=1e-5) and len(table) == len(found) + 2
    assert table.loc["all else", "length"] < 1e-3 < table["length"].drop("all else").min()
    rep = found[min(found)].rep.double()
    literal = [100 * float(part @ r / r.norm() ** 2) for part, r in zip(rest.double(), rep)]
    assert table.loc["no neuron", "share"] == pytest.approx(math.fsum(literal) / N / 100, abs=1e-5)
    assert experiments.written_by(found)["by"].tolist()[-1] == "all else"


def test_what_a_vit_writes_leaves_something():
    clip, probe = load_clip("microworld:vit"), load_probe("microworld:4")
    found, rest = lens_effects(clip, probe, [3, 4])
    assert rest is None
    table = experiments.written_by(found)
    phi = effects.materialize(found[4]).sum(1)
    assert table["length"][1] == pytest.approx(float(phi.norm(dim=1).mean()), rel=1e-4)
    assert table["share"].sum() == pytest.approx(1, abs=1e-5) and table["length"].min() > 1


def test_pairs_on_the_map_are_literal(tmp_path):
    clip, probe = resnet(tmp_path), load_probe(f"microworld:{N}")
    lens, classes = read_lens(clip), torch.tensor([2, 0, 2, 0, 0])  # class 1 is no image's
    head = torch.randn(3, clip.d, generator=torch.Generator().manual_seed(0))
    pool, V = lens.read, pool_factors(lens.read).V().double()  # [K, H, d]
    heats = pair_heat(clip, probe, head, classes, 7, 2)
    assert list(heats) == ["7 pairs", "7 pairs, activation alone", "all pairs"]
    found, rest = lens_effects(clip, probe, [4])
    for i in range(N):
        with torch.no_grad(), hooks.record(lens.module, ["layer4"]) as acts:
            lens.module(clip.preprocess(probe.image(i))[None])
            x = acts["layer4"][0].flatten(1).T.double()  # [T, K]
        look, w = lens.attention(x[None].float())[0].double(), head[classes[i]].double()
        reads = {
            (n, h): float(V[n, h] @ w / V[n, h].norm()) for n in range(len(V)) for h in range(pool.heads)
        }
        best = sorted(reads, key=lambda pair: -abs(reads[pair]))[:7]
        for place in range(4):
            sign = {pair: math.copysign(1, reads[pair]) for pair in best}
            carried = [sign[n, h] * float(look[h, place] * x[place, n]) for n, h in best]
            alone = [sign[n, h] * float(x[place, n]) for n, h in best]
            every = torch.einsum("h,k,khd->d", look[:, place], x[place], V) @ w
            at = i, place // 2, place % 2
            assert float(heats["7 pairs"][at]) == pytest.approx(math.fsum(carried) / 7, rel=1e-3, abs=1e-5)
            assert float(heats["7 pairs, activation alone"][at]) == pytest.approx(
                math.fsum(alone) / 7, rel=1e-3, abs=1e-4
            )
            assert float(heats["all pairs"][at]) == pytest.approx(float(every), rel=1e-3, abs=1e-3)
    with torch.no_grad():
        size = clip.model.visual(torch.stack([clip.preprocess(probe.image(i)) for i in range(N)])).norm(dim=1)
    logit = ((found[4].rep - rest) * head[classes]).sum(1) * size / 100  # what pairs write of it
    assert_close(heats["all pairs"].sum((1, 2)), logit, rtol=1e-3, atol=1e-3)


def test_pairs_elsewhere_and_bad_input(tmp_path):
    vit, probe = load_clip("microworld:vit"), load_probe("microworld:2")
    assert pair_heat(vit, probe, torch.rand(2, 128), torch.tensor([0, 1])) == {}
    clip = resnet(tmp_path)
    with pytest.raises(ValueError, match="expected a class for each of the 2 images, got 1"):
        pair_heat(clip, probe, torch.rand(2, clip.d), torch.tensor([0]))
    with pytest.raises(ValueError, match="pairs must be a positive whole number, got 0"):
        pair_heat(clip, probe, torch.rand(2, clip.d), torch.tensor([0, 1]), 0)
    with pytest.raises(ValueError, match="reads its last layer, layer4, got layers '3' for clip"):
        lens_effects(clip, probe, [3])
    with pytest.raises(ValueError, match="exist in ViT image towers of CLIPs, clip 'mine' has a Linear"):
        read_lens(replace(clip, name="mine", model=torch.nn.Linear(2, 2)))
