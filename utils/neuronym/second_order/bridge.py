"""Do a neuron's words say what it does? Predictions on images not seen, and a causal check, for words of any method.

simulated       what words predict for every image
standard        columns with mean 0 and length 1
correlation     of prediction and truth, neuron by neuron
falls           which words' logits fall when a neuron is put to its mean on the images it acts on
percentile      place of a neuron's own words among all
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuronym.datasets.probe import only, Probe
from neuronym.models.clips import Clip
from neuronym.passes import Progress
from neuronym.second_order.ablation import indirect_effects
from neuronym.second_order.towers import read_tower


def simulated(weights: Tensor, present: Tensor) -> Tensor:
    """Predictions [N, K]: the sum over words of a neuron's weight times how much the word is in the image.

    weights [K, M] (a label is one word of weight 1, a code several with signs); present [N, M] is truth (0 or 1), or
    the CLIP's own cosines of image and text. Scale and offset do not matter to `correlation`.
    """
    return present.to(weights.dtype) @ weights.T


def correlation(predicted: Tensor, true: Tensor) -> Tensor:
    """Pearson correlation [K] over images of predicted and true values, both [N, K]; 0 where either is constant.

    Constant is what varies by no more than rounding of its largest value, whatever the scale.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"expected predicted and true values [N, K] of one shape, got {list(predicted.shape)} and "
                         f"{list(true.shape)}")
    return (standard(predicted) * standard(true)).sum(0)


def falls(clip: Clip, probe: Probe, layer: int, units: Sequence[int], images: Tensor, mean: Tensor, T: Tensor,
          progress: Progress | None = None) -> Tensor:
    """Mean fall of every word's logit, [k, M], when the network runs on with the unit's activation at its mean.

    images [n, k] are those on which each unit acts; T [M, d] unit rows; logits are of length-100 representations.
    Positive: the unit held the word up. `mean` [T, K] is that of `ablation.mean_activations`.
    """
    if images.ndim != 2 or images.shape[1] != len(units) or not len(units):
        raise ValueError(f"expected images [n, k] for k units, at least one, got {list(images.shape)} and {len(units)}")
    out, tower = [], read_tower(clip)
    todo = list(enumerate(units))
    for place, unit in todo if progress is None else progress(todo, len(todo), "neurons ablated"):
        some = only(probe, images[:, place].tolist())
        effect = indirect_effects(clip, some, layer, [unit], mean, tower=tower)[:, 0]   # [n, d]
        out.append(effect.mean(0) @ T.T)
    return torch.stack(out)


def percentile(values: Tensor, words: Sequence[int]) -> Tensor:
    """Share [k] of the other words whose value is below that of each row's own word (ties count half): 1 is the top.

    values [k, M]; a word of -1 gives .5, which is what chance gives.
    """
    words = torch.as_tensor(words, dtype=torch.long, device=values.device)
    if len(words) != len(values) or (words >= values.shape[1]).any():
        raise ValueError(f"expected a word below {values.shape[1]} or -1 for each of {len(values)} rows, got "
                         f"{len(words)} words up to {max(words.tolist(), default=-1)}")
    own = values.gather(1, words.clamp_min(0)[:, None])
    below = (values < own).double().sum(1) + .5 * ((values == own).double().sum(1) - 1)
    return torch.where(words < 0, .5, below / max(values.shape[1] - 1, 1))


def standard(x: Tensor) -> Tensor:
    """Columns centred and of length 1, in float64; zeros for one that is constant."""
    rounding = torch.finfo(x.dtype if x.is_floating_point() else torch.float64).eps
    x = x.double()
    largest = x.abs().amax(0).clamp_min(1e-300)
    x = (x - x.mean(0)) / largest  # squares of small values would vanish
    length = x.norm(dim=0)
    return torch.where(length <= 4 * rounding * len(x) ** .5, 0., x / length)
