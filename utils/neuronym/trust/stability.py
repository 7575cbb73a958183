"""Does a name survive other images, noise, other models and prompts; and how far does it lead?

halves            share of random splits of the images whose two halves give a unit the same label
same              which labels of two conditions are equal
Noisy             a preprocessing of noisy pictures
noisy             a preprocessing that adds noise to the picture first
noisy_target      a target that sees noisy pictures
noisy_clip        a CLIP that does
agreement_matrix  share of equal labels for each pair of conditions
consensus         the label that most conditions give
Bootstrap         labels and scores under resampling of images
bootstrap_labels  what finds them: images are drawn with replacement
margin            lead of the best concept before the second
best_concepts     the best concept of each unit
take_rows         some images of P

N images, K units, M concepts. `options` are those of the similarity function. Without a generator its seed is
0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import top_labels
from neuronym.similarity.sparse_columns import score_blocks, SparseColumns

if TYPE_CHECKING:
    from neuronym.common.types import Clip, Target

FULL_SCALE = 255


@torch.no_grad()
def halves(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str = "soft_wpmi",
    *,
    repeats: int = 10,
    generator: torch.Generator | None = None,
    memory: int | None = None,
    **options,
) -> tuple[Tensor, float]:
    """Share [K] of `repeats` random splits of the images in two whose labels agree, and its mean; P [N, M], Q
    [N, K].

    Each half is scored alone, with `options` of the similarity function; an odd image goes to the second.
    Without a generator its seed is 0. SparseColumns are scored in blocks of units. ValueError for fewer than
    2 images, and what `score` refuses.
    """
    check_positive_int("repeats", repeats)
    held = isinstance(Q, (Tensor, SparseColumns))
    if not held or len(Q.shape) != 2 or len(Q) < 2 or len(Q) != P.shape[0]:
        raise ValueError(
            f"expected P [N, M] and Q [N, K] with equal N, at least 2, got {list(P.shape)} and "
            f"{list(Q.shape) if held else type(Q).__name__}"
        )

    def scored(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        return _resampled(P, Q, rows, method, memory, options)

    generator = torch.Generator().manual_seed(0) if generator is None else generator
    agree = torch.zeros(Q.shape[1], dtype=torch.float64, device=Q.device)
    for _ in range(repeats):
        deal = torch.randperm(len(Q), generator=generator, device=generator.device).to(Q.device)
        first, second = (
            torch.cat([best_concepts(scores) for _, scores in scored(rows)])
            for rows in (deal[: len(Q) // 2], deal[len(Q) // 2 :])
        )
        agree += first == second
    share = agree / repeats
    return share, float(share.mean())


def same(labels_a: Sequence[str], labels_b: Sequence[str]) -> Tensor:
    """Which units have equal labels under two conditions: K and K labels -> bool [K]."""
    _table({"first": labels_a, "second": labels_b})
    return torch.tensor([a == b for a, b in zip(labels_a, labels_b)])


@dataclass(frozen=True)
class Noisy:
    """A preprocessing of pictures to which Gaussian noise was added; made by `noisy`."""

    preprocess: Callable[[Image.Image], Tensor]
    sd: float
    seed: int

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image.convert("RGB"))  # [h, w, 3]
        content = hashlib.blake2b(
            f"{self.seed} {pixels.shape} ".encode() + pixels.tobytes(), digest_size=16
        ).digest()
        dice = np.random.default_rng(int.from_bytes(content, "little"))
        values = pixels + dice.normal(0, self.sd * FULL_SCALE, pixels.shape)
        return self.preprocess(Image.fromarray(values.round().clip(0, FULL_SCALE).astype(np.uint8)))


def noisy(preprocess: Callable[[Image.Image], Tensor], sd: float = 0.02, seed: int = 0) -> Noisy:
    """A preprocessing that first adds Gaussian noise of `sd`, in units of full scale, to the 8-bit picture.

    The seed and the picture's content determine the noise, so that batches and order do not matter, and all
    networks of one seed see the same noisy picture. Values are rounded and clipped: it stays a picture.
    """
    check_number("sd", sd, 0)
    return Noisy(preprocess, sd, seed)


def noisy_target(target: Target, sd: float = 0.02, seed: int = 0) -> Target:
    """The target for noisy pictures; what is cached for it is kept apart from what is for clean ones."""
    return _with_noise(target, sd, seed)


def noisy_clip(clip: Clip, sd: float = 0.02, seed: int = 0) -> Clip:
    """The CLIP for noisy pictures, as `noisy_target`; texts are as they were."""
    return _with_noise(clip, sd, seed)


def agreement_matrix(labels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Share of units with equal labels for each pair of conditions, {condition: K labels}; 1 on the
    diagonal.
    """
    table = _table(labels)
    codes = pd.factorize(table.to_numpy().ravel())[0].reshape(table.shape)  # [K, conditions]
    return pd.DataFrame(
        (codes[:, :, None] == codes[:, None]).mean(0), index=table.columns, columns=table.columns
    )


