"""What cannot succeed is refused by the notebooks before they pass an image through a network."""

from __future__ import annotations

import json

import pytest

from neuronym.runs.folders import notebook_path
from tests.helpers.features import written


def stopped(notebook, **given):
    """Run a notebook's cells: (cell that fails, what it says)."""
    left = {"__name__": "__main__"}
    for cell in json.loads(notebook_path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            try:
                exec(source, left)
            except (KeyError, ValueError) as error:
                return source.partition("\n")[0].rpartition("=")[2], str(error)
            left |= given if "parameters" in cell["metadata"].get("tags", ()) else {}


UNICORN = "label:unicorn names units by their label, and none of the 392 concepts has the word 'unicorn'"


@pytest.mark.parametrize(
    "notebook, given, said",
    [
        ("labelling", {"units": "layer9=label:dog"}, "no layer 'layer9'; nearest: layer4"),
        ("labelling", {"units": "layer4=label:night;fc=ids:999"}, "layer 'fc' has units 0 to 51, got 999"),
        ("labelling", {"units": "label:unicorn"}, UNICORN),
        ("describe_and_dissect", {"units": "fc=label:unicorn"}, UNICORN),
        ("describe_and_dissect", {"units": "layer4=label:night;fc=ids:999"}, "layer 'fc' has units 0 to 51"),
        ("describe_and_dissect", {"units": "conv1=label:night"}, "no layer 'conv1'; known: layer4, fc"),
        ("evaluation", {"units": "ids:999"}, "layer 'fc' has units 0 to 51, got 999"),
        ("evaluation", {"units": "label:night"}, "label:night needs labels to look in"),
        ("trust", {"units": "fc=label:night;layer4=ids:999"}, "layer 'layer4' has units 0 to 191, got 999"),
        ("second_order", {"units": "ids:999"}, "has units 0 to 511, got 999"),
        ("second_order", {"units": "label:unicorn"}, UNICORN),
        ("second_order", {"layer": 99}, "there is no layer 99"),
        ("second_order", {"layer": 5}, "layer 5 is the last one"),
        ("second_order", {"task": "microworld:1"}, "a task takes at least 2 images held out"),
        ("second_order", {"probe": "microworld:5"}, "take the 20 images of largest effect, got 5 images"),
    ],
)
def test_units_and_numbers_are_refused_in_the_cell_that_loads(notebook, given, said):
    cell, told = stopped(notebook, smoke=True, device="cpu", **given)
    assert cell == "Load" and said in told and "\n" not in told


@pytest.mark.parametrize(
    "notebook, given, said",
    [
        ("trust", {"layers": "layer4@sae:NARROW"}, "width 7, layer 'layer4' has 192 units; name the layer"),
        ("visualisation", {"layers": "layer4@sae:BATCH"}, "depend on its batch, in"),
        ("editing", {"layers": "layer3", "prune_layers": "layer4@sae:FILE"}, "be turned off, not removed"),
        (
            "labelling",
            {"layers": "layer4@sae:FILE", "units": "layer4@sae:a192=ids:13"},
            "units 0 to 12, got 13",
        ),
    ],
)
def test_features_that_cannot_be_had_are_refused_in_the_cell_that_loads(notebook, given, said, tmp_path):
    files = {"NARROW": written(tmp_path, 7), "FILE": written(tmp_path, 192)}
    files["BATCH"] = written(tmp_path, 192, name="b", activation="batchtopk")
    for name, file in files.items():
        given = given | {"layers": given["layers"].replace(name, file)}
        if "prune_layers" in given:
            given["prune_layers"] = given["prune_layers"].replace(name, file)
    cell, told = stopped(notebook, smoke=True, device="cpu", **given)
    assert cell == "Load" and said in told and "\n" not in told


def test_rank_reorder_is_refused_for_the_images_that_can_be_read(tmp_path):
    from neuronym.microworld.render import render
    from neuronym.microworld.world import scene

    (tmp_path / "photos").mkdir()
    for i in range(65):
        render(scene(i)).save(tmp_path / "photos" / f"{i:02}.png")
    for name in ("torn", "cut"):
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"\x89PNG broken")
    given = {"probe": f"folder:{tmp_path / 'photos'}", "on_error": "skip", "similarity": "rank_reorder"}
    cell, told = stopped("labelling", device="cpu", **given)
    assert cell == "Load" and "which takes 40, got 39 images that can be read" in told
