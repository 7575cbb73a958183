"""One way into every image tower that the lens reads: ViTs, ResNets with an attention pool, SigLIPs.

Lens          a tower as names, ablations and maps take it
read_lens     clip -> Lens, proved on one image
lens_numbers  "all" or "8,9,10" -> layers that have effects
clip_target   the image tower as a target network, and its layers of neurons by number
lens_effects  effects of layers for a probe, and what no neuron writes
recorded      layers of the tower over a probe, some images at a time

Layers have numbers: a ViT's and a SigLIP's are those of their MLPs, from 0; a ResNet's only one, layer4, is
4. Neurons are the units of these layers: MLP neurons, or a ResNet's last channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import nn, Tensor
from torch.nn.functional import normalize

from neuronym.activations import target_layers
from neuronym.common.types import Clip, Progress, Target
from neuronym.datasets.probe import batches, Probe
from neuronym.hooks import record
from neuronym.jobs import Job
from neuronym.layouts import LayerInfo
from neuronym.passes import inference, VIT_PIECE
from neuronym.second_order.effects import Effects, SCALE, second_order_effects
from neuronym.second_order.map_head import (
    has_map_head,
    map_attention,
    map_effects,
    map_layers,
    map_representation,
    MapHead,
    read_map_head,
)
from neuronym.second_order.pool import (
    has_pool,
    looks,
    Pool,
    pool_effects,
    pool_representation,
    POOLED,
    read_pool,
)
from neuronym.second_order.tower import (
    checked_layers,
    chosen_layers,
    class_attention,
    class_token,
    numbers_said,
    read_tower,
    representation,
    tokens,
    Tower,
)

POOLED_NUMBER = 4  # the number of a ResNet's layer POOLED


@dataclass(frozen=True)
class Lens:
    """A tower, T tokens (of a ResNet: places) of width D."""

    name: str
    read: Tower | Pool | MapHead
    module: nn.Module  # what is called with images [b, 3, H, W]
    neurons: dict[int, str]  # layers whose outputs are neurons, by number
    checked: Callable[[Sequence[int]], list[int]]  # numbers, or ValueError for a layer without effects
    tokens: Callable[[str, Tensor], Tensor]  # what a layer gives, as [b, T, ...]
    streams: dict[int, str]  # the layer whose output, [b, T, D], the network runs on from
    write: Callable[[int], Tensor]  # of a layer, [D, K]: column n is what neuron n adds to that
    onward: Callable[[int, Tensor], Tensor]  # layer, stream [b, T, D] -> representation [b, d] of length 100
    looked: str  # the layer from whose output, as [b, T, D], attention follows
    attention: Callable[[Tensor], Tensor]  # of what is embedded, to all tokens: [b, H, T]
    first: int  # tokens before those of places
    note: str  # what the lens sees of such a tower, in a sentence


def read_lens(clip: Clip) -> Lens:
    """The image tower of a CLIP; ValueError for one that is neither a ViT, nor a ResNet with an attention
    pool, nor a SigLIP.
    """
    if has_pool(clip):
        return _of_resnet(read_pool(clip))
    return _of_siglip(read_map_head(clip)) if has_map_head(clip) else _of_vit(read_tower(clip))


def _of_vit(tower: Tower) -> Lens:
    blocks = dict(enumerate(tower.blocks))

    def onward(layer: int, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if tower.tokens_first else x
        for block in tower.blocks[layer + 1 : -1]:
            x = block.run(x)
        x = class_token(tower.blocks[-1], x.transpose(0, 1) if tower.tokens_first else x)
        return SCALE * normalize(representation(tower, x), dim=1)

    return Lens(
        tower.name,
        tower,
        tower.module,
        {i: block.activation for i, block in blocks.items()},
        partial(checked_layers, tower),
        partial(tokens, tower),
        {i: block.residual for i, block in blocks.items()},
        lambda layer: tower.blocks[layer].write,
        onward,
        tower.streams[-2],
        lambda x: class_attention(tower.blocks[-1], x)[0],
        1,
        f"MLP neurons of layers 0 to {len(blocks) - 2}, through the attention of later layers to the class "
        "token",
    )


def _of_resnet(pool: Pool) -> Lens:
    def places(name: str, output: Tensor) -> Tensor:
        return output.flatten(2).transpose(1, 2)

    def attention(x: Tensor) -> Tensor:
        a = looks(pool, torch.cat([x.mean(1, keepdim=True), x], dim=1))
        return a[:, :, 1:] + a[:, :, :1] / x.shape[1]

    K = pool.v.shape[1]
    return Lens(
        pool.name,
        pool,
        pool.module,
        {POOLED_NUMBER: POOLED},
        lambda numbers: _of_pool(pool.name, numbers),
        places,
        {POOLED_NUMBER: POOLED},
        lambda layer: torch.eye(K, dtype=pool.v.dtype, device=pool.v.device),
        lambda layer, x: pool_representation(pool, x),
        POOLED,
        attention,
        0,
        f"channels of {POOLED}, through the {pool.heads} heads of the attention pool; earlier layers have "
        "ReLUs behind their sums, which no sum over neurons follows",
    )


def _of_siglip(head: MapHead) -> Lens:
    blocks = dict(enumerate(head.blocks))

    def onward(layer: int, x: Tensor) -> Tensor:
        for block in head.blocks[layer + 1 :]:
            x = block.run(x)
        return map_representation(head, x)

    return Lens(
        head.name,
        head,
        head.module,
        {i: block.neurons for i, block in blocks.items()},
        lambda numbers: map_layers(head, ",".join(map(str, numbers))),
        lambda name, output: output,
        {i: block.residual for i, block in blocks.items()},
        lambda layer: head.blocks[layer].write,
        onward,
        head.last,
        lambda x: map_attention(head, x)[0],
        0,
        f"MLP neurons of all layers, through the {head.heads} heads of the attention pool alone: what later "
        "layers make of them is not followed, and the pool's own MLP belongs to no neuron",
    )


def _of_pool(name: str, numbers: Sequence[int]) -> list[int]:
    if set(numbers) != {POOLED_NUMBER}:
        said = ",".join(map(str, numbers))
        raise ValueError(
            f"the lens of a ResNet reads its last layer, {POOLED}, got layers '{said}' for clip '{name}'; "
            f"leave 'all', or write {POOLED_NUMBER}"
        )
    return [POOLED_NUMBER]


def lens_numbers(lens: Lens, text: str) -> list[int]:
    """Layers from "all" (that have effects) or numbers separated by commas, ascending; ValueError for any
    other.
    """
    if isinstance(lens.read, Tower):
        return chosen_layers(lens.read, text)
    if isinstance(lens.read, MapHead):
        return map_layers(lens.read, text)
    numbers = numbers_said(text)
    return [POOLED_NUMBER] if numbers is None else _of_pool(lens.name, numbers)


def clip_target(clip: Clip, lens: Lens | None = None) -> tuple[Target, dict[int, LayerInfo]]:
    """The image tower to be named like any target, and its layers by number: units are the lens's neurons."""
    lens = lens or read_lens(clip)
    device = next(lens.module.parameters()).device
    example = torch.zeros_like(clip.preprocess(Image.new("RGB", (64, 64)))).float()[None].to(device)
    names = tuple(lens.neurons.values())
    kind = {} if isinstance(lens.read, Pool) else {"kind": "MLP"}
    target = Target(
        clip.name, lens.module, clip.preprocess, clip.preprocess_spec, None, clip.weights_key, names, example
    )
    layers = [replace(layer, **kind) for layer in target_layers(target, list(names))]
    return target, dict(zip(lens.neurons, layers))


