"""Labels that are phrases and not concepts of a set: what they claim of an image, and whether they name a true concept.

shown      which microworld images show what texts say
names_it   does a label contain a name?
naming     share of labels that name their unit's true concept, beside the same labels dealt to other units
judged_by  what a CLIP thinks of words and texts, where the truth is not known
phrase_controls   labels that know nothing of the unit, and the best word of all
explained  labels of several methods over all their different texts, to be scored like any other explanation
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from neuronym.common.blocks import whole
from neuronym.common.resampling import interval
from neuronym.datasets.concepts import embed_concepts
from neuronym.datasets.probe import Probe
from neuronym.describe.extractive import fold
from neuronym.evaluation.evaluate import presence_oracle
from neuronym.evaluation.explanations import Explained, single
from neuronym.evaluation.presence import judged
from neuronym.models.clips import Clip

DRAWS = 100


def shown(probe: Probe, texts: Sequence[str]) -> Tensor:
    """Which microworld images show what texts say: bool [N, n]; a text without a word of the world is in none.

    A text says what `microworld.read` finds in it. Each thing it names must be in the image, two of them as two things;
    so must its place, its light and its count.
    """
    from neuronym.microworld.microworld import read

    scenes, said = [probe.scene(i) for i in range(probe.N)], {text: read(text) for text in texts}
    found = {text: torch.tensor([_shows(scene, one) for scene in scenes], dtype=torch.bool) for text, one in said.items()}
    return torch.stack([found[text] for text in texts], 1) if found else torch.zeros(probe.N, 0, dtype=torch.bool)


def names_it(label: str, name: str) -> bool:
    """Whether the words of `name` follow each other in `label`, singular or plural ("blue rings" names "ring")."""
    said, wanted = ([fold(word) for word in re.findall(r"\w+", text.lower())] for text in (label, name))
    return bool(wanted) and any(said[i:i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def naming(labels: Sequence[str], names: Sequence[str], generator: torch.Generator, draws: int = DRAWS) -> dict[str, float]:
    """Share of labels that name their unit's true concept, with its bootstrap interval over units (low, high), and of
    the same labels dealt to other units at random (shuffled, mean of `draws`)."""
    whole("draws", draws)
    if len(labels) != len(names) or not len(labels):
        raise ValueError(f"each label has its true name, and there is one at least; got {len(labels)} labels and "
                         f"{len(names)} names")
    hit = np.array([[names_it(label, name) for name in names] for label in labels])  # [labels, names]
    own = np.diagonal(hit).astype(float)
    dealt = [hit[torch.randperm(len(labels), generator=generator).numpy(), np.arange(len(names))].mean()
             for _ in range(draws)]
    low, high = interval(own)
    return {"units": len(own), "named": float(own.mean()), "low": low, "high": high, "shuffled": float(np.mean(dealt))}


def explained(labels: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[dict[str, dict[str, Explained]], list[str]]:
    """{layer: {method: a text for each unit}} as explanations over all different texts, and these texts."""
    texts = list(dict.fromkeys(text for methods in labels.values() for some in methods.values() for text in some))
    return {layer: {method: single(list(some), texts) for method, some in methods.items()}
            for layer, methods in labels.items()}, texts


def judged_by(clip: Clip, I: Tensor, fit: tuple[float, float], words: Sequence[str],
              test: Tensor) -> tuple[Tensor, Callable[[Sequence[str]], Tensor]]:
    """Where the truth is not known: presence [N, M] of words as a CLIP judges it, and what gives texts' presence in the
    images `test`; I [N, d] are all images, `fit` is that of `presence.calibrated`."""
    def claims(texts: Sequence[str]) -> Tensor:
        return judged(I[test], embed_concepts(clip, list(texts)).to(I.device), fit)

    return judged(I, embed_concepts(clip, list(words)).to(I.device), fit), claims


def phrase_controls(labels: Mapping[str, Sequence[str]], words: Sequence[str], present: Tensor, Q: Tensor,
             generator: torch.Generator) -> dict[str, list[str]]:
    """What labels are compared with: `oracle`, each unit's best word; `shuffled`, the first method's labels dealt to
    other units; `constant`, the one word that is best on average. present [N, M], Q [N, K] of the images for naming."""
    scores = presence_oracle(Q, present)                                        # [K, M]
    first = list(next(iter(labels.values())))
    dealt = torch.randperm(len(first), generator=generator).tolist()
    return {"oracle": [words[i] for i in scores.argmax(1).tolist()], "shuffled": [first[i] for i in dealt],
            "constant": [words[int(scores.mean(0).argmax())]] * len(first)}


def _shows(scene, said: dict) -> bool:
    from neuronym.microworld.microworld import COUNTS

    if not any(said.values()):
        return False
    if any(said[kind] not in (None, true) for kind, true in
           (("place", scene.place), ("light", scene.light), ("count", COUNTS[len(scene.things) - 1]))):
        return False
    able = [{i for i, thing in enumerate(scene.things) if all(getattr(thing, k) == v for k, v in wanted.items())}
            for wanted in said["given"]]
    return all(able) and len(set().union(*able)) >= len(able)
