"""What language models answer, made into candidates: Describe-and-Dissect's rules, and some for small models.

tidy            raw answers -> candidates
first_line      the line of an answer that says something
after_colon     what follows a colon
parts           what commas separate
plain           a text without numbering, quotes and final period
split_brackets  a text, and what stands in brackets at its end
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from neuronym.describe.extractive import STOP

MOST = 10  # candidates
QUOTES = "\"'`*_“”‘’«»„‹› \t"
OPENING = re.compile(r"(?i)^(?:so|sure|okay|certainly)?\W*(?:the |this |a |one )?(?:\w+ )?"
                     r"(?:concept|label|answer|caption|summary|theme|phrase)(?: that \w+(?: \w+){0,4}?)? "
                     r"(?:is|would be|could be)\b(?: that)?\W*")
REFUSAL = re.compile(r"(?i)^\W*(?:i['’]?m (?:sorry|unable|not able)|i (?:can ?not|can['’]t|apologi[sz]e)|"
                     r"as an? (?:ai|language))\b")


def tidy(answers: Sequence[str], most: int = MOST, words: int | None = 5) -> list[str]:
    """Answers as candidates: at most `most`, different, in the order first seen.

    Lower case; without white space twice, quotes, numbering, and a period at the end; cut after `words` words (None:
    never; what stands in brackets at the end does not count), a stop word not being the last. Background rule: a
    candidate that ends in design(s) or graphic(s) is followed by itself and "background". Answers without a letter or
    digit are dropped.
    """
    found: dict[str, None] = {}
    for answer in answers:
        candidate = _cut(plain(answer).lower(), words)
        if candidate:
            found[candidate] = None
            if re.search(r"(?<!\w)(?:design|graphic)s?$", candidate):
                found[f"{candidate} background"] = None
    return list(found)[:most]


def first_line(answer: str) -> str:
    """First line that says something, or the next after one that ends in a colon; without openings and refusals."""
    answer = re.sub(r"(?s)<think>.*?(?:</think>|$)", "", answer)
    lines = [line.strip() for line in answer.splitlines() if re.search(r"\w", line)]
    if len(lines) > 1 and lines[0].rstrip(QUOTES).endswith(":"):
        del lines[0]
    line = OPENING.sub("", lines[0]) if lines else ""
    return "" if REFUSAL.match(line) else line


def after_colon(line: str) -> str:
    before, _, after = line.partition(":")
    return after.strip() if re.search(r"\w", after) else before.strip()


def parts(answer: str) -> list[str]:
    return [part for part in map(plain, answer.split(",")) if part]


def plain(text: str) -> str:
    """Composed Unicode in one line, without control characters, numbering or bullet, quotes and final period."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cf"))
    text = re.sub(r"^(?:[-•–#]+|\(?\d+[.)])\s+", "", text.strip(QUOTES))
    before = None
    while before != text:
        before, text = text, text.strip(QUOTES).rstrip(".;:!").rstrip()
    return text if re.search(r"\w", text) else ""


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


def split_brackets(text: str) -> tuple[str, str]:
    """A text of one line and the brackets at its end, each perhaps empty."""
    return re.fullmatch(r"(.*?)((?:\s*\([^()]*\))?)", text).groups()
