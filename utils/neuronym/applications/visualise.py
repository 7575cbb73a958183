"""Pictures that a unit, or any direction in a layer's space, wants: gradient ascent on the picture.

Settings     how pictures are made
Aim          what they are to excite: directions in a layer, and what is usual there
aim_at       units or vectors of a layer -> Aim
layers_before   the layers that come before another
synthesise   pictures from noise, each for one direction
accentuate   the same from real photos, which stay near what they were
Made         pictures, and where in them the optimiser worked

Olah et al. 2017 ("Feature visualization"), Fel et al. 2023 (MACO), Hamblin et al. 2024 (accentuation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neuronym import hooks
from neuronym.applications.visualise_images import (
    as_shown,
    from_pictures,
    Parametrisation,
    PARAMETRISATIONS,
    PictureStatistics,
)
from neuronym.applications.visualise_transforms import transformed, Transforms
from neuronym.common.checks import check_number, check_positive_int, unknown
from neuronym.common.memory import slices
from neuronym.common.types import Progress, Target
from neuronym.layouts import LayerInfo
from neuronym.passes import exact_float32

USUAL = 2.0  # sd within which a unit of an earlier layer is as in real pictures
WHERE = ("pooled", "centre")


@dataclass(frozen=True)
class Settings:
    """How pictures are made; weights are in standard deviations of the unit over real pictures. The
    defaults won the comparison of docs/protocols/visualisation.md.

    `image` is a name of PARAMETRISATIONS; `steps` of Adam at `rate` times the parametrisation's own, falling
    to 0 as a half cosine; `views` of a picture each step; `where` is the value that is raised, as pooled over
    positions or of the position in the centre; `contrast` weighs the most excited other unit of the layer
    against it, `natural` what units of earlier layers are beyond USUAL, `smooth` the total variation.
    """

    image: str = "fourier"
    steps: int = 128
    views: int = 2
    rate: float = 1.0
    where: str = "pooled"
    contrast: float = 0.5
    natural: float = 0.0
    smooth: float = 30.0
    transforms: Transforms = field(default_factory=Transforms)

    def __post_init__(self):
        if self.image not in PARAMETRISATIONS:
            raise unknown("parametrisation of pictures", self.image, PARAMETRISATIONS)
        if self.where not in WHERE:
            raise unknown("place of a unit's value", self.where, WHERE)
        check_positive_int("steps", self.steps)
        check_positive_int("views", self.views)
        check_number("rate", self.rate, 1e-6)
        for name in ("contrast", "natural", "smooth"):
            check_number(name, getattr(self, name), 0)


@dataclass(frozen=True, eq=False)
class Aim:
    """Directions [n, K] of a layer with their names; mean and sd [K] of its units over real pictures, and of
    the units of earlier layers {layer: (LayerInfo, mean [K'], sd [K'])}; `pool` is how maps became values.
    """

    layer: LayerInfo
    directions: Tensor
    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    pool: str
    earlier: Mapping[str, tuple[LayerInfo, Tensor, Tensor]] = field(default_factory=dict)
    spread: Tensor | None = None  # [n] sd of each direction's value over real pictures


@dataclass(frozen=True, eq=False)
class Made:
    """Pictures [n, 3, H, W] in [0, 1]; alpha [n, H, W], 1 where the gradient worked most; `silent` [n], those
    whose unit had no gradient at the first step nor at the last.
    """

    pictures: Tensor
    alpha: Tensor
    silent: Tensor


def aim_at(
    layer: LayerInfo,
    Q: Mapping[str, Tensor],
    pools: Mapping[str, str],
    units: Sequence[int] | Tensor,
    earlier: Sequence[LayerInfo] = (),
) -> Aim:
    """Units (numbers) or directions [n, K] of a layer; Q {layer: [N, K]} over real pictures, of it and of the
    earlier layers; `pools` as of `hooks.poolings`.

    Errors: ValueError for directions that are not [n, K], not finite, or nothing at all.
    """
    q = Q[layer.name]
    if isinstance(units, Tensor) and units.is_floating_point():
        directions, names = units.to(q), tuple(f"direction {i}" for i in range(len(units)))
    else:
        numbers = [int(unit) for unit in units]
        directions = torch.eye(layer.units, dtype=q.dtype, device=q.device)[numbers]
        names = tuple(map(str, numbers))
    if directions.ndim != 2 or not len(directions) or directions.shape[1] != layer.units:
        raise ValueError(
            f"directions in '{layer.name}' are [n, {layer.units}], at least one, got {list(directions.shape)}"
        )
    if not torch.isfinite(directions).all() or not directions.abs().amax(1).all():
        raise ValueError(f"directions in '{layer.name}' are finite and not zero, got others; leave them out")
    before = {one.name: (one, *_usual(Q[one.name])) for one in earlier}
    spread = (q @ directions.T).std(0).clamp_min(1e-6)
    return Aim(layer, directions, names, *_usual(q), pools[layer.name], before, spread)


def layers_before(target: Target, layer: LayerInfo, others: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Those of `others` that have given their output when `layer` gives its own, in the order given."""
    names = dict.fromkeys(one.name for one in (*others, layer))
    ran: list[str] = []

    def note(name: str, output: Tensor) -> None:
        ran.append(name)

    with torch.no_grad(), hooks.record(target.model, list(names), note):
        target.model(target.example.expand(2, -1, -1, -1))
    first = set(ran[: ran.index(layer.name)])
    return [one for one in others if one.name in first]


