"""Examples of units: against a literal version, one picture at a time, on a small target and on the
microworld's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from neuronym import hooks
from neuronym.activations import unit_activations
from neuronym.common.checks import UnknownName
from neuronym.common.types import Target
from neuronym.datasets.probe import load_probe, Probe
from neuronym.describe import examples as module
from neuronym.describe.crops import attention_crops
from neuronym.describe.examples import Example, examples, picture
from neuronym.hooks import LayerInfo, resolve_layers
from neuronym.microworld.render import masks
from neuronym.microworld.world import ATOMS, concepts
from neuronym.models.preprocess import Preprocess, seen_of, SIZE
from neuronym.models.targets import load_target

UNITS = [5, 0, 17]


@pytest.fixture(scope="module")
def probe():
    return load_probe("microworld:23")


def layer_of(target: Target, name: str) -> LayerInfo:
    [layer] = resolve_layers(target.model, name, target.example)
    return layer


def small_target(preprocess=Preprocess(20, 14), seed: int = 0) -> Target:
    """A convolution, whose values may be negative, a ReLU in place after it, and a head; random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (
            nn.Sequential(
                nn.Conv2d(3, 19, 3, 2),
                nn.ReLU(inplace=True),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(19, 6),
            )
            .eval()
            .requires_grad_(False)
        )
    example = torch.zeros(1, *preprocess(Image.new("RGB", (8, 8))).shape)
    return Target("small", model, preprocess, "", None, "small", (), example)


def activations(target: Target, probe: Probe, layer: LayerInfo, pool: str = "avg") -> torch.Tensor:
    """Q without the cache, one image at a time."""
    return torch.stack([literal_pass(target, layer, probe.image(i), pool)[0] for i in range(probe.N)])


def literal_pass(target, layer, image, pool="avg"):
    """Pooled values [K] and maps [K, h, w] of one picture, or None."""
    with torch.no_grad(), hooks.record(target.model, [layer.name]) as acts:
        target.model(target.preprocess(image)[None])
    output = acts[layer.name]
    maps = None if layer.layout == "fc" else hooks.maps_of(output, layer)[0]
    return hooks.pool(output, layer.layout, pool, 1)[0], maps


def literal(
    target, layer, unit, probe, Q, images, crops, keep, field, heatmap="scale", pool="avg"
) -> list[tuple]:
    """The published recipe for one unit, one picture at a time: (image, box, activation), strongest first."""
    best = sorted(range(probe.N), key=lambda i: (-float(Q[i, unit]), i))[:images]
    found = []
    for i in best:
        full = probe.image(i).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR)
        value, maps = literal_pass(target, layer, full, pool)
        found.append((i, 0, None, float(value[unit])))
        for order, box in enumerate(attention_crops(maps[unit], SIZE, crops, heatmap, field=field)):
            part = full.crop(box).resize((SIZE, SIZE), Image.BILINEAR)
            found.append((i, order + 1, box, float(literal_pass(target, layer, part, pool)[0][unit])))
    found.sort(key=lambda one: (-one[3], one[0], one[1]))
    return [(i, box, value) for i, _, box, value in found[:keep]]


def same(found: list[Example], wanted: list) -> bool:
    wanted = [(one.image, one.box, one.activation) if isinstance(one, Example) else one for one in wanted]
    return [(e.image, e.box) for e in found] == [one[:2] for one in wanted] and np.allclose(
        [e.activation for e in found], [one[2] for one in wanted], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "heatmap, field, pool", [("scale", "seen", "avg"), ("wrap", "seen", "max"), ("scale", "whole", "max")]
)
def test_as_one_picture_at_a_time(probe, heatmap, field, pool):
    target = small_target()
    layer = layer_of(target, "0")
    target.model[0].bias[0] -= 50  # a convolution's negative values are no obstacle
    Q = activations(target, probe, layer, pool)
    assert Q[:, 0].max() < 0
    # 14 of 20 pixels are seen: (375 - 262.5) / 2 are left out at each side
    part = (56, 56, 319, 319) if field == "seen" else (0, 0, SIZE, SIZE)
    found = examples(
        target,
        layer,
        UNITS,
        probe,
        Q,
        images=4,
        crops=3,
        keep=9,
        heatmap=heatmap,
        field=field,
        pool=pool,
        batch_size=5,
    )
    assert list(found) == UNITS
    for unit in UNITS:
        assert same(found[unit], literal(target, layer, unit, probe, Q, 4, 3, 9, part, heatmap, pool))
    shown = [example for mine in found.values() for example in mine]
    assert {True, False} == {e.box is None for e in shown}
    assert max(sum(e.image == i for e in found[5]) for i in range(probe.N)) > 1


