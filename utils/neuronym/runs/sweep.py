"""Many runs from one YAML file: grids of parameters, all of them checked before the first starts.

Step        one command of a sweep: what it waits for, what it needs, the file that says it is done
read_sweep  a file -> rows
ready       whether a row is done, and later than all that it waits for

    runs:
      - name: labels                 # others wait for it by this name
        notebook: labelling
        parameters: {target: [microworld:resnet, microworld:vit], similarity: [soft_wpmi, correlation]}
        shard: 4                     # its passes over the images in four parts, as rows of their own
        memory: 4000                 # megabytes; minutes and gpus likewise
      - {notebook: atlas, after: [labels]}

A list is a grid: every value with every value of the others. Rows that would fill the same folder are one.
The Snakefile makes a rule of each row; `neuronym sweep` runs them (`neuronym.runs.scheduler`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuronym.common.checks import unknown
from neuronym.runs.checks import check_networks, resolve, WRONG
from neuronym.runs.folders import from_root, notebook_path, results_dir
from neuronym.runs.parameters import read_parameters
from neuronym.runs.run import run_folder

NEEDS = {"memory": 4000, "minutes": 60, "gpus": 0}  # megabytes and minutes of a row that says nothing
KEYS = ("name", "notebook", "parameters", "after", "shard", *NEEDS)
SHARDED = (  # parameters that a pass over the images depends on; `notebooks` that have all of these are cut
    "target layers probe clip pooling limit seed on_error precision batch_size layout allow_random"
).split()
NEEDED = ("target", "layers", "probe", "clip", "pooling")
MISTAKES = 10  # mistakes of a file that are told


@dataclass(frozen=True)
class Step:
    """One command of a sweep; `words` are what stands after `neuronym`."""

    name: str
    words: tuple[str, ...]
    done: Path
    after: tuple[Path, ...]
    memory: int
    minutes: int
    gpus: int

    @property
    def rule(self) -> str:
        """Its name as an identifier."""
        return re.sub(r"\W+", "_", self.name)

    @property
    def shell(self) -> str:
        """The command, by this interpreter."""
        return shlex.join([sys.executable, "-m", "neuronym", *self.words])


def read_sweep(file: str | Path, networks: bool = True) -> list[Step]:
    """The rows of a sweep file, each after those that it waits for.

    Every parameter of every run is checked, and with `networks` also what only the networks tell, such as
    the names of layers. Errors: FileNotFoundError for a missing file; ValueError that lists what is wrong.
    """
    path = from_root(file) if not Path(file).is_file() else Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"a sweep is a YAML file of runs, there is no {path}; data/sweeps/ has examples"
        )
    entries = _entries(path)
    rows: dict[Path, Step] = {}
    by_name: dict[str, list[Path]] = {}
    problems: list[str] = []
    asked: set[str] = set()
    for number, entry in enumerate(entries, 1):
        name = str(entry.get("name") or entry["notebook"])
        waits = [path for before in entry.get("after", []) for path in by_name.get(before, [])]
        for values in _grid(entry.get("parameters") or {}):
            where = f"run {number} ({name}{_told(values)})"
            try:
                made = _rows_of(entry, values, tuple(waits))
                if networks:
                    _check_networks(entry["notebook"], values, asked)
            except WRONG as error:
                problems.append(f"{where}: {error}")
                continue
            for row in made:
                rows[row.done] = _merged(rows.get(row.done), row)
            by_name.setdefault(name, []).append(made[-1].done)
    if problems:
        more = f"\n  ... and {len(problems) - MISTAKES} more" if len(problems) > MISTAKES else ""
        listed = "\n  ".join(problems[:MISTAKES])
        raise ValueError(
            f"{path.name} starts nothing, for {len(problems)} of its runs are wrong:\n  {listed}{more}"
        )
    return list(rows.values())


def ready(row: Step) -> bool:
    """Whether a row is done, and not earlier than what it waits for."""
    try:
        ended = row.done.stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= ended for path in row.after)
    except FileNotFoundError:
        return False


def _entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a sweep file in an order in which none waits for a later one."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML, but is not: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list) or not content["runs"]:
        raise ValueError(f"{path} must have a list 'runs:' of at least one run, each with a 'notebook:'")
    for key in content:
        if key not in ("runs", "defaults"):
            raise unknown(f"key of {path.name}", key, ("runs", "defaults"))
    defaults = _checked(content.get("defaults") or {}, f"{path.name}, defaults", NEEDS)
    entries = []
    for number, entry in enumerate(content["runs"], 1):
        if not isinstance(entry, dict) or "notebook" not in entry:
            raise ValueError(f"run {number} of {path.name} needs a 'notebook:', got {entry!r}")
        entries.append(NEEDS | defaults | _checked(entry, f"{path.name}, run {number}", KEYS))
    return _ordered(entries)


def _checked(entry: Any, where: str, keys: Any) -> dict[str, Any]:
    """An entry whose keys and values are of the right kind."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be keys and values, got {entry!r}")
    for key, value in entry.items():
        if key not in keys:
            raise unknown(f"key of {where}", key, keys)
        number = type(value) is int and value >= (0 if key == "gpus" else 1)
        if key in (*NEEDS, "shard") and not number:
            raise ValueError(f"{where}: '{key}' must be a whole number, at least 1 (gpus 0), got {value!r}")
        if key == "parameters" and not isinstance(value, dict | None):
            raise ValueError(f"{where}: 'parameters' must be names and values, got {value!r}")
    if isinstance(entry.get("after"), str):
        entry = entry | {"after": [entry["after"]]}
    return entry


