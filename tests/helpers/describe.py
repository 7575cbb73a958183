"""A captioner that logs, an answer to every question, and the sources of pictures that steps 2 and 3
choose from.
"""

from __future__ import annotations

import hashlib

from neuronym.common.types import Answer
from neuronym.describe.pipeline import caption_examples
from neuronym.models.captioners import Captioner, picture_key
from neuronym.models.generators import load_generator

UNITS = [150, 3, 41]
FEW = {"images": 4, "crops": 2, "keep": 5}
SHAPES = ["circle", "star", "moon", "ring"]
COLOURS = ["red", "blue", "green", "white", "purple"]


def looks(world, book, captioner, name="layer4", units=UNITS, **more):
    return caption_examples(
        world.target,
        world.layers[name],
        units,
        world.probe,
        world.Q[name],
        captioner,
        book,
        world.clip,
        **FEW | more,
    )


def seen_by(log, fails=None, name="fake", key="fake", say=None):
    """A captioner whose words depend on the picture's pixels alone; it logs what it was asked, and fails on a
    call.
    """

    def caption(pictures):
        keys = [picture_key(p) for p in pictures]
        log.append(keys)
        if fails is not None and len(log) == fails:
            raise ConnectionError("the line is dead")
        return [say(key) if say else words(key) for key in keys]

    def answer(picture, most=0, stop=None):
        return Answer(*caption([picture]), 10, 3)

    return Captioner(name, key, caption, answer if name.startswith("vlm:") else None)


def sources(world, name):
    """Two sources of pictures with their options."""
    return {
        "microworld": (
            load_generator("microworld"),
            {"target": world.target, "layer": world.layers[name], "clip": world.clip, "n": 3},
        ),
        "retrieval": ("retrieval", {"Q": world.Q[name], "I": world.I, "clip": world.clip, "n": 3}),
    }


# describing


def last_words(requests):
    """A language model that answers with what the last line but one ends in."""
    return [" ".join(messages[-1]["content"].splitlines()[-2].split()[-3:]) for messages, _ in requests]


def words(key):
    number = int(hashlib.sha256(key.encode()).hexdigest(), 16)
    return f"a {COLOURS[number % 5]} {SHAPES[number // 5 % 4]} in dim light"
