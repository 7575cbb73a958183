"""Passes over many images in parts that several processes or machines share.

compute_shard   activations and embeddings of one part of a run's images, into the cache
join_shards     the parts as the entries that the run itself looks for; bit-identical to one pass
shard_rows      which images a part has
check_part, check_count   "3-of-8" and "8" as the command takes them

A part is a probe of its own: its arrays are entries of the cache, found, checked and resumed as any other.
Parts end where batches end, so every batch is the same as in one pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuronym import cache
from neuronym.activations import (
    activation_spec,
    embedding_spec,
    measured_arrays,
    other_poolings,
    target_layers,
)
from neuronym.common.types import Clip, Target
from neuronym.datasets.probe import load_probe, Probe, subset
from neuronym.hooks import LayerInfo, poolings
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.runs.folders import chosen_device
from neuronym.runs.run import progress
from neuronym.runs.sweep import shards_of


@dataclass(frozen=True)
class Passes:
    """What a run passes through which networks."""

    target: Target
    layers: list[LayerInfo]
    clip: Clip
    probe: Probe
    pool: str
    dtype: str
    batch_size: int
    device: torch.device
    beside: Mapping[str, Sequence[str]]  # {layer: other poolings}

    def specs(self, probe: Probe) -> list[tuple[str, dict, int]]:
        """(kind, spec, width) of every array that these passes leave in the cache."""
        own = poolings(self.layers, self.pool)
        found = [
            ("activations", activation_spec(self.target, probe, layer, how, self.dtype), layer.units)
            for layer in self.layers
            for how in (own[layer.name], *self.beside.get(layer.name, ()))
        ]
        return [*found, ("image_embeddings", embedding_spec(self.clip, probe, self.dtype), self.clip.d)]

    def part(self, i: int, count: int) -> Probe:
        """The images of part `i` of `count`."""
        rows = shard_rows(self.probe.N, i, count, self.batch_size)
        name = f"{self.probe.fingerprint} rows {rows.start} to {rows.stop}"
        return replace(subset(self.probe, rows), fingerprint=name)


def compute_shard(notebook: str, params: Mapping[str, Any], i: int, count: int) -> Path:
    """Pass part `i` of `count` of a run's images through its networks; returns the file that says so."""
    mark = shards_of(notebook, params, count)[i - 1]
    passes = _passes(params)
    part = passes.part(i, count)
    print(f"part {i} of {count}: {part.N} of {passes.probe.N} images", flush=True)
    measured_arrays(
        passes.target,
        passes.layers,
        passes.clip,
        part,
        passes.pool,
        passes.beside,
        passes.batch_size,
        passes.device,
        progress,
        dtype=passes.dtype,
    )
    return _marked(mark)


def join_shards(notebook: str, params: Mapping[str, Any], count: int) -> Path:
    """Make one entry of the parts of every array, row by row; returns the file that says so.

    Errors: LookupError where a part is missing, or the parts do not have every image once.
    """
    marks = shards_of(notebook, params, count)
    passes = _passes(params)
    parts = [passes.part(i, count) for i in range(1, count + 1)]
    if [name for part in parts for name in part.ids] != list(passes.probe.ids):
        raise LookupError(f"the {count} parts must have each of {passes.probe.N} images once, and do not")
    columns = list(zip(*(passes.specs(part) for part in parts)))
    for (kind, spec, width), pieces in zip(passes.specs(passes.probe), columns):
        if cache.load(kind, spec) is not None:
            continue
        found = [cache.load(kind, one) for _, one, _ in pieces]
        absent = [f"{i}-of-{count}" for i, array in enumerate(found, 1) if array is None]
        if absent:
            raise LookupError(
                f"parts {', '.join(absent)} are not in the cache; neuronym shard {absent[0]} "
                f"{notebook} with the same parameters makes one"
            )
        info = {"joined": count, "probe": passes.probe.name}
        with cache.writer(kind, spec, (passes.probe.N, width), np.float32, info) as rows:
            for array in found:
                if rows.done < passes.probe.N:
                    rows.write(rows.done, array)
    print(f"{count} parts joined: {len(columns)} arrays of {passes.probe.N} images", flush=True)
    return _marked(marks[0].with_name("joined"))


def shard_rows(N: int, i: int, count: int, batch_size: int) -> range:
    """The images of part `i` (from 1) of `count`, whole batches but for the last; ValueError where there are
    fewer batches than parts.
    """
    batches = -(-N // batch_size)
    if count > batches:
        raise ValueError(
            f"{N} images are {batches} batches of {batch_size}, which {count} parts cannot share; "
            f"take at most {batches} parts, or a smaller batch_size"
        )
    first, last = ((i - 1) * batches // count, i * batches // count)
    return range(first * batch_size, min(last * batch_size, N))


def check_part(text: str) -> tuple[int, int]:
    """ "3-of-8" -> (3, 8); ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"a part is written as 3-of-8, got {text!r}")
    return int(found[1]), int(found[2])


def check_count(text: str) -> int:
    """ "8" -> 8; ValueError for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ValueError(f"parts are counted as 8, got {text!r}")
    return int(text)


def _passes(params: Mapping[str, Any]) -> Passes:
    """Load what a run's parameters name."""
    device = chosen_device(params.get("device", "auto"))
    target = load_target(
        params["target"],
        device,
        layout=params.get("layout", ""),
        allow_random=params.get("allow_random", False),
    )
    layers = target_layers(target, params["layers"] or target.layers[-2:][0])
    return Passes(
        target,
        layers,
        load_clip(params["clip"], device),
        load_probe(
            params["probe"],
            limit=params.get("limit") or None,
            seed=params.get("seed", 0),
            on_error=params.get("on_error", "raise"),
            progress=progress,
        ),
        params["pooling"],
        params.get("precision", "float32"),
        params.get("batch_size", 64),
        device,
        other_poolings(layers, params["pooling"]) if params.get("other_poolings") else {},
    )


def _marked(mark: Path) -> Path:
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return mark
