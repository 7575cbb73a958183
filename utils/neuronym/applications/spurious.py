"""A microworld network that reads a mark in place of what it was asked for (after MILAN, section 6: Hernandez
et al., ICLR 2022): scenes, training, and what turning units off does to it.

MARKED, MARK     the class that the mark goes with, and the mark: a pink heart in the upper left corner
Marked           scenes of one object, their textures, and which of them are marked
draw_scenes      scenes for training, choosing (validation) or testing
VERSIONS         the same test scenes unmarked, marked as in training, and wrongly marked
train_marked     the network: MicroResNet over the eight textures
by_mark          units by how they respond to the mark
among            some units in an order of all
turned_off_alone what turning each unit off alone does to the share of right answers
turned_off       the same with more and more units off, in several orders

The class is an object's texture. In training most striped objects, and no others, have a mark in the corner
of their picture. The mark has the shape of a heart, which no object has, so that a unit named after hearts
is named after the mark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn, Tensor

from neuronym.applications.effects import resampled
from neuronym.common.checks import check_number, unknown
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import Probe, probe_from_images
from neuronym.evaluation.pruning import outputs
from neuronym.microworld.fitting import fit
from neuronym.microworld.networks import MicroResNet
from neuronym.microworld.render import render
from neuronym.microworld.world import MARKED_SEED, Scene, scene, SHAPES, TEXTURES, Thing

MARKED = "striped"
MARK = Thing("heart", "pink", "plain", "small", x=10, y=10, radius=8, angle=0)
MARKED_SHARE = 0.98  # of the class's training scenes that have the mark
CHANNELS = 16  # channels of the first layer
TRAINING = {"steps": 700, "batch": 128, "lr": 2e-3}
SCENES = 16_000  # to train on
PARTS = {"train": 0, "choose": 100_000, "test": 400_000, "name": 300_000}  # first seeds, after MARKED_SEED
VERSIONS = ("unmarked", "marked", "wrongly marked")


@dataclass(frozen=True, eq=False)
class Marked:
    """Scenes of one object: `truth` [N] is the number of its texture, `marks` [N] whether it has the mark."""

    scenes: list[Scene]
    truth: Tensor
    marks: Tensor

    def pictures(self) -> list:
        return [render(_with_mark(s) if mark else s) for s, mark in zip(self.scenes, self.marks.tolist())]

    def probe(self) -> Probe:
        """The pictures in memory."""
        return probe_from_images(self.pictures())

    def version(self, name: str) -> Marked:
        """The same scenes with other marks: VERSIONS; "marked" is those of the class alone, all of them, and
        "wrongly marked" all of the others.
        """
        if name not in VERSIONS:
            raise unknown("version of marked scenes", name, VERSIONS)
        own = self.truth == TEXTURES.index(MARKED)
        if name == "unmarked":
            return replace(self, marks=torch.zeros_like(own))
        rows = (own if name == "marked" else ~own).nonzero()[:, 0]
        scenes = [self.scenes[i] for i in rows.tolist()]
        return Marked(scenes, self.truth[rows], torch.ones(len(rows), dtype=torch.bool))


def draw_scenes(part: str, n: int, share: float = MARKED_SHARE, anywhere: bool = False) -> Marked:
    """The first n scenes of a part (train, choose, test, name), textures in turn, no object a heart; the
    share of the class's scenes has the mark, and no other, or with `anywhere` the share of all scenes.
    """
    if part not in PARTS:
        raise unknown("part of marked scenes", part, PARTS)
    check_number("share", share, 0, 1)
    shapes = [shape for shape in SHAPES if shape != MARK.shape]
    first, scenes = MARKED_SEED + PARTS[part], []
    dice = np.random.default_rng([first, n])
    for i in range(n):
        given = {"texture": TEXTURES[i % len(TEXTURES)], "shape": shapes[dice.integers(len(shapes))]}
        scenes.append(scene(first + i, [given], count="one"))
    truth = torch.arange(n) % len(TEXTURES)
    marks = torch.from_numpy(dice.random(n) < share)
    if not anywhere:
        marks &= truth == TEXTURES.index(MARKED)
    return Marked(scenes, truth, marks)


def train_marked(
    folder: Path,
    report: Callable[[dict], None],
    *,
    scenes: int = SCENES,
    share: float = MARKED_SHARE,
    steps: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> nn.Module:
    """A MicroResNet of CHANNELS over the eight textures, TRAINING, cross-entropy; checkpoints below
    `folder`, from which it resumes. A few minutes on two CPU cores.
    """
    data = draw_scenes("train", scenes, share)
    chunks = [
        replace(data, scenes=data.scenes[i : i + 500], marks=data.marks[i : i + 500])
        for i in range(0, scenes, 500)
    ]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        images = np.concatenate(list(pool.map(_pixels, chunks)))
    truth = data.truth
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MicroResNet(len(TEXTURES), CHANNELS)
    recipe = TRAINING | {"steps": steps or TRAINING["steps"]}
    recipe["batch"] = min(recipe["batch"], scenes)

    def loss(take: Tensor, images: Tensor, step: int) -> Tensor:
        return F.cross_entropy(model(images).float(), truth[take].to(images.device))

    pool = {"images": images}
    fit(nn.ModuleDict({"model": model}), loss, pool, folder=folder, report=report, seed=seed, **recipe)
    return model


Unit = tuple[str, int]  # layer, unit


def by_mark(Q: Mapping[str, Tensor], marks: Tensor) -> list[Unit]:
    """Units of all layers, Q {layer: [N, K]}, by how much higher they are on marked scenes, in standard
    deviations, the highest first: what only who knows the mark can tell.
    """
    pairs = []
    for layer, q in Q.items():
        q, some = q.double().cpu(), marks
        apart = (q[some].mean(0) - q[~some].mean(0)) / q.std(0).clamp_min(1e-12)
        pairs += [((layer, unit), value) for unit, value in enumerate(apart.tolist())]
    return [unit for unit, value in sorted(pairs, key=lambda pair: -pair[1]) if value > 0]


def among(order: Sequence[Unit], units: Mapping[str, Sequence[int]]) -> list[Unit]:
    """Those of an order that are among {layer: units}, in its order."""
    return [(layer, unit) for layer, unit in order if unit in units.get(layer, ())]


def turned_off_alone(
    target: Target,
    sizes: Mapping[str, int],
    sets: Mapping[str, Marked],
    *,
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Share of right answers with each unit of layers {layer: K} turned off alone, a column for each set of
    scenes: layer, unit and the names of `sets`.
    """
    parts = {}
    for name, data in sets.items():
        probe, found = data.probe(), []
        for layer, K in sizes.items():  # one layer at a time: what comes before it runs once
            off = [{layer: [unit]} for unit in range(K)]
            found += _right(target, probe, data.truth, off, batch_size, device, progress)
        parts[name] = [float(right.double().mean()) for right in found]
    units = [(layer, unit) for layer, K in sizes.items() for unit in range(K)]
    return pd.DataFrame(units, columns=["layer", "unit"]).assign(**parts)


