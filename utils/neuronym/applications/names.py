"""Names and trust that an edit goes by: of a run, of any labels table, or made here.

read_names   labels of a run's folder or of a file, with a column trust where there is one
named_here   labels by CLIP-Dissect, with a trust from images held out
check_files  refuses names of other autoencoders' features than those at hand
labels_list  the best label of every unit of a layer
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from neuronym.common.tables import read_table
from neuronym.common.types import Progress
from neuronym.dissect import clip_dissect, DEFAULT, FEATURES
from neuronym.measurements import Measurements
from neuronym.similarity.labels import read_labels
from neuronym.sparse import features_key, split_name
from neuronym.trust.quick import quick_trust, with_trust
from neuronym.trust.untrained import standing_out, untrained

FILES = ("labels.parquet", "labels.csv", "trust.csv")


def read_names(path: Path | str) -> pd.DataFrame:
    """A labels table: FILES of a run's folder, or one of them; a trust.csv beside labels gives these its
    trust, where they are the same.

    Errors: FileNotFoundError; those of `similarity.labels.read_labels`.
    """
    path = Path(path).expanduser()
    file = next((path / name for name in FILES if (path / name).is_file()), path)
    if not file.is_file():
        raise FileNotFoundError(f"no labels at {path}: neither a file nor a folder with {', '.join(FILES)}")
    if file.name == "trust.csv":
        return _of_trust(file)
    labels, beside = read_labels(file), file.parent / "trust.csv"
    if "trust" in labels or not beside.is_file():
        return labels
    trust = _of_trust(beside)[["layer", "unit", "label", "trust"]]
    return labels.merge(trust, how="left", on=["layer", "unit", "label"])


def named_here(
    data: Measurements, held_out: Measurements, similarity: str = DEFAULT, progress: Progress | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Labels of rank 1 by CLIP-Dissect, with the columns of `trust.quick.quick_trust`, and what is to be said
    of them; units without a name have no trust.
    """
    labels = clip_dissect(data, similarity, k=1, progress=progress)
    index, named = {word: i for i, word in enumerate(data.concepts)}, {}
    for layer, of_layer in labels.groupby("layer", sort=False):
        named[layer] = [index.get(label, 0) for label in of_layer["label"]]
    shares = standing_out(data, progress=progress)
    trust, told = quick_trust(data, held_out, labels, named, untrained=untrained(shares))
    labels = with_trust(labels, trust)
    labels.loc[labels["label"] == "", "trust"] = float("nan")
    return labels, told


def check_files(labels: pd.DataFrame, layers: Iterable[str]) -> None:
    """ValueError where names are of features of another file than that of the layer of this name."""
    known = labels if FEATURES in labels else labels.assign(**{FEATURES: ""})
    for layer in layers:
        said = set(known.loc[known["layer"] == layer, FEATURES].fillna("")) - {""}
        key = features_key(layer)
        if said and said != {key}:
            raise ValueError(
                f"names of '{layer}' are of features of a file of key {', '.join(sorted(said))}, got "
                f"{split_name(layer)[1]} of key {key}; name the file that they were made with"
            )


def labels_list(labels: pd.DataFrame, layer: str, K: int) -> list[str]:
    """The label of rank 1 of each of K units, "" for one without."""
    best = labels[(labels["rank"] == 1) & (labels["layer"] == layer)]
    found = [""] * K
    for unit, label in zip(best["unit"], best["label"]):
        found[unit] = label
    return found


def _of_trust(file: Path) -> pd.DataFrame:
    """trust.csv of the notebook trust as a labels table: its `name` is the label, its `label` a number."""
    table = read_table(file)
    lacking = {"layer", "unit", "trust"} - set(table)
    if lacking:
        raise ValueError(f"{file} lacks {', '.join(sorted(lacking))}; name a run of the notebook trust")
    table = table.drop(columns="label").rename(columns={"name": "label"}) if "name" in table else table
    return table.assign(rank=1, method=table.get("method", "trust"), model=table.get("model", ""))
