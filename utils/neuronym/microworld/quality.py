"""How well the microworld's networks learned it, on scenes that no training or probing seed gives.

zero_shot      a CLIP names shape and colour of single objects
retrieval      a CLIP finds a picture's caption among 256
mean_ap        a target network finds its 52 concepts
caption_truth  a captioner says what is in a picture
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuronym.common.statistics import column_precision, sort_columns
from neuronym.microworld.render import render
from neuronym.microworld.world import caption, CLASSES, COLOURS, COUNTS, presence, read, Scene, SHAPES


def zero_shot(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], Tensor],
    preprocess: Callable,
    scenes: Sequence[Scene],
    template: str = "a {}",
) -> dict[str, float]:
    """Share of single-object scenes whose colour and shape (132 prompts), shape alone and colour alone are
    named right.
    """
    pairs = [f"{c} {s}" for c in COLOURS for s in SHAPES]
    text = encode_text([template.format(p) for p in pairs])
    best = (_embed(encode_image, preprocess, scenes) @ text.T).argmax(1).tolist()
    said = [pairs[i].split() for i in best]
    colour = [c == s.things[0].colour for (c, _), s in zip(said, scenes)]
    shape = [z == s.things[0].shape for (_, z), s in zip(said, scenes)]
    return {
        "shape_colour": _share(a and b for a, b in zip(shape, colour)),
        "shape": _share(shape),
        "colour": _share(colour),
    }


def retrieval(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], Tensor],
    preprocess: Callable,
    scenes: Sequence[Scene],
    among: int = 256,
) -> float:
    """Image -> caption R@1: share of pictures whose own caption is nearest among `among`, over consecutive
    groups of scenes.
    """
    if not scenes or len(scenes) % among:
        raise ValueError(f"retrieval takes whole groups of {among} scenes, got {len(scenes)} scenes")
    found = []
    for i in range(0, len(scenes), among):
        group = scenes[i : i + among]
        near = _embed(encode_image, preprocess, group) @ encode_text([caption(s, 0) for s in group]).T
        found += (near.argmax(1).cpu() == torch.arange(among)).tolist()
    return _share(found)


def mean_ap(
    model: torch.nn.Module, preprocess: Callable, scenes: Sequence[Scene]
) -> tuple[float, dict[str, float]]:
    """Average precision of every final-layer unit for its concept, and their mean over those that occur."""
    logits = torch.cat([model(x) for x in _images(preprocess, scenes)]).float().cpu()
    truth = presence(scenes, CLASSES)
    found = column_precision(sort_columns(logits), truth).tolist()
    ap = {c: value for c, value, occurs in zip(CLASSES, found, truth.any(0).tolist()) if occurs}
    return sum(ap.values()) / len(ap), ap


def caption_truth(texts: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of texts that are right, word by word: shape, colour, texture, size of the first thing; place,
    light, count.

    A word that is left out counts as wrong, except a number that the things named tell. The words are held
    against the scene's thing that agrees in most of them; `shape_colour` wants both of it. Texts of other
    scenes are the control.
    """
    if len(texts) != len(scenes):
        raise ValueError(f"each scene has a text, got {len(texts)} texts and {len(scenes)} scenes")
    kinds = ("shape", "colour", "texture", "size")
    rows = []
    for text, s in zip(texts, scenes):
        said = read(text)
        first = (said["given"] or [{}])[0]
        right = max(
            ([first.get(kind) == getattr(thing, kind) for kind in kinds] for thing in s.things), key=sum
        )
        number = said["count"] or COUNTS[max(len(said["given"]), 1) - 1]
        rows.append(
            [
                right[0] and right[1],
                *right,
                said["place"] == s.place,
                said["light"] == s.light,
                number == COUNTS[len(s.things) - 1],
            ]
        )
    return dict(zip(("shape_colour", *kinds, "place", "light", "count"), map(_share, zip(*rows))))


def _images(preprocess: Callable, scenes: Sequence[Scene], batch: int = 128):
    for i in range(0, len(scenes), batch):
        yield torch.stack([preprocess(render(s)) for s in scenes[i : i + batch]])


def _embed(encode_image: Callable, preprocess: Callable, scenes: Sequence[Scene]) -> Tensor:
    return torch.cat([encode_image(x) for x in _images(preprocess, scenes)])


def _share(hits) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)
