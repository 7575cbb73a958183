"""neuronym.evaluation.metrics: literal loops, scikit-learn and scipy, what must not matter, dead units,
errors.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from neuronym.evaluation.metrics import _top_and_random, active_images, metric_values, METRICS, Pairs, SOUND
from tests.helpers.reference_metrics import active, drawn, LITERAL, mad, wpmi

N, K = 47, 5
DRAWN = ("correlation_top_and_random", "spearman_top_and_random")
NAMES = list(METRICS)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(kind="probabilities", seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Q with ties (also at 0, as after a ReLU) and predictions that go with it a little."""
    g = generator(seed)
    Q = (torch.randn(N, K, generator=g, dtype=torch.float64) * 4).round().clamp_min(-2) / 4
    p = torch.sigmoid(Q + torch.randn(N, K, generator=g, dtype=torch.float64))
    return Q, {
        "probabilities": (p * 8).round() / 8,
        "continuous": p,
        "bool": p > 0.6,
        "numbers": (p > 0.6).double(),
    }[kind]


def literal(name, Q, p, share, **options) -> torch.Tensor:
    function = options.pop("function", LITERAL.get(name))
    columns = zip(Q.double().T.tolist(), p.double().T.tolist())
    return torch.tensor(
        [function(q, c, active(q, share), **options) for q, c in columns], dtype=torch.float64
    )


# --- values


@pytest.mark.parametrize("kind", ["probabilities", "continuous", "bool", "numbers"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.51])
def test_every_metric_is_the_literal_loop(kind, share):
    Q, p = inputs(kind)
    found = metric_values(Q, p, list(LITERAL), share)
    for name in LITERAL:
        assert_close(
            found[name], literal(name, Q, p, share), rtol=1e-10, atol=1e-12, msg=lambda m: f"{name}: {m}"
        )
        assert_close(METRICS[name](Q, p, share), found[name], rtol=0, atol=0)


def test_options_are_the_literal_loop():
    Q, p = inputs()
    assert_close(METRICS["mad"](Q, p, scale=False), literal("mad", Q, p, 0.05, function=mad, scale=False))
    assert_close(METRICS["wpmi"](Q, p, 0.1, lam=0.4), literal("wpmi", Q, p, 0.1, function=wpmi, lam=0.4))


@pytest.mark.parametrize("kind", ["probabilities", "bool"])
def test_scikit_learn_and_scipy_agree(kind):
    from scipy.stats import pearsonr, spearmanr
    from sklearn import metrics as sk
    from sklearn.metrics.pairwise import cosine_similarity

    Q, p = inputs(kind, seed=3)
    t, said = active_images(Q, 0.2).numpy(), (p.double() >= 0.5).numpy()
    theirs = {
        "correlation": lambda k: pearsonr(Q[:, k], p[:, k].double()).statistic,
        "spearman": lambda k: spearmanr(Q[:, k], p[:, k].double()).statistic,
        "cosine": lambda k: cosine_similarity(Q[:, k : k + 1].T, p[:, k : k + 1].double().T)[0, 0],
        "auprc": lambda k: sk.average_precision_score(t[:, k], p[:, k]),
        "inverse_auprc": lambda k: sk.average_precision_score(said[:, k], Q[:, k]),
        "auroc": lambda k: sk.roc_auc_score(t[:, k], p[:, k]),
        "inverse_auroc": lambda k: sk.roc_auc_score(said[:, k], Q[:, k]),
        "f1": lambda k: sk.f1_score(t[:, k], said[:, k]),
        "iou": lambda k: sk.jaccard_score(t[:, k], said[:, k]),
        "recall": lambda k: sk.recall_score(t[:, k], said[:, k]),
        "precision": lambda k: sk.precision_score(t[:, k], said[:, k]),
        "accuracy": lambda k: sk.accuracy_score(t[:, k], said[:, k]),
        "balanced_accuracy": lambda k: sk.balanced_accuracy_score(t[:, k], said[:, k]),
        "inverse_balanced_accuracy": lambda k: sk.balanced_accuracy_score(said[:, k], t[:, k]),
    }
    found = metric_values(Q, p, list(theirs), 0.2)
    for name, their in theirs.items():
        assert found[name].tolist() == pytest.approx([their(k) for k in range(K)], rel=1e-10, abs=1e-12), name


