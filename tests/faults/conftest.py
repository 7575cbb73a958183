"""Faults, counted: what was tried and what survived, by kind of fault, printed behind the tests of one
process.

A test counts as one trial of what its file is of, or counts its own with `trial`. `make faults` sets
NEURONYM_FAULTS to the CSV file that the table goes to as well; there are then more trials.
"""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from neuronym.common.locks import waited
from tests.helpers.faults import counting, places, SMALL
from tests.helpers.nursery import Nursery, tables

HERE = Path(__file__).parent
COUNTED = pytest.StashKey[dict[str, list[int]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("faults")
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if call.when == "call" and not report.skipped and "trial" not in item.fixturenames:
        _count(item.config, _kind(item.module), report.passed)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [(kind, *numbers) for kind, numbers in config.stash.get(COUNTED, {}).items()]
    if not rows:
        return
    width = max(len(kind) for kind, *_ in rows)
    terminalreporter.write_line(f"\n{'fault':<{width}}  tried  survived")
    for kind, tried, survived in rows:
        terminalreporter.write_line(f"{kind:<{width}}  {tried:>5}  {survived:>8}")
    if place := os.environ.get("NEURONYM_FAULTS"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        with open(place, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("fault", "tried", "survived"), *rows])


@pytest.fixture(scope="session")
def trials() -> Callable[[Any, Any], Any]:
    """Which trials, or how many: what is given first, or second in the longer form."""
    return lambda few, many: many if os.environ.get("NEURONYM_FAULTS") else few


@pytest.fixture
def trial(request: pytest.FixtureRequest) -> Iterator[Callable[[str], AbstractContextManager]]:
    """`with trial("kind")` is one trial, survived if its block raises nothing; the test goes on, and fails
    in the end.
    """
    failures: list[str] = []

    @contextmanager
    def one(kind: str) -> Iterator[None]:
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            failures.append(f"{kind}: {type(error).__name__}: {error}")
            _count(request.config, kind, False)
        else:
            _count(request.config, kind, True)

    yield one
    if failures:
        pytest.fail(f"{len(failures)} did not survive\n" + "\n".join(failures), pytrace=False)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A process that has imported what notebooks import, and runs them in children."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """The small run of a notebook that nobody disturbed, made once for the tests of all processes."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.getbasetemp()

    def run(notebook: str) -> Undisturbed:
        folder = base / f"undisturbed {notebook}"
        folder.mkdir(exist_ok=True)
        with waited(folder / ".lock", 0.1), counting(delay=0.02) as (server, key):
            if not (folder / "told.json").exists():
                began = time.monotonic()
                assert nursery.run(notebook, SMALL[notebook], folder / "log", **places(folder), **key) == 0
                told = {"took": time.monotonic() - began, "asked": len(server.came)}
                (folder / "told.json").write_text(json.dumps(told))
        return Undisturbed(folder, notebook, **json.loads((folder / "told.json").read_text()))

    return run


@dataclass(frozen=True)
class Undisturbed:
    """A run: the folder of its cache and results, seconds it took, and how many prompts it asked."""

    folder: Path
    notebook: str
    took: float
    asked: int

    @property
    def tables(self) -> dict[str, bytes]:
        """What it says."""
        return tables(self.folder / "results", self.notebook)


def _kind(module: ModuleType) -> str:
    """What a file's tests try: its KIND, or what its text begins with."""
    told = re.split(r"[,.:;]", module.__doc__ or module.__name__)[0]
    return getattr(module, "KIND", told[:1].lower() + told[1:])


def _count(config: pytest.Config, kind: str, survived: bool) -> None:
    numbers = config.stash.setdefault(COUNTED, {}).setdefault(kind, [0, 0])
    numbers[0] += 1
    numbers[1] += bool(survived)
