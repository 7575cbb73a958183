"""Would another pooling of its map name a unit much better?

pooled_otherwise  every unit and other pooling: its label, and how well that foresees images held out
pooling_notes     what is much better, in words

A map becomes one value before a unit is named (`neuronym.hooks.poolings`), and which value is part of the
name: a small thing anywhere is in the largest value, a surface in the mean, a class token says what patches
do not. K units, n images held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.memory import MEMORY
from neuronym.common.statistics import correlation
from neuronym.dissect import at_most
from neuronym.measurements import Measurements
from neuronym.similarity.scores import score
from neuronym.trust.probability import seen_concepts, steepness

LEAST_GAIN = 0.05  # of correlation; docs/protocols/poolings.md chose both
CERTAIN = 2.326  # standard errors: 1 % of units that gain nothing
BESIDE = ["layer", "unit", "pooling", "label", "correlation", "other_label", "other_correlation", "better"]


def pooled_otherwise(
    naming: Measurements,
    test: Measurements,
    named: Mapping[str, Sequence[int] | Tensor],
    similarity: str,
    options: Mapping[str, Mapping] | None = None,
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """BESIDE of each unit of the layers of `naming.beside` and each other pooling; empty where there is
    none.

    Both labels are of the images for naming: `named` {layer: [K]}, and the best by `similarity` with the
    `options` of the layer. Correlations are over the images held out, of the activations, pooled either way,
    with what the CLIP sees of the label (the softmax over concepts). `better` is a gain of LEAST_GAIN, and of
    CERTAIN standard errors by Fisher's z, atanh r' - atanh r > CERTAIN sqrt(2 / (n - 3)), which is strict,
    as both are of the same images.
    """
    tables, n, slope = [], test.N, steepness(test.P)[0]
    error = (2 / (n - 3)) ** 0.5 if n > 3 else float("inf")
    for layer, others in naming.beside.items():
        given = at_most((options or {}).get(layer, {}), naming.N)
        own = torch.as_tensor(named[layer], device=naming.I.device)
        r = _foreseen(test, test.Q[layer], own, memory, slope)
        for how, q in others.items():
            scores = score(naming.P, q, similarity, memory=memory, generator=generator, **given)
            label = scores.argmax(1)
            other = _foreseen(test, test.beside[layer][how], label, memory, slope)
            certain = (_z(other) - _z(r)) > CERTAIN * error
            columns = {"layer": layer, "unit": range(len(r)), "pooling": how}
            columns |= {"label": [naming.concepts[i] for i in own.tolist()], "correlation": r.cpu().numpy()}
            columns |= {"other_label": [naming.concepts[i] for i in label.tolist()]}
            columns |= {"other_correlation": other.cpu().numpy()}
            columns |= {"better": (certain & (other - r >= LEAST_GAIN)).cpu().numpy()}
            tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=BESIDE)


def pooling_notes(labels: pd.DataFrame, otherwise: pd.DataFrame) -> pd.DataFrame:
    """The labels table with a column `pooling_note`, "" for most: of a unit that other poolings name much
    better, the best of them, as "max: 'dots' .62, here .35".
    """
    better = otherwise[otherwise["better"].astype(bool)].sort_values("other_correlation", kind="stable")
    said = {
        (row.layer, row.unit): f"{row.pooling}: '{row.other_label}' {_short(row.other_correlation)}, here "
        f"{_short(row.correlation)}"
        for row in better.itertuples()
    }
    keys = zip(labels["layer"], labels["unit"])
    return labels.assign(pooling_note=[said.get(key, "") for key in keys])


def _foreseen(test: Measurements, q: Tensor, labels: Tensor, memory: int, slope: float) -> Tensor:
    """r(Q_k, X_c) of each unit's own label c: [K]."""
    return correlation(seen_concepts(test.P, labels, memory, slope), q)


def _z(r: Tensor) -> Tensor:
    return r.clamp(-0.999999, 0.999999).atanh()


def _short(r: float) -> str:
    return f"{r:.2f}".replace("0.", ".", 1)
