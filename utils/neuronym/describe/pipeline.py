"""Describe-and-Dissect (Bai et al., TMLR 2025): a unit's crops, captions of them, what these share, and a
choice by pictures.

CaptionedExamples, Described  what came of them
caption_examples              step 1 and captions: what excites each unit, and what a captioner says of it
ordinary_captions             captions of images at random, which a summariser without a language model
                              compares with
ordinary_rows                 which images these are
describe_units                steps 2 and 3: candidates from the captions, the best of them by pictures
choose                        step 3 alone
of_units, cropped             part of what was looked at; how much of it are crops
captioned                     the units of which something is said
several_labels                the paper's variant of more than one label for a unit
several_table                 these as a table
release_table                 the best labels of a layer as the released code writes them
best_labels                   the best candidate of each unit
labels_of                     the best labels of every unit as rows of the labels table
candidates_table              all candidates with their scores

Captions and answers of language models come from a transcript (utils/neuronym/models/transcripts.py), so that
nothing is asked twice.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from PIL.Image import Image
from torch import Tensor

from neuronym.activations import embed_concepts, image_embeddings
from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.files import digest
from neuronym.common.types import Answer, Device, Progress
from neuronym.datasets.probe import Probe, probe_from_images
from neuronym.describe.candidates import AskAll, propose, tidy, TOKENS
from neuronym.describe.counting import correlated
from neuronym.describe.examples import Example, examples, picture
from neuronym.describe.prompts import named_prompt, Prompt
from neuronym.describe.scoring import best, distinct_best
from neuronym.describe.selection import CandidateActivations, rank_candidates
from neuronym.describe.simulation import by_simulation, SIMULATED
from neuronym.describe.together import need_server, shared_phrases
from neuronym.hooks import LayerInfo
from neuronym.models.answers import caption_of
from neuronym.models.asking import Asking
from neuronym.models.captioners import BATCH, Captioner, picture_key, PROMPT, WORKERS
from neuronym.models.generators import Generator
from neuronym.models.transcripts import answers, ask_each, Transcript
from neuronym.similarity.labels import COLUMNS, marked

if TYPE_CHECKING:
    from neuronym.common.types import Clip, Target

TOGETHER = 64  # pictures in memory
CAPTIONS_OF = ("examples", "ordinary", "both")


@dataclass(frozen=True)
class CaptionedExamples:
    """What excites the units of a layer: examples, strongest first, what is said of each, and their
    embeddings.
    """

    layer: str
    examples: dict[int, list[Example]]
    captions: dict[int, list[str]]  # of each example, or `together` phrases that are said of all
    E: dict[int, Tensor]  # unit -> [m, d]
    together: bool = False


@dataclass(frozen=True)
class Described:
    """Candidates of each unit, their scores [C], higher is better, and what the unit did on their pictures
    (step 3).
    """

    layer: str
    candidates: dict[int, list[str]]
    scores: dict[int, Tensor]
    shown: CandidateActivations | None  # None without step 3


def caption_examples(
    target: Target,
    layer: LayerInfo,
    units: Sequence[int],
    probe: Probe,
    Q: Tensor,
    captioner: Captioner,
    transcript: Transcript,
    clip: Clip,
    *,
    images: int = 10,
    crops: int = 4,
    keep: int = 10,
    heatmap: str = "scale",
    together: int = 0,
    prompt: str | Prompt = "objects",
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> CaptionedExamples:
    """Step 1, captions of the examples, and their CLIP embeddings: Q [N, K] of the layer; options as in
    `examples`.

    Each different picture is captioned once for all units; captions are in the transcript as soon as they are
    made, so that a killed run goes on where it was. `together` phrases are asked for in place of captions,
    with all examples of a unit in one request (`together.shared_phrases`, with `prompt`).
    """
    if together:
        need_server(captioner)
    found = examples(
        target,
        layer,
        units,
        probe,
        Q,
        images=images,
        crops=crops,
        keep=keep,
        heatmap=heatmap,
        pool=pool,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    different = list(dict.fromkeys((e.image, e.box) for some in found.values() for e in some))
    one = {(e.image, e.box): e for some in found.values() for e in some}
    parts = [different[i : i + TOGETHER] for i in range(0, len(different), TOGETHER)]
    said, rows = {}, {}
    for part in (
        parts
        if progress is None
        else progress(parts, len(parts), f"{TOGETHER} examples of {layer.name} captioned")
    ):
        shown = [picture(probe, one[key]) for key in part]
        said |= {} if together else dict(zip(part, _captions(captioner, transcript, shown)))
        rows |= dict(zip(part, image_embeddings(clip, probe_from_images(shown), batch_size, device).clone()))
    if together:
        captions = shared_phrases(captioner, transcript, probe, found, together, prompt)
    else:
        captions = {unit: [said[e.image, e.box] for e in some] for unit, some in found.items()}
    E = {unit: torch.stack([rows[e.image, e.box] for e in some]) for unit, some in found.items()}
    return CaptionedExamples(layer.name, found, captions, E, bool(together))


def ordinary_captions(
    probe: Probe,
    captioner: Captioner,
    transcript: Transcript,
    n: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Captions of n images of the probe at random (`ordinary_rows`), resized like examples."""
    rows = ordinary_rows(probe.N, n, seed)
    parts = [rows[i : i + TOGETHER] for i in range(0, len(rows), TOGETHER)]
    return [
        text
        for part in (
            parts if progress is None else progress(parts, len(parts), f"{TOGETHER} images captioned")
        )
        for text in _captions(captioner, transcript, [picture(probe, Example(i, None, 0.0)) for i in part])
    ]


