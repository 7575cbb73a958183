"""Arrays found by a hash of everything that determines them, published whole or not at all.

load       a finished array, memory-mapped, or None
Writer     an array that is being written
writer     write an array row by row; a killed writer is taken up where it stopped
array      loop-or-load for something computed in one go
bundle     the same for a few named tensors
discard    remove an entry whose content is not what its spec says, and say why
entries    finished entries
verify     damaged ones
explain    why a spec misses
prune      remove old, torn and unfinished ones

On disk: <cache>/<kind>/<key>/{data.npy | data.safetensors, meta.json}; unfinished work in <key>.partial/ with
progress.json. A folder becomes an entry by one rename; what has no meta.json, another spec or size is never
used. Of two processes that make the same entry the second waits for the first and reads what it made. Where
that one dies, its work is taken up; where it does not get on for STUCK seconds both work, each in a folder
of its own, and the slower drops its own.
"""

from __future__ import annotations

import atexit
import datetime
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuronym.common.files import digest, read_json, sha256, write_json
from neuronym.common.locks import locked
from neuronym.runs.folders import cache_dir
from neuronym.runs.run import git_state, software
from neuronym.stored import (
    canonical,
    empty_npy,
    gets_on,
    in_use,
    key_of,
    npy_fits,
    own_folder,
    read_meta,
    say_once,
    usable,
    whole,
)


def load(kind: str, spec: dict) -> np.ndarray | None:
    """The array of a finished entry, memory-mapped and read-only; None for none and for a damaged one."""
    folder = _found(kind, spec)
    return None if folder is None else np.load(folder / "data.npy", mmap_mode="r", allow_pickle=False)


