"""Segmentation in numbers: where pictures and masks come from, heat made into masks, metrics against loops by
hand.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score, jaccard_score
from torch.testing import assert_close

from neuronym.datasets.probe import batches
from neuronym.datasets.tasks import load_masks
from neuronym.microworld.render import coverage, render
from neuronym.microworld.world import scene
from neuronym.models.preprocess import fit_mask, Preprocess
from neuronym.second_order.segmentation import (
    BASELINES,
    bootstrap,
    heat_to_mask,
    METRICS,
    segment,
    segmentation_scores,
)

n, H, W = 5, 9, 7


def pixel_accuracy(masks, truth) -> float:
    return segmentation_scores(torch.zeros(truth.shape), masks, truth)["pixel_accuracy"]


def mean_iou(masks, truth) -> float:
    return segmentation_scores(torch.zeros(truth.shape), masks, truth)["mean_iou"]


def mean_average_precision(scores, truth, both_classes=False) -> float:
    return segmentation_scores(scores, torch.zeros_like(truth), truth, both_classes)["mean_average_precision"]


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed=0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores with ties, masks and truth [n, H, W]; objects differ much in size."""
    g = generator(seed)
    scores = torch.randint(0, 11, (n, H, W), generator=g).double() / 10
    truth = torch.rand(n, H, W, generator=g) < torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])[:, None, None]
    return scores, scores > 0.5, truth


# --- sets


def test_microworld_masks_are_where_the_objects_are():
    masks = load_masks("microworld:30")
    assert masks.probe.N == len(masks.names) == 30 and masks.probe.labels == masks.names
    for i, name in enumerate(masks.names):
        shown = masks.probe.scene(i)
        assert {thing.shape for thing in shown.things} == {name}
        assert np.array_equal(
            masks.mask(i), np.any([coverage(thing) > 0.5 for thing in shown.things], axis=0)
        )
        assert masks.mask(i).dtype == bool and masks.mask(i).shape == (64, 64) and masks.mask(i).any()
        assert np.array_equal(masks.probe.image(i), render(shown))
    assert {len(masks.probe.scene(i).things) for i in range(30)} == {1, 2, 3}


def test_microworld_scenes_are_the_first_of_one_shape_and_no_others_scenes():
    masks = load_masks("microworld:9")
    base = 7_000_000_000
    first = [s for s in range(base, base + 99) if len({thing.shape for thing in scene(s).things}) == 1][:9]
    assert masks.probe.items == first and masks.probe.ids == [str(s) for s in first]
    assert load_masks("microworld:4", seed=2).probe.items[0] >= base + 2 * 10_000_000
    assert load_masks("microworld", limit=3).probe.N == 3 and load_masks("microworld").probe.N == 500


def test_limit_spreads_over_the_set():
    whole, some = load_masks("microworld:9"), load_masks("microworld:9", limit=4)
    assert some.probe.items == [whole.probe.items[i] for i in (0, 2, 4, 6)]
    assert some.names == [whole.names[i] for i in (0, 2, 4, 6)]
    assert np.array_equal(some.mask(3), whole.mask(6)) and load_masks("microworld:9", limit=99).probe.N == 9


def test_fingerprints_tell_sets_apart():
    prints = [
        load_masks(*a).probe.fingerprint
        for a in (("microworld:9",), ("microworld:9", 7), ("microworld:8",), ("microworld:9", None, 1))
    ]
    assert len(set(prints)) == 4 and load_masks("microworld:9").probe.fingerprint == prints[0]
    assert load_masks("microworld:9", 8).probe.fingerprint == prints[2]  # the same pictures


PHOTOS = [
    np.random.default_rng(i).integers(0, 256, (5 + i, 8 - i, 3), dtype=np.uint8) for i in range(4)
]  # [h, w, 3]
OUTLINES = [np.random.default_rng(9 + i).integers(0, 2, (5 + i, 8 - i), dtype=np.uint8) for i in range(4)]
IDS = ["n02509815", "n01443537", "n02509815", "n03147509"]


