"""What is in an image: the split, the truth, folder names, and judges."""

from __future__ import annotations

import math

import pytest
import torch

from neuronym.activations import embed_concepts, image_embeddings
from neuronym.common import subsets
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe
from neuronym.evaluation import presence
from neuronym.measurements import measure
from neuronym.microworld.render import render
from neuronym.microworld.world import scene
from neuronym.models.clips import load_clip


def test_split_parts_the_images_and_spreads_those_held_out():
    naming, test = subsets.split_evenly(11, 0.4)
    assert sorted([*naming.tolist(), *test.tolist()]) == list(range(11)) and len(test) == 4
    assert torch.diff(test).max() <= 3 and subsets.split_evenly(11, 0.4)[1].equal(test)
    for folder in range(5):  # of five folders of 20, one after the other, each gives its share
        assert int(((subsets.split_evenly(100, 0.3)[1] // 20) == folder).sum()) == 6


@pytest.mark.parametrize("N, share", [(10, 0.0), (10, 1.0), (10, 0.01), (1, 0.5), (10, -1)])
def test_split_refuses_an_empty_part(N, share):
    with pytest.raises(ValueError, match=f"got {share} of {N} images"):
        subsets.split_evenly(N, share)


@pytest.fixture
def folders(tmp_path):
    for i in range(13):
        folder = tmp_path / ("sea_horse", "Ant", "rare")[0 if i < 6 else 1 if i < 12 else 2]
        folder.mkdir(exist_ok=True)
        render(scene(i)).save(folder / f"{i:02}.png")
    return load_probe(f"folder:{tmp_path}")


def test_class_truth_reads_folder_names_and_leaves_small_folders_out(folders):
    names, truth, rows = presence.class_truth(folders)
    assert sorted(names) == ["ant", "sea horse"] and truth.shape == (12, 2) and len(rows) == 12
    for n, i in enumerate(rows.tolist()):
        said = [name for c, name in enumerate(names) if truth[n, c]]
        assert said == [{"sea_horse": "sea horse", "Ant": "ant"}[folders.labels[i]]]
    assert presence.class_truth(load_probe("microworld:4"))[0] == []


def test_fit_judge_finds_the_slope_and_offset_that_made_the_truth():
    dice = torch.Generator().manual_seed(0)
    cosines = torch.rand(4000, 3, generator=dice, dtype=torch.float64)
    truth = torch.rand(4000, 3, generator=dice, dtype=torch.float64) < torch.sigmoid(9 * cosines - 5)
    a, b = presence.fit_judge(cosines, truth)
    assert a == pytest.approx(9, abs=0.5) and b == pytest.approx(-5, abs=0.3)


@pytest.mark.parametrize(
    "truth, message",
    [
        (torch.zeros(5, 2, dtype=torch.bool), "0 true"),
        (torch.ones(5, 2, dtype=torch.bool), "10 true"),
        (torch.ones(4, 2, dtype=torch.bool), "of one shape"),
    ],
)
def test_fit_judge_refuses(truth, message):
    with pytest.raises(ValueError, match=message):
        presence.fit_judge(torch.rand(5, 2), truth)
    with pytest.raises(ValueError, match="rise with truth"):
        presence.fit_judge(
            torch.tensor([[0.9], [0.1], [0.8], [0.2]]), torch.tensor([[False], [True], [False], [True]])
        )


def test_judged_is_the_sigmoid_in_any_memory():
    I, T = (
        torch.nn.functional.normalize(
            torch.randn(n, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64), dim=1
        )
        for n in (9, 5)
    )
    whole = presence.judged_presence(I, T, (7.0, -2.0))
    for n in range(9):
        for m in range(5):
            assert float(whole[n, m]) == pytest.approx(
                1 / (1 + math.exp(2 - 7 * sum(float(x * y) for x, y in zip(I[n], T[m])))), abs=1e-12
            )
    assert torch.allclose(presence.judged_presence(I, T, (7.0, -2.0), memory=100), whole, atol=1e-14)


def test_calibrated_uses_what_is_known(folders):
    clip, probe = load_clip("microworld"), load_probe("microworld:150")
    words, I = (
        load_concepts("microworld:atoms"),
        image_embeddings(load_clip("microworld"), load_probe("microworld:150")),
    )
    truth = presence.true_presence(probe, words)
    a, b = presence.calibrated(clip, I, probe, words)
    assert (a, b) == presence.fit_judge(I @ embed_concepts(clip, words).T, truth)
    seen = presence.judged_presence(I, embed_concepts(clip, words), (a, b))
    assert float(seen[truth].mean()) > 0.5 > 0.1 > float(seen[~truth].mean())
    assert presence.calibrated_from(probe) == "fitted to the truth about the scenes"


def test_without_truth_the_probability_follows_from_the_embeddings(folders):
    """Photos in one folder: neither another model's constants nor a scale of the cosines' own."""
    clip, probe = load_clip("microworld"), load_probe(f"folder:{folders.items[0].parent}")
    words = load_concepts("microworld:atoms")
    I, T = image_embeddings(clip, probe), embed_concepts(clip, words)
    a, b = presence.calibrated(clip, I, probe, words)
    assert (a, b) == presence.unfitted(I, T)
    assert a == pytest.approx(2 / float((I @ T.T).std(1, correction=0).mean()), rel=1e-5)
    assert float(presence.judged_presence(I, T, (a, b)).sum(1).mean()) == pytest.approx(1, rel=1e-5)
    few = presence.judged_presence(I, T, presence.unfitted(I, T, 0.5))
    assert float(few.sum(1).mean()) == pytest.approx(0.5, rel=1e-5)
    assert presence.calibrated_from(probe).startswith("not fitted, as nothing is known of the images")


def test_the_unfitted_probability_names_nearly_as_well_as_the_fitted():
    data = measure("microworld:resnet", "layer4", "microworld:1000", "microworld", "microworld:atoms")
    truth, found = presence.true_presence(data.probe, data.concepts), {}
    for name, fit in (
        ("fitted", presence.calibrated(data.clip, data.I, data.probe, data.concepts)),
        ("unfitted", presence.unfitted(data.I, data.T)),
    ):
        seen = presence.judged_presence(data.I, data.T, fit)
        labels = presence.presence_oracle(data.Q["layer4"], seen).argmax(1)
        oracle = presence.presence_oracle(data.Q["layer4"], truth)
        found[name] = float(oracle.gather(1, labels[:, None]).mean())
    assert found["unfitted"] > 0.95 * found["fitted"]


@pytest.mark.parametrize(
    "T, shown, message",
    [
        (torch.ones(1, 4) / 2, 1, "cosines that are all alike, got 1 concepts"),
        (torch.ones(3, 4) / 2, 1, "give two different concepts or more"),
        (torch.eye(4), 0, "more than none and fewer than all of 4 concepts, got 0"),
        (torch.eye(4), 4, "fewer than all of 4 concepts, got 4"),
    ],
)
def test_what_no_probability_follows_from(T, shown, message):
    I = torch.nn.functional.normalize(torch.rand(5, 4), dim=1)
    with pytest.raises(ValueError, match=message):
        presence.unfitted(I, T, shown)


def test_photos_need_a_judge_and_scenes_do_not(folders):
    presence.require_judge(load_probe("microworld:5"), "")
    with pytest.raises(ValueError, match="without a judge; name another"):
        presence.require_judge(folders, "")
    presence.require_judge(folders, "conse:efficientnet_lite1")
