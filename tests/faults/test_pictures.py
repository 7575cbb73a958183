"""Odd and damaged pictures, one file of each kind: each is read or listed, and none waits for ever."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuronym.datasets import images
from neuronym.datasets.probe import load_probe

SIZE = (24, 18)
BYTES = 10**6  # what counts as too large a file here


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def written(kind: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int = 8, kind: int = 2, rows: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG whose head says what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return written("JPEG", exif=exif)


def frames(kind: str) -> bytes:
    return written(kind, save_all=True, append_images=[Image.new("RGB", SIZE, c) for c in ("red", "blue")])


def sixteen(values: np.ndarray, kind: str = "TIFF") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


GREY = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1])
# name -> content, all to be read
READ: dict[str, bytes] = {
    "plain.jpg": written("JPEG"),
    "progressive.jpg": written("JPEG", progressive=True),
    "grey.jpg": written("JPEG", "L"),
    "cmyk.jpg": written("JPEG", "CMYK"),
    "rgba.png": written("PNG", "RGBA"),
    "la.png": written("PNG", "LA"),
    "palette.png": written("PNG", "P"),
    "palette with transparency.png": written("PNG", "P", transparency=0),
    "one bit.png": written("PNG", "1"),
    "16 bits.png": sixteen(GREY.astype(np.uint16), "PNG"),
    "16 bits.tif": sixteen(GREY.astype(np.uint16)),
    "floats.tif": sixteen((GREY / 65535).astype(np.float32)),
    "cmyk.tif": written("TIFF", "CMYK"),
    "lab.tif": written("TIFF"),
    "animated.gif": frames("GIF"),
    "animated.webp": frames("WEBP"),
    "animated.png": frames("PNG"),
    "two pages.tif": frames("TIFF"),
    "lossless.webp": written("WEBP", lossless=True),
    "old.bmp": written("BMP"),
    "plain.ppm": written("PPM"),
    "plain.tga": written("TGA"),
    "icon.ico": written("ICO", sizes=[(16, 16)]),
    **{f"turned{n}.jpg": rotated(n) for n in range(1, 9)},
    "turned how.jpg": rotated(99),
    "a png in truth.jpg": written("PNG"),
    "a jpeg in truth.png": written("JPEG"),
    "a gif in truth.tif": written("GIF"),
    "SHOUTED.JPEG": written("JPEG"),
    "more behind.jpg": written("JPEG") + b"\0" * 5000,
    "line\nbreak.png": written("PNG"),
    "tab\tin it.png": written("PNG"),
    "<b>bold &amp; co.png": written("PNG"),
    "=cmd|' !A0'.png": written("PNG"),
    "日本語 صورة 🐟.png": written("PNG"),
    "one pixel.png": png(1, 1, rows=b"\0\xff\0\0"),
}
# name -> content, what is said of it
LISTED: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"<html>404 not found</html>", "not an image of a kind"),
    "zeros.png": (b"\0" * 4096, "not an image of a kind"),
    "program.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a kind"),
    "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a kind"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not an image of a kind"),
    "cut.jpg": (written("JPEG", quality=95)[:500], "(?i)truncated"),
    "cut.png": (written("PNG")[:400], ""),
    "cut.gif": (written("GIF")[:60], ""),
    "cut.webp": (written("WEBP")[:60], ""),
    "cut.tif": (written("TIFF")[:200], ""),
    "cut.bmp": (written("BMP")[:200], "truncated"),
    "flipped.png": (written("PNG")[:60] + b"\xff\xff" + written("PNG")[62:], ""),
    "bomb.png": (png(60_000, 60_000), "60000 x 60000 pixels, more than 268,435,456"),
    "bomb.bmp": (written("BMP")[:18] + struct.pack("<ii", 40_000, 20_000) + written("BMP")[26:], "more than"),
    "large.png": (png(20_000, 20_000), "20000 x 20000 pixels, more than 268,435,456"),
    "thin.png": (png(4000, 1, rows=b"\0" + b"\xff" * 12_000), "4000 x 1 pixels, more than 200 times"),
    "no rows.png": (png(0, 0), ""),
    "text bomb.png": (
        png(1, 1, rows=b"\0\0\0\0", more=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 10**8))),
        "",
    ),
    "too many bytes.jpg": (written("JPEG") + b"\0" * BYTES, "bytes, more than 1,000,000"),
    "negative.tif": (sixteen(-GREY.astype(np.float32)), "grey values from"),
    "not a number.tif": (sixteen(np.full(SIZE[::-1], np.nan, np.float32)), "grey values from"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not an image of a kind"),
}


def to_pipe(folder: Path) -> None:
    os.mkfifo(folder / "hidden")
    (folder / "to a pipe.jpg").symlink_to(folder / "hidden")


def plug(folder: Path) -> None:
    before = os.getcwd()
    os.chdir(folder)  # the path of a socket has a hundred bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("socket.jpg")
    finally:
        os.chdir(before)


def unnamed(folder: Path) -> None:
    try:
        (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system only takes names that are valid text")


# name as it is told -> what makes it, what is said of it
MADE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe.jpg": (lambda folder: os.mkfifo(folder / "a pipe.jpg"), "not a file but a pipe"),
    "to a pipe.jpg": (to_pipe, "not a file but a pipe"),
    "zero.jpg": (lambda folder: (folder / "zero.jpg").symlink_to("/dev/zero"), "not a file but a device"),
    "random.png": (lambda folder: (folder / "random.png").symlink_to("/dev/urandom"), "but a device"),
    "itself.jpg": (lambda folder: (folder / "itself.jpg").symlink_to("itself.jpg"), "cannot be opened: "),
    "gone.jpg": (lambda folder: (folder / "gone.jpg").symlink_to("nowhere"), "No such file"),
    "socket.jpg": (plug, "cannot be opened: |but a socket"),
    "kernel.png": (lambda folder: (folder / "kernel.png").symlink_to("/proc/version"), "not an image"),
    "\\xff\\xfe.png": (unnamed, "empty file"),
}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, devices and sockets are files of Unix")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", BYTES)
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def crowd(folder):
    """All of them, in one folder."""
    for name, content in READ.items():
        (folder / name).write_bytes(content)
    for name, (content, _) in LISTED.items():
        (folder / name).write_bytes(content)
    for make, _ in MADE.values():
        make(folder)
    (folder / "folder.jpg" / "empty.png").mkdir(parents=True)
    (folder / "folder.jpg" / "inside.png").write_bytes(READ["rgba.png"])
    return folder


def test_there_are_fifty():
    assert len(READ) + len(LISTED) + len(MADE) >= 50


def test_each_is_read_or_listed(crowd):
    probe = load_probe(f"folder:{crowd}", on_error="skip")
    told = {name.replace("\n", "\\n").replace("\t", "\\t") for name in READ}
    assert set(probe.ids) == told | {"folder.jpg/inside.png"}
    assert {id for id, _ in probe.skipped} == set(LISTED) | set(MADE)
    for i in range(probe.N):
        seen = probe.image(i)
        assert seen.mode == "RGB" and sorted(seen.size)[-1] <= max(SIZE)
    lines = probe.told_skipped().splitlines()
    assert lines[0] == f"{len(LISTED) + len(MADE)} images left out:" and len(lines) == 22
    assert all(reason and "\n" not in reason for _, reason in probe.skipped)


def test_all_are_in_one_error(crowd):
    with pytest.raises(ValueError) as error:
        load_probe(f"folder:{crowd}")
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{len(LISTED) + len(MADE)} of {len(READ) + len(LISTED) + len(MADE) + 1} images")
    assert len(lines) == len(LISTED) + len(MADE)


@pytest.mark.parametrize("name", READ)
def test_what_is_odd_is_read(folder, name):
    (folder / name).write_bytes(READ[name])
    probe = load_probe(f"folder:{folder}")
    seen = probe.image(0)
    assert probe.N == 1 and seen.mode == "RGB" and max(seen.size) <= max(SIZE)


@pytest.mark.parametrize("name", LISTED)
def test_what_is_said_of_content(folder, name):
    content, reason = LISTED[name]
    (folder / name).write_bytes(content)
    (folder / "fine.png").write_bytes(READ["la.png"])
    with pytest.raises(ValueError, match=f"1 of 2 images of .* cannot be used; .*\n  {name}: .*"):
        load_probe(f"folder:{folder}")
    [(_, said)] = load_probe(f"folder:{folder}", on_error="skip").skipped
    assert re.search(reason, said)


@pytest.mark.parametrize("name", MADE)
def test_what_is_said_of_what_is_no_file(folder, name):
    make, reason = MADE[name]
    make(folder)
    (folder / "fine.png").write_bytes(READ["la.png"])
    probe = load_probe(f"folder:{folder}", on_error="skip")
    [(id, said)] = probe.skipped
    assert probe.ids == ["fine.png"] and id == name
    assert re.search(reason, said)


def test_a_list_of_files_is_checked_alike(folder):
    to_pipe(folder)
    (folder / "fine.png").write_bytes(READ["la.png"])
    files = [folder / "fine.png", folder / "to a pipe.jpg"]
    assert load_probe(files, on_error="skip").skipped == [("to a pipe.jpg", "not a file but a pipe")]


def test_a_file_that_became_a_pipe_does_not_hang(folder):
    (folder / "fine.png").write_bytes(READ["la.png"])
    probe = load_probe(f"folder:{folder}")
    (folder / "fine.png").unlink()
    os.mkfifo(folder / "fine.png")
    with pytest.raises(ValueError, match="not a file but a pipe"):
        probe.image(0)


def test_a_folder_that_cannot_be_read_is_listed(folder, monkeypatch):
    (folder / "closed").mkdir()
    (folder / "fine.png").write_bytes(READ["la.png"])
    scan = os.scandir

    def refuse(place):
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    assert load_probe(f"folder:{folder}", on_error="skip").skipped == [("closed", "not a file but a folder")]
