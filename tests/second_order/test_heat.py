"""neuronym.second_order.segmentation: a CLIP's tower as a target, weights and heat against loops, attention
against torch's own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from neuronym import hooks
from neuronym.activations import activation_maps, unit_activations
from neuronym.datasets.probe import load_probe
from neuronym.hooks import list_layers
from neuronym.models.clips import load_clip
from neuronym.second_order import ablation
from neuronym.second_order.lens import clip_target
from neuronym.second_order.segmentation import attention_heat, class_weights, neuron_heat
from neuronym.second_order.tower import read_tower
from tests.helpers.clips import small_clip
from tests.helpers.lens import clip_of

N, T, K = 5, 65, 512  # microworld:vit sees 8 x 8 patches and a class token


@pytest.fixture(scope="module")
def vit():
    clip, probe = load_clip("microworld:vit"), load_probe("microworld:5")
    return clip, probe, torch.stack([clip.preprocess(probe.image(i)) for i in range(N)])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# the target


def test_units_are_the_neurons_of_the_lens(small):
    clip, probe = small
    target, numbered = clip_target(clip)
    layers = [*numbered.values()]
    names = [block.activation for block in read_tower(clip).blocks]
    assert [layer.name for layer in layers] == list(target.layers) == names
    listed = {layer.name: layer for layer in list_layers(target.model, target.example)}
    assert layers == [replace(listed[layer.name], kind="MLP") for layer in layers]
    assert (layers[0].units, layers[0].shape, layers[0].layout) == (256, (5, 256), "tokens_first")
    assert (target.name, target.weights_key, target.preprocess_spec) == (
        clip.name,
        clip.weights_key,
        clip.preprocess_spec,
    )
    for pool, of in (("avg", lambda p: p.mean(0)), ("cls", lambda p: p[0])):
        Q = unit_activations(target, probe, layers, pool)
        for l, layer in enumerate(layers):
            means = ablation.mean_activations(clip, probe, l)  # [T, K], from the tower that the lens reads
            assert_close(Q[layer.name].mean(0), of(means), rtol=1e-4, atol=1e-5)
            assert means.std() > 0.01


def test_the_target_of_a_hugging_face_clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        projection_dim=20,
        text_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 99,
            "intermediate_size": 32,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "hidden_act": "quick_gelu",
        },
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    clip = replace(
        clip_of(small_clip(), tmp_path),
        model=model,
        encode_image=lambda x: torch.nn.functional.normalize(
            model.visual_projection(model.vision_model(x).pooler_output), dim=1
        ),
    )
    target, numbered = clip_target(clip)
    layers = [*numbered.values()]
    assert [layer.layout for layer in layers] == ["tokens"] * 3 and layers[2].shape == (5, 40)
    probe = load_probe("microworld:3")
    Q = unit_activations(target, probe, layers[1:2])[layers[1].name]
    assert_close(Q.mean(0), ablation.mean_activations(clip, probe, 1).mean(0), rtol=1e-4, atol=1e-6)
    assert attention_heat(clip, probe).shape == (3, 2, 2)


# weights


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("neurons", [1, 4, 11, 200])
def test_class_weights_are_the_literal_ones(signed, neurons):
    R, head = random(11, 6), random(3, 6, seed=1)
    weights = class_weights({3: R[:4], 0: R[4:]}, head, neurons, signed)
    assert list(weights) == [3, 0]
    weights = torch.cat([*weights.values()], dim=1)
    for c in range(3):
        reads = [math.fsum(float(x) * float(y) for x, y in zip(r, head[c])) for r in R]
        chosen = sorted(range(11), key=lambda k: -abs(reads[k]))[:neurons]
        signs = [math.copysign(1, read) if signed else 1 for read in reads]
        expected = [signs[k] / len(chosen) if k in chosen else 0 for k in range(11)]
        assert weights[c].tolist() == pytest.approx(expected, rel=1e-12)
    assert (weights < 0).any() == signed or neurons == 1
    assert (
        weights.dtype == torch.float64
        and class_weights({1: R.float()}, head.float())[1].dtype == torch.float32
    )


def test_a_neuron_that_says_nothing_has_no_sign():
    assert class_weights({2: torch.tensor([[0.0, 0.0], [1.0, 0.0]])}, torch.tensor([[-2.0, 0.0]]))[
        2
    ].tolist() == [[0.0, -0.5]]


# heat


def one_heat(clip, probe, weights, classes, *more, **named):
    return neuron_heat(clip, probe, {"one": weights}, classes, *more, **named)["one"]


def test_several_weights_share_a_pass(vit):
    clip, probe, _ = vit
    sets, classes = (
        {
            "a": {1: random(3, K).float()},
            "b": {4: random(3, K, seed=1).float(), 1: random(3, K, seed=2).float()},
        },
        torch.tensor([2, 0, 1, 1, 0]),
    )
    both = neuron_heat(clip, probe, sets, classes)
    assert list(both) == ["a", "b"]
    for name, weights in sets.items():
        assert_close(both[name], one_heat(clip, probe, weights, classes), rtol=1e-5, atol=1e-5)


def test_neuron_heat_is_the_literal_sum(vit):
    clip, probe, x = vit
    tower = read_tower(clip)
    weights = class_weights(
        {layer: random(K, 6, seed=layer).float() for layer in (3, 0)}, random(3, 6, seed=9).float(), 14
    )
    classes = torch.tensor([2, 0, 0, 1, 2])
    heat = one_heat(clip, probe, weights, classes)
    assert heat.shape == (N, 8, 8)
    names = {layer: tower.blocks[layer].activation for layer in weights}
    with torch.no_grad(), hooks.record(clip.model.visual, list(names.values())) as acts:
        clip.model.visual(x)
        p = {layer: acts[name].double() for layer, name in names.items()}  # [T, N, K]
    for i in range(N):
        used = {layer: w[classes[i]].double().nonzero()[:, 0].tolist() for layer, w in weights.items()}
        for row in range(8):
            for column in range(8):
                token = 1 + 8 * row + column
                expected = math.fsum(
                    float(p[layer][token, i, k]) * float(weights[layer][classes[i], k])
                    for layer, units in used.items()
                    for k in units
                )
                assert float(heat[i, row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert heat.std() > 0.01


def test_heat_of_one_neuron_is_its_map(vit):
    clip, probe, _ = vit
    target, layers = clip_target(clip)
    one = torch.zeros(1, K)
    one[0, 17] = 1
    heat = one_heat(clip, probe, {2: one}, torch.zeros(N, dtype=torch.long))
    assert_close(heat, activation_maps(target, probe, layers[2], range(N), [17])[:, 0], rtol=1e-4, atol=1e-5)


def test_batch_size_does_not_matter(vit):
    clip, probe, _ = vit
    weights, classes = (
        {1: random(3, K).float(), 4: random(3, K, seed=1).float()},
        torch.tensor([2, 0, 1, 1, 0]),
    )
    said = []

    def progress(stream, total, text):
        said.append((total, text))
        return stream

    whole = one_heat(clip, probe, weights, classes, progress=progress)
    assert said == [(1, "microworld:vit over microworld:5")]
    for batch_size in (1, 2, 3):
        assert_close(one_heat(clip, probe, weights, classes, batch_size), whole, rtol=1e-4, atol=1e-4)
        assert_close(
            attention_heat(clip, probe, batch_size), attention_heat(clip, probe), rtol=1e-4, atol=1e-6
        )
    # each image has its own class
    assert (one_heat(clip, probe, weights, classes.roll(1)) - whole).abs().amax((1, 2)).gt(1e-2).tolist() == [
        True,
        True,
        True,
        False,
        True,
    ]


def test_attention_heat_is_torchs_own(vit):
    clip, probe, x = vit
    heat = attention_heat(clip, probe)
    attention, seen = clip.model.visual.transformer.resblocks[-1].attn, []
    handle = attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        clip.model.visual(x)
        handle.remove()
        a = attention(seen[0], seen[0], seen[0], need_weights=True, average_attn_weights=False)[
            1
        ]  # [N, H, T, T]
    assert a.shape == (N, attention.num_heads, T, T)
    assert_close(heat.flatten(1), a[:, :, 0, 1:].mean(1), rtol=1e-3, atol=1e-6)
    assert (heat.sum((1, 2)) < 1).all() and heat.std() > 1e-3


def test_nothing_is_left_behind(vit):
    clip, probe, _ = vit

    def hooked():
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks) for module in clip.model.modules()
        )

    before = hooked()
    with pytest.raises(RuntimeError):
        one_heat(clip, probe, {1: torch.rand(3, 99)}, torch.zeros(N, dtype=torch.long))
    assert hooked() == before and not torch.is_inference_mode_enabled()
    heat = one_heat(clip, probe, {1: torch.rand(3, K)}, torch.zeros(N, dtype=torch.long))
    assert not heat.is_inference() and not heat.requires_grad


@pytest.mark.parametrize(
    "layers, classes, message",
    [
        ([5], N, "MLP layers 0 to 4 of clip 'microworld:vit': layer 5 is the last one"),
        ([1, 6], N, "there is no layer 6"),
        ([-1], N, "there is no layer -1"),
        ([], N, "no layers were given"),
        ([1], 1, "expected a class for each of the 5 images, got 1"),
        ([1], 6, "expected a class for each of the 5 images, got 6"),
    ],
)
def test_heat_that_there_is_not(vit, layers, classes, message):
    clip, probe, _ = vit
    with pytest.raises(ValueError, match=message):
        one_heat(
            clip, probe, {layer: torch.rand(3, K) for layer in layers}, torch.zeros(classes, dtype=torch.long)
        )


def test_a_clip_without_neurons(tmp_path):
    clip = clip_of(small_clip(), tmp_path)
    clip = replace(clip, name="mine", model=torch.nn.Linear(2, 2))
    for call in (clip_target, lambda clip: attention_heat(clip, load_probe("microworld:2"))):
        with pytest.raises(ValueError, match="exist in ViT image towers of CLIPs, clip 'mine' has a Linear"):
            call(clip)
    with pytest.raises(ValueError, match="neurons must be a positive whole number, got 0"):
        class_weights({0: torch.rand(4, 3)}, torch.rand(2, 3), 0)
