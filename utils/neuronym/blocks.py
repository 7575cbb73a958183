"""Which modules of a network are its steps: its stem, stages or blocks, and head, inside of any wrappers.

core_of  the network inside of its wrappers
body_of  the names that "all" means
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from neuronym.layouts import LayerInfo

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


def core_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The network inside of its wrappers, and their names before those of its modules: as long as a single
    child has all the weights, it is that child.
    """
    prefix = ""
    while True:
        holders = [(key, child) for key, child in model.named_children() if _weighs(child)]
        if (
            len(holders) != 1
            or next(holders[0][1].children(), None) is None
            or next(model.parameters(recurse=False), None) is not None
        ):
            return prefix, model
        prefix, model = f"{prefix}{holders[0][0]}.", holders[0][1]


def body_of(model: nn.Module, survey: Mapping[str, LayerInfo | str]) -> list[str]:
    """The layers of "all", see `resolve_layers`; those whose layout must be asked for are among them."""
    listed = {name for name, why in survey.items() if isinstance(why, LayerInfo) or "say layout=" in why}
    prefix, core = core_of(model)
    plain, total = not _holds_blocks(core), len(_weighted(core))

    def walk(module: nn.Module, prefix: str) -> Iterator[str]:
        own = [(prefix + key, child) for key, child in module.named_children() if prefix + key in survey]
        holders = [child for _, child in own if _holds_blocks(child)]
        for name, child in own:
            steps = sum(isinstance(c, _WEIGHTED) for c in child.children()) > 1
            most = 2 * len(_weighted(child)) > max(total, 2) and next(child.children(), None) is not None
            stack = plain and (steps if isinstance(child, _LISTS) else most)
            if name not in listed or stack or (len(holders) == 1 and child is holders[0]):
                yield from walk(child, name + ".")
            elif _has_units(child):
                last = list(child.named_children())[-1:] if isinstance(child, nn.Sequential) else []
                linear = f"{name}.{last[0][0]}" if last and isinstance(last[0][1], nn.Linear) else name
                yield linear if linear in listed else name

    if isinstance(core, torch.jit.ScriptModule):
        return []
    return list(walk(core, prefix)) or [name for name in survey if name in listed]


def _weighs(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, _WEIGHTED)]


def _holds_blocks(module: nn.Module) -> bool:
    lists = (inner for inner in module.modules() if isinstance(inner, _LISTS))
    return any(_is_block(child) for inner in lists for child in inner.children())


def _is_block(module: nn.Module) -> bool:
    # a convolution may own a padding module, and a Sequential of conv, norm and ReLU is one step and no block
    return not isinstance(module, _LISTS + _WEIGHTED) and next(module.children(), None) is not None


def _has_units(module: nn.Module) -> bool:
    if not _weighs(module):
        return False
    composite = next(module.children(), None) is not None
    return composite or isinstance(module, _WEIGHTED) or "norm" not in type(module).__name__.lower()
