"""neuronym.similarity.scores against literal loops, released outputs, itself in other blocks, planted truths
and bad input.
"""

from __future__ import annotations

import math
import re
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from neuronym.common.memory import first_largest, stable_order, strongest_images
from neuronym.similarity import matrix
from neuronym.similarity import scores as scores_module
from neuronym.similarity.labels import labels_table
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score, score_embeddings, SIMILARITIES, top_labels
from neuronym.similarity.softened import mean_spread
from tests.helpers import reference
from tests.helpers.held import Held

N, K, M, D = 23, 7, 11, 5
METHODS = list(SIMILARITIES)
PMI = ["wpmi", "soft_wpmi"]
FRACTION = {"rank_reorder": {"top_fraction": 0.4}}  # 9 of 23 images


def inputs(dtype=torch.float64, n=N, k=K, m=M, d=D, seed=0, cone=4):
    """Unit rows I, T with a common direction, as CLIP's cone has it, so that P is positive; Q normal, no
    ReLU.
    """
    g = torch.Generator().manual_seed(seed)
    I, T = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (n, m))
    I[:, 0] += cone
    T[:, 0] += cone
    Q = torch.randn(n, k, generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (I / I.norm(dim=1, keepdim=True), T / T.norm(dim=1, keepdim=True), Q)]


def literal(method, P, Q, **options):
    if method == "rank_reorder":
        options = {**FRACTION[method], "floor": 1e-7, **options}
        if "permutations" not in options:
            g = torch.Generator().manual_seed(0)
            n = int(options["top_fraction"] * len(Q))
            options["permutations"] = [
                [torch.randperm(n, generator=g).tolist() for _ in range(5)] for _ in Q.T
            ]
    elif method in PMI:
        options = {"top_k": min(len(Q), 28 if method == "wpmi" else 100), **options}
    return torch.tensor(getattr(reference, method)(P, Q, **options), dtype=torch.float64)


def fast(method, P, Q, **options):
    return score(P, Q, method, **{**FRACTION.get(method, {}), **options})


@pytest.fixture(params=["compiled", "torch"])
def loops(request, monkeypatch):
    """With the compiled loops, and with the torch operations that stand in for them."""
    if request.param == "torch":
        for module in ("columns", "combined", "softened", "pmi", "rank_reorder"):
            monkeypatch.setattr(f"neuronym.similarity.{module}.compiled_loops", lambda *given: None)
    else:
        pytest.importorskip("numba")


def exact(actual, expected):
    assert_close(
        actual, expected, rtol=1e-10, atol=1e-12
    )  # logarithms that sum to 100 cancel against the prior


def disagreements(scores, exact_scores, tolerance):
    """Units whose best concept is, by the exact scores, worse than the best by more than the tolerance."""
    chosen = exact_scores.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    return (exact_scores.amax(1) - chosen > tolerance).nonzero().flatten().tolist()


# parity


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(
    "method, options",
    [
        *[(method, {}) for method in METHODS],
        ("cos_similarity_cubed", {"eps": 0}),
        ("cos_similarity_cubed", {"eps": 2.5}),
        ("correlation", {"slope": 17.0, "offset": -12.0}),
        ("correlation", {"slope": -3}),
        ("soft_correlation", {"sharpness": 3}),
        ("soft_correlation", {"sharpness": -1}),
        ("soft_correlation", {"slope": 20}),
        ("soft_correlation", {"slope": 0}),
        ("combined_correlation", {"sharpness": 3}),
        ("standardised_correlation", {"sharpness": 3}),
        ("standardised_correlation", {"sharpness": -1}),
        ("combined_correlation", {"cubed": 2.5}),
        ("combined_correlation", {"cubed": 0}),
        ("layered_correlation", {"final": True}),
        ("layered_correlation", {"final": True, "sharpness": 3}),
        ("wpmi", {"top_k": 6, "a": 3.5, "lam": 0.25, "eps": 1e-3}),
        ("wpmi", {"eps": 0}),
        ("wpmi", {"top_k": N, "lam": 0}),
        ("soft_wpmi", {"top_k": 8, "a": 25, "lam": 0.5, "p_start": 0.9, "p_end": 0.2, "eps": 1e-4}),
        ("soft_wpmi", {"top_k": 9, "p_start": 1, "p_end": 1, "eps": 0}),
        ("soft_wpmi", {"p_start": 0, "p_end": 0}),
        ("soft_wpmi", {"top_k": 1}),
        ("soft_wpmi", {"a": 0}),
        ("soft_wpmi", {"a": -3}),
        ("rank_reorder", {"top_fraction": 1, "p": 1, "scale_p": 2}),
        ("rank_reorder", {"top_fraction": 0.1, "p": 2.5, "scale_p": 0}),
    ],
)
def test_float64_equals_the_literal_formula(method, options):
    I, T, Q = inputs()
    exact(fast(method, I @ T.T, Q, **options), literal(method, I @ T.T, Q, **options))


