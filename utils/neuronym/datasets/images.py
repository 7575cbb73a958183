"""Image files: which there are, one file -> one RGB picture, and which cannot be read.

SUFFIXES     endings of the files that count as images
find_images  relative paths of the images below a folder, in a fixed order
read_image   one file -> PIL RGB
check_shape  refuses pictures that are too large or too thin
examine      content hash or defect of each file, remembered as long as the file is what it was
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sqlite3
import stat
import threading
import time
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, TYPE_CHECKING

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from neuronym.runs.folders import cache_dir

if TYPE_CHECKING:
    from neuronym.common.types import Progress

READER = 1  # raised whenever the same bytes would give other pixels
CHECK = 2  # raised whenever other files count as defective
# HEIC is listed although Pillow cannot read it: a phone's photos must be reported, not silently left out
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .gif .bmp .dib .tif .tiff .jp2 .j2k .ppm .pgm "
    ".pbm .pnm .pfm .tga .qoi .ico .heic .heif".split()
)
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "AVIF",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "JPEG2000",
    "PPM",
    "TGA",
    "QOI",
    "ICO",
)
MAX_PIXELS = 2**28  # 16,384 x 16,384; a larger picture counts as unreadable
MAX_BYTES = 2**30  # of a file
THINNEST = 200  # times as long as wide: preprocessings make the short side some hundred pixels, and then crop
DRAFT_PIXELS = 2**26  # a JPEG above this is decoded at 1/2, 1/4 or 1/8 ...
DRAFT_SIDE = 4096  # ... but not below this
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
NO_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_OPENING = threading.Lock()


def find_images(folder: Path) -> list[str]:
    """Relative paths (with "/") of all images below `folder`, folder by folder, each in order of code points.

    Hidden files and folders (a name that begins with a dot, macOS's "._" copies among them) and `__MACOSX`
    are left out; links to folders are followed unless they lead back to where they are. What has the name of
    an image and is none (a pipe, a link to nowhere), and folders that cannot be read, are listed too, so that
    `examine` reports them.
    """
    found = _walk(folder, (), frozenset())
    found.sort(
        key=lambda parts: [unicodedata.normalize("NFC", part) for part in parts]
    )  # macOS may decompose names
    return ["/".join(parts) for parts in found]


def read_image(source: Path | BinaryIO) -> Image.Image:
    """Decode one image file to 8-bit RGB, upright.

    The first frame of an animation; transparency over white; 16-bit values divided by 257; floats from 0 to 1
    or from 0 to 255; CMYK by Pillow's plain formula; turned as EXIF says, a broken EXIF counting as none. Of
    a JPEG above DRAFT_PIXELS a half, quarter or eighth of the resolution is decoded. Raises an OSError,
    ValueError or whatever else the decoder raises when the file is damaged, has a mode without a conversion,
    more than MAX_PIXELS or a shape that `check_shape` refuses, and for what is no file: pipes, devices.
    """
    if isinstance(source, Path):
        with _regular(source) as file:
            return read_image(file)
    with _open(source) as image:
        check_shape(image.size)
        if image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_PIXELS:
            image.draft("RGB", (DRAFT_SIDE, DRAFT_SIDE))
        image.load()
        turn = TURNS.get(
            _orientation(image)
        )  # after load(): a PNG's EXIF may follow the pixels, a TIFF turns itself
        rgb = _to_rgb(image)
    rgb = rgb.transpose(turn) if turn is not None else rgb
    rgb.info = {}  # a stale EXIF entry would have a later step turn the picture again
    return rgb


def check_shape(size: tuple[int, int]) -> None:
    """ValueError for a picture of more than MAX_PIXELS, or more than THINNEST times as long as wide: one of
    4,000 x 1 pixels would be 896,000 x 224 before it is cropped.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(size) > THINNEST * min(size):
        raise ValueError(f"{width} x {height} pixels, more than {THINNEST} times as long as wide; crop it")


def _walk(folder: Path, parts: tuple[str, ...], above: frozenset) -> list[tuple[str, ...]]:
    """The images below `folder` as tuples of names; `above` holds the folders on the way here."""
    try:
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in above:
            return []
        with os.scandir(folder) as listed:
            entries = list(listed)
    except OSError:
        return [parts] if parts else []  # a folder that cannot be read: it will be reported
    above, found = above | {(place.st_dev, place.st_ino)}, []
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if _is_folder(entry):
            found += _walk(Path(entry.path), (*parts, entry.name), above)
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            found.append((*parts, entry.name))
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _regular(path: Path) -> BinaryIO:
    """The file opened to be read; ValueError for what is none, of which some would never end, and for one of
    more than MAX_BYTES.
    """
    # a pipe that nobody writes to would otherwise wait at once
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"not a file but {NO_FILES.get(stat.S_IFMT(found.st_mode), 'something else')}")
        if found.st_size > MAX_BYTES:
            raise ValueError(f"{found.st_size:,} bytes, more than {MAX_BYTES:,}")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def _open(source: BinaryIO) -> Image.Image:
    """Image.open without the formats that start other programs (a ".jpg" may be PostScript), and with
    MAX_PIXELS where Pillow's own limit is lower.

    That limit is the whole process's, and read whenever any thread opens or crops: it is raised once, and
    never taken away for a moment.
    """
    with _OPENING:  # at the first picture
        if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < MAX_PIXELS:
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a sentence of ours follows
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]
    try:
        return Image.open(source, formats=known)
    except Image.DecompressionBombError:  # above twice the limit, and Pillow tells no size
        check_shape(_told_size(source, known))
        raise


