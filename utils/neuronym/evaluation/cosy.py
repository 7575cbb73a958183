"""CoSy (Kopf et al. 2024): does a picture of the label excite the neuron more than other images do?

respond           activations of pictures that are in no probe
drawn             activations of every label's pictures
cosy              AUC, MAD and p of each unit, pictures against control images
different_labels  all that several methods say, once each
score_labels      all of it for the labels that several methods give to the units of several layers
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from neuronym.active import layer_activations
from neuronym.common.checks import unknown
from neuronym.common.statistics import column_auroc, sort_columns
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import probe_from_images
from neuronym.hooks import LayerInfo
from neuronym.models.generators import _texts, Generator, pictures_of
from neuronym.similarity.sparse_columns import SparseColumns

TOGETHER = 32  # labels whose pictures pass the network together: few enough to hold, enough for full batches


def respond(
    target: Target,
    layers: Sequence[LayerInfo],
    shown: Sequence[Image.Image],
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
) -> dict[str, Tensor | SparseColumns]:
    """Activations of pictures, pooled as in `layer_activations`: {layer name: [n, K]}; cached by their
    pixels.
    """
    found = layer_activations(target, probe_from_images(shown), list(layers), pool, batch_size, device)
    # matrices out of the cache's files, of which a process may have only so many open
    return {name: Q.clone() if isinstance(Q, Tensor) else Q for name, Q in found.items()}


def drawn(
    target: Target,
    layers: Sequence[LayerInfo],
    labels: Iterable[str],
    source: Generator,
    n: int = 50,
    *,
    seed: int = 0,
    template: str | None = None,
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Tensor | SparseColumns]]:
    """Activations of n pictures of each different label: {label: {layer name: [n, K]}}; a few labels pass
    together. A label has fewer rows, perhaps none, where its pictures are missing (`models.generators`).
    """
    different = list(dict.fromkeys(_texts(list(labels))))
    groups, found = [different[i : i + TOGETHER] for i in range(0, len(different), TOGETHER)], {}
    for group in groups if progress is None else progress(groups, len(groups), f"{TOGETHER} labels drawn"):
        made = pictures_of(group, source, n, seed, template)
        shown = [picture for label in group for picture in made[label]]
        if not shown:
            found |= {label: {layer.name: torch.zeros(0, layer.units) for layer in layers} for label in group}
            continue
        acts, start = respond(target, layers, shown, pool, batch_size, device), 0
        for label in group:
            end = start + len(made[label])  # fewer than n where a safety checker blacked some out
            found[label] = {name: Q[start:end] for name, Q in acts.items()}
            start = end
    return found


@torch.no_grad()
def cosy(generated: Tensor, control: Tensor) -> dict[str, Tensor]:
    """AUC, MAD and p [K], float64, of activations of a label's pictures, [n, K], against control images', [N,
    K].

    auc: probability that a picture excites the unit more than a control image, ties counted half; of a
    perfect unit about 1 - s/2 when a share s of the control shows the concept too. mad: (mean of pictures -
    mean of control) / standard deviation (over N) of control, 0 where control is constant. p: Mann-Whitney,
    one-sided (pictures excite more), normal approximation, not corrected for the number of units; 1 where all
    values are equal. Errors: ValueError for another number of units, no rows, fewer than two control images,
    values that are not finite.
    """
    if (
        generated.ndim != 2
        or control.ndim != 2
        or generated.shape[1] != control.shape[1]
        or not len(generated)
    ):
        raise ValueError(
            f"expected generated [n, K] and control [N, K] with equal K, got {list(generated.shape)} and "
            f"{list(control.shape)}"
        )
    if len(control) < 2:
        raise ValueError(
            f"control has at least two images, got {len(control)}; pass the activations of a probe"
        )
    for name, X in (("generated", generated), ("control", control)):
        if not bool(X.isfinite().all()):
            row, unit = (~X.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{name} must be finite, got {X[row, unit].item()} at image {row}, unit {unit}; leave "
                "that image out"
            )
    g, c = (
        generated.double().to(control.device).T.contiguous(),
        control.double().T.contiguous(),
    )  # [K, n], [K, N]
    of_label = (torch.arange(len(generated) + len(control), device=control.device) < len(generated))[:, None]
    of_label = of_label.expand(-1, len(g))  # [n + N, K]
    auc = column_auroc(sort_columns(torch.cat([g, c], 1).T), of_label, ~of_label)
    rounding = torch.finfo(control.dtype if control.is_floating_point() else torch.float64).eps
    constant = c.amax(1) - c.amin(1) <= 4 * rounding * c.abs().amax(1)
    spread = c.std(1, correction=0).masked_fill(constant, 1)
    mad = ((g.mean(1) - c.mean(1)) / spread).masked_fill(constant, 0)
    return {"auc": auc, "mad": mad, "p": _mann_whitney(g, c)}


def different_labels(labels: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """All different labels of {method: {layer: labels}}, sorted."""
    found: set[str] = set()
    for by_layer in labels.values():
        for of_layer in by_layer.values():
            found.update(of_layer)
    return sorted(found)


def score_labels(
    labels: Mapping[str, Mapping[str, Sequence[str | None]]],
    seen: Mapping[str, Mapping[str, Tensor | SparseColumns]],
    control: Mapping[str, Tensor | SparseColumns],
    units: Mapping[str, Sequence[int]] | None = None,
    left_out: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """CoSy of every label: columns layer, unit, method, label, auc, mad, p; a row for each unit that has a
    label whose pictures were drawn.

    labels {method: {layer: K texts, None for a unit without}}; seen {label: {layer: [n, K]}} of `drawn`;
    control {layer: [N, K]}, pooled alike; `left_out` {label: rows of control that are its pictures}, for
    those that were retrieved. `units` {layer: K numbers} where labels are of some of the layer's units only.
    Errors: KeyError for a layer or label that seen or control lacks, ValueError for another number of units.
    """
    rows = []
    for method, layers in labels.items():
        for layer, texts in layers.items():
            if layer not in control:
                raise unknown("layer in control", layer, control)
            some = (
                list(range(control[layer].shape[1]))
                if units is None
                else [int(unit) for unit in units[layer]]
            )
            if len(texts) != len(some):
                raise ValueError(
                    f"layer '{layer}' has {len(some)} units, got {len(texts)} labels of {method} and control "
                    f"{list(control[layer].shape)}; pass one label and one column for each"
                )
            users: dict[str, list[int]] = {}
            for unit, label in zip(some, texts):
                if label is not None:
                    users.setdefault(_texts([label])[0], []).append(unit)
            for label, mine in users.items():
                if label not in seen:
                    raise unknown("label with pictures", label, seen)
                if not len(seen[label][layer]):
                    continue
                others = torch.ones(len(control[layer]), dtype=torch.bool, device=control[layer].device)
                if left_out is not None:
                    others[left_out[label].to(others.device)] = False
                found = cosy(seen[label][layer][:, mine], control[layer][:, mine][others])
                columns = [found[key].tolist() for key in ("auc", "mad", "p")]
                rows += [(layer, unit, method, label, *values) for unit, *values in zip(mine, *columns)]
    places = {
        (method, layer): i for i, (method, layer) in enumerate((m, l) for m in labels for l in labels[m])
    }
    rows.sort(key=lambda row: (places[row[2], row[0]], row[1]))
    return pd.DataFrame(rows, columns=["layer", "unit", "method", "label", "auc", "mad", "p"])


def _mann_whitney(g: Tensor, c: Tensor) -> Tensor:
    """p [K] of g [K, n] above c [K, N]."""
    from scipy.stats import mannwhitneyu

    every = torch.cat([g, c], 1)
    equal = every.amax(1) == every.amin(1)
    p = torch.ones(len(g), dtype=torch.float64)
    some = (~equal).cpu()
    if some.any():
        found = mannwhitneyu(
            g.cpu()[some].numpy(), c.cpu()[some].numpy(), alternative="greater", axis=1, method="asymptotic"
        )
        p[some] = torch.from_numpy(np.asarray(found.pvalue))
    return p.to(g.device)
