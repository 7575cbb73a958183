"""Which similarity function should name units by default? The study of docs/protocols/default_name.md.

    python docs/protocols/default_name.py resnet                       # and vit: minutes, no photos
    python docs/protocols/default_name.py photos --photos IMAGENET CALTECH101 DTD FLICKR8K
    python docs/protocols/default_name.py sheet --photos ...           # pictures without methods, and a key
    python docs/protocols/default_name.py decide                       # tables from what the others wrote
    python docs/protocols/default_name.py pooling                      # of the two microworld networks
    python docs/protocols/default_name.py noise                        # scores of shuffled activations

Each writes one row for each method, unit and measure to docs/results/data/default_name/, where `decide` reads
them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from neuronym.activations import embed_concepts, image_embeddings
from neuronym.common.memory import top_images
from neuronym.common.statistics import auroc, correlation, cross_correlation
from neuronym.datasets.probe import load_probe
from neuronym.evaluation.presence import fit_judge, judged_presence, true_presence
from neuronym.measurements import measure, Measurements
from neuronym.models.clips import load_clip
from neuronym.models.sentences import load_sentence_encoder
from neuronym.runs.folders import ROOT
from neuronym.similarity.scores import score
from neuronym.similarity.softened import mean_spread

DATA = ROOT / "docs" / "results" / "data" / "default_name"
TARGET, NAMER, JUDGE = "efficientnet_lite0", "conse:efficientnet_lite2", "conse:efficientnet_lite1"
INNER = "_blocks.4,_blocks.10,_blocks.15"
OTHERS = 1688  # photos besides ImageNet's
ON_SHEET = ("soft_wpmi", "cos_similarity_cubed", "correlation", "soft 2", "soft 2, bent", "sum")
ABSTRACT = re.compile(r"(?:tion|sion|ity|ness|ism|ment|ance|ence|ship)$")
DEALS, DRAWS, SEED, SHOWN = 100, 10_000, 16, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("resnet", "vit", "photos", "sheet", "decide", "pooling", "noise"))
    parser.add_argument("--photos", nargs=4, metavar="FOLDER", help="ImageNet, Caltech-101, DTD, Flickr8k")
    parser.add_argument("--out", type=Path, default=Path("sheets"), help="folder of the sheets")
    arguments = parser.parse_args()
    if arguments.what in ("photos", "sheet") and not arguments.photos:
        parser.error("photos and sheet need --photos IMAGENET CALTECH101 DTD FLICKR8K")
    DATA.mkdir(parents=True, exist_ok=True)
    if arguments.what in ("resnet", "vit"):
        written(microworld(arguments.what), arguments.what)
    elif arguments.what == "photos":
        written(photos_final(arguments.photos), "photos_final")
        written(photos_inner(*photos(arguments.photos)), "photos_inner")
    elif arguments.what == "sheet":
        sheet(arguments.photos, arguments.out)
    elif arguments.what == "pooling":
        pooling()
    elif arguments.what == "noise":
        noise()
    else:
        sheet_scores()
        decide()


def candidates(P: Tensor, Q: Tensor, whole: bool = True) -> dict[str, Tensor]:
    """Scores [K, M] of every candidate: P [N, M] cosines, Q [N, K]; without `whole` those of the sheet."""
    z = (Q - Q.mean(0)) / Q.std(0, correction=0).clamp(min=1e-12)
    above = z.clamp(min=0).square()
    X = (P * (2 / mean_spread(P))).softmax(1)
    plain, cubed = score(P, Q, "correlation"), score(P, Q, "cos_similarity_cubed")
    soft, paper = score(P, Q, "soft_correlation"), score(P, Q, "soft_wpmi")
    found = {"soft_wpmi": paper, "cos_similarity_cubed": cubed, "correlation": plain, "soft 2": soft}
    found |= {
        "soft 2, bent": score(X, z + above / 2, "correlation"),
        "sum": score(P, Q, "combined_correlation"),
    }
    if not whole:
        return found
    squared = score(X, above, "correlation")
    found |= {name: score(P, Q, name) for name in ("cos_similarity", "wpmi", "rank_reorder")}
    found["soft 20"] = score(P, Q, "soft_correlation", slope=20.0)
    found["soft 3"] = score(P, Q, "soft_correlation", sharpness=3)
    found |= {"soft 2, squared": squared, "soft 2 + half squared": soft + squared / 2}
    by_concept = (P - P.mean(0)) / P.std(0, correction=0).clamp(min=1e-12)
    found["soft 2, z-scored"] = score(by_concept, Q, "soft_correlation")
    by_image = (P - P.mean(1, keepdim=True)) / P.std(1, correction=0, keepdim=True)
    found["twice standardised"] = score(by_image, Q, "correlation")
    found["rank consensus"] = -sum(ranks(S) for S in (plain, cubed, soft, paper)) / 4
    found["sum, standardised"] = sum(standardised(S) for S in (plain, cubed, soft))
    return found


def ranks(S: Tensor) -> Tensor:
    """Rank of every concept for each unit, from 0, highest first: [K, M]."""
    return S.argsort(dim=1, descending=True, stable=True).argsort(dim=1).float()


def standardised(S: Tensor) -> Tensor:
    """Scores with mean 0 and deviation 1 over the concepts of each unit."""
    return (S - S.mean(1, keepdim=True)) / S.std(1, correction=0, keepdim=True).clamp(min=1e-12)


def microworld(network: str) -> pd.DataFrame:
    """Every candidate, the oracle and the truth-fitted correlation on one microworld network."""
    data = measure(f"microworld:{network}", "all", "microworld:5000", "microworld", "microworld")
    naming, test = data.split(0.4)
    P, known, shown = naming.I @ naming.T.T, true(naming), true(test)
    fit = fit_judge(P, known)
    seen, tables, final = judged_presence(naming.I, naming.T, fit), [], data.target.layers[-1]
    for layer, q in naming.Q.items():
        scores = candidates(P, q)
        scores |= {"truth-fitted": cross_correlation(q, seen), "oracle": cross_correlation(q, known)}
        held = cross_correlation(test.Q[layer], shown)  # [K, M]
        place = "final" if layer == final else "inner"
        for method, S in scores.items():
            chosen = S.argmax(1)
            values = held.gather(1, chosen[:, None])[:, 0]
            labels = [data.concepts[i] for i in chosen.tolist()]
            tables.append(rows(f"{network} {place}", layer, method, "correlation", values, labels))
    return pd.concat(tables)


def true(data: Measurements) -> Tensor:
    return true_presence(data.probe, data.concepts)


def photos_final(folders: Sequence[str]) -> pd.DataFrame:
    """Top-1 and top-5 of the final layer's units among the class names."""
    data = measure(TARGET, "_fc", f"folder:{folders[0]}", NAMER, "imagenet", batch_size=32)
    words = [" ".join(name.split()) for name in data.target.classes]
    P, truth, tables = data.I @ embed_concepts(data.clip, words).T, torch.arange(1000)[:, None], []
    for method, S in candidates(P, data.Q["_fc"]).items():
        best = S.topk(5, dim=1).indices
        labels = [words[i] for i in best[:, 0].tolist()]
        for measure_, n in (("top1", 1), ("top5", 5)):
            hit = (best[:, :n] == truth).any(1).double()
            tables.append(rows("photos final", "_fc", method, measure_, hit, labels))
    return pd.concat(tables)


