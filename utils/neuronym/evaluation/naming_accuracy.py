"""How often is the true name found? Rank and closeness of names of final-layer units, as in CLIP-Dissect's
tables.

rank_of_truth     accuracy, ranks and AUROC where the true name is among the concepts
name_similarity   cosine of predicted and true names, beside shuffled and constant labels
Setting           one choice of images, CLIP, prompt and concept set
image_sets        the whole probing set, the sets it joins, and smaller ones
settings          those worth comparing: one thing changed at a time
each_once         an encoder that remembers what it has read
by_setting        both measures for every setting and similarity function
printed_accuracy  CLIP-Dissect's tables 1, 2 and 3
setting_names     what a row of by_setting changes
with_published    by_setting's table with the printed values in the next columns

N images, K units, M concepts, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common.checks import check_positive_int
from neuronym.common.memory import MEMORY
from neuronym.common.statistics import auroc, rank_of
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Clip
from neuronym.datasets.probe import Probe
from neuronym.datasets.probe_sets import part_names
from neuronym.evaluation.explanations import deal
from neuronym.published.values import printed
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import layer_options, score, SIMILARITIES

CLASS_NAMES = "class names"  # where they are the concept set, in data/published
RANK_IMAGES = 40  # rank_reorder orders the top 5 % of the images, which have to be two at least


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
        "median_rank": float(rank.quantile(0.5)),
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


@dataclass(frozen=True)
class Setting:
    """Images by CLIP against the true names and a concept set, and the final layer's activations Q [N, C] on
    the same images.
    """

    probe: str
    clip: str
    template: str
    concepts: str
    classes: FactoredMatrix  # P against the true names
    words: FactoredMatrix  # P against the concept set
    texts: Sequence[str]  # of the concept set
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
    concepts: Mapping[str, Sequence[str]],
) -> list[Setting]:
    """The first images, CLIP, template and concept set, and those that differ from it in one of the four.

    Q [N, C] of the final layer; `image_sets`; namers {name: (CLIP, I [N, d])}; concepts {name: texts}. Needs
    one unit for each name.
    """
    if Q.shape[1] != len(names):
        raise ValueError(
            f"true names are compared one for each unit, got {len(names)} names and Q {list(Q.shape)}"
        )
    choices = list(sets), list(namers), list(templates), list(concepts)
    first = tuple(choice[0] for choice in choices)
    chosen = [first]
    for place, choice in enumerate(choices):
        chosen += [(*first[:place], other, *first[place + 1 :]) for other in choice[1:]]
    found = []
    for image_set, namer, template, words in chosen:
        (clip, I), rows = namers[namer], sets[image_set].to(Q.device)
        P = (
            FactoredMatrix(I[rows], embed_concepts(clip, list(texts), template).to(Q.device))
            for texts in (names, concepts[words])
        )
        found.append(Setting(image_set, namer, template, words, *P, concepts[words], Q[rows]))
    return found


def each_once(encode: Callable[[list[str]], Tensor]) -> Callable[[Sequence[str]], Tensor]:
    """An encoder of texts that reads each text once: settings share most of their labels and all names."""
    rows: dict[str, Tensor] = {}

    def remembered(texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        rows.update(zip(new, encode(new)) if new else ())
        return torch.stack([rows[text] for text in texts])

    return remembered


def by_setting(
    settings: Sequence[Setting],
    names: Sequence[str],
    encoders: Mapping[str, Callable[[list[str]], Tensor]],
    similarities: Sequence[str] = tuple(SIMILARITIES),
    *,
    seed: int = 0,
    memory: int = MEMORY,
) -> pd.DataFrame:
    """One row for each setting and similarity function of final-layer units that are called `names`.

    Columns probe, clip, template, concepts, images, similarity; top1, top5, mean_rank, median_rank and auroc
    with the names as concept set; units_in_set, set_top1 and set_top5 with the setting's own concept set, of
    the units whose name is in it ("church, outdoor" is "church-outdoor"; nan where none is); and for each
    encoder the mean cosine of the label found in that set and the true name ("cosine_NAME"), of the same
    labels dealt to other units ("shuffled_NAME") and of the best single label ("constant_NAME").
    """
    rows, encoders = [], {name: each_once(encode) for name, encode in encoders.items()}
    for s in settings:
        for similarity in similarities:
            if similarity == "rank_reorder" and len(s.Q) < RANK_IMAGES:
                continue
            dice = torch.Generator().manual_seed(seed)
            given = {"memory": memory, "generator": dice} | layer_options(similarity, final=True)
            ranks = rank_of_truth(score(s.classes, s.Q, similarity, **given), names, names)
            of_set = score(s.words, s.Q, similarity, **given)
            labels = [s.texts[i] for i in of_set.argmax(1).tolist()]
            row = {
                "probe": s.probe,
                "clip": s.clip,
                "template": s.template,
                "concepts": s.concepts,
                "images": len(s.Q),
                "similarity": similarity,
                **{k: v for k, v in ranks.items() if k != "units"},
                **_in_set(of_set, s.texts, names),
            }
            for name, encode in encoders.items():
                near = name_similarity(encode, labels, names, generator=torch.Generator().manual_seed(seed))
                row |= {f"{k}_{name}": v for k, v in near.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _in_set(scores: Tensor, texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Accuracy of the units whose true name is among the texts, however its words are joined."""
    plain = [[re.sub(r"[\W_]+", " ", text).strip() for text in some] for some in (texts, names)]
    if not set(plain[0]) & set(plain[1]):
        return {"units_in_set": 0, "set_top1": float("nan"), "set_top5": float("nan")}
    found = rank_of_truth(scores, *plain)
    return {"units_in_set": found["units"], "set_top1": found["top1"], "set_top5": found["top5"]}


