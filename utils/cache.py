"""Arrays found by a hash of everything that determines them, published whole or not at all.

key_of   spec -> key
load     a finished array, memory-mapped, or None
writer   write an array row by row; a killed writer is taken up where it stopped
array    loop-or-load for something computed in one go
bundle   the same for a few named tensors
entries  what is there; `verify`, `explain` and `prune` look after it

On disk: <cache>/<kind>/<key>/{data.npy | data.safetensors, meta.json}; unfinished work in <key>.partial/ with progress.json.
A folder becomes an entry by one rename; what has no meta.json, another spec or another size is never used.
"""
from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.cache_lock import locked
from utils.runs import cache_dir


def key_of(spec: dict) -> str:
    """16 hex digits of SHA-256 over the spec as canonical JSON; a spec that can't be told apart by its text is refused."""
    return hashlib.sha256(_canonical(spec).encode()).hexdigest()[:16]


def load(kind: str, spec: dict) -> np.ndarray | None:
    """The array of a finished entry, memory-mapped and read-only; None when there is none or it is torn.

    Raises ValueError when the entry under this key was made from another spec.
    """
    folder = _folder(kind, spec)
    meta = _meta(folder)
    if meta is None or not _whole(folder, meta):
        return None
    if _canonical(meta["spec"]) != _canonical(spec):
        raise ValueError(f"cache entry {folder.name} of kind '{kind}' was made from another spec; remove {folder}")
    return np.load(folder / "data.npy", mmap_mode="r", allow_pickle=False)


class Writer:
    """Rows of an unfinished array; `start` is the first row still to be written."""

    def __init__(self, folder: Path, key: str, shape: tuple[int, ...], dtype: np.dtype):
        self._progress = folder / "progress.json"
        recorded = _read_json(self._progress) or {}
        wanted = {"key": key, "shape": list(shape), "dtype": dtype.str}
        fits = {k: recorded.get(k) for k in wanted} == wanted and _npy_fits(folder / "data.npy", shape, dtype)
        self.start = int(recorded["rows"]) if fits else 0
        self.done = self.start
        self._wanted, self._shape = wanted, shape
        self._data = np.lib.format.open_memmap(folder / "data.npy", mode="r+" if fits else "w+", dtype=dtype, shape=shape)

    def write(self, row: int, block: np.ndarray | torch.Tensor) -> None:
        """Put `block` at rows row, row + 1, ...; rows before `row` must be there already. Flushed before it counts."""
        block = block.detach().cpu().numpy() if isinstance(block, torch.Tensor) else np.asarray(block)
        if block.shape[1:] != self._shape[1:] or row + len(block) > self._shape[0]:
            raise ValueError(f"expected rows of shape {self._shape[1:]} up to row {self._shape[0]}, got {block.shape} at row {row}")
        if row > self.done:
            raise ValueError(f"rows are written in order; next is row {self.done}, got {row}")
        self._data[row:row + len(block)] = block
        self._data.flush()
        self.done = max(self.done, row + len(block))
        _write_json(self._progress, {**self._wanted, "rows": self.done})

    def close(self) -> None:
        self._data.flush()
        self._data._mmap.close()


@contextmanager
def writer(kind: str, spec: dict, shape: tuple[int, ...], dtype: str | np.dtype | type, info: dict | None = None) -> Iterator[Writer]:
    """Yield a Writer for the entry of `spec`; it is published when the block ends without error and every row is written.

    After an error or a kill the rows that were flushed stay, and the next writer of the same spec starts behind them.
    A second writer of the same entry is an error that names the other's process. Should the entry exist by the time
    this one is done, this one is dropped. `info` (readable names) is kept beside the array and not hashed.
    """
    folder, dtype, shape = _folder(kind, spec), np.dtype(dtype), tuple(int(n) for n in shape)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(folder.name + ".lock"), f"cache entry {folder.name} of kind '{kind}'"):
        partial.mkdir(parents=True, exist_ok=True)
        rows = Writer(partial, folder.name, shape, dtype)
        began = time.time()
        try:
            yield rows
        finally:
            rows.close()
        if rows.done < shape[0]:
            raise ValueError(f"cache entry {folder.name} of kind '{kind}' has {rows.done} of {shape[0]} rows; write them all, "
                             "or raise an error to keep them for a resume")
        _publish(partial, folder, spec, "data.npy", {**(info or {}), "seconds": round(time.time() - began, 3)},
                 {"shape": list(shape), "dtype": dtype.str})


