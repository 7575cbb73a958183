"""Units by what their names say: literal versions, words that match as a whole, errors."""

from __future__ import annotations

import pandas as pd
import pytest

from neuronym.evaluation.pruning import chosen, groups, matching, split_patterns

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


def test_patterns_are_checked_before_they_are_used():
    assert split_patterns(" fish*|sea ; red;; ") == ["fish*|sea", "red"] and split_patterns("") == []
    with pytest.raises(ValueError, match="a part has no word in it"):
        split_patterns("sea; *")
