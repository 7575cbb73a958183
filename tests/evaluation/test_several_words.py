"""Labels of several words: planted sums and absences are found, single units keep their label, and chance
does not win.
"""

from __future__ import annotations

import pytest
import torch

from neuronym.common.statistics import correlation
from neuronym.evaluation.several_words import bootstrap_better, held_out_gain, likely_concepts, several_words

N, M = 600, 12
CONCEPTS = [f"c{m}" for m in range(M)]


def planted(seed=0):
    g = torch.Generator().manual_seed(seed)
    present = (torch.rand(N, M, generator=g) < 0.3).float()
    noise = 0.3 * torch.randn(N, 5, generator=g)
    Q = torch.stack(
        [
            present[:, 0],
            present[:, 1] + present[:, 2],
            present[:, 3] - 0.8 * present[:, 4],
            -present[:, 5],
            torch.zeros(N),
        ],
        1,
    )
    return present, Q + noise, torch.tensor([0, 1, 3, 6, 7])


def test_planted_words_are_found_with_their_signs():
    present, Q, labels = planted()
    found = several_words(present, Q, labels, CONCEPTS)
    assert found.better.tolist()[:4] == [False, True, True, True]
    assert found.texts[0] == "c0" and set(found.texts[1].split(" + ")) == {"c1", "c2"}
    assert found.texts[2] == "c3 - c4" and found.texts[3] == "not c5"
    other, q, _ = planted(1)  # other images
    alone, several = held_out_gain(found, labels, other, q)
    assert (several[1:4] > alone[1:4] + 0.1).all() and alone[0] == several[0]


def test_noise_rarely_gets_several_words():
    g = torch.Generator().manual_seed(3)
    present, Q = (torch.rand(300, M, generator=g) < 0.3).float(), torch.randn(300, 60, generator=g)
    labels = torch.stack([correlation(present, q[:, None].expand(-1, M)) for q in Q.T]).argmax(1)
    found = several_words(present, Q, labels, CONCEPTS)
    assert float(found.better.double().mean()) <= 0.1


def test_never_more_words_than_asked_for():
    present, Q, labels = planted()
    whole = present @ torch.rand(M, 4, generator=torch.Generator().manual_seed(0))
    for most in (1, 2, 3):
        found = several_words(present, whole, [0, 1, 2, 3], CONCEPTS, most)
        assert int((found.chosen >= 0).sum(1).max()) <= most
    assert all("+" not in text for text in several_words(present, Q, labels, CONCEPTS, 1).texts)


def test_scale_of_units_does_not_matter():
    present, Q, labels = planted()
    assert (
        several_words(present, 1e4 * Q - 7, labels, CONCEPTS).texts
        == several_words(present, Q, labels, CONCEPTS).texts
    )


def test_bootstrap_is_the_literal_one():
    present, Q, _ = planted()
    first, second = present[:50, :5], present[:50, 5:10]
    found = bootstrap_better(first, second, Q[:50], samples=40, generator=torch.Generator().manual_seed(2))
    drawn = torch.randint(50, (40, 50), generator=torch.Generator().manual_seed(2))
    worse = sum(
        (correlation(first[i], Q[:50][i]) <= correlation(second[i], Q[:50][i]) + 1e-12).double()
        for i in drawn
    )
    torch.testing.assert_close(found, (1 + worse) / 41)
    assert bootstrap_better(first, first, Q[:50], samples=9).tolist() == [1] * 5


def test_likely_concepts_are_the_extreme_ones():
    scores = torch.tensor([[5.0, 1, 0, 2, -9], [5, 0, 3, 2, 1]])
    assert likely_concepts(scores, 1).tolist() == [0, 1, 4]
    assert likely_concepts(scores, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": [0]}, "one label for each of 5 units .*, got 1 labels"),
        ({"concepts": CONCEPTS[1:]}, "each of 11 concepts"),
        ({"level": 2}, "level must be a finite number from 0 to 1"),
        ({"most": 0}, "most must be a positive whole number"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(change, message):
    present, Q, labels = planted()
    with pytest.raises(ValueError, match=message):
        several_words(**{"present": present, "Q": Q, "labels": labels, "concepts": CONCEPTS} | change)
