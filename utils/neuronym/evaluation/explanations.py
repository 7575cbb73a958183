"""Every kind of explanation as one thing, a text for each unit and what it predicts; and how well it
predicts.

need_images         refuses too few images before any work
Explanations        texts [K] and predict: present [N, M] -> [N, K]
single              a label for each unit
additive            sums of concepts
logical             formulas
controls            what knows nothing of the unit: another unit's label, and one for all
deal                labels dealt to other units at random
best_for_all        the label that is best on average
phrase_presence     which microworld images show what texts say
naming_rate         share of labels that name their unit's true concept, beside the same labels dealt
from_labels         labels of several methods, phrases and not concepts of a set, as explanations
judged_by           what a CLIP thinks of words and texts, where the truth is not known
phrase_controls     `controls` for phrases, and the best word of all
choose_active       share of images on which the units of a layer count as active
score_methods       one row for each unit and method, one column for each metric
method_means        means with bootstrap intervals, neurons resampled jointly for all methods
method_differences  every method against one of them: paired differences, tests, corrections

How well it predicts is measured on images not used for naming. N images, K units, M concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common import statistics
from neuronym.common.checks import check_positive_int
from neuronym.common.memory import MEMORY
from neuronym.common.statistics import holm, interval, wilson
from neuronym.common.text import content_count, names_it
from neuronym.common.types import Clip
from neuronym.datasets.probe import Probe
from neuronym.evaluation import formulas, linear
from neuronym.evaluation.metrics import active_images, metric_values, SOUND
from neuronym.evaluation.presence import judged_presence, presence_oracle
from neuronym.similarity.sparse_columns import over_blocks, SparseColumns


def need_images(images: int, held_out: float) -> None:
    """ValueError for fewer images than four to explain from (two folds of two) and two held out."""
    held = round(images * held_out)
    if images - held < 4 or held < 2:
        raise ValueError(
            f"explanations need at least 4 images to name from and 2 held out, got {images - held} and "
            f"{held} of {images} with held_out={held_out}; probe with more images"
        )


@dataclass(frozen=True)
class Explanations:
    """What a method says of the K units of a layer."""

    texts: list[str]
    predict: Callable[[Tensor], Tensor]
    cut: Tensor | None = (
        None  # [K]: where predictions are no probabilities, those above say that the unit is active
    )


def single(labels: Sequence[str] | Tensor, concepts: Sequence[str]) -> Explanations:
    """One concept for each unit, by name or index; the unit is predicted to do what the concept does.

    Errors: KeyError for a label that is not among the concepts.
    """
    where = {c: i for i, c in reversed(list(enumerate(concepts)))}
    strange = [] if isinstance(labels, Tensor) else [label for label in labels if label not in where]
    if strange:
        raise KeyError(
            f"{len(strange)} labels are not among the {len(concepts)} concepts, e.g. '{strange[0]}'; add them"
        )
    index = (
        labels
        if isinstance(labels, Tensor)
        else torch.tensor([where[label] for label in labels], dtype=torch.long)
    )
    return Explanations(
        [concepts[i] for i in index.tolist()], lambda present: present[:, index.to(present.device)]
    )


def additive(found: linear.Linear, concepts: Sequence[str], present: Tensor, active: float) -> Explanations:
    """Sums of concepts found by `linear.explain`, without their bias, so that nothing present predicts 0.

    They say that a unit is active where the sum is large: beyond a cut that leaves about the share `active`
    of the images for naming, present [N, M].
    """

    def predict(present: Tensor) -> Tensor:
        return linear.predict(found, present) - found.bias

    texts = [linear.sum_text(found, concepts, unit) for unit in range(len(found.chosen))]
    return Explanations(texts, predict, _cut(predict(present), active))


def logical(found: Sequence[formulas.Formula | None], concepts: Sequence[str]) -> Explanations:
    """Formulas found by `formulas.search`, over concepts that count as present from a half on; None is never
    true.
    """

    def predict(present: Tensor) -> Tensor:
        there = present if present.dtype == torch.bool else present >= 0.5
        never = there.new_zeros(len(there))
        return torch.stack([never if f is None else formulas.evaluate(f, there) for f in found], dim=1)

    return Explanations(["" if f is None else formulas.formula_text(f, concepts) for f in found], predict)


def controls(
    labels: Tensor, concepts: Sequence[str], present: Tensor, Q: Tensor, generator: torch.Generator
) -> dict[str, Explanations]:
    """`shuffled`: the labels [K] dealt to other units; `constant`: the one concept that correlates best with
    all units.

    present [N, M] and Q [N, K] are of the images for naming.
    """
    dealt = labels[deal(len(labels), generator).to(labels.device)]
    best = torch.tensor(best_for_all(presence_oracle(Q, present)))
    return {"shuffled": single(dealt, concepts), "constant": single(best.expand(len(labels)), concepts)}


def deal(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Labels of n units dealt to them at random, the control `shuffled`: whose label each gets, [n]."""
    return torch.randperm(n, generator=generator)