@pytest.fixture(params=["h5py", "stand-in"])
def gtsegs(request, tmp_path, monkeypatch):
    """A small file laid out as gtsegs_ijcv.mat: written by h5py where it is installed, else told by a
    stand-in.
    """
    path = tmp_path / "gtsegs_ijcv.mat"
    stored = {f"img{i}": photo.T for i, photo in enumerate(PHOTOS)}
    stored |= {f"gt{i}": mask.T for i, mask in enumerate(OUTLINES)}
    stored |= {f"target{i}": np.array([[ord(c)] for c in id], dtype=np.uint16) for i, id in enumerate(IDS)}
    cells = {f"cell{i}": [f"gt{i}", f"gt{(i + 1) % 4}"] for i in range(4)}  # two people outlined each
    fields = {"img": "img", "gt": "cell", "target": "target"}
    if request.param == "h5py":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            refs = {
                name: file.create_dataset(f"#refs#/{name}", data=data).ref for name, data in stored.items()
            }
            for name, people in cells.items():
                cell = file.create_dataset(f"#refs#/{name}", (2, 1), dtype=h5py.ref_dtype)
                for row, person in enumerate(people):
                    cell[row, 0] = refs[person]
                refs[name] = cell.ref
            for field, start in fields.items():
                column = file.create_dataset(f"value/{field}", (4, 1), dtype=h5py.ref_dtype)
                for i in range(4):
                    column[i, 0] = refs[f"{start}{i}"]
        return path
    path.write_bytes(b"stand-in")
    stored |= {
        name: np.array([[person] for person in people], dtype=object) for name, people in cells.items()
    }
    stored["value"] = {
        field: np.array([[f"{start}{i}"] for i in range(4)], dtype=object) for field, start in fields.items()
    }
    module = ModuleType("h5py")
    module.File = stand_in({str(path): stored})
    monkeypatch.setitem(sys.modules, "h5py", module)
    return path


def stand_in(files: dict[str, dict]) -> type:
    """What h5py.File does for a reader: a dict for the block, an OSError for a file of another kind."""

    class File(dict):
        def __init__(self, path, mode):
            if mode != "r" or str(path) not in files:
                raise OSError("Unable to synchronously open file (file signature not found)")
            super().__init__(files[str(path)])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.clear()

    return File


def test_gtsegs_pictures_masks_and_ids(gtsegs):
    masks = load_masks(f"gtsegs:{gtsegs}")
    assert masks.names == masks.probe.labels == IDS and masks.probe.N == 4 and len(set(masks.probe.ids)) == 4
    for i, (photo, outline) in enumerate(zip(PHOTOS, OUTLINES)):
        assert np.array_equal(masks.probe.image(i), photo) and masks.probe.image(i).mode == "RGB"
        assert np.array_equal(masks.mask(i), outline == 1) and masks.mask(i).dtype == bool
    some = load_masks(f"gtsegs:{gtsegs}", limit=2)
    assert some.names == [IDS[0], IDS[2]] and np.array_equal(some.probe.image(1), PHOTOS[2])
    assert (
        np.array_equal(some.mask(1), OUTLINES[2] == 1) and some.probe.fingerprint != masks.probe.fingerprint
    )
    seen = [x for _, (x,) in batches(masks.probe, [Preprocess(6, 4)], batch_size=3, workers=2)]
    assert_close(torch.cat(seen), torch.stack([Preprocess(6, 4)(Image.fromarray(photo)) for photo in PHOTOS]))
    with open(gtsegs, "ab") as file:
        file.write(b"another version")
    assert load_masks(f"gtsegs:{gtsegs}").probe.fingerprint != masks.probe.fingerprint


def test_gtsegs_is_found_by_variable_or_in_downloads(gtsegs, monkeypatch):
    monkeypatch.setenv("NEURONYM_GTSEGS", str(gtsegs))
    assert load_masks("gtsegs").names == IDS
    monkeypatch.delenv("NEURONYM_GTSEGS")
    monkeypatch.setenv("NEURONYM_DATA", str(gtsegs.parent / "data"))
    with pytest.raises(
        FileNotFoundError,
        match=r"download http://calvin-vision\.net/.*/gtsegs_ijcv\.mat to .*"
        r"data/downloads/gtsegs_ijcv\.mat, or set NEURONYM_GTSEGS",
    ):
        load_masks("gtsegs")


