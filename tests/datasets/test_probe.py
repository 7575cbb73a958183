"""Probing sets: order, identity, every kind of bad file, and what must not matter when batches are made."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym.datasets import images, probe_sets
from neuronym.datasets.probe import batches, load_probe, thumbnails
from neuronym.datasets.probe_sets import PROBES

WHITE, RED = (255, 255, 255), (255, 0, 0)


def picture(seed: int, size=(9, 7)) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )


def make_folder(folder, n=11):
    """n small PNGs in three class folders and the root."""
    for i in range(n):
        path = folder / ["", "b", "a", "c d"][i % 4] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return folder


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((5, 5)))).permute(2, 0, 1).float()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "photos")


# --- order and identity


def test_order_ids_and_labels(folder):
    (folder / "notes.txt").write_text("not an image")
    for hidden in ("._00.png", ".thumbs/x.png", "__MACOSX/y.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "00.png", folder / hidden)
    probe = load_probe(f"folder:{folder}")
    assert probe.ids == [
        "00.png",
        "04.png",
        "08.png",
        "a/02.png",
        "a/06.png",
        "a/10.png",
        "b/01.png",
        "b/05.png",
        "b/09.png",
        "c d/03.png",
        "c d/07.png",
    ]
    assert probe.labels == [None] * 3 + ["a"] * 3 + ["b"] * 3 + ["c d"] * 2
    assert probe.N == len(probe) == 11 and probe.skipped == []
    assert all(np.array_equal(probe.image(i), picture(int(id[-6:-4]))) for i, id in enumerate(probe.ids))


def test_folders_are_sorted_by_name_not_by_path_string(tmp_path):
    for name in ("a b/0.png", "a/0.png"):
        (tmp_path / name).parent.mkdir()
        picture(0).save(tmp_path / name)
    assert load_probe(f"folder:{tmp_path}").labels == ["a", "a b"]


def test_flat_folder_has_no_labels(tmp_path):
    picture(0).save(tmp_path / "x.PNG")
    assert load_probe(f"folder:{tmp_path}").labels is None


def test_fingerprint_is_of_the_content(folder, tmp_path):
    first = load_probe(f"folder:{folder}").fingerprint
    shutil.copytree(folder, tmp_path / "elsewhere" / "other name")
    os.utime(folder / "00.png", (1, 1))
    (folder / "more.txt").write_text("ignored")
    assert load_probe(f"folder:{folder}").fingerprint == first
    assert load_probe(f"folder:{tmp_path}/elsewhere/other name").fingerprint == first
    assert len(first) == 32


@pytest.mark.parametrize("change", ["content", "rename", "swap", "remove", "add"])
def test_fingerprint_changes(folder, change):
    first = load_probe(f"folder:{folder}").fingerprint
    if change == "content":
        picture(99).save(folder / "00.png")
    elif change == "rename":
        (folder / "a/02.png").rename(folder / "a/03.png")
    elif change == "swap":
        (folder / "00.png").rename(folder / "t.png")
        (folder / "04.png").rename(folder / "00.png")
        (folder / "t.png").rename(folder / "04.png")
    elif change == "remove":
        (folder / "00.png").unlink()
    else:
        picture(99).save(folder / "zz.png")
    assert load_probe(f"folder:{folder}").fingerprint != first


def test_fingerprint_depends_on_what_is_used(folder):
    prints = [load_probe(f"folder:{folder}", limit=limit).fingerprint for limit in (None, 3, 4, 11, 99)]
    assert len(set(prints[:3])) == 3 and prints[0] == prints[3] == prints[4]
    skipping = load_probe(f"folder:{folder}", on_error="skip")
    assert skipping.fingerprint == prints[0]
    (folder / "broken.png").write_bytes(b"")
    assert load_probe(f"folder:{folder}", on_error="skip").fingerprint == prints[0]


def test_limit_is_spread_evenly(folder):
    ids = load_probe(f"folder:{folder}").ids
    assert load_probe(f"folder:{folder}", limit=4).ids == [ids[0], ids[2], ids[5], ids[8]]
    assert load_probe(f"folder:{folder}", limit=1).ids == ids[:1]


@pytest.mark.parametrize("limit", [None, 3, 99])
def test_a_limit_beyond_the_images_takes_all_of_them(folder, limit):
    files = sorted(folder.rglob("*.png"))
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    assert load_probe(files, limit=limit).N == min(limit or len(files), len(files))
    assert load_probe(pictures, limit=limit).N == 3


def test_names_that_are_not_text(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system only takes names that are valid text")
    picture(0).save(tmp_path / "ok.png")
    (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes((tmp_path / "ok.png").read_bytes())
    probe = load_probe(f"folder:{tmp_path}")
    assert probe.ids == ["ok.png", "\\xff\\xfe.png"] and "\n".join(probe.ids).encode()


def test_links(folder, tmp_path):
    (folder / "loop").symlink_to(folder)
    (folder / "d").symlink_to(make_folder(tmp_path / "outside", 1))
    probe = load_probe(f"folder:{folder}")
    assert probe.N == 12 and "d/00.png" in probe.ids
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert load_probe(f"folder:{folder}", on_error="skip").skipped == [
        ("gone.jpg", "cannot be opened: No such file or directory")
    ]


# --- memory of what was checked


@pytest.fixture
def looked(monkeypatch):
    """Names of files read and number of pictures decoded during a check; without the pause for fresh
    files.
    """
    reads, decodes, look, defect = [], [], images._look, images._defect
    monkeypatch.setattr(images, "FRESH_SECONDS", -1.0)
    monkeypatch.setattr(images, "_look", lambda path, known: (reads.append(path.name), look(path, known))[1])
    monkeypatch.setattr(images, "_defect", lambda data: (decodes.append(len(data)), defect(data))[1])
    return reads, decodes


def test_a_file_is_checked_once(folder, tmp_path, looked):
    reads, decodes = looked
    first = load_probe(f"folder:{folder}")
    assert (len(reads), len(decodes)) == (11, 11)
    assert load_probe(f"folder:{folder}").fingerprint == first.fingerprint
    assert (len(reads), len(decodes)) == (11, 11)
    shutil.copytree(folder, tmp_path / "copy")
    load_probe(f"folder:{tmp_path}/copy")
    assert (len(reads), len(decodes)) == (22, 11)  # hashed again, not decoded again
    picture(99).save(folder / "00.png")
    assert load_probe(f"folder:{folder}").fingerprint != first.fingerprint
    assert (len(reads), len(decodes)) == (23, 12)


def test_same_size_and_time_do_not_hide_a_change(folder, looked):
    first = load_probe(f"folder:{folder}")
    before, data = os.stat(folder / "00.png"), (folder / "00.png").read_bytes()
    (folder / "00.png").write_bytes(data[:-1] + b"\0")  # the last byte is that of a checksum nobody reads
    os.utime(folder / "00.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_probe(f"folder:{folder}", on_error="skip").fingerprint != first.fingerprint


def test_fresh_files_are_not_trusted(folder, looked, monkeypatch):
    monkeypatch.setattr(images, "FRESH_SECONDS", 1e9)
    load_probe(f"folder:{folder}"), load_probe(f"folder:{folder}")
    assert (len(looked[0]), len(looked[1])) == (22, 11)


def test_damaged_memory_starts_afresh(folder):
    first = load_probe(f"folder:{folder}").fingerprint
    images._memory_file().write_bytes(b"no database" * 99)
    assert load_probe(f"folder:{folder}").fingerprint == first


def test_interrupted_check_goes_on(folder, looked, monkeypatch):
    monkeypatch.setattr(images, "COMMIT_EVERY", 2)

    def stop_after(results, total, text):
        assert (total, text) == (11, "checking images")
        for i, result in enumerate(results):
            if i == 5:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        load_probe(f"folder:{folder}", progress=stop_after)
    before = len(looked[1])
    load_probe(f"folder:{folder}")
    assert len(looked[0]) - before <= 6


# --- every kind of file


def jpeg(**options) -> bytes:
    return encoded(picture(3, (64, 48)), "JPEG", **options)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size without having the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


NO_IMAGE = "not an image of a kind that Pillow reads"
BAD = [
    ("zero.jpg", b"", "empty file"),
    ("text.png", b"this is a letter, not a picture", NO_IMAGE),
    ("html.jpg", b"<!doctype html><title>404</title>", NO_IMAGE),
    ("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
    ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", NO_IMAGE),
    ("header only.jpg", jpeg()[:20], NO_IMAGE + "|truncated"),
    ("cut.jpg", jpeg()[:900], "truncated"),
    ("cut.png", encoded(picture(3, (64, 48)), "PNG")[:4000], "truncated"),
    ("cut.webp", encoded(picture(3, (64, 48)), "WEBP")[:300], "."),
    ("cut.tif", encoded(picture(3, (64, 48)), "TIFF")[:3000], "."),
    ("bomb.png", png_header(100_000, 100_000), r"100000 x 100000 pixels, more than 268,435,456"),
    (
        "grey.tif",
        encoded(Image.fromarray(np.full((4, 4), 300.0, np.float32)), "TIFF"),
        "values from 300.0 to 300.0",
    ),
    (
        "nan.tif",
        encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
        "grey values from nan to nan",
    ),
]


@pytest.mark.parametrize("name, data, reason", BAD, ids=[name for name, _, _ in BAD])
def test_bad_file_is_listed_or_skipped(folder, name, data, reason):
    good = load_probe(f"folder:{folder}")
    (folder / name).write_bytes(data)
    with pytest.raises(
        ValueError, match=f"^1 of 12 images of 'folder:.*(?s:.*)  {name}: .*({reason})"
    ) as caught:
        load_probe(f"folder:{folder}")
    assert " at 0x" not in str(caught.value)
    probe = load_probe(f"folder:{folder}", on_error="skip")
    assert probe.ids == good.ids and probe.fingerprint == good.fingerprint
    assert [id for id, _ in probe.skipped] == [name]


def test_all_bad_files_are_in_one_error(folder, tmp_path):
    for name, data, _ in BAD:
        (folder / name).write_bytes(data)
    with pytest.raises(ValueError) as caught:
        load_probe(f"microworld:3+folder:{folder}")
    lines = str(caught.value).split("\n")
    assert lines[0].startswith(f"{len(BAD)} of {len(BAD) + 14} images of")
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == sorted(
        f"photos/{name}" for name, _, _ in BAD
    )
    for i in range(2):
        (tmp_path / "only").mkdir(exist_ok=True)
        (tmp_path / "only" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match="none of the 2 images of .* can be read; the first, 0.jpg: empty file"
    ):
        load_probe(f"folder:{tmp_path}/only", on_error="skip")


def gif(*colours, **options) -> bytes:
    frames = [Image.new("RGB", (6, 4), colour) for colour in colours]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (0, 0, 3, 4))
    return encoded(image, "PNG", transparency=0)


def half(mode, left, right, size=(6, 4)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def grey16(byteorder="<") -> Image.Image:
    return Image.fromarray(np.tile(np.array([[0, 128, 257, 32896, 65535, 65407]], np.uint16), (4, 1)))


HANDLED = [  # name, bytes, colour of the left and of the right side
    ("animated.gif", gif(RED, (0, 0, 255)), RED, RED),
    (
        "animated.webp",
        encoded(
            Image.new("RGB", (6, 4), RED),
            "WEBP",
            lossless=True,
            save_all=True,
            append_images=[Image.new("RGB", (6, 4), "blue")],
        ),
        RED,
        RED,
    ),
    (
        "animated.png",
        encoded(
            Image.new("RGB", (6, 4), RED),
            "PNG",
            save_all=True,
            append_images=[Image.new("RGB", (6, 4), "blue")],
        ),
        RED,
        RED,
    ),
    (
        "pages.tif",
        encoded(
            Image.new("RGB", (6, 4), RED),
            "TIFF",
            save_all=True,
            append_images=[Image.new("RGB", (6, 4), "blue")],
        ),
        RED,
        RED,
    ),
    ("palette.png", palette_with_transparency(), WHITE, RED),
    ("rgba.png", encoded(half("RGBA", (0, 0, 255, 0), (255, 0, 0, 255)), "PNG"), WHITE, RED),
    ("half clear.png", encoded(half("RGBA", (0, 0, 0, 51), (255, 0, 0, 255)), "PNG"), (204,) * 3, RED),
    ("la.png", encoded(half("LA", (0, 0), (77, 255)), "PNG"), WHITE, (77,) * 3),
    ("grey.png", encoded(half("L", 0, 77), "PNG"), (0, 0, 0), (77,) * 3),
    ("grey key.png", encoded(half("L", 9, 77), "PNG", transparency=9), WHITE, (77,) * 3),
    ("rgb key.png", encoded(half("RGB", (1, 2, 3), RED), "PNG", transparency=(1, 2, 3)), WHITE, RED),
    ("bits.png", encoded(half("1", 0, 1), "PNG"), (0, 0, 0), WHITE),
    ("grey16.png", encoded(grey16(), "PNG"), (0, 0, 0), (255, 255, 255)),
    ("grey16.tif", encoded(grey16(), "TIFF"), (0, 0, 0), (255, 255, 255)),
    (
        "grey16.pgm",
        b"P5 6 4 65535\n" + np.asarray(grey16()).astype(">u2").tobytes(),
        (0, 0, 0),
        (255, 255, 255),
    ),
    (
        "float.tif",
        encoded(Image.fromarray(np.tile(np.float32([0, 0, 0, 1, 1, 1]), (4, 1))), "TIFF"),
        (0, 0, 0),
        WHITE,
    ),
    (
        "float255.tif",
        encoded(Image.fromarray(np.tile(np.float32([0, 0, 0, 77, 77, 77]), (4, 1))), "TIFF"),
        (0, 0, 0),
        (77,) * 3,
    ),
    ("cmyk.tif", encoded(half("CMYK", (0, 0, 0, 0), (0, 255, 255, 0)), "TIFF"), WHITE, RED),
    ("ycbcr.tif", encoded(half("RGB", WHITE, (0, 0, 0)).convert("YCbCr"), "TIFF"), WHITE, (0, 0, 0)),
    ("lab.tif", encoded(half("LAB", (255, 128, 128), (0, 128, 128)), "TIFF"), WHITE, (0, 0, 0)),
    ("wrong ending.jpg", encoded(half("RGB", WHITE, RED), "PNG"), WHITE, RED),
    ("frame.bmp", encoded(half("RGB", WHITE, RED), "BMP"), WHITE, RED),
]


@pytest.mark.parametrize("name, data, left, right", HANDLED, ids=[case[0] for case in HANDLED])
def test_unusual_file_is_handled(tmp_path, name, data, left, right):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    image = load_probe(f"folder:{tmp_path}/in").image(0)
    assert image.mode == "RGB" and image.size == (6, 4) and image.info == {}
    off = np.abs(np.subtract([image.getpixel((0, 0)), image.getpixel((4, 0))], [left, right])).max()
    assert off <= (name == "lab.tif")  # colour management rounds


def test_16_bits_keep_their_grey_levels(tmp_path):
    for kind in ("PNG", "TIFF"):
        grey16().save(tmp_path / "x.img", kind)
        assert np.asarray(images.read_image(tmp_path / "x.img"))[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_cmyk_jpeg_of_both_conventions(tmp_path):
    for size in ((64, 48),):
        data = encoded(half("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), size), "JPEG", quality=100)
        image = images.read_image(io.BytesIO(data))
        assert np.abs(np.subtract(image.getpixel((2, 2)), WHITE)).max() < 9
        assert np.abs(np.subtract(image.getpixel((60, 2)), RED)).max() < 9


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind, orientation):
    """A camera that stores the picture turned, and says so, gives the same upright picture."""
    upright = half("RGB", WHITE, RED, (64, 32))
    upright.paste((0, 0, 255), (0, 16, 64, 32))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[
        orientation
    ]  # the inverse turn, as Pillow numbers them
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} | ({"lossless": True} if kind == "WEBP" else {})
    data = encoded(stored, kind, exif=exif, **(options if kind in ("JPEG", "WEBP") else {}))
    image = images.read_image(io.BytesIO(data))
    assert image.size == (64, 32)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 6
    assert image.getexif().get(0x0112) is None


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_defect():
    data = jpeg()
    broken = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage that ends too early"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken + data[2:]
    assert images.read_image(io.BytesIO(data)).size == (64, 48)


def test_huge_images(monkeypatch):
    """Above Pillow's own limit is fine, and a large JPEG is decoded at reduced resolution."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    assert images.read_image(io.BytesIO(jpeg())).size == (64, 48)
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS  # raised once, and never taken away
    monkeypatch.setattr(images, "DRAFT_PIXELS", 1000)
    monkeypatch.setattr(images, "DRAFT_SIDE", 12)
    assert images.read_image(io.BytesIO(jpeg())).size == (16, 12)
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match="64 x 48 pixels, more than 3,071"):
        images.read_image(io.BytesIO(jpeg()))


