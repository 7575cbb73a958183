"""CLIP-Dissect (Oikarinen & Weng, ICLR 2023): a unit's label is the concept whose CLIP scores over the images
look most like its activations.

clip_dissect   Measurements -> the labels table
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch

from neuronym.common.checks import unknown
from neuronym.common.memory import MEMORY
from neuronym.common.types import Progress
from neuronym.common.units import Units
from neuronym.measurements import Measurements
from neuronym.similarity.labels import labels_table
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
    a layer, also where `units` names some. `options` go to the function. Errors: KeyError for an unknown
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
        )
        for layer, scores in _scored(data, list(wanted), similarity, given, progress)
    ]
    return pd.concat(tables, ignore_index=True)


def _scored(
    data: Measurements, layers: list[str], similarity: str, given: dict, progress: Progress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(layer, scores [K, M]) of each layer."""
    pairs = score_layers(data.P, {name: data.Q[name] for name in layers}, similarity, **given)
    return pairs if progress is None else progress(pairs, len(layers), "layers scored")