def test_gtsegs_of_another_kind_is_refused(gtsegs, monkeypatch):
    other = gtsegs.with_name("other.mat")
    other.write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(
        ValueError, match="other.mat must be gtsegs_ijcv.mat, a MATLAB v7.3 file with value/img"
    ):
        load_masks(f"gtsegs:{other}")
    module = ModuleType("h5py")
    module.File = stand_in({str(other): {"value": {}}})
    monkeypatch.setitem(sys.modules, "h5py", module)
    with pytest.raises(ValueError, match="but is not: 'img'; download it again from http"):
        load_masks(f"gtsegs:{other}")
    column = np.empty((3, 1), dtype=object)
    module.File = stand_in({str(other): {"value": {"img": column, "gt": column}}})  # without ids of classes
    masks = load_masks(f"gtsegs:{other}")
    assert masks.names == [None] * 3 and masks.probe.labels is None


def test_gtsegs_says_which_package_it_needs(tmp_path, monkeypatch):
    (tmp_path / "x.mat").touch()

    def gone(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr("importlib.import_module", gone)
    with pytest.raises(
        ModuleNotFoundError, match="'gtsegs' needs the optional package h5py; pip install h5py"
    ):
        load_masks(f"gtsegs:{tmp_path / 'x.mat'}")


# --- heat to masks


def test_heat_is_resized_scaled_and_cut():
    """Pixel centres of four lie at -.25, .25, .75, 1.25 of two: the outer ones take the border."""
    scores, masks = heat_to_mask(torch.tensor([[[-3.0, 1]], [[1, -3]]]).double(), (1, 4))
    assert scores.tolist() == [[[0, 0.25, 0.75, 1]], [[1, 0.75, 0.25, 0]]]
    assert masks.tolist() == [[[False, False, True, True]], [[True, True, False, False]]]
    strict = heat_to_mask(torch.tensor([[[-3.0, 1]]]), (1, 4), 0.75)[1]
    assert strict.tolist() == [[[False, False, False, True]]]


def bilinear(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """One map [h, w] by loops: pixel centres, the border repeated."""
    h, w = heat.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y, x = max((i + 0.5) * h / height - 0.5, 0), max((j + 0.5) * w / width - 0.5, 0)
            a, b = int(y), int(x)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            out[i, j] = (heat[a, b] * (1 - (x - b)) + heat[a, d] * (x - b)) * (1 - (y - a)) + (
                heat[c, b] * (1 - (x - b)) + heat[c, d] * (x - b)
            ) * (y - a)
    return out


@pytest.mark.parametrize("size", [(11, 13), (4, 3), (5, 6), (2, 29)])
def test_heat_agrees_with_loops(size):
    heat = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator())
    scores, masks = heat_to_mask(heat, size, 0.4)
    for k in range(3):
        large = bilinear(heat[k].numpy(), *size)
        expected = torch.from_numpy((large - large.min()) / (large.max() - large.min()))
        assert_close(scores[k], expected, rtol=0, atol=1e-12)
        assert torch.equal(masks[k], expected > 0.4)


def test_heat_of_a_vit_is_that_of_the_patch_factor():
    heat = torch.randn(2, 7, 7, generator=generator())
    large = F.interpolate(heat[:, None], scale_factor=32, mode="bilinear")[:, 0]
    assert_close(
        heat_to_mask(heat, 224)[0], torch.stack([(x - x.min()) / (x.max() - x.min()) for x in large])
    )


def test_heat_counts_by_image_and_up_to_scale_and_shift():
    heat = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator())
    scores, masks = heat_to_mask(heat, 17)
    assert scores.amin((1, 2)).tolist() == [0] * 4 and scores.amax((1, 2)).tolist() == [1] * 4
    assert_close(heat_to_mask(3e-5 * heat - 7, 17)[0], scores, rtol=0, atol=1e-9)
    assert torch.equal(heat_to_mask(heat[2:3], 17)[0], scores[2:3])
    assert_close(heat_to_mask(-heat, 17)[0], 1 - scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0, 0.1, -7.3, 1e-30, 1e30])
