"""All examples of a unit in one request to a model that sees several pictures: the paper's variant without
captions.

need_server      refuses captioners that see one picture alone
question         what such a model is asked
shared_phrases   examples of units -> the phrases that hold of most of a unit's, one request a unit

The release asks five times for one label, which is mostly the same one; here one answer gives several.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from neuronym.common.checks import check_positive_int
from neuronym.common.files import digest
from neuronym.common.types import Answer
from neuronym.datasets.probe import Probe
from neuronym.describe.examples import Example, picture
from neuronym.describe.prompts import named_prompt, Prompt
from neuronym.models.answers import phrases_of
from neuronym.models.asking import Asking
from neuronym.models.captioners import Captioner, picture_key, WORKERS
from neuronym.models.transcripts import ask_each, Transcript


def need_server(captioner: Captioner) -> None:
    """ValueError for a captioner that cannot be shown several pictures in one request."""
    if captioner.look is None:
        raise ValueError(
            "examples are shown together to a model of a server, captioner=vlm:MODEL, got "
            f"'{captioner.name}'; name one, or together=False"
        )


def question(prompt: str | Prompt, n: int) -> str:
    """What is asked of all examples of a unit: n phrases, one a line, in the words of the prompt."""
    return named_prompt(prompt).together.replace("{n}", str(n))


def shared_phrases(
    captioner: Captioner,
    transcript: Transcript,
    probe: Probe,
    examples: Mapping[int, Sequence[Example]],
    n: int,
    prompt: str | Prompt = "objects",
) -> dict[int, list[str]]:
    """At most n phrases that the examples of each unit share, as a model of a server says, in its order:
    {unit: examples, strongest first} -> {unit: phrases}; none where it says nothing.

    Units of the same pictures are asked about once. Answers are in the transcript when they come, as the
    model gave them; a request counts as one, with its number of pictures. Errors: ValueError for n < 1 and a
    captioner of no server; those of `transcripts.ask_each`.
    """
    check_positive_int("number of phrases", n)
    need_server(captioner)
    asked, most = question(prompt, n), captioner.max_tokens
    key_of, shown, request_of = {}, {}, {}
    for unit, some in examples.items():
        pictures = [picture_key(picture(probe, one)) for one in some]
        key = digest(captioner.key, asked, *pictures)
        key_of[unit], shown[key] = key, some
        request_of[key] = {"model_key": captioner.key, "prompt": asked, "pictures": len(some)}
        request_of[key]["settings"] = {"max_tokens": most}

    def one(key: str, most: int, stop: threading.Event) -> Answer:
        return captioner.look([picture(probe, e) for e in shown[key]], asked, most, stop)

    how = Asking("caption", captioner.name, one, WORKERS, captioner.more, any_fault=True)
    keys = list(key_of.values())
    given = dict(zip(keys, ask_each(transcript, how, keys, request_of)))
    return {unit: phrases_of(given[key])[:n] for unit, key in key_of.items()}
