"""Training finds the dictionary that made the data; its measures are the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from neuronym.hooks import resolve_layers
from neuronym.sae.training import (
    layer_positions,
    sae_quality,
    shuffled_decoder,
    spliced_outputs,
    train_sae,
    untrained_sae,
)
from neuronym.sparse import reconstruction_of
from tests.helpers.networks import close, LAYERS, make_probe, make_target, SIDE

d, D, k = 12, 20, 3


def sparse_data(n: int = 3000, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sums of three of D directions, each with a weight of 1 to 2: X [n, d] and the directions."""
    g = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(D, d, generator=g), dim=1)
    some = torch.rand(n, D, generator=g).argsort(1)[:, :k]
    weights = torch.zeros(n, D).scatter(1, some, 1 + torch.rand(n, k, generator=g))
    return (weights @ directions + 0.5) * scale, directions


def trained(X: Tensor, activation: str, **options):
    g = torch.Generator().manual_seed(1)
    return train_sae(X, D, activation, k, batch=256, rate=5e-3, generator=g, **{"steps": 500} | options)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_training_finds_the_directions_that_made_the_data(activation):
    X, directions = sparse_data(scale=30.0)
    sae = trained(X, activation)
    found, before = (
        sae_quality(sae, X),
        sae_quality(untrained_sae(X, D, activation, k, torch.Generator().manual_seed(1)), X),
    )
    assert found["explained_variance"] > 0.8 > before["explained_variance"] + 0.3
    assert found["l0"] == pytest.approx(k, abs=0.3) and found["dead"] < 0.2
    assert float((sae.W_dec @ directions.T).amax(0).median()) > 0.85
    close(sae.W_dec.norm(dim=1), torch.ones(D))
    mixed = sae_quality(shuffled_decoder(sae, torch.Generator().manual_seed(2)), X)
    assert mixed["explained_variance"] < 0 and mixed["l0"] == found["l0"]


def test_the_same_seed_gives_the_same_and_scale_does_not_matter():
    X, _ = sparse_data(500)
    first, again = (trained(X, "topk", steps=20) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    larger = trained(X * 8, "topk", steps=20)
    torch.testing.assert_close(larger.encode(X * 8), first.encode(X) * 8, rtol=1e-3, atol=1e-3)


def test_measures_are_the_formulas():
    X, _ = sparse_data(100)
    sae = untrained_sae(X, D, "topk", k, torch.Generator().manual_seed(4))
    x = X.double().tolist()
    z, out = sae.encode(X).tolist(), sae(X).double().tolist()
    mean = [sum(row[i] for row in x) / len(x) for i in range(d)]
    left = sum((a - b) ** 2 for row, other in zip(x, out) for a, b in zip(row, other))
    total = sum((a - m) ** 2 for row in x for a, m in zip(row, mean))
    found = sae_quality(sae, X)
    assert found["explained_variance"] == pytest.approx(1 - left / total, abs=1e-5)
    assert found["l0"] == sum(v > 0 for row in z for v in row) / len(z)
    assert found["dead"] == sum(all(row[j] == 0 for row in z) for j in range(D)) / D


def test_positions_and_splicing_are_those_of_a_plain_forward():
    target, probe = make_target(), make_probe()
    images = torch.stack([target.preprocess(probe.image(i)) for i in range(probe.N)])
    layers = resolve_layers(target.model, "conv,nhwc,tokens,first", torch.zeros(1, 3, SIDE, SIDE))
    with torch.no_grad():
        outputs, plain = target.model.outputs(images), target.model(images)
    assert {layer.name for layer in layers} < set(LAYERS)
    for layer in layers:
        X = layer_positions(target, layer, probe, batch_size=5)
        close(X, outputs[layer.name].flatten(0, 1))
    sae = untrained_sae(X, D, "topk", k, torch.Generator().manual_seed(4))
    left, spliced = spliced_outputs(target, layers[-1], [None, sae], probe, batch_size=5)
    close(left, plain)
    with torch.no_grad():
        close(spliced, target.model.fc(reconstruction_of(sae, outputs["first"])[:, 0]))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"activation": "relu"}, "trained are topk and batchtopk, got 'relu'"),
        ({"activation": "topk", "steps": 0}, "steps must be a positive whole number"),
    ],
)
def test_what_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        trained(sparse_data(50)[0], **options)
    with pytest.raises(ValueError, match="do not vary"):
        trained(torch.ones(50, d), "topk")