def photos(folders: Sequence[str]) -> tuple[list[Measurements], list[str | None]]:
    """Both sets of photos measured, and the class that a folder or file name tells of each photo."""
    first = load_probe(f"folder:{folders[0]}")
    second = load_probe("+".join(f"folder:{folder}" for folder in folders[1:]), limit=OTHERS)
    both = [measure(TARGET, INNER, probe, NAMER, "english:10000", batch_size=32) for probe in (first, second)]
    classes = [Path(id).stem.partition("_")[2] for id in first.ids] + list(second.labels)
    return both, [None if c is None else re.sub(r"[_\W]+", " ", c).strip().lower() for c in classes]


def photos_inner(
    both: list[Measurements],
    classes: list[str | None],
    scored: Callable[[Tensor, Tensor], dict[str, Tensor]] = candidates,
) -> pd.DataFrame:
    """Judged correlation and closeness of inner layers on photos held out."""
    judge, words = load_clip(JUDGE), both[0].concepts
    I = torch.cat([image_embeddings(judge, data.probe, batch_size=32) for data in both])
    T = embed_concepts(judge, words)
    named = sorted({c for c in classes if c})
    has = torch.tensor([i for i, c in enumerate(classes) if c])
    truth = torch.tensor([[classes[i] == c for c in named] for i in has.tolist()])
    fit = fit_judge(I[has] @ embed_concepts(judge, named).T, truth)
    naming, test = split(len(I))
    seen, known = judged_presence(I[test], T, fit), judged_presence(I[naming], T, fit)
    encode, tables = load_sentence_encoder("minilm").encode, []
    near = encode(words) @ encode(named).T  # [M, C]
    class_of = torch.tensor([named.index(c) if c else -1 for c in classes])[test]
    with_class = (class_of >= 0).nonzero()[:, 0]
    P = torch.cat([data.I for data in both])[naming] @ both[0].T.T
    for layer in both[0].Q:
        q = torch.cat([data.Q[layer] for data in both])
        scores = scored(P, q[naming]) | {"oracle": cross_correlation(q[naming], known)}
        top = class_of[with_class][top_images(q[test][with_class], 20)]  # [20, K]
        for method, S in scores.items():
            chosen = S.argmax(1)
            labels = [words[i] for i in chosen.tolist()]
            values = correlation(seen[:, chosen], q[test])
            tables.append(rows("photos inner", layer, method, "judged", values, labels))
            tables.append(rows("photos inner", layer, method, "close", closeness(near, chosen, top), labels))
    return pd.concat(tables)


