"""Which image files are what they were, and which cannot be read: `examine`, which remembers what it saw."""
from __future__ import annotations

import hashlib
import io
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import PIL
from PIL import UnidentifiedImageError

from neuronym.datasets.images import read_image, READER
from neuronym.runs.runs import cache_dir

FRESH_SECONDS = 2.  # a file changed this recently may change again within its clock tick: not remembered
COMMIT_EVERY = 256  # files; an interrupted check goes on from there
Progress = Callable[[Iterable, int, str], Iterable]


def examine(paths: Sequence[Path], progress: Progress | None = None, threads: int | None = None,
            ) -> list[tuple[str, str | None]]:
    """(sha256 of the content, what is wrong with it or None) of each file; every file is decoded once to find out.

    Both are remembered under `cache_dir()/probe`: the hash by path, size and times of the file, the defect by the hash,
    so that a folder is read once and a moved or copied one is not decoded again. The memory only saves time: a damaged
    one is started afresh. A file that cannot be opened has the hash "".
    """
    try:
        return _examine(paths, progress, threads)
    except sqlite3.OperationalError:  # locked or not writable: not a reason to delete it
        raise
    except sqlite3.DatabaseError:
        _memory_file().unlink()
        return _examine(paths, progress, threads)


def _examine(paths: Sequence[Path], progress: Progress | None, threads: int | None) -> list[tuple[str, str | None]]:
    reader = f"{READER} Pillow {PIL.__version__}"
    with closing(_memory()) as memory:
        defects = dict(memory.execute("SELECT sha, defect FROM contents WHERE reader = ?", (reader,)))
        found = [_recall(memory, path, defects) for path in paths]
        new = [i for i, known in enumerate(found) if known is None]
        if not new:
            return found
        pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
        try:
            results = pool.map(lambda i: _look(paths[i], defects), new)
            results = results if progress is None else progress(results, len(new), "checking images")
            for done, (i, (sha, defect, stamp)) in enumerate(zip(new, results), 1):
                found[i] = sha, defect
                if sha:
                    memory.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (sha, reader, defect))
                if stamp:
                    memory.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (os.fsencode(paths[i]), stamp, sha))
                if done % COMMIT_EVERY == 0:
                    memory.commit()
        finally:
            memory.commit()
            pool.shutdown(wait=True, cancel_futures=True)
    return found


def _recall(memory: sqlite3.Connection, path: Path, defects: dict[str, str | None]) -> tuple[str, str | None] | None:
    key = os.fsencode(path), _stamp(path)
    row = memory.execute("SELECT sha FROM files WHERE path = ? AND stamp = ?", key).fetchone()
    return (row[0], defects[row[0]]) if row and row[0] in defects else None


def _look(path: Path, defects: dict[str, str | None]) -> tuple[str, str | None, str]:
    """(sha256, defect, stamp to remember it by or "") of one file."""
    stamp = _stamp(path)
    try:
        data = path.read_bytes()
        times = os.stat(path)
    except OSError as error:
        return "", f"cannot be opened: {error.strerror}", ""
    fresh = time.time() - max(times.st_mtime, times.st_ctime) < FRESH_SECONDS
    sha = hashlib.sha256(data).hexdigest()
    defect = defects[sha] if sha in defects else _defect(data)
    return sha, defect, "" if fresh or stamp != _stamp(path) else stamp


def _defect(data: bytes) -> str | None:
    if not data:
        return "empty file"
    try:
        read_image(io.BytesIO(data))
    except MemoryError:  # says something about this machine, not about the file
        raise
    except UnidentifiedImageError:
        return "not an image of a kind that Pillow reads"
    except Exception as error:  # decoders raise all kinds of errors on damaged files; each is a defect to report
        return re.sub(r"<[^<>]* at 0x\w+>", "the file", str(error)).strip().split("\n")[0] or type(error).__name__
    return None


def _stamp(path: Path) -> str:
    """What changes when a file changes; "" when there is none. The second time catches edits that restore the first."""
    try:
        times = os.stat(path)
    except OSError:
        return ""
    return f"{times.st_size} {times.st_mtime_ns} {times.st_ctime_ns}"


def _memory_file() -> Path:
    return cache_dir() / "probe" / "files-1.sqlite"


def _memory() -> sqlite3.Connection:
    _memory_file().parent.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(_memory_file(), timeout=60)
    try:
        memory.execute("CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, sha TEXT)")
        memory.execute("CREATE TABLE IF NOT EXISTS contents "
                       "(sha TEXT, reader TEXT, defect TEXT, PRIMARY KEY (sha, reader))")
    except sqlite3.Error:
        memory.close()
        raise
    return memory
