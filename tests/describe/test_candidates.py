"""neuronym.describe.candidates: the rules on hand-made answers, against a literal list of them, and with
askers that compute.
"""

from __future__ import annotations

import random
import re

import pytest

from neuronym.common.checks import UnknownName
from neuronym.describe.candidates import propose, shorten, summarize, tidy
from neuronym.describe.prompts import PROMPTS

CATS = ["a red cat on a mat", "two red cats", "a cat beside a red box", "a cat", "one grey cat on a wall"]
DOGS = ["a dog runs", "a wet dog", "dogs in rain"]


def listed(messages):
    """What the last message holds: captions of a summary, or the one caption that is to be shortened."""
    text = messages[-1]["content"]
    found = re.findall("^- (.*)$", text, re.M)
    return found or [re.fullmatch("Caption: (.*)\nLabel:", text).group(1)]


class Asker:
    """Answers each request by a function of what it lists; keeps the batches of requests."""

    def __init__(self, answer):
        self.answer, self.batches = answer, []

    def __call__(self, requests):
        self.batches.append(requests)
        return [self.answer(messages) for messages, _ in requests]

    @property
    def requests(self):
        return [request for batch in self.batches for request in batch]


def first_words(messages, n=2):
    """Depends on the order of what is listed, as a model's answer does."""
    return " ".join(listed(messages)[0].split()[-n:])


def scripted(*answers):
    answers = list(answers)
    return Asker(lambda messages: answers.pop(0))


def test_a_summary_is_asked_with_examples_and_captions():
    asker = Asker(first_words)
    assert summarize([CATS], asker, tries=1, seed=7) == [["a mat"]]
    ((messages, settings),) = asker.requests
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [m["content"] for m in messages[2:5:2]] == [a for _, a in PROMPTS["objects"].summarized]
    assert "multicolored textiles" in messages[2]["content"] and "red-themed scenes" in messages[4]["content"]
    assert listed(messages) == CATS and settings["seed"] == 7 and "1 to 5 words" in messages[0]["content"]


def test_a_caption_is_shortened_once_at_a_third():
    asker = Asker(lambda messages: f'1. "{listed(messages)[0].split()[-1]}."')
    assert shorten(["a red cat", "a dog", "a red cat"], asker, seed=3) == ["cat", "dog", "cat"]
    (one, settings), (two, _) = asker.requests
    assert len(asker.batches) == 1 and settings["temperature"] == 0.3 and settings["seed"] == 3
    assert [m["role"] for m in one] == ["system", "user", "assistant", "user"] and listed(two) == ["a dog"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "...",
        "  \n",
        "I'm sorry, but I cannot.",
        "As an AI language model, I",
        "the red cat that is lying there in the sun",
        "<think>well, a red cat",
    ],
)
def test_a_caption_stays_where_the_answer_is_none(answer):
    assert shorten(["a red cat"], scripted(answer)) == ["a red cat"]


def test_shortened_captions_stay_beside_their_captions():
    assert (
        shorten(["", "a  b c", " "], Asker(first_words)) == ["", "b c", ""]
        and shorten([], Asker(first_words)) == []
    )
    assert shorten(["fields"], scripted("crops (farmland)"), prompt="satellite") == ["crops (farmland)"]


def test_the_first_try_keeps_the_order_and_the_others_are_shuffled():
    asker = Asker(first_words)
    summarize([CATS], asker, tries=5)
    orders = [listed(messages) for messages, _ in asker.requests]
    assert orders[0] == CATS and all(sorted(order) == sorted(CATS) for order in orders)
    assert len({tuple(order) for order in orders}) >= 4 and len(asker.batches) == 1
    longer = Asker(first_words)
    summarize([CATS], longer, tries=7)
    assert longer.requests[:5] == asker.requests, "more tries ask more, not otherwise"
    other = Asker(first_words)
    summarize([CATS], other, tries=5, seed=1)
    assert [listed(m) for m, _ in other.requests][1:] != orders[1:]
    second = Asker(first_words)
    summarize([[text + "!" for text in CATS]], second, tries=5)
    assert [[t[:-1] for t in listed(m)] for m, _ in second.requests][1:] != orders[1:], (
        "each group has its own order"
    )


def test_groups_do_not_matter_to_each_other():
    groups = [CATS, DOGS, [*DOGS, "a cat"], ["a cup"]]
    alone = [summarize([group], Asker(first_words), seed=5)[0] for group in groups]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 1]):
        assert summarize([groups[i] for i in order], Asker(first_words), seed=5) == [alone[i] for i in order]


@pytest.mark.parametrize(
    "answer, kept",
    [
        ("Concept: red cats", "red cats"),
        ("red cats", "red cats"),
        ("Concept:\nred cats", "red cats"),
        ("Sure! Here it is:\n\n**red cats**\nThis is why", "**red cats**"),
        ("red cats:", "red cats"),
        ("red cats\n- blue: dogs", "red cats"),
        ("The concept is red cats", "red cats"),
        ("\n\n", ""),
        ("The concept that most captions share is: red cats", "red cats"),
        ("one red cat is here", "one red cat is here"),
        ("<think>dogs: no</think>\nred cats", "red cats"),
        ("I can't see images", ""),
        ("Über: 日本 Katzen", "日本 Katzen"),
        ("a: b: c", "b: c"),
        ("a concept car", "a concept car"),
        ("The theme is", ""),
    ],
)
def test_the_line_that_counts_and_the_colon_rule(answer, kept):
    asker = scripted(answer)
    assert summarize([CATS], asker, tries=1) == [[kept]] and len(asker.requests) == 1