def test_rank_reorder_draws_as_documented():
    I, T, Q = inputs()
    P, options = I @ T.T, {"top_fraction": 0.4}
    g = torch.Generator().manual_seed(5)
    permutations = [[torch.randperm(9, generator=g).tolist() for _ in range(3)] for _ in range(K)]
    drawn = score(
        P, Q, "rank_reorder", n_permutations=3, generator=torch.Generator().manual_seed(5), **options
    )
    exact(drawn, literal("rank_reorder", P, Q, permutations=permutations))
    exact(
        score(P, Q, "rank_reorder", n_permutations=None, **options),
        literal("rank_reorder", P, Q, permutations="all"),
    )


@pytest.mark.usefixtures("loops")
def test_rank_reorder_as_shipped():
    I, T, Q = inputs()
    P, g = I @ T.T, torch.Generator().manual_seed(0)
    P[:, 3] -= 1  # negative everywhere: the released root of the mean is nan
    Q[:, 2] = 1  # dead: the released error is 0 / 0
    shipped = fast("rank_reorder", P, Q, as_shipped=True, generator=g)
    expected = literal("rank_reorder", P, Q, floor=None)
    assert (
        expected[:, 3].isnan().all()
        and expected[2].isnan().all()
        and int(expected.isnan().sum()) == K + M - 1
    )
    assert_close(shipped, expected, rtol=1e-10, atol=0, equal_nan=True)
    corrected = fast("rank_reorder", P, Q)
    assert corrected.isfinite().all() and (corrected[:, 3] == corrected.amin(1)).all()
    assert_close(corrected[~shipped.isnan()], shipped[~shipped.isnan()])
    torch.manual_seed(1)
    first = fast("rank_reorder", P, Q, as_shipped=True)
    assert not torch.equal(first[:, 0], fast("rank_reorder", P, Q, as_shipped=True)[:, 0])  # drawn afresh
    assert torch.equal(corrected, fast("rank_reorder", P, Q))  # drawn from seed 0


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(
    "method, options",
    [
        ("cos_similarity", {}),
        ("cos_similarity_cubed", {}),
        ("wpmi", {"top_k": 28, "a": 2, "lam": 0.6}),
        ("soft_wpmi", {"top_k": 100, "a": 10, "lam": 1}),
    ],
)
def test_equals_the_released_code(shared, method, options):
    golden = load_file(shared / "golden" / "similarity_a.safetensors")
    scores = score(golden["P"], golden["activations"], method, **options)
    # the release adds, in float32, top_k logarithms of 1 - .998 + ...: numbers near .002 that are known to
    # 3e-5
    assert_close(scores, golden[method], rtol=1e-5, atol={"soft_wpmi": 2e-3, "wpmi": 1e-4}.get(method, 1e-6))
    assert disagreements(scores, golden[method].double(), 1e-3) == []


def test_rank_reorder_equals_the_released_mean(shared):
    golden = load_file(shared / "golden" / "similarity_a.safetensors")
    runs = 40
    g = torch.Generator().manual_seed(2)
    drawn = torch.stack(
        [
            score(golden["P"], golden["activations"], "rank_reorder", top_fraction=0.1, generator=g)
            for _ in range(runs)
        ]
    )
    error = golden["rank_reorder_std"] * math.sqrt(1 / runs + 1 / 200)
    z = (drawn.mean(0) - golden["rank_reorder_mean"]) / error
    assert z.abs().max() < 5 and z.mean(1).pow(2).mean() < 3
    assert_close(drawn.std(0), golden["rank_reorder_std"], rtol=0.6, atol=0)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", METHODS)
