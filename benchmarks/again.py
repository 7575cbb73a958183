"""What does a second look at the top images cost, where cards and crops want maps?

    python benchmarks/again.py [--target microworld:resnet] [--probe microworld:5000] [--csv FILE]

Processor seconds on one thread. `first pass`: activations of all layers for all images, as labelling measures
them. `maps of cards`: the pictures and maps of labelling's cards (5 units of each of the last six layers, 6
images each), which units being known only when all are named. `maps of crops`: the pass of
Describe-and-Dissect over whole images of 48 units of the last layer with positions (10 images each), which
are squeezed into a square there, so that the first pass has no maps of them; `all of crops`: this, the boxes,
and the pass over the crops. `MB kept`: what the maps of every unit's 6 top images would take if the first
pass kept them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from similarity import write_table

from neuronym.activations import target_layers, unit_activations
from neuronym.common.memory import top_images
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.describe import examples
from neuronym.figures import cards
from neuronym.models.targets import load_target

UNITS, IMAGES, DESCRIBED = 5, 6, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="microworld:resnet")
    parser.add_argument("--probe", default="microworld:5000")
    parser.add_argument("--layers", default="all")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NEURONYM_CACHE"] = folder  # nothing is there from before
        rows = measured(args)
    write_table(rows, args.csv)


def measured(args: argparse.Namespace) -> list[dict]:
    """A row for each pass."""
    torch.set_num_threads(1)
    target, probe = load_target(args.target), load_probe(args.probe)
    layers = target_layers(target, args.layers.split(","))
    Q, first = timed(lambda: unit_activations(target, probe, layers, workers=1))
    rows = [{"what": "first pass", "images": probe.N, "seconds": first}]
    placed = [layer for layer in layers if layer.layout in ("conv", "nhwc") or layer.grid]
    looked, seconds = 0, 0.0
    for layer in layers[-6:]:
        units = evenly_spaced(UNITS, layer.units)
        top = sorted(set(top_images(Q[layer.name][:, units], IMAGES).flatten().tolist()))
        seconds += timed(lambda: cards._look(target, probe, layer, top, units, "cpu"))[1]
        looked += len(top)
    rows.append({"what": "maps of cards", "images": looked, "seconds": seconds})
    layer, units = placed[-1], evenly_spaced(min(DESCRIBED, placed[-1].units), placed[-1].units)
    shown = sorted(set(top_images(Q[layer.name][:, units], 10).flatten().tolist()))
    maps = timed(lambda: squeezed_maps(target, probe, layer, shown))[1]
    all_of = timed(
        lambda: examples.examples(target, layer, units, probe, Q[layer.name], pool="avg", workers=1)
    )[1]
    rows.append({"what": "maps of crops", "images": len(shown), "seconds": maps})
    rows.append({"what": "all of crops", "images": len(shown), "seconds": all_of})
    kept = sum(layer.units * IMAGES * 4 * positions(target, layer) for layer in placed)
    for row in rows:
        row |= {"share of first": row["seconds"] / first, "MB kept": kept / 1e6 if row is rows[1] else ""}
        print(row, flush=True)
    return [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def squeezed_maps(target, probe, layer, rows: list[int]) -> None:
    """The pass over images as Describe-and-Dissect squeezes them."""
    read = [examples._square(probe.image(row)) for row in rows]
    with torch.inference_mode():
        for start in range(0, len(read), 16):
            target.model(torch.stack([target.preprocess(image) for image in read[start : start + 16]]))


def positions(target, layer) -> int:
    """Positions of a map of a layer."""
    from neuronym.activations import activation_maps

    return activation_maps(target, load_probe("microworld:1"), layer, [0], [0])[0, 0].numel()


def timed(work: Callable) -> tuple:
    before = time.process_time()
    return work(), time.process_time() - before


if __name__ == "__main__":
    main()