def test_pillow_keeps_its_limit_while_threads_crop(folder):
    """The limit is the whole process's: taken away for a moment, it is None where another thread compares."""
    before, stop, errors = sys.getswitchinterval(), threading.Event(), []
    files = sorted(folder.rglob("*.png"))

    def crop():
        picture_of = picture(0)
        while not stop.is_set():
            try:
                picture_of.crop((1, 1, 5, 5))
            except TypeError as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=crop) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        seen = set()
        for _ in range(200):
            for file in files[:3]:
                images.read_image(file)
                seen.add(Image.MAX_IMAGE_PIXELS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert errors == [] and seen == {images.MAX_PIXELS}


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (4000, 1), (402, 2)])
def test_thin_pictures_are_listed(tmp_path, size):
    """Networks' preprocessings make the short side some hundred pixels and the long one in proportion."""
    Image.new("RGB", size).save(tmp_path / "thin.png")
    Image.new("RGB", (200, 1)).save(tmp_path / "wide.png")
    told = f"{size[0]} x {size[1]} pixels, more than 200 times as long as wide; crop it"
    with pytest.raises(ValueError, match=f"thin.png: {told}"):
        load_probe(f"folder:{tmp_path}")
    probe = load_probe(f"folder:{tmp_path}", on_error="skip")
    assert probe.ids == ["wide.png"]
    assert probe.told_skipped() == f"1 images left out:\n  thin.png: {told}"
    with pytest.raises(ValueError, match="200 times as long as wide"):
        load_probe([Image.new("RGB", size)])


