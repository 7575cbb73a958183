"""Images whose truth is known: the class that each shows, and the pixels that show a class or a concept.

Task                images, class names, and the class of every image
load_task           task by name: one of TASKS, or any probing set whose images have labels
load_prompts        prompt templates from one string
zero_shot_accuracy  share of embeddings nearest to their class
TASKS               name up to the colon -> function (number of images, seed) -> Task
MaskedPictures      a probe, a true mask of each picture and the names of what they show
load_masks          pictures with masks by name: one of SEGMENTED
SEGMENTED           name up to the colon -> function that loads the set
ConceptMasks        image -> {concept: mask}, of all that an image shows
microworld_masks    those of microworld scenes
broden_masks        those that people drew for Broden

Tasks:

    microworld[:N]        | N pictures of one object each, of 2,112 kinds (small red striped ring); 1,000
                            without N | microworld:1000
    microworld_shapes[:N] | the same, of 12 shapes | microworld_shapes:500
    folder:PATH           | your images, a folder for each class | folder:/photos
    imagenet_val          | ImageNet's validation images, in its 1,000 folders
    cifar100_val          | CIFAR-100's images for testing

Masks:

    microworld[:N] | N scenes whose objects have one shape, with their pixels; 500 without N | microworld:300
    gtsegs[:PATH]  | ImageNet-segmentation, 4,276 images, from gtsegs_ijcv.mat at PATH or NEURONYM_GTSEGS
                     (`pip install -e '.[segmentation]'`) | gtsegs:/data/gtsegs_ijcv.mat
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuronym.common.checks import check_positive_int, import_extra, missing, unknown
from neuronym.common.files import digest, sha256
from neuronym.common.subsets import evenly_spaced
from neuronym.common.text import clean, read_lines
from neuronym.datasets.concepts import plain_name
from neuronym.datasets.probe import checked_probe, Probe, probe_from_scenes
from neuronym.datasets.probe_sets import empty_folders, list_images
from neuronym.microworld.render import masks as shown
from neuronym.microworld.world import (
    COLOURS,
    held_out,
    scene,
    SEED_STEP,
    SEGMENTED_SEED,
    SHAPES,
    SIZES,
    TASK_SEED,
    TEXTURES,
)
from neuronym.runs.folders import data_dir, ROOT

TASK_N = 1_000


@dataclass(frozen=True)
class Task:
    """N images, the names of C classes, and the class of every image, truth [N]."""

    probe: Probe
    classes: list[str]
    truth: Tensor

    @property
    def unseen(self) -> list[str]:
        """Classes that none of the images shows: answers that can only be wrong."""
        seen = set(self.truth.tolist())
        return [name for i, name in enumerate(self.classes) if i not in seen]


def load_task(
    name: str,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[Iterable, int, str], Iterable] | None = None,
) -> Task:
    """Load "microworld[:n]" (single objects among 2,112 kinds, "small red striped ring"),
    "microworld_shapes[:n]" (12), or a probing set with labels such as "cifar100_val", "imagenet_val" or
    "folder:/photos" (a folder for each class).

    `limit` takes fewer images and keeps all classes: with fewer classes to choose from, accuracy would rise.
    Each class keeps an image as long as there are as many as classes, and else an even choice of the classes
    does; `Task.unseen` names those without. A folder without any image is no class.

    Errors: ValueError for images without labels or with some of ImageNet's WordNet ids, and those of
    `load_probe`.
    """
    kind, _, rest = name.partition(":")
    if kind in TASKS:
        if rest and not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= SEED_STEP // 4):
            raise ValueError(f"{kind}:n takes a number of images from 1 to {SEED_STEP // 4}, got '{rest}'")
        return TASKS[kind](min(int(rest or TASK_N), limit or SEED_STEP), seed)
    if limit is not None:
        check_positive_int("limit", limit)
    rows = list_images(name, seed)
    said = [row.label for row in rows]
    if None in said:
        raise ValueError(
            f"a task needs the class of every image, '{name}' has "
            f"{'images without' if any(said) else 'none'}; put images into a folder for each class"
        )
    labels = sorted(set(said))
    classes = _named(labels, partial(empty_folders, name))
    where = {label: i for i, label in enumerate(labels)}
    rows = [rows[i] for i in _of_each_class(said, min(limit or len(rows), len(rows)))]
    truth = torch.tensor([where[row.label] for row in rows])
    return Task(checked_probe(name, rows, progress=progress), classes, truth)


def load_prompts(text: str) -> list[str]:
    """Prompt templates: "a {}|a photo of a {}", or "file:PATH" with one a line. ValueError for one without
    {}, FileNotFoundError for a file that is not there.
    """
    kind, _, rest = text.partition(":")
    path = ROOT / os.path.expanduser(rest)
    if kind == "file" and not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path}; name one with a prompt a line")
    prompts = read_lines(path) if kind == "file" else text.split("|")
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    wrong = [prompt for prompt in prompts if prompt.count("{}") != 1]
    if wrong or not prompts:
        raise ValueError(
            f"a prompt holds {{}} once, got '{wrong[0] if wrong else text}'; write 'a photo of a {{}}', "
            "several with | between them, or file:PATH"
        )
    return prompts


def zero_shot_accuracy(embeddings: Tensor, head: Tensor, truth: Tensor) -> float:
    """Share of embeddings [N, d] whose largest product with the class rows head [C, d] is that of truth
    [N].
    """
    return float(((embeddings @ head.T).argmax(1) == truth.to(embeddings.device)).float().mean())


def _of_each_class(labels: Sequence[str], n: int) -> list[int]:
    """n of the images, ascending: evenly spaced ones, but that a class left out takes its first image from
    the class with the most; with n below the number of classes, one of each of n of them.
    """
    of_class = defaultdict(list)
    for i, label in enumerate(labels):
        of_class[label].append(i)
    names = sorted(of_class)
    if n < len(names):
        return sorted(of_class[names[i]][0] for i in evenly_spaced(n, len(names)))
    chosen = set(evenly_spaced(n, len(labels)))
    count = Counter(labels[i] for i in chosen)
    for name in names:
        if not count[name]:
            most = max(names, key=lambda one: count[one])
            chosen.remove(max(i for i in of_class[most] if i in chosen))
            chosen.add(of_class[name][0])
            count[most], count[name] = count[most] - 1, 1
    return sorted(chosen)


def _named(labels: list[str], empty: Callable[[], list[str]]) -> list[str]:
    """Sorted labels as words; ImageNet's 1,000 folders are WordNet ids, whose order is that of its class
    names.
    """
    if not any(re.fullmatch(r"n\d{8}", label) for label in labels):
        return labels
    if len(labels) != 1000:
        lacking = [name for name in empty() if re.fullmatch(r"n\d{8}", name)]
        without = f", and no image in {lacking[0]} and {len(lacking) - 1} others" if lacking else ""
        raise ValueError(
            f"classes are words, got WordNet ids such as {labels[0]}; use all of ImageNet's 1,000 folders, "
            "whose "
            f"names are known by their order (got {len(labels)}{without}), or rename the folders"
        )
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.DEFAULT.meta["categories"])


def _scenes(kinds: dict[str, tuple[str, ...]], n: int, seed: int) -> Task:
    scenes = held_out(n, single=True, seed=TASK_SEED + seed * SEED_STEP)
    classes = [" ".join(words) for words in product(*kinds.values())]
    labels = [" ".join(getattr(s.things[0], kind) for kind in kinds) for s in scenes]
    where = {label: i for i, label in enumerate(classes)}
    return Task(
        probe_from_scenes(f"single objects {n}", [s.seed for s in scenes], labels),
        classes,
        torch.tensor([where[label] for label in labels]),
    )


TASKS: dict[str, Callable[[int, int], Task]] = {
    "microworld": partial(_scenes, {"size": SIZES, "colour": COLOURS, "texture": TEXTURES, "shape": SHAPES}),
    "microworld_shapes": partial(_scenes, {"shape": SHAPES}),
}
SEGMENTED_N = 500
GTSEGS_URL = "http://calvin-vision.net/bigstuff/proj-imagenet/data/gtsegs_ijcv.mat"


@dataclass(frozen=True, eq=False)
class MaskedPictures:
    """Pictures with true masks; made by `load_masks`."""

    probe: Probe  # of the microworld `probe.scene(i)` tells the scene
    mask: Callable[[int], np.ndarray]  # i -> bool [h, w], as large as picture i; true on the object
    names: list[str | None]  # class of the object: a shape of the microworld, a WordNet id of ImageNet


def load_masks(name: str, limit: int | None = None, seed: int = 0) -> MaskedPictures:
    """Load pictures with masks: "microworld[:n]" or "gtsegs[:PATH]"; `limit` spreads over the set as in
    `load_probe`.

    "microworld": scenes whose objects have one shape, which is their name; `seed` chooses others. "gtsegs":
    the 4,276 pictures of ImageNet-segmentation from gtsegs_ijcv.mat, at PATH (absolute or from the repository
    root), NEURONYM_GTSEGS, or in data/downloads; the first person's outline where several drew one. It needs
    h5py. Errors: KeyError for an unknown set, FileNotFoundError, ModuleNotFoundError, ValueError.
    """
    kind, _, rest = name.partition(":")
    if kind not in SEGMENTED:
        raise unknown("segmented set", kind, SEGMENTED)
    if limit is not None:
        check_positive_int("limit", limit)
    return SEGMENTED[kind](rest, limit, seed)


def _microworld(rest: str, limit: int | None, seed: int) -> MaskedPictures:
    most = (
        SEED_STEP // 2
    )  # three in four scenes are taken, so the next value of `seed` begins far behind the last
    if rest and not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= most):
        raise ValueError(f"microworld:n takes a number of images from 1 to {most}, got '{rest}'")
    seeds, names, wanted, drawn = [], [], int(rest or SEGMENTED_N), SEGMENTED_SEED + seed * SEED_STEP
    while len(seeds) < wanted:
        shapes = {thing.shape for thing in scene(drawn).things}
        if len(shapes) == 1:
            seeds.append(drawn)
            names += shapes
        drawn += 1
    kept = evenly_spaced(min(wanted, limit or wanted), wanted)
    seeds, names = [seeds[i] for i in kept], [names[i] for i in kept]
    return MaskedPictures(
        probe_from_scenes("microworld", seeds, names), lambda i: shown(scene(seeds[i]), names[i]), names
    )


def _gtsegs(rest: str, limit: int | None, seed: int) -> MaskedPictures:
    named = rest.strip() or os.environ.get("NEURONYM_GTSEGS") or data_dir() / "downloads" / "gtsegs_ijcv.mat"
    path = ROOT / os.path.expanduser(named)
    if not path.is_file():
        raise missing("ImageNet-segmentation (gtsegs_ijcv.mat)", GTSEGS_URL, str(path), "NEURONYM_GTSEGS")
    import_extra("h5py", "h5py", "gtsegs")
    rows, names = _listed(path, limit)
    ids = [f"{row:05d}" for row in rows]
    probe = Probe(
        "gtsegs",
        ids,
        names if any(names) else None,
        digest("gtsegs", sha256(path), *ids),
        [],
        _Pictures(path, rows),
    )
    return MaskedPictures(probe, lambda i: _read(path, "gt", rows[i]) != 0, names)


SEGMENTED: dict[str, Callable[[str, int | None, int], MaskedPictures]] = {
    "microworld": _microworld,
    "gtsegs": _gtsegs,
}


@dataclass(frozen=True)
class _Pictures:
    """Pixels [h, w, 3] read when they are asked for: all of them would take gigabytes."""

    path: Path
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return _read(self.path, "img", self.rows[i])


def _read(path: Path, field: str, row: int) -> np.ndarray:
    """One picture or mask; MATLAB writes axes the other way round, and masks in a cell with one for each
    person.
    """
    import h5py

    with h5py.File(path, "r") as file:
        found = file[file["value"][field][row, 0]]
        return np.asarray(file[found[0, 0]] if field == "gt" else found).T


def _listed(path: Path, limit: int | None) -> tuple[list[int], list[str | None]]:
    """Rows of the file that `limit` leaves, and their WordNet ids where the file has them."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            value = file["value"]
            N = min(len(value["img"]), len(value["gt"]))
            rows = evenly_spaced(min(N, limit or N), N)
            if "target" not in value:
                return rows, [None] * len(rows)
            texts = [np.asarray(file[value["target"][row, 0]]) for row in rows]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path} must be gtsegs_ijcv.mat, a MATLAB v7.3 file with value/img and value/gt, but is not: "
            f"{error}; download it again from {GTSEGS_URL}"
        ) from error
    return rows, ["".join(map(chr, text.flatten())) for text in texts]


