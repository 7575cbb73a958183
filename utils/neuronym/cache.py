"""Arrays found by a hash of everything that determines them, published whole or not at all.

load     a finished array, memory-mapped, or None
writer   write an array row by row; a killed writer is taken up where it stopped
array    loop-or-load for something computed in one go
bundle   the same for a few named tensors

`key_of` (neuronym.cache_keys) and `entries`, `verify`, `explain`, `prune` (neuronym.cache_care) can be imported from here.

On disk: <cache>/<kind>/<key>/{data.npy | data.safetensors, meta.json}; unfinished work in <key>.partial/ with
progress.json. A folder becomes an entry by one rename; what has no meta.json, another spec or size is never used.
Of two processes that make the same entry both work, each in a folder of its own, and the slower drops its own.
"""
from __future__ import annotations

import datetime
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuronym.cache_files import empty_npy, npy_fits, read_json, sha256, usable, write_json
from neuronym.cache_keys import canonical, key_of
from neuronym.common.cache_lock import locked
from neuronym.runs.runs import cache_dir, git_state, software



def load(kind: str, spec: dict) -> np.ndarray | None:
    """The array of a finished entry, memory-mapped and read-only; None when there is none or it is torn.

    Raises ValueError when the entry under this key was made from another spec.
    """
    folder = _folder(kind, spec)
    return np.load(folder / "data.npy", mmap_mode="r", allow_pickle=False) if usable(folder, spec) else None


class Writer:
    """Rows of an unfinished array; `start` is the first row still to be written (the number of rows: none is)."""

    def __init__(self, folder: Path | None, key: str, shape: tuple[int, ...], dtype: np.dtype):
        self._folder, self._shape, self._dtype = folder, shape, dtype
        self._state = {"key": key, "shape": list(shape), "dtype": dtype.str, "rows": 0, "seconds": 0.0}
        self._began = time.perf_counter()
        if folder is None:                           # the entry is there already
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
        """Put `block` at rows row, row + 1, ...; rows before `row` must be there already. Flushed before it counts."""
        block = _numpy(block)
        if block.shape[1:] != self._shape[1:] or row < 0 or row + len(block) > self._shape[0]:
            raise ValueError(f"expected rows of shape {self._shape[1:]} up to row {self._shape[0]}, "
                             f"got {block.shape} at row {row}")
        if row > self.done:
            raise ValueError(f"rows are written in order; next is row {self.done}, got {row}")
        if not np.can_cast(block.dtype, self._dtype, "same_kind"):
            raise ValueError(f"this entry holds {self._dtype}, got rows of {block.dtype}")
        if self._folder is None or not len(block):
            return
        # through the file and not a memory map: a full disk is then an error with a name, not the end of the process
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
def writer(kind: str, spec: dict, shape: tuple[int, ...], dtype: Any, info: dict | None = None) -> Iterator[Writer]:
    """Yield a Writer for the entry of `spec`, published when the block ends without error and every row is written.

    After an error or a kill the rows that were flushed stay, and the next writer of the same spec starts behind them.
    While another process writes the same entry, this one works in a folder of its own. Should the entry exist by the
    time this one is done, this one is dropped. `info` (readable names) is kept beside the array and not hashed.
    """
    folder, dtype, shape = _folder(kind, spec), np.dtype(dtype), tuple(int(n) for n in shape)
    if dtype.hasobject or not shape or 0 in shape:
        raise ValueError(f"an entry is an array of numbers with at least one row, got {dtype} {shape}")
    with locked(folder.with_name(folder.name + ".lock")) as ours:
        if usable(folder, spec):                    # made by another process since the caller looked
            yield Writer(None, folder.name, shape, dtype)
            return
        partial = folder.with_name(folder.name + ".partial") if ours else _own_folder(folder)
        partial.mkdir(exist_ok=True)
        try:
            rows = Writer(partial, folder.name, shape, dtype)
            yield rows
            if rows.done < shape[0]:
                raise ValueError(f"cache entry {folder.name} of kind '{kind}' has {rows.done} of {shape[0]} rows; "
                                 "write them all, or raise an error to keep them for a resume")
            _publish(partial, folder, spec, "data.npy", {**(info or {}), "seconds": round(rows.seconds, 3)},
                     {"shape": list(shape), "dtype": dtype.str})
        finally:
            if not ours:                             # nobody would resume it
                shutil.rmtree(partial, ignore_errors=True)


def array(kind: str, spec: dict, make: Callable[[], np.ndarray | torch.Tensor], info: dict | None = None) -> np.memmap:
    """The array of `spec`: loaded when it is there, else made, written and loaded."""
    found = load(kind, spec)
    if found is None:
        made = _numpy(make())
        with writer(kind, spec, made.shape, made.dtype, info) as rows:
            rows.write(0, made)
        found = load(kind, spec)
    return found


def bundle(kind: str, spec: dict, make: Callable[[], dict[str, torch.Tensor]],
           info: dict | None = None) -> dict[str, torch.Tensor]:
    """Named tensors of `spec`: loaded when they are there, else made and written as one safetensors file."""
    from safetensors.torch import load_file, save_file

    folder = _folder(kind, spec)
    if not usable(folder, spec):
        began = time.perf_counter()
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in make().items()}
        partial = _own_folder(folder)
        try:
            save_file(tensors, str(partial / "data.safetensors"), {"spec": canonical(spec)})
            seconds = round(time.perf_counter() - began, 3)
            _publish(partial, folder, spec, "data.safetensors", {**(info or {}), "seconds": seconds}, {})
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return load_file(str(folder / "data.safetensors"))


def _folder(kind: str, spec: dict) -> Path:
    return cache_dir() / kind / key_of(spec)


def _own_folder(folder: Path, mark: str = "partial") -> Path:
    """A new folder beside `folder` that no other writer uses; the pid in its name tells prune whether it is in use."""
    own = folder.with_name(f"{folder.name}.{mark}.{os.getpid()}.{secrets.token_hex(4)}")
    own.mkdir(parents=True)
    return own


def _publish(partial: Path, folder: Path, spec: dict, file: str, info: dict, more: dict) -> None:
    """Describe the work in `partial` and make it the entry by one rename; a rival that was quicker keeps its own."""
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with open(partial / file, "rb") as data:
        os.fsync(data.fileno())
    write_json(partial / "meta.json", {
        "spec": spec, "file": file, "bytes": (partial / file).stat().st_size, "sha256": sha256(partial / file), **more,
        "info": {**info, "created": created, "git": git_state(), **software()}})
    (partial / "progress.json").unlink(missing_ok=True)
    while True:
        with suppress(OSError):                      # refused when there is an entry already
            os.rename(partial, folder)
            return
        if usable(folder, spec):
            shutil.rmtree(partial)
            return
        aside = _own_folder(folder, "torn")          # no reader meets half of a torn one, nor do we drop ours for it
        os.rename(folder, aside / "entry")
        shutil.rmtree(aside)


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