def test_float32_gives_the_labels_of_float64(method):
    I, T, Q = inputs(n=150, k=40, m=90)
    exact_scores = fast(method, I @ T.T, Q)
    scores = fast(method, (I @ T.T).float(), Q.float())
    assert scores.dtype == torch.float32
    tolerance = 1e-3 if method in PMI else 1e-5  # sums of 100 logarithms, of size 400
    assert_close(scores.double(), exact_scores, rtol=1e-5, atol=tolerance)
    assert disagreements(scores, exact_scores, tolerance) == []


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(
    "method, top_k, a", [("wpmi", 28, 2), ("wpmi", 200, 2), ("soft_wpmi", 100, 10), ("soft_wpmi", 100, 25)]
)
def test_float32_is_as_exact_as_stated(method, top_k, a):
    """A sum of top_k logarithms is off by at most top_k (|a P| + 12) u, beside the rounding of the sum."""
    I, T, Q = inputs(torch.float32, n=211, k=40, m=301, d=8)
    P, u = I @ T.T, 2**-24
    exact_sums = score(P.double(), Q.double(), method, top_k=top_k, a=a, lam=0)
    bound = top_k * (a * float(P.abs().max()) + 12) * u + 4 * u * exact_sums.abs()
    assert ((score(P, Q, method, top_k=top_k, a=a, lam=0) - exact_sums).abs() < bound).all()


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", PMI)
@pytest.mark.parametrize("a", [-300, 90, 2000])
def test_powers_beyond_the_range_of_floats(method, a):
    """Softmaxes near 0 and 1, and products of factors so unequal that each takes a logarithm of its own."""
    I, T, Q = inputs(torch.float32, n=61, m=29)
    P = I @ T.T
    scores, expected = score(P, Q, method, a=a), literal(method, P, Q, a=a)
    assert_close(scores.double(), expected, rtol=2e-4, atol=2e-4 * abs(a))
    exact(score(P.double(), Q.double(), method, a=a), expected)


def test_numba_may_be_missing(monkeypatch):
    I, T, Q = inputs(torch.float32)
    compiled = {method: fast(method, I @ T.T, Q) for method in METHODS}
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "neuronym.similarity.kernels", raising=False)
    for method in METHODS:
        assert_close(fast(method, I @ T.T, Q), compiled[method], rtol=1e-5, atol=1e-4)
    assert "neuronym.similarity.kernels" not in sys.modules


def test_disagreements_are_found():
    truth = torch.tensor([[1.0, 0.9999, 0], [1, 0.5, 0]])
    assert disagreements(torch.tensor([[0.0, 1, 0], [1, 0, 0]]), truth, 1e-3) == []
    assert disagreements(torch.tensor([[0.0, 1, 0], [0, 1, 0]]), truth, 1e-3) == [1]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(method, dtype):
    I, T, Q = inputs(dtype)
    P = (I.float() @ T.float().T).to(dtype)
    scores = fast(method, P, Q)
    assert scores.dtype == torch.float32
    assert_close(scores, fast(method, P.float(), Q.float()), rtol=0, atol=0)
    assert_close(
        score_embeddings(I, T, Q, method, **FRACTION.get(method, {})),
        score_embeddings(I.float(), T.float(), Q.float(), method, **FRACTION.get(method, {})),
        rtol=0,
        atol=0,
    )


# the same scores whatever the blocks, the order and the path


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [1, 7, K, K + 1, M, M + 1])
def test_blocks_do_not_matter(method, step, monkeypatch):
    I, T, Q = inputs()
    options = FRACTION.get(method, {})
    whole = score(I @ T.T, Q, method, **options)
    for module in ("columns", "combined", "softened", "standardised", "rank_reorder", "pmi"):
        monkeypatch.setattr(
            f"neuronym.similarity.{module}.items_within",
            lambda memory, *stages: [min(step, count) for *_, count in stages],
        )
    exact(score(I @ T.T, Q, method, **options), whole)
    exact(score_embeddings(I, T, Q, method, **options), whole)
    exact(score_embeddings(I, T, Q, method, units=[4, 0], **options), whole[[4, 0]])


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_matter_and_too_little_is_refused(method):
    I, T, Q = inputs()
    options = FRACTION.get(method, {})
    whole = score(I @ T.T, Q, method, **options)
    with pytest.raises(ValueError, match="memory 1 bytes is too small .*; pass at least") as caught:
        score_embeddings(I, T, Q, method, memory=1, **options)
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    with pytest.raises(ValueError, match=f"pass at least {least}"):
        score_embeddings(I, T, Q, method, memory=least - 1, **options)
    for memory in (least, least + 500, 2 * least, 7 * least, 50 * least):
        exact(score_embeddings(I, T, Q, method, memory=memory, **options), whole)