def consensus(labels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row a unit: unit, the label most conditions give, how many give it (`votes`), and their share.

    Between labels with equal votes the condition listed first decides.
    """
    table = _table(labels)
    codes, words = pd.factorize(table.to_numpy().ravel())
    codes = codes.reshape(table.shape)
    votes = (codes[:, :, None] == codes[:, None]).sum(2)  # [K, conditions]
    chosen = votes.argmax(1)[:, None]
    most = np.take_along_axis(votes, chosen, 1)[:, 0]
    return pd.DataFrame(
        {
            "unit": np.arange(len(table)),
            "label": words[np.take_along_axis(codes, chosen, 1)[:, 0]],
            "votes": most,
            "share": most / table.shape[1],
        }
    )


def _with_noise(model: Target | Clip, sd: float, seed: int) -> Target | Clip:
    return replace(
        model,
        preprocess=noisy(model.preprocess, sd, seed),
        preprocess_spec=f"noise of sd {sd!r}, seed {seed!r}, then {model.preprocess_spec}",
    )


def _table(labels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Conditions as columns, one row a unit."""
    sizes = {name: len(column) for name, column in labels.items()}
    if not sizes or len(set(sizes.values())) > 1 or not min(sizes.values()):
        raise ValueError(
            f"conditions are compared by one label each for the same units, at least one, got {sizes}"
        )
    wrong = next(
        ((name, label) for name, column in labels.items() for label in column if not isinstance(label, str)),
        None,
    )
    if wrong:
        raise ValueError(
            f"labels are texts, got {wrong[1]!r} of '{wrong[0]}'; leave that unit out of all conditions"
        )
    return pd.DataFrame({name: np.array(list(column), dtype=object) for name, column in labels.items()})


@dataclass(frozen=True)
class Bootstrap:
    """Labels under resampling of images, by unit: all [K]."""

    label: Tensor  # index of the best concept on all images
    stability: Tensor  # share of draws with the same best concept
    low: Tensor  # 95 % percentile interval of that concept's score
    high: Tensor
    alternative: (
        Tensor  # the concept that is best most often when it is not the label; -1 where there is none
    )


@torch.no_grad()
def bootstrap_labels(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str = "soft_wpmi",
    *,
    draws: int = 50,
    generator: torch.Generator | None = None,
    memory: int | None = None,
    **options,
) -> Bootstrap:
    """Name units on `draws` samples of the N images, drawn with replacement, the same for all units. P [N,
    M], Q [N, K]

    Images are the unit of resampling. The interval is not corrected for the label's having been chosen by its
    score, and a score that grows with the number of different images (softmax sums, ranks) is a little lower
    in a draw. A matrix P is copied for each draw, a FactoredMatrix not. SparseColumns are scored in blocks of
    units.
    """
    check_positive_int("draws", draws)
    parts = []
    for _, _, scores in score_blocks(P, Q, method, memory=memory, **options):
        parts.append(best_concepts(scores))
    label = torch.cat(parts)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    own = scores.new_empty(draws, len(label))  # made first: rows kept one by one would be in the way
    found = label.new_empty(own.shape)
    for i in range(draws):
        rows = torch.randint(len(Q), (len(Q),), generator=generator, device=generator.device).to(Q.device)
        for units, scores in _resampled(P, Q, rows, method, memory, options):
            own[i, units] = scores.gather(1, label[units, None])[:, 0]
            found[i, units] = best_concepts(scores)
    low, high = own.quantile(own.new_tensor([0.025, 0.975]), dim=0)
    same = found == label
    return Bootstrap(label, same.double().mean(0), low, high, _most_frequent(found, ~same, P.shape[1]))


def margin(scores: Tensor) -> Tensor:
    """(best - second best) / standard deviation of a unit's scores: [K, M] -> [K]; 0 where all are equal."""
    if scores.ndim != 2 or scores.shape[1] < 2 or not bool(scores.isfinite().all()):
        raise ValueError(
            f"a margin needs finite scores [K, M] of at least 2 concepts, got {list(scores.shape)}"
        )
    first, second = scores.topk(2, dim=1).values.double().unbind(1)
    spread = scores.double().std(1, correction=0)
    return torch.where(first > scores.amin(1), (first - second) / spread.clamp_min(1e-300), 0.0)


def best_concepts(scores: Tensor) -> Tensor:
    """The best concept of each unit, ties by lower index: scores [K, M] -> [K]."""
    return top_labels(scores, range(scores.shape[1]), 1)[1][:, 0]


def take_rows(P: Tensor | FactoredMatrix, rows: Tensor) -> Tensor | FactoredMatrix:
    """P of some images, in the order given, with repeats."""
    return P[rows] if isinstance(P, Tensor) else FactoredMatrix(P.I[rows], P.T)


def _resampled(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    rows: Tensor,
    method: str,
    memory: int | None,
    options: Mapping,
) -> Iterator[tuple[slice, Tensor]]:
    """(units, their scores) on some images, all units in order."""
    for units, _, scores in score_blocks(take_rows(P, rows), Q[rows], method, memory=memory, **options):
        yield units, scores


def _most_frequent(labels: Tensor, counted: Tensor, M: int) -> Tensor:
    """The most frequent of each column's counted labels, ties by lower index, -1 for none: [draws, K] ->
    [K].
    """
    keys, times = (labels + M * torch.arange(labels.shape[1], device=labels.device))[counted].unique(
        return_counts=True
    )
    rank = times * M + (M - 1 - keys % M)
    best = labels.new_full((labels.shape[1],), -1).scatter_reduce(0, keys // M, rank, "amax")
    return torch.where(best < 0, -1, M - 1 - best % M)
