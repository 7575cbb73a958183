"""Labels that others published, read from pinned files into the one labels schema; and how far they agree.

TABLES            the folder of committed tables: what others printed, and which files are read
Published         one file: whose labels of which network, and what its bytes must be
label_files       path below a folder -> `Published`, all of them
published_folder  where the files are
fetch_published   download what is missing, verified
load_published    labels of one or more methods, units counted from 0
labels_of_others  tables of files that a user names
load_ratings      human ratings of Describe-and-Dissect's scoring functions
agreement         share of neurons whose two labels share a word, by layer, beside what chance gives
offsets           the same when one table's units are moved, which tells a table that counts from 1

Files of CLIP-Dissect (Oikarinen & Weng 2023; with results of MILAN, Hernandez et al. 2022, and NetDissect,
Bau et al. 2017) lie in clip_dissect/, those of Describe-and-Dissect (Bai et al. 2025) in dnd/, as in their
repositories' data/. NetDissect counts units from 1, all others from 0: read as they are, a join pairs every
label with its neighbour.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neuronym.common.checks import unknown
from neuronym.common.files import sha256
from neuronym.common.tables import read_table, TEXT
from neuronym.common.text import content_words
from neuronym.runs.folders import data_dir, from_root, ROOT
from neuronym.similarity.labels import COLUMNS, read_labels

# beside the code whatever NEURONYM_DATA says: what is compared with must be what this version was tested with
TABLES = ROOT / "data" / "published"
SOURCES = {
    "clip_dissect": "Trustworthy-ML-Lab/CLIP-dissect",
    "dnd": "Trustworthy-ML-Lab/Describe-and-Dissect",
}
URL = "https://raw.githubusercontent.com/{repository}/HEAD/data/{path}"


@dataclass(frozen=True)
class Published:
    """One file: whose labels of which network, the layer where the file has no column for it, and its first
    unit.
    """

    method: str
    model: str
    sha256: str
    layer: str = ""
    base: int = 0


def label_files() -> dict[str, Published]:
    """Path below a folder -> what is in the file, for every published file, from data/published."""
    table = read_table(TABLES / "label_files.csv", TEXT | {"layer", "sha256"}).drop(columns="source")
    return {row.pop("path"): Published(**row) for row in table.to_dict("records")}


def published_folder(named: str = "") -> Path:
    """The folder named, else NEURONYM_PUBLISHED, else data/downloads/published; relative paths start at the
    root.
    """
    place = named or os.environ.get("NEURONYM_PUBLISHED") or data_dir() / "downloads" / "published"
    return ROOT / os.path.expanduser(place)


def fetch_published(
    folder: Path, progress: Callable[[Iterable, int, str], Iterable] | None = None, url: str = URL
) -> int:
    """Download what the folder lacks of `label_files`, each refused unless it has the pinned bytes; returns
    how many came.

    Errors: ConnectionError, ValueError for other bytes. What came before stays.
    """
    files = label_files()
    absent = [path for path in files if not (folder / path).is_file()]
    for path in absent if progress is None else progress(absent, len(absent), "published results"):
        source, _, rest = path.partition("/")
        address = url.format(repository=SOURCES[source], path=rest)
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            raise ConnectionError(
                f"{path} could not be downloaded ({error}); get {address} where there is network, put "
                f"it at {folder / path}, or set NEURONYM_PUBLISHED to a folder that has all"
            ) from error
        if hashlib.sha256(content).hexdigest() != files[path].sha256:
            raise ValueError(
                f"{path} must have SHA-256 {files[path].sha256[:16]}..., what {SOURCES[source]} gives now "
                "differs; take the file from an earlier commit of that repository"
            )
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{path}.partial"
        partial.write_bytes(content)
        partial.replace(folder / path)
    return len(absent)


def load_published(folder: Path, methods: Iterable[str] = (), models: Iterable[str] = ()) -> pd.DataFrame:
    """Labels in the columns of `labels.COLUMNS`, units from 0, of the methods and models named (all by
    default).

    rank counts the labels of a unit in the file's order (three people, three candidates); what is empty is
    left out; score is the file's, NaN where it has none. `category` is NetDissect's, else "". Errors:
    KeyError for an unknown method or model, FileNotFoundError, ValueError for a file whose bytes are not the
    published ones.
    """
    files = label_files()
    known = {f.method for f in files.values()} - {"ratings"}, {f.model for f in files.values()}
    for what, given, names in zip(("published method", "published model"), (methods, models), known):
        for name in given:
            if name not in names:
                raise unknown(what, name, sorted(names))
    wanted = {
        path: f
        for path, f in files.items()
        if f.method != "ratings"
        and (not methods or f.method in methods)
        and (not models or f.model in models)
    }
    return pd.concat([_read(folder, path, f) for path, f in wanted.items()], ignore_index=True)


def labels_of_others(named: str) -> list[pd.DataFrame]:
    """Labels tables of "METHOD=FILE.csv,METHOD=FILE.csv", or METHOD@1=FILE.csv where units count from 1, as
    NetDissect's do; relative paths start at the root, "" gives none.

    A file has columns layer, unit and label or description, as MILAN's. Errors: ValueError for another form,
    and those of `read_labels`.
    """
    tables = []
    for part in filter(None, map(str.strip, named.split(","))):
        method, _, file = part.partition("=")
        name, _, base = method.partition("@")
        if not (name.strip() and file.strip() and base in ("", "0", "1")):
            raise ValueError(
                f"labels of others are named as milan=FILE.csv or netdissect@1=FILE.csv, got '{part}'"
            )
        given = {"unit_base": int(base) if base else None, "method": name.strip(), "model": ""}
        tables.append(read_labels(from_root(file.strip()), **given))
    return tables


def load_ratings(folder: Path) -> pd.DataFrame:
    """Tidy ratings of 200 units by two raters: layer, unit, scoring, rater, rating (1 to 5), label, and the
    rater's flags `uninterpretable` and `none` (no label fits).
    """
    ((path, f),) = ((path, f) for path, f in label_files().items() if f.method == "ratings")
    file = _checked(folder, path, f.sha256)
    scorings = ("Mean Caption", "Topk-Sq Caption", "Image-Products", "Topk-Compare")
    table, texts, parts = pd.read_csv(file), read_table(file, {f"{name} Label" for name in scorings}), []
    for scoring in scorings:
        rated = scoring if scoring != "Topk-Sq Caption" else "Topk-Sq"
        for rater in ("E1", "E2"):
            column = next(c for c in table if c.endswith(f"{rater} Rating") and c.startswith(rated))
            parts.append(
                pd.DataFrame(
                    {
                        "layer": "layer" + table["Layer"].astype(str),
                        "unit": table["Unit"],
                        "scoring": scoring.removesuffix(" Caption"),
                        "rater": rater,
                        "rating": table[column],
                        "label": texts[f"{scoring} Label"].str.strip(),
                        "uninterpretable": table[f"Uninterpretable {rater}"],
                        "none": table[f"None {rater}"],
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def _read(folder: Path, path: str, f: Published) -> pd.DataFrame:
    file = _checked(folder, path, f.sha256)
    table = read_table(file, TEXT | {f"Label {i}" for i in range(10)})
    names = {"description": "label", "summary": "label", "similarity": "score", "Neuron ID": "unit"}
    table = table.rename(columns=names)
    several = [c for c in table if c.startswith("Label ")]
    if several:
        table = table.melt(id_vars="unit", value_vars=several, value_name="label").sort_values(
            "unit", kind="stable"
        )
    table = table.assign(label=table["label"].astype("string").str.strip())
    table = table[table["label"].fillna("") != ""]
    table = table.assign(
        layer=f.layer or table.get("layer"),
        unit=table["unit"].astype(int) - f.base,
        model=f.model,
        method=f.method,
        score=table.get("score", float("nan")),
        category=table.get("category", ""),
    )
    return table.assign(rank=table.groupby(["layer", "unit"], sort=False).cumcount() + 1)[
        [*COLUMNS, "category"]
    ]


def _checked(folder: Path, path: str, pinned: str) -> Path:
    file = folder / path
    if not file.is_file():
        source = SOURCES[path.partition("/")[0]]
        raise FileNotFoundError(
            f"published labels not found at {file}; fetch_published({str(folder)!r}) downloads them "
            f"from github.com/{source}, or set NEURONYM_PUBLISHED to the folder that holds "
            f"{', '.join(SOURCES)}"
        )
    if sha256(file) != pinned:
        raise ValueError(
            f"{file} must have SHA-256 {pinned[:16]}..., got {sha256(file)[:16]}...; "
            "delete it and fetch it again"
        )
    return file


SHIFTS = range(1, 21)


def agreement(first: pd.DataFrame, second: pd.DataFrame, shifts: Iterable[int] = SHIFTS) -> pd.DataFrame:
    """By layer: units that both tables have, share whose labels of rank 1 have a content word in common, and
    `chance`, the mean share when the units of the second are moved by each of `shifts` places, around the
    end.

    Both are labels tables of one method and one model. Errors: ValueError for several labels of rank 1 of a
    unit, and for tables that have no unit in common.
    """
    a, b = _words(first), _words(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise ValueError(
            f"agreement needs units that both tables have, got layers {sorted({k[0] for k in a})} and "
            f"{sorted({k[0] for k in b})}; choose tables of one model"
        )
    rows = []
    for layer in dict.fromkeys(layer for layer, _ in shared):
        ours, theirs = zip(*((a[key], b[key]) for key in shared if key[0] == layer))
        n, moved = (
            len(ours),
            [_share(ours, theirs[s % len(ours) :] + theirs[: s % len(ours)]) for s in shifts],
        )
        rows.append((layer, n, _share(ours, theirs), sum(moved) / max(len(moved), 1)))
    return pd.DataFrame(rows, columns=["layer", "units", "agreement", "chance"])


def offsets(first: pd.DataFrame, second: pd.DataFrame, most: int = 2) -> pd.Series:
    """Share of all common units that agree when the second's units are moved by -most .. most; the index is
    the move.

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
        raise ValueError(
            f"each unit has one label of rank 1, got several for unit {row['unit']} of {row['layer']}; "
            "choose one method and one model"
        )
    return {
        (layer, unit): content_words(label)
        for layer, unit, label in zip(best["layer"], best["unit"], best["label"])
    }


def _share(ours: tuple[frozenset[str], ...], theirs: tuple[frozenset[str], ...]) -> float:
    return sum(bool(a & b) for a, b in zip(ours, theirs)) / len(ours)
