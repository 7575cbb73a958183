"""Tables as CSV files: what is written comes back, and no program takes a text for a formula.

TEXT            columns that hold texts, whatever these look like
write_table     table, or parts of one -> CSV
of_their_units  a table of units with columns of another one
read_table      CSV, ours or another's -> table

Spreadsheets compute cells that begin with = + - @ or a tab. Texts that do are written with an apostrophe
before them, and those that begin with apostrophes and then such a character with one more; reading takes one
off. Numbers stay numbers: a negative one has no apostrophe.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

TEXT = frozenset(
    """model layer method label description summary name names true_name concept text texts truth candidate
    caption category kind group id reason variant source setting probe clip template consensus encoder whose
    table features_key""".split()
)
ROWS = 20_000  # whose texts are Python objects at a time
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # also their wide forms
ESCAPED = re.compile(f"'{FORMULA.pattern}")
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf")


def write_table(
    table: pd.DataFrame | Iterable[pd.DataFrame], path: Path, index: bool = False, **more
) -> None:
    """Write a table, or tables of the same columns one below the other, as UTF-8; `more` goes to pandas.
    Texts that would be formulas get an apostrophe; half characters, which no file can hold, are written as
    \\\\ud83d. `ROWS` rows at a time have their texts as Python objects.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        for whole in [table] if isinstance(table, pd.DataFrame) else table:
            plain = whole.copy(deep=False)
            mixed = [place for place, kind in enumerate(whole.dtypes) if pd.api.types.is_object_dtype(kind)]
            for place in mixed:  # what they hold is found out of all rows
                plain.isetitem(place, [_escaped(cell) for cell in whole.iloc[:, place]])
            for start in range(0, max(len(plain), 1), ROWS):
                header = not file.tell()
                _write_rows(plain.iloc[start : start + ROWS], file, index, mixed, header=header, **more)


def _write_rows(table: pd.DataFrame, file: TextIO, index: bool, escaped: Sequence[int], **more) -> None:
    plain, texts = table.copy(deep=False), []
    for place, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            cells = table.iloc[:, place].tolist()
            texts.append(cells if place in escaped else [_escaped(cell) for cell in cells])
            if place not in escaped:
                plain.isetitem(place, texts[-1])
    if index and not isinstance(table.index, pd.MultiIndex):
        plain.index = pd.Index([_escaped(cell) for cell in table.index], name=table.index.name)
    if not isinstance(table.columns, pd.MultiIndex):
        plain.columns = [_escaped(name) for name in table.columns]
    texts.append(plain.index if index else ())
    returns = any("\r" in cell for cells in texts for cell in cells if isinstance(cell, str))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL  # which lets a carriage return through
    plain.to_csv(file, index=index, quoting=quoting, lineterminator="\n", **more)


def of_their_units(table: pd.DataFrame, found: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A table with columns layer and unit, and `columns` of `found`, which has a row for each unit, in all
    rows of that unit: missing values where `found` has no row for it. They replace those of the same name.
    """
    place = np.full(len(table), -1)
    theirs = found.groupby("layer", sort=False).indices
    for layer, rows in table.groupby("layer", sort=False).indices.items():
        if layer in theirs:
            units = pd.Index(found["unit"].to_numpy()[theirs[layer]])
            at = units.get_indexer(table["unit"].to_numpy()[rows])
            place[rows] = np.where(at < 0, -1, theirs[layer][at])
    known = table.drop(columns=list(columns), errors="ignore").reset_index(drop=True)
    beside = found[list(columns)].reset_index(drop=True).reindex(place).reset_index(drop=True)
    return pd.concat([known, beside], axis=1)


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
