"""What runs of other notebooks say of a unit beside its name: a picture made for it, words, a causal score.

label_notes    of a run of labelling: more words, another pooling, why there is no name
made_pictures  of a run of visualisation: the picture that excites a unit, with what became of it
causal_notes   of a run of trust: how far a unit's changes go along with those of its name
lens_words     of a run of second_order: the words that a neuron of a CLIP writes

All of {(layer, unit): ...} for the layers of `sizes` {layer: units}; what a run says of others is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from neuronym.common.tables import read_table, TEXT
from neuronym.similarity.labels import read_labels

SAID = 5  # words of a neuron
CAUSAL, LENS = "Causal score", "Words that it writes, by the second-order lens"
WITHOUT, POOLING, SEVERAL = "Why it has no name", "Another pooling names it better", "In several words"


def label_notes(
    labels: pd.DataFrame, several: pd.DataFrame | None, sizes: Mapping[str, int]
) -> dict[str, dict[tuple[str, int], str]]:
    """By title, what a labels table says in its columns note and pooling_note, and several_words.csv, where
    there is one, of units that several words tell better than one.
    """
    found = {title: {} for title in (WITHOUT, POOLING, SEVERAL)}
    for title, column in ((WITHOUT, "note"), (POOLING, "pooling_note")):
        there = labels[labels[column].fillna("") != ""] if column in labels else labels[:0]
        for row in _known(there.drop_duplicates(["layer", "unit"]), sizes).itertuples():
            found[title][row.layer, int(row.unit)] = getattr(row, column)
    if several is not None:
        for row in _known(several[several["better"].astype(bool)], sizes).itertuples():
            several_r, one_r = (f"{r:.2f}".lstrip("0") for r in (row.correlation_several, row.correlation))
            told = f"“{row.several}”: correlation {several_r} on images held out, of one word {one_r}"
            found[SEVERAL][row.layer, int(row.unit)] = told
    return found


def made_pictures(folder: Path, sizes: Mapping[str, int]) -> dict[tuple[str, int], tuple[Path, str]]:
    """File and caption of the picture that a run made for each unit, of `visualised.csv`; photos that it
    accentuated and pictures of vectors are left out.

    Errors: FileNotFoundError where a picture is gone, or lies outside the run's folder.
    """
    table = read_table(folder / "visualised.csv", TEXT | {"direction", "file", "alpha", "image", "photo"})
    table = table[table["unit"].notna() & (table["image"] != "accentuated")]
    found = {}
    for row in _known(table, sizes).itertuples():
        file = (folder / row.file).resolve()
        if not (file.is_file() and file.is_relative_to(folder.resolve())):
            raise FileNotFoundError(
                f"visualised.csv names {row.file}, which {folder} lacks; run visualisation again"
            )
        told = f"Made to excite it: activation {row.activation:.3g}, best real picture {row.best_real:.3g}"
        if pd.notna(row.label_share):
            told += f"; nearer to “{row.label}” than to {100 * row.label_share:.0f} % of other names"
        found[row.layer, int(row.unit)] = file, told
    return found


def causal_notes(folder: Path, sizes: Mapping[str, int]) -> dict[tuple[str, int], str]:
    """The column causal of a run's trust.csv in words (`trust.counterfactual.causal_scores`); nothing where
    the run had no pairs of pictures that differ in one thing.
    """
    table = read_table(folder / "trust.csv")
    if "causal" not in table:
        return {}
    how = "how far the unit changes with it, and with nothing else, where one thing in a picture is changed"
    found = {}
    for row in _known(table[table["causal"].notna()], sizes).itertuples():
        found[row.layer, int(row.unit)] = f"{row.causal:.2f} for “{row.name}”, from -1 to 1: {how}"
    return found


def lens_words(folder: Path, sizes: Mapping[str, int]) -> dict[tuple[str, int], str]:
    """The first words of each neuron's code, with their coefficients, of a run's labels table."""
    table = read_labels(folder / "labels.parquet")
    table = table[(table["method"] == "second_order") & (table["label"] != "")].sort_values("rank")
    found = {}
    for (layer, unit), rows in _known(table, sizes).groupby(["layer", "unit"], sort=False):
        said = [f"{row.label} ({row.score:+.2g})" for row in rows.head(SAID).itertuples()]
        found[layer, int(unit)] = ", ".join(said)
    return found


def _known(table: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    """Rows of the units that there are, the first of each."""
    there = table["unit"] < table["layer"].map(sizes).astype(float)
    return table[there] if "rank" in table else table[there].drop_duplicates(["layer", "unit"])
