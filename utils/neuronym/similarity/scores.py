"""How alike are units and concepts? The five similarity functions of CLIP-Dissect and plain correlation, in
bounded memory.

score                 scores [K, M] of a matrix P [N, M] against activations Q [N, K], by the name of a
                      function
score_embeddings      the same from image and text embeddings, without ever holding P
score_layers          layer after layer, with P made once for several
top_labels            the best concepts of every unit
cos_similarity        cosine of columns, not centred
cos_similarity_cubed  of columns centred and cubed
correlation           Pearson's, of columns
SIMILARITIES          the functions by name: these three, rank_reorder, wpmi and soft_wpmi
retrieved             the images nearest to texts

N images, K units, M concepts, d embedding width. Higher is better, and comparable only within one function
and set-up. All functions take `units`, those to score (what is normalised over units is normalised over all
K); `memory`, the bytes they may use beside inputs and result, which changes the time but not the scores; a
`FactoredMatrix` in place of a matrix P; and a list of layers in place of Q, which gives a list of scores.
Among equal activations the image of lower index comes first. Half precision is computed in float32.

    soft_wpmi            | weighted pointwise mutual information, trusting the j-th most active image the less
                           the larger j; CLIP-Dissect's own
    wpmi                 | the same with equal trust in a unit's 28 most active images
    rank_reorder         | how well a concept's values put a unit's most active images in order
    cos_similarity       | cosine of activations and concept values over all images, not centred
    cos_similarity_cubed | the same of centred and cubed values, which weigh the extremes
    correlation          | Pearson's correlation over all images
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int, unknown
from neuronym.common.memory import (
    first_largest,
    items_within,
    MEMORY,
    nonzero,
    slices,
    SORTING_BYTES_PER_VALUE,
    working_bytes,
)
from neuronym.similarity.matrix import block, checked, FactoredMatrix
from neuronym.similarity.pmi import soft_wpmi, wpmi
from neuronym.similarity.rank_reorder import rank_reorder


def score(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    method: str = "soft_wpmi",
    *,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor | list[Tensor]:
    """Score every concept for every unit, or for `units`: P [N, M], Q [N, K] -> scores [K, M] or [len(units),
    M].

    `generator` draws the permutations of rank_reorder; `options` are those of the function. KeyError for an
    unknown function; ValueError for an unknown option, a bad value, unequal N, or inputs that are not finite.
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


