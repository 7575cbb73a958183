"""Pruning units by name: literal versions, planted networks, and a microworld target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neuronym.common.checks import UnknownName
from neuronym.common.types import Target
from neuronym.datasets.probe import Probe, probe_from_scenes
from neuronym.evaluation.pruning import comparable, effect_table, matching, outputs, pruned
from neuronym.hooks import record
from neuronym.microworld import quality, world
from neuronym.models.targets import load_target


class Tokens(nn.Module):
    """Tokens [b, 4, 5] of a picture, then one output a unit."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.embed(x.flatten(2).transpose(1, 2)).mean(1))


class Planted(nn.Module):
    """Units see red, green, blue, all of them, nothing; class c reads unit c; of nothing class 1 is said."""

    def __init__(self):
        super().__init__()
        self.see = nn.Conv2d(3, 5, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(5, 3)
        with torch.no_grad():
            self.see.weight.copy_(
                torch.cat([torch.eye(3), torch.ones(1, 3), torch.zeros(1, 3)])[..., None, None]
            )
            self.fc.weight.copy_(torch.eye(3, 5))
            self.fc.bias.copy_(torch.tensor([0, 0.01, 0]))

    def forward(self, x):
        return self.fc(self.relu(self.see(x)).mean((2, 3)))


def preprocess(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def target(model: nn.Module, size: int = 2) -> Target:
    return Target("tiny", model.eval(), preprocess, "tiny", None, "key", (), torch.zeros(1, 3, size, size))


def probe(pixels: np.ndarray) -> Probe:
    return Probe("p", [f"{i}" for i in range(len(pixels))], None, "f", [], list(pixels))


def colours(truth, side: int = 2) -> Probe:
    """Pictures of nearly one colour each: 0 red, 1 green, 2 blue."""
    dice, pixels = np.random.default_rng(4), np.zeros((len(truth), side, side, 3), np.uint8)
    for image, colour in zip(pixels, truth):
        image[..., colour] = dice.integers(150, 255, (side, side))
    return probe(pixels)


@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize(
    "model, layer, axis", [(Planted, "see", 1), (Planted, "fc", 1), (Tokens, "embed", 2)]
)
def test_pruned_units_have_one_value_and_the_others_their_own(model, layer, axis, how):
    torch.manual_seed(0)
    t, x = target(model(), 3 if model is Planted else 2), torch.rand(7, 3, 2, 2)
    K = {"see": 5, "embed": 5, "fc": 3}[layer]
    means = {layer: torch.arange(1.0, K + 1)}
    with record(t.model, [layer]) as acts:
        before = (t.model(x), acts[layer].movedim(axis, -1))
    with pruned(t, {layer: [0, 2]}, how, means), record(t.model, [layer]) as acts:
        t.model(x)
        inside = acts[layer].movedim(axis, -1)
    assert torch.equal(inside[..., [1, *range(3, K)]], before[1][..., [1, *range(3, K)]])
    for unit in (0, 2):
        assert (inside[..., unit] == (means[layer][unit] if how == "mean" else 0)).all()
    assert torch.equal(t.model(x), before[0])


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_strengths_leave_a_part_of_a_units_own_value(how):
    """Literally: c + strength (y - c) at every position, then the rest of the network by hand."""
    torch.manual_seed(3)
    t, images = target(Planted()), probe(np.random.default_rng(1).integers(0, 255, (5, 2, 2, 3), np.uint8))
    means = {"see": torch.tensor([0.2, 0.0, 0.1, 0.5, 0.0])}
    strengths = [0, 0.25, 1, 3]
    found = outputs(t, images, [{"see": [0, 3]}] * 4, how=how, means=means, strengths=strengths)
    x = torch.stack([preprocess(images.image(i)) for i in range(5)]).double()
    W, V, b = (
        w.detach().double() for w in (t.model.see.weight[:, :, 0, 0], t.model.fc.weight, t.model.fc.bias)
    )
    for strength, logits in zip(strengths, found):
        for n in range(5):
            y = torch.einsum("kc,chw->khw", W, x[n])
            for unit in (0, 3):
                c = means["see"][unit].item() if how == "mean" else 0.0
                y[unit] = c + strength * (y[unit] - c)
            torch.testing.assert_close(logits[n].double(), V @ y.clamp_min(0).mean((1, 2)) + b)
    with pytest.raises(ValueError, match="each condition has a strength, got 1 for 2 conditions"):
        outputs(t, images, [{}, {}], strengths=[0])
    with pytest.raises(ValueError, match="strength must be a finite number"):
        outputs(t, images, [{"see": [0]}], strengths=[float("nan")])


def test_one_pass_gives_what_single_ones_do():
    torch.manual_seed(1)
    t, images = target(Tokens()), probe(np.random.default_rng(0).integers(0, 255, (11, 2, 2, 3), np.uint8))
    conditions = [{}, {"embed": [1]}, {"embed": [0, 4], "head": [2]}]
    expected = []
    for units in conditions:
        with pruned(t, units), torch.no_grad():
            expected.append(torch.cat([t.model(preprocess(images.image(i))[None]) for i in range(11)]))
    for batch_size in (1, 4, 64):
        for one, other in zip(outputs(t, images, conditions, batch_size=batch_size), expected):
            torch.testing.assert_close(one, other)
    rows = [9, 0, 4]
    for one, other in zip(outputs(t, images, conditions, rows=rows, batch_size=2), expected):
        torch.testing.assert_close(one, other[rows])
    with pytest.raises(FileNotFoundError) as caught:
        outputs(t, replace(images, items=[Path("nowhere.png")] * 11), [{}], rows=[9, 0])
    assert caught.value.__notes__ == ["while preparing image 0, 9"]
    seen = []
    kept = outputs(
        t,
        images,
        [{}],
        lambda logits, which: seen.append(which) or logits[:, 1],
        batch_size=4,
        progress=lambda items, total, text: items,
    )
    torch.testing.assert_close(kept[0], expected[0][:, 1])
    assert seen == [slice(0, 4), slice(4, 8), slice(8, 11)]


def value(found: pd.DataFrame, condition: str, on: str, column: str = "loss", metric: str = "top-1") -> float:
    return found[(found["condition"] == condition) & (found["on"] == on) & (found["metric"] == metric)][
        column
    ].item()


def test_units_of_a_class_are_needed_by_it():
    truth = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2])
    t = target(Planted())
    found = effect_table(t, {"see": [0]}, colours(truth), truth, [0], draws=40, resamples=20, top=(1, 2))
    assert (
        list(found.columns) == "metric condition on draws units score loss low high p".split()
        and len(found) == 18
    )
    assert [value(found, "none", on, "score") for on in ("matching", "others", "difference")] == [1, 1, 0]
    assert [value(found, "named", on) for on in ("matching", "others", "difference")] == [1, 0, 1]
    assert value(found, "named", "matching", metric="top-2") == 0
    assert value(found, "named", "matching", "low") == value(found, "named", "difference", "high") == 1
    share = value(found, "random", "matching")  # of draws that hold unit 0, about 1 in 5
    assert 0 < share < 0.5 and value(found, "named", "matching", "p") == pytest.approx((1 + 40 * share) / 41)
    assert value(found, "random", "difference", "low") < 0  # unit 2 hurts the others
    nothing = effect_table(t, {"see": [4]}, colours(truth), truth, [0], draws=5, resamples=5, top=[1])
    assert value(nothing, "named", "matching") == 0 and value(nothing, "named", "difference", "p") > 0.3


