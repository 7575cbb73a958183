"""(Soft-)WPMI and the soft correlation where a block of images meets all concepts at once, against the
literal formulas and the form in which a block of concepts meets all images.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score, score_embeddings
from tests.helpers import reference
from tests.helpers.held import Held
from tests.similarity.test_scores import inputs

pytest.importorskip("numba")
images = pytest.importorskip("neuronym.similarity.images")
N, K, M = 61, 7, 29


@pytest.fixture
def by_images(monkeypatch):
    """Blocks of a few images and concepts; whether the form gave a result, each time."""
    given, whole = [], images.scores_by_images
    monkeypatch.setattr(images, "IMAGES_AT_ONCE", 13)
    monkeypatch.setattr(images, "CONCEPTS", 10)
    monkeypatch.setattr("neuronym.similarity.softened.IMAGES_AT_ONCE", 13)

    def counted(*arguments):
        found = whole(*arguments)
        given.append(found is not None)
        return found

    monkeypatch.setattr(images, "scores_by_images", counted)
    return given


@pytest.mark.parametrize(
    "method, options",
    [
        ("wpmi", {}),
        ("soft_wpmi", {}),
        ("soft_wpmi", {"top_k": 3}),  # images that no unit asks for
        ("soft_wpmi", {"a": -3, "lam": 0.3}),
        ("soft_wpmi", {"a": 0}),
        ("soft_wpmi", {"a": 40}),  # products that begin anew
        ("wpmi", {"a": 6, "top_k": 61}),
        ("wpmi", {"a": 90}),  # products that begin anew within a block
        ("wpmi", {"a": -400, "eps": 1e-30}),  # factors that are products of their own
        ("wpmi", {"eps": 0}),
    ],
)
def test_equals_the_literal_formula(method, options, by_images):
    I, T, Q = inputs(torch.float32, n=N, k=K, m=M)
    P = I @ T.T
    given = {"top_k": min(N, 28 if method == "wpmi" else 100), **options}
    expected = torch.tensor(getattr(reference, method)(P, Q, **given), dtype=torch.float64)
    whole = score(P, Q, method, **options)
    assert_close(whole.double(), expected, rtol=2e-5, atol=2e-3)
    assert_close(score_embeddings(I, T, Q, method, **options), whole, rtol=2e-5, atol=2e-3)
    assert by_images == [True, True]


@pytest.mark.parametrize("method", ["wpmi", "soft_wpmi", "soft_correlation"])
def test_blocks_layers_units_and_precision_do_not_matter(method, by_images, monkeypatch):
    I, T, Q = inputs(torch.float32, n=N, k=K, m=M)
    P = FactoredMatrix(I, T)
    whole, near = score(P, Q, method), {"rtol": 2e-5, "atol": 2e-4}
    for size in (1, 7, 1000):
        monkeypatch.setattr(images, "IMAGES_AT_ONCE", size)
        monkeypatch.setattr("neuronym.similarity.softened.IMAGES_AT_ONCE", size)
        assert_close(score(P, Q, method), whole, **near)
    assert_close(score(P, Q, method, units=[4, 0]), whole[[4, 0]], **near)
    for found, layer in zip(score(P, [Q, Q[:, 2:]], method), (Q, Q[:, 2:])):
        assert_close(found, score(P, layer, method), **near)
    half = P.I.half(), P.T.half()
    wide = score_embeddings(half[0].float(), half[1].float(), Q, method)
    assert torch.equal(score_embeddings(*half, Q, method), wide)
    matrix = (I @ T.T).half()
    assert torch.equal(score(matrix, Q, method), score(matrix.float(), Q, method))
    monkeypatch.setattr(images, "scores_by_images", lambda *given: None)
    assert_close(score(P, Q, method), whole, **near)


@pytest.mark.parametrize("method", ["wpmi", "soft_wpmi", "soft_correlation"])
def test_memory_is_kept_and_does_not_matter(method, monkeypatch):
    """The same numbers, bit by bit, from as much memory as a block of images needs."""
    monkeypatch.setattr(images, "IMAGES_AT_ONCE", 64)
    monkeypatch.setattr("neuronym.similarity.softened.IMAGES_AT_ONCE", 64)
    I, T, Q = inputs(torch.float32, n=431, k=13, m=1009, d=8)
    whole, options = score_embeddings(I, T, Q, method, memory=2**30), {}
    memory = 431 * 1009 * 4 // 2
    with Held() as held:
        some = score_embeddings(I, T, Q, method, memory=memory, **options)
    assert torch.equal(some, whole)
    assert held.most <= memory + 3 * whole.nbytes


def test_what_must_be_put_aside_may_not_fit(by_images):
    I, T, Q = inputs(torch.float32, n=N, k=K, m=M)
    top = Q.topk(N, dim=0).indices.T.int().contiguous()
    given = FactoredMatrix(I, T), torch.arange(N), top, 6.0, lambda share: (1, 1e-7), [K], 1.0
    assert images.scores_by_images(*given, 0) is None
    assert images.scores_by_images(*given, 4 * K * M) is not None


@pytest.mark.parametrize("method", ["wpmi", "soft_wpmi", "soft_correlation"])
@pytest.mark.parametrize("bad", ["P", "Q"])
def test_bad_input_is_refused(method, bad, by_images):
    I, T, Q = inputs(torch.float32, n=N, k=K, m=M)
    P = I @ T.T
    {"P": P, "Q": Q}[bad][3, 2] = torch.nan
    with pytest.raises(ValueError, match=f"{bad} must be finite, got nan at image 3"):
        score(P, Q, method)
    steep = {"slope": 1e20} if method == "soft_correlation" else {"a": 1e20}
    with pytest.raises(ValueError, match="times P overflows float32"):
        score(1e30 * (I @ T.T), inputs(torch.float32, n=N, k=K, m=M)[2], method, **steep)
