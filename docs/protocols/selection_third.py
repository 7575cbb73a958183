"""One more way to choose among phrases: the third part of docs/protocols/selection.md.

    python docs/protocols/selection_third.py microworld
    python docs/protocols/selection_third.py photos --photos IMAGENET CALTECH101 DTD FLICKR8K
    python docs/protocols/selection_third.py people --photos IMAGENET CALTECH101 DTD FLICKR8K --captions FILE
    python docs/protocols/selection_third.py decide

`--range` takes the candidates `range 10`, which need no captions of examples, and `--target` one network.
Each writes a row for each unit and candidate, with a column for each signal, to
docs/results/data/selection/third_NAME.csv, where `decide` reads them. FILE is Flickr8k's captions.txt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from selection import candidates, chosen_units, compared, DATA, JUDGE, LAYERS, NAMER, ORDINARY, shuffled
from torch import Tensor

from neuronym.activations import embed_concepts, image_embeddings
from neuronym.common.memory import top_images
from neuronym.common.statistics import cross_correlation, standard_columns
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.describe.counting import mentions
from neuronym.describe.pipeline import caption_examples, ordinary_captions, ordinary_rows
from neuronym.evaluation.explanations import phrase_presence
from neuronym.evaluation.presence import calibrated, judged_presence, unfitted
from neuronym.hooks import LayerInfo
from neuronym.measurements import measure, Measurements
from neuronym.models.captioners import load_captioner
from neuronym.models.clips import load_clip
from neuronym.models.transcripts import open_transcript
from neuronym.runs.folders import results_dir

OTHER, OTHER_LAYERS, OTHER_JUDGE = (
    "efficientnet_lite1",
    "_blocks.6,_blocks.14,_blocks.20,_fc",
    "conse:efficientnet_lite0",
)
TARGETS = {"efficientnet_lite0": (LAYERS, JUDGE), OTHER: (OTHER_LAYERS, OTHER_JUDGE)}
MICRO = {"resnet": "layer3,layer4", "vit": ",".join(f"encoder.layers.encoder_layer_{i}" for i in (1, 3, 5))}
MOST, UNITS, PHOTOS = 64, 50, 1740
CHOOSING = ("resnet inner", "photos inner", "photos final", "people inner", "people final")
CHOICES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "agreed": lambda t: t.p + t.m,
    "agreed cosine": lambda t: t.c + t.m,
    "three": lambda t: t.c + t.p + t.m,
    "own": lambda t: (t.p / 2 + t.m).where(~t.clips_own, t.p),
    "own three": lambda t: ((t.c + t.p) / 4 + t.m).where(~t.clips_own, (t.c + t.p) / 2),
    "fused": lambda t: (t.p + t.m) / np.sqrt((2 + 2 * t.rho).clip(lower=1e-6)),
    "corrected": lambda t: np.sqrt((t.p * t.m).clip(lower=0) / t.rho.clip(lower=0.1)).where(
        (t.p > 0) & (t.m > 0), np.minimum(t.p, t.m)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("microworld", "photos", "people", "decide"))
    parser.add_argument("--photos", nargs=4, metavar="FOLDER", help="ImageNet, Caltech-101, DTD, Flickr8k")
    parser.add_argument("--captions", type=Path, help="Flickr8k's captions.txt")
    parser.add_argument("--range", action="store_true", help="candidates of ordinary captions alone (photos)")
    parser.add_argument("--target", choices=list(TARGETS), help="one of the networks (photos, people)")
    given = parser.parse_args()
    if given.what == "decide":
        return decide()
    if given.what != "microworld" and not given.photos:
        parser.error("photos and people need --photos IMAGENET CALTECH101 DTD FLICKR8K")
    (results_dir() / "selection").mkdir(parents=True, exist_ok=True)
    targets = [given.target] if given.target else list(TARGETS)
    parts = {
        "microworld": lambda: [microworld(network) for network in MICRO],
        "photos": lambda: [photos(given.photos, target, given.range) for target in targets],
        "people": lambda: [people(given.photos[3], given.captions, target) for target in targets],
    }
    table = pd.concat(parts[given.what](), ignore_index=True)
    table.to_csv(DATA / f"third_{given.what}.csv", index=False, float_format="%.5g")
    print(table.groupby("setup")[["unit", "value"]].agg({"unit": "size", "value": "mean"}).to_string())


def microworld(network: str) -> pd.DataFrame:
    """Signals of the left-out units of one microworld network, and of what is left of resnet's layer4."""
    data = measure(f"microworld:{network}", MICRO[network], "microworld:5000", "microworld", "microworld")
    naming, test = data.split(0.4)
    book = open_transcript(results_dir() / "selection" / f"third_{network}.jsonl")
    captioner = load_captioner("microworld")
    said = shuffled(
        ordinary_captions(naming.probe, captioner, book, ORDINARY), ordinary_rows(naming.N, ORDINARY)
    )
    tables = []
    for layer, info in data.layers.items():
        first, fresh = (chosen_units(info, MOST, more) for more in (False, True))
        rest = [unit for unit in range(info.units) if unit not in {*first, *fresh}][:MOST]
        for name, units in ((f"{network} inner", fresh), (f"{network} rest", rest)):
            if not units:
                continue
            looked = caption_examples(
                data.target, info, units, naming.probe, naming.Q[layer], captioner, book, data.clip
            )
            truth = partial(phrase_presence, naming.probe), partial(phrase_presence, test.probe)
            found = signals(naming, test, layer, looked.captions, said, truth)
            tables.append(found.assign(setup=name, clips_own=False))
        print(f"{network} {layer} done", flush=True)
    return pd.concat(tables, ignore_index=True)


