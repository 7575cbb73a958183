"""Values that others printed, or that follow from their files, beside what is recomputed here.

DETECTOR      IoU from which a unit is a detector (Bau et al. 2017, section 3.1)
LAYERS        a ResNet's layers, in their order
EUROSAT       the network of Describe-and-Dissect's satellite images
printed       a table of data/published by name
recomputed    every quantity of `label_statistics`, from the labels and ratings of `published.labels`
compared      printed and recomputed values, and their difference
pool_matches  rated labels that another system gave the same neuron

Values of the ratings, of agreement and of NetDissect's units are in the papers' tables or were counted from
the files once, independently of this code; each row of the table says which.
"""

from __future__ import annotations

import pandas as pd

from neuronym.common.checks import unknown
from neuronym.common.statistics import interval, paired
from neuronym.published.labels import agreement, TABLES

DETECTOR = 0.04
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
RN50, EUROSAT = "resnet50", "resnet50_eurosat"
RANDOM = {"rating, low": 0.01, "rating, high": 0.01}  # how far draws of a bootstrap may be apart
POOL = ("milan_base", "milan_places365", "clip_dissect", "netdissect")


def printed(name: str) -> pd.DataFrame:
    """Values that others printed, data/published/NAME.csv: `quantity` and what else tells a row, then
    `source`, `value` (as a float, shares not in percent) and `digits` (how many are printed after the point).

    Errors: KeyError with the nearest names for a table that there is not.
    """
    names = sorted(path.stem for path in TABLES.glob("*.csv") if path.stem != "label_files")
    if name not in names:
        raise unknown("table of printed values", name, names)
    # as text first: pandas' fast parser may be off by the last bit
    table = pd.read_csv(TABLES / f"{name}.csv", dtype={"value": str}, keep_default_na=False)
    return table.astype({"value": float})


