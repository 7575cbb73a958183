"""What others reported or what follows from their files, beside what is recomputed here.

PUBLISHED     (quantity, whose, network, layer) -> value and digits, as printed
recomputed    the same quantities from the labels and ratings of `neuronym.published.published`
compared      both, and their difference
pool_matches  rated labels that another system gave the same neuron

Values of the ratings, of agreement and of NetDissect's units are in the papers' tables or were counted from the files
once, independently of this code; IoU .04 is NetDissect's rule for a detector (Bau et al. 2017, section 3.1).
"""
from __future__ import annotations

import pandas as pd

from neuronym.common.resampling import interval, paired
from neuronym.published.agreement import agreement

DETECTOR = .04
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
RN50, RN18, RN152, EUROSAT = "resnet50", "resnet18_places365", "resnet152", "resnet50_eurosat"
RANDOM = {"rating, low": .01, "rating, high": .01}  # how far draws of a bootstrap may be apart
POOL = ("milan_base", "milan_places365", "clip_dissect", "netdissect")


def _by_layer(quantity: str, whose: str, network: str, layers: str, values: list[float], digits: int = 0) -> dict:
    return {(quantity, whose, network, layer): (value, digits) for layer, value in zip(layers.split(), values)}


PUBLISHED: dict[tuple[str, str, str, str], tuple[float, int]] = {
    **_by_layer("distinct labels", "clip_dissect", RN50, "conv1 layer1 layer2 layer3 layer4", [22, 90, 176, 430, 811]),
    **_by_layer("distinct labels", "clip_dissect", RN18, "conv1 layer1 layer2 layer3 layer4", [17, 37, 67, 148, 317]),
    **_by_layer("distinct labels", "milan_base", RN50, "layer4 fc", [351, 251]),
    **_by_layer("distinct labels", "dnd", RN50, "fc", [869]),
    **_by_layer("distinct labels", "dnd", EUROSAT, "layer4", [690]),
    **_by_layer("labels with fishing", "dnd", EUROSAT, "layer4", [853]),
    **_by_layer("times fishing", "dnd", EUROSAT, "layer4", [883]),
    **_by_layer("labels with purple or pink", "dnd", EUROSAT, "layer4", [609]),
    **_by_layer("commonest label", "milan_base", RN50, "layer4", [278]),
    **_by_layer("words of a label", "dnd", RN50, "fc", [3.31], 2),
    **_by_layer("neurons", "clip_dissect", RN50, "conv1 layer1 layer2 layer3 layer4 all",
                [64, 256, 512, 1024, 2048, 3904]),
    **_by_layer("neurons", "clip_dissect", RN18, "conv1 layer1 layer2 layer3 layer4 all",
                [64, 64, 128, 256, 512, 1024]),
    **_by_layer("neurons", "clip_dissect", RN152, "all", [200]),
    **_by_layer("neurons", "milan_base", RN50, "fc all", [1000, 4904]),
    **_by_layer("neurons", "milan_base", RN18, "all", [1024]),
    **_by_layer("neurons", "milan_imagenet", RN18, "all", [1024]),
    **_by_layer("neurons", "milan_places365", RN50, "all", [3904]),
    **_by_layer("neurons", "milan_places365", RN152, "all", [3904]),
    **_by_layer("neurons", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [256, 512, 1024, 2048, 1000]),
    **_by_layer("neurons", "netdissect", RN18, "layer1 layer4 fc", [64, 512, 365]),
    **_by_layer("neurons", "dnd", RN50, "layer1 layer2 layer3 layer4 fc", [50, 50, 50, 50, 1000]),
    **_by_layer("neurons", "dnd", RN152, "layer1 layer2 layer3 layer4", [50] * 4),
    **_by_layer("neurons", "dnd_blip2", RN50, "layer1 layer2 layer3 layer4", [50] * 4),
    **_by_layer("neurons", "dnd", EUROSAT, "layer4", [2048]),
    **_by_layer("neurons", "milannotations", RN152, "all", [3904]),
    **_by_layer("texts", "milannotations", RN152, "all", [11712]),
    **_by_layer("mean score", "clip_dissect", RN50, "conv1 layer1 layer2 layer3 layer4", [.2079, .1787, .1747, .2116, .3181], 4),
    **_by_layer("mean score", "clip_dissect", RN18, "conv1 layer1 layer2 layer3 layer4", [.1776, .1679, .1665, .1893, .3196], 4),
    **_by_layer("mean score", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [.0301, .0202, .0352, .0606, .1287], 4),
    **_by_layer("mean score", "netdissect", RN18, "layer1 layer4 fc", [.0231, .0742, .1895], 4),
    **_by_layer("detectors", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [61, 62, 276, 1355, 983]),
    **_by_layer("detectors", "netdissect", RN18, "layer1 layer4 fc", [6, 434, 364]),
    **_by_layer("detector labels", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [20, 19, 76, 186, 222]),
    **_by_layer("detector labels", "netdissect", RN18, "layer1 layer4 fc", [4, 187, 195]),
    **_by_layer("agreement", "clip_dissect ~ netdissect", RN50, "layer1 layer2 layer3 layer4", [.094, .084, .043, .043], 3),
    **_by_layer("agreement", "clip_dissect ~ milan_base", RN50, "layer1 layer2 layer3 layer4", [.086, .064, .040, .031], 3),
    **_by_layer("agreement", "milan_base ~ netdissect", RN50, "layer1 layer2 layer3 layer4", [.086, .096, .079, .043], 3),
    **_by_layer("agreement", "milan_base ~ milan_places365", RN50, "layer1 layer2 layer3 layer4", [.570, .473, .358, .434], 3),
    **_by_layer("agreement", "clip_dissect ~ dnd", RN50, "layer1 layer2 layer3 layer4", [.120, .160, .140, .100], 3),
    **_by_layer("mean rating", "Mean", RN50, "layer1 layer2 layer3 layer4", [2.99, 2.79, 2.40, 2.24], 2),
    **_by_layer("mean rating", "Topk-Sq", RN50, "layer1 layer2 layer3 layer4", [3.07, 2.77, 2.36, 2.29], 2),
    **_by_layer("mean rating", "Image-Products", RN50, "layer1 layer2 layer3 layer4", [3.29, 3.12, 3.02, 2.68], 2),
    **_by_layer("mean rating", "Topk-Compare", RN50, "layer1 layer2 layer3 layer4", [3.33, 2.99, 2.67, 2.42], 2),
    **{(f"rating, {what}", whose, RN50, "all"): (value, 3) for whose, values in {
        "Mean": (2.605, 2.428, 2.780), "Topk-Sq": (2.623, 2.445, 2.809), "Image-Products": (3.027, 2.867, 3.192),
        "Topk-Compare": (2.853, 2.660, 3.035)}.items() for what, value in zip(("mean", "low", "high"), values)},
    **{("rating, difference", whose, RN50, "all"): (value, 3) for whose, value in {
        "Image-Products ~ Topk-Compare": .175, "Image-Products ~ Mean": .422, "Mean ~ Topk-Compare": -.247}.items()},
    **{("rating, Wilcoxon p", whose, RN50, "all"): value for whose, value in {
        "Image-Products ~ Topk-Compare": (.091, 3), "Image-Products ~ Mean": (1.6e-4, 5),
        "Mean ~ Topk-Compare": (.0017, 4)}.items()},
    **{("Spearman of raters", whose, RN50, "all"): (value, 2)
       for whose, value in {"lowest": .51, "highest": .66}.items()},
    **{("uninterpretable", whose, RN50, "all"): (value, 0) for whose, value in {"E1": 20, "E2": 17}.items()},
    **{("none fits", whose, RN50, "all"): (value, 0) for whose, value in {"E1": 57, "E2": 36}.items()},
    **{(f"rated labels in the pool, {what}", whose, RN50, "all"): (value, 0)
       for whose, values in zip(POOL, ((26, 38), (17, 36), (40, 49), (22, 27)))
       for what, value in zip(("fewest", "most"), values)},
}


