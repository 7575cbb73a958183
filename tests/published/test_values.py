"""neuronym.published.values, neuronym.common.statistics: printed tables are sound, every value comes out, a
wrong one is seen, statistics are right.
"""

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pandas as pd
import pytest

from neuronym.common.statistics import holm, interval, paired
from neuronym.published.labels import label_files, load_published, load_ratings, TABLES
from neuronym.published.values import compared, pool_matches, printed, recomputed

KEYS = ["quantity", "whose", "network", "layer"]
ROWS = {
    "label_statistics": 164,
    "metric_sanity": 90,
    "name_accuracy": 124,
    "reliable_neurons": 103,
    "text_cosines": 65,
}


def test_every_table_is_known():
    assert {path.stem for path in TABLES.iterdir()} == {*ROWS, "label_files"}


@pytest.mark.parametrize("name", ROWS)
def test_printed_tables_have_sources_and_digits(name):
    with open(TABLES / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    assert columns[0] == "quantity" and columns[-3:] == ["source", "value", "digits"] and len(columns) > 5
    for row in rows:
        assert None not in row and all(
            text is not None and text == text.strip() != "" for text in row.values()
        )
        assert math.isfinite(float(row["value"])) and 0 <= int(row["digits"]) <= 5
        # written as printed: with exactly these digits, so the value rounds to itself
        assert row["value"] == f"{float(row['value']):.{row['digits']}f}", row
    keys = [tuple(row[c] for c in columns[:-3]) for row in rows]
    if name == "reliable_neurons":  # its value, a unit, tells a row
        keys = [(*key, row["value"]) for key, row in zip(keys, rows)]
    assert len(set(keys)) == len(keys) == ROWS[name]
    table = printed(name)
    assert list(table.columns) == columns and table["value"].tolist() == [float(r["value"]) for r in rows]
    assert table["value"].dtype == "float64" and table["digits"].dtype == "int64"


@pytest.mark.parametrize("name", ROWS)
def test_shares_and_cosines_are_not_in_percent(name):
    table = printed(name)
    counts = ["mean_rank", "median_rank", "mean rating", "rating, mean", "rating, low", "rating, high"]
    fractions = table[(table["digits"] > 0) & ~table["quantity"].isin([*counts, "words of a label"])]
    assert fractions["value"].abs().max() <= 1 or fractions.empty


def test_sources_name_files_that_are_pinned():
    known = printed("label_statistics")
    named = set(re.findall(r"(?:clip_dissect|dnd)/\S+\.csv", " ".join(known["source"])))
    assert len(named) > 25 and named <= set(label_files())


def test_an_unknown_table_gives_the_nearest_names(monkeypatch, tmp_path):
    with pytest.raises(
        KeyError, match="no table of printed values 'text_cosine'; nearest: text_cosines; known"
    ):
        printed("text_cosine")
    with pytest.raises(KeyError, match="no table of printed values '../published/text_cosines'"):
        printed("../published/text_cosines")
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    assert len(printed("text_cosines")) == 65, "printed values belong to the code, wherever data lie"


@pytest.fixture(scope="module")
def found(shared):
    return recomputed(load_published(shared / "published"), load_ratings(shared / "published"))


def test_every_published_value_comes_out(found):
    table = compared(found)
    assert len(table) == len(printed("label_statistics")) == 164 and table["same"].all(), table[
        ~table["same"]
    ].to_string()


def test_a_wrong_or_missing_value_is_seen(found):
    key = ("detectors", "netdissect", "resnet50", "layer4")
    known = printed("label_statistics").set_index(KEYS).sort_index()[["value", "digits"]]
    known.loc[key, "value"] = 1354
    known.loc[("mean score", "x", "y", "z"), :] = 0.1, 4
    table = compared(found, known.reset_index())
    assert (~table["same"]).sum() == 2 and table[table["whose"] == "x"]["recomputed"].isna().all()
    assert table.set_index(KEYS).loc[key, "difference"] == 1


def test_only_ends_of_intervals_may_differ_by_more_than_a_digit(found):
    off = pd.DataFrame(
        [
            ("rating, low", "Mean", "resnet50", "all", 2.4275 - 0.0099, 3),
            ("rating, high", "Mean", "resnet50", "all", 2.785 + 0.0101, 3),
            ("rating, mean", "Mean", "resnet50", "all", 2.606, 3),
        ],
        columns=[*KEYS, "value", "digits"],
    )
    assert compared(found, off)["same"].tolist() == [True, False, False]


def test_pool_by_hand():
    ratings = pd.DataFrame(
        [
            ("layer1", u, s, r, label)
            for u, s, label in [(0, "x", "Red dogs"), (1, "x", "sea"), (0, "y", "sky"), (1, "y", "cat")]
            for r in ("E1", "E2")
        ],
        columns=["layer", "unit", "scoring", "rater", "label"],
    )
    labels = pd.DataFrame(
        [
            ("resnet50", "layer1", 0, "clip_dissect", 1, "red dogs"),
            ("resnet50", "layer1", 1, "clip_dissect", 1, "Sea"),
            ("resnet50", "layer2", 1, "milan_base", 1, "cat"),
            ("resnet18", "layer1", 1, "milan_base", 1, "cat"),
            ("resnet50", "layer1", 1, "milan_base", 2, "cat"),
            ("resnet50", "layer1", 0, "netdissect", 1, "cat"),
        ],
        columns=["model", "layer", "unit", "method", "rank", "label"],
    )
    assert pool_matches(ratings, labels).loc[
        ["clip_dissect", "milan_base", "netdissect"]
    ].values.tolist() == [[2, 0], [0, 0], [0, 0]]
    moved = pool_matches(ratings, labels, 1)
    assert (
        list(moved.columns) == ["x", "y"]
        and moved.loc["netdissect"].tolist() == [0, 1]
        and moved.values.sum() == 1
    )


def test_ratings_of_the_paper(shared):
    wide = load_ratings(shared / "published").pivot_table(
        index=["layer", "unit"], columns="scoring", values="rating"
    )
    low, high = interval(wide["Image-Products"])
    assert (low, high) == (pytest.approx(2.867, abs=0.02), pytest.approx(3.192, abs=0.02))
    tests = paired(wide).set_index(["first", "second"])
    assert tests.loc[("Image-Products", "Topk-Compare"), ["difference", "p"]].tolist() == [
        pytest.approx(0.175),
        pytest.approx(0.0913, abs=1e-4),
    ]
    assert tests.loc[("Image-Products", "Mean"), "p"] == pytest.approx(1.57e-4, rel=0.01)
    assert (tests["holm"] >= tests["p"]).all()


def test_intervals_cover():
    """Of 95 % intervals of a known mean about 95 % hold it (binomial: 1,000 of them, five standard
    errors).
    """
    dice = np.random.default_rng(1)
    held = sum(
        low <= 2 <= high
        for low, high in (interval(dice.normal(2, 1, 60), seed=i, draws=400) for i in range(1000))
    )
    assert 905 <= held <= 985


def test_interval_of_a_constant_and_of_nothing():
    assert interval([3.0, 3.0]) == (3, 3) and interval([1, 2, 3], seed=1) == interval([1, 2, 3], seed=1)
    for wrong in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="a bootstrap takes finite values, at least one, got"):
            interval(wrong)


def test_p_values_are_uniform_under_the_null():
    dice = np.random.default_rng(2)
    p = [paired(pd.DataFrame(dice.normal(size=(40, 2)), columns=["a", "b"]))["p"][0] for _ in range(300)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09 and 0.42 < np.mean(p) < 0.58


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == [0.03, 0.06, 0.06] and holm([0.9, 0.8]).tolist() == [1, 1]


def test_paired_needs_pairs():
    table = pd.DataFrame({"a": [1.0, 2], "b": [1.0, 2]})
    assert paired(table)[["difference", "p"]].values.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="a value for every neuron, 1 neurons lack one"):
        paired(table.assign(b=[1.0, float("nan")]))
