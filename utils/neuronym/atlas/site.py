"""A folder that opens by a double click and from any web host: the atlas of one or several networks.

estimate    bytes that a site will take, by part, before it is written
write_site  the folder
read_page   the page's own files: HTML, style and script

    index.html atlas.css atlas.js    the page, the same for all sites
    index.js                         what the first view needs of all units: names by the main method through
                                     a dictionary of words, and trust (or held-out correlation) in two bytes
    columns/NAME.js                  another column or method's names, loaded with the first view or search
                                     that needs it
    tops/NNNN.js                     the three highest images of each of 1,024 units
    units/LAYER/NNNN.js              all that is told of 256 units of a layer
    made/LAYER/UNIT.webp             the picture made for a unit by a run of visualisation
    matches/A-B.js                   units of two layers paired one to one
    sheets/NETWORK/NNNN.webp         64 pictures each

Only classic scripts are used, which load from file:// too; texts are JSON, never markup.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from neuronym.atlas import facts
from neuronym.atlas.alike import closest, same_names
from neuronym.atlas.contents import (
    at_first,
    index_content,
    kinds_of_pictures,
    Network,
    ON_CARD,
    packed,
    SHARD,
    TOPS,
)
from neuronym.atlas.pictures import (
    as_seen,
    mean_bytes,
    outline,
    remembered,
    where_firing,
    write_picture,
    write_sheets,
)
from neuronym.common.types import Progress
from neuronym.measurements import Measurements
from neuronym.similarity.sparse_columns import block_slices, over_blocks

PAGE = ("index.html", "atlas.css", "atlas.js")
LARGEST = 10**9  # bytes of a site
UNIT_BYTES = 3700  # of a unit's details, about


def estimate(networks: Sequence[Network], size: int) -> dict[str, int]:
    """Bytes of a site by part: pictures, details, index. Made from the number of images that units will
    show and the bytes of a sample of them.
    """
    total = {"pictures": 0, "details": 0, "index": 200_000}
    shown_by = {id(network.sheets): set() for network in networks}
    for network in networks:
        rows = shown_by[id(network.sheets)]
        before = len(rows)
        for layer in network.data.Q:
            shown = _shown(network, layer)
            q = network.data.Q[layer]
            for part in block_slices(q, len(shown)) if len(shown) else ():
                rows.update(facts.across_range(q[:, shown[part]]).unique().tolist())
        one = mean_bytes(network.data.probe, as_seen(network.data), size) if rows else 0
        count = len(network.units)
        made = sum(len(_made(network, layer)) for layer in network.data.Q)
        total["pictures"] += round((len(rows) - before + made) * one)
        total["details"] += count * UNIT_BYTES
        total["index"] += count * (30 + 8 * network.methods["method"].nunique())
    return total


def check_size(parts: Mapping[str, int], largest: int = LARGEST) -> str:
    """The size of a site in words; ValueError where it is too large to be shared."""
    total = sum(parts.values())
    told = ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in parts.items())
    if total > largest:
        raise ValueError(
            f"a site takes at most {largest / 1e6:.0f} MB, this one would take about {total / 1e6:.0f} MB "
            f"({told}); take fewer images or layers, smaller pictures, or pictures of trusted units only"
        )
    return f"about {total / 1e6:.1f} MB: {told}"


def write_site(
    folder: Path,
    networks: Sequence[Network],
    title: str = "Neuronym atlas",
    *,
    size: int = 96,
    places: np.ndarray | None = None,
    matches: Mapping[tuple[int, int], pd.DataFrame] | None = None,
    firing: bool = True,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write the site of `networks` into `folder`, emptied before; returns the bytes of each part.

    `places` [all units, 2] is the map (`alike.unit_map`), `matches` {(layer, layer): pairs} of
    `alike.matched` by numbers of layers over all networks in order; with `firing` a unit's images tell where
    in them it fires.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name in PAGE:
        (folder / name).write_text(read_page(name), encoding="utf-8")
    sizes = {"page": sum(len(read_page(name).encode()) for name in PAGE)}
    tops = np.full((sum(len(network.units) for network in networks), ON_CARD), -1, dtype=np.int32)
    sizes["details"] = sizes["pictures"] = 0
    images = {network.data.probe.fingerprint: remembered(network.data.probe) for network in networks}
    first = number = 0
    for which, network in enumerate(networks):
        first_layer = number
        named = names_alike(networks, which)
        image = images[network.data.probe.fingerprint]
        where = firing_of(network, progress, image) if firing else {}
        for layer, q in network.data.Q.items():
            detail, shard = [], 0
            for some in block_slices(q, q.shape[1]):
                firing_there = where[layer][some] if layer in where else None
                units = None if isinstance(q, Tensor) else range(some.start, some.stop)
                detail += layer_details(
                    network, layer, first_layer, firing_there, tops[first:], units, like_named=named
                )
                while len(detail) >= SHARD or (detail and some.stop == q.shape[1]):
                    sizes["details"] += script(folder, f"units/{number}/{shard:04d}", detail[:SHARD])
                    detail, shard = detail[SHARD:], shard + 1
            for unit, (file, _) in _made(network, layer).items():
                sizes["pictures"] += write_picture(file, folder / _made_file(number, unit), size)
            first, number = first + q.shape[1], number + 1
    sizes["tops"] = sum(
        script(folder, f"tops/{n // TOPS:04d}", packed(tops[n : n + TOPS])) for n in range(0, len(tops), TOPS)
    )
    sizes["matches"] = 0
    for (a, b), pairs in (matches or {}).items():
        sizes["matches"] += script(folder, f"matches/{a}-{b}", pairs_content(pairs))
    for which, sheets in enumerate(kinds_of_pictures(networks)):
        data = next(network.data for network in networks if network.sheets is sheets)
        picture = as_seen(data, images[data.probe.fingerprint])
        sizes["pictures"] += write_sheets(sheets, picture, folder / "sheets" / str(which), size, progress)
    sizes["index"], sizes["columns"] = write_index(
        folder, index_content(networks, title, places, list(matches or {}), tops=tops)
    )
    return sizes


def pairs_content(pairs: pd.DataFrame) -> dict[str, list]:
    """What the page reads of two layers' pairs, see `alike.matched`."""
    return {name: column.round(4).tolist() for name, column in pairs.items()}


