"""Units that mean more than one thing: clusters of their top images, a label for each, and for what switches
them off.

clusters                                    which of a unit's most active images belong together
labels_by_cluster                           a label for each cluster
negative                                    scores for what puts a unit to its lowest values
at_lowest                                   share of images that do
heldout_correlations                        labels against activations on other images, beside labels of other
                                            units
kinds_of_labels                             single, two best, of the clusters, negative
distinct_labels, joined_names, share_found  labels of units as lists, as texts, and against wanted ones
superposed                                  made-up units that act on what either of two units acts on

N images, K units, M concepts, d embedding width, n top images of a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import MEMORY, top_images
from neuronym.common.statistics import standard_columns
from neuronym.similarity.matrix import checked, FactoredMatrix
from neuronym.similarity.pmi import TOP_IMAGES
from neuronym.similarity.sparse_columns import (
    block_slices,
    from_rows,
    over_blocks,
    score_blocks,
    SparseColumns,
)

FEWEST = 20  # images a unit is judged by, at least
SMALLEST = 0.1  # share of them that makes a cluster
AT_REST = 0.5  # share of the images above which a lowest value singles out nothing
DRAWS = 39  # of images at random: a unit beats them all by chance once in 40


def clusters(
    Q: Tensor | SparseColumns,
    I: Tensor,
    *,
    top: float = 0.02,
    most: int = 4,
    least: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Cluster every unit's n most active images by their embeddings: assignment [n, K], images [n, K], best
    first.

    Q [N, K], I [N, d] unit rows; n is the share `top` of the images, at least 20. Average linkage by cosine
    distance is cut into 2..most clusters; those of fewer than 10 % of the n images are dropped (-1), and the
    cut with the largest mean silhouette over the others counts. It is taken when that exceeds `least` and
    each of those found alike for 39 sets of n images drawn at random, so that a unit without meaning is split
    once in 40 times; else all images are cluster 0. Clusters are numbered by size, the largest 0. Dead units
    have one cluster. A split says that the images differ, not that the unit means two things ("red" has red
    circles and red squares): `heldout_correlations` says that. Errors: ValueError for fewer than 20 images
    and for inputs that are not finite or do not fit together.
    """
    checked(FactoredMatrix(I, I), Q if isinstance(Q, Tensor) else Q[:, :1], None, MEMORY)
    check_number("top", top, 0, 1)
    check_number("least", least, -1, 1)
    check_positive_int("most", most)
    if len(Q) < FEWEST:
        raise ValueError(f"clusters take at least {FEWEST} images, got {len(Q)}; probe with more")
    n = max(FEWEST, round(top * len(Q)))
    images = over_blocks(lambda _, q: top_images(q, n), Q, axis=1)  # [n, K]
    embedded = torch.nn.functional.normalize(I.detach().double(), dim=1).cpu()
    draws = [
        torch.randperm(len(Q), generator=generator, device=generator.device if generator else None)[:n].cpu()
        for _ in range(DRAWS if most > 1 else 0)
    ]
    limit = max([least, *(_cut(embedded[rows], most)[0] for rows in draws)])
    alive = over_blocks(lambda _, q: q.amax(0) > q.amin(0), Q).tolist()
    assignment = torch.zeros_like(images, device="cpu")
    for unit, rows in enumerate(images.T.cpu()):
        silhouette, members = _cut(embedded[rows], most) if alive[unit] else (-1.0, None)
        if silhouette > limit:
            assignment[:, unit] = members
    return assignment.to(images.device), images


