"""The paper's experiments as tables: what is lost when a layer's effects are ablated, coded or counted
otherwise.

ZeroShotTask      classes of held-out images
check_task        enough of these
Layer             a layer's effects on these, about a mean and along directions that other images gave
written_by        how much of the representation is of which layer
ablations         accuracy without some effects, layer by layer and together
against_indirect  second-order and indirect effects on the same images
by_code_length    accuracy when directions are sums of m words, for several pools
by_threshold      accuracy when more or fewer effects count as significant
variants          accuracy and words under what released code does otherwise
discovery         precision of the words found in an image
simulations       correlation of what words predict with what neurons do
with_plain_gelu   a CLIP whose text tower has GELU where it was trained with QuickGELU, as in released scripts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import nn, Tensor

from neuronym.common.files import digest
from neuronym.common.memory import MEMORY
from neuronym.common.statistics import correlation
from neuronym.common.types import Clip
from neuronym.datasets.tasks import zero_shot_accuracy
from neuronym.second_order.ablation import ABLATIONS, along_directions, effect_ablation, predicted_effect
from neuronym.second_order.effects import Directions, Effects, Mean, norms, projections, significant, total
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients, concepts_in_images, reconstruct


@dataclass(frozen=True)
class ZeroShotTask:
    """Zero-shot classes head [C, d] and the true class of every held-out image, truth [N]."""

    head: Tensor
    truth: Tensor

    def accuracy(self, rep: Tensor) -> float:
        """Share of representations [N, d] that are nearest to their class."""
        return zero_shot_accuracy(rep, self.head, self.truth)


def check_task(N: int, C: int) -> None:
    """ValueError unless there are two images of a task, and two classes."""
    if N < 2 or C < 2:
        raise ValueError(
            f"a task takes at least 2 images held out and 2 classes, got {N} and {C}; name a larger task, as "
            "microworld:1000"
        )


@dataclass(frozen=True)
class Layer:
    """Effects of a layer on held-out images, with mean and directions that other images gave."""

    effects: Effects
    about: Mean
    directions: Directions

    def significant_norms(self, memory: int = MEMORY) -> Tensor:
        """Length of each deviation where it is significant, else 0: [N, K]."""
        lengths = norms(self.effects, self.about, memory)
        return lengths * significant(lengths, self.directions.threshold)

    def projection(self, memory: int = MEMORY) -> Tensor:
        """Part of each deviation along the neuron's direction: [N, K]."""
        return projections(self.effects, self.about, self.directions.r, memory)


def written_by(
    effects: Mapping[int, Effects], rest: Tensor | None = None, memory: int = MEMORY
) -> pd.DataFrame:
    """Columns by, share, length: the representation as a sum of what the neurons of each layer write, of what
    none does (`rest` [N, d], where it is known), and of what is left.

    A share is the part along the representation itself, and shares add up to 1; lengths are those of the
    parts, of 100; both are means over images. Where nothing is left, all has been read.
    """
    rep = next(iter(effects.values())).rep
    parts = {}
    for number, found in effects.items():
        nothing = Mean(torch.zeros_like(found.s[0]), torch.zeros_like(found.B[0]))
        parts[f"neurons of layer {number}"] = total(found, nothing, memory=memory)
    if rest is not None:
        parts["no neuron"] = rest.to(rep)
    parts["all else"] = rep - sum(parts.values())
    size = rep.norm(dim=1)
    rows = [
        (name, float(((part * rep).sum(1) / size**2).mean()), float((100 * part.norm(dim=1) / size).mean()))
        for name, part in parts.items()
    ]
    return pd.DataFrame(rows, columns=["by", "share", "length"])


def ablations(layers: Mapping[int, Layer], task: ZeroShotTask, memory: int = MEMORY) -> pd.DataFrame:
    """Columns layer ("0", ..., "together"), ablation, accuracy; section 4.1, figure 3."""
    rows = []
    for how in ABLATIONS:
        rep = _rep(layers)
        lost = torch.zeros_like(rep)
        for number, layer in layers.items():
            without = effect_ablation(rep, layer.effects, layer.about, layer.directions, how, memory)
            lost += rep - without
            rows.append((str(number), how, task.accuracy(without)))
        rows.append(("together", how, task.accuracy(rep - lost)))
    return pd.DataFrame(rows, columns=["layer", "ablation", "accuracy"])


