"""Compositional labels against all formulas there are, against the metrics, and against planted ones."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from neuronym.evaluation.formulas import _formula, evaluate, formula_text, Found, search
from neuronym.evaluation.metrics import active_images, METRICS
from neuronym.microworld.world import CLASSES, presence, scene

N, K, M = 157, 9, 7
BY = ("iou", "f1", "correlation")
WORDS = ["red", "blue", "circle", "square", "star", "large", "small"]


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed=0, n=N) -> tuple[torch.Tensor, torch.Tensor]:
    """Presence [N, M], and units [N, K] that answer to several concepts at once, beside noise."""
    g = generator(seed)
    present = torch.rand(n, M, generator=g) < torch.linspace(0.1, 0.6, M)
    Q = (
        present.double() @ torch.randn(M, K, generator=g).double()
        + 0.7 * torch.randn(n, K, generator=g).double()
    )
    return present, Q


# --- against all formulas


def leaves(formula) -> list[int]:
    """The concepts of a formula, from left to right."""
    return [formula] if isinstance(formula, int) else leaves(formula[1]) + leaves(formula[2])


def of_lists(formula, rows: list[list[bool]]) -> list[bool]:
    """On which images a formula is true, image by image."""

    def true(formula, row):
        if isinstance(formula, int):
            return row[formula]
        op, a, b = formula
        return {
            "and": true(a, row) and true(b, row),
            "or": true(a, row) or true(b, row),
            "and not": true(a, row) and not true(b, row),
        }[op]

    return [true(formula, row) for row in rows]


def literal_score(said: list[bool], q: list[float], active: list[bool], by: str) -> float:
    if by == "correlation":
        a, b = sum(q) / len(q), sum(said) / len(said)
        cov = sum((x - a) * (s - b) for x, s in zip(q, said))
        norms = (sum((x - a) ** 2 for x in q) * sum((s - b) ** 2 for s in said)) ** 0.5
        return cov / norms if norms > 1e-12 else 0.0
    both, one = sum(s and a for s, a in zip(said, active)), sum(s or a for s, a in zip(said, active))
    return 0.0 if not one else both / one if by == "iou" else 2 * both / (both + one)


def chains(length: int) -> list:
    """All formulas that join one concept after the other."""
    found = list(range(M))
    for _ in range(length - 1):
        found = [(op, left, c) for left, op, c in product(found, ("and", "or", "and not"), range(M))]
    return found


def kept(
    present: torch.Tensor, length: int, Q: torch.Tensor, by: str, active: float
) -> list[dict[tuple, float]]:
    """For each unit the score of every set of images that a formula of this length tells: {images: score}.

    A formula tells nothing that is true of no image, or of the same images as what it joins.
    """
    rows, M = present.tolist(), present.shape[1]
    concepts = [tuple(of_lists(c, rows)) for c in range(M)]
    made = {c: images for c, images in enumerate(concepts) if any(images)}
    for _ in range(length - 1):
        longer = {
            (op, left, c): tuple(of_lists((op, left, c), rows))
            for left, op, c in product(made, ("and", "or", "and not"), range(M))
            if c not in leaves(left)
        }
        made = {
            (op, left, c): images
            for (op, left, c), images in longer.items()
            if any(images) and images not in (made[left], concepts[c])
        }
    truth = active_images(Q, active).T.tolist()
    return [
        {images: literal_score(images, q, t, by) for images in made.values()}
        for q, t in zip(Q.T.tolist(), truth)
    ]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("active", [0.05, 0.3])
@pytest.mark.parametrize("n, M, length", [(N, 7, 2), (157, 4, 3), (211, 4, 4)])
def test_a_wide_beam_finds_the_best_of_all_formulas(by, active, n, M, length):
    present, Q = inputs(1, n)
    present = present[:, -M:]
    for unit, scores in zip(
        search(present, Q, length, 400, by, active=active), kept(present, length, Q, by, active)
    ):
        formula, score = unit.by_length[length - 1]
        assert score == pytest.approx(max(scores.values()), rel=1e-10) and len(set(leaves(formula))) == length
        assert scores[tuple(evaluate(formula, present).tolist())] == pytest.approx(score, rel=1e-10)


@pytest.mark.parametrize("by", BY)
def test_scores_are_those_of_the_metrics(by):
    present, Q = inputs(3)
    Q = Q.round()  # ties at the cutoff
    found = search(present, Q, 3, 5, by, active=0.1)
    for length in range(3):
        said = torch.stack([evaluate(unit.by_length[length][0], present) for unit in found], 1)
        expected = METRICS[by](Q, said.double(), active=0.1)
        assert [unit.by_length[length][1] for unit in found] == pytest.approx(expected.tolist(), rel=1e-10)
    literal = [
        literal_score(evaluate(unit.formula, present).tolist(), q, a, by)
        for unit, q, a in zip(found, Q.T.tolist(), active_images(Q, 0.1).T.tolist())
    ]
    assert [unit.score for unit in found] == pytest.approx(literal, rel=1e-10)


def test_evaluate_is_the_literal_one():
    present, _ = inputs(4, 23)
    for formula in chains(2) + chains(3)[::7] + [("or", 1, ("and not", ("or", 2, 3), ("and", 4, 5)))]:
        assert evaluate(formula, present).tolist() == of_lists(formula, present.tolist())


# --- what must come out

PLANTED = [
    ("and", 0, 2),
    ("or", 0, 1),
    ("and not", 0, 3),
    ("or", ("or", 0, 1), 2),
    4,
    ("and not", ("and", 2, 5), 1),
    ("and", ("or", 3, 4), 0),
]

PARTS = ("or", ("and", 0, 2), 1)  # most of it is the 1


@pytest.mark.parametrize("by", BY)
def test_planted_formulas_come_back(by):
    present = torch.rand(900, M, generator=generator(8)) < 0.35
    truth = torch.stack([evaluate(f, present) for f in PLANTED], 1)
    Q = truth + 0.1 * torch.randn(truth.shape, generator=generator(9))
    for k, formula in enumerate(PLANTED):
        share = float(truth[:600, k].double().mean())
        [unit] = search(present[:600], Q[:600], by=by, active=share, units=[k])
        assert unit.formula == formula and unit.score > 0.9
        assert torch.equal(evaluate(unit.formula, present[600:]), truth[600:, k])
        assert len(unit.by_length) == 3 and unit.by_length[len(leaves(formula)) - 1] == (
            unit.formula,
            unit.score,
        )


def test_parts_that_score_low_need_a_wide_beam():
    present = torch.rand(900, M, generator=generator(8)) < 0.35
    truth = evaluate(PARTS, present)[:, None]
    share = float(truth.double().mean())
    wide, narrow = (search(present, truth.double(), beam=beam, active=share)[0] for beam in (60, 10))
    assert wide.formula == PARTS and wide.score == 1 and narrow.score < 0.8


def test_microworld_scenes():
    present = presence([scene(i) for i in range(700)], CLASSES)
    a, b, c = (CLASSES.index(word) for word in ("red", "large", "striped"))
    truth = (present[:, a] | present[:, c]) & ~present[:, b]
    Q = (truth + 0.15 * torch.randn(700, generator=generator()))[:, None]
    [unit] = search(present[:500], Q[:500], active=float(truth[:500].double().mean()), by="f1")
    assert torch.equal(evaluate(unit.formula, present[500:]), truth[500:])
    assert formula_text(unit.formula, CLASSES) == "(red OR striped) AND NOT large"


@pytest.mark.parametrize("by", BY)
def test_longer_formulas_must_pay(by):
    present, Q = inputs(5)
    found = search(present, Q, 4, 8, by, gain=0)
    for gain in (0.01, 0.05, 0.3, 2):
        for unit, free in zip(search(present, Q, 4, 8, by, gain=gain), found):
            best, size = free.by_length[0], 1
            for n, (formula, score) in enumerate(free.by_length[1:], 2):
                if score > best[1] + gain * (n - size):
                    best, size = (formula, score), n
            assert (unit.formula, unit.score) == best and unit.by_length == free.by_length
            assert gain < 2 or isinstance(unit.formula, int)
    assert any(len(leaves(unit.formula)) > 2 for unit in found)


@pytest.mark.parametrize("by", BY)
def test_what_must_not_matter_does_not(by):
    present, Q = inputs(6)
    base = search(present, Q, by=by, beam=4)
    for memory in (60_000, 90_000, 200_000):
        assert search(present, Q, by=by, beam=4, memory=memory) == base
    turned = search(present, Q.flip(1), by=by, beam=4)
    assert [f.formula for f in turned] == [f.formula for f in base[::-1]]
    assert [f.formula for f in search(present, 2 * Q - 9, by=by, beam=4)] == [f.formula for f in base]
    assert search(present, Q, by=by, beam=4, units=[5, 2]) == [base[5], base[2]]
    shorter = search(present, Q, 2, 4, by)
    assert [f.by_length for f in shorter] == [f.by_length[:2] for f in base]
    many = torch.rand(N, 31, generator=generator(1)) < 0.3  # blocks of 2 concepts, of 10, of all
    assert (
        search(many, Q, by=by, beam=1, memory=20_000)
        == search(many, Q, by=by, beam=1, memory=100_000)
        == search(many, Q, by=by, beam=1)
    )
    calls = []
    search(present, Q, by=by, memory=130_000, progress=lambda x, n, words: calls.append((n, words)) or x)
    assert calls[0][0] > 1


@pytest.mark.parametrize("by", BY)
def test_equal_concepts_and_orders_go_to_the_lower_index(by):
    present, Q = inputs(7)
    twice = torch.cat([present, present], 1)
    for memory in (200_000, 2**28):
        for found, base in zip(
            search(twice, Q, by=by, beam=12, memory=memory), search(present, Q, by=by, beam=12)
        ):
            assert (found.formula, found.by_length[:2]) == (base.formula, base.by_length[:2])
    for unit in search(present, Q, 2, by=by):
        formula, _ = unit.by_length[1]
        assert formula[0] == "and not" or formula[1] < formula[2]


@pytest.mark.parametrize(
    "chain, formula",
    [  # first concept, then 3 concept + (0 and, 1 or, 2 and not)
        ([2, 14, 11], ("and not", ("and not", 2, 3), 4)),
        ([5, 11, 3], ("and not", ("and", 1, 5), 3)),
        ([5, 4, 12, 6], ("and", ("and", ("or", 1, 5), 2), 4)),
        ([5, 12, 4, 10], ("or", ("or", ("and", 4, 5), 1), 3)),
    ],
)
def test_where_order_is_free_it_is_that_of_the_index(chain, formula):
    assert _formula(chain) == formula


@pytest.mark.parametrize("by", BY)
def test_dead_units_and_empty_concepts(by):
    present, Q = inputs(1)
    Q[:, 3] = 0.1
    present[:, 1], present[:, 4] = False, True
    found = search(present, Q, by=by)
    assert found[3] == Found(None, 0.0, ()) and formula_text(found[3].formula, WORDS) == "nothing"
    assert all(1 not in leaves(f.formula) for k, f in enumerate(found) if k != 3)
    none = search(present[:, [1]], Q, by=by)
    assert set(none) == {Found(None, 0.0, ())}
    assert {len(f.by_length) for f in search(present[:, [0]], Q, by=by)} <= {0, 1}  # nothing to join
    assert all(0 <= f.score <= 1 for f in search(present[:, [4]], Q, by=by))


@pytest.mark.parametrize(
    "formula, words",
    [
        (4, "star"),
        (("and", 0, 2), "red AND circle"),
        (("or", ("and", 0, 2), 1), "(red AND circle) OR blue"),
        (("and not", ("and", 0, 2), 5), "red AND circle AND NOT large"),
        (("and", ("or", 0, 1), 2), "(red OR blue) AND circle"),
        (("or", ("or", 0, 1), 2), "red OR blue OR circle"),
        (("and not", 0, ("and", 1, 2)), "red AND NOT (blue AND circle)"),
        (("and not", 0, ("or", 1, 2)), "red AND NOT (blue OR circle)"),
        (("and", 0, ("and not", 1, 2)), "red AND blue AND NOT circle"),
        (("or", 0, ("or", 1, ("and not", 2, 3))), "red OR blue OR (circle AND NOT square)"),
    ],
)
def test_text(formula, words):
    assert formula_text(formula, WORDS) == words


present, Q = inputs()
nan = Q.clone()
nan[3, 2] = torch.inf


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: search(present[1:], Q), ValueError, "with equal N, got 156 and 157"),
        (lambda: search(present, nan), ValueError, "Q must be finite, got inf at image 3, column 2"),
        (
            lambda: search(present.double(), Q),
            ValueError,
            "expected present as bool, got torch.float64; cut probabilities",
        ),
        (lambda: search(present, Q, by="iuo"), KeyError, "no score of formulas 'iuo'; nearest: iou"),
        (lambda: search(present, Q, 0), ValueError, "length must be a positive whole number, got 0"),
        (lambda: search(present, Q, beam=-1), ValueError, "beam must be a positive whole number, got -1"),
        (
            lambda: search(present, Q, active=1.2),
            ValueError,
            "active must be a finite number from 0 to 1, got 1.2",
        ),
        (lambda: search(present, Q, gain=-1), ValueError, "gain must be a finite number from 0, got -1"),
        (
            lambda: search(present, Q, units=[9]),
            ValueError,
            r"units must be .* from 0 to 8 \(K 9\), got \[9\]",
        ),
        (lambda: search(present, Q, memory=9), ValueError, "memory 9 bytes is too small"),
        (lambda: evaluate(("xor", 1, 2), present), KeyError, "no operator 'xor'"),
        (lambda: evaluate(7, present), ValueError, "concept 7 is not among 0 to 6"),
        (
            lambda: evaluate(("and", 1), present),
            ValueError,
            r"a concept's index or \(operator, left, right\), got",
        ),
        (lambda: evaluate(1, present.double()), ValueError, "expected present as bool"),
        (lambda: formula_text(3, WORDS[:2]), ValueError, "concept 3 is not among 0 to 1"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
