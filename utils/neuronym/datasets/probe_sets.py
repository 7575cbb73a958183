"""The probing sets by name, before any image is opened: where each set's images are and what they are called.

Row          one image of a set before it is checked
list_images  name, several joined by "+" -> rows in order
part_names   what the ids of each joined set begin with
empty_folders  class folders of a set in which no image is
PROBES       name up to the colon -> function (rest of the name, seed) -> rows

    microworld[:N] | N scenes whose contents are known (2,000 without N) | microworld:5000
    folder:PATH    | all images below a folder; folders inside it are classes | folder:/photos
    broden         | Broden's images (`./dlbroden.sh`; NEURONYM_BRODEN)
    imagenet_val   | ImageNet's 50,000 validation images (NEURONYM_IMAGENET)
    cifar100_train | CIFAR-100's 50,000 images for training (NEURONYM_CIFAR100)
    cifar100_val   | its 10,000 images for testing
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neuronym.common.checks import unknown
from neuronym.datasets.images import find_images
from neuronym.microworld import world
from neuronym.microworld.world import PROBE_SEED, SEED_STEP
from neuronym.runs.folders import data_dir, ROOT

MICROWORLD_N = 2_000


@dataclass(frozen=True)
class Row:
    """One image of a probing set before it is checked."""

    key: str  # what identifies it besides the content of a file
    id: str
    label: str | None
    item: Path | int | np.ndarray


def list_images(name: str, seed: int = 0) -> list[Row]:
    """Rows of the set `name`, in its fixed order; the grammar of names is told in
    `neuronym.datasets.probe.load_probe`.

    Unknown sets raise a KeyError, a malformed rest a ValueError, missing data a FileNotFoundError.
    """
    parts = [part.strip() for part in _split(name)]
    listed = [_rows(part, seed) for part in parts]
    if len(parts) == 1:
        return listed[0]
    return [
        replace(row, id=f"{part}/{row.id}") for part, rows in zip(part_names(name), listed) for row in rows
    ]


def part_names(name: str) -> list[str]:
    """Names of the sets that `name` joins, in order, numbered where they repeat; its own if it is one set."""
    titles = [_title(part.strip()) for part in _split(name)]
    return [
        f"{title}-{before + 1}" if (before := titles[:i].count(title)) else title
        for i, title in enumerate(titles)
    ]


def empty_folders(name: str) -> list[str]:
    """Folders beside the class folders of a set that hold no image, each once and in order."""
    found = []
    for part in _split(name):
        kind, _, rest = part.strip().partition(":")
        if kind == "imagenet_val":
            home = _home("NEURONYM_IMAGENET", "imagenet") / "val"
        elif kind == "folder":
            home = _path(_unquoted(rest))
        else:
            continue
        with os.scandir(home) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
        found += [name for name in sorted(names) if (home / name).is_dir() and not find_images(home / name)]
    return [shown_name(name) for name in dict.fromkeys(found)]


def shown_name(name: str) -> str:
    """A file's name as text on one line: bytes that are no UTF-8 and control characters as \\xff, \\n."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    text = text.decode("utf-8", "backslashreplace")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _microworld(rest: str, seed: int) -> list[Row]:
    if rest and not (rest.isascii() and rest.isdigit() and 1 <= int(rest) <= SEED_STEP):
        raise ValueError(f"microworld:n takes a number of images from 1 to {SEED_STEP}, got '{rest}'")
    base = PROBE_SEED + seed * SEED_STEP
    return [
        Row(f"microworld {world.VERSION}", f"{base + i}", None, base + i)
        for i in range(int(rest or MICROWORLD_N))
    ]


def _folder(rest: str, seed: int) -> list[Row]:
    if not rest:
        raise ValueError("folder: takes a path, as in 'folder:/data/photos'")
    return _below(_path(rest), f"no folder at {_path(rest)}; folder:<path> is absolute or starts at {ROOT}")


