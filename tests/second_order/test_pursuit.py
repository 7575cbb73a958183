"""neuronym.second_order.text_code against literal loops, released codes, scikit-learn, itself in other blocks
and precisions, and bad input.
"""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from neuronym.second_order import pursuit, text_code
from neuronym.second_order.pursuit import matching_pursuit
from neuronym.second_order.text_code import code_coefficients, code_table, reconstruct, text_pool
from neuronym.similarity.labels import COLUMNS
from tests.helpers import reference_omp
from tests.helpers.held import Held

K, M, D = 7, 83, 19


def inputs(dtype=torch.float64, k=K, m=M, d=D, seed=0):
    """Directions, and texts of decaying spectrum in a cone, of norm 1, as CLIP's are."""
    g = torch.Generator().manual_seed(seed)
    R, T = (torch.randn(rows, d, generator=g, dtype=torch.float64) for rows in (k, m))
    T = T * torch.arange(1, d + 1).double() ** -0.5 + 1
    return R.to(dtype), (T / T.norm(dim=1, keepdim=True)).to(dtype)


def dense(order, gamma, m=M):
    """order, gamma [K, n] -> codes [K, m]"""
    return torch.zeros(len(order), m + 1, dtype=gamma.dtype).scatter_(1, order % (m + 1), gamma)[:, :m]


def agrees(R, T, n):
    """Same atoms in the same order, -1 after them, and coefficients and residuals to 1e-9."""
    order, expected = matching_pursuit(R, T, n), reference_omp.matching_pursuit(R, T, n)
    assert order.dtype == torch.int64 and order.shape == (len(R), n)
    assert order.tolist() == [[j for j, _ in code] + [-1] * (n - len(code)) for code in expected]
    gamma = code_coefficients(R, T, order)
    values = torch.tensor(
        [[g for _, g in code] + [0.0] * (n - len(code)) for code in expected], dtype=torch.float64
    )
    assert_close(gamma, values, rtol=1e-9, atol=1e-9)
    return order, gamma


# the pool


