"""Scoring functions of candidates: literal loops from the formulas, as shipped and corrected, ties, and bad
input.
"""

from __future__ import annotations

import math

import pytest
import torch

from neuronym.describe.scoring import best, distinct_best, NEGATIVE, ranks, score_candidates, SCORES, TIES

NAN = math.nan
SIZES = [(1, 1), (1, 4), (4, 7), (7, 3), (5, 13)]  # C candidates, n pictures; fewer and more than beta


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(C: int, n: int, seed: int, values: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations with many ties, a fifth of the pictures absent, and cosines of both signs."""
    activations = torch.randint(0, values, (C, n), generator=dice(seed)).double()
    activations[torch.rand(C, n, generator=dice(seed + 1)) < 0.2] = NAN
    if C > 4:
        activations[2] = NAN  # one without any picture
    return activations, torch.rand(C, n, generator=dice(seed + 2), dtype=torch.float64) * 1.6 - 0.6


# --- the formulas, literally


def literal_ranks(activations: list[list[float]], shared: bool) -> list[list[float]]:
    """Rank of each picture, candidate by candidate; absent pictures have none."""
    pictures = [
        (a, c, j) for c, row in enumerate(activations) for j, a in enumerate(row) if not math.isnan(a)
    ]
    place = {}
    for rank, (_, c, j) in enumerate(sorted(pictures, key=lambda one: (-one[0], one[1], one[2]))):
        place[c, j] = rank
    if shared:
        place = {
            (c, j): math.fsum(place[x, y] for b, x, y in pictures if b == a)
            / sum(b == a for b, _, _ in pictures)
            for a, c, j in pictures
        }
    return [[place.get((c, j), NAN) for j in range(len(row))] for c, row in enumerate(activations)]


def literal(activations, cosines, how, beta, top, negative, ties) -> list[float]:
    C, shipped = len(activations), negative == "as_shipped"
    every = literal_ranks(activations, ties == "shared")
    R = [sorted(r for r in row if not math.isnan(r)) for row in every]
    pictures = sum(map(len, R))

    def lower_is_better(kind):
        found = []
        for some in R:
            some = some[:beta] if kind == "topk_sq_mean" else some
            if not some:
                found.append(C + 1 if shipped else pictures if kind in ("mean", "median") else pictures**2)
            elif kind == "median":
                found.append((some[(len(some) - 1) // 2] + some[len(some) // 2]) / 2)
            else:
                found.append(math.fsum(r if kind == "mean" else r * r for r in some) / len(some))
        return found

    if how in ("mean", "median", "sq_mean", "topk_sq_mean"):
        return [-value for value in lower_is_better(how)]
    value = lower_is_better("topk_sq_mean")
    if ties == "shared":
        position = [sum(other < mine for other in value) for mine in value]
    else:
        order = sorted(range(C), key=lambda c: (value[c], c))
        position = [order.index(c) for c in range(C)]
    scores = []
    for c in range(C):
        mine = []
        for j, a in enumerate(activations[c]):
            if math.isnan(a):
                continue
            stronger = sum(b > a for row in activations for b in row)
            if (stronger if ties == "shared" else every[c][j]) < top:
                mine.append(cosines[c][j])
        product, weight = math.fsum(mine) / len(mine) if mine else -1, C - position[c]
        if not mine and not shipped:
            scores.append(-2 - position[c])
        elif how == "image_products":
            scores.append(product)
        else:
            scores.append(product / weight if product < 0 and not shipped else product * weight)
    return scores


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("negative", NEGATIVE)
@pytest.mark.parametrize("how", SCORES)
def test_scores_are_the_literal_formulas(how, negative, ties):
    for seed, (C, n) in enumerate(SIZES):
        activations, cosines = case(C, n, 10 * seed)
        for beta, top in ((5, 10), (2, 3)):
            found = score_candidates(
                activations, cosines, how, beta=beta, top=top, negative=negative, ties=ties
            )
            expected = literal(activations.tolist(), cosines.tolist(), how, beta, top, negative, ties)
            assert found.tolist() == pytest.approx(expected, abs=1e-12), (C, n, beta, top)
            assert found.dtype == torch.float64 and found.isfinite().all()


@pytest.mark.parametrize("ties", TIES)
def test_ranks_are_the_literal_places(ties):
    for seed, (C, n) in enumerate(SIZES):
        activations, _ = case(C, n, 10 * seed)
        expected = torch.tensor(literal_ranks(activations.tolist(), ties == "shared"), dtype=torch.float64)
        torch.testing.assert_close(ranks(activations, ties), expected, rtol=0, atol=1e-12, equal_nan=True)
    assert ranks(torch.tensor([[5.0, 7.0], [9.0, 7.0]])).tolist() == [[3, 1.5], [0, 1.5]]
    assert ranks(torch.tensor([[5.0, 7.0], [9.0, 7.0]]), "as_shipped").tolist() == [[3, 1], [0, 2]]


# --- as shipped against corrected


def test_candidates_without_a_picture_in_the_top_are_no_longer_upside_down():
    activations = torch.tensor([[1.0, 2.0], [9.0, 8.0], [5.0, 6.0], [3.0, 4.0]])  # true order: 1, 2, 3, 0
    cosines = torch.full((4, 2), 0.5)

    def order(**options):
        return score_candidates(activations, cosines, top=2, **options).sort(descending=True).indices.tolist()

    assert order(negative="as_shipped") == [1, 0, 3, 2]
    assert order() == [1, 2, 3, 0]
    assert score_candidates(activations, cosines, top=2, negative="as_shipped").tolist() == [-1, 2, -3, -2]
    products = score_candidates(activations, cosines, "image_products", top=2, negative="as_shipped")
    assert products.tolist() == [-1, 0.5, -1, -1]


def test_of_equally_unlike_candidates_the_one_that_excites_more_wins():
    activations, cosines = torch.tensor([[9.0, 1.0], [8.0, 2.0]]), torch.full((2, 2), -0.3)
    assert score_candidates(activations, cosines, beta=1, negative="as_shipped").argmax() == 1
    assert score_candidates(activations, cosines, beta=1).argmax() == 0
    with_one = score_candidates(torch.tensor([[9.0], [1.0]]), torch.tensor([[-1.0], [0.9]]), top=1)
    assert with_one[0] > with_one[1], "a picture in the top is more than none, however unlike"


@pytest.mark.parametrize("how", SCORES)
def test_a_candidate_without_pictures_is_last_and_as_shipped_may_win(how):
    activations, cosines = torch.rand(5, 6, generator=dice()), torch.rand(5, 6, generator=dice(1))
    activations[3] = NAN
    assert score_candidates(activations, cosines, how).argmin() == 3
    shipped = score_candidates(activations, cosines, how, negative="as_shipped")
    if how in ("mean", "median", "sq_mean", "topk_sq_mean"):
        assert shipped[3] == -6
        assert how == "mean" or how == "median" or shipped.argmax() == 3, "C + 1 is little beside squares"


def test_a_unit_that_nothing_excites_prefers_no_candidate():
    dead, cosines = torch.zeros(3, 4), torch.full((3, 4), 0.5)
    for how in SCORES:
        assert score_candidates(dead, cosines, how).unique().numel() == 1
        if how != "image_products":
            assert score_candidates(dead, cosines, how, ties="as_shipped").argmax() == 0
    near = cosines.clone()
    near[1] = 0.6
    assert score_candidates(dead, near).argmax() == 1


def test_candidates_with_equal_squares_share_a_position_and_as_shipped_follow_each_other():
    activations = 9 - torch.tensor(
        [[0.0, 2.0], [4.0, 7.0], [1.0, 8.0], [3.0, 5.0], [6.0, 9.0]]
    )  # 16 + 49 = 1 + 64
    cosines = torch.full((5, 2), 0.5)
    for ties, expected in (("shared", [2.5, 1.5, 1.5, 2, 0.5]), ("as_shipped", [2.5, 1.5, 1, 2, 0.5])):
        assert score_candidates(activations, cosines, ties=ties).tolist() == expected
        assert (
            literal(activations.tolist(), cosines.tolist(), "topk_compare", 5, 10, "below", ties) == expected
        )


# --- what must not matter


@pytest.mark.parametrize("how", SCORES)
def test_order_and_scale_do_not_matter(how):
    activations, cosines = case(7, 9, 3)
    found = score_candidates(activations, cosines, how)
    turn, move = torch.randperm(7, generator=dice(4)), torch.randperm(9, generator=dice(5))
    turned = score_candidates(activations[turn][:, move] * 8 - 3, cosines[turn][:, move], how)
    torch.testing.assert_close(turned, found[turn], rtol=1e-12, atol=1e-12)
    assert found.unique().numel() > 3
    single = score_candidates(activations.float(), cosines.float(), how)
    torch.testing.assert_close(single, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", SCORES)
def test_what_absent_pictures_hold_does_not_matter(how):
    activations, cosines = case(5, 6, 8)
    wild = cosines.masked_fill(activations.isnan(), NAN)
    assert score_candidates(activations, cosines, how).equal(score_candidates(activations, wild, how))
    wider = (
        torch.cat([activations, torch.full((5, 2), NAN)], 1),
        torch.cat([cosines, torch.full((5, 2), 7.0)], 1),
    )
    torch.testing.assert_close(score_candidates(*wider, how), score_candidates(activations, cosines, how))


def test_inputs_are_left_as_they_were():
    activations, cosines = case(5, 6, 8)
    before = activations.clone(), cosines.clone()
    for how in SCORES:
        score_candidates(activations, cosines, how)
    assert torch.equal(activations.nan_to_num(-1), before[0].nan_to_num(-1)) and torch.equal(
        cosines, before[1]
    )


# --- the labels


def test_best_are_padded_with_blanks_and_ties_go_by_order():
    texts, scores = ["a", "b", "c", "d"], torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert best(texts, scores) == [("b", 3), ("c", 3), ("d", 2)] and best(texts, scores, 1) == [("b", 3)]
    found = best(["x"], torch.tensor([-0.5]), 3)
    assert found[0] == ("x", -0.5) and [text for text, _ in found[1:]] == ["", ""]
    assert all(math.isnan(score) for _, score in found[1:])
    for how in SCORES:
        nothing = score_candidates(torch.zeros(0, 4), torch.zeros(0, 4), how)
        assert nothing.shape == (0,) and [text for text, _ in best([], nothing, 2)] == ["", ""]


def test_several_labels_are_apart_from_each_other():
    angles = torch.tensor([0.0, 10.0, 50.0, 60.0, 120.0]).deg2rad()
    T = torch.stack([angles.cos(), angles.sin()], 1)  # cosine .81 is 35.9 degrees
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert distinct_best(scores, T) == [0, 2, 4]
    assert distinct_best(scores, T, most=2) == [0, 2] and distinct_best(scores.flip(0), T) == [4, 3, 1]
    assert distinct_best(scores, T, limit=1.0) == [0, 1, 2] and distinct_best(scores, T, limit=-0.4) == [0, 4]
    for seed in range(5):
        T = torch.nn.functional.normalize(torch.randn(9, 3, generator=dice(seed), dtype=torch.float64), dim=1)
        scores, rows, kept = torch.randn(9, generator=dice(seed + 50)), T.tolist(), []
        for i in sorted(range(9), key=lambda i: -scores[i].item()):
            cosines = [math.fsum(x * y for x, y in zip(rows[i], rows[j])) for j in kept]
            if len(kept) < 3 and all(cosine <= 0.3 for cosine in cosines):
                kept.append(i)
        assert distinct_best(scores, T, limit=0.3) == kept
    assert distinct_best(scores[:0], T[:0]) == []


# --- bad input

A, X = torch.zeros(3, 4), torch.zeros(3, 4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: score_candidates(A, X, "topk_compar"),
            KeyError,
            "no scoring function 'topk_compar'; nearest: topk_comp",
        ),
        (
            lambda: score_candidates(A, X, negative="above"),
            KeyError,
            "no negative 'above'; .*known: below, as_shipped",
        ),
        (lambda: score_candidates(A, X, ties="mean"), KeyError, "no ties 'mean'"),
        (
            lambda: score_candidates(A),
            ValueError,
            "topk_compare compares pictures with .* examples, got no cosines",
        ),
        (lambda: score_candidates(A, X[:2]), ValueError, r"cosines like activations \[3, 4\], got \[2, 4\]"),
        (
            lambda: score_candidates(A, X + 20),
            ValueError,
            "cosines lie within -1 and 1, got 20.0; use embeddings",
        ),
        (lambda: score_candidates(A, X * NAN), ValueError, "cosines lie within -1 and 1, got nan"),
        (
            lambda: score_candidates(A[0], X),
            ValueError,
            r"activations \[C, n\] of one unit, got torch.float32 \[4\]",
        ),
        (lambda: score_candidates(A[:, :0], X[:, :0], "mean"), ValueError, r"got torch.float32 \[3, 0\]"),
        (
            lambda: score_candidates(A.index_fill(1, torch.tensor([2]), math.inf), X),
            ValueError,
            "finite, or NaN for no picture, got inf at candidate 0, picture 2",
        ),
        (lambda: score_candidates(A, X, beta=0), ValueError, "beta must be a positive whole number, got 0"),
        (lambda: score_candidates(A, X, top=1.5), ValueError, "top must be a positive whole number, got 1.5"),
        (lambda: best(["a"], torch.zeros(2)), ValueError, r"one score for each of 1 texts, got scores \[2\]"),
        (
            lambda: distinct_best(torch.zeros(2), A),
            ValueError,
            r"scores \[C\] and T \[C, d\] .* got \[2\] and \[3, 4\]",
        ),
        (
            lambda: distinct_best(torch.zeros(3), A, limit=2),
            ValueError,
            "limit must be a finite number from -1 to 1, got 2",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
