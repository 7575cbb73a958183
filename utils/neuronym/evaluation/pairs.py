"""Units beside what explanations say of them, with what several metrics need of both computed once.

active_images   the images on which units count as active
Pairs           units, their explanations, and what metrics share
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neuronym.common.blocks import number

ACTIVE = .05   # share of images on which a unit counts as active


def active_images(Q: Tensor, share: float = ACTIVE) -> Tensor:
    """The ceil(share N) images of largest activation of each unit, at least one, and those that tie with the last.

    bool [N, K]. Never those of its least activation: a constant (dead) unit has none, and one that is 0 on most images
    only those above 0, while in NeuronEval all N would tie. Errors: ValueError for a share outside 0..1.
    """
    number("share of active images", share, 0, 1)
    count = max(1, math.ceil(round(share * len(Q), 9)))  # .07 * 100 is a little more than 7
    cutoff = (Q if Q.is_floating_point() else Q.double()).topk(count, dim=0).values[-1]
    return (Q >= cutoff) & (Q > Q.amin(0))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Units Q [N, K] and their explanations [N, K], with what several metrics need, made when first asked for.

    `active`: share of images, or the active images themselves, bool [N, K]. Errors: ValueError for unequal shapes,
    values that are not finite and, where a metric needs probabilities, predictions outside 0..1.
    """

    Q: Tensor
    predicted: Tensor
    active: float | Tensor = ACTIVE
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (self.Q, self.predicted)]
        if shapes[0] != shapes[1] or not isinstance(self.Q, Tensor) or self.Q.ndim != 2 or not self.Q.numel():
            raise ValueError("expected Q and predicted as tensors [N, K] of one shape, none empty, got "
                             f"{shapes[0]} and {shapes[1]}; pick each unit's own column of the predictions")
        for name, x in (("Q", self.Q), ("predicted", self.predicted)):
            if not bool(x.isfinite().all()):
                image, unit = (~x.isfinite()).nonzero()[0].tolist()
                raise ValueError(f"{name} must be finite, got {x[image, unit].item()} at image {image}, unit {unit}; "
                                 "leave that image or unit out")
        if isinstance(self.active, Tensor) and (self.active.dtype, self.active.shape) != (torch.bool, self.Q.shape):
            raise ValueError(f"expected active images as bool {shapes[0]}, got {self.active.dtype} "
                             f"{list(self.active.shape)}; or pass a share")

    @cached_property
    def truth(self) -> Tensor:
        return self.active if isinstance(self.active, Tensor) else active_images(self.Q, self.active)

    @cached_property
    def chance(self) -> Tensor:
        """Predictions as probabilities, float64."""
        p = self.predicted.double()
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError(f"this metric takes predictions from 0 to 1, got {p.min().item():.4g} to "
                             f"{p.max().item():.4g}; make them probabilities, or use correlation, spearman, cosine, "
                             "auroc or auprc")
        return p

    @cached_property
    def said(self) -> Tensor:
        return self.predicted if self.predicted.dtype == torch.bool else self.chance >= .5

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """TP, A, C, each [K] in float64."""
        return tuple(x.sum(0).double() for x in (self.truth & self.said, self.truth, self.said))

    @cached_property
    def order_Q(self) -> tuple[Tensor, Tensor, Tensor]:
        return _order(self.Q)

    @cached_property
    def order_predicted(self) -> tuple[Tensor, Tensor, Tensor]:
        return _order(self.predicted)

    def random(self, *shape: int) -> Tensor:
        device = self.Q.device if self.generator is None else self.generator.device
        return torch.rand(shape, dtype=torch.float64, generator=self.generator, device=device).to(self.Q.device)


def _order(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices that sort each column, and in that order how many values are below each, and how many at most: [N, K]."""
    values, order = x.sort(dim=0)
    place = torch.arange(len(x), device=x.device)[:, None]
    if x.dtype == torch.bool:  # two groups: running maxima would cost more than sorting
        low = len(x) - x.sum(0)
        return order, torch.where(values, low, 0), torch.where(values, len(x), low)
    new = values[1:] != values[:-1]
    edge = new.new_ones(1, x.shape[1])
    below = torch.where(torch.cat([edge, new]), place, 0).cummax(0).values
    most = torch.where(torch.cat([new, edge]), place + 1, len(x)).flip(0).cummin(0).values.flip(0)
    return order, below, most
