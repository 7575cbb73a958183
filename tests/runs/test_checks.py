"""What cannot succeed is said before any work, and by whom."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neuronym.datasets.probe import load_probe
from neuronym.runs.checks import check_networks
from neuronym.runs.command import main, resolve
from neuronym.runs.folders import notebook_path, ROOT
from neuronym.runs.parameters import read_parameters
from neuronym.runs.run import start_run
from tests.helpers.notebooks import command


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of twelve pictures."""
    folder, probe = tmp_path_factory.mktemp("photos"), load_probe("microworld:12")
    for i in range(probe.N):
        probe.image(i).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("target", "torchvision:resnet5O", "no torchvision network 'resnet5O'; nearest: resnet50"),
        ("target", "torchvision:resnet50@/no/w.pth", "no file of weights at /no/w.pth"),
        ("target", "microworld:resnett", "no microworld target 'resnett'; nearest: resnet"),
        ("clip", "openai:ViT-B/23", "no openai-clip model 'ViT-B/23'; nearest: ViT-B/32"),
        ("clip", "hf:/no/clip", "no folder at /no/clip; hf: takes a folder or an id of Hugging Face"),
        ("clip", "conse:torchvision:resnet5O", "nearest: resnet50"),
        ("probe", "folder:/no/photos", "no folder at /no/photos"),
        ("probe", "microworld:many", "microworld:n takes a number of images"),
        ("concepts", "file:/no/words.txt", "/no/words.txt"),
        ("concepts", "english:lots", "english:<n> takes a number of words"),
        ("concepts", "imagenet:5", "imagenet takes nothing after it"),
        ("sentences", "st:/no/folder", "no folder at /no/folder"),
    ],
)
def test_names_and_paths_are_checked_by_the_command(capsys, tmp_path, key, value, said):
    assert main(["labelling", "-p", key, value]) == 2
    printed = capsys.readouterr()
    assert said in printed.err.splitlines()[-1] and not printed.out and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"prices": "a,b"}, "prices are two numbers, of a million tokens of prompt and of answer, got a,b"),
        ({"prices": "1"}, "prices are two numbers"),
        ({"most_cost": "1"}, "most_cost needs prices"),
        ({"transcript": "/no/answers.jsonl"}, "a transcript stands in a folder that is there, /no is not"),
        ({"transcript": "/no.jsonl", "answers": "replay"}, "a replay needs the answers of a run"),
        ({"prompts": "file:/no/prompts"}, "no file of prompts at /no/prompts"),
    ],
)
def test_what_models_are_asked_with_is_checked_by_the_command(capsys, given, said):
    notebook = "second_order" if "prompts" in given else "describe_and_dissect"
    assert main([notebook, *(word for key, value in given.items() for word in ("-p", key, value))]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("shares", "0.5,1", "parameter 'shares' must be shares above 0 and below 1, separated"),
        ("strengths", "0,off", "parameter 'strengths' must be finite numbers, separated by commas"),
        ("names_from", "no/run", "no labels at"),
        ("units", "trust:high", "trust is a least value or a range, as trust:0.8 or trust:0-0.3, got"),
        ("target", "microworld:marks", "no microworld target 'marks'; nearest: marked"),
    ],
)
def test_what_is_edited_is_checked_by_the_command(capsys, tmp_path, key, value, said):
    assert main(["editing", "-p", key, value]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "results").exists()


