"""What captions have in common, found by counting: the summariser that needs no language model.

extract  captions -> the phrases that most of them share and ordinary captions do not, best first
phrases  one caption -> its phrases, each with the words as they are written
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from neuronym.common.checks import check_positive_int
from neuronym.common.text import singular, STOP

LONGEST = 3  # words of a phrase
INSIDE = {"of", "and"}  # cup of tea, black and white; but not "dog in bright" of "a dog in bright light"


def extract(captions: Sequence[str], reference: Sequence[str] = (), n: int = 5) -> list[str]:
    """The n best phrases of 1 to 3 words: score = share of the captions that have it - share of the
    reference.

    captions: those of one unit, strongest example first; reference: captions of ordinary images, so that what
    every picture shows loses. Only phrases of two captions or more count, when there are such. Equal scores:
    more captions, then more words, then earliest in the captions. A phrase that is part of a better one and
    is in the same captions is left out; so "dim light" stands for "dim" and "light" when they come together
    only. Singular and plural are one phrase, written as most captions write it. Without any phrase the most
    frequent caption is the answer. Errors: ValueError for a text in place of a list, for no caption that says
    anything, and for n < 1.
    """
    check_positive_int("number of phrases", n)
    for what, given in (("captions", captions), ("reference", reference)):
        if isinstance(given, str):
            raise ValueError(f"{what} must be a list of texts, got the text '{given:.60}'; wrap it in a list")
    captions = [" ".join(c.split()) for c in captions if c.strip()]
    if not captions:
        raise ValueError(
            "phrases come from captions, got none that says anything; caption at least one example"
        )
    where, spelled = _index(captions)
    most = max((len(found) for found in where.values()), default=0)
    if most == 0:
        return [Counter(captions).most_common(1)[0][0].lower()]
    usual = Counter(key for text in reference for key in phrases(text))
    shared = [key for key, found in where.items() if len(found) >= min(2, most)]
    score = {key: len(where[key]) / len(captions) - usual[key] / max(len(reference), 1) for key in shared}
    order = {key: i for i, key in enumerate(where)}
    best: list[tuple[str, ...]] = []
    # rounding must not decide between equal scores
    for key in sorted(shared, key=lambda k: (-round(score[k], 9), -len(where[k]), -len(k), order[k])):
        if len(best) < n and not any(where[key] == where[b] and _part(key, b) for b in best):
            best.append(key)
    return [spelled[key].most_common(1)[0][0] for key in best]


def phrases(caption: str) -> dict[tuple[str, ...], list[str]]:
    """Runs of 1 to 3 words of a caption: folded words -> the spellings met.

    No stop word is among them, but for "of" and "and" in the middle; runs do not cross punctuation.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for part in re.split(r"[.,;:!?()\[\]\"“”]+", caption.lower()):
        words = re.findall(r"\w+(?:['’-]\w+)*", part)
        for start in range(len(words)):
            for end in range(start + 1, min(start + LONGEST, len(words)) + 1):
                run = words[start:end]
                if not STOP & {run[0], run[-1], *(set(run) - INSIDE)}:
                    found.setdefault(tuple(map(singular, run)), []).append(" ".join(run))
    return found


def _index(captions: Sequence[str]) -> tuple[dict, dict]:
    """Folded phrase -> the captions that have it, and -> its spellings counted; in order of first
    appearance.
    """
    where: dict[tuple[str, ...], set[int]] = {}
    spelled: dict[tuple[str, ...], Counter] = {}
    for i, text in enumerate(captions):
        for key, written in phrases(text).items():
            where.setdefault(key, set()).add(i)
            spelled.setdefault(key, Counter()).update(written)
    return where, spelled


def _part(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
