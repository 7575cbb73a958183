"""How well does an explanation fit a neuron? The 18 metrics of NeuronEval (ICML 2025), unit by unit.

active_images  the images on which units count as active
Pairs          units, what explanations say of them, and what several metrics need of both, computed once
SOUND          the five metrics that pass both sanity tests (`evaluation.sanity`)
metric_values  several metrics at once
METRICS        name -> function, all 18

Each takes Q and predicted [N, K], active=.05 and generator=None (or a `Pairs` of them) and gives [K], unit k
against its own column predicted[:, k], in Q's dtype, computed in float64. As in NeuronEval, the *neuron* made
binary is the truth (A active images of N), and the explanation predicts it (C images where predicted >= .5);
TP images are both. "Inverse" metrics turn this round. Ranks that tie are averaged; NeuronEval breaks ties by
noise, as `spearman` can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int, unknown
from neuronym.common.memory import nonzero
from neuronym.common.statistics import column_auroc, column_precision, sort_columns, Sorted
from neuronym.common.statistics import correlation as pearson

ACTIVE = 0.05  # share of images on which a unit counts as active


def active_images(Q: Tensor, share: float = ACTIVE) -> Tensor:
    """The ceil(share N) images of largest activation of each unit, at least one, and those that tie with the
    last.

    bool [N, K]. Never those of its least activation: a constant (dead) unit has none, and one that is 0 on
    most images only those above 0, while in NeuronEval all N would tie. Errors: ValueError for a share
    outside 0..1.
    """
    check_number("share of active images", share, 0, 1)
    count = max(1, math.ceil(round(share * len(Q), 9)))  # .07 * 100 is a little more than 7
    cutoff = (Q if Q.is_floating_point() else Q.double()).topk(count, dim=0).values[-1]
    return (Q >= cutoff) & (Q > Q.amin(0))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Units Q [N, K] and their explanations [N, K], with what several metrics need, made when first asked
    for.

    `active_share`: share of images, or the active images themselves, bool [N, K]. Errors: ValueError for
    unequal shapes, values that are not finite and, where a metric needs probabilities, predictions outside
    0..1.
    """

    Q: Tensor
    predicted: Tensor
    active_share: float | Tensor = ACTIVE
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        shapes = [
            list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (self.Q, self.predicted)
        ]
        if shapes[0] != shapes[1] or not isinstance(self.Q, Tensor) or self.Q.ndim != 2 or not self.Q.numel():
            raise ValueError(
                "expected Q and predicted as tensors [N, K] of one shape, none empty, got "
                f"{shapes[0]} and {shapes[1]}; pick each unit's own column of the predictions"
            )
        for name, x in (("Q", self.Q), ("predicted", self.predicted)):
            if not bool(x.isfinite().all()):
                image, unit = (~x.isfinite()).nonzero()[0].tolist()
                raise ValueError(
                    f"{name} must be finite, got {x[image, unit].item()} at image {image}, unit {unit}; "
                    "leave that image or unit out"
                )
        if isinstance(self.active_share, Tensor) and (self.active_share.dtype, self.active_share.shape) != (
            torch.bool,
            self.Q.shape,
        ):
            raise ValueError(
                f"expected active images as bool {shapes[0]}, got {self.active_share.dtype} "
                f"{list(self.active_share.shape)}; or pass a share"
            )

    @cached_property
    def active(self) -> Tensor:
        """The active images, bool."""
        share = self.active_share
        return share if isinstance(share, Tensor) else active_images(self.Q, share)

    @cached_property
    def probability(self) -> Tensor:
        """Predictions as probabilities, float64."""
        p = self.predicted.double()
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError(
                f"this metric takes predictions from 0 to 1, got {p.min().item():.4g} to "
                f"{p.max().item():.4g}; make them probabilities, or use correlation, spearman, cosine, "
                "auroc or auprc"
            )
        return p

    @cached_property
    def predicted_on(self) -> Tensor:
        """The images on which the unit is said to be active, bool."""
        return self.predicted if self.predicted.dtype == torch.bool else self.probability >= 0.5

    @cached_property
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """TP, A, C, each [K] in float64."""
        return tuple(
            x.sum(0).double() for x in (self.active & self.predicted_on, self.active, self.predicted_on)
        )

    @cached_property
    def order_Q(self) -> Sorted:
        return sort_columns(self.Q)

    @cached_property
    def order_predicted(self) -> Sorted:
        return sort_columns(self.predicted)

    def random(self, *shape: int) -> Tensor:
        device = self.Q.device if self.generator is None else self.generator.device
        return torch.rand(shape, dtype=torch.float64, generator=self.generator, device=device).to(
            self.Q.device
        )


