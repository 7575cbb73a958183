"""What is lost without a neuron's effects, and do its words foretell it? Ablations of a CLIP's neurons.

ABLATIONS         the paper's four ways
effect_ablation   representations without some of the second-order effects, by one of them
along_directions  representations whose effects are replaced by their parts along given directions
mean_activations  mean activation of every neuron at every token
indirect_effects  change of the representation when a neuron's activation becomes that: the network runs on
predicted_effect  what words predict for every image
logit_drop        which words' logits fall when a neuron is put to its mean on the images it acts on
word_percentile   place of a neuron's own words among all
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym.common.checks import unknown
from neuronym.common.memory import MEMORY, slices
from neuronym.common.types import Clip, Progress
from neuronym.datasets.probe import Probe, subset
from neuronym.second_order.effects import Directions, Effects, Mean, norms, projections, significant, total
from neuronym.second_order.lens import Lens, read_lens, recorded

ABLATIONS = ("all", "significant", "insignificant", "all but rank 1")


def effect_ablation(
    rep: Tensor, effects: Effects, about: Mean, directions: Directions, how: str, memory: int = MEMORY
) -> Tensor:
    """Representations rep [N, d] (of length 100) of the effects' images with some effects at their mean
    (section 4.1).

    "all" neurons; only the "significant" effects, whose deviation is longer than the neuron's threshold; only
    the "insignificant"; "all but rank 1" leaves of every deviation its part along the neuron's direction.
    `about` and `directions` come from other images than these. Errors: KeyError for another name.
    """
    if how not in ABLATIONS:
        raise unknown("ablation", how, ABLATIONS)
    if how == "all but rank 1":
        return along_directions(rep, effects, about, directions.r, memory=memory)
    marked = None
    if how != "all":
        marked = significant(norms(effects, about, memory), directions.threshold) == (how == "significant")
    return rep - total(effects, about, marked, memory)


def along_directions(
    rep: Tensor, effects: Effects, about: Mean, R: Tensor, released: bool = False, memory: int = MEMORY
) -> Tensor:
    """Representations in which every deviation d_n is replaced by <d_n, R_n> R_n, R [K, d] taken to length 1.

    `released` projects without that length, as the released evaluation of text codes does. A row of zeros
    removes all.
    """
    R = R if released else F.normalize(R, dim=1)
    return rep - total(effects, about, memory=memory) + projections(effects, about, R, memory) @ R


def mean_activations(
    clip: Clip, probe: Probe, layer: int, batch_size: int = 64, progress: Progress | None = None
) -> Tensor:
    """Mean over the images of every neuron's activation at every token, [T, K]."""
    lens = read_lens(clip)
    name = lens.neurons[layer]
    return (
        sum(acts[name].sum(0) for _, acts in recorded(clip, lens, probe, [name], batch_size, progress))
        / probe.N
    )


def indirect_effects(
    clip: Clip,
    probe: Probe,
    layer: int,
    units: Sequence[int],
    mean: Tensor,
    progress: Progress | None = None,
    together: int = 64,
    lens: Lens | None = None,
) -> Tensor:
    """Representation (of length 100) less what it is when a neuron's activation is its mean at all tokens:
    [N, k, d].

    One run of what is behind the layer for every image and unit (`together` units at once): this is what
    second-order effects stand in for. `mean` [T, K] is that of `mean_activations`; `lens` is read and proved
    anew for every call that does not bring it.
    """
    lens = lens or read_lens(clip)
    lens.checked([layer])
    names, out = [lens.streams[layer], lens.neurons[layer]], []
    units = torch.as_tensor(units, device=mean.device)
    write = lens.write(layer).T[units]  # [k, D]
    for _, acts in recorded(clip, lens, probe, names, 8, progress):
        stream, p = acts[names[0]], acts[names[1]][:, :, units]  # [b, T, D], [b, T, k]
        whole = lens.onward(layer, stream)
        change = (mean[:, units] - p).transpose(1, 2)  # [b, k, T]
        for i in range(len(stream)):
            rows = []
            for some in slices(len(units), together):
                moved = stream[i] + change[i, some, :, None] * write[some, None]
                rows.append(whole[i] - lens.onward(layer, moved))
            out.append(torch.cat(rows))
    return torch.stack(out)


def predicted_effect(weights: Tensor, present: Tensor) -> Tensor:
    """Predictions [N, K]: the sum over words of a neuron's weight times how much the word is in the image.

    weights [K, M] (a label is one word of weight 1, a code several with signs); present [N, M] is truth (0 or
    1), or the CLIP's own cosines of image and text. Scale and offset do not matter to `correlation`.
    """
    return present.to(weights.dtype) @ weights.T


def logit_drop(
    clip: Clip,
    probe: Probe,
    layer: int,
    units: Sequence[int],
    images: Tensor,
    mean: Tensor,
    T: Tensor,
    progress: Progress | None = None,
) -> Tensor:
    """Mean fall of every word's logit, [k, M], when the network runs on with the unit's activation at its
    mean.

    images [n, k] are those on which each unit acts; T [M, d] unit rows; logits are of length-100
    representations. Positive: the unit held the word up. `mean` [T, K] is that of
    `ablation.mean_activations`.
    """
    if images.ndim != 2 or images.shape[1] != len(units) or not len(units):
        raise ValueError(
            f"expected images [n, k] for k units, at least one, got {list(images.shape)} and {len(units)}"
        )
    out, lens = [], read_lens(clip)
    todo = list(enumerate(units))
    for place, unit in todo if progress is None else progress(todo, len(todo), "neurons ablated"):
        some = subset(probe, images[:, place].tolist())
        effect = indirect_effects(clip, some, layer, [unit], mean, lens=lens)[:, 0]  # [n, d]
        out.append(effect.mean(0) @ T.T)
    return torch.stack(out)


def word_percentile(values: Tensor, words: Sequence[int]) -> Tensor:
    """Share [k] of the other words whose value is below that of each row's own word (ties count half): 1 is
    the top.

    values [k, M]; a word of -1 gives .5, which is what chance gives.
    """
    words = torch.as_tensor(words, dtype=torch.long, device=values.device)
    if len(words) != len(values) or (words >= values.shape[1]).any():
        raise ValueError(
            f"expected a word below {values.shape[1]} or -1 for each of {len(values)} rows, got "
            f"{len(words)} words up to {max(words.tolist(), default=-1)}"
        )
    own = values.gather(1, words.clamp_min(0)[:, None])
    below = (values < own).double().sum(1) + 0.5 * ((values == own).double().sum(1) - 1)
    return torch.where(words < 0, 0.5, below / max(values.shape[1] - 1, 1))
