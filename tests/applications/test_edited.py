"""Edits in weights do what edits that run do, and come back from disk with their card."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from neuronym.applications.edited import load_edited, save_edited, save_smaller, write_edit
from neuronym.applications.surgery import Fold
from neuronym.common.types import Target
from neuronym.evaluation.pruning import pruned
from neuronym.hooks import list_layers
from neuronym.models.targets import load_target
from tests.applications.test_surgery import MLP, resnet, vit, X


def target(model: nn.Module) -> Target:
    return Target("mine", model.eval(), lambda image: X[0], "p", None, "key", (), X)


def means(t: Target, layer: str) -> dict[str, torch.Tensor]:
    units = next(info.units for info in list_layers(t.model, X) if info.name == layer)
    return {layer: torch.rand(units, generator=torch.Generator().manual_seed(2))}


@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize("strength", [0, 0.5, 2])
@pytest.mark.parametrize(
    "build, layer, where, mean",
    [
        (resnet, "layer4", "its readers'", True),
        (resnet, "layer3", "its readers'", False),  # padded with 0
        (resnet, "layer2.bn1", "its own", True),
        (resnet, "layer2.conv1", "its own", True),  # gets a bias
        (resnet, "conv1", "its own", None),  # behind a ReLU: a mean alone
        (resnet, "fc", "its own", True),
        (vit, f"{MLP}.0", "its own", True),
        (vit, f"{MLP}.1", None, True),  # behind a GELU: its readers', but for 0
        (vit, "encoder.ln", "its own", True),
    ],
)
def test_weights_do_what_the_edit_does(build, layer, where, mean, strength, how):
    t, units = target(build()), {layer: [0, 3]}
    m = means(t, layer)
    if how == "mean" and (mean is False or mean is None and strength):
        with pytest.raises(ValueError, match=f"this edit of layer '{layer}' cannot be written into weights"):
            write_edit(t, units, strength, how, m)
        return
    written = write_edit(t, units, strength, how, m)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(), pruned(t, units, how, m, strength):
        expected = t.model(x)
    with torch.inference_mode():
        torch.testing.assert_close(written.model(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(t.model(x), expected, rtol=1e-3, atol=1e-4)
    assert where is None or written.where == {layer: where}
    before, after = t.model.state_dict(), written.model.state_dict()
    changed = {n for n in after if n not in before or not torch.equal(before[n], after[n])}
    assert changed and changed <= set(written.tensors) and written.apart < 1e-5


def test_what_weights_cannot_say_is_said():
    with pytest.raises(ValueError, match="out of an addition, and what it gives goes into layernorm; run it"):
        write_edit(target(vit()), {"encoder.layers.encoder_layer_1": [0]})
    with pytest.raises(ValueError, match="units of layer 'fc' lie within 0 .. 4, got 5"):
        write_edit(target(resnet()), {"fc": [5]})


def test_an_edited_network_comes_back(tmp_path):
    t = load_target("microworld:resnet", suggest=False)
    units = {"layer4": [3, 50], "layer3.conv1": [0]}
    m = {"layer4": torch.full((192,), 0.25), "layer3.conv1": torch.full((96,), -0.5)}
    written = write_edit(t, units, 0.0, "mean", m)
    folder = save_edited(tmp_path / "a", t, written, units, 0.0, "mean", why="label:star")
    back = load_edited(folder)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(back.model(x), written.model(x))
    assert back.name == "microworld:resnet, 3 units edited" and back.weights_key != t.weights_key
    card = json.loads((folder / "card.json").read_text())
    assert card["units"] == {"layer4": [3, 50], "layer3.conv1": [0]} and card["why"] == "label:star"
    assert "fc.bias" in card["tensors changed"] and "layer3.conv1.bias" in card["tensors changed"]
    text = (folder / "card.md").read_text()
    assert "* **units**: layer4: 3, 50; layer3.conv1: 0" in text and "* **why**: label:star" in text
    with pytest.raises(ValueError, match="is of microworld:resnet with weights .*, got other; give"):
        load_edited(folder, replace(t, weights_key="other"))
    with pytest.raises(FileNotFoundError, match="no edited network at"):
        load_edited(tmp_path / "b")


def test_a_smaller_network_comes_back(tmp_path):
    t = target(resnet())
    folds = {"layer4": [Fold(1, 0, 0.5)]}
    folder = save_smaller(tmp_path, t, {"layer4": [1, 7], "layer2.relu1": [0]}, folds)
    back = load_edited(folder, t)
    assert back.model.fc.in_features == 4 * 46 and back.model.layer2.conv1.out_channels == 11
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = t.model.fc.weight.clone().view(5, 48, 4)
        expected[:, 0] += 0.5 * expected[:, 1]
        torch.testing.assert_close(back.model.fc.weight.view(5, 46, 4)[:, 0], expected[:, 0])
        assert back.model(x).isfinite().all()
    assert json.loads((folder / "card.json").read_text())["folded"] == {"layer4": [[1, 0, 0.5, 0.0]]}
