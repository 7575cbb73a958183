"""Choosing among candidate labels of units (Describe-and-Dissect, step 3): whose pictures excite the unit?

CandidateActivations  what units did on the pictures of their candidates
rank_candidates       scores of every unit's candidates, from drawn or from retrieved pictures
on_generated          pictures of a generator: every different text drawn once, for all units that have it
on_retrieved          the probe's images nearest to the text: rows of Q, no generator and no forward pass
score_shown           the scores of pictures already shown, by one or several functions of `describe.scoring`
candidate_pictures    the pictures a generator gives for texts, also for figures

A text in which the generator or the CLIP reads nothing has no pictures: its score is the lowest. One of whose
pictures a safety checker blacked out some has fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from PIL import Image
from torch import Tensor

from neuronym.activations import activations_and_embeddings, embed_concepts, unit_activations
from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import MEMORY, top_images
from neuronym.common.types import Clip, Device, Progress, Target
from neuronym.datasets.probe import probe_from_images
from neuronym.describe.scoring import score_candidates
from neuronym.hooks import LayerInfo
from neuronym.microworld.world import CANDIDATE_SEED
from neuronym.models.generators import Generator, pictures_of
from neuronym.similarity.scores import retrieved

PROMPT = "One realistic image of {}"
UNIT_ROWS = 1e-2  # how far from 1 the length of an embedding may be


@dataclass(frozen=True)
class CandidateActivations:
    """For each unit, what it did on n pictures of each of its C candidates; NaN, and row -1, where there is
    none.
    """

    activations: dict[int, Tensor]  # unit -> [C, n]
    cosines: (
        dict[int, Tensor] | None
    )  # unit -> [C, n], mean cosine to the unit's examples; None without examples
    rows: dict[int, Tensor] | None  # unit -> [C, n], images of the probe; None for drawn pictures


def rank_candidates(
    candidates: Mapping[int, Sequence[str]],
    E: Mapping[int, Tensor] | None,
    source: Generator | str = "retrieval",
    *,
    how: str | Sequence[str] = "topk_compare",
    n: int = 10,
    beta: int = 5,
    top: int = 10,
    negative: str = "below",
    ties: str = "shared",
    **options,
) -> tuple[dict[str, dict[int, Tensor]], CandidateActivations]:
    """Candidates {unit: C texts}, embeddings of units' examples E {unit: [m, d]} -> {how: {unit: scores
    [C]}}, Shown.

    source "retrieval" takes the options of `on_retrieved`, a Generator those of `on_generated`; the others
    are those of `score_candidates`. E may be None where `how` compares no pictures with examples. No
    candidates, no scores: [0]. Errors: KeyError for an unknown function or source, ValueError for what the
    others refuse.
    """
    if isinstance(source, Generator):
        shown = on_generated(candidates, E, source, n=n, **options)
    elif source == "retrieval":
        shown = on_retrieved(candidates, E, n=n, **options)
    else:
        raise unknown("source of pictures", source, ["retrieval", "a Generator of load_generator"])
    return score_shown(shown, how, beta=beta, top=top, negative=negative, ties=ties), shown


@torch.no_grad()
def on_generated(
    candidates: Mapping[int, Sequence[str]],
    E: Mapping[int, Tensor] | None,
    source: Generator,
    *,
    target: Target,
    layer: LayerInfo,
    clip: Clip | None = None,
    n: int = 10,
    seed: int = 0,
    template: str | None = None,
    shrink: int | None = None,
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
) -> CandidateActivations:
    """Activations of one layer's units on n drawn pictures of each of their candidates, and cosines to the
    examples E.

    In memory are the n pictures of one text. Pictures, activations and embeddings are cached text by text:
    what another unit or run has asked for before is not computed again, a killed run goes on where it was.
    CLIP only with E. Options as in `candidate_pictures` and `unit_activations`. Errors: ValueError for units
    that the layer does not have, E without a CLIP, and bad texts.
    """
    places = _checked(candidates, layer.units, f"layer '{layer.name}'")
    check_positive_int("n", n)
    if E is not None and clip is None:
        raise ValueError("cosines to the examples E need their CLIP, got none; pass clip, or E=None")
    means = _means(candidates, E, clip)
    acts, cosines = (
        {unit: torch.full((len(texts), n), torch.nan) for unit, texts in candidates.items()} for _ in "ac"
    )
    texts = [text for text in places if source.reads(text)]
    for text in texts if progress is None else progress(texts, len(texts), "candidates drawn"):
        shown = candidate_pictures([text], source, n, seed, template, shrink)[text]
        if not shown:
            continue
        probe = probe_from_images(shown)
        if E is None:
            found = unit_activations(target, probe, [layer], pool, batch_size, device)
        else:
            found, I = activations_and_embeddings(target, [layer], clip, probe, pool, batch_size, device)
        for unit, c in places[text]:
            acts[unit][c, : len(shown)] = found[layer.name][:, unit].to(acts[unit])
            if E is not None:
                cosines[unit][c, : len(shown)] = I.to(means[unit]) @ means[unit]
    return CandidateActivations(acts, None if E is None else cosines, None)


@torch.no_grad()
def on_retrieved(
    candidates: Mapping[int, Sequence[str]],
    E: Mapping[int, Tensor] | None,
    *,
    Q: Tensor,
    I: Tensor,
    clip: Clip,
    n: int = 10,
    exclude: Mapping[int, Sequence[int]] | int = 10,
    template: str = "{}",
    memory: int = MEMORY,
) -> CandidateActivations:
    """Activations on the n probe images nearest to each candidate in CLIP space: Q [N, K], I [N, d] of one
    probe.

    Images that a unit's examples come from are left out for this unit: `exclude` {unit: rows}, or so many of
    its highest activated ones (0: none). Scoring a candidate on the images it was made from would be
    circular; what is left says whether it holds elsewhere. The price: where no other image shows the concept,
    those that come nearest must do; a probe should have some beyond the examples. Errors: ValueError for
    another N or d, units that Q does not have, too few images, bad texts.
    """
    if Q.ndim != 2 or I.ndim != 2 or len(Q) != len(I):
        raise ValueError(
            f"expected Q [N, K] and I [N, d] of one probe, got {list(Q.shape)} and {list(I.shape)}"
        )
    places = _checked(candidates, Q.shape[1], "Q")
    check_positive_int("n", n)
    means, left_out = _means(candidates, E, clip), _left_out(candidates, Q, exclude)
    most = n + max(map(len, left_out.values()))
    if most > len(I):
        raise ValueError(
            f"{n} images a candidate beside {most - n} left out exceed the probe's {len(I)}; pass a "
            "smaller n or exclude"
        )
    said = {text: clip.reads(text) for text in places}
    different = list(dict.fromkeys(filter(None, said.values())))
    near = torch.full((len(different) + 1, most), -1)  # the last row: no images
    if different:
        near[:-1] = retrieved(I, embed_concepts(clip, different, template).to(I.device), most, memory)
    row_of = {text: i for i, text in enumerate(different)}
    acts, cosines, rows = {}, {}, {}
    for unit, texts in candidates.items():
        found = near[[row_of.get(said[text], -1) for text in texts]]  # [C, most], also without texts
        behind = torch.isin(found, torch.tensor(left_out[unit], dtype=torch.int64)).to(torch.uint8)
        rows[unit] = found.gather(1, behind.sort(dim=1, stable=True).indices[:, :n])
        none, some = rows[unit] < 0, rows[unit].clamp_min(0)
        acts[unit] = Q[some.to(Q.device), unit].masked_fill(none.to(Q.device), torch.nan)
        if E is not None:
            products = (I[some.to(I.device)] @ means[unit].to(I)).to(Q.device)
            cosines[unit] = products.masked_fill(none.to(Q.device), torch.nan)
    return CandidateActivations(acts, None if E is None else cosines, rows)


def score_shown(
    shown: CandidateActivations,
    how: str | Sequence[str] = "topk_compare",
    *,
    beta: int = 5,
    top: int = 10,
    negative: str = "below",
    ties: str = "shared",
) -> dict[str, dict[int, Tensor]]:
    """{function: {unit: scores [C]}} by one or several scoring functions; see `score_candidates`."""
    options = {"beta": beta, "top": top, "negative": negative, "ties": ties}
    return {
        one: {
            unit: score_candidates(
                acts, None if shown.cosines is None else shown.cosines[unit], one, **options
            )
            for unit, acts in shown.activations.items()
        }
        for one in ([how] if isinstance(how, str) else how)
    }


def candidate_pictures(
    texts: Sequence[str],
    source: Generator,
    n: int = 10,
    seed: int = 0,
    template: str | None = None,
    shrink: int | None = None,
) -> dict[str, list[Image.Image]]:
    """n pictures of each different text, with the same n seeds for each; none of a text that cannot be drawn.

    The prompt is PROMPT, for the microworld the text alone. shrink: the side, in pixels, that pictures are
    reduced to before target and CLIP see them, 32 as shipped; None leaves them as they were drawn.
    """
    if shrink is not None:
        check_positive_int("shrink", shrink)
    template = template if template is not None or source.bare else PROMPT
    drawable = [text for text in texts if source.reads(text)]
    made = pictures_of(drawable, source, n, seed, template, first=CANDIDATE_SEED) if drawable else {}
    if shrink is not None:
        made = {
            text: [picture.resize((shrink, shrink), Image.Resampling.BICUBIC) for picture in some]
            for text, some in made.items()
        }
    return {text: made.get(text, []) for text in texts}


def _checked(candidates: Mapping[int, Sequence[str]], K: int, of: str) -> dict[str, list[tuple[int, int]]]:
    """Each different text with the units that have it, and where in their lists."""
    if not candidates:
        raise ValueError("candidates are {unit: texts} of one unit or more, got none")
    places: dict[str, list[tuple[int, int]]] = {}
    for unit, texts in candidates.items():
        if isinstance(unit, bool) or not isinstance(unit, Integral) or not 0 <= unit < K:
            raise ValueError(f"units of {of} are numbers from 0 to {K - 1}, got {unit!r}")
        for c, text in enumerate([None] if isinstance(texts, str) else texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    "a unit's candidates are a list of texts, none empty, got "
                    f"{f'{texts!r}':.80} for unit {unit}"
                )
            places.setdefault(text, []).append((unit, c))
    return places


def _means(
    candidates: Mapping[int, Sequence[str]], E: Mapping[int, Tensor] | None, clip: Clip | None
) -> dict[int, Tensor]:
    """Mean example [d] of each unit, on the CPU: a picture's product with it is its mean cosine to the
    examples.
    """
    means = {}
    for unit in candidates if E is not None else ():
        if unit not in E:
            raise unknown("unit with examples", unit, E)
        if E[unit].ndim != 2 or not len(E[unit]) or E[unit].shape[1] != clip.d:
            raise ValueError(
                f"expected examples [m, {clip.d}] of unit {unit}, as {clip.name} gives, got "
                f"{list(E[unit].shape)}"
            )
        wrong = ~((E[unit].norm(dim=1) - 1).abs() <= UNIT_ROWS)
        if bool(wrong.any()):
            raise ValueError(
                f"examples are rows of length 1, got {E[unit].norm(dim=1)[wrong][0]:.4g} for unit {unit}; "
                "divide them by their length"
            )
        means[unit] = E[unit].cpu().mean(0)
    return means


def _left_out(
    candidates: Mapping[int, Sequence[str]], Q: Tensor, exclude: Mapping[int, Sequence[int]] | int
) -> dict[int, list[int]]:
    """The rows that each unit's candidates are not shown."""
    if isinstance(exclude, Mapping):
        for unit in candidates:
            if unit not in exclude:
                raise unknown("unit with images to exclude", unit, exclude)
            if any(not 0 <= row < len(Q) for row in exclude[unit]):
                raise ValueError(
                    f"images to exclude are rows of Q from 0 to {len(Q) - 1}, got "
                    f"{list(exclude[unit])} for unit {unit}"
                )
        return {unit: sorted({int(row) for row in exclude[unit]}) for unit in candidates}
    if exclude == 0:
        return {unit: [] for unit in candidates}
    check_positive_int("exclude", exclude, len(Q), f"the probe's {len(Q)} images")
    return dict(zip(candidates, top_images(Q[:, list(candidates)], exclude).T.tolist()))
