"""neuronym.describe.candidates: a literal count of phrases with loops, what must not matter, and captions of
the microworld.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from neuronym.common.text import names_it, singular, STOP
from neuronym.describe.counting import correlated, extract, mentions, phrases
from neuronym.microworld import world

TEAS = [
    "a cup of green tea on a table",
    "green tea in a glass",
    "two cups of hot tea",
    "a man with green teas",
]


def literal(captions, reference, n):
    """Every run of up to three words counted with loops; captions without punctuation and without plurals."""

    def runs(text):
        words = text.split()
        found = []
        for i in range(len(words)):
            for j in range(i + 1, min(i + 3, len(words)) + 1):
                middle = [word for word in words[i + 1 : j - 1] if word not in ("of", "and")]
                ends = [words[i], words[j - 1]]
                if not any(word in STOP for word in ends + middle) and words[i:j] not in found:
                    found.append(words[i:j])
        return found

    every = []
    for text in captions:
        for run in runs(text):
            if run not in every:
                every.append(run)
    rows = []
    for position, run in enumerate(every):
        has = [run in runs(text) for text in captions]
        usual = [run in runs(text) for text in reference]
        score = sum(has) / len(captions) - (sum(usual) / len(usual) if usual else 0)
        rows.append((-round(score, 9), -sum(has), -len(run), position, run, has))
    if max(-row[1] for row in rows) > 1:
        rows = [row for row in rows if row[1] <= -2]
    kept = []
    for *_, run, has in sorted(rows, key=lambda row: row[:4]):
        text = " ".join(run)
        twin = [k for k, same in kept if same == has and (f" {k} " in f" {text} " or f" {text} " in f" {k} ")]
        if not twin:
            kept.append((text, has))
    return [text for text, _ in kept[:n]]


@pytest.mark.parametrize("seed", range(40))
def test_phrases_are_counted_as_the_loops_do(seed):
    dice = random.Random(seed)
    few = "red blue dot grid a the of and on".split()
    captions, reference = (
        [" ".join(dice.choices(few, k=dice.randint(2, 7))) + " thing" for _ in range(number)]
        for number in (dice.randint(1, 9), dice.choice((0, 5, 13)))
    )
    n = dice.randint(1, 7)
    assert extract(captions, reference, n) == literal(captions, reference, n)


def test_the_shared_phrase_wins_as_most_captions_write_it():
    assert extract(TEAS, n=3) == ["tea", "green tea", "cup"]  # "green" is in the same captions as "green tea"
    assert extract(["two red cats", "red cats", "a red cat"])[0] == "red cats"
    assert extract(["a red cat", "red cat", "red cats"])[0] == "red cat"


def test_what_every_picture_shows_loses():
    captions = [
        "a dog in bright light",
        "two dogs in bright light",
        "a dog by a door in light",
        "a cat in light",
    ]
    assert extract(captions)[0] == "light"
    reference = ["a boat in light", "a tree in light", "light on a wall", "a house in bright light", "a road"]
    assert extract(captions, reference)[:2] == ["dog", "bright light"]  # 3/4 - 0, 2/4 - 1/5
    assert extract(captions, reference)[-1] == "light"  # 4/4 - 4/5


def test_equal_scores_are_equal_in_spite_of_rounding():
    captions = ["dog cat"] * 2 + ["dog"] * 5 + ["cat"] * 3  # .7 - .2 is less than .5 in floating point
    assert extract(captions, ["dog", "x", "y", "z", "z"])[:2] == ["dog", "cat"], (
        "then what more captions have"
    )
    assert extract(captions[::-1], ["dog", "x", "y", "z", "z"])[:2] == ["dog", "cat"]


def test_phrases_of_one_caption_count_only_where_nothing_is_shared():
    assert extract(["red cat", "red dog", "blue fish"]) == ["red"]
    assert extract(["red cat"]) == ["red cat"]
    assert extract(["a cat", "the dog"]) == ["cat", "dog"], "the strongest example first"


def test_no_phrase_twice():
    found = extract(["one tall red tower"] * 4 + ["tall tower"])
    assert found == ["tall", "tower", "one tall red", "tall red tower"]
    assert extract(["light dim light"] * 2) == ["light dim light"]


def test_phrases_respect_stop_words_and_punctuation():
    assert list(phrases("A dog, on the sofa.")) == [("dog",), ("sofa",)]
    assert list(phrases("a dog on the sofa")) == [("dog",), ("sofa",)]
    assert ("cup", "of", "tea") in phrases("cups of tea") and ("black", "and", "white") in phrases(
        "black and white"
    )
    assert list(phrases("dogs on grass")) == [("dog",), ("grass",)]
    assert phrases("Stars and a star") == {("star",): ["stars", "star"]}
    assert phrases("") == phrases("of the") == {}
    assert (
        ("café",) in phrases("a Café") and ("t-shirt",) in phrases("his t-shirt") and ("木",) in phrases("木")
    )


def test_singular_and_plural_fold_alike():
    for one, many in (
        ("circle", "circles"),
        ("cross", "crosses"),
        ("hourglass", "hourglasses"),
        ("berry", "berries"),
        ("box", "boxes"),
        ("bush", "bushes"),
        ("church", "churches"),
        ("man", "men"),
        ("bus", "buses"),
        ("person", "people"),
        ("rose", "roses"),
        ("tie", "ties"),
        *world.PLURALS.items(),
    ):
        assert singular(many) == singular(one) == one
    for word in ("glass", "bus", "this", "gas", "cactus", "tennis", "red"):
        assert singular(word) == word


def test_captions_without_a_phrase():
    assert extract(["The Of", "it is", "it is"]) == ["it is"]
    assert extract(["", " ", "red"]) == ["red"], "an empty caption is none"


def test_order_of_captions_matters_for_ties_only():
    captions = [
        "a red cat on snow",
        "one red cat in a box",
        "a red dog on snow",
        "a red fish",
    ]  # red 4, cat 2, snow 2
    for seed in range(5):
        order = random.Random(seed).sample(captions, 4)
        found = extract(order)
        assert found[0] == "red" and set(found) == set(extract(captions)) and found == extract(order)


@pytest.mark.parametrize("atom", ["star", "purple", "striped", "small", "desert", "three"])
def test_captions_of_the_microworld_name_what_scenes_share(atom):
    scenes = [s for s in map(world.scene, range(400)) if atom in world.concepts(s)][:10]
    captions = [world.caption(s, i % 3) for i, s in enumerate(scenes)]
    reference = [world.caption(world.scene(5000 + i), i % 3) for i in range(100)]
    words = [set(re.findall("[a-z]+", text)) for text in extract(captions, reference)]
    assert {atom, world.PLURALS.get(atom, atom)} & words[0]
    captions[::4] = reference[:3]  # three of ten say something else
    assert {atom, world.PLURALS.get(atom, atom)} & set(re.findall("[a-z]+", extract(captions, reference)[0]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: extract("a cat"), "captions must be a list of texts, got the text 'a cat'; wrap it"),
        (
            lambda: extract(["a cat"], "a dog"),
            "reference must be a list of texts, got the text 'a dog'; wrap it",
        ),
        (lambda: extract([]), "phrases come from captions, got none that says anything; caption"),
        (lambda: extract([" "]), "phrases come from captions, got none"),
        (lambda: extract(["a cat"], n=0), "number of phrases must be a positive whole number, got 0"),
    ],
)
def test_errors_say_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def made_up(n, seed):
    """Captions of a small world without plurals, with phrases that stand in the same ones."""
    dice = random.Random(seed)
    sizes, colours, things = (
        ["small", "large"],
        ["red", "blue", "pale"],
        ["ring", "star", "dog", "cup of tea"],
    )
    return [
        f"a {dice.choice(sizes)} {dice.choice(colours)} {dice.choice(things)} in dim light" for _ in range(n)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_correlated_is_a_literal_correlation_of_mentions(seed):
    captions = made_up(40, seed)
    Q = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    every = list(dict.fromkeys(" ".join(key) for text in captions for key in phrases(text)))
    there = {text: np.array([f" {text} " in f" {one} " for one in captions]) for text in every}
    usual = [text for text in every if there[text].sum() >= 5]
    for unit, found in enumerate(correlated(captions, Q, 6)):
        assert 1 <= len(found) == len(set(found)) <= 6
        q = Q[:, unit].double().numpy()
        value = {t: np.corrcoef(q, there[t])[0, 1] if 0 < there[t].sum() < 40 else 0.0 for t in usual}
        values = [value[text] for text in found]
        assert values == sorted(values, reverse=True)
        longest = [
            text
            for text in usual
            if not any(
                f" {text} " in f" {other} " and text != other and (there[text] == there[other]).all()
                for other in usual
            )
        ]
        assert set(found) <= set(longest)
        assert values == pytest.approx(sorted((value[t] for t in longest), reverse=True)[: len(found)])


def test_correlated_counts_what_is_mentioned_often_enough():
    captions = ["red rings", "a red ring", "blue star", "blue stars", "blue star"]
    Q = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    assert correlated(captions, Q, 1, 2) == [["red rings"], ["blue star"]]
    assert correlated(captions, Q, 1, 3) == [["blue star"], ["blue star"]]
    assert correlated(captions, Q, 9, 4) == [[], []] and correlated([], Q[:0], 1) == [[], []]
    for wrong, message in (
        (lambda: correlated(captions, Q[:4]), "5 captions and Q"),
        (lambda: correlated(captions, Q, 0), "number of phrases"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_mentions_are_what_names_it_finds():
    captions = [*made_up(9, 1), "Two large rings, pale.", ""]
    texts = ["ring", "pale star", "dim light", "rings pale", "light ring", ""]
    found = mentions(captions, texts)
    assert found.tolist() == [[names_it(caption, text) for text in texts] for caption in captions]
    assert found[:, 0].any() and found[9, 3] and not found[:, 4:].any()
    assert mentions([], texts).shape == (0, 6) and mentions(captions, []).shape == (11, 0)
