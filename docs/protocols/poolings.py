"""When is it said that another pooling names a unit much better? The study of poolings.md.

    python docs/protocols/poolings.py resnet vit   # correlations and truth of every unit, minutes each
    python docs/protocols/poolings.py decide       # thresholds.csv, and what the protocol says

Tables go to docs/results/data/poolings/.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch

from neuronym.common.statistics import cross_correlation, wilson
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.evaluation.presence import true_presence
from neuronym.measurements import measure, Measurements
from neuronym.runs.folders import ROOT
from neuronym.similarity.scores import score
from neuronym.trust.poolings import pooled_otherwise

DATA = ROOT / "docs" / "results" / "data" / "poolings"
NETWORKS, SIZES = ("resnet", "vit"), (5000, 500, 100)
GAINS, CERTAIN, TODAY = (0, 0.02, 0.05, 0.1, 0.15, 0.2), (0, 1.282, 1.645, 2.326, 3.09), (0.1, 1.645)
RIGHT, MUCH, ENOUGH, ALIKE = 0.05, 0.1, 0.9, 0.005
NAMER = "combined_correlation"  # the default then
UNIT = ["scenes", "layer", "unit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=(*NETWORKS, "decide"))
    DATA.mkdir(parents=True, exist_ok=True)
    for what in parser.parse_args().what:
        if what == "decide":
            decide()
        else:
            study(what).to_csv(DATA / f"{what}.csv", index=False, float_format="%.5g")


def measured(network: str, scenes: int, seed: int) -> Measurements:
    images = load_probe(f"microworld:{scenes}", seed=seed)
    return measure(
        f"microworld:{network}", "all", images, "microworld", "microworld", pool="auto", beside=True
    )


def study(network: str) -> pd.DataFrame:
    """A row for each unit and other pooling at each size, as `labelling` has it, with the truth."""
    data, judge = measured(network, SIZES[0], 0), measured(network, 4000, 1)
    truth, where = true_presence(judge.probe, data.concepts), {c: i for i, c in enumerate(data.concepts)}
    oracle = {layer: cross_correlation(judge.Q[layer], truth) for layer in judge.beside}
    oracle |= {
        (layer, how): cross_correlation(q, truth)
        for layer, hows in judge.beside.items()
        for how, q in hows.items()
    }
    tables = []
    for N in SIZES:
        naming, test = data.rows(evenly_spaced(N, data.N)).split(0.4)
        named = {layer: score(naming.P, naming.Q[layer], NAMER).argmax(1) for layer in naming.beside}
        for (layer, how), some in pooled_otherwise(naming, test, named, NAMER).groupby(["layer", "pooling"]):
            own, other = (some[column].map(where).tolist() for column in ("label", "other_label"))
            units = some["unit"].tolist()
            true = oracle[layer][units, own].numpy(), oracle[layer, how][units, other].numpy()
            tables.append(some.assign(scenes=N, held_out=test.N, true=true[0], true_other=true[1]))
        print(network, N, flush=True)
    return pd.concat(tables, ignore_index=True).drop(columns="better")


def notes(table: pd.DataFrame, least: float, certain: float) -> pd.DataFrame:
    """A row for each unit and size: whether it has a note, a right one, and whether one was due."""
    gain, true = table["other_correlation"] - table["correlation"], table["true_other"] - table["true"]
    r, other = (table[name].clip(-0.999999, 0.999999) for name in ("correlation", "other_correlation"))
    z = (np.arctanh(other) - np.arctanh(r)) / np.sqrt(2 / (table["held_out"] - 3))
    said = (gain >= least) & (z > certain)
    best = table["other_correlation"].where(said).groupby([table[name] for name in UNIT]).transform("max")
    shown = table.assign(said=said, due=true >= MUCH)
    shown["right"] = said & (table["other_correlation"] == best) & (true >= RIGHT)
    return shown.groupby(UNIT, sort=False)[["said", "right", "due"]].any().reset_index()


def shares(noted: pd.DataFrame) -> dict[str, float]:
    """How many notes, what share of them is right, and of units that were due one what share has it."""
    said, due = noted[noted["said"]], noted[noted["due"]]
    found = {"units": len(noted), "notes": len(said), "due": len(due)}
    for name, some in (("right", said["right"]), ("found", due["right"])):
        share = some.mean() if len(some) else np.nan
        low, high = wilson(share, len(some)) if len(some) else (np.nan, np.nan)
        found |= {name: share, f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def decide() -> None:
    """Shares of every pair of thresholds on both networks, all sizes together, and of two pairs by size."""
    tables = {network: pd.read_csv(DATA / f"{network}.csv") for network in NETWORKS}
    pairs = [(g, c) for g in GAINS for c in CERTAIN]
    every = {
        (network, *pair): shares(notes(table, *pair)) for network, table in tables.items() for pair in pairs
    }
    grid = pd.DataFrame(every).T.rename_axis(["network", "gain", "certain"])
    grid.to_csv(DATA / "thresholds.csv", float_format="%.4g")
    on = grid.loc["resnet"].fillna({"right": 0, "found": 0})
    enough = on[on["right"] >= ENOUGH]
    worth = enough["found"] if len(enough) else on["right"] * on["found"]
    chosen = max(pair for pair in worth.index if worth[pair] >= worth.max() - ALIKE)
    there, today = (grid.loc[("vit", *pair)] for pair in (chosen, TODAY))
    confirmed = there["right"] >= ENOUGH or there["right"] > today["right"]
    rows = [
        {"network": network, "scenes": N, "gain": g, "certain": c}
        | shares(notes(table[table["scenes"] == N], g, c))
        for network, table in tables.items()
        for N in SIZES
        for g, c in dict.fromkeys((TODAY, chosen))
    ]
    by_size = pd.DataFrame(rows)
    by_size.to_csv(DATA / "by_size.csv", index=False, float_format="%.4g")
    print(grid.round(3).to_string())
    print(by_size.round(3).to_string(index=False))
    print(
        f"resnet chooses gain {chosen[0]}, certain {chosen[1]}; vit {'confirms' if confirmed else 'does not'}"
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