def lens_effects(
    clip: Clip,
    probe: Probe,
    layers: Sequence[int],
    batch_size: int = 32,
    progress: Progress | None = None,
    beside: Sequence[Job] = (),
) -> tuple[dict[int, Effects], Tensor | None]:
    """Effects of every neuron of the layers for every image, {layer: Effects}, cached; and what no neuron of
    any layer writes, `rest` [N, d], None for a ViT, in which neurons are read on their way through later
    layers. Their pass fills the cache with what the jobs `beside` lack, too.

    Errors: ValueError for other CLIPs, and for layers without effects.
    """
    if has_pool(clip):
        _of_pool(clip.name, layers)
        found, rest = pool_effects(clip, probe, batch_size, progress, beside)
        return {POOLED_NUMBER: found}, rest
    if has_map_head(clip):
        return map_effects(clip, probe, layers, batch_size, progress, beside)
    return second_order_effects(clip, probe, layers, batch_size, progress, beside), None


def recorded(
    clip: Clip,
    lens: Lens,
    probe: Probe,
    names: Sequence[str],
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[tuple[slice, Mapping[str, Tensor]]]:
    """(rows, {layer: [b, T, ...]}) of some images at a time, in order; layers not named may be run by the
    caller.
    """
    stream = batches(probe, [clip.preprocess], batch_size)
    if progress is not None:
        stream = progress(stream, -(-probe.N // batch_size), f"{clip.name} over {probe.name}")
    with (
        inference(lens.module, piece=VIT_PIECE) as place,
        record(lens.module, list(dict.fromkeys(names)), lens.tokens) as acts,
    ):
        for rows, (images,) in stream:
            start = rows.start
            for piece in place(images):
                lens.module(piece)
                yield slice(start, start + len(piece)), acts
                start += len(piece)