def closeness(near: Tensor, chosen: Tensor, top: Tensor) -> Tensor:
    """Mean cosine of each label and the classes of its unit's top photos, less that of dealt labels: [K].

    near [M, C], chosen [K], top [n, K] classes.
    """
    every = torch.stack([near[:, top[:, k]].mean(1)[chosen] for k in range(len(chosen))])  # [unit, label]
    generator = torch.Generator().manual_seed(SEED)
    dealt = [torch.randperm(len(chosen), generator=generator) for _ in range(DEALS)]
    control = torch.stack([every.gather(1, deal[:, None])[:, 0] for deal in dealt]).mean(0)
    return every.diagonal() - control


def split(N: int) -> tuple[Tensor, Tensor]:
    """Images to name with and 40 % to test with, spread evenly."""
    from neuronym.common.subsets import split_evenly

    return tuple(torch.as_tensor(part) for part in split_evenly(N, 0.4))


def rows(setup: str, layer: str, method: str, name: str, values: Tensor, labels: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "setup": setup,
            "layer": layer,
            "unit": range(len(labels)),
            "method": method,
            "measure": name,
            "value": values.double().numpy().round(5),
            "label": labels,
        }
    )


def written(table: pd.DataFrame, name: str) -> None:
    """One file: a row for each unit, a column for each method, and the labels apart."""
    key = ["setup", "measure", "layer", "unit"]
    wide = table.pivot(index=key, columns="method", values="value").reset_index()
    wide.to_csv(DATA / f"{name}_units.csv", index=False, float_format="%.4g")
    first = table[table["measure"] == table["measure"].iloc[0]]
    counts = first.groupby(["setup", "method"], sort=False)["label"].apply(label_counts).unstack()
    counts.reset_index().to_csv(DATA / f"{name}_labels.csv", index=False, float_format="%.4g")
    print(table.groupby(["setup", "measure", "method"], sort=False)["value"].mean().unstack(0).unstack(1))
    print(counts)


def label_counts(labels: pd.Series) -> pd.Series:
    """Distinct labels over units, entropy in bits, and how many labels are rare or abstract."""
    from neuronym.datasets.concepts import load_concepts

    share = labels.value_counts(normalize=True)
    rare = set(load_concepts("english:10000")[5000:])
    return pd.Series(
        {
            "units": len(labels),
            "distinct": len(share) / len(labels),
            "entropy": float(-(share * np.log2(share)).sum()),
            "most_common": float(share.iloc[0]),
            "rare": float(labels.isin(rare).mean()),
            "abstract": float(labels.str.contains(ABSTRACT).mean()),
        }
    )


SETUPS = (  # set-up, measure, file
    ("resnet inner", "correlation", "resnet"),
    ("resnet final", "correlation", "resnet"),
    ("vit inner", "correlation", "vit"),
    ("vit final", "correlation", "vit"),
    ("photos final", "top1", "photos_final"),
    ("photos inner", "judged", "photos_inner"),
    ("photos inner", "close", "photos_inner"),
)
NO_CANDIDATES = ("oracle", "truth-fitted")
SHARE = 0.9


