"""What names are good for: units chosen by a word of their names, pruned, and what the network loses.

NamedUnits      layer -> units
pruned          a network without some units, for a while
unit_edits      the edits of layers that do it
outputs         what the network gives with each of several sets of units pruned, in one pass over the images
effect_table    loss on the classes that match and on the others, for the units named so and for random ones
comparable      whether there are images of both
split_patterns  several patterns from one text
matching        which names have a word: "fish*|sea"
chosen          units of a labels table whose labels match, by layer
groups          how many units of each layer have a word in their label

N images, C classes (columns of the network's output). As in the EuroSAT study of Describe-and-Dissect.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import target_layers
from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.statistics import draw_neurons, rank_of
from neuronym.common.text import singular, STOP
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import batches, Probe
from neuronym.evaluation.metrics import auprc
from neuronym.evaluation.replay import under_each
from neuronym.hooks import edit
from neuronym.layouts import LayerInfo, LAYOUTS
from neuronym.passes import inference_of

NamedUnits = Mapping[str, Sequence[int]]  # layer -> units
HOWS = ("zero", "mean")


@contextmanager
def pruned(
    target: Target,
    units: NamedUnits,
    how: str = "zero",
    means: Mapping[str, Tensor] | None = None,
    strength: float = 0,
) -> Iterator[None]:
    """Within the block, the given units of each layer have the same value for every image and position.

    "zero" is 0, which is no activation behind a ReLU; "mean" is means[layer] [K] (Q.mean(0) of pool "avg"),
    which is no information, for layers whose values can be negative; with a `strength` as much is left of
    their own, as in `outputs`. Errors: KeyError for an unknown layer,
    ValueError for units that the layer does not have and for absent means.
    """
    with edit(target.model, unit_edits(target, units, how, means, strength)):
        yield


def unit_edits(
    target: Target, units: NamedUnits, how: str, means: Mapping[str, Tensor] | None, strength: float
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What `pruned` makes of the outputs: {layer: function of its output}, as `hooks.edit` takes it."""
    return _edits(_layers(target, [units]), units, how, means, strength)


