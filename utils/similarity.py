"""How alike are units and concepts? The five similarity functions of CLIP-Dissect, in bounded memory.

score               scores [K, M] of a matrix P [N, M] against activations Q [N, K], by the name of a function
score_embeddings    the same from image and text embeddings, without ever holding P
top_labels          the best concepts of every unit
SIMILARITIES        the functions by name: cos_similarity, cos_similarity_cubed, rank_reorder, wpmi, soft_wpmi

N images, K units, M concepts, d embedding width. Higher is better, and comparable only within one function and set-up.
All functions take `units`, those to score (what is normalised over units is normalised over all K); `memory`, the bytes
they may use beside inputs and result, which changes the time but not the scores; and an `Embedded` in place of a matrix
P. Among equal activations the image of lower index comes first. Half precision is computed in float32.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.blocks import MEMORY, SORT_BYTES, Embedded, at_hand, block, checked, fit, number, or_one, order, slices, whole
from utils.errors import unknown
from utils.pmi import soft_wpmi, wpmi
from utils.rank_reorder import rank_reorder


def score(P: Tensor | Embedded, Q: Tensor, method: str = "soft_wpmi", *, units: Sequence[int] | None = None,
          memory: int = MEMORY, generator: torch.Generator | None = None, **options) -> Tensor:
    """Score every concept for every unit, or for `units`: P [N, M], Q [N, K] -> scores [K, M] or [len(units), M].

    `generator` draws the permutations of rank_reorder; `options` are those of the function. KeyError for an unknown
    function; ValueError for an unknown option, a bad value, unequal N, or inputs that are not finite.
    """
    if method not in SIMILARITIES:
        raise unknown("similarity function", method, SIMILARITIES)
    parameters = inspect.signature(SIMILARITIES[method]).parameters
    valid = [name for name in parameters if name not in ("P", "Q", "units", "memory", "generator")]
    for name in options:
        if name not in valid:
            raise ValueError(f"{method} has no option '{name}'; valid: {', '.join(valid) or 'none'}")
    if "generator" in parameters:
        options["generator"] = generator
    return SIMILARITIES[method](P, Q, units=units, memory=memory, **options)


def score_embeddings(I: Tensor, T: Tensor, Q: Tensor, method: str = "soft_wpmi", *, units: Sequence[int] | None = None,
                     memory: int = MEMORY, generator: torch.Generator | None = None, **options) -> Tensor:
    """`score` of P = I T' without holding P: I [N, d], T [M, d] with unit rows, Q [N, K] -> scores [K, M]."""
    return score(Embedded(I, T), Q, method, units=units, memory=memory, generator=generator, **options)


@torch.no_grad()
def top_labels(scores: Tensor, concepts: Sequence[str], k: int = 5) -> tuple[Tensor, Tensor]:
    """The k best concepts of each unit, best first, ties by lower index: scores [K, M] -> values, indices [K, k]."""
    if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(concepts):
        raise ValueError(f"expected scores [K, M] with one column for each of {len(concepts)} concepts, "
                         f"got {list(scores.shape)}")
    whole("k", k, len(concepts), f"M {len(concepts)} concepts")
    if bool(scores.isnan().any()):
        unit, concept = scores.isnan().nonzero()[0].tolist()
        raise ValueError(f"scores must not be nan, but are at unit {unit}, concept {concept}; score without as_shipped")
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    parts = slices(len(scores), MEMORY // (SORT_BYTES * scores.shape[1]))
    indices = torch.cat([order(scores[part].neg())[:, :k].clone() for part in parts])
    return scores.gather(1, indices), indices


@torch.no_grad()
def cos_similarity(P: Tensor | Embedded, Q: Tensor, *, units: Sequence[int] | None = None,
                   memory: int = MEMORY) -> Tensor:
    """Cosine of columns, not centred; 0 for a column of zeros. P [N, M], Q [N, K] -> scores [K, M]

    S = (Q / |Q|)' (P / |P|), by columns.
    """
    return _column_products(P, Q, units, memory, _unit_columns)


@torch.no_grad()
def cos_similarity_cubed(P: Tensor | Embedded, Q: Tensor, *, eps: float = 1e-3, units: Sequence[int] | None = None,
                         memory: int = MEMORY) -> Tensor:
    """Cosine of columns centred and cubed; 0 for a constant column. P [N, M], Q [N, K] -> scores [K, M]

    S = c(Q)' c(P), c(x) = y / max(|y|, eps), y = (x - mean x)^3, by columns.
    """
    number("eps", eps, 0)
    return _column_products(P, Q, units, memory, lambda X: _cubed_columns(X, eps))


SIMILARITIES = {f.__name__: f for f in (cos_similarity, cos_similarity_cubed, rank_reorder, wpmi, soft_wpmi)}


def _column_products(P: Tensor | Embedded, Q: Tensor, units: Sequence[int] | None, memory: int,
                     normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """normalise(Q)' normalise(P), a block of units against a block of concepts at a time."""
    units, dtype, size, d = checked(P, Q, units, memory)
    N, M = P.shape
    [m] = fit(memory, (0, (6 * N + 3 * d) * size, max(len(units), M)))
    step = min(m, max(64, at_hand(memory, Q.device) // (N * size)))
    scores = torch.empty(len(units), M, dtype=dtype, device=Q.device)
    for part in slices(len(units), m):
        columns = normalise(Q[:, units[part]].to(dtype))                                    # [N, k]
        for cols in slices(M, step):
            concepts = block(P, None, cols, columns.new_empty(N, cols.stop - cols.start))
            torch.matmul(columns.T, normalise(concepts), out=scores[part, cols])
    return scores


def _unit_columns(X: Tensor) -> Tensor:
    """Divide columns by their norms, in place: by their largest values first, since squares overflow and vanish."""
    X /= or_one(_largest(X))
    X /= or_one(X.norm(dim=0))
    return X


def _cubed_columns(X: Tensor, eps: float) -> Tensor:
    """Centre, cube and divide by max(norm, eps), in place: scaled to 1 before each power, and eps alike."""
    low, high = X.aminmax(dim=0)
    first = or_one(_largest(X))
    X /= first
    X -= X.mean(0)
    second = or_one(_largest(X))
    X /= second
    X.pow_(3)
    floor = eps / first / first / first / second / second / second
    X /= torch.maximum(or_one(X.norm(dim=0)), floor)
    return X.masked_fill_(low == high, 0)  # the mean of equal values may differ from them by a rounding error


def _largest(X: Tensor) -> Tensor:
    low, high = X.aminmax(dim=0)
    return torch.maximum(high, -low)