def synthesise(
    target: Target,
    aim: Aim,
    statistics: PictureStatistics,
    settings: Settings,
    *,
    seed: int = 0,
    batch: int = 32,
    progress: Progress | None = None,
) -> Made:
    """A picture of each direction of an aim, `batch` at a time; the same whatever the batch, up to rounding.

    Errors: ValueError for a layer that gives the picture no gradient, and as in `as_shown`.
    """
    shown = as_shown(target)
    kind = PARAMETRISATIONS[settings.image]

    def begin(rows: range, generators: list[torch.Generator]) -> Parametrisation:
        parts = [kind(1, statistics, shown.size, one) for one in generators]
        return Parametrisation(torch.cat([p.numbers for p in parts]), parts[0].picture, parts[0].rate)

    return _in_batches(target, aim, settings, begin, None, seed, batch, progress)


def accentuate(
    target: Target,
    aim: Aim,
    photos: Tensor,
    statistics: PictureStatistics,
    settings: Settings,
    *,
    keep: float = 3.0,
    seed: int = 0,
    batch: int = 32,
    progress: Progress | None = None,
) -> Made:
    """Photos [n, 3, H, W] in [0, 1], one for each direction, changed towards it from their own spectrum;
    `keep` weighs the mean squared difference from the photo, in parts of its variance.

    Errors: as of `synthesise`; ValueError unless there is a photo of the network's size for each direction.
    """
    size = as_shown(target).size
    if photos.shape != (len(aim.directions), 3, *size):
        raise ValueError(
            f"a photo goes with each direction, [{len(aim.directions)}, 3, {size[0]}, {size[1]}], got "
            f"{list(photos.shape)}"
        )
    check_number("keep", keep, 0)
    fourier = PARAMETRISATIONS["fourier"]
    photos = photos.to(statistics.mean)

    def begin(rows: range, generators: list[torch.Generator]) -> Parametrisation:
        made = fourier(1, statistics, size, generators[0])
        return Parametrisation(from_pictures(photos[rows], statistics), made.picture, made.rate)

    def stay(rows: range, pictures: Tensor) -> Tensor:
        away = (pictures - photos[rows]).square().mean((1, 2, 3))
        return keep * away / photos[rows].var((1, 2, 3)).clamp_min(1e-4)

    return _in_batches(target, aim, settings, begin, stay, seed, batch, progress)


def _in_batches(target, aim, settings, begin, stay, seed, batch, progress) -> Made:
    """Directions in batches, steps counted together."""
    check_positive_int("batch", batch)
    parts = [range(len(aim.directions))[part] for part in slices(len(aim.directions), batch)]
    turns = ((rows, step) for rows in parts for step in range(settings.steps))
    counted = (
        turns if progress is None else iter(progress(turns, len(parts) * settings.steps, "steps of pictures"))
    )
    made = [_climb(target, aim, settings, begin, stay, seed, rows, counted) for rows in parts]
    found = Made(*(torch.cat(values) for values in zip(*((m.pictures, m.alpha, m.silent) for m in made))))
    if found.silent.all():
        raise ValueError(_no_gradient(target, aim, "of 0 for every picture"))
    return found


def _climb(
    target: Target, aim: Aim, settings: Settings, begin, stay, seed: int, rows: range, turns: Iterator
) -> Made:
    """Pictures of some directions by gradient ascent."""
    shown, home = as_shown(target), target.example.device
    generators = [_generator(seed, aim.layer.name, aim.names[row]) for row in rows]
    image = begin(rows, generators)
    numbers = image.numbers.to(home).requires_grad_()
    adam = torch.optim.Adam([numbers], lr=image.rate * settings.rate)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.steps)
    at = torch.tensor(list(rows), device=home)
    worked = torch.zeros(len(rows), *shown.size, device=home)
    silent = torch.ones(len(rows), dtype=torch.bool, device=home)
    with exact_float32(), _Reader(target, aim, settings.where) as read:
        for step in range(settings.steps):
            next(turns)
            pictures = image.picture(numbers)
            pictures.retain_grad()
            views = transformed(pictures, settings.views, settings.transforms, generators)
            values = read(shown.input_of(views))
            own = values[aim.layer.name]
            if not own.requires_grad:
                raise ValueError(_no_gradient(target, aim, "to none"))
            if step in (0, settings.steps - 1):  # of the unit alone, without what else is weighed
                (slope,) = torch.autograd.grad(_raised(own, aim, at).sum(), pictures, retain_graph=True)
                silent &= slope.abs().amax((1, 2, 3)) == 0
            loss = _loss(values, aim, at, settings)
            if settings.smooth:
                loss = loss + settings.smooth * _variation(pictures)
            if stay is not None:
                loss = loss + stay(rows, pictures)
            adam.zero_grad()
            loss.sum().backward()
            worked += pictures.grad.abs().sum(1)
            adam.step()
            fall.step()
        with torch.no_grad():
            pictures = image.picture(numbers)
    return Made(pictures.detach(), _alpha(worked), silent)


