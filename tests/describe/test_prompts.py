"""neuronym.describe.prompts: names, files, and a prompt for each layer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from neuronym.common.checks import UnknownName
from neuronym.describe.candidates import propose
from neuronym.describe.prompts import layer_prompts, named_prompt, PROMPTS, written

NETWORK = ("conv1", "layer1", "layer2", "layer3", "fc")


def test_a_prompt_comes_back_from_its_file(tmp_path):
    for name, prompt in PROMPTS.items():
        file = tmp_path / f"{name}.json"
        file.write_text(written(prompt), encoding="utf-8")
        assert named_prompt(f"file:{file}") == named_prompt(name) == named_prompt(prompt) == prompt


def test_prompts_by_layer(tmp_path):
    file = tmp_path / "a=b.json"
    own = replace(PROMPTS["objects"], question="Which?", words=2)
    file.write_text(written(own), encoding="utf-8")
    layers = ["conv1", "layer2.0", "fc"]
    same = layer_prompts("shared", layers, NETWORK)
    assert same == dict.fromkeys(layers, PROMPTS["shared"])
    assert layer_prompts(f"file:{file}", layers, NETWORK) == dict.fromkeys(layers, own)
    found = layer_prompts("by_layer", [*layers, "layer3", "layer20"], NETWORK)
    kinds = [PROMPTS[name] for name in ("textures", "textures", "objects", "objects", "objects")]
    assert list(found.values()) == kinds, "the first three of five layers, and what is in them"
    each = layer_prompts(f"conv1=textures; layer2.0=file:{file};fc=by_layer", layers, NETWORK)
    assert list(each.values()) == [PROMPTS["textures"], own, PROMPTS["objects"]]


def test_a_prompt_of_ones_own_is_what_is_asked():
    own = replace(PROMPTS["objects"], summarize="Say it.", question="Which?", summarized=(), words=1)
    asked = []

    def ask(requests):
        asked.extend(messages for messages, _ in requests)
        return ["dark night"] * len(requests)

    assert propose({1: ["a dog"]}, ask, prompt=own, tries=1) == {1: ["dark"]}
    assert asked[-1][0]["content"] == "Say it." and asked[-1][-1]["content"].endswith("Which?")


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("objets", UnknownName, "no prompt 'objets'; nearest: objects"),
        ("file:nowhere.json", FileNotFoundError, "no prompt at .*nowhere.json"),
        ("conv1=objects", ValueError, "got none for 'fc' in 'conv1=objects'; add fc=objects"),
        ("conv1=objects;fc=shared;layer9=shared", UnknownName, "no layer with a prompt 'layer9'"),
    ],
)
def test_errors(text, error, message):
    with pytest.raises(error, match=message):
        layer_prompts(text, ["conv1", "fc"], NETWORK)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: [],
        lambda told: told | {"words": 0},
        lambda told: told | {"question": 3},
        lambda told: told | {"more": 1},
        lambda told: told | {"shortened": ["abc"]},
        lambda told: {"shorten": "a"},
    ],
)
def test_a_file_that_is_no_prompt(tmp_path, change):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(change(json.loads(written(PROMPTS["shared"])))), encoding="utf-8")
    with pytest.raises(ValueError, match="a prompt is JSON with shorten, shortened, summarize"):
        named_prompt(f"file:{file}")
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="a prompt is JSON with"):
        named_prompt(f"file:{file}")