def photos(folders: Sequence[str], target: str, ranged: bool = False) -> pd.DataFrame:
    """The same of photos, rated by another image-text model; `ranged` takes no captions of examples."""
    layers, judge_name = TARGETS[target]
    probe = load_probe("+".join(f"folder:{folder}" for folder in folders), limit=PHOTOS)
    data = measure(target, layers, probe, NAMER, "english:10000")
    naming, test = data.split(0.4)
    book = open_transcript(results_dir() / "selection" / "third_photos.jsonl")
    captioner = load_captioner("clip_words", clip=data.clip, words=data.concepts)
    said = shuffled(
        ordinary_captions(naming.probe, captioner, book, ORDINARY), ordinary_rows(naming.N, ORDINARY)
    )
    judge, small = load_clip(judge_name), load_clip("microworld")  # of examples only captions are read
    I = image_embeddings(judge, probe)
    fit = calibrated(judge, I, probe, data.concepts)

    def seen(part: Tensor, texts: Sequence[str]) -> Tensor:
        return judged_presence(part, embed_concepts(judge, list(texts)), fit)

    truth = tuple(partial(seen, I[list(part.row_numbers)]) for part in (naming, test))
    tables = []
    for layer, info in data.layers.items():
        units, q = of_photos(info, target), naming.Q[layer]
        captions = {unit: ["nothing"] for unit in units}
        if not ranged:
            looked = caption_examples(
                data.target, info, units, naming.probe, q, captioner, book, small, crops=0
            )
            captions = looked.captions
        source = "range 10" if ranged else "both"
        found = signals(naming, test, layer, captions, said, truth, source)
        tables.append(found.assign(setup=named("photos", layer, target), clips_own=True))
    return pd.concat(tables, ignore_index=True)


def people(folder: str, file: Path, target: str) -> pd.DataFrame:
    """The same where people wrote the captions, and what they wrote is the truth."""
    written = pd.read_csv(file).groupby("image")["caption"].apply(list)
    data = measure(target, TARGETS[target][0], f"folder:{folder}", NAMER, "english:10000")
    naming, test = data.split(0.4)
    captions = {part: [written[Path(id).name] for id in part.probe.ids] for part in (naming, test)}
    first, rows = shuffled([some[0] for some in captions[naming]], range(naming.N))

    def truth(part: Measurements, texts: Sequence[str], n: int = 5) -> Tensor:
        flat = [text for some in captions[part] for text in some[:n]]
        return mentions(flat, texts).double().view(part.N, -1, len(texts)).mean(1)

    tables = []
    for layer, info in data.layers.items():
        units, q = of_photos(info, target), naming.Q[layer]
        top = top_images(q[:, units], 10).T.tolist()
        own = {unit: [captions[naming][i][0] for i in mine] for unit, mine in zip(units, top)}
        found = signals(
            naming, test, layer, own, (first, rows), tuple(partial(truth, p) for p in (naming, test))
        )
        for n in (2, 3):
            found[f"m{n}"] = by_unit(found, q, lambda texts, n=n: truth(naming, texts, n))
        tables.append(found.assign(setup=named("people", layer, target), clips_own=False))
    return pd.concat(tables, ignore_index=True)


def of_photos(info: LayerInfo, target: str) -> list[int]:
    """Units of both earlier parts, or so many of another network."""
    if target == OTHER:
        return evenly_spaced(min(UNITS, info.units), info.units)
    return sorted({unit for fresh in (False, True) for unit in chosen_units(info, UNITS, fresh)})


def named(what: str, layer: str, target: str) -> str:
    place = "final" if layer == "_fc" else "inner"
    return f"{what} {place}" + (" lite1" if target == OTHER else "")


