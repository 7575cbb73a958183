"""Tables as CSV files: what is written comes back, and no program takes a text for a formula.

TEXT         columns that hold texts, whatever these look like
write_table  table -> CSV
read_table   CSV, ours or another's -> table

Spreadsheets compute cells that begin with = + - @ or a tab. Texts that do are written with an apostrophe
before them, and those that begin with apostrophes and then such a character with one more; reading takes one
off. Numbers stay numbers: a negative one has no apostrophe.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd

TEXT = frozenset(
    """model layer method label description summary name names true_name concept text texts truth candidate
    caption category kind group id reason variant source setting probe clip template consensus encoder whose
    table features_key""".split()
)
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # also their wide forms
ESCAPED = re.compile(f"'{FORMULA.pattern}")
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf")


def write_table(table: pd.DataFrame, path: Path, index: bool = False, **more) -> None:
    """Write a table as UTF-8; `more` goes to pandas. Texts that would be formulas get an apostrophe; half
    characters, which no file can hold, are written as \\\\ud83d.
    """
    plain, texts = table.copy(), []
    for place, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            texts.append([_escaped(cell) for cell in table.iloc[:, place]])
            plain.isetitem(place, texts[-1])
    if index and not isinstance(table.index, pd.MultiIndex):
        plain.index = pd.Index([_escaped(cell) for cell in table.index], name=table.index.name)
    if not isinstance(table.columns, pd.MultiIndex):
        plain.columns = [_escaped(name) for name in table.columns]
    texts.append(plain.index if index else ())
    returns = any("\r" in cell for cells in texts for cell in cells if isinstance(cell, str))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL  # which lets a carriage return through
    plain.to_csv(path, index=index, encoding="utf-8", quoting=quoting, **more)


def read_table(path: Path, text: Collection[str] = TEXT) -> pd.DataFrame:
    """Read a CSV file with a head. Columns named in `text`, and any with a cell that is no number, hold texts
    as they stand, empty ones too ("null", "NA", "007"); the others numbers, NaN where a cell is empty, or
    true and false.

    Errors: ValueError that names the file, where it is empty, not UTF-8, or no table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8 with a head, but is not: {error}") from None
    table.columns = [_unescaped(name) for name in table.columns]
    for place, name in enumerate(table.columns):
        cells = table.iloc[:, place].tolist()
        table.isetitem(place, [_unescaped(c) for c in cells] if name in text else _values(cells))
    return table


def _values(cells: list[str]) -> list:
    """Numbers, or true and false, where all cells are such or empty; else texts."""
    filled = [cell for cell in cells if cell and cell not in ("nan", "NaN")]
    if filled and all(NUMBER.fullmatch(cell) for cell in filled):
        if len(filled) == len(cells) and all(re.fullmatch(r"-?\d{1,18}", cell) for cell in cells):
            return list(map(int, cells))
        return [float(cell) if cell else float("nan") for cell in cells]
    if filled and len(filled) == len(cells) and set(cells) <= {"True", "False"}:
        return [cell == "True" for cell in cells]
    if cells and not filled:
        return [float("nan")] * len(cells)
    return [_unescaped(cell) for cell in cells]


def _escaped(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    cell = cell if cell.isascii() else cell.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{cell}" if FORMULA.match(cell) else cell


def _unescaped(cell: str) -> str:
    return cell[1:] if ESCAPED.match(cell) else cell
