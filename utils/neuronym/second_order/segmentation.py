"""Where an image shows a class, told by neurons: zero-shot segmentation from a CLIP's neurons (section 5),
and its score.

class_weights        which neurons' activations are averaged for each class
neuron_heat          the average, place by place
pair_heat            the same of a ResNet's pairs of neuron and head (Bu & Gandelsman 2025), and of all
attention_heat       a baseline without neurons: the last attention to each place
METRICS              pixel accuracy, mean IoU (of background and foreground), mean average precision
heat_to_mask         heat maps -> scores from 0 to 1 and masks of another size
segmentation_scores  METRICS of a set, and a table by image
bootstrap            their 95 % intervals from the table
segment              all of it for several heat maps of the same pictures, and for the baselines
BASELINES            name -> scores and masks that know nothing of the picture
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import CACHED, slices
from neuronym.common.statistics import column_precision, sort_columns
from neuronym.common.types import Clip, Progress
from neuronym.datasets.probe import Probe
from neuronym.models.preprocess import fit_mask, sides_of
from neuronym.second_order.lens import Lens, read_lens, recorded
from neuronym.second_order.pool import has_pool, pool_factors
from neuronym.second_order.text_code import speaking_neurons


def class_weights(
    R: Mapping[int, Tensor], head: Tensor, neurons: int = 200, signed: bool = True
) -> dict[int, Tensor]:
    """Weights {layer: [C, K]}: for each class the mean over the `neurons` of all layers with the largest |r .
    w_c|.

    R {layer: [K, d]}, head [C, d]. `signed` counts a neuron that speaks against the class with -1; the
    released segmentation ignores the sign.
    """
    rows = torch.cat([*R.values()])
    weights = rows.new_zeros(len(head), len(rows))
    for c, w in enumerate(head):
        units, reads = speaking_neurons(w, rows, neurons)
        weights[c, units] = (reads.sign() if signed else torch.ones_like(reads)) / len(units)
    return dict(zip(R, weights.split([len(r) for r in R.values()], dim=1)))


def neuron_heat(
    clip: Clip,
    probe: Probe,
    weights: Mapping[str, Mapping[int, Tensor]],
    classes: Tensor,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Weighted sums of activations at the places of each image, {name: [N, h, w]}; a class token is left out.

    weights {name: those of `class_weights`}, all from one pass; classes [N] says whose weights an image gets.
    Errors: ValueError for layers that have no second-order effects.
    """
    _check_classes(probe, classes)
    lens = read_lens(clip)
    layers = lens.checked([layer for by_layer in weights.values() for layer in by_layer])

    def heat(acts: Mapping[str, Tensor], rows: slice) -> Tensor:
        sums = [
            sum(
                torch.einsum("btk,bk->bt", acts[lens.neurons[layer]][:, lens.first :], w[classes[rows]])
                for layer, w in by_layer.items()
            )
            for by_layer in weights.values()
        ]
        return torch.stack(sums, dim=1)  # [b, names, places]

    names = [lens.neurons[layer] for layer in layers]
    return dict(zip(weights, _places(clip, lens, probe, names, heat, batch_size, progress).unbind(1)))


