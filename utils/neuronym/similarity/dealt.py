"""Best scores of units whose images are dealt anew, many times: what chance would find.

dealt_best  by any function whose scores are products of columns, which are made once for all draws
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuronym.common.memory import items_within, slices
from neuronym.similarity.columns import centred_columns, cubed_columns, extremes, unit_columns
from neuronym.similarity.matrix import block, checked, FactoredMatrix, largest
from neuronym.similarity.softened import mean_spread, SHARPNESS, softmax_noise


@torch.no_grad()
def dealt_best(
    P: Tensor | FactoredMatrix, Q: Tensor, method: str, deals: Tensor, *, memory: int | None = None, **options
) -> Tensor:
    """Best score over concepts of Q[deal] for each of the deals [draws, N]: P [N, M], Q [N, K] -> [draws, K]

    Each of these functions is a sum of products A' B of columns A of Q and B of P, made column
    by column, so that dealing the images of Q deals the rows of A: columns are made once for all draws, and
    the two correlations of `combined_correlation` share one product. A block of concepts after the other
    meets all draws.
    """
    [q], _, dtype, d, memory = checked(P, Q, None, memory)
    (N, M), (draws, K) = P.shape, (len(deals), Q.shape[1])
    given = {"sharpness": SHARPNESS, "eps": 0 if method == "combined_correlation" else 1e-3} | options
    soft, slope = method in ("soft_correlation", "combined_correlation"), given.get("slope")
    of_units = {
        "cos_similarity": [unit_columns],
        "cos_similarity_cubed": [lambda X: cubed_columns(X, given["eps"])],
        "combined_correlation": [centred_columns, lambda X: cubed_columns(X, 0)],
    }.get(method, [centred_columns])
    size, parts = dtype.itemsize, len(of_units)
    if soft and slope is None:
        apart = mean_spread(P)
        slope = given["sharpness"] / apart if apart else 0
    [m] = items_within(memory, (0, 2 * (6 * N + 2 * d) * size, M))
    [k] = items_within(memory, (0, 2 * (3 * parts * N + 2 * m) * size, K))
    shares = _log_total(P, slope, dtype, m) if soft else None
    best = q.new_full((draws, K), -torch.inf, dtype=dtype)
    for cols in slices(M, m):
        concepts = _concept_columns(P, method, cols, slope, shares, given, dtype)
        for units in slices(K, k):
            columns = [normalise(q[:, units].to(dtype, copy=True)) for normalise in of_units]
            for draw, deal in enumerate(deals):
                found = columns[0][deal].T @ concepts[0]
                for A, B in zip(columns[1:], concepts[1:]):
                    found.addmm_(A[deal].T, B)
                torch.maximum(best[draw, units], found.amax(1), out=best[draw, units])
    return best


def _log_total(P: Tensor | FactoredMatrix, slope: float, dtype: torch.dtype, m: int) -> Tensor:
    """log of the sum over concepts of exp(slope P), of every image: [N]."""
    N, M = P.shape
    total = None
    for cols in slices(M, m):
        part = block(P, None, cols, _empty(P, N, cols, dtype)).mul_(slope).logsumexp(1)
        total = part if total is None else torch.logaddexp(total, part)
    return total


def _concept_columns(
    P: Tensor | FactoredMatrix,
    method: str,
    cols: slice,
    slope: float | None,
    total: Tensor | None,
    given: dict,
    dtype: torch.dtype,
) -> list[Tensor]:
    """What `dealt_best` multiplies the columns of units with, of some concepts: [N, m] each."""
    N = P.shape[0]
    values = block(P, None, cols, _empty(P, N, cols, dtype))
    if method == "cos_similarity":
        return [unit_columns(values)]
    if method == "cos_similarity_cubed":
        return [cubed_columns(values, given["eps"])]
    if method == "correlation":
        seen = values.mul_(slope).add_(given.get("offset", 0)).sigmoid_() if slope else values
        return [centred_columns(seen)]
    x = (values * slope - total[:, None]).exp_()
    low, high = extremes(x)
    noise = softmax_noise(slope, largest(P), dtype)
    x = centred_columns(x).masked_fill_(high - low <= noise * high, 0)
    if method == "soft_correlation":
        return [x]
    return [x.add_(centred_columns(values.clone())), cubed_columns(values, 0)]


def _empty(P: Tensor | FactoredMatrix, N: int, cols: slice, dtype: torch.dtype) -> Tensor:
    like = P if isinstance(P, Tensor) else P.I
    return like.new_empty(N, cols.stop - cols.start, dtype=dtype)