@pytest.mark.parametrize("method", METHODS)
def test_an_n_by_m_matrix_is_never_held(method):
    I, T, Q = inputs(torch.float32, n=431, k=13, m=1009)
    whole, scores = 431 * 1009 * 4, 13 * 1009 * 4
    options = {"rank_reorder": {}, "wpmi": {}, "soft_wpmi": {"top_k": 60}}.get(method, {})
    memory = whole // 4
    with Held() as held:
        score_embeddings(I, T, Q, method, memory=memory, **options)
    assert held.largest <= max(memory, scores)
    assert held.most <= memory + 3 * scores  # the result, and what looks at whether it is finite


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threads", [1, 2, 5, 30])
def test_threads_do_not_matter(method, threads):
    I, T, Q = inputs()
    whole, before = fast(method, I @ T.T, Q), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact(fast(method, I @ T.T, Q), whole)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_concepts_and_units_does_not_matter(method):
    I, T, Q = inputs()
    options = FRACTION.get(method, {}) | ({"n_permutations": None} if method == "rank_reorder" else {})
    units, concepts = torch.randperm(K), torch.randperm(M)
    whole = score(I @ T.T, Q, method, **options)
    exact(score((I @ T.T)[:, concepts], Q[:, units], method, **options), whole[units][:, concepts])
    exact(score_embeddings(I, T[concepts], Q[:, units], method, **options), whole[units][:, concepts])


@pytest.mark.parametrize("method", METHODS)
def test_order_of_images_does_not_matter(method):
    I, T, Q = inputs()
    images = torch.randperm(N)
    exact(fast(method, (I @ T.T)[images], Q[images]), fast(method, I @ T.T, Q))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("units", [[3], [6, 0, 3], range(2, 5), torch.tensor([1, 1])])
def test_units_select_after_normalising(method, units):
    I, T, Q = inputs()
    whole = fast(method, I @ T.T, Q)
    exact(fast(method, I @ T.T, Q, units=units), whole[torch.tensor([*units])])
    exact(
        score_embeddings(I, T, Q, method, units=units, **FRACTION.get(method, {})),
        whole[torch.tensor([*units])],
    )


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory", [1, 4 * M * (K + 3), 2**28])
def test_layers_together_are_layers_one_by_one(method, memory, monkeypatch):
    I, T, Q = inputs()
    layers, options = {"a": Q, "b": Q[:, :3] ** 2, "c": Q[:, 2:]}, FRACTION.get(method, {})
    made = []
    monkeypatch.setattr(
        "neuronym.similarity.scores.score",
        lambda *a, **k: made.append(len(a[1])) or score(*a, **{**k, "memory": 2**28}),
    )
    together = dict(
        scores_module.score_layers(FactoredMatrix(I, T), layers, method, memory=memory, **options)
    )
    assert list(together) == ["a", "b", "c"] and made == {1: [1, 1, 1], 2**28: [3]}.get(memory, [2, 1])
    for name, layer in layers.items():
        exact(together[name], fast(method, I @ T.T, layer))
    drawn = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for scores, layer in zip(fast(method, I @ T.T, [*layers.values()], generator=drawn[0]), layers.values()):
        exact(scores, fast(method, I @ T.T, layer, generator=drawn[1]))