def signals(
    naming: Measurements,
    test: Measurements,
    layer: str,
    captions: Mapping[int, Sequence[str]],
    said: tuple[Sequence[str], Sequence[int]],
    truth: tuple[Callable[[Sequence[str]], Tensor], Callable[[Sequence[str]], Tensor]],
    source: str = "both",
) -> pd.DataFrame:
    """A row for each unit and candidate of the source: layer, unit, text, c, p, m, rho, q, value."""
    q, (ordinary, rows) = naming.Q[layer], said
    found = candidates(captions, ordinary, rows, q)[source]
    pairs = [(unit, text) for unit, some in found.items() for text in some]
    texts = sorted({text for _, text in pairs})
    read = [naming.clip.reads(text) for text in texts]
    silent = torch.tensor([not one for one in read])
    P = naming.I @ embed_concepts(naming.clip, [one or naming.concepts[0] for one in read]).T
    a, b = unfitted(naming.I, naming.T)
    X, there = torch.sigmoid(a * P.double() + b), mentions(ordinary, texts).double()
    units, rows = list(found), list(rows)
    columns = {
        "c": cross_correlation(q[:, units], P).masked_fill(silent, -2),
        "p": cross_correlation(q[:, units], X).masked_fill(silent, -2),
        "m": cross_correlation(q[rows][:, units], there),
        "q": cross_correlation(q[:, units], truth[0](texts)),
        "value": cross_correlation(test.Q[layer][:, units], truth[1](texts)),
    }
    rho = (standard_columns(X[rows]) * standard_columns(there)).sum(0)
    at, place = {text: i for i, text in enumerate(texts)}, {unit: i for i, unit in enumerate(units)}
    table = pd.DataFrame(pairs, columns=["unit", "text"]).assign(layer=layer)
    for name, scores in columns.items():
        table[name] = [float(scores[place[unit], at[text]]) for unit, text in pairs]
    return table.assign(rho=[float(rho[at[text]]) for _, text in pairs])


def by_unit(table: pd.DataFrame, q: Tensor, present: Callable[[Sequence[str]], Tensor]) -> list[float]:
    """Correlation of each row's unit with the presence of its text in the images that name."""
    texts, units = sorted(set(table["text"])), sorted(set(table["unit"]))
    scores = cross_correlation(q[:, units], present(texts))
    return [
        float(scores[units.index(unit), texts.index(text)])
        for unit, text in zip(table["unit"], table["text"])
    ]


def decide() -> None:
    """third.csv with means and paired differences, third_shares.csv, and what the protocol says of the
    set-ups that are there.
    """
    files = [DATA / f"third_{name}.csv" for name in ("microworld", "photos", "people")]
    table = pd.concat([pd.read_csv(file) for file in files if file.exists()]).reset_index(drop=True)
    choosing = [setup for setup in CHOOSING if setup in set(table["setup"])]
    for setup in [setup for setup in CHOOSING if setup not in choosing]:
        print(f"{setup} was not computed: what follows is no decision by the protocol")
    scores = {name: score(table) for name, score in CHOICES.items()} | {"best": table["q"]}
    scores |= {f"mention in {n} captions": table[f"m{n}"] for n in (2, 3)}
    wide = pd.DataFrame({name: picked(table, some) for name, some in scores.items()}).reset_index()
    parts, shares, low, high = [], {}, {}, {}
    for setup, some in wide.groupby("setup", sort=False):
        some = some.drop(columns="setup").set_index(["layer", "unit"]).dropna(axis=1)
        found = compared(some, "agreed").assign(setup=setup)
        parts.append(found)
        shares[setup] = some.mean() / some["best"].mean()
        low[setup] = found.set_index("name")["against_low"]
        high[setup] = found.set_index("name")["against_high"]
    pd.concat(parts).to_csv(DATA / "third.csv", index=False, float_format="%.4g")
    shares = pd.DataFrame(shares)
    least = shares.loc[list(CHOICES), choosing].min(axis=1)
    first = next(name for name in CHOICES if least[name] >= least.max() - 0.005)
    others = [setup for setup in shares if setup not in choosing]
    held = shares.loc[[first, "agreed"], others].min(axis=1)
    replaces = (
        all(high[setup][first] >= 0 for setup in others)
        and any(low[setup][first] > 0 for setup in others)
        and held[first] > held["agreed"]
    )
    shown = shares.rename_axis("choice").reset_index()
    shown.to_csv(DATA / "third_shares.csv", index=False, float_format="%.4g")
    print(shares.round(3).to_string())
    print(f"chosen: {first} (least {least[first]:.3f}, agreed {least['agreed']:.3f})")
    print(f"confirmed least {held[first]:.3f}, agreed {held['agreed']:.3f}: replaces agreed: {replaces}")


def picked(table: pd.DataFrame, scores: pd.Series) -> pd.Series:
    """The value of each unit's candidate of highest score, the first of equal ones; nan where there are no
    scores.
    """
    known = table.assign(score=scores).dropna(subset="score")
    best = known.groupby(["setup", "layer", "unit"], sort=False)["score"].idxmax()
    return table["value"].loc[best].set_axis(best.index)


if __name__ == "__main__":
    main()
