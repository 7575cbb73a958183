"""Network Dissection (Bau et al. 2017, section 3.1): which concept's pixels does a unit light up on?

Dissection      pixels that units share with concepts, the thresholds and the IoU
masks_of_probe  what gives the masks of a probing set
dissect         what gives it for the activated regions of a layer and the masks of a probe
thresholds      the value that a unit exceeds at a share of all positions
detectors       best concept of each unit, and whether the unit detects it
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym import hooks
from neuronym.common.checks import check_number
from neuronym.common.memory import items_within, MEMORY, slices
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import batches, Probe
from neuronym.datasets.tasks import broden_masks, ConceptMasks, microworld_masks
from neuronym.layouts import LayerInfo, LAYOUTS
from neuronym.models.preprocess import seen_mask
from neuronym.passes import inference_of
from neuronym.similarity.scores import top_labels
from neuronym.sparse import COPIES, split_name

SHARE, LEAST = 0.005, 0.04  # the paper's: of all positions are above the threshold; IoU of a detector


@dataclass(frozen=True, eq=False)
class Dissection:
    """Pixels of K units and M concepts, summed over the images that count for the concept (see `dissect`)."""

    threshold: Tensor  # [K]
    both: Tensor  # [K, M] activated and of the concept
    active: Tensor  # [K, M] activated
    shown: Tensor  # [M] of the concept

    @property
    def iou(self) -> Tensor:
        """Intersection over union [K, M], float64; 0 where neither unit nor concept has a pixel."""
        return self.iou_of(slice(None))

    def iou_of(self, units: slice) -> Tensor:
        """That of some units."""
        both = self.both[units]
        return both.double() / (self.active[units] + self.shown - both).clamp_min(1)

    def best(self) -> tuple[Tensor, Tensor]:
        """The largest IoU of every unit, and its concept: [K] each, a few units at a time."""
        concepts, parts = range(len(self.shown)), slices(len(self.both), MEMORY // (64 * len(self.shown)))
        found = [top_labels(self.iou_of(part), concepts, 1) for part in parts]
        return tuple(torch.cat(columns)[:, 0] for columns in zip(*found))


def masks_of_probe(name: str) -> Callable[[Probe], ConceptMasks] | None:
    """What gives the masks of a probing set (microworld scenes, Broden); None where there are none."""
    if "+" in name:
        return None
    if name.startswith("microworld"):
        return microworld_masks
    return broden_masks if name.startswith("broden") else None


def dissect(
    target: Target,
    probe: Probe,
    layer: LayerInfo,
    masks: ConceptMasks,
    concepts: Sequence[str],
    share: float = SHARE,
    *,
    threshold: Tensor | None = None,
    kinds: Mapping[str, str] | None = None,
    read: str = "maps",
    grid: tuple[int, int] | None = None,
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    memory: int = MEMORY,
) -> Dissection:
    """IoU of every unit's activated regions with every concept: sum over images of intersections by sum of
    unions.

    Maps are resized bilinearly to the masks' size and compared with T_k (`thresholds`, or given: [K], of
    other images). Masks are of whole pictures; where the network sees only the middle of them they are
    cropped alike (`preprocess.seen_mask`). A map of one position covers the picture: an "fc" layer, or the
    class token with read="cls"; `grid` as in `hooks.as_maps`. Every image with a mask counts for every
    concept, as where all is labelled. `kinds` (concept -> category) is the paper's rule for Broden: a concept
    counts on images where something of its category is labelled. The network runs twice, or once where all
    maps fit into `memory`; images without masks count for T_k only. Errors: ValueError for masks of several
    sizes in an image or none at all, activations that are not finite, a share of less than one position;
    KeyError for a concept without category.
    """
    concepts = list(concepts)
    if not concepts or len(set(concepts)) < len(concepts):
        raise ValueError(
            f"concepts are names, at least one and none twice, got {len(concepts)} with "
            f"{len(set(concepts))} different ones"
        )
    lacking = [c for c in concepts if kinds is not None and c not in kinds]
    if lacking:
        raise KeyError(
            f"{len(lacking)} concepts have no category, e.g. '{lacking[0]}'; add them to kinds, or leave "
            "kinds out"
        )
    if threshold is not None and (threshold.shape != (layer.units,) or not bool(threshold.isfinite().all())):
        raise ValueError(
            f"threshold is one finite value for each of {layer.units} units of '{layer.name}', got shape "
            f"{list(threshold.shape)}; leave it out to have it measured"
        )
    if split_name(layer.name)[1]:  # features of few images at a time: they are made of all units
        batch_size = min(batch_size, max(1, memory // (COPIES * 4 * math.prod(layer.shape))))
    blank = torch.zeros(layer.shape).unsqueeze(LAYOUTS[layer.layout][1])
    blank = _as_maps(blank, layer, read, grid)[0]  # [K, h, w], refuses early
    kind = [kinds[c] if kinds else "" for c in concepts]
    categories = list(dict.fromkeys(kind))
    both = torch.zeros(layer.units, len(concepts), dtype=torch.int64)
    active = torch.zeros(layer.units, len(categories), dtype=torch.int64)
    shown, image, counted = torch.zeros(len(concepts), dtype=torch.int64), 0, 0

    with (
        inference_of(target, device) as place,
        hooks.record(
            target.model, [layer.name], lambda _, output: _as_maps(output, layer, read, grid)
        ) as acts,
    ):

        def passed(text: str) -> Iterator[Tensor]:
            stream = batches(probe, [target.preprocess], batch_size, workers=min(os.cpu_count() or 1, 8))
            if progress is not None:
                stream = progress(stream, -(-probe.N // batch_size), f"{text} of {layer.name}")
            for _, [images] in stream:
                left = len(images)
                for piece in place(images):
                    target.model(piece)
                    yield _finite(acts[layer.name][:left])
                    left -= len(piece)

        keep = threshold is None and 4 * blank.numel() * probe.N <= memory
        kept = list(passed("maps")) if keep else None
        if threshold is None:
            threshold = thresholds(
                lambda: passed("thresholds") if kept is None else kept,
                probe.N * blank[0].numel(),
                share,
                memory,
            )
        for maps in passed("regions") if kept is None else kept:
            for one in maps:  # [K, h, w]
                found = _seen(masks(image), image, target.preprocess)
                image += 1
                if not found:
                    continue
                counted += 1
                there = [i for i, c in enumerate(concepts) if c in found]
                labelled = [
                    i for i, k in enumerate(categories) if not kinds or any(kinds.get(c) == k for c in found)
                ]
                everywhere = np.ones_like(next(iter(found.values())))
                truth = torch.from_numpy(
                    np.stack([*(found[concepts[i]] for i in there), everywhere])
                )  # [m + 1, H, W]
                shown[there] += truth[:-1].sum((1, 2))
                for units, pixels in _pixels(one, threshold.to(one.device), truth, memory):
                    both[units[:, None], there] += pixels[:, :-1]
                    active[units[:, None], labelled] += pixels[:, -1:]
    if not counted:
        raise ValueError(
            f"none of the {probe.N} images of '{probe.name}' has a mask; pass masks of these images"
        )
    of_concepts = [categories.index(k) for k in kind]
    active = active[:, of_concepts] if len(categories) > 1 else active.expand(-1, len(concepts))
    return Dissection(threshold.cpu().clone(), both, active, shown)


def thresholds(
    maps: Callable[[], Iterable[Tensor]], positions: int, share: float = SHARE, memory: int = MEMORY
) -> Tensor:
    """T_k [K] with P(a_k > T_k) = share over all positions of all images, exactly: no more than that share
    exceeds it.

    `maps` gives batches [b, K, ...] from the first to the last, each time it is called: once, or once for
    every few units where the largest values of all units exceed `memory`. `positions` are those of one unit
    in all of them. Errors: ValueError for a share of less than one position or of all, and for values that
    are not finite.
    """
    check_number("share", share, 0, 1)
    above = math.floor(share * positions + 1e-9)
    if not 1 <= above < positions:
        raise ValueError(
            f"a share of {share} is {above} of {positions} positions, which no threshold splits off; pass "
            "more images, or another share"
        )
    found: list[Tensor] = []
    first, K = 0, 1  # of the units treated next; of all, told by the first batch
    while first < K:
        best, seen = None, 0
        for batch in maps():
            K, seen = _finite(batch).shape[1], seen + batch.numel() // batch.shape[1]
            [most] = items_within(memory, (0, 24 * (above + 1), K))
            some = batch[:, first : first + most].transpose(0, 1).flatten(1)  # [k, b h w]
            some = some if best is None else torch.cat([best, some], 1)
            best = some.topk(min(above + 1, some.shape[1]), dim=1).values
        if seen != positions:
            raise ValueError(f"expected maps with {positions} positions of each unit, got {seen}")
        found.append(best[:, above])
        first += most
    return torch.cat(found)


def detectors(dissection: Dissection, concepts: Sequence[str], least: float = LEAST) -> pd.DataFrame:
    """The concept of largest IoU of every unit: columns unit, label, iou, detector (IoU at least `least`)."""
    check_number("least", least, 0, 1)
    iou, best = (column.tolist() for column in dissection.best())
    return pd.DataFrame(
        {
            "unit": range(len(iou)),
            "label": [concepts[i] for i in best],
            "iou": iou,
            "detector": [x >= least and x > 0 for x in iou],
        }
    )


def _as_maps(output: Tensor, layer: LayerInfo, read: str, grid: tuple[int, int] | None) -> Tensor:
    """[b, K, h, w] in float32."""
    if read not in ("maps", "cls"):
        raise ValueError(f"read is 'maps' or 'cls', got {read!r}")
    if read == "cls" or layer.layout == "fc":
        how, batch = "avg" if layer.layout == "fc" else "cls", output.shape[LAYOUTS[layer.layout][1]]
        return hooks.pool(output, layer.layout, how, batch)[:, :, None, None].float()
    return hooks.maps_of(output, layer, grid).float()


def _finite(maps: Tensor) -> Tensor:
    if not bool(maps.isfinite().all()):
        unit = int((~maps.isfinite()).nonzero()[0, 1])
        raise ValueError(
            f"activations must be finite, got {maps[~maps.isfinite()][0].item()} at unit {unit}; check "
            "weights and images"
        )
    return maps


def _pixels(one: Tensor, threshold: Tensor, truth: Tensor, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Units and how many of their activated pixels are in each mask: one [K, h, w], truth [m, H, W] -> [k],
    [k, m].
    """
    live = (one.amax((1, 2)) > threshold).nonzero()[:, 0]  # resizing exceeds no maximum
    truth = truth.to(one.device)
    [most] = items_within(memory, (4 * truth.numel(), 16 * truth[0].numel(), max(len(live), 1)))
    masks = truth.flatten(1).float().T  # [H W, m]
    for part in slices(len(live), most):
        units = live[part]
        large = F.interpolate(one[None, units], tuple(truth.shape[1:]), mode="bilinear", align_corners=False)[
            0
        ]
        region = large > threshold[units, None, None]  # [k, H, W]
        yield units.cpu(), (region.flatten(1).float() @ masks).long().cpu()


def _seen(masks: Mapping[str, np.ndarray], image: int, preprocess: Callable) -> dict[str, np.ndarray]:
    """An image's masks, checked, and cropped as the network sees the picture."""
    wrong = [
        c
        for c, mask in masks.items()
        if getattr(mask, "dtype", None) != np.dtype(bool) or mask.ndim != 2 or not mask.size
    ]
    if wrong or len({mask.shape for mask in masks.values()}) > 1:
        raise ValueError(
            f"masks of an image are bool [h, w] of one size, but those of image {image} are not"
            + (f": '{wrong[0]}'" if wrong else f": {sorted({mask.shape for mask in masks.values()})}")
        )
    return {concept: seen_mask(preprocess, mask) for concept, mask in masks.items()}