def _broden(rest: str, seed: int) -> list[Row]:
    """The images that index.csv lists: masks lie beside them in the same folders."""
    home = _home("NEURONYM_BRODEN", "broden")
    if not (home / "images").is_dir():
        raise FileNotFoundError(
            f"Broden not found at {home / 'images'}; run ./dlbroden.sh, or set NEURONYM_BRODEN "
            "to the folder that holds its images/"
        )
    if not (home / "index.csv").is_file():
        raise FileNotFoundError(
            f"Broden's index.csv, which tells its images from their masks, not found in {home}; run "
            f"./dlbroden.sh, or take all of its pictures as folder:{home / 'images'}"
        )
    with open(home / "index.csv", newline="", encoding="utf-8") as lines:
        listed = list(dict.fromkeys(row.get("image") or "" for row in csv.DictReader(lines)))
    strange = [name for name in listed if not name or Path(name).is_absolute() or ".." in Path(name).parts]
    if strange or not listed:
        raise ValueError(
            f"the column image of {home / 'index.csv'} must name files below {home / 'images'}, got "
            + (f"'{strange[0]}'" if strange else "none")
        )
    listed.sort(key=lambda name: unicodedata.normalize("NFC", name).split("/"))
    return _named(home / "images", listed)


def _imagenet_val(rest: str, seed: int) -> list[Row]:
    home = _home("NEURONYM_IMAGENET", "imagenet")
    return _below(
        home / "val",
        f"ImageNet validation images not found at {home / 'val'}; get ILSVRC2012_img_val.tar "
        "from image-net.org and unpack it there, or set NEURONYM_IMAGENET to the folder that "
        "holds val/",
    )


def _cifar100(split: str) -> list[Row]:
    from torchvision.datasets import CIFAR100

    home = _home("NEURONYM_CIFAR100", "")
    try:
        data = CIFAR100(home, train=split == "train", download=False)
    except RuntimeError as error:  # torchvision's word for a missing or incomplete folder
        raise FileNotFoundError(
            f"CIFAR-100 not found, or not complete, at {home / 'cifar-100-python'}; get "
            "cifar-100-python.tar.gz from "
            f"www.cs.toronto.edu/~kriz/cifar.html and unpack it in {home}, or set NEURONYM_CIFAR100 to the "
            "folder that "
            "holds cifar-100-python/"
        ) from error
    return [
        Row(hashlib.sha256(pixels.tobytes()).hexdigest(), f"{split}/{i:05d}", data.classes[target], pixels)
        for i, (pixels, target) in enumerate(zip(data.data, data.targets))
    ]


PROBES: dict[str, Callable[[str, int], list[Row]]] = {
    "microworld": _microworld,
    "folder": _folder,
    "broden": _broden,
    "imagenet_val": _imagenet_val,
    "cifar100_train": lambda rest, seed: _cifar100("train"),
    "cifar100_val": lambda rest, seed: _cifar100("val"),
}


def _split(name: str) -> list[str]:
    """The parts of a name: cut at each "+" that is outside double quotes and followed by the name of a
    set.
    """
    sets = "|".join(PROBES)
    return re.split(rf'\+(?=\s*(?:{sets})\s*(?:[:+]|$))(?=(?:[^"]*"[^"]*")*[^"]*$)', name)


def _rows(part: str, seed: int) -> list[Row]:
    kind, _, rest = part.partition(":")
    if kind not in PROBES:
        raise unknown("probing set", kind, PROBES)
    if rest and kind not in ("microworld", "folder"):
        raise ValueError(
            f"{kind} takes nothing after it, got '{part}'; load_probe(..., limit=n) takes n of its images"
        )
    return PROBES[kind](_unquoted(rest), seed)


def _title(part: str) -> str:
    kind, _, rest = part.partition(":")
    return _path(_unquoted(rest)).name if kind == "folder" else kind


def _unquoted(rest: str) -> str:
    return rest.strip().removeprefix('"').removesuffix('"')


def _below(folder: Path, missing: str) -> list[Row]:
    if not folder.is_dir():
        raise FileNotFoundError(missing + (f" ({folder} is a file)" if folder.exists() else ""))
    paths = find_images(folder)
    if not paths:
        raise FileNotFoundError(
            f"no images in {folder} or below; known by their endings: .jpg, .png, .webp, ..."
        )
    return _named(folder, paths)


def _named(folder: Path, paths: list[str]) -> list[Row]:
    """Rows of relative paths, labelled by their first folder."""
    names = [unicodedata.normalize("NFC", path) for path in paths]  # macOS may store the same name decomposed
    return [
        Row(name, shown_name(name), shown_name(name.split("/")[0]) if "/" in name else None, folder / path)
        for name, path in zip(names, paths)
    ]


def _path(text: str) -> Path:
    return ROOT / os.path.expanduser(text)


def _home(variable: str, folder: str) -> Path:
    return _path(os.environ[variable]) if os.environ.get(variable) else data_dir() / folder
