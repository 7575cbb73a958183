"""Many runs as one table: what was set, what was measured.

collect_runs     run folders -> a row each, parameters and metrics as columns
of_value         the runs that have a value
collect_command  `neuronym collect 'results/*/*' [FILE]`
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TYPE_CHECKING

from neuronym.runs.folders import from_root, results_dir, shown

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("notebook", "run", "done")


def collect_runs(patterns: Iterable[str]) -> pd.DataFrame:
    """The runs in folders that match a pattern such as results/labelling/*, in the order of their names:
    notebook, run, done, every parameter, every metric (what is inside another by names with dots; a metric
    with a parameter's name, as metric.NAME).

    Folders that are no runs are passed over. Errors: FileNotFoundError where no pattern matches a run.
    """
    import pandas as pd

    patterns = list(patterns)
    folders = {
        Path(found).resolve()
        for pattern in patterns
        for found in glob.glob(str(from_root(pattern))) + glob.glob(str(results_dir() / pattern))
        if (Path(found) / "params.json").is_file()
    }
    if not folders:
        raise FileNotFoundError(
            f"no run matches {' '.join(patterns)}; a pattern is of run folders, such as 'results/labelling/*'"
        )
    return pd.DataFrame([_row(folder) for folder in sorted(folders)])


def collect_command(*words: str) -> int:
    """Write the table of the runs that match, as parquet or CSV by its file's name; print where, and how many
    runs it has.
    """
    from neuronym.common.tables import write_table

    if not words or any(word.startswith("-") for word in words):
        raise ValueError(
            "neuronym collect is written neuronym collect 'results/*/*' [FILE.csv or FILE.parquet]"
        )
    *patterns, last = words
    is_file = Path(last).suffix in (".csv", ".parquet")
    patterns = patterns if is_file else list(words)
    if not patterns:
        raise ValueError(f"which runs go into {last}? neuronym collect 'results/*/*' {last}")
    file = Path(last).expanduser().absolute() if is_file else results_dir() / "collected.csv"
    table = collect_runs(patterns)
    if file.suffix == ".parquet":
        table.astype(dict.fromkeys(_mixed(table), str)).to_parquet(file, index=False)
    else:
        write_table(table, file)
    print(
        f"{len(table)} runs, {int(table['done'].sum())} of them done, {table.shape[1]} columns: {shown(file)}"
    )
    return 0


def _row(folder: Path) -> dict[str, Any]:
    params, metrics = (_flat(_json(folder / f"{name}.json")) for name in ("params", "metrics"))
    taken = {*FIRST, *params}
    named = {f"metric.{name}" if name in taken else name: value for name, value in metrics.items()}
    done = (folder / "done").exists()
    return {"notebook": folder.parent.name, "run": folder.name, "done": done} | params | named


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Values that are not dicts, by their names joined with dots; lists as JSON."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = json.dumps(value) if isinstance(value, list) else value
    return found


def _mixed(table: pd.DataFrame) -> list[str]:
    """Columns whose values are of several kinds, which parquet does not hold."""
    kinds = {name: {type(v) for v in table[name].dropna()} for name in table}
    return [name for name, found in kinds.items() if len(found) > 1 and not found <= {int, float}]


def _json(path: Path) -> dict[str, Any]:
    """A JSON file of a run; {} where it is not there, or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def of_value(runs: pd.DataFrame, where: str) -> pd.DataFrame:
    """The runs whose column has a value, as "concepts:microworld"; all of them for "". KeyError and
    ValueError for a column and a value that are not there.
    """
    from neuronym.common.checks import unknown

    if not where:
        return runs
    name, colon, value = where.partition(":")
    if not colon:
        raise ValueError(f"runs are chosen as name:value, got '{where}'")
    if name not in runs:
        raise unknown("parameter of these runs", name, list(runs.columns))
    kept = runs[runs[name].map(str) == value]
    if not len(kept):
        raise unknown(f"value of {name} in these runs", value, sorted(set(runs[name].map(str))))
    return kept