@pytest.mark.parametrize("text_norm", text_code.NORMS)
def test_pool_equals_the_literal_formula(text_norm):
    T = inputs()[1]
    before = T.clone()
    assert_close(
        text_pool(T, text_norm), torch.tensor(reference_omp.text_pool(T, text_norm)), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(T, before)
    single = text_pool(T.float(), text_norm)
    assert single.dtype == text_pool(T.half(), text_norm).dtype == torch.float32
    assert_close(single.double(), text_pool(T.float().double(), text_norm), rtol=1e-6, atol=1e-6)


def test_pool_leaves_zeros():
    T = inputs()[1]
    T[:, 5] = 0.1  # equal in all texts: their mean is .1 but for rounding
    T[11] = T[[i for i in range(M) if i != 11]].mean(0)
    for dtype in (torch.float64, torch.float32):
        assert (text_pool(T.to(dtype), "per_dimension")[:, 5] == 0).all()
    assert (text_pool(T[:1].repeat(33, 1)) == 0).all() and (text_pool(T[:1].float().repeat(77, 1)) == 0).all()
    assert (text_pool(torch.tensor([[1.0, 2], [3, 6], [2, 4]]))[2] == 0).all()


# parity


@pytest.mark.parametrize("text_norm", text_code.NORMS)
@pytest.mark.parametrize("n", [1, 4, D - 1])
def test_float64_equals_the_literal_loop(text_norm, n):
    R, T = inputs()
    agrees(R, text_pool(T, text_norm), n)


def test_more_words_than_dimensions_end_early():
    R, T = inputs(d=5)
    order, gamma = agrees(R, text_pool(T), 9)
    assert (order[:, :5] >= 0).all() and (order[:, 5:] == -1).all() and (gamma[:, 5:] == 0).all()
    assert_close(reconstruct(gamma, order, text_pool(T)), R, rtol=1e-9, atol=1e-9)
    order = matching_pursuit(R.float(), text_pool(T).float(), 9)
    assert (order[:, 5:] == -1).all() and (order[:, :4] >= 0).all()


def test_pools_that_do_not_span():
    R, T = inputs(m=6)
    order, _ = agrees(R, T, 6)
    assert (order.sort(dim=1).values == torch.arange(6)).all()
    T[3:] = T[:3] * torch.tensor(
        [[2.0], [-1], [0.5]]
    )  # of rank 3; the first atom twice, and longer: chosen for its length
    order, _ = agrees(R, T, 6)
    assert ((order >= 0).sum(1) == 3).all() and not (order == 0).any()


def test_ties_duplicates_and_zero_rows():
    R, T = inputs()
    T = text_pool(T)
    T[7], R[2] = 0, 0
    T[40:60] = T[20:40]  # equal
    T[60:80] = -T[:20]  # of equal absolute correlation
    order, _ = agrees(R, T, 12)
    assert not ((order >= 40) & (order < 80)).any() and not (order == 7).any()
    assert (order[2] == -1).all() and (order[[0, 1, 3]] >= 0).all()
    single = matching_pursuit(R.float(), T.float(), 12)
    assert not ((single >= 40) & (single < 80)).any()
    none, _ = agrees(R, torch.zeros(5, D, dtype=torch.float64), 3)
    assert (none == -1).all()
    axes, _ = agrees(torch.ones(2, 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64), 6)
    assert axes.tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_code_is_found_and_no_more(dtype):
    g = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(31, 31, generator=g, dtype=torch.float64))[0]
    T = torch.cat([basis, 0.1 * torch.randn(44, 31, generator=g, dtype=torch.float64) / 31**0.5])
    planted = torch.stack([torch.randperm(31, generator=g)[:4] for _ in range(9)])
    sizes = torch.tensor([4.0, -3, 2, -1], dtype=torch.float64).expand(9, 4)
    R, T = reconstruct(sizes, planted, T).to(dtype), T.to(dtype)
    order = matching_pursuit(R, T, 7)
    assert torch.equal(order[:, :4], planted) and (order[:, 4:] == -1).all()
    assert_close(code_coefficients(R, T, order)[:, :4], sizes.to(dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text_norm", ["per_dimension", "unit"])
@pytest.mark.parametrize("n", [4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_released_codes(shared, text_norm, n, dtype):
    golden = load_file(shared / "golden" / "second_order_a.safetensors")
    R, T = golden["pcs"].to(dtype), text_pool(golden["texts"].to(dtype), text_norm)
    order = matching_pursuit(R, T, n)
    codes, released = dense(order, code_coefficients(R, T, order), 200), golden[f"omp_{text_norm}_{n}"]
    assert ((codes != 0) == (released != 0)).all()
    assert_close(codes.float(), released, rtol=1e-4, atol=1e-6)


def test_equals_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    R, T = inputs(k=11)
    T = text_pool(T) / 100  # of norm 1, as scikit-learn expects
    coder = decomposition.SparseCoder(T.numpy(), transform_algorithm="omp", transform_n_nonzero_coefs=9)
    order = matching_pursuit(R, T, 9)
    assert_close(
        dense(order, code_coefficients(R, T, order)),
        torch.tensor(coder.transform(R.numpy())),
        rtol=1e-9,
        atol=1e-9,
    )


def test_float32_gives_the_words_of_float64():
    R, T = inputs(torch.float32, k=40, m=700, d=64)
    T = text_pool(T)
    order, exact = matching_pursuit(R, T, 32), matching_pursuit(R.double(), T.double(), 32)
    assert order.device == R.device and torch.equal(order, exact)
    assert_close(code_coefficients(R, T, order), code_coefficients(R.double(), T.double(), exact).float())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_do_not_matter(scale):
    R, T = inputs(torch.float32)
    T = text_pool(T)
    order = matching_pursuit(R, T, 9)
    assert torch.equal(matching_pursuit(R * scale, T, 9), order)
    assert torch.equal(matching_pursuit(R, T * (scale / 100), 9), order)


# properties


def test_codes_are_nested_and_residuals_fall():
    R, T = inputs()
    T, last = text_pool(T), R.norm(dim=1)
    order = matching_pursuit(R, T, 12)
    for n in range(1, 13):
        assert torch.equal(matching_pursuit(R, T, n), order[:, :n])
        residual = R - reconstruct(code_coefficients(R, T, order[:, :n]), order[:, :n], T)
        assert (residual.norm(dim=1) < last).all()
        assert (torch.einsum("knd,kd->kn", T[order[:, :n]], residual).abs() < 1e-9).all()
        last = residual.norm(dim=1)


@pytest.mark.parametrize("apart, tolerance", [(1e-1, 1e-11), (1e-3, 1e-8), (1e-5, 1e-4)])
def test_coefficients_of_nearly_dependent_atoms(apart, tolerance):
    """The square of the condition, some 1 / apart, is felt by any method; the sums are exact none the
    less.
    """
    R, T = inputs(m=9)
    T[5:] = T[:4] + apart * T[4:8]
    order = torch.arange(9).expand(K, 9)
    exact = torch.linalg.lstsq(T.T, R.T).solution.T
    gamma = code_coefficients(R, T, order)
    assert_close(gamma, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))
    assert_close(reconstruct(gamma, order, T), exact @ T, rtol=1e-8, atol=1e-8)


def test_coefficients_of_dependent_atoms():
    R, T = inputs(m=9)
    T[8] = T[0]
    order = torch.arange(9).expand(K, 9)
    gamma = code_coefficients(R, T, order)
    assert_close(gamma[:, 8], gamma[:, 0], rtol=1e-9, atol=1e-9)  # the smallest of all solutions
    assert_close(
        reconstruct(gamma, order, T),
        torch.linalg.lstsq(T[:8].T, R.T).solution.T @ T[:8],
        rtol=1e-9,
        atol=1e-9,
    )


def test_memory_does_not_matter_and_too_little_is_refused():
    R, T = inputs(torch.float32, k=23)
    T = text_pool(T)
    whole = matching_pursuit(R, T, 15)
    with pytest.raises(ValueError, match="memory 1 bytes is too small .*; pass at least") as caught:
        matching_pursuit(R, T, 15, memory=1)
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    for memory in (least, least + 20_000, least + 100_000):
        assert torch.equal(matching_pursuit(R, T, 15, memory=memory), whole)
    seen = []
    matching_pursuit(R, T, 15, memory=least, progress=lambda items, total, text: seen.append(total) or items)
    assert seen == [23]


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float32])
def test_memory_is_kept(coarse, monkeypatch):
    monkeypatch.setattr(pursuit, "coarse_dtype", lambda *_: coarse)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the count does not reach other threads
    try:
        R, T = inputs(torch.float32, k=901, m=3001, d=64)
        with Held() as held:
            matching_pursuit(R, T, 8, memory=2**25)
    finally:
        torch.set_num_threads(before)
    assert held.most <= 2**25 and held.largest < 3001 * 3001


def test_threads_do_not_matter():
    R, T = inputs(torch.float32)
    whole, before = matching_pursuit(R, T, 9), torch.get_num_threads()
    try:
        for threads in (1, 2, 5, 30):
            torch.set_num_threads(threads)
            assert torch.equal(matching_pursuit(R, T, 9), whole)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# screening


def screened(R, T, n, dtype, monkeypatch):
    monkeypatch.setattr(pursuit, "coarse_dtype", lambda *_: dtype)
    return matching_pursuit(R, T, n)


@pytest.mark.parametrize("spread", [0, 1e-7, 1e-5, 1e-3, 1])
def test_screening_changes_nothing(spread, monkeypatch):
    """Pools of atoms so alike that bfloat16 cannot tell them apart."""
    g = torch.Generator().manual_seed(4)
    R, T = inputs(torch.float32, k=31, m=71, d=48)
    T = text_pool(T).repeat(9, 1)[torch.randperm(9 * 71, generator=g)]
    T = T + spread * torch.randn(T.shape, generator=g)
    T[5] = 0
    T[100:150] *= torch.logspace(-6, 0, 50)[:, None]
    plain = screened(R, T, 24, torch.float32, monkeypatch)
    assert torch.equal(screened(R, T, 24, torch.bfloat16, monkeypatch), plain)
    assert torch.equal(screened(R, T, 24, torch.float64, monkeypatch), plain)
    first = (T.double() @ R.double().T).abs().argmax(0)
    coarse = (T.bfloat16() @ R.bfloat16().T).abs().argmax(0)
    assert (T[plain[:, 0]] == T[first]).all() and (
        spread not in (1e-5, 1e-3) or (coarse != plain[:, 0]).any()
    )


def test_screening_changes_nothing_where_float32_products_are_coarse(monkeypatch):
    R, T = inputs(torch.float32, k=31, m=300, d=48)
    T, before = text_pool(T), torch.get_float32_matmul_precision()
    plain = matching_pursuit(R, T, 3)
    torch.set_float32_matmul_precision("medium")
    try:
        assert pursuit.screened(T, torch.float32).products > 2**-8
        assert torch.equal(screened(R, T, 3, torch.float32, monkeypatch)[:, 0], plain[:, 0])
    finally:
        torch.set_float32_matmul_precision(before)


def test_screening_runs_where_torch_does_not_say_how_it_multiplies():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch before 2.9 has one switch only")
    R, T = inputs(torch.float32, k=31, m=300, d=48)
    plain, before = matching_pursuit(R, text_pool(T), 3), matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="precision"):
            torch.get_float32_matmul_precision()
        assert torch.equal(matching_pursuit(R, text_pool(T), 3), plain)
    finally:
        matmul.fp32_precision = before


