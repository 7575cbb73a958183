"""The lens as one call: from a CLIP, images and words to words for every MLP neuron of a ViT, or for every
channel of the last layer of a ResNet, together or head by head; SigLIP's MLP neurons through its pool.

second_order  CLIP, probe, words -> the labels table
by_head       effects -> a labels table with a column head
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor
from torch.nn.functional import normalize

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
    Effects,
    mean,
    norms,
    principal_directions,
    second_order_effects,
)
from neuronym.second_order.map_head import has_map_head, map_effects, map_layers
from neuronym.second_order.pool import has_pool, pool_effects, POOLED, read_pool
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.segmentation import clip_target
from neuronym.second_order.text_code import code_coefficients, code_table, text_pool
from neuronym.second_order.tower import chosen_layers
from neuronym.similarity.labels import marked


def second_order(
    clip: str | Clip,
    probe: str | Sequence | Probe,
    words: str | Sequence[str],
    layers: str = "all",
    units: Units = "all",
    *,
    heads: bool = False,
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
    of `m` words. A ResNet has one layer with effects, its last (Bu & Gandelsman 2025); in a Hugging Face
    SigLIP all MLP layers have them, on its pool. With `heads` there is a code for every pair of neuron and
    head instead (`by_head`). Dead neurons have a note and no words (`similarity.labels.marked`). Errors:
    ValueError for other CLIPs, for layers that are not there, and for fewer images than `top`.

    >>> table = second_order("microworld:vit", "microworld:120", "microworld:atoms", "4", "ids:7", m=2)
    >>> table[["unit", "rank"]].values.tolist()
    [[7, 1], [7, 2]]
    """
    clip = load_clip(clip)
    texts = load_concepts(words)
    sizes, names = _layers(clip, layers)
    wanted = units_by_layer(units, sizes)
    images = load_probe(probe, progress=progress)
    check_images(len(images), top)
    if has_pool(clip):
        effects = {0: pool_effects(clip, images, batch_size, progress)[0]}
    elif has_map_head(clip):
        effects = map_effects(clip, images, list(names), batch_size, progress)
    else:
        effects = second_order_effects(clip, images, list(names), batch_size, progress)
    device = next(iter(effects.values())).rep.device
    atoms = text_pool(embed_concepts(clip, texts, template).to(device), text_norm)
    tables = []
    for number, name in names.items():
        if name not in wanted:
            continue
        some, of_layer = wanted[name], {"model": clip.name, "layer": name}
        if heads:
            codes = by_head(effects[number], some, atoms, texts, min(m, len(atoms)), memory, **of_layer)
        else:
            r = _directions(effects[number], top, memory)[some]
            order = matching_pursuit(r, atoms, min(m, len(atoms)), memory=memory, progress=progress)
            codes = code_table(order, code_coefficients(r, atoms, order), texts, units=some, **of_layer)
        tables.append(marked(codes, {name: carried(effects[number])}))
    return pd.concat(tables, ignore_index=True)


def by_head(
    effects: Effects,
    units: Sequence[int],
    atoms: Tensor,
    words: Sequence[str],
    m: int,
    memory: int = MEMORY,
    *,
    model: str,
    layer: str,
) -> pd.DataFrame:
    """Codes of what each of the `units` writes through each later head, as a labels table with columns head
    ("5.3" is head 3 of layer 5, "3" head 3 of an attention pool) and share.

    A pair writes along one direction V for every image, which is coded; its share is that of the pair's
    standard deviation over the images, ||V|| sd(s), in the sum over the neuron's heads. atoms [M, d].
    """
    tables, spread = [], effects.s.std(0)
    for j, head in enumerate(effects.factors.heads):
        V = effects.factors.V(units)[:, j]
        order = matching_pursuit(normalize(V, dim=1), atoms, m, memory=memory)
        gamma = code_coefficients(normalize(V, dim=1), atoms, order)
        codes = code_table(order, gamma, words, model=model, layer=layer, units=units)
        sizes = dict(zip(units, (V.norm(dim=1) * spread[j, units]).tolist()))
        name = ".".join(map(str, head)) if isinstance(head, tuple) else str(head)
        tables.append(codes.assign(head=name, share=codes["unit"].map(sizes)))
    table = pd.concat(tables, ignore_index=True)
    total = table[table["rank"] == 1].groupby("unit")["share"].sum()
    return table.assign(share=table["share"] / table["unit"].map(total))


def _layers(clip: Clip, layers: str) -> tuple[dict[str, int], dict[int, str]]:
    """Neurons by name, and names by number, of the layers asked for."""
    if has_map_head(clip):
        return map_layers(clip, layers)
    if not has_pool(clip):
        numbers = chosen_layers(clip, layers)
        _, infos = clip_target(clip)
        names = {number: infos[number].name for number in numbers}
        return {name: infos[number].units for number, name in names.items()}, names
    if layers != "all":
        raise ValueError(
            f"the lens of a ResNet reads its last layer, {POOLED}, got layers '{layers}' for clip "
            f"'{clip.name}'; leave 'all'"
        )
    return {POOLED: read_pool(clip).v.shape[1]}, {0: POOLED}


def _directions(effects: Effects, top: int, memory: int) -> Tensor:
    """Principal direction of every neuron of a layer, [K, d]."""
    about = mean(effects)
    return principal_directions(effects, about, norms(effects, about, memory), top, memory).r