def test_what_is_skipped_is_told_up_to_a_number(folder):
    assert load_probe(f"folder:{folder}").told_skipped() == ""
    for i in range(25):
        (folder / f"torn{i:02}.png").write_bytes(b"")
    lines = load_probe(f"folder:{folder}", on_error="skip").told_skipped().splitlines()
    assert lines[0] == "25 images left out:" and lines[1] == "  torn00.png: empty file"
    assert len(lines) == 22 and lines[-1] == "  ... and 5 more"


# --- microworld, unions, named sets


def test_microworld():
    probe = load_probe("microworld:7")
    assert probe.N == 7 and probe.labels is None and len(set(probe.ids)) == 7
    assert (
        probe.image(3).mode == "RGB"
        and probe.image(3).tobytes() == load_probe("microworld:9").image(3).tobytes()
    )
    assert probe.scene(3) == load_probe("microworld").scene(3) != probe.scene(4)
    assert probe.fingerprint == load_probe("microworld:7").fingerprint
    prints = {
        load_probe(name, limit, seed).fingerprint
        for name, limit, seed in [
            ("microworld:7", None, 0),
            ("microworld:8", None, 0),
            ("microworld:7", 3, 0),
            ("microworld:7", None, 1),
        ]
    }
    assert len(prints) == 4
    assert load_probe("microworld").N == probe_sets.MICROWORLD_N
    assert not set(load_probe("microworld", seed=1).items) & set(load_probe("microworld").items)


