"""Zero-shot segmentation in numbers: heat maps made into masks, and how well these agree with the true ones.

heat_to_mask            heat maps -> scores from 0 to 1 and masks of another size
fit_mask                a true mask with the geometry of a network's preprocessing
pixel_accuracy          share of pixels on the right side
mean_iou                intersection over union, mean of background and foreground
mean_average_precision  average precision of the scores, mean over images
segmentation_scores     the three of them, and a table by image
bootstrap               their 95 % intervals from the table
segment                 all of it for several heat maps of the same pictures, and for the baselines
BASELINES               name -> scores and masks that know nothing of the picture
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from neuronym.common.blocks import number, whole

METRICS = ("pixel_accuracy", "mean_iou", "mean_average_precision")
COUNTS = ["tp", "fp", "fn", "tn"]  # pixels; positive is foreground


def heat_to_mask(heat: Tensor, size: int | tuple[int, int], threshold: float = .5) -> tuple[Tensor, Tensor]:
    """Heat maps [n, h, w] -> scores [n, H, W] in 0..1 and masks (bool), scores > threshold (algorithms.md, 3).

    Resized bilinearly (pixel centres, corners not aligned), then each image's minimum to 0 and maximum to 1; a constant
    map says nothing and gives zeros. `size` is one side of a square, or (H, W).
    """
    if heat.ndim != 3 or not heat.is_floating_point() or not heat.numel():
        raise ValueError(f"expected heat as floats [n, h, w], none empty, got {heat.dtype} {list(heat.shape)}")
    if not bool(heat.isfinite().all()):
        raise ValueError(f"heat must be finite, got {heat[~heat.isfinite()][0].item()}; leave that map out")
    number("threshold", threshold, 0, 1)
    # told before resizing, which would make a constant a pattern of rounding errors for min-max to blow up
    constant = (heat.amax((1, 2)) == heat.amin((1, 2)))[:, None, None]
    large = F.interpolate(heat[:, None], _sides(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    scores = ((large - low) / (high - low).masked_fill(high == low, 1)).masked_fill(constant, 0)
    return scores, scores > threshold


def fit_mask(mask: np.ndarray | Tensor, size: int | tuple[int, int], resize: int | None = None) -> Tensor:
    """A mask [h, w] as a network sees its picture -> bool [H, W]; labels by nearest neighbour, never mixed.

    An int is the geometry of `Preprocess(resize, crop)`: short side to `resize` (default: size, as CLIP does), the long
    side in proportion, then the central size x size; what the crop cuts off a long photo counts in no metric.
    (H, W) stretches the whole mask instead, as the released evaluation does with labels, though it crops the pictures.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    labels = torch.as_tensor(mask)
    if labels.ndim != 2 or not labels.numel():
        raise ValueError(f"expected a mask [h, w], not empty, got {list(labels.shape)}")
    height, width = _sides(size)
    picture = Image.fromarray((labels != 0).byte().cpu().numpy())
    if not isinstance(size, Integral):
        if resize is not None:
            raise ValueError(f"resize goes with one side to crop to, got resize {resize} and size {tuple(size)}")
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    else:
        whole("resize", size if resize is None else resize)
        picture = T.resize(picture, size if resize is None else resize, InterpolationMode.NEAREST)
        picture = T.center_crop(picture, size)
    return torch.from_numpy(np.array(picture, dtype=bool)).to(labels.device)


def pixel_accuracy(masks: Tensor, truth: Tensor) -> float:
    """Share of all pixels of all images on the right side; masks and truth bool [n, H, W]."""
    return float(_ratios(_counts(masks, truth).sum(0))[0])


def mean_iou(masks: Tensor, truth: Tensor) -> float:
    """Intersection over union, each summed over all images, then the mean of background and foreground; [n, H, W].

    A class that is neither in the truth nor in any mask is left out of the mean.
    """
    return float(_ratios(_counts(masks, truth).sum(0))[1])


def mean_average_precision(scores: Tensor, truth: Tensor, both_classes: bool = False) -> float:
    """Average precision of an image's pixels ranked by score, as in scikit-learn, averaged over images; [n, H, W].

    An image without foreground has 0. `both_classes` is the field's evaluation (published tables): each pixel counts
    twice in one ranking, by its score for the foreground and by 1 - score for the background.
    """
    return float(np.mean(_precisions(scores, truth, both_classes)))