class Writer:
    """Rows of an unfinished array; `start` is the first row still to be written (the number of rows: none
    is).
    """

    def __init__(self, folder: Path | None, key: str, shape: tuple[int, ...], dtype: np.dtype):
        self._folder, self._shape, self._dtype = folder, shape, dtype
        self._state = {"key": key, "shape": list(shape), "dtype": dtype.str, "rows": 0, "seconds": 0.0}
        self._began = time.perf_counter()
        if folder is None:  # the entry is there already
            self._state["rows"] = shape[0]
        else:
            recorded = read_json(folder / "progress.json") or {}
            kept = all(recorded.get(k) == self._state[k] for k in ("key", "shape", "dtype"))
            if kept and npy_fits(folder / "data.npy", shape, dtype):
                self._state |= {k: recorded[k] for k in ("rows", "seconds")}
            else:
                empty_npy(folder / "data.npy", shape, dtype)
        self._before = self._state["seconds"]
        self.start = self.done = self._state["rows"]

    def write(self, row: int, block: np.ndarray | torch.Tensor) -> None:
        """Put `block` at rows row, row + 1, ...; rows before `row` must be there already. Flushed before it
        counts.
        """
        block = _numpy(block)
        if block.shape[1:] != self._shape[1:] or row < 0 or row + len(block) > self._shape[0]:
            raise ValueError(
                f"expected rows of shape {self._shape[1:]} up to row {self._shape[0]}, "
                f"got {block.shape} at row {row}"
            )
        if row > self.done:
            raise ValueError(f"rows are written in order; next is row {self.done}, got {row}")
        if not np.can_cast(block.dtype, self._dtype, "same_kind"):
            raise ValueError(f"this entry holds {self._dtype}, got rows of {block.dtype}")
        if self._folder is None or not len(block):
            return
        # through the file and not a memory map: a full disk is then an error with a name, not the end of the
        # process
        with open(self._folder / "data.npy", "r+b") as file:
            size = math.prod(self._shape[1:]) * self._dtype.itemsize
            file.seek((row - self._shape[0]) * size, os.SEEK_END)
            file.write(np.ascontiguousarray(block, self._dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.done = max(self.done, row + len(block))
        self._state |= {"rows": self.done, "seconds": round(self.seconds, 3)}
        write_json(self._folder / "progress.json", self._state)

    @property
    def seconds(self) -> float:
        """Time spent on this entry, earlier attempts included."""
        return self._before + time.perf_counter() - self._began


@contextmanager
def writer(
    kind: str, spec: dict, shape: tuple[int, ...], dtype: Any, info: dict | None = None
) -> Iterator[Writer]:
    """Yield a Writer for the entry of `spec`, published when the block ends without error and every row is
    written.

    After an error or a kill the rows that were flushed stay, and the next writer of the same spec starts
    behind them. While another process writes the same entry, this one waits (STUCK), and finds every row
    there. Should the entry exist by the time this one is done, this one is dropped. `info` (readable names)
    is kept beside the array and not hashed.
    """
    folder, dtype, shape = _place(kind, spec), np.dtype(dtype), tuple(int(n) for n in shape)
    with _turn(folder, spec) as ours, _rows(folder, spec, shape, dtype, info, ours) as rows:
        yield rows


@contextmanager
def _turn(folder: Path, spec: dict) -> Iterator[bool]:
    """Hold the lock of an entry and yield True, after a process that holds it is done with the entry or dead;
    yield False where it holds on to it without getting on, and, holding nothing, where the entry is there.
    """
    lock, since = folder.with_name(folder.name + ".lock"), time.time()
    while not usable(folder, spec):
        with locked(lock) as ours:
            if usable(folder, spec):
                break
            if ours or not gets_on(lock, folder.with_name(folder.name + ".partial"), since):
                yield ours
                return
        time.sleep(0.1)
    yield False


@contextmanager
def _rows(
    folder: Path, spec: dict, shape: tuple[int, ...], dtype: np.dtype, info: dict | None, ours: bool
) -> Iterator[Writer]:
    """`writer`, whose lock is held by this process or, where it is not `ours`, by another."""
    if dtype.hasobject or not shape or 0 in shape:
        raise ValueError(f"an entry is an array of numbers with at least one row, got {dtype} {shape}")
    if usable(folder, spec):  # made by another process since the caller looked
        yield Writer(None, folder.name, shape, dtype)
        return
    partial = folder.with_name(folder.name + ".partial") if ours else own_folder(folder)
    partial.mkdir(exist_ok=True)
    try:
        rows = Writer(partial, folder.name, shape, dtype)
        yield rows
        if rows.done < shape[0]:
            raise ValueError(
                f"cache entry {folder.name} of kind '{folder.parent.name}' has {rows.done} of {shape[0]} "
                "rows; write them all, or raise an error to keep them for a resume"
            )
        more = {"shape": list(shape), "dtype": dtype.str}
        _publish(partial, folder, spec, "data.npy", {**(info or {}), "seconds": round(rows.seconds, 3)}, more)
    finally:
        if not ours:  # nobody would resume it
            shutil.rmtree(partial, ignore_errors=True)


def array(
    kind: str,
    spec: dict,
    make: Callable[[], np.ndarray | torch.Tensor],
    info: dict | None = None,
    check: Callable[[np.ndarray], str] | None = None,
) -> np.memmap:
    """The array of `spec`: loaded when it is there, else made, written and loaded. `check` looks at one that
    was there, and says why it cannot be what is wanted, or "": it is then made anew.
    """
    found = load(kind, spec)
    why = check(found) if check is not None and found is not None else ""
    if why:
        discard(kind, spec, why)
        found = load(kind, spec)
    if found is None:
        folder = _place(kind, spec)
        with _turn(folder, spec) as ours:
            if not usable(folder, spec):
                made = _numpy(make())
                with _rows(folder, spec, made.shape, made.dtype, info, ours) as rows:
                    rows.write(0, made)
        found = load(kind, spec)
    return found


def bundle(
    kind: str,
    spec: dict,
    make: Callable[[], dict[str, torch.Tensor]],
    info: dict | None = None,
    check: Callable[[dict[str, torch.Tensor]], str] | None = None,
) -> dict[str, torch.Tensor]:
    """Named tensors of `spec`: loaded when they are there, else made and written as one safetensors file.
    `check` as in `array`.
    """
    from safetensors.torch import load_file

    folder = _found(kind, spec)
    if folder is not None and check is not None:
        found = load_file(str(folder / "data.safetensors"))
        why = check(found)
        if not why:
            return found
        discard(kind, spec, why)
        folder = _found(kind, spec)
    if folder is None:
        folder = _place(kind, spec)
        with _turn(folder, spec):
            if not usable(folder, spec):
                _put_tensors(folder, spec, make, info)
    return load_file(str(folder / "data.safetensors"))


def _put_tensors(
    folder: Path, spec: dict, make: Callable[[], dict[str, torch.Tensor]], info: dict | None
) -> None:
    from safetensors.torch import save_file

    began = time.perf_counter()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in make().items()}
    partial = own_folder(folder)
    try:
        save_file(tensors, str(partial / "data.safetensors"), {"spec": canonical(spec)})
        seconds = round(time.perf_counter() - began, 3)
        _publish(partial, folder, spec, "data.safetensors", {**(info or {}), "seconds": seconds}, {})
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard(kind: str, spec: dict, why: str) -> None:
    """Remove a finished entry whose content turned out not to be what its spec says, and say why."""
    folder = _folder(kind, spec)
    if folder in _refused() or not folder.exists():  # another process was quicker
        return
    say_once(f"cache entry {folder} is not used: {why}; it is computed anew")
    try:
        aside = own_folder(folder, "torn")
    except OSError:  # a cache that can only be read: this process does not look at it again
        _refused().add(folder)
        return
    with suppress(OSError):  # another process was quicker
        os.rename(folder, aside / "entry")
    shutil.rmtree(aside, ignore_errors=True)


@lru_cache
def _refused() -> set[Path]:
    """Entries that this process found wrong and could not remove."""
    return set()


def _folder(kind: str, spec: dict) -> Path:
    return cache_dir() / kind / key_of(spec)


def _found(kind: str, spec: dict) -> Path | None:
    """The folder of a finished entry, in the cache or among what this process keeps for itself."""
    for root in (cache_dir(), _standing_in()):
        folder = root / kind / key_of(spec)
        if folder not in _refused() and usable(folder, spec):
            return folder
    return None


def _place(kind: str, spec: dict) -> Path:
    """Where an entry is written: in the cache, or for this process alone where that cannot be written."""
    folder = _folder(kind, spec)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent) as probe:
            probe.write(bytes(4096))
            probe.flush()
            return folder
    except OSError as error:
        say_once(
            f"the cache {cache_dir()} cannot be written ({error.strerror}): what is there is used, what is "
            "not is computed for this process alone; set NEURONYM_CACHE to a folder that can be written"
        )
        return _standing_in(make=True) / kind / key_of(spec)