def test_microworld_fingerprint_follows_version_and_pixels(monkeypatch):
    from neuronym.microworld import render, world

    first = load_probe("microworld:7").fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(world, "VERSION", "another")
        assert load_probe("microworld:7").fingerprint != first
    drawn = render.render
    monkeypatch.setattr(
        render, "render", lambda scene: drawn(scene).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    )
    assert load_probe("microworld:7").fingerprint != first


def test_union(folder, tmp_path):
    other = make_folder(tmp_path / "more" / "photos", 5)
    probe = load_probe(f"folder:{folder}+microworld:3 + folder:{other}")
    assert probe.N == 11 + 3 + 5
    assert probe.ids[0] == "photos/00.png" and probe.ids[11].startswith("microworld/")
    assert probe.ids[-1] == "photos-2/c d/03.png"
    assert probe.labels[3] == "a" and probe.labels[11] is None
    assert probe.scene(11) == load_probe("microworld:3").scene(0)
    assert np.array_equal(probe.image(14), picture(0))
    with pytest.raises(ValueError, match="only microworld images have a scene; image 0 is photos/00.png"):
        probe.scene(0)
    turned = load_probe(f"folder:{other}+folder:{folder}+microworld:3")
    assert turned.fingerprint != probe.fingerprint
    assert load_probe(f"folder:{folder}+microworld:3", limit=7).N == 7


