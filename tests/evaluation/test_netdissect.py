"""Network Dissection: the formula in loops, planted units, what must not matter, the microworld, and a tiny
Broden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe, Probe, subset
from neuronym.datasets.tasks import broden_masks, microworld_masks
from neuronym.evaluation.netdissect import detectors, dissect, masks_of_probe, thresholds
from neuronym.hooks import LayerInfo, list_layers
from neuronym.microworld.render import masks as shown
from neuronym.microworld.world import CLASSES
from neuronym.microworld.world import concepts as true_concepts
from neuronym.models.preprocess import HALF, Preprocess
from neuronym.models.targets import load_target
from neuronym.similarity.labels import labels_table

N, K, H, W = 9, 5, 4, 6
CONCEPTS = ["spot", "stripe", "nowhere", "all"]


class Net(nn.Module):
    """Units 0-2 are the colours, unit 3 is dead, unit 4 is red less blue; an fc layer and tokens of the same
    values.
    """

    def __init__(self):
        super().__init__()
        self.maps, self.tokens, self.fc = nn.Conv2d(3, K, 1), nn.Identity(), nn.Linear(K, 7)
        weight = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, -1]])
        self.maps.weight.data, self.maps.bias.data = (
            weight[:, :, None, None],
            torch.tensor([0.0, 0, 0, 0.3, 0]),
        )
        self.fc.weight.data = torch.randn(7, K, generator=torch.Generator().manual_seed(1))

    def forward(self, x):
        x = self.maps(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.tokens(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        return self.fc(tokens[:, 0])


@dataclass
class FakeTarget:
    model: nn.Module
    preprocess: object
    name: str = "fake"
    channels_last: bool = True


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def probe_of(arrays: list[np.ndarray], ids: list[str] | None = None) -> Probe:
    return Probe("made up", ids or [f"{i}" for i in range(len(arrays))], None, "0", [], arrays)


def made_up(size=(H, W), seed: int = 0) -> tuple[Probe, list[dict[str, np.ndarray]]]:
    """Pictures, and masks twice as high and 2.5 times as wide; the last image has no mask."""
    dice = np.random.default_rng(seed)
    arrays = [dice.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(N)]
    large = 2 * size[0], size[1] * 5 // 2
    masks = [
        {
            name: dice.random(large) < share
            for name, share in (("spot", 0.2), ("stripe", 0.5))
            if dice.random() < 0.7
        }
        | {"all": np.ones(large, bool)}
        for _ in range(N - 1)
    ]
    return probe_of(arrays), [*masks, {}]


def net_and_layer(name: str) -> tuple[FakeTarget, LayerInfo]:
    target = FakeTarget(Net().eval().requires_grad_(False), pixels)
    return target, next(
        layer for layer in list_layers(target.model, torch.rand(1, 3, H, W)) if layer.name == name
    )


def resized(a: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Bilinear, pixel centres, nearest beyond the border."""
    h, w = len(a), len(a[0])

    def place(i, large, small):
        x = max((i + 0.5) * small / large - 0.5, 0)
        low = min(int(x), small - 1)
        return low, min(low + 1, small - 1), x - low

    out = []
    for i in range(height):
        t, b, v = place(i, height, h)
        out.append([])
        for j in range(width):
            left, right, u = place(j, width, w)
            above, below = (a[row][left] * (1 - u) + a[row][right] * u for row in (t, b))
            out[-1].append(above * (1 - v) + below * v)
    return out


