"""Linear explanations against a literal greedy loop with scipy's nnls, and against planted sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls as scipy_nnls
from torch.testing import assert_close

from neuronym.evaluation.linear import explain, Linear, nnls, predict, sum_text
from neuronym.microworld.world import CLASSES, presence, scene

N, K, M = 211, 7, 23


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed=0, noise=0.6, kind=bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Presence [N, M] and units [N, K] of one to three concepts, the weights falling."""
    g = generator(seed)
    present = torch.rand(N, M, generator=g, dtype=torch.float64)
    present = present.square() if kind is float else present < torch.linspace(0.15, 0.5, M)
    weights = torch.zeros(M, K, dtype=torch.float64)
    for k in range(K):
        weights[torch.randperm(M, generator=g)[: 1 + k % 3], k] = torch.tensor([2.0, 1.4, 0.9])[
            : 1 + k % 3
        ].double()
    return present, present.double() @ weights + noise * torch.randn(
        N, K, generator=g, dtype=torch.float64
    ) - 3


# --- against loops


def greedy(X: np.ndarray, y: np.ndarray, most: int) -> list[tuple[list[int], np.ndarray, float]]:
    """Concepts, weights and bias after each step of forward selection, one unit."""
    steps, chosen, fitted = [], [], np.full(len(y), y.mean())
    while len(chosen) < most:
        r = [
            0
            if j in chosen or X[:, j].std() == 0 or np.abs(y - fitted).max() < 1e-9
            else np.corrcoef(X[:, j], y - fitted)[0, 1]
            for j in range(X.shape[1])
        ]
        if max(r) <= 1e-9:
            return steps
        chosen = chosen + [int(np.argmax(r))]
        centred = X[:, chosen] - X[:, chosen].mean(0)
        w = scipy_nnls(centred, y - y.mean())[0]
        bias = y.mean() - X[:, chosen].mean(0) @ w
        fitted = bias + X[:, chosen] @ w
        steps.append((chosen, w, bias))
    return steps


def literal(X: np.ndarray, y: np.ndarray, fold: np.ndarray, most: int, tolerance: float) -> tuple:
    """The concepts, weights and bias of one unit, by the rule in words of `explain`."""
    if y.max() == y.min() or not greedy(X, y, 1):
        return [], np.array([]), y.mean()
    paths, best, n = [greedy(X[fold != f], y[fold != f], most) for f in range(fold.max() + 1)], 0.0, 0
    steps = greedy(X, y, most)
    while n < len(steps):
        r = []
        for f, path in enumerate(paths):
            out = fold == f
            said = np.zeros(out.sum())
            if path:
                chosen, w, bias = path[min(n, len(path) - 1)]
                said = bias + X[out][:, chosen] @ w
            r.append(0 if np.ptp(said) < 1e-9 or np.ptp(y[out]) < 1e-9 else np.corrcoef(said, y[out])[0, 1])
        if n and np.mean(r) - best < tolerance:
            break
        best, n = np.mean(r), n + 1
    chosen, w, bias = steps[n - 1]
    return [c for c, x in zip(chosen, w) if x > 0], w[w > 0], bias


def assert_literal(
    found: Linear, present: torch.Tensor, Q: torch.Tensor, fold: np.ndarray, most: int, tolerance
):
    X = present.double().numpy()
    for k in range(Q.shape[1]):
        chosen, w, bias = literal(X, Q[:, k].numpy(), fold, most, tolerance)
        n = len(chosen)
        assert found.chosen[k].tolist() == chosen + [-1] * (found.chosen.shape[1] - n)
        np.testing.assert_allclose(found.weights[k, :n], w, rtol=1e-8)
        assert not found.weights[k, n:].any() and float(found.bias[k]) == pytest.approx(bias, rel=1e-8)


@pytest.mark.parametrize("kind", [bool, float])
@pytest.mark.parametrize("most, tolerance, folds", [(10, 0.02, 5), (4, 0, 3), (6, 0.002, 2), (1, 0.02, 4)])
def test_explain_is_the_literal_loop(kind, most, tolerance, folds):
    present, Q = inputs(3, kind=kind)
    found = explain(present, Q, most, tolerance, folds)
    assert_literal(found, present, Q, np.arange(N) % folds, most, tolerance)
    assert most < 4 or found.terms.unique().numel() > 1