def adverse():
    """Factors whose rounding errors are as large as they can be and add up."""
    g = torch.Generator().manual_seed(6)
    for d in (1, 7, 64, 515):
        halfway = torch.full((40, d), 1 + 2**-8 - 2**-20)  # all rounded up alike
        signs = torch.randint(0, 2, (40, d), generator=g).float() * 2 - 1  # products that cancel
        wide = torch.randn(40, d, generator=g) * torch.logspace(-20, 0, d)
        yield halfway, halfway[:9]
        yield halfway * signs, (halfway * signs)[:9]
        yield signs * (1 + 2**-8), halfway[:9] * torch.rand(9, d, generator=g)
        yield wide, wide[:9].flip(1)
        yield wide * 1e-18, torch.randn(9, d, generator=g)
        yield torch.randn(40, d, generator=g).exp(), torch.randn(9, d, generator=g).mul(3).exp()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_coarse_correlations_are_within_the_bound(dtype):
    closest = 0.0
    for T, R in adverse():
        atoms, unit = pursuit.screened(T, dtype), R.double() / R.double().norm(dim=1, keepdim=True)
        rounded = unit.to(dtype)
        coarse = (atoms.coarse @ rounded.T)[: len(T)].double()
        exact = T.double() @ unit.T / T.double().norm(dim=1).max()
        bound = pursuit._off(atoms, unit, rounded) + atoms.rounding * coarse.abs()
        assert ((coarse - exact).abs() <= bound).all()
        closest = max(closest, float(((coarse - exact).abs() / bound).max()))
    assert closest > (0.4 if dtype == torch.bfloat16 else 0)  # not so lax that nothing would be left out


