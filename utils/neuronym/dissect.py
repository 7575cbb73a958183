"""CLIP-Dissect (Oikarinen & Weng, ICLR 2023): a unit's label is the concept whose CLIP scores over the images
look most like its activations.

DEFAULT           the similarity function that names units unless told otherwise
PAPER             CLIP-Dissect's settings of soft_wpmi, of inner layers and of the final one
clip_dissect      Measurements -> the labels table
options_by_layer  the options of a similarity function for every layer
chosen_options    options of (soft-)WPMI as the parameters of a notebook
at_most           the same options for fewer images
scored_layers     scores of every layer with its options
cautions          what a similarity function cannot say of these layers and concepts, in words
best_of_units     the best concept of every unit of a layer
best_by_layer     the same of several layers
labels_of_units   the same in words
functions_for     similarity functions that so many images are enough for
with_files     a table that says which autoencoder its layers of features are of
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import RANKED, unknown
from neuronym.common.types import Progress
from neuronym.common.units import Units
from neuronym.measurements import Measurements
from neuronym.similarity.labels import labels_table
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.pmi import TOP_IMAGES
from neuronym.similarity.scores import layer_options, score_layers, SIMILARITIES
from neuronym.similarity.sparse_columns import score_blocks, SparseColumns
from neuronym.sparse import features_key

DEFAULT = "layered_correlation"  # the winner of docs/protocols/default_name.md
PAPER = {"inner": {"a": 10, "lam": 1, "top_k": 100}, "final": {"a": 2, "lam": 0.6, "top_k": 28}}
PRESETS = ("", "paper")
FEATURES = "features_key"


def clip_dissect(
    data: Measurements,
    similarity: str = DEFAULT,
    k: int = 5,
    units: Units = "all",
    *,
    preset: str = "",
    memory: int | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    **options,
) -> pd.DataFrame:
    """The k best concepts of every unit by a similarity function, as the labels table: rank 1 is the label.

    Layers share the blocks of P [N, M]; what a function normalises over units is normalised over all units
    of a layer, also where `units` names some. Units that are dead, constant or saturated have a note and no
    name (`neuronym.similarity.labels.unit_notes`). Layers held as SparseColumns are scored in blocks of
    units, as large as `memory` holds dense. `options` go to the function; `preset` "paper" is CLIP-Dissect as
    published, soft_wpmi with a 10, lam 1, top_k 100 for inner layers and a 2, lam .6, top_k
    28 for the final one. Errors: KeyError for an unknown function, ValueError for units that are not there,
    and for a preset with options of one's own.

    >>> from neuronym import measure
    >>> data = measure("microworld:resnet", "fc", "microworld:200", "microworld", "microworld:atoms")
    >>> clip_dissect(data, "cos_similarity_cubed", k=1, units="ids:0-2")["label"].tolist()
    ['circle', 'square', 'triangle']
    """
    wanted = data.units(units)
    final = data.target.layers[-1] if data.target.layers else None
    by_layer = options_by_layer(list(wanted), similarity, final, data.N, preset, **options)
    if preset:
        similarity = "soft_wpmi"
    given = {"memory": memory, "generator": generator}
    sparse = {name: data.Q[name] for name in wanted if isinstance(data.Q[name], SparseColumns)}
    dense = {name: data.Q[name] for name in wanted if name not in sparse}
    pairs = scored_layers(data.P, dense, similarity, by_layer, **given)
    about = {"model": data.target.name, "method": similarity, "k": k}
    tables = {}
    for layer, scores in pairs if progress is None else progress(pairs, len(dense), "layers scored"):
        some = {"units": wanted[layer], "activations": data.Q[layer], **about}
        tables[layer] = labels_table(scores[wanted[layer]], data.concepts, layer=layer, **some)
    for layer, q in sparse.items():
        found = score_blocks(data.P, q, similarity, **given, **by_layer[layer])
        tables[layer] = _labels_of_blocks(found, data.concepts, wanted[layer], layer=layer, **about)
    return with_files(pd.concat([tables[layer] for layer in wanted], ignore_index=True), data.layers)


def with_files(table: pd.DataFrame, layers: Iterable[str]) -> pd.DataFrame:
    """A table with a column `layer`, and FEATURES beside where one of the layers is of features: the key of
    its autoencoder's file, "" for other layers.
    """
    keys = {str(name): features_key(name) for name in layers}
    return table.assign(**{FEATURES: table["layer"].map(keys)}) if any(keys.values()) else table


def _labels_of_blocks(
    blocks: Iterator[tuple[slice, Tensor, Tensor]], concepts: Sequence[str], units: Sequence[int], **about
) -> pd.DataFrame:
    """The labels table of a layer scored block by block: (units, columns, scores) of each."""
    tables, wanted = [], set(units)
    for some, q, scores in blocks:
        own = [unit - some.start for unit in range(some.start, some.stop) if unit in wanted]
        if own:
            table = labels_table(scores[own], concepts, units=own, activations=q, **about)
            tables.append(table.assign(unit=table["unit"] + some.start))
    return pd.concat(tables, ignore_index=True)


def options_by_layer(
    layers: Sequence[str], similarity: str, final: str | None, N: int, preset: str = "", **options
) -> dict[str, dict]:
    """Options of a similarity function for each layer: those given, with whether it is the `final` one for
    `layered_correlation`; or PAPER's (with N images at the most).

    Errors: KeyError for an unknown function or preset; ValueError for a preset with options beside it.
    """
    if similarity not in SIMILARITIES:
        raise unknown("similarity function", similarity, SIMILARITIES)
    if preset not in PRESETS:
        raise unknown("preset", preset, [name for name in PRESETS if name])
    if not preset:
        return {layer: layer_options(similarity, layer == final) | options for layer in layers}
    if options:
        raise ValueError(
            f"preset '{preset}' sets a, lam and top_k, and {', '.join(options)} came beside it; pass one or "
            "the other"
        )
    found = {layer: PAPER["final" if layer == final else "inner"] for layer in layers}
    return {layer: some | {"top_k": min(N, some["top_k"])} for layer, some in found.items()}


def chosen_options(similarity: str, a: float = 0, lam: float = -1, pmi_images: int = 0) -> dict[str, float]:
    """Options of (soft-)WPMI as the notebooks' parameters give them, 0 and -1 for the function's own;
    pmi_images is its top_k.

    Errors: ValueError for a function that has none of them.
    """
    given = {
        name: value
        for name, value, own in (("a", a, 0), ("lam", lam, -1), ("pmi_images", pmi_images, 0))
        if value != own
    }
    if given and similarity not in TOP_IMAGES:
        be, them = ("is", "it") if len(given) == 1 else ("are", "them")
        raise ValueError(
            f"{', '.join(given)} {be} of {' and '.join(TOP_IMAGES)}, got similarity {similarity}; leave "
            f"{them} out, or choose one of these"
        )
    return {"top_k" if name == "pmi_images" else name: value for name, value in given.items()}


def at_most(options: Mapping[str, float], N: int) -> dict[str, float]:
    """The options of a similarity function for N images: its top_k is no more than these."""
    return {name: min(value, N) if name == "top_k" else value for name, value in options.items()}


def scored_layers(
    P: Tensor | FactoredMatrix,
    Q: Mapping[str, Tensor],
    similarity: str,
    options: Mapping[str, dict],
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(layer, scores [K, M]) of each layer of Q {layer: [N, K]} with its options; those of equal options
    together.
    """
    left = list(Q)
    while left:
        same = [layer for layer in left if options[layer] == options[left[0]]]
        some = {layer: Q[layer] for layer in same}
        yield from score_layers(P, some, similarity, memory=memory, generator=generator, **options[left[0]])
        left = [layer for layer in left if layer not in same]


