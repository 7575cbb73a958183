"""CSV files: every text comes back as it was, numbers stay numbers, and no cell is a formula."""

from __future__ import annotations

import csv
import random

import numpy as np
import pandas as pd
import pytest

from neuronym.common.tables import FORMULA, read_table, write_table

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
