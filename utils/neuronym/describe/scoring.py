"""Scores of candidate labels from what a unit did on their pictures (Describe-and-Dissect, step 3); higher is
better.

Ranked            what a scoring function reads
ranks             places of all pictures of all candidates, 0 for the one that excites the unit most
score_candidates  one number a candidate
best              the k best candidates, padded with blanks
distinct_best     labels that differ from each other, for units that stand for more than one thing
SCORES            name -> scoring function

    simulate       | no pictures: correlation, over all images that name, of the unit with the CLIP's
                     probability that the image shows the phrase (`describe.simulation`)
    mention        | no pictures: the same with whether a caption of the image says it, over the ordinary
                     images captioned
    agreed         | no pictures: the sum of the last two
    balanced       | no pictures: the mean of simulate and of the same with the plain cosine; where captions
                     are not the CLIP's own words (clip_words), half of that, and mention
    sq_mean        | minus the mean of the squared ranks of a candidate's pictures among all, by how much they
                     excite the unit
    mean           | minus the mean of these ranks
    median         | minus their median
    topk_sq_mean   | minus the mean square of a candidate's five smallest ranks
    image_products | mean cosine of a candidate's pictures in the overall top 10 to the unit's real examples
    topk_compare   | image_products times how many candidates topk_sq_mean does not put before it; the paper's
    first          | no pictures: the candidate that came first (of notebooks and `describe_and_dissect`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int, unknown

TIES = ("shared", "as_shipped")
NEGATIVE = ("below", "as_shipped")
BLANK = ("", math.nan)
SLACK = 1e-3  # by which rounding may take a cosine beyond 1


@dataclass(frozen=True)
class Ranked:
    """What a scoring function reads of C candidates with n pictures each."""

    R: Tensor  # [C, n] float64, ascending, NaN (last) where there is no picture
    cosine: (
        Tensor | None
    )  # [C], mean over a candidate's pictures in the overall top, NaN where it has none there
    beta: int
    negative: str
    ties: str


def ranks(activations: Tensor, ties: str = "shared") -> Tensor:
    """Places of all pictures together, 0 the highest activation: [C, n], NaN for no picture -> [C, n]
    float64.

    Equal activations share the mean of their places, so that the order of candidates does not matter. As
    shipped they follow each other, the first candidate's first: of a unit that no picture excites, the first
    candidate then wins. Errors: ValueError for another number of axes and for infinite values.
    """
    a, shown = _flat(activations, ties)
    order = a[shown].sort(descending=True, stable=True)
    found = torch.full_like(a, math.nan)
    if ties == "as_shipped":
        places = torch.empty_like(order.values)
        places[order.indices] = torch.arange(len(places), dtype=a.dtype, device=a.device)
        found[shown] = places
    else:
        found[shown] = (_stronger(a[shown], a[shown]) + _stronger(a[shown], a[shown], equal=True) - 1) / 2
    return found.view(activations.shape)


@torch.no_grad()
def score_candidates(
    activations: Tensor,
    cosines: Tensor | None = None,
    how: str = "topk_compare",
    *,
    beta: int = 5,
    top: int = 10,
    negative: str = "below",
    ties: str = "shared",
) -> Tensor:
    """Score of each candidate, float64, higher is better: activations [C, n] of one unit, cosines [C, n] ->
    [C].

    A row holds a candidate's pictures, NaN where it has fewer than n. cosines: mean cosine of a picture to
    the unit's real examples in CLIP's image space, for image_products and topk_compare. A picture is in the
    overall top when fewer than `top` of all are stronger. With fewer than beta pictures topk_sq_mean takes
    those there are. negative="below": a candidate without a picture in the top is below all that have one, -2
    - its position by topk_sq_mean; a negative cosine is divided by the weight, as times the weight it would
    order candidates upside down; one without any picture is as if its own were behind all others.
    negative="as_shipped": without a picture in the top the product is -1, whatever its weight; without any
    picture the rank functions give -(C + 1). Errors: KeyError for an unknown function or option, ValueError
    for shapes and values that cannot be.
    """
    if how not in SCORES:
        raise unknown("scoring function", how, SCORES)
    if negative not in NEGATIVE:
        raise unknown("negative", negative, NEGATIVE)
    check_positive_int("beta", beta)
    check_positive_int("top", top)
    R = ranks(activations, ties)
    cosine = None
    if how in ("image_products", "topk_compare"):
        _check_cosines(activations, cosines, how)
        a = activations.double()
        inside = R < top if ties == "as_shipped" else _stronger(a[~a.isnan()], a) < top  # [C, n]
        inside &= ~R.isnan()
        count = inside.sum(1)
        cosine = cosines.double().to(R.device).masked_fill(~inside, 0).sum(1) / count  # 0 / 0 is NaN
    return (
        R.new_empty(0) if not len(R) else SCORES[how](Ranked(R.sort(1).values, cosine, beta, negative, ties))
    )


def best(texts: Sequence[str], scores: Tensor, k: int = 3) -> list[tuple[str, float]]:
    """The k best candidates with their scores, ties by order, padded with ("", NaN): k texts whatever their
    number.
    """
    check_positive_int("k", k)
    if scores.shape != (len(texts),):
        raise ValueError(
            f"expected one score for each of {len(texts)} texts, got scores {list(scores.shape)}"
        )
    order = scores.sort(descending=True, stable=True).indices[:k].tolist()
    return [(texts[i], float(scores[i])) for i in order] + [BLANK] * (k - len(order))


def distinct_best(scores: Tensor, T: Tensor, most: int = 3, limit: float = 0.81) -> list[int]:
    """Candidates that are labels of one unit together, best first: scores [C], text embeddings T [C, d] ->
    indices.

    Greedy: down the list, one is kept when its cosine to each kept one is at most `limit`, until there are
    `most`.
    """
    check_positive_int("most", most)
    check_number("limit", limit, -1, 1)
    if scores.ndim != 1 or T.ndim != 2 or len(T) != len(scores):
        raise ValueError(
            f"expected scores [C] and T [C, d] with equal C, got {list(scores.shape)} and {list(T.shape)}"
        )
    near = (T @ T.T).tolist()  # [C, C]
    kept: list[int] = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        if len(kept) < most and all(near[i][j] <= limit for j in kept):
            kept.append(i)
    return kept


def _mean(x: Ranked) -> Tensor:
    return -_or_last(x, x.R.nanmean(1), 1)


def _median(x: Ranked) -> Tensor:
    return -_or_last(x, x.R.nanquantile(0.5, dim=1), 1)  # of an even number the mean of the middle two


def _sq_mean(x: Ranked) -> Tensor:
    return -_or_last(x, x.R.square().nanmean(1), 2)


def _topk_sq_mean(x: Ranked) -> Tensor:
    return -_or_last(x, x.R[:, : x.beta].square().nanmean(1), 2)


def _image_products(x: Ranked) -> Tensor:
    return x.cosine.where(~x.cosine.isnan(), -1.0 if x.negative == "as_shipped" else -2 - _position(x))


def _topk_compare(x: Ranked) -> Tensor:
    position = _position(x)
    weight = len(x.R) - position
    if x.negative == "as_shipped":
        return weight * x.cosine.nan_to_num(-1.0)
    product = torch.where(x.cosine < 0, x.cosine / weight, x.cosine * weight)
    return product.where(~x.cosine.isnan(), -2 - position)


SCORES: dict[str, Callable[[Ranked], Tensor]] = {
    "mean": _mean,
    "median": _median,
    "sq_mean": _sq_mean,
    "topk_sq_mean": _topk_sq_mean,
    "image_products": _image_products,
    "topk_compare": _topk_compare,
}


def _position(x: Ranked) -> Tensor:
    """Place [C] in the order of topk_sq_mean, from 0: how many are before; as shipped, equal ones follow each
    other.
    """
    s = _topk_sq_mean(x)
    before = s[None] > s[:, None]  # [C, C]
    if x.ties == "as_shipped":
        before |= (s[None] == s[:, None]).tril(-1)
    return before.sum(1).to(s.dtype)


def _or_last(x: Ranked, values: Tensor, power: int) -> Tensor:
    """values [C] with a number for candidates without any picture."""
    pictures = int((~x.R.isnan()).sum())
    return values.nan_to_num(float(len(x.R) + 1 if x.negative == "as_shipped" else pictures**power))


def _stronger(among: Tensor, a: Tensor, equal: bool = False) -> Tensor:
    """How many of `among` exceed each of a, or reach it."""
    return (len(among) - torch.searchsorted(among.sort().values, a.contiguous(), right=not equal)).double()


def _flat(activations: Tensor, ties: str) -> tuple[Tensor, Tensor]:
    if ties not in TIES:
        raise unknown("ties", ties, TIES)
    if activations.ndim != 2 or activations.is_complex() or not activations.shape[1]:
        raise ValueError(
            f"expected activations [C, n] of one unit, got {activations.dtype} {list(activations.shape)}"
        )
    a = activations.double().flatten()
    if bool(a.isinf().any()):
        c, i = divmod(int(a.isinf().nonzero()[0]), activations.shape[1])
        raise ValueError(
            "activations must be finite, or NaN for no picture, got "
            f"{a[a.isinf()][0].item()} at candidate {c}, picture {i}; leave that picture out"
        )
    return a, ~a.isnan()


def _check_cosines(activations: Tensor, cosines: Tensor | None, how: str) -> None:
    if cosines is None:
        raise ValueError(
            f"{how} compares pictures with the unit's examples, got no cosines; pass them, or use "
            "topk_sq_mean"
        )
    if cosines.shape != activations.shape:
        raise ValueError(
            f"expected cosines like activations {list(activations.shape)}, got {list(cosines.shape)}"
        )
    needed = cosines[~activations.isnan().to(cosines.device)]
    if not bool((needed.abs() <= 1 + SLACK).all()):
        wrong = needed[~(needed.abs() <= 1 + SLACK)][0].item()
        raise ValueError(f"cosines lie within -1 and 1, got {wrong}; use embeddings of length 1")