def literal(maps, masks, share, kinds=None):
    """maps [N][K][h][w] as lists -> thresholds [K], IoU [K][M]; a concept counts where its category is
    labelled.
    """
    found, T = [], []
    for k in range(len(maps[0])):
        values = sorted((x for image in maps for row in image[k] for x in row), reverse=True)
        T.append(values[int(share * len(values) + 1e-9)])
        found.append([])
        for concept in CONCEPTS:
            both = either = 0
            for image, named in zip(maps, masks):
                if not named or (kinds and not any(kinds.get(c) == kinds[concept] for c in named)):
                    continue
                height, width = next(iter(named.values())).shape
                region = resized(image[k], height, width)
                mask = named.get(concept, np.zeros((height, width), bool))
                for i in range(height):
                    for j in range(width):
                        active, there = region[i][j] > T[k], bool(mask[i, j])
                        both, either = both + (active and there), either + (active or there)
            found[-1].append(both / either if either else 0.0)
    return T, found


# --- the formula


@pytest.mark.parametrize(
    "kinds", [None, {"spot": "a", "stripe": "b", "nowhere": "b", "all": "c", "other": "a"}]
)
@pytest.mark.parametrize("name", ["maps", "tokens", "fc"])
def test_dissection_is_the_literal_count(name, kinds):
    probe, masks = made_up()
    target, layer = net_and_layer(name)
    grid = (H, W) if name == "tokens" else None
    found = dissect(
        target, probe, layer, masks.__getitem__, CONCEPTS, 0.23, kinds=kinds, grid=grid, batch_size=4
    )
    X = torch.stack([pixels(probe.image(i)) for i in range(N)])
    maps = target.model(X)[:, :, None, None] if name == "fc" else target.model.maps(X)
    T, iou = literal(maps.tolist(), masks, 0.23, kinds)
    assert found.threshold.tolist() == pytest.approx(T, abs=1e-6)
    assert found.iou.tolist() == [pytest.approx(row, abs=1e-12) for row in iou]
    assert found.both.shape == found.active.shape == (layer.units, 4) and found.iou[:, 0].min() >= 0
    assert found.iou[0, 0] > 0 and not found.iou[:, 2].any()
    if kinds:
        assert not torch.equal(found.active[:, 0], found.active[:, 1])


def test_the_class_token_is_a_map_of_one_position():
    probe, masks = made_up()
    target, layer = net_and_layer("tokens")
    found = dissect(target, probe, layer, masks.__getitem__, CONCEPTS, 0.3, read="cls")
    X = torch.stack([pixels(probe.image(i)) for i in range(N)])
    cls = target.model.maps(X).mean((2, 3))[:, :, None, None]
    T, iou = literal(cls.tolist(), masks, 0.3)
    assert found.threshold.tolist() == pytest.approx(T, abs=1e-6)
    assert found.iou[:3].tolist() == [pytest.approx(row, abs=1e-12) for row in iou[:3]]


def test_known_iou_dead_unit_and_planted_unit():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:6] = True
    arrays = [np.zeros((8, 8, 3), np.uint8) for _ in range(4)]
    arrays[0][mask] = (255, 255, 0)  # red on the mask: planted
    arrays[0][4:6, 2:6] = (0, 255, 0)  # green on the mask and on as much beside it
    masks = [{"spot": mask, "all": ~mask}] + [{"all": np.ones((8, 8), bool)}] * 3
    target, layer = net_and_layer("maps")
    layer = replace(layer, shape=(K, 8, 8))
    found = dissect(target, probe_of(arrays), layer, masks.__getitem__, ["spot", "all"], 20 / 256)
    assert found.iou[:, 0].tolist() == [1, 0.5, 0, 0, 1] and found.shown.tolist() == [8, 248]
    assert found.iou[1, 1].item() == pytest.approx(8 / 256)  # 8 shared; 16 + 248 - 8 in either
    table = detectors(found, ["spot", "all"])
    assert table["label"].tolist()[:2] == ["spot", "spot"]
    assert table["detector"].tolist() == [True, True, False, False, True]
    assert (
        table["unit"].tolist() == list(range(K)) and not detectors(found, ["spot", "all"], 0)["detector"][3]
    )
    assert detectors(found, ["spot", "all"], 0.6)["detector"].tolist() == [True, False, False, False, True]
    joined = labels_table(found.iou, ["spot", "all"], model="fake", layer="maps", method="netdissect", k=1)
    apart = found.iou[:, 0] != found.iou[:, 1]  # a row of equal scores names nothing
    names = zip(table["label"], table["iou"], apart.tolist())
    wanted = [(label, iou) if told else ("", None) for label, iou, told in names]
    scores = [None if score != score else score for score in joined["score"]]
    assert list(zip(joined["label"], scores)) == wanted and not apart.all()


