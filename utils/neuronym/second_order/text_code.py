"""Sparse text codes: directions of neurons as sums of a few words, and what these say of an image or a class.

text_pool           text features -> the pool of atoms, centred and normalised
code_coefficients   what the words chosen by `pursuit.matching_pursuit` are multiplied by, all or the first n
reconstruct         the sums
code_table          words and coefficients as a labels table
concepts_in_images  every word scored for every image by the neurons active in it (section 5, discovery)
words_for           words by what neurons that read a direction contribute to it (section 5, adversarial
                    images)
speaking_neurons    the neurons whose directions lie most along a given one
allowed_words       words that do not give the wrong class away

K units, M words (atoms), d width, m words a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import CACHED, in_threads, nonzero, slices
from neuronym.common.text import name_pattern
from neuronym.second_order.pursuit import check_matrices, working_dtype
from neuronym.similarity.labels import COLUMNS

NORMS = ("unit", "per_dimension", "none")


@torch.no_grad()
def text_pool(T: Tensor, text_norm: str = "unit") -> Tensor:
    """Text features T [M, d] as atoms [M, d]: 100 T less the mean over the pool, then normalised.

    "unit" (corrected): every row to norm 100; "per_dimension" (as released): every one of the d columns to
    norm 100 over the vocabulary; "none": neither. What is zero stays zero. KeyError for an unknown norm;
    ValueError for fewer than two texts.
    """
    if text_norm not in NORMS:
        raise unknown("text norm", text_norm, NORMS)
    check_matrices(T=T)
    if len(T) < 2:
        raise ValueError(
            "expected a pool of two texts or more, got one, of which nothing is left after its mean; add "
            "texts"
        )
    pool = T.detach().double() * 100
    size = pool.abs()
    pool -= pool.mean(0)
    pool.masked_fill_(
        pool.abs() <= 16 * torch.finfo(pool.dtype).eps * size, 0
    )  # rounding errors must not become a row
    if text_norm != "none":
        pool *= 100 / nonzero(pool.norm(dim=1 if text_norm == "unit" else 0, keepdim=True))
    return pool.to(working_dtype(T))


@torch.no_grad()
def code_coefficients(R: Tensor, T: Tensor, order: Tensor) -> Tensor:
    """Least-squares coefficients of the chosen atoms: R [K, d], T [M, d], order [K, n] -> gamma [K, n], 0 for
    -1.

    In float64, by the normal equations and two refinements; order may be any prefix of that of
    `matching_pursuit`.
    """
    check_matrices(R=R, T=T)
    if order.ndim != 2 or len(order) != len(R):
        raise ValueError(
            f"expected order [K, n] with a row for each of {len(R)} units, got {list(order.shape)}"
        )
    gamma = R.new_zeros(order.shape, dtype=torch.promote_types(working_dtype(R), working_dtype(T)))

    def solve(share: slice) -> None:
        some = CACHED // (8 * max(1, order.shape[1]) * (R.shape[1] + 2 * order.shape[1]))
        for part in slices(share.stop - share.start, some):
            part = slice(share.start + part.start, share.start + part.stop)
            gamma[part] = _least_squares(R[part].double(), _chosen(T, order[part]), order[part] < 0).to(
                gamma.dtype
            )

    in_threads(len(R), torch.get_num_threads() if R.device.type == "cpu" else 1, solve)
    return gamma


@torch.no_grad()
def reconstruct(gamma: Tensor, order: Tensor, T: Tensor) -> Tensor:
    """The sums of chosen atoms: gamma [K, n], order [K, n], T [M, d] -> R_hat [K, d]."""
    if gamma.shape != order.shape:
        raise ValueError(
            f"expected gamma and order of one shape, got {list(gamma.shape)} and {list(order.shape)}"
        )
    R_hat = T.new_zeros(len(gamma), T.shape[1], dtype=torch.promote_types(gamma.dtype, working_dtype(T)))
    for part in slices(len(gamma), CACHED // (8 * max(1, order.shape[1]) * T.shape[1])):
        R_hat[part] = torch.einsum("kn,knd->kd", gamma[part].double(), _chosen(T, order[part])).to(
            R_hat.dtype
        )
    return R_hat


def code_table(
    order: Tensor,
    gamma: Tensor,
    words: Sequence[str],
    *,
    model: str,
    layer: str,
    units: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Codes as a labels table: method second_order, score the coefficient, rank 1 that of largest absolute
    value.

    order, gamma [K, n]; `units` names the rows when they are not 0..K-1. Units of fewer words have fewer
    rows.
    """
    units = list(range(len(order))) if units is None else [int(unit) for unit in units]
    if gamma.shape != order.shape or len(units) != len(order):
        raise ValueError(
            f"expected order and gamma [K, n] and K units, got {list(order.shape)}, {list(gamma.shape)} "
            f"and {len(units)} units"
        )
    if order.numel() and int(order.max()) >= len(words):
        raise ValueError(
            f"expected a word for every atom of the pool, got {len(words)} words and atom {int(order.max())}"
        )
    by_size = gamma.abs().masked_fill(order < 0, -1).sort(dim=1, descending=True, stable=True).indices
    order, gamma = order.gather(1, by_size), gamma.gather(1, by_size)
    rows, ranks = (order >= 0).nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "model": model,
            "layer": layer,
            "unit": [units[row] for row in rows.tolist()],
            "method": "second_order",
            "rank": (ranks + 1).cpu().numpy(),
            "label": [words[j] for j in order[rows, ranks].tolist()],
            "score": gamma[rows, ranks].double().cpu().numpy(),
        },
        columns=COLUMNS,
    )


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
        gamma[k] = torch.linalg.lstsq(
            A[k].T, R[k, :, None], driver="gelsd" if R.device.type == "cpu" else None
        ).solution
    return gamma[:, :, 0]