def write_index(folder: Path, content: Mapping) -> tuple[int, int]:
    """The index of a site, and what its first view does not show in files of their own; returns the bytes of
    both.
    """
    first, later = at_first(content)
    size = sum(script(folder, f"columns/{name}", column) for name, column in later.items())
    return script(folder, "index", first), size


def script(folder: Path, path: str, content: object) -> int:
    """PATH.js, which hands `content` to the page; returns its bytes."""
    call = "ATLAS.index(" if path == "index" else f'ATLAS.file("{path}",'
    text = call + json.dumps(content, separators=(",", ":"), allow_nan=False) + ");\n"
    file = folder / f"{path}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return len(text.encode())


def read_page(name: str) -> str:
    """One of the page's own files."""
    return (files("neuronym.atlas") / "page" / name).read_text(encoding="utf-8")


def firing_of(
    network: Network, progress: Progress | None = None, image: Callable[[int], Image.Image] | None = None
) -> dict[str, np.ndarray]:
    """Where in their images the units of every layer fire, see `pictures.where_firing`."""
    rows = {}
    for layer, q in network.data.Q.items():
        rows[layer] = over_blocks(lambda _, q: facts.across_range(q), q, axis=1)
    return where_firing(network.data, rows, progress=progress, image=image)


def names_alike(networks: Sequence[Network], which: int = 0) -> dict[str, list]:
    """Units of like names of every unit of a network, see `alike.same_names`."""
    return same_names([network.units for network in networks], which, networks[which].data)