SOUND = ("correlation", "cosine", "auprc", "f1", "iou")
FLOOR = 1e-8  # least probability in wpmi
TOP, EACH = 0.002, 25  # images to draw from and to draw, of top_and_random


def metric_values(
    Q: Tensor,
    predicted: Tensor,
    metrics: Sequence[str] | Mapping[str, Callable[[Pairs], Tensor]] = SOUND,
    active: float | Tensor = ACTIVE,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Metrics by name, each [K], of units Q [N, K] and what an explanation says of each, predicted [N, K].

    `metrics`: names of METRICS, or a mapping of names to functions of `Pairs`. `active`: a share, or bool [N,
    K]. Errors: KeyError for an unknown name, ValueError as in `Pairs`.
    """
    if not isinstance(metrics, Mapping):
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        if strange := [name for name in names if name not in METRICS]:
            raise unknown("metric", strange[0], METRICS, shown=len(METRICS))
        metrics = {name: METRICS[name] for name in names}
    pairs = Pairs(Q, predicted, active, generator)
    return {name: metric(pairs) for name, metric in metrics.items()}


def _metric(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of Pairs, made to take Q and predicted as well; the result in Q's dtype."""

    @wraps(of)
    def metric(
        Q: Tensor | Pairs,
        predicted: Tensor | None = None,
        active: float | Tensor = ACTIVE,
        generator: torch.Generator | None = None,
        **options,
    ) -> Tensor:
        pairs = Q if isinstance(Q, Pairs) else Pairs(Q, predicted, active, generator)
        return of(pairs, **options).to(pairs.Q.dtype if pairs.Q.is_floating_point() else torch.float64)

    return metric


@_metric
def correlation(x: Pairs) -> Tensor:
    """Pearson correlation of activation and prediction; 0 where either is constant."""
    return pearson(x.predicted, x.Q)


@_metric
def cosine(x: Pairs) -> Tensor:
    """<q, p> / (|q| |p|), nothing centred; 0 where either is all zeros."""
    q, p = (
        v.double() / nonzero(v.double().abs().amax(0)) for v in (x.Q, x.predicted)
    )  # squares overflow and vanish
    return (q * p).sum(0) / nonzero(q.norm(dim=0) * p.norm(dim=0))


@_metric
def auprc(x: Pairs) -> Tensor:
    """Average precision of the prediction as a detector of active images: the sum over its values t,
    descending, of (recall(t) - recall before) precision(t), equal values one threshold; 0 without active
    images.
    """
    return column_precision(x.order_predicted, x.active)


@_metric
def f1(x: Pairs) -> Tensor:
    """2 TP / (A + C); 0 for a dead unit or a concept never present."""
    tp, a, c = x.counts
    return 2 * tp / nonzero(a + c)


@_metric
def iou(x: Pairs) -> Tensor:
    """TP / (A + C - TP); 0 for a dead unit or a concept never present."""
    tp, a, c = x.counts
    return tp / nonzero(a + c - tp)


@_metric
def recall(x: Pairs) -> Tensor:
    """TP / A: the active images that show the concept; 0 for a dead unit."""
    tp, a, _ = x.counts
    return tp / nonzero(a)


@_metric
def precision(x: Pairs) -> Tensor:
    """TP / C: the images of the concept that are active; 0 for a concept never present."""
    tp, _, c = x.counts
    return tp / nonzero(c)


@_metric
def accuracy(x: Pairs) -> Tensor:
    """(TP + TN) / N: images on which both say the same, also for dead units and concepts never present."""
    tp, a, c = x.counts
    return (len(x.Q) - a - c + 2 * tp) / len(x.Q)


@_metric
def balanced_accuracy(x: Pairs) -> Tensor:
    """(TP / A + TN / (N - A)) / 2; .5 (chance) where no image or every image is active."""
    tp, a, c = x.counts
    return _balanced(tp, a, c, len(x.Q))


@_metric
def inverse_balanced_accuracy(x: Pairs) -> Tensor:
    """(TP / C + TN / (N - C)) / 2; .5 (chance) where the concept is in no image or in every image."""
    tp, a, c = x.counts
    return _balanced(tp, c, a, len(x.Q))


@_metric
def auroc(x: Pairs) -> Tensor:
    """Probability that the prediction is higher for an active image than for another, ties half; .5 for a
    dead unit.
    """
    return column_auroc(x.order_predicted, x.active, ~x.active).nan_to_num(0.5)


@_metric
def inverse_auroc(x: Pairs) -> Tensor:
    """Probability that activation is higher where the concept is than where not, ties half; .5 for a dead
    unit.
    """
    return column_auroc(x.order_Q, x.predicted_on, ~x.predicted_on).nan_to_num(0.5)


@_metric
def mad(x: Pairs, scale: bool = True) -> Tensor:
    """Mean activation with the concept less that without, over the activation's standard deviation (of all N
    images).

    NeuronEval does not divide (scale=False), and then units of large activations rule any mean over units;
    CoSy divides by the deviation of images without the concept, which is 0 for a perfect detector. 0 where
    nothing can be compared.
    """
    q, (_, _, c), said = x.Q.double(), x.counts, x.predicted_on
    q = q / nonzero(q.abs().amax(0)) if scale else q  # squares overflow and vanish
    rest = len(q) - c
    gap = (q * said).sum(0) / nonzero(c) - (q * ~said).sum(0) / nonzero(rest)
    alive = (c > 0) & (rest > 0) & (q.amax(0) > q.amin(0))
    return torch.where(alive, gap / nonzero(q.std(0, correction=0)) if scale else gap, 0)


@_metric
def wpmi(x: Pairs, lam: float = 1) -> Tensor:
    """Mean over active images of log max(p, 1e-8), less lam log max(mean over all images of p, 1e-8); 0 if
    dead.
    """
    logs, (_, a, _) = x.probability.clamp_min(FLOOR).log(), x.counts
    prior = x.probability.mean(0).clamp_min(FLOOR).log()
    return torch.where(a > 0, (logs * x.active).sum(0) / nonzero(a) - lam * prior, 0)


@_metric
def spearman(x: Pairs, ties: str = "average") -> Tensor:
    """Pearson correlation of ranks; equal values share their mean rank, or are put in random order
    (ties="random").
    """
    return _rank_correlation(x, ties)


@_metric
def correlation_top_and_random(x: Pairs, top: float = TOP, each: int = EACH) -> Tensor:
    """`correlation` on `each` images drawn from the share `top` of highest activation (see `active_images`)
    and as many drawn from all; without replacement, in turn again where there are fewer.
    """
    some = _top_and_random(x, top, each)
    return pearson(some.predicted, some.Q)


@_metric
def spearman_top_and_random(x: Pairs, top: float = TOP, each: int = EACH, ties: str = "average") -> Tensor:
    """`spearman` on images drawn as in `correlation_top_and_random`."""
    return _rank_correlation(_top_and_random(x, top, each), ties)


@_metric
def inverse_auprc(x: Pairs) -> Tensor:
    """Average precision of the activation as a detector of the concept; 0 for a concept never present."""
    return column_precision(x.order_Q, x.predicted_on)


METRICS: dict[str, Callable[..., Tensor]] = {
    metric.__name__: metric
    for metric in (
        correlation,
        cosine,
        auprc,
        f1,
        iou,
        recall,
        precision,
        accuracy,
        balanced_accuracy,
        inverse_balanced_accuracy,
        auroc,
        inverse_auroc,
        mad,
        wpmi,
        spearman,
        correlation_top_and_random,
        spearman_top_and_random,
        inverse_auprc,
    )
}


def _balanced(tp: Tensor, true: Tensor, said: Tensor, N: int) -> Tensor:
    tn = N - true - said + tp
    return torch.where((true > 0) & (true < N), (tp / nonzero(true) + tn / nonzero(N - true)) / 2, 0.5)


def _rank_correlation(x: Pairs, ties: str) -> Tensor:
    if ties not in ("average", "random"):
        raise unknown("way with ties", ties, ("average", "random"))
    ranks = []
    for values, sorted_so in ((x.predicted, "order_predicted"), (x.Q, "order_Q")):
        if ties == "random":  # all units meet the images in one random order, and stay in it where they tie
            turn = x.random(len(values)).argsort()
            index = turn[values[turn].sort(dim=0, stable=True).indices]
            place = torch.arange(len(values), dtype=torch.float64, device=values.device)[:, None].expand_as(
                index
            )
            place = place * (values.amax(0) > values.amin(0))  # what is constant stays so
        else:
            index, below, most = getattr(x, sorted_so)
            place = (below + most).double() / 2
        ranks.append(torch.empty_like(place).scatter_(0, index, place))
    return pearson(*ranks)


def _top_and_random(x: Pairs, top: float, each: int) -> Pairs:
    check_positive_int("each", each)
    best = active_images(x.Q, top)
    N, turn = len(x.Q), torch.arange(each, device=x.Q.device)[:, None]
    drawn = x.random(*best.shape).masked_fill(~best, -1).topk(min(each, N), dim=0).indices
    chosen = drawn.gather(0, turn % best.sum(0).clamp(1, len(drawn)))  # [each, K]
    others = x.random(*best.shape).topk(min(each, N), dim=0).indices
    rows = torch.cat([chosen, others[turn[:, 0] % len(others)]])  # [2 each, K]
    return Pairs(x.Q.gather(0, rows), x.predicted.gather(0, rows), generator=x.generator)
