"""Lock files that hold among processes of one machine and of several, and that a kill does not leave for
good.

locked   hold a lock file, or learn that another does
waited   hold one after whoever holds it
holder   who holds one, as written in it
Holder   process, machine, time and token of who holds a lock
alive    whether a process of this machine still runs

A lock is a file that O_EXCL makes for one process alone, on network file systems too. Its holder keeps the
operating system's lock (flock) on it, which ends with the process, and touches it every BEAT seconds. On the
holder's machine flock tells at once whether it is gone. Another machine, to which the file system may not
pass flock on, and one without flock take a lock as left behind when it was not touched for STALE seconds by
the file system's clock, so that clocks need not agree. Who removes a lock left behind holds the lock of its
token meanwhile, which no second lock ever has: a lock that came after it is never removed in its place.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, UTC
from pathlib import Path
from typing import IO, NamedTuple

from neuronym.common.files import digest, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT, STALE = 10.0, 120.0  # seconds between two touches; without one, after which a lock is left behind


class Holder(NamedTuple):
    """Who holds a lock; `machine` stands for one start of one machine, which `host` names for readers."""

    pid: int
    host: str
    machine: str
    since: str
    token: str

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.machine == this_machine()

    def __str__(self) -> str:
        return f"process {self.pid}" if self.here else f"process {self.pid} of {self.host}"


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` and yield True; yield False when another holds it, in this process too.

    A lock that a killed process left is taken over: at once on its machine, after STALE seconds on others.
    """
    found = _take(path)
    if found is None:
        yield False
        return
    file, mine = found
    ended = threading.Event()
    threading.Thread(target=_beat, args=(path, mine, ended), daemon=True).start()
    try:
        yield True
    finally:
        ended.set()
        if fcntl is None:  # Windows removes no open file
            file.close()
        if holder(path) == mine:  # else it was taken over, as that of a process that slept too long
            path.unlink(missing_ok=True)
        file.close()  # not before: what flock does not hold is taken over


@contextmanager
def waited(path: Path, pause: float = 0.01, said: str = "") -> Iterator[None]:
    """Hold the lock file `path` for the block, after whoever holds it; `said` is printed once where one
    does.
    """
    while True:
        with locked(path) as ours:
            if ours:
                yield
                return
        if said:
            print(said, flush=True)
            said = ""
        time.sleep(pause)


def holder(path: Path) -> Holder | None:
    """Who holds the lock file `path`; None for none, and where nothing is written in it yet."""
    try:
        return Holder(**read_json(path))
    except TypeError:
        return None


def alive(pid: int) -> bool:
    """Whether process `pid` exists; another user's counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def this_machine() -> str:
    """8 hex of what no other machine, no other container and no earlier start of this one has."""
    start = ""
    with suppress(OSError):  # Linux has it
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
    return digest(platform.node(), start)[:8]


def _take(path: Path) -> tuple[IO[str], Holder] | None:
    """The lock file, open, and what is written in it, once it is ours; None where another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            file = open(path, "x", encoding="utf-8")
            break
        except FileExistsError:
            if not _cleared(path):
                return None
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = Holder(os.getpid(), platform.node(), this_machine(), since, secrets.token_hex(4))
    try:
        with suppress(OSError):  # a file system without such locks
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # before it says whose it is; waits for who just looks
        file.write(json.dumps(mine._asdict()))
        file.flush()
    except BaseException:  # a full disk, Ctrl-C
        path.unlink(missing_ok=True)
        file.close()
        raise
    return file, mine


def _cleared(path: Path) -> bool:
    """Remove a lock that is left behind; whether there is none now."""
    found = holder(path)
    if not _left_behind(path, found):
        return not path.exists()
    with locked(path.with_name(f"{path.name}.{found.token if found else 'empty'}")) as ours:
        if ours and holder(path) == found and _left_behind(path, found):
            path.unlink(missing_ok=True)
    return ours


def _left_behind(path: Path, found: Holder | None) -> bool:
    """Whether `found`, who is written in a lock file, holds it no more."""
    try:
        # for writing, as flock over NFS asks, where it is no other user's
        file = open(path, "r+" if os.access(path, os.W_OK) else "r", encoding="utf-8")
    except OSError:
        return False
    with file:
        free = _free(file)
        here = found is not None and found.here
        if free is False or here and free:
            return bool(free)
        if here and not alive(found.pid):
            return True
        try:
            with tempfile.TemporaryFile(dir=path.parent) as fresh:
                now = os.fstat(fresh.fileno()).st_mtime
        except OSError:
            return False
        return now - os.fstat(file.fileno()).st_mtime > STALE


def _free(file: IO[str]) -> bool | None:
    """Whether nobody has the operating system's lock of a file, as far as this machine sees; None without
    such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _beat(path: Path, mine: Holder, ended: threading.Event) -> None:
    """Touch a lock file for as long as it is held."""
    while not ended.wait(BEAT):
        with suppress(OSError):
            if holder(path) != mine:
                return
            os.utime(path)
