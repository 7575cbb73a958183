"""Every answer of a model, kept in a file and found by what was asked: a run that is repeated costs nothing.

BudgetReached    the error of a run that may not spend more
DryRun           what ends a run that only tells what it would ask for
open_transcript  file -> Transcript, with how much may be asked: a number of answers, or a cost at given
                 prices
ask_all          requests to a language model -> answers, each different request asked once
ask_each         the same for requests of any kind to a model of a server
answers          the same for anything that gives texts, as a captioner does for pictures
summary          what was asked and replayed, tokens, cost
copy_used        the lines that this run used, as a file of its own
recorded_llm     a language model known from its answers only
load_recorded    a language model by name, in a replay known from its answers
as_recorded      the same for a captioner that asks a server

Of equal keys of a file the last line holds (`models.transcript_files`). An answer that was cut off, is empty,
was refused or filtered is kept as that, asked for again once with more tokens, and then left out: "" stands
for it, and a line says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from neuronym.common.checks import read_prices, unknown
from neuronym.common.types import Answer, Progress
from neuronym.models.answers import fault_of
from neuronym.models.asking import Asking, each, Plan
from neuronym.models.captioners import Captioner
from neuronym.models.llms import Llm, load_llm, SETTINGS
from neuronym.models.transcript_files import came, claimed, claims, keep, read_transcript, to_line, Transcript
from neuronym.runs.folders import check_transcript, from_root, results_dir

MODES = ("record", "replay", "live")
Given = str | tuple[str, int, int]  # with the tokens of prompt and answer


class BudgetReached(RuntimeError):
    """A run may not spend more; what was answered is kept."""


class DryRun(Exception):
    """A run has told what it would ask for, and ends there."""


def open_transcript(
    path: str | Path | None = None,
    mode: str = "record",
    *,
    budget: int | None = None,
    prices: tuple[float, float] | str | None = None,
    most_cost: float | None = None,
    dry_run: bool = False,
) -> Transcript:
    """Open a transcript, whose file need not exist yet; a relative path starts at the repository root, and
    none is answers.jsonl among the results.

    record: answers come from the file, what is missing is asked and written. replay: from the file only.
    live: all is asked, and written. This opening asks for at most `budget` paid answers, and for none once
    they have cost `most_cost` at `prices` (of a million tokens of prompt and of answer, also as "2.5,10");
    what is under way by then is finished. With `dry_run` nothing is asked: `Transcript.dry` counts what would
    be. Errors: KeyError for an unknown mode, ValueError for bounds that are none and for a folder,
    FileNotFoundError for a file in no folder or a replay of none, PermissionError for one that cannot be
    written.
    """
    if not path:
        results_dir().mkdir(parents=True, exist_ok=True)
    path = from_root(path or results_dir() / "answers.jsonl")
    if mode not in MODES:
        raise unknown("mode of a transcript", mode, MODES)
    if budget is not None and not budget >= 0 or most_cost is not None and not most_cost >= 0:
        raise ValueError(
            f"budget and most_cost are at least 0, got {budget} and {most_cost}; leave them out for no bound"
        )
    prices = None if prices is None else read_prices(prices)
    if most_cost is not None and prices is None:
        raise ValueError(
            f"most_cost needs prices, got {most_cost} without; add prices=(PROMPT, ANSWER) of a million "
            "tokens, or bound the calls by budget"
        )
    check_transcript(path, replay=mode == "replay")
    lines, damaged, end = read_transcript(path)
    found = {(line["kind"], line["key"]): line for line in lines}
    plan = Plan() if dry_run else None
    return Transcript(path, mode, budget, prices, most_cost, found, damaged, read=end, dry=plan)


def ask_all(
    transcript: Transcript,
    llm: Llm,
    requests: Sequence[tuple[list[dict], dict]],
    workers: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Answers to (messages, settings), in their order; up to `workers` are asked together, fewer if
    llm.together is.

    The key is SHA-256 of the model's key, the messages and all settings. "" stands for an answer that is none
    (see the module's text). Errors: those of llm.ask, LookupError for what a replay lacks, BudgetReached.
    """
    asked = [
        {"model_key": llm.key, "messages": list(messages), "settings": _settings(settings)}
        for messages, settings in requests
    ]
    keys = [_key(request) for request in asked]
    request_of = dict(zip(keys, asked))

    def one(key: str, most: int, stop: threading.Event) -> Answer:
        request = request_of[key]
        settings = request["settings"] | {"max_tokens": most}
        if llm.answer is None:
            return _answer(llm.ask(request["messages"], **settings), "llm")
        return _answer(llm.answer(request["messages"], stop=stop, **settings), "llm")

    how = Asking("llm", llm.name, one, max(1, min(workers, llm.together)), llm.more, llm.together > 1)
    return ask_each(transcript, how, keys, request_of, progress)


