"""Best scores of units whose images are dealt anew, many times: what chance would find.

dealt_best  by any function whose scores are products of columns, which are made once for all draws
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from neuronym.common.memory import items_within, slices
from neuronym.similarity.columns import centred_columns, cubed_columns, unit_columns
from neuronym.similarity.combined import concept_columns, share_columns, softmax_scales
from neuronym.similarity.matrix import block, checked, compiled_loops, FactoredMatrix
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
    loops = compiled_loops(q.device, "column_loops") if dtype == torch.float32 else None
    at_once = max(1, memory // (48 * max(M, d)))
    scales, most = softmax_scales(loops, P, slope, dtype, at_once) if soft else (None, 0.0)
    noise = softmax_noise(1, most, dtype)
    best = q.new_full((draws, K), -torch.inf, dtype=dtype)
    for cols in slices(M, m):
        concepts = _concept_columns(loops, P, method, cols, dtype, given | {"slope": slope}, scales, noise)
        for units in slices(K, k):
            columns = [normalise(q[:, units].to(dtype, copy=True)) for normalise in of_units]
            for draw, deal in enumerate(deals):
                found = columns[0][deal].T @ concepts[0]
                for A, B in zip(columns[1:], concepts[1:]):
                    found.addmm_(A[deal].T, B)
                torch.maximum(best[draw, units], found.amax(1), out=best[draw, units])
    return best


def _concept_columns(
    loops: ModuleType | None,
    P: Tensor | FactoredMatrix,
    method: str,
    cols: slice,
    dtype: torch.dtype,
    given: dict,
    scales: Tensor | None,
    noise: float,
) -> list[Tensor]:
    """What `dealt_best` multiplies the columns of units with, of some concepts: [N, m] each."""
    slope = given["slope"]
    N = P.shape[0]
    values = block(P, None, cols, _empty(P, N, cols, dtype))
    if method == "cos_similarity":
        return [unit_columns(values)]
    if method == "cos_similarity_cubed":
        return [cubed_columns(values, given["eps"])]
    if method == "correlation":
        seen = values.mul_(slope).add_(given.get("offset", 0)).sigmoid_() if slope else values
        return [centred_columns(seen)]
    if method == "soft_correlation":
        return [share_columns(values, slope, scales, noise)]
    some = slice(0, values.shape[1])
    return [*concept_columns(loops, values, some, slope, scales, noise)]


def _empty(P: Tensor | FactoredMatrix, N: int, cols: slice, dtype: torch.dtype) -> Tensor:
    like = P if isinstance(P, Tensor) else P.I
    return like.new_empty(N, cols.stop - cols.start, dtype=dtype)
