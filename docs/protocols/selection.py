"""Which candidate of Describe-and-Dissect should name a unit, and where should candidates come from?

The study of docs/protocols/selection.md.

    python docs/protocols/selection.py resnet                  # and vit: minutes, no photos
    python docs/protocols/selection.py photos --photos IMAGENET CALTECH101 DTD FLICKR8K
    python docs/protocols/selection.py people --photos IMAGENET CALTECH101 DTD FLICKR8K --captions FILE
    python docs/protocols/selection.py decide                  # tables from what the others wrote
    python docs/protocols/selection.py resnet --fresh          # and the others: units that the study left out

Each writes one row for each unit and source of candidates, with a column for each choice, to
docs/results/data/selection/, where `decide` reads them. FILE is Flickr8k's captions.txt (image,caption).
Captions are kept among the results, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import embed_concepts, image_embeddings
from neuronym.common.memory import top_images
from neuronym.common.statistics import cross_correlation
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.describe.counting import correlated, extract, mentions
from neuronym.describe.pipeline import caption_examples, ordinary_captions, ordinary_rows
from neuronym.describe.scoring import SCORES
from neuronym.describe.selection import rank_candidates
from neuronym.evaluation.explanations import phrase_presence
from neuronym.evaluation.presence import calibrated, fit_judge, judged_presence, true_presence, unfitted
from neuronym.hooks import LayerInfo
from neuronym.measurements import measure, Measurements
from neuronym.models.captioners import load_captioner
from neuronym.models.clips import load_clip
from neuronym.models.generators import load_generator
from neuronym.models.transcripts import open_transcript
from neuronym.runs.folders import results_dir, ROOT
from neuronym.similarity.columns import cos_similarity_cubed
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.softened import mean_spread, SHARPNESS

DATA = ROOT / "docs" / "results" / "data" / "selection"
TARGET, NAMER, JUDGE = "efficientnet_lite0", "conse:efficientnet_lite2", "conse:efficientnet_lite1"
LAYERS = "_blocks.4,_blocks.10,_blocks.15,_fc"
ORDINARY, FEW, MANY = 1000, 200, 1000
MICRO_UNITS, PHOTO_UNITS, DRAWS, SEED = 64, 50, 10_000, 16
SOURCES = ("examples 5", "examples 10", "range 5", "range 10", "both")
TODAY, KEPT, WIDE = "sq_mean", "examples 5", "both"
CHOICES = ("probability", "agreed", "mention 1000")  # of the second part
NO_CHOICE = ("best", "fitted")
ORDER = ("share", "probability", "combined", "cosine", "mention 1000", "mention 200")
Texts = dict[int, list[str]]  # unit -> phrases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("resnet", "vit", "photos", "people", "decide"))
    parser.add_argument("--photos", nargs=4, metavar="FOLDER", help="ImageNet, Caltech-101, DTD, Flickr8k")
    parser.add_argument("--captions", type=Path, help="Flickr8k's captions.txt")
    parser.add_argument("--fresh", action="store_true", help="the units left out: the second part")
    given = parser.parse_args()
    if given.what in ("photos", "people") and not given.photos:
        parser.error("photos and people need --photos IMAGENET CALTECH101 DTD FLICKR8K")
    DATA.mkdir(parents=True, exist_ok=True)
    (results_dir() / "selection").mkdir(parents=True, exist_ok=True)
    if given.what in ("resnet", "vit"):
        table = microworld(given.what, given.fresh)
    elif given.what == "photos":
        table = photos(given.photos, given.fresh)
    elif given.what == "people":
        table = people(given.photos[3], given.captions, given.fresh)
    else:
        return decide()
    written(table, f"{given.what}{'_fresh' if given.fresh else ''}")


KEY = ["setup", "layer", "unit", "source", "word_value", "recalled", "count"]


def written(table: pd.DataFrame, name: str) -> None:
    """A row for each unit and source, a column for each choice."""
    wide = table.pivot(index=KEY, columns="choice", values="value").reset_index()
    wide.to_csv(DATA / f"{name}.csv", index=False, float_format="%.4g")
    print(wide.groupby(["source", "setup"]).mean(numeric_only=True).round(3).T.to_string())


def read(name: str) -> pd.DataFrame:
    """What `written` wrote, a row for each choice as well."""
    wide = pd.read_csv(DATA / f"{name}.csv")
    return wide.melt(KEY, var_name="choice").dropna(subset="value")


def chosen_units(info: LayerInfo, most: int, fresh: bool) -> list[int]:
    """At most so many units, spread evenly; or the first so many of those that this leaves out."""
    first = evenly_spaced(min(most, info.units), info.units)
    return [unit for unit in range(info.units) if unit not in first][:most] if fresh else first


def microworld(network: str, fresh: bool) -> pd.DataFrame:
    """Candidates and choices of one microworld network, rated by the truth about the scenes."""
    data = measure(f"microworld:{network}", "all", "microworld:5000", "microworld", "microworld")
    naming, test = data.split(0.4)
    book = open_transcript(results_dir() / "selection" / f"{network}.jsonl")
    captioner, generator = load_captioner("microworld"), load_generator("microworld")
    ordinary, rows = shuffled(
        ordinary_captions(naming.probe, captioner, book, ORDINARY), ordinary_rows(naming.N, ORDINARY)
    )
    known = true_presence(naming.probe, data.concepts)
    fit = fit_judge(naming.I @ naming.T.T, known)
    tables = []
    for layer, info in data.layers.items():
        units, q = chosen_units(info, MICRO_UNITS, fresh), naming.Q[layer]
        if not units:
            continue
        looked = caption_examples(
            data.target, info, units, naming.probe, q, captioner, book, data.clip, progress=None
        )
        sources = candidates(looked.captions, ordinary, rows, q)
        drawn = {"target": data.target, "layer": info, "clip": data.clip}
        retrieval, pictures = {"Q": q, "I": naming.I, "clip": data.clip}, {}
        if not fresh:
            pictures, _ = rank_candidates(sources[KEPT], looked.E, generator, how=list(SCORES), **drawn)
            near, _ = rank_candidates(sources[KEPT], looked.E, "retrieval", how=TODAY, **retrieval)
            pictures["retrieved sq_mean"] = near[TODAY]
        tables.append(
            rated(
                naming,
                layer,
                sources,
                pictures,
                (ordinary, rows),
                partial(phrase_presence, naming.probe),
                (partial(phrase_presence, test.probe), test.Q[layer]),
                fit=fit,
                words=(known, true_presence(test.probe, data.concepts)),
            ).assign(setup=f"{network} {'final' if layer == data.target.layers[-1] else 'inner'}")
        )
        print(f"{network} {layer} done", flush=True)
    return pd.concat(tables)


def photos(folders: Sequence[str], fresh: bool) -> pd.DataFrame:
    """The same of photos, rated by another image-text model."""
    probe = load_probe("+".join(f"folder:{folder}" for folder in folders))
    data = measure(TARGET, LAYERS, probe, NAMER, "english:10000")
    naming, test = data.split(0.4)
    book = open_transcript(results_dir() / "selection" / "photos.jsonl")
    captioner = load_captioner("clip_words", clip=data.clip, words=data.concepts)
    ordinary, rows = shuffled(
        ordinary_captions(naming.probe, captioner, book, ORDINARY), ordinary_rows(naming.N, ORDINARY)
    )
    judge = load_clip(JUDGE)
    I = image_embeddings(judge, probe)
    fit = calibrated(judge, I, probe, data.concepts)
    both = [I[list(part.row_numbers)] for part in (naming, test)]

    def seen(part: Tensor, texts: Sequence[str]) -> Tensor:
        return judged_presence(part, embed_concepts(judge, list(texts)), fit)

    known = [seen(part, data.concepts) for part in both]
    tables = []
    for layer, info in data.layers.items():
        units, q = chosen_units(info, PHOTO_UNITS, fresh), naming.Q[layer]
        if not units:
            continue
        looked = caption_examples(
            data.target, info, units, naming.probe, q, captioner, book, data.clip, crops=0
        )
        sources = candidates(looked.captions, ordinary, rows, q)
        retrieval = {"Q": q, "I": naming.I, "clip": data.clip}
        pictures, _ = rank_candidates(sources[KEPT], looked.E, "retrieval", how=hows(fresh), **retrieval)
        truth = [partial(seen, part) for part in both]
        said = ordinary, rows
        table = rated(
            naming, layer, sources, pictures, said, truth[0], (truth[1], test.Q[layer]), words=known
        )
        tables.append(table.assign(setup=f"photos {'final' if layer == '_fc' else 'inner'}"))
    return pd.concat(tables)


def people(folder: str, file: Path, fresh: bool) -> pd.DataFrame:
    """The same where people wrote the captions, and what they wrote is the truth."""
    written = pd.read_csv(file).groupby("image")["caption"].apply(list)
    data = measure(TARGET, LAYERS, f"folder:{folder}", NAMER, "english:10000")
    naming, test = data.split(0.4)
    said = {part: [written[Path(id).name] for id in part.probe.ids] for part in (naming, test)}
    first, rows = shuffled([captions[0] for captions in said[naming]], range(naming.N))

    def truth(part: Measurements, texts: Sequence[str]) -> Tensor:
        flat = [text for captions in said[part] for text in captions]
        return mentions(flat, texts).double().view(part.N, -1, len(texts)).mean(1)

    common = [word for word in data.concepts if sum(f" {word} " in f" {text} " for text in first) >= 5]
    known = [truth(part, common) for part in (naming, test)]
    tables = []
    for layer, info in data.layers.items():
        units, q = chosen_units(info, PHOTO_UNITS, fresh), naming.Q[layer]
        if not units:
            continue
        top = top_images(q[:, units], 10).T
        captions = {unit: [said[naming][i][0] for i in mine] for unit, mine in zip(units, top.tolist())}
        sources = candidates(captions, first, rows, q)
        E = {unit: naming.I[mine] for unit, mine in zip(units, top)}
        retrieval = {"Q": q, "I": naming.I, "clip": data.clip}
        pictures, _ = rank_candidates(sources[KEPT], E, "retrieval", how=hows(fresh), **retrieval)
        table = rated(
            naming,
            layer,
            sources,
            pictures,
            (first, rows),
            partial(truth, naming),
            (partial(truth, test), test.Q[layer]),
            words=known,
            concepts=common,
        )
        tables.append(table.assign(setup=f"people {'final' if layer == '_fc' else 'inner'}"))
    return pd.concat(tables)


def hows(fresh: bool) -> list[str]:
    """Functions that choose by pictures; of fresh units today's alone."""
    return [TODAY] if fresh else list(SCORES)


