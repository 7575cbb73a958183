"""The evaluation and trust notebooks on photos in folders, where a judge stands for the truth, and what they
refuse.
"""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from neuronym.common.subsets import split_evenly
from neuronym.evaluation.metrics import SOUND
from neuronym.microworld.render import render
from neuronym.microworld.world import scene
from neuronym.runs.folders import results_dir
from tests.helpers.command import run


@pytest.fixture
def photos(tmp_path):
    """Two folders of 60 pictures, named after the place they show; nothing in the files says what is in
    them.
    """
    made = dict.fromkeys(("snow", "night"), 0)
    for i in range(120):
        place = list(made)[i % 2]
        folder = tmp_path / "photos" / place
        folder.mkdir(parents=True, exist_ok=True)
        render(scene(700 + i, place=place)).save(folder / f"{i:03}.png")
    return tmp_path / "photos"


def call(notebook, **given):
    done = run(notebook, *(str(word) for k, v in given.items() for word in ("-p", k, v)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (p.parent for p in results_dir().glob(f"{notebook}/*/done"))
    return folder, json.loads((folder / "metrics.json").read_text()), done.stdout


def test_evaluation_of_photos_with_a_judge(photos):
    folder, metrics, said = call(
        "evaluation",
        target="microworld:resnet",
        layers="layer4,fc",
        probe=f"folder:{photos}",
        judge="microworld:vit",
        generator="retrieval",
        units=10,
        pictures=5,
        clips="",
        templates="a {}",
        sizes="50",
        pairs=4,
        smoke="True",
    )
    table = pd.read_csv(folder / "methods_by_unit.csv")
    assert set(table["method"]) >= {
        "soft_wpmi",
        "correlation",
        "oracle",
        "linear, clip",
        "formula, known",
        "shuffled",
        "constant",
    }
    assert not table["method"].str.contains("netdissect").any()  # photos have no masks
    counts = table.groupby(["layer", "method"]).size()
    assert counts.groupby("layer").nunique().eq(1).all() and table[list(SOUND)].notna().all(axis=None)
    means = table.groupby("method")["correlation"].mean()
    assert means["oracle"] > means["shuffled"] + 0.1 and means["linear, known"] > means["shuffled"] + 0.1
    assert 0 < metrics["top1_soft_wpmi"] <= 1 and metrics["images"] == 120 and "missing_kept" not in metrics
    drawn = pd.read_csv(folder / "cosy.csv").groupby("method")["auc"].mean()
    assert drawn["oracle"] > drawn["shuffled"] and "sanity.csv" in {p.name for p in folder.iterdir()}
    assert "otherwise than published" in said


def test_trust_of_photos_without_truth(photos):
    folder, metrics, said = call(
        "trust",
        target="microworld:resnet",
        layers="layer4,fc",
        probe=f"folder:{photos}",
        clips="",
        templates="a {}",
        noise="0",
        draws=30,
        samples=4,
        splits=2,
        smoke="True",
    )
    assert (
        "nothing is known of the images" in said
        and metrics["units"] == 244
        and not any(k.startswith("auroc") for k in metrics)
    )
    table = pd.read_csv(folder / "trust.csv")
    assert table["p"].between(1 / 51, 1).all() and "exact" not in table
    assert table["trust"].isna().equals(table["abstain"]) and table["trust"].dropna().between(0, 1).all()
    assert table["foreseen"].between(-1, 1).all() and "same_a {}" in table and "same_noise" not in table
    assert set(pd.read_csv(folder / "meanings.csv")["kind"]) == {"single", "two best", "clusters", "negative"}
    same_trust_in_labelling(table, photos)


def same_trust_in_labelling(table, photos):
    """`labelling` gives the same names and trust to the same units from the images that named here."""
    files = sorted(photos.glob("*/*.png"))
    for i in split_evenly(len(files), 0.4)[0].tolist():
        copy = photos.parent / "naming" / files[i].relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[i], copy)
    folder, _, _ = call(
        "labelling",
        target="microworld:resnet",
        layers="layer4,fc",
        probe=f"folder:{photos.parent / 'naming'}",
        compared="",
        words_each=1,
        cards_per_layer=0,
        smoke="True",
    )
    labels = pd.read_csv(folder / "labels.csv")
    both = table.merge(labels[labels["rank"] == 1], on=["layer", "unit"], suffixes=("", "_there"))
    assert len(both) == len(table) == 244 and (both["name"] == both["label_there"]).all()
    assert both["trust_there"].isna().equals(both["abstain_there"]) and not both["calibrated"].any()
    both = both.dropna(subset=["trust", "trust_there"])
    assert both["trust"].tolist() == pytest.approx(both["trust_there"].tolist(), abs=1e-4)
    assert both["trust"].between(0, 1).all() and both["trust"].max() > 0.9


@pytest.mark.parametrize(
    "notebook, given, message",
    [
        ("evaluation", {"held_out": "1.2"}, "held_out is a share above 0 and below 1"),
        ("evaluation", {"judge": "microwrld"}, "microwrld"),
        ("evaluation", {"similarity": "cosine"}, "cos_similarity"),
        ("evaluation", {"probe": "folder:PHOTOS"}, "is known in the microworld alone"),
        ("trust", {"correction": "bonferroni"}, "bh"),
        ("trust", {"clips": "microworld:vitt"}, "no microworld clip 'vitt'; nearest: vit"),
        ("trust", {"templates": "a thing"}, "a template holds {} once, where the concept goes"),
    ],
)
def test_what_they_refuse_in_a_sentence(notebook, given, message, photos):
    given = {"smoke": "True", **{k: v.replace("PHOTOS", str(photos)) for k, v in given.items()}}
    done = run(notebook, *(word for k, v in given.items() for word in ("-p", k, v)))
    assert done.returncode != 0 and message in done.stdout + done.stderr, (done.stdout + done.stderr)[-1500:]
    assert not list(results_dir().glob(f"{notebook}/*/done"))
