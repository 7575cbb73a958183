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

from neuronym.common.text import names_it
from neuronym.describe.candidates import AskAll
from neuronym.describe.pipeline import best_labels, CaptionedExamples, choose, describe_units, Described
from neuronym.describe.scoring import SCORES
from neuronym.describe.selection import score_shown
from neuronym.evaluation.explanations import (
    from_labels,
    method_differences,
    method_means,
    naming_rate,
    score_methods,
)
from neuronym.models.generators import Generator

VARIANTS = ("all steps", "crops", "captions", "summary", "selection", "pictures", "as shipped")
Labels = dict[tuple[str, str], list[str]]  # part, variant -> a label for each unit


def labels_by_variant(
    looks: Mapping[tuple[str, str], tuple[CaptionedExamples, Sequence[str]]],
    asks: Mapping[str, AskAll | None],
    sources: Mapping[str, tuple[Generator | str, Mapping]],
    *,
    selection: str = "topk_compare",
    seed: int = 0,
    **options,
) -> Labels:
    """Labels of the units of one layer by each variant, the method as it is first.

    looks {(part, variant): (Looked, captions of ordinary images)}, asks {language model: ask} and sources
    {name: (source, its options)}: the first of each is the method's own, each other one a variant. Further
    variants: captions as candidates, no selection by pictures, all other scoring functions, pictures shrunk
    to 32 x 32, candidates without a picture in the top ten as shipped. `options` are those of `describe`.
    """
    (first, (own, reference)), *others = looks.items()
    (model, ask), *models = asks.items()
    (name, (source, given)), *elsewhere = sources.items()
    scoring = {key: options[key] for key in ("beta", "top", "negative", "ties") if key in options}
    made: dict[tuple[str, str], Described] = {}

    def told(
        look: CaptionedExamples,
        reference: Sequence[str],
        ask: AskAll | None,
        source: Generator | str,
        given: Mapping,
        **more,
    ) -> Described:
        return describe_units(
            look,
            source,
            ask=ask,
            reference=reference,
            selection=selection,
            seed=seed,
            **options | dict(given) | more,
        )

    base = made["all steps", "the method"] = told(own, reference, ask, source, given)
    for variant, (look, said) in others:
        made[variant] = told(look, said, ask, source, given)
    made["summary", "captions as candidates"] = told(own, reference, ask, source, given, summary=False)
    for other, one in models:
        made["summary", other] = told(own, reference, one, source, given)
    made["selection", "none: the first candidate"] = describe_units(
        own, ask=ask, reference=reference, selection="first", seed=seed, **options
    )
    for how in SCORES:
        if how != selection and base.shown is not None:
            made["selection", how] = _rescored(base, how, **scoring)
    for other, (where, its) in elsewhere:
        made["pictures", other] = _chosen_by(base, own, where, scoring | dict(its), selection, seed)
    if base.shown is not None:
        if "target" in given:
            small = scoring | dict(given) | {"shrink": 32}
            made["as shipped", "pictures of 32 pixels"] = _chosen_by(
                base, own, source, small, selection, seed
            )
        shipped = scoring | {"negative": "as_shipped", "ties": "as_shipped"}
        made["as shipped", "scores as shipped"] = _rescored(base, selection, **shipped)
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
        own = method_means(some, [what], groups, seed).drop(columns="units")
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
    base: Described,
    look: CaptionedExamples,
    source: Generator | str,
    given: Mapping,
    selection: str,
    seed: int,
) -> Described:
    how = "topk_compare" if selection == "first" else selection
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
