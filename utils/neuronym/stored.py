"""What an entry of the cache is on disk: its key, its files, and whether these are what was published.

key_of     spec -> key: what stands for an entry
canonical  spec -> text, of which the key is the hash
read_meta  what an entry says of itself; what is torn counts as missing
whole      whether an entry's file has the size, shape and dtype that were published
intact     whether it has the content
usable     whether a folder is a whole entry of a spec
own_folder a folder beside an entry that no other process uses
in_use     whether its maker still does
gets_on    whether a process that holds an entry is worth waiting for
npy_fits   whether a .npy file holds rows of a shape and dtype
empty_npy  a .npy file of the right size, zeros so far
say_once   a sentence on the screen, once in a process
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from neuronym.common.files import read_json, sha256
from neuronym.common.locks import alive, holder, this_machine

STUCK = 600  # seconds without a sign of progress, after which another process is not waited for


def key_of(spec: dict) -> str:
    """16 hex digits of SHA-256 over the spec as canonical JSON: the order of fields does not matter, all else
    does.

    Raises ValueError for what JSON cannot hold exactly and for texts with a memory address, which change
    every time.
    """
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]


def canonical(spec: dict) -> str:
    """The spec as JSON with sorted keys; ValueError as in `key_of`."""

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
            raise ValueError(
                "a spec must not change from process to process; "
                f"'{where}' holds a memory address: {value[:80]!r}"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"a spec holds finite numbers, got {value} in '{where}'")
        elif not (value is None or isinstance(value, (str, bool, int, float))):
            raise ValueError(f"a spec holds JSON values, got {type(value).__name__} in '{where}'")

    check(spec, "")
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_meta(folder: Path) -> dict | None:
    """meta.json of an entry; None when it is missing, unreadable or lacks a field."""
    meta = read_json(folder / "meta.json")
    return (
        meta
        if isinstance(meta, dict) and {"spec", "file", "bytes", "sha256", "info"} <= meta.keys()
        else None
    )


def whole(folder: Path, meta: dict | None) -> bool:
    """Whether the entry's file has the size that was published, and, for an array, its shape and dtype."""
    if meta is None:
        return False
    try:
        file = folder / meta["file"]
        if not file.is_file() or file.stat().st_size != meta["bytes"]:
            return False
        return file.suffix != ".npy" or npy_fits(file, tuple(meta["shape"]), np.dtype(meta["dtype"]))
    except (KeyError, TypeError, ValueError):  # a field that is missing, or of another type
        return False


def intact(folder: Path, meta: dict) -> bool:
    """Whether the entry's content is what was published; a file is read for it once in a process.

    A damaged entry is said once, and counts as absent from then on.
    """
    file = folder / meta["file"]
    try:
        state = file.stat()
        if _content(str(file), state.st_size, state.st_mtime_ns, state.st_ino) == meta["sha256"]:
            return True
    except OSError as error:
        say_once(f"cache entry {folder} cannot be read ({error.strerror}); it is computed anew")
        return False
    say_once(f"cache entry {folder} is damaged: it differs from what was written; it is computed anew")
    return False


@lru_cache(maxsize=100_000)
def _content(file: str, size: int, changed: int, inode: int) -> str:
    return sha256(Path(file))


@lru_cache(maxsize=100_000)
def say_once(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def usable(folder: Path, spec: dict) -> bool:
    """Whether the folder is a whole entry of this spec; what says another is damaged, and said to be."""
    meta = read_meta(folder)
    if not whole(folder, meta) or not isinstance(meta["spec"], dict):
        if folder.is_dir():
            say_once(f"cache entry {folder} is torn: its files are not as they were; it is computed anew")
        return False
    try:
        same = canonical(meta["spec"]) == canonical(spec)
    except ValueError:  # numbers that no spec has
        same = False
    if not same:
        say_once(f"cache entry {folder} is damaged: it says another spec than its key; it is computed anew")
    return same and intact(folder, meta)


def own_folder(folder: Path, mark: str = "partial") -> Path:
    """A new folder beside `folder` that no other writer uses; its name tells `in_use` whose it is:
    KEY.MARK.PID-MACHINE.ANY.
    """
    own = f"{folder.name}.{mark}.{os.getpid()}-{this_machine()}.{secrets.token_hex(4)}"
    folder.with_name(own).mkdir(parents=True)
    return folder.with_name(own)


def in_use(folder: Path) -> bool:
    """Whether the process that a folder of `own_folder` is of lives; of another machine's, whether it was
    written to in the last STUCK seconds.
    """
    pid, _, machine = ".".join(folder.name.split(".")[2:3]).partition("-")
    if not pid.isdigit():
        return False
    if machine in ("", this_machine()):
        return alive(int(pid))
    return time.time() - max(path.stat().st_mtime for path in [folder, *folder.iterdir()]) < STUCK


def gets_on(lock: Path, partial: Path, since: float) -> bool:
    """Whether the process that holds the lock lives, and wrote something in the last STUCK seconds."""
    with suppress(OSError):
        since = max([since, *(path.stat().st_mtime for path in partial.iterdir())])
    owner = holder(lock)
    if owner is not None:  # who has not just let go of it, and has told who it is
        if owner.here and not alive(owner.pid):
            return False
        if not owner.here or owner.pid != os.getpid():
            say_once(f"{owner} is making what this one needs in {lock.parent}; this one waits for it")
    return time.time() - since < STUCK


def npy_fits(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether a .npy file holds rows of this shape and dtype, and is as long as that takes."""
    try:
        data = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged header is read as Python's own literals, which may fail in any way
        return False
    long = data.offset + data.nbytes == file.stat().st_size if isinstance(data, np.memmap) else False
    return long and data.shape == shape and data.dtype == dtype and data.flags.c_contiguous


def empty_npy(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A file of the right header and size, zeros so far."""
    with open(file, "wb") as f:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(f, header)
        f.truncate(f.tell() + math.prod(shape) * dtype.itemsize)
