"""Choosing among candidate labels of units (Describe-and-Dissect, step 3): whose pictures excite the unit?

rank_candidates     scores of every unit's candidates, from drawn or from retrieved pictures
on_generated          pictures of a generator: every different text drawn once, for all units that have it
on_retrieved        the probe's images nearest to the text: rows of Q, no generator and no forward pass
score_shown         the scores of pictures already shown, by one or several functions
candidate_pictures  the pictures a generator gives for texts, also for figures
CandidateActivations               what units did on the pictures of their candidates

A text that the microworld has no word of, where it is generator or CLIP, has no pictures: its score is the
lowest.

Which candidate label do pictures speak for? The scoring functions of Describe-and-Dissect, higher is better
for all.

ranks             places of all pictures of all candidates, 0 for the one that excites the unit most
score_candidates  one number per candidate
SCORES            name -> scoring function
best              the k best candidates, padded with blanks
distinct_best           labels that differ from each other, for units that stand for more than one thing

    mean, median, sq_mean   of a candidate's ranks or their squares, times -1
    topk_sq_mean            of the squares of its beta smallest ranks, times -1
    image_products          mean cosine of its pictures in the overall top 10 to the unit's real examples
    topk_compare            image_products times a weight: how many candidates topk_sq_mean does not put
                            before it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from PIL import Image
from torch import Tensor

from neuronym.activations import activations_and_embeddings, embed_concepts, unit_activations
from neuronym.common.checks import check_number, check_positive_int, unknown
from neuronym.common.memory import MEMORY, top_images
from neuronym.common.types import Clip, Device, Progress, Target
from neuronym.datasets.probe import probe_from_images
from neuronym.hooks import LayerInfo
from neuronym.microworld.world import CANDIDATE_SEED
from neuronym.models.generators import Generator, pictures_of
from neuronym.similarity.scores import retrieved

PROMPT = "One realistic image of {}"
UNIT_ROWS = 1e-2  # how far from 1 the length of an embedding may be


@dataclass(frozen=True)
class CandidateActivations:
    """For each unit, what it did on n pictures of each of its C candidates; NaN, and row -1, where there is
    none.
    """

    activations: dict[int, Tensor]  # unit -> [C, n]
    cosines: (
        dict[int, Tensor] | None
    )  # unit -> [C, n], mean cosine to the unit's examples; None without examples
    rows: dict[int, Tensor] | None  # unit -> [C, n], images of the probe; None for drawn pictures


def rank_candidates(
    candidates: Mapping[int, Sequence[str]],
    E: Mapping[int, Tensor] | None,
    source: Generator | str = "retrieval",
    *,
    how: str | Sequence[str] = "topk_compare",
    n: int = 10,
    beta: int = 5,
    top: int = 10,
    negative: str = "below",
    ties: str = "shared",
    **options,
) -> tuple[dict[str, dict[int, Tensor]], CandidateActivations]:
    """Candidates {unit: C texts}, embeddings of units' examples E {unit: [m, d]} -> {how: {unit: scores
    [C]}}, Shown.

    source "retrieval" takes the options of `on_retrieved`, a Generator those of `on_generated`; the others
    are those of `score_candidates`. E may be None where `how` compares no pictures with examples. No
    candidates, no scores: [0]. Errors: KeyError for an unknown function or source, ValueError for what the
    others refuse.
    """
    if isinstance(source, Generator):
        shown = on_generated(candidates, E, source, n=n, **options)
    elif source == "retrieval":
        shown = on_retrieved(candidates, E, n=n, **options)
    else:
        raise unknown("source of pictures", source, ["retrieval", "a Generator of load_generator"])
    return score_shown(shown, how, beta=beta, top=top, negative=negative, ties=ties), shown


@torch.no_grad()
def on_generated(
    candidates: Mapping[int, Sequence[str]],
    E: Mapping[int, Tensor] | None,
    source: Generator,
    *,
    target: Target,
    layer: LayerInfo,
    clip: Clip | None = None,
    n: int = 10,
    seed: int = 0,
    template: str | None = None,
    shrink: int | None = None,
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> CandidateActivations:
    """Activations of one layer's units on n drawn pictures of each of their candidates, and cosines to the
    examples E.

    In memory are the n pictures of one text. Pictures, activations and embeddings are cached text by text:
    what another unit or run has asked for before is not computed again, a killed run goes on where it was.
    CLIP only with E. Options as in `candidate_pictures` and `unit_activations`. Errors: ValueError for units
    that the layer does not have, E without a CLIP, and bad texts.
    """
    places = _checked(candidates, layer.units, f"layer '{layer.name}'")
    check_positive_int("n", n)
    if E is not None and clip is None:
        raise ValueError("cosines to the examples E need their CLIP, got none; pass clip, or E=None")
    means = _means(candidates, E, clip)
    acts, cosines = (
        {unit: torch.full((len(texts), n), torch.nan) for unit, texts in candidates.items()} for _ in "ac"
    )
    texts = [text for text in places if source.reads(text)]
    for text in texts if progress is None else progress(texts, len(texts), "candidates drawn"):
        probe = probe_from_images(candidate_pictures([text], source, n, seed, template, shrink)[text])
        if E is None:
            found = unit_activations(target, probe, [layer], pool, batch_size, device)
        else:
            found, I = activations_and_embeddings(target, [layer], clip, probe, pool, batch_size, device)
        for unit, c in places[text]:
            acts[unit][c] = found[layer.name][:, unit]
            if E is not None:
                cosines[unit][c] = I.to(means[unit]) @ means[unit]
    return CandidateActivations(acts, None if E is None else cosines, None)


@torch.no_grad()
def on_retrieved(
    candidates: Mapping[int, Sequence[str]],
    E: Mapping[int, Tensor] | None,
    *,
    Q: Tensor,
    I: Tensor,
    clip: Clip,
    n: int = 10,
    exclude: Mapping[int, Sequence[int]] | int = 10,
    template: str = "{}",
    memory: int = MEMORY,
) -> CandidateActivations:
    """Activations on the n probe images nearest to each candidate in CLIP space: Q [N, K], I [N, d] of one
    probe.

    Images that a unit's examples come from are left out for this unit: `exclude` {unit: rows}, or so many of
    its highest activated ones (0: none). Scoring a candidate on the images it was made from would be circular;
    what is left says whether it holds elsewhere. The price: where no other image shows
    the concept, those that come nearest must do; a probe should have some beyond the examples. Errors:
    ValueError for another N or d, units that Q does not have, too few images, bad texts.
    """
    if Q.ndim != 2 or I.ndim != 2 or len(Q) != len(I):
        raise ValueError(
            f"expected Q [N, K] and I [N, d] of one probe, got {list(Q.shape)} and {list(I.shape)}"
        )
    places = _checked(candidates, Q.shape[1], "Q")
    check_positive_int("n", n)
    means, left_out = _means(candidates, E, clip), _left_out(candidates, Q, exclude)
    most = n + max(map(len, left_out.values()))
    if most > len(I):
        raise ValueError(
            f"{n} images a candidate beside {most - n} left out exceed the probe's {len(I)}; pass a "
            "smaller n or exclude"
        )
    said = {text: clip.reads(text) for text in places}
    different = list(dict.fromkeys(filter(None, said.values())))
    near = torch.full((len(different) + 1, most), -1)  # the last row: no images
    if different:
        near[:-1] = retrieved(I, embed_concepts(clip, different, template).to(I.device), most, memory)
    row_of = {text: i for i, text in enumerate(different)}
    acts, cosines, rows = {}, {}, {}
    for unit, texts in candidates.items():
        found = near[[row_of.get(said[text], -1) for text in texts]]  # [C, most], also without texts
        behind = torch.isin(found, torch.tensor(left_out[unit], dtype=torch.int64)).to(torch.uint8)
        rows[unit] = found.gather(1, behind.sort(dim=1, stable=True).indices[:, :n])
        none, some = rows[unit] < 0, rows[unit].clamp_min(0)
        acts[unit] = Q[some.to(Q.device), unit].masked_fill(none.to(Q.device), torch.nan)
        if E is not None:
            products = (I[some.to(I.device)] @ means[unit].to(I)).to(Q.device)
            cosines[unit] = products.masked_fill(none.to(Q.device), torch.nan)
    return CandidateActivations(acts, None if E is None else cosines, rows)


def score_shown(
    shown: CandidateActivations,
    how: str | Sequence[str] = "topk_compare",
    *,
    beta: int = 5,
    top: int = 10,
    negative: str = "below",
    ties: str = "shared",
) -> dict[str, dict[int, Tensor]]:
    """{function: {unit: scores [C]}} by one or several scoring functions; see `score_candidates`."""
    options = {"beta": beta, "top": top, "negative": negative, "ties": ties}
    return {
        one: {
            unit: score_candidates(
                acts, None if shown.cosines is None else shown.cosines[unit], one, **options
            )
            for unit, acts in shown.activations.items()
        }
        for one in ([how] if isinstance(how, str) else how)
    }


def candidate_pictures(
    texts: Sequence[str],
    source: Generator,
    n: int = 10,
    seed: int = 0,
    template: str | None = None,
    shrink: int | None = None,
) -> dict[str, list[Image.Image]]:
    """n pictures of each different text, with the same n seeds for each; none of a text that cannot be drawn.

    The prompt is PROMPT, for the microworld the text alone. shrink: the side, in pixels, that pictures are
    reduced to before target and CLIP see them, 32 as shipped; None leaves them as they were drawn.
    """
    if shrink is not None:
        check_positive_int("shrink", shrink)
    template = template if template is not None or source.bare else PROMPT
    drawable = [text for text in texts if source.reads(text)]
    made = pictures_of(drawable, source, n, seed, template, first=CANDIDATE_SEED) if drawable else {}
    if shrink is not None:
        made = {
            text: [picture.resize((shrink, shrink), Image.Resampling.BICUBIC) for picture in some]
            for text, some in made.items()
        }
    return {text: made.get(text, []) for text in texts}


def _checked(candidates: Mapping[int, Sequence[str]], K: int, of: str) -> dict[str, list[tuple[int, int]]]:
    """Each different text with the units that have it, and where in their lists."""
    if not candidates:
        raise ValueError("candidates are {unit: texts} of one unit or more, got none")
    places: dict[str, list[tuple[int, int]]] = {}
    for unit, texts in candidates.items():
        if isinstance(unit, bool) or not isinstance(unit, Integral) or not 0 <= unit < K:
            raise ValueError(f"units of {of} are numbers from 0 to {K - 1}, got {unit!r}")
        for c, text in enumerate([None] if isinstance(texts, str) else texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    "a unit's candidates are a list of texts, none empty, got "
                    f"{f'{texts!r}':.80} for unit {unit}"
                )
            places.setdefault(text, []).append((unit, c))
    return places


def _means(
    candidates: Mapping[int, Sequence[str]], E: Mapping[int, Tensor] | None, clip: Clip | None
) -> dict[int, Tensor]:
    """Mean example [d] of each unit, on the CPU: a picture's product with it is its mean cosine to the
    examples.
    """
    means = {}
    for unit in candidates if E is not None else ():
        if unit not in E:
            raise unknown("unit with examples", unit, E)
        if E[unit].ndim != 2 or not len(E[unit]) or E[unit].shape[1] != clip.d:
            raise ValueError(
                f"expected examples [m, {clip.d}] of unit {unit}, as {clip.name} gives, got "
                f"{list(E[unit].shape)}"
            )
        wrong = ~((E[unit].norm(dim=1) - 1).abs() <= UNIT_ROWS)
        if bool(wrong.any()):
            raise ValueError(
                f"examples are rows of length 1, got {E[unit].norm(dim=1)[wrong][0]:.4g} for unit {unit}; "
                "divide them by their length"
            )
        means[unit] = E[unit].cpu().mean(0)
    return means


def _left_out(
    candidates: Mapping[int, Sequence[str]], Q: Tensor, exclude: Mapping[int, Sequence[int]] | int
) -> dict[int, list[int]]:
    """The rows that each unit's candidates are not shown."""
    if isinstance(exclude, Mapping):
        for unit in candidates:
            if unit not in exclude:
                raise unknown("unit with images to exclude", unit, exclude)
            if any(not 0 <= row < len(Q) for row in exclude[unit]):
                raise ValueError(
                    f"images to exclude are rows of Q from 0 to {len(Q) - 1}, got "
                    f"{list(exclude[unit])} for unit {unit}"
                )
        return {unit: sorted({int(row) for row in exclude[unit]}) for unit in candidates}
    if exclude == 0:
        return {unit: [] for unit in candidates}
    check_positive_int("exclude", exclude, len(Q), f"the probe's {len(Q)} images")
    return dict(zip(candidates, top_images(Q[:, list(candidates)], exclude).T.tolist()))


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
