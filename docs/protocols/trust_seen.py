"""How likely is a name to be near that has seen all images? The study of trust_seen.md.

    python docs/protocols/trust_seen.py resnet vit     # signals of every unit, a minute each
    python docs/protocols/trust_seen.py resnet+ vit+   # the same with the other CLIP
    python docs/protocols/trust_seen.py photos FOLDER  # the same of 1,000 ImageNet photos, a class each
    python docs/protocols/trust_seen.py marked         # the shipped map on a third network
    python docs/protocols/trust_seen.py fit            # tables, and the map `evidence` of data/trust/map.json

Signals go to results/trust_seen/, where `fit` reads them; its table goes to docs/results/data/trust_map/.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from trust import DATA, measured, NAMERS, NETWORKS

from neuronym.common.statistics import wilson
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe
from neuronym.evaluation.presence import true_presence
from neuronym.measurements import measure, Measurements
from neuronym.models.sentences import load_sentence_encoder
from neuronym.runs.folders import results_dir
from neuronym.similarity.scores import score
from neuronym.trust.probability import (
    EVIDENCE,
    evidence,
    fit_map,
    kept,
    MAP,
    NEAR_SHARE,
    probability,
    ratios,
    shipped,
)
from neuronym.trust.signals import auroc_intervals, correctness, expected_calibration_error

TODAY = ("today_ratio", "today_soft_ratio", "today_foreseen")
HONEST = ("same", "honest_ratio", "honest_soft_ratio", "honest_foreseen", "images", "few")
CANDIDATES = {
    "today": TODAY,
    "honest": HONEST,
    "ratios": EVIDENCE[1:],
    "evidence": EVIDENCE,
    "both": (*EVIDENCE, *HONEST[:4]),
}
SIZES = {5000: 1, 1000: 1, 500: 1, 200: 1, 100: 2, 50: 2, 20: 4}  # scenes, and how often they are drawn
REPORTED = (5000, 500, 100)
THIRD = {5000: 1, 500: 2, 100: 4, 20: 4}
FIRST = ["network", "clip", "concepts", "namer", "scenes", "draw", "layer", "place", "unit"]
SETUP = ["clip", "concepts", "namer", "scenes"]
MEASURED = ["units", "right", "auroc", "low", "high", "ece", "kept", "near_of_kept"]
NEAR_COSINE = 0.6  # MiniLM, of a word and the true class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", help="resnet, vit, resnet+, vit+, photos FOLDER, marked or fit")
    what = parser.parse_args().what
    _file("").parent.mkdir(parents=True, exist_ok=True)
    if what[0] == "photos":
        found = photos(Path(what[1]))
        found.to_csv(_file("photos"), index=False, float_format="%.4g")
        return
    for name in what:
        if name == "fit":
            tables()
        elif name == "marked":
            third_network()
        else:
            study(name).to_csv(_file(name), index=False, float_format="%.4g")


def _file(name: str) -> Path:
    return results_dir() / "trust_seen" / f"{name.replace('+', '_other_clip')}.csv"


def study(name: str) -> pd.DataFrame:
    """Signals and truth of every unit: all sizes with the CLIP and concepts of labelling, two with others."""
    network, other = name.removesuffix("+"), name.endswith("+")
    clip = "microworld:vit" if other else "microworld"
    scenes = load_probe("microworld:5000", seed=0)
    data = measure(f"microworld:{network}", "all", scenes, clip, "microworld", pool="auto")
    held, found, two = {}, [], {5000: 1, 500: 1}
    found += of_concepts(network, data, "all", range(len(data.concepts)), two if other else SIZES, held)
    atoms = set(load_concepts("microworld:atoms"))
    for kind, keep in () if other else (("single words", True), ("pairs", False)):
        some = [i for i, word in enumerate(data.concepts) if (word in atoms) == keep]
        found += of_concepts(network, data, kind, some, two, held)
    return pd.concat(found, ignore_index=True)


def of_concepts(
    network: str, data: Measurements, name: str, words: list[int], sizes: dict[int, int], held: dict
) -> list[pd.DataFrame]:
    found, whole = [], replace(data, T=data.T[list(words)], concepts=[data.concepts[i] for i in words])
    for N, draws in sizes.items():
        for draw in range(draws):
            dice = torch.Generator().manual_seed(100 * N + draw)
            part = (
                whole if N == data.N else whole.rows(torch.randperm(data.N, generator=dice)[:N].sort().values)
            )
            for namer in NAMERS if N in REPORTED and draw == 0 else NAMERS[:1]:
                for layer in part.Q:
                    table, label = signals_of(part, layer, namer)
                    near = judged_among(network, layer, label, list(words), held)
                    place = "final" if layer == data.target.layers[-1] else "inner"
                    first = (network, data.clip.name, name, namer, N, draw, layer, place)
                    known = dict(zip(FIRST, first)) | {"unit": range(len(table))}
                    found.append(pd.concat([pd.DataFrame(known), table, near], axis=1))
            print(network, data.clip.name, name, N, draw, flush=True)
    return found


def signals_of(part: Measurements, layer: str, namer: str) -> tuple[pd.DataFrame, Tensor]:
    """Signals of the labels that all images of a part give to a layer, and the labels."""
    q, (naming, test) = part.Q[layer], part.split(0.4)
    label = score(part.P, q, namer).argmax(1)
    before = score(naming.P, naming.Q[layer], namer).argmax(1)
    today = ratios(test.P, test.Q[layer], label).add_prefix("today_")
    honest = ratios(test.P, test.Q[layer], before).add_prefix("honest_")
    table = pd.concat([evidence(part.P, q, label), today, honest], axis=1)
    return table.assign(same=(before == label).numpy().astype(float)), label


def judged_among(network: str, layer: str, label: Tensor, words: list[int], held: dict) -> pd.DataFrame:
    """Near among these concepts, on 4,000 scenes of seed 1."""
    if not held:
        other = measured(network, "microworld:4000", seed=1)
        held |= {"Q": other.Q, "truth": true_presence(other.probe, other.concepts)}
    return correctness(label.tolist(), held["truth"][:, words], held["Q"][layer], None, NEAR_SHARE)[["near"]]


def photos(folder: Path) -> pd.DataFrame:
    """Final units of efficientnet_lite0, named from 1,000 photos by class names and by English words."""
    found = []
    for concepts in ("imagenet", "english:10000"):
        images = load_probe(f"folder:{folder}")
        data = measure("efficientnet_lite0", "_fc", images, "conse:efficientnet_lite2", concepts, pool="auto")
        for namer in NAMERS:
            table, label = signals_of(data, "_fc", namer)
            said = [data.concepts[i] for i in label.tolist()]
            if concepts == "imagenet":
                near = np.array([a == b for a, b in zip(said, data.classes)])
            else:
                encode = load_sentence_encoder("minilm").encode
                near = (encode(said) * encode(list(data.classes))).sum(1).numpy() >= NEAR_COSINE
            known = dict(
                zip(FIRST, ("efficientnet_lite0", data.clip.name, concepts, namer, data.N, 0, "_fc", "final"))
            )
            rows = pd.concat([pd.DataFrame(known | {"unit": range(len(table))}), table], axis=1)
            found.append(rows.assign(near=near))
    return pd.concat(found, ignore_index=True)


def third_network() -> None:
    """The shipped map as it is, on a network that it was not fitted to."""
    data = measured("marked")
    found = of_concepts("marked", data, "all", range(len(data.concepts)), THIRD, {})
    table = pd.concat([some for some in found if (some["place"] == "inner").all()], ignore_index=True)
    usual = table[table["namer"] == NAMERS[0]]
    rows = pd.concat(tested(usual, {"evidence": shipped("evidence")}, "marked"))
    some = rows["kept"] > 0
    kept_names = (rows["kept"] * rows["units"]).round()
    bounds = wilson(rows["near_of_kept"][some], kept_names[some])
    rows.loc[some, ["near_low", "near_high"]] = np.stack(bounds, 1)
    rows = rows[["tested_on", "scenes", "trust", *MEASURED, "near_low", "near_high"]]
    rows.to_csv(DATA / "third_network.csv", index=False, float_format="%.4g")
    print(rows.round(3).to_string(index=False))


def fitted(table: pd.DataFrame) -> dict[str, dict]:
    """The candidates' maps; every size and namer has the same weight, as each has its rows repeated."""
    sizes = table.groupby(["network", "scenes", "namer"])["near"].transform("size")
    times = (sizes.max() / sizes).round().astype(int)
    even = table.loc[table.index.repeat(times)]
    return {name: fit_map(even, even["near"], of) for name, of in CANDIDATES.items()}