def best_for_all(scores: Tensor) -> int:
    """The label of highest mean score over units, the control `constant`: scores [K, M] -> index."""
    return int(scores.mean(0).argmax())


def _cut(predicted: Tensor, share: float) -> Tensor:
    """Between two values of each column [N, K], so that the number above is nearest to the share; equal
    values stay together.
    """
    values = predicted.double().sort(dim=0, descending=True).values
    above = torch.arange(1, len(values), device=values.device, dtype=torch.float64)[:, None]
    off = (above - share * len(values)).abs().where(values[:-1] > values[1:], torch.inf)
    best = off.argmin(0, keepdim=True)
    return (values.gather(0, best) + values.gather(0, best + 1)).squeeze(0) / 2


DRAWS = 100


def phrase_presence(probe: Probe, texts: Sequence[str]) -> Tensor:
    """Which microworld images show what texts say: bool [N, n]; a text without a word of the world is in
    none.

    A text says what `microworld.read` finds in it. Each thing it names must be in the image, two of them as
    two things; so must its place, its light and its count.
    """
    from neuronym.microworld.world import read

    scenes = probe.scenes or [probe.scene(i) for i in range(probe.N)]  # the latter says which is none
    said = {text: read(text) for text in texts}
    found = {
        text: torch.tensor([_shows(scene, one) for scene in scenes], dtype=torch.bool)
        for text, one in said.items()
    }
    return (
        torch.stack([found[text] for text in texts], 1)
        if found
        else torch.zeros(probe.N, 0, dtype=torch.bool)
    )


def naming_rate(
    labels: Sequence[str],
    names: Sequence[str],
    generator: torch.Generator,
    draws: int = DRAWS,
    several: Sequence[Sequence[str]] = (),
) -> dict[str, float]:
    """Share of labels that name their unit's true concept, with its Wilson interval (low, high), and of the
    same labels dealt to other units at random (shuffled, mean of `draws`).

    A copied caption contains most names. So beside it: `precision`, the mean over units of the share of a
    label's words (without stop words) that are the name's, 0 where it does not name it; and `words` of a
    label in the mean. `several` labels of each unit give `any`, the share of units that one of them names,
    and `shortest`, the mean number of words of the shortest that does (where one does).
    """
    check_positive_int("draws", draws)
    if len(labels) != len(names) or not len(labels):
        raise ValueError(
            f"each label has its true name, and there is one at least; got {len(labels)} labels and "
            f"{len(names)} names"
        )
    if several and len(several) != len(names):
        raise ValueError(
            f"several labels are of the same units, got those of {len(several)} for {len(names)} names"
        )
    hit = np.array([[names_it(label, name) for name in names] for label in labels])  # [labels, names]
    own = np.diagonal(hit)
    dealt = [hit[deal(len(labels), generator).numpy(), np.arange(len(names))].mean() for _ in range(draws)]
    low, high = wilson(own.mean(), len(own))
    counts = [content_count(label) for label in labels]
    right = [content_count(name) / most if own[i] else 0 for i, (name, most) in enumerate(zip(names, counts))]
    found = {
        "units": len(own),
        "named": float(own.mean()),
        "low": float(low),
        "high": float(high),
        "shuffled": float(np.mean(dealt)),
        "precision": float(np.mean(right)),
        "words": float(np.mean(counts)),
    }
    if several:
        fits = [[text for text in some if names_it(text, name)] for some, name in zip(several, names)]
        least = [min(map(content_count, some)) for some in fits if some]
        found |= {"any": len(least) / len(names)}
        found |= {"shortest": float(np.mean(least))} if least else {}
    return found


