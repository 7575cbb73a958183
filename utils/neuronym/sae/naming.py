"""Are features named better than neurons: labels of layers side by side, at an equal number of units.

name_layers     labels of each layer on some images, and what they are worth on others
at_equal_count  the same averaged over draws of equally many units of each layer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int
from neuronym.dissect import clip_dissect, DEFAULT
from neuronym.evaluation.label_quality import label_quality
from neuronym.evaluation.presence import presence_oracle
from neuronym.measurements import Measurements


@dataclass(frozen=True)
class NamedLayer:
    """Units of a layer that have a name: numbers [n], labels and best possible labels [n] as indices of the
    concepts, and held [n, M], how well each concept predicts them on the images held out.
    """

    units: Tensor
    labels: Tensor
    oracle: Tensor
    held: Tensor
    total: int


def name_layers(
    naming: Measurements,
    testing: Measurements,
    truth_naming: Tensor,
    truth_testing: Tensor,
    similarity: str = DEFAULT,
    generator: torch.Generator | None = None,
) -> dict[str, NamedLayer]:
    """Name the units of each layer by CLIP-Dissect on the images of `naming`; truth [n, M] is the presence of
    each concept in the images of either part. Units that have no name (dead, constant) are left out; the
    oracle takes the concept that correlates best on the same images.
    """
    table = clip_dissect(naming, similarity, k=1, generator=generator)
    at = {concept: i for i, concept in enumerate(naming.concepts)}
    found = {}
    for layer, q in naming.Q.items():
        said = table[(table["layer"] == layer) & table["label"].isin(list(at))]
        units = torch.tensor(said["unit"].to_numpy(dtype=np.int64), device=q.device)
        labels = torch.tensor([at[label] for label in said["label"]], dtype=torch.long)
        oracle = presence_oracle(q[:, units], truth_naming).argmax(1).cpu()
        held = presence_oracle(testing.Q[layer][:, units], truth_testing).cpu()
        found[layer] = NamedLayer(units.cpu(), labels, oracle, held, q.shape[1])
    return found


def at_equal_count(
    named: Mapping[str, NamedLayer],
    count: int = 0,
    draws: int = 100,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """`label_quality` of `count` units of each layer, by default as many as the smallest has: layer, method
    (named, oracle), units, count, and for correlation, precision, distinct_labels and entropy the mean over
    `draws` of units without replacement, with _low and _high, the middle 95 % of them.

    Errors: ValueError where no unit has a name, and for more units than a layer has.
    """
    fewest = min(len(layer.units) for layer in named.values())
    if fewest < 1 or count > fewest:
        raise ValueError(f"each layer has units with a name, at least count={count}, got {fewest} in one")
    count = count or fewest
    check_positive_int("draws", draws)
    rows = []
    for name, layer in named.items():
        whole = len(layer.units) == count
        tables = []
        for _ in range(1 if whole else draws):
            some = torch.randperm(len(layer.units), generator=generator)[:count]
            said = {"named": layer.labels[some], "oracle": layer.oracle[some]}
            tables.append(label_quality(layer.held[some], said).set_index("method"))
        for method in ("named", "oracle"):
            row = {"layer": name, "method": method, "units": layer.total, "alive": len(layer.units)}
            row["count"] = count
            for column in ("correlation", "precision", "distinct_labels", "entropy"):
                values = np.array([table.at[method, column] for table in tables], dtype=float)
                row[column] = values.mean()
                row[f"{column}_low"], row[f"{column}_high"] = np.quantile(values, [0.025, 0.975])
            rows.append(row)
    return pd.DataFrame(rows)
