"""A pass over features that keeps what is active: 50,000 of them for as many images as there are.

sparse_activations  features by what is active
layer_activations   the same beside other layers, which are matrices

Of an image few features are active: their numbers and values are kept, 8 bytes each, never an [N, D]. Images
pass in chunks, each an entry of the cache, so that a pass that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from neuronym import cache
from neuronym.activations import activation_spec, unit_activations
from neuronym.common.checks import check_positive_int
from neuronym.common.memory import MEMORY
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import batches, Probe, subset
from neuronym.hooks import pool as pooled_positions
from neuronym.hooks import poolings, record
from neuronym.layouts import LayerInfo
from neuronym.passes import ALIKE, differ_by, inference_of
from neuronym.similarity.sparse_columns import from_rows, SparseColumns
from neuronym.sparse import loaded_sae, pooled_features, split_name

CHUNK = 1024  # images of an entry of the cache
AT_ONCE = 2**26  # most bytes of features in work: larger blocks are no faster, and leave holes in the heap
ENTRIES = "sparse_activations"


def sparse_activations(
    target: Target,
    probe: Probe,
    layers: Sequence[LayerInfo],
    pool: str = "max",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    *,
    dtype: str = "float32",
    memory: int = MEMORY,
    chunk: int = CHUNK,
) -> dict[str, SparseColumns]:
    """Features of every image, pooled as `activations.unit_activations` pools them, by what is not 0:
    {layer name: SparseColumns [N, D]}.

    Features of a few images at a time are in `memory`. Of each chunk that was cached, its first image is
    computed anew and compared. Errors: ValueError for a layer that is none of features, those of
    `hooks.poolings`, and for values that are not finite.
    """
    check_positive_int("chunk", chunk)
    plain = [layer.name for layer in layers if not split_name(layer.name)[1]]
    if plain or not layers:
        raise ValueError(
            f"sparse activations are of features, NAME@sae:FILE, got {', '.join(plain) or 'none'}"
        )
    how = poolings(layers, pool)
    parts: dict[str, list] = {layer.name: [] for layer in layers}
    starts = range(0, probe.N, chunk)
    for start in progress(starts, len(starts), f"{target.name}, features") if progress else starts:
        part = subset(probe, range(start, min(start + chunk, probe.N)))
        made: dict[str, dict[str, Tensor]] = {}
        for i, layer in enumerate(layers):

            def passed(some: Probe, which: Sequence[LayerInfo]) -> dict[str, dict[str, Tensor]]:
                return _active(target, some, which, how, batch_size, device, dtype, memory)

            def make() -> dict[str, Tensor]:
                if layer.name not in made:  # those behind it are made in the same pass
                    made.update(passed(part, layers[i:]))
                return made[layer.name]

            def differs(found: dict[str, Tensor]) -> str:
                fresh = passed(subset(part, [0]), [layer])[layer.name]
                kept = found["images"] == 0
                old = _row(found["units"][kept], found["values"][kept], layer.units)
                new = _row(fresh["units"], fresh["values"], layer.units)
                same = differ_by(old, new) <= ALIKE
                return "" if same else f"'{layer.name}' of {target.name} gives other values for an image now"

            spec = activation_spec(target, part, layer, how[layer.name], dtype) | {"form": "what is active"}
            info = {"target": target.name, "probe": probe.name, "name": layer.name, "first": start}
            found = cache.bundle(ENTRIES, spec, make, info, differs)
            parts[layer.name].append((found["images"].long() + start, found["units"], found["values"]))
    return {layer.name: from_rows(parts[layer.name], probe.N, layer.units) for layer in layers}


def layer_activations(
    target: Target,
    probe: Probe,
    layers: Sequence[LayerInfo],
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    *,
    memory: int = MEMORY,
) -> dict[str, Tensor | SparseColumns]:
    """Q of each layer: `sparse_activations` of those of features, `unit_activations` [N, K] of others."""
    features = [layer for layer in layers if split_name(layer.name)[1]]
    plain = [layer for layer in layers if layer not in features]
    how = pool, batch_size, device, progress
    found = unit_activations(target, probe, plain, *how) if plain else {}
    if features:
        found |= sparse_activations(target, probe, features, *how, memory=memory)
    return {layer.name: found[layer.name] for layer in layers}


def _active(
    target: Target,
    probe: Probe,
    layers: Sequence[LayerInfo],
    how: Mapping[str, str],
    batch_size: int,
    device: Device,
    dtype: str,
    memory: int,
) -> dict[str, dict[str, Tensor]]:
    """What is active in each image: {layer name: images, units (int32) and values (float32) [n]}."""
    kept: dict[str, list] = {layer.name: [] for layer in layers}
    with ExitStack() as stack:
        place = stack.enter_context(inference_of(target, device, dtype))
        acts = {}
        for layer in layers:
            reads = record(target.model, [split_name(layer.name)[0]], _pooled(layer, how[layer.name], memory))
            acts[layer.name] = stack.enter_context(reads)
        for rows, (images,) in batches(probe, [target.preprocess], batch_size):
            first = rows.start
            for piece in place(images):
                target.model(piece)
                left = rows.stop - first  # a batch of one may be there twice
                for layer in layers:
                    [features] = acts[layer.name].values()
                    kept[layer.name].append(_nonzero(features[:left].cpu(), first, layer, probe))
                first += min(len(piece), left)
    joined = {name: [torch.cat(column) for column in zip(*parts)] for name, parts in kept.items()}
    return {name: dict(zip(("images", "units", "values"), columns)) for name, columns in joined.items()}


def _pooled(layer: LayerInfo, how: str, memory: int) -> Callable[[str, Tensor], Tensor]:
    sae = loaded_sae(split_name(layer.name)[1])

    def one(features: Tensor, images: int) -> Tensor:
        return pooled_positions(features, layer.layout, how, images)

    def read(_: str, output: Tensor) -> Tensor:
        return pooled_features(sae.to(output.device), output, layer.layout, one, min(memory, AT_ONCE)).float()

    return read


def _nonzero(features: Tensor, first: int, layer: LayerInfo, probe: Probe) -> tuple[Tensor, Tensor, Tensor]:
    bad = (~torch.isfinite(features)).nonzero()
    if len(bad):
        row, unit = bad[0].tolist()
        raise ValueError(
            f"activations must be finite; '{layer.name}' gave {features[row, unit].item()} for image "
            f"'{probe.ids[first + row]}' (unit {unit}); check weights and image, or use float32"
        )
    image, unit = features.nonzero(as_tuple=True)
    return (image + first).int(), unit.int(), features[image, unit]


def _row(units: Tensor, values: Tensor, D: int) -> Tensor:
    row = torch.zeros(D)
    row[units.long()] = values
    return row
