"""Choosing among candidates without pictures: does what is seen of a phrase rise and fall with the unit?

SIMULATED      the ways: names of `selection` that need no pictures
simulated      correlation of what a CLIP sees of each phrase with its unit, over all images
mentioned      the same of a phrase's mention in captions, where there is no CLIP
by_simulation  one or the other or both, by name

Pictures of a phrase tell whether it is enough to excite a unit, so narrow phrases win; here it must also be
absent where the unit is silent. docs/protocols/selection.md says how this was compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common.checks import unknown
from neuronym.common.memory import items_within, MEMORY, slices
from neuronym.common.statistics import cross_correlation
from neuronym.common.types import Clip
from neuronym.describe.counting import mentions
from neuronym.evaluation.presence import judged_presence, unfitted

SIMULATED = ("balanced", "agreed", "simulate", "mention")  # describe/scoring.py has the table of names
UNREAD = -2.0  # score of a phrase that the CLIP cannot read: below every correlation


@torch.no_grad()
def simulated(
    candidates: Mapping[int, Sequence[str]],
    Q: Tensor,
    I: Tensor,
    clip: Clip,
    T: Tensor,
    template: str = "{}",
    memory: int = MEMORY,
    plain: bool = False,
) -> dict[int, Tensor]:
    """Correlation with its unit, over all images, of each candidate's probability, or `plain` cosine: {unit:
    C texts}, Q [N, K], I [N, d], T [M, d] -> {unit: scores [C]}, float64 from -1 to 1.

    S = r(Q_k, sigmoid(a I t + b)), t the phrase, a and b of `presence.unfitted` from the images I and the
    words T alone, so that no truth is read and no other phrase changes a score. The unit's own examples stay
    among the images. A candidate in which the CLIP reads nothing gets -2. Errors: ValueError for another N,
    and for words from which no probability follows.
    """
    if Q.ndim != 2 or I.ndim != 2 or len(Q) != len(I):
        raise ValueError(
            f"expected Q [N, K] and I [N, d] of one probe, got {list(Q.shape)} and {list(I.shape)}"
        )
    said = {text: clip.reads(text) for some in candidates.values() for text in some}
    read = list(dict.fromkeys(filter(None, said.values())))
    if not read:
        return {unit: Q.new_full((len(some),), UNREAD).double() for unit, some in candidates.items()}
    units, where = list(candidates), {text: i for i, text in enumerate(read)}
    t, fit, scores = embed_concepts(clip, read, template).to(I.device), unfitted(I, T.to(I.device)), []
    [some] = items_within(memory, (0, 40 * len(I), len(t)))
    for part in slices(len(t), some):
        X = I @ t[part].T if plain else judged_presence(I, t[part], fit, memory)
        scores.append(cross_correlation(Q[:, units], X.to(Q.device)))
    return _chosen(candidates, torch.cat(scores, 1), [where.get(said[text], -1) for text in said], list(said))


@torch.no_grad()
def mentioned(
    candidates: Mapping[int, Sequence[str]], Q: Tensor, captions: Sequence[str]
) -> dict[int, Tensor]:
    """Correlation of each candidate's mention in captions with its unit: a caption for each row of Q [n,
    K] -> {unit: scores [C]}, float64; 0 for one that no caption mentions, or all do.

    Errors: ValueError for unequal numbers of captions and rows, and fewer than two.
    """
    if len(captions) != len(Q) or len(Q) < 2:
        raise ValueError(
            f"a mention is in captions of known images, two at least, got {len(captions)} captions and "
            f"{len(Q)} rows of activations"
        )
    texts = list(dict.fromkeys(text for some in candidates.values() for text in some))
    units, there = list(candidates), mentions(captions, texts).to(Q.device)
    scores = cross_correlation(Q[:, units], there)
    return _chosen(candidates, scores, list(range(len(texts))), texts)


def by_simulation(
    candidates: Mapping[int, Sequence[str]],
    how: str,
    captions: Sequence[str] = (),
    captions_Q: Tensor | None = None,
    *,
    Q: Tensor | None = None,
    I: Tensor | None = None,
    clip: Clip | None = None,
    T: Tensor | None = None,
    own_words: bool = False,
) -> dict[int, Tensor]:
    """Scores of the candidates of each unit by name: "simulate" is `simulated` of Q, I, clip and T, "mention"
    is `mentioned` of captions and the activations on their images, "agreed" the sum of both, and "balanced"
    the mean of `simulated` of probabilities and of plain cosines, half of it, and the mention; the mean alone
    where captions are the CLIP's `own_words`, which say it again.

    Without a CLIP all are `mentioned`; what the CLIP cannot read stays last. Errors: KeyError for another
    name; those of the two.
    """
    if how not in SIMULATED:
        raise unknown("selection without pictures", how, SIMULATED)
    if how == "mention" or clip is None:
        return mentioned(candidates, Q[:0] if captions_Q is None else captions_Q, captions)
    scores, weight = simulated(candidates, Q, I, clip, T), 1.0
    if how == "balanced":
        cosines = simulated(candidates, Q, I, clip, T, plain=True)
        scores, weight = {unit: (some + cosines[unit]) / 2 for unit, some in scores.items()}, 0.5
    if how == "simulate" or (how == "balanced" and own_words):
        return scores
    said = by_simulation(candidates, "mention", captions, captions_Q, Q=Q)
    unread = {unit: some == UNREAD for unit, some in scores.items()}
    return {unit: weight * some + said[unit] - 2 * unread[unit] for unit, some in scores.items()}


def _chosen(
    candidates: Mapping[int, Sequence[str]], scores: Tensor, columns: Sequence[int], texts: Sequence[str]
) -> dict[int, Tensor]:
    """Each unit's scores of its own candidates, of scores [units, columns]; column -1 is UNREAD."""
    at = dict(zip(texts, columns))
    scores = torch.cat([scores, scores.new_full((len(scores), 1), UNREAD)], 1)
    return {unit: scores[i, [at[text] for text in some]] for i, (unit, some) in enumerate(candidates.items())}
