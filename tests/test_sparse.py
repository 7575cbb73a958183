"""Sparse autoencoders: features from the formulas in float64, files, layouts, and what must not matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuronym.layouts import LayerInfo
from neuronym.sparse import (
    check_fits,
    Encoding,
    features_key,
    features_of,
    load_sae,
    loaded_sae,
    pooled_features,
    save_sae,
    SparseAutoencoder,
    split_name,
    with_features,
)

d, D, K = 6, 15, 4


def made(activation: str = "relu", threshold: object = None, dtype=torch.float32, **how) -> SparseAutoencoder:
    g = torch.Generator().manual_seed(3)
    shapes = ((d, D), (D,), (D, d), (d,))
    parts = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    k = K if "topk" in activation else 0
    return SparseAutoencoder(*parts, Encoding(activation, k, **how), threshold).eval()


def data(n: int = 9) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def literal(sae: SparseAutoencoder, x: list[float]) -> tuple[list[float], list[float]]:
    """Features and reconstruction of one position, number by number."""
    how, W, V = sae.encoding, sae.W_enc.tolist(), sae.W_dec.tolist()
    shift, scale = 0.0, 1.0
    if how.scaling == "constant_norm":
        scale = d**0.5 / sum(v * v for v in x) ** 0.5
    elif how.scaling == "layer_norm":
        shift = sum(x) / d
        scale = 1 / ((sum((v - shift) ** 2 for v in x) / (d - 1)) ** 0.5 + 1e-5)
    y = [(v - shift) * scale - (b if how.subtract else 0) for v, b in zip(x, sae.b_dec.tolist())]
    pre = [sum(y[i] * W[i][j] for i in range(d)) + sae.b_enc.tolist()[j] for j in range(D)]
    z = pre if how.signed else [max(v, 0) for v in pre]
    if how.activation == "topk":
        kept = sorted(range(D), key=lambda j: -z[j])[:K]
        z = [v if j in kept else 0 for j, v in enumerate(z)]
    elif how.activation in ("batchtopk", "jumprelu"):
        limit = sae.threshold.expand(D).tolist()
        z = [v if p > t else 0 for v, p, t in zip(z, pre, limit)]
    out = [sum(z[j] * V[j][i] for j in range(D)) + sae.b_dec.tolist()[i] for i in range(d)]
    return z, [v / scale + shift for v in out]


@pytest.mark.parametrize("scaling", ["none", "constant_norm", "layer_norm"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    "activation, threshold, more",
    [
        ("relu", None, {}),
        ("topk", None, {}),
        ("topk", None, {"signed": True}),
        ("batchtopk", torch.tensor(0.8, dtype=torch.float64), {}),
        ("jumprelu", torch.linspace(-1, 2, D, dtype=torch.float64), {}),
    ],
)
def test_features_and_reconstruction_are_the_formulas(activation, threshold, more, subtract, scaling):
    sae = made(activation, threshold, torch.float64, subtract=subtract, scaling=scaling, **more)
    x = data()
    z = sae.encode(x)
    expected = [literal(sae, row) for row in x.tolist()]
    torch.testing.assert_close(z, torch.tensor([f for f, _ in expected], dtype=torch.float64))
    torch.testing.assert_close(sae(x), torch.tensor([r for _, r in expected], dtype=torch.float64))
    assert 0 < int((z != 0).sum()) < z.numel()


def test_batchtopk_keeps_k_a_position_over_the_batch_in_training_and_no_batch_matters_after():
    sae, x = made("batchtopk", torch.tensor(0.8, dtype=torch.float64), torch.float64), data()
    alone = torch.cat([sae.encode(row[None]) for row in x])
    torch.testing.assert_close(sae.encode(x), alone)
    z = sae.train().encode(x)
    assert int((z > 0).sum()) == K * len(x)
    pre = sae.pre_activations(x)
    assert pre[z > 0].min() > pre[z == 0].max()
    sae.threshold = None
    with pytest.raises(ValueError, match="depend on its batch; train it, or convert"):
        sae.eval().encode(x)


@pytest.mark.parametrize(
    "activation, threshold", [("relu", None), ("topk", None), ("jumprelu", torch.linspace(0, 1, D))]
)
def test_a_file_gives_the_same_back_and_its_key_is_its_content(tmp_path, activation, threshold):
    sae = made(activation, threshold, subtract=False)
    file = save_sae(sae, tmp_path / "a.safetensors", {"seed": 3})
    again, x = load_sae(file), data().float()
    assert again.encoding == sae.encoding and not again.training
    assert not any(value.requires_grad for value in again.parameters())
    assert torch.equal(again.encode(x), sae.encode(x)) and torch.equal(again(x), sae(x))
    key = features_key(f"layer4@sae:{file}")
    assert key == features_key(f"other@sae:{save_sae(sae, tmp_path / 'b.safetensors', {'seed': 3})}")
    with torch.no_grad():
        sae.b_enc += 1
    save_sae(sae, file, {"seed": 3})
    assert features_key(f"layer4@sae:{file}") != key and features_key("layer4") == ""


def test_a_file_is_read_once_until_it_changes(tmp_path):
    file = save_sae(made(), tmp_path / "a.safetensors")
    first = loaded_sae(file)
    assert loaded_sae(str(file)) is first and load_sae(file) is not first
    save_sae(made("topk"), file)
    assert loaded_sae(file).encoding.activation == "topk"


def test_names():
    assert split_name("blocks.9@sae:runs/a.safetensors") == ("blocks.9", "runs/a.safetensors")
    assert split_name("layer4") == ("layer4", "")


@pytest.mark.parametrize(
    "layout, shape, axis",
    [
        ("fc", (7, d), 1),
        ("tokens", (7, 5, d), 2),
        ("tokens_first", (5, 7, d), 2),
        ("conv1d", (7, d, 5), 1),
        ("conv", (7, d, 3, 2), 1),
        ("nhwc", (7, 3, 2, d), 3),
    ],
)
def test_every_layout(layout, shape, axis):
    sae = made("topk")
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    z = features_of(sae, output)
    rows = output.movedim(axis, -1)
    torch.testing.assert_close(z.movedim(axis, -1), sae.encode(rows))
    assert torch.equal(with_features(sae, output, z, z), output)
    off = z.clone()
    off.select(axis, 2).zero_()
    moved = rows - z.select(axis, 2)[..., None] * sae.W_dec[2]
    torch.testing.assert_close(with_features(sae, output, z, off).movedim(axis, -1), moved)
    batch = 1 if layout == "tokens_first" else 0

    def most(features: Tensor, images: int) -> Tensor:
        assert features.shape[batch] == images
        return features.movedim((batch, axis), (0, 1)).flatten(2).amax(2) if z.ndim > 2 else features

    whole = pooled_features(sae, output, layout, most)
    torch.testing.assert_close(pooled_features(sae, output, layout, most, memory=1), whole)
    assert whole.shape == (7, D)
    units_last = [size for i, size in enumerate(shape) if i != batch]
    check_fits(sae, LayerInfo("x", "X", d, tuple(units_last), layout), "a")


def test_an_autoencoder_of_another_layer_is_refused():
    sae = made()
    with pytest.raises(ValueError, match="width 6, layer 'x' has 5 units; name the layer"):
        check_fits(sae, LayerInfo("x", "X", 5, (5, 2, 2), "conv"), "a.safetensors")
    with pytest.raises(ValueError, match="two axes of length 6"):
        check_fits(sae, LayerInfo("x", "X", d, (d, 3, d), "nhwc"), "a.safetensors")
    with pytest.raises(ValueError, match="width 6, got an output of shape"):
        features_of(sae, torch.zeros(2, 5))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"W_dec": torch.zeros(D, d + 1)}, "go together, got shapes"),
        ({"encoding": Encoding("tanh")}, "an autoencoder is relu, topk"),
        ({"encoding": Encoding("topk")}, "k must be a positive whole number, got 0"),
        ({"encoding": Encoding("topk", D + 1)}, "k 16 exceeds the 15 features"),
        ({"encoding": Encoding("jumprelu")}, "jumprelu has a threshold, got none"),
        ({"encoding": Encoding("relu", signed=True)}, "topk alone may keep negative"),
        ({"threshold": torch.zeros(2)}, "one number or one a feature"),
        ({"b_enc": torch.full((D,), torch.nan)}, "finite floats"),
    ],
)
def test_parts_that_do_not_go_together_are_one_sentence(change, said):
    good = {"W_enc": torch.zeros(d, D), "b_enc": torch.zeros(D), "W_dec": torch.zeros(D, d)}
    good |= {"b_dec": torch.zeros(d), "encoding": Encoding()}
    with pytest.raises(ValueError, match=said):
        SparseAutoencoder(**good | change)


def test_files_that_are_none(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="name a file as layer4@sae:FILE"):
        load_sae(tmp_path / "absent.safetensors")
    save_file({"W_enc": torch.zeros(2, 3)}, tmp_path / "foreign.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"no")
    for name in ("foreign", "torn"):
        with pytest.raises(ValueError, match=r"no sparse autoencoder of this package .*published\.convert"):
            load_sae(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="kept as FILE.safetensors, got a.pt"):
        save_sae(made(), tmp_path / "a.pt")
