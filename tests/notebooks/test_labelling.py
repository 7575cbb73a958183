"""The labelling notebook end to end: plain papermill, another CLIP from a checkpoint file, a folder of photos
with a bad one.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuronym.dissect import DEFAULT
from neuronym.microworld.render import render
from neuronym.microworld.world import CLASSES, scene
from neuronym.runs.folders import results_dir, ROOT
from tests.helpers.command import parts, run


@pytest.fixture
def openai_checkpoint(tmp_path):
    """A file as OpenAI's loader wants it, of openai-clip's ViT architecture with random weights and its full
    vocabulary.
    """
    from clip.model import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(
            embed_dim=32,
            image_resolution=32,
            vision_layers=2,
            vision_width=64,
            vision_patch_size=8,
            context_length=77,
            vocab_size=49408,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=2,
        )
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def test_a_folder_of_photos_and_an_openai_checkpoint(tmp_path, openai_checkpoint):
    (tmp_path / "photos").mkdir()
    for i in range(13):
        render(scene(i)).resize((90, 70)).save(tmp_path / "photos" / f"{i:02}.jpg")
    (tmp_path / "photos" / "torn.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "words.txt").write_text("\ufeffdog\n\ncat \ndog\nred thing\n")
    given = [
        "-p",
        "probe",
        f"folder:{tmp_path / 'photos'}",
        "-p",
        "clip",
        f"openai:ViT-B/32@{openai_checkpoint}",
        "-p",
        "concepts",
        f"file:{tmp_path / 'words.txt'}",
        "-p",
        "layers",
        "layer4,fc",
        "-p",
        "smoke",
        "True",
    ]
    refused = run("labelling", *given)
    assert refused.returncode == 2 and "torn.png" in refused.stdout + refused.stderr
    folder, metrics, table = parts(
        run("labelling", *given, "-p", "on_error", "skip", "-p", "run_name", "photos")
    )
    assert metrics["images"] == 13 and metrics["concepts"] == 3 and metrics["skipped"] == 1
    assert "torn.png" in (folder / "skipped.csv").read_text()
    assert set(table["label"]) <= {"dog", "cat", "red thing"} and set(table["layer"]) == {"layer4", "fc"}
    assert table.groupby("layer")["unit"].nunique().to_dict() == {"layer4": 192, "fc": len(CLASSES)}
    for picture in (folder / "figures").glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 5  # something is drawn


def test_plain_papermill_and_the_same_numbers_from_the_cache(tmp_path):
    os.makedirs(tmp_path / "elsewhere")
    given = ["-p", "smoke", "True", "-p", "layers", "fc"]
    done = run(
        ROOT / "notebooks" / "labelling.ipynb",
        tmp_path / "out.ipynb",
        *given,
        module="papermill",
        cwd=tmp_path / "elsewhere",
    )
    folder, metrics, table = parts(done)
    assert metrics["final_top1_soft_wpmi"] >= 0.95
    quality = pd.read_csv(folder / "precision_diversity.csv")
    assert quality["method"].tolist() == [DEFAULT, "soft_wpmi", "cos_similarity_cubed", "oracle"]
    assert (quality["layer"] == "fc").all() and quality["precision"].gt(0.7).all()
    seconds = pd.read_csv(folder / "seconds_by_layer.csv")
    assert seconds["layer"].tolist() == ["fc"] and seconds["seconds"].gt(0).all()
    in_words = pd.read_csv(folder / "several_words.csv")
    assert len(in_words) == len(CLASSES) and in_words["correlation_several"].between(-1, 1).all()
    assert set(table["method"]) == {DEFAULT}
    again, metrics_again, table_again = parts(run("labelling", *given))
    assert again == folder and table_again.equals(table)
    changing = {"seconds", "peak_mb"}
    assert {k: v for k, v in metrics_again.items() if k not in changing} == {
        k: v for k, v in metrics.items() if k not in changing
    }


def test_the_papers_settings_are_one_word_away():
    """The paper's function by layer, and options that other functions have not."""
    given = [
        "-p",
        "smoke",
        "True",
        "-p",
        "layers",
        "fc",
        "-p",
        "words_each",
        "1",
        "-p",
        "cards_per_layer",
        "0",
    ]
    folder, metrics, table = parts(run("labelling", *given, "-p", "preset", "paper"))
    assert set(table["method"]) == {"soft_wpmi"} and not (folder / "several_words.csv").exists()
    refused = run("labelling", *given, "-p", "a", "3.0")
    assert refused.returncode == 2 and "a is of wpmi and soft_wpmi, got" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    "key, value, pattern", [("smok", "True", "nearest: smoke"), ("batch_size", "0", "must be at least 1")]
)
def test_plain_papermill_refuses_bad_parameters_before_any_work(tmp_path, key, value, pattern):
    done = run(
        ROOT / "notebooks" / "labelling.ipynb", tmp_path / "out.ipynb", "-p", key, value, module="papermill"
    )
    assert done.returncode != 0 and pattern in done.stdout + done.stderr
    assert not list(results_dir().glob("labelling/*/labels.parquet"))
