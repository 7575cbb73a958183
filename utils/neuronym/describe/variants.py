"""What is each step of Describe-and-Dissect worth? The same units described with one thing changed at a time.

VARIANTS           parts that a variant belongs to, in the order of tables and figures
labels_by_variant  labels of every variant, from looks, language models and sources of pictures by name
step_ablation      their scores, one row a variant and group, each compared with the first
readable           that table to print
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.statistics import wilson
from neuronym.common.text import names_it
from neuronym.describe.candidates import AskAll
from neuronym.describe.pipeline import (
    best_labels,
    CaptionedExamples,
    CAPTIONS_OF,
    choose,
    describe_units,
    Described,
)
from neuronym.describe.scoring import SCORES
from neuronym.describe.selection import score_shown
from neuronym.describe.simulation import by_simulation, SIMULATED
from neuronym.evaluation.explanations import (
    from_labels,
    method_differences,
    method_means,
    naming_rate,
    score_methods,
)
from neuronym.models.generators import Generator

VARIANTS = ("all steps", "crops", "captions", "candidates", "summary", "selection", "pictures", "as shipped")
BY_PICTURES = "topk_compare"  # the paper's choice by pictures
Labels = dict[tuple[str, str], list[str]]  # part, variant -> a label for each unit


def labels_by_variant(
    looks: Mapping[tuple[str, str], tuple[CaptionedExamples, Sequence[str]]],
    asks: Mapping[str, AskAll | None],
    sources: Mapping[str, tuple[Generator | str, Mapping]],
    *,
    selection: str = "topk_compare",
    seen: Mapping | None = None,
    reference_Q: Tensor | None = None,
    captions_of: str = "examples",
    seed: int = 0,
    **options,
) -> Labels:
    """Labels of the units of one layer by each variant, the method as it is first.

    looks {(part, variant): (Looked, captions of ordinary images)}, asks {language model: ask} and sources
    {name: (source, its options)}: the first of each is the method's own, each other one a variant. `seen`
    are options of choices without pictures (`simulation.by_simulation`), which are variants where given;
    with `reference_Q` so is each other source of candidates. Further variants: captions as candidates, no
    choice at all, all other scoring functions, pictures of other sources, and, as shipped, pictures
    shrunk to 32 x 32 and candidates without a picture in the top ten; where the method chooses by no
    pictures, these are compared by the paper's function. `options` are those of `describe_units`.
    """
    (first, (own, reference)), *others = looks.items()
    (model, ask), *models = asks.items()
    (name, (source, given)), *elsewhere = sources.items()
    scoring = {key: options.pop(key) for key in ("beta", "top", "negative", "ties") if key in options}
    by = selection if selection in SCORES else BY_PICTURES
    among = "" if selection in SCORES else f"{by}, "
    made: dict[tuple[str, str], Described] = {}

    def told(
        look: CaptionedExamples, reference: Sequence[str], ask: AskAll | None, how: str = selection, **more
    ) -> Described:
        more = options | more
        if how in SCORES:
            more |= scoring | dict(given)
        elif how in SIMULATED:
            more |= dict(seen or {})
        return describe_units(
            look,
            source,
            ask=ask,
            reference=reference,
            reference_Q=reference_Q,
            selection=how,
            seed=seed,
            **{"captions_of": captions_of} | more,
        )

    base = made["all steps", "the method"] = told(own, reference, ask)
    for variant, (look, said) in others:
        made[variant] = told(look, said, ask)
    for origin in CAPTIONS_OF if reference_Q is not None else ():
        if origin != captions_of:
            made["candidates", f"captions of {origin}"] = told(own, reference, ask, captions_of=origin)
    if not own.together:  # what is said of all examples is neither a caption nor read by a language model
        alone = {"summary": False, "captions_of": "examples"}
        made["summary", "captions as candidates"] = told(own, reference, ask, **alone)
    for other, one in models if not own.together else ():
        made["summary", other] = told(own, reference, one)
    made["selection", "none: the first candidate"] = told(own, reference, ask, "first")
    for how in SIMULATED if seen else ():
        if how != selection:
            scores = by_simulation(base.candidates, how, reference, reference_Q, **seen)
            made["selection", how] = Described(base.layer, base.candidates, scores, None)
    if base.shown is None:
        base = _chosen_by(base, own, source, scoring | dict(given), by, seed)
    for how in SCORES:
        if how != selection:
            made["selection", how] = _rescored(base, how, **scoring)
    for other, (where, its) in elsewhere:
        made["pictures", among + other] = _chosen_by(base, own, where, scoring | dict(its), by, seed)
    if "target" in given:
        small = scoring | dict(given) | {"shrink": 32}
        made["as shipped", f"{among}pictures of 32 pixels"] = _chosen_by(base, own, source, small, by, seed)
    shipped = scoring | {"negative": "as_shipped", "ties": "as_shipped"}
    made["as shipped", f"{among}scores as shipped"] = _rescored(base, by, **shipped)
    order = sorted(made, key=lambda variant: VARIANTS.index(variant[0]))
    return {variant: best_labels(made[variant]) for variant in order}


def step_ablation(
    labels: Mapping[str, Labels],
    present: Callable[[Sequence[str]], Tensor],
    Q: Mapping[str, Tensor],
    active: Mapping[str, float],
    units: Mapping[str, Sequence[int]],
    groups: Mapping[str, str],
    names: Mapping[str, Sequence[str]] | None = None,
    metric: str = "correlation",
    seed: int = 0,
) -> pd.DataFrame:
    """Columns metric, group, part, variant, mean, low, high, difference (from the first), low_,
    high_difference, holm.

    labels {layer: what labels_by_variant gave}; present(texts) and Q are of images held out; `units` those
    described. names {layer: true names} adds the metric "named", label contains the true name, and the column
    shuffled: how often it does when labels are dealt to other units. Neurons are resampled within layers.
    """
    joined = {
        layer: {" | ".join(variant): texts for variant, texts in some.items()}
        for layer, some in labels.items()
    }
    said, texts = from_labels(joined)
    table = score_methods(
        said, present(texts), Q, active, [metric], units, torch.Generator().manual_seed(seed)
    )
    rows = []
    for what, some in ((metric, table), ("named", _named(table, units, names or {}))):
        if some.empty:
            continue
        first = some["method"].iloc[0]
        own = method_means(some, [what], groups, seed)
        if what == "named":
            own["low"], own["high"] = wilson(own["mean"], own["units"])
        own = own.drop(columns="units")
        pairs = method_differences(some, first, what, groups, seed).rename(
            columns={"low": "low_difference", "high": "high_difference"}
        )
        rows.append(own.merge(pairs.drop(columns="p"), on=["group", "method"], how="left"))
    found = pd.concat(rows, ignore_index=True)
    if names:
        dealt = _dealt(labels, names, groups, seed)
        found["shuffled"] = [
            dealt.get((what, group, method))
            for what, group, method in zip(found["metric"], found["group"], found["method"])
        ]
    parts = found["method"].str.split(" | ", n=1, regex=False, expand=True)
    return found.assign(part=parts[0], variant=parts[1]).drop(columns="method")


def readable(by_step: pd.DataFrame) -> pd.DataFrame:
    """`step_ablation`'s to print: difference and interval in one column, empty for the first variant."""
    texts = []
    for row in by_step.itertuples():
        known = row.difference == row.difference
        texts.append(
            f"{row.difference:+.3f} [{row.low_difference:+.3f}, {row.high_difference:+.3f}]" if known else ""
        )
    shown = by_step.assign(difference=texts)
    columns = ("metric", "group", "part", "variant", "mean", "shuffled", "difference", "holm")
    return shown[[name for name in columns if name in shown]]


