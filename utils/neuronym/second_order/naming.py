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
from neuronym.second_order.effects import carried, check_images, Effects, mean, norms, principal_directions
from neuronym.second_order.lens import clip_target, lens_effects, lens_numbers, read_lens
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients, code_table, text_pool
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
    of `m` words. A ResNet has one layer with effects, its last, 4 (Bu & Gandelsman 2025); in a SigLIP all MLP
    layers have them, on its pool. With `heads` there is a code for every pair of neuron and
    head instead (`by_head`). Dead neurons have a note and no words (`similarity.labels.marked`). Errors:
    ValueError for other CLIPs, for layers that are not there, and for fewer images than `top`.

    >>> table = second_order("microworld:vit", "microworld:120", "microworld:atoms", "4", "ids:7", m=2)
    >>> table[["unit", "rank"]].values.tolist()
    [[7, 1], [7, 2]]
    """
    clip = load_clip(clip)
    texts = load_concepts(words)
    lens = read_lens(clip)
    numbers = lens_numbers(lens, layers)
    _, infos = clip_target(clip, lens)
    wanted = units_by_layer(units, {infos[number].name: infos[number].units for number in numbers})
    images = load_probe(probe, progress=progress)
    check_images(len(images), top)
    effects, _ = lens_effects(clip, images, numbers, batch_size, progress)
    device = next(iter(effects.values())).rep.device
    atoms = text_pool(embed_concepts(clip, texts, template).to(device), text_norm)
    tables = []
    for number in numbers:
        name = infos[number].name
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
    tables, spread = [], effects.s.std(0).to(effects.B.device)
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


def _directions(effects: Effects, top: int, memory: int) -> Tensor:
    """Principal direction of every neuron of a layer, [K, d]."""
    about = mean(effects)
    return principal_directions(effects, about, norms(effects, about, memory), top, memory).r
