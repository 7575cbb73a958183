"""From captions to candidate labels (Describe-and-Dissect, step 2), with a language model or by counting.

AskAll          what answers: a list of (messages, settings) -> a list of answers, in order
propose         captions of units -> candidates of units, by all of the below
shorten         captions -> short labels, by the language model
summarize       groups of captions -> one answer a shuffled try
tidy            raw answers -> candidates, by Describe-and-Dissect's rules and some for small models
after_colon     what follows a colon
parts           what commas separate
split_brackets  a text, and what stands in brackets at its end

An `AskAll` is for instance functools.partial(ask_all, transcript, llm); without one, `describe.counting`
finds the candidates.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from neuronym.common.checks import check_positive_int
from neuronym.common.text import STOP
from neuronym.describe.counting import extract
from neuronym.describe.prompts import named_prompt, Prompt
from neuronym.models.answers import first_line, plain

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
    prompt: str | Prompt = "objects",
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
    told = named_prompt(prompt)
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
    captions: Sequence[str],
    ask: AskAll,
    *,
    prompt: str | Prompt = "objects",
    seed: int = 0,
    max_tokens: int = TOKENS,
) -> list[str]:
    """Each caption as one short label, at temperature .3; in order, every different caption asked about once.

    The caption stays where the answer says nothing, refuses, or is longer than the caption (brackets at its
    end apart).
    """
    told = named_prompt(prompt)
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
    prompt: str | Prompt = "objects",
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
    told = named_prompt(prompt)
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
