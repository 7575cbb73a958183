"""What there is: notebooks in the order to read them, and the runs so far.

notebooks    names in order, with the question each asks and the time it takes
find_runs    the runs among the results, oldest first
print_notebooks, print_runs   both as the command prints them
"""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from neuronym.runs.folders import notebooks_dir, results_dir
from neuronym.runs.parameters import differing, read_parameters
from neuronym.runs.run import ENDS

ORDER = (  # what a newcomer reads first; others come after these, by name
    "labelling",
    "trust",
    "evaluation",
    "describe_and_dissect",
    "second_order",
    "visualisation",
    "editing",
    "atlas",
    "sweep",
    "microworld",
    "data_analysis",
)
TIME = re.compile(r"\*\*Time:?\*\*:?\s*(.+?)(?:[,;]|\.\s|\.?$)", re.MULTILINE)


@dataclass(frozen=True)
class PastRun:
    """One run folder: what it is of, what is set, whether it is done, and when it began."""

    notebook: str
    folder: Path
    state: str  # done, failed, stopped, running or unfinished
    set_to: dict[str, Any]
    began: datetime


def notebooks() -> list[tuple[str, str, str]]:
    """(name, question, time) of every notebook, in the order a newcomer reads them; the time as its first
    cell tells it, "" where it does not.
    """
    found = []
    for path in notebooks_dir().glob("*.ipynb"):
        text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).strip()
        time = TIME.search(text)
        found.append((path.stem, text.partition("\n")[0].lstrip("# "), time[1] if time else ""))
    place = {name: i for i, name in enumerate(ORDER)}
    return sorted(found, key=lambda row: (place.get(row[0], len(ORDER)), row[0]))


def find_runs(notebook: str = "") -> list[PastRun]:
    """The runs among the results, of all notebooks or of one, oldest first."""
    folders = [file.parent for file in results_dir().glob(f"{notebook or '*'}/*/params.json")]
    return sorted(map(_read, folders), key=lambda run: run.began)


def print_notebooks() -> None:
    """Print each notebook's question and time."""
    rows = notebooks()
    width = max((len(name) for name, *_ in rows), default=0)
    for name, question, time in rows:
        print(f"{name:<{width}}  {question}" + (f" ({time})" if time else ""))


def print_runs(notebook: str = "") -> None:
    """Print each run: when it began, its state, its notebook, what is set, its question, its folder."""
    questions = {name: question for name, question, _ in notebooks()}
    for run in find_runs(notebook):
        values = " ".join(f"{name}={value}" for name, value in run.set_to.items()) or "defaults"
        print(f"{run.began:%Y-%m-%d %H:%M}  {run.state:<10}  {run.notebook}  {values}")
        if run.notebook in questions:
            print(f"    {questions[run.notebook]}")
        print(f"    {run.folder}")


def _read(folder: Path) -> PastRun:
    params, env = _json(folder / "params.json"), _json(folder / "env.json")
    file = notebooks_dir() / f"{folder.parent.name}.ipynb"
    try:
        known = read_parameters(file) if file.is_file() else None
    except (ValueError, SyntaxError):  # a notebook somebody is writing
        known = None
    written = datetime.fromtimestamp((folder / "params.json").stat().st_mtime).astimezone()
    began = datetime.fromisoformat(env["started"]) if "started" in env else written
    state = next((name for name in ENDS if (folder / name).exists()), None)
    return PastRun(
        folder.parent.name,
        folder,
        state or ("running" if _alive(env, began) else "unfinished"),
        params if known is None else differing(known, params),
        began,
    )


def _alive(env: dict[str, Any], began: datetime) -> bool:
    """Whether the process that began a run, on this machine, still is; another may have its number by now."""
    if env.get("host") != platform.node() or "process" not in env:
        return False
    import psutil

    try:
        process = psutil.Process(env["process"])
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= began.timestamp() + 1
    except psutil.Error:
        return False


def _json(path: Path) -> dict[str, Any]:
    """A JSON file; {} where it is not there, or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
