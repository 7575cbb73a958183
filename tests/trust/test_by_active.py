"""What is active, in blocks of units, is trusted as the same activations held dense."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from neuronym.dissect import best_by_layer
from neuronym.similarity import sparse_columns
from neuronym.similarity.labels import unit_notes
from neuronym.trust import counterfactual, null
from neuronym.trust.polysemy import clusters, heldout_correlations, kinds_of_labels, labels_by_cluster
from neuronym.trust.probability import evidence, ratios
from neuronym.trust.quick import label_trust
from neuronym.trust.signals import correctness, signals
from tests.similarity.test_sparse_columns import dense, embeddings, K, M, N, sparse

MEMORY = 2**20
LABELS = [unit % M for unit in range(K)]


@pytest.fixture(autouse=True)
def few_units_a_block(monkeypatch):
    monkeypatch.setattr(sparse_columns, "COPIED", MEMORY // (4 * N * 5))
    assert len(list(sparse_columns.unit_blocks(sparse(dense()), MEMORY))) == 5


def both() -> tuple[torch.Tensor, sparse_columns.SparseColumns]:
    return dense(), sparse(dense())


def alike(*tables: pd.DataFrame, atol: float = 1e-6) -> None:
    assert_frame_equal(*tables, rtol=1e-4, atol=atol, check_dtype=False)


@pytest.mark.parametrize("method", ["combined_correlation", "cos_similarity_cubed", "soft_correlation"])
def test_signals(method):
    given = {"draws": 40, "samples": 4, "splits": 3, "memory": MEMORY}
    tables = [
        signals(embeddings(), q, method, generator=torch.Generator().manual_seed(3), **given) for q in both()
    ]
    alike(*tables)
    assert tables[0]["unit"].tolist() == list(range(K)) and 0 < tables[0]["abstain"].sum()


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("method", ["soft_wpmi", "wpmi"])
def test_functions_that_compare_all_units(method, held, monkeypatch):
    monkeypatch.setattr(sparse_columns, "BLOCKED", MEMORY // (4 * (N + 3 * M) * 5))  # five units a block
    monkeypatch.setattr(null, "HELD", 1.0 if held else 0.0)
    monkeypatch.setattr(sparse_columns, "HELD", 1.0 if held else 0.0)
    given = {"draws": 25, "samples": 4, "splits": 3, "memory": MEMORY, "options": {"top_k": 9}}
    tables = [
        signals(embeddings(), q, method, generator=torch.Generator().manual_seed(3), **given) for q in both()
    ]
    alike(*tables, atol=1e-5)
    assert tables[0]["p"].nunique() > 5


@pytest.mark.parametrize("method", ["soft_wpmi", "cos_similarity"])
def test_meanings(method, monkeypatch):
    monkeypatch.setattr(sparse_columns, "BLOCKED", MEMORY // (4 * (N + 3 * M) * 5))
    P, given = embeddings(), {"memory": MEMORY}
    I = P.I.clone()
    I[: N // 2, 0] += 3  # two kinds of images
    found = []
    for q in both():
        dice = torch.Generator().manual_seed(2)
        assignment, images = clusters(q, torch.nn.functional.normalize(I, dim=1), generator=dice)
        by_cluster = labels_by_cluster(P, q, assignment, images, method, **given)
        found.append((assignment, images, by_cluster, kinds_of_labels(P, q, by_cluster, method, **given)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][0].max() > 0 and found[0][3] == found[1][3]
    for mine, other in zip(found[0][2], found[1][2]):
        assert [m[0] for m in mine] == [m[0] for m in other]
        assert [x for m in mine for x in m[1:]] == pytest.approx([x for m in other for x in m[1:]], abs=1e-4)


def test_what_is_seen_of_labels():
    P = embeddings()
    alike(*(ratios(P, q, LABELS, MEMORY) for q in both()))
    alike(*(evidence(P, q, LABELS, MEMORY) for q in both()))
    first, second = (label_trust(P, q, LABELS, named=[True] * (K - 1) + [False]) for q in both())
    assert first == pytest.approx(second, abs=1e-6) and second[-1] == 0 < second.max()


def test_rightness_and_other_images():
    present = torch.rand(N, M, generator=torch.Generator().manual_seed(1)) < 0.3
    for names in (None, LABELS):
        alike(*(correctness(LABELS, present, q, names, memory=MEMORY) for q in both()))
    lists = {"single": [[m] for m in LABELS], "negative": [[m, 0] if m % 2 else [] for m in LABELS]}
    alike(*(heldout_correlations(present, q, lists, MEMORY) for q in both()))


def test_changes_within_pairs():
    pairs = counterfactual.pairs(3)
    _, rows = counterfactual.drawn_scenes([*pairs.before, *pairs.after])
    comes = counterfactual.comings(pairs, ["red", "night", "large", "left", "star", "two"])
    labels = [unit % 6 for unit in range(K)]
    tables = [counterfactual.unit_changes(pairs, q, rows, comes, labels, MEMORY) for q in both()]
    alike(*tables)
    dQ, dC = counterfactual.changes(pairs, dense(), rows, ["red", "night", "large", "left", "star", "two"])
    scores = counterfactual.causal_scores(dQ, dC)
    assert tables[1]["causal"].tolist() == pytest.approx(scores[range(K), labels].tolist())
    assert tables[1]["best"].tolist() == pytest.approx(scores.amax(1).tolist())


def test_notes_and_names():
    alike(*map(unit_notes, both()))
    Q = {"a": both()[0], "b": both()[1]}
    for method in ("cos_similarity", "soft_wpmi", "rank_reorder"):
        found = best_by_layer(embeddings(), Q, method)
        assert list(found) == ["a", "b"] and torch.equal(found["a"], found["b"])