def test_correlated_concepts_are_the_literal_loop():
    """Concepts made of others, so that a fit pushes earlier terms out."""
    g = generator(0)
    base = torch.rand(N, 8, generator=g) < 0.4
    pairs = torch.stack(
        [base[:, i] | base[:, j] for i in range(5) for j in range(i)]
        + [base[:, i] & base[:, j] for i in range(5) for j in range(i)],
        1,
    )
    present = torch.cat([pairs, base], 1)
    Q = torch.stack([base[:, k].double() + base[:, k + 1] + 0.7 * base[:, k + 2] for k in range(6)], 1)
    Q += 0.1 * torch.randn(N, 6, generator=g, dtype=torch.float64)
    found = explain(present, Q, 8, 0)
    assert_literal(found, present, Q, np.arange(N) % 5, 8, 0)
    path = [greedy(present.double().numpy(), Q[:, k].numpy(), 8) for k in range(6)]
    assert any((w == 0).any() for steps in path for _, w, _ in steps)  # or the test tests too little


@pytest.mark.parametrize("tolerance", [0.01, 0.02, 0.04])
def test_the_number_of_terms_is_the_literal_loops(tolerance):
    """Many weak terms, so that what each adds lies on both sides of the tolerance."""
    g = generator(11)
    present = torch.rand(N, M, generator=g) < 0.4
    weights = torch.rand(M, 30, generator=g, dtype=torch.float64).pow(4)
    Q = present.double() @ weights + 0.3 * torch.randn(N, 30, generator=g, dtype=torch.float64)
    assert_literal(explain(present, Q, 6, tolerance, 3), present, Q, np.arange(N) % 3, 6, tolerance)


@pytest.mark.parametrize("level", [0, 0.1, 5, 1e4])
def test_units_and_concepts_that_are_constant_on_a_fold(level):
    """What is not known there counts 0, whatever its value is, and rounding is not taken for a difference."""
    present, Q = inputs(6)
    fold = np.arange(N) % 5
    Q[fold == 1] = Q.mean(0) + level
    present[fold == 2, :9] = True
    assert_literal(explain(present, Q, 5, 0.0), present, Q, fold, 5, 0.0)


def test_generator_deals_the_folds():
    present, Q = inputs(1)
    found = explain(present, Q, 10, 0.0, 5, generator=generator(4))
    assert_literal(found, present, Q, (torch.randperm(N, generator=generator(4)) % 5).numpy(), 10, 0)


@pytest.mark.parametrize("t", [1, 2, 5, 10])
def test_nnls_is_scipys(t):
    g = generator(t)
    X = torch.randn(57, 19, t + 1, generator=g, dtype=torch.float64)
    X = X[..., 1:] + X[..., :1]
    X *= torch.logspace(-3, 3, t)
    y = torch.randn(57, 19, generator=g, dtype=torch.float64)
    found = nnls(X.mT @ X, (X.mT @ y[..., None])[..., 0])
    expected = torch.stack([torch.from_numpy(scipy_nnls(a.numpy(), b.numpy())[0]) for a, b in zip(X, y)])
    assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert (expected == 0).any() and (expected > 0).any()


def test_nnls_of_dependent_columns_fits_as_well():
    X = torch.randn(31, 17, 4, generator=generator(), dtype=torch.float64).abs()
    X = torch.cat([X, X[..., :2], X[..., 1:2] + X[..., 2:3], torch.zeros(31, 17, 1)], 2)
    y = torch.randn(31, 17, generator=generator(1), dtype=torch.float64) + 1
    w = nnls(X.mT @ X, (X.mT @ y[..., None])[..., 0])
    for a, b, found in zip(X, y, w):
        assert float((a @ found - b).norm()) == pytest.approx(scipy_nnls(a.numpy(), b.numpy())[1], rel=1e-9)
    assert not w[:, -1].any() and (w >= 0).all()


# --- what must come out


def test_planted_sums_come_back():
    present, Q = inputs(2, noise=0.2)
    found = explain(present, Q)
    for k in range(K):
        n = 1 + k % 3
        assert found.terms[k] == n
        assert_close(found.weights[k, :n], torch.tensor([2.0, 1.4, 0.9])[:n].double(), rtol=0, atol=0.15)
    assert_close(found.bias, torch.full((K,), -3.0).double(), rtol=0, atol=0.15)
    held_out, q = inputs(2, noise=0)
    said = predict(found, held_out)
    assert all(np.corrcoef(said[:, k], q[:, k])[0, 1] > 0.98 for k in range(K))


