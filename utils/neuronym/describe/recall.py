"""Do the candidates hold a phrase as good as the best single word, and does the choice find the best of them?

candidate_recall  a row a unit: its label, its best candidate by truth, and the oracle's word
recall_shares     shares and means of these by group of layers, with intervals
label_diversity   different labels of each layer and method, the oracle's beside them

"Best" is by correlation with the truth on the images that name; values are correlations on images held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from neuronym.common.statistics import cross_correlation, draw_neurons, wilson
from neuronym.common.text import names_it
from neuronym.describe.pipeline import best_labels, Described
from neuronym.evaluation.label_quality import diversity

AS_GOOD = 1e-6  # a correlation that is lower by less than rounding is as high
Present = Callable[[Sequence[str]], Tensor]  # texts -> presence [images, texts]


def candidate_recall(
    described: Described,
    words: Sequence[str],
    naming: tuple[Tensor, Present],
    held_out: tuple[Tensor, Present],
) -> pd.DataFrame:
    """Columns layer, unit, label, correlation, best_candidate, best_correlation, word, word_correlation,
    recalled, as_good, candidates (how many); a row for each unit.

    `words` is each unit's word of highest correlation with the truth on the images that name, `naming` and
    `held_out` are Q [N, K] of the layer and what gives the presence of texts in these images. `recalled`: the
    word is a candidate, word for word but for its number; `as_good`: on the images that name the best
    candidate correlates no less than the word, whatever its words. Errors: ValueError for another number of
    words.
    """
    units = list(described.candidates)
    if len(words) != len(units):
        raise ValueError(f"each unit has its best word, got {len(words)} words for {len(units)} units")
    texts = list(dict.fromkeys([*words, *(text for some in described.candidates.values() for text in some)]))
    at = {text: column for column, text in enumerate(texts)}
    own, held = (cross_correlation(Q[:, units].cpu(), there(texts).cpu()) for Q, there in (naming, held_out))
    rows = []
    for i, (unit, word, label) in enumerate(zip(units, words, best_labels(described))):
        some = described.candidates[unit]
        best = max(some, key=lambda text: float(own[i, at[text]]))
        recalled = any(names_it(text, word) and names_it(word, text) for text in some)
        as_good = float(own[i, at[best]]) >= float(own[i, at[word]]) - AS_GOOD
        values = {name: float(held[i, at[text]]) for name, text in (("", label), ("best_", best))}
        rows.append(
            {"layer": described.layer, "unit": unit, "label": label, "correlation": values[""]}
            | {"best_candidate": best, "best_correlation": values["best_"], "word": word}
            | {"word_correlation": float(held[i, at[word]]), "recalled": recalled}
            | {"as_good": as_good, "candidates": len(some)}
        )
    return pd.DataFrame(rows)


def recall_shares(units: pd.DataFrame, groups: Mapping[str, str], seed: int = 0) -> pd.DataFrame:
    """Columns group, units, candidates, recalled, as_good, share_of_best and their _low and _high,
    correlation, best_correlation, word_correlation: `candidate_recall`'s rows by group of layers.

    `share_of_best` is the labels' mean correlation divided by that of the best candidates (nan where that is
    not above 0), with a bootstrap interval over units; intervals of shares are Wilson's.
    """
    rows = []
    for group, some in units.groupby(units["layer"].map(groups), sort=False):
        row = {"group": group, "units": len(some), "candidates": some["candidates"].mean()}
        for name in ("recalled", "as_good"):
            share = some[name].mean()
            low, high = wilson(share, len(some))
            row |= {name: share, f"{name}_low": float(low), f"{name}_high": float(high)}
        both = some[["correlation", "best_correlation"]].to_numpy(np.float64)
        drawn = np.concatenate([both[part].mean(1) for part in draw_neurons(len(both), seed)])
        low, high = np.quantile(_share(drawn), (0.025, 0.975))
        row |= {"share_of_best": float(_share(both.mean(0))), "share_of_best_low": low}
        row |= {"share_of_best_high": high}
        row |= {name: some[name].mean() for name in ("correlation", "best_correlation", "word_correlation")}
        rows.append(row)
    return pd.DataFrame(rows)


def _share(means: np.ndarray) -> np.ndarray:
    """Mean of the labels divided by that of the best candidates: [..., 2] -> [...]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], np.nan)


def label_diversity(
    labels: Mapping[str, Mapping[str, Sequence[str]]], oracle: str = "oracle"
) -> pd.DataFrame:
    """Columns layer, method, units, distinct_labels, oracle_distinct, distinct_share, entropy (bits): {layer:
    {method: a label a unit}}.

    `oracle_distinct` are those of the method of that name, in every row: more than it has are no virtue.
    """
    rows = []
    for layer, methods in labels.items():
        found = {method: diversity(pd.factorize(np.asarray(texts))[0]) for method, texts in methods.items()}
        for method, row in found.items():
            first = {"layer": layer, "method": method, "units": len(methods[method])}
            most = {"distinct_labels": 0, "oracle_distinct": found[oracle]["distinct_labels"]}
            rows.append(first | most | row)
    return pd.DataFrame(rows)
