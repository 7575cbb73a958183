"""Which sum of correlations names well on inner layers and final ones, among photos of other things too? The
third part of docs/protocols/default_name.md.

    python docs/protocols/default_name_third.py networks --networks FOLDER
    python docs/protocols/default_name_third.py development --networks FOLDER --photos PHOTOS
    python docs/protocols/default_name_third.py confirm --photos PHOTOS
    python docs/protocols/default_name_third.py kinds --networks FOLDER --photos PHOTOS

PHOTOS are the folders of ImageNet, Caltech-101, DTD and Flickr8k.

`networks` trains the two targets for development into FOLDER. `development` writes third_development.csv and
`confirm` third.csv, both to docs/results/data/default_name/; `kinds` third_kinds.csv and
third_least.csv, the fourth part.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain, combinations_with_replacement
from pathlib import Path

import default_name_again as again
import pandas as pd
import torch
from default_name import bootstrapped, DATA, NAMER, standardised, TARGET
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common.statistics import cross_correlation
from neuronym.datasets.probe import load_probe
from neuronym.datasets.probe_sets import list_images
from neuronym.measurements import measure
from neuronym.microworld import training
from neuronym.microworld.fitting import save_weights
from neuronym.microworld.networks import micro_vit, MicroResNet
from neuronym.microworld.world import CLASSES
from neuronym.models.sentences import load_sentence_encoder
from neuronym.similarity.softened import mean_spread

TERMS = (
    "plain",
    "cubed",
    "soft",
    "twice",
    "raised",
    "half raised",
    "bent",
    "soft, bent",
    "twice, bent",
    "half raised, bent",
)
MOST = 4  # terms of a sum
TODAY = "plain + cubed + soft"
KINDS = {  # candidates of the fourth part
    "inner": (TODAY, "twice + half raised + bent"),
    "final": tuple(
        " + ".join(names)
        for n in range(1, MOST + 1)
        for names in combinations_with_replacement(("plain", "cubed", "soft"), n)
    ),
}
NEAR = 0.002  # of the largest least share: there fewer terms are taken
SHOWN = 12  # sums that are written beside the terms
WORDS = "english:20000"
SCENES, STEPS, BATCH, SEEDS = 16_000, 300, 128, {"resnet": 101, "vit": 102}

Setup = tuple[str, dict[str, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("networks", "development", "confirm", "kinds"))
    parser.add_argument("--photos", nargs="+", metavar="FOLDER")
    parser.add_argument("--networks", type=Path, help="folder of two targets trained anew")
    given = parser.parse_args()
    if given.what == "networks":
        networks(given.networks)
    elif given.what == "development":
        develop(given.networks, given.photos)
    elif given.what == "confirm":
        confirm(given.photos)
    else:
        kinds(given.networks, given.photos)


def networks(folder: Path) -> None:
    """A ResNet and a ViT from scenes, seeds and a schedule of their own."""
    pool = training.scene_pool(SCENES)
    for kind, build in (("resnet", MicroResNet), ("vit", micro_vit)):
        torch.manual_seed(SEEDS[kind])
        model = build(len(CLASSES))
        training.train_target(model, pool, STEPS, BATCH, folder / "work" / kind, print, SEEDS[kind])
        save_weights(model, folder / f"target_{kind}.safetensors")


def terms(P: Tensor, Q: Tensor) -> dict[str, Tensor]:
    """Those of the second part, and three of a unit's bent activations: P [N, M], Q [N, K] -> [K, M] each."""
    z, u = standardised(P.T).T, standardised(Q.T).T
    bent = u + u.clamp(min=0).square() / 2
    double = standardised(standardised(P).T).T
    return again.terms(P, Q) | {
        "soft, bent": cross_correlation(bent, (P * (2 / mean_spread(P))).softmax(1)),
        "twice, bent": cross_correlation(bent, (double * (2 / mean_spread(double))).softmax(1)),
        "half raised, bent": cross_correlation(bent, (z / 2).exp()),
    }


def sums() -> dict[str, tuple[str, ...]]:
    """Every sum of one to MOST terms, a term more than once where it weighs more."""
    several = (combinations_with_replacement(TERMS, n) for n in range(1, MOST + 1))
    return {" + ".join(names): names for some in several for names in some}


def develop(folder: Path, photos: Sequence[str]) -> None:
    """The share that each sum reaches of the best in every set-up for development, and its least."""
    columns = {}
    for setup, found, held in developing(folder, photos):
        names = sums() | ({"oracle": ("oracle",)} if "oracle" in found else {})
        values = {name: float(again.chosen(found, some, held).mean()) for name, some in names.items()}
        columns[setup] = pd.Series(values)
        print(setup, columns[setup].idxmax(), columns[setup].max(), columns[setup][TODAY], flush=True)
    table = pd.DataFrame(columns).rename_axis("name")
    shares = table / table.max()
    shares = shares.assign(least=shares.min(axis=1), terms=[name.count("+") + 1 for name in table.index])
    ranked = shares.drop(index="oracle").sort_values("least", ascending=False)
    near = ranked[ranked["least"] >= ranked["least"].iloc[0] - NEAR]
    winner = near.sort_values(["terms", "least"], ascending=[True, False]).index[0]
    rows = dict.fromkeys([winner, *ranked.index[:SHOWN], TODAY, *TERMS, "oracle"])
    shares.loc[list(rows)].reset_index().to_csv(
        DATA / "third_development.csv", index=False, float_format="%.4g"
    )
    print(shares.loc[list(rows)].round(4).to_string(), f"\nchosen: {winner}")


