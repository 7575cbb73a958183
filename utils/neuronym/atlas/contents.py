"""What the page of an atlas knows of all units from the start, in columns.

Network            a network with all that the atlas tells of it
kinds_of_pictures  the different sheets of several networks
names_of           a name for each of them
index_content      networks, layers, the dictionary of words, a column of each number
at_first           what of it the first view shows, and the rest
quantised          a column in two bytes a value
packed             an array as text
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from neuronym.atlas import facts
from neuronym.atlas.alike import LARGEST_TSNE
from neuronym.atlas.pictures import ACROSS, Sheets
from neuronym.evaluation.meaning import MEANING
from neuronym.measurements import Measurements
from neuronym.trust.probability import is_probability

SHARD, TOPS, ON_CARD = 256, 1024, 3  # units in a file of details, in a file of top images; images there
FIRST_VIEW = 24  # units of the first view
COLUMN_TITLES = {
    "label": "name", "layer": "layer", "trust": "trust", "held": "held out", "score": "score",
    "agree": "methods agree", "p": "p", "active": "above 0", **{name: name for name in MEANING},
}  # fmt: skip
HELP = {  # sentences that the page shows
    "columns": COLUMN_TITLES,
    "numbers": "Trust: how likely a name is near the best, as learnt in the microworld; elsewhere, where it "
    "is no probability, the share of the network's names that it puts below. Names no better than chance "
    "have none. Held out: "
    "correlation, on images kept out of naming, of what the image-text model sees of the name with the "
    "unit's activation. p: chance that shuffled activations score as high. Methods agree: share of methods "
    "that give the same name. Above 0: share of images on which the unit is. Whatever the "
    "name, as the image-text model sees it: monosemanticity, how alike two images are, drawn by activation; "
    "clarity, how alike its highest images are; redundancy, how like another unit's these are; "
    "polysemanticity, how far they fall into two groups. Deviations: how far a picture of yours excites a "
    "unit, and how much of its name the image-text model sees there, in standard deviations over the images.",
    "map": "Units that fire together lie together. Drag, wheel or pinch, click. Size: ",
    "matched": "pairs, one to one, by correlation over the images for naming; "
    "beside it that over those held out.",
    "differ": " units have another name, the largest difference first.",
    "means": "Mean held-out correlation of these: ",
    "shared": " names are of both layers. Units of two networks over the same images are paired one to one, "
    "where an atlas has both.",
    "names": "Names by each method, with held-out correlation",
    "how": "How its activations are spread",
    "deviations": " deviations, its name ",
    "first": " The first 300 are shown.",
    "firing": "Units that fire on the same images: of this layer, of others",
    "partners": "Its partners in other networks",
    "alike": "Units with names like its own: of this layer, of others, of other networks",
    "command": "The command that reproduces it",
    "cite": "To cite it",
    "none": ": nothing fits; loosen what is chosen above",
    "canvas": "map of all units; the table has them as text",
    "search": "by any method",
    "fields": {
        "q": "search ( / )",
        "layer": "layer",
        "method": "method",
        "kind": "kind of name",
        "sort": "sort by",
        "chance": "no better than chance",
        "dead": "dead, constant",
    },
    "summary": "what the numbers mean",
    "top": "Highest activations",
    "low": "Lowest activations",
    "line": "; the line surrounds half of the picture's highest value or more (below zero: of its lowest)",
    "range": "Across the range: images above that share of all",
    "spread": "Heights: images, by square root. From left to right: activation, from ",
    "like": " Orange: the 5 % of images that the image-text model finds most like ",
}
ROUGH_MAP = (
    "Too many units for t-SNE: by two principal components of what they fire on, where few neighbours are a "
    "unit's nearest. Drag, wheel or pinch, click. Size: "
)


@dataclass(eq=False)
class Network:
    """A network in an atlas: its measurements, the tables of `atlas.facts`, and what else is known."""

    data: Measurements
    labels: pd.DataFrame  # the labels table of the main method, several ranks
    units: pd.DataFrame
    methods: pd.DataFrame
    main: str
    kinds: Mapping[str, str] = field(default_factory=dict)  # concept -> kind
    command: str = ""  # that reproduces it
    notes: Mapping[tuple[str, int], Mapping[str, str]] = field(default_factory=dict)  # (layer, unit) -> more
    made: Mapping[tuple[str, int], tuple[Path, str]] = field(default_factory=dict)  # picture made, caption
    sheets: Sheets = field(default_factory=Sheets)
    shown: np.ndarray | None = None  # [all units]: those that have pictures; None for all

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.data.target.name

    @property
    def trust(self) -> pd.Series:
        """Trust of all units as it is shown: the probability where it is calibrated, else the share of the
        network's names that are trusted less, those trusted alike by half; NaN where there is none.
        """
        told = self.units["trust"]
        if is_probability(self.data):
            return told
        return (told.rank() - 0.5) / told.notna().sum()

    def noted(self, told: Mapping[str, Mapping[tuple[str, int], str]]) -> Network:
        """The network with more texts: {title: {(layer, unit): text}}."""
        notes = {where: dict(some) for where, some in self.notes.items()}
        for title, texts in told.items():
            for where, text in texts.items():
                notes.setdefault(where, {})[title] = text
        return replace(self, notes=notes)


def kinds_of_pictures(networks: Sequence[Network]) -> list[Sheets]:
    """The different sheets of the networks: those who see the same pictures share theirs."""
    return list({id(network.sheets): network.sheets for network in networks}.values())


def names_of(networks: Sequence[Network]) -> list[str]:
    """Names of networks, each its own: a network of another run is "NAME (2)"."""
    names = [network.name for network in networks]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, before)]


def index_content(
    networks: Sequence[Network],
    title: str,
    places: np.ndarray | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    shard: int = SHARD,
    across: int = ACROSS,
    most: int = LARGEST_TSNE,
    tops: np.ndarray | None = None,
) -> dict:
    """What the page knows from the start: networks, layers, the dictionary of words, and a column of each
    number over all units: "label" and "held" are of the networks' main methods, "label1" of the method of
    that place, left out where it is the one main. `pairs` are the layers that are matched, `shard` units in a
    file of details, `across` pictures in a row of a sheet, `most` what `alike.unit_map` was given.
    The units that the first view shows are found here; their highest images, of `tops` [all units, ON_CARD],
    are told at once.
    """
    units = pd.concat([network.units for network in networks], ignore_index=True)
    names = list(dict.fromkeys(name for n in networks for name in n.methods["method"].unique()))
    told = [facts.by_method(n.methods, n.data.sizes, names) for n in networks]
    columns = {
        name: {key: np.concatenate([one[name][key] for one in told]) for key in ("label", "held")}
        for name in names
    }
    everything = np.concatenate([column["label"] for column in columns.values()]).astype(str)
    words, codes = np.unique(everything, return_inverse=True)
    codes = codes.reshape(len(names), -1).astype(np.uint16 if len(words) < 2**16 else np.uint32)
    known = {key: value for network in networks for key, value in network.kinds.items()}
    kinds = sorted({known.get(word, "") for word in words})
    number = {kind: i for i, kind in enumerate(kinds)}
    kind_of = np.array([number[known.get(word, "")] for word in words], dtype=np.uint8)
    mapped = places is not None
    units["trust"] = np.concatenate([network.trust for network in networks])
    numbers = {name: units[name].to_numpy() for name in ("held", "trust", "score", "p", "active")}
    numbers |= {name: units[name].to_numpy() for name in MEANING if name in units}
    main = codes[[names.index(n.main) for n in networks for _ in range(len(n.units))], range(len(units))]
    numbers |= {"agree": (codes == main).mean(0)}
    numbers = {
        name: values for name, values in numbers.items() if np.isfinite(values).any() or name == "held"
    }
    shown = {
        name: title for name, title in COLUMN_TITLES.items() if name in numbers or name in ("layer", "label")
    }
    if not any(is_probability(network.data) for network in networks) and "trust" in shown:
        shown["trust"] = "trust, in order"
    beside = [i for i, name in enumerate(names) if len(networks) > 1 or name != networks[0].main]
    numbers |= {f"held{i}": columns[names[i]]["held"] for i in beside}
    sort = "trust" if "trust" in numbers else "held"
    seen, alive = _first_view(units["odd"].to_numpy(), units[sort])
    if mapped:
        numbers |= {"x": places[:, 0], "y": places[:, 1]}
    return {
        "title": title,
        "help": HELP | {"columns": shown, "map": HELP["map"] if len(units) <= most else ROUGH_MAP},
        "networks": [
            {
                "name": name,
                "main": network.main,
                "images": network.data.N,
                "sheets": [id(sheets) for sheets in kinds_of_pictures(networks)].index(id(network.sheets)),
                "cite": f"{network.main}, {network.data.clip.name}, {len(network.data.concepts)} concepts, "
                f"{network.data.N} images of {network.data.probe.name}.",
                "command": network.command,
            }
            for network, name in zip(networks, names_of(networks))
        ],
        "layers": [
            {"network": which, "name": layer, "units": count}
            for which, network in enumerate(networks)
            for layer, count in network.data.sizes.items()
        ],
        "methods": names,
        "words": words.tolist(),
        "kinds": kinds,
        "kindOf": packed(kind_of),
        "wide": len(words) >= 2**16,
        "columns": {"label": {"codes": packed(main)}}
        | {f"label{i}": {"codes": packed(codes[i])} for i in beside}
        | {name: quantised(values) for name, values in numbers.items()},
        "odd": packed(units["odd"].to_numpy(np.uint8)),
        "mapped": mapped,
        "matches": list(pairs),
        "parts": [facts.parts_of_range(network.data.N) for network in networks],
        "across": across,
        "shard": shard,
        "tops": TOPS,
        "few": ON_CARD,
        "first": np.cumsum([0, *(count for n in networks for count in n.data.sizes.values())]).tolist(),
        "sort": sort,
        "seen": seen.tolist(),
        "alive": alive,
        "best": {} if tops is None else {int(i): tops[i].tolist() for i in seen},
    }


def _first_view(odd: np.ndarray, worth: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers of the units that the page shows at first, the most trusted as it orders them, which has the
    codes of `quantised` alone; and how many units are neither constant nor dead.
    """
    alive = np.flatnonzero(odd & (facts.CONSTANT | facts.DEAD) == 0)
    order = np.argsort(-_codes(worth)[0][alive].astype(int), kind="stable")
    return alive[order[:FIRST_VIEW]], len(alive)


def at_first(content: Mapping) -> tuple[dict, dict[str, dict]]:
    """What `index_content` gave as far as the first view shows it, and the other columns by their names."""
    columns = content["columns"]
    at_once = ("label", content["sort"])
    later = {name: column for name, column in columns.items() if name not in at_once}
    return {**content, "columns": {name: columns[name] for name in at_once}}, later


def quantised(values: np.ndarray) -> dict:
    """A column in two bytes a value: `low` + (code - 1) `step`, code 0 for what is no finite number; off by
    at most half a step, 1/131068 of the range.
    """
    codes, low, step = _codes(values)
    return {"low": low, "step": step, "codes": packed(codes)}


def _codes(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    values = np.asarray(values, dtype=np.float64)
    there = np.isfinite(values)
    low, high = (values[there].min(), values[there].max()) if there.any() else (0.0, 0.0)
    step = (high - low) / (2**16 - 2) or 1.0
    codes = np.where(there, 1 + np.round((np.where(there, values, low) - low) / step), 0).astype("<u2")
    return codes, float(low), float(step)


def packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