def cautions(
    similarity: str, sizes: Mapping[str, int], P: Tensor | FactoredMatrix, lam: float | None = None
) -> list[str]:
    """What a function cannot say of layers of these sizes and of P's concepts: a sentence each, none as a
    rule.

    soft_wpmi (and wpmi with lam 1) takes from a score what all units of the layer have: of one unit, all.
    rank_reorder divides by a root of the mean cosine, so that concepts of negative mean are hardly ever
    chosen (the released code gives nan).
    """
    found = []
    alone = [layer for layer, units in sizes.items() if units == 1]
    if alone and (lam == 1 or (lam is None and similarity == "soft_wpmi")):
        found.append(
            f"{similarity} scores 0 for every concept in {', '.join(alone)}, whose one unit is all that its "
            "prior is made of: the label is the first concept; choose another function or a lam below 1"
        )
    if similarity == "rank_reorder":
        mean = P.T @ P.I.mean(0) if isinstance(P, FactoredMatrix) else P.mean(0)
        dropped = int((mean <= 0).sum())
        if dropped:
            found.append(
                f"rank_reorder hardly ever chooses {dropped} of {len(mean)} concepts, whose cosines are "
                "negative on average: it divides by a root of their mean"
            )
    return found


def best_of_units(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    similarity: str = DEFAULT,
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor:
    """Index of the best concept of every unit: P [N, M], Q [N, K] -> [K]; SparseColumns in blocks."""
    blocks = score_blocks(P, Q, similarity, memory=memory, generator=generator, **options)
    return torch.cat([scores.argmax(1) for _, _, scores in blocks])


def labels_of_units(
    P: Tensor | FactoredMatrix,
    Q: Mapping[str, Tensor | SparseColumns],
    concepts: Sequence[str],
    similarity: str = DEFAULT,
    options: Mapping[str, dict] | None = None,
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, list[str]]:
    """The best concept of every unit: P [N, M], Q {layer: [N, K]} -> {layer: K concepts}; `options` are those
    of the function for each layer.
    """
    best = best_by_layer(P, Q, similarity, options, memory=memory, generator=generator)
    return {layer: [concepts[i] for i in index.tolist()] for layer, index in best.items()}


def best_by_layer(
    P: Tensor | FactoredMatrix,
    Q: Mapping[str, Tensor | SparseColumns],
    similarity: str = DEFAULT,
    options: Mapping[str, dict] | None = None,
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Index of the best concept of every unit of each layer: P [N, M], Q {layer: [N, K]} -> {layer: [K]}."""
    options, given = options or dict.fromkeys(Q, {}), {"memory": memory, "generator": generator}
    dense = {layer: q for layer, q in Q.items() if isinstance(q, Tensor)}
    found = {layer: s.argmax(1) for layer, s in scored_layers(P, dense, similarity, options, **given)}
    for layer in (layer for layer in Q if layer not in dense):
        found[layer] = best_of_units(P, Q[layer], similarity, **given, **options[layer])
    return {layer: found[layer] for layer in Q}


def functions_for(N: int) -> list[str]:
    """Similarity functions for N images: rank_reorder orders the top 5 %, which have to be two at least."""
    return [name for name in SIMILARITIES if name != "rank_reorder" or N >= RANKED]
