"""Every answer of a model, kept in a file and found by what was asked: a run that is repeated costs nothing.

BudgetReached    the error of a run that may not spend more
Transcript       the answers of a file, and how much may be asked: a number of answers, or a cost at given
                 prices
open_transcript  file -> Transcript
ask_all          requests to a language model -> answers, each different request asked once
answers          the same for anything that gives texts, as a captioner does for pictures
summary          what was asked and replayed, tokens, cost
copy_used        the lines that this run used, as a file of its own
recorded_llm     a language model known from its answers only
read_transcript  file -> its lines, and how many are damaged
append_line      add a line
to_line          dict -> bytes, without the key of an API
from_line        bytes -> dict, None for what is no line

The file holds one JSON object a line: key, kind, model, request, answer and tokens; of equal keys the last
line holds. Several processes may add to one file: none spoils another's line, and a kill loses none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from neuronym.common.checks import unknown
from neuronym.common.files import fcntl
from neuronym.common.types import Progress
from neuronym.models.llms import Llm, SETTINGS
from neuronym.models.server import hide_long
from neuronym.runs.folders import from_root

MODES = ("record", "replay", "live")
Answer = str | tuple[str, int, int]  # with the tokens of prompt and answer


class BudgetReached(RuntimeError):
    """A run may not spend more; what was answered is kept."""


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
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def cost(self) -> float:
        """Cost of the answers asked for, at the prices of a million tokens read and written."""
        prompt, answered = self.prices
        return (self.prompt_tokens * prompt + self.answer_tokens * answered) / 1e6

    def bound(self) -> str:
        """Name of the bound that is reached; "" when there is none."""
        if self.budget is not None and self.paid >= self.budget:
            return "budget"
        if self.most_cost is not None and (self.uncounted or self.cost() >= self.most_cost):
            return "most_cost"
        return ""

    def reached(self, left: int) -> Exception:
        """The error that a bound is reached while `left` answers are missing."""
        kept = f"{left} answers are missing, the {self.asked} that came are kept"
        if self.bound() == "most_cost" and self.uncounted:
            return ValueError(
                f"most_cost needs an answer's tokens, and {self.uncounted} came without; {kept}: bound "
                "the calls by budget instead, and run again"
            )
        name = self.bound()
        cost = "" if self.prices is None else f", which cost {self.cost():.4g}"
        return BudgetReached(
            f"{name}={getattr(self, name)} is reached by {self.paid} answers of "
            f"{self.prompt_tokens} + {self.answer_tokens} tokens{cost}; {kept}: raise {name} "
            "and run again"
        )


def open_transcript(
    path: str | Path,
    mode: str = "record",
    *,
    budget: int | None = None,
    prices: tuple[float, float] | None = None,
    most_cost: float | None = None,
) -> Transcript:
    """Open a transcript, whose file need not exist yet; a relative path starts at the repository root.

    record: answers come from the file, what is missing is asked and written. replay: from the file only.
    live: all is asked, and written. This opening asks for at most `budget` paid answers, and for none once
    they have cost `most_cost` at `prices` (of a million tokens of prompt and of answer); what is under way by
    then is finished. Errors: KeyError for an unknown mode, ValueError for bounds that are none and for a
    folder.
    """
    path = from_root(path)
    if mode not in MODES:
        raise unknown("mode of a transcript", mode, MODES)
    if budget is not None and not budget >= 0 or most_cost is not None and not most_cost >= 0:
        raise ValueError(
            f"budget and most_cost are at least 0, got {budget} and {most_cost}; leave them out for no bound"
        )
    if prices is not None and (len(prices) != 2 or not all(price >= 0 for price in prices)):
        raise ValueError(
            f"prices are two numbers, of a million tokens of prompt and of answer, got {prices}; write "
            "(0.15, 0.6)"
        )
    if most_cost is not None and prices is None:
        raise ValueError(
            f"most_cost needs prices, got {most_cost} without; add prices=(PROMPT, ANSWER) of a million "
            "tokens, or bound the calls by budget"
        )
    if path.is_dir():
        raise ValueError(f"a transcript is a file, {path} is a folder; name a file in it, as answers.jsonl")
    lines, damaged = read_transcript(path)
    found = {(line["kind"], line["key"]): line for line in lines}
    return Transcript(path, mode, budget, prices, most_cost, found, damaged)


def ask_all(
    transcript: Transcript,
    llm: Llm,
    requests: Sequence[tuple[list[dict], dict]],
    workers: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Answers to (messages, settings), in their order; up to `workers` are asked together, fewer if
    llm.together is.

    The key is SHA-256 of the model's key, the messages and all settings. Each answer is written when it
    comes; when a request fails, those under way are finished and kept, and then its error is raised. Errors:
    those of llm.ask, LookupError for what a replay lacks, BudgetReached.
    """
    asked = [
        {"model_key": llm.key, "messages": list(messages), "settings": _settings(settings)}
        for messages, settings in requests
    ]
    keys = [_key(request) for request in asked]
    request_of = dict(zip(keys, asked))
    waiting = deque(_missing(transcript, "llm", keys))

    def ask(key: str) -> None:
        request = request_of[key]
        try:
            answer = (llm.answer or llm.ask)(request["messages"], **request["settings"])
        except BaseException:
            with transcript.lock:
                transcript.paid -= 1
            raise
        _keep(transcript, "llm", key, llm.name, request, answer, paid=True)

    come = _each(transcript, ask, waiting, max(1, min(workers, llm.together)))
    for _ in come if progress is None else progress(come, len(waiting), f"asking {llm.name}"):
        pass
    if waiting:
        raise transcript.reached(len(waiting))
    return _given(transcript, "llm", keys)


