"""One writer per cache entry: `locked` holds an exclusive lock that the system releases when the process dies."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def locked(path: Path, what: str) -> Iterator[bool]:
    """Hold the lock file `path` (it tells our pid). Held by another: RuntimeError naming it, or yield False if `what` is empty.

    The lock is the operating system's, so a killed holder never leaves it behind.
    """
    file = _take(path)
    if file is None:
        if what:
            raise RuntimeError(f"{what} is being written by process {path.read_text() or '?'}; wait for it, then run again to resume")
        yield False
        return
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _take(path: Path) -> IO[str] | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its last holder removed it between our open and our lock: what we hold is no longer the lock