def ask_each(
    transcript: Transcript,
    how: Asking,
    keys: Sequence[str],
    request_of: Mapping[str, dict],
    progress: Progress | None = None,
) -> list[str]:
    """Texts of the answers to keys, in their order; those that the transcript lacks are asked for.

    Each answer is written when it comes. When a request fails, those under way are finished and kept, and
    then its error is raised; Ctrl-C waits for none, and nothing more is sent. Of several processes on one
    transcript one asks, and the others take its answer. request_of[key] is written beside the answer; its
    settings hold max_tokens.
    """
    waiting = deque(_missing(transcript, how.kind, keys))
    if transcript.dry is not None:
        for key in waiting:
            transcript.found[how.kind, key] = transcript.dry.add(how, key, request_of[key])
        return _given(transcript, how.kind, keys)
    if waiting:
        check_transcript(transcript.path)
    stop = threading.Event()

    def ask(key: str) -> bool | None:
        live = transcript.mode == "live"
        with nullcontext(True) if live else claimed(transcript.path, how.kind, key) as mine:
            if not mine:
                return False
            if not live and came(transcript, how.kind, key):
                return None
            _ask_one(transcript, how, key, request_of[key], stop)
            return True

    total = len(waiting)
    come = each(ask, waiting, how.together, transcript.bound, transcript.count_paid, stop)
    try:
        for _ in come if progress is None else progress(come, total, f"asking {how.model}"):
            pass
    finally:
        come.close()
        with suppress(OSError):
            claims(transcript.path).rmdir()
    if waiting:
        raise _reached(transcript, len(waiting))
    _report(transcript, how, keys, request_of)
    return _given(transcript, how.kind, keys)


