"""The lines of a transcript on disk: none is lost by a kill, none is spoilt by another process, none holds the key.

read_lines   file -> its lines, and how many are damaged
append       add a line
to_line      dict -> bytes
from_line    bytes -> dict, None for what is no line
"""
from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from neuronym.models.openai_server import hide_long

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def read_lines(path: Path) -> tuple[list[dict], int]:
    """Lines of a file, none when it does not exist; a torn last line is left out and does not count as damaged."""
    whole, _, torn = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    lines = [from_line(line) for line in whole.split(b"\n") if line.strip()]
    return [line for line in [*lines, from_line(torn)] if line is not None], lines.count(None)


def append(path: Path, data: bytes) -> None:
    """Add a line in one write, behind whole lines: others add to the file too, and one of them may have been killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        end = os.lseek(file, 0, os.SEEK_END)
        os.lseek(file, max(end - 1, 0), os.SEEK_SET)
        if os.read(file, 1) not in (b"", b"\n"):
            _, _, torn = path.read_bytes().rpartition(b"\n")
            if from_line(torn) is not None:  # whole: an editor left out the end of the last line
                data = b"\n" + data
            else:
                end -= len(torn)
                os.ftruncate(file, end)
        if os.write(file, data) < len(data):
            os.ftruncate(file, end)
            raise OSError(errno.ENOSPC, "no room for an answer; make some and run again", str(path))
    finally:
        os.close(file)  # gives the lock back


def to_line(line: dict) -> bytes:
    """A line as it is written; the value of OPENAI_API_KEY is taken out wherever it stands."""
    text = hide_long(json.dumps(line, ensure_ascii=False), os.environ.get("OPENAI_API_KEY", "").strip())
    return f"{text}\n".encode("utf-8", "surrogatepass")


def from_line(data: bytes) -> dict | None:
    """What `to_line` wrote; None for anything else."""
    try:
        line = json.loads(data)
        texts = all(isinstance(line[name], str) for name in ("key", "kind", "model", "answer"))
        return line if texts and isinstance(line["request"], dict) else None
    except (ValueError, LookupError, TypeError):
        return None
