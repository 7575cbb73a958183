"""Trust in labels: null scores against the literal functions, p-values uniform under the null, planted
concepts found.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch.testing import assert_close

from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score, SIMILARITIES
from neuronym.trust.null import abstain, best_scores, CORRECTIONS, null_best, OF_COLUMNS, p_values, z_values
from neuronym.trust.stability import best_concepts, bootstrap_labels, margin, take_rows
from tests.helpers import reference

N, K, M = 61, 9, 7
OPTIONS = {
    "cos_similarity": {},
    "cos_similarity_cubed": {},
    "rank_reorder": {"top_fraction": 0.2, "n_permutations": 3},
    "wpmi": {"top_k": 11},
    "soft_wpmi": {"top_k": 13, "lam": 0.8},
    "correlation": {"slope": 5.0, "offset": -1.0},
    "soft_correlation": {"sharpness": 1.5},
    "combined_correlation": {},
    "standardised_correlation": {},
    "layered_correlation": {"final": True},
}
METHODS = list(OPTIONS)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed=0, n=N, k=K, m=M) -> tuple[torch.Tensor, torch.Tensor]:
    """P in 0..1 and Q without ties, both independent noise."""
    g = generator(seed)
    return torch.rand(n, m, generator=g, dtype=torch.float64), torch.randn(
        n, k, generator=g, dtype=torch.float64
    )


def sparse(seed=0, n=N, k=K, m=M) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with units that are 0 on most images, so that top images have equal activations; the last is
    constant.
    """
    P, Q = inputs(seed, n, k, m)
    active = torch.rand(n, k, generator=generator(seed + 1)) < torch.linspace(0.05, 0.6, k)
    Q = Q.abs() * active
    Q[:, -1] = 3
    return P, Q