def literal_rank(logits: list[float], own: int) -> int:
    return sum(v > logits[own] or v == logits[own] and c < own for c, v in enumerate(logits))


def literal_precision(scores: list[float], truth: list[bool]) -> float:
    """Sum over different scores, descending, of (recall - recall before) x precision."""
    total, before = 0.0, 0.0
    for cut in sorted(set(scores), reverse=True):
        said = [t for s, t in zip(scores, truth) if s >= cut]
        recall = sum(said) / sum(truth)
        total, before = total + (recall - before) * sum(said) / len(said), recall
    return total


def test_scores_are_the_literal_ones():
    torch.manual_seed(3)
    t, images = target(Tokens()), probe(np.random.default_rng(5).integers(0, 255, (13, 2, 2, 3), np.uint8))
    units, rows = {"embed": [1, 3]}, [12, *range(11)]
    logits = [x.tolist() for x in outputs(t, images, [{}, units], rows=rows)]
    truth = torch.tensor([3, 0, 1, 2, 3, 3, 1, 0, 0, 2, 1, 0])
    found = effect_table(
        t, units, images, truth, [0, 3], rows=rows, draws=3, resamples=4, top=(1, 3), batch_size=5
    )
    for k in (1, 3):
        for condition, some in zip(("none", "named"), logits):
            hits = {True: [], False: []}
            for row, own in zip(some, truth.tolist()):
                hits[own in (0, 3)].append(literal_rank(row, own) < k)
            mean = {on: sum(h) / len(h) for on, h in hits.items()}
            assert value(found, condition, "matching", "score", f"top-{k}") == pytest.approx(mean[True])
            assert value(found, condition, "others", "score", f"top-{k}") == pytest.approx(mean[False])
            assert value(found, condition, "difference", "score", f"top-{k}") == pytest.approx(
                mean[True] - mean[False]
            )
    shown = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    shown[:, 2] = False  # a concept that no image shows has no score
    assert shown[:, [0, 1, 3]].any(0).all()
    found = effect_table(t, units, images, shown, [1, 2], rows=rows, draws=3, resamples=4)
    for condition, some in zip(("none", "named"), logits):
        ap = {c: literal_precision([row[c] for row in some], shown[:, c].tolist()) for c in (0, 1, 3)}
        assert value(found, condition, "matching", "score", "AP") == pytest.approx(ap[1], rel=1e-5)
        assert value(found, condition, "others", "score", "AP") == pytest.approx(
            (ap[0] + ap[3]) / 2, rel=1e-5
        )
    unseen = effect_table(t, units, images, shown, [1], rows=rows, draws=3, resamples=4)
    assert value(unseen, "named", "others", "score", "AP") == pytest.approx((ap[0] + ap[3]) / 2, rel=1e-5)
    again = effect_table(
        t, {"embed": [3, 1, 1]}, images, shown, [1, 2], rows=rows, draws=3, resamples=4, batch_size=3
    )
    pd.testing.assert_frame_equal(found, again)


