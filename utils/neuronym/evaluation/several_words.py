"""Labels of more than one word, where these say significantly more of a unit: "red + grid", "not sky".

SeveralWords         texts, and the weights behind them
several_words        up to three concepts a unit, with signs, kept where they win on images held out
bootstrap_better     how sure it is that one prediction correlates better than another, image by image
likely_concepts      the concepts worth trying for the units of a layer
held_out_gain        what the words are worth beside the single labels

N images, K units, M concepts. A negated concept is its absence, 1 - present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import MEMORY, slices
from neuronym.common.statistics import correlation
from neuronym.evaluation import linear

SAMPLES = 1_000
TEMPORARIES = 8  # of a unit's values in samples and in images, at the most: six, and what is in both types


@dataclass(frozen=True)
class SeveralWords:
    """What K units are called: chosen [K, m] concepts (then -1), signs [K, m] of 1 or -1, weights [K, m]
    positive, and `better` [K], where these replace the single label.
    """

    texts: list[str]
    chosen: Tensor
    signs: Tensor
    weights: Tensor
    better: Tensor

    def predict(self, present: Tensor) -> Tensor:
        """What the words say the units do on images, up to a constant: present [N, M] -> [N, K]."""
        said = torch.zeros(len(present), len(self.chosen), dtype=self.weights.dtype, device=present.device)
        for concept, weight in zip(self.chosen.clamp(min=0).T, (self.weights * self.signs).T):
            said += present[:, concept] * weight
        return said


@torch.no_grad()
def several_words(
    present: Tensor,
    Q: Tensor,
    labels: Sequence[int] | Tensor,
    concepts: Sequence[str],
    most: int = 3,
    *,
    check: float = 0.4,
    tolerance: float = 0.02,
    level: float = 0.05,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> SeveralWords:
    """Sums of at most `most` concepts or their absences, where they explain a unit better than its label:
    present [N, M] in 0..1 and Q [N, K] of the images for naming, labels [K] -> SeveralWords.

    `linear.explain` finds the sums on a part of the images; on the others, a share `check` drawn by
    `generator`, each is compared with the label alone by `bootstrap_better` (correlation, paired,
    one-sided at `level`). Units whose sum is not surely better keep their label, with weight 1. A single
    negated concept may win too. The held-out correlation is to be measured on images that neither part
    has seen.
    """
    check_number("check", check, 0, 1)
    check_number("level", level, 0, 1)
    check_positive_int("most", most)
    single = torch.as_tensor(labels, dtype=torch.long, device=Q.device)
    if len(single) != Q.shape[1] or present.shape[1] != len(concepts):
        raise ValueError(
            f"expected one label for each of {Q.shape[1]} units and one column of present for each of "
            f"{len(concepts)} concepts, got {len(single)} labels and present {list(present.shape)}"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    dealt = torch.randperm(len(Q), generator=generator, device=generator.device).to(Q.device)
    checks, fits = dealt[: round(check * len(Q))], dealt[round(check * len(Q)) :]
    M, there = present.shape[1], present.float()
    there_fits = there[fits].T
    both = torch.cat(
        [there_fits, 1 - there_fits]
    ).T  # [N, 2 M], concepts in one piece: they are read one by one
    found = linear.explain(both, Q[fits], most, tolerance, generator=generator, memory=memory)
    there_or_not = found.chosen
    terms = SeveralWords(
        [],
        there_or_not.where(there_or_not < 0, there_or_not % M),
        torch.where(there_or_not >= M, -1, 1),
        found.weights.where(there_or_not >= 0, 0),
        torch.zeros(len(single), dtype=torch.bool, device=Q.device),
    )
    sure = bootstrap_better(
        terms.predict(there[checks]), there[checks][:, single], Q[checks], generator=generator, memory=memory
    )
    alone = (found.terms == 1) & (terms.chosen[:, 0] == single) & (terms.signs[:, 0] == 1)
    better = (sure <= level) & (found.terms > 0) & ~alone
    first = torch.zeros_like(terms.chosen) - 1
    first[:, 0] = single
    chosen = terms.chosen.where(better[:, None], first)
    signs = terms.signs.where(better[:, None], 1)
    weights = terms.weights.where(better[:, None], (first >= 0).to(terms.weights.dtype))
    texts = [_text(*unit, concepts) for unit in zip(chosen.tolist(), signs.tolist(), weights.tolist())]
    return SeveralWords(texts, chosen, signs, weights, better)


@torch.no_grad()
def bootstrap_better(
    first: Tensor,
    second: Tensor,
    Q: Tensor,
    *,
    samples: int = SAMPLES,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Share of bootstrap samples of the images in which `first` does not correlate better with Q than
    `second`: all [N, K] -> [K], (1 + count) / (1 + samples). The images drawn are the same for all units.
    """
    check_positive_int("samples", samples)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    N = len(Q)
    drawn = torch.randint(N, (samples, N), generator=generator, device=generator.device).to(Q.device)
    counts = torch.zeros(samples, N, dtype=torch.float64, device=Q.device)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    counts /= N
    worse = []
    for part in slices(Q.shape[1], memory // (8 * TEMPORARIES * (samples + N))):
        worse.append(
            _times_worse(first[:, part].double(), second[:, part].double(), Q[:, part].double(), counts)
        )
    return (1 + torch.cat(worse)).double() / (1 + samples)


def likely_concepts(scores: Tensor, each: int = 10) -> Tensor:
    """Concepts among the `each` highest or lowest scores of some unit, ascending: scores [K, M] -> [m]."""
    check_positive_int("each", each)
    n = min(each, scores.shape[1])
    return torch.cat([scores.topk(n, dim=1, largest=way).indices.flatten() for way in (True, False)]).unique()


def held_out_gain(words: SeveralWords, labels: Tensor, present: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations [K] of the single labels and of the words with units, on images not used for either."""
    there = present.float()
    return correlation(there[:, labels], Q), correlation(words.predict(there), Q)


def _times_worse(first: Tensor, second: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """In how many samples `first` does not correlate better with y than `second`: all [N, K], weights counts
    [B, N] -> [K].
    """
    y = _weighted(y, counts)
    r = _weighted_correlation(first, y, counts)
    return (r <= _weighted_correlation(second, y, counts).add_(1e-12)).sum(0)


def _weighted_correlation(x: Tensor, y: tuple[Tensor, Tensor, Tensor], counts: Tensor) -> Tensor:
    """Pearson's of columns x [N, K] with those of y, as `_weighted` has it, under weights counts [B, N] that
    sum to 1 -> [B, K]; 0 where constant.
    """
    y, mean, spread = y
    x, x_mean, x_spread = _weighted(x, counts)
    covariance = (counts @ (x * y)).sub_(x_mean.mul_(mean))  # in place: each is [B, K]
    both = x_spread.mul_(spread)
    constant = both <= 1e-24
    return covariance.div_(both.clamp_(min=1e-24).sqrt_()).masked_fill_(constant, 0)


def _weighted(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns x [N, K] less their mean, of largest value 1; their means and variances [B, K] under weights
    counts [B, N].
    """
    x = x - x.mean(0)
    x = x / x.abs().amax(0).clamp(min=1e-300)
    mean = counts @ x
    return x, mean, (counts @ x.square()).sub_(mean.square()).clamp_(min=0)


def _text(chosen: list[int], signs: list[int], weights: list[float], concepts: Sequence[str]) -> str:
    """ "red + grid - sky", largest weight first; "not sky" where nothing is present."""
    terms = sorted((-w, s, concepts[c]) for c, s, w in zip(chosen, signs, weights) if c >= 0)
    if all(sign < 0 for _, sign, _ in terms):
        return " and ".join(f"not {name}" for _, _, name in terms)
    there = [name for _, sign, name in terms if sign > 0]
    absent = [name for _, sign, name in terms if sign < 0]
    return " + ".join(there) + "".join(f" - {name}" for name in absent)