def test_thresholds_leave_the_share_above():
    maps = torch.randn(40, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    T = thresholds(lambda: maps.split(9), 1400)
    assert ((maps > T[:, None, None]).sum((0, 2, 3)) == 7).all()  # .005 of 1,400
    expected = np.sort(maps.transpose(0, 1).flatten(1).numpy(), axis=1)[:, -8]
    assert T.tolist() == expected.tolist()
    calls = []
    little = thresholds(lambda: calls.append(0) or maps.split(7), 1400, memory=24 * 8 * 2)
    assert torch.equal(little, T) and len(calls) == 2
    constant = thresholds(lambda: [torch.ones(40, 1, 5, 7)], 1400)
    assert constant.tolist() == [1]


# --- what must not matter


def test_batches_memory_and_parts_do_not_matter():
    probe, masks = made_up()
    target, layer = net_and_layer("maps")

    def of(some: Probe, masks=masks, **options):
        return dissect(target, some, layer, masks.__getitem__, CONCEPTS, 0.1, **options)

    whole = of(probe)
    for options in ({"batch_size": 2}, {"memory": 4000}, {"memory": 4000, "batch_size": 5}):
        again = of(probe, **options)
        assert torch.equal(again.iou, whole.iou) and torch.equal(again.threshold, whole.threshold)
    rows = [[0, 3, 8], [1, 2, 4, 5, 6, 7]]
    parts = [of(subset(probe, some), [masks[i] for i in some], threshold=whole.threshold) for some in rows]
    assert torch.equal(sum(part.both for part in parts), whole.both) and torch.equal(
        sum(part.shown for part in parts), whole.shown
    )
    backwards = list(range(N))[::-1]
    assert torch.equal(of(subset(probe, backwards), masks[::-1]).iou, whole.iou)


def test_masks_are_cropped_as_the_picture_is():
    probe, masks = made_up((12, 20))
    masks = [{c: m[::2, :40:2] for c, m in named.items()} for named in masks]  # [12, 20], as the pictures
    target, layer = net_and_layer("maps")
    target.preprocess = Preprocess(12, 8, "bilinear", HALF, HALF)  # the middle 8 x 8 of 12 x 20
    layer = replace(layer, shape=(K, 8, 8))
    found = dissect(target, probe, layer, masks.__getitem__, CONCEPTS, 0.1)
    cut = [a[2:10, 6:14] for a in probe.items]
    target.preprocess = Preprocess(8, 8, "bilinear", HALF, HALF)
    inner = [{c: m[2:10, 6:14] for c, m in named.items()} for named in masks]
    assert torch.equal(found.iou, dissect(target, probe_of(cut), layer, inner.__getitem__, CONCEPTS, 0.1).iou)


# --- microworld


def test_microworld_masks_are_those_of_the_renderer():
    probe = load_probe("microworld:8")
    of = microworld_masks(probe)
    for i in range(8):
        scene = probe.scene(i)
        assert set(of(i)) == true_concepts(scene)
        assert all(np.array_equal(mask, shown(scene, concept)) for concept, mask in of(i).items())


def test_fc_units_of_the_microworld_detect_their_own_names():
    target, probe = load_target("microworld:resnet", suggest=False), load_probe("microworld:120")
    layer = next(layer for layer in list_layers(target.model, target.example) if layer.name == "fc")
    table = detectors(dissect(target, probe, layer, microworld_masks(probe), CLASSES, 0.05), CLASSES)
    own = [a == b for a, b in zip(table["label"], target.classes)]
    assert np.mean(own) > 0.5  # 1 in 52 by chance


# --- Broden


@pytest.fixture
def broden(tmp_path):
    """Two images, 4 x 4 pixels with masks of 2 x 2, and a third that no list names."""
    images = tmp_path / "broden" / "images"
    (images / "a").mkdir(parents=True)
    for i, name in enumerate(("one.png", "two.png", "lost.png")):
        Image.fromarray(np.full((4, 4, 3), 60 * i, np.uint8)).save(images / "a" / name)

    def coded(name, codes):
        codes = np.array(codes)
        Image.fromarray(np.stack([codes % 256, codes // 256, 0 * codes], -1).astype(np.uint8)).save(
            images / "a" / name
        )

    coded("one_object.png", [[3, 3], [0, 700]])
    coded("one_object_2.png", [[0, 5], [3, 0]])
    coded("one_color.png", [[1, 1], [1, 2]])
    (images.parent / "label.csv").write_text(
        "number,name,category,frequency,coverage,syns\n1,red-c,color(2),2,1,\n2,blue-c,color(1),1,1,\n"
        "3,street,object(1),1,1,\n4,street-s,scene(1),1,1,\n5,traffic_light,object(1),1,1,\n"
        "700,sky,object(1),1,1,\n",
        encoding="utf-8",
    )
    (images.parent / "index.csv").write_text(
        "image,split,ih,iw,sh,sw,color,object,part,material,scene,texture\n"
        "a/one.png,train,4,4,2,2,a/one_color.png,a/one_object.png;a/one_object_2.png,,,,\n"
        "a/two.png,val,4,4,2,2,,,,,4,2;1\n",
        encoding="utf-8",
    )
    return images.parent


def test_netdissect_on_broden_by_name(broden, monkeypatch):
    """Masks lie beside the images; the set by its name takes the images alone, and then has their masks."""
    monkeypatch.setenv("NEURONYM_BRODEN", str(broden))
    probe = load_probe("broden")
    assert probe.ids == ["a/one.png", "a/two.png"] and len(list((broden / "images").rglob("*.png"))) == 6
    target, layer = net_and_layer("maps")
    layer, names = replace(layer, shape=(K, 4, 4)), load_concepts("broden")
    found = dissect(target, probe, layer, masks_of_probe("broden")(probe), names, 0.2)
    assert found.iou.shape == (K, len(names)) and found.iou.isfinite().all()


def broden_probe(broden, *names, prefix=""):
    return Probe(
        "broden",
        [prefix + name for name in names],
        None,
        "0",
        [],
        [broden / "images" / name for name in names],
    )


@pytest.mark.parametrize("prefix", ["", "broden/"])
def test_broden_masks(broden, monkeypatch, prefix):
    monkeypatch.setenv("NEURONYM_BRODEN", str(broden))
    of = broden_masks(broden_probe(broden, "a/two.png", "a/one.png", prefix=prefix))
    assert {c: m.tolist() for c, m in of(1).items()} == {
        "street": [[True, True], [True, False]],
        "sky": [[False, False], [False, True]],
        "traffic light": [[False, True], [False, False]],
        "red": [[True, True], [True, False]],
        "blue": [[False, False], [False, True]],
    }
    assert set(of(0)) == {"street", "red", "blue"} and all(mask.all() for mask in of(0).values())


def test_broden_goes_through_dissect(broden):
    probe = broden_probe(broden, "a/one.png", "a/two.png")
    target, layer = net_and_layer("maps")
    layer, names = replace(layer, shape=(K, 4, 4)), ["street", "red", "sky"]
    found = dissect(
        target,
        probe,
        layer,
        broden_masks(probe, broden),
        names,
        0.5,
        kinds={"street": "object", "red": "color", "sky": "object"},
    )
    assert found.shown.tolist() == [7, 7, 1]
    assert found.both[0].tolist() == [4, 4, 0]  # the second picture is brighter
    assert found.active[0].tolist() == [4, 4, 4]
    assert found.iou[0].tolist() == pytest.approx([4 / 7, 4 / 7, 0])


# --- bad input


def call(masks=None, layer="maps", probe=None, names=("spot", "all"), **options):
    target, info = net_and_layer(layer)
    made, theirs = made_up()
    share, masks = options.pop("share", 0.1), masks or theirs.__getitem__
    return lambda: dissect(target, probe or made, info, masks, names, share, **options)


def broken():
    target, layer = net_and_layer("maps")
    target.model.maps.bias.data[3] = math.inf
    probe, masks = made_up()
    return dissect(target, probe, layer, masks.__getitem__, CONCEPTS, 0.1, threshold=torch.zeros(K))


TWO = {"spot": np.ones((4, 4), bool), "all": np.ones((4, 5), bool)}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (call(share=1.5), ValueError, "share must be a finite number from 0 to 1, got 1.5"),
        (call(share=0.001), ValueError, "a share of 0.001 is 0 of 216 positions"),
        (
            call(layer="fc"),
            ValueError,
            "a share of 0.1 is 0 of 9 positions, .* pass more images, or another share",
        ),
        (call(names=()), ValueError, "concepts are names, at least one and none twice, got 0"),
        (call(names=("all", "all")), ValueError, "none twice, got 2 with 1 different"),
        (call(kinds={"spot": "a"}), KeyError, "1 concepts have no category, e.g. 'all'"),
        (
            call(threshold=torch.zeros(4)),
            ValueError,
            r"one finite value for each of 5 units of 'maps', got shape \[4\]",
        ),
        (
            call(masks=lambda i: TWO),
            ValueError,
            r"of one size, but those of image 0 are not: \[\(4, 4\), \(4, 5\)\]",
        ),
        (call(masks=lambda i: {"all": np.ones((4, 4))}), ValueError, "those of image 0 are not: 'all'"),
        (call(masks=lambda i: {}), ValueError, "none of the 9 images of 'made up' has a mask"),
        (call(read="token"), ValueError, "read is 'maps' or 'cls', got 'token'"),
        (call(read="cls"), ValueError, "'cls' pooling needs tokens, got layout 'conv'"),
        (call(layer="tokens", grid=(5, 6)), ValueError, "a grid of 5 x 6 needs as many tokens, got 25"),
        (call(batch_size=0), ValueError, "batch_size is at least 1, got 0"),
        (broken, ValueError, "activations must be finite, got inf at unit 3"),
        (
            lambda: thresholds(lambda: [torch.full((2, 3, 4, 4), math.nan)], 32, 0.1),
            ValueError,
            "got nan at unit 0",
        ),
        (
            lambda: thresholds(lambda: [torch.zeros(2, 3, 4, 4)], 40, 0.1),
            ValueError,
            "maps with 40 positions .*, got 32",
        ),
        (lambda: microworld_masks(made_up()[0])(0), ValueError, "only microworld images have a scene"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_broden_that_does_not_fit_is_refused_in_a_sentence(broden):
    with pytest.raises(ValueError, match=r"1 of 2 images are not listed in .*index.csv, e.g. 'a/lost.png'"):
        broden_masks(broden_probe(broden, "a/one.png", "a/lost.png"), broden)
    (broden / "label.csv").write_text("number,name,category\n1,red-c,color\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match="image 'a/one.png' has class number .*, which label.csv does not list"
    ):
        broden_masks(broden_probe(broden, "a/one.png"), broden)(0)
    (broden / "index.csv").unlink()
    with pytest.raises(FileNotFoundError, match="Broden's index.csv not found in .*; run ./dlbroden.sh"):
        broden_masks(broden_probe(broden, "a/one.png"), broden)
