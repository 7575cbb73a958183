"""The papers' tables of final-layer names: similarity functions, probing sets, CLIPs and prompts, beside what
was printed.

Setting         one choice of images, CLIP and prompt
image_sets      the whole probing set, the sets it joins, and smaller ones
settings        those worth comparing: one thing changed at a time
by_setting      accuracy, ranks and text cosines for every setting and similarity function
PUBLISHED       CLIP-Dissect's tables 2 and 3
with_published  by_setting's table with the printed values in the next columns

How good is a name? Rank of the true name, closeness of texts, and the oracle that knows what is in every
image.

rank_of_truth       accuracy, ranks and AUROC when the true name is among the concepts
name_similarity     cosine of predicted and true names, beside shuffled and constant labels
presence_oracle     correlation of every unit with the presence of every concept
against_oracle      how much of the oracle's correlation a method's labels reach

The smaller experiments on names: concepts the images lack, words in pairs, lower activations, a class from
one unit.

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import pandas as pd
import torch
from torch import nn, Tensor

from neuronym.activations import embed_concepts
from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import MEMORY, top_images
from neuronym.common.statistics import auroc, correlation, rank_of
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Clip
from neuronym.datasets.probe import part_names, Probe
from neuronym.evaluation.explanations import deal
from neuronym.hooks import get_layer
from neuronym.similarity.matrix import checked, FactoredMatrix
from neuronym.similarity.scores import score, SIMILARITIES, top_labels

RANK_IMAGES = 40  # rank_reorder orders the top 5 % of the images, which have to be two at least


@dataclass(frozen=True)
class Setting:
    """Images by CLIP against two concept sets, and the final layer's activations Q [N, C] on the same
    images.
    """

    probe: str
    clip: str
    template: str
    classes: FactoredMatrix  # P against the true names
    words: FactoredMatrix  # P against the concept set
    Q: Tensor


def image_sets(probe: Probe, sizes: Sequence[int] = ()) -> dict[str, Tensor]:
    """Rows of the images by the set's name: the whole, each set it joins, and `sizes` images spread evenly
    over it.

    Errors: ValueError for a size outside 1..N.
    """
    parts = part_names(probe.name)
    sets = {"+".join(parts): torch.arange(probe.N)}
    for part in parts if len(parts) > 1 else []:
        sets[part] = torch.tensor([i for i, id in enumerate(probe.ids) if id.startswith(f"{part}/")])
    for size in sizes:
        check_positive_int("size", size, probe.N, f"the {probe.N} images of '{probe.name}'")
        sets[f"{size} images"] = torch.tensor(evenly_spaced(size, probe.N))
    return {name: rows for name, rows in sets.items() if len(rows)}


def settings(
    Q: Tensor,
    sets: Mapping[str, Tensor],
    namers: Mapping[str, tuple[Clip, Tensor]],
    templates: Sequence[str],
    names: Sequence[str],
    words: Sequence[str],
) -> list[Setting]:
    """The first set, CLIP and template, and those that differ from it in one of the three.

    Q [N, C] of the final layer; `image_sets`; namers {name: (CLIP, I [N, d])}. Needs one unit for each name.
    """
    if Q.shape[1] != len(names):
        raise ValueError(
            f"true names are compared one for each unit, got {len(names)} names and Q {list(Q.shape)}"
        )
    first = next(iter(sets)), next(iter(namers)), templates[0]
    chosen = (
        [(s, first[1], first[2]) for s in sets]
        + [(first[0], c, first[2]) for c in list(namers)[1:]]
        + [(first[0], first[1], template) for template in templates[1:]]
    )
    found = []
    for image_set, namer, template in chosen:
        (clip, I), rows = namers[namer], sets[image_set].to(Q.device)
        P = (
            FactoredMatrix(I[rows], embed_concepts(clip, texts, template).to(Q.device))
            for texts in (names, words)
        )
        found.append(Setting(image_set, namer, template, *P, Q[rows]))
    return found


def by_setting(
    settings: Sequence[Setting],
    names: Sequence[str],
    words: Sequence[str],
    encoders: Mapping[str, Callable[[list[str]], Tensor]],
    similarities: Sequence[str] = tuple(SIMILARITIES),
    *,
    seed: int = 0,
    memory: int = MEMORY,
) -> pd.DataFrame:
    """One row for each setting and similarity function of final-layer units that are called `names`.

    Columns probe, clip, template, images, similarity; top1, top5, mean_rank, median_rank and auroc with the
    names as concept set; and for each encoder the mean cosine of the label found among `words` and the true
    name ("cosine_NAME"), of the same labels dealt to other units ("shuffled_NAME") and of the best single
    label ("constant_NAME").
    """
    rows = []
    for s in settings:
        for similarity in similarities:
            if similarity == "rank_reorder" and len(s.Q) < RANK_IMAGES:
                continue
            dice = torch.Generator().manual_seed(seed)
            ranks = rank_of_truth(
                score(s.classes, s.Q, similarity, memory=memory, generator=dice), names, names
            )
            labels = [
                words[i]
                for i in score(s.words, s.Q, similarity, memory=memory, generator=dice).argmax(1).tolist()
            ]
            row = {
                "probe": s.probe,
                "clip": s.clip,
                "template": s.template,
                "images": len(s.Q),
                "similarity": similarity,
                **{k: v for k, v in ranks.items() if k != "units"},
            }
            for name, encode in encoders.items():
                near = name_similarity(encode, labels, names, generator=torch.Generator().manual_seed(seed))
                row |= {f"{k}_{name}": v for k, v in near.items()}
            rows.append(row)
    return pd.DataFrame(rows)


_COLUMNS = ("cosine_clip", "cosine_mpnet", "top1", "top5", "mean_rank", "median_rank", "auroc")
_TABLE_3 = {  # ResNet-50, final layer; cosines with 20,000 words, the rest with the 1,000 class names
    "cos_similarity": {
        "cifar100_train": (0.6484, 0.2756, 0.086, 0.251, 53.94, 21, 0.5926),
        "broden": (0.6235, 0.2153, 0.057, 0.213, 63.92, 24, 0.5710),
        "imagenet_val": (0.6216, 0.2829, 0.159, 0.438, 22.56, 7, 0.4849),
        "imagenet_val+broden": (0.6421, 0.2587, 0.113, 0.346, 32.64, 11, 0.5003),
    },
    "rank_reorder": {
        "cifar100_train": (0.7227, 0.3247, 0.366, 0.675, 13.63, 3, 0.6338),
        "broden": (0.7471, 0.3856, 0.577, 0.837, 6.69, 1, 0.6853),
        "imagenet_val": (0.7832, 0.4911, 0.898, 0.986, 2.28, 1, 0.6434),
        "imagenet_val+broden": (0.7866, 0.5035, 0.899, 0.982, 2.12, 1, 0.5993),
    },
    "wpmi": {
        "cifar100_train": (0.7192, 0.3457, 0.240, 0.550, 20.46, 4, 0.6355),
        "broden": (0.7427, 0.3886, 0.471, 0.794, 7.58, 2, 0.7118),
        "imagenet_val": (0.7944, 0.5301, 0.869, 0.981, 2.00, 1, 0.7176),
        "imagenet_val+broden": (0.7930, 0.5266, 0.869, 0.981, 1.99, 1, 0.7270),
    },
    "soft_wpmi": {
        "cifar100_train": (0.7300, 0.3671, 0.463, 0.794, 8.61, 2, 0.6673),
        "broden": (0.7412, 0.3946, 0.707, 0.900, 4.80, 1, 0.7856),
        "imagenet_val": (0.7900, 0.5262, 0.955, 0.989, 1.18, 1, 0.9208),
        "imagenet_val+broden": (0.7900, 0.5239, 0.954, 0.990, 1.19, 1, 0.9166),
    },
}
PUBLISHED: dict[tuple[str, str, str], dict[str, float]] = {
    ("torchvision:resnet50", probe, similarity): dict(zip(_COLUMNS, values))
    for similarity, probes in _TABLE_3.items()
    for probe, values in probes.items()
} | {
    ("places365:resnet18", "broden", "soft_wpmi"): {
        "top1": 0.5805,
        "top5": 0.8614,
        "cosine_clip": 0.9106,
        "cosine_mpnet": 0.7024,
    }
}


def with_published(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """Columns "published_..." beside those that CLIP-Dissect printed for the target and probing set; none if
    it has none.

    They are of ViT-B/16, its text tower and mpnet, without a prompt; other settings have other values.
    """
    target = target.partition("@")[0]
    found = [
        PUBLISHED.get((target, probe, similarity), {})
        for probe, similarity in zip(table["probe"], table["similarity"])
    ]
    known = [c for c in _COLUMNS if any(c in row for row in found)]
    return table.assign(**{f"published_{c}": [row.get(c, float("nan")) for row in found] for c in known})


def rank_of_truth(scores: Tensor, concepts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Top-1 and top-5 accuracy (shares), mean and median rank (1 is best) of the true name, AUROC of the best
    score as a predictor of correctness (CLIP-Dissect, Table 3); scores [K, M], one true name per unit.

    Units whose name is not among the concepts are left out and counted (`units` says how many remain).
    """
    where = {c: i for i, c in reversed(list(enumerate(concepts)))}
    known = [k for k, name in enumerate(names) if name in where]
    if len(names) != len(scores):
        raise ValueError(
            f"expected one true name per unit, got {len(names)} names and scores {tuple(scores.shape)}"
        )
    if not known:
        raise ValueError(
            f"none of the {len(names)} true names is among the {len(concepts)} concepts, e.g. '{names[0]}'"
        )
    rows = scores[known]
    truth = torch.tensor([where[names[k]] for k in known], device=rows.device)
    rank = rank_of(rows, truth).double()
    return {
        "units": len(known),
        "top1": float((rank <= 1).double().mean()),
        "top5": float((rank <= 5).double().mean()),
        "mean_rank": float(rank.mean()),
        "median_rank": float(rank.median()),
        "auroc": auroc(rows.max(1).values, rank <= 1),
    }


