"""The comparison that docs/protocols/visualisation.md lays down.

    python docs/protocols/visualisation.py choose   the candidates on even units: choice.csv
    python docs/protocols/visualisation.py keep     how near accentuated photos stay: keep.csv
    python docs/protocols/visualisation.py report   the default on odd units and on the ViT: report.csv

Tables go to docs/results/data/visualisation/, contact sheets to results/visualisation_choice/.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import pandas as pd
from PIL import Image

from neuronym.applications.visualise import accentuate, aim_at, Settings, synthesise
from neuronym.applications.visualise_columns import as_pictures, picture_columns, seen_pictures
from neuronym.applications.visualise_images import picture_statistics
from neuronym.applications.visualise_transforms import Transforms
from neuronym.common.tables import write_table
from neuronym.dissect import labels_of_units
from neuronym.hooks import poolings
from neuronym.measurements import measure
from neuronym.models.clips import load_clip
from neuronym.runs.folders import results_dir, ROOT

TABLES = ROOT / "docs" / "results" / "data" / "visualisation"
SHARES = ["beats_best", "own_first", "real_first", "path_share", "label_share", "label_real"]
SHARES += ["label_share_named", "label_real_named"]


def candidates() -> dict[str, Settings]:
    found = {}
    for name in ("pixels", "fourier", "maco"):
        found[name] = Settings(image=name, contrast=0.0, smooth=0.0)
        found[f"{name} contrast"] = Settings(image=name, contrast=0.5, smooth=0.0)
        for smooth in (10.0, 30.0):
            found[f"{name} smooth {smooth:.0f}"] = Settings(image=name, contrast=0.5, smooth=smooth)
    base = Settings(image="fourier", contrast=0.5, smooth=10.0)
    crops = Transforms(smallest=0.5, largest=1.2, rotate=20, noise=0.05)
    found["fourier natural"] = replace(base, natural=2.0)
    found["fourier noise"] = replace(base, transforms=Transforms(noise=0.1))
    found["fourier crops"] = replace(base, transforms=crops)
    found["fourier centre"] = replace(base, where="centre")
    found["fourier four views"] = replace(base, views=4)
    return found


def setting(target: str, layers: str):
    """Measurements with the naming CLIP and with the judge, statistics of pictures, labels of every unit."""
    named = measure(target, layers, "microworld:2000", "microworld", "microworld", pool="auto")
    judge = measure(
        named.target, layers, named.probe, load_clip("microworld:vit"), named.concepts, pool="auto"
    )
    labels = labels_of_units(named.P, named.Q, named.concepts)
    return named, judge, picture_statistics(seen_pictures(named.target, named.probe)), labels


def tried(set_up, layer: str, units: list[int], settings: Settings, sheet: str) -> tuple[dict, pd.DataFrame]:
    """A row of means, and the columns of every unit."""
    named, judge, statistics, labels = set_up
    infos = list(named.layers.values())
    at = [info.name for info in infos].index(layer)
    aim = aim_at(infos[at], named.Q, poolings(infos, "auto"), units, infos[:at])
    start, clock = time.process_time(), time.perf_counter()
    pictures = as_pictures(synthesise(named.target, aim, statistics, settings).pictures)
    cost = {"cpu_seconds": (time.process_time() - start) / len(units)}
    cost["wall_seconds"] = (time.perf_counter() - clock) / len(units)
    _sheet(named, layer, units, pictures, sheet)
    own = [labels[layer][unit] for unit in units]
    table = picture_columns(judge, aim, pictures, own, labels[layer])
    other = picture_columns(named, aim, pictures, own, labels[layer])
    table["label_share_named"], table["label_real_named"] = other["label_share"], other["label_real"]
    row = {"times_best": table["times_best"].median()} | {name: table[name].mean() for name in SHARES} | cost
    return row, table


def _sheet(named, layer: str, units: list[int], pictures: list[Image.Image], name: str) -> None:
    """Synthesised pictures above the best scenes."""
    side, best = 128, named.Q[layer].argmax(0)
    rows = [(pictures[i], named.probe.image(int(best[unit]))) for i, unit in enumerate(units)]
    page = Image.new("RGB", (16 * (side + 4), -(-len(rows) // 16) * 2 * (side + 4)), "white")
    for i, pair in enumerate(rows):
        for j, one in enumerate(pair):
            place = (i % 16 * (side + 4), (i // 16 * 2 + j) * (side + 4))
            page.paste(one.resize((side, side), Image.Resampling.NEAREST), place)
    folder = results_dir() / "visualisation_choice"
    folder.mkdir(parents=True, exist_ok=True)
    page.save(folder / f"{name.replace(' ', '_')}.png")


def choose() -> None:
    set_up = setting("microworld:resnet", "all")
    rows = []
    for name, settings in candidates().items():
        row, _ = tried(set_up, "layer4", list(range(0, 192, 6)), settings, name)
        rows.append({"candidate": name} | row)
        print(rows[-1], flush=True)
        write_table(pd.DataFrame(rows), TABLES / "choice.csv", float_format="%.4g")


def keep() -> None:
    """Photos accentuated, on even units."""
    named, _, statistics, _ = setting("microworld:resnet", "all")
    infos, units = list(named.layers.values()), list(range(0, 192, 6))
    aim = aim_at(named.layers["layer4"], named.Q, poolings(infos, "auto"), units, infos[:4])
    middle = named.Q["layer4"][:, units].argsort(0)[named.N // 2].tolist()
    photos = seen_pictures(named.target, named.probe, middle)
    rows, still = [], replace(Settings(), smooth=0.0)
    for weight in (1.0, 3.0, 10.0, 30.0):
        made = accentuate(named.target, aim, photos, statistics, still, keep=weight).pictures
        table = picture_columns(named, aim, as_pictures(made))
        away = (made - photos).square().mean((1, 2, 3)) / photos.var((1, 2, 3))
        row = {
            "keep": weight,
            "beats_best": table["beats_best"].mean(),
            "own_first": table["own_first"].mean(),
        }
        rows.append(row | {"times_best": table["times_best"].median(), "changed": float(away.median())})
        print(rows[-1], flush=True)
        pairs = as_pictures(made)
        _sheet(named, "layer4", units, pairs, f"keep {weight:.0f}")
        write_table(pd.DataFrame(rows), TABLES / "keep.csv", float_format="%.4g")


def report() -> None:
    rows = []
    for target, units in (("microworld:resnet", range(1, 192, 2)), ("microworld:vit", range(0, 96, 2))):
        set_up = setting(target, "all")
        layer = "layer4" if target == "microworld:resnet" else list(set_up[0].layers)[-2]
        row, _ = tried(set_up, layer, list(units), Settings(), f"report {target.partition(':')[2]}")
        rows.append({"target": target, "layer": layer, "units": len(units)} | row)
        print(rows[-1], flush=True)
        write_table(pd.DataFrame(rows), TABLES / "report.csv", float_format="%.4g")


if __name__ == "__main__":
    TABLES.mkdir(parents=True, exist_ok=True)
    {"choose": choose, "keep": keep, "report": report}[sys.argv[1]]()
