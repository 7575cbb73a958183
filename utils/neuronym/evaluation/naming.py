"""CLIP-Dissect's smaller experiments on names: what they rest on, how far down they hold, and what follows
from them.

Encode             what maps texts to unit rows
without            the images that do not show a concept
missing_concepts   is a unit still named when no image shows what it is for?
compositional      labels of two words, made of each unit's best words
by_range           how often the label is in images of lower and lower activation
range_images       some of these images, for a figure
head_weight        weights from an inner layer's pooled units to the classes
contributions      what each unit adds to the logit of a class
class_from_neuron  an image's class guessed from the label of the unit that adds most

N images, K units, M concepts, d embedding width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import pandas as pd
import torch
from torch import nn, Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import MEMORY, top_images
from neuronym.common.statistics import correlation, rank_of
from neuronym.hooks import get_layer
from neuronym.similarity.matrix import checked, FactoredMatrix
from neuronym.similarity.scores import score, top_labels
from neuronym.similarity.sparse_columns import score_units, SparseColumns

EXPLAINED = 0.8
Encode = Callable[[list[str]], Tensor]  # texts -> unit rows


def without(present: Tensor, concept: int) -> Tensor:
    """Indices of the images that do not show the concept: present [N, M] as truth, or probabilities, shown
    above .5.
    """
    if present.ndim != 2 or not 0 <= concept < present.shape[1]:
        raise ValueError(
            f"expected present [N, M] and a concept from 0 to M - 1, got {list(present.shape)} and {concept}"
        )
    column = present[:, concept]
    return (~(column if column.dtype == torch.bool else column > 0.5)).nonzero()[:, 0]


def missing_concepts(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    concepts: Sequence[str],
    names: Sequence[str],
    present: Tensor,
    method: str = "soft_wpmi",
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> pd.DataFrame:
    """Can a unit be named for what no probing image shows (CLIP-Dissect, figure 4)? A row for each unit of
    known name.

    P [N, M], Q [N, K], one true name per unit, present [N, M] of the same concepts. For each name, all images
    that show it are removed and the unit is scored anew, beside all units of the layer. Columns: unit, name,
    removed (images), rank_before, label_before, rank, label, kept (is the name the label still?); rank 1 is
    best, ties by lower index. Errors: ValueError when no name is a concept, and when a concept is in every
    image.
    """
    checked(P, Q, None, memory)
    checked(present, Q, None, memory)
    if len(names) != Q.shape[1] or not P.shape[1] == present.shape[1] == len(concepts):
        raise ValueError(
            f"expected one name per unit and one column of P and present per concept, got {len(names)} "
            f"names, Q {list(Q.shape)}, P {list(P.shape)}, present {list(present.shape)} and "
            f"{len(concepts)} concepts"
        )
    where = {concept: m for m, concept in reversed(list(enumerate(concepts)))}
    units = {
        m: [k for k, name in enumerate(names) if where.get(name) == m]
        for m in dict.fromkeys(where[name] for name in names if name in where)
    }
    if not units:
        raise ValueError(
            f"none of the {len(names)} names is among the {len(concepts)} concepts, e.g. '{names[0]}'"
        )
    order = [(k, m) for m, those in units.items() for k in those]
    before = score(P, Q, method, units=[k for k, _ in order], memory=memory, generator=generator, **options)
    rows: list[tuple] = []
    for m, those in units.items():
        left = without(present, m)
        if not len(left):
            raise ValueError(
                f"concept '{concepts[m]}' is in all {len(Q)} images, nothing is left to name units by; "
                "leave its units out"
            )
        some = FactoredMatrix(P.I[left], P.T) if isinstance(P, FactoredMatrix) else P[left]
        after = score(some, Q[left], method, units=those, memory=memory, generator=generator, **options)
        for place, k in enumerate(those):
            both = torch.stack([before[len(rows)], after[place]])
            (old, new), (was, now) = rank_of(both, torch.tensor([m, m])).tolist(), both.argmax(1).tolist()
            rows.append(
                (k, concepts[m], len(Q) - len(left), old, concepts[was], new, concepts[now], new == 1)
            )
    table = pd.DataFrame(
        rows, columns=["unit", "name", "removed", "rank_before", "label_before", "rank", "label", "kept"]
    )
    return table.sort_values("unit", ignore_index=True)


def compositional(
    encode: Encode,
    I: Tensor,
    Q: Tensor | SparseColumns,
    concepts: Sequence[str],
    scores: Tensor,
    words: int = 100,
    *,
    units: Sequence[int] | None = None,
    method: str = "soft_wpmi",
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> pd.DataFrame:
    """Labels of one or two words (CLIP-Dissect, figure 10): columns unit, single, single_score, phrase,
    score, pair.

    For each of `units` (all by default), the `words` best concepts by scores and all ordered pairs of
    different ones, "w1 w2" (100 words: 9,900 pairs), each text once, are embedded and scored by the method
    against Q [N, K]; terms over units are over all K. `scores` are of these units, in their order, [n, M].
    `single` is the best concept, `phrase` the best text,
    `pair` whether it is none of the words; both scores are among these texts, and so comparable. I [N, d]
    unit rows of the same CLIP as `encode`. Errors: ValueError for more words than concepts, or one only.
    """
    K = Q.shape[1]
    units = list(range(K)) if units is None else [int(unit) for unit in units]
    if scores.ndim != 2 or len(scores) != len(units):
        raise ValueError(
            f"expected scores [n, M] of the same units, got {list(scores.shape)} for {len(units)} of Q "
            f"{list(Q.shape)}"
        )
    check_positive_int("words", words, len(concepts), f"M {len(concepts)} concepts")
    if words < 2:
        raise ValueError(f"phrases are pairs of words, got words {words}; pass at least 2")
    rows = []
    for unit, own in zip(units, scores):
        if not 0 <= unit < K:
            raise ValueError(f"units must be indices from 0 to {K - 1}, got {unit}")
        best = [concepts[m] for m in top_labels(own[None], concepts, words)[1][0].tolist()]
        texts = list(
            dict.fromkeys([*best, *(f"{first} {second}" for first, second in permutations(best, 2))])
        )
        P = FactoredMatrix(I, encode(texts).to(I.device, I.dtype))
        [found] = score_units(P, Q, method, [unit], memory=memory, generator=generator, **options)
        top = int(found.argmax())
        rows.append((unit, best[0], float(found[0]), texts[top], float(found[top]), texts[top] not in best))
    return pd.DataFrame(rows, columns=["unit", "single", "single_score", "phrase", "score", "pair"])


def by_range(
    present: Tensor | FactoredMatrix,
    Q: Tensor,
    labels: Sequence[int],
    shares: Sequence[float] = (0.001, 0.01, 0.05),
) -> pd.DataFrame:
    """How often the label is in images of a unit's top activations (CLIP-Dissect, figures 12, 13), beside all
    images.

    present [N, M] as truth or probabilities, or FactoredMatrix for mean cosines; Q [N, K]; labels [K] indices
    of concepts, -1 for none (no rows). Columns: unit, label, share, images (share x N rounded, at least 1),
    present (mean over these images), all (mean over all images); one row for each unit and share.
    """
    checked(present, Q, None, MEMORY)
    (N, K), M = Q.shape, present.shape[1]
    labels = [int(m) for m in labels]
    if len(labels) != K or not all(-1 <= m < M for m in labels):
        raise ValueError(
            f"expected {K} labels, each from 0 to {M - 1} or -1 for none, got {len(labels)} from "
            f"{min(labels, default=None)} to {max(labels, default=None)}"
        )
    counts = [_count(share, N) for share in shares]
    named = [k for k, m in enumerate(labels) if m >= 0]
    if not counts or not named:
        raise ValueError(
            f"expected a share or more and a labelled unit or more, got {len(counts)} and {len(named)}"
        )
    chosen = [labels[k] for k in named]
    shown = (
        present.I.double() @ present.T[chosen].double().T
        if isinstance(present, FactoredMatrix)
        else present[:, chosen].double()
    )  # [N, named]
    top = shown.gather(0, top_images(Q[:, named], max(counts)))  # [n, named]
    everywhere = shown.mean(0).tolist()
    means = [top[:n].mean(0).tolist() for n in counts]
    rows = [
        (k, m, share, n, mean[place], everywhere[place])
        for place, (k, m) in enumerate(zip(named, chosen))
        for share, n, mean in zip(shares, counts, means)
    ]
    return pd.DataFrame(rows, columns=["unit", "label", "share", "images", "present", "all"])


def range_images(
    Q: Tensor, unit: int, share: float, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """Indices [n] of different images drawn from the `share` that activates the unit most, best first; Q [N,
    K].
    """
    if Q.ndim != 2 or not 0 <= unit < Q.shape[1]:
        raise ValueError(f"expected Q [N, K] and a unit from 0 to K - 1, got {list(Q.shape)} and {unit}")
    count = _count(share, len(Q))
    check_positive_int("n", n, count, f"the {count} images in the top {share:.3g} of {len(Q)}")
    device = generator.device if generator else None
    drawn = torch.randperm(count, generator=generator, device=device)[:n].sort().values
    return top_images(Q[:, unit : unit + 1], count)[drawn.to(Q.device), 0]


def head_weight(model: nn.Module, final: str, Q_inner: Tensor, Q_final: Tensor) -> Tensor | None:
    """Weights [C, K] from pooled inner units Q_inner [N, K] to the logits Q_final [N, C] of the linear layer
    `final`.

    A head that reads several positions of each unit (channels first) has its weights summed over them. None
    where the layer is not linear, or where these weights do not explain the logits (correlation below .8 for
    half the classes): then something else lies between.
    """
    head, K = get_layer(model, final), Q_inner.shape[1]
    if not isinstance(head, nn.Linear) or head.in_features % K or head.out_features != Q_final.shape[1]:
        return None
    weight = head.weight.detach().to(Q_inner.device).reshape(head.out_features, K, -1).sum(2)
    return weight if float(correlation(Q_inner @ weight.T, Q_final).quantile(0.5)) >= EXPLAINED else None


def contributions(Q: Tensor, weight: Tensor, predicted: Tensor) -> Tensor:
    """Activation times weight to the predicted class: Q [n, K], weight [C, K], predicted [n] classes -> [n,
    K].

    Q is the last inner layer's, pooled as the final layer reads it, and weight the final layer's: a row and
    the class's bias sum to its logit. Where the final layer reads p places of each unit (the microworld's
    four quarters), Q [n, K, p] and weight [C, K, p] are summed over them.
    """
    if Q.ndim not in (2, 3) or Q.shape[1:] != weight.shape[1:] or predicted.shape != Q.shape[:1]:
        raise ValueError(
            f"expected Q [n, K] or [n, K, p], weight [C, K] or [C, K, p] and predicted [n], got "
            f"{list(Q.shape)}, {list(weight.shape)} and {list(predicted.shape)}"
        )
    if len(predicted) and not 0 <= int(predicted.min()) <= int(predicted.max()) < len(weight):
        raise ValueError(
            f"predicted classes are from 0 to {len(weight) - 1}, got {int(predicted.min())} to "
            f"{int(predicted.max())}"
        )
    found = Q * weight[predicted]
    return found if found.ndim == 2 else found.flatten(2).sum(2)


def class_from_neuron(
    contribution: Tensor,
    labels: Sequence[str],
    classes: Sequence[str],
    encoders: Sequence[Encode],
    weights: Sequence[float] = (3, 1),
) -> Tensor:
    """Guess each image's class as the name nearest to the label of its largest contribution: [n, K] -> [n].

    CLIP-Dissect, appendix A.6; one label per unit. Nearness is the sum over `encoders` of weight x cosine, in
    the paper 3 x CLIP text + 1 x sentence encoder; ties go to the lower index. Chance is 1 / C, and a
    constant guess its share.
    """
    if contribution.ndim != 2 or contribution.shape[1] != len(labels) or not len(labels) or not len(classes):
        raise ValueError(
            f"expected contribution [n, K], one label per unit and at least one class, got "
            f"{list(contribution.shape)}, {len(labels)} labels and {len(classes)} classes"
        )
    if not bool(contribution.isfinite().all()):
        raise ValueError(
            "contributions must be finite to be ranked, got NaN or infinity; leave those images out"
        )
    if not 1 <= len(encoders) <= len(weights):
        raise ValueError(
            f"expected a weight for each encoder, got {len(encoders)} encoders and {len(weights)} weights"
        )
    used, unit = contribution.argmax(1).unique(return_inverse=True)
    said = [labels[k] for k in used.tolist()]
    near = sum(
        w * (encode(said) @ encode(list(classes)).T).double().cpu() for w, encode in zip(weights, encoders)
    )
    return near.argmax(1).to(contribution.device)[unit]


def _count(share: float, N: int) -> int:
    check_number("share", share, 0, 1)
    return max(1, round(share * N))