def developing(folder: Path, photos: Sequence[str]) -> Iterator[Setup]:
    """The set-ups of the second part, and final units of lite1 of every other class."""
    yield from again.development(folder, photos[1:], terms)
    yield from final("efficientnet_lite1", "conse:efficientnet_lite0", photos, 0)


def final(target: str, namer: str, folders: Sequence[str], start: int) -> Iterator[Setup]:
    """Units of every other class by their top-1, from photos of these classes alone and among every other of
    the other photos; then what MiniLM says to their names out of 20,000 words.
    """
    own = list_images(f"folder:{folders[0]}", 0)[start::2]
    others = list_images("+".join(f"folder:{folder}" for folder in folders[1:]), 0)[start::2]
    for setup, rows in (("final alone", own), ("final among others", own + others)):
        data = measure(target, "_fc", load_probe([row.item for row in rows]), namer, WORDS, batch_size=64)
        names = [" ".join(name.split()) for name in data.target.classes]
        units = torch.arange(start, len(names), 2)
        Q = data.Q["_fc"].float()[:, units]
        classes = embed_concepts(data.clip, names)
        yield setup, terms(data.I @ classes.T, Q), torch.eye(len(names))[units]
    encode = load_sentence_encoder("minilm").encode
    near = encode([names[int(i)] for i in units]) @ encode(data.concepts).T
    yield "final among others, by 20,000 words", terms(data.I @ data.T.T, Q), near


def confirm(photos: Sequence[str]) -> None:
    """Means with intervals of the chosen sum and today's, and their paired distance, unit by unit; and those
    of other sums, which decide nothing.
    """
    shown = [name for name in pd.read_csv(DATA / "third_development.csv")["name"] if name != "oracle"]
    chosen = shown[0]
    tables = []
    for setup, found, held in confirming(photos):
        some = {"today": TODAY, "chosen": chosen} | ({"oracle": "oracle"} if "oracle" in found else {})
        some |= {name: name for name in shown}
        some |= {name: " + ".join(names) for name, names in again.SUMS.items()}
        values = {name: again.chosen(found, of.split(" + "), held).double() for name, of in some.items()}
        values = pd.DataFrame({name: value.numpy() for name, value in values.items()})
        against = bootstrapped(values.sub(values["today"], axis=0)).add_prefix("against_today_")
        table = bootstrapped(values).join(against).assign(setup=setup, units=len(values))
        tables.append(table.assign(share_of_best=table["mean"] / table["mean"].max()))
        print(setup, table.loc[["today", "chosen"]].round(4).to_string(), flush=True)
    table = pd.concat(tables).rename_axis("name").reset_index()
    table.to_csv(DATA / "third.csv", index=False, float_format="%.4g")


def confirming(photos: Sequence[str]) -> Iterator[Setup]:
    """The set-ups of the second part, and final units of lite0 of the classes that chose nothing."""
    yield from again.confirming(photos[0], terms)
    yield from final(TARGET, NAMER, photos, 1)


def kinds(folder: Path, photos: Sequence[str]) -> None:
    """A function for inner layers and one for the last: chosen in development, and confirmed."""
    tables, leasts, chosen = [], [], {}
    for stage, setups in (("development", developing(folder, photos)), ("confirmed", confirming(photos))):
        if stage == "development":
            setups = chain(setups, new_finals(folder))
        means = {"inner": {}, "final": {}}
        for setup, found, held in setups:
            kind = "final" if "final" in setup else "inner"
            names = {name: name.split(" + ") for name in KINDS[kind]}
            values = {name: again.chosen(found, some, held).double().numpy() for name, some in names.items()}
            values = pd.DataFrame(values)
            means[kind][setup] = values.mean()
            against = bootstrapped(values.sub(values[TODAY], axis=0)).add_prefix("against_today_")
            table = bootstrapped(values).join(against).assign(setup=setup, kind=kind, units=len(values))
            oracle = again.chosen(found, ["oracle"], held).mean() if "oracle" in found else None
            share = None if oracle is None else table["mean"] / float(oracle)
            tables.append(table.assign(stage=stage, share_of_oracle=share))
        for kind, columns in means.items():
            if stage == "development":
                shares = pd.DataFrame(columns)
                least = (shares / shares.max()).min(axis=1)
                chosen[kind] = least.idxmax()
                leasts.append(least.rename("least").rename_axis("name").reset_index().assign(kind=kind))
                print(kind, "chosen:", chosen[kind], flush=True)
    table = pd.concat(tables).rename_axis("name").reset_index()
    pd.concat(leasts).to_csv(DATA / "third_least.csv", index=False, float_format="%.4g")
    table["chosen"] = table["name"] == table["kind"].map(chosen)
    table.to_csv(DATA / "third_kinds.csv", index=False, float_format="%.4g")
    print(table[table["chosen"] | (table["name"] == TODAY)].round(4).to_string())


def new_finals(folder: Path) -> Iterator[Setup]:
    """The last layers of the two networks trained anew, by the truth about scenes held out."""
    for kind in SEEDS:
        probe = load_probe("microworld:4000", seed=7)
        data = measure(f"microworld:{kind}@{folder}", "all", probe, "microworld", "microworld")
        yield again.layered(data, f"new {kind} final", [data.target.layers[-1]], terms)


if __name__ == "__main__":
    main()