@pytest.mark.parametrize("name", ["a+b", "a:b", "c++", "x+brodening", "two  spaces", "quote's"])
def test_paths_may_contain_plus_and_colon(tmp_path, name):
    folder = make_folder(tmp_path / name, 2)
    assert load_probe(f"folder:{folder}").N == 2
    assert load_probe(f"folder:{folder}+microworld:3").N == 5
    assert load_probe(f'microworld:3+folder:"{folder}"').N == 5


def test_quoted_path_that_looks_like_a_union(tmp_path):
    folder = make_folder(tmp_path / "x+microworld", 2)
    make_folder(tmp_path / "x", 4)
    assert load_probe(f'folder:"{folder}"').N == 2
    assert load_probe(f'folder:"{folder}"+folder:"{folder}"').N == 4
    assert load_probe(f"folder:{tmp_path}/x+microworld:3").N == 7


def test_relative_path_starts_at_the_root(tmp_path, monkeypatch):
    make_folder(tmp_path / "root" / "photos", 3)
    monkeypatch.setattr(probe_sets, "ROOT", tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    assert load_probe("folder:photos").N == 3


def test_named_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    for name, place, variable in [
        ("broden", "broden/images", "NEURONYM_BRODEN"),
        ("imagenet_val", "imagenet/val", "NEURONYM_IMAGENET"),
    ]:
        index_of(make_folder(tmp_path / place, 3))
        assert load_probe(name).fingerprint == load_probe(f"folder:{tmp_path / place}").fingerprint
        monkeypatch.setenv(variable, str(tmp_path / "mine" / name))
        index_of(make_folder(tmp_path / "mine" / name / place.split("/")[1], 5))
        assert load_probe(name).N == 5


def index_of(folder, leave_out=()):
    """Broden's list of its images, beside the folder of them."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    lines = [f"{name},train" for name in names if name not in leave_out]
    (folder.parent / "index.csv").write_text("\n".join(["image,split", *lines]) + "\n", encoding="utf-8")


def test_broden_takes_the_images_that_are_listed(tmp_path, monkeypatch):
    """Masks lie beside the images, with the same endings."""
    monkeypatch.setenv("NEURONYM_BRODEN", str(tmp_path))
    folder = make_folder(tmp_path / "images", 8)
    index_of(folder, leave_out=("a/02.png", "04.png"))
    kept = [id for id in load_probe(f"folder:{folder}").ids if id not in ("a/02.png", "04.png")]
    assert load_probe("broden").ids == kept and load_probe("broden", limit=2).ids == [kept[0], kept[3]]
    (folder / kept[1]).unlink()
    with pytest.raises(ValueError, match=f"{kept[1]}: cannot be opened: No such file"):
        load_probe("broden")
    for content, message in {
        "image\n../secret.png\n": "must name files below .*images, got '../secret.png'",
        "image\n/etc/x.png\n": "got '/etc/x.png'",
        "picture\na.png\n": "column image of .*index.csv must name files below .*, got ''",
        "image\n": "got none",
    }.items():
        (tmp_path / "index.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_probe("broden")
    (tmp_path / "index.csv").unlink()
    with pytest.raises(FileNotFoundError, match="which tells its images from their masks, not found in"):
        load_probe("broden")


def test_cifar100(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    (tmp_path / "cifar-100-python").mkdir()
    dice = np.random.default_rng(0)
    for split, n in (("train", 5), ("test", 3)):
        data = {"data": dice.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": list(range(n))}
        (tmp_path / "cifar-100-python" / split).write_bytes(pickle.dumps(data))
    (tmp_path / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": list("vwxyz")}))
    monkeypatch.setenv("NEURONYM_CIFAR100", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="not complete"
    ):  # torchvision knows the real files' checksums
        load_probe("cifar100_val")

    def md5(name):
        return hashlib.md5((tmp_path / "cifar-100-python" / name).read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5("train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5("test")]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5("meta")})
    probe = load_probe("cifar100_train+cifar100_val")
    assert probe.N == 8 and probe.labels == list("vwxyzvwx") and probe.ids[5] == "cifar100_val/val/00000"
    assert probe.image(0).size == (32, 32)
    assert load_probe("cifar100_train", limit=2).fingerprint != load_probe("cifar100_train").fingerprint


ERRORS = [
    ("microwolrd", KeyError, "no probing set 'microwolrd'; nearest: microworld"),
    ("", KeyError, "no probing set ''"),
    ("microworld+nothing", KeyError, r"no probing set 'microworld\+nothing'"),
    ("microworld:0", ValueError, "takes a number of images from 1 to .*, got '0'"),
    ("microworld:many", ValueError, "got 'many'"),
    ("microworld:1.5", ValueError, "got '1.5'"),
    ("folder:", ValueError, "folder: takes a path"),
    ("folder", ValueError, "folder: takes a path"),
    (
        "broden:100",
        ValueError,
        r"broden takes nothing after it, got 'broden:100'; load_probe\(..., limit=n\)",
    ),
    ("folder:{tmp}/none", FileNotFoundError, "no folder at .*/none; folder:<path> is absolute or starts at"),
    ("folder:{tmp}/file.png", FileNotFoundError, "file.png is a file"),
    ("folder:{tmp}/empty", FileNotFoundError, "no images in .*empty or below"),
    ("folder:{tmp}/texts", FileNotFoundError, "no images in .*texts or below"),
    (
        "broden",
        FileNotFoundError,
        "Broden not found at .*broden/images; run ./dlbroden.sh, or set NEURONYM_BRODEN",
    ),
    (
        "imagenet_val",
        FileNotFoundError,
        "not found at .*imagenet/val; get ILSVRC2012.* or set NEURONYM_IMAGENET",
    ),
    (
        "cifar100_val",
        FileNotFoundError,
        "CIFAR-100 not found.*cifar-100-python.tar.gz .* or set NEURONYM_CIFAR100",
    ),
]


@pytest.mark.parametrize("name, error, message", ERRORS, ids=[name for name, _, _ in ERRORS])
def test_bad_names(tmp_path, monkeypatch, name, error, message):
    for variable in ("NEURONYM_BRODEN", "NEURONYM_IMAGENET", "NEURONYM_CIFAR100"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "x.txt").write_text("x")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(error, match=message) as caught:
        load_probe(name.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limit": 0}, "limit is at least 1"),
        ({"limit": -3}, "got -3"),
        ({"on_error": "ignore"}, "on_error is 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_probe("microworld:3", **options)


def test_every_set_has_a_test():
    assert set(PROBES) == {"microworld", "folder", "broden", "imagenet_val", "cifar100_train", "cifar100_val"}


# --- batches and thumbnails


@pytest.mark.parametrize("batch_size", [1, 4, 11, 12])
@pytest.mark.parametrize("start", [0, 5, 11])
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_do_not_depend_on_batching(folder, batch_size, start, workers):
    probe = load_probe(f"folder:{folder}")
    want = torch.stack([to_tensor(probe.image(i)) for i in range(probe.N)])
    got, row = torch.full_like(want, -1), start
    for span, (x, flipped) in batches(
        probe, [to_tensor, lambda image: -to_tensor(image)], batch_size, start, workers
    ):
        assert (
            span.start == row and len(x) == span.stop - span.start <= batch_size and torch.equal(flipped, -x)
        )
        got[span], row = x, span.stop
    assert row == probe.N and torch.equal(got[start:], want[start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once_and_shared_safely(folder, workers, monkeypatch):
    probe, decoded, read = load_probe(f"folder:{folder}"), [], images.read_image
    monkeypatch.setattr(
        "neuronym.datasets.probe.read_image", lambda path: (decoded.append(path), read(path))[1]
    )

    def spoil(image):
        image.paste(RED, (0, 0, *image.size))
        return to_tensor(image)

    for _, (_, x) in batches(probe, [spoil, to_tensor], 4, workers=workers):
        assert not torch.equal(x[0, 1], torch.zeros(5, 5))
    assert sorted(decoded) == sorted(probe.items)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_surface_with_the_image(folder, workers):
    probe = load_probe(f"folder:{folder}")
    (folder / "a/06.png").write_bytes(b"changed after the check")
    rows = []
    with pytest.raises(OSError, match="cannot identify") as caught:
        for span, _ in batches(probe, [to_tensor], 1, workers=workers):
            rows.append(span.start)
    assert rows == [0, 1, 2, 3] and caught.value.__notes__ == ["while preparing image 4, a/06.png"]


def test_threads_end_when_the_caller_stops(folder):
    before = threading.active_count()
    for _ in batches(load_probe(f"folder:{folder}"), [to_tensor], 2, workers=3):
        break
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(batch_size=0), "batch_size is at least 1, got 0"),
        (dict(batch_size=2, start=12), "start lies within 0 and N = 11, got 12"),
        (dict(batch_size=2, start=-1), "got -1"),
        (dict(batch_size=2, preprocesses=[lambda image: image]), r"a Tensor \[3, H, W\], got Image"),
        (dict(batch_size=2, preprocesses=[lambda image: to_tensor(image)[0]]), r"got shape \(5, 5\)"),
    ],
)
def test_bad_batches(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(batches(load_probe(f"folder:{folder}"), **{"preprocesses": [to_tensor]} | arguments))


def test_preprocess_that_keeps_sizes(folder):
    picture(0, (12, 7)).save(folder / "05.png")
    as_is = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with pytest.raises(
        ValueError, match=r"preprocess 0 .* one size, got \[\(3, 7, 9\), \(3, 7, 12\)\] between 00"
    ):
        list(batches(load_probe(f"folder:{folder}"), [as_is], 4))


def test_thumbnails(folder):
    half("RGB", WHITE, RED, (40, 10)).save(folder / "zz.png")
    probe = load_probe(f"folder:{folder}+microworld:2")
    small = thumbnails(probe, torch.tensor([probe.ids.index("photos/zz.png"), 0, probe.N - 1]), 10)
    assert [image.size for image in small] == [(10, 10)] * 3
    assert small[0].getpixel((0, 5)) == WHITE and small[0].getpixel((9, 5)) == RED


# --- real photos


@pytest.mark.parametrize("name, n, classes", [("dtd-10x120", 1200, 10), ("imagenet-sample-256", 1000, 0)])
def test_real_photos(shared, name, n, classes):
    probe = load_probe(f"folder:{shared / name}", limit=20)
    assert probe.N == 20 and len(set(probe.labels or [])) == min(classes, 20)
    assert all(min(image.size) == 16 for image in thumbnails(probe, range(20), 16))
    assert len(images.find_images(shared / name)) == n
