"""The file of a transcript: one JSON object a line, added by several processes, none losing another's.

Transcript       what a file holds, and what its opening has asked
came             look whether another process has written an answer
keep             write an answer
read_transcript  file -> its lines, how many are damaged, where they end
append_line      add a line
to_line          dict -> bytes, without the key of an API
from_line        bytes -> dict, None for what is no line
claimed          hold the right to ask for an answer, which one process at a time has
claims           where these are
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from neuronym.common.files import digest
from neuronym.common.locks import fcntl, locked, waited
from neuronym.common.types import Answer
from neuronym.models.answers import valid
from neuronym.models.asking import Plan
from neuronym.models.server import hide


@dataclass
class Transcript:
    """The answers of a file, by kind and key, and what this opening of it has asked."""

    path: Path
    mode: str
    budget: int | None
    prices: tuple[float, float] | None
    most_cost: float | None
    found: dict[tuple[str, str], dict]
    damaged: int  # lines of the file that are no answers
    used: dict[tuple[str, str], dict] = field(default_factory=dict)  # in the order of their first use
    asked: int = 0
    replayed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    paid: int = 0  # answers that count against the budget, also those under way
    uncounted: int = 0  # paid answers that came without their tokens
    read: int = 0  # bytes of the file that `found` knows
    told: set[str] = field(default_factory=set)  # keys of answers left out, of which a line has told
    dry: Plan | None = None  # of a run that asks nothing: what it would ask for
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def cost(self) -> float:
        """Cost of the answers asked for, at the prices of a million tokens read and written."""
        prompt, answered = self.prices
        return (self.prompt_tokens * prompt + self.answer_tokens * answered) / 1e6

    def count_paid(self, n: int) -> None:
        """Count answers that are asked for, or with -1 one that did not come."""
        with self.lock:
            self.paid += n

    def bound(self) -> str:
        """Name of the bound that is reached; "" when there is none."""
        if self.budget is not None and self.paid >= self.budget:
            return "budget"
        if self.most_cost is not None and (self.uncounted or self.cost() >= self.most_cost):
            return "most_cost"
        return ""


def came(transcript: Transcript, kind: str, key: str) -> bool:
    """Whether another process has written the answer meanwhile."""
    with transcript.lock:
        lines, damaged, transcript.read = read_transcript(transcript.path, transcript.read)
        transcript.damaged += damaged
        transcript.found |= {(line["kind"], line["key"]): line for line in lines}
        line = transcript.found.get((kind, key))
        came = line is not None and not line.get("again")
        transcript.replayed += came
        return came


def keep(
    transcript: Transcript,
    kind: str,
    key: str,
    model: str,
    request: dict,
    answer: Answer,
    paid: bool,
    again: bool = False,
    spent: Answer | None = None,
) -> None:
    """Write an answer; `spent` is what this one cost where its line tells more."""
    line = {"key": key, "kind": kind, "model": model, "request": request, "answer": answer.text}
    line |= {"prompt_tokens": answer.prompt_tokens, "answer_tokens": answer.answer_tokens}
    line |= {name: value for name, value in (("fault", answer.fault), ("sent", answer.sent)) if value}
    data = to_line(line | {"again": True} if again else line)
    prompt, answered = (spent or answer)[1:3]
    with transcript.lock:
        append_line(transcript.path, data)
        transcript.found[kind, key] = from_line(data)  # as a replay will find it
        transcript.asked += 1
        transcript.prompt_tokens += prompt or 0
        transcript.answer_tokens += answered or 0
        transcript.uncounted += paid and (not prompt or answered is None) and answer.fault != "filtered"


def read_transcript(path: Path, start: int = 0) -> tuple[list[dict], int, int]:
    """Lines of a file from a byte on, how many are damaged, and the byte behind the last whole one.

    No lines when the file does not exist; a torn last line is left out and does not count as damaged.
    """
    data = b""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(start)
        data = file.read()
    whole, end, torn = data.rpartition(b"\n")
    lines = [from_line(line) for line in whole.split(b"\n") if line.strip()]
    found = [line for line in [*lines, from_line(torn)] if line is not None]
    return found, lines.count(None), start + len(whole) + len(end)


def append_line(path: Path, data: bytes) -> None:
    """Add a line in one write, behind whole lines: others add to the file too, and one of them may have been
    killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with suppress(PermissionError):  # where no file can be made beside it, flock alone has to do
            held.enter_context(waited(path.with_name(f".{path.name}.lock")))
        _append(path, data)


def _append(path: Path, data: bytes) -> None:
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
    line = _hidden(line, os.environ.get("OPENAI_API_KEY", "").strip())
    return f"{json.dumps(line, ensure_ascii=False)}\n".encode()


def from_line(data: bytes) -> dict | None:
    """What `to_line` wrote; None for anything else."""
    try:
        line = json.loads(data)
        texts = all(isinstance(line[name], str) for name in ("key", "kind", "model", "answer"))
        if not texts or not isinstance(line["request"], dict):
            return None
        return line | {"answer": valid(line["answer"])}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


@contextmanager
def claimed(path: Path, kind: str, key: str) -> Iterator[bool]:
    """Whether an answer is this process's to ask for: hold the claim and yield True; yield False where
    another process, or another thread, asks for it now.

    Claims stand beside the transcript, as locks: those of a process that was killed are free.
    """
    folder = claims(path)
    for _ in range(100):
        with ExitStack() as held:
            try:
                mine = held.enter_context(locked(folder / digest(kind, key)))
            except FileNotFoundError:  # another process tidied the folder away
                continue
            yield mine
            break
    else:
        raise OSError(f"{folder} goes whenever it is made; name a transcript in another folder")


def claims(path: Path) -> Path:
    """The folder of a transcript's claims."""
    return path.with_name(f".{path.name}.claims")


def _hidden(value: object, secret: str) -> object:
    if isinstance(value, str):
        return hide(valid(value), secret)
    if isinstance(value, (list, tuple)):
        return [_hidden(one, secret) for one in value]
    if isinstance(value, dict):
        return {name: _hidden(one, secret) for name, one in value.items()}
    return value