def planted(seed=0, strength=2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Units 0..3 follow concepts 3, 2, 1, 0; the others are noise."""
    P, Q = inputs(seed)
    centred = (P - P.mean(0)) / P.std(0)
    Q[:, :4] += strength * centred[:, [3, 2, 1, 0]]
    return P, Q


def prior_of_others(method, P, Q, k, options) -> list[float]:
    """lam log of the mean of exp l over all units but k, by loops."""
    l = getattr(reference, method)(P, Q, **options | {"lam": 0})
    sums = [[unit[c] for i, unit in enumerate(l) if i != k] for c in range(P.shape[1])]
    lam = options.get("lam", 0.6)
    return [lam * (max(x) + math.log(math.fsum(math.exp(y - max(x)) for y in x) / len(x))) for x in sums]


# --- best_scores and null_best


@pytest.mark.parametrize("method", METHODS)
def test_best_scores_are_the_literal_ones(method):
    for P, Q in (inputs(), planted(3, 50.0)):
        best, options = best_scores(P, Q, method, **OPTIONS[method]), OPTIONS[method]
        if "wpmi" in method:
            l = getattr(reference, method)(P, Q, **options | {"lam": 0})
            expected = [
                max(x - y for x, y in zip(l[k], prior_of_others(method, P, Q, k, options))) for k in range(K)
            ]
        else:
            expected = score(P, Q, method, **options).amax(1)
        assert_close(best, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-11)
        assert_close(best_scores(P, Q, method, memory=30_000, **options), best, rtol=1e-10, atol=1e-11)
        assert_close(best_scores(P.float(), Q.float(), method, **options), best.float(), rtol=1e-4, atol=1e-4)


def test_best_scores_order_units_as_scores_do_but_are_not_capped():
    P, Q = planted(3, 50.0)
    P = P / 5  # or rounding would hide how near to the cap scores are
    scores, best = score(P, Q, top_k=13).amax(1), best_scores(P, Q, top_k=13)
    assert scores.argsort().tolist() == best.argsort().tolist() and scores.max() < math.log(K) < best.max()
    assert_close(scores, math.log(K) - torch.log1p((K - 1) * torch.exp(-best)), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_null_is_the_literal_function_of_shuffled_units(method):
    """Two draws whose shuffles are known: the score, by loops, of the shuffled unit in the place of the real
    one.
    """
    P, Q = inputs()
    options = OPTIONS[method]
    null = null_best(P, Q, method, draws=4, generator=generator(3), **options)
    G = 1 if "wpmi" in method else K
    assert null.shape == (4, G) and null.dtype == torch.float64
    g = generator(3)
    replaced = (torch.rand(4, G, generator=g) * (K if G == 1 else 1)).long()
    deals = torch.rand(4 * G, N, generator=g).argsort(dim=1).view(4, G, N)
    if method in OF_COLUMNS:  # dealt for all units together
        deals = torch.rand(4, N, generator=generator(3)).argsort(dim=1)[:, None].expand(4, K, N)
    for draw, k in ((0, 0), (3, G - 1)):
        shuffled = Q.clone()
        shuffled[:, k] = Q[deals[draw, k], k]
        if method == "rank_reorder":
            g = generator()
            perms = [[torch.randperm(int(0.2 * N), generator=g).tolist() for _ in range(3)] for _ in range(K)]
            expected = reference.rank_reorder(P, shuffled, perms, top_fraction=0.2)[k]
        elif "wpmi" in method:  # the prior stays that of the real units
            moved = getattr(reference, method)(P, shuffled, **options | {"lam": 0})[k]
            expected = [
                x - y for x, y in zip(moved, prior_of_others(method, P, Q, int(replaced[draw, k]), options))
            ]
        else:
            expected = getattr(reference, method)(P, shuffled, **options)[k]
        assert math.isclose(float(null[draw, k]), max(expected), rel_tol=1e-9, abs_tol=1e-12)
    assert len(set(replaced[:, 0].tolist())) > 1 or G > 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made", [inputs, sparse])
def test_null_does_not_depend_on_memory_scale_or_form_of_P(method, made):
    _, Q = made()
    I, T = (
        torch.nn.functional.normalize(torch.rand(x, 5, generator=generator(x), dtype=torch.float64), dim=1)
        for x in (N, M)
    )
    options = OPTIONS[method] | {"draws": 9}
    null = null_best(I @ T.T, Q, method, **options)
    assert_close(null_best(FactoredMatrix(I, T), Q, method, **options), null, rtol=1e-9, atol=1e-11)
    assert_close(null_best(I @ T.T, Q, method, memory=60_000, **options), null, rtol=1e-9, atol=1e-11)
    assert_close(null_best(I @ T.T, Q, method, generator=generator(), **options), null)
    if method != "cos_similarity_cubed":  # whose eps sees the scale
        assert_close(null_best(I @ T.T, Q * 8, method, **options), null, rtol=1e-9, atol=1e-11)
    assert null_best((I @ T.T).float(), Q.float(), method, **options).dtype == torch.float32
    assert not torch.equal(null_best(I @ T.T, Q, method, generator=generator(1), **options), null)


@pytest.mark.parametrize("method", ["wpmi", "soft_wpmi"])
def test_units_with_equal_top_activations_have_a_null_of_their_own(method):
    """Of a unit with one active image only that one is dealt; the rest of its top images are those of lowest
    index.
    """
    P, Q = inputs()
    Q[:, 4] = 0
    Q[17, 4] = 1
    Q[:, 5] = Q[:, 4].flip(0)
    Q[:, 6] = Q[:, 4]
    Q[40:, 6] = -1  # as many equal activations among the top images, fewer in all
    null = null_best(P, Q, method, draws=400, **OPTIONS[method])
    assert null.shape == (400, K)
    assert not torch.equal(null[:, 4], null[:, 6])
    assert torch.equal(null[:, 0], null[:, 8]) and torch.equal(null[:, 4], null[:, 5])
    alone = score(P, torch.eye(N, dtype=P.dtype), method, **OPTIONS[method] | {"lam": 0})
    priors = [torch.tensor(prior_of_others(method, P, Q, k, OPTIONS[method]), dtype=P.dtype) for k in (4, 5)]
    possible = torch.cat([(alone - prior).amax(1) for prior in priors])
    assert ((null[:, 4, None] - possible).abs().amin(1) < 1e-9).all()
    assert len(null[:, 4].mul(1e8).round().unique()) > N / 2
    assert not ((null[:, 0, None] - possible).abs().amin(1) < 1e-9).any()


@pytest.mark.parametrize("method", METHODS)
def test_constant_unit_is_never_significant(method):
    for dtype in (torch.float32, torch.float64):
        P, Q = (x.to(dtype) for x in sparse(5))
        best = best_scores(P, Q, method, **OPTIONS[method])
        null = null_best(P, Q, method, draws=50, **OPTIONS[method])
        assert null.shape == (50, K) and p_values(best, null)[-1] == 1
        assert z_values(best, null)[-1] == 0 and z_values(best, null).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_p_values_are_uniform_under_the_null(method):
    P, Q = inputs(11, 80, 400)
    best = best_scores(P, Q, method, **OPTIONS[method])
    p = p_values(best, null_best(P, Q, method, draws=399, generator=generator(1), **OPTIONS[method]))
    assert kstest(p.numpy(), "uniform").pvalue > 0.01
    z = z_values(best, null_best(P, Q, method, draws=399, generator=generator(1), **OPTIONS[method]))
    assert abs(float(z.mean())) < 0.2 and 0.8 < float(z.std()) < 1.2
    assert abstain(p).float().mean() > 0.99 and abstain(p, correction="holm").all()


@pytest.mark.parametrize("method", ["cos_similarity", "soft_wpmi"])
def test_p_values_of_sparse_units_are_uniform_too(method):
    """400 units that act on few images, sorted so that images of low index are special: ties do not make a
    label true.
    """
    P, _ = inputs(12, 80, 1)
    P[:8] += torch.tensor([2.0] + [0.0] * (M - 1))
    active = torch.rand(80, 400, generator=generator(13)) < 0.15
    Q = torch.rand(80, 400, generator=generator(14), dtype=torch.float64) * active
    options = {"top_k": 30} if method == "soft_wpmi" else {}
    best = best_scores(P, Q, method, **options)
    p = p_values(best, null_best(P, Q, method, draws=199, **options))
    assert kstest(p.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_planted_concepts_are_found_and_noise_is_not_labelled(method):
    found, false = 0, 0
    for seed in range(5):
        P, Q = planted(seed, 50.0)
        scores = score(P, Q, method, **OPTIONS[method])
        null = null_best(P, Q, method, draws=999, generator=generator(seed), **OPTIONS[method])
        p = p_values(best_scores(P, Q, method, **OPTIONS[method]), null)
        named = ~abstain(p)
        found += int((named[:4] & (best_concepts(scores)[:4] == torch.tensor([3, 2, 1, 0]))).sum())
        false += int(named[4:].sum())
    assert found >= 18 and false <= 3


def test_draws_by_default_are_those_of_the_functions():
    for method, k in (("wpmi", 28), ("soft_wpmi", 100)):
        P, Q = inputs(n=150)
        assert_close(null_best(P, Q, method, draws=5), null_best(P, Q, method, draws=5, top_k=k))
        Q[Q[:, 2].argsort(descending=True)[k:], 2] = -9  # equal below the top k
        assert null_best(P, Q, method, draws=5).shape == (5, 1)
        Q[Q[:, 2].argsort(descending=True)[k - 1], 2] = -9  # and one of these
        assert null_best(P, Q, method, draws=5).shape == (5, K)


# --- p_values, abstain, margin


def test_p_and_z_by_hand():
    null = torch.tensor([[1.0, 4], [2, 4], [3, 4], [6, 4]])
    assert p_values(torch.tensor([3.0, 4]), null).tolist() == [3 / 5, 1]
    assert p_values(torch.tensor([7.0, 5]), null).tolist() == [1 / 5, 1 / 5]
    assert z_values(torch.tensor([3.0, 9]), null).tolist() == [0, 0]
    assert_close(
        z_values(torch.tensor([6.0, 9]), null)[0], torch.tensor(3 / math.sqrt(3.5), dtype=torch.float64)
    )
    assert p_values(torch.tensor([3.0, 0, 9]), null[:, :1]).tolist() == [3 / 5, 1, 1 / 5]
    rounded = torch.tensor([0.1 + 0.2], dtype=torch.float64)
    assert p_values(rounded, torch.tensor([[0.3]], dtype=torch.float64)).tolist() == [1]


def test_abstain_by_hand():
    p = torch.tensor([0.01, 0.04, 0.03, 0.9])
    assert abstain(p, correction="none").tolist() == [False, False, False, True]
    assert abstain(p).tolist() == [False, True, True, True]  # .04, .0533, .0533, .9
    assert abstain(p, 0.06).tolist() == [False, False, False, True]
    assert abstain(p, 0.06, "holm").tolist() == [False, True, True, True]  # .04, .09, .09, .9
    assert abstain([0.05, 0.051], correction="none").tolist() == [False, True] and set(CORRECTIONS) == {
        "bh",
        "holm",
        "none",
    }


def test_margin_by_hand():
    scores = torch.tensor([[1.0, 4, 3], [2, 2, 2], [5, 5, 0]])
    sd = math.sqrt(14 / 9)
    assert_close(margin(scores), torch.tensor([1 / sd, 0, 0], dtype=torch.float64))
    assert_close(margin(scores * 7 - 3), margin(scores)) and torch.equal(
        margin(scores.flip(1)), margin(scores)
    )


# --- bootstrap_labels


@pytest.mark.parametrize("method", METHODS)
def test_bootstrap_is_the_literal_one(method):
    P, Q = planted(2)
    found = bootstrap_labels(P, Q, method, draws=12, generator=generator(6), **OPTIONS[method])
    label = score(P, Q, method, **OPTIONS[method]).argmax(1)
    g, own, names = generator(6), [], []
    for _ in range(12):
        rows = torch.randint(N, (N,), generator=g)
        scores = score(P[rows], Q[rows], method, **OPTIONS[method])
        own.append([float(scores[k, label[k]]) for k in range(K)])
        names.append(scores.argmax(1).tolist())
    assert found.label.tolist() == label.tolist()
    for k in range(K):
        others = [draw[k] for draw in names if draw[k] != label[k]]
        assert math.isclose(float(found.stability[k]), 1 - len(others) / 12)
        most = max(sorted(set(others)), key=others.count, default=-1)
        assert found.alternative[k] == most
        values = sorted(draw[k] for draw in own)
        low = values[0] + 0.275 * (values[1] - values[0])  # 2.5 % of 11 steps
        high = values[-1] - 0.275 * (values[-1] - values[-2])
        assert math.isclose(float(found.low[k]), low, rel_tol=1e-9) and math.isclose(
            float(found.high[k]), high, rel_tol=1e-9
        )


@pytest.mark.parametrize("method", METHODS)
def test_bootstrap_tells_strong_units_from_noise(method):
    P, Q = planted(1, 50.0)
    Q[:, -1] = 1
    found = bootstrap_labels(P, Q, method, draws=40, **OPTIONS[method])
    assert found.label[:4].tolist() == [3, 2, 1, 0] and (found.stability[:4] >= 0.9).all()
    assert (found.stability[4:-1] < 0.9).all() and (found.alternative[4:-1] >= 0).all()
    assert (found.alternative[found.stability == 1] == -1).all() and (found.low <= found.high).all()
    assert all(
        getattr(found, name).shape == (K,) for name in ("label", "stability", "low", "high", "alternative")
    )


def test_bootstrap_of_embeddings_and_of_units_in_another_order():
    _, Q = inputs()
    I, T = (
        torch.nn.functional.normalize(torch.randn(x, 5, generator=generator(x), dtype=torch.float64), dim=1)
        for x in (N, M)
    )
    first, second = (
        bootstrap_labels(P, Q, "cos_similarity_cubed", draws=7) for P in (FactoredMatrix(I, T), I @ T.T)
    )
    for name in ("label", "stability", "low", "high", "alternative"):
        assert_close(getattr(first, name), getattr(second, name), rtol=1e-9, atol=1e-12)
    flipped = bootstrap_labels(I @ T.T, Q.flip(1), "cos_similarity_cubed", draws=7)
    assert_close(flipped.low.flip(0), second.low) and torch.equal(flipped.label.flip(0), second.label)
    rows = torch.tensor([4, 4, 0])
    assert torch.equal(take_rows(FactoredMatrix(I, T), rows).I, I[[4, 4, 0]]) and torch.equal(
        take_rows(Q, rows), Q[[4, 4, 0]]
    )


def test_score_intervals_cover():
    """Of 300 intervals of the cosine with the only concept, 15 units at a time, about 95 % hold the true
    one.
    """
    held, g = 0, generator(9)
    for i in range(20):
        P = torch.randn(70, 1, generator=g, dtype=torch.float64)
        Q = 0.6 * P + 0.8 * torch.randn(70, 15, generator=g, dtype=torch.float64)
        found = bootstrap_labels(P, Q, "cos_similarity", draws=79, generator=generator(i))
        held += int(((found.low <= 0.6) & (0.6 <= found.high)).sum())
    assert 264 <= held <= 298  # units that share images are not quite independent


# --- errors

P0, Q0 = inputs()
ERRORS = [
    (lambda: null_best(P0, Q0, draws=0), "draws must be a positive whole number, got 0"),
    (lambda: null_best(P0[1:], Q0), "equal N, got 60 and 61"),
    (lambda: null_best(P0, Q0.where(Q0 < 2, math.nan)), "Q must be finite"),
    (lambda: null_best(P0, [Q0]), "of one layer, got list"),
    (lambda: null_best(P0, Q0, "wpmi", top_k=N), "all N 61 images no shuffle changes it"),
    (lambda: null_best(P0[:20], Q0[:20], "wpmi"), "all N 20 images no shuffle"),
    (lambda: null_best(P0, Q0, "wpmi", top_k=0), "top_k must be a positive whole number"),
    (lambda: null_best(P0, Q0, "rank_reorder", as_shipped=True), "without the option 'as_shipped'"),
    (lambda: null_best(P0, Q0, "wpmi", units=[1]), "without the option 'units'"),
    (lambda: null_best(P0, Q0, "wpmi", memory=900), "memory 900 bytes is too small"),
    (lambda: null_best(P0, Q0, "cos_similarity", memory=900), "memory 900 bytes is too small"),
    (lambda: null_best(P0, Q0, "cos_similarity", lam=1), "has no option 'lam'"),
    (lambda: null_best(P0, Q0[:, :1]), "the others of its layer"),
    (lambda: best_scores(P0, Q0[:, :1], "wpmi"), "the others of its layer"),
    (lambda: best_scores(P0, Q0, lam="1"), "lam must be a finite number"),
    (lambda: p_values(torch.ones(3), torch.ones(5, 2)), r"best \[K\] and null \[draws, K or 1\]"),
    (lambda: p_values(torch.ones(3), torch.ones(0, 3)), "at least one draw"),
    (lambda: p_values(torch.tensor([math.nan]), torch.ones(4, 1)), "best must be finite, got nan"),
    (lambda: z_values(torch.ones(1), torch.tensor([[math.inf]])), "null must be finite, got inf"),
    (lambda: abstain(torch.tensor([0.2, 1.2])), "from 0 to 1"),
    (lambda: abstain(torch.tensor([math.nan]), correction="none"), "from 0 to 1"),
    (lambda: abstain([0.2], level=2), "level must be a finite number"),
    (lambda: margin(torch.ones(3, 1)), "at least 2 concepts"),
    (lambda: margin(torch.tensor([[math.nan, 1]])), "finite scores"),
    (lambda: bootstrap_labels(P0, Q0, draws=0), "draws must be a positive whole number"),
    (lambda: bootstrap_labels(P0, Q0[1:]), "equal N, got 61 and 60"),
]


@pytest.mark.parametrize("call, message", ERRORS)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_names():
    with pytest.raises(KeyError, match="no correction 'holms'; nearest: holm"):
        abstain([0.2], correction="holms")
    with pytest.raises(KeyError, match="no similarity function 'cosine'"):
        null_best(P0, Q0, "cosine")
    assert set(OPTIONS) == set(SIMILARITIES)
