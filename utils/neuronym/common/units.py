"""Which units: one way to say it, wherever units are described or drawn.

    all                 | every unit of the layer
    N                   | so many, evenly spread over the layer; all where there are fewer | 12
    ids:LIST            | these units, counted from 0; ranges include their end | ids:3,17,40-49
    label:WORD          | those whose best label has the word, in upper or lower case, singular or plural |
                          label:dog
    trust:LOW-HIGH      | those of a labels table with a column trust that lies from LOW to HIGH; LOW alone
                          is at least so much | trust:0.8, trust:0-0.3
    LAYER=...;LAYER=... | layer by layer; a layer that is not named gives none | layer4=ids:1,2;fc=20

In scripts a number stands for a count, and a list of numbers for ids.

units_by_layer  units of several layers
choose_units    units of one layer
check_units     what can be wrong with such words, said before there are labels
layers_named    the layers that such words name
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING

from neuronym.common.checks import unknown
from neuronym.common.subsets import evenly_spaced
from neuronym.common.text import name_pattern

if TYPE_CHECKING:
    import pandas as pd

Units = str | int | Sequence[int]
UNSEEN = 2**20  # more units than a layer has, where its own number is not known yet
FORMS = "all, a count, ids:3,17,42, ids:0-9 or label:dog"


def units_by_layer(
    units: Units | Mapping[str, Units],
    sizes: Mapping[str, int],
    labels: pd.DataFrame | None = None,
    required: bool = True,
) -> dict[str, list[int]]:
    """Units of each layer, ascending: sizes {layer: K} -> {layer: units}, layers without any left out.

    `labels` is a labels table, which label:WORD reads. Errors: ValueError for a form that is none, for units
    outside their layer and, unless `required` is False, where no label has the word; KeyError for a layer
    that is not there; each says what may stand instead.

    >>> units_by_layer("layer4=ids:1-3;fc=2", {"conv1": 24, "layer4": 192, "fc": 52})
    {'layer4': [1, 2, 3], 'fc': [0, 26]}
    """
    wanted = _wanted(units, sizes)
    found = {layer: choose_units(form, sizes[layer], layer, labels) for layer, form in wanted.items()}
    found = {layer: some for layer, some in found.items() if some}
    if required and not found:
        raise ValueError(f"no unit is chosen by {units!r} among layers {', '.join(sizes)}; write {FORMS}")
    return found


def choose_units(units: Units, K: int, layer: str = "", labels: pd.DataFrame | None = None) -> list[int]:
    """Units of a layer of K, ascending and each once; see the module's text for what `units` may be.

    >>> choose_units("ids:7,0-2", 52)
    [0, 1, 2, 7]
    >>> choose_units(4, 52)
    [0, 13, 26, 39]
    """
    where = f"layer '{layer}'" if layer else "the layer"
    text = units.strip() if isinstance(units, str) else units
    if isinstance(text, str) and text.startswith("label:"):
        return _labelled(_word(text), layer, labels)
    if isinstance(text, str) and text.startswith("trust:"):
        return _trusted(*_bounds(text), text, layer, labels)
    if isinstance(text, str) and text.startswith("ids:"):
        ids = _listed(text.removeprefix("ids:"), units)
    elif isinstance(text, str):
        count = K if text == "all" else int(text) if text.isdecimal() else -1
        ids = _spread(count, K, units)
    elif isinstance(text, Integral) and not isinstance(text, bool):
        ids = _spread(int(text), K, units)
    else:
        ids = list(text) if isinstance(text, Sequence) or hasattr(text, "__iter__") else []
        if not ids or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
            raise ValueError(f"units are {FORMS}, or a list of numbers in a script, got {units!r}")
    outside = [int(i) for i in ids if not 0 <= i < K]
    if outside:
        raise ValueError(f"{where} has units 0 to {K - 1}, got {outside[0]} in {units!r}; leave it out")
    return sorted({int(i) for i in ids})


def check_units(
    units: Units | Mapping[str, Units],
    sizes: Mapping[str, int] | None = None,
    words: Sequence[str] | None = None,
) -> None:
    """Raise what `units_by_layer` would: without `sizes` {layer: K} for the form alone; where it asks labels,
    unless one of the `words` that can be labels has the word.

    >>> check_units("layer4=label:dog;fc=ids:3", {"layer4": 192, "fc": 52}, ["dogs", "a red circle"])
    """
    forms = _named(units) or {"": units} if sizes is None else _wanted(units, sizes)
    for layer, form in forms.items():
        if isinstance(form, str) and form.strip().startswith("trust:"):
            _bounds(form.strip())
            continue
        if not (isinstance(form, str) and form.strip().startswith("label:")):
            choose_units(form, UNSEEN if sizes is None else sizes[layer], layer)
            continue
        word = _word(form)
        if words is not None and not any(map(name_pattern([word]).search, words)):
            raise ValueError(
                f"label:{word} names units by their label, and none of the {len(words)} concepts has "
                f"the word '{word}'; choose a word of theirs, or units by ids:"
            )


def layers_named(units: Units | Mapping[str, Units]) -> list[str]:
    """Layers that units are chosen of one by one, none where one form is for all."""
    return list(units if isinstance(units, Mapping) else _named(units) or {})


def _wanted(units: Units | Mapping[str, Units], sizes: Mapping[str, int]) -> dict[str, Units]:
    """What is asked of each layer, in the order of `sizes`."""
    named = dict(units) if isinstance(units, Mapping) else _named(units)
    if named is None:
        return dict.fromkeys(sizes, units)
    for layer in named:
        if layer not in sizes:
            raise unknown("layer", layer, sizes)
    return {layer: named[layer] for layer in sizes if layer in named}


def _spread(count: int, K: int, units: Units) -> list[int]:
    """Units at even steps from 0, all where a layer has no more."""
    if count < 1:
        raise ValueError(f"units are {FORMS}, got {units!r}")
    return evenly_spaced(min(count, K), K)


def _listed(text: str, units: Units) -> list[int]:
    """Numbers and ranges between commas."""
    ids: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise ValueError(f"ids are numbers and ranges between commas, as ids:3,17,40-42, got {units!r}")
        ids += range(int(found[1]), int(found[2] or found[1]) + 1)
    return ids


def _word(form: str) -> str:
    """WORD of label:WORD."""
    word = form.strip().removeprefix("label:").strip()
    if not word:
        raise ValueError("label: needs a word, as in label:dog")
    return word


def _labelled(word: str, layer: str, labels: pd.DataFrame | None) -> list[int]:
    """Units of the layer whose label of rank 1 has the word; none of it is an empty list."""
    if labels is None:
        raise ValueError(
            f"label:{word} needs labels to look in; give the labels table, or choose units by ids:"
        )
    best = labels[labels["rank"] == 1]
    if layer:
        best = best[best["layer"] == layer]
    pattern = name_pattern([word])
    return sorted({int(unit) for unit, label in zip(best["unit"], best["label"]) if pattern.search(label)})


def _bounds(form: str) -> tuple[float, float]:
    """LOW and HIGH of trust:LOW-HIGH."""
    found = re.fullmatch(r"trust:\s*(\d*\.?\d+)\s*(?:-\s*(\d*\.?\d+)\s*)?", form)
    low, high = (float(found[1]), float(found[2] or "inf")) if found else (1.0, 0.0)
    if low > high:
        raise ValueError(f"trust is a least value or a range, as trust:0.8 or trust:0-0.3, got {form!r}")
    return low, high


def _trusted(low: float, high: float, form: str, layer: str, labels: pd.DataFrame | None) -> list[int]:
    """Units of the layer whose label of rank 1 has a trust from low to high; without one they are in none."""
    if labels is None or "trust" not in labels:
        raise ValueError(
            f"{form} needs labels with a column 'trust', got "
            f"{'none' if labels is None else 'no such column'}; name a run of the notebook "
            "trust, or choose units by ids: or label:"
        )
    best = labels[labels["rank"] == 1]
    best = best[best["layer"] == layer] if layer else best
    return sorted({int(unit) for unit in best.loc[best["trust"].between(low, high), "unit"]})


def _named(units: Units) -> dict[str, str] | None:
    """{layer: form} of "layer4=ids:1,2;fc=20", None for one form of all layers."""
    if not isinstance(units, str) or "=" not in units:
        return None
    parts = [part.partition("=") for part in units.split(";") if part.strip()]
    if not all(equals and name.strip() and form.strip() for name, equals, form in parts):
        raise ValueError(f"units layer by layer are written layer4=ids:1,2;fc=20, got {units!r}")
    return {name.strip(): form.strip() for name, _, form in parts}