def test_a_constant_map_gives_zeros(dtype, value):
    heat = torch.full((3, 7, 5), value, dtype=dtype)
    heat[1] = torch.arange(35).view(7, 5)
    scores, masks = heat_to_mask(heat, 224)
    assert not scores[0].any() and not scores[2].any() and not masks[[0, 2]].any()
    assert scores[1].max() == 1 and masks[1].any() and scores.dtype == dtype and masks.dtype == torch.bool


# --- true masks


@pytest.mark.parametrize("h, w", [(31, 47), (47, 31), (40, 40), (13, 90)])
@pytest.mark.parametrize("resize, crop", [(24, 24), (29, 24), (60, 51)])
def test_masks_move_as_pictures_do(h, w, resize, crop):
    mask = np.random.default_rng(0).random((h, w)) < 0.4
    picture = Image.fromarray(np.repeat(255 * mask[..., None], 3, axis=2).astype(np.uint8))
    expected = Preprocess(resize, crop, "nearest", (0, 0, 0), (1, 1, 1))(picture)[0] > 0.5
    fitted = fit_mask(mask, crop, resize)
    assert fitted.shape == (crop, crop) and torch.equal(fitted, expected)
    assert resize != crop or torch.equal(fit_mask(torch.from_numpy(mask), crop), expected)


def test_masks_are_cropped_in_the_middle_or_stretched():
    mask = np.array([[0, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 0]])
    assert fit_mask(mask, 2).int().tolist() == [[0, 0], [1, 1]]
    assert fit_mask(mask.T, 2).int().tolist() == [[0, 1], [0, 1]]
    assert fit_mask(mask, 4).int().tolist() == [[0, 0, 0, 0]] * 2 + [[1, 1, 1, 1]] * 2
    assert fit_mask(mask, (2, 3)).int().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert fit_mask(mask * 256, (4, 6)).int().tolist() == mask[[0, 0, 1, 1]].tolist()


# --- metrics

TRUTH = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 0]]]).bool()
MASKS = torch.tensor([[[1, 0, 0], [0, 0, 1]], [[1, 1, 1], [1, 1, 0]]]).bool()


def test_metrics_by_hand():
    """tp 1 + 4, fp 1 + 1, fn 1 + 0, tn 3 + 1; IoU of foreground and background 1/3, 3/5; 4/5, 1/2."""
    assert pixel_accuracy(MASKS, TRUTH) == pytest.approx(9 / 12)
    assert mean_iou(MASKS, TRUTH) == pytest.approx((5 / 8 + 4 / 7) / 2)
    result = segmentation_scores(MASKS.double(), MASKS, TRUTH)
    table = result["table"]
    assert table[["image", "tp", "fp", "fn", "tn"]].values.tolist() == [[0, 1, 1, 1, 3], [1, 4, 1, 0, 1]]
    assert table["pixel_accuracy"].tolist() == pytest.approx([4 / 6, 5 / 6])
    assert table["mean_iou"].tolist() == pytest.approx([(1 / 3 + 3 / 5) / 2, (4 / 5 + 1 / 2) / 2])
    assert result["mean_iou"] != pytest.approx(table["mean_iou"].mean())


def test_average_precision_by_hand():
    """Ranked by score: hit, miss, hit, miss -> 1/2 (1/1) + 1/2 (2/3); equal scores share one place."""
    truth = torch.tensor([[[True, False, True, False]]])
    assert mean_average_precision(torch.tensor([[[0.9, 0.8, 0.7, 0.6]]]), truth) == pytest.approx(5 / 6)
    assert mean_average_precision(torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]), truth) == pytest.approx(1 / 2)
    twice = mean_average_precision(torch.tensor([[[0.9, 0.8, 0.7, 0.6]]]).double(), truth, both_classes=True)
    # hits and misses in one ranking: .9 + .8 - .7 + .6 - of the foreground, .4 + .3 - .2 + .1 - of the
    # background
    assert twice == pytest.approx((1 / 1 + 2 / 3 + 3 / 5 + 4 / 7) / 4)


