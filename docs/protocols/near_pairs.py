"""Can near pairs of photos stand in for scenes that differ in one attribute? The study of near_pairs.md.

    python docs/protocols/near_pairs.py microworld       # AUROC of near names; also --renderer, minutes
    python docs/protocols/near_pairs.py photos FOLDER    # in how many words nearest photos differ

Tables go to docs/results/data/trust_map/.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from trust import DATA, judged, measured, NAMERS, NETWORKS

from neuronym.activations import image_embeddings, unit_activations
from neuronym.common.statistics import cross_correlation
from neuronym.datasets.probe import load_probe
from neuronym.describe.counting import mentions, phrases
from neuronym.evaluation.presence import true_presence
from neuronym.microworld.world import caption
from neuronym.models.clips import load_clip
from neuronym.similarity.scores import score
from neuronym.trust.counterfactual import causal_scores, changes, drawn_scenes, pairs
from neuronym.trust.probability import probability, ratios
from neuronym.trust.signals import auroc_intervals

OTHER = "microworld:vit"  # the CLIP that pairs: names are by the other one
AGREED = 2  # captions of a photo that say a word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("microworld", "photos"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--renderer", action="store_true", help="beside scenes changed in one attribute")
    given = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    if given.what == "microworld":
        table = pd.concat([study(network, given.renderer) for network in NETWORKS])
        table.to_csv(DATA / "near_pairs.csv", index=False, float_format="%.4g")
    else:
        table = photos(Path(given.folder))
        table.to_csv(DATA / "near_photos.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))


def nearest(I: Tensor) -> Tensor:
    """The most alike other image of each: I [n, d] unit rows -> [n]."""
    return (I @ I.T).fill_diagonal_(-2).argmax(1)


def changed(Q: Tensor, C: Tensor, to: Tensor) -> Tensor:
    """Causal scores [K, M] of pairs (i, to_i): activations Q [n, K], presence C [n, M]."""
    C = C.double()
    return causal_scores(Q[to] - Q, C[to] - C)


def study(network: str, renderer: bool = False) -> pd.DataFrame:
    """AUROC of near names by every score, inner layers."""
    data = measured(network)
    naming, test = data.split(0.4)
    scenes = [test.probe.scene(i) for i in range(test.N)]
    said = mentions([caption(one, i % 5) for i, one in enumerate(scenes)], test.concepts)
    true = true_presence(test.probe, test.concepts)
    to = nearest(image_embeddings(load_clip(OTHER), data.probe)[list(test.row_numbers)])
    dealt = torch.randperm(test.N, generator=torch.Generator().manual_seed(0))
    if renderer:
        drawn = pairs(400)
        rendered, rows = drawn_scenes([*drawn.before, *drawn.after])
        moved = unit_activations(data.target, rendered, list(data.layers.values()), data.pool)
    held, parts = {}, []
    for layer in list(data.Q)[:-1]:
        q = test.Q[layer]
        label = score(naming.P, naming.Q[layer], NAMERS[0]).argmax(1)
        scores = {
            "near pairs": changed(q, said, to),
            "near pairs, true": changed(q, true, to),
            "random pairs": changed(q, said, dealt),
            "random pairs, true": changed(q, true, dealt),
            "mention": cross_correlation(q, said),
        }
        if renderer:
            scores["renderer"] = causal_scores(*changes(drawn, moved[layer], rows, data.concepts))
        names = [data.concepts[i] for i in label.tolist()]
        columns = {name: x.gather(1, label[:, None])[:, 0].numpy() for name, x in scores.items()}
        columns["trust"] = probability(ratios(test.P, q, label))
        near = judged(network, layer, label, held)["near"].to_numpy()
        parts.append(pd.DataFrame(columns).assign(near=near, label=names))
        print(network, layer, flush=True)
    table = pd.concat(parts, ignore_index=True)
    found = auroc_intervals(table.drop(columns=["near", "label"]), table["near"].to_numpy())
    return found.rename(columns={"trust": "score"}).assign(network=network)


def photos(folder: Path) -> pd.DataFrame:
    """In how many words nearest and random pairs of photos differ."""
    said: dict[str, list[str]] = {}
    with open(folder / "captions.txt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            said.setdefault(row["image"], []).append(row["caption"])
    probe = load_probe(f"folder:{folder}")
    words = []
    for name in probe.ids:
        counted = Counter(key for text in said[Path(name).name] for key in phrases(text) if len(key) == 1)
        words.append({key for key, n in counted.items() if n >= AGREED})
    to = nearest(image_embeddings(load_clip("conse:efficientnet_lite2"), probe)).tolist()
    dealt = torch.randperm(probe.N, generator=torch.Generator().manual_seed(0)).tolist()
    rows = []
    for kind, other in (("nearest", to), ("random", dealt)):
        apart = pd.Series([len(words[i] ^ words[j]) for i, j in enumerate(other) if i != j])
        shares = {f"at most {n}": (apart <= n).mean() for n in (1, 2, 3)}
        rows.append({"pairs": kind, "photos": len(apart), "median": apart.median(), **shares})
    return pd.DataFrame(rows).assign(words=sum(map(len, words)) / probe.N)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