def test_the_comma_rule_asks_again_with_the_parts():
    asker = scripted(
        "Concepts: red cats, 'dogs', .", "a", "one, two", "x, ", "pets: red animals", "three, four"
    )
    assert summarize([CATS, DOGS], asker, tries=2) == [
        ["pets: red animals".split(": ")[1], "a"],
        ["three", "x"],
    ]
    assert [len(batch) for batch in asker.batches] == [4, 2]
    assert [listed(messages) for messages, _ in asker.batches[1]] == [["red cats", "dogs"], ["one", "two"]]
    asker = scripted("one, two", "")
    assert summarize([CATS], asker, tries=1) == [["one"]], "an empty second answer leaves the first part"
    asker = scripted(", .")
    assert summarize([CATS], asker, tries=1) == [[""]] and len(asker.requests) == 1


TIDY = [
    (["Red Cats.", "red cats", "RED  CATS"], ["red cats"]),
    (
        ["'red cats'.", '"Dogs."', "“Birds”", "«fish»", "`bees`", "**wasps**"],
        ["red cats", "dogs", "birds", "fish", "bees", "wasps"],
    ),
    (
        ["1. cats", '"2) dogs"', "(3) birds", "- fish", "• bees", "3d shapes", "2 wasps", "1.5 m"],
        ["cats", "dogs", "birds", "fish", "bees", "3d shapes", "2 wasps", "1.5 m"],
    ),
    (
        ["Floral Design.", "graphics", "designer", "design of a cup", "web-graphic"],
        [
            "floral design",
            "floral design background",
            "graphics",
            "graphics background",
            "designer",
            "design of a cup",
            "web-graphic",
            "web-graphic background",
        ],
    ),
    (["", " ", "...", '""', "- ", "cats"], ["cats"]),
    (["cats", "design background", "design"], ["cats", "design background", "design"]),
    (["Café", "cafe\u0301", "ÉTÉ", "日本", "naïve\u200b art\x00"], ["café", "été", "日本", "naïve art"]),
    (
        ["one two three four five", "one two three four of the six", "cats, dogs and an owl, or a bee"],
        ["one two three four five", "one two three four", "cats, dogs and an owl"],
    ),
    (["x" * 5000 + " y"], ["x" * 5000 + " y"]),
    (["of the of the of the", "one two three leans on"], ["of", "one two three leans on"]),
    (
        ["a very long concept of six words (river)", "housing (residential area)."],
        ["a very long concept (river)", "housing (residential area)"],
    ),
    ([f"c{i}" for i in range(30)], [f"c{i}" for i in range(10)]),
    (
        ["c", *["a design", "b design", "c design", "d design", "e design", "f design"]],
        [
            "c",
            "a design",
            "a design background",
            "b design",
            "b design background",
            "c design",
            "c design background",
            "d design",
            "d design background",
            "e design",
        ],
    ),
]


@pytest.mark.parametrize("answers, candidates", TIDY)
def test_tidy(answers, candidates):
    assert tidy(answers) == candidates and tidy(tidy(answers), most=30)[: len(candidates)] == candidates
    assert tidy(answers, most=3) == candidates[:3]


def test_tidy_can_leave_long_candidates():
    assert tidy(["One two three four of the six."], words=None) == ["one two three four of the six"]


def rules(answers, most=10):
    """Step 2.4 of the paper as it stands, word for word, for answers of plain words."""
    found = []
    for answer in answers:
        answer = answer.lower()
        if answer.endswith("."):
            answer = answer[:-1]
        new = [answer]
        if answer.split()[-1] in ("design", "designs", "graphic", "graphics"):
            new.append(answer + " background")
        for one in new:
            if one not in found:
                found.append(one)
    return found[:most]


@pytest.mark.parametrize("seed", range(20))
def test_tidy_is_the_paper_s_list_of_rules(seed):
    dice = random.Random(seed)
    words = "Red blue Cat design designs Graphic graphics background".split()
    answers = [" ".join(dice.choices(words, k=dice.randint(1, 4))) + dice.choice(["", "."]) for _ in range(7)]
    assert tidy(answers) == rules(answers)


