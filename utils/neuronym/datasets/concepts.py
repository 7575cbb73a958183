"""The concept set S and its text embeddings.

load_concepts   concept set by name: one of CONCEPTS, as a list of strings
CONCEPTS        first word of a name -> function of the rest
concept_kinds   concept -> kind ("colour", "object"), for the sets that tell it
embed_concepts  T [M, d], cached
zero_shot_head  T [M, d] averaged over prompt templates
plain_name      a name of Broden's without its suffix
clean           one concept as it stands in the lists
"""
from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuronym import cache
from neuronym.common.errors import unknown
from neuronym.datasets.english import english_words
from neuronym.runs.runs import data_dir, ROOT

SCHEMA = 1  # raised whenever the same texts would be embedded differently
CAPTION_SEED, CAPTIONS = 8_000_000_000, 2_000  # of no scene that is drawn
UNIT = 1e-3  # how far from 1 the length of an embedding may be


def load_concepts(name: str) -> list[str]:
    """Concepts of the set `name`: "microworld", "english:20000", "imagenet", "broden", "places365", "file:words.txt".

    "microworld:atoms" are its 52 single words, "microworld:captions" 2,000 sentences about scenes.

    Every list is cleaned the same way: white space collapsed, blank lines left out, of equal lines the first kept;
    upper and lower case stay apart (ImageNet has a cardigan and a Cardigan). A relative path starts at the repository
    root. Unknown names raise a KeyError, missing lists a FileNotFoundError that says where to get them, files that are
    not UTF-8 text a ValueError that names the line.
    """
    kind, _, rest = name.strip().partition(":")
    if kind not in CONCEPTS:
        raise unknown("concept set", kind, CONCEPTS)
    if rest and kind not in ("microworld", "english", "file"):
        raise ValueError(f"{kind} takes nothing after it, got '{name}'")
    concepts = list(dict.fromkeys(filter(None, map(clean, CONCEPTS[kind](rest.strip())))))
    if not concepts:
        raise ValueError(f"concept set '{name}' is empty")
    return concepts


def concept_kinds(name: str) -> dict[str, str]:
    """Kind of every concept of the set `name` that tells it, else {}: the microworld's kinds of words, the category of
    Broden's label.csv, what stands behind a tab in a line of a file."""
    kind, _, rest = name.strip().partition(":")
    if kind == "microworld":
        from neuronym.microworld.microworld import CATEGORY
        return CATEGORY
    if kind == "file":
        lines = [line.split("\t") for line in read_lines(_listed(rest.strip()))]
        return {clean(line[0]): clean(line[1]) for line in reversed(lines) if len(line) > 1}  # of equal ones the first
    broden = _home("NEURONYM_BRODEN", "broden") / "label.csv"
    if kind == "broden" and broden.is_file():
        return {clean(plain_name(row["name"])): row["category"].partition("(")[0] for row in _rows(broden)}
    return {}


def embed_concepts(clip, concepts: Sequence[str], template: str = "{}", batch_size: int = 256,
                   device: str | torch.device | None = None) -> Tensor:
    """Text embeddings of the concepts inside `template` ("a photo of a {}") -> T [M, d], unit rows, float32.

    Cached by the text tower's weights, the concepts in order and the template; batch size and device do not matter.
    """
    concepts = list(concepts)
    if not concepts:
        raise ValueError("embed_concepts needs at least one concept")
    if template.count("{}") != 1:
        raise ValueError(f"a template contains {{}} once, got '{template}'")
    spec = {"schema": SCHEMA, "text": clip.text_key, "template": template, "dtype": "float32",
            "concepts": hashlib.sha256(json.dumps(concepts).encode()).hexdigest()}

    def make() -> np.ndarray:
        texts = [template.replace("{}", concept) for concept in concepts]
        with torch.inference_mode():
            parts = [clip.encode_text(texts[i:i + batch_size]) for i in range(0, len(texts), batch_size)]
        T = torch.cat(parts).float().cpu()
        _check(T, texts, clip)
        return T.numpy()

    info = {"clip": clip.name, "concepts": len(concepts), "first": concepts[:3]}
    T = torch.from_numpy(np.array(cache.array("text_embeddings", spec, make, info)))  # a copy: entries are read-only
    return T if device is None else T.to(device)


def zero_shot_head(clip, names: Sequence[str], templates: Sequence[str], batch_size: int = 256,
                   device: str | torch.device | None = None) -> Tensor:
    """Mean over the templates of each name's embedding, scaled to length 1 -> T [M, d] (Radford et al. 2021, 3.1.4)."""
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates:
        raise ValueError("zero_shot_head needs at least one template, such as 'a photo of a {}'")
    T = sum(embed_concepts(clip, names, template, batch_size, device) for template in templates)
    return torch.nn.functional.normalize(T, dim=1)