def test_values_by_hand():
    """Eight images, two active: the explanation names one of them and two others."""
    Q = torch.tensor([[9.0, 8, 1, 2, 3, 4, 5, 6]]).T
    p = torch.tensor([[0.9, 0.1, 0.7, 0.6, 0, 0, 0, 0]]).T
    found = {name: value.item() for name, value in metric_values(Q, p, NAMES, 0.25, generator()).items()}
    expected = {
        "recall": 1 / 2,
        "precision": 1 / 3,
        "f1": 2 / 5,
        "iou": 1 / 4,
        "accuracy": 5 / 8,
        "balanced_accuracy": (1 / 2 + 4 / 6) / 2,
        "inverse_balanced_accuracy": (1 / 3 + 4 / 5) / 2,
        "auroc": (6 + 4) / 12,
        "inverse_auroc": (5 + 0 + 0) / 15,
        "auprc": (1 + 2 / 4) / 2,
        "inverse_auprc": (1 + 2 / 7 + 3 / 8) / 3,
        "wpmi": (math.log(0.9) + math.log(0.1)) / 2 - math.log(2.3 / 8),
        "mad": (4 - 5.2) / math.sqrt(6.9375),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_perfect_explanations():
    Q, _ = inputs(seed=1)
    truth = active_images(Q, 0.2)
    found = metric_values(truth.double(), truth, NAMES, truth, generator())
    for name in set(NAMES) - {"mad", "wpmi"}:
        assert_close(found[name], torch.ones(K, dtype=torch.float64), msg=name)
    f = truth.double().mean(0)
    assert_close(found["mad"], 1 / (f * (1 - f)).sqrt())
    assert_close(found["wpmi"], -f.log())


# --- active images


def test_active_images_are_the_largest_with_ties():
    Q = torch.tensor([[1.0, 5, 5, 5, 2], [1, 2, 3, 4, 5], [7, 7, 7, 7, 7], [-1, -1, -1, -1, -2]]).T
    assert active_images(Q, 0.2).T.int().tolist() == [
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 1],
        [0] * 5,
        [1, 1, 1, 1, 0],
    ]
    assert active_images(Q, 0.21)[:, 1].tolist() == [False] * 3 + [True] * 2
    assert active_images(Q, 0).sum(0).tolist() == [3, 1, 0, 4] and active_images(Q, 1).sum(0).tolist() == [
        4,
        4,
        0,
        4,
    ]
    sparse = torch.tensor([[0.0, 0, 3, 0, 0, 0, 1, 0, 0, 0]]).T
    assert active_images(sparse, 0.5)[:, 0].tolist() == (sparse[:, 0] > 0).tolist()
    assert active_images(torch.arange(100.0)[:, None], 0.07).sum() == 7
    assert torch.equal(active_images(Q.long(), 0.3), active_images(Q, 0.3))
    assert active_images(Q == 5, 0.3).int()[:, 0].tolist() == [0, 1, 1, 1, 0]
    many = inputs()[0]
    assert active_images(many, 0.1).T.tolist() == [active(q, 0.1) for q in many.T.tolist()]


def test_active_images_may_be_given():
    Q, p = inputs()
    mine = active_images(Q, 0.3)
    assert_close(
        metric_values(Q, p, NAMES, 0.3, generator()),
        metric_values(Q, p, NAMES, mine, generator()),
        rtol=0,
        atol=0,
    )
    assert not torch.equal(metric_values(Q, p, ["f1"], ~mine)["f1"], metric_values(Q, p, ["f1"], mine)["f1"])


# --- what must not matter


