"""Can another sum of correlations name better than the default? The second part of
docs/protocols/default_name.md.

    python docs/protocols/default_name_again.py development --networks FOLDER --photos CALTECH101 DTD FLICKR8K
    python docs/protocols/default_name_again.py confirm --photos IMAGENET
    python docs/protocols/default_name_again.py check --photos IMAGENET CALTECH101 DTD FLICKR8K
    python docs/protocols/default_name_again.py sheet --photos IMAGENET CALTECH101 DTD FLICKR8K
    python docs/protocols/default_name_again.py scores --photos IMAGENET
    python docs/protocols/default_name_again.py mixed --photos IMAGENET CALTECH101 DTD FLICKR8K

FOLDER holds target_resnet.safetensors and target_vit.safetensors, targets of the microworld trained anew for
development. `development` writes again_development.csv and `confirm` again.csv, both to
docs/results/data/default_name/; `check` and `sheet` are of the default and the sum that was confirmed, and
`scores` reads again_sheet_scores.csv and again_sheet_key.csv there. `mixed` looks, afterwards, at what the
terms and sums do to final units where most photos show none of their classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import default_name as first_part
import pandas as pd
import torch
from default_name import bootstrapped, DATA, JUDGE, NAMER, SEED, split, standardised, TARGET, true
from torch import Tensor

from neuronym.activations import embed_concepts, image_embeddings
from neuronym.common.statistics import cross_correlation
from neuronym.common.subsets import evenly_spaced
from neuronym.datasets.probe import load_probe
from neuronym.datasets.probe_sets import list_images
from neuronym.evaluation.presence import judged_presence, unfitted
from neuronym.measurements import measure, Measurements
from neuronym.models.clips import load_clip
from neuronym.models.targets import load_target
from neuronym.similarity.scores import score
from neuronym.similarity.softened import mean_spread

LAYERS = {
    TARGET: "_blocks.4,_blocks.10,_blocks.15,_fc",
    "efficientnet_lite1": "_blocks.6,_blocks.14,_blocks.20,_fc",
}
SUMS = {  # candidates, each a sum of what `terms` gives
    "sum": ("plain", "cubed", "soft"),
    "sum + raised": ("plain", "cubed", "soft", "raised"),
    "soft + half + bent": ("soft", "half raised", "bent"),
    "twice + half + bent": ("twice", "half raised", "bent"),
    "2 twice + half + bent": ("twice", "twice", "half raised", "bent"),
    "twice + half + cubed": ("twice", "half raised", "cubed"),
    "soft + 2 half + bent": ("soft", "half raised", "half raised", "bent"),
}
BOTH = ("sum", "twice + half + bent")
HIGHEST = 8  # deviations above its mean to which a cosine is raised

Scored = Callable[[Tensor, Tensor], dict[str, Tensor]]
Setup = tuple[
    str, dict[str, Tensor], Tensor
]  # what is measured, terms [K, M], the value of each label [K, M]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("development", "confirm", "check", "sheet", "scores", "mixed"))
    parser.add_argument("--photos", nargs="+", metavar="FOLDER", required=True)
    parser.add_argument("--networks", type=Path, help="folder of two targets trained anew (development)")
    parser.add_argument("--out", type=Path, default=Path("sheets"), help="folder of the sheets")
    given = parser.parse_args()
    if given.what == "confirm":
        return confirm(given.photos)
    if given.what == "check":
        return check(given.photos)
    if given.what == "mixed":
        return mixed(given.photos)
    if given.what == "sheet":
        return first_part.sheet(given.photos, given.out, both_sums, SEED + 1, differ=True)
    if given.what == "scores":
        return first_part.sheet_scores("again_sheet", BOTH)
    rows = []
    for setup, found, held in development(given.networks, given.photos):
        values = {name: chosen(found, names, held).mean() for name, names in SUMS.items()}
        values |= {name: chosen(found, [name], held).mean() for name in found}
        rows += [(setup, name, float(value)) for name, value in values.items()]
    table = pd.DataFrame(rows, columns=["setup", "name", "mean"])
    wide = table.pivot_table(index="name", columns="setup", values="mean", sort=False)
    least = (wide / wide.loc["sum"]).drop(index="oracle").min(axis=1).rename("least_against_sum")
    table = wide.join(least)
    table.reset_index().to_csv(DATA / "again_development.csv", index=False, float_format="%.4g")
    print(table.round(4).to_string())


def terms(P: Tensor, Q: Tensor) -> dict[str, Tensor]:
    """Correlations of units with what is made of the cosines, [K, M] each: P [N, M], Q [N, K]."""
    z, u = standardised(P.T).T, standardised(Q.T).T
    double = standardised(standardised(P).T).T  # per image over concepts, then per concept over images
    shares = (double * (2 / mean_spread(double))).softmax(1)
    raised = z.clamp(max=HIGHEST).exp()
    return {
        "plain": score(P, Q, "correlation"),
        "cubed": score(P, Q, "cos_similarity_cubed"),
        "soft": score(P, Q, "soft_correlation"),
        "twice": cross_correlation(Q, shares),
        "raised": cross_correlation(Q, raised),
        "half raised": cross_correlation(Q, (z / 2).exp()),
        "bent": cross_correlation(u + u.clamp(min=0).square() / 2, raised),
    }


def chosen(found: dict[str, Tensor], names: Sequence[str], held: Tensor) -> Tensor:
    """What the label of each unit is worth, by the sum of some terms."""
    return held.gather(1, sum(found[name] for name in names).argmax(1)[:, None])[:, 0]


def development(networks: Path, folders: Sequence[str], scored: Scored = terms) -> Iterator[Setup]:
    """Set-ups that choose: both CLIPs' towers, each named by the other, two new targets, photos of lite1."""
    probe = load_probe("microworld:4000", seed=7)
    for tower, namer in (("microworld:vit", "microworld"), ("microworld", "microworld:vit")):
        clip = load_clip(tower)
        name = tower.replace(":", "_") + "_tower"
        target = load_target(clip.model.visual, preprocess=clip.preprocess, name=name)
        yield inner(measure(target, "all", probe, namer, "microworld"), f"{tower} tower", scored)
    for kind in ("resnet", "vit"):
        data = measure(f"microworld:{kind}@{networks}", "all", probe, "microworld", "microworld")
        yield inner(data, f"new {kind}", scored)
    rows = list_images("+".join(f"folder:{folder}" for folder in folders), 0)
    used = {int(i) for i in evenly_spaced(1688, len(rows))}  # of the first part
    left = [i for i in range(len(rows)) if i not in used]
    probe = load_probe([rows[left[int(i)]].item for i in evenly_spaced(640, len(left))])
    others = "conse:efficientnet_lite0", "conse:efficientnet_lite2"
    yield from photos(probe, "efficientnet_lite1", *others, scored)