def test_nothing_depends_on_company_or_batches(probe, monkeypatch):
    target = small_target(Preprocess(32, 32))
    layer = layer_of(target, "0")
    Q = activations(target, probe, layer)
    image, decoded = Probe.image, []

    def counted(self: Probe, i: int) -> Image.Image:
        if isinstance(self.items[i], int):  # a scene to be drawn; crops are pixels
            decoded.append(self.ids[i])
        return image(self, i)

    monkeypatch.setattr(Probe, "image", counted)
    together = examples(target, layer, range(19), probe, Q, images=5)
    assert len(decoded) == len(set(decoded)) > 10, "each image is decoded once"
    for options in ({"batch_size": 1}, {"batch_size": 3, "workers": 0}, {"batch_size": 1000, "workers": 3}):
        some = examples(target, layer, [18, 3, 3], probe, Q, images=5, **options)
        assert list(some) == [18, 3] and all(same(some[unit], together[unit]) for unit in some)
    again = examples(target, layer, range(19), probe, Q, images=5)
    assert again == together, "to the last bit"


def test_keep_and_images(probe):
    target = small_target()
    layer = layer_of(target, "0")
    Q = activations(target, probe, layer)
    every = examples(target, layer, [5], probe, Q, images=6, keep=99)[5]
    top = Q[:, 5].topk(6).indices.tolist()
    assert {e.image for e in every} == set(top) and sum(e.box is None for e in every) == 6
    assert [e.activation for e in every] == sorted((e.activation for e in every), reverse=True)
    assert examples(target, layer, [5], probe, Q, images=6, keep=4)[5] == every[:4]
    fewer = examples(target, layer, [5], probe, Q, images=6, keep=99, crops=1)[5]
    assert (
        set(fewer) < set(every)
        and max(sum(e.image == i and e.box is not None for e in fewer) for i in top) == 1
    )


def test_ties_are_broken_by_image_the_whole_first(probe):
    target = small_target()
    layer = layer_of(target, "0")
    target.model[0].weight.zero_()
    target.model[0].bias.copy_(torch.arange(19.0) - 3)
    Q = activations(target, probe, layer)
    found = examples(target, layer, [2, 9], probe, Q, images=4, keep=3)
    assert found == {
        2: [Example(i, None, -1.0) for i in range(3)],
        9: [Example(i, None, 6.0) for i in range(3)],
    }
    Q[7, 2] = 1e-3
    assert [e.image for e in examples(target, layer, [2], probe, Q, images=4, keep=3)[2]] == [0, 1, 2]


def test_tied_crops_keep_their_order(probe, monkeypatch):
    target = small_target()
    layer = layer_of(target, "0")
    target.model[0].weight.zero_()
    boxes = [(9, 9, 90, 90), (0, 0, 70, 70), (1, 1, 60, 60)]
    monkeypatch.setattr(module, "crops_of", lambda maps, *rest, **more: [boxes] * len(maps))
    found = examples(target, layer, [4], probe, activations(target, probe, layer), images=2, keep=7)[4]
    assert [(e.image, e.box) for e in found] == [(i, box) for i in range(2) for box in (None, *boxes)][:7]


def test_no_crops_and_layers_without_positions(probe, monkeypatch):
    target = small_target()
    conv, head = layer_of(target, "0"), layer_of(target, "4")
    monkeypatch.setattr(module, "batches", lambda *all, **more: 1 / 0)  # nothing is decoded
    for layer, options in ((conv, {"crops": 0}), (head, {})):
        Q = activations(target, probe, layer)
        found = examples(target, layer, [5, 1], probe, Q, images=6, keep=4, **options)
        for unit in (5, 1):
            best = sorted(range(probe.N), key=lambda i: (-Q[i, unit], i))[:4]
            assert found[unit] == [Example(i, None, float(Q[i, unit])) for i in best]


