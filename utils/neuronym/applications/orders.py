"""In which order units are removed, and what a network is worth with more and more of them gone.

ORDERS          how units are ordered
by_activation, by_magnitude, by_trust, at_random   units of a layer, those that go first first
redundant       pairs of units with one label and correlated activations, as Folds
gone            the units that Folds remove
amounts_of      shares of each layer as numbers of units
prune_curve     accuracy against the share removed, network by smaller network
network_inputs   preprocessed images, once for all networks
check_apart     layers that hold units of their own
cost            weights, bytes and seconds an image of networks
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import nn, Tensor

from neuronym.applications.channels import Graph, trace
from neuronym.applications.effects import classes_of, Judged, resampled
from neuronym.applications.surgery import Fold, folded, removed, size, with_means
from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.statistics import cross_correlation
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import batches, Probe
from neuronym.passes import inference_of

ORDERS = {
    "activation": "lowest mean activation first",
    "magnitude": "smallest weights first",
    "trust": "least trusted name first",
    "redundant": "same label and correlated, folded",
    "redundant, not folded": "the same, not folded",
    "correlated": "correlated whatever the labels, folded",
    "correlated, not folded": "the same, not folded",
    "random": "in random order",
}
LEAST = 0.5  # correlation from which two units are redundant
HELD_AT_ONCE = 2**30  # bytes of preprocessed images


def by_activation(Q: Tensor) -> list[int]:
    """Units of Q [N, K] by their mean |activation|, the lowest first."""
    return Q.abs().double().mean(0).argsort(stable=True).tolist()


def by_magnitude(model: nn.Module, graph: Graph, layer: str) -> list[int]:
    """Units by the L1 norm of the weights that write them (Li et al., ICLR 2017), the smallest first."""
    writers = [model.get_submodule(name) for name in graph.channels(layer).writers]
    norms = sum(writer.weight.detach().abs().double().flatten(1).sum(1) for writer in writers)
    return norms.argsort(stable=True).tolist()


def by_trust(labels: pd.DataFrame, layer: str, K: int) -> list[int]:
    """Units by the trust of their label of rank 1, the least first; those without any come before.

    Errors: ValueError for labels without a column trust.
    """
    if "trust" not in labels:
        raise ValueError(
            f"an order by trust needs labels with a column 'trust', got {', '.join(labels)}; name a run of "
            "the notebook trust"
        )
    best = labels[(labels["rank"] == 1) & (labels["layer"] == layer)]
    trust = np.full(K, -np.inf)
    trust[best["unit"].to_numpy()] = best["trust"].fillna(-np.inf).to_numpy()
    return np.argsort(trust, kind="stable").tolist()


def at_random(K: int, dice: np.random.Generator) -> list[int]:
    """Units in random order."""
    return dice.permutation(K).tolist()


def redundant(Q: Tensor, labels: Sequence[str] | None, least: float = LEAST) -> list[Fold]:
    """Units that another speaks for: Q [N, K], a label for each ("" for none, which is never redundant), or
    None for any pair.

    Pairs with one label and a correlation of `least` or more, the most correlated first; of a pair that is
    still there the less active one goes, and the other takes cov(y_gone, y_stays) / var(y_stays) of its
    weights and the readers' biases the rest of its mean: the least-squares line.
    """
    check_number("least", least, -1, 1)
    Q = Q.double().cpu()
    r = cross_correlation(Q, Q)
    if labels is not None:
        code = torch.from_numpy(pd.factorize(np.asarray(labels))[0])
        named = torch.tensor([bool(label) for label in labels])
        r = torch.where((code[:, None] == code) & named & named[:, None], r, -2.0)
    level, mean, covariance = Q.abs().mean(0), Q.mean(0), Q.T.cov(correction=0)
    first, second = torch.triu_indices(len(r), len(r), 1)
    values = r[first, second]
    order = values.argsort(descending=True, stable=True)
    left_out, folds = set(), []
    for i in order[: int((values >= least).sum())].tolist():
        a, b = int(first[i]), int(second[i])
        if a in left_out or b in left_out:
            continue
        a, b = (a, b) if level[a] <= level[b] else (b, a)
        factor = float(covariance[a, b] / covariance[b, b]) if covariance[b, b] else 0.0
        folds.append(Fold(a, b, factor, float(mean[a] - factor * mean[b])))
        left_out.add(a)
    return folds


def gone(folds: Mapping[str, Sequence[Fold]]) -> dict[str, list[int]]:
    """The units that go: {layer: Folds} -> {layer: units}."""
    return {layer: [fold.gone for fold in some] for layer, some in folds.items()}


def network_inputs(target: Target, probe: Probe, batch_size: int = 64, memory: int = HELD_AT_ONCE) -> Tensor:
    """The probe's images as the network reads them, [N, C, H, W]; ValueError where they exceed `memory`."""
    parts, needed = [], probe.N * target.example[0].numel() * 4
    if needed > memory:
        raise ValueError(
            f"images to compare networks with are held at once, {probe.N} of them take {needed / 2**20:.0f} "
            f"MiB of {memory / 2**20:.0f}; take fewer images"
        )
    for _, (images,) in batches(probe, [target.preprocess], batch_size):
        parts.append(images)
    return torch.cat(parts)