def inner(data: Measurements, setup: str, scored: Scored = terms) -> Setup:
    """All layers but the last, by the truth about scenes held out."""
    return layered(data, setup, [layer for layer in data.Q if layer != data.target.layers[-1]], scored)


def layered(data: Measurements, setup: str, layers: Sequence[str], scored: Scored = terms) -> Setup:
    naming, test = data.split(0.4)
    q, held = (torch.cat([part.Q[layer] for layer in layers], 1).float() for part in (naming, test))
    alive = q.std(0) > 1e-8
    q, held = q[:, alive], cross_correlation(held[:, alive], true(test))
    found = scored(naming.I @ naming.T.T, q) | {"oracle": cross_correlation(q, true(naming))}
    return setup, found, held


def photos(
    probe: object, target: str, namer: str, judge_name: str, scored: Scored = terms
) -> Iterator[Setup]:
    """Inner units by what a judge sees in photos held out, and top-1 of final ones by all photos."""
    data, judge = (
        measure(target, LAYERS[target], probe, namer, "english:10000", batch_size=32),
        load_clip(judge_name),
    )
    J, words = image_embeddings(judge, data.probe, batch_size=32), embed_concepts(judge, data.concepts)
    seen = judged_presence(J, words, unfitted(J, words))
    naming, test = split(data.N)
    Q = torch.cat([q for layer, q in data.Q.items() if layer != "_fc"], 1).float()
    held = cross_correlation(Q[test], seen[test])
    oracle = {"oracle": cross_correlation(Q[naming], seen[naming])}
    yield "photos inner judged", scored(data.I[naming] @ data.T.T, Q[naming]) | oracle, held
    classes = embed_concepts(data.clip, [" ".join(name.split()) for name in data.target.classes])
    yield "photos final top1", scored(data.I @ classes.T, data.Q["_fc"].float()), torch.eye(len(classes))