def decide() -> None:
    """Means with intervals, shares of the best, the short list and the winner."""
    means, shares = [], {}
    for setup, name, file in SETUPS:
        wide = pd.read_csv(DATA / f"{file}_units.csv")
        wide = wide[(wide["setup"] == setup) & (wide["measure"] == name)]
        methods = [c for c in wide if c not in ("setup", "measure", "layer", "unit")]
        halves = {"all": wide, "even": wide[wide["unit"] % 2 == 0], "odd": wide[wide["unit"] % 2 == 1]}
        for half, part in halves.items():
            table = bootstrapped(part[methods])
            means.append(table.assign(setup=setup, measure=name, half=half, units=len(part)))
            best = table.loc[[m for m in methods if m not in NO_CANDIDATES], "mean"].max()
            shares[f"{setup} {name}", half] = table["mean"] / best
    pd.concat(means).rename_axis("method").reset_index().to_csv(
        DATA / "means.csv", index=False, float_format="%.4g"
    )
    shares = pd.DataFrame(shares)
    shares = shares.drop([m for m in NO_CANDIDATES if m in shares.index])
    first = [("resnet inner correlation", "all"), ("resnet final correlation", "all")]
    listed = shares.index[(shares[first] >= SHARE).all(axis=1)]
    second = [c for c in shares if c[1] == "even" and not c[0].startswith("resnet")]
    least = {
        "least_share_to_decide": shares[first + second].min(axis=1),
        "least_share_reported": shares[first + [(name, "odd") for name, _ in second]].min(axis=1),
    }
    table = pd.DataFrame({name: shares[name, "all"] for name in dict.fromkeys(n for n, _ in shares)} | least)
    table = table.assign(short_list=table.index.isin(listed)).sort_values(
        ["short_list", "least_share_to_decide"], ascending=False
    )
    table.rename_axis("method").reset_index().to_csv(DATA / "shares.csv", index=False, float_format="%.4g")
    numbers = {}
    for i, (setup, name, _) in enumerate(SETUPS):
        for row in pd.concat(means[3 * i : 3 * i + 1]).itertuples():
            numbers |= {
                f"{setup} {name} {row.Index} {key}": getattr(row, key) for key in ("mean", "low", "high")
            }
    for network in ("resnet", "vit"):
        for method in (*shares.index, "truth-fitted"):
            of = {m: numbers[f"{network} inner correlation {m} mean"] for m in (method, "oracle")}
            numbers[f"{network} inner share of the oracle {method}"] = of[method] / of["oracle"]
    for method in shares.index:
        numbers[f"least share {method}"] = shares.loc[method].xs("all", level=1).min()
        numbers |= {f"{name} {method}": table.loc[method, name] for name in least}
    pd.Series(numbers, name="value").rename_axis("metric").to_csv(DATA / "metrics.csv", float_format="%.4g")
    print(table.round(3).to_string())
    left = table[table["short_list"]]
    print(f"short list: {', '.join(listed)}; at least {SHARE} everywhere: ", end="")
    print(
        ", ".join(left.index[left["least_share_to_decide"] >= SHARE]) or "none", f"; winner {left.index[0]}"
    )


