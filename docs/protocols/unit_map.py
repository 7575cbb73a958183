"""How many neighbours maps of units keep, as unit_map.md says: python docs/protocols/unit_map.py"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from neuronym import load_probe, load_target
from neuronym.activations import target_layers, unit_activations
from neuronym.atlas.alike import unit_map
from neuronym.common.statistics import standard_columns

K = 10
LAYERS = {
    "microworld:resnet": ["all"],
    "microworld:vit": ["all", *(f"encoder.layers.encoder_layer_{i}.mlp.1" for i in range(6))],
}


def all_units() -> torch.Tensor:
    """Activations [2000, units] of both networks, constant units left out."""
    probe, found = load_probe("microworld:2000"), []
    for name, layers in LAYERS.items():
        target = load_target(name)
        found += unit_activations(target, probe, target_layers(target, layers), "auto").values()
    Q = torch.cat([q.float() for q in found], 1)
    return Q[:, Q.std(0) > 0]


def placed(Q: torch.Tensor, most: int, seed: int) -> np.ndarray:
    """t-SNE of `most` units, the others at the mean of the three nearest of these."""
    from sklearn.decomposition import PCA

    units = standard_columns(Q).T.float().numpy()
    few = torch.from_numpy(PCA(50, random_state=seed).fit_transform(units))
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(few))[:most])
    places = torch.from_numpy(unit_map({"some": Q[:, chosen]}, seed)).float()
    distance, at = torch.cdist(few, few[chosen]).topk(3, largest=False)
    weight = 1 / distance.clamp_min(1e-6)
    found = (places[at] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    found[chosen] = places
    return found.numpy()


def nearest(closeness: torch.Tensor) -> torch.Tensor:
    """[units, units] higher is closer -> [units, K] of the closest others, in order of their numbers."""
    closeness.fill_diagonal_(-torch.inf)
    return closeness.topk(K, dim=1).indices.sort(dim=1).values


def on_map(places: np.ndarray) -> torch.Tensor:
    return nearest(-torch.cdist(*[torch.from_numpy(places).double()] * 2))


def shared(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the neighbours in `a` that are in `b`."""
    return float((a[:, :, None] == b[:, None]).any(2).double().mean())


def timed(make: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    before = time.process_time()
    return make(), time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    whole, rows = all_units(), []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(whole.shape[1])[:2000]
        Q = whole[:, torch.from_numpy(order)]
        own = standard_columns(Q).float()
        truth = nearest(own.T @ own)
        maps = {
            "t-SNE": lambda: unit_map({"all": Q}, seed),
            "two components": lambda: unit_map({"all": Q}, seed, most=0),
            "t-SNE of 500, the others placed": lambda: placed(Q, 500, seed),
            "t-SNE of 200, the others placed": lambda: placed(Q, 200, seed),
        }
        tsne = None
        for name, make in maps.items():
            places, seconds = timed(make)
            near = on_map(places)
            tsne = near if tsne is None else tsne
            said = {"kept": shared(truth, near), "agree": shared(tsne, near), "seconds": seconds}
            rows.append({"units": 2000, "seed": seed, "map": name, **said})
            print(rows[-1], flush=True)
    drawn = torch.from_numpy(np.random.default_rng(0).integers(whole.shape[1], size=10_000))
    noise = torch.randn(len(whole), 10_000, generator=torch.Generator().manual_seed(0))
    many = whole[:, drawn] + 0.1 * whole.std(0)[drawn] * noise
    for name, make in {
        "two components": lambda: unit_map({"all": many}, 0, most=0),
        "t-SNE of 2000, the others placed": lambda: placed(many, 2000, 0),
    }.items():
        rows.append({"units": 10_000, "seed": 0, "map": name, "seconds": timed(make)[1]})
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows).round(3)
    print(table.to_string(index=False))
    if args.csv:
        table.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
