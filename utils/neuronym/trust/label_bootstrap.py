"""What a label and its score would be on other images: drawn with replacement, and how far the label leads.

bootstrap_labels  labels and scores on images drawn with replacement
Bootstrap         what that finds
margin            lead of the best concept before the second
best_concepts     the best concept of each unit
take_rows         some images of P

N images, K units, M concepts. `options` are those of the similarity function. Without a generator its seed is 0.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.blocks import Embedded, MEMORY, whole
from neuronym.similarity.similarity import score, top_labels


@dataclass(frozen=True)
class Bootstrap:
    """Labels under resampling of images, by unit: all [K]."""

    label: Tensor        # index of the best concept on all images
    stability: Tensor    # share of draws with the same best concept
    low: Tensor          # 95 % percentile interval of that concept's score
    high: Tensor
    alternative: Tensor  # the concept that is best most often when it is not the label; -1 where there is none


@torch.no_grad()
def bootstrap_labels(P: Tensor | Embedded, Q: Tensor, method: str = "soft_wpmi", *, draws: int = 50,
                     generator: torch.Generator | None = None, memory: int = MEMORY, **options) -> Bootstrap:
    """Name units on `draws` samples of the N images, drawn with replacement, the same for all units. P [N, M], Q [N, K]

    Images are the unit of resampling. The interval is not corrected for the label's having been chosen by its score, and
    a score that grows with the number of different images (softmax sums, ranks) is a little lower in a draw.
    A matrix P is copied for each draw, an Embedded not.
    """
    whole("draws", draws)
    scores = score(P, Q, method, memory=memory, **options)
    M, label = scores.shape[1], best_concepts(scores)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    own, found = [], []
    for _ in range(draws):
        rows = torch.randint(len(Q), (len(Q),), generator=generator, device=generator.device).to(Q.device)
        scores = score(take_rows(P, rows), Q[rows], method, memory=memory, **options)
        own.append(scores.gather(1, label[:, None])[:, 0])
        found.append(best_concepts(scores))
    found = torch.stack(found)                                                              # [draws, K]
    low, high = torch.stack(own).quantile(scores.new_tensor([.025, .975]), dim=0)
    same = found == label
    return Bootstrap(label, same.double().mean(0), low, high, _most_frequent(found, ~same, M))


def margin(scores: Tensor) -> Tensor:
    """(best - second best) / standard deviation of a unit's scores: [K, M] -> [K]; 0 where all are equal."""
    if scores.ndim != 2 or scores.shape[1] < 2 or not bool(scores.isfinite().all()):
        raise ValueError(f"a margin needs finite scores [K, M] of at least 2 concepts, got {list(scores.shape)}")
    first, second = scores.topk(2, dim=1).values.double().unbind(1)
    spread = scores.double().std(1, correction=0)
    return torch.where(first > scores.amin(1), (first - second) / spread.clamp_min(1e-300), 0.)


def best_concepts(scores: Tensor) -> Tensor:
    """The best concept of each unit, ties by lower index: scores [K, M] -> [K]."""
    return top_labels(scores, range(scores.shape[1]), 1)[1][:, 0]


def take_rows(P: Tensor | Embedded, rows: Tensor) -> Tensor | Embedded:
    """P of some images, in the order given, with repeats."""
    return P[rows] if isinstance(P, Tensor) else Embedded(P.I[rows], P.T)


def _most_frequent(labels: Tensor, counted: Tensor, M: int) -> Tensor:
    """The most frequent of each column's counted labels, ties by lower index, -1 for none: [draws, K] -> [K]."""
    keys, times = (labels + M * torch.arange(labels.shape[1], device=labels.device))[counted].unique(return_counts=True)
    rank = times * M + (M - 1 - keys % M)
    best = labels.new_full((labels.shape[1],), -1).scatter_reduce(0, keys // M, rank, "amax")
    return torch.where(best < 0, -1, M - 1 - best % M)
