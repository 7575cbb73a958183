"""An edit that stays: written into weights, saved with a card of what was changed, loaded back.

write_edit    a network whose weights do what an edit of its units does
save_edited   its state dict as safetensors, and the card as JSON and Markdown
save_smaller  the same of a network without some units
load_edited   any of them, back as a Target; an edit as it runs too (`applications.running`)

An edited value c + s (y - c) is s y + (1 - s) c. Where y comes out of a convolution, linear layer or norm,
its row takes s and its bias (1 - s) c; a ReLU in between lets s of 0 or more through. Else the columns of
what reads y take s, and their biases what (1 - s) c adds. Neither holds for every layer: where weights cannot
say it, that is said in a sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn, Tensor

from neuronym.applications.channels import Graph, LINEAR, Operation, READS, trace
from neuronym.applications.running import CARD, running, RUNS, write_card
from neuronym.applications.surgery import check_within, columns, difference, Fold, folded, removed, ROUNDING
from neuronym.common.checks import check_number
from neuronym.common.files import read_json
from neuronym.common.text import counted
from neuronym.common.types import Target
from neuronym.evaluation.pruning import HOWS, NamedUnits, pruned
from neuronym.models.identity import identity
from neuronym.models.targets import load_target
from neuronym.sparse import split_name

WEIGHTS = "edited.safetensors"
THROUGH = ("relu", "relu_", "leakyrelu", "leaky_relu")  # f(s y) = s f(y) for s of 0 or more
ZERO = (*THROUGH, "relu6", "gelu", "silu", "tanh", "hardswish", "elu", "mish")  # f(0) = 0
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Written:
    """A network with an edit in its weights: names of the tensors changed, where (layer -> "its own" or "its
    readers'"), and how far its outputs are from those of the edit as it runs, of the largest.
    """

    model: nn.Module
    tensors: tuple[str, ...]
    where: dict[str, str]
    apart: float


def write_edit(
    target: Target,
    units: NamedUnits,
    strength: float = 0,
    how: str = "zero",
    means: Mapping[str, Tensor] | None = None,
) -> Written:
    """A copy of the network in whose weights the units are c + strength (y - c), c 0 or their mean; the
    arguments are those of `evaluation.pruning.outputs`. A convolution or linear layer without a bias gets
    one where a mean needs it.

    What it gives is compared with the edit as it runs on a few random images. Errors: ValueError for units
    that are not there, and where weights cannot say it, layer by layer; RuntimeError where they should and
    do not.
    """
    check_number("strength", strength)
    if how not in HOWS:
        raise ValueError(f"how is one of {', '.join(HOWS)}, got {how!r}")
    features = [layer for layer in units if split_name(layer)[1]]
    if features:
        raise ValueError(
            f"an edit of features ('{features[0]}') cannot be written into weights: features are no linear "
            "function of a layer; keep it as it runs (applications.running.save_running)"
        )
    graph = trace(target.model, target.example)
    made, tensors, where = copy.deepcopy(target.model), [], {}
    for layer, some in units.items():
        step = graph.step(layer)
        if not step.shape or step.spread > 1:
            raise ValueError(f"layer '{layer}' has several entries for a unit; choose the layer before it")
        index = torch.tensor(sorted({int(k) for k in some}))
        check_within(layer, index.tolist(), step.shape[_unit_axis(step, made)])
        constant = torch.zeros(len(index)) if how == "zero" else means[layer].cpu()[index]
        names, why = _into_writer(made, step, index, strength, constant)
        where[layer] = "its own"
        if why:
            names, why_not = _into_readers(made, graph, step, index, strength, constant)
            where[layer] = "its readers'"
            if why_not:
                raise ValueError(
                    f"this edit of layer '{layer}' cannot be written into weights: {why}, and {why_not}; "
                    "run it with evaluation.pruning.pruned, or choose another layer or strength"
                )
        tensors += names
    with pruned(target, units, how, means, strength):
        apart = difference(made, target.model, target.example)
    if apart > ROUNDING:
        raise RuntimeError(
            f"weights must do what the edit does, but are {apart:.2g} of the largest output apart; run it "
            "with evaluation.pruning.pruned"
        )
    return Written(made, tuple(dict.fromkeys(tensors)), where, apart)


def save_edited(
    folder: Path, target: Target, written: Written, units: NamedUnits, strength: float, how: str, **told
) -> Path:
    """Write the edited network's state dict and its card into `folder`; `told` are further lines of the card
    (why these units, their labels, the effect). Returns the folder.
    """
    card = {
        "kind": "edited",
        "network": target.name,
        "weights_key": target.weights_key,
        "units": {layer: sorted(int(k) for k in some) for layer, some in units.items()},
        "strength": strength,
        "towards": "their mean over the images" if how == "mean" else "0",
        "written into": written.where,
        "tensors changed": list(written.tensors),
        "largest difference from the edit as it runs": written.apart,
        **told,
    }
    return _save(folder, written.model, card)


def save_smaller(
    folder: Path, target: Target, units: NamedUnits, folds: Mapping[str, Sequence[Fold]] | None = None, **told
) -> Path:
    """Write the network without the units (those of `folds` folded first) and its card into `folder`."""
    whole = folded(target.model, target.example, folds) if folds else target.model
    smaller = removed(whole, target.example, units)
    card = {
        "kind": "smaller",
        "network": target.name,
        "weights_key": target.weights_key,
        "units": {layer: sorted(int(k) for k in some) for layer, some in units.items()},
        "folded": {layer: [list(fold) for fold in some] for layer, some in (folds or {}).items()},
        **told,
    }
    return _save(folder, smaller, card)


def load_edited(folder: Path | str, target: Target | None = None) -> Target:
    """The network that `save_edited`, `save_smaller` or `save_running` left in a folder: it gives what it
    gave then.

    `target` is the network it was made from where that is no name of `load_target`. Errors:
    FileNotFoundError; ValueError for a card of another network.
    """
    folder = Path(folder)
    card = read_json(folder / CARD)
    runs = card is not None and card["kind"] == RUNS
    if card is None or not runs and not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"no edited network at {folder}: it has {CARD} and {WEIGHTS}")
    base = load_target(card["network"]) if target is None else target
    if base.weights_key != card["weights_key"]:
        raise ValueError(
            f"{folder / CARD} is of {card['network']} with weights {card['weights_key']}, got "
            f"{base.weights_key}; give the network that was edited"
        )
    if runs:
        return running(folder, card, base)
    smaller = card["kind"] == "smaller"
    model = removed(base.model, base.example, card["units"]) if smaller else copy.deepcopy(base.model)
    state = load_file(folder / WEIGHTS)
    for name in state.keys() - model.state_dict().keys():  # biases that a mean needed
        owner, _, kind = name.rpartition(".")
        if kind == "bias" and getattr(model.get_submodule(owner), "bias", 0) is None:
            model.get_submodule(owner).bias = nn.Parameter(torch.zeros_like(state[name]), False)
    model.load_state_dict(state)
    name = f"{base.name}, {counted(sum(map(len, card['units'].values())), 'unit')} {card['kind']}"
    return replace(base, model=model.eval(), name=name, weights_key=identity(model))


def _save(folder: Path, model: nn.Module, card: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    return write_card(folder, card, WEIGHTS)


def _unit_axis(step: Operation, model: nn.Module) -> int:
    module = model.get_submodule(step.module) if step.module else None
    return len(step.shape) - 1 if isinstance(module, nn.LayerNorm) else step.axis


def _into_writer(
    model: nn.Module, step: Operation, index: Tensor, strength: float, constant: Tensor
) -> tuple[list[str], str]:
    """Scale the rows of what gives the step; names of the tensors, or why not."""
    added = (1 - strength) * constant
    while step.kind == "same" and len(step.inputs[0].readers) == 1:
        step = step.inputs[0]
    if step.kind == "pointwise":
        free = len(step.inputs[0].readers) == 1
        scales = step.does in THROUGH and strength >= 0 and not added.any()
        off = strength == 0 and (step.does in ZERO and not added.any() or step.does in THROUGH)
        if not free or not (scales or off and (added >= 0).all()):
            return [], f"it comes out of {step.does}, which lets no such edit through"
        step = step.inputs[0]
    module = model.get_submodule(step.module) if step.module else None
    rows = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, *_NORMS))
    if not rows or isinstance(module, nn.modules.conv._ConvTransposeNd) or module.weight is None:
        return [], f"it comes out of {'an addition' if step.kind == 'join' else step.does}"
    if module.bias is None and added.any():
        module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)), False)
    with torch.no_grad():
        module.weight[index] *= strength
        if module.bias is not None:
            module.bias[index] = strength * module.bias[index] + added.to(module.bias)
    return [f"{step.module}.weight", *([f"{step.module}.bias"] if module.bias is not None else [])], ""


def _into_readers(
    model: nn.Module, graph: Graph, step: Operation, index: Tensor, strength: float, constant: Tensor
) -> tuple[list[str], str]:
    """Scale the columns of all that reads the step; names of the tensors, or why not."""
    added, readers, waiting = (1 - strength) * constant, {}, [step]
    while waiting:
        one = waiting.pop()
        for reader in one.readers:
            module = model.get_submodule(reader.module) if reader.module else None
            if reader.kind in LINEAR or reader.kind == "maximum" and strength >= 0:
                waiting.append(reader)
            elif reader.kind in READS and one.channels is not None and one.axis == reader.axis:
                padded = any(p != 0 for p in getattr(module, "padding", ()) if isinstance(p, int))
                own = type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
                if added.any() and (padded or own or getattr(module, "padding", 0) == "same"):
                    return [], f"'{reader.module}' pads what it reads with 0, which is no mean"
                readers[reader.module] = one.spread
            elif reader.kind != "shape":
                return [], f"what it gives goes into {reader.does}"
    if not readers:
        return [], "nothing with weights reads it"
    names = []
    for name, spread in readers.items():
        module = model.get_submodule(name)
        parts = columns(module, spread)
        if added.any():
            more = parts[:, index].flatten(2).sum(2) @ added.to(parts)
            module.bias = nn.Parameter(more if module.bias is None else module.bias + more, False)
            names.append(f"{name}.bias")
        parts[:, index] *= strength
        names.append(f"{name}.weight")
    return names, ""
