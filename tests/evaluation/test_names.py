"""Evaluation against literal loops in float64, and against what must come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronym.evaluation.naming_accuracy import name_similarity, rank_of_truth
from neuronym.evaluation.presence import against_oracle, presence_oracle

NAMES = [f"c{i}" for i in range(11)]


def test_rank_of_truth_is_the_literal_count():
    scores = torch.randn(7, 11, generator=torch.Generator().manual_seed(1)).double()
    truth = [NAMES[i] for i in (3, 0, 10, 5, 5, 2, 8)]
    found = rank_of_truth(scores, NAMES, truth)
    ranks = [1 + sum(float(s) > float(row[NAMES.index(t)]) for s in row) for row, t in zip(scores, truth)]
    assert found["mean_rank"] == pytest.approx(np.mean(ranks)) and found["median_rank"] == sorted(ranks)[3]
    assert found["top1"] == np.mean([r == 1 for r in ranks]) and found["top5"] == np.mean(
        [r <= 5 for r in ranks]
    )


def test_auroc_counts_pairs():
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0.7, 0], [0, 0.75]])
    found = rank_of_truth(scores, ["a", "b"], ["a", "b", "a", "b"])  # right, wrong, right, right
    assert found["auroc"] == pytest.approx(
        1 / 3
    )  # of the pairs (.9, .8), (.7, .8), (.75, .8) one is in order


def test_units_without_a_name_in_the_set_are_counted_out():
    found = rank_of_truth(torch.eye(3), ["a", "b", "c"], ["a", "nothing", "c"])
    assert found["units"] == 2 and found["top1"] == 1
    with pytest.raises(ValueError, match="none of the 1 true names"):
        rank_of_truth(torch.eye(1, 3), ["a", "b", "c"], ["z"])
    with pytest.raises(ValueError, match="one true name per unit, got 1"):
        rank_of_truth(torch.eye(3), ["a", "b", "c"], ["a"])


def test_ties_do_not_flatter():
    assert rank_of_truth(torch.zeros(2, 3), ["a", "b", "c"], ["c", "c"])["mean_rank"] == 3


def test_name_similarity_stands_beside_its_controls():
    rows = torch.eye(5)
    encode = lambda texts: torch.stack([rows[int(t)] for t in texts])
    found = name_similarity(encode, list("01234"), list("01234"), generator=torch.Generator().manual_seed(0))
    assert found["cosine"] == 1 and found["shuffled"] < 0.5 and found["constant"] == pytest.approx(0.2)


def test_presence_oracle_is_pearson():
    g = torch.Generator().manual_seed(2)
    Q, truth = torch.randn(23, 7, generator=g), torch.rand(23, 11, generator=g) > 0.6
    literal = np.corrcoef(Q.double().numpy().T, truth.double().numpy().T)[:7, 7:]
    np.testing.assert_allclose(presence_oracle(Q, truth).numpy(), literal, rtol=1e-10, atol=1e-12)


def test_dead_units_and_constant_concepts_correlate_with_nothing():
    Q, truth = torch.zeros(23, 7), torch.ones(23, 11, dtype=torch.bool)
    assert presence_oracle(Q, truth).eq(0).all()


def test_against_oracle():
    oracle = torch.tensor([[0.9, 0.1], [0.2, 0.4]])
    found = against_oracle(["a", "a"], oracle, ["a", "b"])
    assert (
        found["same_as_oracle"] == 0.5
        and found["correlation"] == pytest.approx(0.55)
        and found["oracle_correlation"] == pytest.approx(0.65)
    )


def test_the_median_of_an_even_number_is_between_the_middle_two():
    found = rank_of_truth(torch.tensor([[3.0, 2, 1]] * 4), ["a", "b", "c"], ["a", "a", "c", "c"])
    assert found["median_rank"] == 2
