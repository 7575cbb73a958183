"""Numbers, lists and paths that a parameter cannot mean."""

from __future__ import annotations

import pytest

from neuronym.runs.values import check_values


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 0, "level": 0.05, "good": 1.0, "noise": 0.0, "most_cost": 0.0, "prices": ""},
        {"seed": 2**32 - 1, "most_cost": 2.5, "prices": "0.15, .6"},
        {"sizes": "10, 20,", "templates": "", "template": "a {}", "units": "layer4=label:dog;fc=3"},
        {"prompts": "{}|a photo of a {}", "readout_layers": "8, 9,10"},
        {"templates": "a {},a photo of a {}", "units": "ids:1,2", "readout_layers": "all"},
    ],
)
def test_what_can_be_meant_passes(given):
    check_values(given)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"seed": 10**20}, "'seed' must be a seed from 0 to 4294967295, got 100000000000000000000"),
        ({"images": 10**20}, "'images' must have at most 18 digits"),
        ({"level": 1.0}, "'level' must be a share above 0 and below 1, such as 0.05, got 1.0"),
        ({"most_cost": 1.0, "prices": ""}, "most_cost needs prices, got 1.0 without; set prices"),
        ({"prices": "1,2,3"}, "prices are two numbers"),
        ({"prices": "1;2"}, "got 1;2; write 2.5,10"),
        ({"prices": "1,inf"}, "prices are two numbers"),
        ({"sizes": "10,0"}, "numbers of images from 1, separated by commas, got '0' in '10,0'"),
        ({"template": "a photo"}, "a template holds {} once, where the concept goes, got 'a photo'"),
        ({"units": "fc=label: ;conv1=3"}, "label: needs a word"),
        ({"readout_layers": "8,x"}, "numbers of layers counted from 0"),
        ({"prompts": " "}, "must have a template"),
    ],
)
def test_what_cannot_is_refused_in_one_sentence(given, said):
    with pytest.raises(ValueError) as refused:
        check_values(given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_of_prompts_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of prompts at"):
        check_values({"prompts": f"file:{tmp_path / 'none'}"})
