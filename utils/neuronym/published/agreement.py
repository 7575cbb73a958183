"""Do two methods call the same neurons by the same words? With the control that shows what chance gives.

content_words   the words of a label that say something
agreement       share of neurons whose two labels share one, layer by layer
offsets         the same when one table's units are moved, which tells a table that counts from 1
"""
from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

EMPTY = frozenset("a an and at by for from in of on or the to with".split())
SHIFTS = range(1, 21)


def content_words(label: str) -> frozenset[str]:
    """Lower-case words without articles and prepositions, plurals in s made singular; Broden's "-c" and "-s" go first."""
    words = re.findall("[a-z]+", re.sub("-[cs]$", "", label.lower()))
    return frozenset(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w
                     for w in words if w not in EMPTY)


def agreement(first: pd.DataFrame, second: pd.DataFrame, shifts: Iterable[int] = SHIFTS) -> pd.DataFrame:
    """By layer: units that both tables have, share whose labels of rank 1 have a content word in common, and `chance`,
    the mean share when the units of the second are moved by each of `shifts` places, around the end.

    Both are labels tables of one method and one model. Errors: ValueError for several labels of rank 1 of a unit, and
    for tables that have no unit in common.
    """
    a, b = _words(first), _words(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise ValueError(f"agreement needs units that both tables have, got layers {sorted({k[0] for k in a})} and "
                         f"{sorted({k[0] for k in b})}; choose tables of one model")
    rows = []
    for layer in dict.fromkeys(layer for layer, _ in shared):
        ours, theirs = zip(*((a[key], b[key]) for key in shared if key[0] == layer))
        n, moved = len(ours), [_share(ours, theirs[s % len(ours):] + theirs[:s % len(ours)]) for s in shifts]
        rows.append((layer, n, _share(ours, theirs), sum(moved) / max(len(moved), 1)))
    return pd.DataFrame(rows, columns=["layer", "units", "agreement", "chance"])


def offsets(first: pd.DataFrame, second: pd.DataFrame, most: int = 2) -> pd.Series:
    """Share of all common units that agree when the second's units are moved by -most .. most; the index is the move.

    If the second counts from 1 and was read as if from 0, the largest share is at -1.
    """
    moves = range(-most, most + 1)
    found = {}
    for move in moves:
        table = agreement(first, second.assign(unit=second["unit"] + move), shifts=())
        found[move] = float((table["agreement"] * table["units"]).sum() / table["units"].sum())
    return pd.Series(found, name="agreement")


def _words(table: pd.DataFrame) -> dict[tuple[str, int], frozenset[str]]:
    best = table[table["rank"] == 1]
    twice = best.duplicated(["layer", "unit"])
    if twice.any():
        row = best[twice].iloc[0]
        raise ValueError(f"each unit has one label of rank 1, got several for unit {row['unit']} of {row['layer']}; "
                         "choose one method and one model")
    return {(layer, unit): content_words(label) for layer, unit, label in zip(best["layer"], best["unit"], best["label"])}


def _share(ours: tuple[frozenset[str], ...], theirs: tuple[frozenset[str], ...]) -> float:
    return sum(bool(a & b) for a, b in zip(ours, theirs)) / len(ours)