def outputs(
    target: Target,
    probe: Probe,
    conditions: Sequence[NamedUnits],
    keep: Callable[[Tensor, slice], Tensor] = lambda logits, rows: logits,
    *,
    rows: Sequence[int] | None = None,
    how: str = "zero",
    means: Mapping[str, Tensor] | None = None,
    strengths: Sequence[float] | None = None,
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    """What the network gives when each of the conditions' units are pruned ({} for none): for each one [N,
    C].

    `strengths` has a number for each condition, 0 by default: what is left of a value y beside its constant
    c (0, or its mean), c + strength (y - c); .5 is half, 2 twice as much. Images (`rows` of the probe, in
    order; all by default) are decoded once for all conditions, and pass once through what comes before the
    first of the layers. What is stored of each batch is keep(logits [b, C], which), by default [N, C] for
    each condition in all. Nothing is cached. Errors: as in `pruned`; ValueError for rows that the probe does
    not have, for strengths that are no numbers of the conditions, and outputs that are not finite.
    """
    layers = _layers(target, conditions)
    strengths = [0.0] * len(conditions) if strengths is None else list(strengths)
    if len(strengths) != len(conditions):
        raise ValueError(
            f"each condition has a strength, got {len(strengths)} for {len(conditions)} conditions"
        )
    edits = [_edits(layers, units, how, means, left) for units, left in zip(conditions, strengths)]
    if rows is not None:
        wrong = [row for row in rows if not 0 <= row < probe.N]
        if wrong or not len(rows):
            raise ValueError(
                f"rows of the probe lie within 0 .. {probe.N - 1}, got {wrong[0] if wrong else 'none'}"
            )
        probe = replace(probe, ids=[probe.ids[row] for row in rows], items=[probe.items[row] for row in rows])
    stream = batches(probe, [target.preprocess], batch_size)
    if progress is not None:
        stream = progress(stream, -(-probe.N // batch_size), f"{target.name}, {len(edits)} prunings")
    parts: list[list[Tensor]] = [[] for _ in edits]
    with inference_of(target, device) as place:
        for which, (images,) in stream:
            found: list[list[Tensor]] = [[] for _ in edits]
            for piece in place(images):
                for logits, some in zip(under_each(target.model, piece, edits), found):
                    some.append(logits.float().cpu())
            for units, some, part in zip(conditions, found, parts):
                logits = torch.cat(some)[: len(images)]
                if not logits.isfinite().all():
                    told = (
                        ", ".join(f"{len(some)} units of {layer}" for layer, some in units.items())
                        or "nothing"
                    )
                    raise ValueError(
                        f"a network must give finite outputs, got others among images {which.start} to "
                        f"{which.stop - 1} with {told} pruned; try another of how={HOWS}"
                    )
                part.append(keep(logits, which))
    return [torch.cat(part) for part in parts]


def effect_table(
    target: Target,
    units: NamedUnits,
    probe: Probe,
    truth: Tensor,
    classes: Sequence[int],
    *,
    rows: Sequence[int] | None = None,
    draws: int = 50,
    resamples: int = 300,
    top: Sequence[int] = (1, 5),
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """What pruning `units` costs on the classes that match their name and on the others, beside random units.

    truth [N] class of each image: metric "top-k", the share of images whose class is among the k highest
    outputs, for images of the `classes` and for the rest. truth [N, C] bool: metric "AP", average precision
    of each output for its concept, mean over the concepts that any image shows. `rows` and `options` are
    those of `outputs`.

    A row for each metric, condition (none, named, random) and `on` (matching, others, difference: matching -
    others): draws, units, score, loss (score of "none" - score) with its 95 % interval low..high, p. Random
    units are as many from each layer, of all its units; their score and loss are means over draws, the
    interval is over draws. That of "named" resamples images, `resamples` times, the same for both scores (of
    classes: within the two groups). p of "named" is the share of draws that lose as much or more, itself
    counted in. Errors: ValueError without units, when no class or every class matches, for truth that does
    not fit.
    """
    check_positive_int("draws", draws), check_positive_int("resamples", resamples)
    units = {layer: sorted({int(unit) for unit in some}) for layer, some in units.items() if len(some)}
    if not units:
        raise ValueError("pruning by name takes a unit or more, got none; choose a word that labels have")
    N, size = probe.N if rows is None else len(rows), sum(map(len, units.values()))
    measures, keep, on = _task(truth, classes, N, top)
    kept = outputs(
        target, probe, [{}, units, *_random(target, units, draws, seed)], keep, rows=rows, **options
    )
    resampled = [
        index
        for some in draw_neurons(N, seed, resamples, on[truth] if truth.ndim == 1 else None)
        for index in torch.from_numpy(some)
    ]
    parts = []
    for metric, score in measures.items():
        values = np.stack([score(x, truth, on) for x in kept])  # [2 + draws, 3]
        losses = values[0] - values
        spread = np.stack(
            [score(kept[0][i], truth[i], on) - score(kept[1][i], truth[i], on) for i in resampled]
        )
        p = (1 + (losses[2:] >= losses[1] - 1e-12).sum(0)) / (1 + draws)
        for condition, count, which, over in (
            ("none", 0, slice(0, 1), losses[:1]),
            ("named", 1, slice(1, 2), spread),
            ("random", draws, slice(2, None), losses[2:]),
        ):
            low, high = np.nanquantile(over, [0.025, 0.975], axis=0)
            parts.append(
                pd.DataFrame(
                    {
                        "metric": metric,
                        "condition": condition,
                        "on": ["matching", "others", "difference"],
                        "draws": count,
                        "units": size if count else 0,
                        "score": values[which].mean(0),
                        "loss": losses[which].mean(0),
                        "low": low,
                        "high": high,
                        "p": p if condition == "named" else np.nan,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def comparable(truth: Tensor, classes: Sequence[int]) -> bool:
    """Whether `truth` has images of the classes and of others, which `effect_table` compares."""
    if truth.ndim == 2:
        shown = truth.any(0)
        some = torch.zeros(len(shown), dtype=torch.bool)
        some[list(classes)] = True
        return bool((shown & some).any() and (shown & ~some).any())
    here = torch.isin(truth, torch.tensor(list(classes), dtype=truth.dtype))
    return bool(here.any() and not here.all())


def _layers(target: Target, conditions: Sequence[NamedUnits]) -> dict[str, LayerInfo]:
    names = list(dict.fromkeys(name for units in conditions for name in units))
    return {layer.name: layer for layer in target_layers(target, names)} if names else {}


def _edits(
    layers: Mapping[str, LayerInfo],
    units: NamedUnits,
    how: str,
    means: Mapping[str, Tensor] | None,
    strength: float = 0,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Layer -> function that moves the units to their constant, or leaves as much of their own."""
    if how not in HOWS:
        raise ValueError(f"how is one of {', '.join(HOWS)}, got {how!r}")
    check_number("strength", strength)
    made = {}
    for name, some in units.items():
        layer = layers[name]
        index = _checked(layer, some)
        values = torch.zeros(layer.units)
        if how == "mean":
            values = (means or {}).get(name)
            if values is None or tuple(values.shape) != (layer.units,) or not bool(values.isfinite().all()):
                got = None if values is None else list(values.shape)
                raise ValueError(
                    f"how='mean' needs finite means of the {layer.units} units of layer '{name}', got "
                    f"{got}; pass means={{'{name}': Q.mean(0)}}"
                )
        axis = LAYOUTS[layer.layout][2]
        made[name] = partial(_written, axis=axis, index=index, values=values[index], strength=strength)
    return made


def _written(output: Tensor, axis: int, index: Tensor, values: Tensor, strength: float) -> Tensor:
    changed = output.clone()
    last, index, values = changed.movedim(axis, -1), index.to(output.device), values.to(output)
    # a unit that is off has its constant, also where its own value is infinite
    last[..., index] = values + strength * (last[..., index] - values) if strength else values
    return changed


def _random(target: Target, units: NamedUnits, draws: int, seed: int) -> list[dict[str, list[int]]]:
    """As many units of each layer, `draws` times."""
    layers, dice = _layers(target, [units]), np.random.default_rng(seed)
    for layer, some in units.items():
        _checked(layers[layer], some)
    return [
        {
            layer: sorted(dice.choice(layers[layer].units, len(some), replace=False).tolist())
            for layer, some in units.items()
        }
        for _ in range(draws)
    ]


def _checked(layer: LayerInfo, units: Sequence[int]) -> Tensor:
    wrong = [unit for unit in units if not 0 <= unit < layer.units]
    if wrong:
        raise ValueError(f"units of layer '{layer.name}' lie within 0 .. {layer.units - 1}, got {wrong[0]}")
    return torch.as_tensor(list(units), dtype=torch.long)


def _task(truth: Tensor, classes: Sequence[int], N: int, top: Sequence[int]) -> tuple[dict, Callable, Tensor]:
    """Metric -> score(kept, truth, on) of matching, others, difference; what is kept of logits; classes that
    match.
    """
    concepts = truth.dtype == torch.bool and truth.ndim == 2
    numbers = truth.ndim == 1 and truth.dtype == torch.int64 and bool((truth >= 0).all())
    if len(truth) != N or not (concepts or numbers):
        raise ValueError(
            f"truth is a class number [N] (int64) or presence [N, C] (bool) for each of {N} images, got "
            f"{truth.dtype} {list(truth.shape)}"
        )
    on = torch.zeros(truth.shape[1] if concepts else max(0, int(truth.max()), *classes) + 1, dtype=torch.bool)
    if any(not 0 <= c < len(on) for c in classes):
        raise ValueError(f"classes lie within 0 .. {len(on) - 1}, got {list(classes)[:5]}")
    on[list(classes)] = True
    seen = on[truth.any(0)] if concepts else on[truth]
    if not seen.any() or seen.all():
        raise ValueError(
            f"both classes that match and others must be in the images, got {int(seen.sum())} and "
            f"{int((~seen).sum())} {'concepts' if concepts else 'images'}; choose another word or images"
        )

    def keep(logits: Tensor, which: slice) -> Tensor:
        if len(logits.T) < len(on) or concepts and len(logits.T) > len(on):
            raise ValueError(f"truth and classes are of {len(on)} classes, the network gives {len(logits.T)}")
        return logits if concepts else rank_of(logits, truth[which])

    if concepts:
        return {"AP": _precision}, keep, on
    for k in top:
        check_positive_int("k of top-k", k)
    return {f"top-{k}": partial(_top, k=k) for k in top}, keep, on


def _top(ranks: Tensor, truth: Tensor, on: Tensor, k: int) -> np.ndarray:
    hit, own = (ranks <= k).double(), on[truth]
    return _three(hit[own], hit[~own])


def _precision(logits: Tensor, truth: Tensor, on: Tensor) -> np.ndarray:
    shown = truth.any(0)
    ap = auprc(logits, logits, active=truth).double()
    return _three(ap[shown & on], ap[shown & ~on])


def _three(matching: Tensor, others: Tensor) -> np.ndarray:
    """Means of matching and others, and their difference; nan without any."""
    a, b = matching.mean().item(), others.mean().item()
    return np.array([a, b, a - b])


Names = Mapping[int, str | Sequence[str]] | Iterable[tuple[int, str]]


def split_patterns(text: str) -> list[str]:
    """Patterns separated by semicolons, each checked as `matching` does; none for an empty text."""
    patterns = [part.strip() for part in text.split(";") if part.strip()]
    for pattern in patterns:
        matching({}, pattern)
    return patterns


def matching(names: Names, pattern: str) -> list[int]:
    """Keys (units, classes) with a name that has one of the pattern's words, each once, in the order given.

    `names` is {key: name or names} or pairs (key, name). The pattern is words or phrases joined by "|"; "*"
    stands for any letters or none, "?" for one, within a word. Case does not count. Words are runs of letters
    and digits, in names and patterns alike, and match as a whole: "sea" is in "by the sea" and "sea-lion",
    not in "season"; the words of a phrase follow each other. Errors: ValueError for an empty part, one of
    nothing but "*", and any other sign.
    """
    if not isinstance(pattern, str):
        raise ValueError(
            f"a pattern is a text such as 'fish*|sea', got {type(pattern).__name__}; join words by '|'"
        )
    phrases = []
    for part in _folded(pattern).split("|"):
        strange = re.sub(r"[\w\s*?'’-]", "", part)
        if strange or not re.search(r"[^\W_]|\?", part):
            wrong = f"leave out {strange[0]!r}" if strange else "a part has no word in it"
            raise ValueError(
                "a pattern is words joined by '|', with * for any letters and ? for one, got "
                f"{pattern!r}; {wrong}"
            )
        phrases.append(re.findall(r"(?:[^\W_]|[*?])+", part))
    pairs = names.items() if isinstance(names, Mapping) else names
    return list(
        dict.fromkeys(
            key
            for key, given in pairs
            for name in ([given] if isinstance(given, str) else given)
            if any(_has(_words(name), phrase) for phrase in phrases)
        )
    )


def chosen(
    table: pd.DataFrame, pattern: str, rank: int = 1, layers: Iterable[str] = ()
) -> dict[str, list[int]]:
    """{layer: units} of a labels table with a match among their labels up to `rank`; layers without any left
    out. Layers are called as in `layers`, where these have an equal name: that of features knows its file.
    """
    some = table[table["rank"] <= rank].sort_values("rank", kind="stable")
    found = matching(zip(zip(some["layer"], some["unit"]), some["label"]), pattern)
    own = {layer: layer for layer in layers}
    there = [layer for layer in dict.fromkeys(table["layer"]) if any(layer == name for name, _ in found)]
    return {
        own.get(layer, layer): sorted(int(unit) for name, unit in found if name == layer) for layer in there
    }


def groups(table: pd.DataFrame, least: int = 2) -> pd.DataFrame:
    """Units whose labels (rank 1) share a word: columns word, layer, count, units; words of `least` units or
    more.

    Singular and plural are one word (`text.singular`), written as most labels write it; words that say
    nothing by themselves (a, of, picture) are left out. Words in order of all their units, then of the
    alphabet; layers as given.
    """
    check_positive_int("least", least)
    best, found, spelled = table[table["rank"] == 1], {}, {}
    for layer, unit, label in zip(best["layer"], best["unit"], best["label"]):
        for key, word in {singular(word): word for word in _words(label) if word not in STOP}.items():
            found.setdefault(key, {}).setdefault(layer, set()).add(int(unit))
            spelled.setdefault(key, Counter())[word] += 1
    total = {key: sum(map(len, layers.values())) for key, layers in found.items()}
    written = {key: min(counts, key=lambda word: (-counts[word], word)) for key, counts in spelled.items()}
    order = {layer: i for i, layer in enumerate(dict.fromkeys(best["layer"]))}
    rows = [
        (written[key], layer, len(found[key][layer]), sorted(found[key][layer]))
        for key in sorted(found, key=lambda key: (-total[key], written[key]))
        if total[key] >= least
        for layer in sorted(found[key], key=order.get)
    ]
    return pd.DataFrame(rows, columns=["word", "layer", "count", "units"])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", _folded(text))


def _has(words: Sequence[str], phrase: Sequence[str]) -> bool:
    return any(
        all(fnmatchcase(word, glob) for word, glob in zip(words[i:], phrase))
        for i in range(len(words) - len(phrase) + 1)
    )