_COLUMNS = (
    "cosine_clip",
    "cosine_mpnet",
    "top1",
    "top5",
    "mean_rank",
    "median_rank",
    "auroc",
    "set_top1",
    "set_top5",
)
_ALIKE = {"english:20000": "20k", "english:10000": "10k", "english:3000": "3k"}  # theirs are other lists


def printed_accuracy() -> dict[tuple[str, str, str, str], dict[str, float]]:
    """(target, probe, similarity, concept set) -> what CLIP-Dissect printed: table 1 by concept set, table 2
    of Places365 among Broden's labels, table 3 with 20,000 words and with the class names.

    The concept set of the latter is CLASS_NAMES.
    """
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in printed("name_accuracy").itertuples():
        where = (row.target, row.probe, row.similarity, row.concepts)
        found.setdefault(where, {})[row.quantity] = row.value
    return found


def setting_names(table: pd.DataFrame, all_images: str, clip: str, concepts: str = "") -> pd.Series:
    """What each row of `by_setting` changes: images, CLIP, prompt or concept set; "all, bare names" for
    none.
    """
    changed = table["probe"].where(table["probe"] != all_images, "")
    changed += table["clip"].where(table["clip"] != clip, "")
    changed += table["template"].where(table["template"] != "{}", "")
    changed += table["concepts"].where(table["concepts"] != concepts, "")
    return changed.replace("", "all, bare names")


def with_published(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """Columns "published_..." beside those that CLIP-Dissect printed for the target, probing set and concept
    set; none if it has none.

    They are of ViT-B/16, its text tower and mpnet, without a prompt; other settings have other values.
    """
    target = target.partition("@")[0]
    theirs, found = printed_accuracy(), []
    for row in table[["probe", "similarity", "concepts"]].itertuples(index=False):
        own = Path(row.concepts).stem if row.concepts.startswith("file:") else row.concepts
        here = theirs.get((target, row.probe, row.similarity, CLASS_NAMES), {})
        of_set = theirs.get((target, row.probe, row.similarity, _ALIKE.get(own, own)), {})
        found.append(here | of_set)
    known = [c for c in _COLUMNS if any(c in row for row in found)]
    return table.assign(**{f"published_{c}": [row.get(c, float("nan")) for row in found] for c in known})
