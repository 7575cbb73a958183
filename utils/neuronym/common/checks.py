"""Inputs refused in one sentence (the rule, the value received, the way out), and packages that may be
absent.

UnknownName         a KeyError that prints as a sentence
unknown             the error for a name that is not known, with the nearest ones
check_number        a finite number within limits
check_positive_int  a whole number from 1
check_ranked        images that rank_reorder takes
read_prices         "2.5,10" -> dollars of a million tokens read and written
missing             the error for weights that are not there
import_extra        an optional package
openai_package      openai-clip, without its warning
openai_networks     its networks alone, which load sooner
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from types import ModuleType

RANKED = 40  # images: of fewer the top 5 %, which rank_reorder orders, are not two


class UnknownName(KeyError):
    """A KeyError whose message prints as a sentence instead of a quoted repr."""

    def __str__(self) -> str:
        return str(self.args[0])


def unknown(what: str, name: str, known: Iterable[str], shown: int = 12) -> UnknownName:
    """Build the error for a name that is not known: what was asked, the nearest names, and those that
    exist.
    """
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    listed = ", ".join(known[:shown]) + (f", ... ({len(known)} in all)" if len(known) > shown else "")
    return UnknownName(
        f"no {what} '{name}'" + (f"; nearest: {', '.join(near)}" if near else "") + f"; known: {listed}"
    )


def check_number(name: str, value: float, low: float | None = None, high: float | None = None) -> None:
    """ValueError unless the value is a finite number within the limits."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not real or (low is not None and value < low) or (high is not None and value > high):
        limits = (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
        raise ValueError(f"{name} must be a finite number{limits}, got {value!r}")


def check_positive_int(name: str, value: int, most: int | None = None, of: str = "") -> None:
    """ValueError unless the value is a whole number from 1, and no more than there are `of`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{name} {value} exceeds {of}; pass {name}<={most}")


def check_ranked(similarity: str, N: int, of: str = "images to name from") -> None:
    """ValueError where the similarity function is rank_reorder and has fewer than RANKED images."""
    if similarity == "rank_reorder" and N < RANKED:
        raise ValueError(
            f"rank_reorder orders the top 5 % of the images, which takes {RANKED}, got {N} {of}; probe with "
            "more images, or set similarity=soft_wpmi"
        )


def missing(what: str, source: str, place: str, variable: str) -> FileNotFoundError:
    """The error for weights that are not there: what, where from, where to, which environment variable."""
    return FileNotFoundError(f"{what} not found; download {source} to {place}, or set {variable}")


def import_extra(package: str, requirement: str, name: str) -> ModuleType:
    """Import an optional package; ModuleNotFoundError says which name wanted it and how to get it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"'{name}' needs the optional package {requirement}; pip install {requirement}", name=package
        ) from error


def openai_package() -> ModuleType:
    """openai-clip, whose import of pkg_resources warns, or fails where setuptools no longer has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        try:
            import clip.clip
        except ModuleNotFoundError as error:
            if error.name != "pkg_resources":
                raise
            raise ModuleNotFoundError(
                "openai-clip imports pkg_resources, which this setuptools lacks; "
                "pip install 'setuptools>=75,<82'"
            ) from error
    clip.model = sys.modules["clip.model"]  # where openai_networks was first, the package does not set it
    return clip


def openai_networks() -> ModuleType:
    """openai-clip's module of networks without the package around it, which imports torchvision for two
    seconds.
    """
    if "clip.model" not in sys.modules:
        package = importlib.util.find_spec("clip")
        if package is None or not package.submodule_search_locations:
            raise ModuleNotFoundError("openai-clip is not installed; pip install openai-clip", name="clip")
        file = Path(package.submodule_search_locations[0]) / "model.py"
        spec = importlib.util.spec_from_file_location("clip.model", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["clip.model"] = module
    return sys.modules["clip.model"]


def read_prices(prices: str | Sequence[float]) -> tuple[float, float]:
    """Dollars of a million tokens of prompt and of answer, from two numbers or "2.5,10"."""
    try:
        found = tuple(float(one) for one in (prices.split(",") if isinstance(prices, str) else prices))
    except (ValueError, TypeError):
        found = ()
    if len(found) != 2 or not all(0 <= price < float("inf") for price in found):
        raise ValueError(
            f"prices are two numbers, of a million tokens of prompt and of answer, got {prices}; write "
            "2.5,10 or (2.5, 10)"
        )
    return found
