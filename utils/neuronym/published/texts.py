"""How close labels are to what people or other methods say, never without what any label would get; and what
others printed of it.

CLIP, MPNET, CHARACTERS  the encoders of the printed values
CONSTANT                 a word that says nothing, as everyone's label
Measure                  A texts and B texts -> a Tensor [A, B], higher is closer
printed_reliable         neurons of ResNet-152 whose people agree, as printed
beside_printed           a table of ours with the printed values and, for the same encoder, the difference
final_layer              labels of final-layer neurons against the names of their classes
places_accuracy          NetDissect's labels that are the class of Places365
load_encoders            text encoders by name, and a sentence for each that is not at hand
by_cosine                measure: cosine of two texts
by_characters            measure: as in the published mpnet column of Describe-and-Dissect's table 9, which is
                         of no use
by_words                 measure: 1 where two texts share a content word
against_texts            labels against the texts of their neurons, with interval and controls
among_people             people against each other
against_people           methods, people and a constant word against people's texts, layer by layer
against_method           two methods against each other, layer by layer
reliable                 neurons whose people agree
word_counts              how many labels have a word

Printed values are from stored outputs of notebooks (`text_cosines`, `reliable_neurons`), made with
half-precision CLIP on a GPU: differences up to .001 mean nothing. Memory of a comparison grows with the
square of the number of neurons; 1,000 take 8 MB.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym import cache
from neuronym.common.statistics import interval
from neuronym.common.text import content_words, EMPTY
from neuronym.models.clips import load_clip
from neuronym.models.sentences import load_sentence_encoder
from neuronym.passes import ALIKE, CHECKED, differ_by, spread
from neuronym.published.values import printed

CLIP, MPNET, CHARACTERS = "openai:ViT-B/16", "mpnet", "mpnet, characters"
CONSTANT = "depiction"  # the word of Describe-and-Dissect's table 9
FOUND = ["units", "value", "low", "high", "shuffled", "constant", "best_constant"]
NAN = float("nan")
Measure = Callable[[Sequence[str], Sequence[str]], Tensor]


def printed_reliable() -> list[tuple[str, int]]:
    """Neurons of ResNet-152 of which two people's texts are alike (Describe-and-Dissect, table 9)."""
    table = printed("reliable_neurons")
    return list(zip(table["layer"], table["value"].astype(int).tolist()))