def array(kind: str, spec: dict, make: Callable[[], np.ndarray | torch.Tensor], info: dict | None = None) -> np.ndarray:
    """The array of `spec`: loaded when it is there, else made, written and loaded."""
    found = load(kind, spec)
    if found is None:
        made = make()
        made = made.detach().cpu().numpy() if isinstance(made, torch.Tensor) else np.asarray(made)
        with writer(kind, spec, made.shape, made.dtype, info) as rows:
            rows.write(0, made)
        found = load(kind, spec)
    return found


def bundle(kind: str, spec: dict, make: Callable[[], dict[str, torch.Tensor]], info: dict | None = None) -> dict[str, torch.Tensor]:
    """Named tensors of `spec`: loaded when they are there, else made and written as one safetensors file."""
    from safetensors.torch import load_file, save_file
    folder = _folder(kind, spec)
    meta = _meta(folder)
    if meta is None or not _whole(folder, meta) or _canonical(meta["spec"]) != _canonical(spec):
        partial = folder.with_name(f"{folder.name}.partial.{os.getpid()}")
        partial.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in make().items()}, str(partial / "data.safetensors"))
        _publish(partial, folder, spec, "data.safetensors", info or {}, {})
    return load_file(str(folder / "data.safetensors"))


def entries(kind: str | None = None) -> list[dict]:
    """Finished entries, oldest first: kind, key, spec, info, bytes, made (seconds since 1970), folder."""
    found = []
    for path in sorted(cache_dir().glob(f"{kind or '*'}/*/meta.json")):
        meta = _meta(path.parent)
        if meta is not None and "." not in path.parent.name:
            size = sum(f.stat().st_size for f in path.parent.iterdir())
            found.append({"kind": path.parent.parent.name, "key": path.parent.name, "spec": meta["spec"], "info": meta["info"],
                          "bytes": size, "made": path.stat().st_mtime, "folder": path.parent})
    return sorted(found, key=lambda e: e["made"])


def verify(kind: str | None = None) -> list[str]:
    """Reread every entry and compare with the checksum taken when it was published; one sentence per damaged entry."""
    problems = []
    for folder in sorted(p for p in cache_dir().glob(f"{kind or '*'}/*") if p.is_dir() and "." not in p.name):
        meta = _meta(folder)
        if meta is None:
            problems.append(f"{folder.parent.name}/{folder.name}: meta.json is missing or unreadable")
        elif key_of(meta["spec"]) != folder.name:
            problems.append(f"{folder.parent.name}/{folder.name}: its spec belongs to {key_of(meta['spec'])}")
        elif not _whole(folder, meta):
            problems.append(f"{folder.parent.name}/{folder.name}: {meta['file']} is torn")
        elif _sha256(folder / meta["file"]) != meta["sha256"]:
            problems.append(f"{folder.parent.name}/{folder.name}: {meta['file']} differs from what was written")
    return problems


def explain(kind: str, spec: dict) -> str:
    """Why does this spec miss? Names the nearest entry of the kind and every field in which it differs."""
    key = key_of(spec)
    there = entries(kind)
    if any(e["key"] == key for e in there) and _whole(_folder(kind, spec), _meta(_folder(kind, spec))):
        return f"hit: {kind}/{key}"
    if not there:
        return f"miss: no entry of kind '{kind}' in {cache_dir()}"

    def differing(entry: dict) -> list[str]:
        return [k for k in sorted(spec.keys() | entry["spec"].keys()) if spec.get(k, "absent") != entry["spec"].get(k, "absent")]

    near = min(there, key=lambda e: len(differing(e)))
    changes = "; ".join(f"{k}: asked {spec.get(k, 'absent')!r}, cached {near['spec'].get(k, 'absent')!r}" for k in differing(near))
    return f"miss: {kind}/{key}; nearest is {near['key']}, which differs in {changes or 'nothing, but it is torn'}"