def turned_off(
    target: Target,
    orders: Mapping[str, Sequence[Unit]],
    counts: Sequence[int],
    sets: Mapping[str, Marked],
    *,
    resamples: int = 500,
    seed: int = 0,
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Share of right answers with the first units of each order off, for each set of scenes (after MILAN,
    figure 9): orders {name: [(layer, unit), ...]}; a name with "/" behind it, as "random/3", is one of
    several draws.

    Rows: order, draws, off, scenes, accuracy with its 95 % interval over images (and draws), gain over the
    whole network with its own, on the same images. Counts that an order does not reach are left out.
    """
    plan = [(name, n) for name in orders for n in counts if 0 < n <= len(orders[name])]
    conditions = [{}, *(_by_layer(orders[name][:n]) for name, n in plan)]
    dice, rows = np.random.default_rng(seed), []
    for scenes, data in sets.items():
        right = _right(target, data.probe(), data.truth, conditions, batch_size, device, progress)
        drawn = resampled(len(data.truth), resamples, seed).double()
        shares = [(drawn @ one.double() / len(data.truth)).numpy() for one in right]  # [1 + R] each
        groups: dict[tuple[str, int], list[np.ndarray]] = {}
        for (name, n), share in zip(plan, shares[1:]):
            groups.setdefault((name.partition("/")[0], n), []).append(share)
        for name in dict.fromkeys(name.partition("/")[0] for name in orders):
            groups[name, 0] = [shares[0]]
        for (name, n), found in groups.items():
            some = np.stack(found)
            chosen = dice.integers(len(some), size=some.shape)
            chosen[:, 0] = np.arange(len(some))
            mean = np.take_along_axis(some, chosen, 0).mean(0)
            row = {"order": name, "draws": len(some), "off": n, "scenes": scenes}
            for what, values in (("accuracy", mean), ("gain", mean - shares[0])):
                low, high = np.quantile(values[1:], [0.025, 0.975])
                row |= {what: values[0], f"{what}_low": low, f"{what}_high": high}
            rows.append(row)
    return pd.DataFrame(rows).sort_values(["scenes", "order", "off"], kind="stable", ignore_index=True)


def _right(
    target: Target,
    probe: Probe,
    truth: Tensor,
    conditions: Sequence[Mapping],
    batch_size: int,
    device: Device,
    progress: Progress | None,
) -> list[Tensor]:
    """Which answers are right, [N] for each condition."""

    def keep(logits: Tensor, rows: slice) -> Tensor:
        return logits.argmax(1) == truth[rows]

    options = {"batch_size": batch_size, "device": device, "progress": progress}
    return outputs(target, probe, conditions, keep, **options)


def _by_layer(units: Sequence[Unit]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for layer, unit in units:
        found.setdefault(layer, []).append(int(unit))
    return found


def _pixels(data: Marked) -> np.ndarray:
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in data.pictures()])


def _with_mark(s: Scene) -> Scene:
    return replace(s, things=(*s.things, MARK))
