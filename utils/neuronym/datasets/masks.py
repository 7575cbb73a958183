"""Pictures with true masks, to score segmentations by.

load_masks  pictures with true masks by name: one of SEGMENTED
SEGMENTED   first word of a name -> function that loads the set
MaskedPictures       a probe, its masks and the names of what they show
"""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuronym.cache_files import sha256
from neuronym.common.blocks import whole
from neuronym.common.errors import unknown
from neuronym.datasets.probe import of_scenes, Probe
from neuronym.datasets.probe_sets import SEED_STEP
from neuronym.microworld.microworld import scene
from neuronym.microworld.render import masks as shown
from neuronym.models.weights import digest, import_extra, missing
from neuronym.runs.runs import data_dir, ROOT

SEGMENTED_SEED = 7_000_000_000  # of no scene for training, probing, a task or `neuronym.microworld.quality`
SEGMENTED_N = 500
GTSEGS_URL = "http://calvin-vision.net/bigstuff/proj-imagenet/data/gtsegs_ijcv.mat"


@dataclass(frozen=True, eq=False)
class MaskedPictures:
    """Pictures with true masks; made by `load_masks`."""

    probe: Probe                        # of the microworld `probe.scene(i)` tells the scene
    mask: Callable[[int], np.ndarray]   # i -> bool [h, w], as large as picture i; true on the object
    names: list[str | None]             # class of the object: a shape of the microworld, a WordNet id of ImageNet


def load_masks(name: str, limit: int | None = None, seed: int = 0) -> MaskedPictures:
    """Load pictures with masks: "microworld[:n]" or "gtsegs[:PATH]"; `limit` spreads over the set as in `load_probe`.

    "microworld": scenes whose objects have one shape, which is their name; `seed` chooses others. "gtsegs": the 4,276
    pictures of ImageNet-segmentation from gtsegs_ijcv.mat, at PATH (absolute or from the repository root),
    NEURONYM_GTSEGS, or in data/downloads; the first person's outline where several drew one. It needs h5py.
    Errors: KeyError for an unknown set, FileNotFoundError, ModuleNotFoundError, ValueError.
    """
    kind, _, rest = name.partition(":")
    if kind not in SEGMENTED:
        raise unknown("segmented set", kind, SEGMENTED)
    if limit is not None:
        whole("limit", limit)
    return SEGMENTED[kind](rest, limit, seed)


def _microworld(rest: str, limit: int | None, seed: int) -> MaskedPictures:
    most = SEED_STEP // 2  # three in four scenes are taken, so the next value of `seed` begins far behind the last
    if rest and not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= most):
        raise ValueError(f"microworld:n takes a number of images from 1 to {most}, got '{rest}'")
    seeds, names, wanted, drawn = [], [], int(rest or SEGMENTED_N), SEGMENTED_SEED + seed * SEED_STEP
    while len(seeds) < wanted:
        shapes = {thing.shape for thing in scene(drawn).things}
        if len(shapes) == 1:
            seeds.append(drawn)
            names += shapes
        drawn += 1
    kept = _spread(wanted, limit)
    seeds, names = [seeds[i] for i in kept], [names[i] for i in kept]
    return MaskedPictures(of_scenes("microworld", seeds, names), lambda i: shown(scene(seeds[i]), names[i]), names)


def _gtsegs(rest: str, limit: int | None, seed: int) -> MaskedPictures:
    named = rest.strip() or os.environ.get("NEURONYM_GTSEGS") or data_dir() / "downloads" / "gtsegs_ijcv.mat"
    path = ROOT / Path(named).expanduser()
    if not path.is_file():
        raise missing("ImageNet-segmentation (gtsegs_ijcv.mat)", GTSEGS_URL, str(path), "NEURONYM_GTSEGS")
    import_extra("h5py", "h5py", "gtsegs")
    rows, names = _listed(path, limit)
    ids = [f"{row:05d}" for row in rows]
    probe = Probe("gtsegs", ids, names if any(names) else None, digest("gtsegs", sha256(path), *ids), [],
                  _Pictures(path, rows))
    return MaskedPictures(probe, lambda i: _read(path, "gt", rows[i]) != 0, names)


SEGMENTED: dict[str, Callable[[str, int | None, int], MaskedPictures]] = {"microworld": _microworld, "gtsegs": _gtsegs}


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
    """One picture or mask; MATLAB writes axes the other way round, and masks in a cell with one for each person."""
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
            rows = _spread(min(len(value["img"]), len(value["gt"])), limit)
            if "target" not in value:
                return rows, [None] * len(rows)
            texts = [np.asarray(file[value["target"][row, 0]]) for row in rows]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} must be gtsegs_ijcv.mat, a MATLAB v7.3 file with value/img and value/gt, but is not: "
                         f"{error}; download it again from {GTSEGS_URL}") from error
    return rows, ["".join(map(chr, text.flatten())) for text in texts]


def _spread(N: int, limit: int | None) -> list[int]:
    """`limit` of N rows, evenly spread; all of them without a limit, or with one beyond N."""
    n = N if limit is None else min(limit, N)
    return [i * N // n for i in range(n)]