def prune(max_bytes: int | None = None, older_than_days: float | None = None, partial: bool = False) -> int:
    """Remove entries, oldest first, until `max_bytes` remain, those older than so many days, and unfinished ones that no
    living process writes; returns the bytes freed."""
    there, freed = entries(), 0
    total = sum(e["bytes"] for e in there)
    for entry in there:
        old = older_than_days is not None and time.time() - entry["made"] > older_than_days * 86400
        if old or (max_bytes is not None and total - freed > max_bytes):
            freed += _remove(entry["folder"])
    for folder in cache_dir().glob("*/*.partial*") if partial else ():
        with locked(folder.with_name(folder.name.split(".")[0] + ".lock"), "") as mine:
            freed += _remove(folder) if mine else 0
    return freed


def _canonical(spec: dict) -> str:
    def check(value: object, where: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                if not isinstance(k, str):
                    raise ValueError(f"keys of a spec are strings, got {k!r} in {where or 'the spec'}")
                check(v, f"{where}.{k}" if where else k)
        elif isinstance(value, (list, tuple)):
            for v in value:
                check(v, where)
        elif isinstance(value, str) and "at 0x" in value:
            raise ValueError(f"a spec must not change from process to process; '{where}' holds a memory address: {value[:80]!r}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"a spec holds finite numbers, got {value} in '{where}'")
        elif not (value is None or isinstance(value, (str, bool, int, float))):
            raise ValueError(f"a spec holds JSON values, got {type(value).__name__} in '{where}'")

    check(spec, "")
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _folder(kind: str, spec: dict) -> Path:
    return cache_dir() / kind / key_of(spec)


def _publish(partial: Path, folder: Path, spec: dict, file: str, info: dict, more: dict) -> None:
    """Describe the work in `partial` and make it the entry by one rename; a rival that was quicker keeps its own."""
    from utils.runs import git_state
    meta = {"spec": spec, "file": file, "bytes": (partial / file).stat().st_size, "sha256": _sha256(partial / file), **more,
            "info": {**info, "torch": torch.__version__, "numpy": np.__version__, "git": git_state(),
                     "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}}
    (partial / "progress.json").unlink(missing_ok=True)
    _write_json(partial / "meta.json", meta)
    there = _meta(folder)
    if there is not None and _whole(folder, there) and _canonical(there["spec"]) == _canonical(spec):
        shutil.rmtree(partial)
        return
    if folder.exists():  # torn or foreign: set aside before it goes, so that no reader meets half of it
        aside = folder.with_name(f"{folder.name}.torn.{os.getpid()}")
        os.rename(folder, aside)
        shutil.rmtree(aside)
    try:
        os.rename(partial, folder)
    except OSError:
        if _meta(folder) is None:
            raise
        shutil.rmtree(partial)


def _meta(folder: Path) -> dict | None:
    meta = _read_json(folder / "meta.json")
    return meta if isinstance(meta, dict) and {"spec", "file", "bytes", "sha256", "info"} <= meta.keys() else None


def _whole(folder: Path, meta: dict | None) -> bool:
    """Whether the entry's file has the size that was published, and, for an array, its shape and dtype."""
    if meta is None:
        return False
    file = folder / meta["file"]
    if not file.is_file() or file.stat().st_size != meta["bytes"]:
        return False
    return file.suffix != ".npy" or _npy_fits(file, tuple(meta["shape"]), np.dtype(meta["dtype"]))


def _npy_fits(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    try:
        data = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return data.shape == shape and data.dtype == dtype


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _read_json(file: Path) -> dict | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(file: Path, value: dict) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(temporary, file)


def _remove(folder: Path) -> int:
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    shutil.rmtree(folder)
    return size
