"""Has the network learned anything? The study of untrained.md.

    python docs/protocols/untrained.py           # minutes; goes on where it was stopped
    python docs/protocols/untrained.py layers    # each layer alone
    python docs/protocols/untrained.py certain folder:PHOTOS
    python docs/protocols/untrained.py features  # how many features of a layer are looked at

Shares go to docs/results/data/trust_map/untrained_more.csv, untrained_layers.csv, untrained_certain.csv
and untrained_features.csv.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from trust import DATA

from neuronym.activations import target_layers
from neuronym.common.types import Target
from neuronym.datasets.probe import load_probe
from neuronym.dissect import clip_dissect
from neuronym.measurements import measure
from neuronym.models.targets import load_target
from neuronym.similarity.scores import score
from neuronym.sparse import Encoding, save_sae, SparseAutoencoder
from neuronym.trust.quick import quick_trust
from neuronym.trust.untrained import standing_out, untrained

SEEN = ["torchvision:shufflenet_v2_x0_5@random:0"]
NEW = [f"torchvision:shufflenet_v2_x0_5@random:{seed}" for seed in range(2, 7)]
NEW += [f"torchvision:mobilenet_v3_small@random:{seed}" for seed in range(1, 4)]
NEW += [f"torchvision:mnasnet0_5@random:{seed}" for seed in range(3)]
TRAINED = ["microworld:marked"]
ONE_OF_EACH = ["torchvision:resnet18@random:0", "torchvision:squeezenet1_1@random:0"]
ALONE = [*NEW, *ONE_OF_EACH, *SEEN, "torchvision:mobilenet_v3_small@random:0"]
ALONE += ["microworld:resnet", "microworld:vit", *TRAINED]
FEATURES = [("microworld:resnet", "layer4"), ("microworld:marked", "layer4")]
FEATURES += [("microworld:vit", "encoder.layers.encoder_layer_4")]
FEATURES += [(f"torchvision:shufflenet_v2_x0_5@random:{seed}", "stage4") for seed in (0, 2, 5)]
COUNTS = (500, 1000, 2000, 4000, 20_000)
LED_TO_IT = ["torchvision:mnasnet0_5@random:2", "torchvision:shufflenet_v2_x0_5@random:5"]
SECOND = [
    f"torchvision:{name}@random:{seed + step}"
    for step in range(3)
    for name, seed in (("mnasnet0_5", 3), ("shufflenet_v2_x0_5", 7))
]


def main() -> None:
    if sys.argv[1:2] == ["certain"]:
        return certain(sys.argv[2])
    if sys.argv[1:] == ["features"]:
        return of_features()
    if sys.argv[1:] == ["layers"]:
        return layer_by_layer()
    file = DATA / "untrained_more.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name in [*SEEN, *TRAINED, *NEW]:
        if any(row["network"] == name for row in rows):
            continue
        target = load_target(name)
        data = measure(target, list(target.layers), "microworld:500", "microworld", "microworld", pool="auto")
        shares = standing_out(data)
        most = max(shares, key=shares.get)
        known = {"network": name, "seen_before": name in SEEN, "layer": most, "stand_out": shares[most]}
        rows.append(known | {"untrained": bool(untrained(shares))})
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
        print(rows[-1], flush=True)


def layer_by_layer() -> None:
    """The share of names abstained from, of all layers together and of each alone."""
    file = DATA / "untrained_layers.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name in ALONE:
        if any(row["network"] == name for row in rows):
            continue
        target = load_target(name)
        for layers in (list(target.layers), *([layer] for layer in target.layers)):
            said = layers[0] if len(layers) == 1 else "all"
            rows.append({"network": name, "layers": said} | as_labelling(target, layers))
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
        print(pd.DataFrame(rows[-len(target.layers) - 1 :]).to_string(index=False), flush=True)


def certain(photos: str) -> None:
    """The rule that asks for more, on a real network and on random ones not seen before."""
    file = DATA / "untrained_certain.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name in ["efficientnet_lite0", *LED_TO_IT, *SECOND]:
        if any(row["network"] == name for row in rows):
            continue
        if name == "efficientnet_lite0":
            images, layers = load_probe(photos, limit=500), "_blocks.4,_blocks.10,_blocks.15,_fc"
            data = measure(name, layers, images, "conse:efficientnet_lite2", "imagenet", pool="auto")
        else:
            data = measure(name, "all", "microworld:500", "microworld", "microworld", pool="auto")
        shares = standing_out(data)
        most = max(shares, key=shares.get)
        known = {"network": name, "led_to_it": name in LED_TO_IT, "layer": most, "stand_out": shares[most]}
        rows.append(known | {"untrained": bool(untrained(shares))})
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")
        print(rows[-1], shares, flush=True)


def of_features() -> None:
    """The share of a layer of many features, by how many of them are looked at."""
    file = DATA / "untrained_features.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for name, layer in FEATURES:
        if any(row["network"] == name for row in rows):
            continue
        target = load_target(name)
        with tempfile.TemporaryDirectory() as folder:
            [info] = target_layers(target, layer)
            where = f"{layer}@sae:{random_features(info.units, Path(folder))}"
            given = (target, where, "microworld:500", "microworld", "microworld")
            data = measure(*given, pool="max", sparse=True)
            for some in COUNTS:
                shares = standing_out(data, features=some)
                row = {
                    "network": name,
                    "layer": layer,
                    "looked_at": some,
                    "stand_out": shares[next(iter(data.Q))],
                }
                rows.append(row | {"untrained": bool(untrained(shares)), "most": max(shares.values())})
                print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.4g")


def random_features(width: int, folder: Path) -> Path:
    """The file of a random autoencoder of a layer of so many units."""
    W = torch.randn(COUNTS[-1], width, generator=torch.Generator().manual_seed(0))
    W = torch.nn.functional.normalize(W, dim=1)
    sae = SparseAutoencoder(W.T, torch.zeros(COUNTS[-1]), W, torch.zeros(width), Encoding("topk", 32))
    return save_sae(sae, folder / "random.safetensors")


def as_labelling(target: Target, layers: list[str]) -> dict:
    """Units, share abstained from, mean trust, and whether the network is called untrained."""
    data = measure(target, layers, "microworld:500", "microworld", "microworld", pool="auto")
    naming, test = data.split(0.4)
    named = {layer: score(naming.P, q, "combined_correlation").argmax(1) for layer, q in naming.Q.items()}
    shares = standing_out(data)
    found, _ = quick_trust(data, test, clip_dissect(data), named, untrained=untrained(shares))
    known = {"units": len(found), "stand_out": max(shares.values()), "untrained": bool(untrained(shares))}
    return known | {"abstained": found["abstain"].mean(), "trust": found["trust"].mean()}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
