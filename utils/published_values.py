"""What others reported or what follows from their files, beside what is recomputed here.

PUBLISHED   (quantity, whose, network, layer) -> value and digits, as printed
recomputed  the same quantities from the labels and ratings of `utils.published`
compared    both, and their difference

Values of the ratings, of agreement and of NetDissect's units are in the papers' tables or were counted from the files
once, independently of this code; IoU .04 is NetDissect's rule for a detector (Bau et al. 2017, section 3.1).
"""
from __future__ import annotations

import pandas as pd

from utils.agreement import agreement

DETECTOR = .04
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
RN50, RN18 = "resnet50", "resnet18_places365"


def _by_layer(quantity: str, whose: str, network: str, layers: str, values: list[float], digits: int = 0) -> dict:
    return {(quantity, whose, network, layer): (value, digits) for layer, value in zip(layers.split(), values)}


PUBLISHED: dict[tuple[str, str, str, str], tuple[float, int]] = {
    **_by_layer("distinct labels", "clip_dissect", RN50, "conv1 layer1 layer2 layer3 layer4", [22, 90, 176, 430, 811]),
    **_by_layer("distinct labels", "clip_dissect", RN18, "conv1 layer1 layer2 layer3 layer4", [17, 37, 67, 148, 317]),
    **_by_layer("distinct labels", "milan_base", RN50, "layer4 fc", [351, 251]),
    **_by_layer("distinct labels", "dnd", RN50, "fc", [869]),
    **_by_layer("distinct labels", "dnd", "resnet50_eurosat", "layer4", [690]),
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
}


def recomputed(labels: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Columns quantity, whose, network, layer, recomputed: every quantity of PUBLISHED, for all that the tables hold."""
    best = labels[labels["rank"] == 1]
    groups = best.groupby(["method", "model", "layer"])
    parts = [_long("distinct labels", groups["label"].nunique()), _long("mean score", groups["score"].mean().dropna())]
    found = best[(best["method"] == "netdissect") & (best["score"] >= DETECTOR)].groupby(["method", "model", "layer"])["label"]
    parts += [_long("detectors", found.size()), _long("detector labels", found.nunique())]
    rated = ratings.assign(model=RN50).groupby(["scoring", "model", "layer"])["rating"].mean()
    parts.append(_long("mean rating", rated))
    for _, pair, network, _ in dict.fromkeys(key[:3] + ("",) for key in PUBLISHED if key[0] == "agreement"):
        first, second = (best[(best["method"] == name) & (best["model"] == network)] for name in pair.split(" ~ "))
        found = agreement(first, second, shifts=()).assign(whose=pair, network=network, quantity="agreement")
        parts.append(found.rename(columns={"agreement": "recomputed"})[parts[0].columns])
    return pd.concat(parts, ignore_index=True)


def compared(found: pd.DataFrame) -> pd.DataFrame:
    """PUBLISHED beside `recomputed`: columns quantity, whose, network, layer, published, recomputed, difference, same.

    `same` is whether both agree to the printed digits. What is not found is NaN and not the same.
    """
    keys = ["quantity", "whose", "network", "layer"]
    table = pd.DataFrame([(*key, value, digits) for key, (value, digits) in PUBLISHED.items()],
                         columns=[*keys, "published", "digits"]).merge(found, on=keys, how="left")
    table["difference"] = table["recomputed"].astype("float64") - table["published"]
    half = .5 * 10. ** -table["digits"] * (1 + 1e-9)
    return table.assign(same=table["difference"].abs() <= half).drop(columns="digits")


def _long(quantity: str, values: pd.Series) -> pd.DataFrame:
    table = values.rename("recomputed").reset_index().set_axis(["whose", "network", "layer", "recomputed"], axis=1)
    return table.assign(quantity=quantity)[["quantity", "whose", "network", "layer", "recomputed"]]