@pytest.mark.parametrize("method", PMI)
def test_the_prior_is_over_the_whole_layer(method):
    I, T, Q = inputs()
    P = I @ T.T
    alone = fast(method, P, Q[:, :3], top_k=5)
    assert (alone - fast(method, P, Q, top_k=5, units=[0, 1, 2])).abs().max() > 1e-3
    exact(fast(method, P, Q, top_k=5, units=[0, 1, 2], lam=0), fast(method, P, Q[:, :3], top_k=5, lam=0))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone_and_may_be_views(method):
    I, T, Q = inputs()
    wide = torch.zeros(N, 2 * M, dtype=torch.float64)
    wide[:, ::2] = I @ T.T
    P, Q = wide[:, ::2], Q.T.contiguous().T.requires_grad_()
    I.requires_grad_()
    exact(fast(method, (I @ T.T), Q), fast(method, P, Q))  # such a P has a gradient
    kept = [x.detach().clone() for x in (P, I, T, Q)]
    exact(fast(method, P, Q), score_embeddings(I, T, Q, method, **FRACTION.get(method, {})))
    assert all(torch.equal(x, y) for x, y in zip((P, I, T, Q), kept))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_scores_of_the_cpu(method):
    I, T, Q = inputs(torch.float32, n=150, k=40, m=90)
    options = FRACTION.get(method, {})
    scores = score_embeddings(I.cuda(), T.cuda(), Q.cuda(), method, units=[5, 2], **options)
    assert scores.is_cuda
    assert_close(
        scores.cpu(), score_embeddings(I, T, Q, method, units=[5, 2], **options), rtol=1e-4, atol=1e-3
    )


# truths


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-4, 0), (300, -20)])
def test_a_planted_unit_gets_its_planted_concept(method, scale, shift):
    I, T, Q = inputs(n=1201, m=31, d=24, cone=0)
    planted = torch.arange(K) * 4 + 1
    Q = scale * ((I @ T.T)[:, planted] + 0.02 * Q)
    Q = Q.relu() if method == "cos_similarity" else Q + shift  # not centred: it needs units at rest at 0
    assert fast(method, I @ T.T, Q).argmax(1).tolist() == planted.tolist()
    assert score_embeddings(I, T, Q, method).argmax(1).tolist() == planted.tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_a_positive_scale_of_a_unit_keeps_its_labels(method, scale):
    I, T, Q = inputs(torch.float32)
    if method == "cos_similarity_cubed" and scale < 1:
        scale = 0.5  # its eps is absolute: very small units all score 0, as released
    P = I @ T.T
    assert fast(method, P, Q * scale).argmax(1).tolist() == fast(method, P, Q).argmax(1).tolist()


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0, 0.1, -7, 1e6])
def test_dead_units_and_constant_concepts_give_numbers(method, value, dtype):
    I, T, Q = inputs(dtype)
    P = I @ T.T
    Q[:, 2] = value
    P[:, 5] = value
    P[:, 8] = 0
    scores = fast(method, P, Q)
    assert scores.isfinite().all()
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-8}[
        dtype
    ]  # the literal loop centres .1 to a rounding error
    expected = literal(method, P, Q)
    if method in ("soft_correlation", "combined_correlation") and (value, dtype) == (1e6, torch.float32):
        # one cosine of 1e6 leaves the others' shares constant but for rounding
        expected = expected - literal("soft_correlation", P, Q)
    if method in ("standardised_correlation", "layered_correlation") and value == 1e6:
        if dtype == torch.float32:
            expected = expected - literal("correlation", reference.twice_standardised(P), Q)
        tolerance = 1e-2  # beside such a cosine all keep few digits once images are standardised
    alive = [k for k in range(K) if k != 2]
    assert_close(scores[alive].double(), expected[alive], rtol=tolerance, atol=tolerance)
    assert_close(scores[2].mean().double(), expected[2].mean(), rtol=tolerance, atol=tolerance)
    if method == "cos_similarity_cubed":
        assert not scores[:, 5].any()
    if method == "rank_reorder":
        assert (scores[alive, 8] == scores[alive].amin(1)).all()


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("method", METHODS)
def test_units_of_one_value_have_one_score_and_no_name(method):
    """Dead, constant, and constant but for rounding; a layer, two, some of its units, half precision."""
    I, T, Q = inputs(torch.float32)
    P, words = I @ T.T, [f"word {i}" for i in range(M)]
    before = fast(method, P, Q)
    Q[:, 1], Q[:, 4], Q[:, 5] = 0, -3, 7 + 1e-6 * Q[:, 5]
    level = [1, 4, 5]
    found = {
        "whole": fast(method, P, Q),
        "some": fast(method, P, Q, units=[4, 0]),
        "half": fast(method, P, Q.half()),
    }
    found["blocks"], found["again"] = fast(method, FactoredMatrix(I, T), [Q, Q.clone()])
    for name, scores in found.items():
        nameless = [0] if name == "some" else level
        assert (scores.amax(1) == scores.amin(1)).nonzero().flatten().tolist() == nameless
        table = labels_table(scores, words, model="m", layer="l", method=method, k=2)
        assert sorted({*table.loc[table["label"] == "", "unit"]}) == nameless
        assert (
            (table["note"] == "").tolist()
            == (table["label"] != "").tolist()
            == table["score"].notna().tolist()
        )
    if method not in PMI:  # whose prior is of the whole layer
        others = [0, 2, 3, 6]
        assert_close(found["whole"][others], before[others])
    if method in PMI:  # one image is no constant
        assert (score(P[:1], Q[:1, :1], method, lam=0)[0].unique()).numel() > 1


