"""Zero-shot tasks: images with the class each shows, and class names for a CLIP to choose from.

load_task     task by name: one of TASKS, or any probing set whose images have labels
TASKS         name up to the colon -> function (number of images, seed) -> Task
Task          images, class names, and the class of every image
load_prompts  prompt templates from one string
accuracy      share of embeddings nearest to their class
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from neuronym.datasets.concepts import read_lines
from neuronym.datasets.probe import load_probe, of_scenes, Probe
from neuronym.datasets.probe_sets import SEED_STEP
from neuronym.microworld.microworld import COLOURS, SHAPES, SIZES, TEXTURES
from neuronym.microworld.quality import held_out
from neuronym.runs.runs import ROOT

TASK_SEED = 6_000_000_000  # of no scene for training, probing, measuring quality or segmentation
TASK_N = 1_000


@dataclass(frozen=True)
class Task:
    """N images, the names of C classes, and the class of every image, truth [N]."""

    probe: Probe
    classes: list[str]
    truth: Tensor


def load_task(name: str, limit: int | None = None, seed: int = 0,
              progress: Callable[[Iterable, int, str], Iterable] | None = None) -> Task:
    """Load "microworld[:n]" (single objects among 2,112 kinds, "small red striped ring"), "microworld_shapes[:n]" (12),
    or a probing set with labels such as "cifar100_val", "imagenet_val" or "folder:/photos" (a folder for each class).

    Errors: ValueError for images without labels or with some of ImageNet's WordNet ids, and those of `load_probe`.
    """
    kind, _, rest = name.partition(":")
    if kind in TASKS:
        if rest and not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= SEED_STEP // 4):
            raise ValueError(f"{kind}:n takes a number of images from 1 to {SEED_STEP // 4}, got '{rest}'")
        return TASKS[kind](min(int(rest or TASK_N), limit or SEED_STEP), seed)
    probe = load_probe(name, limit, seed, progress=progress)
    if probe.labels is None or None in probe.labels:
        raise ValueError(f"a task needs the class of every image, '{name}' has "
                         f"{'none' if probe.labels is None else 'images without'}; put images into a folder for each class")
    labels = sorted(set(probe.labels))
    where = {label: i for i, label in enumerate(labels)}
    return Task(probe, _named(labels), torch.tensor([where[label] for label in probe.labels]))


def load_prompts(text: str) -> list[str]:
    """Prompt templates: "a {}|a photo of a {}", or "file:PATH" with one a line. ValueError for one without {}."""
    kind, _, rest = text.partition(":")
    prompts = read_lines(ROOT / rest) if kind == "file" else text.split("|")
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    wrong = [prompt for prompt in prompts if prompt.count("{}") != 1]
    if wrong or not prompts:
        raise ValueError(f"a prompt holds {{}} once, got '{wrong[0] if wrong else text}'; write 'a photo of a {{}}', "
                         "several with | between them, or file:PATH")
    return prompts


def accuracy(embeddings: Tensor, head: Tensor, truth: Tensor) -> float:
    """Share of embeddings [N, d] whose largest product with the class rows head [C, d] is that of truth [N]."""
    return float(((embeddings @ head.T).argmax(1) == truth.to(embeddings.device)).float().mean())


def _named(labels: list[str]) -> list[str]:
    """Sorted labels as words; ImageNet's 1,000 folders are WordNet ids, whose order is that of its class names."""
    if not any(re.fullmatch(r"n\d{8}", label) for label in labels):
        return labels
    if len(labels) != 1000:
        raise ValueError(f"classes are words, got WordNet ids such as {labels[0]}; use all of ImageNet's 1,000 folders, whose "
                         f"names are known by their order (got {len(labels)}), or rename the folders")
    from torchvision.models import ResNet50_Weights
    return list(ResNet50_Weights.DEFAULT.meta["categories"])


def _scenes(kinds: dict[str, tuple[str, ...]], n: int, seed: int) -> Task:
    scenes = held_out(n, single=True, seed=TASK_SEED + seed * SEED_STEP)
    classes = [" ".join(words) for words in product(*kinds.values())]
    labels = [" ".join(getattr(s.things[0], kind) for kind in kinds) for s in scenes]
    where = {label: i for i, label in enumerate(classes)}
    return Task(of_scenes(f"single objects {n}", [s.seed for s in scenes], labels), classes,
                torch.tensor([where[label] for label in labels]))


TASKS: dict[str, Callable[[int, int], Task]] = {
    "microworld": partial(_scenes, {"size": SIZES, "colour": COLOURS, "texture": TEXTURES, "shape": SHAPES}),
    "microworld_shapes": partial(_scenes, {"shape": SHAPES}),
}
