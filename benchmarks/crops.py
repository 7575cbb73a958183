"""How often does a unit's map give no crop, are the crops of maps that wrap the release's, and who is right?

python benchmarks/crops.py [--target microworld:resnet] [--layers conv1,layer1,layer2,layer3,layer4]
                           [--probe microworld:2000] [--units 24] [--csv FILE] [--worth FILE]

For the ten most active images of each unit, by layer. `--csv`: the share of pictures without a crop with
maps scaled and with maps that wrap as released; the share whose boxes with maps that wrap are those of the
release (its steps by torch, Pillow and OpenCV, one map at a time), and how far they cover each other (IoU of
each of the release's boxes with the nearest of ours, 0 where we have none), for wrapped and for scaled maps;
of pictures without a crop when scaled, the share above the threshold, in how many pieces, and how much of
the picture the box of the largest piece covers; processor milliseconds a map of ours and of the release.

`--worth`: what crops are worth: how many of them excite the unit more than their picture does, beside boxes
of the same size at random places in the same pictures; of scaled maps, of wrapped ones, and of wrapped ones
in pictures where scaled maps give none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from similarity import write_table

from neuronym.activations import activation_maps, unit_activations
from neuronym.common.memory import top_images
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Box, Target
from neuronym.datasets.probe import load_probe, Probe, probe_from_images
from neuronym.describe.crops import box_iou, crops_of, eight_bit, enlarged, otsu, outer_boxes
from neuronym.describe.examples import Example, picture
from neuronym.hooks import LayerInfo, resolve_layers
from neuronym.models.preprocess import SIZE
from neuronym.models.targets import load_target

IMAGES, CROPS = 10, 4
WHOLE = (0, 0, SIZE, SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="microworld:resnet")
    parser.add_argument("--layers", default="conv1,layer1,layer2,layer3,layer4")
    parser.add_argument("--probe", default="microworld:2000")
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--csv", type=Path, help="file for the table")
    parser.add_argument("--worth", type=Path, help="file for what crops are worth")
    given = parser.parse_args()
    target, probe = load_target(given.target), load_probe(given.probe)
    layers = resolve_layers(target.model, given.layers, target.example)
    Q = unit_activations(target, probe, layers)
    rows, worth = [], []
    for layer in layers:
        units = evenly_spaced(min(given.units, layer.units), layer.units)
        top = top_images(Q[layer.name][:, units], IMAGES).T.tolist()
        places = [(i, unit) for some, unit in zip(top, units) for i in some]
        images = sorted({i for i, _ in places})
        maps = activation_maps(target, probe, layer, images, units)
        maps = torch.stack([maps[images.index(i), units.index(unit)] for i, unit in places])
        boxes, row = described(maps)
        rows.append({"layer": layer.name, "maps": len(maps), **row})
        worth += [{"layer": layer.name, **one} for one in compared(target, layer, probe, places, boxes)]
        print(layer.name, flush=True)
    for table, file in (
        (pd.DataFrame(rows).round(3), given.csv),
        (pd.DataFrame(worth).round(3), given.worth),
    ):
        print(table.to_string(index=False))
        write_table(table, file)


def released(one: np.ndarray) -> list[Box]:
    """The release's crops of one map: cast to bytes, Pillow's enlargement, OpenCV's Otsu and outer contours
    in its order, the largest boxes that overlap by at most half and are not nearly everything.
    """
    large = np.array(Image.fromarray(torch.from_numpy(one).mul(255).byte().numpy()).resize((SIZE, SIZE)))
    _, binary = cv2.threshold(large, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    kept: list[Box] = []
    for x, y, w, h in sorted(map(cv2.boundingRect, contours), key=lambda r: -r[2] * r[3]):
        box = (x, y, x + w, y + h)
        if len(kept) < CROPS and all(box_iou(box, other) <= 0.5 for other in kept):
            kept += [box] if box_iou(box, WHOLE) < 0.8 else []
    return kept


def described(maps: torch.Tensor) -> tuple[dict[str, list[list[Box]]], dict[str, float]]:
    """The boxes of each map by way to make bytes, and the row of the table."""
    boxes, spent = {}, {}
    for how in ("scale", "wrap", "released"):
        began = time.process_time()
        boxes[how] = [released(m) for m in maps.numpy()] if how == "released" else crops_of(maps, heatmap=how)
        spent[how] = 1000 * (time.process_time() - began) / len(maps)
    found = {f"no crop {how}": np.mean([not one for one in boxes[how]]) for how in ("scale", "wrap")}
    same = [a == b for a, b in zip(boxes["wrap"], boxes["released"])]
    found["as released wrap"] = np.mean(same)
    for how in ("wrap", "scale"):
        found[f"IoU {how}"] = np.mean(
            [
                max((box_iou(box, other) for other in ours), default=0.0)
                for ours, theirs in zip(boxes[how], boxes["released"])
                for box in theirs
            ]
        )
    parts = []
    for one in maps[[not one for one in boxes["scale"]]]:
        large = enlarged(eight_bit(one[None]), SIZE, SIZE)[0]
        above = (large > otsu(large)).numpy()
        pieces = outer_boxes(above) or [(0, 0, 0, 0)]
        left, top, right, bottom = pieces[0]
        parts.append((above.mean(), len(pieces), (right - left) * (bottom - top) / SIZE**2))
    mean = np.mean(parts, 0) if parts else [np.nan] * 3
    found |= dict(zip(("above the threshold", "pieces", "box of the largest"), mean))
    times = {"ms scale": spent["scale"], "ms wrap": spent["wrap"], "ms release": spent["released"]}
    return boxes, found | times


def compared(
    target: Target,
    layer: LayerInfo,
    probe: Probe,
    places: Sequence[tuple[int, int]],
    boxes: dict[str, list[list[Box]]],
) -> list[dict]:
    """A row for each way to crop: pictures, crops, how many excite the unit more than their picture, how many
    boxes at random do, and the mean activation of both in parts of the picture's.
    """
    alone = [wrap if not scale else [] for scale, wrap in zip(boxes["scale"], boxes["wrap"])]
    ways = {"scale": boxes["scale"], "wrap": boxes["wrap"], "wrap where scale has none": alone}
    whole = activations(target, layer, probe, [(i, unit, None) for i, unit in places])
    rows = []
    for way, cut in ways.items():
        dice = np.random.default_rng(0)
        some = [(i, unit, box) for (i, unit), mine in zip(places, cut) for box in mine]
        moved = [(i, unit, elsewhere(box, dice)) for i, unit, box in some]
        base = np.array([w for w, mine in zip(whole, cut) for _ in mine])
        row = {"maps": way, "pictures": sum(map(bool, cut)), "crops": len(some)}
        for name, shown in (("", some), (" at random", moved)):
            own = activations(target, layer, probe, shown)
            row[f"stronger{name}"] = np.mean(own > base) if len(own) else np.nan
            row[f"parts{name}"] = own.mean() / base.mean() if len(own) else np.nan
        rows.append(row)
    return rows


def elsewhere(box: Box, dice: np.random.Generator) -> Box:
    """A box of the same size at a random place."""
    wide, high = box[2] - box[0], box[3] - box[1]
    x, y = (int(dice.integers(SIZE - side + 1)) for side in (wide, high))
    return x, y, x + wide, y + high


def activations(
    target: Target, layer: LayerInfo, probe: Probe, shown: Sequence[tuple[int, int, Box | None]]
) -> np.ndarray:
    """What units do on pictures or parts of them: (image, unit, box) -> [n]."""
    if not shown:
        return np.zeros(0)
    found = []
    for start in range(0, len(shown), 256):
        part = shown[start : start + 256]
        pictures = [picture(probe, Example(i, box, 0.0)) for i, _, box in part]
        values = unit_activations(target, probe_from_images(pictures), [layer])[layer.name]
        found += [float(values[row, unit]) for row, (_, unit, _) in enumerate(part)]
    return np.array(found)


if __name__ == "__main__":
    main()
