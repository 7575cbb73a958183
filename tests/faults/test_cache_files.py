"""Files of the cache that are flipped, cut, emptied or zeroed are never used."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.helpers.faults import counting, places, SMALL
from tests.helpers.nursery import tables

BLOCK = 512


def _flipped(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _zeroed(data: bytes, dice: random.Random) -> bytes:
    """A block is zeros; the bytes behind it are as they were."""
    at = dice.randrange(max(1, len(data) - BLOCK))
    return data[:at] + bytes(len(data[at : at + BLOCK])) + data[at + BLOCK :]


def _moved(data: bytes, dice: random.Random) -> bytes:
    """A block stands where another was."""
    at, to = (dice.randrange(max(1, len(data) - BLOCK)) for _ in range(2))
    block = data[at : at + BLOCK]
    return data[:to] + block + data[to + len(block) :]


DAMAGES = {
    "flipped": _flipped,
    "flipped header": lambda data, dice: _flipped(data[:64], dice) + data[64:],
    "zeroed block": _zeroed,
    "misplaced block": _moved,
    "cut": lambda data, dice: data[: dice.randrange(len(data))],
    "longer": lambda data, dice: data + bytes(dice.randrange(1, 100)),
    "empty": lambda data, dice: b"",
    "noise": lambda data, dice: dice.randbytes(len(data)),
}


def _by_kind(cache: Path) -> list[list[Path]]:
    """Files of the cache, by kind and by what they are, locks left out."""
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(cache.rglob("*")):
        if file.is_file() and file.suffix != ".lock":
            found.setdefault((file.relative_to(cache).parts[0], file.name), []).append(file)
    return list(found.values())


@pytest.mark.parametrize("notebook", SMALL)
def test_damaged_files_are_not_used(notebook, nursery, undisturbed, tmp_path, trial, trials):
    dice = random.Random(f"damages of {notebook}")
    run, whole = undisturbed(notebook), tmp_path / "whole"
    shutil.copytree(run.folder, whole)
    wanted, kinds = run.tables, _by_kind(whole / "cache")
    with counting() as (_, key):
        for i in range(trials(2, 7)):
            name, damage = list(DAMAGES.items())[dice.randrange(len(DAMAGES))]
            file = dice.choice(kinds[dice.randrange(len(kinds))]).relative_to(whole)
            with trial("damaged cache files, of one kind a run"):
                again = tmp_path / str(i)
                shutil.copytree(whole, again, ignore=shutil.ignore_patterns("results"))
                (again / "results").mkdir()
                for twin in sorted((again / file).parent.parent.glob(f"*/{file.name}")) or [again / file]:
                    twin.write_bytes(damage(twin.read_bytes(), dice) if twin.stat().st_size else b"x")
                ended = nursery.run(notebook, SMALL[notebook], again / "again", **places(again), **key)
                said = (again / "again").read_text()
                assert ended == 0, f"{name} {file}: {said[-800:]}"
                found = tables(again / "results", notebook)
                differing = [table for table in wanted if found.get(table) != wanted[table]]
                assert not differing, f"{name} {file}: {differing}"
                shutil.rmtree(again)
    assert run.asked > 0 or notebook != "describe_and_dissect"
