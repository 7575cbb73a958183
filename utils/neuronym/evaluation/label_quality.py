"""What a set of labels is worth, layer by layer: how many say something of their unit, and how many are
different.

held_out_p       how often another unit's label does as well on images held out: a p-value for each unit
label_precision  share of units whose label passes
diversity        distinct labels and their entropy
label_quality    both, for several methods of a layer

K units, M concepts. Labels are indices of concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, unknown

LEVEL = 0.05


@torch.no_grad()
def held_out_p(held: Tensor, labels: Sequence[int] | Tensor, level: float = LEVEL) -> Tensor:
    """(1 + units of another label whose label does as well here) / (1 + units of another label): [K].

    held [K, M] says how well each concept predicts each unit on images held out: its correlation with what is
    known of them, or with what the CLIP sees. Labels are dealt as they are, so that a label that fits any
    unit passes for none; that others share the unit's own label is no evidence against it. 1 where fewer than
    1 / level - 1 units have another label (nothing can pass then), and nan where the layer is that small.
    Errors: ValueError for another number of labels than units, and for a level outside 0..1.
    """
    check_number("level", level, 0, 1)
    chosen = torch.as_tensor(labels, dtype=torch.long, device=held.device)
    if held.ndim != 2 or len(chosen) != len(held):
        raise ValueError(
            f"expected held [K, M] and one label for each unit, got {list(held.shape)} and "
            f"{len(chosen)} labels"
        )
    of_labels = held[:, chosen]  # [K, K]
    other = chosen[:, None] != chosen
    as_good = ((of_labels >= of_labels.diagonal()[:, None]) & other).sum(1)
    p = (1 + as_good).double() / (1 + other.sum(1))
    return p if len(held) * level >= 1 else torch.full_like(p, torch.nan)


def label_precision(held: Tensor, labels: Sequence[int] | Tensor, level: float = LEVEL) -> float:
    """Share of units whose label passes `held_out_p` at the level; nan for a layer too small to tell."""
    p = held_out_p(held, labels, level)
    return float((p <= level).double().mean()) if not bool(p.isnan().any()) else float("nan")


def diversity(labels: Sequence[int] | Tensor) -> dict[str, float]:
    """Number of distinct labels, their share of the units, and the entropy of labels in bits."""
    counts = torch.unique(torch.as_tensor(labels), return_counts=True)[1].double()
    share = counts / counts.sum()
    return {
        "distinct_labels": len(counts),
        "distinct_share": len(counts) / float(counts.sum()),
        "entropy": float(-(share * share.log2()).sum()) + 0.0,
    }


def label_quality(
    held: Tensor, labels: Mapping[str, Sequence[int] | Tensor], level: float = LEVEL, oracle: str = "oracle"
) -> pd.DataFrame:
    """A row for each method {name: labels [K]} of a layer: method, units, correlation (mean of held [K, M] at
    the labels), precision, distinct_labels, oracle_distinct, distinct_share, entropy.

    `oracle_distinct` are the distinct labels of the method of that name, in every row: more labels than the
    oracle has are no virtue. Errors: KeyError where `labels` lacks it.
    """
    if oracle not in labels:
        raise unknown("method to compare diversity with", oracle, labels)
    best = diversity(torch.as_tensor(labels[oracle]).cpu())["distinct_labels"]
    rows = []
    for method, said in labels.items():
        chosen = torch.as_tensor(said, dtype=torch.long, device=held.device)
        rows.append(
            {
                "method": method,
                "units": len(held),
                "correlation": float(held.gather(1, chosen[:, None]).double().mean()),
                "precision": label_precision(held, chosen, level),
                "distinct_labels": 0,
                "oracle_distinct": best,
                **diversity(chosen.cpu()),
            }
        )
    return pd.DataFrame(rows)
