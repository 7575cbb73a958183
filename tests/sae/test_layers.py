"""`NAME@sae:FILE` as a layer: values of a plain forward, edits, the cache's key, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuronym import hooks
from neuronym.activations import activation_maps, activation_spec, unit_activations
from neuronym.applications.names import check_files, read_names
from neuronym.dissect import clip_dissect
from neuronym.evaluation.replay import under_each
from neuronym.measurements import measure
from neuronym.similarity.labels import write_labels
from neuronym.sparse import features_key, load_sae, pooled_features
from tests.helpers.features import D, written
from tests.helpers.networks import close, layers_of, make_probe, make_target, SIDE

WIDTHS = {"conv": 7, "nhwc": 9, "tokens": 8, "first": 8, "fc": 11}


def feature_layer(target, layer: str, file: str) -> hooks.LayerInfo:
    example = torch.zeros(1, 3, SIDE, SIDE)
    return hooks.resolve_layers(target.model, f"{layer}@sae:{file}", example)[0]


@pytest.mark.parametrize("how", ["avg", "max", "share"])
def test_values_are_those_of_a_plain_forward(tmp_path, how):
    target, probe = make_target(), make_probe()
    files = {name: written(tmp_path, d, name=name) for name, d in WIDTHS.items()}
    features = [feature_layer(target, name, file) for name, file in files.items()]
    both = [*layers_of(target, ["conv"]), *features]
    Q = unit_activations(target, probe, both, how, batch_size=5)
    with torch.no_grad():
        images = torch.stack([target.preprocess(probe.image(i)) for i in range(probe.N)])
        outputs = target.model.outputs(images)
    for layer, (name, file) in zip(features, files.items()):
        z = load_sae(file).encode(outputs[name])  # [N, positions, D]
        expected = {"avg": z.mean(1), "max": z.amax(1), "share": (z > 0).float().mean(1)}[how]
        close(Q[layer.name], z[:, 0] if name == "fc" else expected)
        assert layer.units == D and layer.name == f"{name}@sae:{Path(file).stem}" and layer.name.file == file
    assert Q["conv"].shape[1] == 7


def test_maps_and_grids_are_those_of_the_layer(tmp_path):
    target, probe = make_target(), make_probe()
    layer = feature_layer(target, "conv", written(tmp_path, 7))
    assert layer.shape == (D, SIDE, SIDE) and layer.layout == "conv"
    maps = activation_maps(target, probe, layer, [2, 0], [3, 1])
    Q = unit_activations(target, probe, [layer], "max")[layer.name]
    close(maps.amax((2, 3)), Q[[2, 0]][:, [3, 1]])


def test_an_edit_moves_the_layer_by_what_the_change_decodes_to(tmp_path):
    target = make_target()
    file = written(tmp_path, 8, activation="relu", k=0)
    name, sae = f"tokens@sae:{file}", load_sae(file)
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))

    def off(z: Tensor) -> Tensor:
        return z * (torch.arange(D) >= 5)

    def literal(x: Tensor) -> Tensor:
        return x - sae.encode(x)[..., :5] @ sae.W_dec[:5]

    with torch.no_grad():
        with hooks.edit(target.model, {"tokens": literal}):
            expected = target.model(images)
        with hooks.edit(target.model, {name: off}):
            close(target.model(images), expected)
        plain = target.model(images)
        with hooks.edit(target.model, {name: lambda z: z}):
            assert torch.equal(target.model(images), plain)
        assert not torch.allclose(plain, expected)
        twice = list(under_each(target.model, images, [{name: off}, {}]))
    close(twice[0], expected)
    close(twice[1], plain)


def test_a_feature_has_a_gradient(tmp_path):
    """What visualisation follows."""
    target, kept = make_target(), []
    name = f"conv@sae:{written(tmp_path, 7)}"
    image = torch.rand(1, 3, SIDE, SIDE, requires_grad=True)
    with hooks.edit(target.model, {name: lambda z: kept.append(z) or z}):
        target.model(image)
    kept[0].sum().backward()
    assert image.grad.abs().sum() > 0


def test_layers_of_features_are_called_by_what_tells_their_files_apart(tmp_path):
    target, example = make_target(), torch.zeros(1, 3, SIDE, SIDE)
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    first, second = written(tmp_path / "one", 7), written(tmp_path / "two", 7, seed=1)

    def names(*layers: str) -> list[str]:
        return [one.name for one in hooks.resolve_layers(target.model, list(layers), example)]

    alone = names("conv", f"conv@sae:{first}")
    assert alone == ["conv", "conv@sae:a7"] and alone[1].file == first
    both = names(f"conv@sae:{first}", f"conv@sae:{second}")
    assert both == ["conv@sae:one/a7", "conv@sae:two/a7"]
    assert names(*both) == both and names(alone[1]) == alone[1:]  # a name that knows its file stays
    again = copy.deepcopy(both[1])
    assert again == both[1] and again.file == second
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad(), hooks.record(target.model, both) as acts:
        target.model(images)
    assert not torch.equal(acts["conv@sae:one/a7"], acts["conv@sae:two/a7"])


def test_the_cache_knows_a_file_by_its_content(tmp_path):
    target, probe = make_target(), make_probe()
    layer = feature_layer(target, "conv", written(tmp_path, 7))
    moved = feature_layer(target, "conv", written(tmp_path, 7, name="b"))
    before = activation_spec(target, probe, layer)
    assert activation_spec(target, probe, moved) == before
    Q = unit_activations(target, probe, [layer])[layer.name]
    written(tmp_path, 7, seed=1)
    assert activation_spec(target, probe, layer) != before
    assert not torch.allclose(unit_activations(target, probe, [layer])[layer.name], Q)
    plain = replace(layer, name="conv")
    assert "features" not in activation_spec(target, probe, plain)


def test_memory_does_not_matter(tmp_path, monkeypatch):
    target, probe = make_target(), make_probe()
    layer = feature_layer(target, "first", written(tmp_path, 8))
    Q = unit_activations(target, probe, [layer])[layer.name]
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("neuronym.activations.pooled_features", lambda *a: pooled_features(*a, memory=1))
    close(unit_activations(target, probe, [layer])[layer.name], Q)


def test_what_is_refused(tmp_path):
    target, example = make_target(), torch.zeros(1, 3, SIDE, SIDE)
    file = written(tmp_path, 7)
    for name, error, said in (
        (f"nhwc@sae:{file}", ValueError, "width 7, layer 'nhwc' has 9 units; name the layer"),
        (f"cnv@sae:{file}", KeyError, "no layer 'cnv'; nearest: conv"),
        ("conv@sae:absent.safetensors", FileNotFoundError, "no sparse autoencoder at"),
        (
            f"conv@sae:{written(tmp_path, 7, name='b', activation='batchtopk')}",
            ValueError,
            "depend on its batch",
        ),
    ):
        with pytest.raises(error, match=said):
            hooks.resolve_layers(target.model, name, example)
    with pytest.raises(FileNotFoundError, match="no sparse autoencoder at"):
        hooks.check_layer_names(target.model, "conv,conv@sae:absent.safetensors")
    hooks.check_layer_names(target.model, f"conv@sae:{file}")


def test_features_of_the_microworld_are_measured_and_named(tmp_path):
    file = written(tmp_path, 192)
    words = ["a red circle", "a star", "a blue square"]
    data = measure(
        "microworld:resnet", f"layer4@sae:{file},fc", "microworld:40", "microworld", words, pool="max"
    )
    name = f"layer4@sae:{Path(file).stem}"
    assert data.sizes == {name: D, "fc": 52}
    labels = clip_dissect(data, "soft_wpmi")
    named = labels[(labels["layer"] == name) & (labels["rank"] == 1)]
    assert list(named["unit"]) == list(range(D))
    dead = (data.Q[name] == data.Q[name][0]).all(0)  # features that never fire have no name
    assert 0 < dead.sum() < D
    assert [label in words for label in named["label"]] == [not one for one in dead.tolist()]


def test_a_figure_of_features_lies_in_its_folder(tmp_path):
    import matplotlib.pyplot as plt

    from neuronym.figures.style import save_figure

    fig = plt.figure(figsize=(1, 1))
    file = save_figure(fig, tmp_path, "cards_layer4@sae:runs/topk_safetensors")
    plt.close(fig)
    assert file == tmp_path / "cards_layer4@sae_runs_topk_safetensors.png" and file.is_file()


def test_names_are_of_the_file_that_they_were_made_with(tmp_path):
    """A table says so, as CSV too, and an edit of another file's features by it is refused."""
    file = written(tmp_path, 192)
    given = ("microworld:resnet", f"layer4@sae:{file},fc", "microworld:30", "microworld", ["a star", "night"])
    data = measure(*given)
    labels = clip_dissect(data, k=1)
    layer = next(iter(data.layers))
    assert set(labels["features_key"]) == {features_key(layer), ""}
    assert "features_key" not in clip_dissect(measure(given[0], "fc", *given[2:]), k=1)
    write_labels(labels, tmp_path)
    for name in ("labels.parquet", "labels.csv"):
        check_files(read_names(tmp_path / name), list(data.layers))
        check_files(read_names(tmp_path / name).drop(columns="features_key"), list(data.layers))
    (tmp_path / "other").mkdir()
    [other] = hooks.resolve_layers(
        data.target.model, f"layer4@sae:{written(tmp_path / 'other', 192, seed=1)}", data.target.example
    )
    assert other.name == layer
    for name in ("labels.parquet", "labels.csv"):
        with pytest.raises(ValueError, match="of 'layer4@sae:a192' are of features of a file of key"):
            check_files(read_names(tmp_path / name), ["fc", other.name])