def sheet_scores(sheet: str = "sheet", methods: Sequence[str] = ON_SHEET) -> None:
    """Mean score of every method on the contact sheet, and its distance from the first on the same units."""
    scores, key = (pd.read_csv(DATA / f"{sheet}_{name}.csv") for name in ("scores", "key"))
    found = key.merge(scores, on=["case", "label"])
    wide, tables = found.pivot(index="case", columns="method", values="score"), []
    kind = np.where(found.groupby("case")["data"].first() == "photos", "photos", "microworld")
    for name, part in [("all", wide), *wide.groupby(kind)]:
        part = part[list(methods)]
        table = bootstrapped(part)
        against = bootstrapped(part.sub(part[methods[0]], axis=0)).add_prefix(f"against_{methods[0]}_")
        fits = {"fits_most": (part == 2).mean(), "fits_some": (part >= 1).mean(), "units": len(part)}
        tables.append(table.join(against).assign(data=name, **fits))
    table = pd.concat(tables).rename_axis("method").reset_index()
    table.to_csv(DATA / f"{sheet}.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string())


def bootstrapped(values: pd.DataFrame) -> pd.DataFrame:
    """Mean of every column with its interval, the same units drawn for all."""
    generator, x = np.random.default_rng(SEED), values.to_numpy()
    draws = np.empty((DRAWS, x.shape[1]))
    for i in range(DRAWS):
        draws[i] = x[generator.integers(len(x), size=len(x))].mean(0)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return pd.DataFrame({"mean": x.mean(0), "low": low, "high": high}, index=values.columns)


def noise(
    file: str = "noise.csv",
    methods: Sequence[str] = ("soft 2", "sum", "sum, standardised"),
    scored: Callable[[Tensor, Tensor], dict[str, Tensor]] = candidates,
) -> None:
    """Best scores of the inner units of resnet and of the same units with shuffled activations."""
    data = measure("microworld:resnet", "all", "microworld:5000", "microworld", "microworld")
    naming, generator, found = data.split(0.4)[0], torch.Generator().manual_seed(SEED), {}
    P, inner = naming.I @ naming.T.T, [layer for layer in naming.Q if layer != data.target.layers[-1]]
    for layer in inner:
        q = naming.Q[layer]
        dealt = torch.rand(q.shape, generator=generator).argsort(0)
        for kind, activations in (("real", q), ("shuffled", q.gather(0, dealt))):
            for method, S in scored(P, activations).items():
                found.setdefault(method, {}).setdefault(kind, []).append(S.amax(1))
    rows = []
    for method in methods:
        real, shuffled = (torch.cat(found[method][kind]) for kind in ("real", "shuffled"))
        right = torch.cat([torch.ones(len(real)), torch.zeros(len(shuffled))]).bool()
        apart = auroc(torch.cat([real, shuffled]), right)
        rows.append((method, len(real), float(real.median()), float(shuffled.median()), apart))
    columns = ["method", "units", "median_best_score", "median_shuffled", "auroc"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(DATA / file, index=False, float_format="%.4g")
    print(table.to_string(index=False))


def pooling() -> None:
    """Held-out correlation of the default's labels and the oracle's by network, kind of layer and pooling."""
    tables = []
    for network, poolings in (("resnet", ("avg", "max")), ("vit", ("avg", "max", "cls"))):
        for how in poolings:
            data = measure(
                f"microworld:{network}", "all", "microworld:5000", "microworld", "microworld", pool=how
            )
            naming, test = data.split(0.4)
            P, known, shown = naming.P, true(naming), true(test)
            for layer, q in naming.Q.items():
                kind = data.layers[layer].layout.partition("_")[0]
                if kind == "fc" or (how == "cls" and kind != "tokens"):
                    continue
                held = cross_correlation(test.Q[layer], shown)
                scores = {"label": score(P, q, "combined_correlation"), "oracle": cross_correlation(q, known)}
                values = {name: held.gather(1, S.argmax(1)[:, None])[:, 0] for name, S in scores.items()}
                units = {"unit": range(len(held)), "network": network, "kind": kind, "layer": layer}
                tables.append(pd.DataFrame(units | {"pooling": how, **values}))
    table = pd.concat(tables)
    key = ["network", "kind", "layer", "unit"]
    wide = table.pivot(index=key, columns="pooling", values=["label", "oracle"]).reset_index()
    rows = []
    for (network, kind), part in wide.groupby(["network", "kind"], sort=False):
        halves = {"all": part, "even": part[part["unit"] % 2 == 0], "odd": part[part["unit"] % 2 == 1]}
        for half, some in halves.items():
            means = some[["label", "oracle"]].dropna(axis=1)
            against = bootstrapped(means["label"].sub(means["label"]["avg"], axis=0))
            found = pd.DataFrame({"label": means["label"].mean(), "oracle": means["oracle"].mean()})
            found = found.join(against.rename(columns={"mean": "label_against_avg"}))
            better = (means["label"].sub(means["label"]["avg"], axis=0) > 0.1).mean()
            found = found.assign(much_better=better, network=network, kind=kind, half=half, units=len(some))
            rows.append(found.rename_axis("pooling").reset_index())
    table = pd.concat(rows)[
        "network kind half units pooling label oracle label_against_avg low high much_better".split()
    ]
    table.to_csv(DATA / "pooling.csv", index=False, float_format="%.4g")
    print(table.round(3).to_string(index=False))


def on_sheet(P: Tensor, Q: Tensor) -> dict[str, Tensor]:
    found = candidates(P, Q, whole=False)
    return {method: found[method] for method in ON_SHEET}


def sheet(
    folders: Sequence[str],
    out: Path,
    scored: Callable[[Tensor, Tensor], dict[str, Tensor]] = on_sheet,
    seed: int = SEED,
    differ: bool = False,
) -> None:
    """Sheets of ten units with pictures and numbered labels; labels.csv to score, key.csv to open later. With
    `differ` only units that not all methods call the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    cases: list[tuple[str, list[Image.Image], dict[str, str]]] = []
    generator = torch.Generator().manual_seed(seed)
    for network in ("resnet", "vit"):
        data = measure(f"microworld:{network}", "all", "microworld:5000", "microworld", "microworld")
        naming, test = data.split(0.4)
        inner = {layer: q for layer, q in naming.Q.items() if layer != data.target.layers[-1]}
        P = naming.I @ naming.T.T
        some = named(scored, P, inner, data.concepts)
        cases += drawn(network, some, test.Q, test.probe.image, 10, generator, differ)
    both, _ = photos(folders)
    Q = {layer: torch.cat([data.Q[layer] for data in both]) for layer in both[0].Q}
    naming, test = split(len(both[0].I) + len(both[1].I))
    P = torch.cat([data.I for data in both])[naming] @ both[0].T.T

    def photo(i: int) -> Image.Image:
        at = int(test[i])
        return both[0].probe.image(at) if at < both[0].N else both[1].probe.image(at - both[0].N)

    some = named(scored, P, {layer: q[naming] for layer, q in Q.items()}, both[0].concepts)
    held = {layer: q[test] for layer, q in Q.items()}
    cases += drawn("photos", some, held, photo, 20, generator, differ)
    asked, keys = [], []
    for number, (setup, _, labels) in enumerate(cases):
        texts = sorted(set(labels.values()))
        order = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
        asked += [(number, setup.split()[0], j, text, "") for j, text in enumerate(order)]
        keys += [(number, setup, method, order.index(text)) for method, text in labels.items()]
    pd.DataFrame(asked, columns=["case", "data", "label", "text", "score"]).to_csv(
        out / "labels.csv", index=False
    )
    pd.DataFrame(keys, columns=["case", "unit", "method", "label"]).to_csv(out / "key.csv", index=False)
    for start in range(0, len(cases), 10):
        page = Image.new("RGB", (SHOWN * 104, 10 * 126), "white")
        pen = ImageDraw.Draw(page)
        for row, (_, pictures, _) in enumerate(cases[start : start + 10]):
            texts = [f"{j}: {text}" for case, _, j, text, _ in asked if case == start + row]
            pen.text((4, row * 126 + 4), f"case {start + row}   " + "   ".join(texts), fill="black")
            for column, picture in enumerate(pictures):
                page.paste(picture.convert("RGB").resize((102, 102)), (column * 104, row * 126 + 20))
        page.save(out / f"sheet_{start // 10}.png")


def named(
    scored: Callable[[Tensor, Tensor], dict[str, Tensor]],
    P: Tensor,
    naming: dict[str, Tensor],
    words: Sequence[str],
) -> dict[str, list[dict[str, str]]]:
    """Each method's label of every unit of every layer."""
    found = {}
    for layer, q in naming.items():
        best = {method: S.argmax(1).tolist() for method, S in scored(P, q).items()}
        found[layer] = [{method: words[best[method][k]] for method in best} for k in range(q.shape[1])]
    return found


def drawn(
    setup: str,
    labels: dict[str, list[dict[str, str]]],
    test: dict[str, Tensor],
    picture: Callable[[int], Image.Image],
    count: int,
    generator: torch.Generator,
    differ: bool,
) -> list[tuple[str, list[Image.Image], dict[str, str]]]:
    """Units drawn from all layers, with the pictures that excite them most and each method's label."""
    units = [(layer, k) for layer, some in labels.items() for k in range(len(some))]
    order = [units[i] for i in torch.randperm(len(units), generator=generator).tolist()]
    chosen = [(layer, k) for layer, k in order if not differ or len(set(labels[layer][k].values())) > 1]
    found = []
    for layer, k in chosen[:count]:
        best = top_images(test[layer][:, k : k + 1], SHOWN)[:, 0].tolist()
        found.append((f"{setup} {layer} {k}", [picture(i) for i in best], labels[layer][k]))
    return found


if __name__ == "__main__":
    main()
