"""Do units of a robust network want shapes? The last section of docs/protocols/visualisation.md.

python docs/protocols/visualisation_robust.py   robust.csv, and contact sheets
"""

from __future__ import annotations

import copy
import math

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from visualisation import setting, TABLES, tried

from neuronym.applications.visualise import Settings
from neuronym.common.statistics import paired_interval
from neuronym.common.tables import write_table
from neuronym.microworld.training import scene_pool
from neuronym.microworld.world import CLASSES, CONCEPTS
from neuronym.models.preprocess import MICRO
from neuronym.models.targets import load_target

STEPS, BATCH, RATE, SCENES, FAR = 500, 64, 3e-4, 8000, 2 * 8 / 255  # inputs go from -1 to 1


def trained_on(model: nn.Module, pool: dict, far: float) -> nn.Module:
    """The network after STEPS more, on scenes moved by up to `far`."""
    model = copy.deepcopy(model).train().requires_grad_(True)
    truth = torch.from_numpy(pool["truth"][:, [CONCEPTS.index(name) for name in CLASSES]]).float()
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    dice = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        take = torch.randint(len(truth), (BATCH,), generator=dice)
        x, y = torch.from_numpy(pool["images"][take.numpy()]).float().div(127.5).sub(1), truth[take]
        if far:
            start = (2 * torch.rand(x.shape, generator=dice) - 1) * far
            moved = (x + start).clamp(-1, 1).requires_grad_()
            (slope,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(model(moved), y), moved)
            x = (x + (start + 1.25 * far * slope.sign()).clamp(-far, far)).clamp(-1, 1)
        for group in adam.param_groups:
            group["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        adam.step()
        if step % 100 == 0:
            print(f"far {far:.3f}, step {step}", flush=True)
    return model.eval()


def held_out(model: nn.Module, pool: dict, far: float) -> dict[str, float]:
    """Share found of the classes that are there, on new scenes, as they are and moved once."""
    truth = torch.from_numpy(pool["truth"][:, [CONCEPTS.index(name) for name in CLASSES]])
    x = torch.from_numpy(pool["images"]).float().div(127.5).sub(1).requires_grad_()
    (slope,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(model(x), truth.float()), x)
    found = {}
    for name, images in (("accuracy", x), ("accuracy_moved", (x + far * slope.sign()).clamp(-1, 1))):
        with torch.no_grad():
            said = model(images) > 0
        right = (said == truth)[truth]  # of the classes that are there
        found[name] = float(right.float().mean())
    return found


def main() -> None:
    pool, test = scene_pool(SCENES, workers=1), scene_pool(500, seed=90_000_000, workers=1)
    first, rows, units = load_target("microworld:resnet").model, [], []
    for name, far in (("plain", 0.0), ("robust", FAR)):
        model = trained_on(first, pool, far)
        target = load_target(model, preprocess=MICRO, classes=CLASSES, name=name)
        row, columns = tried(setting(target, "all"), "layer4", list(range(0, 192, 6)), Settings(), name)
        rows.append({"network": name} | held_out(target.model, test, FAR) | row)
        print(rows[-1], flush=True)
        units.append(columns["label_share"].rename(name))
    write_table(pd.DataFrame(rows), TABLES / "robust.csv", float_format="%.4g")  # both or none
    gap, low, high = paired_interval(units[1], units[0])
    table = pd.DataFrame([{"difference": gap, "low": low, "high": high, "units": len(units[0])}])
    write_table(table, TABLES / "robust_gap.csv", float_format="%.4g")
    print(table)


if __name__ == "__main__":
    main()
