"""Has the network learned anything? Its units beside those of the same network with its weights shuffled.

shuffled_weights  a network whose weights are shuffled within each tensor, for a while
standing_out      share of units of each layer whose names no shuffled unit comes near
untrained         whether no layer stands out, in words

Units of a network with random weights follow brightness and colour, so that "night" can be true of them: a
permutation of the images cannot tell, a permutation of the weights can (Adebayo et al., NeurIPS 2018, Sanity
Checks for Saliency Maps).
K units, M concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn, Tensor

from neuronym.activations import target_layers, unit_job
from neuronym.active import layer_activations
from neuronym.common.memory import MEMORY, slices
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Progress, Target
from neuronym.datasets.probe import held
from neuronym.layouts import LayerInfo
from neuronym.measurements import Measurements
from neuronym.similarity.scores import score
from neuronym.similarity.sparse_columns import SparseColumns
from neuronym.sparse import split_name

LOOKED_ON, SHUFFLES, FURTHER = 500, 2, 6
SOME = 4_000  # features of a layer: docs/protocols/untrained.md
FEWEST = 20  # images that a correlation is looked at on
QUANTILE, ENOUGH_OUT, LEARNED = 0.95, 0.5, 0.98


@contextmanager
def shuffled_weights(model: nn.Module, seed: int) -> Iterator[None]:
    """The values of each floating-point parameter in random order; as before afterwards, whatever happens."""
    generator, before = torch.Generator().manual_seed(seed), {}
    try:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.is_floating_point() and weight.numel() > 1:
                    before[name] = weight.detach().clone()
                    order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                    weight.copy_(before[name].flatten()[order].view_as(weight))
        yield
    finally:
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            for name, weight in before.items():
                parameters[name].copy_(weight)


@torch.no_grad()
def standing_out(
    data: Measurements,
    seed: int = 0,
    *,
    batch_size: int = 64,
    features: int = SOME,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Share of units of each layer that stand out from SHUFFLES networks of shuffled weights, on LOOKED_ON
    images spread evenly; {} for fewer than FEWEST images or two concepts.

    t of a unit: its largest soft correlation S_kc, less the .95 quantile of the shuffled units' S_.c. A unit
    stands out if its t is above the .95 quantile of the shuffled units' own. The network's last layer is
    looked at too where it was not measured: what follows from its first layer alone is in any network. Units
    of a network with random weights do much the same (of 192, some do as few as three things), so that where
    two shuffles leave it open, the largest share being from ENOUGH_OUT to LEARNED, FURTHER ones are made, and
    a layer counts 0 unless its share is more than half way from the largest by which one of the shuffled
    networks stands out from the others, to 1. Of a layer held
    as SparseColumns so many `features` are looked at, spread evenly. Passes are cached.
    """
    if data.N < FEWEST or len(data.concepts) < 2:
        return {}
    part, device = data.rows(evenly_spaced(min(LOOKED_ON, data.N), data.N)), data.I.device
    some, layers = part.probe, [data.layers[name] for name in data.Q]
    sparse = {name: q.shape[1] for name, q in part.Q.items() if not isinstance(q, Tensor)}
    units = {name: evenly_spaced(min(features, K), K) for name, K in sparse.items()}

    def measured(target: Target, of: list[LayerInfo], pool: str) -> dict[str, Tensor]:
        nonlocal some
        plain = [layer for layer in of if not split_name(layer.name)[1]]
        if some is part.probe and plain and unit_job(target, some, plain, pool).missing():
            some = held(some, memory)  # decoded once for all networks
        found = layer_activations(target, some, of, pool, batch_size, device, progress, memory=memory)
        return columns(found)

    def columns(Q: Mapping[str, Tensor | SparseColumns]) -> dict[str, Tensor]:
        return {name: q[:, units.get(name, slice(None))] for name, q in Q.items()}

    own = columns(part.Q)
    last = data.target.layers[-1:]
    if last and last[0] not in own:
        extra = target_layers(data.target, last[0])
        own |= measured(data.target, extra, "auto")
        layers += extra
    others: dict[str, list[Tensor]] = {name: [] for name in own}

    def shuffle(seeds: range) -> None:
        for one in seeds:
            key = f"{data.target.weights_key}, weights shuffled by seed {one}"
            with shuffled_weights(data.target.model, one):
                Q = measured(replace(data.target, weights_key=key), layers, data.pool)
            for name, q in Q.items():
                others[name].append(q.to(device))

    def scored(name: str) -> list[Tensor]:
        return [
            score(part.P, q, "soft_correlation", memory=memory) for q in (own[name].to(device), *others[name])
        ]

    first = seed * (SHUFFLES + FURTHER)
    shuffle(range(first, first + SHUFFLES))
    shares = {name: _share(*scored(name)) for name in own}
    if ENOUGH_OUT <= max(shares.values()) < LEARNED:
        shuffle(range(first + SHUFFLES, first + SHUFFLES + FURTHER))
        for name in own:
            real, *chance = scored(name)
            share = _share(real, *chance)
            usual = max(_share(*chance[i:], *chance[:i]) for i in range(len(chance)))
            shares[name] = share if share > (1 + usual) / 2 else 0.0
    return shares


def _share(own: Tensor, *chance: Tensor) -> float:
    return float(stands_out(own, torch.cat(chance)).double().mean())


def stands_out(own: Tensor, chance: Tensor) -> Tensor:
    """Which units [K] are above what `chance` has for their best concept: own [K, M], chance [K', M]."""
    parts = slices(chance.shape[1], MEMORY // (32 * len(chance)))
    bound = torch.cat([chance[:, some].double().quantile(QUANTILE, dim=0) for some in parts])  # [M]
    t, null = (best.values.double() - bound[best.indices] for best in (own.max(1), chance.max(1)))
    return t > null.quantile(QUANTILE)


def untrained(shares: Mapping[str, float]) -> str:
    """A sentence where no layer has half of its units stand out, "" otherwise and where nothing was found."""
    if not shares or max(shares.values()) >= ENOUGH_OUT:
        return ""
    layer = max(shares, key=shares.get)
    return (
        "these names say nothing of what the network learned: with its weights shuffled its units are named "
        f"as well (at most {shares[layer]:.0%} of a layer's units stand out, in {layer}); were its weights "
        "loaded?"
    )