def test_names_and_paths_are_checked_without_torch(tmp_path):
    code = (
        "import sys\nfrom neuronym.runs.command import main\n"
        "known = ['trust', '-p', 'target', 'torchvision:vgg16', '-p', 'probe']\n"
        f"assert main([*known, 'folder:{tmp_path}']) == 2\n"
        "assert main(['trust', '-p', 'target', 'vgg16']) == 2\n"
        "assert main(['describe_and_dissect', '-p', 'prices', '1', '-p', 'transcript', '/no/x']) == 2\n"
        "print([m for m in ('torch', 'torchvision', 'papermill') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert f"no images in {tmp_path}" in done.stderr


def test_a_relative_path_of_the_folder_of_the_command_is_told(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "w.pth").touch()
    monkeypatch.chdir(tmp_path)
    for key, kind, name in [("probe", "folder:", "photos"), ("target", "torchvision:vgg16@./", "w.pth")]:
        with pytest.raises(
            FileNotFoundError, match=f"relative paths start at {ROOT}, .* is {tmp_path / name}"
        ):
            resolve("labelling", [(key, kind + name)])


def test_set_ups_that_cannot_succeed(photos):
    with pytest.raises(
        ValueError, match="clusters=4 take at least 20 images to name from, got 7 to name from"
    ):
        resolve("trust", [("probe", f"folder:{photos}")])
    resolve("trust", [("probe", f"folder:{photos}"), ("clusters", "1")])
    for notebook in ("evaluation", "describe_and_dissect"):
        with pytest.raises(ValueError, match="without a judge; name another image-text model"):
            resolve(notebook, [("probe", f"folder:{photos}")])
        resolve(notebook, [("probe", f"folder:{photos}+microworld:40"), ("judge", "openai:RN50")])
    with pytest.raises(ValueError, match="held_out is a share above 0 and below 1"):
        resolve("trust", [("held_out", "1")])


@pytest.mark.parametrize(
    "notebook, values, said",
    [
        ("labelling", "units -1", "units are all, a count"),
        ("labelling", "units ids:5-2 smoke True", "numbers and ranges between commas"),
        ("second_order", "units label:", "label: needs a word"),
        ("labelling", "probe microworld:1", "a share .* that leaves images to name from .* 0.4 of 1 images"),
        ("labelling", "probe microworld:2", "at least 2 images, got 1 to name from and 1 held out"),
        (
            "trust",
            "probe microworld:5 clusters 1",
            "at least 4 images, and 4 held out, got 3 to name from and 2 held out",
        ),
        (
            "evaluation",
            "probe microworld:8",
            "at least 10 images, and 4 held out, got 5 to name from and 3 held",
        ),
        ("labelling", "probe PHOTOS similarity rank_reorder", "rank_reorder orders .* 40, got 7 images"),
        ("second_order", "probe microworld:39 similarity rank_reorder", "takes 40, got 39"),
        ("evaluation", "probe microworld:60 similarity rank_reorder", "got 36 images to name from"),
        ("trust", "probe microworld:100 similarity rank_reorder", "got 30 images in each half"),
        (
            "describe_and_dissect",
            "probe microworld:12 ablation False",
            "images=10 of a unit .* got 7 to name",
        ),
        ("describe_and_dissect", "probe microworld:30", "pictures=10 of a candidate are retrieved"),
        (
            "describe_and_dissect",
            "probe microworld:60 ablation False generator retrieval pictures 30 selection sq_mean",
            "pictures=30 of a candidate are retrieved .* beside 10 of the unit's own, got 36 to name from",
        ),
        (
            "evaluation",
            "probe microworld:60 generator retrieval pictures 30",
            "pictures=30 of a label are retrieved from the images held out, .* 24 held out",
        ),
    ],
)
def test_what_so_many_images_are_too_few_for(photos, tmp_path, notebook, values, said):
    words = values.replace("PHOTOS", f"folder:{photos}").split()
    with pytest.raises(ValueError, match=said):
        resolve(notebook, list(zip(words[::2], words[1::2])))
    assert not (tmp_path / "results").exists()


def test_as_many_images_as_are_needed_will_do():
    for notebook, values in [
        ("labelling", "probe microworld:67 similarity rank_reorder"),
        ("trust", "probe microworld:133 similarity rank_reorder"),
        ("evaluation", "probe microworld:80 generator retrieval pictures 30"),
        ("describe_and_dissect", "probe microworld:34"),
        ("describe_and_dissect", "probe microworld:17 ablation False"),
        ("describe_and_dissect", "probe microworld:17 selection first ablation False"),
        ("describe_and_dissect", "probe microworld:60 ablation False generator retrieval pictures 30"),
    ]:
        words = values.split()
        resolve(notebook, list(zip(words[::2], words[1::2])))


def test_start_run_checks_what_the_command_would_have(monkeypatch, tmp_path):
    known = read_parameters(notebook_path("labelling"))
    namespace = {name: parameter.default for name, parameter in known.items()} | {
        "probe": "folder:/no/photos"
    }
    with pytest.raises(FileNotFoundError, match="no folder at /no/photos"):
        start_run("labelling", namespace)
    assert not (tmp_path / "results").exists()


def asked(**changes):
    known = read_parameters(notebook_path("labelling"))
    return known, {name: parameter.default for name, parameter in known.items()} | changes


def test_layers_and_functions_are_checked_by_loading(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURONYM_FROM", str(tmp_path))
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(4, 5))\n"
        "def fails(): raise ValueError('mine')\n"
    )
    for changes, error, said in [
        ({"layers": "layer5"}, KeyError, "no layer 'layer5'; nearest: layer"),
        ({"units": "layer9=label:dog"}, KeyError, "no layer 'layer9'; nearest: layer"),
        ({"target": "nets_of_mine:mak"}, KeyError, "no function in nets_of_mine 'mak'; nearest: make"),
        ({"target": "no_nets_of_mine:make"}, KeyError, f"importable from {tmp_path}"),
        ({"target": "nets_of_mine:make", "layers": "7"}, KeyError, "no layer '7'"),
        ({"device": "warp"}, ValueError, "device is auto, cpu"),
        ({"concepts": "english:50"}, ValueError, "the microworld CLIP knows 78 words"),
    ]:
        with pytest.raises(error, match=said):
            check_networks(*asked(**changes))
    for fine in [
        {},
        {"layers": "layer*,fc"},
        {"target": "nets_of_mine:make", "layers": "0,3"},
        {"target": "nets_of_mine:fails", "layers": "0"},  # the notebook shows where
    ]:
        check_networks(*asked(**fine))


def test_a_mistyped_layer_leaves_one_sentence_and_no_folder(tmp_path):
    done = command("labelling", "-p", "layers", "layer5")
    assert done.returncode == 2 and not list(tmp_path.glob("results/*"))
    assert (
        done.stderr.startswith("error: no layer 'layer5'; nearest: ") and len(done.stderr.splitlines()) == 1
    )
