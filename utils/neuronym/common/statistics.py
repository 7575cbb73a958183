"""Correlation, ranks, bootstrap intervals and tests, each written once; all in float64.

standard_columns    columns centred and of length 1
correlation         Pearson's, column by column
cross_correlation   Pearson's, of all pairs of columns
sort_columns        columns in order, with what equals what: the input of the next two
column_auroc        area under the ROC curve, column by column
column_precision    average precision, column by column
auroc               area under the ROC curve of one list
check_trust         the inputs of these: trust and whether a label is right
rank_of             place of the true entry among scores
interval            bootstrap interval of a mean over neurons
wilson              interval of a share
paired_interval     mean difference of two methods rated on the same neurons, with its interval
means               mean and interval of several methods, the same neurons drawn for all
paired              differences of methods rated on the same neurons: mean, interval, Wilcoxon's test, Holm's
                    correction
holm                p-values corrected for their number, against a single false one
benjamini_hochberg  the same against a share of false ones
as_p_values         p-values not corrected
draw_neurons        the draws behind all intervals

N images, K units, M concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import nonzero

DRAWS = 10_000
LAYER = "layer"  # the column of strata
Numbers = Sequence[float] | np.ndarray | Tensor
Sorted = tuple[Tensor, Tensor, Tensor]  # what `sort_columns` gives


def standard_columns(x: Tensor) -> Tensor:
    """Columns centred and of length 1, [N, K]; zeros for one that is constant.

    Constant is what varies by no more than rounding of its largest value, whatever the scale.
    """
    rounding = torch.finfo(x.dtype if x.is_floating_point() else torch.float64).eps
    x = x.double()
    largest = x.abs().amax(0).clamp_min(1e-300)
    x = (x - x.mean(0)) / largest  # squares of small values would vanish
    length = x.norm(dim=0)
    return torch.where(length <= 4 * rounding * len(x) ** 0.5, 0.0, x / length)


def correlation(predicted: Tensor, true: Tensor) -> Tensor:
    """Pearson correlation [K] over images of predicted and true values, both [N, K]; 0 where either is
    constant.
    """
    if predicted.shape != true.shape:
        raise ValueError(
            f"expected predicted and true values [N, K] of one shape, got {list(predicted.shape)} and "
            f"{list(true.shape)}"
        )
    return (standard_columns(predicted) * standard_columns(true)).sum(0)


def cross_correlation(Q: Tensor, present: Tensor) -> Tensor:
    """Pearson correlation over images of every column of Q [N, K] with every one of present [N, M]: [K, M]; 0
    where either is constant.
    """
    if len(Q) != len(present):
        raise ValueError(
            f"expected Q [N, K] and present [N, M] with equal N, got {len(Q)} and {len(present)}"
        )
    q = standard_columns(Q)
    if present.dtype != torch.bool:
        return q.T @ standard_columns(present)
    count = present.sum(0).double()  # columns of q sum to 0: of truths only their length is needed
    length = (count * (len(present) - count) / len(present)).sqrt()
    return torch.where(length > 0, (q.T @ present.double()) / nonzero(length), 0.0)


def sort_columns(x: Tensor) -> Sorted:
    """Indices that sort each column, and in that order how many values are below each, and how many at most:
    [N, K].
    """
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


def column_auroc(order: Sorted, positive: Tensor, negative: Tensor) -> Tensor:
    """Probability that a positive has a higher value than a negative, ties counted half (Mann-Whitney): [K],
    nan where one kind is missing.

    `order` is that of the values, [N, K], or [N, 1] for one list of them; positive and negative [N, K] say
    how often each row counts as such: true or false, or how often a bootstrap drew it.
    """
    index, below, most = (x.expand(-1, positive.shape[1]) for x in order)
    good, bad = (kind.gather(0, index).double() for kind in (positive, negative))
    before = torch.cat([bad.new_zeros(1, bad.shape[1]), bad.cumsum(0)])  # [N + 1, K]
    lower = (before.gather(0, below) + before.gather(0, most)) / 2
    return (good * lower).sum(0) / (good.sum(0) * bad.sum(0))


def column_precision(order: Sorted, true: Tensor) -> Tensor:
    """Average precision of the values of `order` as a detector of `true`, bool, both [N, K]: the sum over
    values t, descending, of (recall(t) - recall before) precision(t); [K], 0 where nothing is true.

    It is the mean over true rows of the precision at their own value, equal values one threshold.
    """
    index, below, _ = order
    true = true.gather(0, index)
    before = torch.cat([index.new_zeros(1, index.shape[1]), true.cumsum(0)])  # [N + 1, K]
    reached = before[-1] - before.gather(0, below)
    return (true * reached / (len(true) - below).double()).sum(0) / nonzero(before[-1].double())


def auroc(trust: Numbers, right: Numbers) -> float:
    """Probability that a right label has more trust than a wrong one, ties counted half (Mann-Whitney).

    trust [K], right [K] bool; .5 when all are right, or none is.
    """
    trust, right = (torch.from_numpy(x)[:, None] for x in check_trust(trust, right))
    return float(column_auroc(sort_columns(trust), right, ~right).nan_to_num(0.5))


def check_trust(trust: Numbers, right: Numbers, share: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """trust as float64 and right as bool, both [K]; ValueError says what is wrong with them, with `share`
    also where trust is not from 0 to 1.
    """
    trust, right = (
        x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (trust, right)
    )
    if trust.ndim != 1 or right.shape != trust.shape or not len(trust):
        raise ValueError(
            f"expected trust and right [K] of equal K, at least one, got {list(trust.shape)} and "
            f"{list(right.shape)}"
        )
    trust = trust.astype(np.float64)
    wrong = trust[~np.isfinite(trust) | (share & ~((trust >= 0) & (trust <= 1)))]
    if len(wrong):
        raise ValueError(
            f"trust must be {'from 0 to 1' if share else 'finite'}, got {wrong[0]}"
            + ("; give a probability, or rank it with auroc" if share else "; leave that neuron out")
        )
    if not np.isin(right, (0, 1)).all():
        raise ValueError(
            f"right must be true or false, got {right[~np.isin(right, (0, 1))][0]}; choose what counts as "
            "right"
        )
    return trust, right.astype(bool)


def rank_of(scores: Tensor, truth: Tensor) -> Tensor:
    """Place of the true entry of every row, 1 the highest, of equal scores the lower index first: scores
    [n, M], truth [n] -> [n].
    """
    truth = truth.to(scores.device).long()[:, None]
    own = scores.gather(1, truth)
    before = torch.arange(scores.shape[1], device=scores.device) < truth
    return 1 + (scores > own).sum(1) + ((scores == own) & before).sum(1)


def interval(
    values: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; resampled are the values, one for each neuron."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(
            f"a bootstrap takes finite values, at least one, got {x.shape} with "
            f"{int((~np.isfinite(x)).sum())} "
            "that are not"
        )
    limits = _limits(level)
    low, high = np.quantile(
        np.concatenate([x[drawn].mean(1) for drawn in draw_neurons(len(x), seed, draws)]), limits
    )
    return float(low), float(high)


def wilson(share: Numbers | float, n: Numbers | int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a share of n independent cases, element by element: (low, high).

    Wilson (1927): (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Resampling cases of
    which all are right gives [1, 1], whatever their number; this gives [.93, 1] for 52 of 52. Errors:
    ValueError for shares outside 0..1 and fewer than one case.
    """
    share, n = np.asarray(share, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if not ((share >= 0) & (share <= 1)).all() or not (n >= 1).all():
        raise ValueError(f"a share is from 0 to 1, of one case or more, got {share} of {n}")
    z = NormalDist().inv_cdf(_limits(level)[1])
    middle, width = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)
    return low.clip(0, 1), high.clip(0, 1)


