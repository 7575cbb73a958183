"""Do units that a class draws on have names like the class's (CLIP-Dissect, figure 5)?

weights_and_names   a row for each pair of a hidden and a final unit: weight, and similarity of their labels
weights_agreement   correlation of both, with an interval, and the similarity of the largest weights

K hidden units, C final ones, D width of the text embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int

COVERED, BOOTSTRAPS = 0.95, 1_000


def weights_and_names(
    weight: Tensor, hidden: Sequence[str], final: Sequence[str], encode: Callable[[list[str]], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [C, K] from hidden units to final ones, and the cosine of the two units' labels [C, K].

    `encode` maps texts to unit rows. Hidden units that have no label ("") are left out of both. Errors:
    ValueError for other numbers of labels than of units.
    """
    if tuple(weight.shape) != (len(final), len(hidden)):
        raise ValueError(
            f"expected weights [C, K] and one label for each unit, got {list(weight.shape)}, {len(final)} "
            f"final labels and {len(hidden)} hidden ones"
        )
    kept = [k for k, label in enumerate(hidden) if label]
    said, true = encode([hidden[k] for k in kept]), encode(list(final))
    alike = true.double().cpu() @ said.double().cpu().T
    return weight[:, kept].double().cpu().numpy(), alike.numpy()


def weights_agreement(
    weight: np.ndarray, alike: np.ndarray, largest: int = 1, seed: int = 0, draws: int = BOOTSTRAPS
) -> dict[str, float]:
    """Pearson's r of weight [C, K] and similarity [C, K] over all pairs, with a 95 % interval ("r", "r_low",
    "r_high"), and the mean similarity of all pairs ("all_pairs") beside that of the `largest` weights of each
    class ("largest_weights").

    Pairs share their units and are not independent: the interval is a bootstrap that draws hidden units,
    with all their weights. r is nan where nothing varies.
    """
    if weight.shape != alike.shape or weight.ndim != 2:
        raise ValueError(f"expected two [C, K], got {list(weight.shape)} and {list(alike.shape)}")
    check_positive_int("largest", largest, weight.shape[1], "the hidden units that have labels")
    K, dice = weight.shape[1], np.random.default_rng(seed)
    # sums of each hidden unit's column, so that a draw is a sum of columns
    sums = np.stack([v.sum(0) for v in (weight, alike, weight**2, alike**2, weight * alike)])
    times = dice.multinomial(K, np.full(K, 1 / K), size=draws)
    drawn = _correlation(times @ sums.T, weight.size)
    low, high = np.nanquantile(drawn, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    best = torch.from_numpy(weight).topk(largest, dim=1).indices.numpy()
    return {
        "pairs": weight.size,
        "r": float(_correlation(sums.sum(1)[None], weight.size)[0]),
        "r_low": float(low),
        "r_high": float(high),
        "all_pairs": float(alike.mean()),
        "largest_weights": float(np.take_along_axis(alike, best, 1).mean()),
    }


def _correlation(sums: np.ndarray, n: int) -> np.ndarray:
    """Pearson's r from sums [., 5] of x, y, x^2, y^2 and xy over n pairs."""
    x, y, xx, yy, xy = sums.T / n
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - x * y) / np.sqrt((xx - x**2) * (yy - y**2))
