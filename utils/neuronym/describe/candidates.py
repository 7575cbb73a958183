"""From captions to candidate labels (Describe-and-Dissect, step 2), with a language model or by counting.

Prompt          what a language model is told: an instruction and worked examples for each of its two tasks
PROMPTS         name of a domain -> Prompt
AskAll          what answers: a list of (messages, settings) -> a list of answers, in order
propose         captions of units -> candidates of units, by all of the below
shorten         captions -> short labels, by the language model
summarize       groups of captions -> one answer a shuffled try
tidy            raw answers -> candidates, by Describe-and-Dissect's rules and some for small models
after_colon     what follows a colon
parts           what commas separate
split_brackets  a text, and what stands in brackets at its end

    objects   | Describe-and-Dissect's, with its two worked examples
    shared    | the same with more examples, for small models, which repeat what they are shown
    satellite | asks for a label, then a landform in brackets

An `AskAll` is for instance functools.partial(ask_all, transcript, llm); without one, `describe.counting`
finds the candidates.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.text import STOP
from neuronym.describe.counting import extract
from neuronym.models.answers import first_line, plain


@dataclass(frozen=True)
class Prompt:
    """What a language model is told: an instruction and worked examples for each of its two tasks."""

    shorten: str
    shortened: tuple[tuple[str, str], ...]  # caption, label
    summarize: str
    summarized: tuple[tuple[tuple[str, ...], str], ...]  # captions, concept
    words: int = 5  # of a concept, what stands in brackets at its end apart
    question: str = "Concept:"  # below the captions


_SHORTEN = (
    "You turn the caption of a picture into one short label. Keep what the picture shows, leave out what is "
    "repeated or says nothing. Answer with the label alone: no period, no quotes, no numbering."
)

_SUMMARIZE = (
    "You read captions of pictures and name the one concept that most of them share, in 1 to 5 words. "
    "Prefer what is specific and common to many captions over what is said once. Answer with the concept "
    "alone, in one line: no list, no explanation."
)

_FABRICS = (
    (
        "a quilt sewn of red, blue and yellow squares",
        "a rug woven in many colors",
        "bright scarves on a rack",
        "a pile of patterned cloth",
    ),
    "multicolored textiles",
)

_REDS = (
    (
        "a red barn behind a fence",
        "a woman in a red coat",
        "a bowl of ripe strawberries",
        "red lanterns over a street",
    ),
    "red-themed scenes",
)

_REPEATED = (
    "a kitten on a blanket with a flower pattern with a flower pattern with a flower pattern",
    "kitten on floral blanket",
)

_SHARED = (
    (
        (
            "a brown dog on a sofa",
            "a dog with a ball in the grass",
            "two dogs beside a car",
            "a small dog in rain",
        ),
        "dog",
    ),
    (
        (
            "a wooden table by a window",
            "an old wooden boat on a lake",
            "a wooden fence in the rain",
            "three wooden toys",
        ),
        "wooden",
    ),
    (
        (
            "a man with a kite at the beach",
            "two chairs at the beach",
            "a beach with white stones",
            "a child and a boat at the beach",
        ),
        "at the beach",
    ),
)

PROMPTS: dict[str, Prompt] = {
    "objects": Prompt(_SHORTEN, (_REPEATED,), _SUMMARIZE, (_FABRICS, _REDS)),
    "shared": Prompt(
        _SHORTEN,
        (_REPEATED,),
        "Name what the captions have in common. Use 1 to 5 words that most of the captions contain.",
        _SHARED,
        question="Which words are in most of these captions?",
    ),
    "satellite": Prompt(
        _SHORTEN.replace("a picture", "a satellite picture")
        + " Put the kind of landform in brackets after the label.",
        (
            (
                "an aerial view of a field of green crops with rows of crops with rows",
                "rows of green crops (farmland)",
            ),
        ),
        _SUMMARIZE.replace("pictures", "satellite pictures")
        + " Put the kind of landform in brackets after it.",
        (
            (
                ("houses along a curved road", "a grid of streets with roofs", "a suburb with gardens"),
                "dense housing (residential area)",
            ),
            (
                (
                    "a winding line of brown water",
                    "water between two green banks",
                    "a bend with sand beside it",
                ),
                "winding waterway (river)",
            ),
        ),
    ),
}

MOST = 10  # candidates

TEMPERATURE = 0.3  # of shortening; summaries differ by their shuffles

TOKENS = 32  # of an answer; models that think take hundreds

AskAll = Callable[[list[tuple[list[dict], dict]]], list[str]]


def propose(
    captions: Mapping[int, Sequence[str]],
    ask: AskAll | None = None,
    reference: Sequence[str] = (),
    *,
    tries: int = 5,
    seed: int = 0,
    prompt: str = "objects",
    summary: bool = True,
    most: int = MOST,
    max_tokens: int = TOKENS,
) -> dict[int, list[str]]:
    """Candidates of every unit: {unit: captions, strongest example first} -> {unit: 1 to `most` candidates}.

    With `ask`, captions are shortened and then summarised `tries` times; without it, `extract` gives the
    `tries` phrases that most captions share and those of `reference` do not. `summary=False` is the paper's
    variant without a summary: the first `tries` different (shortened) captions are the candidates. Where
    nothing is left, the most frequent caption is the candidate. `max_tokens` bounds an answer, thoughts
    counted. A unit's candidates do not depend on which
    units it is with. Errors: KeyError for an unknown prompt; ValueError for a unit without captions, before
    anything is asked, and for `tries` or `most` below 1.
    """
    check_positive_int("tries", tries)
    check_positive_int("most", most)
    check_positive_int("max_tokens", max_tokens)
    how = {"prompt": prompt, "seed": seed, "max_tokens": max_tokens}
    told = _prompt(prompt)
    said = {unit: _texts(f"captions of unit {unit}", texts) for unit, texts in captions.items()}
    short = said
    if ask is not None:
        labels = iter(shorten([text for texts in said.values() for text in texts], ask, **how))
        short = {unit: [next(labels) for _ in texts] for unit, texts in said.items()}
    if not summary:
        raw = {unit: list(dict.fromkeys(texts))[:tries] for unit, texts in short.items()}
    elif ask is None:
        raw = {unit: extract(texts, reference, tries) for unit, texts in said.items()}
    else:
        raw = dict(zip(short, summarize(list(short.values()), ask, tries=tries, **how)))
    words = told.words if summary else None
    candidates = {}
    for unit, some in raw.items():
        usual = Counter(said[unit]).most_common(1)[0][0]
        candidates[unit] = tidy(some, most, words) or tidy([usual], most, None) or [usual]
    return candidates


def shorten(
    captions: Sequence[str], ask: AskAll, *, prompt: str = "objects", seed: int = 0, max_tokens: int = TOKENS
) -> list[str]:
    """Each caption as one short label, at temperature .3; in order, every different caption asked about once.

    The caption stays where the answer says nothing, refuses, or is longer than the caption (brackets at its
    end apart).
    """
    told = _prompt(prompt)
    texts = _list("captions", captions)
    different = [text for text in dict.fromkeys(texts) if text]
    answers = _asked(
        ask,
        [
            (
                _chat(
                    told.shorten,
                    [(f"Caption: {c}\nLabel:", a) for c, a in told.shortened],
                    f"Caption: {text}\nLabel:",
                ),
                _settings(seed, max_tokens, TEMPERATURE),
            )
            for text in different
        ],
    )
    labels = {"": ""}
    for text, answer in zip(different, answers):
        label = plain(first_line(answer))
        labels[text] = label if label and len(split_brackets(label)[0]) <= len(text) else text
    return [labels[text] for text in texts]


def summarize(
    groups: Sequence[Sequence[str]],
    ask: AskAll,
    *,
    tries: int = 5,
    prompt: str = "objects",
    seed: int = 0,
    max_tokens: int = TOKENS,
) -> list[list[str]]:
    """One concept of 1 to 5 words for each group of captions and each try: groups -> answers [group][try].

    The first try reads a group in its order, every other one in a shuffled order that depends on seed, try
    and the group alone. Colon rule: what follows a colon is the answer. Comma rule: an answer with commas is
    asked about again, its parts in place of the captions; of commas in the second answer the first part
    stays. "" for an answer that says nothing.
    """
    check_positive_int("tries", tries)
    told = _prompt(prompt)
    groups = [_texts("captions of a group", group) for group in groups]
    orders = [_shuffled(group, attempt, seed) for group in groups for attempt in range(tries)]
    answers = [
        after_colon(first_line(a))
        for a in _asked(ask, [_question(told, texts, seed, max_tokens) for texts in orders])
    ]
    commas = {i: parts(answer) for i, answer in enumerate(answers) if "," in answer}
    again = [i for i, some in commas.items() if len(some) > 1]
    second = _asked(ask, [_question(told, commas[i], seed, max_tokens) for i in again])
    for i, some in commas.items():
        answers[i] = some[0] if some else ""
    for i, answer in zip(again, second):
        answers[i] = (parts(after_colon(first_line(answer))) or commas[i])[0]
    return [answers[i : i + tries] for i in range(0, len(answers), tries)]


def _prompt(name: str) -> Prompt:
    if name not in PROMPTS:
        raise unknown("prompt", name, PROMPTS)
    return PROMPTS[name]


def _list(what: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"{what} must be a list of texts, got {given!r:.80}; wrap a single one in a list")
    return [" ".join(text.split()) for text in given]


def _texts(what: str, given: Sequence[str]) -> list[str]:
    texts = [text for text in _list(what, given) if text]
    if not texts:
        raise ValueError(
            f"{what} must hold one that says something, got {list(given)!r:.80}; caption the unit's "
            "examples or leave the unit out"
        )
    return texts


def _settings(seed: int, max_tokens: int, temperature: float = 0.0) -> dict:
    return {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}


def _chat(told: str, examples: Sequence[tuple[str, str]], question: str) -> list[dict]:
    turns = [
        turn
        for asked, answer in examples
        for turn in ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    ]
    return [{"role": "system", "content": told}, *turns, {"role": "user", "content": question}]


def _question(told: Prompt, texts: Sequence[str], seed: int, max_tokens: int) -> tuple[list[dict], dict]:
    def listed(captions: Sequence[str]) -> str:
        return "Captions:\n" + "\n".join(f"- {text}" for text in captions) + f"\n{told.question}"

    messages = _chat(told.summarize, [(listed(c), a) for c, a in told.summarized], listed(texts))
    return messages, _settings(seed, max_tokens)


def _shuffled(texts: Sequence[str], attempt: int, seed: int) -> list[str]:
    order = list(texts)
    if attempt:
        random.Random("\n".join([f"summary {seed} {attempt}", *texts])).shuffle(order)
    return order


def _asked(ask: AskAll, requests: list[tuple[list[dict], dict]]) -> list[str]:
    answers = list(ask(requests)) if requests else []
    if len(answers) != len(requests):
        raise ValueError(
            f"`ask` gives one answer per request, got {len(answers)} for {len(requests)}; "
            "return them in order"
        )
    return answers


def tidy(answers: Sequence[str], most: int = MOST, words: int | None = 5) -> list[str]:
    """Answers as candidates: at most `most`, different, in the order first seen.

    Lower case; without white space twice, quotes, numbering, and a period at the end; cut after `words` words
    (None: never; what stands in brackets at the end does not count), a stop word not being the last.
    Background rule: a candidate that ends in design(s) or graphic(s) is followed by itself and "background".
    Answers without a letter or digit are dropped.
    """
    found: dict[str, None] = {}
    for answer in answers:
        candidate = _cut(plain(answer).lower(), words)
        if candidate:
            found[candidate] = None
            if re.search(r"(?<!\w)(?:design|graphic)s?$", candidate):
                found[f"{candidate} background"] = None
    return list(found)[:most]


def after_colon(line: str) -> str:
    before, _, after = line.partition(":")
    return after.strip() if re.search(r"\w", after) else before.strip()


def parts(answer: str) -> list[str]:
    return [part for part in map(plain, answer.split(",")) if part]


def split_brackets(text: str) -> tuple[str, str]:
    """A text of one line and the brackets at its end, each perhaps empty."""
    return re.fullmatch(r"(.*?)((?:\s*\([^()]*\))?)", text).groups()


def _cut(text: str, words: int | None) -> str:
    if words is None:
        return text
    text, brackets = split_brackets(text)
    kept = text.split()
    if len(kept) > words:
        kept = kept[:words]
        while len(kept) > 1 and kept[-1] in STOP:
            kept.pop()
    return " ".join(kept).rstrip(",;:-–") + brackets