def test_few_atoms_are_compared_exactly(monkeypatch):
    R, T = inputs(torch.float32, k=31, m=3000, d=64)
    T, compared, products = text_pool(T), [], pursuit._products
    monkeypatch.setattr(
        pursuit, "_products", lambda T, j, r, u: compared.append(len(j)) or products(T, j, r, u)
    )
    screened(R, T, 8, torch.bfloat16, monkeypatch)
    assert 31 * 8 <= sum(compared) < 0.01 * 31 * 8 * 3000


# the table


def test_table():
    order = torch.tensor([[3, 0, 2], [1, -1, -1], [-1, -1, -1], [0, 2, 1]])
    gamma = torch.tensor([[0.5, -2, 0.5], [-1, 0, 0], [0, 0, 0], [0, 1, -3]])
    table = code_table(order, gamma, ["a", "b", "c", "d"], model="ViT", layer="mlp.9", units=[5, 7, 8, 9])
    assert list(table) == COLUMNS and set(table["method"]) == {"second_order"}
    assert table[["unit", "rank", "label", "score"]].values.tolist() == [
        [5, 1, "a", -2],
        [5, 2, "d", 0.5],
        [5, 3, "c", 0.5],
        [7, 1, "b", -1],
        [9, 1, "b", -3],
        [9, 2, "c", 1],
        [9, 3, "a", 0],
    ]
    assert code_table(order, gamma, "abcd", model="ViT", layer="mlp.9")["unit"].unique().tolist() == [0, 1, 3]
    empty = code_table(order[2:3], gamma[2:3], "abcd", model="ViT", layer="mlp.9")
    assert list(empty) == COLUMNS and not len(empty)