@pytest.mark.usefixtures("loops")
def test_soft_correlation_has_no_scale_of_its_own():
    """What a CLIP adds to all cosines of an image, or multiplies all by, says nothing of concepts."""
    I, T, Q = inputs()
    P = I @ T.T
    whole = fast("soft_correlation", P, Q)
    lifted = P + torch.randn(N, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for other in (lifted, 1e-3 * P, 40 * P):
        exact(fast("soft_correlation", other, Q), whole)
    assert (fast("correlation", lifted, Q) - fast("correlation", P, Q)).abs().max() > 0.1
    spread = float(P.std(1, correction=0).mean())
    exact(fast("soft_correlation", P, Q, slope=2 / spread), whole)
    for some in (1, 7, N, 2 * M):
        assert mean_spread(P, some) == pytest.approx(spread, rel=1e-12)
        assert mean_spread(FactoredMatrix(I, T), some) == pytest.approx(spread, rel=1e-12)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_correlation_where_concepts_cannot_be_told_apart(dtype):
    I, T, Q = inputs(dtype)
    for same in (T[:1], T[:1].expand(4, -1)):
        assert not score_embeddings(I, same, Q, "soft_correlation").any()
        assert not score(I @ same.T, Q, "soft_correlation").any()


@pytest.mark.parametrize("n", [1, 4, 9, 12])
def test_the_first_of_equal_values_comes_first(n):
    values = torch.randint(4, (50, 12), generator=torch.Generator().manual_seed(0)).float()
    values[0], values[1] = 2, torch.arange(12)
    expected = [sorted(range(12), key=lambda i: (-row[i], i))[:n] for row in values.tolist()]
    assert first_largest(values, n).tolist() == expected


@pytest.mark.usefixtures("loops")
def test_ties():
    """Equal activations: lower image first. Equal P: no credit. Equal scores: lower concept first."""
    P = torch.tensor([[3.0, 0, 1], [2, 0, 1], [1, 0, 1], [0, 9, 1]], dtype=torch.float64)
    Q = torch.tensor([[1.0, 0.0], [1, -0.0], [1, 0], [1, 0]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        assert strongest_images(Q.to(dtype), torch.arange(2), 3, dtype, 1).tolist() == [[0, 1, 2], [0, 1, 2]]
    Q[3] = -1  # a unit of one value only has no order
    exact(score(P, Q, "wpmi", top_k=2), literal("wpmi", P, Q, top_k=2))
    scores = score(P, torch.tensor([[4.0], [3], [2], [1]]), "rank_reorder", top_fraction=1, scale_p=0)
    assert scores[0, 0] == 0 and scores[0, 2] == scores.min()
    values, indices = top_labels(torch.tensor([[1.0, 2, 2, 0], [0, 0, 0, 0]]), list("abcd"), k=3)
    assert indices.tolist() == [[1, 2, 0], [0, 1, 2]] and values.tolist() == [[2, 2, 1], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_is_a_stable_sort(dtype):
    g = torch.Generator().manual_seed(3)
    scales = torch.tensor([1e-42, -1e-9, 1, 1e30, 1e38]).to(dtype)
    values = torch.randint(-3, 4, (5, 2, 60), generator=g).to(dtype) * scales[:, None, None]
    values[0, 0, :4] = torch.tensor([0.0, -0.0, math.inf, -math.inf])
    assert torch.equal(stable_order(values), values.sort(dim=-1, stable=True).indices)


def test_few_images_take_all_of_them_by_default():
    I, T, Q = inputs()
    for method in PMI:
        assert torch.equal(score(I @ T.T, Q, method), score(I @ T.T, Q, method, top_k=N))


def test_identity_draws_do_not_divide_by_zero():
    I, T, Q = inputs(k=64)
    two = {"top_fraction": 2 / N, "n_permutations": 1}  # half of the draws are the identity
    P = I @ T.T
    assert score(P, Q, "rank_reorder", **two).isfinite().all()
    assert not score(P, Q, "rank_reorder", as_shipped=True, **two).isfinite().all()


def test_functions_by_name_are_the_functions():
    I, T, Q = inputs()
    for method in METHODS:
        options = FRACTION.get(method, {})
        assert torch.equal(SIMILARITIES[method](I @ T.T, Q, **options), score(I @ T.T, Q, method, **options))
        assert torch.equal(
            SIMILARITIES[method](matrix.FactoredMatrix(I, T), Q, **options),
            score_embeddings(I, T, Q, method, **options),
        )
        assert getattr(scores_module, method) is SIMILARITIES[method]


# bad input

P, Q = torch.rand(N, M), torch.rand(N, K)
I, T = torch.rand(N, D), torch.rand(M, D)


def bad(X, i, j, value):
    X = X.clone()
    X[i, j] = value
    return X


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: score(P, Q, "soft_wmpi"),
            KeyError,
            "no similarity function 'soft_wmpi'; nearest: soft_wpmi; known: cos_similarity,",
        ),
        (
            lambda: score(P, Q, "wpmi", topk=3),
            ValueError,
            "wpmi has no option 'topk'; valid: top_k, a, lam, eps$",
        ),
        (
            lambda: score(P, Q, "cos_similarity", a=3),
            ValueError,
            "cos_similarity has no option 'a'; valid: none",
        ),
        (
            lambda: score(P[1:], Q),
            ValueError,
            r"expected P \[N, M\] and Q \[N, K\] with equal N, got 22 and 23",
        ),
        (
            lambda: score_embeddings(I, T[:, 1:], Q),
            ValueError,
            r"expected I \[N, d\] and T \[M, d\] with equal d, got 5 and 4",
        ),
        (
            lambda: score(P.numpy(), Q),
            ValueError,
            "expected P as a real torch tensor of two axes, none empty, got ndarray",
        ),
        (
            lambda: score(P, Q[0]),
            ValueError,
            r"expected Q as a real torch tensor of two axes, none empty, got torch.float32 \[7\]",
        ),
        (lambda: score(P[:, :0], Q), ValueError, r"expected P .*, none empty, got torch.float32 \[23, 0\]"),
        (lambda: score(P * 1j, Q), ValueError, "expected P as a real torch tensor"),
        (
            lambda: score(P, Q.to("meta")),
            ValueError,
            "expected all tensors on one device, got P on cpu, Q on meta; move them",
        ),
        *[
            (
                lambda m=m: score(P, bad(Q, 9, 3, math.nan), m),
                ValueError,
                "Q must be finite, got nan at image 9, unit 3;",
            )
            for m in METHODS
        ],
        *[
            (
                lambda m=m: score(bad(P, 9, 3, -math.inf), Q, m),
                ValueError,
                "P must be finite, got -inf at image 9, concept 3;",
            )
            for m in METHODS
        ],
        (
            lambda: score_embeddings(bad(I, 20, 4, math.inf), T, Q),
            ValueError,
            "I must be finite, got inf at image 20, dimension 4;",
        ),
        (
            lambda: score_embeddings(I, bad(T, 0, 0, math.nan), Q),
            ValueError,
            "T must be finite, got nan at concept 0, dimension 0;",
        ),
        (
            lambda: score(P, [Q, Q[:9]]),
            ValueError,
            r"expected P \[N, M\] and Q\[1\] \[N, K\] with equal N, got 23 and 9",
        ),
        (
            lambda: score(P, [Q, bad(Q, 1, 2, math.nan)]),
            ValueError,
            r"Q\[1\] must be finite, got nan at image 1, unit 2;",
        ),
        (
            lambda: score(P, [Q, Q], units=[1]),
            ValueError,
            "expected one layer or more, and units for one layer only, got 2",
        ),
        (lambda: score(P, []), ValueError, "expected one layer or more, .*, got 0 layers"),
        (lambda: score(P, Q, top_k=100), ValueError, "top_k 100 exceeds N 23 images; pass top_k<=23"),
        (lambda: score(P, Q, "wpmi", top_k=24), ValueError, "top_k 24 exceeds N 23 images; pass top_k<=23"),
        (lambda: score(P, Q, top_k=0), ValueError, "top_k must be a positive whole number, got 0"),
        (lambda: score(P, Q, top_k=2.5), ValueError, "top_k must be a positive whole number, got 2.5"),
        (lambda: score(P, Q, top_k=True), ValueError, "top_k must be a positive whole number, got True"),
        (lambda: score(P, Q, lam="1"), ValueError, "lam must be a finite number, got '1'"),
        (lambda: score(P, Q, a=math.nan), ValueError, "a must be a finite number, got nan"),
        (
            lambda: score(P * 1e30, Q, a=1e20),
            ValueError,
            "a 1e[+]20 times P overflows float32; pass a smaller a, or float64 inputs",
        ),
        (
            lambda: score(P, Q, p_start=1.2),
            ValueError,
            "p_start must be a finite number from 0 to 1, got 1.2",
        ),
        (lambda: score(P, Q, p_end=-0.1), ValueError, "p_end must be a finite number from 0 to 1, got -0.1"),
        (lambda: score(P, Q, eps=-1), ValueError, "eps must be a finite number from 0, got -1"),
        (lambda: score(P, Q, "wpmi", eps=-1), ValueError, "eps must be a finite number from 0, got -1"),
        (
            lambda: score(P, Q, "cos_similarity_cubed", eps=-1),
            ValueError,
            "eps must be a finite number from 0, got -1",
        ),
        (
            lambda: score(P, Q, "rank_reorder"),
            ValueError,
            "top_fraction 0.05 of N 23 images is 1, and an order needs 2; pass at least 0.087$",
        ),
        (
            lambda: score(P, Q, "rank_reorder", top_fraction=1.5),
            ValueError,
            "top_fraction must be a finite number from 0 to 1, got 1.5",
        ),
        (lambda: score(P, Q, "rank_reorder", p=0), ValueError, "p and eps must be positive, got p 0"),
        (
            lambda: score(P, Q, "rank_reorder", scale_p=-1),
            ValueError,
            "scale_p must be a finite number from 0, got -1",
        ),
        (
            lambda: score(P, Q, "rank_reorder", n_permutations=0),
            ValueError,
            "n_permutations must be a positive whole number, got 0",
        ),
        (
            lambda: score(P, Q, units=[0, 7]),
            ValueError,
            r"units must be a list of indices from 0 to 6 \(K 7\), got \[0, 7\]",
        ),
        *[
            (lambda u=u: score(P, Q, units=u), ValueError, "units must be a list of indices from 0 to 6")
            for u in ([-1], [], 3, [1.5], ["a"], [True], Q[0] > 0.5, slice(3))
        ],
        (lambda: score(P, Q, memory=0), ValueError, "memory must be a positive whole number, got 0"),
        (
            lambda: score(P, Q, memory=2.0**20),
            ValueError,
            "memory must be a positive whole number, got 1048576.0",
        ),
        (
            lambda: top_labels(P, ["a"]),
            ValueError,
            r"expected scores \[K, M\] with one column for each of 1 concepts, got \[23, 11\]",
        ),
        (
            lambda: top_labels(P, list("abcdefghijk"), k=12),
            ValueError,
            "k 12 exceeds M 11 concepts; pass k<=11",
        ),
        (
            lambda: top_labels(P, list("abcdefghijk"), k=0),
            ValueError,
            "k must be a positive whole number, got 0",
        ),
        (
            lambda: top_labels(bad(P, 4, 2, math.nan), list("abcdefghijk")),
            ValueError,
            "scores must not be nan, but are at unit 4, concept 2",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
