"""neuronym.second_order.adversarial: captions that keep the rules, an LLM that does not, and pictures that a
CLIP sees right.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from neuronym.microworld.world import ATOMS, CONCEPTS, concepts, parse, PLURALS, read, SHAPES, tokenize
from neuronym.models.clips import load_clip
from neuronym.models.generators import load_generator, pictures
from neuronym.second_order import adversarial
from neuronym.second_order.adversarial import captions, fooled, load_writer

MICRO = load_writer("microworld")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def some_words(seed, n=25):
    return [CONCEPTS[i] for i in torch.randperm(len(CONCEPTS), generator=seeded(seed))[:n].tolist()]


# the microworld's writer


@pytest.mark.parametrize("seed", range(12))
def test_every_caption_keeps_the_rules(seed):
    drawn, wrong = SHAPES[seed], SHAPES[(5 * seed + 7) % 12]
    words = some_words(seed)
    made = captions(MICRO, words, drawn, wrong, 17, generator=seeded(seed))
    assert len(made) == len(set(made)) == 17
    known = {word for text in words for word in text.split()}
    for text in made:
        named = set(re.findall(r"[a-z]+", text))
        assert named & {drawn, PLURALS[drawn]} and not named & {wrong, PLURALS[wrong]}
        tokenize([text])  # the microworld's CLIPs can read it
        found = read(text)
        said = {word for thing in found["given"] for word in thing.values()} | {
            found["place"],
            found["light"],
        }
        assert said - {None} <= known | {drawn}, "nothing is said that no word asks for"
        assert drawn in concepts(parse(text)) and wrong not in concepts(parse(text))
    # which words come first is chosen anew for each caption
    assert len({word for text in made for word in text.split()} & known) > len(known) / 3


def test_words_that_fit_together_are_all_used():
    words = ["red", "striped circle", "large", "night", "dim", "left"]
    (text,) = captions(MICRO, words, "circle", "square", 1)
    assert text == "a large red striped circle on the left at night in dim light"
    assert captions(MICRO, ["orange circle", "three", "sea"], "circle", "square", 1) == [
        "three orange circles on the sea"
    ]
    assert captions(MICRO, ["dotted", "two", "hourglass"], "hourglass", "square", 1) == [
        "two dotted hourglasses"
    ]
    assert captions(MICRO, ["small star", "snow", "orange"], "circle", "square", 1) == [
        "an orange circle and a small star on snow"
    ]
    assert captions(MICRO, ["squares", "red square", "blue"], "circle", "square", 1) == ["a blue circle"]
    assert captions(MICRO, ["two", "left star", "left"], "circle", "square", 1) == ["a circle and a star"]
    assert captions(MICRO, ["heart"], "cross", "square", 1) == ["a cross and a heart"]


def test_words_of_one_place_take_turns():
    made = captions(MICRO, [*ATOMS["colour"], "striped"], "moon", "bolt", 11, written=200)
    assert sorted(made) == sorted(
        f"{'an' if c == 'orange' else 'a'} {c} striped moon" for c in ATOMS["colour"]
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_first_word_has_the_place(seed):
    for words, said in ((ATOMS["colour"], "{} moon"), (ATOMS["light"], "a moon in {} light")):
        first = words[torch.randperm(len(words), generator=seeded(seed))[0]]
        assert said.format(first) in captions(MICRO, words, "moon", "bolt", 1, generator=seeded(seed))[0]


def test_many_of_many_words_appear():
    """Of the five places in a sentence with two things, those for which there is a word are filled."""
    for seed in range(5):
        words = some_words(seed)
        kinds = {kind for word in words for thing in read(word)["given"] for kind in thing}
        for text in captions(MICRO, words, "ring", "star", generator=seeded(seed)):
            first = next(thing for thing in read(text)["given"] if thing["shape"] == "ring")
            assert {"colour", "texture"} <= kinds & set(first) and len(read(text)["given"]) == 2


def test_plain_captions():
    made = captions(MICRO, [], "heart", "moon", 20, generator=seeded(3))
    assert len(set(made)) == 20
    for text in made:
        (thing,) = read(text)["given"]
        assert thing["shape"] == "heart" and set(thing) == {"shape", "size", "colour", "texture"}
        assert read(text)["place"] and "one" not in text
    assert len({read(text)["given"][0]["colour"] for text in made}) > 5
    assert len({read(text)["place"] for text in made}) > 4


@pytest.mark.parametrize("words", [[], some_words(4)])
def test_seeds_reproduce(words):
    first = captions(MICRO, words, "star", "cross", generator=seeded(1))
    assert captions(MICRO, words, "star", "cross", generator=seeded(1)) == first
    assert captions(MICRO, words, "star", "cross", generator=seeded(2)) != first
    assert captions(MICRO, words, "star", "cross") == captions(
        MICRO, words, "star", "cross", generator=seeded(0)
    )


# which captions are taken


def writer(*lines):
    asked = []

    def write(words, drawn, wrong, n, generator):
        asked.append((words, drawn, wrong, n))
        return list(lines)

    return write, asked


def test_the_first_that_keep_the_rules():
    write, asked = writer(
        "a cat and a dog",
        "A Dog.",
        "dogs in the sun",
        "dogma",
        "the sea",
        "a dog and two CATS",
        "A Dog.",
        "catalogue of a dog",
        "hot dog",
    )
    assert captions(write, ("sun", "sea"), "dog", "cat", 3) == [
        "A Dog.",
        "dogs in the sun",
        "catalogue of a dog",
    ]
    assert captions(write, ["sun"], "dog", "cat", 4, written=7) == [
        "A Dog.",
        "dogs in the sun",
        "catalogue of a dog",
        "hot dog",
    ]
    assert captions(write, [], "dog", "cat", 2, written=1)
    assert asked == [(["sun", "sea"], "dog", "cat", 50), (["sun"], "dog", "cat", 7), ([], "dog", "cat", 2)]


def test_too_few():
    write, _ = writer(*(f"dog {i}" for i in range(9)), "a cat and a dog")
    assert len(captions(write, [], "dog", "cat", 9)) == 9
    with pytest.raises(
        ValueError,
        match="^at least 10 captions have to name 'dog' and not 'cat', the writer gave 9 "
        "such among 10; use another writer or other words$",
    ):
        captions(write, [], "dog", "cat", 10)
    write, _ = writer(*(f"dog {i}" for i in range(12)))
    assert len(captions(write, [], "dog", "cat", 30)) == 12  # ten are enough
    with pytest.raises(ValueError, match="at least 10 captions .* gave 2 such among 2"):
        captions(MICRO, ["red", "blue"], "circle", "square")
    with pytest.raises(ValueError, match="at least 1 captions have to name 'dog'"):
        captions(lambda *asked: [], [], "dog", "cat", 1)


# an LLM as writer


@pytest.fixture
def llm(monkeypatch):
    log = SimpleNamespace(answer="", asked=[], loaded=[])

    def ask(messages, **settings):
        log.asked.append((messages, settings))
        return log.answer

    monkeypatch.setattr(
        adversarial, "load_llm", lambda *how: log.loaded.append(how) or SimpleNamespace(ask=ask)
    )
    return log


def test_lines_of_an_llm(llm):
    llm.answer = (
        'Here are 9 descriptions with the word "dog":\n\n1. A dog at sea.\n 2) "A dog in a hat"\n'
        "- a brown dog\n* dogs\n• a dog, asleep\n12: a dog and a cat\n3 dogs run\n**A dog barks**\n\n1.  \n"
        "No animal here.\n"
    )
    write = load_writer("hf:some/model", "cuda:1")
    assert llm.loaded == [("hf:some/model", "cuda:1")]
    made = captions(write, ["sea", "a hat"], "dog", "cat", 7, generator=seeded(5))
    assert made == [
        "A dog at sea.",
        "A dog in a hat",
        "a brown dog",
        "dogs",
        "a dog, asleep",
        "3 dogs run",
        "A dog barks",
    ]


def test_thoughts_of_an_llm_are_no_captions(llm):
    llm.answer = "A dog would do.\n</think>\n" + "\n".join(f"a dog {i}" for i in range(20))
    made = captions(load_writer("openai:m"), ["sea"], "dog", "cat", 20, generator=seeded(5))
    assert made == [f"a dog {i}" for i in range(20)]


def test_what_an_llm_is_asked(llm):
    llm.answer = "\n".join(f"a dog {i}" for i in range(20))
    for words in (["sea", "a hat"], []):
        captions(load_writer("openai:m"), words, "dog", "cat", written=37, generator=seeded(5))
    ((messages, settings), ((plain,), again)) = llm.asked
    (message,) = messages
    assert message["role"] == "user" and "37" in message["content"] and "sea, a hat" in message["content"]
    assert "'dog'" in message["content"] and "None names 'cat'" in message["content"]
    assert "'dog'" in plain["content"] and "sea" not in plain["content"] and "words" not in plain["content"]
    assert settings == again and {k: v for k, v in settings.items() if k != "seed"} == {
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 1024,
    }
    captions(load_writer("openai:m"), [], "dog", "cat", generator=seeded(6))
    assert llm.asked[2][1]["seed"] != settings["seed"] == int(torch.randint(2**31, (), generator=seeded(5)))


# pictures


@pytest.mark.parametrize("drawn, wrong", [("circle", "star"), ("square", "heart"), ("moon", "circle")])
def test_the_microworlds_clip_is_not_fooled_by_plain_pictures(drawn, wrong):
    clip = load_clip("microworld:vit")
    texts = captions(MICRO, [], drawn, wrong, 35, generator=seeded(0))
    drawings = pictures(load_generator("microworld"), texts, range(35))
    t = clip.encode_text([wrong, drawn])
    v = t[0] - t[1]
    found = fooled(drawings, clip, v)
    assert found.dtype == torch.bool and found.shape == (35,) and found.float().mean() < 0.1
    assert torch.equal(fooled(drawings, clip, -v), ~found)
    # in pictures of both, each is judged by itself
    mixed = (
        drawings[:3] + pictures(load_generator("microworld"), [f"a large red {wrong}"], [1]) + drawings[3:]
    )
    alone = torch.cat([fooled([picture], clip, v) for picture in mixed])
    assert alone[3] and torch.equal(fooled(mixed, clip, v), alone)
    e = torch.stack([clip.encode_image(clip.preprocess(picture)[None])[0] for picture in mixed])
    assert ((e @ t[0] > e @ t[1]) == alone).all()


def test_no_pictures():
    assert fooled([], load_clip("microworld:vit"), torch.rand(64)).tolist() == []


def test_a_picture_may_have_any_size():
    clip = load_clip("microworld:vit")
    v = torch.ones(clip.d)
    assert fooled([Image.new("RGB", (90, 40)), Image.new("RGB", (64, 64))], clip, v).shape == (2,)


# bad input


@pytest.mark.parametrize(
    "name, message",
    [
        ("micro", "no writer 'micro'; nearest: microworld; known: microworld, openai:NAME, hf:NAME"),
        ("microworld:large", "no writer 'microworld:large'; nearest: microworld; known"),
        ("hf:", "no llm 'hf:'"),
        ("openai", "no llm 'openai'"),
    ],
)
def test_unknown_writers(name, message):
    with pytest.raises(KeyError, match=message):
        load_writer(name)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: captions(MICRO, [], "dog", "circle"),
            "writer draws one shape for another, got 'dog' and 'circle'; name two of circle, square, "
            "triangle",
        ),
        (lambda: captions(MICRO, [], "circle", "red"), "draws one shape for another, got 'circle' and 'red'"),
        (lambda: captions(MICRO, [], "circle", "circle"), "have to name 'circle' and not 'circle'"),
        (lambda: captions(MICRO, [], "circle", "star", 0), "n must be a positive whole number, got 0"),
        (lambda: captions(MICRO, [], "circle", ""), r"a name has letters, got \[''\]"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_attack_draws_captions_and_says_which_fool():
    clip, generator = load_clip("microworld:vit"), load_generator("microworld")
    texts, made, hits = adversarial.attack(
        clip, MICRO, generator, some_words(1), "ring", "star", n=10, each=3, dice=seeded(1)
    )
    assert (
        len(texts) == len(made) == len(hits) == 30 and texts[:3] == [texts[0]] * 3 and len(set(texts)) == 10
    )
    t = clip.encode_text(["star", "ring"])
    assert hits == fooled(made, clip, t[0] - t[1]).tolist()
    assert list(dict.fromkeys(texts)) == captions(
        MICRO, some_words(1), "ring", "star", 10, generator=seeded(1)
    )
    other = adversarial.attack(
        clip, MICRO, generator, some_words(1), "ring", "star", repeat=1, each=3, dice=seeded(1)
    )
    assert other[0] == texts and other[1][0].tobytes() != made[0].tobytes()
    assert made[0].tobytes() != made[1].tobytes()  # each of its own seed


def test_duels():
    clip = load_clip("microworld:vit")
    assert adversarial.class_pairs("star<cross, ring < circle", clip, SHAPES) == [
        ("star", "cross"),
        ("ring", "circle"),
    ]
    assert adversarial.class_pairs("", clip, SHAPES) == []
    nearest = adversarial.class_pairs("nearest", clip, SHAPES)
    assert [drawn for _, drawn in nearest] == list(SHAPES) and all(wrong != drawn for wrong, drawn in nearest)
    t = dict(zip(SHAPES, clip.encode_text(list(SHAPES))))
    for wrong, drawn in nearest:
        assert all(t[drawn] @ t[wrong] >= t[drawn] @ t[other] for other in SHAPES if other != drawn)


@pytest.mark.parametrize("text", ["star", "star<", "star<star", "a<b<c"])
def test_duels_that_are_none(text):
    with pytest.raises(ValueError, match=f"wrong<drawn, separated by commas, got '{text}'; write frog<bird"):
        adversarial.class_pairs(text, load_clip("microworld:vit"), SHAPES)
