"""How far can a label found with a similarity function be trusted? Its score against those of shuffled
activations.

CORRECTIONS  bh, holm, none
best_scores  the best score of each unit, as it is compared with
null_best    best scores that units get when their activations are permuted over the images
p_values     how often such a score is as good as the unit's own
z_values     its distance from them in standard deviations
abstain      which units should get no label, corrected for the number of units

N images, K units, M concepts. `options` are those of the similarity function. Without a generator its seed is
0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int, unknown
from neuronym.common.memory import items_within, MEMORY, slices, SORTING_BYTES_PER_VALUE, stable_order
from neuronym.common.statistics import as_p_values, benjamini_hochberg, holm
from neuronym.similarity.dealt import dealt_best
from neuronym.similarity.matrix import checked, FactoredMatrix
from neuronym.similarity.pmi import TOP_IMAGES
from neuronym.similarity.scores import score, SIMILARITIES
from neuronym.similarity.sparse_columns import HELD, over_blocks, score_blocks, SparseColumns

FEW = 8
OF_COLUMNS = (
    "cos_similarity",
    "cos_similarity_cubed",
    "correlation",
    "soft_correlation",
    "combined_correlation",
    "standardised_correlation",
    "layered_correlation",
)
CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bh": benjamini_hochberg,
    "holm": holm,
    "none": as_p_values,
}


@torch.no_grad()
def best_scores(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str = "soft_wpmi",
    *,
    memory: int = MEMORY,
    **options,
) -> Tensor:
    """Best score over concepts, to be tested against `null_best`: P [N, M], Q [N, K] -> [K]

    Of wpmi and soft_wpmi it is the best of l(c|k) - lam l(c) with the prior l(c) over the *other* K - 1
    units. Theirs is over all K, so that a unit with evidence of its own caps its score (at log K where lam is
    1), which a shuffled unit that belongs to no layer would not. With lam = 1 one grows with the other: label
    and order of units are the same. SparseColumns are scored in blocks of units.
    """
    if method not in TOP_IMAGES:
        scored = score_blocks(P, Q, method, memory=memory, **options)
        return torch.cat([scores.amax(1) for _, _, scores in scored])
    likely, lam = _conditional(P, Q, method, memory, options)
    others, best = _Others.of(likely.blocks(), memory), []
    for units, l in likely.blocks():
        at = torch.arange(units.start, units.stop, device=l.device)
        for part in slices(len(l), memory // (8 * l.itemsize * l.shape[1])):
            best.append((l[part] - lam * others.prior(l[part], at[part])).amax(1))
    return torch.cat(best)


@torch.no_grad()
def null_best(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str = "soft_wpmi",
    *,
    draws: int = 200,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
    **options,
) -> Tensor:
    """`best_scores` of units whose activations are permuted over the images: P [N, M], Q [N, K] -> [draws, K]

    What belongs to the real layer stays: what rank_reorder divides errors by (as `score` finds it without a
    generator), and the prior of wpmi and soft_wpmi. These two see only the order of activations, so that one
    null serves all units without equal activations among their top images: where all are such, the result is
    [draws, 1], and the unit that a shuffled one stands for (whose share the prior lacks) is drawn. A constant
    unit has its own score in every draw. Of functions that are products of columns a draw deals the images
    anew for all units together (`dealt.dealt_best`). `memory` is for the shuffled activations, and once
    more for scoring them. SparseColumns are for wpmi and soft_wpmi, which compare all units; other functions
    are given blocks of units, each with the same draws.

    No p-value is below 1 / (draws + 1): Holm's correction over K units needs draws > K / level to find
    anything. Errors: those of `score`; ValueError where no shuffle can matter (wpmi with top_k = N), and for
    as_shipped.
    """
    check_positive_int("draws", draws)
    if not isinstance(Q, Tensor) and not (isinstance(Q, SparseColumns) and method in TOP_IMAGES):
        raise ValueError(f"expected Q [N, K] of one layer, got {type(Q).__name__}; test layer after layer")
    for name in sorted({"units", "as_shipped"} & set(options)):
        raise ValueError(
            f"a null is made without the option '{name}', got {options[name]!r}; score without it"
        )
    checked(P, Q if isinstance(Q, Tensor) else Q[:, :1], None, memory)
    if method in OF_COLUMNS:
        return _of_columns(P, Q, method, draws, generator, memory, options)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    alone, scale, pmi = options, 1.0, method in TOP_IMAGES
    if pmi:
        alone = options | {"lam": 0.0}
        likely, lam = _conditional(P, Q, method, memory, options)
        others = _Others.of(likely.blocks(), memory)
    elif method == "rank_reorder":
        alone = options | {"n_permutations": None}
        scale = _ratio(P, Q, method, memory, alone, options)
    N, M = P.shape
    units, null_of = _different(Q, method, options.get("top_k"), memory)
    G = len(units)
    replaced = _members(null_of, G, draws, generator)  # [draws * G]
    best = []
    [some] = items_within(
        memory, (0, N * (SORTING_BYTES_PER_VALUE + 16 + 3 * Q.dtype.itemsize) + 48 * M, draws * G)
    )
    for part in slices(draws * G, some):
        chosen = units[torch.arange(part.start, part.stop, device=Q.device) % G]
        dealt = stable_order(torch.rand(len(chosen), N, generator=generator, device=generator.device)).to(
            Q.device
        )
        shuffled = Q[:, chosen].T.gather(1, dealt).T  # [N, some]
        scores = score(P, shuffled, method, memory=memory, **alone)  # [some, M]
        if pmi:
            scores -= lam * others.prior(likely.of(replaced[part]), replaced[part])
        best.append(scores.amax(1))
    null = torch.cat(best).view(draws, G)
    constant = over_blocks(lambda _, q: q.amax(0) == q.amin(0), Q, memory)
    if G == 1 and not bool(constant.any()):
        return null * scale
    null = null[:, null_of] * scale  # [draws, K]
    if bool(constant.any()):
        null[:, constant] = best_scores(P, Q, method, memory=memory, **options)[constant]
    return null


def p_values(best: Tensor, null: Tensor) -> Tensor:
    """(1 + number of draws whose score is at least the unit's) / (1 + draws): best [K], null [draws, K or 1]
    -> [K].

    Scores that differ by no more than rounding count as equal.
    """
    _compared(best, null)
    slack = 16 * torch.finfo(best.dtype).eps * best.abs()
    return (1 + (null >= best - slack).sum(0)).double() / (1 + len(null))


def z_values(best: Tensor, null: Tensor) -> Tensor:
    """(best - mean of null) / standard deviation of null: best [K], null [draws, K or 1] -> [K]; 0 where that
    is 0.
    """
    _compared(best, null)
    null = null.double()
    varied = null.amax(0) > null.amin(0)
    spread = null.std(0, correction=0).masked_fill(~varied, 1)
    return ((best.double() - null.mean(0)) / spread) * varied


def abstain(p: Tensor | Sequence[float], level: float = 0.05, correction: str = "bh") -> Tensor:
    """True for units that should get no label: p [K], corrected for K units, above `level` -> [K].

    "bh" bounds the share of labelled units that are no better than shuffled ones, "holm" the chance of a
    single one.
    """
    if correction not in CORRECTIONS:
        raise unknown("correction", correction, CORRECTIONS)
    check_number("level", level, 0, 1)
    p = torch.as_tensor(p, dtype=torch.float64)
    return torch.from_numpy(CORRECTIONS[correction](p.cpu().numpy()) > level).to(p.device)


@dataclass(frozen=True)
class _Others:
    """log-mean-exp of l [K, M] over all units but one: that one's share is taken from the sum over all, but
    where it is most of the sum, that over the others is needed.
    """

    every: Tensor  # log of the sum over all units, [M]
    first: Tensor  # the unit of the largest l
    most: Tensor  # its l
    rest: Tensor  # log of the sum over the others
    units: int

    @classmethod
    def of(cls, blocks: Iterable[tuple[slice, Tensor]], memory: int) -> _Others:
        found = None
        for units, l in blocks:
            some = cls._of_some(l, units.start, memory)
            found = some if found is None else found._with(some)
        return found

    @classmethod
    def _of_some(cls, l: Tensor, start: int, memory: int) -> _Others:
        found = []
        for cols in slices(l.shape[1], memory // (4 * l.itemsize * len(l))):
            most, first = l[:, cols].max(0, keepdim=True)
            rest = l[:, cols].scatter(0, first, -torch.inf)
            found.append((l[:, cols].logsumexp(0), first[0] + start, most[0], rest.logsumexp(0)))
        return cls(*map(torch.cat, zip(*found)), len(l))

    def _with(self, more: _Others) -> _Others:
        """The same of units behind these, too."""
        swap = more.most > self.most
        kept, given = torch.logaddexp(self.rest, more.every), torch.logaddexp(self.every, more.rest)
        return _Others(
            torch.logaddexp(self.every, more.every),
            torch.where(swap, more.first, self.first),
            torch.where(swap, more.most, self.most),
            torch.where(swap, given, kept),
            self.units + more.units,
        )

    def prior(self, likely: Tensor, but: Tensor) -> Tensor:
        """[k, M] for the units `but` [k], whose l are `likely` [k, M]."""
        share = (likely - self.every).exp_().clamp_(max=0.75)  # above a half only for `first`
        out = torch.where(but[:, None] == self.first, self.rest, self.every + share.neg_().log1p_())
        return out.sub_(math.log(self.units - 1))


@dataclass(frozen=True)
class _Likely:
    """l(c|k) [K, M] of a layer: held, or made anew from SparseColumns where it is more than a part of the
    memory.
    """

    P: Tensor | FactoredMatrix
    Q: Tensor | SparseColumns
    method: str
    given: Mapping
    held: Tensor | None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(units, their l) of all units in order."""
        if self.held is not None:
            yield slice(0, len(self.held)), self.held
            return
        for units, _, l in score_blocks(self.P, self.Q, self.method, **self.given):
            yield units, l

    def of(self, units: Tensor) -> Tensor:
        """Those of some units [k]: [k, M]."""
        if self.held is not None:
            return self.held[units]
        return score(self.P, self.Q[:, units], self.method, **self.given)


def _conditional(
    P: Tensor | FactoredMatrix, Q: Tensor | SparseColumns, method: str, memory: int, options: dict
) -> tuple[_Likely, float]:
    """l(c|k) [K, M] and lam."""
    lam = options.get("lam", inspect.signature(SIMILARITIES[method]).parameters["lam"].default)
    check_number("lam", lam)
    if isinstance(Q, (Tensor, SparseColumns)) and len(Q.shape) == 2 and Q.shape[1] == 1:
        raise ValueError(
            f"{method} compares a unit with the others of its layer, got Q {list(Q.shape)} of one; pass all "
            "units"
        )
    given = {"memory": memory, **options, "lam": 0.0}
    if isinstance(Q, SparseColumns) and 4 * Q.shape[1] * P.shape[1] > HELD * memory:
        return _Likely(P, Q, method, given, None), lam
    parts = [l for _, _, l in score_blocks(P, Q, method, **given)]
    return _Likely(P, Q, method, given, torch.cat(parts) if len(parts) > 1 else parts[0]), lam


def _of_columns(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    method: str,
    draws: int,
    generator: torch.Generator | None,
    memory: int,
    options: dict,
) -> Tensor:
    """Of functions that are products of columns: a draw deals the images anew for all units together."""
    few = P[:, :FEW] if isinstance(P, Tensor) else FactoredMatrix(P.I, P.T[:FEW])
    score(few, Q, method, units=[0], memory=memory, **options)  # refuses options
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    deals = stable_order(torch.rand(draws, Q.shape[0], generator=generator, device=generator.device))
    null = dealt_best(P, Q, method, deals.to(Q.device), memory=memory, **options)
    constant = Q.amax(0) == Q.amin(0)
    if bool(constant.any()):
        null[:, constant] = best_scores(P, Q, method, memory=memory, **options)[constant]
    return null


def _members(null_of: Tensor, G: int, draws: int, generator: torch.Generator) -> Tensor:
    """A random one of the units of each null, for each draw: [draws * G]."""
    sizes = null_of.bincount(minlength=G)
    place = (
        torch.rand(draws, G, generator=generator, device=generator.device)
        .to(null_of.device)
        .mul(sizes)
        .long()
    )
    return null_of.argsort(stable=True)[sizes.cumsum(0) - sizes + place.minimum(sizes - 1)].flatten()


def _ratio(
    P: Tensor | FactoredMatrix, Q: Tensor, method: str, memory: int, alone: dict, options: dict
) -> Tensor:
    """Score over score with the expected error, [K]: the same for all concepts, and for a unit however it is
    shuffled.
    """
    few = P[:, :FEW] if isinstance(P, Tensor) else FactoredMatrix(P.I, P.T[:FEW])
    given, expected = (score(few, Q, method, memory=memory, **x) for x in (options, alone))
    worst = expected.argmin(1, keepdim=True)
    given, expected = given.gather(1, worst)[:, 0], expected.gather(1, worst)[:, 0]
    return torch.where(
        expected < 0, given / expected, 1
    )  # 0: all few concepts order the unit's images perfectly


def _different(Q: Tensor, method: str, top_k: int | None, memory: int) -> tuple[Tensor, Tensor]:
    """Units with a null of their own, and which of these serves each unit."""
    N, K = Q.shape
    every = torch.arange(K, device=Q.device)
    if method not in TOP_IMAGES:
        return every, every
    k = min(TOP_IMAGES[method], N) if top_k is None else top_k
    if k == N and method == "wpmi":
        raise ValueError(
            f"wpmi sums over top_k images, in any order, so that of all N {N} images no shuffle changes it; "
            f"pass top_k below {N}, or more images"
        )
    patterns = []
    for part in slices(K, memory // (SORTING_BYTES_PER_VALUE * N)):
        q = Q[:, part]
        top = q.topk(min(k + 1, N), dim=0).values
        equal = (
            top[1:] == top[:-1]
        )  # which of the top images' activations equal the next one, and how many the last
        last = (q == top[k - 1]).sum(0) * equal.any(0)
        patterns.append(torch.cat([equal.to(torch.int32), last[None].to(torch.int32)]).T)
    found, null_of = torch.cat(patterns).unique(dim=0, return_inverse=True)
    return torch.full((len(found),), K, device=Q.device).scatter_reduce(0, null_of, every, "amin"), null_of


def _compared(best: Tensor, null: Tensor) -> None:
    if best.ndim != 1 or null.ndim != 2 or not len(null) or null.shape[1] not in (1, len(best)):
        raise ValueError(
            f"expected best [K] and null [draws, K or 1], at least one draw, got {list(best.shape)} and "
            f"{list(null.shape)}"
        )
    for name, x in (("best", best), ("null", null)):
        if not bool(x.isfinite().all()):
            raise ValueError(
                f"{name} must be finite, got {x[~x.isfinite()][0].item()}; score without as_shipped"
            )