def name_similarity(
    encode: Callable[[list[str]], Tensor],
    labels: Sequence[str],
    names: Sequence[str],
    *,
    generator: torch.Generator | None = None,
    shuffles: int = 20,
) -> dict[str, float]:
    """Mean cosine of predicted and true names in a text embedding (CLIP-Dissect, Table 1), with two controls.

    `encode` maps texts to unit rows. `shuffled`: the same labels dealt to other units (mean of `shuffles`
    deals); `constant`: the one label that would score best if every unit had it. A method is only as good as
    its distance to both.
    """
    if len(labels) != len(names):
        raise ValueError(f"expected one label per true name, got {len(labels)} and {len(names)}")
    said, true = encode(list(labels)), encode(list(names))
    deals = [deal(len(said), generator) for _ in range(shuffles)]
    shuffled = sum(float((said[deal.to(said.device)] * true).sum(1).mean()) for deal in deals) / shuffles
    return {
        "cosine": float((said * true).sum(1).mean()),
        "shuffled": shuffled,
        "constant": float((said @ true.mean(0)).max()),
    }


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
    memory: int = MEMORY,
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
    Q: Tensor,
    concepts: Sequence[str],
    scores: Tensor,
    words: int = 100,
    *,
    units: Sequence[int] | None = None,
    method: str = "soft_wpmi",
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
    **options,
) -> pd.DataFrame:
    """Labels of one or two words (CLIP-Dissect, figure 10): columns unit, single, single_score, phrase,
    score, pair.

    For each of `units` (all by default), the `words` best concepts by scores [K, M] and all ordered pairs of
    different ones, "w1 w2" (100 words: 9,900 pairs), each text once, are embedded and scored by the method
    against Q [N, K]; terms over units are over all K. `single` is the best concept, `phrase` the best text,
    `pair` whether it is none of the words; both scores are among these texts, and so comparable. I [N, d]
    unit rows of the same CLIP as `encode`. Errors: ValueError for more words than concepts, or one only.
    """
    if scores.ndim != 2 or len(scores) != Q.shape[1]:
        raise ValueError(
            f"expected scores [K, M] and Q [N, K] of the same units, got {list(scores.shape)} and "
            f"{list(Q.shape)}"
        )
    check_positive_int("words", words, len(concepts), f"M {len(concepts)} concepts")
    if words < 2:
        raise ValueError(f"phrases are pairs of words, got words {words}; pass at least 2")
    units = list(range(len(scores))) if units is None else [int(unit) for unit in units]
    rows = []
    for unit in units:
        if not 0 <= unit < len(scores):
            raise ValueError(f"units must be indices from 0 to {len(scores) - 1}, got {unit}")
        best = [concepts[m] for m in top_labels(scores[unit : unit + 1], concepts, words)[1][0].tolist()]
        texts = list(
            dict.fromkeys([*best, *(f"{first} {second}" for first, second in permutations(best, 2))])
        )
        found = score(
            FactoredMatrix(I, encode(texts).to(I.device, I.dtype)),
            Q,
            method,
            units=[unit],
            memory=memory,
            generator=generator,
            **options,
        )[0]
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
    return weight if float(correlation(Q_inner @ weight.T, Q_final).median()) >= EXPLAINED else None


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
