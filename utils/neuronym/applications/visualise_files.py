"""Synthesised pictures in a run's folder, for figures, pages and whoever reads them.

write_pictures   visualised.csv and the folder visualised/
clear_pictures   neither of them any more
with_alpha       a picture with transparency
read_pictures    the table, with the folder's files checked
picture_file     where the picture of a direction of a layer lies
read_directions  vectors in a layer's space, from a file

`visualised.csv` has a row for each picture: layer, unit (empty for a vector), direction (the unit's number,
or the vector's name), file (PNG of the network's input size, relative to the run's folder), alpha (the same
as RGBA, opaque where the gradient worked), image (the parametrisation, or accentuated), photo (the image that
was accentuated, empty for a picture from noise), then the columns of `visualise_columns.picture_columns`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from neuronym.common.tables import read_table, TEXT, write_table

TABLE, FOLDER = "visualised.csv", "visualised"
AS_TEXT = TEXT | {"direction", "file", "alpha", "image", "photo"}


def write_pictures(
    folder: Path,
    table: pd.DataFrame,
    pictures: Sequence[Image.Image],
    alpha: Tensor,
    image: str,
    photos: Sequence[str] = (),
) -> pd.DataFrame:
    """Write pictures with their columns into a run's folder, and return the rows with file names; `photos`
    are the ids of the images that were accentuated. Rows that the folder has of other layers, or of photos
    beside pictures from noise, stay.
    """
    table = table.copy()
    kind = "accentuated" if photos else image
    files = [picture_file(layer, name, kind) for layer, name in zip(table["layer"], table["direction"])]
    for file, picture, mask in zip(files, pictures, alpha, strict=True):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / file)
        with_alpha(picture, mask).save(folder / _alpha(file))
    units = [int(name) if name.isdecimal() else None for name in table["direction"]]
    table.insert(1, "unit", pd.array(units, dtype="Int64"))
    table.insert(3, "file", files)
    table.insert(4, "alpha", list(map(_alpha, files)))
    table.insert(5, "image", kind)
    table.insert(6, "photo", list(photos) or "")
    before = read_table(folder / TABLE, AS_TEXT) if (folder / TABLE).exists() else None
    whole = table
    if before is not None:
        whole = pd.concat([before[~before["file"].isin(files)], table], ignore_index=True)
    write_table(whole, folder / TABLE, float_format="%.6g")
    return table


def clear_pictures(folder: Path) -> None:
    """Remove what `write_pictures` wrote into a run's folder: the table, and the pictures that it lists."""
    table = folder / TABLE
    if table.exists():
        written = read_table(table, AS_TEXT).reindex(columns=["file", "alpha"])
        table.unlink()
        for file in written.stack():
            if (folder / file).resolve().is_relative_to((folder / FOLDER).resolve()):
                (folder / file).unlink(missing_ok=True)


def with_alpha(picture: Image.Image, alpha: Tensor) -> Image.Image:
    """A picture with transparency [H, W] from 0 to 1, in RGBA."""
    mask = (alpha.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Image.fromarray(np.dstack([np.asarray(picture.convert("RGB")), mask]), "RGBA")


def read_pictures(folder: Path) -> pd.DataFrame:
    """The table of a run's synthesised pictures.

    Errors: FileNotFoundError where the run has none, or a picture is gone.
    """
    if not (folder / TABLE).exists():
        raise FileNotFoundError(f"{folder} has no {TABLE}; run the notebook visualisation, and name its run")
    table = read_table(folder / TABLE, AS_TEXT)
    gone = [file for file in table["file"] if not (folder / file).is_file()]
    if gone:
        raise FileNotFoundError(f"{folder / gone[0]} is in {TABLE} and not there; run visualisation again")
    return table


def picture_file(layer: str, direction: str, kind: str = "fourier") -> str:
    """visualised/LAYER/fourier_0017.png of layer LAYER, unit 17."""
    name = f"{int(direction):04d}" if direction.isdecimal() else direction
    place, name = (re.sub(r"[^\w.-]+", "_", text) for text in (layer, name))
    return f"{FOLDER}/{place}/{kind}_{name}.png"


def read_directions(file: Path, units: int, layer: str) -> Tensor:
    """Vectors [n, units] of a layer: the array of a .npy file, the first tensor of .safetensors, the rows of
    a .csv without a head.

    Errors: FileNotFoundError; ValueError for another kind of file, and for another number of units.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of directions at {file}; give a .npy, .safetensors or .csv file")
    try:
        if file.suffix == ".npy":
            found = torch.from_numpy(np.load(file, allow_pickle=False))
        elif file.suffix == ".safetensors":
            found = next(iter(load_file(file).values()))
        elif file.suffix == ".csv":
            found = torch.from_numpy(np.loadtxt(file, delimiter=",", ndmin=2))
        else:
            raise ValueError("its name ends in none of .npy, .safetensors, .csv")
    except (ValueError, OSError, SafetensorError, StopIteration) as error:
        why = str(error).splitlines()[0] if str(error) else "it is empty"
        raise ValueError(f"directions are a .npy, .safetensors or .csv file, {file} is none: {why}") from None
    found = found.float()[None] if found.ndim == 1 else found.float()
    if found.ndim != 2 or found.shape[1] != units:
        raise ValueError(
            f"directions in '{layer}' have {units} values each, {file} holds {list(found.shape)}; name the "
            "layer that they are of"
        )
    return found


def _alpha(file: str) -> str:
    return file.removesuffix(".png") + "_alpha.png"