def answers(
    transcript: Transcript,
    kind: str,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterable[Answer]],
    *,
    model: str = "",
    paid: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """One text for each key, which stands for all that determines it; make(indices) yields those that are
    missing.

    `kind` keeps apart what has equal keys. Each text is written when it is yielded; only `paid` ones count
    against the budget. Errors: those of `make`, ValueError when it yields too few or too many, LookupError
    for what a replay lacks, BudgetReached.
    """
    if kind == "llm":
        raise ValueError(
            "answers of kind 'llm' are those of ask_all, got 'llm'; name another kind, as 'caption'"
        )
    missing = _missing(transcript, kind, keys)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    bounded = paid and transcript.budget is not None
    some = missing[: max(0, transcript.budget - transcript.paid)] if bounded else missing
    some = [] if paid and transcript.bound() else some
    made, come = iter(make([first[key] for key in some]) if some else ()), 0
    for key in some if progress is None else progress(some, len(some), kind):
        try:
            answer = next(made)
        except StopIteration:
            raise ValueError(
                f"one text for each key is wanted, got {come} for {len(some)} of kind '{kind}'; look at "
                "what makes them"
            ) from None
        transcript.paid += paid
        _keep(transcript, kind, key, model, {}, answer, paid)
        come += 1
        if paid and come < len(some) and transcript.bound():
            break
    else:
        if next(made, None) is not None:
            raise ValueError(
                f"one text for each key is wanted, got more than {len(some)} of kind '{kind}'; look at "
                "what makes them"
            )
    if come < len(missing):
        raise transcript.reached(len(missing) - come)
    return _given(transcript, kind, keys)


def summary(transcript: Transcript) -> dict:
    """What this opening did: answers asked for and replayed, tokens, cost (None without prices), damaged
    lines.
    """
    cost = None if transcript.prices is None else transcript.cost()
    return {
        "mode": transcript.mode,
        "asked": transcript.asked,
        "replayed": transcript.replayed,
        "prompt_tokens": transcript.prompt_tokens,
        "answer_tokens": transcript.answer_tokens,
        "cost": cost,
        "damaged": transcript.damaged,
    }