def layer_details(
    network: Network,
    layer: str,
    first_layer: int,
    where: np.ndarray | None = None,
    tops: np.ndarray | None = None,
    units: Sequence[int] | None = None,
    alike: Sequence | None = None,
    like_named: Mapping[str, list] | None = None,
) -> list[dict]:
    """All that is told of each unit of a layer beside the columns: pictures with values, where it fires,
    histogram, units that are alike, labels with scores, notes; of all units, or of `units`. `where` is these
    units' part of `firing_of`, `like_named` what `names_alike` gives; `tops` is filled with the places of the
    highest images.
    """
    data, q = network.data, network.data.Q[layer]
    wanted = list(range(q.shape[1])) if units is None else list(units)
    q = q if units is None else q[:, wanted]
    shown, made = set(_shown(network, layer).tolist()), _made(network, layer)
    rows = facts.across_range(q)
    alike = closest(data.Q, layer, units=wanted) if alike is None else alike
    same = (like_named or {}).get(layer)
    likeness = _likeness(data, network.units[network.units["layer"] == layer]["label"].iloc[wanted].tolist())
    named = network.labels[(network.labels["layer"] == layer) & (network.labels["label"] != "")]
    named = named[named["unit"].isin(wanted)]
    best = {
        unit: list(zip(some["label"], some["score"].astype(float))) for unit, some in named.groupby("unit")
    }
    values = q.gather(0, rows).cpu().numpy()
    rows, q = rows.cpu(), q.float().cpu().numpy()
    found = []
    for at, unit in enumerate(wanted):
        told = {"h": facts.histogram(q[:, at], likeness[at]), "k": _short(best.get(unit, []))}
        if unit in shown:
            told["p"] = network.sheets.place(rows[:, at].tolist())
            told["v"] = [float(f"{value:.4g}") for value in values[:, at]]
            if where is not None:
                told["w"] = [outline(one, 127.5) for one in where[at]]
            if tops is not None:
                few = told["p"][:ON_CARD]
                tops[unit, : len(few)] = few
        told["n"] = [
            [first_layer + a, b, round(r, 3)]
            for a, b, r in zip(*(x[at].tolist() for x in alike))
            if np.isfinite(r)
        ]
        if same:
            told["m"] = same[unit]
        more = dict(network.notes.get((layer, unit), {}))
        if unit in made:
            file, caption = _made_file(first_layer + list(data.Q).index(layer), unit), made[unit][1]
            more = {caption: {"src": file, "alt": caption, "width": 96}, **more}
        if more:
            told["x"] = more
        found.append(told)
    return found


def _likeness(data: Measurements, labels: Sequence[str]) -> list[np.ndarray | None]:
    """The CLIP's cosine of every image with each label [N], None for none, or for one that the CLIP
    understands nothing of.
    """
    texts = sorted({label for label in labels if label})
    T = facts.embedded(data, texts).to(data.I)
    known = (T != 0).any(1).tolist()
    seen = dict(zip(texts, (data.I @ T.T).T.cpu().numpy()))
    likeness = {text: seen[text] for text, says in zip(texts, known) if says}
    return [likeness.get(label) for label in labels]


def _shown(network: Network, layer: str) -> np.ndarray:
    """Units of a layer that have pictures."""
    K = network.data.Q[layer].shape[1]
    if network.shown is None:
        return np.arange(K)
    return np.flatnonzero(network.shown[(network.units["layer"] == layer).to_numpy()])


def _made(network: Network, layer: str) -> dict[int, tuple[Path, str]]:
    """Pictures made for those units of a layer that have pictures."""
    shown = set(_shown(network, layer).tolist())
    return {unit: told for (of, unit), told in network.made.items() if of == layer and unit in shown}


def _made_file(number: int, unit: int) -> str:
    """Where in a site the picture made for a unit lies; layers are counted over all networks."""
    return f"made/{number}/{unit}.webp"


def _short(pairs: Sequence[tuple[str, float]]) -> list:
    return [[label, float(f"{score:.4g}")] for label, score in pairs[:5]]
