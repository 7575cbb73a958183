"""neuronym.evaluation.sanity: how labels are spoilt, the theory's closed forms and verdicts, the same tests
on units, errors.
"""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from neuronym.evaluation.metrics import active_images, metric_values, METRICS, SOUND
from neuronym.evaluation.sanity import (
    beside_published,
    extra_labels,
    FREQUENCIES,
    in_practice,
    in_theory,
    LEAST,
    missing_labels,
    printed_sanity,
    RELEASED,
    varying,
    verdict,
)

PUBLISHED = printed_sanity()
N = 100_000  # a fifth of NeuronEval's, for speed


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def released() -> pd.DataFrame:
    return in_theory(N=N, draws=1, generator=generator())


@pytest.fixture(scope="module")
def ours() -> pd.DataFrame:
    return in_theory({name: METRICS[name] for name in ("spearman", "mad")}, N, draws=1, generator=generator())


@pytest.fixture(scope="module")
def units() -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of 40 units that are higher where their concept is, present in 1 to 10 % of 3001 images."""
    g = generator(2)
    present = torch.rand(3001, 40, generator=g) < torch.linspace(0.01, 0.1, 40)
    return torch.randn(3001, 40, generator=g) + 3 * present, present


# --- spoilt labels


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_missing_labels_drop_the_share_and_add_none(dtype):
    present = (torch.rand(20_000, 3, generator=generator()) < torch.tensor([0.5, 0.1, 0.02])).to(dtype)
    for share in (0.5, 0.2):
        left = missing_labels(present, generator(1), share)
        assert left.dtype == dtype and not (left.bool() & ~present.bool()).any()
        n, kept = present.bool().sum(0).double(), left.bool().sum(0).double()
        assert ((kept - (1 - share) * n).abs() < 4 * (n * share * (1 - share)).sqrt()).all()
    assert (
        torch.equal(missing_labels(present, generator(), 0), present)
        and not missing_labels(present, share=1).any()
    )
    assert torch.equal(missing_labels(present, generator(4)), missing_labels(present, generator(4)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64, torch.int64])
def test_extra_labels_double_and_drop_none(dtype):
    present = (torch.rand(20_000, 4, generator=generator()) < torch.tensor([0.49, 0.1, 0.02, 0])).to(dtype)
    for factor in (2, 1.5):
        more = extra_labels(present, generator(1), factor)
        assert more.dtype == dtype and not (present.bool() & ~more.bool()).any()
        n, found = present.bool().sum(0).double(), more.bool().sum(0).double()
        assert ((found - factor * n).abs() <= 4 * ((factor - 1) * n).sqrt()).all()
    assert torch.equal(extra_labels(present, generator(), 1), present)
    assert extra_labels(torch.ones(5, 1).bool()).all() and extra_labels(torch.tensor([[1, 1, 0]]).T).all()


# --- theory


def closed(f: float) -> dict[str, tuple[float, float]]:
    """Mean change, missing and extra, of a perfect neuron active in a share f, divided by the metric's range.

    Missing: recall 1/2, precision 1, labels f/2. Extra: recall 1, precision 1/2, labels 2f, each of the
    others wrong with probability w = f / (1 - f).
    """
    w, one, two = f / (1 - f), f * (1 - f), 2 * f * (1 - 2 * f)
    phi = f / 2 * (1 - f) / math.sqrt(one * f / 2 * (1 - f / 2)), f * (1 - 2 * f) / math.sqrt(one * two)
    return {
        "recall": (-0.5, 0),
        "precision": (0, -0.5),
        "f1": (-1 / 3, -1 / 3),
        "iou": (-0.5, -0.5),
        "accuracy": (-f / 2, -f),
        "balanced_accuracy": (-0.25, -w / 2),
        "auroc": (-0.25, -w / 2),
        "inverse_balanced_accuracy": (-f / (2 - f) / 2, -0.25),
        "inverse_auroc": (-f / (2 - f) / 2, -0.25),
        "correlation": ((phi[0] - 1) / 2, (phi[1] - 1) / 2),
        "cosine": ((0.5**0.5 - 1) / 2,) * 2,
        "auprc": ((f - 1) / 2, -0.5),
        "inverse_auprc": (-0.5, f - 0.5),
        "mad": (-f / (2 - f), -0.5),
    }


ROUGH = ("inverse_auprc",)  # -.001 at .499 is what two large terms leave


@pytest.mark.parametrize("name", sorted(closed(0.1)))
def test_theory_is_the_closed_form(released, name):
    """Within five deviations of a share of f N labels; a change that is a small part of the range varies as
    little.
    """
    rows = released[released.metric == name].set_index(["test", "frequency"])["change"]
    for f in FREQUENCIES:
        missing, extra = closed(f)[name]
        off = 5 / math.sqrt(f * N)
        assert rows["missing", f] == pytest.approx(missing, abs=off * abs(missing) + 1e-12), f
        assert rows["extra", f] == pytest.approx(
            extra, abs=off * max(abs(extra), 0.1 * (name in ROUGH)) + 1e-12
        ), f


# frequencies, from .499 down, at which a perfect neuron passes; ? where chance decides, the change being
# about -.001
THEORY = {
    "correlation": ("11111", "11111"),
    "cosine": ("11111", "11111"),
    "auprc": ("11111", "11111"),
    "f1": ("11111", "11111"),
    "iou": ("11111", "11111"),
    "wpmi": ("11111", "11111"),
    "recall": ("11111", "00000"),
    "precision": ("00000", "11111"),
    "accuracy": ("11100", "111?0"),
    "balanced_accuracy": ("11111", "11100"),
    "inverse_balanced_accuracy": ("11100", "11111"),
    "auroc": ("11111", "11100"),
    "inverse_auroc": ("11100", "11111"),
    "mad": ("11100", "11111"),
    "spearman": ("111??", "11???"),
    "correlation_top_and_random": ("11111", "1????"),
    "spearman_top_and_random": ("11111", "1????"),
    "inverse_auprc": ("11111", "?1111"),
}


@pytest.mark.parametrize("name", RELEASED)
def test_theory_passes_where_neuron_eval_does(released, name):
    for test, expected in zip(("missing", "extra"), THEORY[name]):
        rows = released[(released.metric == name) & (released.test == test)]
        assert rows.frequency.tolist() == list(FREQUENCIES) and set(rows.passed) <= {0, 1}
        assert all(want in ("?", str(int(got))) for want, got in zip(expected, rows.passed)), (test, rows)
        share = PUBLISHED.loc[name, (test, "theory")]
        low, high = expected.count("1") / 5, 1 - expected.count("0") / 5
        assert low - 0.01 <= share <= high + 0.01


def test_random_images_decide_about_extra_labels():
    """A draw shows a fall when a wrong label is among 25 images of N, 1 - f of them negative: 1 - (1 - f) **
    25.
    """
    table = in_theory(
        {name: RELEASED[name] for name in ("correlation_top_and_random", "accuracy")},
        N=20_000,
        frequencies=(0.499, 0.1, 0.01, 0.001),
        draws=200,
        generator=generator(),
    )
    rows = table[(table.metric == "correlation_top_and_random") & (table.test == "extra")].passed.tolist()
    expected = [1 - (1 - f) ** 25 for f in (0.499, 0.1, 0.01, 0.001)]
    assert rows == pytest.approx(expected, abs=0.09)
    assert (sum(expected) + 1e-4 * 25) / 5 == pytest.approx(
        PUBLISHED.loc["correlation_top_and_random", ("extra", "theory")], abs=0.01
    )


def test_ranks_that_share_their_ties_are_pearsons_and_pass(released, ours):
    """What NeuronEval counts against Spearman in theory is the noise that breaks its ties."""
    rows = ours[ours.metric == "spearman"].change.tolist()
    f = FREQUENCIES[1]
    assert rows[1] == pytest.approx(closed(f)["correlation"][0], abs=0.01)
    assert verdict(ours).passes["spearman"] and not verdict(released).passes["spearman"]
    assert not verdict(ours).passes["mad"]


def test_the_table_in_theory(released):
    assert (
        list(released.columns) == ["metric", "test", "frequency", "change", "passed"]
        and len(released) == 18 * 2 * 5
    )
    assert verdict(released).index.tolist() == list(RELEASED) == list(METRICS)
    again, same = (
        in_theory(N=3000, frequencies=(0.3, 0.01), draws=2, generator=generator(1)) for _ in range(2)
    )
    pd.testing.assert_frame_equal(again, same)
    assert set(again.passed) <= {0, 0.5, 1} and again.notna().all(axis=None)


# --- practice


def test_practice_is_the_literal_loop(units):
    Q, present = units
    names = ["recall", "precision", "correlation", "auprc", "mad"]
    table = in_practice(Q, present, {name: METRICS[name] for name in names}, 0.1, 2, generator(3))
    g = generator(3)
    before, falls = metric_values(Q, present, names, 0.1), {}
    spoilt = [[spoil(present, g) for spoil in (missing_labels, extra_labels)] for _ in range(2)]
    for i, test in enumerate(("missing", "extra")):
        for name in names:
            scores = [metric_values(Q, draw[i], names, 0.1)[name] for draw in spoilt]
            falls[name, test] = (scores[0] + scores[1]) / 2 - before[name]
    every = torch.stack(
        [
            METRICS["mad"](Q, labels.roll(shift, 1), 0.1)
            for labels in (present, *spoilt[0])
            for shift in range(20)
        ]
    )
    width = {
        "recall": 1,
        "precision": 1,
        "auprc": 1,
        "correlation": 2,
        "mad": float(every.max() - every.min()),
    }
    assert ((table.change < 0) & (table.change > -LEAST)).any()  # falls too small to count
    for (name, test), fall in falls.items():
        rows = table[(table.metric == name) & (table.test == test)]
        assert rows.unit.tolist() == list(range(40))
        assert rows.change.tolist() == pytest.approx((fall / width[name]).tolist(), abs=1e-6)
        assert rows.passed.tolist() == (rows.change < -LEAST).astype(float).tolist()


def test_the_five_pass_on_units_that_know_their_concepts(units):
    Q, present = units
    shares = verdict(in_practice(Q, present, generator=generator()))
    assert shares.passes[list(SOUND)].all() and shares.index.tolist() == list(METRICS)
    assert shares.extra["recall"] == 0 and shares.missing["precision"] < 0.9
    assert not shares.passes[
        ["recall", "precision", "correlation_top_and_random", "spearman_top_and_random"]
    ].any()


def test_practice_takes_labels_as_numbers_and_perfect_units_as_given(units):
    Q, present = units
    some = {"f1": METRICS["f1"], "mine": lambda pairs: pairs.counts[0]}
    table = in_practice(Q, present, some, generator=generator())
    pd.testing.assert_frame_equal(table, in_practice(Q, present.float(), some, generator=generator()))
    perfect = in_practice(present.float(), present, {"iou": METRICS["iou"]}, present, generator=generator())
    assert perfect[perfect.test == "missing"].change.mean() == pytest.approx(-0.5, abs=0.02)
    assert perfect[perfect.test == "extra"].change.mean() == pytest.approx(-0.5, abs=0.02)
    assert active_images(present.float(), 0.01).equal(present)


# --- verdicts


def test_units_that_cannot_be_tested_are_left_out():
    """Unit 1 is constant, 2's concept is in all images, 3's in none."""
    Q = torch.arange(24.0).reshape(6, 4)
    Q[:, 1] = 5
    present = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]] * 3).bool()
    assert varying(Q, present) == [0] == varying(Q, present.float())
    assert not in_practice(Q[:, [0]], present[:, [0]], active=0.5).empty


def test_the_threshold_gives_neuron_evals_five():
    def table(kind):
        return pd.DataFrame(
            [
                (name, test, PUBLISHED.loc[name, (test, kind)])
                for name in PUBLISHED.index
                for test in ("missing", "extra")
            ],
            columns=["metric", "test", "passed"],
        )

    both = verdict(table("practice"), table("theory"))
    assert both.passes.to_dict() == PUBLISHED["passes", "all"].to_dict()
    assert sorted(both.index[both.passes]) == sorted(SOUND)
    worst = both[["missing", "extra"]].min(axis=1)
    assert worst[list(SOUND)].min() == 0.936 and worst.drop(list(SOUND)).max() == 0.895
    assert verdict(table("theory")).passes["wpmi"] and not verdict(table("practice")).passes["wpmi"]
    assert verdict(table("practice"), enough=0.95).passes.sum() == 4
    assert set(PUBLISHED.index) == set(METRICS)


def test_a_verdict_is_the_least_share_of_tables():
    a = pd.DataFrame({"metric": "m", "test": ["missing", "missing", "extra"], "passed": [1.0, 0.5, 1.0]})
    b = a.assign(passed=[1.0, 1, 0.6])
    assert verdict(a).loc["m"].tolist() == [0.75, 1, False] and verdict(a, b).loc["m"].tolist() == [
        0.75,
        0.6,
        False,
    ]
    assert verdict(a, b, enough=0.6).passes["m"]


# --- bad input

B = torch.rand(9, 2, generator=generator()) > 0.5
Q = torch.rand(9, 2, generator=generator())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: missing_labels(Q), "labels must be 0 or 1, got 0.*; compare them with a threshold first"),
        (lambda: missing_labels(Q * torch.nan), "labels must be 0 or 1, got nan"),
        (lambda: missing_labels(B, share=2), "share must be a finite number from 0 to 1, got 2"),
        (lambda: extra_labels(B, factor=0.5), "factor must be a finite number from 1, got 0.5"),
        (lambda: extra_labels(B[:, 0]), r"labels as a tensor \[N, K\], not empty, got \[9\]"),
        (
            lambda: in_theory(N=100),
            r"each frequency of \[0.499, .*\] must give 1 to 99 of 100 images; pass another N",
        ),
        (lambda: in_theory(N=100, frequencies=()), r"each frequency of \[\] must give"),
        (lambda: in_theory(N=100, frequencies=(3,)), "frequency must be a finite number from 0 to 1, got 3"),
        (
            lambda: in_theory(N=100, frequencies=(0.1,), draws=0),
            "draws must be a positive whole number, got 0",
        ),
        (lambda: in_practice(Q, B[:5]), r"of one shape, none empty, got \[9, 2\] and \[5, 2\]"),
        (
            lambda: in_practice(Q, torch.stack([B[:, 0], B[:, 0] | True], 1)),
            "never or always present at unit 1; leave",
        ),
        (
            lambda: in_practice(Q * torch.tensor([0.0, 1]), B),
            "got a constant activation at unit 0; leave that unit out",
        ),
        (lambda: verdict(), "a verdict needs a table"),
        (lambda: verdict(pd.DataFrame()), "a verdict needs a table"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_beside_published_lines_up_metrics_and_tests():
    theory = in_theory(N=20_000, frequencies=(0.1, 0.01), draws=1, generator=torch.Generator().manual_seed(0))
    found = beside_published(theory)
    assert list(found.index) == list(PUBLISHED.index) and found.shape == (18, 6)
    assert (
        found.loc["recall", ("extra", "theory", "here")] == 0
        and found.loc["recall", ("extra", "theory", "published")] == 0
    )
    assert found.loc["precision", ("missing", "theory", "here")] == 0
    assert found.loc["iou", ("passes", "all", "here")] and not found.loc["recall", ("passes", "all", "here")]
    both = beside_published(theory, theory)
    assert both.shape == (18, 10) and both.loc["auprc", ("missing", "practice", "published")] == 0.956
    assert (
        both.loc["mad", ("extra", "practice", "published")] == 0.993
        and both.loc["mad", ("missing", "theory", "published")] == 0.6
    )


def test_units_that_cannot_be_tested_are_known():
    present = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    Q = torch.tensor([[1.0, 2, 3, 4], [2, 3, 4, 4], [3, 4, 6, 4]])
    assert varying(Q, present) == [1]
    assert varying(Q, present[:, [0, 0, 0, 0]]) == []
