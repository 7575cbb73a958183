"""From captions to candidate concepts: step 2 of Describe-and-Dissect, with a language model or without.

propose     captions of units -> candidates of units, all of the below
shorten     captions -> short labels, by the language model
summarize   groups of captions -> one answer per shuffled try

Answers become candidates by `neuronym.describe.answer_rules`, domains are those of `neuronym.describe.prompts`. `ask` is a callable: a list of (messages, settings) -> a list of answers, in order; for instance
functools.partial(ask_all, transcript, llm).
"""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from neuronym.common.blocks import whole
from neuronym.common.errors import unknown
from neuronym.describe.answer_rules import after_colon, first_line, MOST, parts, plain, split_brackets, tidy
from neuronym.describe.extractive import extract
from neuronym.describe.prompts import Prompt, PROMPTS

Ask = Callable[[list[tuple[list[dict], dict]]], list[str]]
TEMPERATURE = .3  # of shortening; summaries differ by their shuffles
TOKENS = 32  # of an answer


def propose(captions: Mapping[int, Sequence[str]], ask: Ask | None = None, reference: Sequence[str] = (), *,
            tries: int = 5, seed: int = 0, prompt: str = "objects", summary: bool = True,
            most: int = MOST) -> dict[int, list[str]]:
    """Candidates of every unit: {unit: captions, strongest example first} -> {unit: 1 to `most` candidates}.

    With `ask`, captions are shortened and then summarised `tries` times; without it, `extract` gives the `tries`
    phrases that most captions share and those of `reference` do not. `summary=False` is the paper's variant without a
    summary: the first `tries` different (shortened) captions are the candidates. Where nothing is left, the most
    frequent caption is the candidate. A unit's candidates do not depend on which units it is with. Errors: KeyError for
    an unknown prompt; ValueError for a unit without captions, before anything is asked, and for `tries` or `most`
    below 1.
    """
    whole("tries", tries)
    whole("most", most)
    told = _prompt(prompt)
    said = {unit: _texts(f"captions of unit {unit}", texts) for unit, texts in captions.items()}
    short = said
    if ask is not None:
        labels = iter(shorten([text for texts in said.values() for text in texts], ask, prompt=prompt, seed=seed))
        short = {unit: [next(labels) for _ in texts] for unit, texts in said.items()}
    if not summary:
        raw = {unit: list(dict.fromkeys(texts))[:tries] for unit, texts in short.items()}
    elif ask is None:
        raw = {unit: extract(texts, reference, tries) for unit, texts in said.items()}
    else:
        raw = dict(zip(short, summarize(list(short.values()), ask, tries=tries, prompt=prompt, seed=seed)))
    words = told.words if summary else None
    candidates = {}
    for unit, some in raw.items():
        usual = Counter(said[unit]).most_common(1)[0][0]
        candidates[unit] = tidy(some, most, words) or tidy([usual], most, None) or [usual]
    return candidates


def shorten(captions: Sequence[str], ask: Ask, *, prompt: str = "objects", seed: int = 0) -> list[str]:
    """Each caption as one short label, at temperature .3; in order, every different caption asked about once.

    The caption stays where the answer says nothing, refuses, or is longer than the caption (brackets at its end apart).
    """
    told = _prompt(prompt)
    texts = _list("captions", captions)
    different = [text for text in dict.fromkeys(texts) if text]
    answers = _asked(ask, [(_chat(told.shorten, [(f"Caption: {c}\nLabel:", a) for c, a in told.shortened],
                                  f"Caption: {text}\nLabel:"), _settings(seed, TEMPERATURE)) for text in different])
    labels = {"": ""}
    for text, answer in zip(different, answers):
        label = plain(first_line(answer))
        labels[text] = label if label and len(split_brackets(label)[0]) <= len(text) else text
    return [labels[text] for text in texts]


def summarize(groups: Sequence[Sequence[str]], ask: Ask, *, tries: int = 5, prompt: str = "objects",
              seed: int = 0) -> list[list[str]]:
    """One concept of 1 to 5 words for each group of captions and each try: groups -> answers [group][try].

    The first try reads a group in its order, every other one in a shuffled order that depends on seed, try and the
    group alone. Colon rule: what follows a colon is the answer. Comma rule: an answer with commas is asked about again,
    its parts in place of the captions; of commas in the second answer the first part stays. "" for an answer that says
    nothing.
    """
    whole("tries", tries)
    told = _prompt(prompt)
    groups = [_texts("captions of a group", group) for group in groups]
    orders = [_shuffled(group, attempt, seed) for group in groups for attempt in range(tries)]
    answers = [after_colon(first_line(a)) for a in _asked(ask, [_question(told, texts, seed) for texts in orders])]
    commas = {i: parts(answer) for i, answer in enumerate(answers) if "," in answer}
    again = [i for i, some in commas.items() if len(some) > 1]
    second = _asked(ask, [_question(told, commas[i], seed) for i in again])
    for i, some in commas.items():
        answers[i] = some[0] if some else ""
    for i, answer in zip(again, second):
        answers[i] = (parts(after_colon(first_line(answer))) or commas[i])[0]
    return [answers[i:i + tries] for i in range(0, len(answers), tries)]


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
        raise ValueError(f"{what} must hold one that says something, got {list(given)!r:.80}; caption the unit's "
                         "examples or leave the unit out")
    return texts


def _settings(seed: int, temperature: float = 0.) -> dict:
    return {"temperature": temperature, "max_tokens": TOKENS, "seed": seed}


def _chat(told: str, examples: Sequence[tuple[str, str]], question: str) -> list[dict]:
    turns = [turn for asked, answer in examples
             for turn in ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})]
    return [{"role": "system", "content": told}, *turns, {"role": "user", "content": question}]


def _question(told: Prompt, texts: Sequence[str], seed: int) -> tuple[list[dict], dict]:
    def listed(captions: Sequence[str]) -> str:
        return "Captions:\n" + "\n".join(f"- {text}" for text in captions) + f"\n{told.question}"

    return _chat(told.summarize, [(listed(c), a) for c, a in told.summarized], listed(texts)), _settings(seed)


def _shuffled(texts: Sequence[str], attempt: int, seed: int) -> list[str]:
    order = list(texts)
    if attempt:
        random.Random("\n".join([f"summary {seed} {attempt}", *texts])).shuffle(order)
    return order


def _asked(ask: Ask, requests: list[tuple[list[dict], dict]]) -> list[str]:
    answers = list(ask(requests)) if requests else []
    if len(answers) != len(requests):
        raise ValueError(f"`ask` gives one answer per request, got {len(answers)} for {len(requests)}; "
                         "return them in order")
    return answers