def shuffled(captions: Sequence[str], rows: Sequence[int]) -> tuple[list[str], list[int]]:
    """Captions and their rows in a random order, so that the first ones are a sample too."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED)).tolist()
    return [captions[i] for i in order], [rows[i] for i in order]


def candidates(
    captions: Mapping[int, Sequence[str]], ordinary: Sequence[str], rows: Sequence[int], Q: Tensor
) -> dict[str, Texts]:
    """Every source's candidates of each unit; captions of ordinary images are those of `rows` of Q."""
    ranged = correlated(ordinary, Q[rows][:, list(captions)], 10)
    found: dict[str, Texts] = {source: {} for source in SOURCES}
    for (unit, some), wide in zip(captions.items(), ranged):
        ten = extract(some, ordinary[:FEW], 10)
        found["examples 5"][unit], found["examples 10"][unit] = extract(some, ordinary[:FEW], 5), ten
        found["range 5"][unit], found["range 10"][unit] = wide[:5], wide
        found["both"][unit] = list(dict.fromkeys([*found["examples 5"][unit], *wide[:5]]))
    return found


def rated(
    naming: Measurements,
    layer: str,
    sources: Mapping[str, Texts],
    pictures: Mapping[str, Mapping[int, Tensor]],
    said: tuple[Sequence[str], Sequence[int]],
    truth: Callable[[Sequence[str]], Tensor],
    held_out: tuple[Callable[[Sequence[str]], Tensor], Tensor],
    fit: tuple[float, float] | None = None,
    words: Sequence[Tensor] = (),
    concepts: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row for each unit, source and choice: the phrase, and its held-out correlation with the unit.

    `pictures` are scores of KEPT's candidates; `words` is the presence of the concepts in both parts.
    """
    q, test_q, concepts = naming.Q[layer], held_out[1], concepts or naming.concepts
    texts = sorted({text for source in sources.values() for some in source.values() for text in some})
    column = {text: i for i, text in enumerate(texts)}
    units = list(sources[KEPT])
    scores = simulated(naming, q[:, units], texts, said, fit)
    scores["best"] = cross_correlation(q[:, units], truth(texts))
    held = cross_correlation(test_q[:, units], held_out[0](texts))
    own, its = (cross_correlation(some[:, units], part) for some, part in zip((q, test_q), words))
    rows = []
    for i, unit in enumerate(units):
        word = int(own[i].argmax())
        base = {"layer": layer, "unit": unit, "word": concepts[word], "word_value": float(its[i, word])}
        for source, of_units in sources.items():
            some = of_units[unit]
            at = [column[text] for text in some]
            ways = {name: S[i, at] for name, S in scores.items()}
            if source == KEPT:
                ways |= {name: found[unit] for name, found in pictures.items()}
                ways["first"] = -torch.arange(len(some))
            for choice, values in ways.items():
                best = int(values.argmax())
                rows.append(
                    base
                    | {
                        "source": source,
                        "choice": choice,
                        "text": some[best],
                        "value": float(held[i, at[best]]),
                        "recalled": concepts[word] in some,
                        "count": len(some),
                    }
                )
    return pd.DataFrame(rows)


def simulated(
    naming: Measurements,
    Q: Tensor,
    texts: Sequence[str],
    said: tuple[Sequence[str], Sequence[int]],
    fit: tuple[float, float] | None,
) -> dict[str, Tensor]:
    """Scores [K, n] of every selection without pictures, for all texts; -2 where the CLIP reads nothing."""
    read = [naming.clip.reads(text) for text in texts]
    t = embed_concepts(naming.clip, [one or naming.concepts[0] for one in read])
    P, (a, b) = naming.I @ t.T, unfitted(naming.I, naming.T)
    slope = SHARPNESS / mean_spread(FactoredMatrix(naming.I, naming.T))
    others = torch.logsumexp(slope * (naming.I @ naming.T.T).double(), 1, keepdim=True)
    share = torch.sigmoid(slope * P.double() - others)
    found = {
        "cosine": cross_correlation(Q, P),
        "probability": cross_correlation(Q, torch.sigmoid(a * P.double() + b)),
        "share": cross_correlation(Q, share),
    }
    cubed = cos_similarity_cubed(P, Q, eps=0).double()
    found["combined"] = found["cosine"] + cubed + found["share"]
    if fit is not None:
        found["fitted"] = cross_correlation(Q, torch.sigmoid(fit[0] * P.double() + fit[1]))
    silent = torch.tensor([not one for one in read])
    found = {name: S.masked_fill(silent, -2) for name, S in found.items()}
    captions, rows = said
    for n in (FEW, MANY):
        there = mentions(captions[:n], texts).double()
        found[f"mention {n}"] = cross_correlation(Q[list(rows[:n])], there)
    found["agreed"] = found["probability"] + found[f"mention {MANY}"]
    return found


SETUPS = [f"{name} {place}" for name in ("resnet", "vit", "photos", "people") for place in ("inner", "final")]


def decide() -> None:
    """Means with intervals, shares of the best, and what wins by the protocol."""
    names = ("resnet", "vit", "photos", "people")
    table = pd.concat([read(name) for name in names])
    winner = decide_selection(table[table["source"] == KEPT])
    decide_candidates(table[table["choice"].isin([winner, "best"])], winner)
    if all((DATA / f"{name}_fresh.csv").exists() for name in names):
        decide_fresh(pd.concat([read(f"{name}_fresh") for name in names]))


def decide_selection(table: pd.DataFrame) -> str:
    """The first part of the protocol: selection.csv, selection_shares.csv; the name of the winner."""
    parts, shares, against = [], {}, {}
    for setup in SETUPS:
        wide = spread(table[table["setup"] == setup], "choice")
        found, own = compared(wide, TODAY), wide.mean()
        parts.append(found.assign(setup=setup))
        shares[setup] = own / own["best"]
        against[setup] = found.set_index("name")["against_high"]
    pd.concat(parts).to_csv(DATA / "selection.csv", index=False, float_format="%.4g")
    shares = pd.DataFrame(shares)
    choices = [name for name in (*ORDER, *shares.index) if name in shares.index and name not in NO_CHOICE]
    choices = list(dict.fromkeys(choices))
    least = shares.loc[choices, ["resnet inner", "resnet final"]].min(axis=1)
    first = next(name for name in choices if least[name] >= least.max() - 0.005)
    relative = shares.loc[choices] / shares.loc[choices].max()
    others = [setup for setup in SETUPS if not setup.startswith("resnet")]
    confirmed = all(relative.loc[first, s] >= 0.9 and against[s][first] >= 0 for s in others)
    winner = first if confirmed else relative.min(axis=1).idxmax()
    shown = shares.assign(least_of_best_selection=relative.min(axis=1))
    shown.rename_axis("selection").reset_index().to_csv(
        DATA / "selection_shares.csv", index=False, float_format="%.4g"
    )
    print(shown.round(3).to_string())
    print(f"resnet chooses {first}, {'confirmed' if confirmed else 'not confirmed'}; winner {winner}")
    return winner


def decide_candidates(table: pd.DataFrame, winner: str) -> None:
    """The second part: candidates.csv with means, differences from today's and recall."""
    parts, means, intervals = [], {}, {}
    for setup in SETUPS:
        here = table[table["setup"] == setup]
        for choice in (winner, "best"):
            wide = spread(here[here["choice"] == choice], "source")
            found = compared(wide, KEPT)
            recall = (
                here[here["choice"] == choice].groupby("source")[["recalled", "count", "word_value"]].mean()
            )
            parts.append(found.join(recall, on="name").assign(setup=setup, choice=choice))
            if choice == winner:
                means[setup], intervals[setup] = wide.mean(), found.set_index("name")
    pd.concat(parts).to_csv(DATA / "candidates.csv", index=False, float_format="%.4g")
    inner = means["resnet inner"]
    counts = table.groupby("source")["count"].mean().sort_values()
    chosen = next(name for name in counts.index if inner[name] >= inner.max() - 0.005)
    held = intervals["vit inner"].loc[chosen, "against_low"] > 0
    held &= all(found.loc[chosen, "against_high"] >= 0 for found in intervals.values())
    print(pd.DataFrame(means).round(3).to_string())
    print(f"resnet chooses {chosen}; {'it replaces' if held else 'not confirmed, it stays at'} {KEPT}")


def decide_fresh(table: pd.DataFrame) -> None:
    """The second part, on units left out: fresh.csv."""
    parts, relative, better, worse, of_best = [], {}, {}, {}, {}
    for setup in [setup for setup in SETUPS if setup in set(table["setup"])]:
        here = table[(table["setup"] == setup) & table["choice"].isin([*CHOICES, "best"])]
        for source in (KEPT, WIDE):
            wide = spread(here[here["source"] == source], "choice")
            parts.append(compared(wide, "probability").assign(setup=setup, source=source))
            if source == WIDE:
                of_best[setup] = wide[list(CHOICES)].mean() / wide["best"].mean()
                relative[setup] = wide[list(CHOICES)].mean() / wide[list(CHOICES)].mean().max()
        for choice in CHOICES:
            wide = spread(here[here["choice"] == choice], "source")[[KEPT, WIDE]]
            found = compared(wide, KEPT).set_index("name").loc[WIDE]
            better[choice, setup], worse[choice, setup] = found["against_low"] > 0, found["against_high"] < 0
            parts.append(found.to_frame().T.assign(name=choice, setup=setup, source=f"{WIDE} - {KEPT}"))
    pd.concat(parts).to_csv(DATA / "fresh.csv", index=False, float_format="%.4g")
    shares = pd.DataFrame(of_best).rename_axis("choice").reset_index()
    shares.to_csv(DATA / "fresh_shares.csv", index=False, float_format="%.4g")
    relative = pd.DataFrame(relative)
    least = relative.min(axis=1)
    winner = next(name for name in CHOICES if least[name] >= least.max() - 0.005)
    inner = all(better[winner, f"{network} inner"] for network in ("resnet", "vit"))
    replaces = inner and not any(value for (name, _), value in worse.items() if name == winner)
    print(relative.assign(least=least).round(3).to_string())
    print(f"fresh units choose {winner}; {WIDE} {'replaces' if replaces else 'does not replace'} {KEPT}")


def spread(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """One row a unit, one column a choice or source."""
    return table.pivot(index=["layer", "unit"], columns=by, values="value")


def compared(wide: pd.DataFrame, first: str) -> pd.DataFrame:
    """Mean of every column and of its difference from `first`, the same units drawn for all."""
    generator, x = np.random.default_rng(SEED), wide.to_numpy()
    draws = np.stack([x[generator.integers(len(x), size=len(x))].mean(0) for _ in range(DRAWS)])
    base = list(wide.columns).index(first)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    apart = draws - draws[:, [base]]
    less, more = np.quantile(apart, (0.025, 0.975), axis=0)
    means = x.mean(0)
    return pd.DataFrame(
        {
            "name": wide.columns,
            "units": len(x),
            "mean": means,
            "low": low,
            "high": high,
            "against": means - means[base],
            "against_low": less,
            "against_high": more,
        }
    )


if __name__ == "__main__":
    main()