def _rescored(base: Described, how: str, **options) -> Described:
    return Described(base.layer, base.candidates, score_shown(base.shown, how, **options)[how], base.shown)


def _chosen_by(
    base: Described, look: CaptionedExamples, source: Generator | str, given: Mapping, how: str, seed: int
) -> Described:
    scores, shown = choose(base.candidates, look, source, how, seed, **given)
    return Described(base.layer, base.candidates, scores, shown)


def _dealt(
    labels: Mapping[str, Labels], names: Mapping[str, Sequence[str]], groups: Mapping[str, str], seed: int
) -> dict[tuple[str, str, str], float]:
    """Share of labels that name the true concept of another unit of their layer; of the last layer of each
    group.
    """
    return {
        ("named", groups[layer], " | ".join(variant)): naming_rate(
            texts, names[layer], torch.Generator().manual_seed(seed)
        )["shuffled"]
        for layer in names
        for variant, texts in labels[layer].items()
    }


def _named(
    table: pd.DataFrame, units: Mapping[str, Sequence[int]], names: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """The rows of layers with true names, and whether each label contains its unit's."""
    some = table[table["layer"].isin(names)]
    true = {(layer, int(unit)): name for layer in names for unit, name in zip(units[layer], names[layer])}
    return some.assign(
        named=[
            float(names_it(text, true[layer, unit]))
            for layer, unit, text in zip(some["layer"], some["unit"], some["text"])
        ]
    )