def recomputed(labels: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Columns quantity, whose, network, layer, recomputed: every quantity of PUBLISHED, for all that the tables hold."""
    best = labels[labels["rank"] == 1]
    by = ["method", "model", "layer"]
    groups, everywhere = best.groupby(by), best.assign(layer="all").groupby(by)
    parts = [_long("distinct labels", groups["label"].nunique()), _long("mean score", groups["score"].mean().dropna()),
             _long("neurons", groups.size()), _long("neurons", everywhere.size()),
             _long("texts", labels.assign(layer="all").groupby(by).size()),
             _long("commonest label", groups["label"].agg(lambda some: some.value_counts().iloc[0])),
             _long("words of a label", groups["label"].agg(lambda some: some.str.split().str.len().mean()))]
    found = best[(best["method"] == "netdissect") & (best["score"] >= DETECTOR)].groupby(by)["label"]
    parts += [_long("detectors", found.size()), _long("detector labels", found.nunique())]
    satellite = best[best["model"] == EUROSAT].assign(label=lambda t: t["label"].str.lower()).groupby(by)["label"]
    parts += [_long("labels with fishing", satellite.agg(lambda some: some.str.contains("fishing").sum())),
              _long("times fishing", satellite.agg(lambda some: some.str.count("fishing").sum())),
              _long("labels with purple or pink", satellite.agg(lambda some: some.str.contains("purple|pink").sum()))]
    for _, pair, network, _ in dict.fromkeys(key[:3] + ("",) for key in PUBLISHED if key[0] == "agreement"):
        first, second = (best[(best["method"] == name) & (best["model"] == network)] for name in pair.split(" ~ "))
        found = agreement(first, second, shifts=()).assign(whose=pair, network=network, quantity="agreement")
        parts.append(found.rename(columns={"agreement": "recomputed"})[parts[0].columns])
    return pd.concat([*parts, _of_ratings(ratings), _of_pool(pool_matches(ratings, labels))], ignore_index=True)


def compared(found: pd.DataFrame) -> pd.DataFrame:
    """PUBLISHED beside `recomputed`: columns quantity, whose, network, layer, published, recomputed, difference, same.

    `same` is whether both agree to the printed digits, or within RANDOM where draws are involved. What is not found is
    NaN and not the same.
    """
    keys = ["quantity", "whose", "network", "layer"]
    table = pd.DataFrame([(*key, value, digits) for key, (value, digits) in PUBLISHED.items()],
                         columns=[*keys, "published", "digits"]).merge(found, on=keys, how="left")
    table["difference"] = table["recomputed"].astype("float64") - table["published"]
    within = (.5 * 10. ** -table["digits"]).clip(lower=table["quantity"].map(RANDOM).fillna(0))
    return table.assign(same=table["difference"].abs() <= within * (1 + 1e-9)).drop(columns="digits")


def pool_matches(ratings: pd.DataFrame, labels: pd.DataFrame, moved: int = 0) -> pd.DataFrame:
    """Rated labels, by scoring function, that each system of POOL gave the same neuron of ResNet-50 word for word, upper
    and lower case alike; `moved` moves the systems' units, which shows what a wrong count costs."""
    rated = ratings[ratings["rater"] == ratings["rater"].iloc[0]].assign(label=lambda t: t["label"].str.lower())
    theirs = labels[(labels["model"] == RN50) & (labels["rank"] == 1) & labels["method"].isin(POOL)]
    theirs = theirs.assign(label=theirs["label"].str.lower(), unit=theirs["unit"] + moved)
    met = rated[["layer", "unit", "scoring", "label"]].merge(theirs[["method", "layer", "unit", "label"]])
    return met.groupby(["method", "scoring"]).size().unstack(fill_value=0).reindex(
        index=POOL, columns=list(dict.fromkeys(ratings["scoring"])), fill_value=0)


def _of_ratings(ratings: pd.DataFrame) -> pd.DataFrame:
    """What PUBLISHED has of the ratings; resampled and paired are neurons, with both raters' mean each."""
    rows = [("mean rating", scoring, layer, value)
            for (scoring, layer), value in ratings.groupby(["scoring", "layer"])["rating"].mean().items()]
    wide = ratings.pivot_table(index=["layer", "unit"], columns="scoring", values="rating")
    for scoring in wide:
        values = wide[scoring].mean(), *interval(wide[scoring])
        rows += [(f"rating, {what}", scoring, "all", value) for what, value in zip(("mean", "low", "high"), values)]
    for test in paired(wide).itertuples():
        pair = f"{test.first} ~ {test.second}"
        rows += [("rating, difference", pair, "all", test.difference), ("rating, Wilcoxon p", pair, "all", test.p)]
    raters = ratings.pivot_table(index=["scoring", "layer", "unit"], columns="rater", values="rating").groupby("scoring")
    alike = [some.corr("spearman").iloc[0, 1] for _, some in raters]
    rows += [("Spearman of raters", "lowest", "all", min(alike)), ("Spearman of raters", "highest", "all", max(alike))]
    once = ratings[ratings["scoring"] == ratings["scoring"].iloc[0]].groupby("rater")[["uninterpretable", "none"]].sum()
    rows += [(name, rater, "all", once.loc[rater, column]) for rater in once.index
             for name, column in (("uninterpretable", "uninterpretable"), ("none fits", "none"))]
    table = pd.DataFrame(rows, columns=["quantity", "whose", "layer", "recomputed"])
    return table.assign(network=RN50)


def _of_pool(matches: pd.DataFrame) -> pd.DataFrame:
    ends = pd.DataFrame({"fewest": matches.min(axis=1), "most": matches.max(axis=1)}).stack()
    return pd.DataFrame([(f"rated labels in the pool, {what}", system, RN50, "all", n) for (system, what), n in ends.items()],
                        columns=["quantity", "whose", "network", "layer", "recomputed"])


def _long(quantity: str, values: pd.Series) -> pd.DataFrame:
    table = values.rename("recomputed").reset_index().set_axis(["whose", "network", "layer", "recomputed"], axis=1)
    return table.assign(quantity=quantity)[["quantity", "whose", "network", "layer", "recomputed"]]