def test_metrics_agree_with_loops_and_scikit_learn():
    scores, masks, truth = inputs()
    result = segmentation_scores(scores, masks, truth)
    right, inter, union = 0, [0, 0], [0, 0]
    for k in range(n):
        for i in range(H):
            for j in range(W):
                said, true = int(masks[k, i, j]), int(truth[k, i, j])
                right += said == true
                for c in (0, 1):
                    inter[c] += said == true == c
                    union[c] += said == c or true == c
    assert result["pixel_accuracy"] == pixel_accuracy(masks, truth) == pytest.approx(right / (n * H * W))
    classes = [inter[c] / union[c] for c in (0, 1)]
    assert result["mean_iou"] == mean_iou(masks, truth) == pytest.approx(sum(classes) / 2)
    assert mean_iou(masks, truth) == pytest.approx(
        jaccard_score(truth.flatten(), masks.flatten(), average="macro")
    )
    each = [average_precision_score(truth[k].flatten(), scores[k].flatten()) for k in range(n)]
    assert (
        result["mean_average_precision"]
        == mean_average_precision(scores, truth)
        == pytest.approx(np.mean(each))
    )
    assert result["table"]["average_precision"].tolist() == pytest.approx(each)
    both = [
        average_precision_score(
            np.concatenate([1 - t.flatten(), t.flatten()]), np.concatenate([1 - s.flatten(), s.flatten()])
        )
        for t, s in zip(truth.int().numpy(), scores.numpy())
    ]
    result = segmentation_scores(scores, masks, truth, both_classes=True)
    assert result["mean_average_precision"] == pytest.approx(np.mean(both)) != pytest.approx(np.mean(each))


def test_the_table_is_the_metrics_of_each_image():
    scores, masks, truth = inputs()
    table = segmentation_scores(scores, masks, truth)["table"]
    for k in range(n):
        part = slice(k, k + 1)
        assert table["pixel_accuracy"][k] == pixel_accuracy(masks[part], truth[part])
        assert table["mean_iou"][k] == mean_iou(masks[part], truth[part])
        assert table["average_precision"][k] == mean_average_precision(scores[part], truth[part])


@pytest.mark.filterwarnings("error")
def test_images_without_foreground_give_numbers():
    nothing = torch.zeros(2, 3, 5, dtype=torch.bool)
    some = nothing.clone()
    some[0, 1, 2] = True
    assert mean_iou(nothing, nothing) == pixel_accuracy(nothing, nothing) == 1  # no foreground anywhere
    assert mean_iou(some, nothing) == pytest.approx((29 / 30 + 0) / 2)
    assert mean_iou(nothing, some) == pytest.approx((29 / 30 + 0) / 2)
    assert mean_iou(~nothing, ~nothing) == 1 and mean_iou(~nothing, nothing) == 0
    scores = torch.rand(2, 3, 5, generator=generator())
    assert mean_average_precision(scores, nothing) == 0
    scores[0, 1, 2] = 2
    assert (
        mean_average_precision(scores, some) == 0.5
    )  # the first image perfect, the second without foreground
    assert mean_average_precision(1 - nothing.float(), nothing, both_classes=True) == pytest.approx(0.5)
    assert segmentation_scores(scores, nothing, some)["table"].notna().all().all()


def test_perfect_and_opposite_masks():
    _, masks, truth = inputs()
    best = segmentation_scores(truth.double(), truth, truth)
    assert [best[m] for m in METRICS] == [1, 1, 1]
    assert pixel_accuracy(~truth, truth) == 0 == mean_iou(~truth, truth)
    assert pixel_accuracy(~masks, ~truth) == pixel_accuracy(masks, truth)
    assert mean_iou(~masks, ~truth) == pytest.approx(mean_iou(masks, truth))