def score_embeddings(
    I: Tensor,
    T: Tensor,
    Q: Tensor | Sequence[Tensor],
    method: str = "soft_wpmi",
    *,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor | list[Tensor]:
    """`score` of P = I T' without holding P: I [N, d], T [M, d] with unit rows, Q [N, K] -> scores [K, M]."""
    return score(FactoredMatrix(I, T), Q, method, units=units, memory=memory, generator=generator, **options)


def score_layers(
    P: Tensor | FactoredMatrix,
    Q: Mapping[str, Tensor],
    method: str = "soft_wpmi",
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (layer, scores [K, M]) for each of the layers {name: Q [N, K]}, as `score` gives them.

    P is made once for as many layers as `memory` holds the scores of.
    """
    waiting, held = list(Q), 0
    while waiting:
        names = []
        while waiting and (not names or held + 4 * Q[waiting[0]].shape[1] * P.shape[1] <= memory):
            names.append(waiting.pop(0))
            held = sum(4 * Q[name].shape[1] * P.shape[1] for name in names)
        yield from zip(
            names,
            score(P, [Q[name] for name in names], method, memory=memory, generator=generator, **options),
        )


@torch.no_grad()
def top_labels(scores: Tensor, concepts: Sequence[str], k: int = 5) -> tuple[Tensor, Tensor]:
    """The k best concepts of each unit, best first, ties by lower index: scores [K, M] -> values, indices [K,
    k].
    """
    if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(concepts):
        raise ValueError(
            f"expected scores [K, M] with one column for each of {len(concepts)} concepts, "
            f"got {list(scores.shape)}"
        )
    check_positive_int("k", k, len(concepts), f"M {len(concepts)} concepts")
    if bool(scores.isnan().any()):
        unit, concept = scores.isnan().nonzero()[0].tolist()
        raise ValueError(
            f"scores must not be nan, but are at unit {unit}, concept {concept}; score without as_shipped"
        )
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    parts = slices(len(scores), MEMORY // (SORTING_BYTES_PER_VALUE * scores.shape[1]))
    indices = torch.cat([first_largest(scores[part], k) for part in parts])
    return scores.gather(1, indices), indices


@torch.no_grad()
def cos_similarity(
    P: Tensor | FactoredMatrix, Q: Tensor, *, units: Sequence[int] | None = None, memory: int = MEMORY
) -> Tensor:
    """Cosine of columns, not centred; 0 for a column of zeros. P [N, M], Q [N, K] -> scores [K, M]

    S = (Q / |Q|)' (P / |P|), by columns.
    """
    return _column_products(P, Q, units, memory, _unit_columns)


@torch.no_grad()
def cos_similarity_cubed(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    *,
    eps: float = 1e-3,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Cosine of columns centred and cubed; 0 for a constant column. P [N, M], Q [N, K] -> scores [K, M]

    S = c(Q)' c(P), c(x) = y / max(|y|, eps), y = (x - mean x)^3, by columns.
    """
    check_number("eps", eps, 0)
    return _column_products(P, Q, units, memory, lambda X: _cubed_columns(X, eps))


@torch.no_grad()
def correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    *,
    slope: float = 0,
    offset: float = 0,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Pearson correlation of columns; 0 for a constant column. P [N, M], Q [N, K] -> scores [K, M]

    Not in CLIP-Dissect: the first of the metrics that pass NeuronEval's sanity tests, used to find labels.
    With a slope, of sigmoid(slope P + offset), the probability that the concept is there
    (`presence.calibrated`), instead of P.
    """
    check_number("slope", slope)
    check_number("offset", offset)

    def seen(X: Tensor) -> Tensor:
        return _centred_columns(X.mul_(slope).add_(offset).sigmoid_() if slope else X)

    return _column_products(P, Q, units, memory, _centred_columns, seen)


SIMILARITIES = {
    f.__name__: f for f in (cos_similarity, cos_similarity_cubed, rank_reorder, wpmi, soft_wpmi, correlation)
}


def _column_products(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    units: Sequence[int] | None,
    memory: int,
    normalise: Callable[[Tensor], Tensor],
    concept: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """normalise(Q)' concept(P), a block of units against a block of concepts at a time; concept is normalise
    by default.
    """
    concept = concept or normalise
    layers, units, dtype, d = checked(P, Q, units, memory)
    (N, M), size, counts = P.shape, dtype.itemsize, [len(chosen) for chosen in units]
    [m] = items_within(memory, (0, (6 * N + 3 * d) * size, max(M, sum(counts))))
    step = min(m, max(64, working_bytes(memory, layers[0].device) // (N * size)))
    scores = layers[0].new_empty(sum(counts), M, dtype=dtype)
    for part in slices(sum(counts), m):
        columns = normalise(_take(layers, units, part).to(dtype))  # [N, k]
        for cols in slices(M, step):
            concepts = block(P, None, cols, columns.new_empty(N, cols.stop - cols.start))
            torch.matmul(columns.T, concept(concepts), out=scores[part, cols])
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


def _take(layers: list[Tensor], units: list[Tensor], part: slice) -> Tensor:
    """Columns of the units, numbered through all layers, as a new tensor: [N, k]."""
    found, start = [], 0
    for layer, chosen in zip(layers, units):
        some = chosen[max(part.start - start, 0) : max(part.stop - start, 0)]
        found += [layer[:, some]] if len(some) else []
        start += len(chosen)
    return torch.cat(found, 1) if len(found) > 1 else found[0]


def _unit_columns(X: Tensor) -> Tensor:
    """Divide columns by their norms, in place: by their largest values first, since squares overflow and
    vanish.
    """
    X /= nonzero(_largest(X))
    X /= nonzero(X.norm(dim=0))
    return X


def _centred_columns(X: Tensor) -> Tensor:
    """Centre columns and divide them by their norms, in place; 0 for a constant one.

    `statistics.standard_columns` makes float64 copies; scoring stays in its dtype and its memory.
    """
    low, high = X.aminmax(dim=0)
    X /= nonzero(_largest(X))
    X -= X.mean(0)
    return _unit_columns(X).masked_fill_(
        low == high, 0
    )  # the mean of equal values may differ from them by a rounding error


def _cubed_columns(X: Tensor, eps: float) -> Tensor:
    """Centre, cube and divide by max(norm, eps), in place: scaled to 1 before each power, and eps alike."""
    low, high = X.aminmax(dim=0)
    first = nonzero(_largest(X))
    X /= first
    X -= X.mean(0)
    second = nonzero(_largest(X))
    X /= second
    X.pow_(3)
    floor = eps / first / first / first / second / second / second
    X /= torch.maximum(nonzero(X.norm(dim=0)), floor)
    return X.masked_fill_(low == high, 0)  # the mean of equal values may differ from them by a rounding error


def _largest(X: Tensor) -> Tensor:
    low, high = X.aminmax(dim=0)
    return torch.maximum(high, -low)


@torch.no_grad()
def retrieved(I: Tensor, T: Tensor, n: int, memory: int = MEMORY) -> Tensor:
    """The n images of a pool nearest to each text, nearest first, ties by lower index: I [N, d], T [m, d] ->
    [m, n].

    Nearest is the largest product of unit rows. Leave these images out of the control: they are in the pool.
    """
    if I.ndim != 2 or T.ndim != 2 or I.shape[1] != T.shape[1] or not len(I) or not len(T):
        raise ValueError(
            f"expected I [N, d] and T [m, d] with equal d, none empty, got {list(I.shape)} and "
            f"{list(T.shape)}"
        )
    check_positive_int("n", n, len(I), f"the pool's {len(I)} images")
    for name, X in (("I", I), ("T", T)):
        if not bool(X.isfinite().all()):
            raise ValueError(f"{name} must be finite, got {X[~X.isfinite()][0].item()}; leave that row out")
    [most] = items_within(memory, (0, 16 * len(I), len(T)))
    return torch.cat([first_largest(T[part].to(I.dtype) @ I.T, n) for part in slices(len(T), most)])
