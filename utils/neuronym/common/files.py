"""Files that several processes share: one writer at a time, contents by their hash, whole or not at all.

locked      hold a lock file, or learn that another does
alive       whether a process of this machine still runs
digest      16 hex of texts
sha256      checksum of a file
read_json   content of a JSON file, None when it is missing or torn
write_json  replace a JSON file in one step
"""

from __future__ import annotations

import hashlib
import json
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
    """Hold the lock file `path`, which tells our pid, and yield True; yield False when another writer holds
    it.

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
        # its last holder removed it between our open and our lock: what we hold is no longer the lock
        file.close()


def digest(*texts: str) -> str:
    """16 hex of SHA-256 over texts, each with its length, so that no two lists of texts run together."""
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text)}:{text}".encode())
    return found.hexdigest()[:16]


def sha256(file: Path) -> str:
    """Checksum of a file's content."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(file: Path) -> dict | None:
    """Content of a JSON file; None when it is missing or torn."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(file: Path, value: dict) -> None:
    """Replace a JSON file in one step; on a full disk it stays as it was."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
