"""neuronym.models.answers: what models say around an answer, in every spelling, and what is no answer."""

from __future__ import annotations

import pytest

from neuronym.models.answers import (
    caption_of,
    fault_of,
    first_line,
    phrases_of,
    plain,
    valid,
    without_thoughts,
)

ANSWER = "red circle"
THOUGHTS = [
    "<think>The user wants one concept.</think>\n\nred circle",
    "Okay, one concept.\n</think>\n\nred circle",
    "<thinking>hm</thinking>\nred circle",
    "<Think>hm</Think>\nred circle",
    "<reasoning>a: b, c</reasoning>red circle",
    "<thought>hm</thought>\n\nred circle",
    "[THINK]hm[/THINK]red circle",
    "hm[/THINK]red circle",
    "◁think▷hm◁/think▷red circle",
    "<seed:think>hm</seed:think>red circle",
    "&lt;think&gt;hm&lt;/think&gt;red circle",
    "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>red circle<|END_RESPONSE|>",
    "<|begin_of_thought|>hm<|end_of_thought|><|begin_of_solution|>red circle<|end_of_solution|>",
    "<unused94>thought\nhm<unused95>red circle",
    '<details type="reasoning" done="true">hm</details>red circle',
    "<think>a <think> b</think> c </think>red circle",
    "red circle<think>was that right?</think>",
    "<think></think>red circle<|im_end|>",
    "<think>hm</think><answer>red circle</answer>",
    "<think>hm</think><final>red circle</final>",
    "<think>I forgot to close. <answer>red circle</answer>",
    "[ANSWER]red circle[/ANSWER]",
    "The answer is \\boxed{red circle}",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>red circle",
    "analysisThe user wants one.assistantfinalred circle",
    "Here is my thought process: hm\nHere is my response: red circle",
    "Thought: hm\nAnswer: red circle",
    "**Thinking:** it is round\n\n**Answer:** red circle",
    "<|channel>thought\nhm\n<channel|>red circle",
    "<|channel|>final <|constrain|>text<|message|>red circle<|end|>",
    "<ctrl94>thought\nhm\n<ctrl95>red circle",
    "hm<｜end▁of▁thinking｜>red circle",
    "<answer>red circle</answer></think>",
    "(thinking)\nred?\n(/thinking)\nred circle",
    "hm (/thinking) red circle",
    "```thinking\nthe user wants\n```\nred circle",
    "``` reasoning\nhm\n```\n\nred circle",
    "\\<think\\>hm\\</think\\>\n\nred circle",
    "<\\think>hm</think>red circle",
]


@pytest.mark.parametrize("text", THOUGHTS)
def test_thoughts_are_no_part_of_an_answer(text):
    assert plain(first_line(text)) == caption_of(text) == ANSWER and fault_of(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "<think>The user wants",
        "[THINK]hm",
        "red? <think>hm",
        "<|channel|>analysis<|message|>The user wants",
        "analysisThe user wants",
        "Here is my thought process: hm",
        "<|START_THINKING|>hm",
        "(thinking)\nThe user wants",
        "```thinking\nThe user wants",
        "\\<think\\>The user wants",
    ],
)
def test_an_answer_that_ends_in_a_thought_is_cut(text):
    assert fault_of(text) == "cut" and first_line(text) == caption_of(text) == ""
    assert without_thoughts(text) == ("", True)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I can't help with that.",
        "Sorry, but I can’t describe this.",
        "I cannot assist with this request",
        "Unfortunately, I am not able to see it",
        "As an AI language model, I",
        "I don't see an image.",
        "<think>hm</think>I apologize, but no",
        "Sure! I'm unable to view pictures",
        "This request was blocked by a filter",
        "抱歉，我无法描述",
    ],
)
def test_refusals(text):
    assert fault_of(text) == "refused" and first_line(text) == caption_of(text) == ""


@pytest.mark.parametrize("text", ["", " \n", "...", "<think>hm</think>", "**", "```\n```"])
def test_empty_answers(text):
    assert fault_of(text) == "empty" and plain(first_line(text)) == caption_of(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "**a red circle** on *dark* grass.",
        "“a red circle on dark grass”",
        "- a red circle on dark grass",
        "1. a red circle on dark grass",
        "> a red circle on dark grass",
        "Caption: a red circle on dark grass",
        "**Caption:** a red circle on dark grass",
        "### Description\n\na red circle on dark grass",
        "Sure, here is a caption: a red circle on dark grass",
        "Sure! Here's the label:\n\n> *a red circle* on dark grass",
        "Here is a one-sentence description:\n\na red circle on dark grass",
        "Certainly! a red circle on dark grass",
        '```json\n{"caption": "a red circle on dark grass"}\n```',
        '["a red circle on dark grass"]',
        "a red circle on dark grass\n\nLet me know if you want more.",
        "half \ud83d"[:0] + "a red circle on dark grass \ufffd",
    ],
)
def test_markup_and_introductions_go_from_labels_and_captions(text):
    assert plain(first_line(text)) == caption_of(text) == "a red circle on dark grass"


@pytest.mark.parametrize(
    "text",
    [
        "Great Dane on grass",
        "OK sign on a wall",
        "a sorry dog",
        "analysis of a red circle",
        "a thinking man",
        "(thinking) man on a bench",
        "a man (thinking) by a window",
        "<b>circle</b><script>alert(1)</script>",
        "snake_case and x*y*z",
        "a label on a bottle",
        "{a brace",
        "[no json",
    ],
)
def test_words_of_an_answer_stay(text):
    assert plain(first_line(text)) == caption_of(text) == text


def test_a_caption_may_go_over_lines():
    assert caption_of(" a red circle\non grass ") == "a red circle on grass"


def test_half_a_character_is_replaced():
    assert valid("red \ud83d") == "red \ufffd" and valid("😀 \ud83d\ude00 ü") == "😀 😀 ü"
    assert plain(valid("red circle \ud83d")) == ANSWER


def test_nested_json_is_no_answer_in_json():
    assert first_line("[" * 100_000 + "dog").startswith("[")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("red ring\ndim light\nred ring", ["red ring", "dim light"]),
        (
            "Sure! Here are three phrases:\n\n1. **Red ring**\n2) 'dim light'.\n- snow",
            ["Red ring", "dim light", "snow"],
        ),
        ("<think>what is it</think>red ring, dim light; snow", ["red ring", "dim light", "snow"]),
        ('["red ring", "dim light"]', ["red ring", "dim light"]),
        ('```json\n{"phrases": ["red ring", "dim light"]}\n```', ["red ring", "dim light"]),
        ("red ring", ["red ring"]),
        ("I'm sorry, I can't see pictures.", []),
        ("<think>never ends", []),
        (" \n--\n", []),
    ],
)
def test_phrases_of_a_list(text, expected):
    assert phrases_of(text) == expected
