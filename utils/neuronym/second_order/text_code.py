"""Sparse text codes: directions as sums of a few words of a pool.

text_pool     text features -> the pool of atoms, centred and normalised
coefficients  what the words chosen by `neuronym.second_order.omp` are multiplied by, for all of them or the first n
reconstruct   the sums
code_table    words and coefficients as a labels table

K units, M words (atoms), d width, m words a unit.
"""
from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.blocks import CACHED, in_threads, or_one, slices
from neuronym.common.errors import unknown
from neuronym.second_order.omp import check_matrices, working_dtype
from neuronym.similarity.labels import COLUMNS

NORMS = ("unit", "per_dimension", "none")


@torch.no_grad()
def text_pool(T: Tensor, text_norm: str = "unit") -> Tensor:
    """Text features T [M, d] as atoms [M, d]: 100 T less the mean over the pool, then normalised.

    "unit" (corrected): every row to norm 100; "per_dimension" (as released): every one of the d columns to norm 100 over
    the vocabulary; "none": neither. What is zero stays zero. KeyError for an unknown norm; ValueError for fewer than two
    texts.
    """
    if text_norm not in NORMS:
        raise unknown("text norm", text_norm, NORMS)
    check_matrices(T=T)
    if len(T) < 2:
        raise ValueError("expected a pool of two texts or more, got one, of which nothing is left after its mean; add texts")
    pool = T.detach().double() * 100
    size = pool.abs()
    pool -= pool.mean(0)
    pool.masked_fill_(pool.abs() <= 16 * torch.finfo(pool.dtype).eps * size, 0)  # rounding errors must not become a row
    if text_norm != "none":
        pool *= 100 / or_one(pool.norm(dim=1 if text_norm == "unit" else 0, keepdim=True))
    return pool.to(working_dtype(T))


@torch.no_grad()
def coefficients(R: Tensor, T: Tensor, order: Tensor) -> Tensor:
    """Least-squares coefficients of the chosen atoms: R [K, d], T [M, d], order [K, n] -> gamma [K, n], 0 for -1.

    In float64, by the normal equations and two refinements; order may be any prefix of that of `matching_pursuit`.
    """
    check_matrices(R=R, T=T)
    if order.ndim != 2 or len(order) != len(R):
        raise ValueError(f"expected order [K, n] with a row for each of {len(R)} units, got {list(order.shape)}")
    gamma = R.new_zeros(order.shape, dtype=torch.promote_types(working_dtype(R), working_dtype(T)))

    def solve(share: slice) -> None:
        some = CACHED // (8 * max(1, order.shape[1]) * (R.shape[1] + 2 * order.shape[1]))
        for part in slices(share.stop - share.start, some):
            part = slice(share.start + part.start, share.start + part.stop)
            gamma[part] = _least_squares(R[part].double(), _chosen(T, order[part]), order[part] < 0).to(gamma.dtype)

    in_threads(len(R), torch.get_num_threads() if R.device.type == "cpu" else 1, solve)
    return gamma


@torch.no_grad()
def reconstruct(gamma: Tensor, order: Tensor, T: Tensor) -> Tensor:
    """The sums of chosen atoms: gamma [K, n], order [K, n], T [M, d] -> R_hat [K, d]."""
    if gamma.shape != order.shape:
        raise ValueError(f"expected gamma and order of one shape, got {list(gamma.shape)} and {list(order.shape)}")
    R_hat = T.new_zeros(len(gamma), T.shape[1], dtype=torch.promote_types(gamma.dtype, working_dtype(T)))
    for part in slices(len(gamma), CACHED // (8 * max(1, order.shape[1]) * T.shape[1])):
        R_hat[part] = torch.einsum("kn,knd->kd", gamma[part].double(), _chosen(T, order[part])).to(R_hat.dtype)
    return R_hat


def code_table(order: Tensor, gamma: Tensor, words: Sequence[str], *, model: str, layer: str,
               units: Sequence[int] | None = None) -> pd.DataFrame:
    """Codes as a labels table: method second_order, score the coefficient, rank 1 that of largest absolute value.

    order, gamma [K, n]; `units` names the rows when they are not 0..K-1. Units of fewer words have fewer rows.
    """
    units = list(range(len(order))) if units is None else [int(unit) for unit in units]
    if gamma.shape != order.shape or len(units) != len(order):
        raise ValueError(f"expected order and gamma [K, n] and K units, got {list(order.shape)}, {list(gamma.shape)} "
                         f"and {len(units)} units")
    if order.numel() and int(order.max()) >= len(words):
        raise ValueError(f"expected a word for every atom of the pool, got {len(words)} words and atom {int(order.max())}")
    by_size = gamma.abs().masked_fill(order < 0, -1).sort(dim=1, descending=True, stable=True).indices
    order, gamma = order.gather(1, by_size), gamma.gather(1, by_size)
    rows, ranks = (order >= 0).nonzero(as_tuple=True)
    return pd.DataFrame({"model": model, "layer": layer, "unit": [units[row] for row in rows.tolist()],
                         "method": "second_order", "rank": (ranks + 1).cpu().numpy(),
                         "label": [words[j] for j in order[rows, ranks].tolist()],
                         "score": gamma[rows, ranks].double().cpu().numpy()}, columns=COLUMNS)


def _chosen(T: Tensor, order: Tensor) -> Tensor:
    """The chosen atoms in float64, zeros for -1: [K, n, d]."""
    return T[order.clamp(min=0)].double().masked_fill_((order < 0)[:, :, None], 0)


def _least_squares(R: Tensor, A: Tensor, absent: Tensor) -> Tensor:
    """Solutions gamma [K, n] of gamma A = R for R [K, d], A [K, n, d], in float64."""
    G = A @ A.mT
    G.diagonal(dim1=1, dim2=2)[absent] = 1
    L, failed = torch.linalg.cholesky_ex(G)
    pivots = L.diagonal(dim1=1, dim2=2)
    dependent = (failed > 0) | ~(pivots.amin(1) > 1e-4 * pivots.amax(1))
    gamma = torch.zeros_like(A[:, :, :1])
    for _ in range(3):  # refined with the residuals of R, the squared condition of G costs nothing
        gamma += torch.cholesky_solve(A @ (R[:, :, None] - A.mT @ gamma), L)
    for k in dependent.nonzero()[:, 0].tolist():  # nearly, at least: refining would not converge
        gamma[k] = torch.linalg.lstsq(A[k].T, R[k, :, None], driver="gelsd" if R.device.type == "cpu" else None).solution
    return gamma[:, :, 0]
