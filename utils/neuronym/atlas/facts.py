"""What an atlas tells of each unit in numbers: its names by several methods, how well each predicts the
unit on images held out, whether it is better than chance, and which units are alike.

methods_table   labels of every method, and what each is worth on images held out
units_table     one row a unit: its label, score, chance, trust, and what is odd about it
embedded        what the CLIP makes of labels
join_trust      the trust that a run of `trust` or `labelling` found
join_meaning    whether there is one thing to be named, as a run of `labelling` found
histogram       how a unit's activations are spread, and where those images lie that show its label
across_range    images from the highest activation down to the lowest
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common.memory import MEMORY, slices, top_images
from neuronym.common.statistics import standard_columns
from neuronym.common.subsets import split_evenly
from neuronym.dissect import clip_dissect, functions_for
from neuronym.evaluation.meaning import MEANING
from neuronym.measurements import Measurements
from neuronym.similarity.pmi import TOP_IMAGES
from neuronym.similarity.scores import layer_options
from neuronym.similarity.sparse_columns import over_blocks, SparseColumns
from neuronym.trust.null import abstain, best_scores, null_best, p_values

HIGHEST, DECILES, LOWEST = 8, 9, 3  # pictures of a unit: the highest, one of each decile, the lowest
LIKE_LABEL = 0.05  # share of the images that count as showing a label: those most like it to the CLIP
BINS = 32
CONSTANT, DEAD, CHANCE = 1, 2, 4  # what is odd about a unit, as bits
EVEN_COSINE = 4 * torch.finfo(torch.float32).eps  # of a cosine: labels that vary no more say nothing


def methods_table(
    data: Measurements,
    given: pd.DataFrame,
    functions: Iterable[str] | None = None,
    share: float = 0.4,
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """A row for each unit and method: layer, unit, method, label, score, held.

    `given` is a labels table of any methods (rank 1 is read), whose labels are kept as they are; of the
    similarity functions that it lacks the labels are found on the 1 - `share` of the images that name.
    `held` is the correlation of the CLIP's cosine with the label and of the unit's activation over the
    images held out. A label that was found on all images has seen these too.
    """
    naming, held_out = split_evenly(data.N, share)
    first = given[given["rank"] == 1]
    tables = [first[["layer", "unit", "method", "label", "score"]]]
    lacking = functions_for(len(naming)) if functions is None else functions
    lacking = [function for function in lacking if function not in set(first["method"])]
    named_by = data.rows(naming) if lacking else data
    for function in lacking:
        found = clip_dissect(named_by, function, 1, memory=memory, generator=generator)
        tables.append(found[["layer", "unit", "method", "label", "score"]])
    table = pd.concat(tables, ignore_index=True)
    table = table[table["layer"].isin(list(data.Q))].reset_index(drop=True)
    return table.assign(held=held_correlation(data.rows(held_out), table, memory))


def held_correlation(test: Measurements, table: pd.DataFrame, memory: int = MEMORY) -> np.ndarray:
    """Correlation, over the images of `test`, of the CLIP's cosine with the label and the unit's
    activation: one value a row of `table` (layer, unit, label), nan where the CLIP reads no label.

    With the centred embeddings I, the centred activation q of length 1 and a label's embedding t it is
    (q' I) t / |I t|: one product for all labels of a unit.
    """
    held = np.full(len(table), np.nan)
    label, texts = pd.factorize(table["label"].fillna("").to_numpy(object))
    T = embedded(test, texts).float()
    I = (test.I.double() - test.I.double().mean(0)).float()
    length = torch.cat([(I @ some.T).norm(dim=0) for some in T.split(4096)])  # [texts]
    known = ((T != 0).any(1)).cpu().numpy()[label]
    T = torch.where(length > EVEN_COSINE * len(I) ** 0.5, 1 / length, 0)[:, None] * T
    for layer, rows in table.groupby("layer", sort=False).indices.items():
        rows = rows[known[rows]]
        q = test.Q[layer]
        parts = slices(q.shape[1], memory // (24 * len(q)))
        along = torch.cat([standard_columns(q[:, part]).to(I).T @ I for part in parts])  # [K, d]
        unit = torch.from_numpy(table["unit"].to_numpy(np.int64)[rows])
        held[rows] = (along[unit] * T[torch.from_numpy(label[rows])]).sum(1).cpu().numpy()
    return held


def embedded(data: Measurements, texts: Sequence[str]) -> Tensor:
    """Embeddings [W, d] of texts, of concepts as they are measured; zeros for those that the CLIP reads
    nothing in.
    """
    T = data.T.new_zeros(len(texts), data.T.shape[1])
    number = {concept: i for i, concept in enumerate(data.concepts)}
    inside = [(row, number[text]) for row, text in enumerate(texts) if text in number]
    if inside:
        rows, concepts = torch.tensor(inside).T.to(T.device)
        T[rows] = data.T[concepts]
    read = {row: data.clip.reads(text) for row, text in enumerate(texts) if text and text not in number}
    others = sorted({text for text in read.values() if text})
    if others:
        found = dict(zip(others, embed_concepts(data.clip, others).to(T)))
        for row, text in read.items():
            if text:
                T[row] = found[text]
    return T


def units_table(
    data: Measurements,
    methods: pd.DataFrame,
    main: str,
    draws: int = 200,
    level: float = 0.05,
    *,
    memory: int = MEMORY,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """A row for every unit of every layer: layer, unit, label, score, held, p, odd, active.

    `main` is the method whose labels these are. `p` is the chance that activations dealt to random images
    score as high (`neuronym.trust.null`), NaN where `main` is no similarity function or the layer has one
    unit; `odd` has the bits CONSTANT (one value for all images), DEAD (never above 0 where a layer has no
    negative values), CHANCE (no better than chance, by Benjamini and Hochberg at `level`). `active` is the
    share of images above 0.
    """
    own = methods[methods["method"] == main].set_index(["layer", "unit"])
    tables = []
    for layer, q in data.Q.items():
        ends = over_blocks(lambda _, q: torch.stack([*q.aminmax(dim=0), (q > 0).sum(0) / len(q)]), q, axis=1)
        (low, high, positive), K = ends.cpu(), q.shape[1]
        constant, dead = low == high, (positive == 0) & bool((low >= 0).all())
        p = torch.full((K,), torch.nan, dtype=torch.float64)
        chance = torch.zeros(K, dtype=torch.bool)
        if main in functions_for(data.N) and K > 1 and draws:
            options = layer_options(main, layer == data.target.layers[-1])

            def of_units(_: slice, q: Tensor | SparseColumns) -> Tensor:
                return _chance(data, q, main, draws, generator, memory, **options)

            # wpmi and soft_wpmi compare all units of a layer
            p = of_units(slice(0, K), q) if main in TOP_IMAGES else over_blocks(of_units, q, memory)
            chance = abstain(p, level)
        odd = CONSTANT * constant.int() + DEAD * dead.int() + CHANCE * (chance | constant).int()
        table = pd.DataFrame({"layer": layer, "unit": range(K), "p": p, "odd": odd, "active": positive})
        tables.append(table.join(own[["label", "score", "held"]], on=["layer", "unit"]))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(label=table["label"].fillna(""), trust=np.nan)


def _chance(
    data: Measurements,
    q: Tensor | SparseColumns,
    main: str,
    draws: int,
    generator: torch.Generator | None,
    memory: int,
    **options,
) -> Tensor:
    """p [n] of units."""
    best = best_scores(data.P, q, main, memory=memory, **options)
    null = null_best(data.P, q, main, draws=draws, generator=generator, memory=memory, **options)
    return p_values(best, null).cpu().double()


def join_trust(units: pd.DataFrame, trust: pd.DataFrame) -> pd.DataFrame:
    """`units` with the columns trust, p and odd as a run of `trust` (its trust.csv), or the labels table of a
    run of `labelling` (whose p is called chance), has them for the same units; as they are where it has no
    trust. A name that is abstained from has no trust.
    """
    if not {"trust", "abstain"} <= set(trust):
        return units
    told = trust.drop_duplicates(["layer", "unit"]).set_index(["layer", "unit"])
    chance = next((told[name] for name in ("chance", "p") if name in told), np.nan)
    told = told[["trust", "abstain"]].rename(columns={"trust": "told"}).assign(chance=chance)
    joined = units.join(told, on=["layer", "unit"])
    known = joined["abstain"].notna().to_numpy()
    odd = units["odd"].to_numpy().copy()
    says = joined["abstain"].fillna(False).astype(bool).to_numpy()
    odd[known] = np.where(says[known], odd[known] | CHANCE, odd[known] & ~CHANCE)
    trust = joined["told"].fillna(units["trust"]).where(~says)
    return units.assign(trust=trust, p=joined["chance"].fillna(units["p"]), odd=odd)


def join_meaning(units: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """`units` with those columns of `evaluation.meaning` that a labels table has."""
    told = labels.drop_duplicates(["layer", "unit"]).set_index(["layer", "unit"])
    return units.join(told[[name for name in MEANING if name in told]], on=["layer", "unit"])


def histogram(values: np.ndarray, likeness: np.ndarray | None) -> dict:
    """Counts of a unit's activations [N] in BINS bins from the lowest to the highest; with the label's
    likeness [N] also how many of the LIKE_LABEL share of images most like it are in each.
    """
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    found = {"low": low, "high": high, "all": np.histogram(values, edges)[0].tolist()}
    if likeness is not None:
        most = np.argsort(-likeness, kind="stable")[: max(1, round(LIKE_LABEL * len(values)))]
        found["label"] = np.histogram(values[most], edges)[0].tolist()
    return found


def across_range(q: Tensor) -> Tensor:
    """Images of each unit from its highest activation to its lowest: q [N, K] -> rows [HIGHEST + DECILES +
    LOWEST, K].

    The HIGHEST highest, then the image at each decile of the order (at 90 %, 80 %, ... 10 %), then the LOWEST
    lowest, the lowest last. Fewer of each where there are fewer than 40 images.
    """
    N = len(q)
    top, below = min(HIGHEST, N), min(LOWEST, N)
    order = top_images(q, N) if N <= 40 else None
    if order is not None:
        return order[: min(N, top + below)]
    ranks = [round(N * share / 10) for share in range(1, DECILES + 1)]
    by_value = q.argsort(dim=0, descending=True, stable=True)
    return torch.cat([top_images(q, top), by_value[ranks], by_value[N - below :]])


def parts_of_range(N: int) -> list[str]:
    """What each row of `across_range` is: "top", "90 %" ... "10 %" (share of images below it), "lowest"."""
    if N <= 40:
        return ["top"] * min(N, HIGHEST + LOWEST)
    deciles = [f"{100 - 10 * share} %" for share in range(1, DECILES + 1)]
    return ["top"] * HIGHEST + deciles + ["lowest"] * LOWEST


def by_method(methods: pd.DataFrame, K: Mapping[str, int], names: Sequence[str]) -> dict[str, dict]:
    """{method: {"label": [...], "held": [...]}} over all units of all layers in order, "" where there is
    none.
    """
    places, first = {}, 0
    for layer, count in K.items():
        places[layer] = first
        first += count
    found = {}
    for method in names:
        label, held = np.full(first, "", dtype=object), np.full(first, np.nan)
        rows = methods[methods["method"] == method]
        at = rows["layer"].map(places).to_numpy(int) + rows["unit"].to_numpy(int)
        label[at], held[at] = rows["label"].to_numpy(), rows["held"].to_numpy()
        found[method] = {"label": label, "held": held}
    return found
