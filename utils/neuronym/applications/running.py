"""An edit that weights cannot say, kept as it runs: on a card, with the files of the features it is of.

write_card    what was changed, as JSON and Markdown
save_running  units, strength and constants of an edit, and the autoencoders of features
running       the network with that edit in every pass

A layer whose features z are edited gives x + decode(z') - decode(z), and z is no linear function of x
(a ReLU, the k largest): no weights of the network say it. The folder holds all but the network itself.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn, Tensor

from neuronym.activations import target_layers
from neuronym.common.files import digest, sha256, write_json
from neuronym.common.text import counted
from neuronym.common.types import Target
from neuronym.evaluation.pruning import NamedUnits, unit_edits
from neuronym.hooks import get_layer, swapped
from neuronym.sparse import FeatureLayer, features_of, load_sae, split_name, with_features
from neuronym.trials import first_tensor

CARD, RUNS = "card.json", "as it runs"


def write_card(folder: Path, card: Mapping, loads: str) -> Path:
    """Write card.json and card.md into `folder`; `loads` says what `load_edited` reads beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CARD, dict(card))
    lines = [f"# {card['network']}, {card['kind']}", ""]
    for key, value in card.items():
        if isinstance(value, Mapping):
            value = "; ".join(f"{name}: {_listed(some)}" for name, some in value.items())
        lines.append(f"* **{key}**: {_listed(value)}")
    text = [*lines, "", f"`load_edited` of `neuronym.applications.edited` loads {loads}.", ""]
    (folder / "card.md").write_text("\n".join(text), encoding="utf-8")
    return folder


def save_running(
    folder: Path,
    target: Target,
    units: NamedUnits,
    strength: float = 0,
    how: str = "zero",
    means: Mapping[str, Tensor] | None = None,
    **told,
) -> Path:
    """Write an edit as `evaluation.pruning.pruned` runs it: the card, and a copy of each autoencoder with its
    checksum. `told` are further lines of the card. Returns the folder. Errors: those of `pruned`.
    """
    unit_edits(target, units, how, means, strength)
    chosen = {layer: sorted(int(k) for k in some) for layer, some in units.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files, sums = {}, {}
    for layer in chosen:
        file = split_name(layer)[1]
        if file:
            files[layer] = f"features_{len(files) + 1}.safetensors"
            shutil.copyfile(file, folder / files[layer])
            sums[layer] = sha256(folder / files[layer])
    constants = (
        {} if how == "zero" else {layer: means[layer][some].tolist() for layer, some in chosen.items()}
    )
    card = {
        "kind": RUNS,
        "network": target.name,
        "weights_key": target.weights_key,
        "units": chosen,
        "strength": strength,
        "towards": "their mean over the images" if how == "mean" else "0",
        **({"means": constants} if constants else {}),
        **({"features": files, "checksums": sums} if files else {}),
        **told,
    }
    return write_card(folder, card, f"{', '.join(files.values())} and the card" if files else "the card")


def running(folder: Path, card: Mapping, base: Target) -> Target:
    """The network of a card of `save_running`: a copy in which each layer gives what the edit makes of it, to
    all that reads it, records included.

    Errors: FileNotFoundError and ValueError for autoencoders that are not there, or not those of the card;
    those of `pruned`.
    """
    names, sums = {}, card.get("checksums", {})
    for layer in card["units"]:
        names[layer] = layer
        if layer in card.get("features", {}):
            file = folder / card["features"][layer]
            if not file.is_file():
                raise FileNotFoundError(
                    f"{folder / CARD} is of features of {file.name}, which is not beside it"
                )
            if sha256(file) != sums[layer]:
                raise ValueError(
                    f"{file} is another file than the one that {CARD} is of; copy the whole folder"
                )
            names[layer] = FeatureLayer(layer, str(file))
    units = {names[layer]: some for layer, some in card["units"].items()}
    edits = unit_edits(
        base, units, "mean" if "means" in card else "zero", _means(base, card, units), card["strength"]
    )
    model = copy.deepcopy(base.model)
    for layer, change in edits.items():
        get_layer(model, split_name(layer)[0]).register_forward_hook(_changed(layer, change))
    key = digest(base.weights_key, repr(sorted(card["units"].items())), repr(card["strength"]))
    key = digest(key, repr(sorted(card.get("means", {}).items())), repr(sorted(sums.items())))
    name = f"{base.name}, {counted(sum(map(len, card['units'].values())), 'unit')} edited"
    return replace(base, model=model.eval(), name=name, weights_key=key)


def _means(base: Target, card: Mapping, units: NamedUnits) -> dict[str, Tensor] | None:
    """The card's constants as means of whole layers."""
    if "means" not in card:
        return None
    found = {}
    for layer in target_layers(base, list(units)):
        found[layer.name] = torch.zeros(layer.units)
        found[layer.name][list(units[layer.name])] = torch.tensor(card["means"][layer.name])
    return found


def _changed(layer: str, change: Callable[[Tensor], Tensor]) -> Callable:
    """A hook that gives a layer's output, or its features, changed."""
    file = split_name(layer)[1]
    sae = load_sae(file) if file else None

    def hook(module: nn.Module, inputs: object, output: object) -> object:
        tensor = first_tensor(output)
        if sae is None:
            return swapped(output, tensor, change(tensor))
        own = sae.to(tensor.device)
        z = features_of(own, tensor)
        return swapped(output, tensor, with_features(own, tensor, z, change(z)))

    return hook


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
