"""Every kind of explanation as one thing: a text for each unit, and what it predicts from what is in an image.

Explained   texts [K] and predict: present [N, M] -> [N, K]
single      a label for each unit
additive    sums of concepts
logical     formulas
combined    the largest of several labels
controls    explanations that know nothing of the unit: another unit's, and one for all
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.evaluation import formulas, linear


@dataclass(frozen=True)
class Explained:
    """What a method says of the K units of a layer."""

    texts: list[str]
    predict: Callable[[Tensor], Tensor]
    cut: Tensor | None = None   # [K]: where predictions are no probabilities, those above say that the unit is active


def single(labels: Sequence[str] | Tensor, concepts: Sequence[str]) -> Explained:
    """One concept for each unit, by name or index; the unit is predicted to do what the concept does.

    Errors: KeyError for a label that is not among the concepts.
    """
    where = {c: i for i, c in reversed(list(enumerate(concepts)))}
    strange = [] if isinstance(labels, Tensor) else [label for label in labels if label not in where]
    if strange:
        raise KeyError(f"{len(strange)} labels are not among the {len(concepts)} concepts, e.g. '{strange[0]}'; add them")
    index = labels if isinstance(labels, Tensor) else torch.tensor([where[label] for label in labels], dtype=torch.long)
    return Explained([concepts[i] for i in index.tolist()], lambda present: present[:, index.to(present.device)])


def additive(found: linear.Linear, concepts: Sequence[str], present: Tensor, active: float) -> Explained:
    """Sums of concepts found by `linear.explain`, without their bias, so that nothing present predicts 0.

    They say that a unit is active where the sum is large: beyond a cut that leaves about the share `active` of the images
    for naming, present [N, M].
    """
    def predict(present: Tensor) -> Tensor:
        return linear.predict(found, present) - found.bias

    texts = [linear.text(found, concepts, unit) for unit in range(len(found.chosen))]
    return Explained(texts, predict, _cut(predict(present), active))


def logical(found: Sequence[formulas.Formula | None], concepts: Sequence[str]) -> Explained:
    """Formulas found by `formulas.search`, over concepts that count as present from a half on; None is never true."""
    def predict(present: Tensor) -> Tensor:
        there = present if present.dtype == torch.bool else present >= .5
        never = there.new_zeros(len(there))
        return torch.stack([never if f is None else formulas.evaluate(f, there) for f in found], dim=1)

    return Explained(["" if f is None else formulas.text(f, concepts) for f in found], predict)


def combined(labels: Sequence[Sequence[int]], concepts: Sequence[str]) -> Explained:
    """Several concepts for each unit: it is predicted to do what the most present of them does."""
    def predict(present: Tensor) -> Tensor:
        return torch.stack([present[:, list(some)].amax(1) for some in labels], dim=1)

    return Explained([" / ".join(concepts[i] for i in some) for some in labels], predict)


def controls(labels: Tensor, concepts: Sequence[str], present: Tensor, Q: Tensor, generator: torch.Generator) -> dict[str, Explained]:
    """`shuffled`: the labels [K] dealt to other units; `constant`: the one concept that correlates best with all units.

    present [N, M] and Q [N, K] are of the images for naming.
    """
    from neuronym.evaluation.evaluate import presence_oracle
    dealt = labels[torch.randperm(len(labels), generator=generator).to(labels.device)]
    best = presence_oracle(Q, present).mean(0).argmax()
    return {"shuffled": single(dealt, concepts), "constant": single(best.expand(len(labels)), concepts)}


def _cut(predicted: Tensor, share: float) -> Tensor:
    """Between two values of each column [N, K], so that the number above is nearest to the share; equal values stay together."""
    values = predicted.double().sort(dim=0, descending=True).values
    above = torch.arange(1, len(values), device=values.device, dtype=torch.float64)[:, None]
    off = (above - share * len(values)).abs().where(values[:-1] > values[1:], torch.inf)
    best = off.argmin(0, keepdim=True)
    return (values.gather(0, best) + values.gather(0, best + 1)).squeeze(0) / 2