def _loss(values: Mapping[str, Tensor], aim: Aim, at: Tensor, settings: Settings) -> Tensor:
    """What each picture is to lower, in standard deviations: values {layer: [n views, K]} -> [n]."""
    q, views = values[aim.layer.name], settings.views
    loss = -_raised(q, aim, at)
    if settings.contrast:
        z = (q - aim.mean) / aim.sd
        away = aim.directions[at].repeat_interleave(views, 0) != 0
        others = z.masked_fill(away, -torch.inf).amax(1)
        loss = loss + settings.contrast * others.where(others.isfinite(), torch.zeros_like(others))
    if settings.natural:
        for name, (_, mean, sd) in aim.earlier.items():
            beyond = (((values[name] - mean) / sd).abs() - USUAL).clamp_min(0)
            loss = loss + settings.natural * beyond.square().mean(1)
    return loss.view(-1, views).mean(1)


def _raised(q: Tensor, aim: Aim, at: Tensor) -> Tensor:
    """Values along the directions, in standard deviations above their mean: q [n views, K] -> [n views]."""
    views = len(q) // len(at)
    along = ((q - aim.mean) * aim.directions[at].repeat_interleave(views, 0)).sum(1)
    return along / aim.spread[at].repeat_interleave(views)


class _Enough(Exception):
    """The forward pass has come to the layer aimed at."""


class _Reader:
    """Input [b, 3, H, W] -> {layer: values [b, K]} with gradients; the pass ends at the layer aimed at."""

    def __init__(self, target: Target, aim: Aim, where: str):
        self.target, self.aim, self.where = target, aim, where
        self.values: dict[str, Tensor] = {}
        self.layers = {name: one for name, (one, _, _) in aim.earlier.items()} | {aim.layer.name: aim.layer}
        self.stack = ExitStack()

    def __enter__(self):
        edits = {name: self._keeping(name) for name in self.layers}
        self.stack.enter_context(hooks.edit(self.target.model, edits))
        return self.read

    def __exit__(self, *error):
        self.stack.close()

    def _keeping(self, name: str):
        layer, last = self.layers[name], name == self.aim.layer.name

        def keep(output: Tensor) -> Tensor:
            if last and self.where == "centre" and layer.layout != "fc":
                maps = hooks.maps_of(output, layer)
                self.values[name] = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
            else:
                how = self.aim.pool if last else hooks.poolings([layer], "auto")[name]
                self.values[name] = hooks.pool(output, layer.layout, how, self.count).clone()
            if last:
                raise _Enough
            return output

        return keep

    def read(self, x: Tensor) -> dict[str, Tensor]:
        self.count = len(x)
        try:
            self.target.model(x)
        except _Enough:
            pass
        return self.values


def _no_gradient(target: Target, aim: Aim, what: str) -> str:
    return (
        f"pictures follow the gradient of a unit, and layer '{aim.layer.name}' of {target.name} passes one "
        f"{what} (its values are rounded, compared, detached or always 0); choose an earlier layer, or other "
        "units"
    )


def _variation(pictures: Tensor) -> Tensor:
    """Total variation: mean absolute difference of neighbours, [n, 3, H, W] -> [n]."""
    down, across = pictures.diff(dim=2).abs(), pictures.diff(dim=3).abs()
    return down.mean((1, 2, 3)) + across.mean((1, 2, 3))


def _alpha(worked: Tensor) -> Tensor:
    """Sums of gradients [n, H, W] -> 0 to 1: 1 at their ninth tenth and above (MACO, transparency)."""
    top = worked.flatten(1).quantile(0.9, dim=1).clamp_min(1e-20)
    return (worked / top[:, None, None]).clamp(0, 1)


def _usual(q: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of units over pictures; of a constant unit the sd is that of the layer's mean unit."""
    sd = q.std(0)
    return q.mean(0), sd.clamp_min(max(float(sd.mean()) * 1e-2, 1e-6))


def _generator(seed: int, *names: str) -> torch.Generator:
    text = "|".join((str(seed), *names))
    return torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))
