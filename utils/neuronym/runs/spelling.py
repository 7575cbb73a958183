"""Names without their kind: how what was meant is written, found without importing any of it.

spelled       "resnet18" -> "torchvision:resnet18 or timm:resnet18", "/photos" -> "folder:/photos"
names_in      the networks that an installed package knows, read from its files
from_command  a path as it is meant in the folder of the command
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

SOURCES = {  # package: files that name its networks, and how a name stands in them
    "torchvision": ("models/*.py", r"^def ([a-z]\w+)\(\s*\*, weights"),
    "timm": ("models/*.py", r"^def ([a-z]\w+)\(pretrained"),
    "clip": ("clip.py", r'^    "(.+?)": "https:'),
    "open_clip": ("model_configs/*.json", ""),
}
FOLDERS = {"probe": "folder", "task": "folder", "concepts": "file", "pools": "file", "sentences": "st"}
MODEL = re.compile(r"[\w.-]+/[\w.-]+")  # as Hugging Face names one


def spelled(parameter: str, value: str, kinds: Iterable[str]) -> str:
    """How a value that lacks its kind is written, several joined by "or"; "" where nothing is known of it."""
    kinds, value = set(kinds), value.strip()
    path = from_command(value)
    found = []
    if parameter in FOLDERS and path.exists() and path.is_dir() != (FOLDERS[parameter] == "file"):
        found.append(f"{FOLDERS[parameter]}:{path}")
    elif parameter in ("probe", "task") and value.startswith(("/", "~", "./", "../")):
        found.append(f"folder:{value}")
    elif value.endswith(".gguf") and "gguf" in kinds:
        found.append(f"gguf:{path}")
    for kind, package in (("torchvision", "torchvision"), ("timm", "timm"), ("openai", "clip")):
        if (
            kind in kinds
            and parameter not in ("llm", "llms")
            and value.partition("@")[0] in names_in(package)
        ):
            found.append(f"{kind}:{value}")
    if "open_clip" in kinds and (arch := value.replace("/", "-")) in names_in("open_clip"):
        found.append(f"open_clip:{arch}:PRETRAINED")
    if not found and path.is_dir():
        found += [f"{kind}:{path}" for kind in ("hf", "blip", "diffusers") if kind in kinds]
    if not found and MODEL.fullmatch(value):
        found += [f"{kind}:{value}" for kind in ("hf", "blip", "blip2", "vlm", "diffusers") if kind in kinds]
    if not found and parameter in ("llm", "llms") and re.match(r"gpt-|o\d", value):
        found.append(f"openai:{value}")
    return " or ".join(found)


@cache
def names_in(package: str) -> frozenset[str]:
    """Names of the networks of an installed package, as its source defines them; empty when it is not
    installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    pattern, name = SOURCES[package]
    files = Path(spec.submodule_search_locations[0]).glob(pattern)
    if not name:
        return frozenset(file.stem for file in files)
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return frozenset(found for text in texts for found in re.findall(name, text, flags=re.MULTILINE))


def from_command(path: str) -> Path:
    """Where a path leads in the folder that the command was given in (the runner moves to the repository)."""
    return Path(os.environ.get("NEURONYM_FROM") or os.getcwd()) / os.path.expanduser(path)