def test_microworld_scenes():
    present = presence([scene(i) for i in range(600)], CLASSES)
    where = CLASSES.index
    unit = 1.5 * present[:, where("red")] + 0.8 * present[:, where("circle")]
    unit += 0.1 * torch.randn(600, generator=generator())
    found = explain(present[:400], unit[:400, None])
    first, second = sum_text(found, CLASSES, 0).split(" + ")
    assert first.endswith(" red") and second.endswith(" circle")
    assert_close(found.weights[0, :2], torch.tensor([1.5, 0.8]), rtol=0, atol=0.05)
    r = np.corrcoef(predict(found, present[400:])[:, 0], unit[400:])[0, 1]
    single = np.corrcoef(present[400:, where("red")], unit[400:])[0, 1]
    assert r > 0.98 > single


def test_more_terms_keep_those_before():
    present, Q = inputs(4)
    full = explain(present, Q, 9, 0)
    for most in range(1, 9):
        part = explain(present, Q, most, 0)
        assert (
            torch.equal(part.chosen, full.chosen[:, :most])
            and (part.terms == full.terms.clamp(max=most)).all()
        )


def test_negative_weights_do_not_occur():
    present, _ = inputs()
    found = explain(
        present, torch.stack([2 - present[:, 3].double() + present[:, 5], 1 - present[:, 1].double()], 1)
    )
    assert found.chosen[0, 0] == 5 and 3 not in found.chosen[0] and 1 not in found.chosen[1]
    assert (found.weights >= 0).all()


def test_what_must_not_matter_does_not():
    present, Q = inputs(6)
    present = present.double()
    untouched = present.clone(), Q.clone()
    base = explain(present, Q, tolerance=0.005)
    assert torch.equal(explain(present.bool(), Q, tolerance=0.005).chosen, base.chosen)
    assert torch.equal(present, untouched[0]) and torch.equal(Q, untouched[1])
    for memory in (220_000, 400_000, 3_000_000):
        found = explain(present, Q, tolerance=0.005, memory=memory)
        assert torch.equal(found.chosen, base.chosen)
        assert_close(found.weights, base.weights, rtol=1e-9, atol=1e-12)
    turned = explain(present, Q.flip(1), tolerance=0.005)
    assert torch.equal(turned.chosen, base.chosen.flip(0))
    scaled = explain(present, 1e-3 * Q - 7, tolerance=0.005)
    assert torch.equal(scaled.chosen, base.chosen)
    assert_close(scaled.weights, 1e-3 * base.weights, rtol=1e-6, atol=0)
    single = explain(present, Q.float(), tolerance=0.005)
    assert (
        torch.equal(single.chosen, base.chosen) and single.weights.dtype == single.bias.dtype == torch.float32
    )
    assert_close(single.weights, base.weights.float(), rtol=1e-4, atol=1e-5)
    order = torch.randperm(M, generator=generator(1))
    moved = explain(present[:, order], Q, tolerance=0.005).chosen
    assert torch.equal(torch.where(moved < 0, -1, order[moved.clamp(min=0)]), base.chosen)


def test_of_equal_concepts_the_first_is_taken_once():
    present, Q = inputs(2, noise=0.2)
    for memory in (270_000, 2**28):
        doubled = explain(torch.cat([present, present, present], 1), Q, memory=memory)
        assert torch.equal(doubled.chosen[:, :10], explain(present, Q).chosen)


def test_dead_units_and_constant_concepts():
    present, Q = inputs(1)
    present[:, 4], present[:, 9] = True, False
    Q[:, 2], Q[:, 5] = 0, 0.1
    Q[:, 6] = torch.arange(N) == 17  # active on one image only: nothing to fit without its fold
    found = explain(present, Q, tolerance=0)
    assert found.terms[[2, 5]].tolist() == [0, 0] and found.bias[[2, 5]].tolist() == [0, 0.1]
    assert not (found.chosen == 4).any() and not (found.chosen == 9).any() and found.weights.isfinite().all()
    assert sum_text(found, [str(i) for i in range(M)], 2) == "nothing"
    assert (predict(found, present)[:, 5] == 0.1).all() and 1 <= found.terms[6]
    none = explain(present[:, [4, 9]], Q)
    assert not none.terms.any()
    assert_close(predict(none, present[:3, :2]), Q.mean(0).expand(3, -1))


