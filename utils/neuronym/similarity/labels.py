"""The one labels table: a tidy row per unit, method and rank.

COLUMNS       what every labels table starts with
MARKS         what it says of units that have nothing to be named by
labels_table  scores of one layer -> table
marked        a table with dead, constant and saturated units marked, and without names for them
unit_notes    which units of a layer these are
write_labels  table -> labels.parquet and labels.csv
read_labels   table of ours or of a published CSV, with its unit base checked
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neuronym.common.memory import slices
from neuronym.common.tables import read_table, TEXT, write_table
from neuronym.similarity.scores import constant_units, top_labels
from neuronym.similarity.sparse_columns import over_blocks, SparseColumns

COLUMNS = ["model", "layer", "unit", "method", "rank", "label", "score"]
MARKS = ["active_share", "note"]
NAMELESS = {"label": "", "text": "", "score": float("nan")}  # what units with a note do without
EVEN = "even: the same score for every concept"
SUMMED = 64  # images at a time
HIGHEST, MOSTLY = 0.01, 0.9  # of the range of values; share of images within that of the largest
RENAMED = {
    "description": "label",
    "similarity": "score",
    "summary": "label",
    "Neuron ID": "unit",
    "Label 1": "label",
}


def labels_table(
    scores: torch.Tensor,
    concepts: Sequence[str],
    *,
    model: str,
    layer: str,
    method: str,
    k: int = 5,
    units: Sequence[int] | None = None,
    activations: torch.Tensor | None = None,
    **more: object,
) -> pd.DataFrame:
    """The k best labels of every unit of a layer; scores [K, M] -> K x k rows of COLUMNS, rank 1 first, units
    from 0.

    `units` names the rows of `scores` when they are not 0..K-1; with the layer's `activations` [N, K'] of all
    units the table is `marked`; `more` adds columns, one value each for all rows. A row of equal scores, as
    `score` gives them to dead and constant units, names nothing, and gets a `note` in place of a label; that
    a unit is saturated only its activations tell.
    """
    if scores.shape[1] != len(concepts):
        raise ValueError(
            f"expected one score per concept, got scores {tuple(scores.shape)} and {len(concepts)} concepts"
        )
    k = min(k, len(concepts))
    values, indices = top_labels(scores, concepts, k)
    units = list(range(len(scores))) if units is None else [int(u) for u in units]
    if len(units) != len(scores):
        raise ValueError(
            f"expected one unit per row of scores, got {len(units)} units and {len(scores)} rows"
        )
    table = pd.DataFrame(
        {
            "model": model,
            "layer": layer,
            "unit": [u for u in units for _ in range(k)],
            "method": method,
            "rank": list(range(1, k + 1)) * len(units),
            "label": [concepts[i] for i in indices.flatten().tolist()],
            "score": values.flatten().double().cpu().numpy(),
        },
        columns=COLUMNS,
    )
    table = table if activations is None else marked(table, {layer: activations})
    low, high = scores.aminmax(dim=1)
    even = (low == high) & (len(concepts) > 1)
    return _without_names(table, even.repeat_interleave(k).cpu().numpy(), EVEN).assign(**more)


def marked(table: pd.DataFrame, Q: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """A table with columns layer and unit, and MARKS beside: the share of images in which a unit is above 0,
    and a note of `unit_notes`, "" for most; what has a note has no label, text or score. Q {layer: [N, K]}.
    """
    notes = {layer: unit_notes(q).to_dict("list") for layer, q in Q.items()}
    keys = list(zip(table["layer"], table["unit"]))
    table = table.assign(
        active_share=[notes[layer]["active_share"][unit] for layer, unit in keys],
        note=[notes[layer]["note"][unit] for layer, unit in keys],
    )
    return _without_names(table, (table["note"] != "").to_numpy())


def _without_names(table: pd.DataFrame, rows: np.ndarray, note: str = "") -> pd.DataFrame:
    """The table without labels, texts and scores in these rows, and with the note in those that have none."""
    if rows.any():
        table = table if "note" in table else table.assign(note="")
        table.loc[rows & (table["note"] == "").to_numpy(), "note"] = note
        for column, nothing in NAMELESS.items():
            if column in table:
                table.loc[rows, column] = nothing
    return table


def unit_notes(Q: torch.Tensor | SparseColumns) -> pd.DataFrame:
    """Share of images in which each unit is above 0, and what keeps it from being named: Q [N, K] -> K rows.

    "dead": 0 for every image. "constant": another value, the same for all up to rounding. "saturated": for
    nine images in ten within a hundredth of its range of its largest value, so that which images are its
    highest is an accident. Errors: ValueError for a Q that is not [N, K].
    """
    if len(Q.shape) != 2 or not len(Q):
        raise ValueError(f"expected activations [N, K] of at least one image, got {list(Q.shape)}")
    if isinstance(Q, SparseColumns):
        return over_blocks(lambda _, q: unit_notes(q), Q)
    low, high = Q.amin(0), Q.amax(0)
    span, largest = high - low, torch.maximum(high.abs(), low.abs())
    constant = constant_units(Q)
    near = _share_of_images(Q, torch.ge, high - HIGHEST * span)
    columns = zip(largest.tolist(), constant.tolist(), near.tolist())
    notes = [
        ("dead: 0 for every image" if top == 0 else "constant: the same value for every image")
        if same
        else f"saturated: at its largest value for {share:.0%} of the images"
        if share >= MOSTLY and len(Q) > 1
        else ""
        for top, same, share in columns
    ]
    active = _share_of_images(Q, torch.gt, torch.zeros_like(high))
    return pd.DataFrame({"active_share": active.cpu().numpy(), "note": notes})


def _share_of_images(Q: torch.Tensor, compare: Callable, bound: torch.Tensor) -> torch.Tensor:
    """In which each unit is as its bound [K] asks; a few at once, as counts have eight bytes."""
    counts = sum(compare(Q[rows], bound).sum(0) for rows in slices(len(Q), SUMMED))
    return counts.double() / len(Q)


def write_labels(table: pd.DataFrame, folder: Path) -> Path:
    """Write labels.parquet (exact) and labels.csv (for people) into `folder`; returns the path of the former.

    In the CSV a label that a spreadsheet would compute ("=1+1", "-x") has an apostrophe before it, which
    `read_labels` takes off (`neuronym.common.tables`).
    """
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise ValueError(
            f"a labels table needs the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "labels.parquet", index=False)
    write_table(table, folder / "labels.csv", float_format="%.6g")
    return folder / "labels.parquet"


def read_labels(path: Path | str, *, unit_base: int | None = None, **given: str) -> pd.DataFrame:
    """Read a labels table, ours or one with `layer, unit, description[, similarity]`; units come back counted
    from 0.

    `given` fills what a foreign file lacks (model, method, layer). A file whose units start at 1
    (NetDissect's) is refused unless `unit_base=1` says so, because joining it by unit would pair every label
    with its neighbour. Labels are texts, whatever they look like: "null", "NA" and "007" stay. Errors:
    FileNotFoundError, ValueError for a file without rows or columns that are needed, and for units and ranks
    that are no whole numbers.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no labels table at {path}")
    texts = TEXT | {"Label 1"}
    table = pd.read_parquet(path) if path.suffix == ".parquet" else read_table(path, texts)
    table = table.rename(columns=RENAMED).assign(**given)
    table = table.assign(**{c: v for c, v in {"rank": 1, "score": float("nan")}.items() if c not in table})
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise ValueError(
            f"{path.name} lacks {', '.join(missing)}; pass them, e.g. {missing[0]}='...'; it has "
            f"{', '.join(table)}"
        )
    if table.empty:
        raise ValueError(f"{path.name} holds no labels, only the columns {', '.join(table)}")
    for column in ("unit", "rank"):
        table[column] = _whole(table[column], f"column '{column}' of {path.name}")
    table["score"] = pd.to_numeric(table["score"], errors="coerce").astype(float)
    first = int(table["unit"].min())
    if unit_base is None and first > 0 and (table.groupby("layer")["unit"].min() == 1).all():
        raise ValueError(
            f"units of {path.name} start at 1; if its author counts from 1 pass unit_base=1, "
            "if unit 0 is only missing pass unit_base=0"
        )
    table["unit"] -= unit_base or 0
    if "note" in table:  # "" comes back from a CSV as a missing value
        table["note"] = table["note"].astype(object).where(table["note"].notna(), "").astype(str)
        table["label"] = table["label"].where(table["note"] == "", "")
    label = table["label"]
    table["label"] = label.astype(object).where(label.notna(), "").astype(str).str.strip()
    return table[COLUMNS + [c for c in table if c not in COLUMNS]]


def _whole(values: pd.Series, what: str) -> pd.Series:
    """Whole numbers from 0; ValueError names the first row that has none."""
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = ~(numbers.ge(0) & numbers.mod(1).eq(0))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        value = values.tolist()[row]
        raise ValueError(f"{what} must hold whole numbers from 0, got {value!r} in row {row + 1}")
    return numbers.astype("int64")