@pytest.mark.parametrize(
    "name, layer, pool",
    [
        ("microworld:vit", "encoder.layers.encoder_layer_1", "cls"),
        ("microworld:vit", "encoder.layers.encoder_layer_1.mlp.1", "avg"),
        ("microworld:resnet", "layer3", "avg"),
    ],
)
def test_trained_targets(probe, name, layer, pool):
    target = load_target(name)
    layer = layer_of(target, layer)
    Q = unit_activations(target, probe, [layer], pool)[layer.name]
    found = examples(target, layer, UNITS, probe, Q, images=3, pool=pool)
    for unit in UNITS:
        wanted = literal(target, layer, unit, probe, Q, 3, 4, 10, (0, 0, SIZE, SIZE), pool=pool)
        assert same(found[unit], wanted)
    assert any(example.box for mine in found.values() for example in mine)


def test_crops_show_what_a_unit_sees():
    """Crops of the unit that tells a shape best (by truth) cover the shape more than such boxes put
    anywhere.
    """
    target, probe = load_target("microworld:resnet"), load_probe("microworld:200")
    layer = layer_of(target, "layer2")
    Q = unit_activations(target, probe, [layer])[layer.name]
    shapes = ATOMS["shape"]
    shown = torch.tensor([[s in concepts(probe.scene(i)) for s in shapes] for i in range(probe.N)])
    z = (Q - Q.mean(0)) / Q.std(0).clamp_min(1e-6)
    gap = torch.stack([z[has].mean(0) - z[~has].mean(0) for has in shown.T])  # [shapes, K]
    four = {int(gap[j].argmax()): j for j in gap.amax(1).topk(4).indices.tolist()}

    def covered(heatmap: str) -> np.ndarray:
        rng, rows = np.random.default_rng(0), []
        for unit, mine in examples(
            target, layer, list(four), probe, Q, images=10, keep=50, heatmap=heatmap
        ).items():
            for example in mine:
                if example.box is not None and shown[example.image, four[unit]]:
                    mask = masks(probe.scene(example.image), shapes[four[unit]])
                    mask = np.asarray(Image.fromarray(mask).resize((SIZE, SIZE)))
                    left, top, right, bottom = example.box
                    w, h = right - left, bottom - top
                    spots = zip(rng.integers(0, SIZE - w + 1, 50), rng.integers(0, SIZE - h + 1, 50))
                    rows.append(
                        (
                            mask[top:bottom, left:right].mean(),
                            np.mean([mask[y : y + h, x : x + w].mean() for x, y in spots]),
                        )
                    )
        return np.array(rows)  # [crops, (crop, anywhere)]

    crop, anywhere = covered("scale").T
    assert len(crop) > 30 and crop.mean() > 1.4 * anywhere.mean() and (crop > anywhere).mean() > 0.6
    crop, anywhere = covered("wrap").T
    assert crop.mean() < 1.1 * anywhere.mean(), "as released: the map wraps, and its crops are put anywhere"


def test_picture(probe):
    full = picture(probe, Example(4, None, 0.0))
    assert full.mode == "RGB" and full.size == (SIZE, SIZE)
    assert np.array_equal(np.asarray(full), np.asarray(probe.image(4).resize((SIZE, SIZE), Image.BILINEAR)))
    part = picture(probe, Example(4, (10, 20, 110, 60), 0.0))
    assert part.size == (SIZE, SIZE)
    assert part.tobytes() == full.crop((10, 20, 110, 60)).resize((SIZE, SIZE), Image.BILINEAR).tobytes()


def test_pictures_are_what_passed_the_target(probe):
    shown = []

    def preprocess(image):
        shown.append(image.tobytes())
        return Preprocess(20, 20)(image)

    target = small_target(preprocess)
    layer = layer_of(target, "0")
    Q = activations(target, probe, layer)
    shown.clear()
    found = examples(target, layer, UNITS, probe, Q, images=2, keep=99)
    assert {picture(probe, e).tobytes() for mine in found.values() for e in mine} <= set(shown)
    wide = replace(probe, items=[np.zeros((40, 90, 3), np.uint8)] * probe.N)
    assert picture(wide, Example(1, None, 0.0)).size == (SIZE, SIZE)