def _told_size(source: BinaryIO, known: list[str]) -> tuple[int, int]:
    """Width and height as the head of a file tells them."""
    for name in known:
        source.seek(0)
        try:
            return Image.OPEN[name][0](source, "").size
        except Exception:  # another kind of file
            continue
    return (1, 1)


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
        raise ValueError(
            f"grey values from {low} to {high}; readable are 0 to 65535, and floats 0 to 1 or 0 to 255"
        )
    return np.floor(values.astype(np.float64) * (255 / top) + 0.5).astype(np.uint8)


FRESH_SECONDS = 2.0  # a file changed this recently may change again within its clock tick: not remembered
COMMIT_EVERY = 256  # files; an interrupted check goes on from there


def examine(
    paths: Sequence[Path], progress: Progress | None = None, threads: int | None = None
) -> list[tuple[str, str | None]]:
    """(sha256 of the content, what is wrong with it or None) of each file; every file is decoded once to find
    out.

    Both are remembered under `cache_dir()/probe`: the hash by path, size and times of the file, the defect by
    the hash, so that a folder is read once and a moved or copied one is not decoded again. The memory only
    saves time: a damaged one is started afresh, and one that cannot be written is read and not added to. A
    file that cannot be opened has the hash "".
    """
    try:
        with closing(_memory()) as memory:
            return _examine(memory, paths, progress, threads)
    except (sqlite3.OperationalError, OSError) as error:  # locked or not writable: not a reason to delete it
        if "locked" in str(error):
            raise
        with closing(_copy_of_memory()) as memory:
            return _examine(memory, paths, progress, threads)
    except sqlite3.DatabaseError:
        _memory_file().unlink()
        with closing(_memory()) as memory:
            return _examine(memory, paths, progress, threads)


def _examine(
    memory: sqlite3.Connection, paths: Sequence[Path], progress: Progress | None, threads: int | None
) -> list[tuple[str, str | None]]:
    reader = f"{READER} {CHECK} Pillow {PIL.__version__}"
    defects = dict(memory.execute("SELECT sha, defect FROM contents WHERE reader = ?", (reader,)))
    found = [_recall(memory, path, defects) for path in paths]
    new = [i for i, known in enumerate(found) if known is None]
    if not new:
        return found
    pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
    try:
        results = pool.map(lambda i: _look(paths[i], defects), new)
        results = results if progress is None else progress(results, len(new), "checking images")
        for done, (i, (sha, defect, stamp)) in enumerate(zip(new, results), 1):
            found[i] = sha, defect
            if sha:
                memory.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (sha, reader, defect))
            if stamp:
                key = os.fsencode(paths[i])
                memory.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (key, stamp, sha))
            if done % COMMIT_EVERY == 0:
                memory.commit()
    finally:
        memory.commit()
        pool.shutdown(wait=True, cancel_futures=True)
    return found


def _recall(
    memory: sqlite3.Connection, path: Path, defects: dict[str, str | None]
) -> tuple[str, str | None] | None:
    key = os.fsencode(path), _stamp(path)
    row = memory.execute("SELECT sha FROM files WHERE path = ? AND stamp = ?", key).fetchone()
    return (row[0], defects[row[0]]) if row and row[0] in defects else None


def _look(path: Path, defects: dict[str, str | None]) -> tuple[str, str | None, str]:
    """(sha256, defect, stamp to remember it by or "") of one file."""
    stamp = _stamp(path)
    try:
        with _regular(path) as file:
            data = file.read(MAX_BYTES + 1)
            times = os.fstat(file.fileno())
    except OSError as error:
        return "", f"cannot be opened: {error.strerror}", ""
    except ValueError as error:
        return "", str(error), ""
    fresh = time.time() - max(times.st_mtime, times.st_ctime) < FRESH_SECONDS
    sha = hashlib.sha256(data).hexdigest()
    defect = defects[sha] if sha in defects else _defect(data)
    return sha, defect, "" if fresh or stamp != _stamp(path) else stamp


def _defect(data: bytes) -> str | None:
    if not data:
        return "empty file"
    try:
        read_image(io.BytesIO(data))
    except MemoryError:  # says something about this machine, not about the file
        raise
    except UnidentifiedImageError:
        return "not an image of a kind that Pillow reads"
    except (
        Exception
    ) as error:  # decoders raise all kinds of errors on damaged files; each is a defect to report
        return (
            re.sub(r"<[^<>]* at 0x\w+>", "the file", str(error)).strip().split("\n")[0]
            or type(error).__name__
        )
    return None


def _stamp(path: Path) -> str:
    """What changes when a file changes; "" when there is none. The second time catches edits that restore the
    first.
    """
    try:
        times = os.stat(path)
    except OSError:
        return ""
    return f"{times.st_size} {times.st_mtime_ns} {times.st_ctime_ns}"


def _memory_file() -> Path:
    return cache_dir() / "probe" / "files-1.sqlite"


def _memory() -> sqlite3.Connection:
    _memory_file().parent.mkdir(parents=True, exist_ok=True)
    return _with_tables(sqlite3.connect(_memory_file(), timeout=60))


def _copy_of_memory() -> sqlite3.Connection:
    """What is remembered, in memory: for a cache that can be read and not written, or not even read."""
    copy = sqlite3.connect(":memory:")
    try:
        with closing(sqlite3.connect(f"{_memory_file().as_uri()}?mode=ro&immutable=1", uri=True)) as kept:
            kept.backup(copy)
    except sqlite3.Error:
        copy.close()
        copy = sqlite3.connect(":memory:")
    return _with_tables(copy)


def _with_tables(memory: sqlite3.Connection) -> sqlite3.Connection:
    try:
        memory.execute("CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, sha TEXT)")
        memory.execute(
            "CREATE TABLE IF NOT EXISTS contents "
            "(sha TEXT, reader TEXT, defect TEXT, PRIMARY KEY (sha, reader))"
        )
    except sqlite3.Error:
        memory.close()
        raise
    return memory
