"""Names under other conditions: halves against a literal loop, noise that belongs to the picture, labels
counted by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym.activations import unit_activations
from neuronym.common.types import Clip, Target
from neuronym.datasets.probe import load_probe
from neuronym.hooks import list_layers
from neuronym.models.preprocess import Preprocess, preprocess_text
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score
from neuronym.trust.stability import (
    agreement_matrix,
    consensus,
    halves,
    noisy,
    noisy_clip,
    noisy_target,
    same,
)

N, K, M = 61, 9, 7
METHODS = {
    "cos_similarity": {},
    "cos_similarity_cubed": {},
    "rank_reorder": {"top_fraction": 0.4},
    "wpmi": {"top_k": 9},
    "soft_wpmi": {"top_k": 9},
    "correlation": {},
}
PLAIN = Preprocess(8, 8, "bilinear", (0, 0, 0), (1, 1, 1))


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(K=K, M=M) -> tuple[torch.Tensor, torch.Tensor]:
    """Units 0..3 follow concepts 3, 2, 1, 0; the others are noise."""
    P = torch.rand(N, M, generator=generator(1), dtype=torch.float64)
    Q = torch.randn(N, K, generator=generator(2), dtype=torch.float64)
    Q[:, :4] += 90 * (P[:, [3, 2, 1, 0]] - 0.5)
    return P, Q


def picture(seed=0, low=0, high=256, size=(9, 11)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).double()


# --- halves


@pytest.mark.parametrize("method", METHODS)
def test_halves_are_the_literal_ones(method):
    P, Q = planted()
    share, mean = halves(P, Q, method, repeats=6, generator=generator(5), **METHODS[method])
    g, agree = generator(5), [0] * K
    for _ in range(6):
        deal = torch.randperm(N, generator=g).tolist()
        labels = [
            score(P[rows], Q[rows], method, **METHODS[method]).argmax(1).tolist()
            for rows in (deal[:30], deal[30:])
        ]
        agree = [n + (a == b) for n, a, b in zip(agree, *labels)]
    assert share.tolist() == [n / 6 for n in agree] and math.isclose(mean, sum(agree) / 6 / K)


@pytest.mark.parametrize("method", METHODS)
def test_halves_tell_strong_units_from_noise(method):
    P, Q = planted(40, 31)
    Q[:, 5] = 0
    share, mean = halves(P, Q, method, repeats=20, **METHODS[method])
    assert share[:4].mean() > 0.95 and share[6:].mean() < 0.5 and share.isfinite().all() and 0.1 < mean < 0.6


def test_halves_of_embeddings_and_memory():
    I, T = (
        torch.nn.functional.normalize(torch.randn(n, 5, generator=generator(n), dtype=torch.float64), dim=1)
        for n in (N, M)
    )
    _, Q = planted()
    found = halves(I @ T.T, Q, repeats=5)
    assert torch.equal(found[0], halves(FactoredMatrix(I, T), Q, repeats=5, memory=60_000)[0])
    assert not torch.equal(found[0], halves(I @ T.T, Q, repeats=5, generator=generator(1))[0])


# --- noise


def test_noise_has_the_standard_deviation_asked_for():
    grey = Image.new("RGB", (120, 90), (128, 100, 150))
    for sd in (0.02, 0.05):
        added = tensor(noisy(lambda x: x, sd)(grey)) - tensor(grey)
        n = added.numel()
        assert abs(float(added.mean())) < 5 * sd * 255 / math.sqrt(n)
        assert abs(float(added.pow(2).mean()) - 1 / 12 - (sd * 255) ** 2) < 5 * (sd * 255) ** 2 * math.sqrt(
            2 / n
        )
    assert len(added[0, 0].unique()) > 1  # channels apart
    assert torch.equal(noisy(PLAIN, 0.0)(grey), PLAIN(grey))


def test_noisy_pictures_are_pictures():
    for low, high in ((0, 5), (250, 256)):
        out = np.asarray(noisy(lambda x: x, 0.1)(picture(0, low, high)))
        assert out.dtype == np.uint8 and out.shape == (9, 11, 3) and abs(out.mean() - (low + high) / 2) < 30
    assert (
        noisy(PLAIN)(picture().convert("L")).shape
        == noisy(PLAIN)(picture().convert("RGBA")).shape
        == (3, 8, 8)
    )


def test_noise_belongs_to_picture_and_seed():
    pictures = [picture(i) for i in range(4)]
    clean, first = torch.stack([PLAIN(x) for x in pictures]), [noisy(PLAIN, 0.05)(x) for x in pictures]
    again = noisy(PLAIN, 0.05)
    assert all(
        torch.equal(again(pictures[i]), first[i]) for i in (3, 1, 0, 2, 2)
    )  # order and repeats do not matter
    other = torch.stack([noisy(PLAIN, 0.05, seed=1)(x) for x in pictures])
    noise = torch.stack(first) - clean
    assert not torch.equal(other, torch.stack(first))
    flat = torch.cat([noise, other - clean]).flatten(1)
    off = torch.corrcoef(flat).fill_diagonal_(0)
    assert off.abs().max() < 5 / math.sqrt(flat.shape[1])
    turned = picture().transpose(Image.Transpose.TRANSPOSE)
    assert not torch.equal(
        tensor(noisy(lambda x: x)(turned)), tensor(noisy(lambda x: x)(picture())).transpose(0, 1)
    )


def test_noisy_networks_are_told_apart():
    """Specs differ by sd, seed and what they stand before; a network and a CLIP of one seed see one noisy
    picture.
    """
    target = _target()
    clip = Clip(
        "toy",
        lambda x: x.flatten(1),
        lambda t: torch.ones(len(t), 192),
        PLAIN,
        preprocess_text(PLAIN),
        "w",
        "t",
        192,
        1.0,
        "-",
        None,
    )
    noisy_ones = [noisy_target(target), noisy_target(target, 0.03), noisy_target(target, seed=1), target]
    assert len({x.preprocess_spec for x in noisy_ones}) == 4
    assert noisy_target(target).preprocess_spec == noisy_target(target).preprocess_spec
    assert (
        "at 0x" not in noisy_ones[0].preprocess_spec
        and preprocess_text(PLAIN) in noisy_ones[0].preprocess_spec
    )
    assert (
        isinstance(noisy_ones[0], Target)
        and noisy_ones[0].model is target.model
        and target.preprocess is PLAIN
    )
    changed = noisy_clip(clip)
    assert isinstance(changed, Clip) and changed.encode_text is clip.encode_text and changed.text_key == "t"
    assert changed.preprocess_spec == noisy_ones[0].preprocess_spec
    assert torch.equal(changed.preprocess(picture()), noisy_ones[0].preprocess(picture()))
    assert not torch.equal(changed.preprocess(picture()), PLAIN(picture()))
    assert "0x" not in preprocess_text(noisy_ones[0].preprocess)


def test_noisy_activations_do_not_depend_on_batches_and_are_cached_apart():
    probe, target = load_probe("microworld:7"), _target()
    layers = list_layers(target.model, target.example)[:1]
    name = layers[0].name
    clean = unit_activations(target, probe, layers)[name]
    first = unit_activations(noisy_target(target), probe, layers, batch_size=7)[name].clone()
    other = unit_activations(noisy_target(target, seed=1), probe, layers, batch_size=2)[name]
    one = torch.cat([target.model[0](noisy(PLAIN)(probe.image(i))[None]).mean((2, 3)) for i in (6, 3)])
    torch.testing.assert_close(first[[6, 3]], one)
    assert not torch.equal(clean, first) and not torch.equal(other, first)
    by_hand = torch.stack([noisy(PLAIN)(probe.image(i)) for i in range(7)])
    with torch.no_grad():
        expected = target.model[0](by_hand).mean((2, 3))
    torch.testing.assert_close(first, expected)


def _target() -> Target:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU()).eval().requires_grad_(False)
    return Target(
        "toy", model, PLAIN, preprocess_text(PLAIN), None, "weights", ("0",), torch.zeros(1, 3, 8, 8)
    )


# --- labels

A, B, C = (
    ["red", "dog", "sky", "red", "cat"],
    ["red", "cat", "sky", "blue", "dog"],
    ["red", "dog", "blue", "blue", "bird"],
)


def test_labels_of_conditions_by_hand():
    assert same(A, B).tolist() == [True, False, True, False, False] and same(A, A).all()
    table = agreement_matrix({"a": A, "b": B, "c": C})
    assert (
        table.loc["a"].tolist() == [1, 0.4, 0.4]
        and table.loc["c", "b"] == 0.4
        and (table == table.T).all(axis=None)
    )
    voted = consensus({"a": A, "b": B, "c": C})
    assert list(voted) == ["unit", "label", "votes", "share"] and voted["unit"].tolist() == [0, 1, 2, 3, 4]
    assert voted["label"].tolist() == ["red", "dog", "sky", "blue", "cat"] and voted["votes"].tolist() == [
        3,
        2,
        2,
        2,
        1,
    ]
    assert voted["share"].tolist() == [1, 2 / 3, 2 / 3, 2 / 3, 1 / 3]
    assert (
        consensus({"c": C, "b": B, "a": A})["label"][4] == "bird"
        and consensus({"a": A})["votes"].tolist() == [1] * 5
    )


P0, Q0 = planted()
ERRORS = [
    (lambda: halves(P0, Q0, repeats=0), "repeats must be a positive whole number"),
    (lambda: halves(P0[1:], Q0), "equal N, at least 2, got \\[60, 7\\] and \\[61, 9\\]"),
    (lambda: halves(P0[:1], Q0[:1]), "at least 2"),
    (lambda: halves(P0, [Q0]), "got \\[61, 7\\] and list"),
    (lambda: halves(P0, Q0.where(Q0 < 2, math.nan), "wpmi"), "Q must be finite"),
    (lambda: halves(P0, Q0, "wpmi", top_k=40), "top_k 40 exceeds N 30 images"),
    (lambda: noisy(PLAIN, -0.1), "sd must be a finite number from 0"),
    (lambda: noisy_target(_target(), math.nan), "sd must be a finite number"),
    (lambda: same(A, B[1:]), "same units, at least one, got {'first': 5, 'second': 4}"),
    (lambda: agreement_matrix({}), "got {}"),
    (lambda: consensus({"a": A, "b": [*B[1:], None]}), "labels are texts, got None of 'b'"),
]


@pytest.mark.parametrize("call, message", ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_similarity_function():
    with pytest.raises(KeyError, match="no similarity function 'cosine'"):
        halves(P0, Q0, "cosine")