def answers(
    transcript: Transcript,
    kind: str,
    keys: Sequence[str],
    make: Callable[[list[int]], Iterable[Given]],
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
        keep(transcript, kind, key, model, {}, _answer(answer, kind), paid)
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
        raise _reached(transcript, len(missing) - come)
    return _given(transcript, kind, keys)


def summary(transcript: Transcript) -> dict:
    """What this opening did: answers asked for, replayed and left out, tokens, cost (None without prices),
    damaged lines; "unknown" where a server did not count tokens.
    """
    unknown = "unknown" if transcript.uncounted else None
    cost = None if transcript.prices is None else transcript.cost()
    return {
        "mode": transcript.mode,
        "asked": transcript.asked,
        "replayed": transcript.replayed,
        "left_out": sum(bool(line.get("fault")) for line in transcript.used.values()),
        "prompt_tokens": unknown or transcript.prompt_tokens,
        "answer_tokens": unknown or transcript.answer_tokens,
        "cost": unknown or cost,
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


def load_recorded(transcript: Transcript, name: str, device: str | torch.device = "cpu") -> Llm:
    """`load_llm`; a replay knows a model from its answers, wherever these are from, and loads nothing."""
    if transcript.mode == "replay" and len(_recorded(transcript, "llm", name)) == 1:
        return recorded_llm(transcript, name)
    return load_llm(name, device)


def as_recorded(transcript: Transcript, captioner: Captioner) -> Captioner:
    """A captioner as it is; in a replay one that asks a server has the key that its captions were kept by."""
    keys = _recorded(transcript, "caption", captioner.name)
    if transcript.mode == "replay" and captioner.answer is not None and len(keys) == 1:
        return replace(captioner, key=keys.pop())
    return captioner


def _recorded(transcript: Transcript, kind: str, name: str) -> set[str]:
    """Keys of the models of that name which answered."""
    lines = [line for (which, _), line in transcript.found.items() if which == kind and line["model"] == name]
    return {line["request"]["model_key"] for line in lines if "model_key" in line["request"]}


def _missing(transcript: Transcript, kind: str, keys: Sequence[str]) -> list[str]:
    """Keys to ask for, once each."""
    different = list(dict.fromkeys(keys))
    known = transcript.found if transcript.mode != "live" else {}
    again = transcript.mode == "record"
    missing = [k for k in different if (kind, k) not in known or again and known[kind, k].get("again")]
    if missing and transcript.mode == "replay":
        damaged = f", where {transcript.damaged} lines are damaged" if transcript.damaged else ""
        raise LookupError(
            f"a replay asks nothing, and {len(missing)} of {len(different)} answers of kind '{kind}' are "
            f"not in {transcript.path}{damaged}; open it with mode='record' to ask for them, or name the "
            "transcript of a run with these models and parameters"
        )
    transcript.replayed += len(different) - len(missing)
    return missing


def _ask_one(transcript: Transcript, how: Asking, key: str, request: dict, stop: threading.Event) -> None:
    """Ask for one answer, and where it is none once more with more tokens; all that comes is written."""
    most = request["settings"]["max_tokens"]
    before = transcript.found.get((how.kind, key), {}) if transcript.mode == "record" else {}
    if before.get("again"):  # a run that was stopped asked first
        tokens = before["prompt_tokens"], before["answer_tokens"]
        first = Answer(before["answer"], *tokens, before["fault"], before.get("sent"))
    else:
        first = how.one(key, most, stop)
        again = first.fault == "cut" or bool(first.fault) and how.any_fault
        keep(transcript, how.kind, key, how.model, request, first, paid=True, again=again)
        if not again or stop.is_set() or transcript.bound():
            return
        transcript.count_paid(1)
    try:
        second = how.one(key, most * how.more, stop)
    except ValueError:  # as many tokens are refused
        transcript.count_paid(-1)
        keep(transcript, how.kind, key, how.model, request, first, paid=False)
        return
    pairs = zip((first.prompt_tokens, first.answer_tokens), (second.prompt_tokens, second.answer_tokens))
    sums = [None if None in pair else sum(pair) for pair in pairs]
    sent = (second.sent or {}) | {"max_tokens": f"{most * how.more}, when asked again"}
    both = Answer(second.text, *sums, second.fault, sent)
    keep(transcript, how.kind, key, how.model, request, both, paid=True, spent=second)


def _report(transcript: Transcript, how: Asking, keys: Sequence[str], request_of: Mapping[str, dict]) -> None:
    """Say how many answers are none, and why; of each once."""
    fault_of_key = {key: transcript.found[how.kind, key].get("fault") for key in dict.fromkeys(keys)}
    new = {key: fault for key, fault in fault_of_key.items() if fault and key not in transcript.told}
    transcript.told |= set(new)
    if not new:
        return
    none, most = Counter(new.values()), max(request_of[key]["settings"]["max_tokens"] for key in new)
    told = {"cut": f"cut off (finish_reason 'length') at max_tokens={most} and at {most * how.more}"}
    why = ", ".join(f"{n} {told.get(fault, fault)}" for fault, n in none.items())
    advice = "; raise max_tokens, which thinking models need" if none["cut"] or none["empty"] else ""
    what = "captions" if how.kind == "caption" else "answers"
    line = f"{how.model}: {len(new)} of {len(fault_of_key)} {what} are left out: {why}{advice}"
    print(line, file=sys.stderr, flush=True)


def _reached(transcript: Transcript, left: int) -> Exception:
    """The error that a bound is reached while `left` answers are missing."""
    kept = f"{left} answers are missing, the {transcript.asked} that came are kept"
    if transcript.bound() == "most_cost" and transcript.uncounted:
        return ValueError(
            f"most_cost needs an answer's tokens, and {transcript.uncounted} came without; {kept}: bound "
            "the calls by budget instead, and run again"
        )
    name = transcript.bound()
    cost = "" if transcript.prices is None else f", which cost {transcript.cost():.4g}"
    return BudgetReached(
        f"{name}={getattr(transcript, name)} is reached by {transcript.paid} answers of "
        f"{transcript.prompt_tokens} + {transcript.answer_tokens} tokens{cost}; {kept}: raise {name} "
        "and run again"
    )


def _given(transcript: Transcript, kind: str, keys: Sequence[str]) -> list[str]:
    lines = [transcript.found[kind, key] for key in keys]
    transcript.used |= {(kind, key): line for key, line in zip(keys, lines)}
    return ["" if line.get("fault") else line["answer"] for line in lines]


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


def _answer(given: Answer | Given, kind: str) -> Answer:
    """What a model gave as an Answer, whose fault is found out where nobody told it."""
    if isinstance(given, Answer):
        return given
    whole = (given, 0, 0) if isinstance(given, str) else given
    if not isinstance(whole, tuple) or [type(part) for part in whole] != [str, int, int]:
        raise ValueError(
            f"an answer is a text, or (text, prompt tokens, answer tokens), got {given!r:.80} of kind "
            f"'{kind}'; look at what gives it"
        )
    return Answer(*whole, fault_of(whole[0]) if kind == "llm" else "")
