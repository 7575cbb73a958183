"""Text similarities that others printed, beside what an encoder gives here.

PRINTED           (table, whose, layer) -> encoder -> value
RELIABLE          layer -> neurons of ResNet-152 whose people agree, as printed
CLIP, MPNET       the encoders of the printed values
beside_printed    a table of ours with the printed values and, for the same encoder, the difference
final_layer       labels of final-layer neurons against the names of their classes
places_accuracy   NetDissect's labels that are the class of Places365

All from stored outputs of notebooks: CLIP-Dissect's table 2 and figure 3, Describe-and-Dissect's tables 2, 9 and 10.
They were made with half-precision CLIP on a GPU; differences up to .001 mean nothing.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from neuronym.published.text_agreement import against_texts, FOUND, Measure

CLIP, MPNET, CHARACTERS = "openai:ViT-B/16", "mpnet", "mpnet, characters"
LAYERS = ("layer1", "layer2", "layer3", "layer4", "all")
NAN = float("nan")


def _layers(table: str, encoder: str, values: dict[str, Sequence[float]]) -> dict:
    return {(table, whose, layer, encoder): value for whose, some in values.items() for layer, value in zip(LAYERS, some)}


PRINTED: dict[tuple[str, str, str, str], float] = {
    ("class names", "milan_base", "fc", CLIP): .7080, ("class names", "milan_base", "fc", MPNET): .2788,
    ("class names", "dnd", "fc", CLIP): .7598, ("class names", "dnd", "fc", MPNET): .4586,
    ("sea lion", "netdissect", "fc", CLIP): .7754, ("sea lion", "netdissect", "fc", MPNET): .3473,
    ("sea lion", "milan_base", "fc", CLIP): .8047, ("sea lion", "milan_base", "fc", MPNET): .3291,
    ("places", "netdissect", "fc", CLIP): .8887, ("places", "netdissect", "fc", MPNET): .6697,
    **_layers("people", CLIP, {
        "clip_dissect": [.7398, .7472, .7414, .7291, .7390], "dnd": [.7454, .7872, .7858, .7825, .7766],
        "milan_places365": [.7441, .7627, .7893, .7739, .7698], "depiction": [.7746, .7988, .7900, .7820, .7864],
        "milannotations": [.7643, .7976, .8026, .7845, .7884]}),
    **_layers("people", CHARACTERS, {
        "clip_dissect": [.1962, .1850, .2039, .1995, .1970], "dnd": [.0950, .1075, .1160, .1132, .1089],
        "milan_places365": [.0801, .1143, .1462, .1973, .1391], "depiction": [.2491, .2513, .2483, .2501, .2496],
        "milannotations": [.1124, .1167, .1279, .1252, .1215]}),
    **_layers("BLIP-2", CLIP, {"dnd": [.8394, .8438, .8423, .8682, .8481]}),
}
RELIABLE: dict[str, tuple[int, ...]] = {
    "layer1": (3, 17, 50, 55, 58, 60, 77, 83, 90, 92, 121, 129, 133, 158, 171, 190, 198, 222, 232, 236, 237, 245),
    "layer2": (469, 495, 412, 340, 114, 66, 478, 446, 294, 149, 163, 260, 51, 349, 312, 381, 482, 283, 111, 87, 465, 206),
    "layer3": (846, 835, 781, 237, 873, 253, 318, 361, 816, 418, 8, 412, 627, 306, 438, 535, 819, 248, 853, 749, 217, 201,
               355, 828, 415, 529, 965, 76, 495, 984, 440),
    "layer4": (1039, 1602, 1798, 502, 1801, 1022, 1278, 832, 285, 144, 1633, 1200, 1929, 14, 1877, 1013, 991, 1149, 1474,
               929, 345, 1734, 1083, 1363, 758, 570, 591, 1326),
}


def beside_printed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns table, whose, layer, encoder, value ... -> also `CLIP` and `mpnet`, as printed (NaN where nothing was),
    and `difference`, filled only where the encoder is the one of the printed value."""
    key = list(zip(table["table"], table["whose"], table["layer"]))
    by = [encoder.partition("@")[0] for encoder in table["encoder"]]
    mpnet = [CHARACTERS if encoder.endswith("characters") else MPNET for encoder in by]
    return table.assign(CLIP=[PRINTED.get((*k, CLIP), NAN) for k in key],
                        mpnet=[PRINTED.get((*k, m), NAN) for k, m in zip(key, mpnet)],
                        difference=[value - PRINTED.get((*k, e), NAN) for k, e, value in zip(key, by, table["value"])])


def final_layer(measure: Measure, labels: pd.DataFrame, names: Sequence[str] | Mapping[int, str], seed: int = 0) -> pd.DataFrame:
    """Labels of rank 1 of a network's final layer, by method, against the names of the classes: `whose`, `layer` and the
    columns of `against_texts`. `names` has a name for every unit of the labels.

    Errors: ValueError for units without a name, named ones without a label, and units that have several.
    """
    wanted = dict(names.items() if isinstance(names, Mapping) else enumerate(names))
    rows = []
    for (method, layer), some in labels[labels["rank"] == 1].groupby(["method", "layer"], sort=False):
        said = dict(zip(some["unit"], some["label"]))
        if len(said) != len(some) or said.keys() != wanted.keys():
            raise ValueError(f"one label of {method} for each of {len(wanted)} class names, got {len(some)} labels of "
                             f"{len(said)} neurons of {layer}, {len(said.keys() - wanted.keys())} of them without a name")
        units = sorted(said)
        rows.append({"whose": method, "layer": layer,
                     **against_texts(measure, [said[u] for u in units], [[wanted[u]] for u in units], seed)})
    return pd.DataFrame(rows, columns=["whose", "layer", *FOUND])


def places_accuracy(labels: pd.DataFrame, categories: Sequence[str], words: Sequence[str]) -> dict[str, int]:
    """Final-layer neurons of ResNet-18 whose NetDissect label is the class (CLIP-Dissect, table 2); categories are
    `load_concepts("places365")`, words `load_concepts("broden")`.

    `right`; `right_as_released`: without classes of two parts ("balcony, exterior"), whose name the released notebook
    spells with a slash and so never finds in NetDissect's hyphens. Which classes Broden has is in none of the files:
    `least` were named as scenes somewhere in them, `most` are among the words (some as objects).
    Errors: ValueError unless there is one label for every category.
    """
    theirs = labels[labels["method"] == "netdissect"]
    found = theirs[(theirs["model"] == "resnet18_places365") & (theirs["layer"] == "fc")].sort_values("unit")
    if found["unit"].tolist() != list(range(len(categories))):
        raise ValueError(f"one NetDissect label for every category, got {len(found)} labels of fc and "
                         f"{len(categories)} categories; load netdissect's and take load_concepts('places365')")
    names = [name.replace(", ", "-") for name in categories]
    right = [name for name, label in zip(names, found["label"]) if _scene(label) == name]
    scenes = {_scene(label) for label in theirs["label"] if label.endswith("-s")} | set(right)
    return {"classes": len(names), "right": len(right), "right_as_released": sum("-" not in name for name in right),
            "least": sum(name in scenes for name in names), "most": sum(name in set(words) for name in names)}


def _scene(label: str) -> str:
    return label.removesuffix("-s").replace("_", " ")