R0, T0 = inputs()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: text_pool(T0[:0]),
            ValueError,
            r"expected T as a real torch tensor of two axes, none empty, got .* \[0, 19\]",
        ),
        (lambda: text_pool(T0[:1]), ValueError, "two texts or more, got one"),
        (lambda: text_pool(T0, "units"), KeyError, "no text norm 'units'; nearest: unit"),
        (lambda: text_pool(T0 / 0), ValueError, "T must be finite, but row 0 is not"),
        (lambda: matching_pursuit(R0, T0, 0), ValueError, "m must be a positive whole number, got 0"),
        (
            lambda: matching_pursuit(R0, T0, M + 1),
            ValueError,
            f"m {M + 1} exceeds the pool of {M} texts; pass m<={M}",
        ),
        (
            lambda: matching_pursuit(R0[:, 1:], T0, 3),
            ValueError,
            r"equal widths d on one device, got R \[7, 18\] on cpu",
        ),
        (lambda: matching_pursuit(R0.log(), T0, 3), ValueError, "R must be finite, but row 0 is not"),
        (lambda: matching_pursuit(R0[0], T0, 3), ValueError, "expected R as a real torch tensor of two axes"),
        (
            lambda: matching_pursuit(R0, T0, 3, memory=0),
            ValueError,
            "memory must be a positive whole number, got 0",
        ),
        (
            lambda: code_coefficients(R0, T0, torch.zeros(3, 2).long()),
            ValueError,
            r"a row for each of 7 units, got \[3, 2\]",
        ),
        (
            lambda: reconstruct(R0, torch.zeros(7, 2).long(), T0),
            ValueError,
            r"of one shape, got \[7, 19\] and \[7, 2\]",
        ),
        (
            lambda: code_table(torch.tensor([[4]]), torch.ones(1, 1), "abcd", model="", layer=""),
            ValueError,
            "4 words and atom 4",
        ),
        (
            lambda: code_table(torch.tensor([[0]]), torch.ones(1, 2), "abcd", model="", layer=""),
            ValueError,
            "expected order and",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    R, T = inputs(torch.float32, k=40, m=700, d=64)
    T = text_pool(T)
    order = matching_pursuit(R, T, 32)
    assert torch.equal(matching_pursuit(R.cuda(), T.cuda(), 32).cpu(), order)
    assert_close(code_coefficients(R.cuda(), T.cuda(), order.cuda()).cpu(), code_coefficients(R, T, order))