def test_metrics_are_computed_unit_by_unit_and_image_by_image():
    Q, p = inputs()
    images, units = torch.randperm(N, generator=generator()), torch.tensor([3, 0, 4])
    names = [name for name in NAMES if name not in DRAWN]
    found, moved = metric_values(Q, p, names, 0.2), metric_values(Q[images], p[images], names, 0.2)
    some = metric_values(Q[:, units], p[:, units], names, 0.2)
    for name in names:
        assert_close(moved[name], found[name], rtol=1e-12, atol=1e-12)
        assert_close(some[name], found[name][units], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale, offset", [(1e-9, 0), (3, -7), (1e200, 0), (1e-200, 0)])
def test_scale_and_offset_of_activations(scale, offset):
    Q, p = inputs()
    found, other = (
        metric_values(Q, p, NAMES, 0.2, generator()),
        metric_values(scale * Q + offset, p, NAMES, 0.2, generator()),
    )
    for name in NAMES:
        if name != "cosine" or not offset:
            assert_close(other[name], found[name], rtol=1e-9, atol=1e-12, msg=lambda m: f"{name}: {m}")
    assert_close(METRICS["mad"](2 * Q, p, scale=False), 2 * METRICS["mad"](Q, p, scale=False))
    assert not torch.allclose(METRICS["cosine"](Q + 5, p), found["cosine"])


def test_predictions_of_any_size_where_only_order_or_shape_counts():
    Q, p = inputs()
    free = ["correlation", "spearman", "auprc", "auroc", "cosine"]
    for name, value in metric_values(Q, 40 * p, free).items():
        assert_close(value, METRICS[name](Q, p), rtol=1e-10, atol=1e-12)
    assert_close(
        metric_values(Q, 40 * p - 3, free[:4]), metric_values(Q, p, free[:4]), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_in_the_dtype_of_activations(dtype):
    Q, p = inputs("bool")
    expected = metric_values(Q, p, NAMES, 0.2, generator())
    for name, value in metric_values(Q.to(dtype), p, NAMES, 0.2, generator()).items():
        assert value.dtype == dtype and value.shape == (K,), name
        assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert metric_values(p, p)["f1"].dtype == metric_values(p.long(), p)["f1"].dtype == torch.float64


def test_one_call_or_many():
    Q, p = inputs()
    assert (
        list(metric_values(Q, p)) == list(SOUND) == ["correlation", "cosine", "auprc", "f1", "iou"]
        and len(METRICS) == 18
    )
    assert list(metric_values(Q, p, "iou")) == ["iou"] and torch.equal(
        METRICS["iou"](Pairs(Q, p)), metric_values(Q, p)["iou"]
    )
    own = metric_values(Q, p, {"hits": lambda pairs: pairs.counts[0]}, 0.2)["hits"]
    assert own.tolist() == (active_images(Q, 0.2) & (p >= 0.5)).sum(0).tolist()


# --- drawn images and random ties


def test_top_and_random_draws_half_from_the_top():
    """Image numbers as activations and predictions show which images were drawn."""
    Q = torch.arange(1000.0)[:, None].repeat(1, 3)
    some = _top_and_random(Pairs(Q, Q, generator=generator()), 0.05, 25).Q
    assert some.shape == (50, 3) and (some[:25] >= 950).all() and (some[25:] < 950).any(0).all()
    assert all(len(set(column)) == 25 for half in some.split(25) for column in half.T.tolist())
    assert len({tuple(column) for column in some.T.tolist()}) == 3
    few = _top_and_random(Pairs(Q, Q, generator=generator()), 0.002, 25).Q[:25]
    assert all(sorted(column.count(x) for x in {998, 999}) == [12, 13] for column in few.T.tolist())
    small = _top_and_random(Pairs(Q[:7], Q[:7], generator=generator()), 0.5, 25).Q
    assert set(small[:25].flatten().tolist()) == {3, 4, 5, 6} and set(small[25:].flatten().tolist()) == set(
        range(7)
    )


@pytest.mark.parametrize("name", DRAWN)
def test_top_and_random_is_the_correlation_on_drawn_images(name):
    Q, p = inputs()
    index = torch.arange(N)[:, None].repeat(1, K).double()
    rows = _top_and_random(Pairs(Q, index, generator=generator(5)), 0.2, 11).predicted.long()
    found = METRICS[name](Q, p, generator=generator(5), top=0.2, each=11)
    expected = [
        drawn(Q[:, k].tolist(), p[:, k].tolist(), rows[:, k].tolist(), name.startswith("spear"))
        for k in range(K)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)
    assert not torch.equal(found, METRICS[name](Q, p, generator=generator(6), top=0.2, each=11))


def test_random_ties_weaken_rank_correlation_as_they_must():
    """Random order within ties leaves 3 sqrt(f (1 - f) g (1 - g)) times Pearson's correlation of binary
    variables.
    """
    truth = torch.zeros(20_000, 2, dtype=torch.bool)
    truth[:6000, 0] = truth[:1000, 1] = True
    found = METRICS["spearman"](truth, truth, ties="random", generator=generator())
    assert found.tolist() == pytest.approx([3 * 0.3 * 0.7, 3 * 0.05 * 0.95], abs=0.03)
    assert METRICS["spearman"](truth, truth).tolist() == pytest.approx([1, 1])
    Q = torch.randn(N, K, generator=generator(), dtype=torch.float64)
    p = torch.rand(N, K, generator=generator(1), dtype=torch.float64)
    assert_close(METRICS["spearman"](Q, p, ties="random"), METRICS["spearman"](Q, p))  # nothing ties


# --- what says nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_units_and_concepts_never_or_always_there(dtype):
    """Columns: dead unit; dead unit at 0; concept never; concept always; both dead and never."""
    alive = torch.arange(20.0)
    Q = torch.stack([torch.full((20,), 0.1), torch.zeros(20), alive, alive, torch.full((20,), -3.0)], 1).to(
        dtype
    )
    p = torch.stack([alive < 5, alive < 5, alive < 0, alive > -1, alive < 0], 1)
    expected = {
        "correlation": [0, 0, 0, 0, 0],
        "spearman": [0, 0, 0, 0, 0],
        "mad": [0, 0, 0, 0, 0],
        "recall": [0, 0, 0, 1, 0],
        "precision": [0, 0, 0, 0.1, 0],
        "f1": [0, 0, 0, 4 / 22, 0],
        "iou": [0, 0, 0, 0.1, 0],
        "accuracy": [0.75, 0.75, 0.9, 0.1, 1],
        "balanced_accuracy": [0.5] * 5,
        "inverse_balanced_accuracy": [0.5, 0.5, 0.5, 0.5, 0.5],
        "auroc": [0.5] * 5,
        "inverse_auroc": [0.5] * 5,
        "auprc": [0, 0, 0.1, 0.1, 0],
        "inverse_auprc": [0.25, 0.25, 0, 1, 0],
        "wpmi": [0, 0, 0, 0, 0],
        "correlation_top_and_random": [0] * 5,
        "spearman_top_and_random": [0] * 5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metric_values(Q, p, NAMES, 0.1, generator())
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, abs=1e-6), name
    assert found["cosine"][[1, 2, 4]].tolist() == [0, 0, 0] and all(
        v.isfinite().all() for v in found.values()
    )
    assert METRICS["spearman"](Q, p, ties="random").tolist() == [0] * 5
    assert METRICS["mad"](Q, p, scale=False).tolist() == [0] * 5
    assert all(v.isfinite().all() for v in metric_values(Q[:1], p[:1], NAMES, generator=generator()).values())


# --- bad input

Q, P = inputs()
HOLE = P.clone()
HOLE[4, 2] = math.nan


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: metric_values(Q, P[:, :3]),
            ValueError,
            r"Q and predicted .* of one shape, .* got \[47, 5\] and \[47, 3\]",
        ),
        (lambda: metric_values(Q, P[:9]), ValueError, r"got \[47, 5\] and \[9, 5\]"),
        (lambda: metric_values(Q[:, 0], P[:, 0]), ValueError, r"got \[47\] and \[47\]"),
        (lambda: metric_values(Q[:0], P[:0]), ValueError, r"none empty, got \[0, 5\]"),
        (lambda: metric_values(Q.tolist(), P), ValueError, r"as tensors \[N, K\] .* got list and \[47, 5\]"),
        (
            lambda: metric_values(Q, HOLE),
            ValueError,
            "predicted must be finite, got nan at image 4, unit 2; leave that",
        ),
        (lambda: metric_values(Q / 0, P), ValueError, "Q must be finite, got"),
        (
            lambda: metric_values(Q, P, ["f2"]),
            KeyError,
            "no metric 'f2'; nearest: f1; known: correlation, cosine",
        ),
        (
            lambda: metric_values(Q, P, active=5),
            ValueError,
            "share of active images must be a finite number from 0 to 1, got 5",
        ),
        (
            lambda: metric_values(Q, P, active=P),
            ValueError,
            r"as bool \[47, 5\], got torch.float64 \[47, 5\]; or pass a share",
        ),
        (
            lambda: metric_values(Q, P, active=P[:4] > 0),
            ValueError,
            r"active images as bool \[47, 5\], got torch.bool \[4, 5\]",
        ),
        (
            lambda: metric_values(Q, 3 * P),
            ValueError,
            "predictions from 0 to 1, got .* to 3; make them probabilities",
        ),
        (lambda: METRICS["wpmi"](Q, P - 1), ValueError, "predictions from 0 to 1, got -"),
        (
            lambda: METRICS["spearman"](Q, P, ties="first"),
            KeyError,
            "no way with ties 'first'.*known: average, random",
        ),
        (lambda: METRICS[DRAWN[0]](Q, P, each=0), ValueError, "each must be a positive whole number, got 0"),
        (lambda: METRICS[DRAWN[1]](Q, P, top=2), ValueError, "must be a finite number from 0 to 1, got 2"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