def test_propose_asks_in_two_batches_and_tidies():
    asker = Asker(lambda messages: first_words(messages, 1).capitalize() + ".")
    units = {7: CATS, 2: DOGS}
    found = propose(units, asker, seed=1)
    short = {7: ["mat", "cats", "box", "cat", "wall"], 2: ["runs", "dog", "rain"]}
    assert {settings["seed"] for _, settings in asker.requests} == {1}
    assert list(found) == [7, 2] and [len(batch) for batch in asker.batches] == [8, 10]
    assert [listed(m) for m, _ in asker.batches[1]][0:10:5] == [
        [s.capitalize() for s in short[unit]] for unit in units
    ]
    assert found[7][0] == "mat" and set(found[7]) <= set(short[7]) and 1 < len(found[7])
    for order in ([2, 7], [7], [2]):
        again = propose({unit: units[unit] for unit in order}, Asker(asker.answer), seed=1)
        assert again == {unit: found[unit] for unit in order}
    assert len(propose(units, asker, most=1)[7]) == 1


def test_propose_without_a_model_extracts():
    assert propose({3: CATS, 9: DOGS}, tries=2) == {3: ["cat", "red"], 9: ["dog"]}
    assert propose({3: CATS}, reference=["a cat", "the cat", "cats"], tries=1) == {3: ["red"]}
    assert propose({3: ["a graphic", "graphic"]}) == {3: ["graphic", "graphic background"]}


def test_propose_without_a_summary_gives_captions():
    captions = {4: ["A big red cat on a mat in the sun.", "x", "x", *"abcde"]}
    assert propose(captions, summary=False) == {4: ["a big red cat on a mat in the sun", "x", "a", "b", "c"]}
    asker = Asker(lambda messages: listed(messages)[0][:3])
    assert propose(captions, asker, summary=False, tries=2) == {4: ["a b", "x"]} and len(asker.batches) == 1


@pytest.mark.parametrize("answer", ["", "...", "I cannot help with that", "\u200b"])
def test_an_empty_list_of_candidates_never_results(answer):
    captions = {1: ["A cat.", "A dog.", "A dog."], 2: ["??", "!"]}
    found = propose(captions, Asker(lambda messages: answer))
    assert found == {1: ["a dog"], 2: ["??"]}
    assert propose(captions)[2] == ["??"] and propose(captions, summary=False)[2] == ["??"]


def test_empty_captions_are_passed_over():
    assert propose({1: ["", "a  cat", " "]}) == {1: ["cat"]}
    asker = Asker(first_words)
    assert propose({1: ["", "a  cat", " "], 2: ["a dog"]}, asker) == {1: ["a cat"], 2: ["a dog"]}


def test_what_is_asked_stands_below_the_captions():
    asker = Asker(first_words)
    summarize([DOGS], asker, tries=1, prompt="shared")
    ((messages, _),) = asker.requests
    assert all(
        m["content"].endswith("\n" + PROMPTS["shared"].question) for m in messages if m["role"] == "user"
    )
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3, "user"] and listed(
        messages
    ) == DOGS


def test_prompts_by_name():
    asker = Asker(lambda messages: "Rows of very green young tall crops (Farmland).")
    assert propose({1: DOGS}, asker, prompt="satellite") == {1: ["rows of very green young (farmland)"]}
    assert all("landform in brackets" in messages[0]["content"] for messages, _ in asker.requests)
    for name, prompt in PROMPTS.items():
        for _, answer in prompt.summarized:
            assert tidy([answer], words=prompt.words) == [answer], "an example is what a candidate looks like"
        for caption, label in prompt.shortened:
            assert len(label) < len(caption) and not re.search(r"[.\"']", label), name


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda ask: propose({1: CATS}, ask, prompt="objets"),
            UnknownName,
            "no prompt 'objets'; nearest: objects",
        ),
        (
            lambda ask: propose({1: CATS, 5: []}, ask),
            ValueError,
            "of unit 5 must hold one that says .* leave the unit out",
        ),
        (
            lambda ask: propose({1: "a cat"}, ask),
            ValueError,
            "of unit 1 must be a list of texts, got 'a cat'; wrap",
        ),
        (
            lambda ask: propose({1: [None]}, ask),
            ValueError,
            r"captions of unit 1 must be a list of texts, got \[None\]",
        ),
        (
            lambda ask: propose({1: CATS}, ask, tries=0),
            ValueError,
            "tries must be a positive whole number, got 0",
        ),
        (
            lambda ask: propose({1: CATS}, ask, most=0),
            ValueError,
            "most must be a positive whole number, got 0",
        ),
        (
            lambda ask: summarize([CATS, [" "]], ask),
            ValueError,
            "captions of a group must hold one that says something",
        ),
        (lambda ask: shorten("a cat", ask), ValueError, "captions must be a list of texts, got 'a cat'"),
    ],
)
def test_errors_come_before_anything_is_asked(call, error, message):
    asker = Asker(first_words)
    with pytest.raises(error, match=message):
        call(asker)
    assert asker.batches == []


def test_an_asker_that_loses_answers_is_told():
    with pytest.raises(
        ValueError, match="`ask` gives one answer per request, got 4 for 5; return them in order"
    ):
        summarize([CATS], lambda requests: ["x"] * (len(requests) - 1))


def test_nothing_is_asked_for_nothing():
    asker = Asker(first_words)
    assert propose({}, asker) == propose({}) == {} and summarize([], asker) == shorten([], asker) == []
    assert summarize([CATS], asker, tries=1) == [["a mat"]] and len(asker.batches) == 1
