"""What a network and an image-text model make of the same images: all that a naming method reads.

Measurements      activations Q of each layer, image embeddings I, text embeddings T, and what they are of
measure           target, layers, images, CLIP and words -> Measurements
top_images_table  the images behind every unit
top_images_parts  the same of some units after the other

Notebooks and scripts begin here; `clip_dissect`, `describe_and_dissect` and `unit_cards` take what it
returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import (
    embed_concepts,
    image_embeddings,
    measured_arrays,
    other_poolings,
    target_layers,
)
from neuronym.active import sparse_activations
from neuronym.common.memory import MEMORY, top_images
from neuronym.common.subsets import split_evenly
from neuronym.common.types import Clip, Device, Progress, Target
from neuronym.common.units import Units, units_by_layer
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe, Probe, subset
from neuronym.layouts import LayerInfo
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.sparse_columns import SparseColumns, unit_blocks
from neuronym.sparse import split_name


@dataclass(frozen=True, eq=False)
class Measurements:
    """Activations Q {layer: [N, K]} of a target's layers and CLIP embeddings I [N, d] of the same N images,
    with text embeddings T [M, d] of M concepts; all on one device.
    """

    target: Target
    layers: dict[str, LayerInfo]
    probe: Probe
    clip: Clip
    concepts: list[str]
    Q: dict[str, Tensor | SparseColumns]
    I: Tensor
    T: Tensor
    pool: str = "avg"  # how a map became one value
    row_numbers: tuple[int, ...] = ()  # of the images measured, those that these are, where they are a part
    beside: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # {layer: {other pooling: [N, K]}}

    @property
    def N(self) -> int:
        """Number of images."""
        return len(self.I)

    @property
    def P(self) -> FactoredMatrix:
        """Concept-activation matrix [N, M] of plain cosines, held as its factors I and T."""
        return FactoredMatrix(self.I, self.T)

    @property
    def sizes(self) -> dict[str, int]:
        """Units of each layer."""
        return {name: q.shape[1] for name, q in self.Q.items()}

    @property
    def classes(self) -> list[str] | None:
        """Names of the units of the target's output layer, where they are known and the layer was
        measured.
        """
        final, names = self.target.layers[-1:], self.target.classes
        known = bool(final) and names is not None and self.sizes.get(final[0]) == len(names)
        return names if known else None

    def units(
        self, units: Units | Mapping[str, Units], labels: pd.DataFrame | None = None, required: bool = True
    ) -> dict[str, list[int]]:
        """Units of each layer, in the words of `neuronym.common.units.units_by_layer`."""
        return units_by_layer(units, self.sizes, labels, required)

    def rows(self, rows: Sequence[int] | Tensor) -> Measurements:
        """The same of some images, in the order given."""
        index = torch.as_tensor(rows, dtype=torch.long)
        before = self.row_numbers or range(self.N)
        numbers = tuple(before[i] for i in index.tolist())
        at = index.to(self.I.device)
        Q = {name: q[at] for name, q in self.Q.items()}
        beside = {name: {how: q[at] for how, q in hows.items()} for name, hows in self.beside.items()}
        part = subset(self.probe, index.tolist())
        return replace(self, probe=part, Q=Q, I=self.I[at], row_numbers=numbers, beside=beside)

    def dense(self) -> Measurements:
        """The same with SparseColumns as matrices [N, K]."""
        Q = {name: q if isinstance(q, Tensor) else q[:, :] for name, q in self.Q.items()}
        return replace(self, Q=Q)

    def split(self, share: float) -> tuple[Measurements, Measurements]:
        """Images to name with, and the `share` of them held out to test with, spread evenly over the
        probe.
        """
        naming, held_out = split_evenly(self.N, share)
        return self.rows(naming), self.rows(held_out)


def measure(
    target: str | torch.nn.Module | Target,
    layers: str | Sequence[str] | Sequence[LayerInfo],
    probe: str | Sequence | Probe,
    clip: str | Clip,
    concepts: str | Sequence[str],
    *,
    pool: str = "avg",
    template: str = "{}",
    batch_size: int = 64,
    device: Device = None,
    dtype: str = "float32",
    layout: str | Mapping[str, str] = "",
    allow_random: bool = False,
    beside: bool = False,
    sparse: bool = False,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Measurements:
    """Pass the images through a target and a CLIP, once for both, and embed the concepts; all of it is
    cached.

    Everything may be an object or the name of one (`load_target`, `load_probe`, `load_clip`,
    `load_concepts`). `layers` are names, globs or "all"; `pool` makes a map one value ("avg", "max", "cls",
    or "auto", the class token where there is one);
    `template` stands around every concept; `layout` and `allow_random` are as in `load_target`; with `beside`
    what `other_poolings` give comes out of the same pass; with `sparse` layers of features are SparseColumns,
    by a pass of their own that keeps what is active, features of a few images at a time in `memory`; what
    the labelling notebook calls takes them in blocks of units, for all else `dense` has them as matrices.
    Results are on `device` (where the target is, by default), but on the CPU where that has no float64, as
    Apple's mps. Errors: those of the loaders; ValueError for an activation that is not finite.

    >>> data = measure("microworld:resnet", "fc", "microworld:40", "microworld", ["a red circle", "a star"])
    >>> data.Q["fc"].shape, data.P.shape
    (torch.Size([40, 52]), (40, 2))
    """
    if not isinstance(target, Target) or layout:
        target = load_target(target, device or "cpu", layout=layout, allow_random=allow_random)
    place = torch.device(device) if device is not None else target.example.device
    clip = load_clip(clip, place) if isinstance(clip, str) else clip
    words = load_concepts(concepts)
    found = _layers(target, layers)
    images = load_probe(probe, progress=progress)
    features = [layer for layer in found if sparse and split_name(layer.name)[1]]
    plain = [layer for layer in found if layer not in features]
    if plain:
        others = other_poolings(plain, pool) if beside else {}
        given = (target, plain, clip, images, pool, others, batch_size, place, progress)
        Q, beside_Q, I = measured_arrays(*given, dtype=dtype)
    else:
        Q, beside_Q = {}, {}
        I = image_embeddings(clip, images, batch_size, None, progress, dtype=dtype)
    if features:
        given = (target, images, features, pool, batch_size, place, progress)
        Q |= sparse_activations(*given, dtype=dtype, memory=memory)
    place = place if _has_float64(place) else torch.device("cpu")
    return Measurements(
        target,
        {layer.name: layer for layer in found},
        images,
        clip,
        words,
        {layer.name: Q[layer.name].to(place) for layer in found},
        I.to(place),
        embed_concepts(clip, words, template).to(place),
        pool,
        beside={name: {how: q.to(place) for how, q in hows.items()} for name, hows in beside_Q.items()},
    )


def top_images_table(data: Measurements, k: int = 5) -> pd.DataFrame:
    """The k images of highest activation of every unit: layer, unit, rank (1 the highest), file (the image's
    id in the probe), activation.
    """
    return pd.concat(top_images_parts(data, k), ignore_index=True)


def top_images_parts(data: Measurements, k: int = 5) -> Iterator[pd.DataFrame]:
    """The same of some units after the other."""
    for layer, Q in data.Q.items():
        for units, q in unit_blocks(Q):
            best = top_images(q, min(k, data.N))  # [k, K]
            n, K = best.shape
            yield pd.DataFrame(
                {
                    "layer": layer,
                    "unit": np.repeat(np.arange(units.start, units.stop), n),
                    "rank": np.tile(np.arange(1, n + 1), K),
                    "file": [data.probe.ids[row] for row in best.T.flatten().tolist()],
                    "activation": q.gather(0, best).T.flatten().double().cpu().numpy(),
                }
            )


def _has_float64(device: torch.device) -> bool:
    try:
        return torch.zeros(1, dtype=torch.float64, device=device).dtype == torch.float64
    except TypeError:
        return False


def _layers(target: Target, layers: str | Sequence) -> list[LayerInfo]:
    """Layers by name or glob, or as they were resolved before."""
    if not isinstance(layers, str) and all(isinstance(layer, LayerInfo) for layer in layers):
        return list(layers)
    return target_layers(target, layers)
