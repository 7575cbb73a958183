"""Units by what their names say: literal versions, words that match as a whole, errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neuronym.evaluation.pruning import chosen, clusters, groups, matching, split_patterns

NAMES = {0: "Fishing boat", 3: ["by the sea", "water"], 4: "season", 7: "sea-lion", 9: "seas", 5: ""}


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("fish*|sea", [0, 3, 7]),
        ("fish", []),
        ("FISHING", [0]),
        ("sea?", [9]),
        ("sea?|sea", [3, 7, 9]),
        ("water|fish*", [0, 3]),
        ("the sea", [3]),
        ("sea lion", [7]),
        ("sea-lion", [7]),
        ("lion sea", []),
        ("*boat", [0]),
        ("fishing * ", [0]),
        ("  season ", [4]),
    ],
)
def test_words_match_as_a_whole(pattern, found):
    assert matching(NAMES, pattern) == found


def test_names_come_as_pairs_too_and_keys_once():
    pairs = [(5, "red"), (2, "a red_star"), (5, "red ring"), (1, "ＲＥＤ"), (0, "Straße")]
    assert matching(pairs, "red|strasse") == [5, 2, 1, 0]
    assert matching([(1, "cafe\u0301")], "café") == [1]


@pytest.mark.parametrize(
    "pattern, text",
    [
        ("", "no word"),
        ("fish|", "no word"),
        ("*", "no word"),
        ("fish.", r"leave out '\.'"),
        ("[a-z]", "leave out"),
        ("(sea)", "leave out"),
        ("_", "no word"),
        (3, "got int"),
    ],
)
def test_bad_patterns_are_errors(pattern, text):
    with pytest.raises(ValueError, match=text):
        matching(NAMES, pattern)


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["layer", "unit", "rank", "label"])


def test_chosen_units_of_a_table():
    labels = table(
        [
            ("b", 7, 1, "red ring"),
            ("b", 7, 2, "star"),
            ("a", 3, 1, "star"),
            ("a", 3, 2, "red"),
            ("a", 1, 2, "sea"),
            ("b", 2, 1, "red"),
            ("c", 0, 1, "sea"),
        ]
    )
    assert chosen(labels, "red") == {"b": [2, 7]} and chosen(labels, "red", rank=2) == {"b": [2, 7], "a": [3]}
    assert chosen(labels, "moon") == {}


def test_groups_count_units_by_word():
    labels = table(
        [
            ("b", 0, 1, "Red stars"),
            ("b", 1, 1, "a star, a star"),
            ("b", 1, 2, "red"),
            ("a", 0, 1, "picture of stars"),
            ("a", 2, 1, "red"),
            ("a", 3, 1, "lens"),
        ]
    )
    found = groups(labels)
    assert found.to_numpy().tolist() == [
        ["stars", "b", 2, [0, 1]],
        ["stars", "a", 1, [0]],
        ["red", "b", 1, [0]],
        ["red", "a", 1, [2]],
    ]
    assert groups(labels, least=1)["word"].tolist()[-1] == "lens" and groups(labels, least=4).empty


def literal_clusters(rows: list[list[float]], threshold: float) -> list[set[int]]:
    rows = [np.array(r) / np.linalg.norm(r) for r in rows]
    sets = [{i} for i in range(len(rows))]
    while len(sets) > 1:
        best = max(
            (
                (np.mean([rows[i] @ rows[j] for i in a for j in b]), n, m)
                for n, a in enumerate(sets)
                for m, b in enumerate(sets)
                if n < m
            )
        )
        if best[0] < threshold:
            break
        sets[best[1]] |= sets.pop(best[2])
    return sets


@pytest.mark.parametrize("threshold", [0.99, 0.8, 0.3, -1])
def test_clusters_are_the_literal_ones(threshold):
    T = torch.randn(9, 3, generator=torch.Generator().manual_seed(2))
    labels = [f"word {i}" for i in range(9)]
    found = clusters(labels, T, threshold)
    expected = {frozenset(f"word {i}" for i in some) for some in literal_clusters(T.tolist(), threshold)}
    assert {frozenset(some["label"]) for _, some in found.groupby("cluster")} == expected
    turned = clusters(labels[::-1], T.flip(0) * 7, threshold)
    assert turned.iloc[::-1].to_numpy().tolist() == found.to_numpy().tolist()


def test_clusters_have_the_middle_label_as_name_and_count_what_is_given():
    T = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [0, 1], [0, 1], [0, 1]])
    found = clusters(["low", "mid", "high", "up", "Up", "up", "UP"], T)
    assert (
        found["cluster"].tolist() == [1, 1, 1, 0, 0, 0, 0]
        and found["name"].tolist() == ["mid"] * 3 + ["up"] * 4
    )
    assert clusters(["one"], T[:1]).to_numpy().tolist() == [["one", 0, "one"]]


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: clusters(["a"], torch.ones(2, 3)), ValueError, "each of 1 labels"),
        (lambda: clusters(["a"], torch.zeros(1, 3)), ValueError, "not zero"),
        (lambda: clusters(["a", "b"], torch.ones(2, 3), 1.5), ValueError, "threshold"),
        (lambda: clusters(["a", "b"], torch.ones(2, 3), memory=90), ValueError, "raise memory"),
    ],
)
def test_errors_say_what_to_do(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_patterns_are_checked_before_they_are_used():
    assert split_patterns(" fish*|sea ; red;; ") == ["fish*|sea", "red"] and split_patterns("") == []
    with pytest.raises(ValueError, match="a part has no word in it"):
        split_patterns("sea; *")
