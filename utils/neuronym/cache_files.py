"""The files of a cache entry, read with distrust: what is torn counts as missing."""
from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np

from neuronym.cache_keys import canonical


def read_meta(folder: Path) -> dict | None:
    """meta.json of an entry; None when it is missing, unreadable or lacks a field."""
    meta = read_json(folder / "meta.json")
    return meta if isinstance(meta, dict) and {"spec", "file", "bytes", "sha256", "info"} <= meta.keys() else None


def whole(folder: Path, meta: dict | None) -> bool:
    """Whether the entry's file has the size that was published, and, for an array, its shape and dtype."""
    if meta is None:
        return False
    file = folder / meta["file"]
    if not file.is_file() or file.stat().st_size != meta["bytes"]:
        return False
    return file.suffix != ".npy" or npy_fits(file, tuple(meta["shape"]), np.dtype(meta["dtype"]))


def usable(folder: Path, spec: dict) -> bool:
    """Whether the folder is a whole entry of this spec; ValueError when it is an entry of another."""
    meta = read_meta(folder)
    if not whole(folder, meta):
        return False
    if canonical(meta["spec"]) != canonical(spec):
        raise ValueError(f"cache entry {folder.name} of kind '{folder.parent.name}' was made from another spec; "
                         f"remove {folder}")
    return True


def npy_fits(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether a .npy file holds rows of this shape and dtype, and is as long as that takes."""
    try:
        data = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    long = data.offset + data.nbytes == file.stat().st_size if isinstance(data, np.memmap) else False
    return long and data.shape == shape and data.dtype == dtype and data.flags.c_contiguous


def empty_npy(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A file of the right header and size, zeros so far."""
    with open(file, "wb") as f:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(f, header)
        f.truncate(f.tell() + math.prod(shape) * dtype.itemsize)


def sha256(file: Path) -> str:
    """Checksum of a file's content."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(file: Path) -> dict | None:
    """Content of a JSON file; None when it is missing or torn."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(file: Path, value: dict) -> None:
    """Replace a JSON file in one step."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(temporary, file)
