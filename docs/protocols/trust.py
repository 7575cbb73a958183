"""How likely is a name to be near? The study of docs/protocols/trust.md.

    python docs/protocols/trust.py resnet vit      # signals of every unit, minutes each
    python docs/protocols/trust.py fit             # tables, and the map data/trust/map.json
    python docs/protocols/trust.py untrained       # networks with random weights

Signals go to docs/results/data/trust_map/, where `fit` reads them.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import activations_and_embeddings, embed_concepts, image_embeddings
from neuronym.datasets.probe import load_probe
from neuronym.dissect import functions_for
from neuronym.evaluation.presence import true_presence
from neuronym.measurements import measure, Measurements
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.runs.folders import ROOT
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score
from neuronym.trust import stability
from neuronym.trust.probability import fit_map, kept, MAP, NEAR_SHARE, probability, QUICK, ratios
from neuronym.trust.signals import auroc_intervals, correctness, expected_calibration_error, SHARES

DATA = ROOT / "docs" / "results" / "data" / "trust_map"
NETWORKS, NAMERS = ("resnet", "vit"), ("combined_correlation", "soft_wpmi")
CANDIDATES = {"ratio": ("ratio",), "quick": QUICK, "all": (*QUICK, *SHARES)}
FEWER = (5000, 500, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=(*NETWORKS, "fit", "untrained"))
    DATA.mkdir(parents=True, exist_ok=True)
    for what in parser.parse_args().what:
        if what == "fit":
            tables()
        elif what == "untrained":
            untrained_networks()
        else:
            table = pd.concat([study(what), *(as_labelling(what, N) for N in FEWER)])
            table.to_csv(DATA / f"{what}.csv", index=False, float_format="%.5g")


def measured(network: str, probe: str = "microworld:5000", seed: int = 0) -> Measurements:
    images = load_probe(probe, seed=seed)
    return measure(f"microworld:{network}", "all", images, "microworld", "microworld", pool="auto")


def judged(network: str, layer: str, labels: Tensor, held: dict) -> pd.DataFrame:
    if network not in held:
        other = measured(network, "microworld:4000", seed=1)
        held[network] = other, true_presence(other.probe, other.concepts)
    other, truth = held[network]
    return correctness(labels.tolist(), truth, other.Q[layer], None, NEAR_SHARE)


def study(network: str) -> pd.DataFrame:
    """Every signal of every unit, by both namers, and whether the name is near."""
    data, judge, found = measured(network), {}, []
    naming, test = data.split(0.4)
    others = conditions(data, naming)
    for namer in NAMERS:
        for layer, q in naming.Q.items():
            label = score(naming.P, q, namer).argmax(1)
            of = {"bootstrap": stability.bootstrap_labels(naming.P, q, namer, draws=50).stability}
            of["halves"] = stability.halves(naming.P, q, namer)[0]
            same = [score(P, Q[layer], namer).argmax(1) == label for P, Q in others]
            of["conditions"] = torch.stack(same).double().mean(0)
            same = [score(naming.P, q, f).argmax(1) == label for f in functions_for(naming.N)]
            of["methods"] = torch.stack(same).double().mean(0)
            table = ratios(test.P, test.Q[layer], label).assign(**{k: x.numpy() for k, x in of.items()})
            rows = pd.concat([table, judged(network, layer, label, judge)], axis=1)
            found.append(described(rows, network, namer, layer, data, "study"))
            print(network, namer, layer, f"{rows['near'].mean():.3f} near", flush=True)
    return pd.concat(found)


def conditions(data: Measurements, naming: Measurements) -> list[tuple[FactoredMatrix, dict[str, Tensor]]]:
    """P and Q under noise, with another CLIP, and with two prompts."""
    rows, layers = torch.tensor(naming.row_numbers), list(data.layers.values())
    Q, I = activations_and_embeddings(
        stability.noisy_target(data.target), layers, stability.noisy_clip(data.clip), data.probe, data.pool
    )
    found = [(FactoredMatrix(I[rows], data.T), {layer: q[rows] for layer, q in Q.items()})]
    other = load_clip("microworld:vit")
    I, T = image_embeddings(other, data.probe), embed_concepts(other, data.concepts)
    found.append((FactoredMatrix(I[rows], T), naming.Q))
    for template in ("a {}", "a photo of a {}"):
        T = embed_concepts(data.clip, data.concepts, template)
        found.append((FactoredMatrix(naming.I, T), naming.Q))
    return found


def as_labelling(network: str, N: int) -> pd.DataFrame:
    """The quick signals of names from all N scenes, 40 % of which are looked at again."""
    data, judge, found = measured(network, f"microworld:{N}"), {}, []
    _, test = data.split(0.4)
    for layer, q in data.Q.items():
        label = score(data.P, q, NAMERS[0]).argmax(1)
        rows = pd.concat([ratios(test.P, test.Q[layer], label), judged(network, layer, label, judge)], axis=1)
        found.append(described(rows, network, NAMERS[0], layer, data, f"labelling, {N} scenes"))
    return pd.concat(found)


def described(rows: pd.DataFrame, network: str, namer: str, layer: str, data, setup: str) -> pd.DataFrame:
    place = "final" if layer == data.target.layers[-1] else "inner"
    first = {"network": network, "setup": setup, "namer": namer, "layer": layer, "place": place}
    return pd.concat([pd.DataFrame(first | {"unit": range(len(rows))}), rows], axis=1)


def tables() -> None:
    """Each candidate fitted to one network and tested on the other; the maps fitted to both."""
    every = pd.concat([pd.read_csv(DATA / f"{network}.csv") for network in NETWORKS])
    studied, rows = every[every["setup"] == "study"], []
    for network in NETWORKS:
        fitted_to = studied[studied["network"] != network]
        maps = {name: fit_map(fitted_to, fitted_to["near"], of) for name, of in CANDIDATES.items()}
        for (setup, namer), part in every[every["network"] == network].groupby(["setup", "namer"]):
            part = part[part["place"] == "inner"]
            trust = {"today": part[list(SHARES)].mean(axis=1)} if setup == "study" else {}
            names = CANDIDATES if setup == "study" else ("ratio", "quick")
            trust |= {name: probability(part, maps[name]) for name in names}
            table = auroc_intervals(pd.DataFrame(trust, index=part.index), part["near"].to_numpy())
            ece = [expected_calibration_error(np.asarray(trust[n]), part["near"]) for n in table["trust"]]
            keep = [kept(trust[n], 0.9) for n in table["trust"]]
            good = [part["near"].to_numpy()[k].mean() if k.any() else np.nan for k in keep]
            known = {"tested_on": network, "setup": setup, "namer": namer}
            rows.append(table.assign(**known, ece=ece, kept=[k.mean() for k in keep], near_of_kept=good))
    first = ["tested_on", "setup", "namer", "trust", "units", "right", "auroc", "low", "high", "ece"]
    table = pd.concat(rows)[[*first, "kept", "near_of_kept"]]
    table.to_csv(DATA / "tests.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))
    own = table[(table["setup"] == "study") & (table["namer"] == NAMERS[0])]
    means = own.groupby("trust")["auroc"].mean()
    print(means, "\nthe notebook trust uses", "all" if means["all"] > means["quick"] + 0.01 else "quick")
    source = (
        "docs/protocols/trust.py fit: logistic regression of near names on signals, all layers of "
        "microworld:resnet and microworld:vit, names by "
        + " and ".join(NAMERS)
        + ", 3,000 scenes, judged on 4,000 others"
    )
    maps = {
        name: {"source": source} | fit_map(studied, studied["near"], of) for name, of in CANDIDATES.items()
    }
    MAP.parent.mkdir(exist_ok=True)
    MAP.write_text(json.dumps(maps, indent=1) + "\n", encoding="utf-8")


def untrained_networks() -> None:
    """Share of units that stand out from the same network with shuffled weights."""
    from neuronym.trust.untrained import standing_out

    rows = []
    names = [f"torchvision:resnet18@random:{seed}" for seed in range(5)]
    names += [
        f"torchvision:{n}@random:0" for n in ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
    ]
    for name in ["microworld:resnet", "microworld:vit", *names]:
        target = load_target(name)
        data = measure(target, list(target.layers), "microworld:500", "microworld", "microworld", pool="auto")
        for layer, share in standing_out(data).items():
            rows.append({"network": name, "layer": layer, "units": data.sizes[layer], "stand_out": share})
        print(pd.DataFrame(rows[-len(data.Q) :]).to_string(index=False), flush=True)
    pd.DataFrame(rows).to_csv(DATA / "untrained.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
