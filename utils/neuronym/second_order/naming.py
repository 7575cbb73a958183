"""The second-order lens as one call: from a CLIP, images and words to words for every MLP neuron.

second_order  CLIP, probe, words -> the labels table
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common.memory import MEMORY
from neuronym.common.types import Clip, Progress
from neuronym.common.units import Units, units_by_layer
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe, Probe
from neuronym.models.clips import load_clip
from neuronym.second_order.effects import (
    carried,
    check_images,
    chosen_layers,
    mean,
    norms,
    principal_directions,
    second_order_effects,
)
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.segmentation import clip_target
from neuronym.second_order.text_code import code_coefficients, code_table, text_pool
from neuronym.similarity.labels import marked


def second_order(
    clip: str | Clip,
    probe: str | Sequence | Probe,
    words: str | Sequence[str],
    layers: str = "all",
    units: Units = "all",
    *,
    m: int = 16,
    top: int = 100,
    text_norm: str = "unit",
    template: str = "{}",
    batch_size: int = 32,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Sparse text codes of MLP neurons (Gandelsman et al. 2025, sections 3 and 4) as the labels table: method
    second_order, score the word's coefficient, rank 1 the word of largest absolute value.

    `layers` are "all" that have effects or numbers from 0 ("8,9,10"), layer names in `units` and in the table
    are those of the CLIP's tower; each direction, of a neuron's `top` images of largest effect, becomes a sum
    of `m` words. Dead neurons have a note and no words (`similarity.labels.marked`). Errors: ValueError for a
    CLIP without a ViT, and for fewer images than `top`.

    >>> table = second_order("microworld:vit", "microworld:120", "microworld:atoms", "4", "ids:7", m=2)
    >>> table[["unit", "rank"]].values.tolist()
    [[7, 1], [7, 2]]
    """
    clip = load_clip(clip)
    texts = load_concepts(words)
    numbers = chosen_layers(clip, layers)
    _, infos = clip_target(clip)
    names = {number: infos[number].name for number in numbers}
    wanted = units_by_layer(units, {name: infos[number].units for number, name in names.items()})
    images = load_probe(probe, progress=progress)
    check_images(len(images), top)
    effects = second_order_effects(clip, images, numbers, batch_size, progress)
    atoms = text_pool(embed_concepts(clip, texts, template).to(effects[numbers[0]].rep.device), text_norm)
    tables = []
    for number in numbers:
        if names[number] not in wanted:
            continue
        some = wanted[names[number]]
        r = _directions(effects[number], top, memory)[some]
        order = matching_pursuit(r, atoms, min(m, len(atoms)), memory=memory, progress=progress)
        gamma = code_coefficients(r, atoms, order)
        codes = code_table(order, gamma, texts, model=clip.name, layer=names[number], units=some)
        tables.append(marked(codes, {names[number]: carried(effects[number])}))
    return pd.concat(tables, ignore_index=True)


def _directions(effects, top: int, memory: int) -> Tensor:
    """Principal direction of every neuron of a layer, [K, d]."""
    about = mean(effects)
    return principal_directions(effects, about, norms(effects, about, memory), top, memory).r
