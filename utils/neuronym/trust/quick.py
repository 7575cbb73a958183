"""Trust in the names of a run at the cost of about a second: what a labels table says beside each name.

quick_trust      columns trust, chance, abstain and calibrated of every unit, and what is to be said of them
label_trust      the probability that each label of a layer is near
held_out_chance  how often shuffled images go along as well with what the CLIP sees of a name
with_trust       the labels table with these columns

`neuronym.trust.signals` has what takes minutes. N images, K units, M concepts, n images held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.memory import MEMORY
from neuronym.common.statistics import standard_columns
from neuronym.common.tables import of_their_units
from neuronym.measurements import Measurements
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.sparse_columns import block_slices, SparseColumns
from neuronym.trust.null import abstain, p_values
from neuronym.trust.probability import (
    CALIBRATED,
    evidence,
    is_probability,
    LEARNT,
    probability,
    seen_concepts,
    shipped,
    steepness,
)

DRAWS = 199
TRUST = ["trust", "chance", "abstain", "calibrated"]


def quick_trust(
    data: Measurements,
    test: Measurements,
    labels: pd.DataFrame,
    named: Mapping[str, Sequence[int] | Tensor],
    level: float = 0.05,
    *,
    untrained: str = "",
    memory: int = MEMORY,
) -> tuple[pd.DataFrame, list[str]]:
    """A row for each unit of `labels` (rank 1): layer, unit and TRUST; and sentences for the user.

    `data` are the images that gave the labels: `trust` is the probability that a label is near, from these
    alone (`label_trust`; how many they are is part of it), where it is `calibrated`; elsewhere it orders
    names. `test` are images held out, and `named` {layer: [K]} the concepts that all others name the units
    by: `chance` is the p-value of these (`held_out_chance`). Abstained from is what has no name, what is no
    better than chance (Benjamini and Hochberg over a layer at `level`), and everything where the network is
    `untrained`: it has no trust (NaN).
    """
    best = labels[labels["rank"] == 1]
    where = {concept: i for i, concept in reversed(list(enumerate(data.concepts)))}
    tables, fit, slope = [], steepness(data.P), steepness(test.P)[0]
    for layer, rows in best.groupby("layer", sort=False):
        units = torch.tensor(rows["unit"].to_numpy(), dtype=torch.long, device=data.I.device)
        own = torch.tensor([where.get(label, 0) for label in rows["label"]], device=units.device)
        other = torch.as_tensor(named[layer], device=units.device)[units]
        without = torch.tensor((rows["label"] == "").to_numpy(), device=units.device)
        parts = []
        for some in block_slices(data.Q[layer], len(units), memory):
            q, held = data.Q[layer][:, units[some]], test.Q[layer][:, units[some]]
            given = {"named": ~without[some].cpu().numpy(), "untrained": untrained, "memory": memory}
            near = label_trust(data.P, q, own[some], fit=fit, **given)
            parts.append((near, held_out_chance(test.P, held, other[some], memory=memory, slope=slope)))
        near, p = np.concatenate([part for part, _ in parts]), torch.cat([part for _, part in parts])
        p = p.masked_fill(without, 1.0)
        table = pd.DataFrame({"layer": layer, "unit": rows["unit"].to_numpy(), "chance": p.cpu().numpy()})
        away = (abstain(p, level) | without | bool(untrained)).cpu().numpy()
        tables.append(table.assign(abstain=away, trust=np.where(away, np.nan, near)))
    table = pd.concat(tables, ignore_index=True).assign(calibrated=is_probability(data))
    return table[["layer", "unit", *TRUST]], _told(table, test, untrained)


def label_trust(
    P: FactoredMatrix,
    Q: Tensor | SparseColumns,
    labels: Sequence[int] | Tensor,
    *,
    named: Sequence[bool] | np.ndarray | bool = True,
    untrained: str = "",
    memory: int = MEMORY,
    fit: tuple[float, float] | None = None,
) -> np.ndarray:
    """The probability that each label is near, from the images that gave it (the map `evidence` of
    `neuronym.trust.probability`): P [N, M], Q [N, K], labels [K] -> [K].

    0 where a unit is not `named` [K], where the network is `untrained`, and for fewer images than the map was
    learnt with.
    """
    found = probability(evidence(P, Q, labels, memory, fit), shipped("evidence"))
    return found * (np.asarray(named, bool) & (not untrained) & (len(Q) >= LEARNT[0]))


@torch.no_grad()
def held_out_chance(
    P: FactoredMatrix,
    Q: Tensor,
    labels: Sequence[int] | Tensor,
    draws: int = DRAWS,
    *,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
    slope: float | None = None,
) -> Tensor:
    """(1 + draws in which shuffled images go along as well) / (1 + draws): P [n, M], Q [n, K], labels [K] ->
    [K].

    What goes along is r(Q_k, X_c), X the softmax over concepts (`soft_correlation`), or the cosine itself
    where there is one concept. A draw deals the images anew, the same for all units. It is a test of one
    concept, valid where the label was chosen on other images. Of fewer than four images, none is below .05.
    """
    labels = torch.as_tensor(labels, device=Q.device)
    seen = standard_columns(seen_concepts(P, labels, memory, slope)).float()
    q = standard_columns(Q).float()  # [n, K]
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    # made before the draws: rows kept one by one would lie between freed products, whose place is then lost
    null, dealt = q.new_empty(draws, q.shape[1]), torch.empty_like(seen)
    for one in null:
        deal = torch.randperm(len(q), generator=generator, device=generator.device).to(q.device)
        torch.sum(torch.index_select(seen, 0, deal, out=dealt).mul_(q), 0, out=one)
    own = (seen * q).sum(0)
    return p_values(own + 1, null + 1)  # so that rounding of values about 0 counts as equal


def with_trust(labels: pd.DataFrame, trust: pd.DataFrame) -> pd.DataFrame:
    """The labels table with the columns TRUST of `quick_trust`, the same for all ranks of a unit."""
    return of_their_units(labels, trust, TRUST)


def _told(table: pd.DataFrame, test: Measurements, untrained: str) -> list[str]:
    """What a user should know before reading names."""
    away, K = int(table["abstain"].sum()), len(table)
    said = [untrained] if untrained else []
    if away == K and not untrained:
        said.append(
            f"no name is better than chance on {test.N} {'image' if test.N == 1 else 'images'} held out; "
            "probe with more images"
        )
    elif away and not untrained:
        said.append(
            f"{away} of {K} names are no better than chance on {test.N} images held out: marked abstain"
        )
    if away < K:
        elsewhere = (
            f"an order of names, no probability but with the microworld's concepts and {CALIBRATED} scenes"
        )
        said.append(f"trust: {'how likely a name is near' if table['calibrated'].all() else elsewhere}")
    return said