@pytest.mark.parametrize(
    "preprocess, box",
    [
        (Preprocess(256, 224), (23, 23, 352, 352)),
        (Preprocess(400, 224, "bicubic"), (83, 83, 292, 292)),
        (Preprocess(64, 64), (0, 0, 375, 375)),
        (Preprocess(9, 9), (0, 0, 375, 375)),
        (
            transforms.Compose(
                [
                    transforms.Resize((100, 50)),
                    transforms.Lambda(lambda image: image.crop((10, 20, 40, 90))),
                    transforms.Grayscale(),
                    transforms.ToTensor(),
                ]
            ),
            (75, 75, 300, 338),
        ),
    ],
)
def test_seen_of(preprocess, box):
    assert np.abs(np.array(seen_of(preprocess)) - box).max() <= 1


@pytest.mark.parametrize(
    "step",
    [
        transforms.RandomHorizontalFlip(1),
        transforms.RandomRotation((45, 45)),
        transforms.Lambda(lambda image: Image.new("RGB", image.size)),
    ],
)
def test_what_does_more_than_crop_is_refused_or_named(probe, step):
    preprocess = transforms.Compose([step, transforms.Resize((20, 20)), transforms.ToTensor()])
    target = small_target(preprocess)
    layer = layer_of(target, "0")
    Q = activations(target, probe, layer)
    with pytest.raises(ValueError, match="does not only resize and crop; pass field='whole'"):
        examples(target, layer, [1], probe, Q, images=2)
    assert examples(target, layer, [1], probe, Q, images=2, field="whole")[1]


def test_an_activation_that_is_not_finite_is_named(probe):
    target = small_target()
    layer = layer_of(target, "0")
    Q = activations(target, probe, layer)
    target.model[0].bias[3] = float("inf")
    assert examples(target, layer, [1], probe, Q, images=2)[1], "of other units"
    with pytest.raises(
        ValueError, match=r"activations must be finite; '0' of small .* image '.*' \(unit 3\)"
    ):
        examples(target, layer, [1, 3], probe, Q, images=2)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"units": [1, 19]}, ValueError, "unit numbers of '0' lie within 0 .. 18, got 19"),
        ({"units": [-1]}, ValueError, "got -1"),
        ({"units": []}, ValueError, "got none"),
        ({"images": 24}, ValueError, "images 24 exceeds the 23 images of 'microworld:23'; pass images<=23"),
        ({"images": 0}, ValueError, "images must be a positive whole number, got 0"),
        ({"keep": 0}, ValueError, "keep must be a positive whole number, got 0"),
        ({"crops": -1}, ValueError, "crops must be a positive whole number, got -1"),
        (
            {"Q": torch.zeros(22, 19)},
            ValueError,
            r"Q \[N, K\] of 23 images of 'microworld:23' and 19 .* got \[22, 19\]",
        ),
        ({"Q": torch.zeros(23, 18)}, ValueError, r"got \[23, 18\]; pass the probe and the layer"),
        ({"Q": torch.full((23, 19), float("nan"))}, ValueError, "activations must be finite to be ranked"),
        ({"heatmap": "scaled"}, UnknownName, "no heatmap 'scaled'; nearest: scale"),
        ({"field": "all"}, UnknownName, "no field 'all'"),
        ({"pool": "cls"}, ValueError, "'cls' pooling needs tokens"),
        ({"batch_size": 0}, ValueError, "batch_size is at least 1, got 0"),
    ],
)
def test_errors(probe, options, error, message):
    target = small_target()
    layer = layer_of(target, "0")
    given = {"units": [1], "Q": torch.zeros(23, 19)} | options
    with pytest.raises(error, match=message):
        examples(target, layer, given.pop("units"), probe, given.pop("Q"), **given)


def test_an_example_of_another_probe(probe):
    with pytest.raises(
        ValueError, match="image numbers lie within 0 .. 22, got 23; pass the probe of the examples"
    ):
        picture(probe, Example(23, None, 1.0))