def ordinary_rows(N: int, n: int = 200, seed: int = 0) -> list[int]:
    """n of N images at random, ascending; all of them where there are fewer."""
    check_positive_int("n", n)
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:n].sort().values.tolist()


def describe_units(
    looked: CaptionedExamples,
    source: Generator | str = "retrieval",
    *,
    ask: AskAll | None = None,
    reference: Sequence[str] = (),
    reference_Q: Tensor | None = None,
    captions_of: str = "examples",
    tries: int = 5,
    prompt: str | Prompt = "objects",
    summary: bool = True,
    selection: str = "topk_compare",
    seed: int = 0,
    max_tokens: int = TOKENS,
    **options,
) -> Described:
    """Steps 2 and 3 for the units of a layer.

    `reference` are captions of ordinary images, `reference_Q` [n, K] what the layer does on these.
    Candidates: with `captions_of` "examples" those of `candidates.propose` with `ask` (None: the extractive
    summariser, which compares with `reference`), or what was said of examples shown together; "ordinary",
    `tries` phrases of `counting.correlated` in the ordinary captions; "both", the one after the other.
    Choice: `selection` is one of `simulation.SIMULATED`, with `options` as in `simulation.by_simulation` and
    no `source`; one of `scoring.SCORES`, with `source` and `options` as in `selection.rank_candidates`; or
    "first" for the paper's variant without step 3: the first candidate, scored 0, the next -1, ...
    """
    told = {"tries": tries, "seed": seed, "prompt": prompt, "summary": summary, "max_tokens": max_tokens}
    candidates = _proposed(looked, ask, reference, reference_Q, captions_of, **told)
    if selection == "first":
        return Described(
            looked.layer,
            candidates,
            {unit: -torch.arange(len(some), dtype=torch.float64) for unit, some in candidates.items()},
            None,
        )
    if selection in SIMULATED:
        scores = by_simulation(candidates, selection, reference, reference_Q, **options)
        return Described(looked.layer, candidates, scores, None)
    scores, shown = choose(candidates, looked, source, selection, seed, **options)
    return Described(looked.layer, candidates, scores, shown)