def from_labels(
    labels: Mapping[str, Mapping[str, Sequence[str]]],
) -> tuple[dict[str, dict[str, Explanations]], list[str]]:
    """{layer: {method: a text for each unit}} as explanations over all different texts, and these texts."""
    texts = list(
        dict.fromkeys(text for methods in labels.values() for some in methods.values() for text in some)
    )
    return {
        layer: {method: single(list(some), texts) for method, some in methods.items()}
        for layer, methods in labels.items()
    }, texts


def judged_by(
    clip: Clip, I: Tensor, fit: tuple[float, float], words: Sequence[str], test: Tensor
) -> tuple[Tensor, Callable[[Sequence[str]], Tensor]]:
    """Where the truth is not known: presence [N, M] of words as a CLIP judges it, and what gives texts'
    presence in the images `test`; I [N, d] are all images, `fit` is that of `presence.calibrated`.
    """

    def claims(texts: Sequence[str]) -> Tensor:
        return judged_presence(I[test], embed_concepts(clip, list(texts)).to(I.device), fit)

    return judged_presence(I, embed_concepts(clip, list(words)).to(I.device), fit), claims


def phrase_controls(
    labels: Mapping[str, Sequence[str]],
    words: Sequence[str],
    present: Tensor,
    Q: Tensor,
    generator: torch.Generator,
) -> dict[str, list[str]]:
    """What labels are compared with: `oracle`, each unit's best word; `shuffled`, the first method's labels
    dealt to other units; `constant`, the one word that is best on average. present [N, M], Q [N, K] of the
    images for naming.
    """
    scores = presence_oracle(Q, present)  # [K, M]
    first = list(next(iter(labels.values())))
    return {
        "oracle": [words[i] for i in scores.argmax(1).tolist()],
        "shuffled": [first[i] for i in deal(len(first), generator).tolist()],
        "constant": [words[best_for_all(scores)]] * len(first),
    }


def _shows(scene, said: dict) -> bool:
    from neuronym.microworld.world import COUNTS

    if not any(said.values()):
        return False
    if any(
        said[kind] not in (None, true)
        for kind, true in (
            ("place", scene.place),
            ("light", scene.light),
            ("count", COUNTS[len(scene.things) - 1]),
        )
    ):
        return False
    able = [
        {i for i, thing in enumerate(scene.things) if all(getattr(thing, k) == v for k, v in wanted.items())}
        for wanted in said["given"]
    ]
    return all(able) and len(set().union(*able)) >= len(able)


SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
FEWEST = 10  # active images
GRADED = (
    "correlation",
    "cosine",
    "auprc",
    "auroc",
    "spearman",
    "correlation_top_and_random",
    "spearman_top_and_random",
)


def choose_active(
    present: Tensor, Q: Tensor | SparseColumns, shares: Sequence[float] = SHARES, memory: int = MEMORY
) -> float:
    """The share whose active images correlate best with some concept, in the mean over units: present [N, M],
    Q [N, K].

    NeuronEval (Oikarinen et al. 2025, appendix F.1) chooses it by metric and method; here the images for
    naming choose it once for a layer, by any of the concepts, so that no method has one of its own. Shares of
    fewer than 10 images are passed over: with so few some concept always fits. SparseColumns in blocks.
    """
    able = [share for share in shares if share * len(Q) >= FEWEST] or [max(shares)]

    def reached(share: float) -> float:
        def of_units(_: slice, q: Tensor) -> Tensor:
            return presence_oracle(active_images(q, share), present).amax(1)

        return float(over_blocks(of_units, Q, memory, beside=2 * present.shape[1]).mean())

    return max(able, key=reached)