def beside_printed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns table, whose, layer, encoder, value ... -> also `CLIP` and `mpnet`, as printed (NaN where
    nothing was), and `difference`, filled only where the encoder is the one of the printed value.
    """
    theirs = printed("text_cosines").set_index(["table", "whose", "layer", "encoder"])["value"].to_dict()
    key = list(zip(table["table"], table["whose"], table["layer"]))
    by = [encoder.partition("@")[0] for encoder in table["encoder"]]
    mpnet = [CHARACTERS if encoder.endswith("characters") else MPNET for encoder in by]
    return table.assign(
        CLIP=[theirs.get((*k, CLIP), NAN) for k in key],
        mpnet=[theirs.get((*k, m), NAN) for k, m in zip(key, mpnet)],
        difference=[value - theirs.get((*k, e), NAN) for k, e, value in zip(key, by, table["value"])],
    )


def final_layer(
    measure: Measure, labels: pd.DataFrame, names: Sequence[str] | Mapping[int, str], seed: int = 0
) -> pd.DataFrame:
    """Labels of rank 1 of a network's final layer, by method, against the names of the classes: `whose`,
    `layer` and the columns of `against_texts`. `names` has a name for every unit of the labels.

    Errors: ValueError for units without a name, named ones without a label, and units that have several.
    """
    wanted = dict(names.items() if isinstance(names, Mapping) else enumerate(names))
    rows = []
    for (method, layer), some in labels[labels["rank"] == 1].groupby(["method", "layer"], sort=False):
        said = dict(zip(some["unit"], some["label"]))
        if len(said) != len(some) or said.keys() != wanted.keys():
            raise ValueError(
                f"one label of {method} for each of {len(wanted)} class names, got {len(some)} labels of "
                f"{len(said)} neurons of {layer}, {len(said.keys() - wanted.keys())} of them without a name"
            )
        units = sorted(said)
        rows.append(
            {
                "whose": method,
                "layer": layer,
                **against_texts(measure, [said[u] for u in units], [[wanted[u]] for u in units], seed),
            }
        )
    return pd.DataFrame(rows, columns=["whose", "layer", *FOUND])


def places_accuracy(labels: pd.DataFrame, categories: Sequence[str], words: Sequence[str]) -> dict[str, int]:
    """Final-layer neurons of ResNet-18 whose NetDissect label is the class (CLIP-Dissect, table 2);
    categories are `load_concepts("places365")`, words `load_concepts("broden")`.

    `right`; `right_as_released`: without classes of two parts ("balcony, exterior"), whose name the released
    notebook spells with a slash and so never finds in NetDissect's hyphens. Which classes Broden has is in
    none of the files: `least` were named as scenes somewhere in them, `most` are among the words (some as
    objects). Errors: ValueError unless there is one label for every category.
    """
    theirs = labels[labels["method"] == "netdissect"]
    found = theirs[(theirs["model"] == "resnet18_places365") & (theirs["layer"] == "fc")].sort_values("unit")
    if found["unit"].tolist() != list(range(len(categories))):
        raise ValueError(
            f"one NetDissect label for every category, got {len(found)} labels of fc and "
            f"{len(categories)} categories; load netdissect's and take load_concepts('places365')"
        )
    names = [name.replace(", ", "-") for name in categories]
    right = [name for name, label in zip(names, found["label"]) if _scene(label) == name]
    scenes = {_scene(label) for label in theirs["label"] if label.endswith("-s")} | set(right)
    return {
        "classes": len(names),
        "right": len(right),
        "right_as_released": sum("-" not in name for name in right),
        "least": sum(name in scenes for name in names),
        "most": sum(name in set(words) for name in names),
    }


def _scene(label: str) -> str:
    return label.removesuffix("-s").replace("_", " ")


def load_encoders(
    sentences: str, clip: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Callable[[Sequence[str]], Tensor]], list[str]]:
    """Name -> encoder of texts to unit rows, for a sentence encoder and an image-text model ("" for neither),
    each distinct text encoded once and cached on disk; and one sentence for each whose weights are not at
    hand.

    Errors: KeyError for unknown names.
    """
    found, absent = {}, []
    for name, load in ((sentences, load_sentence_encoder), (clip, load_clip)):
        try:
            loaded = load(name, device) if name else None
        except (FileNotFoundError, ModuleNotFoundError) as error:
            absent.append(f"no column for '{name}': {error}")
            continue
        if loaded:
            found[name] = (
                _remembering(loaded.encode, loaded.weights_key)
                if name == sentences
                else _remembering(loaded.encode_text, loaded.text_key)
            )
    return found, absent


def by_cosine(encode: Callable[[Sequence[str]], Tensor]) -> Measure:
    """Cosine of the embeddings of two texts (CLIP-Dissect, table 1)."""
    return lambda said, truth: encode(list(said)).double() @ encode(list(truth)).double().T


def by_characters(encode: Callable[[Sequence[str]], Tensor]) -> Measure:
    """Mean cosine of a text and every single character of the other, which is what the mpnet column of table
    9 holds: its helper got a text where it takes a list of them.
    """

    def measure(said: Sequence[str], truth: Sequence[str]) -> Tensor:
        characters = sorted(set("".join(truth)))
        share = torch.tensor(
            [[text.count(c) / max(len(text), 1) for c in characters] for text in truth]
        ).double()
        return encode(list(said)).double() @ (share @ encode(characters).double()).T

    return measure


def by_words(said: Sequence[str], truth: Sequence[str]) -> Tensor:
    """1 where two texts have a content word in common, else 0."""
    ours, theirs = [content_words(text) for text in said], [content_words(text) for text in truth]
    at = {word: i for i, word in enumerate(sorted(set().union(*ours, *theirs)))}
    return (_marked(ours, at) @ _marked(theirs, at).T > 0).double()


def against_texts(
    measure: Measure, said: Sequence[str], truth: Sequence[Sequence[str]], seed: int = 0
) -> dict:
    """Mean closeness of K labels to the texts of their neurons (equally many for each; the mean over a
    neuron's texts), with its 95 % bootstrap interval over neurons and two controls: `shuffled`, the
    expectation when labels are dealt to other neurons, and `constant`, what the best of the labels gets if
    all neurons have it.

    Errors: ValueError for unequal numbers of labels and neurons or of texts, and for fewer than two neurons.
    """
    if (
        len(said) != len(truth)
        or len(truth) < 2
        or len({len(texts) for texts in truth}) != 1
        or not len(truth[0])
    ):
        raise ValueError(
            "expected a label and equally many texts for each of at least two neurons, got "
            f"{len(said)} labels, {len(truth)} neurons and {sorted({len(texts) for texts in truth})} texts"
        )
    columns = [list(texts) for texts in zip(*truth)]
    S = sum(measure(said, texts) for texts in columns) / len(columns)
    best = int(S.mean(1).argmax())
    return _summary(S, seed) | {"constant": float(S[best].mean()), "best_constant": said[best]}


def among_people(measure: Measure, truth: Sequence[Sequence[str]], seed: int = 0) -> dict:
    """`against_texts` of people among themselves: the mean over their pairs, in the order given; no
    constant.
    """
    columns = [list(texts) for texts in zip(*truth)]
    pairs = list(combinations(columns, 2))
    if not pairs or len(truth) < 2:
        raise ValueError(
            f"expected texts of two people for at least two neurons, got {len(columns)} for {len(truth)}"
        )
    S = sum(measure(first, second) for first, second in pairs) / len(pairs)
    return _summary(S, seed) | {"constant": float("nan"), "best_constant": ""}


def against_people(
    measure: Measure,
    labels: pd.DataFrame,
    people: str = "milannotations",
    word: str = CONSTANT,
    units: Collection[tuple[str, int]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Columns whose, layer (and "all") and those of `against_texts`, for every method of a labels table of
    one model, for `people` among themselves, and for `word` as everyone's label, on neurons that all of them
    have (of `units`).

    Errors: ValueError if they have none in common, or a neuron twice.
    """
    texts = (
        labels[labels["method"] == people].sort_values("rank").groupby(["layer", "unit"])["label"].agg(list)
    )
    best = labels[(labels["rank"] == 1) & (labels["method"] != people)]
    if best.duplicated(["method", "layer", "unit"]).any():
        raise ValueError("each neuron has one label of rank 1 of a method, got several; choose one model")
    wide = best.pivot(index=["layer", "unit"], columns="method", values="label").dropna()
    shared = [key for key in wide.index if key in texts.index and (units is None or key in units)]
    if not shared:
        raise ValueError(
            f"the methods {sorted(best['method'].unique())} and {people} have no neurons in common; "
            "choose tables of one model"
        )
    rows = []
    for layer in [*dict.fromkeys(layer for layer, _ in shared), "all"]:
        here = [key for key in shared if layer in (key[0], "all")]
        truth = texts[here].tolist()
        rows += [
            {"whose": name, "layer": layer, **against_texts(measure, said, truth, seed)}
            for name, said in [*((m, wide.loc[here, m].tolist()) for m in wide), (word, [word] * len(here))]
        ]
        rows.append({"whose": people, "layer": layer, **among_people(measure, truth, seed)})
    return pd.DataFrame(rows)[["whose", "layer", *FOUND]]


def against_method(
    measure: Measure, first: pd.DataFrame, second: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """`against_texts` of one method's labels of rank 1 and another's, by layer and for "all", on neurons that
    both have.

    Errors: ValueError if they have none in common, or a neuron twice.
    """
    sides = [table[table["rank"] == 1] for table in (first, second)]
    both = sides[0].merge(sides[1], on=["layer", "unit"], suffixes=("", "_other"))
    if not len(both) or any(side.duplicated(["layer", "unit"]).any() for side in sides):
        raise ValueError(
            f"two methods are compared on neurons that both have, one label each, got {len(both)} in common "
            "or several labels of a neuron; choose one method and one model for each"
        )
    rows = []
    for layer in [*dict.fromkeys(both["layer"]), "all"]:
        here = both[(both["layer"] == layer) | (layer == "all")]
        rows.append(
            {
                "layer": layer,
                **against_texts(measure, here["label"].tolist(), here[["label_other"]].values.tolist(), seed),
            }
        )
    return pd.DataFrame(rows)


def reliable(measure: Measure, labels: pd.DataFrame, threshold: float = 0.81) -> list[tuple[str, int]]:
    """Neurons of which two people's texts are closer than `threshold` (Describe-and-Dissect, table 9)."""
    texts = labels.sort_values("rank").groupby(["layer", "unit"])["label"].agg(list)
    columns = [list(some) for some in zip(*texts)]
    closest = torch.stack([measure(a, b).diagonal() for a, b in combinations(columns, 2)]).amax(0)
    return [key for key, value in zip(texts.index, closest.tolist()) if value > threshold]


def word_counts(labels: Sequence[str], most: int = 20) -> pd.Series:
    """The commonest words and how many labels have them, articles and prepositions left out; the index is the
    word.
    """
    counts = Counter(word for label in labels for word in set(re.findall("[a-z]+", label.lower())) - EMPTY)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return pd.Series(dict(ordered), dtype="int64", name="labels")


def _summary(S: Tensor, seed: int) -> dict:
    """S [K, K] -> what its diagonal says (a neuron's own texts) and what the rest does (others')."""
    own, n = S.diagonal(), len(S)
    low, high = interval(own.numpy(), seed)
    return {
        "units": n,
        "value": float(own.mean()),
        "low": low,
        "high": high,
        "shuffled": float((S.sum() - own.sum()) / (n * (n - 1))),
    }


def _marked(words: Sequence[frozenset[str]], at: dict[str, int]) -> Tensor:
    marked = torch.zeros(len(words), len(at))
    for row, some in zip(marked, words):
        row[[at[word] for word in some]] = 1
    return marked


def _remembering(encode: Callable[[Sequence[str]], Tensor], key: str) -> Callable[[Sequence[str]], Tensor]:
    """`encode` that takes each distinct text once, now and in later runs."""
    rows: dict[str, Tensor] = {}

    def known(texts: Sequence[str]) -> Tensor:
        new = sorted(set(texts) - rows.keys())
        if new:
            spec = {"encoder": key, "texts": hashlib.sha256(json.dumps(new).encode()).hexdigest()}
            with torch.inference_mode():
                made = cache.array(
                    "label_embeddings",
                    spec,
                    lambda: encode(new).float().cpu(),
                    {"texts": len(new)},
                    lambda cached: _differ(encode, cached, new),
                )
            rows.update(zip(new, torch.from_numpy(np.array(made))))
        return torch.stack([rows[text] for text in texts])

    return known


def _differ(encode: Callable[[Sequence[str]], Tensor], cached: np.ndarray, texts: Sequence[str]) -> str:
    """Why cached embeddings cannot be those of the texts, of which a few are encoded anew; or ""."""
    rows = spread(len(texts), CHECKED)
    fresh = encode([texts[row] for row in rows]).float().cpu()
    same = differ_by(torch.from_numpy(np.array(cached[rows])), fresh) <= ALIKE
    return "" if same else "the encoder gives other embeddings for a few texts now"
