"""Where an image shows a class, told by neurons: zero-shot segmentation from a CLIP's MLPs (section 5).

clip_target      a CLIP's image tower as a target network, its MLP neurons as layers
class_weights    which neurons' activations are averaged for each class
neuron_heat      the average, patch by patch
attention_heat   a baseline without neurons: the last attention of the class token
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from neuronym.datasets.probe import Probe
from neuronym.hooks import record
from neuronym.inference import ready
from neuronym.layers import LayerInfo
from neuronym.models.clips import Clip
from neuronym.models.models import Target
from neuronym.passes import Progress
from neuronym.second_order.lens import checked_layers
from neuronym.second_order.neuron_words import speaking_neurons
from neuronym.second_order.towers import class_attention, read_tower, recorded, Tower


def clip_target(clip: Clip) -> tuple[Target, list[LayerInfo]]:
    """The image tower to be named like any target, and its MLP layers, first to last: units are the lens's neurons."""
    tower = read_tower(clip)
    example = torch.zeros_like(clip.preprocess(Image.new("RGB", (64, 64)))).float()[None].to(tower.projection.device)
    with ready(tower.module), record(tower.module, [block.activation for block in tower.blocks],
                                     lambda name, output: tuple(output.shape)) as shapes:
        tower.module(example)
        found = dict(shapes)
    layout = "tokens_first" if tower.tokens_first else "tokens"
    layers = []
    for block in tower.blocks:
        shape = found[block.activation]
        layers.append(LayerInfo(block.activation, "MLP", shape[-1], (shape[0 if tower.tokens_first else 1], shape[-1]),
                                layout))
    return Target(clip.name, tower.module, clip.preprocess, clip.preprocess_spec, None, clip.weights_key,
                  tuple(block.activation for block in tower.blocks), example), layers


def class_weights(R: Mapping[int, Tensor], head: Tensor, neurons: int = 200, signed: bool = True) -> dict[int, Tensor]:
    """Weights {layer: [C, K]}: for each class the mean over the `neurons` of all layers with the largest |r . w_c|.

    R {layer: [K, d]}, head [C, d]. `signed` counts a neuron that speaks against the class with -1; the released
    segmentation ignores the sign.
    """
    rows = torch.cat([*R.values()])
    weights = rows.new_zeros(len(head), len(rows))
    for c, w in enumerate(head):
        units, reads = speaking_neurons(w, rows, neurons)
        weights[c, units] = (reads.sign() if signed else torch.ones_like(reads)) / len(units)
    return dict(zip(R, weights.split([len(r) for r in R.values()], dim=1)))


def neuron_heat(clip: Clip, probe: Probe, weights: Mapping[str, Mapping[int, Tensor]], classes: Tensor,
                batch_size: int = 32, progress: Progress | None = None) -> dict[str, Tensor]:
    """Weighted sums of post-activations on the patches of each image, {name: [N, h, w]}; the class token is left out.

    weights {name: those of `class_weights`}, all from one pass; classes [N] says whose weights an image gets. Errors:
    ValueError for layers that have no second-order effects.
    """
    if len(classes) != probe.N:  # one alone would be taken for all
        raise ValueError(f"expected a class for each of the {probe.N} images, got {len(classes)}")

    def heat(tower: Tower, acts: dict[str, Tensor], rows: slice) -> Tensor:
        sums = [sum(torch.einsum("btk,bk->bt", acts[tower.blocks[layer].activation][:, 1:], w[classes[rows]])
                    for layer, w in by_layer.items()) for by_layer in weights.values()]
        return torch.stack(sums, dim=1)                                                        # [b, names, T - 1]

    def names(tower: Tower) -> list[str]:
        layers = {layer for by_layer in weights.values() for layer in by_layer}
        return [tower.blocks[layer].activation for layer in checked_layers(tower, layers)]

    return dict(zip(weights, _patches(clip, probe, names, heat, batch_size, progress).unbind(1)))


def attention_heat(clip: Clip, probe: Probe, batch_size: int = 32, progress: Progress | None = None) -> Tensor:
    """How much the class token looks at each patch in the last block, mean over heads, [N, h, w]."""
    def heat(tower: Tower, acts: dict[str, Tensor], rows: slice) -> Tensor:
        return class_attention(tower.blocks[-1], acts[tower.blocks[-2].residual])[0].mean(1)[:, None, 1:]

    return _patches(clip, probe, lambda tower: [tower.blocks[-2].residual], heat, batch_size, progress)[:, 0]


def _patches(clip: Clip, probe: Probe, names, heat, batch_size: int, progress: Progress | None) -> Tensor:
    """heat(tower, recorded layers, rows) [b, n, T - 1] of all images, as maps on the square grid of patches."""
    tower, parts = read_tower(clip), []
    for rows, acts in recorded(clip, tower, probe, names(tower), batch_size, progress):
        parts.append(heat(tower, acts, rows))
    flat = torch.cat(parts)
    side = round(flat.shape[2] ** .5)
    return flat.unflatten(2, (side, side))