SIMILAR = 0.6  # cosine of sentence embeddings from which on a word counts as another name of the class


def concepts_in_images(strength: Tensor, order: Tensor, gamma: Tensor, words: int) -> Tensor:
    """Scores [N, M]: the sum over neurons of gamma times strength, for each of the M `words` of the pool.

    strength [N, K] is 0 where a neuron is not active: the length of its deviation where that is beyond its
    threshold, as released, or the deviation's part along r, whose sign says whether the words are there or
    missing. order, gamma [K, m] are the neurons' codes.
    """
    _check_codes("strength [N, K]", strength, strength.shape[1], order, gamma, words)
    units, places = (order >= 0).nonzero(as_tuple=True)
    at = torch.stack([order[units, places], units])
    values = gamma[units, places].to(strength.dtype)
    codes = torch.sparse_coo_tensor(at, values, (words, len(order)), check_invariants=True)
    return torch.sparse.mm(codes, strength.T).T


def words_for(
    v: Tensor,
    R: Tensor,
    order: Tensor,
    gamma: Tensor,
    words: Sequence[str],
    neurons: int = 100,
    summed: bool = True,
) -> list[tuple[str, float]]:
    """(word, score) by descending score: gamma (r . v) of the `neurons` with the largest |r . v|, summed over
    neurons.

    v [d], R [K, d], order and gamma [K, m]; the neurons of several layers go one after the other. Equation 6
    sums; without `summed` a word has its largest single score, as released, where duplicates are not added
    up.
    """
    _check_codes("R [K, d]", R, len(R), order, gamma, len(words))
    units, reads = speaking_neurons(v, R, neurons)
    chosen, parts = order[units], gamma[units] * reads[:, None]
    kept = chosen >= 0
    scores = torch.full((len(words),), 0.0 if summed else -torch.inf, dtype=parts.dtype, device=parts.device)
    scores = scores.scatter_reduce(0, chosen[kept], parts[kept], "sum" if summed else "amax")
    said = torch.zeros(len(words), dtype=torch.bool, device=parts.device)
    said[chosen[kept]] = True
    best = scores.masked_fill(~said, -torch.inf).sort(descending=True, stable=True)
    return [
        (words[j], value)
        for j, value in zip(best.indices.tolist(), best.values.tolist())
        if value > -torch.inf
    ]


def speaking_neurons(v: Tensor, R: Tensor, neurons: int) -> tuple[Tensor, Tensor]:
    """The neurons with the largest |r . v|, in descending order, and their r . v; v [d], R [K, d]."""
    check_positive_int("neurons", neurons)
    reads = R @ v
    units = reads.abs().topk(min(neurons, len(reads))).indices
    return units, reads[units]


def allowed_words(
    words: Sequence[str],
    wrong: str,
    encode: Callable[[list[str]], Tensor] | None = None,
    most: float = SIMILAR,
    block: Sequence[str] = (),
) -> list[str]:
    """The words that neither contain the class `wrong` (or its plural) nor a blocked word, nor mean nearly
    the same.

    `encode` gives unit rows of sentence embeddings; words whose cosine with `wrong` is `most` or more are
    left out.
    """
    given_away = name_pattern([wrong, *block])
    kept = [word for word in words if not given_away.search(word)]
    if encode is None or not kept:
        return kept
    near = encode(list(kept)) @ encode([wrong])[0]
    return [word for word, cosine in zip(kept, near.tolist()) if cosine < most]


def _check_codes(what: str, given: Tensor, neurons: int, order: Tensor, gamma: Tensor, words: int) -> None:
    if order.shape != gamma.shape or len(order) != neurons:
        raise ValueError(
            f"expected {what} and codes [K, m] with equal K, got {list(given.shape)}, {list(order.shape)} "
            f"and {list(gamma.shape)}"
        )
    if order.numel() and order.max() >= words:
        raise ValueError(
            f"codes are of a pool of {words} words, got word {int(order.max())}; pass the pool they were "
            "made with"
        )
