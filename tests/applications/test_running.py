"""Edits that weights cannot say come back from a folder and run as they did, for all that reads the layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from neuronym import hooks
from neuronym.applications.channels import trace
from neuronym.applications.edited import load_edited, write_edit
from neuronym.applications.orders import check_apart
from neuronym.applications.running import save_running
from neuronym.evaluation.pruning import pruned
from neuronym.models.targets import load_target
from neuronym.sparse import Encoding, save_sae, SparseAutoencoder

D = 40


@pytest.fixture
def network():
    return load_target("microworld:resnet", suggest=False)


def features(network, folder: Path, layer: str = "layer4") -> hooks.LayerInfo:
    """A random TopK autoencoder of a layer, as a layer."""
    [plain] = hooks.resolve_layers(network.model, layer, network.example)
    g, d = torch.Generator().manual_seed(0), plain.units
    parts = [torch.randn(shape, generator=g) for shape in ((d, D), (D,), (D, d), (d,))]
    file = save_sae(SparseAutoencoder(*parts, Encoding("topk", 6)), folder / "topk.safetensors")
    return hooks.resolve_layers(network.model, f"{layer}@sae:{file}", network.example)[0]


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_a_kept_edit_runs_as_it_did(tmp_path, network, how):
    layer = features(network, tmp_path)
    units = {layer.name: [1, 7, 30], "layer3": [4]}
    means = {layer.name: torch.rand(D), "layer3": torch.rand(96)} if how == "mean" else None
    folder = save_running(tmp_path / "a", network, units, 0.5, how, means, why="label:star")
    Path(layer.name.file).unlink()  # the folder has all that it needs
    back = load_edited(folder)
    layer = replace(layer, name=type(layer.name)(layer.name, str(folder / "features_1.safetensors")))
    units = {layer.name: [1, 7, 30], "layer3": [4]}
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), pruned(network, units, how, means, 0.5):
        with hooks.record(network.model, ["layer4"]) as acts:
            expected = network.model(x)
    with torch.inference_mode(), hooks.record(back.model, ["layer4"]) as found:
        assert torch.equal(back.model(x), expected)
        assert torch.equal(found["layer4"], acts["layer4"])  # a record sees the edited layer
        assert not torch.allclose(network.model(x), expected)
    assert back.name == "microworld:resnet, 4 units edited" and back.weights_key != network.weights_key
    card = json.loads((folder / "card.json").read_text())
    assert card["units"] == {"layer4@sae:topk": [1, 7, 30], "layer3": [4]} and card["why"] == "label:star"
    assert "* **features**: layer4@sae:topk: features_1.safetensors" in (folder / "card.md").read_text()
    other = save_running(tmp_path / "b", network, units, 0.25, how, means)
    assert load_edited(other).weights_key != back.weights_key


def test_what_is_refused(tmp_path, network):
    layer = features(network, tmp_path)
    with pytest.raises(ValueError, match="edit of features .* cannot be written into weights"):
        write_edit(network, {layer.name: [0]})
    with pytest.raises(ValueError, match="no channels of MicroResNet: they can be turned off, not removed"):
        check_apart(trace(network.model, network.example), [layer.name])
    with pytest.raises(ValueError, match="lie within 0 .. 39, got 40"):
        save_running(tmp_path / "a", network, {layer.name: [40]})
    folder = save_running(tmp_path / "a", network, {layer.name: [0]})
    kept = folder / "features_1.safetensors"
    save_sae(
        SparseAutoencoder(*(torch.zeros(s) for s in ((192, 3), (3,), (3, 192), (192,))), Encoding()), kept
    )
    with pytest.raises(ValueError, match="another file than the one that card.json is of"):
        load_edited(folder)
    kept.unlink()
    with pytest.raises(FileNotFoundError, match="features_1.safetensors, which is not beside it"):
        load_edited(folder)
    with pytest.raises(ValueError, match="give the network that was edited"):
        load_edited(folder, replace(network, weights_key="other"))