def labels_by_cluster(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    assignment: Tensor,
    images: Tensor,
    method: str = "soft_wpmi",
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> list[list[tuple[int, float, float]]]:
    """A label for every cluster: for each unit a list of (concept, score, share of top images), largest
    cluster first.

    A cluster is scored as a unit of its own: the unit with the other top images, dropped ones too, at its
    lowest value. All clusters of the layer are units of one call, so that what a function takes over units it
    takes over clusters. P [N, M], Q [N, K]; assignment and images [n, K] of `clusters`; `options` are those
    of the function. wpmi and soft_wpmi read half the n images at most, unless told `top_k`: below the n, all
    clusters of a unit are the same. Dead units get no label. Errors: ValueError for assignments of other
    images or units.
    """
    checked(P, Q if isinstance(Q, Tensor) else Q[:, :1], None, memory)
    n, K = images.shape if images.ndim == 2 else (0, 0)
    if (
        assignment.shape != images.shape
        or K != Q.shape[1]
        or not n
        or not 0 <= int(images.min()) <= int(images.max()) < len(Q)
    ):
        raise ValueError(
            f"expected assignment and images [n, K] of clusters for Q {list(Q.shape)}, got "
            f"{list(assignment.shape)} and {list(images.shape)}; give all three of the same images"
        )
    alive = over_blocks(lambda _, q: q.amax(0) > q.amin(0), Q)
    counts = torch.where(alive, assignment.amax(0) + 1, 0).tolist()
    pairs = [(unit, c) for unit, count in enumerate(counts) for c in range(count)]
    if not pairs:
        return [[] for _ in range(K)]
    unit, c = torch.tensor(pairs, device=Q.device).T
    made = _as_units(Q, assignment, images, unit, c)
    if method in TOP_IMAGES:
        options = {"top_k": min(TOP_IMAGES[method], max(1, n // 2)), **options}
    scored = score_blocks(P, made, method, memory=memory, generator=generator, **options)
    best, concepts = map(torch.cat, zip(*(scores.max(1) for _, _, scores in scored)))
    shares = (assignment[:, unit] == c).double().mean(0)
    found: list[list[tuple[int, float, float]]] = [[] for _ in range(K)]
    for (k, _), label in zip(pairs, zip(concepts.tolist(), best.tolist(), shares.tolist())):
        found[k].append(label)
    return found


def _as_units(
    Q: Tensor | SparseColumns, assignment: Tensor, images: Tensor, unit: Tensor, c: Tensor
) -> Tensor | SparseColumns:
    """Activations [N, K'] of cluster c [K'] of each `unit` [K']: other top images are at the lowest value."""

    def of_some(some: slice) -> Tensor:
        made, rows = Q[:, unit[some]], images[:, unit[some]]
        mine = assignment[:, unit[some]] == c[some]  # [n, m]
        return made.detach().scatter(0, rows, torch.where(mine, made.gather(0, rows), made.amin(0)))

    if isinstance(Q, Tensor):
        return of_some(slice(None))
    parts = []
    for some in block_slices(Q, len(unit)):
        made = of_some(some)
        at, column = made.nonzero(as_tuple=True)
        parts.append((at.int(), (column + some.start).int(), made[at, column]))
    return from_rows(parts, len(Q), len(unit))


def negative(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    method: str = "soft_wpmi",
    *,
    silent: float = AT_REST,
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor:
    """Scores [K, M] of -Q: what is in the images that put a unit to its lowest values; P [N, M], Q [N, K].

    A unit that is at its lowest value for more than the share `silent` of the images (an inactive ReLU, a
    dead unit) singles out nothing below: all its scores are 0, and it has no such label.
    """
    checked(P, Q, None, memory)
    check_number("silent", silent, 0, 1)
    return torch.cat(list(_negative_blocks(P, Q, method, silent, memory, generator, options)))


def _negative_blocks(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str,
    silent: float,
    memory: int | None,
    generator: torch.Generator | None,
    options: Mapping,
) -> Iterator[Tensor]:
    turned = -Q if isinstance(Q, Tensor) else replace(Q, values=-Q.values)
    for _, q, scores in score_blocks(P, turned, method, memory=memory, generator=generator, **options):
        yield scores.masked_fill((at_lowest(-q) > silent)[:, None], 0)


def at_lowest(Q: Tensor) -> Tensor:
    """Share [K] of the images at which a unit has its lowest value: 1 for a dead unit."""
    return (Q == Q.amin(0)).double().mean(0)


def heldout_correlations(
    present: Tensor,
    Q: Tensor | SparseColumns,
    labels: Mapping[str, Sequence[Sequence[int]]],
    memory: int = MEMORY,
) -> pd.DataFrame:
    """Do labels say when units act, on images not used for naming? Columns unit, kind, labels, correlation,
    shuffled.

    present [N, M] (truth, or probabilities) and Q [N, K] are of those other images; `labels` has for each
    kind ("single", "clusters", "negative") a list of concept indices for each unit; units without any have no
    row. `correlation` is Pearson's, of the activation and the union, max over the labels of their presence;
    for the kind "negative" of -Q. `shuffled` is its mean over the label lists of all other units with one:
    more labels correlate more by themselves. It is 0 for the only unit of a kind; correlations with what is
    constant are 0. SparseColumns are looked at in blocks of units. Errors: ValueError for lists that are not
    one a unit, for concepts there are not, and without any label.
    """
    checked(present, Q if isinstance(Q, Tensor) else Q[:, :1], None, MEMORY)
    M, K = present.shape[1], Q.shape[1]
    tables = []
    for kind, lists in labels.items():
        if len(lists) != K:
            raise ValueError(
                f"expected one list of concepts for each of {K} units, got {len(lists)} of kind '{kind}'"
            )
        wrong = [m for listed in lists for m in listed if not 0 <= m < M]
        if wrong:
            raise ValueError(f"labels are indices of {M} concepts, from 0, got {wrong[0]} of kind '{kind}'")
        units = [unit for unit, listed in enumerate(lists) if len(listed)]
        if not units:
            continue
        said_of = [lists[unit] for unit in units]
        widest = max(map(len, said_of))  # lists of fewer have their first label more than once
        padded = torch.tensor([[*some, *[some[0]] * (widest - len(some))] for some in said_of])
        blocks = list(block_slices(Q, len(units), memory))
        said = sum(_said(present, padded[some]).sum(1) for some in blocks)
        parts = []
        for some in blocks:
            q = Q[:, units[some]]
            acts = standard_columns(-q if kind == "negative" else q)
            parts.append(((_said(present, padded[some]) * acts).sum(0), said @ acts))
        own, every = map(torch.cat, zip(*parts))
        others = (every - own) / (len(units) - 1) if len(units) > 1 else torch.zeros_like(own)
        tables.append(
            pd.DataFrame(
                {
                    "unit": units,
                    "kind": kind,
                    "labels": [len(set(lists[unit])) for unit in units],
                    "correlation": own.cpu().numpy(),
                    "shuffled": others.cpu().numpy(),
                }
            )
        )
    if not tables:
        raise ValueError("expected labels for one unit or more, got none")
    return pd.concat(tables, ignore_index=True)


def _said(present: Tensor, labels: Tensor) -> Tensor:
    """Standard columns of the largest presence [N, K] of the labels [K, m] of each unit."""
    first, *more = labels.T.to(present.device)
    union = present[:, first]
    for column in more:
        union = torch.maximum(union, present[:, column])
    return standard_columns(union)


def kinds_of_labels(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    by_cluster: Sequence[Sequence[tuple[int, float, float]]],
    method: str = "soft_wpmi",
    *,
    memory: int | None = None,
    **options,
) -> dict[str, list[list[int]]]:
    """What a unit may be said to mean, as indices of concepts for each of K units: "single", its best
    concept; "two best"; "clusters", the different labels of its clusters; "negative", what puts it to its
    lowest values (none for a dead unit). by_cluster from `labels_by_cluster`, with the same
    `options` of the function.
    """
    kinds: dict[str, list[list[int]]] = {"single": [], "two best": [], "clusters": [], "negative": []}
    for _, _, scores in score_blocks(P, Q, method, memory=memory, **options):
        kinds["single"] += scores.argmax(1)[:, None].tolist()
        kinds["two best"] += scores.topk(2, dim=1).indices.tolist()
    for off in _negative_blocks(P, Q, method, AT_REST, memory, None, options):
        alive, lowest = (off != 0).any(1).tolist(), off.argmax(1).tolist()
        kinds["negative"] += [[concept] if lives else [] for concept, lives in zip(lowest, alive)]
    return kinds | {"clusters": distinct_labels(by_cluster)}


def distinct_labels(by_cluster: Sequence[Sequence[tuple[int, float, float]]]) -> list[list[int]]:
    """The different labels of each unit's clusters, in their order."""
    return [list(dict.fromkeys(concept for concept, *_ in of_unit)) for of_unit in by_cluster]


def joined_names(kinds: Mapping[str, Sequence[Sequence[int]]], concepts: Sequence[str]) -> list[str]:
    """Labels as texts, "red / grid", one for each row of `heldout_correlations`: units without any are
    left out.
    """
    listed = [labels for of_kind in kinds.values() for labels in of_kind if len(labels)]
    return [" / ".join(concepts[i] for i in labels) for labels in listed]


def share_found(wanted: Sequence[set[int]], labels: Sequence[Sequence[int]]) -> float:
    """Share of units all of whose wanted concepts are among their labels."""
    return sum(want <= set(given) for want, given in zip(wanted, labels)) / len(wanted)


def superposed(Q: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Units that act on what either of two acts on: max of the two, each with mean 0 and deviation 1; [N,
    len(pairs)].

    Q [N, K] of units whose meanings are known, and so both meanings of the made-up unit. A dead unit counts
    as 0. Errors: ValueError for a pair of one unit with itself, or of units there are not.
    """
    top_images(Q, 1)  # refuses what is not finite
    if not len(pairs):
        raise ValueError("expected at least one pair of units, got none")
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= unit < Q.shape[1] for unit in pair):
            raise ValueError(f"a pair has two different units from 0 to {Q.shape[1] - 1}, got {tuple(pair)}")
    first, second = torch.tensor([tuple(map(int, pair)) for pair in pairs], device=Q.device).T
    z = standard_columns(Q) * len(Q) ** 0.5
    return torch.maximum(z[:, first], z[:, second]).to(Q.dtype if Q.is_floating_point() else torch.float64)


def _cut(embedded: Tensor, most: int) -> tuple[float, Tensor | None]:
    """The best mean silhouette of 2..most clusters of n unit rows, and the clusters [n], largest 0, dropped
    -1.

    -1 and None where no cut leaves two clusters of a tenth of the rows.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    n, best = len(embedded), (-1.0, None)
    distance = (1 - embedded @ embedded.T).clamp_min(0).fill_diagonal_(0).numpy()
    tree = linkage(squareform(distance, checks=False), "average")
    for cut in cut_tree(tree, range(2, min(most, n - 1) + 1)).T:
        sizes = np.bincount(cut)
        order = [c for c in np.argsort(-sizes, kind="stable") if sizes[c] >= SMALLEST * n]
        if len(order) < 2:
            continue
        members = np.full(n, -1)
        for new, old in enumerate(order):
            members[cut == old] = new
        kept = members >= 0
        found = float(silhouette_score(distance[np.ix_(kept, kept)], members[kept], metric="precomputed"))
        if found > best[0]:
            best = found, torch.from_numpy(members)
    return best
