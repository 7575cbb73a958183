"""How often does a unit's map give no crop, and what do such maps look like? By layer and way to make bytes.

python benchmarks/crops.py [--target microworld:resnet] [--layers conv1,layer1,layer2,layer3,layer4]
                           [--probe microworld:2000] [--units 24] [--csv FILE]

For the ten most active images of each unit: the share without a crop with maps scaled and with maps that wrap
as released; of those without one when scaled, the share of the picture above the threshold, in how many
pieces, and how much of it the box of the largest piece covers; and milliseconds a map.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from similarity import write_table

from neuronym.activations import activation_maps, unit_activations
from neuronym.common.memory import top_images
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.describe.examples import crops_of, eight_bit, enlarged, otsu, outer_boxes
from neuronym.hooks import resolve_layers
from neuronym.models.preprocess import SIZE
from neuronym.models.targets import load_target

IMAGES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="microworld:resnet")
    parser.add_argument("--layers", default="conv1,layer1,layer2,layer3,layer4")
    parser.add_argument("--probe", default="microworld:2000")
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--csv", type=Path, help="file for the table")
    given = parser.parse_args()
    target, probe = load_target(given.target), load_probe(given.probe)
    layers = resolve_layers(target.model, given.layers, target.example)
    Q = unit_activations(target, probe, layers)
    rows = []
    for layer in layers:
        units = evenly_spaced(min(given.units, layer.units), layer.units)
        top = top_images(Q[layer.name][:, units], IMAGES).T.tolist()
        images = sorted({i for some in top for i in some})
        maps = activation_maps(target, probe, layer, images, units)
        maps = torch.stack([maps[images.index(i), k] for k, some in enumerate(top) for i in some])
        rows.append({"layer": layer.name, "maps": len(maps), **described(maps)})
    table = pd.DataFrame(rows).round(3)
    print(table.to_string(index=False))
    write_table(table, given.csv)


def described(maps: torch.Tensor) -> dict[str, float]:
    found, began = {}, time.perf_counter()
    boxes = {how: crops_of(maps, heatmap=how) for how in ("scale", "wrap")}
    seconds = time.perf_counter() - began
    for how, some in boxes.items():
        found[f"no crop, {how}"] = np.mean([not one for one in some])
    without = maps[[not one for one in boxes["scale"]]]
    parts = []
    for one in without:
        large = enlarged(eight_bit(one[None]), SIZE, SIZE)[0]
        above = (large > otsu(large)).numpy()
        pieces = outer_boxes(above) or [(0, 0, 0, 0)]
        left, top, right, bottom = pieces[0]
        parts.append((above.mean(), len(pieces), (right - left) * (bottom - top) / SIZE**2))
    mean = np.mean(parts, 0) if parts else [np.nan] * 3
    found |= dict(zip(("above the threshold", "pieces", "box of the largest"), mean))
    return found | {"ms a map": 500 * seconds / len(maps)}


if __name__ == "__main__":
    main()
