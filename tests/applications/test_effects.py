"""Effects of edits: literal accuracies, planted networks, controls that are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronym.applications.effects import (
    classes_about,
    draw_alike,
    draw_others,
    effect_curve,
    Judged,
    resampled,
)
from tests.evaluation.test_pruning import colours, Planted, target


@pytest.mark.parametrize("presence", [True, False])
def test_accuracy_is_its_formula(presence):
    """Literally, image by image and class by class in float64, on a resample of the images."""
    dice = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, generator=dice)
    on = torch.tensor([True, False, False, True])
    truth = torch.rand(30, 4, generator=dice) < 0.4 if presence else torch.randint(4, (30,), generator=dice)
    judged = Judged(truth, on)
    kept = torch.cat([judged.kept(logits[i : i + 7], slice(i, i + 7)) for i in range(0, 30, 7)])
    counts = resampled(30, 3, seed=1)
    assert counts[0].tolist() == [1] * 30 and (counts.sum(1) == 30).all()
    for scores, count in zip(judged.scores(kept, counts), counts.tolist()):
        drawn = [n for n in range(30) for _ in range(count[n])]
        for g, group in enumerate(([0, 3], [1, 2])):
            if presence:
                values = []
                for c in group:
                    hits = {True: [], False: []}
                    for n in drawn:
                        hits[bool(truth[n, c])].append((logits[n, c].item() > 0) == bool(truth[n, c]))
                    values.append((np.mean(hits[True]) + np.mean(hits[False])) / 2)
            else:
                own = [n for n in drawn if truth[n].item() in group]
                values = [int(logits[n].argmax()) == truth[n].item() for n in own]
            assert scores[0, g] == pytest.approx(np.mean(values))
            assert scores[1, g] == pytest.approx(
                np.mean([logits[n, c].item() for n in drawn for c in group]), abs=1e-6
            )


def test_a_planted_unit_is_its_class():
    """Off, unit 0 takes class 0 with it and nothing else; down by half it costs nothing."""
    truth = torch.arange(60) % 3
    t, probe = target(Planted()), colours(truth)
    Q = {"see": torch.stack([torch.rand(9) + k for k in (1, 1.2, 0.9, 5, 0)], 1)}
    options = {"strengths": [0, 0.5, 2.0], "draws": 4, "resamples": 30, "seed": 3}
    table = effect_curve(t, {"see": [0]}, probe, truth, [0], Q, **options)
    at = table.set_index(["strength", "condition", "metric", "on"])
    assert at.loc[(0, "named", "accuracy", "matching"), "change"] == -1
    spared = at.loc[(0, "named", "accuracy", "others")]
    assert spared[["change", "change_low", "change_high"]].tolist() == [0, 0, 0]
    assert at.loc[(0.5, "named", "accuracy", "matching"), "change"] == 0
    said = at.xs(("named", "output", "matching"), level=(1, 2, 3))["change"]
    assert said[0] < said[0.5] < 0 < said[2]
    control = at.loc[(0, "random", "accuracy", "matching")]
    assert control["units"] == 1 and control["excess"] == -1 - control["change"] < 0
    assert control["excess_low"] <= control["excess"] <= control["excess_high"]
    assert control["p"] == pytest.approx(1 / 5) and np.isnan(spared["p"])
    again = effect_curve(t, {"see": [0]}, probe, truth, [0], Q, batch_size=7, **options)
    assert again.equals(table), "batches do not matter"
    hot = torch.nn.functional.one_hot(truth).bool()
    of_presence = effect_curve(t, {"see": [0]}, probe, hot, [0], Q, **options)
    assert (
        of_presence.query("condition == 'named' and strength == 0 and on == 'matching'")["score"].iloc[0]
        <= 0.5
    )


def test_controls_are_as_many_and_alike():
    dice = np.random.default_rng(0)
    level = {"a": torch.arange(20.0), "b": torch.rand(6)}
    units = {"a": [3, 10, 15], "b": [0, 1, 2, 3]}
    for _ in range(20):
        others = draw_others(units, {"a": 20, "b": 6}, dice)
        alike = draw_alike(units, level, dice)
        for found in (others, alike):
            assert {layer: len(set(some)) for layer, some in found.items()} == {"a": 3, "b": 4}
            assert not set(found["a"]) & {3, 10, 15}, "from the others, where there are enough"
        assert abs(level["a"][alike["a"]].mean() - level["a"][units["a"]].mean()) <= 4


def test_classes_are_told_by_words():
    names = ["red circle", "sea", "star"]
    assert classes_about(names, ["circle|star", "sea"]) == {"circle|star": [0, 2], "sea": [1]}
    assert classes_about(names, [], "ids:3", "sea") == {"ids:3": [1]}
    for arguments, message in (
        ((names, [], "ids:3", ""), "got units 'ids:3' without classes; set words=star, or units=ids:3,17"),
        ((names, []), "got neither"),
        ((None, ["sea"]), "a word tells classes by their names, and those of this network have none"),
        ((names, ["moon"]), "'moon' is in 0 of 3"),
        ((names, ["?*"]), "'?.*' is in 3 of 3"),
    ):
        with pytest.raises(ValueError, match=message.replace("?*", r"\?\*")):
            classes_about(*arguments)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"units": {"see": []}}, "an effect is of a unit or more at a strength or more, got 0 layers"),
        ({"strengths": []}, "got 1 layers and 0 strengths"),
        ({"strengths": [float("inf")]}, "strength must be a finite number"),
        ({"classes": [0, 1, 2]}, "both classes that match and others must be in the images"),
        ({"classes": [7]}, "both classes that match and others"),
        ({"truth": torch.zeros(60)}, "truth is a class number"),
        ({"draws": 0}, "draws must be a positive whole number"),
    ],
)
def test_bad_input_is_one_sentence(changes, message):
    truth = torch.arange(60) % 3
    given = {"units": {"see": [0]}, "probe": colours(truth), "truth": truth, "classes": [0]}
    given |= {"Q": {"see": torch.rand(4, 5)}} | changes
    with pytest.raises(ValueError, match=message):
        effect_curve(target(Planted()), **given)