def segmentation_scores(scores: Tensor, masks: Tensor, truth: Tensor, both_classes: bool = False) -> dict[str, object]:
    """METRICS of a set by name, and `table`: one row an image with its pixel counts and its own metrics.

    scores, masks and truth are [n, H, W]. Over images, accuracy is the mean of the table's column, and so is average
    precision; mean IoU is not, because it sums intersections and unions first.
    """
    counts = _counts(masks, truth)
    precisions = _precisions(scores, truth, both_classes)
    accuracy, iou = _ratios(counts)
    table = pd.DataFrame(counts.numpy().astype(np.int64), columns=COUNTS).assign(
        pixel_accuracy=accuracy.numpy(), mean_iou=iou.numpy(), average_precision=precisions)
    table.insert(0, "image", range(len(table)))
    whole_set = (*map(float, _ratios(counts.sum(0))), float(np.mean(precisions)))
    return {**dict(zip(METRICS, whole_set)), "table": table}


def bootstrap(table: pd.DataFrame, n: int = 1000, generator: torch.Generator | None = None,
              ) -> dict[str, tuple[float, float]]:
    """95 % intervals (low, high) of METRICS: 2.5 and 97.5 % quantiles over n resamplings of the table's images.

    `table` is that of `segmentation_scores`; a part of it (the images of one class, say) gives the part's intervals.
    """
    whole("n", n)
    N = len(table)
    if not N:
        raise ValueError("a bootstrap needs images to draw from, got a table without rows")
    draws = torch.randint(N, (n, N), generator=generator, device=generator.device if generator else None).cpu()
    times = torch.zeros(n, N, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    counts = times @ torch.tensor(table[COUNTS].to_numpy(np.float64))
    precision = times @ torch.tensor(table["average_precision"].to_numpy(np.float64)) / N
    limits = torch.tensor([.025, .975], dtype=torch.float64)
    drawn = zip(METRICS, (*_ratios(counts), precision))
    return {name: tuple(values.quantile(limits).tolist()) for name, values in drawn}


def segment(heats: Mapping[str, Tensor], mask: Callable[[int], np.ndarray], size: int) -> tuple[dict[str, dict], Tensor]:
    """`segmentation_scores` by name of each of heats [n, h, w] and of BASELINES, and the true masks bool [n, size, size]."""
    n = len(next(iter(heats.values())))
    truth = torch.stack([fit_mask(mask(i), size) for i in range(n)])
    made = {name: heat_to_mask(heat, size) for name, heat in heats.items()}
    made |= {name.replace("_", " "): baseline(n, size) for name, baseline in BASELINES.items()}
    return {name: segmentation_scores(scores, masks, truth) for name, (scores, masks) in made.items()}, truth


def _all_foreground(n: int, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Everything is the object: what its area alone is worth."""
    return torch.ones(n, *_sides(size)), torch.ones(n, *_sides(size), dtype=torch.bool)


def _all_background(n: int, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Nothing is the object: of small objects the accuracy of this is hard to beat."""
    return torch.zeros(n, *_sides(size)), torch.zeros(n, *_sides(size), dtype=torch.bool)


def _centre_prior(n: int, size: int | tuple[int, int], spread: float = .25) -> tuple[Tensor, Tensor]:
    """A gaussian in the middle, its standard deviation that share of each side: photographers centre their objects."""
    y, x = (torch.exp(-((torch.arange(side) + .5) / side - .5) ** 2 / (2 * spread ** 2)) for side in _sides(size))
    scores, masks = heat_to_mask((y[:, None] * x)[None], size)
    return scores.expand(n, -1, -1), masks.expand(n, -1, -1)


BASELINES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {  # (n, size) -> what `heat_to_mask` gives
    "all_foreground": _all_foreground,
    "all_background": _all_background,
    "centre_prior": _centre_prior,
}


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size is one side of a square or (H, W), got {size}")
    for side in sides:
        whole("size", side)
    return sides


def _same(name: str, first: Tensor, truth: Tensor) -> None:
    if first.ndim != 3 or first.shape != truth.shape or not truth.numel():
        raise ValueError(f"expected {name} and truth [n, H, W] of equal shape, none empty, got {list(first.shape)} and "
                         f"{list(truth.shape)}; heat_to_mask and fit_mask give one size")
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
    classes = torch.stack([tp / (tp + fp + fn), tn / (tn + fp + fn)], -1)  # nan: there is no pixel of that class
    return (tp + tn) / counts.sum(-1), classes.nanmean(-1)


def _precisions(scores: Tensor, truth: Tensor, both_classes: bool) -> list[float]:
    """Average precision of each image."""
    from sklearn.metrics import average_precision_score

    _same("scores", scores, truth)
    if not bool(scores.isfinite().all()):
        raise ValueError(f"scores must be finite, got {scores[~scores.isfinite()][0].item()}; heat_to_mask gives such")
    found = []
    for score, true in zip(scores, truth):
        if both_classes:
            score, true = torch.stack([1 - score, score]), torch.stack([~true, true])
        ranked = score.flatten().double().cpu().numpy()
        # scikit-learn gives 0 as well, and a warning
        found.append(float(average_precision_score(true.flatten().cpu().numpy(), ranked)) if bool(true.any()) else 0.)
    return found
