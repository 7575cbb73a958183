"""What others offer and this repository does not carry, brought by one command where there is a network.

DOWNLOADS   name -> what it is, and its files
RemoteFile  where one file comes from, where it goes, and what its bytes must be
download    bring what a name lacks: `neuronym download NAME`
told        a line for each name: what it is, and whether it is there

Broden, a folder of 63,000 images, has a command of its own: ./dlbroden.sh.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from neuronym.common.checks import unknown
from neuronym.common.locks import locked
from neuronym.datasets.concepts import concepts_folder
from neuronym.datasets.tasks import GTSEGS_URL
from neuronym.models.targets import places365_file, PLACES_URL
from neuronym.models.weights import read_weights
from neuronym.runs.folders import data_dir, from_root, shown

BLOCK = 1 << 20  # bytes read at a time
SECONDS = 60  # that a server may be silent
CLIP_DISSECT = "https://raw.githubusercontent.com/Trustworthy-ML-Lab/CLIP-dissect/HEAD/data/"


@dataclass(frozen=True)
class RemoteFile:
    """One file: its address, its place, its checksum where its authors or a pinned copy tell one, and what
    else is asked of it (`looks_right` raises ValueError).
    """

    url: str
    place: Callable[[], Path]
    sha256: str = ""
    looks_right: Callable[[Path], object] = lambda path: None


def download(name: str = "", sha256: str = "") -> None:
    """Bring the files of a name that are not there, each under its final name in one step, and print what
    came; without a name, print what there is.

    Where no checksum is known the SHA-256 of what came is printed, to be compared with that of others, and
    `sha256` names one of your own. What was interrupted is continued. Errors: KeyError for an unknown name,
    ConnectionError where there is no network, ValueError for other bytes than those asked for and for a
    malformed checksum; nothing of these takes the place of a file.
    """
    if not name:
        print("\n".join(told()))
        return
    if name not in DOWNLOADS:
        raise unknown("download", name, DOWNLOADS)
    wanted = sha256.lower()
    if wanted and (len(wanted) != 64 or set(wanted) - set("0123456789abcdef")):
        raise ValueError(f"a checksum is the 64 hex digits of a SHA-256, got '{sha256}'")
    files = DOWNLOADS[name][1]
    if wanted and all(file.sha256 for file in files):
        raise ValueError(f"the checksums of '{name}' are known here; leave yours out")
    for file in files:
        place = file.place()
        if place.is_file():
            print(f"{shown(place)} is there already")
            continue
        found = _bring(file, place, file.sha256 or wanted)
        print(f"{shown(place)}: {place.stat().st_size:,} bytes, SHA-256 {found}")


def told() -> list[str]:
    """A line for each name: what it is, and how many of its files are there."""
    lines = []
    for name, (what, files) in DOWNLOADS.items():
        there = sum(file.place().is_file() for file in files)
        lines.append(f"neuronym download {name:<12}{what} ({there} of {len(files)} there)")
    return lines


def _bring(file: RemoteFile, place: Path, wanted: str) -> str:
    """Download a file to its place and return its SHA-256; a part of it that came before is continued."""
    part = place.with_name(f"{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(f"{place.name}.lock")) as mine:
        if not mine:
            raise ConnectionError(f"another process is downloading {place.name}; wait for it")
        try:
            _receive(file.url, part)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"{place.name} could not be downloaded ({error}); get {file.url} where there is network and "
                f"put it at {place}"
            ) from error
        with open(part, "rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        try:
            if wanted and found != wanted:
                raise ValueError(f"has SHA-256 {found}, and must have {wanted}")
            file.looks_right(part)
        except ValueError as error:
            rejected = place.with_name(f"{place.name}.rejected")
            part.replace(rejected)
            raise ValueError(
                f"what {file.url} gives is not {place.name} ({error}); see {rejected}"
            ) from error
        part.replace(place)
    return found


def _receive(url: str, part: Path) -> None:
    """Append to `part` what the server has beyond it; the whole again from one that cannot continue."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is the whole, or longer
            raise
        answer = urllib.request.urlopen(url, timeout=SECONDS)
    with answer:
        continued = answer.status == 206
        announced = answer.headers.get("Content-Length")
        with open(part, "ab" if continued else "wb") as file:
            came = _copied(answer, file)
    if announced is not None and came != int(announced):
        raise OSError(f"the connection ended after {came} of {announced} bytes; run again to continue")


def _copied(source: IO[bytes], target: IO[bytes]) -> int:
    came = 0
    while block := source.read(BLOCK):
        target.write(block)
        came += len(block)
    return came


def _resnet18(classes: int, path: Path) -> None:
    head = read_weights(path).get("fc.weight")
    if head is None or tuple(head.shape) != (classes, 512):
        raise ValueError(f"no ResNet-18 of {classes} classes")


def _hdf5(path: Path) -> None:
    with open(path, "rb") as file:
        if not file.read(10).startswith((b"\x89HDF\r\n\x1a\n", b"MATLAB 7.3")):
            raise ValueError("no MATLAB 7.3 file")


def _list(name: str) -> Path:
    return concepts_folder() / name


def _gtsegs_file() -> Path:
    return from_root(os.environ.get("NEURONYM_GTSEGS") or data_dir() / "downloads" / "gtsegs_ijcv.mat")


def _lists(**pinned: str) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(f"{CLIP_DISSECT}{stem}.txt", partial(_list, f"{stem}.txt"), checksum)
        for stem, checksum in pinned.items()
    )


# checksums are of copies that the parity tests of this repository were made with
DOWNLOADS: dict[str, tuple[str, tuple[RemoteFile, ...]]] = {
    "places365": (
        "weights and categories of places365:resnet18",
        (
            RemoteFile(PLACES_URL, places365_file, looks_right=partial(_resnet18, 365)),
            *_lists(categories_places365="2affba635eb657e7ca95f4e6cc69bd9fac29ef4c32aeb83cafdfcd06ec6a1ea6"),
        ),
    ),
    "concepts": (
        "CLIP-Dissect's word lists: Broden's labels, 3k, 10k and 20k",
        _lists(
            **{
                "broden_labels_clean": "603036d4b138c66455e1285bd915f6cdcdf4728df7a5563843d1f89c9babe64b",
                "3k": "425845cf228cf91200e25cbf0361cc078502ce1cc2f9d4558b29abe78096afe1",
                "10k": "d6b3e04f1ac30be6525d41474166c0bff28486ecd8c48dcb0ab9c7c9cc05ed86",
                "20k": "4ed6e5336d7760d281f7e72df31827da880c861363e820d8c65666b0f10d9ac0",
            }
        ),
    ),
    "gtsegs": (
        "the pictures and masks of ImageNet-segmentation",
        (RemoteFile(GTSEGS_URL, _gtsegs_file, looks_right=_hdf5),),
    ),
}