def tables() -> None:
    """Each candidate fitted to one network and tested on the other, and on photos; the map of both."""
    files = [_file(name) for name in (*NETWORKS, *(f"{network}+" for network in NETWORKS))]
    every = pd.concat([pd.read_csv(file) for file in files if file.exists()], ignore_index=True)
    usual = every[(every["clip"] == every["clip"].iloc[0]) & (every["concepts"] == "all")]
    rows = []
    for network in NETWORKS:
        part = every[(every["network"] == network) & (every["place"] == "inner")]
        part = part[part["scenes"].isin((*REPORTED, 20))]
        rows += tested(part, fitted(usual[usual["network"] != network]), network)
    maps = fitted(usual)
    if _file("photos").exists():
        rows += tested(pd.read_csv(_file("photos")), maps, "photos")
    table = pd.concat(rows)[["tested_on", *SETUP, "trust", *MEASURED]]
    table.to_csv(DATA / "seen_tests.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))
    known = json.loads(MAP.read_text(encoding="utf-8"))
    source = (
        "docs/protocols/trust_seen.py fit: logistic regression of near names on signals of the images that "
        "gave them, 20 to 5,000 scenes, all layers of microworld:resnet and microworld:vit, names by "
        + " and ".join(NAMERS)
        + ", judged on 4,000 other scenes"
    )
    known["evidence"] = {"source": source} | maps["evidence"]
    MAP.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def tested(table: pd.DataFrame, maps: dict[str, dict], on: str) -> list[pd.DataFrame]:
    """AUROC with intervals, calibration and names kept of each map, for each set-up of the table."""
    found = []
    for known, part in table.groupby(SETUP, sort=False):
        trust = pd.DataFrame({name: probability(part, by) for name, by in maps.items()})
        near = part["near"].to_numpy().astype(bool)
        rows = auroc_intervals(trust, near, draws=500)
        rows["ece"] = [expected_calibration_error(trust[name].to_numpy(), near) for name in rows["trust"]]
        keep = [kept(trust[name], 0.9) for name in rows["trust"]]
        rows["kept"] = [k.mean() for k in keep]
        rows["near_of_kept"] = [near[k].mean() if k.any() else np.nan for k in keep]
        found.append(rows.assign(tested_on=on, **dict(zip(SETUP, known))))
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
