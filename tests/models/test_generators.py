"""neuronym.models.generators: the microworld's pictures, and what a diffusers pipeline (here a stand-in) is
asked for.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from neuronym import cache
from neuronym.common.checks import UnknownName
from neuronym.microworld.render import render
from neuronym.microworld.world import parse
from neuronym.models import generators
from neuronym.models.generators import BATCH, ELSEWHERE, load_generator, pictures, pictures_of, REDRAWN

PROMPTS = [
    "a large red circle on the sea",
    "two blue stars",
    "striped",
    "a large red circle on the sea",
    "snow",
]
SEEDS = [3, 4, 5, 6, 3]
SOME = [f"a red circle, number {i}" for i in range(2 * BATCH + 3)]


def pixels(images):
    return [np.asarray(image).tolist() for image in images]


def test_microworld_draws_what_the_words_say():
    generator = load_generator("microworld")
    images = generator.draw(PROMPTS, SEEDS)
    assert generator.name == "microworld" and [i.mode for i in images] == ["RGB"] * 5
    assert pixels(images) == pixels([render(parse(text, seed)) for text, seed in zip(PROMPTS, SEEDS)])
    assert pixels(images)[0] != pixels(images)[3], "another seed, another picture"
    assert pixels(generator.draw(PROMPTS[::-1], np.array(SEEDS[::-1])))[::-1] == pixels(images)
    assert (
        pixels(generator.draw(PROMPTS[1:2], SEEDS[1:2])) == pixels(images[1:2])
        and generator.draw([], []) == []
    )
    assert load_generator("microworld", "meta").key == generator.key


def test_microworld_is_not_cached():
    assert pixels(pictures(load_generator("microworld"), PROMPTS, SEEDS)) == pixels(
        load_generator("microworld").draw(PROMPTS, SEEDS)
    )
    assert cache.entries() == []


def test_what_no_word_of_is_known_is_an_error():
    with pytest.raises(ValueError, match="knows none in 'the photo of a dog'; name one of its shapes"):
        load_generator("microworld").draw(["a red star", "the photo of a dog"], [0, 1])


def test_a_pipeline_gets_what_was_asked_for_and_no_more(diffusers):
    load_generator("diffusers:org/model").draw(["x", "yy"], [7, 8])
    load_generator("diffusers:a@b/model@steps=4,size=9,guidance=0,dtype=bfloat16", "meta").draw(["x"], [-2])
    assert diffusers.loads == [
        ("org/model", {"torch_dtype": torch.float32, "trust_remote_code": False}),
        ("a@b/model", {"torch_dtype": torch.bfloat16, "trust_remote_code": False}),
    ]
    assert diffusers.calls == [
        {
            "prompt": ["x", "yy"],
            "output_type": "pil",
            "height": 6,
            "width": 7,
            "seeds": [7, 8],
            "grad": False,
        },
        {
            "prompt": ["x"],
            "output_type": "pil",
            "height": 9,
            "width": 9,
            "num_inference_steps": 4,
            "guidance_scale": 0.0,
            "seeds": [torch.Generator().manual_seed(-2).initial_seed()],
            "grad": False,
        },
    ]
    assert diffusers.devices == [torch.device("cpu"), torch.device("meta")] and diffusers.bars == [True, True]


def test_home_is_known(diffusers, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    load_generator("diffusers:~/model")
    assert diffusers.loads[0][0] == str(tmp_path / "model")


def test_batches_are_bounded_and_do_not_matter(diffusers):
    generator = load_generator("diffusers:org/model@steps=1")
    seeds = [i // 2 for i in range(len(SOME))]
    images = generator.draw(SOME, seeds)
    assert [len(call["prompt"]) for call in diffusers.calls] == [BATCH, BATCH, 3]
    assert [prompt for call in diffusers.calls for prompt in call["prompt"]] == SOME
    assert pixels(images) == [pixels(generator.draw([p], [s]))[0] for p, s in zip(SOME, seeds)]
    assert len({image.tobytes() for image in images}) > BATCH and {image.mode for image in images} == {"RGB"}


def test_the_cache_draws_the_rest(diffusers):
    generator = load_generator("diffusers:org/model")
    first = pictures(generator, SOME[:2], [1, 2])
    prompts, seeds = [SOME[1], SOME[0], SOME[0], "new", "new"], [2, 9, 1, 2, 2]
    drawn = pictures(generator, prompts, seeds)
    assert [(call["prompt"], call["seeds"]) for call in diffusers.calls] == [
        (SOME[:2], [1, 2]),
        ([SOME[0], "new"], [9, 2]),
    ]
    assert pixels(drawn)[:3:2] == pixels(first)[::-1] and pixels(drawn)[3] == pixels(drawn)[4]
    assert pixels(drawn) == pixels(generator.draw(prompts, seeds)) and drawn[0].mode == "RGB"
    assert len(cache.entries()) == 4 and {entry["kind"] for entry in cache.entries()} == {"generated"}
    drawn[0].putpixel((0, 0), (1, 2, 3))  # ours to draw on
    assert pixels(pictures(generator, prompts, seeds)[:1]) == pixels(first[1:])


def test_another_model_or_setting_is_not_taken_from_the_cache(diffusers):
    pictures(load_generator("diffusers:org/model@steps=1"), ["x"], [1])
    pictures(load_generator("diffusers:elsewhere/same@steps=1"), ["x"], [1])
    assert len(diffusers.calls) == 1
    pictures(load_generator("diffusers:org/model@steps=2"), ["x"], [1])
    assert len(diffusers.calls) == 2


def test_pictures_drawn_before_an_error_are_kept(diffusers, monkeypatch):
    generator = load_generator("diffusers:org/model")
    broken = generators.replace(
        generator,
        draw=lambda prompts, seeds: 1 / 0 if SOME[-1] in prompts else generator.draw(prompts, seeds),
    )
    with pytest.raises(ZeroDivisionError):
        pictures(broken, SOME, [0] * len(SOME))
    diffusers.calls.clear()
    pictures(generator, SOME, [0] * len(SOME))
    assert [len(call["prompt"]) for call in diffusers.calls] == [3]


def test_key_changes_with_whatever_determines_a_picture(diffusers):
    def key(name="diffusers:org/model", **changed):
        before = dict(vars(diffusers))
        vars(diffusers).update(changed)
        try:
            return load_generator(name).key
        finally:
            vars(diffusers).update(before)

    keys = [
        key(),
        key(seed=1),
        key(betas=2),
        key(words={"b": 0}),
        load_generator("microworld").key,
        *(
            key(f"diffusers:org/model@{option}")
            for option in ("steps=4", "size=9", "guidance=4", "dtype=float16", "scheduler=dpm")
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key("diffusers:elsewhere/same") and len(key()) == 16
    sys.modules["diffusers"].__version__ = "0.2"
    assert key() not in keys


def test_a_pipeline_that_loses_pictures_is_an_error(diffusers):
    diffusers.lost = 1
    with pytest.raises(ValueError, match="one picture per prompt, got 1 for 2 prompts"):
        load_generator("diffusers:org/model").draw(["x", "y"], [0, 1])


@pytest.mark.parametrize("tells", [True, False])
def test_a_picture_that_a_safety_checker_blacks_out_is_drawn_again(diffusers, capsys, tells):
    diffusers.tells = tells
    generator = load_generator("diffusers:org/model")
    diffusers.objects = lambda prompt, seed: prompt == "dog" and seed < 10
    plain = generator.draw(["cat"], [1])
    drawn = pictures(generator, ["cat", "dog"], [1, 2])
    assert pixels(drawn[:1]) == pixels(plain) and drawn[1].getbbox()
    assert diffusers.calls[-1]["prompt"] == ["dog"] and diffusers.calls[-1]["seeds"] == [2 + ELSEWHERE]
    calls = len(diffusers.calls)
    assert pixels(pictures(generator, ["cat", "dog"], [1, 2])) == pixels(drawn) and not generator.missing
    assert len(diffusers.calls) == calls and len(cache.entries()) == 2 and capsys.readouterr().err == ""


def test_a_picture_that_stays_black_is_missing(diffusers, capsys):
    generator = load_generator("diffusers:org/model")
    diffusers.objects = lambda prompt, seed: prompt == "a dog"
    cat, dog = pictures(generator, ["a cat", "a dog"], [1, 2])
    assert dog is None and cat.getbbox() and generator.missing == {("a dog", 2)}
    assert len(diffusers.calls) == 1 + REDRAWN and len(cache.entries()) == 1
    said = capsys.readouterr().err
    assert "1 of 2 pictures are missing, such as 'a dog': a safety checker" in said
    assert pictures(generator, ["a dog"], [2]) == [None] and capsys.readouterr().err == "", "told once"
    found = pictures_of(["dog", "cat"], generator, 2, template="a {}")
    assert [len(found[label]) for label in ("dog", "cat")] == [0, 2]


@pytest.mark.parametrize("error", [OSError("no network\nat all"), ValueError("no network")])
def test_absent_weights(diffusers, error):
    diffusers.error = error
    with pytest.raises(
        FileNotFoundError,
        match=r"diffusers:org/model could not be loaded \(no network\); download it "
        r"where.*diffusers:FOLDER, or set HF_HOME",
    ):
        load_generator("diffusers:org/model@steps=4")


def test_absent_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "diffusers")
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name: (_ for _ in ()).throw(ModuleNotFoundError(f"No module named '{name}'", name=name)),
    )
    with pytest.raises(
        ModuleNotFoundError, match="'diffusers:org/model' needs the optional package diffusers"
    ):
        load_generator("diffusers:org/model")


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("micro", UnknownName, "no generator 'micro'; nearest: microworld; known: microworld, diffusers:ID"),
        ("microworld:x", UnknownName, "no generator 'microworld:x'"),
        ("diffusers:", UnknownName, "no generator 'diffusers:'"),
        ("diffusers:org/model@step=4", UnknownName, "no diffusers option 'step'; nearest: steps"),
        ("diffusers:org/model@steps=4,", UnknownName, "no diffusers option ''"),
        (
            "diffusers:org/model@steps=four",
            ValueError,
            "steps must be a number, got 'four' in diffusers:org/model@steps",
        ),
        ("diffusers:org/model@size=0", ValueError, "size must be at least 1, got 0"),
        ("diffusers:org/model@scheduler=euler", UnknownName, "no scheduler 'euler'; known: dpm"),
        ("diffusers:org/model@dtype=int8", UnknownName, "no dtype 'int8'; known: float32, float16, bfloat16"),
    ],
)
def test_names_that_are_none(diffusers, name, error, message):
    with pytest.raises(error, match=message):
        load_generator(name)
    assert diffusers.loads == []


@pytest.mark.parametrize(
    "prompts, seeds, message",
    [
        ("red", [1, 2, 3], "list of prompts, got the text 'red'"),
        (["red", "blue"], [1], "each prompt has a seed, got 2 prompts and 1 seeds"),
    ],
)
def test_prompts_and_seeds_that_do_not_match(diffusers, prompts, seeds, message):
    for name in ("microworld", "diffusers:org/model"):
        for call in (load_generator(name).draw, lambda *both: pictures(load_generator(name), *both)):
            with pytest.raises(ValueError, match=message):
                call(prompts, seeds)
