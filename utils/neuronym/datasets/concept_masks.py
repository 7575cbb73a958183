"""Which pixels show which concept: true masks of microworld scenes, and those that people drew for Broden.

microworld_masks  of microworld images
broden_masks      of Broden's images
ConceptMasks             what both give: image -> {concept: mask}
"""
from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from neuronym.datasets.concepts import clean, plain_name
from neuronym.datasets.probe import Probe
from neuronym.runs.runs import data_dir, ROOT

ConceptMasks = Callable[[int], Mapping[str, np.ndarray]]  # image -> {concept: bool [h, w]}, of one size in an image


def microworld_masks(probe: Probe) -> ConceptMasks:
    """The true masks [64, 64] of all concepts in image i of a microworld probe; ValueError for other images."""
    from neuronym.microworld.microworld import CATEGORY, COUNTS, concepts, thing_concepts
    from neuronym.microworld.render import masks as shown

    def of(i: int) -> dict[str, np.ndarray]:
        scene, drawn, found = probe.scene(i), {}, {}
        for concept in sorted(concepts(scene)):
            kind = CATEGORY[concept]
            # concepts of the same objects have the same pixels, drawn once
            key = kind if kind in ("place", "light") or concept in COUNTS else tuple(
                concept in thing_concepts(thing) for thing in scene.things)
            if key not in drawn:
                drawn[key] = shown(scene, concept)
            found[concept] = drawn[key]
        return found

    return of


def broden_masks(probe: Probe, folder: Path | str | None = None) -> ConceptMasks:
    """Masks of Broden's images by the ids of a probe, from index.csv, label.csv and the images of the folder.

    Names are those of `load_concepts("broden")`; things that share a name (a scene and an object) share a mask. By
    default the folder is where `load_probe("broden")` looks. Errors: FileNotFoundError without the two lists;
    ValueError for an image that is not listed, and for a class number that label.csv lacks.
    """
    named = folder or os.environ.get("NEURONYM_BRODEN") or data_dir() / "broden"
    home = ROOT / Path(named).expanduser()
    for file in ("index.csv", "label.csv"):
        if not (home / file).is_file():
            raise FileNotFoundError(f"Broden's {file} not found in {home}; run ./dlbroden.sh, or set NEURONYM_BRODEN "
                                    "to the folder that holds it")
    with open(home / "label.csv", newline="", encoding="utf-8") as lines:
        names = {int(row["number"]): clean(plain_name(row["name"])) for row in csv.DictReader(lines)}
    with open(home / "index.csv", newline="", encoding="utf-8") as lines:
        rows = {row["image"]: row for row in csv.DictReader(lines)}
    ids = [id if id in rows else id.removeprefix("broden/") for id in probe.ids]
    strange = [id for id in ids if id not in rows]
    if strange:
        raise ValueError(f"{len(strange)} of {probe.N} images are not listed in {home / 'index.csv'}, e.g. "
                         f"'{strange[0]}'; pass a probe of Broden's images")
    columns = ("color", "object", "part", "material", "scene", "texture")

    def of(i: int) -> dict[str, np.ndarray]:
        row, found = rows[ids[i]], {}
        size = int(row["sh"]), int(row["sw"])
        for said in filter(None, (part.strip() for column in columns for part in (row.get(column) or "").split(";"))):
            coded = np.full(size, int(said)) if said.isdigit() else _numbers(home / "images" / said)
            for code in set(np.unique(coded).tolist()) - {0}:
                if code not in names:
                    raise ValueError(f"image '{ids[i]}' has class number {code}, which label.csv does not list; "
                                     "index.csv and label.csv must be of one Broden")
                mask = coded == code
                found[names[code]] = found[names[code]] | mask if names[code] in found else mask
        return found

    return of


def _numbers(path: Path) -> np.ndarray:
    """Class numbers [h, w] of a mask file: red + 256 green."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1]