def _standing_in(make: bool = False) -> Path:
    """The folder of this process that stands in for a cache that cannot be written."""
    folder = Path(tempfile.gettempdir()) / f"neuronym-cache-{os.getpid()}-{digest(str(cache_dir()))}"
    if make and not folder.exists():
        folder.mkdir(mode=0o700)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _publish(partial: Path, folder: Path, spec: dict, file: str, info: dict, more: dict) -> None:
    """Describe the work in `partial` and make it the entry by one rename; a rival that was quicker keeps its
    own.
    """
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with open(partial / file, "rb") as data:
        os.fsync(data.fileno())
    write_json(
        partial / "meta.json",
        {
            "spec": spec,
            "file": file,
            "bytes": (partial / file).stat().st_size,
            "sha256": sha256(partial / file),
            **more,
            "info": {**info, "created": created, **_made_with()},
        },
    )
    for left in set(os.listdir(partial)) - {"meta.json", file}:  # progress, and what a kill left of it
        (partial / left).unlink()
    while True:
        with suppress(OSError):  # refused when there is an entry already
            os.rename(partial, folder)
            return
        if usable(folder, spec):
            shutil.rmtree(partial)
            return
        aside = own_folder(folder, "torn")  # no reader meets half of a torn one, nor do we drop ours for it
        os.rename(folder, aside / "entry")
        shutil.rmtree(aside)