def amounts_of(shares: Sequence[float], sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Units of each layer for each share, one left at least: sizes {layer: K} -> [{layer: number}]."""
    for share in shares:
        check_number("share", share, 0, 1)
    return [{layer: min(round(share * K), K - 1) for layer, K in sizes.items()} for share in shares]


def prune_curve(
    target: Target,
    orders: Mapping[str, Mapping[str, Sequence[int] | Sequence[Fold]]],
    pictures: Tensor,
    truth: Tensor,
    amounts: Sequence[Mapping[str, int]],
    means: Mapping[str, Tensor] | None = None,
    *,
    resamples: int = 500,
    seed: int = 0,
    device: Device = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Accuracy of networks without so many units of each layer: orders {name: {layer: units, first to go
    first, or Folds}}, amounts [{layer: number}, ...] (`amounts_of` shares); pictures [N, C, H, W]; truth and
    accuracy as in `effects.Judged`.

    With `means` {layer: [K]} what units that go said on average stays, in the biases of what read them
    (`surgery.with_means`); Folds keep their own. A name with "/" behind it, as "random/3", is one of several
    draws of "random". Each network is really
    smaller (`surgery.removed`). Rows: order, draws, share (units removed, of all in these layers), units,
    weights (share of the network's that are left), accuracy with its 95 % interval over images, and over
    draws; `loss` against the whole network, paired, with its interval. Amounts that an order of Folds does
    not reach are left out. Errors: ValueError for layers that hold the same units or that cannot lose any.
    """
    check_positive_int("resamples", resamples)
    graph = trace(target.model, target.example)
    layers = dict.fromkeys(layer for order in orders.values() for layer in order)
    check_apart(graph, layers)
    judged = Judged(truth, torch.ones(classes_of(target), dtype=torch.bool))
    counts = resampled(len(pictures), resamples, seed)
    whole = _accuracy(target, pictures, judged, counts, device)
    weights, rows = size(target.model)[0], {}
    total = sum(graph.channels(layer).units for layer in layers)
    steps = [(name, amount) for name in orders for amount in amounts if sum(amount.values())]
    for name, amount in steps if progress is None else progress(steps, len(steps), "smaller networks"):
        some = {layer: list(orders[name][layer])[:n] for layer, n in amount.items()}
        if any(len(some[layer]) < n for layer, n in amount.items()):
            continue
        folds = {layer: [one for one in part if isinstance(one, Fold)] for layer, part in some.items()}
        model = folded(target.model, target.example, folds, graph) if any(folds.values()) else target.model
        units = {layer: [one.gone if isinstance(one, Fold) else one for one in some[layer]] for layer in some}
        if means is not None and not any(folds.values()):
            left = {layer: {k: float(means[layer][k]) for k in part} for layer, part in units.items()}
            model = with_means(model, target.example, left, graph)
        smaller = removed(model, target.example, units, graph)
        score = _accuracy(replace(target, model=smaller), pictures, judged, counts, device)
        told = {"units": sum(amount.values()), "weights": size(smaller)[0] / weights}
        told = {"share": told["units"] / total} | told
        rows.setdefault((name.partition("/")[0], told["units"]), []).append((score, told))
    table = [{"order": "whole", "draws": 1, "share": 0.0, "units": 0, "weights": 1.0, **_told(whole, whole)}]
    dice = np.random.default_rng(seed)
    for (name, _), found in rows.items():
        scores = np.stack([score for score, _ in found])
        drawn = dice.integers(len(found), size=(len(found), scores.shape[1]))
        drawn[:, 0] = np.arange(len(found))
        mean = np.take_along_axis(scores, drawn, 0).mean(0)
        told = {"order": name, "draws": len(found)} | found[0][1]
        told["weights"] = float(np.mean([one["weights"] for _, one in found]))
        table.append(told | _told(mean, whole))
    return pd.DataFrame(table)


def cost(
    networks: Mapping[str, Target], pictures: Tensor, repeats: int = 5, device: Device = None
) -> pd.DataFrame:
    """Weights, MiB of the state dict, and milliseconds an image (median of `repeats` rounds in which each
    network runs once) of each network: name, weights, mib, ms, and ms as a share of the first network's.
    """
    check_positive_int("repeats", repeats)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(repeats + 1):
        for name, target in networks.items():
            start = time.perf_counter()
            _outputs(target, pictures, device)
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, target in networks.items():
        weights, bytes_ = size(target.model)
        ms = 1000 * float(np.median(seconds[name][1:])) / len(pictures)  # the first round warms up
        rows.append({"name": name, "weights": weights, "mib": bytes_ / 2**20, "ms": ms})
    table = pd.DataFrame(rows)
    return table.assign(time=table["ms"] / table["ms"].iloc[0])


def _outputs(target: Target, pictures: Tensor, device: Device) -> Tensor:
    with inference_of(target, device) as place:
        return torch.cat([target.model(piece).float().cpu() for piece in place(pictures)])[: len(pictures)]


def _accuracy(target: Target, pictures: Tensor, judged: Judged, counts: Tensor, device: Device) -> np.ndarray:
    """Accuracy of all images, and of each resample: [1 + R]."""
    kept = judged.kept(_outputs(target, pictures, device), slice(None))
    return judged.scores(kept, counts)[:, 0, 0]


def _told(score: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    (low, high), loss = np.quantile(score[1:], [0.025, 0.975]), whole - score
    lower, upper = np.quantile(loss[1:], [0.025, 0.975])
    return {
        "accuracy": score[0],
        "low": low,
        "high": high,
        "loss": loss[0],
        "loss_low": lower,
        "loss_high": upper,
    }


def check_apart(graph: Graph, layers: Iterable[str]) -> None:
    """ValueError where two layers hold the same units, which would be removed twice."""
    seen: dict[int, str] = {}
    for layer in layers:
        other = seen.setdefault(id(graph.channels(layer)), layer)
        if other != layer:
            raise ValueError(
                f"layers to prune hold units of their own, '{other}' and '{layer}' hold the same; name one"
            )
