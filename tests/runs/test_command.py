"""The command line: what it refuses, and what it lists."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from neuronym.runs.command import COMMANDS, main, resolve
from neuronym.runs.folders import ROOT
from neuronym.runs.parameters import from_text, read_parameters


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tooy"], "no notebook 'tooy'; nearest: toy"),
        (["toy", "-p", "topk", "5"], "no parameter of toy 'topk'; nearest: top_k"),
        (["toy", "-p", "top_k", "five"], "'top_k' must be int, got 'five' (default 5; labels per unit)"),
        (["toy", "-p", "nothing_like_it", "5"], "no parameter of toy 'nothing_like_it'; neuronym toy --list"),
        (["layers", "a", "b"], "neuronym layers is written neuronym layers TARGET, got layers a b"),
        (["layers", "microworld:resnett"], "no microworld target 'resnett'; nearest: resnet"),
        (["toy", "-p", "method", "cosine"], "one of wpmi, soft_wpmi"),
        (["all", "-p", "topk", "5"], "no parameter of toy 'topk'"),
    ],
)
def test_wrong_commands_list_what_is_right(toy, tmp_path, capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1 and not (tmp_path / "results").exists()


def test_wrong_commands_fail_before_anything_heavy_is_imported(toy):
    code = (
        "import sys\nfrom neuronym.runs.command import main\n"
        "assert main(['toy', '-p', 'top_k', 'five']) == 2 and main(['--list']) == 0\n"
        "print([m for m in ('torch', 'numpy', 'papermill', 'nbformat') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_lists_of_notebooks_and_parameters(toy, capsys):
    assert main(["--list"]) == 0 and "Does it run?" in capsys.readouterr().out
    assert main(["toy", "--list"]) == 0 and "top_k: int = 5  labels per unit" in capsys.readouterr().out
    assert main([]) == 2


def test_kinds_of_the_labelling_notebook_are_those_of_the_registries():
    from neuronym.datasets.concepts import CONCEPTS
    from neuronym.datasets.probe_sets import PROBES
    from neuronym.models.clips import CLIPS
    from neuronym.models.sentences import SENTENCE_ENCODERS
    from neuronym.models.targets import TARGETS

    known = read_parameters(ROOT / "notebooks" / "labelling.ipynb")
    kinds = {name: set(known[name].kinds) for name in ("target", "clip", "probe", "concepts", "sentences")}
    assert kinds == {
        "target": {*TARGETS, "package.module:function"},
        "clip": set(CLIPS),
        "probe": set(PROBES),
        "concepts": set(CONCEPTS),
        "sentences": set(SENTENCE_ENCODERS),
    }


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("target", "resnet51", "no kind 'resnet51'"),
        ("target", "efficientnet_lite9", "nearest: efficientnet_lite"),
        ("clip", "opnai:RN50", "nearest: openai"),
        ("clip", "own.thing:make", "no kind 'own.thing'"),
        ("probe", "photos+microworld", "no kind 'photos'"),
        ("concepts", "englsh:9", "nearest: english"),
        ("sentences", "bert", "known: minilm"),
    ],
)
def test_unknown_kinds_are_refused_before_a_kernel_starts(key, value, said):
    with pytest.raises(ValueError, match=said):
        resolve("labelling", [(key, value)])


@pytest.mark.parametrize(
    "key, value",
    [
        ("target", "my.nets:build"),
        ("target", "torchvision:resnet50@random:0"),
        ("clip", "hf:org/name"),
        ("probe", "broden+folder:/a b+c"),
        ("probe", "cifar100_val"),
        ("sentences", ""),
        ("concepts", "file:a:b"),
    ],
)
def test_known_kinds_pass(key, value):
    assert from_text(read_parameters(ROOT / "notebooks" / "labelling.ipynb")[key], value) == value


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"neuronym {name}" in said for name in COMMANDS) and "neuronym NOTEBOOK --list" in said


def test_the_script_and_the_module_are_one_command():
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["neuronym"].partition(":")
    assert getattr(importlib.import_module(module), function) is main
    done = subprocess.run(
        [sys.executable, "-m", "neuronym", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "labelling" in done.stdout


@pytest.mark.parametrize(
    "key, value, written",
    [
        ("target", "resnet18", "torchvision:resnet18"),
        ("target", "vgg16@random:1", "torchvision:vgg16@random:1"),
        ("clip", "ViT-B/32", "openai:ViT-B/32"),
        ("clip", "openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("probe", "/photos", "folder:/photos"),
        ("probe", "~/photos", "folder:~/photos"),
    ],
)
def test_a_bare_name_is_answered_with_how_it_is_written(key, value, written):
    with pytest.raises(ValueError, match=re.escape(f"got '{value}'; write {written}")):
        resolve("labelling", [(key, value)])


def test_a_bare_path_in_the_folder_of_the_command_is_found(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "words.txt").write_text("cat\n")
    monkeypatch.chdir(tmp_path)
    for key, value, kind in [("probe", "photos", "folder"), ("concepts", "words.txt", "file")]:
        with pytest.raises(ValueError, match=f"write {kind}:{tmp_path / value}"):
            resolve("labelling", [(key, value)])
