"""Who writes a cache entry: `locked` takes an exclusive lock that the system releases when its holder dies.

locked   hold a lock file, or learn that another does
alive    whether a process of this machine still runs
"""
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
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`, which tells our pid, and yield True; yield False when another writer holds it.

    The lock is the operating system's: one that a killed process left behind is taken over.
    """
    file = _take(path)
    if file is None:
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


def alive(pid: int) -> bool:
    """Whether process `pid` exists; another user's counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # its last holder removed it between our open and our lock: what we hold is no longer the lock
