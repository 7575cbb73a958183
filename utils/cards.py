"""What a unit card shows, collected for `show.unit_cards`: labels, most active images, and where in them the unit fires.

card    one unit
spread  units worth drawing: from the best-scored label to the worst
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from utils.activations import activation_maps, top_images
from utils.hooks import LayerInfo
from utils.models import Target
from utils.preprocess import seen
from utils.probe import Probe


def card(target: Target, probe: Probe, layer: LayerInfo, Q: Tensor, table: pd.DataFrame, unit: int, images: int = 6,
         truth: str | None = None, device: str | torch.device = "cpu") -> dict:
    """The arguments of `show.unit_card` for one unit; Q [N, K] are the layer's activations, `table` its labels.

    Pictures are shown as the network sees them, so that a map lies where the unit fired. A token layer whose patches
    are no square (beside class and register tokens) is shown by its last square of tokens.
    """
    rows = table[(table["layer"] == layer.name) & (table["unit"] == unit)].sort_values("rank")
    best = top_images(Q[:, unit:unit + 1], min(images, len(Q)))[:, 0].tolist()
    maps = None
    if layer.layout != "fc":
        side = math.isqrt(layer.shape[0])
        grid = (side, side) if layer.layout.startswith("tokens") else None
        maps = activation_maps(target, probe, layer, best, units=[unit], grid=grid, device=device)[:, 0].float().cpu().numpy()
    return {"title": f"{layer.name}  unit {unit}", "labels": list(zip(rows["label"], rows["score"])), "truth": truth,
            "images": [seen(target.preprocess, probe.image(i)) for i in best], "maps": maps}


def spread(table: pd.DataFrame, layer: str, n: int) -> Sequence[int]:
    """n units of a layer at even steps from the highest best-label score to the lowest, so that failures show too."""
    best = table[(table["layer"] == layer) & (table["rank"] == 1)].sort_values("score", ascending=False, kind="stable")
    n = min(n, len(best))
    return [int(best["unit"].iloc[round(i * (len(best) - 1) / max(n - 1, 1))]) for i in range(n)]