def _ordered(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries after those that they wait for, else as they stand; ValueError for a circle."""
    names = {str(entry.get("name") or entry["notebook"]) for entry in entries}
    for entry in entries:
        for before in entry.get("after", []):
            if before not in names:
                raise unknown("run to wait for", before, sorted(names))
    placed: list[dict[str, Any]] = []
    left = list(entries)
    while left:
        waiting = {str(entry.get("name") or entry["notebook"]) for entry in left}
        free = [entry for entry in left if not waiting & set(entry.get("after", []))]
        if not free:
            raise ValueError(f"runs must not wait for each other in a circle: {', '.join(sorted(waiting))}")
        placed += free
        left = [entry for entry in left if entry not in free]
    return placed


def _grid(parameters: Mapping[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """Every combination of the values that are lists, as names and texts."""
    columns = [
        [(name, _text(value)) for value in (values if isinstance(values, list) else [values])]
        for name, values in parameters.items()
    ]
    for values in itertools.product(*columns):
        yield list(values)


def _text(value: Any) -> str:
    """A YAML value as `-p` takes it."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return "null" if value is None else str(value)


def _rows_of(entry: dict[str, Any], values: list[tuple[str, str]], after: tuple[Path, ...]) -> list[Step]:
    """The rows of one run: its shards and what joins them, where it is cut, and the run itself."""
    notebook, needs = entry["notebook"], {key: entry[key] for key in NEEDS}
    _, params = resolve(notebook, values)
    folder = run_folder(notebook, params)
    words = [notebook, *(word for value in values for word in ("-p", *value))]
    run = Step(f"{notebook}/{folder.name}", tuple(words), folder / "done", after, **needs)
    if "shard" not in entry:
        return [run]
    shards = shards_of(notebook, params, entry["shard"])
    cut = [run_part for run_part in values if run_part[0] in SHARDED]
    words = [word for value in cut for word in ("-p", *value)]
    parts = [
        Step(f"{mark.parent.name}/{mark.stem}", ("shard", mark.stem, notebook, *words), mark, after, **needs)
        for mark in shards
    ]
    join = shards[0].with_name("joined")
    joined = Step(
        f"{join.parent.name}/joined",
        ("join", str(len(shards)), notebook, *words),
        join,
        tuple(shards),
        **needs,
    )
    return [*parts, joined, replace(run, after=(*after, join))]


def shards_of(notebook: str, params: Mapping[str, Any], count: int) -> list[Path]:
    """The files that say which parts of a run's passes are done: results/shards/KEY/1-of-8.done, ...

    Runs that pass the same images through the same networks have the same ones. ValueError for a notebook
    whose passes cannot be cut.
    """
    known = read_parameters(notebook_path(notebook))
    missing = [name for name in NEEDED if name not in known]
    if missing:
        raise ValueError(
            f"shards take a notebook that names {', '.join(NEEDED)}, {notebook} has no {', '.join(missing)}; "
            "cut labelling, and let the others come after it"
        )
    if params.get("smoke"):
        raise ValueError("shards are for large runs, and smoke is a small one; leave out smoke or shard")
    told = {name: params[name] for name in SHARDED if name in params}
    key = hashlib.sha256(json.dumps([told, count], sort_keys=True).encode()).hexdigest()[:8]
    folder = results_dir() / "shards" / key
    return [folder / f"{i}-of-{count}.done" for i in range(1, count + 1)]


def _check_networks(notebook: str, values: list[tuple[str, str]], asked: set[str]) -> None:
    """`check_networks`, once for each set of what it reads."""
    _, params = resolve(notebook, values)
    told = json.dumps(
        [
            notebook,
            *(params.get(name) for name in ("target", "layers", "units", "device", "clip", "concepts")),
        ]
    )
    if told not in asked:
        check_networks(read_parameters(notebook_path(notebook)), params)
        asked.add(told)


def _merged(a: Step | None, b: Step) -> Step:
    """Two rows that are one: what either waits for, and the more of what they need."""
    if a is None:
        return b
    return replace(
        a,
        after=tuple(dict.fromkeys(a.after + b.after)),
        memory=max(a.memory, b.memory),
        minutes=max(a.minutes, b.minutes),
        gpus=max(a.gpus, b.gpus),
    )


def _told(values: list[tuple[str, str]]) -> str:
    return "".join(f", {name} {value}" for name, value in values)