def paired_interval(
    a: Sequence[float], b: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a - b, and its interval (low, high); resampled are neurons, each with both of its values.

    Errors: ValueError for unequal numbers of values, and for values that are missing.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    if a.shape != b.shape:
        raise ValueError(
            f"paired values are one of each method for every neuron, got {a.shape} and {b.shape}"
        )
    return float((a - b).mean()) if a.size else 0.0, *interval(a - b, seed, draws, level)


def means(
    table: pd.DataFrame, seed: int = 0, stratified: bool = False, draws: int = DRAWS, level: float = 0.95
) -> pd.DataFrame:
    """Mean of every column of a table with one row a neuron, with its interval: method, mean, low, high.

    Resampled are neurons, jointly: each draw takes the same ones for all methods. A column `layer` is no
    method; with `stratified` each layer keeps its number of neurons in every draw. Errors: ValueError for
    values that are missing.
    """
    if stratified and LAYER not in table:
        raise ValueError(
            f"stratified draws need a column '{LAYER}', got columns {', '.join(map(str, table.columns))}"
        )
    values = table.drop(columns=LAYER, errors="ignore")
    if not values.size or not all(pd.api.types.is_numeric_dtype(kind) for kind in values.dtypes):
        raise ValueError(
            f"means are of columns of numbers, one row a neuron, got {len(values)} rows of "
            f"{dict(values.dtypes.astype(str))}; drop what is no method"
        )
    x = values.to_numpy(np.float64)
    lacking = int((~np.isfinite(x)).any(1).sum())
    if lacking:
        raise ValueError(
            f"means need a finite value of every method for every neuron, {lacking} neurons lack one; drop "
            "them "
            "for all methods"
        )
    limits, strata = _limits(level), table[LAYER] if stratified else None
    drawn = np.concatenate(
        [
            np.stack([column[some].mean(1) for column in x.T], 1)
            for some in draw_neurons(len(x), seed, draws, strata)
        ]
    )  # [draws, methods]
    low, high = np.quantile(drawn, limits, axis=0)
    return pd.DataFrame({"method": list(values.columns), "mean": x.mean(0), "low": low, "high": high})


def paired(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Every pair of columns of a table with one row a neuron: mean difference, its interval, p of Wilcoxon's
    signed-rank test (differences of zero left out), and p after Holm's correction for the number of pairs.

    What differs by rounding alone is equal: .1 + .2 and .3 have no difference, and differences that agree to
    the twelfth digit of the values share a rank. Columns may say yes or no. Errors: ValueError for values
    that are missing, which a test on pairs needs, and for what is no number.
    """
    from scipy.stats import wilcoxon

    if table.isna().any(axis=None):
        raise ValueError(
            f"paired methods need a value for every neuron, {int(table.isna().any(axis=1).sum())} neurons "
            "lack "
            "one; drop them for all methods"
        )
    wrong = [name for name, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if wrong:
        raise ValueError(
            f"paired methods have numbers, or yes and no, for every neuron, '{wrong[0]}' holds "
            f"{table[wrong[0]].dtype}; drop what is no method"
        )
    values = table.astype(np.float64)
    rows = []
    for a, b in combinations(values.columns, 2):
        d = _differences(values[a].to_numpy(), values[b].to_numpy())
        p = float(wilcoxon(d).pvalue) if (d != 0).any() else 1.0
        rows.append((a, b, *paired_interval(values[a], values[b], seed), p))
    found = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p"])
    return found.assign(holm=holm(found["p"]))


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b to the twelfth digit behind the first of the larger of the two."""
    largest = np.maximum(np.abs(a), np.abs(b))
    digit = 10.0 ** (np.floor(np.log10(np.where(largest > 0, largest, 1))).clip(-290, 290) - 12)
    return np.round((a - b) / digit) * digit


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm (1979): the k-th smallest of n p-values times n - k + 1, never below an earlier one, at most 1."""
    p = as_p_values(p)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1)
    return out


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg (1995): the k-th smallest of n p-values times n / k, never above a later one.

    Those at most `level` hold a share of false ones of at most `level` in the mean, for independent tests and
    for such as depend positively on each other.
    """
    p = as_p_values(p)
    order = np.argsort(p, kind="stable")[::-1]
    out = np.empty_like(p)
    out[order] = np.minimum.accumulate(np.append(1, p[order] * (len(p) / np.arange(len(p), 0, -1))))[1:]
    return out


def as_p_values(p: Sequence[float]) -> np.ndarray:
    """p-values as they are; ValueError says what is wrong with others."""
    p = np.asarray(p, dtype=np.float64)
    wrong = p[~((p >= 0) & (p <= 1))]
    if p.ndim != 1 or len(wrong):
        raise ValueError(
            f"p-values are a list of numbers from 0 to 1, got {p.shape} with {wrong[:3].tolist()}"
        )
    return p


def draw_neurons(
    n: int, seed: int = 0, draws: int = DRAWS, strata: Sequence | None = None
) -> Iterator[np.ndarray]:
    """Yield indices [some, n] of neurons drawn with replacement, `draws` rows in all; within strata as many
    as each has.
    """
    check_positive_int("draws", draws)
    dice, groups = np.random.default_rng(seed), [np.arange(n)]
    if strata is not None:
        numbers = pd.factorize(np.asarray(strata), use_na_sentinel=False)[0]
        groups = [np.flatnonzero(numbers == g) for g in range(numbers.max() + 1)]
    for some in np.diff([*range(0, draws, max(1, min(1000, 2**22 // n))), draws]):
        yield np.concatenate(
            [group[dice.integers(len(group), size=(some, len(group)))] for group in groups], axis=1
        )


def _limits(level: float) -> list[float]:
    check_number("level", level, 0, 1)
    return [(1 - level) / 2, (1 + level) / 2]
