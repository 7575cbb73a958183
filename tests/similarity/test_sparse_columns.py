"""Activations kept by what is not 0 are scored as the same activations held dense."""

from __future__ import annotations

import inspect

import pytest
import torch

from neuronym.similarity import sparse_columns
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score, SIMILARITIES
from neuronym.similarity.sparse_columns import from_rows, score_blocks, score_units, SparseColumns

N, K, M, d = 60, 23, 11, 6


def dense(seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    Q = torch.randn(N, K, generator=g) * (torch.rand(N, K, generator=g) < 0.2)
    Q[:, 4] = 0  # dead
    Q[:, 5] = 1.5  # constant
    Q[:, 6] = torch.rand(N, generator=g)  # active everywhere
    return Q


def sparse(Q: torch.Tensor, chunk: int = 17) -> SparseColumns:
    parts = []
    for start in range(0, len(Q), chunk):
        images, units = Q[start : start + chunk].nonzero(as_tuple=True)
        parts.append((images + start, units.int(), Q[images + start, units]))
    return from_rows(parts, *Q.shape)


def embeddings() -> FactoredMatrix:
    g = torch.Generator().manual_seed(9)
    I, T = (torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1) for n in (N, M))
    return FactoredMatrix(I, T)


@pytest.mark.parametrize("chunk", [1, 17, N])
def test_columns_and_images_are_those_of_the_dense_form(chunk):
    Q = dense()
    S = sparse(Q, chunk)
    assert S.shape == (N, K) and len(S) == N and S.dtype == torch.float32
    assert S.nbytes == 8 * int((Q != 0).sum()) + 8 * (K + 1)
    for units in (slice(None), slice(3, 9), [6, 0, 0, 22], torch.tensor([4, 5]), torch.arange(K) > 10, 7, []):
        assert torch.equal(S[:, units], Q[:, units])
    again = torch.randint(N, (N,), generator=torch.Generator().manual_seed(4))
    for images in (slice(5, 40), [59, 3, 7], torch.randperm(N), torch.arange(N) % 2 == 0, [1, 1, 0], again):
        assert torch.equal(S[images][:, :], Q[images])
    blocks = list(S.blocks(memory=4 * (N + 2) * 5, beside=2))
    assert [some.stop - some.start for some, _ in blocks] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([q for _, q in blocks], 1), Q)


@pytest.mark.parametrize("method", list(SIMILARITIES))
@pytest.mark.parametrize("memory", [60_000, 2**22])
def test_every_function_scores_it_as_the_dense_form(method, memory, monkeypatch):
    monkeypatch.setattr(sparse_columns, "BLOCKED", 30)  # small blocks beside what functions need
    Q, P = dense(), embeddings()
    options = {"top_k": 9} if "top_k" in inspect.signature(SIMILARITIES[method]).parameters else {}
    options |= {"top_fraction": 0.2} if method == "rank_reorder" else {}
    expected = score(P, Q, method, **options)
    found = list(score_blocks(P, sparse(Q), method, memory=memory, **options))
    torch.testing.assert_close(torch.cat([scores for _, _, scores in found]), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.cat([q for _, q, _ in found], 1), Q)
    assert (len(found) > 1) == (memory == 60_000)
    given = torch.Generator().manual_seed(3)
    again = torch.cat(
        [s for _, _, s in score_blocks(P.I @ P.T.T, sparse(Q), method, generator=given, **options)]
    )
    same = score(P.I @ P.T.T, Q, method, generator=torch.Generator().manual_seed(3), **options)
    torch.testing.assert_close(again, same, rtol=1e-4, atol=1e-5)


def test_a_prior_runs_over_all_units_whether_scores_are_kept_or_not(monkeypatch):
    monkeypatch.setattr(sparse_columns, "BLOCKED", 30)
    Q, P = dense(), embeddings()
    for lam in (0, 0.6, 1):
        expected = score(P, Q, "wpmi", lam=lam, top_k=9)
        for held in (4 * K * M, 0):
            monkeypatch.setattr(sparse_columns, "HELD", held / 60_000)
            found = [s for _, _, s in score_blocks(P, sparse(Q), "wpmi", memory=60_000, lam=lam, top_k=9)]
            assert len(found) > 1
            torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["soft_wpmi", "wpmi", "correlation"])
def test_some_units_are_scored_beside_all(method, monkeypatch):
    monkeypatch.setattr(sparse_columns, "BLOCKED", 30)
    Q, P, units = dense(), embeddings(), [22, 0, 4, 9]
    options = {} if method == "correlation" else {"top_k": 9}
    expected = score(P, Q, method, **options)[units]
    for q in (Q, sparse(Q)):
        found = score_units(P, q, method, units, memory=60_000, **options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(KeyError, match="no similarity function 'cosine'"):
        list(score_blocks(embeddings(), sparse(dense()), "cosine"))
    with pytest.raises(ValueError, match="has no option 'top_k'"):
        list(score_blocks(embeddings(), sparse(dense()), "correlation", top_k=3))
    with pytest.raises(ValueError, match="too small for these sizes"):
        list(score_blocks(embeddings(), sparse(dense()), "soft_wpmi", memory=100))