def pair_heat(
    clip: Clip,
    probe: Probe,
    head: Tensor,
    classes: Tensor,
    pairs: int = 200,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """What pairs of neuron and head of a ResNet's attention pool write along each image's class, place by
    place, {name: [N, h, w]}; {} for other towers.

    head [C, d], classes [N]. "200 pairs": those whose directions lie most along the class, their signs times
    what they carry from a place, activation and attention; "..., activation alone": the same without
    attention; "all pairs": the place's share of the class's logit, exactly.
    """
    if not has_pool(clip):
        return {}
    check_positive_int("pairs", pairs)
    _check_classes(probe, classes)
    lens = read_lens(clip)
    factors, H = pool_factors(lens.read), lens.read.heads
    there, of_image = classes.unique(return_inverse=True)
    along = head[there].to(factors.value)  # [c, d]
    some = max(1, CACHED // (8 * H * along.shape[1]))
    reads = [F.normalize(factors.V(units), dim=2) @ along.T for units in slices(factors.value.shape[2], some)]
    reads = torch.cat(reads).flatten(0, 1).T  # [c, K H]
    index = reads.abs().topk(min(pairs, reads.shape[1])).indices  # [c, n]
    sign = reads.gather(1, index).sign()
    through = torch.einsum("hde,cd->che", factors.carry, along)

    def heat(acts: Mapping[str, Tensor], rows: slice) -> Tensor:
        x, c = acts[lens.looked], of_image[rows]  # [b, T, K], [b]
        look = lens.attention(x)  # [b, H, T]
        unit, by = index[c] // H, index[c] % H  # [b, n]
        p = x.transpose(1, 2).gather(1, unit[:, :, None].expand(-1, -1, x.shape[1])) * sign[c][:, :, None]
        carried = p * look.gather(1, by[:, :, None].expand_as(p))
        values = torch.einsum("btk,hek,bhe->bht", x, factors.value, through[c])
        return torch.stack([carried.mean(1), p.mean(1), (look * values).sum(1)], dim=1)

    names = (f"{index.shape[1]} pairs", f"{index.shape[1]} pairs, activation alone", "all pairs")
    return dict(zip(names, _places(clip, lens, probe, [lens.looked], heat, batch_size, progress).unbind(1)))


def attention_heat(
    clip: Clip, probe: Probe, batch_size: int = 32, progress: Progress | None = None
) -> Tensor:
    """How much is looked at each place in the end, mean over heads, [N, h, w]: by the class token in a ViT's
    last block, by the query of an attention pool.
    """
    lens = read_lens(clip)

    def heat(acts: Mapping[str, Tensor], rows: slice) -> Tensor:
        return lens.attention(acts[lens.looked]).mean(1)[:, None, lens.first :]

    return _places(clip, lens, probe, [lens.looked], heat, batch_size, progress)[:, 0]


def _places(
    clip: Clip,
    lens: Lens,
    probe: Probe,
    names: Sequence[str],
    heat: Callable[[Mapping[str, Tensor], slice], Tensor],
    batch_size: int,
    progress: Progress | None,
) -> Tensor:
    """heat(recorded layers, rows) [b, n, places] of all images, as maps on their square grid."""
    parts = [heat(acts, rows) for rows, acts in recorded(clip, lens, probe, names, batch_size, progress)]
    flat = torch.cat(parts)
    side = round(flat.shape[2] ** 0.5)
    return flat.unflatten(2, (side, side))


def _check_classes(probe: Probe, classes: Tensor) -> None:
    if len(classes) != probe.N:  # one alone would be taken for all
        raise ValueError(f"expected a class for each of the {probe.N} images, got {len(classes)}")


METRICS = ("pixel_accuracy", "mean_iou", "mean_average_precision")
COUNTS = ["tp", "fp", "fn", "tn"]  # pixels; positive is foreground


def heat_to_mask(heat: Tensor, size: int | tuple[int, int], threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Heat maps [n, h, w] -> scores [n, H, W] in 0..1 and masks (bool), scores > threshold (algorithms.md,
    3).

    Resized bilinearly (pixel centres, corners not aligned), then each image's minimum to 0 and maximum to 1;
    a constant map says nothing and gives zeros. `size` is one side of a square, or (H, W).
    """
    if heat.ndim != 3 or not heat.is_floating_point() or not heat.numel():
        raise ValueError(
            f"expected heat as floats [n, h, w], none empty, got {heat.dtype} {list(heat.shape)}"
        )
    if not bool(heat.isfinite().all()):
        raise ValueError(f"heat must be finite, got {heat[~heat.isfinite()][0].item()}; leave that map out")
    check_number("threshold", threshold, 0, 1)
    # told before resizing, which would make a constant a pattern of rounding errors for min-max to blow up
    constant = (heat.amax((1, 2)) == heat.amin((1, 2)))[:, None, None]
    large = F.interpolate(heat[:, None], sides_of(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    scores = ((large - low) / (high - low).masked_fill(high == low, 1)).masked_fill(constant, 0)
    return scores, scores > threshold


def segmentation_scores(
    scores: Tensor, masks: Tensor, truth: Tensor, both_classes: bool = False
) -> dict[str, object]:
    """METRICS of a set by name, and `table`: one row an image with its pixel counts and its own metrics.

    scores, masks and truth are [n, H, W]. Over images, accuracy is the mean of the table's column, and so is
    average precision; mean IoU is not, because it sums intersections and unions first.
    """
    counts = _counts(masks, truth)
    precisions = _precisions(scores, truth, both_classes)
    accuracy, iou = _ratios(counts)
    table = pd.DataFrame(counts.numpy().astype(np.int64), columns=COUNTS).assign(
        pixel_accuracy=accuracy.numpy(), mean_iou=iou.numpy(), average_precision=precisions
    )
    table.insert(0, "image", range(len(table)))
    whole_set = (*map(float, _ratios(counts.sum(0))), float(np.mean(precisions)))
    return {**dict(zip(METRICS, whole_set)), "table": table}


def bootstrap(
    table: pd.DataFrame, n: int = 1000, generator: torch.Generator | None = None
) -> dict[str, tuple[float, float]]:
    """95 % intervals (low, high) of METRICS: 2.5 and 97.5 % quantiles over n resamplings of the table's
    images.

    `table` is that of `segmentation_scores`; a part of it (the images of one class, say) gives the part's
    intervals.
    """
    check_positive_int("n", n)
    N = len(table)
    if not N:
        raise ValueError("a bootstrap needs images to draw from, got a table without rows")
    draws = torch.randint(
        N, (n, N), generator=generator, device=generator.device if generator else None
    ).cpu()
    times = torch.zeros(n, N, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones_like(draws, dtype=torch.float64)
    )
    counts = times @ torch.tensor(table[COUNTS].to_numpy(np.float64))
    precision = times @ torch.tensor(table["average_precision"].to_numpy(np.float64)) / N
    limits = torch.tensor([0.025, 0.975], dtype=torch.float64)
    drawn = zip(METRICS, (*_ratios(counts), precision))
    return {name: tuple(values.quantile(limits).tolist()) for name, values in drawn}


def segment(
    heats: Mapping[str, Tensor], mask: Callable[[int], np.ndarray], size: int
) -> tuple[dict[str, dict], Tensor]:
    """`segmentation_scores` by name of each of heats [n, h, w] and of BASELINES, and the true masks bool [n,
    size, size].
    """
    n = len(next(iter(heats.values())))
    truth = torch.stack([fit_mask(mask(i), size) for i in range(n)])
    made = {name: heat_to_mask(heat, size) for name, heat in heats.items()}
    made |= {name.replace("_", " "): baseline(n, size) for name, baseline in BASELINES.items()}
    return {name: segmentation_scores(scores, masks, truth) for name, (scores, masks) in made.items()}, truth


def _all_foreground(n: int, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Everything is the object: what its area alone is worth."""
    return torch.ones(n, *sides_of(size)), torch.ones(n, *sides_of(size), dtype=torch.bool)


def _all_background(n: int, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Nothing is the object: of small objects the accuracy of this is hard to beat."""
    return torch.zeros(n, *sides_of(size)), torch.zeros(n, *sides_of(size), dtype=torch.bool)


def _centre_prior(n: int, size: int | tuple[int, int], spread: float = 0.25) -> tuple[Tensor, Tensor]:
    """A gaussian in the middle, its standard deviation that share of each side: photographers centre their
    objects.
    """
    y, x = (
        torch.exp(-(((torch.arange(side) + 0.5) / side - 0.5) ** 2) / (2 * spread**2))
        for side in sides_of(size)
    )
    scores, masks = heat_to_mask((y[:, None] * x)[None], size)
    return scores.expand(n, -1, -1), masks.expand(n, -1, -1)


BASELINES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {  # (n, size) -> what `heat_to_mask` gives
    "all_foreground": _all_foreground,
    "all_background": _all_background,
    "centre_prior": _centre_prior,
}


def _same(name: str, first: Tensor, truth: Tensor) -> None:
    if first.ndim != 3 or first.shape != truth.shape or not truth.numel():
        raise ValueError(
            f"expected {name} and truth [n, H, W] of equal shape, none empty, got {list(first.shape)} and "
            f"{list(truth.shape)}; heat_to_mask and fit_mask give one size"
        )
    if truth.dtype != torch.bool:
        raise ValueError(f"expected truth as bool, got {truth.dtype}; fit_mask gives it")


def _counts(masks: Tensor, truth: Tensor) -> Tensor:
    """Pixels of each image by COUNTS, float64 [n, 4], on the CPU."""
    _same("masks", masks, truth)
    if masks.dtype != torch.bool:
        raise ValueError(f"expected masks as bool, got {masks.dtype}; heat_to_mask gives them")
    kinds = (masks & truth, masks & ~truth, ~masks & truth, ~masks & ~truth)
    return torch.stack([kind.sum((1, 2)) for kind in kinds], 1).double().cpu()


def _ratios(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel accuracy and mean IoU [...] of counts [..., 4]."""
    tp, fp, fn, tn = counts.unbind(-1)
    classes = torch.stack(
        [tp / (tp + fp + fn), tn / (tn + fp + fn)], -1
    )  # nan: there is no pixel of that class
    return (tp + tn) / counts.sum(-1), classes.nanmean(-1)


def _precisions(scores: Tensor, truth: Tensor, both_classes: bool) -> list[float]:
    """Average precision of each image."""
    _same("scores", scores, truth)
    if not bool(scores.isfinite().all()):
        raise ValueError(
            f"scores must be finite, got {scores[~scores.isfinite()][0].item()}; heat_to_mask gives such"
        )
    found = []
    for score, true in zip(scores, truth):
        if both_classes:
            score, true = torch.stack([1 - score, score]), torch.stack([~true, true])
        ranked = sort_columns(score.flatten().double()[:, None])
        found.append(float(column_precision(ranked, true.flatten()[:, None])))
    return found
