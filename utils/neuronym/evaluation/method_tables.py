"""Methods against metrics: how well each explanation of a unit predicts what the unit does on images not used for naming.

choose_active   share of images on which the units of a layer count as active
scored          one row for each unit and method, one column for each metric
means           means with bootstrap intervals, neurons resampled jointly for all methods
against         every method against one of them: paired differences, tests, corrections
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common import resampling
from neuronym.common.resampling import holm, interval
from neuronym.evaluation.evaluate import presence_oracle
from neuronym.evaluation.explanations import Explained
from neuronym.evaluation.metrics import measure, SOUND
from neuronym.evaluation.pairs import active_images

SHARES = (.005, .01, .02, .05, .1, .2, .5)
FEWEST = 10  # active images
GRADED = ("correlation", "cosine", "auprc", "auroc", "spearman", "correlation_top_and_random", "spearman_top_and_random")


def choose_active(present: Tensor, Q: Tensor, shares: Sequence[float] = SHARES) -> float:
    """The share whose active images correlate best with some concept, in the mean over units: present [N, M], Q [N, K].

    NeuronEval (Oikarinen et al. 2025, appendix F.1) chooses it by metric and method; here the images for naming choose
    it once for a layer, by any of the concepts, so that no method has one of its own. Shares of fewer than 10 images
    are passed over: with so few some concept always fits.
    """
    able = [share for share in shares if share * len(Q) >= FEWEST] or [max(shares)]
    best = {share: float(presence_oracle(active_images(Q, share), present).amax(1).mean()) for share in able}
    return max(best, key=best.get)


def scored(explained: Mapping[str, Mapping[str, Explained]], present: Tensor, Q: Mapping[str, Tensor],
           active: Mapping[str, float], metrics: Sequence[str] = SOUND, units: Mapping[str, Sequence[int]] | None = None,
           generator: torch.Generator | None = None) -> pd.DataFrame:
    """Columns layer, unit, method, text and a column for each metric of `neuronym.evaluation.metrics`.

    explained {layer: {method: ...}}; present [N, M] and Q {layer: [N, K]} are of the same images, best ones that no
    method has seen; `units` names the units a layer's explanations are of, when these are not all.
    Errors: ValueError for unequal N, for explanations of another number of units, for duplicate units.
    """
    rows = []
    for layer, methods in explained.items():
        chosen = list(range(Q[layer].shape[1])) if units is None else [int(u) for u in units[layer]]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"each unit is scored once, {layer} names some of its {len(chosen)} units twice")
        if len(Q[layer]) != len(present):
            raise ValueError(f"present and activations are of the same images, got {len(present)} and {len(Q[layer])} "
                             f"in {layer}")
        q = Q[layer][:, chosen]
        for method, said in methods.items():
            if len(said.texts) != len(chosen):
                raise ValueError(f"{method} explains {len(said.texts)} units of {layer}, which has {len(chosen)} to score")
            predicted = said.predict(present)
            there = predicted if said.cut is None else predicted > said.cut
            found = {}
            for what, names in ((predicted, [m for m in metrics if m in GRADED]), (there, [m for m in metrics if m not in GRADED])):
                found |= measure(q, what, names, active[layer], generator)
            rows.append(pd.DataFrame({"layer": layer, "unit": chosen, "method": method, "text": said.texts,
                                      **{name: found[name].double().cpu().numpy() for name in metrics}}))
    return pd.concat(rows, ignore_index=True)


def means(table: pd.DataFrame, metrics: Sequence[str] = SOUND, groups: Mapping[str, str] | None = None,
          seed: int = 0) -> pd.DataFrame:
    """Columns group, method, metric, mean, low, high, units: 95 % bootstrap intervals of the mean over neurons.

    Neurons are resampled within their layers, with the same draws for all methods; what the images would add by being
    others is not in it. `groups` {layer: group} joins layers; each its own by default.
    """
    group = table["layer"] if groups is None else table["layer"].map(groups)
    rows = []
    for name, some in table.groupby(group, sort=False):
        for metric in metrics:
            wide = _wide(some, metric)
            found = resampling.means(wide.reset_index("layer"), seed, stratified=True)
            rows.append(found.assign(group=name, metric=metric, units=len(wide)))
    return pd.concat(rows, ignore_index=True)[["group", "method", "metric", "mean", "low", "high", "units"]]


def against(table: pd.DataFrame, first: str, metric: str = "correlation", groups: Mapping[str, str] | None = None,
            seed: int = 0) -> pd.DataFrame:
    """Every other method minus `first` on the same neurons: group, method, difference, low, high, p (Wilcoxon's
    signed-rank test), holm (p corrected for the number of methods and groups).

    Errors: KeyError for a method that the table lacks.
    """
    from scipy.stats import wilcoxon

    from neuronym.common.errors import unknown
    if first not in set(table["method"]):
        raise unknown("method", first, table["method"].unique())
    rows = []
    for name, some in table.groupby(table["layer"] if groups is None else table["layer"].map(groups), sort=False):
        wide = _wide(some, metric)
        for method in (m for m in wide if m != first):
            d = (wide[method] - wide[first]).to_numpy()
            rows.append((name, method, d.mean(), *interval(d, seed), float(wilcoxon(d).pvalue) if (d != 0).any() else 1.))
    found = pd.DataFrame(rows, columns=["group", "method", "difference", "low", "high", "p"])
    return found.assign(holm=holm(found["p"]))


def _wide(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a neuron, one column a method; a neuron that a method lacks is an error, since pairs need both."""
    twice = table.duplicated(["layer", "unit", "method"])
    if twice.any():
        row = table[twice].iloc[0]
        raise ValueError(f"each method scores a unit once, {row['method']} has unit {row['unit']} of {row['layer']} twice")
    wide = table.pivot(index=["layer", "unit"], columns="method", values=metric)[list(dict.fromkeys(table["method"]))]
    if wide.isna().any(axis=None):
        raise ValueError(f"methods are compared on the same neurons, {int(wide.isna().any(axis=1).sum())} of {len(wide)} "
                         f"lack {metric} of some method; score all methods on the same units")
    return wide
