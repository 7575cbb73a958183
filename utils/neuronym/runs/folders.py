"""Where things are: the repository's folders, the paths that parameters mean, the device they name.

ROOT, PACKAGE                                      the repository, and the package in it
data_dir, cache_dir, results_dir, notebooks_dir    folders; NEURONYM_DATA, _CACHE, _RESULTS, _NOTEBOOKS
                                                   override
notebook_path                                      the file of a notebook
from_root, folder_or_id                            a path as parameters mean it
shown                                              a path as it is printed
make_folder, other_clone                           a run's folder; whether a folder is of another copy of all
                                                   this
check_transcript                                   whether a file of answers can be written
chosen_device                                      the device meant by auto, cpu, cuda, ...
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from neuronym.common.checks import unknown

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = Path(__file__).resolve().parents[1]


def data_dir() -> Path:
    """Folder of committed data and downloads."""
    return _folder("NEURONYM_DATA", ROOT / "data")


def cache_dir() -> Path:
    """Folder of computed arrays."""
    return _folder("NEURONYM_CACHE", ROOT / "data" / "cache")


def results_dir() -> Path:
    """Folder of runs."""
    return _folder("NEURONYM_RESULTS", ROOT / "results")


def notebooks_dir() -> Path:
    """Folder of notebooks."""
    return _folder("NEURONYM_NOTEBOOKS", ROOT / "notebooks")


def notebook_path(notebook: str) -> Path:
    """File of a notebook; KeyError with the nearest names when there is none."""
    names = sorted(p.stem for p in notebooks_dir().glob("*.ipynb"))
    if notebook not in names:
        raise unknown("notebook", notebook, names)
    return notebooks_dir() / f"{notebook}.ipynb"


def from_root(path: str | Path) -> Path:
    """A path as parameters mean it: absolute, or from the repository's root, wherever the kernel runs."""
    return ROOT / os.path.expanduser(path)  # a user that is not known stays as written


def folder_or_id(source: str) -> str:
    """The path of a folder, from the repository's root; what is no folder is an id of Hugging Face."""
    return str(from_root(source)) if source.startswith("~") or from_root(source).is_dir() else source


def make_folder(folder: Path) -> Path:
    """Make a folder among the results; PermissionError says in one sentence that it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise PermissionError(
            f"results must be writable, {folder} is not ({error.strerror}); set NEURONYM_RESULTS to a "
            "folder of your own"
        ) from None
    return folder


def other_clone(folder: Path) -> Path | None:
    """The root of the copy of this repository that `folder` lies in, where its code is not what runs here."""
    for place in (folder, *folder.parents):
        if (place / "utils" / "neuronym" / "runs" / "run.py").is_file():
            return None if place.resolve() == ROOT else place
    return None


def shown(path: Path) -> str:
    """A path as printed: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _folder(variable: str, default: Path) -> Path:
    return from_root(os.environ.get(variable) or default).resolve()


def chosen_device(name: str) -> torch.device:
    """The device of that name, auto for cuda where there is one, else cpu; ValueError when it cannot be used
    here. Apple's mps has no float64, which statistics need; in scripts `measure` takes it for passes.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "mps":
        raise ValueError(
            f"statistics need float64, which device '{name}' does not have; take cpu, or in a script "
            "measure(..., device='mps'), whose results are on the CPU"
        )
    if name.partition(":")[0] not in ("cpu", "cuda") or name.startswith("cpu:"):
        raise ValueError(f"device is auto, cpu, cuda or cuda:N, got '{name}'")
    try:
        return torch.empty(0, device=name).device  # also tells whether the device is really there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device '{name}' cannot be used here ({reason}); try auto or cpu") from None


def check_transcript(path: Path, replay: bool = False) -> None:
    """ValueError, FileNotFoundError or PermissionError, in one sentence, for a transcript that is no file,
    that cannot be written, or that a replay needs and is not there.
    """
    if path.is_dir():
        raise ValueError(
            f"a transcript is a file, {path} is a folder; name a file in it, as {path}/answers.jsonl"
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"a transcript is a regular file, {path} is none; name another")
    if replay:
        if not path.exists():
            raise FileNotFoundError(
                f"a replay needs the answers of a run, and there is no {path}; name its file"
            )
        return
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"a transcript stands in a folder that is there, {folder} is not; make it or name another"
        )
    if not os.access(path if path.exists() else folder, os.W_OK) or not os.access(folder, os.W_OK):
        raise PermissionError(
            f"answers are kept as they come, and {path} cannot be written; name a transcript elsewhere, or "
            "replay it"
        )
