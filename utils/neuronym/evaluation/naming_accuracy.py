"""The papers' tables of final-layer names: similarity functions, probing sets, CLIPs and prompts, beside what was printed.

Setting         one choice of images, CLIP and prompt
image_sets      the whole probing set, the sets it joins, and smaller ones
settings        those worth comparing: one thing changed at a time
by_setting      accuracy, ranks and text cosines for every setting and similarity function
PUBLISHED       CLIP-Dissect's tables 2 and 3
with_published  by_setting's table with the printed values in the next columns
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.blocks import Embedded, MEMORY, whole
from neuronym.datasets.concepts import embed_concepts
from neuronym.datasets.probe import Probe
from neuronym.datasets.probe_sets import part_names
from neuronym.evaluation.evaluate import name_similarity, rank_of_truth
from neuronym.models.clips import Clip
from neuronym.similarity.similarity import score, SIMILARITIES

RANK_IMAGES = 40  # rank_reorder orders the top 5 % of the images, which have to be two at least


@dataclass(frozen=True)
class Setting:
    """Images by CLIP against two concept sets, and the final layer's activations Q [N, C] on the same images."""

    probe: str
    clip: str
    template: str
    classes: Embedded   # P against the true names
    words: Embedded     # P against the concept set
    Q: Tensor


def image_sets(probe: Probe, sizes: Sequence[int] = ()) -> dict[str, Tensor]:
    """Rows of the images by the set's name: the whole, each set it joins, and `sizes` images spread evenly over it.

    Errors: ValueError for a size outside 1..N.
    """
    parts = part_names(probe.name)
    sets = {"+".join(parts): torch.arange(probe.N)}
    for part in parts if len(parts) > 1 else []:
        sets[part] = torch.tensor([i for i, id in enumerate(probe.ids) if id.startswith(f"{part}/")])
    for size in sizes:
        whole("size", size, probe.N, f"the {probe.N} images of '{probe.name}'")
        sets[f"{size} images"] = torch.arange(size) * probe.N // size
    return {name: rows for name, rows in sets.items() if len(rows)}


def settings(Q: Tensor, sets: Mapping[str, Tensor], namers: Mapping[str, tuple[Clip, Tensor]], templates: Sequence[str],
             names: Sequence[str], words: Sequence[str]) -> list[Setting]:
    """The first set, CLIP and template, and those that differ from it in one of the three.

    Q [N, C] of the final layer; `image_sets`; namers {name: (CLIP, I [N, d])}. Needs one unit for each name.
    """
    if Q.shape[1] != len(names):
        raise ValueError(f"true names are compared one for each unit, got {len(names)} names and Q {list(Q.shape)}")
    first = next(iter(sets)), next(iter(namers)), templates[0]
    chosen = [(s, first[1], first[2]) for s in sets] + [(first[0], c, first[2]) for c in list(namers)[1:]] + [
        (first[0], first[1], template) for template in templates[1:]]
    found = []
    for image_set, namer, template in chosen:
        (clip, I), rows = namers[namer], sets[image_set].to(Q.device)
        P = (Embedded(I[rows], embed_concepts(clip, texts, template).to(Q.device)) for texts in (names, words))
        found.append(Setting(image_set, namer, template, *P, Q[rows]))
    return found


def by_setting(settings: Sequence[Setting], names: Sequence[str], words: Sequence[str],
               encoders: Mapping[str, Callable[[list[str]], Tensor]], similarities: Sequence[str] = tuple(SIMILARITIES), *,
               seed: int = 0, memory: int = MEMORY) -> pd.DataFrame:
    """One row for each setting and similarity function of final-layer units that are called `names`.

    Columns probe, clip, template, images, similarity; top1, top5, mean_rank, median_rank and auroc with the names as
    concept set; and for each encoder the mean cosine of the label found among `words` and the true name ("cosine_NAME"),
    of the same labels dealt to other units ("shuffled_NAME") and of the best single label ("constant_NAME").
    """
    rows = []
    for s in settings:
        for similarity in similarities:
            if similarity == "rank_reorder" and len(s.Q) < RANK_IMAGES:
                continue
            dice = torch.Generator().manual_seed(seed)
            ranks = rank_of_truth(score(s.classes, s.Q, similarity, memory=memory, generator=dice), names, names)
            labels = [words[i] for i in score(s.words, s.Q, similarity, memory=memory, generator=dice).argmax(1).tolist()]
            row = {"probe": s.probe, "clip": s.clip, "template": s.template, "images": len(s.Q), "similarity": similarity,
                   **{k: v for k, v in ranks.items() if k != "units"}}
            for name, encode in encoders.items():
                near = name_similarity(encode, labels, names, generator=torch.Generator().manual_seed(seed))
                row |= {f"{k}_{name}": v for k, v in near.items()}
            rows.append(row)
    return pd.DataFrame(rows)


_COLUMNS = ("cosine_clip", "cosine_mpnet", "top1", "top5", "mean_rank", "median_rank", "auroc")
_TABLE_3 = {  # ResNet-50, final layer; cosines with 20,000 words, the rest with the 1,000 class names
    "cos_similarity": {"cifar100_train": (.6484, .2756, .086, .251, 53.94, 21, .5926),
                       "broden": (.6235, .2153, .057, .213, 63.92, 24, .5710),
                       "imagenet_val": (.6216, .2829, .159, .438, 22.56, 7, .4849),
                       "imagenet_val+broden": (.6421, .2587, .113, .346, 32.64, 11, .5003)},
    "rank_reorder": {"cifar100_train": (.7227, .3247, .366, .675, 13.63, 3, .6338),
                     "broden": (.7471, .3856, .577, .837, 6.69, 1, .6853),
                     "imagenet_val": (.7832, .4911, .898, .986, 2.28, 1, .6434),
                     "imagenet_val+broden": (.7866, .5035, .899, .982, 2.12, 1, .5993)},
    "wpmi": {"cifar100_train": (.7192, .3457, .240, .550, 20.46, 4, .6355),
             "broden": (.7427, .3886, .471, .794, 7.58, 2, .7118),
             "imagenet_val": (.7944, .5301, .869, .981, 2.00, 1, .7176),
             "imagenet_val+broden": (.7930, .5266, .869, .981, 1.99, 1, .7270)},
    "soft_wpmi": {"cifar100_train": (.7300, .3671, .463, .794, 8.61, 2, .6673),
                  "broden": (.7412, .3946, .707, .900, 4.80, 1, .7856),
                  "imagenet_val": (.7900, .5262, .955, .989, 1.18, 1, .9208),
                  "imagenet_val+broden": (.7900, .5239, .954, .990, 1.19, 1, .9166)}}
PUBLISHED: dict[tuple[str, str, str], dict[str, float]] = {
    ("torchvision:resnet50", probe, similarity): dict(zip(_COLUMNS, values))
    for similarity, probes in _TABLE_3.items() for probe, values in probes.items()} | {
    ("places365:resnet18", "broden", "soft_wpmi"): {"top1": .5805, "top5": .8614, "cosine_clip": .9106, "cosine_mpnet": .7024}}


def with_published(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """Columns "published_..." beside those that CLIP-Dissect printed for the target and probing set; none if it has none.

    They are of ViT-B/16, its text tower and mpnet, without a prompt; other settings have other values.
    """
    target = target.partition("@")[0]
    found = [PUBLISHED.get((target, probe, similarity), {}) for probe, similarity in zip(table["probe"], table["similarity"])]
    known = [c for c in _COLUMNS if any(c in row for row in found)]
    return table.assign(**{f"published_{c}": [row.get(c, float("nan")) for row in found] for c in known})