def _proposed(
    looked: CaptionedExamples,
    ask: AskAll | None,
    reference: Sequence[str],
    reference_Q: Tensor | None,
    captions_of: str,
    *,
    tries: int,
    **told,
) -> dict[int, list[str]]:
    """Candidates of every unit from the captions asked for; units to which ordinary ones give none have those
    of their examples.
    """
    if captions_of not in CAPTIONS_OF:
        raise unknown("source of captions", captions_of, CAPTIONS_OF)
    units = list(looked.captions)

    def of_examples(said: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        if looked.together:
            words = named_prompt(told["prompt"]).words
            return {unit: tidy(some, words=words) or list(some) for unit, some in said.items()}
        return propose(said, ask, reference, tries=tries, **told)

    if captions_of == "examples":
        return of_examples(looked.captions)
    if reference_Q is None:
        raise ValueError(
            "candidates from ordinary captions need the activations on their images, got none; pass "
            "reference_Q, or captions_of='examples'"
        )
    wide = dict(zip(units, correlated(reference, reference_Q[:, units], tries)))
    rest = {unit: looked.captions[unit] for unit in units if captions_of == "both" or not wide[unit]}
    own = of_examples(rest) if rest else {}
    return {unit: list(dict.fromkeys([*own.get(unit, ()), *wide[unit]])) for unit in units}


def choose(
    candidates: Mapping[int, Sequence[str]],
    looked: CaptionedExamples,
    source: Generator | str,
    how: str,
    seed: int = 0,
    **options,
) -> tuple[dict[int, Tensor], CandidateActivations]:
    """Step 3: scores of the candidates of each unit, and the pictures they are from; `seed` is that of a
    generator.
    """
    drawn = {"seed": seed} if isinstance(source, Generator) else {}
    scores, shown = rank_candidates(candidates, looked.E, source, how=how, **drawn, **options)
    return scores[how], shown


def of_units(looked: CaptionedExamples, units: Sequence[int]) -> CaptionedExamples:
    """Some of the units that were looked at."""
    return CaptionedExamples(
        looked.layer,
        *({unit: each[unit] for unit in units} for each in (looked.examples, looked.captions, looked.E)),
        looked.together,
    )


def captioned(*looked: CaptionedExamples) -> list[int]:
    """Units of which each look holds a caption; of the others, all were refused or cut off.

    Errors: ValueError where there is none.
    """
    first = list(looked[0].captions)
    units = [unit for unit in first if all(any(map(str.strip, look.captions[unit])) for look in looked)]
    if len(units) < len(first):
        lost = ", ".join(str(unit) for unit in first if unit not in units)
        if not units:
            raise ValueError(
                f"captions of units must hold one that says something, got none of any unit of "
                f"'{looked[0].layer}'; name another captioner, or raise max_tokens"
            )
        print(
            f"{looked[0].layer}: units {lost} are left out, since no caption of theirs came",
            file=sys.stderr,
            flush=True,
        )
    return units


def cropped(looked: CaptionedExamples) -> float:
    """Share of the examples that are crops."""
    boxes = [e.box for some in looked.examples.values() for e in some]
    return sum(box is not None for box in boxes) / len(boxes)


def several_labels(
    described: Described, clip: Clip, most: int = 3, limit: float = 0.81
) -> dict[int, list[str]]:
    """Labels of each unit that differ: down the candidates by score, kept when the CLIP cosine to each kept
    one is at most `limit`; candidates that have a score above all that have none.
    """
    texts = dict.fromkeys(text for some in described.candidates.values() for text in some)
    read = {text: clip.reads(text) for text in texts}
    known = [text for text in texts if read[text]]
    where = {text: i for i, text in enumerate(known)}
    T = embed_concepts(clip, [read[text] for text in known]) if known else None
    found = {}
    for unit, some in described.candidates.items():
        able = [c for c, text in enumerate(some) if text in where]
        kept = (
            distinct_best(described.scores[unit][able], T[[where[some[c]] for c in able]], most, limit)
            if able
            else []
        )
        found[unit] = [some[able[i]] for i in kept] or [best(some, described.scores[unit], 1)[0][0]]
    return found


def several_table(several: Mapping[str, Mapping[int, Sequence[str]]]) -> pd.DataFrame:
    """`several_labels` of layers, {layer: {unit: labels}}, as rows: layer, unit, rank, label."""
    rows = [
        (layer, unit, rank, label)
        for layer, units in several.items()
        for unit, labels in units.items()
        for rank, label in enumerate(labels, start=1)
    ]
    return pd.DataFrame(rows, columns=["layer", "unit", "rank", "label"])


def release_table(described: Described, k: int = 3) -> pd.DataFrame:
    """The k best labels of a layer's units as the released code writes results.csv: columns Neuron ID, Label
    1 ... Label k, blank where there are fewer.
    """
    rows = [
        [unit, *(label for label, _ in best(some, described.scores[unit].cpu(), k))]
        for unit, some in described.candidates.items()
    ]
    return pd.DataFrame(rows, columns=["Neuron ID", *(f"Label {rank}" for rank in range(1, k + 1))])


def best_labels(described: Described, units: Sequence[int] | None = None) -> list[str]:
    """The best candidate of each unit, in the order given."""
    units = list(described.candidates) if units is None else units
    strange = [unit for unit in units if unit not in described.candidates]
    if strange:
        raise unknown("described unit", strange[0], described.candidates)
    return [best(described.candidates[unit], described.scores[unit].cpu(), 1)[0][0] for unit in units]


def labels_of(
    described: Described,
    model: str,
    k: int = 3,
    method: str = "dnd",
    *,
    activations: Tensor | None = None,
    **more: object,
) -> pd.DataFrame:
    """The k best candidates of each unit as rows of the labels table (fewer where there are fewer); with the
    layer's `activations` [N, K] `similarity.labels.marked`; `more` adds columns.
    """
    rows = [
        (model, described.layer, unit, method, rank, label, score)
        for unit, some in described.candidates.items()
        for rank, (label, score) in enumerate(best(some, described.scores[unit].cpu(), k), start=1)
        if label
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table if activations is None else marked(table, {described.layer: activations})
    return table.assign(**more)


def candidates_table(described: Iterable[Described]) -> pd.DataFrame:
    """Every candidate and its score: columns layer, unit, candidate, score."""
    return pd.DataFrame(
        [
            (d.layer, unit, text, score)
            for d in described
            for unit, texts in d.candidates.items()
            for text, score in zip(texts, d.scores[unit].tolist())
        ],
        columns=["layer", "unit", "candidate", "score"],
    )


def _captions(captioner: Captioner, transcript: Transcript, shown: Sequence[Image]) -> list[str]:
    keys = [digest(captioner.key, picture_key(one)) for one in shown]
    if captioner.answer is not None:
        return _asked(captioner, transcript, dict(zip(keys, shown)), keys)

    def said(absent: list[int]) -> Iterator[str]:
        for i in range(0, len(absent), BATCH):
            some = absent[i : i + BATCH]
            part = captioner.caption([shown[j] for j in some])
            if len(part) != len(some):  # one that is left out would give its place to the next
                raise ValueError(
                    f"a captioner gives one caption for each picture, {captioner.name} gave {len(part)} for "
                    f"{len(some)}; look at what it returns"
                )
            yield from part

    return answers(transcript, "caption", keys, said, model=captioner.name)


def _asked(
    captioner: Captioner, transcript: Transcript, shown: Mapping[str, Image], keys: Sequence[str]
) -> list[str]:
    """Captions of a server: written when they come, as it said them, and read without thoughts and markup."""

    def one(key: str, most: int, stop: threading.Event) -> Answer:
        return captioner.answer(shown[key], most, stop)

    request = {"model_key": captioner.key, "prompt": PROMPT, "settings": {"max_tokens": captioner.max_tokens}}
    how = Asking("caption", captioner.name, one, WORKERS, captioner.more, any_fault=True)
    return [caption_of(text) for text in ask_each(transcript, how, keys, dict.fromkeys(keys, request))]
