"""Final-layer names by setting: rows, numbers, controls, and the printed values beside."""

from __future__ import annotations

import math

import pytest
import torch

from neuronym.activations import activations_and_embeddings
from neuronym.datasets.probe import load_probe
from neuronym.evaluation.naming_accuracy import (
    by_setting,
    image_sets,
    printed_accuracy,
    rank_of_truth,
    Setting,
    settings,
    with_published,
)
from neuronym.hooks import resolve_layers
from neuronym.microworld.render import render
from neuronym.microworld.world import CLASSES, scene
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score, SIMILARITIES


def test_image_sets_are_the_whole_its_parts_and_smaller_ones(tmp_path):
    for name, n in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        for i in range(n):
            render(scene(10 * n + i)).save(tmp_path / name / f"{i}.png")
    probe = load_probe(f"folder:{tmp_path}/a+microworld:4+folder:{tmp_path}/b")
    found = image_sets(probe, [3])
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "a+microworld+b": list(range(9)),
        "a": [0, 1, 2],
        "microworld": [3, 4, 5, 6],
        "b": [7, 8],
        "3 images": [0, 3, 6],
    }
    alone = load_probe("microworld:5")
    assert list(image_sets(alone)) == ["microworld"]
    with pytest.raises(ValueError, match="9"):
        image_sets(alone, [9])


def test_two_parts_of_one_name_stay_apart(tmp_path):
    for sub in ("x", "y"):
        (tmp_path / sub / "photos").mkdir(parents=True)
        render(scene(ord(sub))).save(tmp_path / sub / "photos" / "0.png")
    found = image_sets(load_probe(f"folder:{tmp_path}/x/photos+folder:{tmp_path}/y/photos"))
    assert {name: rows.tolist() for name, rows in found.items() if "+" not in name} == {
        "photos": [0],
        "photos-2": [1],
    }


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    target, clip = load_target("microworld:resnet"), load_clip("microworld")
    (fc,) = resolve_layers(target.model, "fc", target.example)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        Q, I = activations_and_embeddings(target, [fc], clip, load_probe("microworld:150"))
        return clip, Q["fc"].clone(), I.clone()


def test_settings_change_one_thing_at_a_time(ready):
    clip, Q, I = ready
    sets = {"all": torch.arange(150), "few": torch.arange(0, 150, 3)}
    words = {"some": CLASSES[:7], "fewer": CLASSES[:3]}
    found = settings(Q, sets, {"rn": (clip, I), "again": (clip, I)}, ["{}", "a {}"], CLASSES, words)
    assert [(s.probe, s.clip, s.template, s.concepts) for s in found] == [
        ("all", "rn", "{}", "some"),
        ("few", "rn", "{}", "some"),
        ("all", "again", "{}", "some"),
        ("all", "rn", "a {}", "some"),
        ("all", "rn", "{}", "fewer"),
    ]
    assert found[4].words.T.shape[0] == len(found[4].texts) == 3 and found[4].classes.T.shape[0] == 52
    assert found[1].Q.equal(Q[::3]) and found[1].classes.I.equal(I[::3]) and found[0].words.T.shape[0] == 7
    assert not torch.allclose(found[0].classes.T, found[3].classes.T)
    with pytest.raises(ValueError, match="51 names and Q"):
        settings(Q, sets, {"rn": (clip, I)}, ["{}"], CLASSES[1:], {"": CLASSES})


def test_by_setting_gives_accuracy_and_cosines_with_controls(ready):
    clip, Q, I = ready
    (one,) = settings(Q, {"all": torch.arange(150)}, {"rn": (clip, I)}, ["{}"], CLASSES, {"": CLASSES})
    table = by_setting([one], CLASSES, {"clip": clip.encode_text}).set_index("similarity")
    assert list(table.index) == list(SIMILARITIES) and (table["images"] == 150).all()
    ranks = rank_of_truth(score(one.classes, Q, "soft_wpmi"), CLASSES, CLASSES)
    for name, value in ranks.items():
        assert name == "units" or table.loc["soft_wpmi", name] == pytest.approx(value)
    # where the label is the true name the cosine is 1, so that it bounds accuracy
    assert table.loc["soft_wpmi", "cosine_clip"] >= table.loc["soft_wpmi", "top1"] > 0.5
    assert (table["shuffled_clip"] < table["cosine_clip"]).all() and (
        table["constant_clip"] < table["cosine_clip"]
    ).all()
    assert (table["set_top1"] == table["top1"]).all() and (table["units_in_set"] == 52).all()
    again = by_setting([one], CLASSES, {"clip": clip.encode_text}).set_index("similarity")
    assert again.equals(table)


def test_few_images_leave_rank_reorder_out():
    I, T, Q = (
        torch.nn.functional.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(n)), dim=1)
        for n in (30, 3, 31)
    )
    setting = Setting(
        "p",
        "c",
        "{}",
        "s",
        FactoredMatrix(I, T),
        FactoredMatrix(I, T),
        ["a", "b", "c"],
        torch.randn(30, 3, generator=torch.Generator().manual_seed(1)),
    )
    assert "rank_reorder" not in by_setting([setting], ["a", "b", "c"], {})["similarity"].tolist()


def test_published_values_stand_beside_where_there_are_some():
    import pandas as pd

    table = pd.DataFrame(
        {
            "probe": ["imagenet_val+broden", "broden", "microworld:5"],
            "similarity": ["soft_wpmi", "cos_similarity_cubed", "soft_wpmi"],
            "concepts": "english:20000",
        }
    )
    found = with_published(table, "torchvision:resnet50@IMAGENET1K_V1")
    assert (
        found["published_top1"][0] == 0.954
        and found["published_auroc"][0] == 0.9166
        and math.isnan(found["published_top1"][1])
    )
    assert math.isnan(found["published_top1"][2])
    assert with_published(table, "microworld:resnet").equals(table)
    places = table.assign(similarity="soft_wpmi", concepts="broden")
    assert with_published(places[:1], "places365:resnet18").columns.tolist() == places.columns.tolist()
    places = with_published(places, "places365:resnet18")
    assert places["published_set_top1"][1] == 0.5805 and "published_top1" not in places
    sets = ["broden", "file:lists/3k.txt", "file:lists/20k.txt", "imagenet", "mine"]
    some = pd.DataFrame({"probe": "imagenet_val", "similarity": "soft_wpmi", "concepts": sets})
    found = with_published(some, "torchvision:resnet50")
    assert found["published_cosine_mpnet"].tolist()[:4] == [0.4201, 0.4161, 0.5262, 0.9746]
    assert math.isnan(found["published_cosine_clip"][4]) and (found["published_top1"] == 0.955).all()
    printed = printed_accuracy()
    class_names = [row for (*_, words), row in printed.items() if words == "class names"]
    assert len(printed) == 37 and len(class_names) == 16 and all(0 < row["top1"] < 1 for row in class_names)


def test_names_in_a_set_are_found_however_their_words_are_joined(ready):
    clip, Q, I = ready
    words = {"some": ["red-circle", *CLASSES[:9]], "none": ["red red"]}
    names = ["red, circle", *CLASSES[1:]]
    made = settings(Q, {"all": torch.arange(150)}, {"rn": (clip, I)}, ["{}"], names, words)
    table = by_setting(made, names, {}, ["correlation"])
    assert table["units_in_set"].tolist() == [9, 0] and math.isnan(table["set_top1"][1])
    assert table["set_top1"][0] >= 7 / 9
