"""Are features named better than neurons: labels of layers side by side, at an equal number of units.

name_layers     labels of each layer on some images, and what they are worth on others
at_equal_count  the same averaged over draws of equally many units of each layer
over_repeats    the same of several repeats: means, lowest and highest
differences     what one kind of unit has more than another in the same repeats, with intervals
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
from neuronym.trust.probability import probability, ratios

MEASURED = ("correlation", "trust", "precision", "distinct_labels", "entropy")
SURE = 0.95  # of intervals over repeats


@dataclass(frozen=True)
class NamedLayer:
    """Units of a layer that have a name: numbers [n], labels and best possible labels [n] as indices of the
    concepts, held [n, M], how well each concept predicts them on the images held out, and trust [n] in the
    labels, which knows no truth.
    """

    units: Tensor
    labels: Tensor
    oracle: Tensor
    held: Tensor
    trust: Tensor
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
        seen = testing.Q[layer][:, units]
        held = presence_oracle(seen, truth_testing).cpu()
        trust = torch.from_numpy(probability(ratios(testing.P, seen, labels)))
        found[layer] = NamedLayer(units.cpu(), labels, oracle, held, trust, q.shape[1])
    return found


def at_equal_count(
    named: Mapping[str, NamedLayer],
    count: int = 0,
    draws: int = 100,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """`label_quality` of `count` units of each layer, by default as many as the smallest has: layer, method
    (named, oracle), units, count, and for each of MEASURED the mean over `draws` of units without
    replacement, with _low and _high, the middle 95 % of them. Trust is of the labels alone.

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
            table = label_quality(layer.held[some], said).set_index("method")
            table.loc["named", "trust"] = float(layer.trust[some].mean())
            tables.append(table)
        for method in ("named", "oracle"):
            row = {"layer": name, "method": method, "units": layer.total, "alive": len(layer.units)}
            row["count"] = count
            for column in MEASURED:
                values = np.array([table.at[method, column] for table in tables], dtype=float)
                row[column] = values.mean()
                row[f"{column}_low"], row[f"{column}_high"] = np.quantile(values, [0.025, 0.975])
            rows.append(row)
    return pd.DataFrame(rows)


def over_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Tables of `at_equal_count` with columns pooling and repeat, as one: means over repeats, with _low and
    _high their lowest and highest; of one repeat those of its draws.
    """
    keys = ["pooling", "layer", "method"]
    if table["repeat"].nunique() == 1:
        return table.drop(columns="repeat")
    groups = table.groupby(keys, sort=False)
    found = groups[["units", "alive", "count", *MEASURED]].mean()
    for column in MEASURED:
        found[f"{column}_low"], found[f"{column}_high"] = groups[column].min(), groups[column].max()
    return found.reset_index()


def differences(
    table: pd.DataFrame, reference: str = "neurons", column: str = "correlation", best: bool = False
) -> pd.DataFrame:
    """What the labels of each kind of unit have more of a column than those of `reference` in the same
    repeat: layer, reference, pooling, repeats, difference (mean over repeats), low, high, verdict.

    The interval is Student's at `SURE` over n repeats, mean -+ t_(n - 1) sd / sqrt n; without one (n = 1)
    nothing is told apart. With `best` each kind is taken by the pooling of its highest mean, which pooling
    then says: "max, avg". Errors: ValueError without labels of the reference.
    """
    from scipy.stats import t

    named = table[table["method"] == "named"]
    values = named.pivot_table(index="repeat", columns=["layer", "pooling"], values=column, sort=False)
    kinds = list(dict.fromkeys(named["layer"]))
    if reference not in kinds:
        raise ValueError(f"kinds are compared with one of {', '.join(kinds)}, got {reference!r}")
    pools = {kind: [values[kind].mean().idxmax()] if best else list(values[kind]) for kind in kinds}
    rows = []
    for kind in (kind for kind in kinds if kind != reference):
        for pool in pools[kind]:
            other = pools[reference][0] if best else pool
            gap = (values[kind, pool] - values[reference, other]).to_numpy()
            n, mean = len(gap), float(gap.mean())
            wide = float(t.ppf((1 + SURE) / 2, n - 1) * gap.std(ddof=1) / n**0.5) if n > 1 else np.inf
            verdict = "better" if mean > wide else "worse" if -mean > wide else "not told apart"
            row = {"layer": kind, "reference": reference, "pooling": f"{pool}, {other}" if best else pool}
            ends = (mean - wide, mean + wide) if n > 1 else (np.nan, np.nan)
            row |= {"repeats": n, "difference": mean, "low": ends[0], "high": ends[1], "verdict": verdict}
            rows.append(row)
    return pd.DataFrame(rows)
