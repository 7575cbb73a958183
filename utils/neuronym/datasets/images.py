"""Image files: which there are, and one file -> one RGB picture.

SUFFIXES     endings of the files that count as images
find_images  relative paths of the images below a folder, in a fixed order
read_image   one file -> PIL RGB
"""
from __future__ import annotations

import os
import threading
import unicodedata
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

READER = 1  # raised whenever the same bytes would give other pixels
# HEIC is listed although Pillow cannot read it: a phone's photos must be reported, not silently left out
SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .gif .bmp .dib .tif .tiff .jp2 .j2k .ppm .pgm "
                     ".pbm .pnm .pfm .tga .qoi .ico .heic .heif".split())
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "TGA", "QOI", "ICO")
MAX_PIXELS = 2 ** 28    # 16,384 x 16,384; a larger picture counts as unreadable
DRAFT_PIXELS = 2 ** 26  # a JPEG above this is decoded at 1/2, 1/4 or 1/8 ...
DRAFT_SIDE = 4096       # ... but not below this
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # by EXIF orientation
_OPENING = threading.Lock()


def find_images(folder: Path) -> list[str]:
    """Relative paths (with "/") of all images below `folder`, folder by folder, each in order of code points.

    Hidden files and folders (a name that begins with a dot, macOS's "._" copies among them) and `__MACOSX` are left
    out; links to folders are followed unless they lead back to where they are.
    """
    found = _walk(folder, (), frozenset())
    found.sort(key=lambda parts: [unicodedata.normalize("NFC", part) for part in parts])  # macOS may decompose names
    return ["/".join(parts) for parts in found]


def read_image(source: Path | BinaryIO) -> Image.Image:
    """Decode one image file to 8-bit RGB, upright.

    The first frame of an animation; transparency over white; 16-bit values divided by 257; floats from 0 to 1 or from
    0 to 255; CMYK by Pillow's plain formula; turned as EXIF says, a broken EXIF counting as none. Of a JPEG above
    DRAFT_PIXELS a half, quarter or eighth of the resolution is decoded. Raises an OSError, ValueError or whatever else
    the decoder raises when the file is damaged, has a mode without a conversion, or more than MAX_PIXELS.
    """
    with _open(source) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
            image.draft("RGB", (DRAFT_SIDE, DRAFT_SIDE))
        image.load()
        turn = TURNS.get(_orientation(image))  # after load(): a PNG's EXIF may follow the pixels, a TIFF turns itself
        rgb = _to_rgb(image)
    rgb = rgb.transpose(turn) if turn is not None else rgb
    rgb.info = {}  # a stale EXIF entry would have a later step turn the picture again
    return rgb


def _walk(folder: Path, parts: tuple[str, ...], above: frozenset) -> list[tuple[str, ...]]:
    """The images below `folder` as tuples of names; `above` holds the folders on the way here."""
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in above:
        return []
    above, found = above | {(place.st_dev, place.st_ino)}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                found += _walk(Path(entry.path), (*parts, entry.name), above)
            elif Path(entry.name).suffix.lower() in SUFFIXES and (entry.is_file() or entry.is_symlink()):
                found.append((*parts, entry.name))  # a link to nowhere is kept: it will be reported
    return found


def _open(source: Path | BinaryIO) -> Image.Image:
    """Image.open without the formats that start other programs (a ".jpg" may be PostScript) and without Pillow's own
    limit of pixels, which can only be lifted for the whole process: for a moment.
    """
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            Image.init()
            return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Pillow's parser fails in many ways on broken EXIF, and the pixels are fine
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of 16 or 32 bits, [h, w] -> uint8."""
    low, high = values.min(), values.max()
    top = (1 if high <= 1 else 255) if mode == "F" else 65535
    if not (low >= 0 and high <= top):  # also when there are NaNs
        raise ValueError(f"grey values from {low} to {high}; readable are 0 to 65535, and floats 0 to 1 or 0 to 255")
    return np.floor(values.astype(np.float64) * (255 / top) + .5).astype(np.uint8)
