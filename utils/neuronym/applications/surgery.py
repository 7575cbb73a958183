"""Units taken out of a network: a smaller one, not a mask.

removed    a copy without the given units
masked     a copy of the same size whose units say nothing: what `removed` must equal
folded     a copy in which redundant units have handed what they say to those that stay
with_means a copy in which units have handed their mean to the biases of what reads them
Fold       one unit that goes, the one that speaks for it, how much louder, and what is to be added

A unit is a column of what reads it. Removing it takes its rows from what writes it and its columns from what
reads it (`neuronym.applications.channels` finds both); where a block adds its input to its output, it goes
from all that share the channel.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn, Tensor

from neuronym.applications.channels import Channels, Graph, trace

ROUNDING = 1e-4  # how far two sums of the same numbers in another order may be apart, of the largest


class Fold(NamedTuple):
    """Unit `gone` of a layer is about `factor` times unit `stays`, plus `constant`."""

    gone: int
    stays: int
    factor: float
    constant: float = 0.0


def removed(
    model: nn.Module, example: Tensor, units: Mapping[str, Sequence[int]], graph: Graph | None = None
) -> nn.Module:
    """A copy without the units {layer: units}; its weights are those that stay, so that it gives what
    `masked` gives up to rounding, which is looked at on a few random images; example [1, C, H, W].

    Errors: ValueError for units that cannot be removed (`Graph.channels` says why), that are not there, or
    that are all there are; RuntimeError where the copy gives something else.
    """
    graph = graph or trace(model, example)
    smaller = copy.deepcopy(model)
    for channels, gone in plan(graph, units):
        keep = torch.tensor([k for k in range(channels.units) if k not in gone])
        for name in (*channels.writers, *channels.each):
            _rows(smaller.get_submodule(name), keep)
        for name, spread in channels.readers.items():
            _columns(smaller.get_submodule(name), _entries(keep, spread))
    apart = difference(smaller, masked(model, example, units, graph), example)
    if apart > ROUNDING:
        raise RuntimeError(
            f"a smaller {graph.network} must give what the masked one does, but is {apart:.2g} of the "
            "largest output apart; its code depends on the number of its units, so turn them off instead"
        )
    return smaller


def masked(
    model: nn.Module, example: Tensor, units: Mapping[str, Sequence[int]], graph: Graph | None = None
) -> nn.Module:
    """A copy of the same size in which nothing reads the units {layer: units}; errors as in `removed`."""
    graph = graph or trace(model, example)
    made = copy.deepcopy(model)
    with torch.no_grad():
        for channels, gone in plan(graph, units):
            for name, spread in channels.readers.items():
                made.get_submodule(name).weight[:, _entries(torch.tensor(sorted(gone)), spread)] = 0
    return made


def folded(
    model: nn.Module, example: Tensor, folds: Mapping[str, Sequence[Fold]], graph: Graph | None = None
) -> nn.Module:
    """A copy in which what reads unit `stays` has its weights plus `factor` times those of unit `gone`, its
    bias plus `constant` times the sum of these, and they are 0, one Fold after another: exact where y_gone =
    factor y_stays + constant at every position, but for the constant at the edges of a padded convolution.

    Errors: ValueError as in `removed`, and for a layer that is not what is read, such as one before a norm.
    """
    graph = graph or trace(model, example)
    made = copy.deepcopy(model)
    for layer, some in folds.items():
        channels = graph.channels(layer)
        if some and layer not in channels.last:
            raise ValueError(
                f"units are folded where they are read, got layer '{layer}'; name "
                f"{' or '.join(channels.last[:2]) or 'another: its units are read in several forms'}"
            )
        check_within(layer, [k for fold in some for k in fold[:2]], channels.units)
        for name, spread in channels.readers.items():
            module = made.get_submodule(name)
            parts = columns(module, spread)
            for gone, stays, factor, constant in some:
                if constant:
                    _add_to_bias(module, constant * parts[:, gone].flatten(1).sum(1))
                parts[:, stays] += factor * parts[:, gone]
                parts[:, gone] = 0
    return made


def with_means(
    model: nn.Module, example: Tensor, means: Mapping[str, Mapping[int, float]], graph: Graph | None = None
) -> nn.Module:
    """A copy in which what reads the units {layer: {unit: mean}} has their means in its bias in place of
    them: exact but at the edges of a padded convolution, where it reads 0 beside them.

    Errors: as in `folded`.
    """
    graph = graph or trace(model, example)
    made = copy.deepcopy(model)
    for layer, some in means.items():
        channels = graph.channels(layer)
        if some and layer not in channels.last:
            raise ValueError(
                f"means are of what is read, got layer '{layer}'; name "
                f"{' or '.join(channels.last[:2]) or 'another: its units are read in several forms'}"
            )
        check_within(layer, list(some), channels.units)
        index, values = torch.tensor(list(some), dtype=torch.long), torch.tensor(list(some.values()))
        for name, spread in channels.readers.items() if some else ():
            module = made.get_submodule(name)
            parts = columns(module, spread)
            _add_to_bias(module, parts[:, index].flatten(2).sum(2) @ values.to(parts))
            parts[:, index] = 0
    return made


def plan(graph: Graph, units: Mapping[str, Sequence[int]]) -> list[tuple[Channels, set[int]]]:
    """What goes from each of the channels that the layers share; errors as in `removed`."""
    found: dict[int, tuple[Channels, set[int]]] = {}
    for layer, some in units.items():
        channels = graph.channels(layer)
        check_within(layer, some, channels.units)
        found.setdefault(id(channels), (channels, set()))[1].update(int(k) for k in some)
        if len(found[id(channels)][1]) == channels.units:
            raise ValueError(f"a unit of layer '{layer}' must stay, got all {channels.units} to remove")
    return [pair for pair in found.values() if pair[1]]


def difference(one: nn.Module, other: nn.Module, example: Tensor, images: int = 3) -> float:
    """Largest difference of two networks' outputs on random images, as a share of the largest output."""
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(images, *example.shape[1:], generator=dice).to(example)
    with torch.inference_mode():
        a, b = one.eval()(x), other.eval()(x)
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def size(model: nn.Module) -> tuple[int, int]:
    """Number of weights, and their bytes with what else a state dict holds."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(p.numel() for p in model.parameters()), sum(t.numel() * t.element_size() for t in tensors)


def check_within(layer: str, units: Sequence[int], K: int) -> None:
    """ValueError for units that a layer does not have."""
    wrong = [int(k) for k in units if not 0 <= k < K]
    if wrong:
        raise ValueError(f"units of layer '{layer}' lie within 0 .. {K - 1}, got {wrong[0]}")


def columns(module: nn.Module, spread: int) -> Tensor:
    """The weights of a reader by unit, [outputs, K, spread, ...], in their own memory."""
    weight = module.weight.data
    return weight.view(len(weight), -1, spread, *weight.shape[2:])


def _add_to_bias(module: nn.Module, more: Tensor) -> None:
    module.bias = nn.Parameter(more if module.bias is None else module.bias.detach() + more, False)


def _entries(units: Tensor, spread: int) -> Tensor:
    return (units[:, None] * spread + torch.arange(spread)).flatten()


def _rows(module: nn.Module, keep: Tensor) -> None:
    """Only these outputs of a convolution, linear layer or batch norm."""
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if value is not None:
            setattr(module, name, nn.Parameter(value[keep].detach().clone(), value.requires_grad))
    for name in ("running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            setattr(module, name, getattr(module, name)[keep].clone())
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        module.groups = module.in_channels = len(keep)
    for name in ("out_channels", "out_features", "num_features"):
        if hasattr(module, name):
            setattr(module, name, len(keep))


def _columns(module: nn.Module, keep: Tensor) -> None:
    """Only these inputs of a convolution or linear layer."""
    weight = module.weight
    module.weight = nn.Parameter(weight[:, keep].detach().clone(), weight.requires_grad)
    for name in ("in_channels", "in_features"):
        if hasattr(module, name):
            setattr(module, name, len(keep))
