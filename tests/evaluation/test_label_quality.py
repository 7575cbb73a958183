"""Precision and diversity of labels: against the literal counts, planted truths, labels that say nothing."""

from __future__ import annotations

import math

import pytest
import torch

from neuronym.evaluation.label_quality import diversity, held_out_p, label_precision, label_quality

K, M = 40, 23


def case(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(K, M, generator=g), torch.randint(M, (K,), generator=g)


def test_p_is_the_literal_count():
    held, labels = case()
    found = held_out_p(held, labels).tolist()
    for k in range(K):
        others = [j for j in range(K) if labels[j] != labels[k]]
        better = sum(float(held[k, labels[j]]) >= float(held[k, labels[k]]) for j in others)
        assert found[k] == pytest.approx((1 + better) / (1 + len(others)))


def test_own_labels_pass_and_dealt_ones_do_not():
    own = torch.arange(K) % M
    held = 0.01 * torch.rand(K, M, generator=torch.Generator().manual_seed(0))
    held[torch.arange(K), own] = 1
    assert label_precision(held, own) == 1
    assert label_precision(held, own.roll(1)) < 0.2
    random, labels = case(3)
    assert label_precision(random, labels) < 0.2  # about 5 %


def test_one_label_for_all_passes_for_none():
    held, _ = case()
    held[:, 7] = 2  # it predicts every unit better than anything else
    labels = torch.full((K,), 7)
    assert label_precision(held, labels) == 0
    assert diversity(labels) == {"distinct_labels": 1, "distinct_share": 1 / K, "entropy": 0}


def test_order_of_units_and_concepts_does_not_matter():
    held, labels = case()
    units, concepts = torch.randperm(K), torch.randperm(M)
    whole = held_out_p(held, labels)
    assert torch.equal(held_out_p(held[units], labels[units]), whole[units])
    assert torch.equal(held_out_p(held[:, concepts], concepts.argsort()[labels]), whole)


def test_small_layers_cannot_tell():
    held, labels = case()
    assert math.isnan(label_precision(held[:19], labels[:19])) and not math.isnan(
        label_precision(held[:20], labels[:20])
    )
    assert not math.isnan(label_precision(held[:5], labels[:5], level=0.2))


def test_a_table_of_methods():
    held, labels = case()
    found = label_quality(held, {"a": labels.tolist(), "best": held.argmax(1)}, oracle="best")
    found = found.set_index("method")
    assert found.loc["best", "correlation"] == pytest.approx(float(held.amax(1).mean()))
    assert found.loc["a", "distinct_labels"] == len(set(labels.tolist()))
    share = [labels.tolist().count(m) / K for m in set(labels.tolist())]
    assert found.loc["a", "entropy"] == pytest.approx(-sum(x * math.log2(x) for x in share))
    assert (found["units"] == K).all()
    assert (found["oracle_distinct"] == found.loc["best", "distinct_labels"]).all()
    with pytest.raises(KeyError, match="no method to compare diversity with 'oracle'"):
        label_quality(held, {"a": labels})


def test_bad_input_is_refused_in_a_sentence():
    held, labels = case()
    with pytest.raises(ValueError, match="one label for each unit, got .40, 23. and 39 labels"):
        held_out_p(held, labels[1:])
    with pytest.raises(ValueError, match="level must be a finite number from 0 to 1"):
        label_precision(held, labels, 2)