def copy_used(transcript: Transcript, path: str | Path) -> None:
    """Write the answers that this run used, once each, in the order of their use: what replays this run by
    itself.
    """
    path = from_root(path)
    if path.resolve() == transcript.path.resolve():
        raise ValueError(f"a copy goes to a file of its own, got the transcript's, {path}; name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(b"".join(to_line(line) for line in transcript.used.values()))
    os.replace(part, path)


def recorded_llm(transcript: Transcript, name: str) -> Llm:
    """A model as its recorded answers know it, to replay them where it cannot be loaded.

    Errors: LookupError for a name without answers, or with those of more than one model.
    """
    lines = [line for (kind, _), line in transcript.found.items() if kind == "llm"]
    keys = {line["request"]["model_key"] for line in lines if line["model"] == name}
    if len(keys) != 1:
        known = ", ".join(sorted({line["model"] for line in lines})) or "none"
        raise LookupError(
            f"one model '{name}' must have answered in {transcript.path}, got {len(keys)}; known: {known}"
        )

    def ask(messages: list[dict], **settings) -> str:
        raise LookupError(
            f"'{name}' is known from its answers in {transcript.path} alone, and has none to "
            f"{messages!r:.80}; open it with mode='replay', or load the model"
        )

    return Llm(name, keys.pop(), ask)


def _missing(transcript: Transcript, kind: str, keys: Sequence[str]) -> list[str]:
    """Keys to ask for, once each."""
    different = list(dict.fromkeys(keys))
    missing = (
        different
        if transcript.mode == "live"
        else [k for k in different if (kind, k) not in transcript.found]
    )
    if missing and transcript.mode == "replay":
        damaged = f", where {transcript.damaged} lines are damaged" if transcript.damaged else ""
        raise LookupError(
            f"a replay asks nothing, and {len(missing)} of {len(different)} answers of kind '{kind}' are "
            f"not in {transcript.path}{damaged}; open it with mode='record' to ask for them, or name the "
            "transcript of a run with these models and parameters"
        )
    transcript.replayed += len(different) - len(missing)
    return missing


def _each(
    transcript: Transcript, ask: Callable[[str], None], waiting: deque[str], together: int
) -> Iterator[None]:
    """Take keys from `waiting` as far as the budget goes, pass them through `ask`, and yield for each that is
    done.
    """
    running, failed = set(), []
    with ThreadPoolExecutor(
        together
    ) as pool:  # leaving it waits for those under way, which write their answers
        while True:
            while waiting and len(running) < together and not failed and not transcript.bound():
                with transcript.lock:
                    transcript.paid += 1
                running.add(pool.submit(ask, waiting.popleft()))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            failed += [each.exception() for each in done if each.exception()]
            yield from (None for each in done if not each.exception())
    if failed:
        raise failed[0]


def _given(transcript: Transcript, kind: str, keys: Sequence[str]) -> list[str]:
    for key in keys:
        transcript.used[kind, key] = transcript.found[kind, key]
    return [transcript.found[kind, key]["answer"] for key in keys]


def _settings(settings: dict) -> dict:
    """All settings, those that are left out too, so that writing a default changes no key."""
    strange = next((name for name in settings if name not in SETTINGS), None)
    if strange is not None:
        raise unknown("setting of a language model", strange, SETTINGS)
    strange = next(
        (name for name, value in settings.items() if not isinstance(value, (int, float)) or value != value),
        None,
    )
    if strange is not None:
        raise ValueError(
            f"settings of a request are numbers, got {strange}={settings[strange]!r}; leave it out for "
            f"{SETTINGS[strange]}"
        )
    return {name: type(value)(settings.get(name, value)) for name, value in SETTINGS.items()}


def _key(request: dict) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _keep(
    transcript: Transcript, kind: str, key: str, model: str, request: dict, answer: Answer, paid: bool
) -> None:
    whole = (answer, 0, 0) if isinstance(answer, str) else answer
    if not isinstance(whole, tuple) or [type(part) for part in whole] != [str, int, int]:
        raise ValueError(
            f"an answer is a text, or (text, prompt tokens, answer tokens), got {answer!r:.80} of kind "
            f"'{kind}'; look at what gives it"
        )
    text, prompt, answered = whole
    data = to_line(
        {
            "key": key,
            "kind": kind,
            "model": model,
            "request": request,
            "answer": text,
            "prompt_tokens": prompt,
            "answer_tokens": answered,
        }
    )
    with transcript.lock:
        append_line(transcript.path, data)
        transcript.found[kind, key] = from_line(data)  # as a replay will find it
        transcript.asked += 1
        transcript.prompt_tokens += prompt
        transcript.answer_tokens += answered
        transcript.uncounted += paid and not prompt


def read_transcript(path: Path) -> tuple[list[dict], int]:
    """Lines of a file, none when it does not exist; a torn last line is left out and does not count as
    damaged.
    """
    whole, _, torn = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    lines = [from_line(line) for line in whole.split(b"\n") if line.strip()]
    return [line for line in [*lines, from_line(torn)] if line is not None], lines.count(None)


def append_line(path: Path, data: bytes) -> None:
    """Add a line in one write, behind whole lines: others add to the file too, and one of them may have been
    killed.
    """
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
