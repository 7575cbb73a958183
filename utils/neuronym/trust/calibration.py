"""Does trust predict rightness? Of K neurons with a trust score each, and whether their label is right.

auroc                       does trust rank right labels above wrong ones
auroc_intervals             of several trust scores, the same neurons drawn for all
reliability                 share right by bins of trust, beside the trust itself
expected_calibration_error  mean distance of the two
brier                       mean squared distance of trust and rightness
risk_coverage               share right among the most trusted: what abstaining buys
coverage_area               that share, averaged over all coverages

All in float64. A neuron is the unit of resampling.
"""
from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd
from torch import Tensor

from neuronym.common.blocks import number, whole
from neuronym.common.resampling import draw_neurons

Numbers = Sequence[float] | np.ndarray | Tensor


def auroc(trust: Numbers, right: Numbers) -> float:
    """Probability that a right label has more trust than a wrong one, ties counted half (Mann-Whitney).

    trust [K], right [K] bool; .5 when all are right, or none is.
    """
    trust, right = _pairs(trust, right)
    found = _aurocs(trust, right, np.ones((1, len(trust))))[0]
    return .5 if np.isnan(found) else float(found)


def auroc_intervals(trust: pd.DataFrame, right: Numbers, seed: int = 0, draws: int = 2000, level: float = .95) -> pd.DataFrame:
    """`auroc` of every column of `trust` (one row a neuron) with its percentile bootstrap interval: trust, units, right,
    auroc, low, high.

    Resampled are neurons, jointly: trust and rightness stay together, and each draw takes the same neurons for all
    columns. Draws with one kind only are left out; when all neurons are of one kind the interval is 0 to 1.
    """
    number("level", level, 0, 1)
    columns = [_pairs(trust[name].to_numpy(), right) for name in trust]
    if not columns:
        raise ValueError(f"expected a table with a column for each trust score, got {trust.shape}")
    right, K = columns[0][1], len(trust)
    drawn = []
    for some in draw_neurons(K, seed, draws):
        times = np.stack([np.bincount(row, minlength=K) for row in some]).astype(np.float64)  # [some, K]
        drawn.append(np.stack([_aurocs(values, right, times) for values, _ in columns], 1))
    drawn = np.concatenate(drawn)
    drawn = drawn[~np.isnan(drawn[:, 0])]                                                   # [draws, columns]
    limits = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(drawn, limits, axis=0) if len(drawn) else (0., 1.)
    return pd.DataFrame({"trust": list(trust), "units": K, "right": int(right.sum()),
                         "auroc": [auroc(values, right) for values, _ in columns], "low": low, "high": high})


def reliability(trust: Numbers, right: Numbers, bins: int = 10) -> pd.DataFrame:
    """Neurons by trust, in bins of about equal numbers: bin, units, trust (mean), right (share), low, high (Wilson, 95 %).

    trust [K] in 0..1, right [K] bool. Equal trust is never torn apart: its bin is that of its middle neuron, so bins may
    differ in size, and those without neurons are left out. The intervals take neurons as independent.
    """
    whole("bins", bins)
    trust, right = _pairs(trust, right, share=True)
    _, value, times = np.unique(trust, return_inverse=True, return_counts=True)
    middle = np.cumsum(times) - times / 2
    _, place = np.unique(np.floor(middle / len(trust) * bins).astype(int), return_inverse=True)
    place = place[value]
    units = np.bincount(place)
    share = np.bincount(place, right) / units
    low, high = _wilson(share, units, NormalDist().inv_cdf(.975))
    return pd.DataFrame({"bin": np.arange(len(units)), "units": units, "trust": np.bincount(place, trust) / units,
                         "right": share, "low": low, "high": high})


def expected_calibration_error(trust: Numbers, right: Numbers, bins: int = 10) -> float:
    """Mean over neurons of |mean trust - share right| of their bin of `reliability`."""
    table = reliability(trust, right, bins)
    return float((table["units"] * (table["trust"] - table["right"]).abs()).sum() / table["units"].sum())


def brier(trust: Numbers, right: Numbers) -> float:
    """Mean of (trust - right)^2: trust [K] in 0..1, right [K] bool. Constant trust of .5 has .25."""
    trust, right = _pairs(trust, right, share=True)
    return float(((trust - right) ** 2).mean())


def risk_coverage(trust: Numbers, right: Numbers) -> pd.DataFrame:
    """Labels kept when those of less trust are withheld: threshold (least trust kept), units, coverage (share kept),
    right (share of these); one row for each value of trust, the highest first.
    """
    trust, right = _pairs(trust, right)
    values, kept, good = _kept(trust, right)
    return pd.DataFrame({"threshold": values, "units": kept, "coverage": kept / len(trust), "right": good / kept})


def coverage_area(trust: Numbers, right: Numbers) -> float:
    """Mean over k = 1..K of the share right among the k most trusted, in the mean over orders of equal trust.

    Useless trust gives the share right of all neurons, and 1 is reached only when all are right.
    """
    trust, right = _pairs(trust, right)
    _, kept, good = _kept(trust, right)
    k = np.arange(1, len(trust) + 1)
    return float((np.interp(k, [0, *kept], [0, *good]) / k).mean())


def _pairs(trust: Numbers, right: Numbers, share: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """trust as float64 and right as bool, both [K]."""
    trust, right = (x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (trust, right))
    if trust.ndim != 1 or right.shape != trust.shape or not len(trust):
        raise ValueError(f"expected trust and right [K] of equal K, at least one, got {list(trust.shape)} and "
                         f"{list(right.shape)}")
    trust = trust.astype(np.float64)
    wrong = trust[~np.isfinite(trust) | (share & ~((trust >= 0) & (trust <= 1)))]
    if len(wrong):
        raise ValueError(f"trust must be {'from 0 to 1' if share else 'finite'}, got {wrong[0]}"
                         + ("; give a probability, or rank it with auroc" if share else "; leave that neuron out"))
    if not np.isin(right, (0, 1)).all():
        raise ValueError(f"right must be true or false, got {right[~np.isin(right, (0, 1))][0]}; choose what counts as right")
    return trust, right.astype(bool)


def _aurocs(trust: np.ndarray, right: np.ndarray, times: np.ndarray) -> np.ndarray:
    """AUROC of neurons counted so many times, times [draws, K] -> [draws]; nan when one kind is missing."""
    by_trust = np.argsort(trust, kind="stable")
    trust, right, times = trust[by_trust], right[by_trust], times[:, by_trust]
    first = np.flatnonzero(np.append(True, trust[1:] > trust[:-1]))
    good, bad = (np.add.reduceat(times * kind, first, axis=1) for kind in (right, ~right))  # by value of trust
    below = np.cumsum(bad, axis=1) - bad / 2
    pairs = good.sum(1) * bad.sum(1)
    return np.divide((good * below).sum(1), pairs, out=np.full(len(times), np.nan), where=pairs > 0)


def _wilson(share: np.ndarray, n: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson (1927): (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    middle, width = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)
    return low.clip(0, 1), high.clip(0, 1)


def _kept(trust: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of trust, descending, and how many neurons have at least that, and how many of these are right."""
    values, place = np.unique(-trust, return_inverse=True)
    return -values, np.cumsum(np.bincount(place)), np.cumsum(np.bincount(place, right))