@lru_cache(maxsize=1)
def _made_with() -> dict:
    """The code and the packages of this process, which git is asked about once."""
    return {"git": git_state(), **software()}


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def entries(kind: str | None = None) -> list[dict]:
    """Finished entries, oldest first: kind, key, spec, info, bytes, made (seconds since 1970), folder."""
    found = []
    for path in sorted(cache_dir().glob(f"{kind or '*'}/*/meta.json")):
        meta = read_meta(path.parent)
        if meta is not None and "." not in path.parent.name:
            size = sum(f.stat().st_size for f in path.parent.iterdir())
            found.append(
                {
                    "kind": path.parent.parent.name,
                    "key": path.parent.name,
                    "spec": meta["spec"],
                    "info": meta["info"],
                    "bytes": size,
                    "made": path.stat().st_mtime,
                    "folder": path.parent,
                }
            )
    return sorted(found, key=lambda e: e["made"])


def verify(kind: str | None = None) -> list[str]:
    """Reread every entry and compare with the checksum taken when it was published; one sentence per damaged
    entry.
    """
    problems = []
    for folder in sorted(p for p in cache_dir().glob(f"{kind or '*'}/*") if p.is_dir() and "." not in p.name):
        meta = read_meta(folder)
        if meta is None:
            problems.append(f"{folder.parent.name}/{folder.name}: meta.json is missing or unreadable")
        elif key_of(meta["spec"]) != folder.name:
            problems.append(f"{folder.parent.name}/{folder.name}: its spec belongs to {key_of(meta['spec'])}")
        elif not whole(folder, meta):
            problems.append(f"{folder.parent.name}/{folder.name}: {meta['file']} is torn")
        elif sha256(folder / meta["file"]) != meta["sha256"]:
            problems.append(
                f"{folder.parent.name}/{folder.name}: {meta['file']} differs from what was written"
            )
    return problems


def explain(kind: str, spec: dict) -> str:
    """Why does this spec miss? Names the nearest entry of the kind and every field in which it differs."""
    key = key_of(spec)
    there = entries(kind)
    if usable(cache_dir() / kind / key, spec):
        return f"hit: {kind}/{key}"
    begun = read_json(cache_dir() / kind / f"{key}.partial" / "progress.json")
    begun = f"; {begun['rows']} of {begun['shape'][0]} rows are written" if begun else ""
    if not there:
        return f"miss: no entry of kind '{kind}' in {cache_dir()}{begun}"

    def differing(entry: dict) -> list[str]:
        both = spec.keys() | entry["spec"].keys()
        return [k for k in sorted(both) if spec.get(k, "absent") != entry["spec"].get(k, "absent")]

    near = min(there, key=lambda e: len(differing(e)))
    changes = (
        "; ".join(
            f"{k}: asked {spec.get(k, 'absent')!r}, cached {near['spec'].get(k, 'absent')!r}"
            for k in differing(near)
        )
        or "nothing, but it is torn"
    )
    return f"miss: {kind}/{key}; nearest is {near['key']}, which differs in {changes}{begun}"


def prune(max_bytes: int | None = None, older_than_days: float | None = None, partial: bool = False) -> int:
    """Remove entries, oldest first, until `max_bytes` remain, and those older than so many days; tells the
    bytes freed.

    With `partial` also torn entries, and unfinished work that no living process is at.
    """
    there, freed = entries(), 0
    total = sum(e["bytes"] for e in there)
    for entry in there:
        old = older_than_days is not None and time.time() - entry["made"] > older_than_days * 86400
        if old or (max_bytes is not None and total - freed > max_bytes):
            freed += _remove(entry["folder"])
    for folder in [f for f in cache_dir().glob("*/*") if f.is_dir()] if partial else ():
        key, _, mark = folder.name.partition(".")
        if in_use(folder) or not mark and whole(folder, read_meta(folder)):
            continue
        with locked(folder.with_name(f"{key}.lock")) as ours:
            freed += _remove(folder) if ours else 0
    return freed


def _remove(folder: Path) -> int:
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    shutil.rmtree(folder)
    return size