def recomputed(labels: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Columns quantity, whose, network, layer, recomputed: every quantity of `label_statistics`, for all that
    the tables hold.
    """
    best = labels[labels["rank"] == 1]
    by = ["method", "model", "layer"]
    groups, everywhere = best.groupby(by), best.assign(layer="all").groupby(by)
    parts = [
        _long("distinct labels", groups["label"].nunique()),
        _long("mean score", groups["score"].mean().dropna()),
        _long("neurons", groups.size()),
        _long("neurons", everywhere.size()),
        _long("texts", labels.assign(layer="all").groupby(by).size()),
        _long("commonest label", groups["label"].agg(lambda some: some.value_counts().iloc[0])),
        _long("words of a label", groups["label"].agg(lambda some: some.str.split().str.len().mean())),
    ]
    found = best[(best["method"] == "netdissect") & (best["score"] >= DETECTOR)].groupby(by)["label"]
    parts += [_long("detectors", found.size()), _long("detector labels", found.nunique())]
    satellite = (
        best[best["model"] == EUROSAT].assign(label=lambda t: t["label"].str.lower()).groupby(by)["label"]
    )
    parts += [
        _long("labels with fishing", satellite.agg(lambda some: some.str.contains("fishing").sum())),
        _long("times fishing", satellite.agg(lambda some: some.str.count("fishing").sum())),
        _long(
            "labels with purple or pink", satellite.agg(lambda some: some.str.contains("purple|pink").sum())
        ),
    ]
    known = printed("label_statistics")
    pairs = known.loc[known["quantity"] == "agreement", ["whose", "network"]].drop_duplicates()
    for pair, network in pairs.itertuples(index=False):
        first, second = (
            best[(best["method"] == name) & (best["model"] == network)] for name in pair.split(" ~ ")
        )
        found = agreement(first, second, shifts=()).assign(whose=pair, network=network, quantity="agreement")
        parts.append(found.rename(columns={"agreement": "recomputed"})[parts[0].columns])
    return pd.concat(
        [*parts, _of_ratings(ratings), _of_pool(pool_matches(ratings, labels))], ignore_index=True
    )


def compared(found: pd.DataFrame, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """What was printed (`label_statistics` by default) beside `recomputed`: columns quantity, whose, network,
    layer, published, recomputed, difference, same.

    `same` is whether both agree to the printed digits, or within RANDOM where draws are involved. What is not
    found is NaN and not the same.
    """
    keys = ["quantity", "whose", "network", "layer"]
    known = printed("label_statistics") if known is None else known
    table = known.rename(columns={"value": "published"})[[*keys, "published", "digits"]]
    table = table.merge(found, on=keys, how="left")
    table["difference"] = table["recomputed"].astype("float64") - table["published"]
    within = (0.5 * 10.0 ** -table["digits"]).clip(lower=table["quantity"].map(RANDOM).fillna(0))
    return table.assign(same=table["difference"].abs() <= within * (1 + 1e-9)).drop(columns="digits")


def pool_matches(ratings: pd.DataFrame, labels: pd.DataFrame, moved: int = 0) -> pd.DataFrame:
    """Rated labels, by scoring function, that each system of POOL gave the same neuron of ResNet-50 word for
    word, upper and lower case alike; `moved` moves the systems' units, which shows what a wrong count costs.
    """
    rated = ratings[ratings["rater"] == ratings["rater"].iloc[0]].assign(
        label=lambda t: t["label"].str.lower()
    )
    theirs = labels[(labels["model"] == RN50) & (labels["rank"] == 1) & labels["method"].isin(POOL)]
    theirs = theirs.assign(label=theirs["label"].str.lower(), unit=theirs["unit"] + moved)
    met = rated[["layer", "unit", "scoring", "label"]].merge(theirs[["method", "layer", "unit", "label"]])
    return (
        met.groupby(["method", "scoring"])
        .size()
        .unstack(fill_value=0)
        .reindex(index=POOL, columns=list(dict.fromkeys(ratings["scoring"])), fill_value=0)
    )


def _of_ratings(ratings: pd.DataFrame) -> pd.DataFrame:
    """What `label_statistics` has of the ratings; resampled and paired are neurons, with both raters' mean
    each.
    """
    rows = [
        ("mean rating", scoring, layer, value)
        for (scoring, layer), value in ratings.groupby(["scoring", "layer"])["rating"].mean().items()
    ]
    wide = ratings.pivot_table(index=["layer", "unit"], columns="scoring", values="rating")
    for scoring in wide:
        values = wide[scoring].mean(), *interval(wide[scoring])
        rows += [
            (f"rating, {what}", scoring, "all", value) for what, value in zip(("mean", "low", "high"), values)
        ]
    for test in paired(wide).itertuples():
        pair = f"{test.first} ~ {test.second}"
        rows += [
            ("rating, difference", pair, "all", test.difference),
            ("rating, Wilcoxon p", pair, "all", test.p),
        ]
    raters = ratings.pivot_table(
        index=["scoring", "layer", "unit"], columns="rater", values="rating"
    ).groupby("scoring")
    alike = [some.corr("spearman").iloc[0, 1] for _, some in raters]
    rows += [
        ("Spearman of raters", "lowest", "all", min(alike)),
        ("Spearman of raters", "highest", "all", max(alike)),
    ]
    once = (
        ratings[ratings["scoring"] == ratings["scoring"].iloc[0]]
        .groupby("rater")[["uninterpretable", "none"]]
        .sum()
    )
    rows += [
        (name, rater, "all", once.loc[rater, column])
        for rater in once.index
        for name, column in (("uninterpretable", "uninterpretable"), ("none fits", "none"))
    ]
    table = pd.DataFrame(rows, columns=["quantity", "whose", "layer", "recomputed"])
    return table.assign(network=RN50)


def _of_pool(matches: pd.DataFrame) -> pd.DataFrame:
    ends = pd.DataFrame({"fewest": matches.min(axis=1), "most": matches.max(axis=1)}).stack()
    return pd.DataFrame(
        [(f"rated labels in the pool, {what}", system, RN50, "all", n) for (system, what), n in ends.items()],
        columns=["quantity", "whose", "network", "layer", "recomputed"],
    )


def _long(quantity: str, values: pd.Series) -> pd.DataFrame:
    table = (
        values.rename("recomputed")
        .reset_index()
        .set_axis(["whose", "network", "layer", "recomputed"], axis=1)
    )
    return table.assign(quantity=quantity)[["quantity", "whose", "network", "layer", "recomputed"]]