def against_indirect(
    kinds: Mapping[str, Tensor], rep: Tensor, task: ZeroShotTask, share: float = 0.1
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Table 1: accuracy with all effects at their mean, and variance along one direction; and these
    directions [k, d].

    kinds {name: effects [N, k, d]} are of the images of rep [N, d]; directions are those of each neuron's
    largest deviations, `share` of the images (two at least), as there are too few images for a hundred.
    """
    rows, directions = [], {}
    for name, phi in kinds.items():
        d = phi - phi.mean(0)
        some = d.norm(dim=2).topk(max(2, int(len(d) * share)), dim=0).indices.T[:, :, None]  # [k, n, 1]
        largest = d.transpose(0, 1).gather(1, some.expand(-1, -1, d.shape[2])).double()
        values, axes = torch.linalg.svd(largest, full_matrices=False)[1:]
        explained = values[:, 0].square() / values.square().sum(1).clamp_min(1e-300)
        rows.append((name, task.accuracy(rep - d.sum(1)), float(explained.mean())))
        directions[name] = axes[:, 0].to(phi.dtype)
    return pd.DataFrame(rows, columns=["effect", "accuracy", "explained"]), directions


def by_code_length(
    layers: Mapping[int, Layer],
    task: ZeroShotTask,
    pools: Mapping[str, Tensor],
    steps: Sequence[int],
    memory: int = MEMORY,
) -> pd.DataFrame:
    """Columns pool, words, accuracy, cosine (of directions and sums of words); figure 4, all layers coded
    together.

    One pursuit for each layer and pool gives all steps.
    """
    rows = []
    for name, atoms in pools.items():
        orders = {
            l: matching_pursuit(layer.directions.r, atoms, min(max(steps), len(atoms)), memory=memory)
            for l, layer in layers.items()
        }
        for m in (m for m in steps if m <= len(atoms)):
            coded = {l: _sums(layers[l], atoms, order[:, :m]) for l, order in orders.items()}
            rows.append(
                (name, m, task.accuracy(_replaced(layers, coded, False, memory)), _cosine(layers, coded))
            )
    return pd.DataFrame(rows, columns=["pool", "words", "accuracy", "cosine"])


def by_threshold(
    layers: Mapping[int, Layer],
    task: ZeroShotTask,
    lengths: Mapping[int, Tensor],
    counts: Sequence[int],
    memory: int = MEMORY,
) -> pd.DataFrame:
    """Columns value (images counted as significant), metric, score, of all layers together.

    lengths {layer: [n, K]} are the `norms` of the images that gave the directions.
    """
    held = {l: norms(layer.effects, layer.about, memory) for l, layer in layers.items()}
    rows = []
    for n in counts:
        limits = {l: lengths[l].topk(n, dim=0).values[-1] for l in layers}
        for how in ("significant", "insignificant"):
            lost = sum(
                total(
                    layer.effects,
                    layer.about,
                    significant(held[l], limits[l]) == (how == "significant"),
                    memory,
                )
                for l, layer in layers.items()
            )
            rows.append((n, f"{how} ablated", task.accuracy(_rep(layers) - lost)))
    return pd.DataFrame(rows, columns=["value", "metric", "score"])


def variants(
    layers: Mapping[int, Layer],
    task: ZeroShotTask,
    pools: Mapping[str, tuple[Tensor, bool]],
    m: int,
    memory: int = MEMORY,
) -> pd.DataFrame:
    """How each (atoms, unscaled projection?) compares with the first, all layers together.

    Columns variant, accuracy, cosine with r, words shared (Jaccard, mean over neurons), same first word
    (share of them).
    """
    rows, usual = [], None
    for name, (atoms, unscaled) in pools.items():
        orders = {
            l: matching_pursuit(layer.directions.r, atoms, m, memory=memory) for l, layer in layers.items()
        }
        usual = orders if usual is None else usual
        coded = {l: _sums(layers[l], atoms, order) for l, order in orders.items()}
        ours, theirs = (torch.cat([*some.values()]).tolist() for some in (orders, usual))
        sets = [(set(a) - {-1}, set(b) - {-1}) for a, b in zip(ours, theirs)]
        rows.append(
            (
                name,
                task.accuracy(_replaced(layers, coded, unscaled, memory)),
                _cosine(layers, coded),
                sum(len(a & b) / max(len(a | b), 1) for a, b in sets) / len(sets),
                sum(a[0] == b[0] for a, b in zip(ours, theirs)) / len(ours),
            )
        )
    return pd.DataFrame(rows, columns=["variant", "accuracy", "cosine", "words shared", "same first word"])


def discovery(
    layer: Layer,
    atoms: Tensor,
    order: Tensor,
    steps: Sequence[int],
    truth: Tensor | None = None,
    first: int = 10,
    memory: int = MEMORY,
) -> tuple[pd.DataFrame, Tensor]:
    """Precision of the `first` words found in each image, and that of the words of another image; and the
    last scores.

    Ways to score a word: "coefficients" sums gamma times the length of the neuron's deviation over the active
    neurons (as released); "signed" takes all neurons and their parts along r instead; "reading" is the
    product of the word with the sum of the neurons' parts, each along its reconstruction. truth [N, M] is
    bool; without it the table is empty.
    """
    rows, active, along = [], layer.significant_norms(memory), layer.projection(memory)
    for m in (m for m in steps if m <= order.shape[1]):
        gamma = code_coefficients(layer.directions.r, atoms, order[:, :m])
        code = order[:, :m], gamma, len(atoms)
        ways = {
            "coefficients": concepts_in_images(active, *code),
            "signed": concepts_in_images(along, *code),
            "reading": along @ reconstruct(gamma, order[:, :m], atoms) @ atoms.T,
        }
        for way, scores in ways.items() if truth is not None else ():
            found = scores.topk(first, dim=1).indices
            rows.append(
                (m, way, *(float(of.gather(1, found).float().mean()) for of in (truth, truth.roll(1, 0))))
            )
    return pd.DataFrame(rows, columns=["words", "way", "precision", "of another image"]), ways["reading"]


def simulations(
    words: Mapping[str, Tensor], present: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> pd.DataFrame:
    """Columns unit, method, predicted, by, correlation: words {method: weights [K, M]} predict wanted {name:
    [N, K]}.

    present {by: [N, M]} says how much each word is in each image.
    """
    rows = [
        (unit, method, what, by, r)
        for by, seen in present.items()
        for method, weights in words.items()
        for what, values in wanted.items()
        for unit, r in enumerate(correlation(predicted_effect(weights, seen - seen.mean(0)), values).tolist())
    ]
    return pd.DataFrame(rows, columns=["unit", "method", "predicted", "by", "correlation"])


def _rep(layers: Mapping[int, Layer]) -> Tensor:
    return next(iter(layers.values())).effects.rep


def _sums(layer: Layer, atoms: Tensor, order: Tensor) -> Tensor:
    """Directions as sums of the chosen words, [K, d]."""
    return reconstruct(code_coefficients(layer.directions.r, atoms, order), order, atoms)


def _replaced(
    layers: Mapping[int, Layer], coded: Mapping[int, Tensor], unscaled: bool, memory: int
) -> Tensor:
    """Representations [N, d] whose effects, of all layers, lie along the coded directions."""
    rep = _rep(layers)
    return rep + sum(
        along_directions(rep, layer.effects, layer.about, coded[l], unscaled, memory) - rep
        for l, layer in layers.items()
    )


def _cosine(layers: Mapping[int, Layer], coded: Mapping[int, Tensor]) -> float:
    return float(
        torch.cat(
            [torch.cosine_similarity(coded[l], layer.directions.r) for l, layer in layers.items()]
        ).mean()
    )


IMAGE_PARTS = ("visual", "vision_model")


def with_plain_gelu(clip: Clip) -> Clip:
    """The same CLIP, texts embedded with GELU in place of QuickGELU; images as they were. ValueError if it
    has none.
    """
    places = (
        []
        if clip.model is None
        else [
            name
            for name, part in clip.model.named_modules()
            if "QuickGELU" in type(part).__name__ and name.split(".")[0] not in IMAGE_PARTS
        ]
    )
    if not places:
        raise ValueError(
            f"plain GELU can only take the place of QuickGELU, which the text tower of clip '{clip.name}' "
            "lacks"
        )

    def encode_text(texts: Sequence[str]) -> Tensor:
        with _swapped(clip.model, places):
            return clip.encode_text(texts)

    return replace(clip, encode_text=encode_text, text_key=digest(clip.text_key, "plain GELU"))


@contextmanager
def _swapped(model: nn.Module, places: Sequence[str]) -> Iterator[None]:
    """GELU at the given places of the model, for the block."""
    parents = {
        name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in places
    }
    before = {name: model.get_submodule(name) for name in places}
    try:
        for parent, child in parents.values():
            setattr(parent, child, nn.GELU())
        yield
    finally:
        for name, (parent, child) in parents.items():
            setattr(parent, child, before[name])
