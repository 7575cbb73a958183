"""Small runs of notebooks for the tests of faults, and a language model's server that counts."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.servers import read, send, serving

SMALL = {
    "labelling": {"smoke": True, "probe": "microworld:80", "layers": "layer4,fc", "cards_per_layer": 1},
    "describe_and_dissect": {
        "smoke": True,
        "probe": "microworld:60",
        "images": 3,
        "pictures": 2,
        "tries": 2,
        "ablation": False,
        "prune": "",
        "llm": "openai:some/model",
        "generator": "retrieval",
    },
    "second_order": {
        "smoke": True,
        "probe": "microworld:60",
        "masks": "",
        "pairs": "",
        "indirect_images": 4,
        "repeats": 1,
        "readout_layers": "4",
        "words": 4,
        "pools": "microworld:atoms",
        "batch_size": 16,
    },
}
SMALL = {notebook: {**given, "device": "cpu"} for notebook, given in SMALL.items()}
SECRET = "sk-fault-0123/456789+secret"
WORDS = ("red circle", "striped star", "night sea", "small moon", "grid of dots", "blue ring")


class Counting:
    """A server's requests: when each prompt came, and when its answer had gone out."""

    def __init__(self, delay: float = 0.0):
        self.delay = delay
        self.came: list[tuple[float, str]] = []
        self.answered: list[tuple[float, str]] = []
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()

    def twice(self) -> dict[str, int]:
        """Prompts that were asked more than once."""
        return {prompt: n for prompt, n in Counter(prompt for _, prompt in self.came).items() if n > 1}

    def __call__(self, request) -> None:
        prompt = read(request).decode()
        with self._lock:
            self.came.append((time.monotonic(), prompt))
            self.keys.add(request.headers["Authorization"])
        time.sleep(self.delay)
        said = f"{WORDS[sum(prompt.encode()) % len(WORDS)]} {len(prompt) % 7}"
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        send(request, 200, json.dumps({"choices": [choice], "usage": usage}))
        with self._lock:
            self.answered.append((time.monotonic(), prompt))


@contextmanager
def counting(delay: float = 0.0) -> Iterator[tuple[Counting, dict[str, str]]]:
    """A server and the environment of those who ask it."""
    log = Counting(delay)
    with serving(log) as address:
        yield log, {"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": SECRET}


def places(folder: Path) -> dict[str, str]:
    """The environment of a run whose cache and results are its own."""
    return {"NEURONYM_CACHE": str(folder / "cache"), "NEURONYM_RESULTS": str(folder / "results")}


def answers(results: Path) -> list[dict]:
    """The whole lines of the transcript that runs share."""
    file = results / "answers.jsonl"
    whole = file.read_bytes().rpartition(b"\n")[0].split(b"\n") if file.exists() else []
    return [json.loads(line) for line in whole if line.strip()]
