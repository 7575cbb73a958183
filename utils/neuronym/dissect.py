"""CLIP-Dissect (Oikarinen & Weng, ICLR 2023): a unit's label is the concept whose CLIP scores over the images
look most like its activations.

clip_dissect     Measurements -> the labels table
labels_of_units  the best concept of every unit, layer by layer
functions_for    similarity functions that so many images are enough for
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import RANKED, unknown
from neuronym.common.memory import MEMORY
from neuronym.common.types import Progress
from neuronym.common.units import Units
from neuronym.measurements import Measurements
from neuronym.similarity.labels import labels_table
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score_layers, SIMILARITIES


def clip_dissect(
    data: Measurements,
    similarity: str = "soft_wpmi",
    k: int = 5,
    units: Units = "all",
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
    **options,
) -> pd.DataFrame:
    """The k best concepts of every unit by a similarity function, as the labels table: rank 1 is the label.

    Layers share the blocks of P [N, M]; what a function normalises over units is normalised over all units of
    a layer, also where `units` names some. Units that are dead, constant or saturated have a note and no name
    (`neuronym.similarity.labels.unit_notes`). `options` go to the function. Errors: KeyError for an unknown
    function, ValueError for units that are not there.

    >>> from neuronym import measure
    >>> data = measure("microworld:resnet", "fc", "microworld:200", "microworld", "microworld:atoms")
    >>> clip_dissect(data, "cos_similarity_cubed", k=1, units="ids:0-2")["label"].tolist()
    ['circle', 'square', 'triangle']
    """
    if similarity not in SIMILARITIES:
        raise unknown("similarity function", similarity, SIMILARITIES)
    wanted = data.units(units)
    given = {"memory": memory, "generator": generator, **options}
    tables = [
        labels_table(
            scores[wanted[layer]],
            data.concepts,
            model=data.target.name,
            layer=layer,
            method=similarity,
            k=k,
            units=wanted[layer],
            activations=data.Q[layer],
        )
        for layer, scores in _scored(data, list(wanted), similarity, given, progress)
    ]
    return pd.concat(tables, ignore_index=True)


def labels_of_units(
    P: Tensor | FactoredMatrix,
    Q: Mapping[str, Tensor],
    concepts: Sequence[str],
    similarity: str = "soft_wpmi",
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
) -> dict[str, list[str]]:
    """The best concept of every unit: P [N, M], Q {layer: [N, K]} -> {layer: K concepts}."""
    found = {}
    for layer, scores in score_layers(P, Q, similarity, memory=memory, generator=generator):
        found[layer] = [concepts[i] for i in scores.argmax(1).tolist()]
    return found


def functions_for(N: int) -> list[str]:
    """Similarity functions for N images: rank_reorder orders the top 5 %, which have to be two at least."""
    return [name for name in SIMILARITIES if name != "rank_reorder" or N >= RANKED]


def _scored(
    data: Measurements, layers: list[str], similarity: str, given: dict, progress: Progress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(layer, scores [K, M]) of each layer."""
    pairs = score_layers(data.P, {name: data.Q[name] for name in layers}, similarity, **given)
    return pairs if progress is None else progress(pairs, len(layers), "layers scored")
