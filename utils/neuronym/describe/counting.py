"""What captions have in common, found by counting: the summariser that needs no language model.

extract     captions -> the phrases that most of them share and ordinary captions do not, best first
correlated  captions of ordinary images -> the phrases whose mention goes with each unit, best first
phrases     one caption -> its phrases, each with the words as they are written
mentions    which captions contain which texts
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int
from neuronym.common.statistics import cross_correlation
from neuronym.common.text import singular, STOP

LONGEST = 3  # words of a phrase
MENTIONED = 5  # captions that a phrase is in before its correlation says something
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


def correlated(captions: Sequence[str], Q: Tensor, n: int = 5, least: int = MENTIONED) -> list[list[str]]:
    """The n phrases of 1 to 3 words whose mention correlates best with each unit, best first: captions of N
    images at random, activations Q [N, K] on them -> K lists.

    Where `extract` reads the captions of the strongest images alone, these are of images from across the
    range of activation, so that a phrase must also be absent where the unit is silent. Phrases of fewer than
    `least` captions do not count; a phrase in the same captions as a longer one that has it is left out, as
    they cannot be told apart. Equal correlations: more words, then earliest. Fewer than n, perhaps none,
    where captions hold fewer. Errors: ValueError for unequal numbers of captions and rows, and for n or least
    below 1.
    """
    check_positive_int("number of phrases", n)
    check_positive_int("least captions of a phrase", least)
    if Q.ndim != 2 or len(captions) != len(Q):
        raise ValueError(
            f"each caption is of a row of Q [N, K], got {len(captions)} captions and Q {list(Q.shape)}"
        )
    where, spelled = _index(captions)
    by_images: dict[frozenset[int], list[tuple[str, ...]]] = {}
    for key, found in where.items():
        if len(found) >= least:
            same = by_images.setdefault(frozenset(found), [])
            same[:] = [other for other in same if not _part(other, key)]
            same += [] if any(_part(key, other) for other in same) else [key]
    order = {key: i for i, key in enumerate(where)}
    kept = sorted((key for same in by_images.values() for key in same), key=lambda k: (-len(k), order[k]))
    if not kept:
        return [[] for _ in range(Q.shape[1])]
    said = torch.zeros(len(captions), len(kept), dtype=torch.float64)
    for column, key in enumerate(kept):
        said[list(where[key]), column] = 1
    scores = cross_correlation(Q.cpu(), said)  # [K, phrases]
    best = (scores.mul(1e9).round()).sort(dim=1, descending=True, stable=True).indices[:, :n]
    return [[spelled[kept[i]].most_common(1)[0][0] for i in some] for some in best.tolist()]


def mentions(captions: Sequence[str], texts: Sequence[str]) -> Tensor:
    """Which captions contain which texts, words in a row, singular or plural, as `text.names_it` has it:
    bool [captions, texts].
    """

    def folded(text: str) -> str:
        return " ".join(["", *map(singular, re.findall(r"\w+", text.lower())), ""])

    said, wanted = list(map(folded, captions)), list(map(folded, texts))
    found = torch.tensor([[bool(t.strip()) and t in one for t in wanted] for one in said], dtype=torch.bool)
    return found.view(len(said), len(wanted))


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