def test_microworld_scores_are_those_of_quality():
    t, scenes = load_target("microworld:resnet", suggest=False), world.held_out(60)
    images = probe_from_scenes("held out", [world.HELD_OUT_SEED + i for i in range(60)])
    truth = world.presence(scenes, world.CLASSES)
    mean, ap = quality.mean_ap(t.model, t.preprocess, scenes)
    red = world.CLASSES.index("red")
    found = effect_table(
        t, {"fc": [red]}, images, truth, matching(enumerate(t.classes), "red"), draws=2, resamples=3
    )
    assert value(found, "none", "matching", "score", "AP") == pytest.approx(ap["red"], abs=1e-5)
    others = (mean * len(ap) - ap["red"]) / (len(ap) - 1)
    assert value(found, "none", "others", "score", "AP") == pytest.approx(others, abs=1e-5)
    tied = truth[:, red].float().mean().item()
    assert value(found, "named", "matching", "score", "AP") == pytest.approx(tied)
    assert value(found, "named", "others", "loss", "AP") == 0


def test_comparable_needs_images_of_both():
    assert comparable(torch.tensor([0, 1, 1]), [1]) and not comparable(torch.tensor([1, 1]), [1])
    assert not comparable(torch.tensor([0, 2]), [1]) and not comparable(torch.tensor([0, 2]), [])
    shown = torch.tensor([[True, False, False], [True, True, False]])
    assert comparable(shown, [0]) and not comparable(shown, [2]) and not comparable(shown, [0, 1])


T2, TRUTH = target(Planted()), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: effect_table(T2, {}, colours(TRUTH), TRUTH, [0]), ValueError, "got none; choose a word"),
        (
            lambda: effect_table(T2, {"see": []}, colours(TRUTH), TRUTH, [0]),
            ValueError,
            "got none; choose a word",
        ),
        (lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH, []), ValueError, "got 0 and 3 images"),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH, [0, 1, 2]),
            ValueError,
            "got 3 and 0 images",
        ),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH[:2], [0]),
            ValueError,
            "each of 3 images",
        ),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH.float(), [0]),
            ValueError,
            "class number",
        ),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH + 2, [2]),
            ValueError,
            "the network gives 3",
        ),
        (lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH, [-1]), ValueError, "within 0"),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), torch.eye(3, 4).bool(), [0]),
            ValueError,
            "gives 3",
        ),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH, [0], draws=0),
            ValueError,
            "draws must be",
        ),
        (
            lambda: effect_table(T2, {"see": [0]}, colours(TRUTH), TRUTH, [0], top=[0]),
            ValueError,
            "top-k must be",
        ),
        (
            lambda: effect_table(T2, {"see": [9]}, colours(TRUTH), TRUTH, [0]),
            ValueError,
            r"within 0 \.\. 4, got 9",
        ),
        (lambda: outputs(T2, colours(TRUTH), [{"sea": [0]}]), UnknownName, "no layer 'sea'.*nearest: see"),
        (lambda: outputs(T2, colours(TRUTH), [{}], rows=[3]), ValueError, r"0 \.\. 2, got 3"),
        (lambda: outputs(T2, colours(TRUTH), [{}], rows=[]), ValueError, "got none"),
        (lambda: outputs(T2, colours(TRUTH), [{"see": [0]}], how="half"), ValueError, "zero, mean"),
        (lambda: outputs(T2, colours(TRUTH), [{"see": [0]}], how="mean"), ValueError, r"pass means=\{'see'"),
        (
            lambda: outputs(T2, colours(TRUTH), [{"see": [0]}], how="mean", means={"see": torch.zeros(4)}),
            ValueError,
            r"got \[4\]",
        ),
    ],
)
def test_errors_say_what_to_do(call, error, text):
    with pytest.raises(error, match=text):
        call()
