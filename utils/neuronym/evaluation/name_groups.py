"""Units by what their names say: those with a word, those that share one, names of nearly one meaning.

split_patterns  several patterns from one text
matching        which names have a word: "fish*|sea"
chosen          units of a labels table whose labels match, by layer
groups          how many units of each layer have a word in their label
clusters        labels of nearly one meaning put together
"""
from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor

from neuronym.common.blocks import MEMORY, number, whole
from neuronym.describe.extractive import fold, STOP

Names = Mapping[int, str | Sequence[str]] | Iterable[tuple[int, str]]


def split_patterns(text: str) -> list[str]:
    """Patterns separated by semicolons, each checked as `matching` does; none for an empty text."""
    patterns = [part.strip() for part in text.split(";") if part.strip()]
    for pattern in patterns:
        matching({}, pattern)
    return patterns


def matching(names: Names, pattern: str) -> list[int]:
    """Keys (units, classes) with a name that has one of the pattern's words, each once, in the order given.

    `names` is {key: name or names} or pairs (key, name). The pattern is words or phrases joined by "|"; "*" stands for
    any letters or none, "?" for one, within a word. Case does not count. Words are runs of letters and digits, in names
    and patterns alike, and match as a whole: "sea" is in "by the sea" and "sea-lion", not in "season"; the words of a
    phrase follow each other. Errors: ValueError for an empty part, one of nothing but "*", and any other sign.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"a pattern is a text such as 'fish*|sea', got {type(pattern).__name__}; join words by '|'")
    phrases = []
    for part in _folded(pattern).split("|"):
        strange = re.sub(r"[\w\s*?'’-]", "", part)
        if strange or not re.search(r"[^\W_]|\?", part):
            wrong = f"leave out {strange[0]!r}" if strange else "a part has no word in it"
            raise ValueError("a pattern is words joined by '|', with * for any letters and ? for one, got "
                             f"{pattern!r}; {wrong}")
        phrases.append(re.findall(r"(?:[^\W_]|[*?])+", part))
    pairs = names.items() if isinstance(names, Mapping) else names
    return list(dict.fromkeys(key for key, given in pairs for name in ([given] if isinstance(given, str) else given)
                              if any(_has(_words(name), phrase) for phrase in phrases)))


def chosen(table: pd.DataFrame, pattern: str, rank: int = 1) -> dict[str, list[int]]:
    """{layer: units} of a labels table with a match among their labels up to `rank`; layers without any left out."""
    some = table[table["rank"] <= rank].sort_values("rank", kind="stable")
    found = matching(zip(zip(some["layer"], some["unit"]), some["label"]), pattern)
    layers = [layer for layer in dict.fromkeys(table["layer"]) if any(layer == name for name, _ in found)]
    return {layer: sorted(int(unit) for name, unit in found if name == layer) for layer in layers}


def groups(table: pd.DataFrame, least: int = 2) -> pd.DataFrame:
    """Units whose labels (rank 1) share a word: columns word, layer, count, units; words of `least` units or more.

    Singular and plural are one word (`extractive.fold`), written as most labels write it; words that say nothing by
    themselves (a, of, picture) are left out. Words in order of all their units, then of the alphabet; layers as given.
    """
    whole("least", least)
    best, found, spelled = table[table["rank"] == 1], {}, {}
    for layer, unit, label in zip(best["layer"], best["unit"], best["label"]):
        for key, word in {fold(word): word for word in _words(label) if word not in STOP}.items():
            found.setdefault(key, {}).setdefault(layer, set()).add(int(unit))
            spelled.setdefault(key, Counter())[word] += 1
    total = {key: sum(map(len, layers.values())) for key, layers in found.items()}
    written = {key: min(counts, key=lambda word: (-counts[word], word)) for key, counts in spelled.items()}
    order = {layer: i for i, layer in enumerate(dict.fromkeys(best["layer"]))}
    rows = [(written[key], layer, len(found[key][layer]), sorted(found[key][layer]))
            for key in sorted(found, key=lambda key: (-total[key], written[key])) if total[key] >= least
            for layer in sorted(found[key], key=order.get)]
    return pd.DataFrame(rows, columns=["word", "layer", "count", "units"])


def clusters(labels: Sequence[str], T: Tensor, threshold: float = .8, memory: int = MEMORY) -> pd.DataFrame:
    """Labels in clusters of nearly one meaning: columns label, cluster, name; a row for each label, in the order given.

    T [n, d]: the labels' text embeddings. Agglomerative clustering of the distinct labels (case folded): the two
    clusters of highest mean cosine between their labels are joined while it is at least `threshold` (average linkage).
    Clusters are numbered by size (labels given), then by name, which is the label nearest, on average, to the cluster.
    Errors: ValueError for T that does not fit, and for more labels than `memory` holds the pairs of.
    """
    from sklearn.cluster import AgglomerativeClustering

    number("threshold", threshold, -1, 1)
    if T.ndim != 2 or len(T) != len(labels) or not len(T) or not bool((T.isfinite().all(1) & T.any(1)).all()):
        raise ValueError(f"expected T [n, d] with a finite row that is not zero for each of {len(labels)} labels, at "
                         f"least one, got {list(T.shape)}; embed the labels")
    where = {_folded(label): i for i, label in reversed(list(enumerate(labels)))}
    keys = sorted(where)  # so that equal distances are joined in one order
    if 24 * len(keys) ** 2 > memory:
        raise ValueError(f"{len(keys)} different labels have pairs of {24 * len(keys) ** 2} bytes, memory is {memory}; "
                         "cluster fewer labels, or raise memory")
    X = F.normalize(T[[where[key] for key in keys]].double().cpu(), dim=1)
    near = X @ X.T
    member = np.zeros(len(keys), dtype=int)
    if len(keys) > 1:
        joined = AgglomerativeClustering(n_clusters=None, metric="precomputed", linkage="average",
                                         distance_threshold=1 - threshold + 1e-9)  # scikit-learn joins below, not at it
        member = joined.fit_predict((1 - near).clamp_min(0).numpy())
    of = dict(zip(keys, member.tolist()))
    counts = Counter(of[_folded(label)] for label in labels)
    name = {}
    for c in counts:
        own = np.flatnonzero(member == c)
        middle = near[own][:, own].mean(1)
        name[c] = labels[where[keys[own[int((middle >= middle.max() - 1e-12).nonzero()[0])]]]]
    place = {c: i for i, c in enumerate(sorted(counts, key=lambda c: (-counts[c], name[c])))}
    return pd.DataFrame([(label, place[of[_folded(label)]], name[of[_folded(label)]]) for label in labels],
                        columns=["label", "cluster", "name"])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", _folded(text))


def _has(words: Sequence[str], phrase: Sequence[str]) -> bool:
    return any(all(fnmatchcase(word, glob) for word, glob in zip(words[i:], phrase))
               for i in range(len(words) - len(phrase) + 1))