def test_a_unit_of_pure_noise_gets_few_terms():
    g = generator(9)
    found = explain(torch.rand(1000, 30, generator=g) < 0.3, torch.randn(1000, 40, generator=g))
    assert float(found.terms.double().mean()) < 2.5 and (found.terms >= 1).all()


def test_perfect_units_end_when_nothing_is_left():
    present, Q = inputs(7, noise=0)
    found = explain(present, Q, tolerance=0)
    assert found.terms.tolist() == [1 + k % 3 for k in range(K)]
    assert_close(predict(found, present), Q, rtol=0, atol=1e-9)


def test_extreme_scales():
    present, Q = inputs(2)
    base = explain(present, Q)
    for scale in (1e-200, 1e200):
        found = explain(present, scale * Q)
        assert torch.equal(found.chosen, base.chosen)
        assert_close(found.weights / scale, base.weights, rtol=1e-7, atol=0)
    half = explain(present, Q.half())
    assert torch.equal(half.chosen[:, 0], base.chosen[:, 0]) and half.weights.dtype == torch.float32


def test_predict_is_the_sum():
    chosen, weights = torch.tensor([[4, 1], [-1, -1], [0, -1]]), torch.tensor([[2.0, 0.5], [0, 0], [3, 0]])
    found = Linear(chosen, weights, torch.tensor([1.0, 7, 0]))
    present = torch.rand(9, 5, generator=generator())
    expected = torch.stack(
        [1 + 2 * present[:, 4] + 0.5 * present[:, 1], torch.full((9,), 7.0), 3 * present[:, 0]], 1
    )
    assert_close(predict(found, present), expected)
    assert_close(predict(found, present > 0.5)[:, 2], 3.0 * (present[:, 0] > 0.5))


@pytest.mark.parametrize(
    "weights, words",
    [
        ([2.1, 0.8], "2.10 red + .80 circle"),
        ([0.8, 2.1], "2.10 circle + .80 red"),
        ([0.0213, 0.008], ".0213 red + .0080 circle"),
        ([213.4, 8], "213 red + 8 circle"),
        ([1e-7, 2e-9], "1.00e-07 red + 2.00e-09 circle"),
    ],
)
def test_text(weights, words):
    assert (
        sum_text(
            Linear(torch.tensor([[1, 0]]), torch.tensor([weights]), torch.zeros(1)), ["circle", "red"], 0
        )
        == words
    )


present, Q = inputs()
nan = Q.clone()
nan[3, 2] = torch.nan
found = explain(present, Q)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: explain(present[:-1], Q), r"present \[N, M\] and Q \[N, K\] with equal N, got 210 and 211"),
        (lambda: explain(present, nan), "Q must be finite, got nan at image 3, column 2"),
        (lambda: explain(3.0 * present, Q), "present must be bool or from 0 to 1, got 0 to 3"),
        (
            lambda: explain(present[:, :0], Q),
            r"expected present as a real torch tensor of two axes, none empty",
        ),
        (lambda: explain(present, Q[:, 0]), "expected Q as a real torch tensor of two axes"),
        (lambda: explain(present, Q, 0), "most must be a positive whole number, got 0"),
        (
            lambda: explain(present, Q, tolerance=1.5),
            "tolerance must be a finite number from 0 to 1, got 1.5",
        ),
        (
            lambda: explain(present, Q, folds=1),
            "expected 2 folds or more, of 2 images or more each, got 1 folds of 211",
        ),
        (lambda: explain(present[:7], Q[:7], folds=4), "got 4 folds of 7 images"),
        (
            lambda: explain(present, Q, memory=10),
            "memory 10 bytes is too small for these sizes; pass at least",
        ),
        (lambda: predict(found, present[:, :2]), "expected present .* the last concept chosen, got"),
        (lambda: sum_text(found, ["red"], 0), "concepts, those explained with, got 1"),
        (lambda: sum_text(found, ["c"] * M, 7), "unit must be from 0 to 6, got 7"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
