"""How alike are units and concepts? The five similarity functions of CLIP-Dissect and five correlations, in
bounded memory.

score                 scores [K, M] of a matrix P [N, M] against activations Q [N, K], by the name of a
                      function
score_embeddings      the same from image and text embeddings, without ever holding P
score_layers          layer after layer, with P made once for several
top_labels            the best concepts of every unit
constant_units        which units nothing can be named by: their activation is one value
layer_options         what a function is told of a layer: whether it is the last
SIMILARITIES          the functions by name: CLIP-Dissect's five, and five correlations
retrieved             the images nearest to texts

N images, K units, M concepts, d embedding width. Higher is better, and comparable only within one function
and set-up. All functions take `units`, those to score (what is normalised over units is normalised over all
K); `memory`, the bytes they may use beside inputs and result, which changes the time but not the scores
(256 MiB, or an eighth of what is free where the sizes ask for more); a `FactoredMatrix` in place of a matrix
P; and a list of layers in place of Q, which gives a list of scores.
Among equal activations the image of lower index comes first. Half precision is computed in float32.
A unit whose activation is one value has one score for all concepts, the mean of what the function gives: of
its images none is first, so that an order of concepts would be that of the images' names.

    soft_wpmi            | weighted pointwise mutual information, trusting the j-th most active image the less
                           the larger j; CLIP-Dissect's own
    wpmi                 | the same with equal trust in a unit's 28 most active images
    rank_reorder         | how well a concept's values put a unit's most active images in order
    cos_similarity       | cosine of activations and concept values over all images, not centred
    cos_similarity_cubed | the same of centred and cubed values, which weigh the extremes
    correlation          | Pearson's correlation over all images
    soft_correlation     | the same with the softmax over concepts of each image's values
    combined_correlation | the sum of correlation, cubed cosine and soft_correlation
    standardised_correlation | the sum of correlations with a softmax and powers of standardised
                           values
    layered_correlation  | the default: standardised_correlation, and for the last layer
                           combined_correlation with the cubed cosine twice
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import (
    budget,
    first_largest,
    items_within,
    MEMORY,
    slices,
    SORTING_BYTES_PER_VALUE,
)
from neuronym.similarity.columns import correlation, cos_similarity, cos_similarity_cubed
from neuronym.similarity.combined import combined_correlation, layered_correlation
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.pmi import soft_wpmi, wpmi
from neuronym.similarity.rank_reorder import rank_reorder
from neuronym.similarity.softened import soft_correlation
from neuronym.similarity.standardised import standardised_correlation

SAME = 1e-5  # activations that differ by less, of the largest, are one value


def score(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    method: str = "soft_wpmi",
    *,
    units: Sequence[int] | None = None,
    memory: int | None = None,
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
    parameters = inspect.unwrap(SIMILARITIES[method]).__kwdefaults__
    valid = [name for name in parameters if name not in ("units", "memory", "generator")]
    for name in options:
        if name not in valid:
            raise ValueError(f"{method} has no option '{name}'; valid: {', '.join(valid) or 'none'}")
    if "generator" in parameters:
        options["generator"] = generator
    scores = SIMILARITIES[method](P, Q, units=units, memory=memory, **options)
    if not options.get("as_shipped"):
        for found, q in [(scores, Q)] if isinstance(Q, Tensor) else zip(scores, Q):
            rows = constant_units(q)
            _level(found, rows if units is None else rows[[int(unit) for unit in units]])
    return scores


def layer_options(method: str, final: bool) -> dict[str, bool]:
    """Options of a function for a network's last layer, or another: none but for `layered_correlation`."""
    return {"final": final} if method == layered_correlation.__name__ else {}


def constant_units(Q: Tensor) -> Tensor:
    """Whether each unit is the same for all images up to rounding (SAME), or 0 for the only one: Q [N, K] ->
    bool [K].
    """
    Q = Q.detach()
    low, high = (x.to(torch.promote_types(Q.dtype, torch.float32)) for x in (Q.amin(0), Q.amax(0)))
    largest = torch.maximum(high.abs(), low.abs())
    return high - low <= SAME * largest if len(Q) > 1 else largest == 0


def _level(scores: Tensor, rows: Tensor) -> None:
    """Give rows [K] of the scores [K, M] their mean, in place."""
    for row in rows.nonzero().flatten().tolist():
        scores[row] = scores[row].mean()


def score_embeddings(
    I: Tensor,
    T: Tensor,
    Q: Tensor | Sequence[Tensor],
    method: str = "soft_wpmi",
    *,
    units: Sequence[int] | None = None,
    memory: int | None = None,
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
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (layer, scores [K, M]) for each of the layers {name: Q [N, K]}, as `score` gives them.

    P is made once for as many layers as `memory` holds the scores of.
    """
    waiting, held = list(Q), 0
    if Q:
        first = next(iter(Q.values()))
        memory = budget(memory, first.device, sum(4 * q.shape[1] * P.shape[1] for q in Q.values()))
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


SIMILARITIES = {
    f.__name__: f
    for f in (
        cos_similarity,
        cos_similarity_cubed,
        rank_reorder,
        wpmi,
        soft_wpmi,
        correlation,
        soft_correlation,
        combined_correlation,
        standardised_correlation,
        layered_correlation,
    )
}


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
