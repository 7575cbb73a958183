"""Values that no type tells: what a number, a list or a path of a parameter must be, by the parameter's name.

check_values   ValueError or FileNotFoundError for the first that is not
RANGES         numbers between limits
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from neuronym.common.checks import read_prices
from neuronym.runs.folders import from_root

LARGEST_SEED = 2**32 - 1  # what every generator of random numbers takes
LARGEST = 2**63 - 1
RANGES: dict[str, tuple[float, float, str]] = {  # least, most, what it is
    "seed": (0, LARGEST_SEED, "a seed"),
    "good": (0, 1, "a share"),
    "noise": (0, 1, "a share of full scale"),
    "rate": (0.001, 1000, "a factor"),
    "jitter": (0, 1, "a share of the side"),
    "smallest": (0.05, 4, "a share of the side"),
    "largest": (0.05, 4, "a share of the side"),
    "rotate": (0, 180, "degrees"),
    "most_cost": (0, math.inf, "a number of dollars"),
}


def check_values(params: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError, in one sentence with the way out, for the first value that
    cannot be meant; all without importing or loading anything.
    """
    for name, value in params.items():
        if type(value) is int and abs(value) > LARGEST and name not in RANGES:
            raise ValueError(f"parameter '{name}' must have at most 18 digits, got {value}")
        if name in RANGES and isinstance(value, (int, float)):
            least, most, what = RANGES[name]
            if not least <= value <= most:
                upto = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
                raise ValueError(f"parameter '{name}' must be {what} {upto}, got {value}")
    level = params.get("level")
    if isinstance(level, float) and not 0 < level < 1:
        raise ValueError(f"parameter 'level' must be a share above 0 and below 1, such as 0.05, got {level}")
    if params.get("smallest", 0) > params.get("largest", math.inf):
        raise ValueError(
            f"views show from smallest to largest, got smallest={params['smallest']} and "
            f"largest={params['largest']}; exchange them"
        )
    for name, check in WRITTEN.items():
        if isinstance(params.get(name), str):
            check(name, params[name])
    if params.get("most_cost") and params.get("prices") == "":
        raise ValueError(
            f"most_cost needs prices, got {params['most_cost']} without; set prices to those of a million "
            "tokens read and written, such as 2.5,10, or bound the calls by budget"
        )


def _prices(name: str, text: str) -> None:
    if text:
        read_prices(text)


def _sizes(name: str, text: str) -> None:
    wrong = [part for part in text.split(",") if part.strip() and not re.fullmatch(r"\s*0*[1-9]\d*\s*", part)]
    if wrong:
        raise ValueError(
            f"parameter '{name}' must be numbers of images from 1, separated by commas, got '{wrong[0]}' in "
            f"'{text}'"
        )


def _numbers(name: str, text: str) -> None:
    """Numbers between commas: shares between 0 and 1, or any that are finite."""
    parts = [part.strip() for part in text.split(",")]
    shares = name == "shares"
    for part in parts:
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or shares and not 0 < value < 1:
            what = "shares above 0 and below 1" if shares else "finite numbers"
            raise ValueError(f"parameter '{name}' must be {what}, separated by commas, got '{part}'")


def _labels_file(name: str, text: str) -> None:
    if text and not from_root(text).exists():
        raise FileNotFoundError(f"no labels at {from_root(text)}; name a run's folder or a labels table")


def _layer_numbers(name: str, text: str) -> None:
    """Layers of a text of numbers, which may be empty; others are named, and their networks tell."""
    parts = [part.strip() for part in text.split(",")]
    if text.strip() not in ("all", "") and not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"parameter '{name}' must be numbers of layers counted from 0, separated by commas, got '{text}'"
        )


def _templates(name: str, text: str) -> None:
    """Every template has {} once."""
    several = name == "templates"
    for part in text.split(",") if several else [text]:
        if part.count("{}") != 1 and not (several and part == ""):
            raise ValueError(
                f"a template holds {{}} once, where the concept goes, got '{part}' for '{name}'; write "
                "a photo of a {}"
            )


def _units(name: str, text: str) -> None:
    """label: has a word; the rest needs the layers' sizes."""
    if re.search(r"label:\s*(;|$)", text):
        raise ValueError(f"label: needs a word, as in label:dog, got '{text}'")


def _directions(name: str, text: str) -> None:
    path = from_root(text) if text else None
    if path and (not path.is_file() or path.suffix not in (".npy", ".safetensors", ".csv")):
        raise FileNotFoundError(
            f"no file of directions at {path}; '{name}' takes a .npy, .safetensors or .csv file of vectors"
        )


def _prompts(name: str, text: str) -> None:
    if text.startswith("file:"):
        path = from_root(text.removeprefix("file:"))
        if not path.is_file():
            raise FileNotFoundError(f"no file of prompts at {path}; 'file:<path>' has one template a line")
    elif not text.strip():
        raise ValueError("parameter 'prompts' must have a template, got ''; write a photo of a {}")
    else:
        for part in filter(None, map(str.strip, text.split("|"))):
            _templates(name, part)


WRITTEN: dict[str, Callable[[str, str], None]] = {
    "prices": _prices,
    "sizes": _sizes,
    "strengths": _numbers,
    "shares": _numbers,
    "names_from": _labels_file,
    "readout_layers": _layer_numbers,
    "template": _templates,
    "templates": _templates,
    "units": _units,
    "prompts": _prompts,
    "directions": _directions,
}