def confirm(folders: Sequence[str]) -> None:
    """Means with intervals of all sums, and their paired distance from the default's, unit by unit."""
    tables = []
    for setup, found, held in confirming(folders[0]):
        names = SUMS | ({"oracle": ("oracle",)} if "oracle" in found else {})
        values = pd.DataFrame(
            {name: chosen(found, some, held).double().numpy() for name, some in names.items()}
        )
        against = bootstrapped(values.sub(values["sum"], axis=0)).add_prefix("against_sum_")
        table = bootstrapped(values).join(against).assign(setup=setup, units=len(values))
        oracle = table["mean"].get("oracle")
        tables.append(table.assign(share_of_oracle=table["mean"] / oracle if oracle else None))
    table = pd.concat(tables).rename_axis("name").reset_index()
    table.to_csv(DATA / "again.csv", index=False, float_format="%.4g")
    print(table.round(4).to_string())


def confirming(imagenet: str, scored: Scored = terms) -> Iterator[Setup]:
    """Set-ups that confirm: the microworld's two networks, inner and final, and ImageNet photos of lite0."""
    for kind in ("resnet", "vit"):
        data = measure(f"microworld:{kind}", "all", "microworld:5000", "microworld", "microworld")
        yield inner(data, f"{kind} inner", scored)
        yield layered(data, f"{kind} final", [data.target.layers[-1]], scored)
    yield from photos(load_probe(f"folder:{imagenet}"), TARGET, NAMER, JUDGE, scored)


def both_sums(P: Tensor, Q: Tensor) -> dict[str, Tensor]:
    functions = ("combined_correlation", "standardised_correlation")
    return {name: score(P, Q, function) for name, function in zip(BOTH, functions)}


def check(folders: Sequence[str]) -> None:
    """What else the new default must pass: closeness, and scores that stand out from shuffled units'."""
    table = first_part.photos_inner(*first_part.photos(folders), both_sums)
    first_part.written(table, "again_inner")
    wide = pd.read_csv(DATA / "again_inner_units.csv")
    tables = []
    for measure_, part in wide.groupby("measure", sort=False):
        values = part[[*BOTH, "oracle"]].dropna()
        against = bootstrapped(values.sub(values["sum"], axis=0)).add_prefix("against_sum_")
        tables.append(bootstrapped(values).join(against).assign(measure=measure_, units=len(values)))
    table = pd.concat(tables).rename_axis("name").reset_index()
    table.to_csv(DATA / "again_inner.csv", index=False, float_format="%.4g")
    print(table.round(4).to_string())
    first_part.noise("again_noise.csv", BOTH, both_sums)


def mixed(folders: Sequence[str]) -> None:
    """Top-1 of final units by every term and sum, from the ImageNet photos alone and among all others."""
    tables = {}
    for name, some in (("imagenet", folders[:1]), ("all", folders)):
        probe = load_probe("+".join(f"folder:{folder}" for folder in some))
        data = measure(TARGET, LAYERS[TARGET], probe, NAMER, "imagenet", batch_size=64)
        classes = embed_concepts(data.clip, [" ".join(name.split()) for name in data.target.classes])
        found, right = terms(data.I @ classes.T, data.Q["_fc"].float()), torch.arange(len(classes))
        found |= {name: sum(found[term] for term in names) for name, names in SUMS.items()}
        tables[name] = {of: float((S.argmax(1) == right).double().mean()) for of, S in found.items()}
    table = pd.DataFrame(tables).rename_axis("name").reset_index()
    table.to_csv(DATA / "again_mixed.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
