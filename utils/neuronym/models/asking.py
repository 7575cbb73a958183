"""Many requests at a time, each in a thread that nobody has to wait for, and what they would cost.

Asking  how requests of a kind are asked
each    pass keys through a function, several together
Plan    what a run would ask for
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from neuronym.common.types import Answer

OTHERS = 0.05  # seconds until one looks again whether another process has its answer
LETTERS = 4  # of a token, about
PICTURE = 300  # tokens of a picture of 224 x 224, about


@dataclass(frozen=True)
class Asking:
    """How requests of a kind are asked: one(key, most tokens, stop) -> Answer."""

    kind: str
    model: str
    one: Callable[[str, int, threading.Event], Answer]
    together: int = 1
    more: int = 4  # times as many tokens, when an answer that is none is asked for again
    any_fault: bool = False  # whether a refusal or an empty answer may be another one the second time


def each(
    ask: Callable[[str], bool | None],
    waiting: deque[str],
    together: int,
    bound: Callable[[], str],
    count_paid: Callable[[int], None],
    stop: threading.Event,
) -> Iterator[None]:
    """Take keys from `waiting` until `bound` says something, pass them through `ask`, and yield for each that
    is done.

    ask(key) -> True, None for an answer that another process has got, False while one asks for it. After an
    error those under way are waited for, and the first error is raised. Whatever else ends this, Ctrl-C too,
    sets `stop` and waits for nobody: the threads are left to themselves.
    """
    running, failed, taken = 0, [], deque()
    done: queue.SimpleQueue = queue.SimpleQueue()

    def work(key: str) -> None:
        try:
            done.put((key, ask(key), None))
        except BaseException as error:  # raised where all is put together
            done.put((key, True, error))

    try:
        while True:
            while waiting and running < together and not failed and not bound():
                key = waiting.popleft()
                count_paid(1)
                running += 1
                if together == 1:
                    work(key)
                    break
                threading.Thread(target=work, args=(key,), daemon=True).start()
            if not running:
                if not taken or failed or bound():
                    break
                time.sleep(OTHERS)
                waiting.extend(taken)
                taken.clear()
                continue
            key, mine, error = done.get()
            running -= 1
            if error is not None:
                failed.append(error)
                stop.set()
            if error is not None or not mine:
                count_paid(-1)
            if mine is False:
                taken.append(key)
            elif error is None:
                yield
    finally:
        stop.set()
        waiting.extend(taken)
    if failed:
        raise failed[0]


@dataclass
class Plan:
    """What a run would ask for: by model its requests, tokens read, about, and tokens written, at most."""

    models: dict[str, list[int]] = field(default_factory=dict)

    def add(self, how: Asking, key: str, request: dict) -> dict:
        """Count one request, and return a line in place of its answer."""
        row = self.models.setdefault(how.model, [0, 0, 0])
        texts = [message["content"] for message in request.get("messages", ())]
        letters = sum(len(text) for text in texts if isinstance(text, str)) + len(request.get("prompt", ""))
        row[0] += 1
        row[1] += letters // LETTERS + PICTURE * request.get("pictures", int(how.kind == "caption"))
        row[2] += request["settings"]["max_tokens"]
        # captions that are not there yet differ, as they will
        said = f"some words that a caption of picture {key} may have" if how.kind == "caption" else ""
        return {"key": key, "kind": how.kind, "model": how.model, "request": request, "answer": said}

    def told(self, prices: tuple[float, float] | None) -> str:
        """Requests, tokens and dollars, a line a model."""
        lines = []
        for model, (requests, read, written) in [*self.models.items(), ("in all", self.sums())]:
            dollars = "dollars unknown without prices"
            if prices is not None:
                dollars = f"at most ${(read * prices[0] + written * prices[1]) / 1e6:.4f}"
            tokens = f"about {read} tokens read, at most {written} written"
            lines.append(f"{model}: {requests} requests, {tokens}, {dollars}")
        lines.append(
            "an answer with commas, or one that is cut off, empty or refused, is asked about once more, "
            "with more tokens"
        )
        return "\n".join(lines)

    def sums(self) -> list[int]:
        """Requests, tokens read and tokens written of all models."""
        return [sum(column) for column in zip(*self.models.values())] or [0, 0, 0]
