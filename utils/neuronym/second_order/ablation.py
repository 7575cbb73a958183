"""What a CLIP's representations lose with the effects of a layer's neurons: second-order, and indirect.

ablated            representations without some of the second-order effects: one of ABLATIONS
ABLATIONS          the paper's four
along              representations whose effects are replaced by their parts along given directions
indirect_effects   change of the representation when one neuron's activation becomes its mean, by running the network on
mean_activations   the mean, for every token
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym.common.blocks import MEMORY, slices
from neuronym.common.errors import unknown
from neuronym.datasets.probe import Probe
from neuronym.models.clips import Clip
from neuronym.passes import Progress
from neuronym.second_order.effects import Directions, Mean, norms, projections, significant, total
from neuronym.second_order.lens import checked_layers, Effects, SCALE
from neuronym.second_order.towers import class_token, read_tower, recorded, representation, Tower

ABLATIONS = ("all", "significant", "insignificant", "all but rank 1")


def ablated(rep: Tensor, effects: Effects, about: Mean, directions: Directions, how: str,
            memory: int = MEMORY) -> Tensor:
    """Representations rep [N, d] (of length 100) of the effects' images with some effects at their mean (section 4.1).

    "all" neurons; only the "significant" effects, whose deviation is longer than the neuron's threshold; only the
    "insignificant"; "all but rank 1" leaves of every deviation its part along the neuron's direction.
    `about` and `directions` come from other images than these. Errors: KeyError for another name.
    """
    if how not in ABLATIONS:
        raise unknown("ablation", how, ABLATIONS)
    if how == "all but rank 1":
        return along(rep, effects, about, directions.r, memory=memory)
    marked = None
    if how != "all":
        marked = significant(norms(effects, about, memory), directions.threshold) == (how == "significant")
    return rep - total(effects, about, marked, memory)


def along(rep: Tensor, effects: Effects, about: Mean, R: Tensor, released: bool = False,
          memory: int = MEMORY) -> Tensor:
    """Representations in which every deviation d_n is replaced by <d_n, R_n> R_n, R [K, d] taken to length 1.

    `released` projects without that length, as the released evaluation of text codes does. A row of zeros removes all.
    """
    R = R if released else F.normalize(R, dim=1)
    return rep - total(effects, about, memory=memory) + projections(effects, about, R, memory) @ R


def mean_activations(clip: Clip, probe: Probe, layer: int, batch_size: int = 64,
                     progress: Progress | None = None) -> Tensor:
    """Mean over the images of every neuron's activation at every token, [T, K]."""
    tower = read_tower(clip)
    name = tower.blocks[layer].activation
    return sum(acts[name].sum(0) for _, acts in recorded(clip, tower, probe, [name], batch_size, progress)) / probe.N


def indirect_effects(clip: Clip, probe: Probe, layer: int, units: Sequence[int], mean: Tensor,
                     progress: Progress | None = None, together: int = 64, tower: Tower | None = None) -> Tensor:
    """Representation (of length 100) less what it is when a neuron's activation is its mean at all tokens: [N, k, d].

    One run of the blocks behind the layer for every image and unit (`together` units at once): this is what
    second-order effects stand in for. `mean` [T, K] is that of `mean_activations`; `tower` is read and proved anew for
    every call that does not bring it.
    """
    tower = tower or read_tower(clip)
    checked_layers(tower, [layer])
    block, out = tower.blocks[layer], []
    units = torch.as_tensor(units, device=mean.device)
    for _, acts in recorded(clip, tower, probe, [block.residual, block.activation], 8, progress):
        stream, p = acts[block.residual], acts[block.activation][:, :, units]                  # [b, T, D], [b, T, k]
        whole = _length_100(tower, _behind(tower, layer, stream))
        change = (mean[:, units] - p).transpose(1, 2)                                          # [b, k, T]
        for i in range(len(stream)):
            rows = []
            for some in slices(len(units), together):
                moved = stream[i] + change[i, some, :, None] * block.write.T[units[some], None]
                rows.append(whole[i] - _length_100(tower, _behind(tower, layer, moved)))
            out.append(torch.cat(rows))
    return torch.stack(out)


def _behind(tower: Tower, layer: int, x: Tensor) -> Tensor:
    """The residual stream x [b, T, D] behind block `layer` -> class tokens behind the last block [b, D]."""
    x = x.transpose(0, 1) if tower.tokens_first else x
    for block in tower.blocks[layer + 1:-1]:
        x = block.run(x)
    return class_token(tower.blocks[-1], x.transpose(0, 1) if tower.tokens_first else x)


def _length_100(tower: Tower, x: Tensor) -> Tensor:
    return SCALE * F.normalize(representation(tower, x), dim=1)
