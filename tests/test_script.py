"""The way in for scripts: the ten lines on the microworld and on torchvision, own objects in place of names,
and the example of every public function.
"""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import neuronym
from neuronym import clip_dissect, load_clip, load_concepts, load_probe, load_target, measure, unit_cards
from neuronym.runs.folders import ROOT
from neuronym.similarity.labels import COLUMNS, MARKS

EXAMPLES = [
    (f"neuronym.{home}", name) for name, home in neuronym._HOMES.items() if name != "second_order"
] + [
    ("neuronym.second_order.naming", "second_order"),
    ("neuronym.common.units", "choose_units"),
    ("neuronym.common.units", "units_by_layer"),
]


def ten_lines(target, layers, clip, probe, words, units):
    """design.md's, as they stand there."""
    data = measure(target, layers, probe, clip, words)
    naming, test = data.split(0.4)
    labels = clip_dissect(naming)
    return data, naming, test, labels, unit_cards(labels, data, units=units)


def test_ten_lines_on_the_microworld(tmp_path):
    target = load_target("microworld:resnet")
    clip = load_clip("microworld")
    probe = load_probe("microworld:500", limit=90)
    words = load_concepts("microworld:atoms")
    data, naming, test, labels, figure = ten_lines(target, ["layer4"], clip, probe, words, [3, 17, 42])
    assert (
        data.Q["layer4"].shape == (90, 192)
        and data.I.shape == (90, data.T.shape[1])
        and len(data.T) == len(words)
    )
    assert (naming.N, test.N) == (54, 36) and not set(naming.probe.ids) & set(test.probe.ids)
    assert list(labels) == COLUMNS + MARKS and len(labels) == 192 * 5 and labels["rank"].max() == 5
    figure.savefig(tmp_path / "cards.png")
    assert Image.open(tmp_path / "cards.png").size[0] > 500


def test_ten_lines_on_torchvision_and_own_pictures():
    torch.manual_seed(0)
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)) for i in range(12)
    ]
    target = load_target("torchvision:resnet18@random:0")
    data, *_, labels, figure = ten_lines(
        target, "layer4", load_clip("microworld"), pictures, ["a red circle", "a star"], "2"
    )
    assert data.Q["layer4"].shape == (12, 512) and set(labels["label"]) <= {"a red circle", "a star"}
    assert len(figure.axes) == 1


def test_own_module_files_and_words(tmp_path):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    module.append(torch.nn.Linear(4, 2))

    def preprocess(image):
        pixels = np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    files = []
    for i in range(6):
        files.append(tmp_path / f"{i}.png")
        Image.new("RGB", (20, 20), (40 * i, 9, 200 - 30 * i)).save(files[-1])
    target = load_target(module, preprocess=preprocess, classes=["left", "right"], name="mine")
    probe = load_probe(files)
    assert (target.name, target.classes, probe.N) == ("mine", ["left", "right"], 6)
    assert probe.ids == [f"{i}.png" for i in range(6)] and load_probe(probe) is probe
    data = measure(target, "all", probe, "microworld", ["red", "blue"])
    assert data.classes == ["left", "right"] and set(data.sizes.values()) == {4, 2}
    wanted = torch.stack([module(preprocess(Image.open(file))[None])[0] for file in files])
    torch.testing.assert_close(data.Q["4"], wanted, rtol=1e-4, atol=1e-5)


def test_files_are_known_by_content(tmp_path):
    for folder, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9), colour).save(tmp_path / folder / "x.png")
    of = {folder: load_probe([tmp_path / folder / "x.png"]).fingerprint for folder in "abc"}
    assert of["a"] == of["b"] != of["c"]
    both = load_probe([str(tmp_path / "a" / "x.png"), tmp_path / "c" / "x.png"])
    assert both.ids == ["a/x.png", "c/x.png"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: load_target(3), "a name or a torch.nn.Module, got int"),
        (lambda: load_target("microworld:resnet", name="mine"), "go with a module of your own"),
        (lambda: load_concepts([1]), "a list of strings, got 1"),
        (lambda: load_concepts(["", " "]), "at least one string"),
        (lambda: load_probe([]), "got an empty list"),
        (lambda: load_probe([3]), "got a int in the list"),
        (lambda: load_probe(["/no/where.png"]), "1 of 1 image files are not there, the first /no/where.png"),
        (lambda: neuronym.mesure, "has no attribute 'mesure'; it has load_target"),
    ],
)
def test_what_is_none_is_said(call, message):
    with pytest.raises((ValueError, FileNotFoundError, AttributeError), match=message):
        call()


def test_importing_is_quick_and_brings_no_torch():
    heavy = ("torch", "numpy", "pandas", "matplotlib")
    code = f"import sys, neuronym; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and set(neuronym.__all__) <= set(dir(neuronym))


@pytest.mark.parametrize("first", ["import neuronym.second_order.effects, neuronym.measurements", "pass"])
def test_names_mean_functions_whatever_was_imported_first(first):
    names = "measure, second_order, clip_dissect"
    code = f"{first}\nfrom neuronym import {names}\nprint(*map(callable, ({names})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3


@pytest.mark.parametrize("home, name", EXAMPLES)
def test_every_public_function_has_an_example_that_runs(home, name):
    module = import_module(home)
    found = [
        t
        for t in doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, module)
        if t.examples
    ]
    assert found, f"{home}.{name} has no example"
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found[0])
    assert outcome.failed == 0