ConceptMasks = Callable[
    [int], Mapping[str, np.ndarray]
]  # image -> {concept: bool [h, w]}, of one size in an image


def microworld_masks(probe: Probe) -> ConceptMasks:
    """The true masks [64, 64] of all concepts in image i of a microworld probe; ValueError for other
    images.
    """
    from neuronym.microworld.render import masks as shown
    from neuronym.microworld.world import CATEGORY, concepts, COUNTS, thing_concepts

    def of(i: int) -> dict[str, np.ndarray]:
        scene, drawn, found = probe.scene(i), {}, {}
        for concept in sorted(concepts(scene)):
            kind = CATEGORY[concept]
            # concepts of the same objects have the same pixels, drawn once
            key = (
                kind
                if kind in ("place", "light") or concept in COUNTS
                else tuple(concept in thing_concepts(thing) for thing in scene.things)
            )
            if key not in drawn:
                drawn[key] = shown(scene, concept)
            found[concept] = drawn[key]
        return found

    return of


def broden_masks(probe: Probe, folder: Path | str | None = None) -> ConceptMasks:
    """Masks of Broden's images by the ids of a probe, from index.csv, label.csv and the images of the folder.

    Names are those of `load_concepts("broden")`; things that share a name (a scene and an object) share a
    mask. By default the folder is where `load_probe("broden")` looks. Errors: FileNotFoundError without the
    two lists; ValueError for an image that is not listed, and for a class number that label.csv lacks.
    """
    named = folder or os.environ.get("NEURONYM_BRODEN") or data_dir() / "broden"
    home = ROOT / os.path.expanduser(named)
    for file in ("index.csv", "label.csv"):
        if not (home / file).is_file():
            raise FileNotFoundError(
                f"Broden's {file} not found in {home}; run ./dlbroden.sh, or set NEURONYM_BRODEN "
                "to the folder that holds it"
            )
    with open(home / "label.csv", newline="", encoding="utf-8") as lines:
        names = {int(row["number"]): clean(plain_name(row["name"])) for row in csv.DictReader(lines)}
    with open(home / "index.csv", newline="", encoding="utf-8") as lines:
        rows = {row["image"]: row for row in csv.DictReader(lines)}
    ids = [id if id in rows else id.removeprefix("broden/") for id in probe.ids]
    strange = [id for id in ids if id not in rows]
    if strange:
        raise ValueError(
            f"{len(strange)} of {probe.N} images are not listed in {home / 'index.csv'}, e.g. "
            f"'{strange[0]}'; pass a probe of Broden's images"
        )
    columns = ("color", "object", "part", "material", "scene", "texture")

    def of(i: int) -> dict[str, np.ndarray]:
        row, found = rows[ids[i]], {}
        size = int(row["sh"]), int(row["sw"])
        for said in filter(
            None, (part.strip() for column in columns for part in (row.get(column) or "").split(";"))
        ):
            coded = np.full(size, int(said)) if said.isdigit() else _numbers(home / "images" / said)
            for code in set(np.unique(coded).tolist()) - {0}:
                if code not in names:
                    raise ValueError(
                        f"image '{ids[i]}' has class number {code}, which label.csv does not list; "
                        "index.csv and label.csv must be of one Broden"
                    )
                mask = coded == code
                found[names[code]] = found[names[code]] | mask if names[code] in found else mask
        return found

    return of


def _numbers(path: Path) -> np.ndarray:
    """Class numbers [h, w] of a mask file: red + 256 green."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1]