# --- bootstrap


def test_bootstrap_is_the_loop():
    scores, masks, truth = inputs()
    table = segmentation_scores(scores, masks, truth)["table"]
    draws = torch.randint(n, (40, n), generator=generator(3))
    again = [
        (
            pixel_accuracy(masks[d], truth[d]),
            mean_iou(masks[d], truth[d]),
            mean_average_precision(scores[d], truth[d]),
        )
        for d in draws
    ]
    found = bootstrap(table, 40, generator(3))
    assert tuple(found) == METRICS
    for name, values in zip(METRICS, zip(*again)):
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_bootstrap_holds_the_estimate_and_narrows_with_images():
    scores, masks, truth = inputs()
    result = segmentation_scores(scores, masks, truth)
    few, many = (bootstrap(pd.concat([result["table"]] * k), generator=generator()) for k in (1, 16))
    for name in METRICS:
        assert few[name][0] < result[name] < few[name][1]
        assert 3 < (few[name][1] - few[name][0]) / (many[name][1] - many[name][0]) < 5.3  # the root of 16
    alike = bootstrap(pd.concat([result["table"].iloc[2:3]] * 9), generator=generator())
    assert all(low == pytest.approx(high) for low, high in alike.values())
    assert alike["mean_iou"][0] == pytest.approx(result["table"]["mean_iou"][2])


# --- what no model gets


def test_baselines():
    truth = inputs()[2]
    scores, masks = BASELINES["all_foreground"](n, (H, W))
    share = truth.double().mean().item()
    assert pixel_accuracy(masks, truth) == pytest.approx(share) == mean_average_precision(scores, truth)
    scores, masks = BASELINES["all_background"](n, (H, W))
    assert pixel_accuracy(masks, truth) == pytest.approx(1 - share)
    assert mean_iou(masks, truth) == pytest.approx((1 - share) / 2)
    scores, masks = BASELINES["centre_prior"](n, (H, W))
    assert scores.shape == masks.shape == truth.shape and torch.equal(masks, scores > 0.5)
    assert_close(scores, scores.flip(1, 2)) and (scores[0] == scores[4]).all()
    assert scores[0, 4, 3] == 1 and scores[0, 0, 0] == 0
    below = math.exp(-0.5 * (1 / 7 / 0.25) ** 2)  # one of seven columns from the middle
    corner = math.exp(-0.5 * ((4 / 9 / 0.25) ** 2 + (3 / 7 / 0.25) ** 2))
    assert scores[0, 4, 2].item() == pytest.approx((below - corner) / (1 - corner), abs=1e-6)


def test_the_centre_prior_is_better_than_none_on_the_microworld():
    masks = load_masks("microworld:60")
    truth = torch.stack([fit_mask(masks.mask(i), 32) for i in range(60)])
    found = {name: segmentation_scores(*baseline(60, 32), truth) for name, baseline in BASELINES.items()}
    centre, everything = found["centre_prior"], found["all_foreground"]
    assert centre["mean_iou"] > found["all_background"]["mean_iou"] > everything["mean_iou"]
    assert centre["mean_average_precision"] > 2 * everything["mean_average_precision"]


# --- bad input

