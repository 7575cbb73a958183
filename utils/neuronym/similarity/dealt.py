"""Best scores of units whose images are dealt anew, many times: what chance would find.

dealt_best  by any function whose scores are products of columns, which are made once for all draws
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuronym.common.memory import items_within, slices
from neuronym.similarity.columns import centred_columns, cubed_columns, unit_columns
from neuronym.similarity.combined import by_kind, concept_columns, share_columns, softmax_scales
from neuronym.similarity.matrix import block, checked, compiled_loops, FactoredMatrix
from neuronym.similarity.softened import mean_spread, SHARPNESS, softmax_noise
from neuronym.similarity.standardised import columns_of_answers, standardised_columns


@torch.no_grad()
def dealt_best(
    P: Tensor | FactoredMatrix, Q: Tensor, method: str, deals: Tensor, *, memory: int | None = None, **options
) -> Tensor:
    """Best score over concepts of Q[deal] for each of the deals [draws, N]: P [N, M], Q [N, K] -> [draws, K]

    Each of these functions is a sum of products A' B of columns A of Q and B of P, made column
    by column, so that dealing the images of Q deals the rows of A: columns are made once for all draws, and
    correlations of a sum that have the same columns of units share one product. A block of concepts after the
    other meets all draws.
    """
    if method == "layered_correlation":
        function, own = by_kind(options.pop("final", False))
        method, options = function.__name__, options | own
    [q], _, dtype, d, memory = checked(P, Q, None, memory)
    (N, M), (draws, K), size = P.shape, (len(deals), Q.shape[1]), dtype.itemsize
    of_units = {
        "cos_similarity": lambda x: [unit_columns(x)],
        "cos_similarity_cubed": lambda x: [cubed_columns(x, options.get("eps", 1e-3))],
        "combined_correlation": lambda x: [
            centred_columns(x.clone()),
            cubed_columns(x, 0) * options.get("cubed", 1),
        ],
        "standardised_correlation": lambda x: columns_of_answers(x, dtype),
    }.get(method, lambda x: [centred_columns(x)])
    parts = 2 if method in ("combined_correlation", "standardised_correlation") else 1
    [m] = items_within(memory, (0, 2 * (6 * N + 2 * d) * size, M))
    [k] = items_within(memory, (0, 2 * ((3 * parts + 4 * (parts - 1)) * N + 2 * m) * size, K))
    of_concepts = _of_concepts(P, method, dtype, max(1, memory // (48 * max(M, d))), options)
    best = q.new_full((draws, K), -torch.inf, dtype=dtype)
    for cols in slices(M, m):
        concepts = of_concepts(cols)
        for units in slices(K, k):
            columns = of_units(q[:, units].to(dtype, copy=True))
            for draw, deal in enumerate(deals):
                found = columns[0][deal].T @ concepts[0]
                for A, B in zip(columns[1:], concepts[1:]):
                    found.addmm_(A[deal].T, B)
                torch.maximum(best[draw, units], found.amax(1), out=best[draw, units])
    return best


def _of_concepts(
    P: Tensor | FactoredMatrix, method: str, dtype: torch.dtype, some: int, options: dict
) -> Callable[[slice], list[Tensor]]:
    """What makes the columns [N, m] of some concepts that those of units are multiplied with; what all
    concepts of an image decide is found first, `some` images at once.
    """
    sharpness, slope = options.get("sharpness", SHARPNESS), options.get("slope")
    if method == "standardised_correlation":
        return standardised_columns(P, dtype, sharpness, some)
    scales = noise = None
    device = (P if isinstance(P, Tensor) else P.I).device
    loops = compiled_loops(device, "column_loops") if dtype == torch.float32 else None
    if method in ("soft_correlation", "combined_correlation"):
        if slope is None:
            apart = mean_spread(P)
            slope = sharpness / apart if apart else 0
        scales, most = softmax_scales(loops, P, slope, dtype, some)
        noise = softmax_noise(1, most, dtype)

    def columns(cols: slice) -> list[Tensor]:
        values = block(P, None, cols, _empty(P, P.shape[0], cols, dtype))
        if method == "cos_similarity":
            return [unit_columns(values)]
        if method == "cos_similarity_cubed":
            return [cubed_columns(values, options.get("eps", 1e-3))]
        if method == "correlation":
            seen = values.mul_(slope).add_(options.get("offset", 0)).sigmoid_() if slope else values
            return [centred_columns(seen)]
        if method == "soft_correlation":
            return [share_columns(values, slope, scales, noise)]
        return [*concept_columns(loops, values, slice(0, values.shape[1]), slope, scales, noise)]

    return columns


def _empty(P: Tensor | FactoredMatrix, N: int, cols: slice, dtype: torch.dtype) -> Tensor:
    like = P if isinstance(P, Tensor) else P.I
    return like.new_empty(N, cols.stop - cols.start, dtype=dtype)
