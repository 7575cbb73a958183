"""The second-order notebook end to end: another CLIP from a checkpoint, photos in class folders, and what it
refuses.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from neuronym.microworld.render import render
from neuronym.microworld.world import scene
from neuronym.runs.folders import results_dir
from neuronym.similarity.labels import read_labels
from tests.helpers.command import run


@pytest.fixture
def checkpoint(tmp_path):
    """openai-clip's ViT with four blocks of random weights and the full vocabulary."""
    from clip.model import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(
            embed_dim=32,
            image_resolution=32,
            vision_layers=4,
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


@pytest.fixture
def photos(tmp_path):
    for i in range(24):
        folder = tmp_path / "photos" / ("dog", "cat")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        render(scene(i)).resize((90, 70)).save(folder / f"{i:02}.jpg")
    return tmp_path / "photos"


def test_photos_and_an_openai_checkpoint(checkpoint, photos, tmp_path):
    (tmp_path / "words.txt").write_text("dog\ncat\nred thing\ngrass\nsky\na photo\nstripes\n")
    given = {
        "clip": f"openai:ViT-B/32@{checkpoint}",
        "layer": 2,
        "readout_layers": "1,2",
        "probe": f"folder:{photos}",
        "task": f"folder:{photos}",
        "prompts": "a photo of a {}",
        "masks": "",
        "concepts": f"file:{tmp_path / 'words.txt'}",
        "pools": "",
        "words": 4,
        "top": 5,
        "pairs": "",
        "head_texts": 0,
        "indirect_images": 0,
        "batch_size": 5,
        "smoke": "True",
    }
    done = run("second_order", *(word for k, v in given.items() for word in ("-p", k, v)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (p.parent for p in results_dir().glob("second_order/*/metrics.json"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"] == 24 and 0 <= metrics["accuracy"] <= 1 and "indirect_explained" not in metrics
    table = read_labels(folder / "labels.parquet")
    layers = [f"transformer.resblocks.{layer}.mlp.gelu" for layer in (1, 2)]
    neurons = table[table["method"] != "textspan"]
    assert neurons.groupby(["layer", "method"])["unit"].nunique().to_dict() == {
        (layer, method): 256 for layer in layers for method in ("second_order", "soft_wpmi")
    }
    assert set(table["label"]) <= {"dog", "cat", "red thing", "grass", "sky", "a photo", "stripes"}
    neurons = pd.read_csv(folder / "neurons.csv")
    assert len(neurons) == 256 and neurons["explained"].between(0, 1.0001).all()
    assert not (folder / "segmentation.csv").exists() and pd.read_csv(folder / "adversarial.csv").empty


def test_a_resnet_shows_its_pairs_and_its_heads():
    """Parts that add up; masks of pairs of neuron and head; heads as rows of the labels table."""
    given = {"clip": "microworld:rn", "indirect_images": 4, "pairs": "", "pools": ""}
    given |= {"smoke": "True", "device": "cpu"}
    done = run("second_order", *(str(word) for k, v in given.items() for word in ("-p", k, v)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (p.parent for p in results_dir().glob("second_order/*/metrics.json"))
    written = pd.read_csv(folder / "written.csv").set_index("by")
    assert list(written.index) == ["neurons of layer 4", "no neuron", "all else"]
    assert written.loc["all else", "length"] < 1e-3 < 1 < written.loc["no neuron", "length"]
    table = read_labels(folder / "labels.parquet")
    units = table.groupby(["layer", "method"])["unit"].nunique().to_dict()
    assert units == {
        ("layer4", "second_order"): 512,
        ("layer4", "soft_wpmi"): 512,
        ("attnpool", "textspan"): 8,
    }
    methods = set(pd.read_csv(folder / "segmentation.csv")["method"])
    assert {"50 pairs", "50 pairs, activation alone", "all pairs", "50 neurons"} <= methods
    assert pd.read_csv(folder / "explained.csv")["layer"].tolist() == [4]


def test_a_siglip_of_hugging_face(photos, tmp_path):
    pytest.importorskip("transformers")
    from tests.models.test_clips import save_hf, WORDS

    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    given = {
        "clip": save_hf(tmp_path / "siglip", "siglip"),
        "layer": 1,
        "probe": f"folder:{photos}",
        "task": f"folder:{photos}",
        "prompts": "a {}",
        "masks": "microworld:24",
        "mask_classes": f"file:{tmp_path / 'words.txt'}",
        "concepts": f"file:{tmp_path / 'words.txt'}",
        "pools": "",
        "words": 2,
        "top": 5,
        "pairs": "",
        "head_texts": 2,
        "indirect_images": 3,
        "smoke": "True",
        "device": "cpu",
    }
    done = run("second_order", *(str(word) for k, v in given.items() for word in ("-p", k, v)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (p.parent for p in results_dir().glob("second_order/*/metrics.json"))
    written = pd.read_csv(folder / "written.csv").set_index("by")
    assert written.loc["all else", "length"] < 1e-2 and len(written) == 4
    table = read_labels(folder / "labels.parquet")
    spanned = table[table["method"] == "textspan"]
    assert set(spanned["layer"]) == {"head.attention"} and spanned["unit"].nunique() == 3
    assert pd.read_csv(folder / "segmentation.csv")["method"].str.contains("neurons").any()


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"clip": "microworld:rn", "layer": "3"},
            "the lens of a ResNet reads its last layer, layer4, got layers '3' for clip 'microworld:rn'",
        ),
        (
            {"layer": "5"},
            "MLP layers 0 to 4 of clip 'microworld:vit': layer 5 is the last one, behind which no attention",
        ),
        (
            {"masks": "gtsegs:/nowhere/gtsegs_ijcv.mat"},
            "ImageNet-segmentation (gtsegs_ijcv.mat) not found; download http",
        ),
        (
            {"generator": "diffusers:some/where"},
            "'diffusers:some/where' needs the optional package diffusers; pip install",
        ),
        (
            {"probe": "microworld:60", "top": "80", "smoke": "False", "layers": "4", "task": "microworld:20"},
            "take the 80 images of largest effect, got 60 images; use more images or a smaller top",
        ),
        ({"concepts": "file:EMPTY"}, "is empty"),
    ],
)
def test_what_it_refuses_in_a_sentence(given, message, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    given = {"smoke": "True", "readout_layers": "4", **given}
    words = [str(v).replace("EMPTY", str(tmp_path / "empty.txt")) for pair in given.items() for v in pair]
    done = run("second_order", *(part for i in range(0, len(words), 2) for part in ("-p", *words[i : i + 2])))
    assert done.returncode != 0 and message in done.stdout + done.stderr, (done.stdout + done.stderr)[-1500:]
    assert not list(results_dir().glob("second_order/*/done"))