S, B = torch.rand(2, 4, 3), torch.rand(2, 4, 3) > 0.5
HOLE = S.clone()
HOLE[1, 2, 0] = math.nan


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: load_masks("micro:3"),
            KeyError,
            "no segmented set 'micro'; nearest: microworld; known: microworld, gtsegs",
        ),
        (
            lambda: load_masks("microworld:x"),
            ValueError,
            "microworld:n takes a number of images from 1 to 5000000, got 'x'",
        ),
        (
            lambda: load_masks("microworld:0"),
            ValueError,
            "microworld:n takes a number of images from 1 to 5000000, got '0'",
        ),
        (
            lambda: load_masks("microworld", limit=0),
            ValueError,
            "limit must be a positive whole number, got 0",
        ),
        (
            lambda: load_masks("gtsegs:no/such.mat"),
            FileNotFoundError,
            "not found; download http.* to .*no/such.mat, or set",
        ),
        (
            lambda: heat_to_mask(S[0], 4),
            ValueError,
            r"expected heat as floats \[n, h, w\], .* got torch.float32 \[4, 3\]",
        ),
        (lambda: heat_to_mask(B, 4), ValueError, "expected heat as floats .* got torch.bool"),
        (lambda: heat_to_mask(S[:0], 4), ValueError, r"none empty, got torch.float32 \[0, 4, 3\]"),
        (lambda: heat_to_mask(HOLE, 4), ValueError, "heat must be finite, got nan"),
        (lambda: heat_to_mask(S, 0), ValueError, "size must be a positive whole number, got 0"),
        (lambda: heat_to_mask(S, 4.5), ValueError, "size must be a positive whole number, got 4.5"),
        (
            lambda: heat_to_mask(S, (4, 4, 4)),
            ValueError,
            r"size is one side of a square or \(H, W\), got \(4, 4, 4\)",
        ),
        (lambda: heat_to_mask(S, 4, 50), ValueError, "threshold must be a finite number from 0 to 1, got 50"),
        (lambda: fit_mask(B, 4), ValueError, r"expected a mask \[h, w\], not empty, got \[2, 4, 3\]"),
        (lambda: fit_mask(B[0], 4, 0), ValueError, "resize must be a positive whole number, got 0"),
        (
            lambda: fit_mask(B[0], (4, 4), 5),
            ValueError,
            r"one side to crop to, got resize 5 and size \(4, 4\)",
        ),
        (
            lambda: pixel_accuracy(B[:1], B),
            ValueError,
            r"equal shape, none empty, got \[1, 4, 3\] and \[2, 4, 3\]; heat_to",
        ),
        (
            lambda: mean_iou(B[:, :3], B),
            ValueError,
            r"expected masks and truth \[n, H, W\] .*, got \[2, 3, 3\] and \[2, 4, 3\]",
        ),
        (lambda: mean_iou(B[0], B[0]), ValueError, r"expected masks and truth \[n, H, W\]"),
        (
            lambda: mean_iou(S, B),
            ValueError,
            "expected masks as bool, got torch.float32; heat_to_mask gives them",
        ),
        (
            lambda: mean_iou(B, B.long()),
            ValueError,
            "expected truth as bool, got torch.int64; fit_mask gives it",
        ),
        (
            lambda: mean_average_precision(S[:, :, 1:], B),
            ValueError,
            r"expected scores and truth .* got \[2, 4, 2\]",
        ),
        (lambda: mean_average_precision(HOLE, B), ValueError, "scores must be finite, got nan"),
        (lambda: segmentation_scores(S, B[:1], B), ValueError, "expected masks and truth"),
        (
            lambda: bootstrap(pd.DataFrame()),
            ValueError,
            "a bootstrap needs images to draw from, got a table without rows",
        ),
        (
            lambda: bootstrap(segmentation_scores(S, B, B)["table"], 0),
            ValueError,
            "n must be a positive whole number, got 0",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_segment_scores_all_heats_and_baselines_against_one_truth():
    found = load_masks("microworld:6")
    truth = torch.stack([torch.from_numpy(found.mask(i)) for i in range(6)])
    results, true = segment({"exact": truth.float(), "opposite": 1 - truth.float()}, found.mask, 64)
    assert torch.equal(true, truth) and list(results) == [
        "exact",
        "opposite",
        *(n.replace("_", " ") for n in BASELINES),
    ]
    assert [results["exact"][m] for m in METRICS] == [1, 1, 1] and results["opposite"]["pixel_accuracy"] == 0
    scores, masks = BASELINES["centre_prior"](6, 64)
    assert results["centre prior"]["mean_iou"] == mean_iou(masks, truth)
    small, fitted = segment({"exact": truth.float()}, found.mask, 32)
    assert fitted.shape == (6, 32, 32) and small["exact"]["pixel_accuracy"] > 0.9
