"""What unit cards show, collected for `show.unit_cards`: labels, most active images, and where in them a unit fires.

collect  cards of some units of a layer
spread   units worth drawing: from the best-scored label to the worst
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from utils import cache
from utils.activations import activation_maps, activation_spec, top_images
from utils.hooks import LayerInfo
from utils.models import Target
from utils.preprocess import seen
from utils.probe import Probe

SCHEMA = 1


def collect(target: Target, probe: Probe, layer: LayerInfo, Q: Tensor, table: pd.DataFrame, units: Sequence[int], images: int = 6,
            names: Sequence[str] | None = None, device: str | torch.device = "cpu", keep: bool = False) -> list[dict]:
    """A card for `show.unit_cards` of each unit; Q [N, K] are the layer's activations, `table` its labels.

    Pictures are shown as the network sees them, so that a map lies where the unit fired. A token layer whose patches
    are no square (beside class and register tokens) is shown by its last square of tokens. `names` are the true ones of
    all units of the layer. With `keep`, pictures and maps are cached.
    """
    best = top_images(Q[:, units], min(images, len(Q))).T.tolist()  # [units][images]
    rows = sorted({row for some in best for row in some})
    spec = activation_spec(target, probe, layer) | {"schema": SCHEMA, "units": list(units), "rows": rows}
    found = cache.bundle("cards", spec, lambda: _look(target, probe, layer, rows, units, device)) if keep else \
        _look(target, probe, layer, rows, units, device)
    cards = []
    for u, (unit, some) in enumerate(zip(units, best)):
        labels = table[(table["layer"] == layer.name) & (table["unit"] == unit)].sort_values("rank")
        at = [rows.index(row) for row in some]
        cards.append({"title": f"{layer.name}  unit {unit}", "labels": list(zip(labels["label"], labels["score"])),
                      "truth": names[unit] if names is not None else None,
                      "images": [Image.fromarray(found["pictures"][i].numpy()) for i in at],
                      "maps": found["maps"][at, u].numpy() if "maps" in found else None})
    return cards


def spread(table: pd.DataFrame, layer: str, n: int) -> Sequence[int]:
    """n units of a layer at even steps from the highest best-label score to the lowest, so that failures show too."""
    best = table[(table["layer"] == layer) & (table["rank"] == 1)].sort_values("score", ascending=False, kind="stable")
    n = min(n, len(best))
    return [int(best["unit"].iloc[round(i * (len(best) - 1) / max(n - 1, 1))]) for i in range(n)]


def _look(target: Target, probe: Probe, layer: LayerInfo, rows: list[int], units: Sequence[int],
          device: str | torch.device) -> dict[str, Tensor]:
    """"pictures" [n, h, w, 3] bytes of the given images and, of a layer with positions, "maps" [n, units, h, w]."""
    decoded = [probe.image(row) for row in rows]
    found = {"pictures": torch.from_numpy(np.stack([seen(target.preprocess, image) for image in decoded]))}
    if layer.layout != "fc":
        side = math.isqrt(layer.shape[0])
        some = replace(probe, items=[np.asarray(image) for image in decoded])  # not decoded once more
        found["maps"] = activation_maps(target, some, layer, range(len(rows)), units=units, device=device,
                                        grid=(side, side) if layer.layout.startswith("tokens") else None)
    return found