def score_methods(
    explained: Mapping[str, Mapping[str, Explanations]],
    present: Tensor,
    Q: Mapping[str, Tensor | SparseColumns],
    active: Mapping[str, float],
    metrics: Sequence[str] = SOUND,
    units: Mapping[str, Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Columns layer, unit, method, text and a column for each metric of `neuronym.evaluation.metrics`.

    explained {layer: {method: ...}}; present [N, M] and Q {layer: [N, K]} are of the same images, best ones
    that no method has seen; `units` names the units a layer's explanations are of, when these are not all.
    Errors: ValueError for unequal N, for explanations of another number of units, for duplicate units.
    """
    rows = []
    for layer, methods in explained.items():
        chosen = list(range(Q[layer].shape[1])) if units is None else [int(u) for u in units[layer]]
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"each unit is scored once, {layer} names some of its {len(chosen)} units twice")
        if len(Q[layer]) != len(present):
            raise ValueError(
                f"present and activations are of the same images, got {len(present)} and {len(Q[layer])} "
                f"in {layer}"
            )
        q = Q[layer][:, chosen]
        for method, said in methods.items():
            if len(said.texts) != len(chosen):
                raise ValueError(
                    f"{method} explains {len(said.texts)} units of {layer}, which has {len(chosen)} to score"
                )
            predicted = said.predict(present)
            there = predicted if said.cut is None else predicted > said.cut
            found = {}
            for what, names in (
                (predicted, [m for m in metrics if m in GRADED]),
                (there, [m for m in metrics if m not in GRADED]),
            ):
                found |= metric_values(q, what, names, active[layer], generator)
            rows.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "unit": chosen,
                        "method": method,
                        "text": said.texts,
                        **{name: found[name].double().cpu().numpy() for name in metrics},
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def method_means(
    table: pd.DataFrame,
    metrics: Sequence[str] = SOUND,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Columns group, method, metric, mean, low, high, units: 95 % bootstrap intervals of the mean over
    neurons.

    Neurons are resampled within their layers, with the same draws for all methods; what the images would add
    by being others is not in it. `groups` {layer: group} joins layers; each its own by default.
    """
    group = table["layer"] if groups is None else table["layer"].map(groups)
    rows = []
    for name, some in table.groupby(group, sort=False):
        for metric in metrics:
            wide = _wide(some, metric)
            found = statistics.means(wide.reset_index("layer"), seed, stratified=True)
            rows.append(found.assign(group=name, metric=metric, units=len(wide)))
    return pd.concat(rows, ignore_index=True)[["group", "method", "metric", "mean", "low", "high", "units"]]


def method_differences(
    table: pd.DataFrame,
    first: str,
    metric: str = "correlation",
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Every other method minus `first` on the same neurons: group, method, difference, low, high, p
    (Wilcoxon's signed-rank test), holm (p corrected for the number of methods and groups).

    Errors: KeyError for a method that the table lacks.
    """
    from scipy.stats import wilcoxon

    from neuronym.common.checks import unknown

    if first not in set(table["method"]):
        raise unknown("method", first, table["method"].unique())
    rows = []
    for name, some in table.groupby(
        table["layer"] if groups is None else table["layer"].map(groups), sort=False
    ):
        wide = _wide(some, metric)
        for method in (m for m in wide if m != first):
            d = (wide[method] - wide[first]).to_numpy()
            rows.append(
                (
                    name,
                    method,
                    d.mean(),
                    *interval(d, seed),
                    float(wilcoxon(d).pvalue) if (d != 0).any() else 1.0,
                )
            )
    found = pd.DataFrame(rows, columns=["group", "method", "difference", "low", "high", "p"])
    return found.assign(holm=holm(found["p"]))


def _wide(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a neuron, one column a method; a neuron that a method lacks is an error, since pairs need
    both.
    """
    twice = table.duplicated(["layer", "unit", "method"])
    if twice.any():
        row = table[twice].iloc[0]
        raise ValueError(
            f"each method scores a unit once, {row['method']} has unit {row['unit']} of {row['layer']} twice"
        )
    wide = table.pivot(index=["layer", "unit"], columns="method", values=metric)[
        list(dict.fromkeys(table["method"]))
    ]
    if wide.isna().any(axis=None):
        raise ValueError(
            f"methods are compared on the same neurons, {int(wide.isna().any(axis=1).sum())} of {len(wide)} "
            f"lack {metric} of some method; score all methods on the same units"
        )
    return wide
