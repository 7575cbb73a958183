"""Which units are alike: in one layer, in other layers, in other networks, and on one map of them all.

closest    units whose activations go along most with each unit's
same_names units whose names are most like each unit's
matched    one-to-one assignment of the units of two layers, and how well it holds on images held out
pairs_of_layers, matched_layers  the same for all pairs of layers of different networks
over_same_images  all layers of networks that were shown the same images
unit_map   a place for every unit, alike ones close together
excited    units that one picture excites most
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from neuronym import hooks
from neuronym.atlas.facts import embedded
from neuronym.common.memory import MEMORY, slices
from neuronym.common.statistics import standard_columns
from neuronym.common.subsets import split_evenly
from neuronym.common.types import Progress
from neuronym.measurements import Measurements
from neuronym.similarity.sparse_columns import COPIED, over_blocks, SparseColumns, unit_blocks
from neuronym.trials import evaluating

LARGEST_MATCH = 6000  # units of a layer: the assignment takes the cube of it
LARGEST_TSNE = 20_000


def closest(
    Q: Mapping[str, Tensor | SparseColumns],
    layer: str,
    k: int = 3,
    memory: int = MEMORY,
    units: slice | Sequence[int] = slice(None),
) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the units of `layer` the k units of highest correlation over the images in its own layer,
    itself left out, then the k in all other layers of Q {layer: [N, K]}: layer numbers, units and
    correlations, each [K, 2k], or less where there are fewer units.
    """
    own = standard_columns(Q[layer][:, units]).float()
    K, itself = own.shape[1], torch.arange(Q[layer].shape[1], device=own.device)[units]
    best: dict[bool, tuple] = {}  # by whether it is another layer
    for number, (name, q) in enumerate(Q.items()):
        for part in slices(q.shape[1], max(1, memory // (8 * (4 * len(q) + 2 * K)))):
            r = own.T @ standard_columns(q[:, part]).float()  # [K, some]
            if name == layer:
                here = ((itself >= part.start) & (itself < part.stop)).nonzero()[:, 0]
                r[here, itself[here] - part.start] = -torch.inf
            value, at = r.topk(min(k, r.shape[1]), dim=1)
            found = (torch.full_like(at, number), at + part.start, value)
            before = best.get(name != layer)
            some = found if before is None else tuple(torch.cat(pair, 1) for pair in zip(before, found))
            order = some[2].argsort(dim=1, descending=True, stable=True)[:, :k]
            best[name != layer] = tuple(x.gather(1, order) for x in some)
    return tuple(torch.cat(parts, 1) for parts in zip(*(best[other] for other in sorted(best))))


def same_names(
    tables: Sequence[pd.DataFrame], which: int, data: Measurements, k: int = 3, memory: int = MEMORY
) -> dict[str, list[list[tuple[int, int, float]]]]:
    """For each unit of network `which` the k units whose names are most like its own in its layer, then in
    the network's other layers, then in other networks: {layer: [(layer number, unit, cosine), ...] by unit}.

    `tables` [networks] have a row a unit: layer, unit, label, held, trust; layers are numbered over all of
    them. Names are compared by the cosine of their embeddings, and alike where it is higher than that of 19
    in 20 pairs of names; units of equal cosine stand by trust, where it is not known by held. A name that the
    CLIP of `data` understands nothing of is like itself alone.
    """
    units = pd.concat(tables, keys=range(len(tables)), names=["network"]).reset_index("network")
    layer = pd.factorize(pd.MultiIndex.from_frame(units[["network", "layer"]]))[0]
    unit, network = units["unit"].to_numpy(), units["network"].to_numpy()
    worth = units["trust"].fillna(units["held"]).fillna(-1).to_numpy()
    texts, name = np.unique(units["label"].to_numpy(dtype=str), return_inverse=True)
    T = embedded(data, texts).float().cpu()
    least = usual_cosine(T)
    found = {}
    for number in np.unique(layer[network == which]):
        own = np.flatnonzero(layer == number)
        near = [[] for _ in own]
        same = layer == number
        for group in (same, (network == which) & ~same, network != which):
            group = np.flatnonzero(group & (texts[name] != ""))
            _nearest(near, T, name, own, group[np.argsort(-worth[group], kind="stable")], k, least, memory)
        told = [[(int(layer[i]), int(unit[i]), r) for i, r in some] for some in near]
        found[units["layer"].iloc[own[0]]] = told
    return found


def usual_cosine(T: Tensor, most: int = 500, share: float = 0.95) -> float:
    """The cosine that `share` of the pairs of names do not reach, from up to `most` of the embeddings T
    [W, d] at even steps, zeros left out; 0 where there are no two.
    """
    some = T[T.abs().amax(1) > 0]
    some = some[torch.linspace(0, len(some) - 1, min(most, len(some))).long()]
    a, b = torch.triu_indices(len(some), len(some), 1)
    return float((some @ some.T)[a, b].quantile(share).clamp_min(0)) if len(a) else 0.0


def _nearest(
    near: list[list[tuple[int, float]]],
    T: Tensor,
    name: np.ndarray,
    own: np.ndarray,
    group: np.ndarray,
    k: int,
    least: float,
    memory: int,
) -> None:
    """Add to `near` of each of the units `own` those k of `group` whose names are most like its own, of a
    cosine above `least`.
    """
    by_name: dict[int, list[int]] = {}  # a name's k + 1 first units: one of them may be the unit itself
    for i in group.tolist():
        some = by_name.setdefault(int(name[i]), [])
        if len(some) <= k:
            some.append(i)
    if not by_name:
        return
    words, asked = torch.tensor(list(by_name)), torch.from_numpy(np.unique(name[own]))
    best: dict[int, list[tuple[int, float]]] = {}
    for part in slices(len(asked), memory // (16 * len(words))):
        r = T[asked[part]] @ T[words].T
        r[asked[part, None] == words] = 1
        value, at = r.topk(min(k + 1, len(words)), dim=1)
        for word, row, some in zip(asked[part].tolist(), value.tolist(), words[at].tolist()):
            best[word] = [(other, cosine) for other, cosine in zip(some, row) if cosine > least]
    for i, told in zip(own.tolist(), near):
        like = ((j, r) for other, r in best[int(name[i])] for j in by_name[other] if j != i)
        told.extend((j, round(r, 3)) for j, r in itertools.islice(like, k))


def matched(Qa: Tensor | SparseColumns, Qb: Tensor | SparseColumns, share: float = 0.4) -> pd.DataFrame:
    """The units of two layers paired one to one, so that the sum of their correlations is largest: Qa [N,
    K], Qb [N, L] over the same images -> a row a pair: a, b, r, held.

    Pairs are chosen on the 1 - `share` of the images that name (the Hungarian method; Li et al. 2016),
    `held` is their correlation on the others. Errors: ValueError for other images or more than 6,000 units.
    """
    from scipy.optimize import linear_sum_assignment

    if len(Qa) != len(Qb):
        raise ValueError(f"units are matched over the same images, got {len(Qa)} and {len(Qb)}")
    if max(Qa.shape[1], Qb.shape[1]) > LARGEST_MATCH:
        raise ValueError(
            f"layers of up to {LARGEST_MATCH} units are matched, got {Qa.shape[1]} and {Qb.shape[1]}"
        )
    Qa, Qb = (q if isinstance(q, Tensor) else q[:, :] for q in (Qa, Qb))
    chosen, test = split_evenly(len(Qa), share)
    first = (standard_columns(Qa[chosen]).T @ standard_columns(Qb[chosen])).cpu()
    a, b = linear_sum_assignment(first.numpy(), maximize=True)
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    held = (standard_columns(Qa[test])[:, a] * standard_columns(Qb[test])[:, b]).sum(0)
    table = {"a": a.numpy(), "b": b.numpy(), "r": first[a, b].numpy(), "held": held.cpu().numpy()}
    return pd.DataFrame(table).sort_values("r", ascending=False, kind="stable", ignore_index=True)


def pairs_of_layers(networks: Sequence[Measurements]) -> list[tuple[int, int]]:
    """Every two layers of different networks that were measured over the same images, numbered over all
    networks in order. Layers too large to be matched are left out.
    """
    layers = [(data, q) for data in networks for q in data.Q.values()]
    return [
        (a, b)
        for b in range(len(layers))
        for a in range(b)
        if layers[a][0] is not layers[b][0]
        and layers[a][0].probe.fingerprint == layers[b][0].probe.fingerprint
        and max(layers[a][1].shape[1], layers[b][1].shape[1]) <= LARGEST_MATCH
    ]


def matched_layers(
    networks: Sequence[Measurements], progress: Progress | None = None
) -> dict[tuple[int, int], pd.DataFrame]:
    """`matched` for all `pairs_of_layers`: {(a, b): pairs}."""
    layers = [q for data in networks for q in data.Q.values()]
    pairs = pairs_of_layers(networks)
    walked = pairs if progress is None else progress(pairs, len(pairs), "layers matched")
    return {(a, b): matched(layers[a], layers[b]) for a, b in walked}


def over_same_images(networks: Sequence[Measurements]) -> dict[str, Tensor | SparseColumns]:
    """Activations of all layers of all networks by name, as `unit_map` takes them; none where the networks
    were shown different images.
    """
    if len({data.probe.fingerprint for data in networks}) > 1:
        return {}
    return {f"{number}/{layer}": q for number, data in enumerate(networks) for layer, q in data.Q.items()}


def unit_map(
    Q: Mapping[str, Tensor | SparseColumns], seed: int = 0, images: int = 2000, most: int = LARGEST_TSNE
) -> np.ndarray:
    """A place [all units, 2] in [-1, 1] for every unit, those whose activations go along close together.

    Activations over up to `images` images, each unit centred and of length 1, by 50 principal components and
    t-SNE (van der Maaten & Hinton 2008). Beyond `most` units the first two components, which show the
    coarse order alone: few of a unit's nearest are near it there (docs/protocols/unit_map.md).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    N = len(next(iter(Q.values())))
    rows = torch.arange(0, N, max(1, -(-N // images)))
    shown = [q[rows.to(q.device)] for q in Q.values()]
    if sum(q.shape[1] for q in shown) > max(most, 4) and len(rows) > 1:
        return _within_square(_two_components(shown))
    parts = (part for q in shown for _, part in unit_blocks(q))
    units = torch.cat([standard_columns(part).T.float().cpu() for part in parts]).numpy()
    count = min(50, *units.shape)
    if len(units) < 5 or count < 2:
        places = np.zeros((len(units), 2))
        places[:, 0] = np.linspace(-1, 1, len(units))
        return places
    few = PCA(count, random_state=seed).fit_transform(units)
    spread = min(30.0, (len(units) - 1) / 3)
    return _within_square(TSNE(2, perplexity=spread, init="pca", random_state=seed).fit_transform(few))


def _two_components(layers: Sequence[Tensor | SparseColumns]) -> np.ndarray:
    """All units [K, 2] by the first two principal components of their activations, each centred and of length
    1, over the images: from the covariance of images, some units at a time.
    """

    def blocks() -> Iterator[Tensor]:
        for q in layers:
            for some in slices(q.shape[1], MEMORY // (4 * COPIED * len(q))):
                yield standard_columns(q[:, some]).T.float().cpu()

    N, K = len(layers[0]), sum(q.shape[1] for q in layers)
    total, mean = torch.zeros(N, N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for units in blocks():
        total += units.T @ units
        mean += units.double().sum(0)
    mean /= K
    axes = torch.linalg.eigh(total / K - mean[:, None] * mean)[1][:, -2:].flip(1)
    axes *= axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # the largest share is positive
    return torch.cat([(units.double() - mean) @ axes for units in blocks()]).numpy()


def _within_square(places: np.ndarray) -> np.ndarray:
    low, high = places.min(0), places.max(0)
    return (2 * places - low - high) / np.maximum(high - low, 1e-9)


def excited(data: Measurements, picture: Image.Image, labels: pd.DataFrame, k: int = 12) -> pd.DataFrame:
    """The units that a picture excites most, in standard deviations over the probing images: layer, unit,
    label, z, activation, seen; the k most excited of every layer, highest first.

    `labels` is a labels table, whose rank 1 is shown. What does the network see here? `seen` is what the CLIP
    says: how far above the probing images it finds the label in the picture, in their standard deviations;
    nan for what it does not read.
    """
    model, picture = data.target.model, picture.convert("RGB")

    def keep(name: str, output: Tensor) -> Tensor:
        return hooks.pool(output, data.layers[name].layout, data.pool, 1).float()

    place = next(model.parameters()).device
    x = data.target.preprocess(picture)[None].to(place)
    with torch.inference_mode(), evaluating(model), hooks.record(model, list(data.Q), keep) as acts:
        model(x)
        pooled = {name: value[0] for name, value in acts.items()}
    names = (
        labels[labels["rank"] == 1].drop_duplicates(["layer", "unit"]).set_index(["layer", "unit"])["label"]
    )
    tables = []
    for layer, q in data.Q.items():
        value = pooled[layer].to(q.device)
        z = over_blocks(lambda some, columns: _deviations(value[None, some], columns)[0], q)
        best = z.topk(min(k, len(z))).indices.cpu()
        rows = {"layer": layer, "unit": best, "z": z.cpu()[best], "activation": value.cpu()[best]}
        tables.append(pd.DataFrame(rows))
    table = pd.concat(tables, ignore_index=True).join(names, on=["layer", "unit"])
    table = table.sort_values("z", ascending=False, kind="stable", ignore_index=True)
    table = table.assign(seen=_seen(data, picture, table["label"]))
    return table[["layer", "unit", "label", "z", "activation", "seen"]]


def _seen(data: Measurements, picture: Image.Image, labels: pd.Series) -> pd.Series:
    """Deviations, over the probing images, of the CLIP's cosine of a picture with each label."""
    texts = [text for text in labels.dropna().unique() if text]
    T = embedded(data, texts).to(data.I)
    image = data.clip.encode_image(data.clip.preprocess(picture)[None]).to(T)
    z = _deviations(image @ T.T, data.I @ T.T)[0]
    known = (T != 0).any(1)
    return labels.map({text: value for text, value, says in zip(texts, z.tolist(), known.tolist()) if says})


def _deviations(values: Tensor, of: Tensor) -> Tensor:
    """Values [n, K] from the means of the columns `of` [N, K], in their standard deviations, 0 where that is
    0.
    """
    spread = of.std(0, correction=0)
    return torch.where(spread > 0, (values - of.mean(0)) / spread.clamp_min(1e-12), 0)
