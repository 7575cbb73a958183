"""What turning units off, down or up does to what a network says, for each strength, beside other units.

effect_curve   accuracy and outputs of the classes that the units are about and of all others
Judged        what is right of a network's outputs, and how much it says of each group of classes
classes_about  the classes that words are about
classes_of     how many outputs a network has
draw_alike     random units of equal mean activation
draw_others    random units of equal number
resampled      how often each image is drawn, for intervals

N images, C classes, R resamples. Everything is a mean over images, so that an interval costs one product of
how often each image was drawn, [R, N], with what it gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.types import Target
from neuronym.datasets.probe import Probe
from neuronym.evaluation.pruning import comparable, matching, NamedUnits, outputs

GROUPS = ("matching", "others", "difference")
NEAREST = 5  # units of nearest mean activation, among which one is drawn


@dataclass(frozen=True)
class Judged:
    """Judges outputs [N, C] by `truth`, a class number [N] or presence [N, C] (bool); `on` [C] bool are the
    classes that match, all for one group.

    Accuracy of presence is balanced: mean over classes of the mean of the shares of images with and without
    it that an output above 0 tells right; .5 is chance. Of class numbers it is the share of images whose
    highest output is their class; groups are images of the classes.
    """

    truth: Tensor
    on: Tensor

    def kept(self, logits: Tensor, rows: slice) -> Tensor:
        """What is stored of a batch: right or not ([b, C] of presence, [b, 1] of numbers), and the mean
        outputs of both groups of classes: [b, C + 2] or [b, 3].
        """
        if logits.shape[1] != len(self.on):
            raise ValueError(
                f"truth and classes are of {len(self.on)} classes, the network gives {logits.shape[1]}"
            )
        truth = self.truth[rows]
        right = (logits > 0) == truth if truth.ndim == 2 else (logits.argmax(1) == truth)[:, None]
        said = [logits[:, some].mean(1, keepdim=True) for some in (self.on, ~self.on)]
        return torch.cat([right.float(), *said], 1).nan_to_num()

    def scores(self, kept: Tensor, counts: Tensor) -> np.ndarray:
        """Accuracy and mean output of (matching, others): kept of N images, counts [R, N] how often each
        counts -> [R, 2, 2]; nan for a group without images.
        """
        right, said = kept[:, :-2].double(), kept[:, -2:].double()
        counts = counts.double()
        if self.truth.ndim == 2:
            shares = []
            for true in (self.truth.double(), (~self.truth).double()):
                shares.append((counts @ (right * true)) / (counts @ true))  # [R, C]
            accuracy = sum(shares) / 2
            groups = [accuracy[:, some].nanmean(1) for some in (self.on, ~self.on)]
        else:
            own = self.on[self.truth].double()
            groups = [(counts @ (right[:, 0] * some)) / (counts @ some) for some in (own, 1 - own)]
        means = counts @ said / counts.sum(1, keepdim=True)
        return torch.stack([torch.stack(groups, 1), means], 1).cpu().numpy()


def effect_curve(
    target: Target,
    units: NamedUnits,
    probe: Probe,
    truth: Tensor,
    classes: Sequence[int],
    Q: Mapping[str, Tensor],
    *,
    strengths: Sequence[float] = (0, 0.5, 2),
    draws: int = 20,
    resamples: int = 500,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """What the units at each strength do to the classes they are about, and to the others, beside `draws`
    sets of random units (as many of each layer) and of units alike (as many, of equal mean activation in Q
    {layer: [N', K]}).

    A row for each strength, condition (named, random, alike), metric (accuracy, output: see `Judged`) and
    `on` (matching, others, difference: matching - others): units, activation (mean over the units of their
    mean |Q|), score, change (score - that of the whole network) with its 95 % interval over images, the same
    ones for all conditions, and for random ones over draws as well; for these rows also excess, the named
    units' change minus theirs, with its interval, and p, the share of draws whose change is at or below the
    named units', itself counted in. `options` are those of `evaluation.pruning.outputs` (how, means,
    batch_size, device, progress). Errors: ValueError without units or strengths, where all or no classes
    match, for truth that does not fit.
    """
    check_positive_int("draws", draws), check_positive_int("resamples", resamples)
    units = {layer: sorted({int(k) for k in some}) for layer, some in units.items() if len(some)}
    if not units or not len(strengths):
        raise ValueError(
            f"an effect is of a unit or more at a strength or more, got {len(units)} layers and "
            f"{len(strengths)} strengths; choose a word that labels have"
        )
    for strength in strengths:
        check_number("strength", strength)
    judged = Judged(truth, _matching(truth, classes, probe.N, target))
    level = {layer: Q[layer].abs().double().mean(0).cpu() for layer in units}
    dice = np.random.default_rng(seed)
    sets = {"named": [units]}
    sets["random"] = [draw_others(units, {n: len(x) for n, x in level.items()}, dice) for _ in range(draws)]
    sets["alike"] = [draw_alike(units, level, dice) for _ in range(draws)]
    plan = [(s, kind, one) for s in strengths for kind, some in sets.items() for one in some]
    found = outputs(
        target,
        probe,
        [{}, *(one for _, _, one in plan)],
        judged.kept,
        strengths=[1.0, *(s for s, _, _ in plan)],
        **options,
    )
    counts = resampled(probe.N, resamples, seed)
    scores = np.stack([_grouped(judged.scores(kept, counts)) for kept in found])  # [1 + plan, 1 + R, 2, 3]
    rows = []
    for strength in strengths:
        at = {
            kind: [1 + i for i, (s, k, _) in enumerate(plan) if (s, k) == (strength, kind)] for kind in sets
        }
        named = scores[at["named"][0]] - scores[0]
        for kind, which in at.items():
            mean = scores[which].mean(0) if kind == "named" else _over_draws(scores[which], dice)
            change, activation = mean - scores[0], np.mean([_activation(one, level) for one in sets[kind]])
            each = scores[which][:, 0] - scores[0, 0]  # [draws, 2, 3]
            for m, metric in enumerate(("accuracy", "output")):
                for g, on in enumerate(GROUPS):
                    row = {"strength": strength, "condition": kind, "metric": metric, "on": on}
                    row |= {"units": sum(map(len, units.values())), "activation": activation}
                    row |= _interval("change", change[:, m, g]) | {"score": mean[0, m, g]}
                    if kind != "named":
                        row |= _interval("excess", (named - change)[:, m, g])
                        below = (each[:, m, g] <= named[0, m, g] + 1e-12).sum()
                        row["p"] = (1 + below) / (1 + draws)
                    rows.append(row)
    return pd.DataFrame(rows)


def classes_about(
    names: Sequence[str] | None, patterns: Sequence[str], units: str = "", classes: str = ""
) -> dict[str, list[int]]:
    """The classes that each edit is about, by words of their names: {pattern: numbers}, or {units: those that
    `classes` says}.

    Errors: ValueError where classes have no names, none has the word or all have it, and for units without
    classes, or neither units nor words.
    """
    wanted = {units: classes} if units else {pattern: pattern for pattern in patterns}
    if not wanted or units and not classes.strip():
        got = f"units {units!r} without classes" if units else "neither"
        raise ValueError(
            "an edit is of words of names, or of units and words of the classes they are about, got "
            f"{got}; set words=star, or units=ids:3,17 and classes=star"
        )
    if names is None:
        raise ValueError(
            "a word tells classes by their names, and those of this network have none; give it some "
            "(load_target(module, classes=...))"
        )
    found = {}
    for key, pattern in wanted.items():
        found[key] = matching(dict(enumerate(names)), pattern)
        if not 0 < len(found[key]) < len(names):
            raise ValueError(
                f"some classes and not all must have a word, '{pattern}' is in {len(found[key])} of "
                f"{len(names)}, such as {', '.join(names[:4])}; say classes with units, or another word"
            )
    return found


def draw_others(
    units: NamedUnits, sizes: Mapping[str, int], dice: np.random.Generator
) -> dict[str, list[int]]:
    """As many units of each layer, of the others where there are enough, else of all."""
    return {
        layer: sorted(dice.choice(_pool(some, sizes[layer]), len(some), replace=False).tolist())
        for layer, some in units.items()
    }


def draw_alike(
    units: NamedUnits, level: Mapping[str, Tensor], dice: np.random.Generator
) -> dict[str, list[int]]:
    """As many units of each layer whose mean activation is like theirs: for one unit after another, in random
    order, one of the NEAREST nearest of those not yet taken; level {layer: [K]}.
    """
    found = {}
    for layer, some in units.items():
        left, values, taken = _pool(some, len(level[layer])).tolist(), level[layer].numpy(), []
        for unit in dice.permutation(some):
            near = sorted(left, key=lambda k: (abs(values[k] - values[unit]), k))[:NEAREST]
            taken.append(int(dice.choice(near)))
            left.remove(taken[-1])
        found[layer] = sorted(taken)
    return found


def resampled(N: int, resamples: int, seed: int) -> Tensor:
    """How often each of N images is drawn, [1 + resamples, N]: once each in the first row, then with
    replacement.
    """
    drawn = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=resamples)
    return torch.from_numpy(np.concatenate([np.ones((1, N), drawn.dtype), drawn]))


def _pool(some: Sequence[int], K: int) -> np.ndarray:
    others = np.setdiff1d(np.arange(K), some)
    return others if len(others) >= len(some) else np.arange(K)


def _matching(truth: Tensor, classes: Sequence[int], N: int, target: Target) -> Tensor:
    """Which classes match, [C] bool, with what can be wrong said."""
    fits = truth.dtype == torch.bool and truth.ndim == 2 or truth.dtype == torch.int64 and truth.ndim == 1
    if len(truth) != N or not fits:
        raise ValueError(
            f"truth is a class number [N] (int64) or presence [N, C] (bool) for each of {N} images, got "
            f"{truth.dtype} {list(truth.shape)}"
        )
    C = truth.shape[1] if truth.ndim == 2 else classes_of(target)
    wrong = [c for c in classes if not 0 <= c < C]
    if wrong or not comparable(truth, classes):
        raise ValueError(
            f"both classes that match and others must be in the images, got classes {list(classes)[:5]} of "
            f"{C}; choose another word, or name the classes"
        )
    on = torch.zeros(C, dtype=torch.bool)
    on[list(classes)] = True
    return on


def classes_of(target: Target) -> int:
    """How many outputs a network has."""
    with torch.inference_mode():
        return target.model.eval()(target.example).shape[1]


def _grouped(scores: np.ndarray) -> np.ndarray:
    """[..., 2] of matching and others, with their difference: [..., 3]."""
    return np.concatenate([scores, scores[..., :1] - scores[..., 1:]], -1)


def _over_draws(scores: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Mean over draws [draws, 1 + R, ...]: of all in the first row, of as many drawn with replacement in the
    others.
    """
    D, R = scores.shape[0], scores.shape[1] - 1
    weights = dice.multinomial(D, np.full(D, 1 / D), size=R) / D  # [R, D]
    rest = np.einsum("rd,drmg->rmg", weights, scores[:, 1:])
    return np.concatenate([scores[:, 0].mean(0)[None], rest])


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """The first value and the 95 % interval of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {name: values[0], f"{name}_low": low, f"{name}_high": high}


def _activation(units: NamedUnits, level: Mapping[str, Tensor]) -> float:
    return float(torch.cat([level[layer][list(some)] for layer, some in units.items()]).mean())