def _microworld(rest: str) -> list[str]:
    from neuronym.microworld.microworld import CLASSES, CONCEPTS, caption, scene
    sets = {"": CONCEPTS, "atoms": CLASSES, "captions": (caption(scene(CAPTION_SEED + i), i % 5)
                                                         for i in range(CAPTIONS))}
    if rest not in sets:
        raise unknown("microworld concept set", rest, ["atoms", "captions"])
    return list(sets[rest])


def _english(rest: str) -> list[str]:
    if not (rest.isascii() and rest.isdigit() and int(rest) > 0):
        raise ValueError(f"english:<n> takes a number of words, as in 'english:20000', got 'english:{rest}'")
    return english_words(int(rest))[0]


def _imagenet(rest: str) -> list[str]:
    from torchvision.models import ResNet50_Weights
    return list(ResNet50_Weights.DEFAULT.meta["categories"])


def _broden(rest: str) -> list[str]:
    """CLIP-Dissect's clean list when it is there, otherwise the labels of a downloaded Broden, cleaned alike."""
    broden = _home("NEURONYM_BRODEN", "broden") / "label.csv"
    listed = _home("NEURONYM_CONCEPTS", "concepts") / "broden_labels_clean.txt"
    if listed.is_file():
        return read_lines(listed)
    if broden.is_file():
        return [plain_name(row["name"]) for row in _rows(broden)]
    raise FileNotFoundError(f"Broden's labels not found at {broden} or {listed}; run ./dlbroden.sh, or get "
                            "broden_labels_clean.txt from github.com/Trustworthy-ML-Lab/CLIP-dissect (data/) and set "
                            "NEURONYM_CONCEPTS to its folder")


def _places365(rest: str) -> list[str]:
    """Lines such as "/a/apartment_building/outdoor 8" -> "apartment building, outdoor", in the order of the classes."""
    path = _home("NEURONYM_CONCEPTS", "concepts") / "categories_places365.txt"
    if not path.is_file():
        raise FileNotFoundError(f"the Places365 categories are not at {path}; get categories_places365.txt from "
                                "github.com/CSAILVision/places365 and put it there, or set NEURONYM_CONCEPTS to its "
                                "folder")
    names = [re.sub(r"\s+\d+$", "", line.strip()) for line in read_lines(path)]
    return [re.sub("^/[a-z]/", "", name).replace("_", " ").replace("/", ", ") for name in names]


def _file(rest: str) -> list[str]:
    return [line.partition("\t")[0] for line in read_lines(_listed(rest))]


def _listed(rest: str) -> Path:
    path = ROOT / Path(rest).expanduser()
    if not rest or not path.is_file():
        raise FileNotFoundError(f"no file at {path}; 'file:<path>' is absolute or starts at {ROOT}, one concept a line")
    return path


def _rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain_name(name: str) -> str:
    """A name of Broden's without its suffix for scenes and colours."""
    return re.sub("-[sc]$", "", name).replace("_", " ")


CONCEPTS: dict[str, Callable[[str], list[str]]] = {
    "microworld": _microworld,
    "english": _english,
    "imagenet": _imagenet,
    "broden": _broden,
    "places365": _places365,
    "file": _file,
}


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file with any line ends and with or without a byte-order mark."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text, wrong = data[:error.start].decode("utf-8"), f"byte 0x{data[error.start]:02x}"
    else:
        wrong = "a null character" if "\0" in text else ""
        text = text.partition("\0")[0] if wrong else text
    lines = re.split(r"\r\n|\r|\n", text)  # not splitlines(), which also cuts at rare characters inside a line
    if wrong:
        raise ValueError(f"{path} is not UTF-8 text: {wrong} in line {len(lines)}; save it as UTF-8")
    return lines


def clean(text: str) -> str:
    """One concept without byte-order marks, zero-width characters and superfluous white space."""
    return " ".join(re.sub("[\ufeff\u200b]", "", unicodedata.normalize("NFC", text)).split())


def _home(variable: str, folder: str) -> Path:
    return ROOT / Path(os.environ[variable]).expanduser() if os.environ.get(variable) else data_dir() / folder


def _check(T: Tensor, texts: list[str], clip) -> None:
    """Refuse embeddings that are not [M, d], not finite or not of length 1."""
    if T.ndim != 2 or len(T) != len(texts):
        raise ValueError(f"{clip.name} has to give one row per text, [{len(texts)}, d], got {list(T.shape)}")
    wrong = ~((T.norm(dim=1) - 1).abs() <= UNIT)  # also where there are NaNs
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(f"{clip.name} gives {int(wrong.sum())} text embeddings that are not of length 1, the first "
                         f"for '{texts[first]}': {T[first].norm():.4g}")
