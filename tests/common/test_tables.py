"""CSV files: every text comes back as it was, numbers stay numbers, and no cell is a formula."""

from __future__ import annotations

import csv
import random

import numpy as np
import pandas as pd
import pytest

from neuronym.common import tables
from neuronym.common.tables import FORMULA, of_their_units, read_table, write_table

MISSING = ["null", "None", "NA", "nan", "NaN", "N/A", "n/a", "", "<NA>", "#N/A", "NULL", "NaT"]
NUMBERS = ["007", "1e5", "1984", "True", "False", "inf", "-inf", "0x1F", "1_000", "١٢", "3.10", "+1", "-0"]
FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-x",
    "@x",
    "\tx",
    "\rx",
    "\nx",
    "＝1",
    "'=x",
    "''-x",
    "'tis",
    "'",
    "''",
    "=",
]
QUOTED = [
    'say "x"',
    "a,b",
    "a;b",
    "line\nbreak",
    "line\r\nbreak",
    " space ",
    "日本語",
    "🐟",
    "<b>",
    "$x$",
    "\\n",
    "#x",
]


@pytest.mark.parametrize(
    "words", [MISSING, NUMBERS, FORMULAS, QUOTED, ["1", "2"], ["nan"], [""], ["True", "False"]]
)
def test_texts_come_back(tmp_path, words):
    write_table(pd.DataFrame({"label": words, "unit": range(len(words))}), tmp_path / "t.csv")
    found = read_table(tmp_path / "t.csv")
    assert found["label"].tolist() == words and found["unit"].tolist() == list(range(len(words)))
    write_table(found, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()


def test_a_column_of_texts_alone(tmp_path):
    words = ["", "x", "", "nan"]
    write_table(pd.DataFrame({"label": words}), tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["label"].tolist() == words


def test_random_texts_come_back(tmp_path):
    dice = random.Random(0)
    words = ["".join(dice.choices("=+-@'\"\t\r\n,x1 ＝é", k=dice.randint(0, 5))) for _ in range(2000)]
    write_table(pd.DataFrame({"label": words}), tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["label"].tolist() == words


def test_no_cell_is_a_formula_and_numbers_are_numbers(tmp_path):
    table = pd.DataFrame({"label": FORMULAS, "=score": np.linspace(-1, 1, len(FORMULAS))})
    write_table(table.set_index("label"), tmp_path / "t.csv", index=True)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", "'=score"] and float(rows[1][1]) == -1
    assert not any(FORMULA.match(cell) and not cell.startswith("'") for cell, _ in rows)
    found = read_table(tmp_path / "t.csv")
    assert found["label"].tolist() == FORMULAS and found["=score"].tolist() == table["=score"].tolist()


def test_numbers_come_back(tmp_path):
    table = pd.DataFrame(
        {
            "a": [0.1 + 0.2, -1e-300, float("nan")],
            "b": [1, -2, 3],
            "c": [True, False, True],
            "d": [float("inf"), -float("inf"), 0.0],
            "e": [float("nan")] * 3,
        }
    )
    write_table(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), table)


def test_other_columns_of_words_keep_them(tmp_path):
    (tmp_path / "t.csv").write_text("code,x\n007,1\n12,\n", encoding="utf-8")
    found = read_table(tmp_path / "t.csv")
    assert found["code"].tolist() == ["007", "12"] and np.isnan(found["x"][1])


def test_half_characters_do_not_stop_a_run(tmp_path):
    write_table(pd.DataFrame({"label": pd.Series(["a\ud83d"], dtype=object)}), tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["label"].tolist() == ["a\\ud83d"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n1,2,3,4\n"'])
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match="t.csv must be a CSV file in UTF-8 with a head, but is not: "):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("index", [False, True])
def test_pieces_are_written_as_the_whole(tmp_path, monkeypatch, index):
    dice = random.Random(1)
    table = pd.DataFrame({"label": ["".join(dice.choices("=-@',x1 é", k=3)) for _ in range(50)]})
    table["score"], table["unit"] = np.random.default_rng(0).normal(size=50), range(50)
    table["note"], table["better"] = [None] * 20 + ["x"] * 30, [i % 3 == 0 for i in range(50)]
    table["mixed"] = pd.Series(["", 0.123456789, 1] * 16 + ["a", "-b"], dtype=object)
    table["objects"] = pd.Series(np.linspace(0, 1, 50).tolist(), dtype=object)
    write_table(table, tmp_path / "whole.csv", index=index, float_format="%.4g")
    whole = (tmp_path / "whole.csv").read_bytes()
    monkeypatch.setattr(tables, "ROWS", 7)
    write_table(table, tmp_path / "pieces.csv", index=index, float_format="%.4g")
    assert (tmp_path / "pieces.csv").read_bytes() == whole
    parts = (table.iloc[start : start + 11] for start in range(0, 50, 11))
    plain = table.drop(columns=["mixed", "objects"])
    write_table(plain, tmp_path / "plain.csv", index=index)
    write_table((part[list(plain)] for part in parts), tmp_path / "parts.csv", index=index)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    write_table(table.iloc[:0], tmp_path / "none.csv", index=index)
    assert (tmp_path / "none.csv").read_bytes() == whole.splitlines(keepends=True)[0]


def test_columns_of_units_are_those_of_a_merge():
    g = np.random.default_rng(0)
    every = [(layer, unit) for layer in ("a", "b", "c") for unit in g.permutation(9).tolist()]
    found = pd.DataFrame(every, columns=["layer", "unit"]).assign(x=g.normal(size=27), y=g.random(27) < 0.5)
    rows = [every[i] for i in g.integers(0, 27, 40)]
    table = pd.DataFrame(rows, columns=["layer", "unit"]).assign(x=0, label="w")
    pd.testing.assert_frame_equal(
        of_their_units(table, found, ["x", "y"]),
        table.drop(columns="x").merge(found, on=["layer", "unit"], how="left"),
    )
    some = found[found["layer"] != "b"].iloc[3:]
    expected = table.drop(columns="x").merge(some, on=["layer", "unit"], how="left")
    pd.testing.assert_frame_equal(of_their_units(table, some, ["x", "y"]), expected)
    assert expected["x"].isna().any()
