"""What a set of labels is worth, layer by layer: how many say something of their unit, and how many are
different.

held_out_p       how often another unit's label does as well on images held out: a p-value for each unit
label_precision  share of units whose label passes
diversity        distinct labels and their entropy
label_quality    both, for several methods of a layer

K units, M concepts. Labels are indices of concepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, unknown
from neuronym.common.memory import as_blocks

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
    return _p_values(held, chosen, chosen, level)


def _p_values(held: Tensor, own: Tensor, all_labels: Tensor, level: float) -> Tensor:
    """`held_out_p` of some units [n, M] with their own labels [n], among the labels of all [K]."""
    if held.ndim != 2 or len(own) != len(held):
        raise ValueError(
            f"expected held [K, M] and one label for each unit, got {list(held.shape)} and {len(own)} labels"
        )
    if len(all_labels) * level < 1:
        return held.new_full((len(held),), torch.nan, dtype=torch.float64)
    kinds, counts = all_labels.unique(return_counts=True)
    other = kinds != own[:, None]
    as_good = (held[:, kinds] >= held.gather(1, own[:, None])) & other
    counts = counts.double()
    return (1 + as_good.double() @ counts) / (1 + other.double() @ counts)


def label_precision(held: Tensor, labels: Sequence[int] | Tensor, level: float = LEVEL) -> float:
    """Share of units whose label passes `held_out_p` at the level; nan for a layer too small to tell."""
    return _share_passing(held_out_p(held, labels, level), level)


def _share_passing(p: Tensor, level: float) -> float:
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
    held: Tensor | Iterable[tuple[slice, Tensor]],
    labels: Mapping[str, Sequence[int] | Tensor],
    level: float = LEVEL,
    oracle: str = "oracle",
) -> pd.DataFrame:
    """A row for each method {name: labels [K]} of a layer: method, units, correlation (mean of held [K, M] at
    the labels), precision, distinct_labels, oracle_distinct, distinct_share, entropy.

    `oracle_distinct` are the distinct labels of the method of that name, in every row: more labels than the
    oracle has are no virtue. `held` may come in blocks, (units, their rows) in order. Errors: KeyError where
    `labels` lacks the oracle.
    """
    if oracle not in labels:
        raise unknown("method to compare diversity with", oracle, labels)
    best = diversity(torch.as_tensor(labels[oracle]).cpu())["distinct_labels"]
    chosen = {method: torch.as_tensor(said, dtype=torch.long) for method, said in labels.items()}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {method: [] for method in chosen}
    for units, of_units in as_blocks(held):
        for method, said in chosen.items():
            said = said.to(of_units.device)
            p = _p_values(of_units, said[units], said, level)
            found[method].append((of_units.gather(1, said[units, None])[:, 0].double(), p))
    rows = []
    for method, parts in found.items():
        own, p = (torch.cat(column) for column in zip(*parts))
        row = {"method": method, "units": len(own), "correlation": float(own.mean())}
        row |= {"precision": _share_passing(p, level), "distinct_labels": 0, "oracle_distinct": best}
        rows.append(row | diversity(chosen[method].cpu()))
    return pd.DataFrame(rows)
