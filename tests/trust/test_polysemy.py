"""Units that mean more than one thing: clusters, their labels, other images, against loops and planted
units.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from neuronym.common.memory import top_images
from neuronym.common.statistics import correlation
from neuronym.evaluation.presence import presence_oracle
from neuronym.microworld.world import CLASSES, presence, scene
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score
from neuronym.trust.polysemy import (
    _cut,
    at_lowest,
    clusters,
    heldout_correlations,
    labels_by_cluster,
    negative,
    superposed,
)

N, K, M, d = 613, 7, 11, 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of M kinds: unit embeddings I [N, d] near one of T [M, d], presence, and a unit for each
    kind.
    """
    g = generator(seed)
    T = torch.linalg.qr(torch.randn(d, M, generator=g, dtype=torch.float64)).Q.T
    kind = torch.randint(0, M, (N,), generator=g)
    I = T[kind] + 0.1 * torch.randn(N, d, generator=g, dtype=torch.float64)
    present = torch.nn.functional.one_hot(kind, M).bool()
    Q = present + 0.1 * torch.randn(N, M, generator=g, dtype=torch.float64)
    return I / I.norm(dim=1, keepdim=True), T, present, Q


# --- clusters


def silhouette(distance: list[list[float]], members: list[int]) -> float:
    """Mean of (b - a) / max(a, b): mean distance to one's own cluster and to the nearest other."""
    values = []
    for i, own in enumerate(members):
        if own < 0:
            continue
        mates = [distance[i][j] for j, c in enumerate(members) if c == own and j != i]
        others = [
            [distance[i][j] for j, c in enumerate(members) if c == other]
            for other in set(members) - {own, -1}
        ]
        a, b = sum(mates) / max(len(mates), 1), min(sum(o) / len(o) for o in others)
        values.append((b - a) / max(a, b) if mates else 0.0)
    return sum(values) / len(values)


def average_linkage(distance: list[list[float]], count: int) -> list[list[int]]:
    """Merge the two groups of least mean distance until `count` are left."""
    groups = [[i] for i in range(len(distance))]
    while len(groups) > count:
        a, b = min(
            ((a, b) for a in range(len(groups)) for b in range(a)),
            key=lambda p: np.mean([distance[i][j] for i in groups[p[0]] for j in groups[p[1]]]),
        )
        groups[b] += groups.pop(a)
    return groups


def literal_cut(X: torch.Tensor, most: int) -> tuple[float, list[int] | None]:
    distance = [[1 - math.fsum(x * y for x, y in zip(p, q)) for q in X.tolist()] for p in X.tolist()]
    best: tuple[float, list[int] | None] = (-1.0, None)
    for count in range(2, most + 1):
        kept = sorted(
            (g for g in average_linkage(distance, count) if len(g) >= 0.1 * len(X)), key=lambda g: -len(g)
        )
        if len(kept) < 2:
            continue
        members = [next((c for c, g in enumerate(kept) if i in g), -1) for i in range(len(X))]
        if (found := silhouette(distance, members)) > best[0]:
            best = found, members
    return best


def same_groups(a: list[int], b: list[int]) -> bool:
    """The same partition and the same ones dropped: clusters of equal size may change names."""
    return all(
        (a[i] == a[j]) == (b[i] == b[j]) and (a[i] < 0) == (b[i] < 0) for i in range(len(a)) for j in range(i)
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_cut_is_that_of_a_literal_average_linkage_and_silhouette(seed):
    g = generator(seed)
    centres = torch.randn(seed % 4 + 1, 5, generator=g, dtype=torch.float64)
    X = (
        centres[torch.randint(0, len(centres), (25,), generator=g)]
        + 0.3 * torch.randn(25, 5, generator=g).double()
    )
    X[0] = -X.mean(0)  # one far off, a cluster too small to keep
    X = X / X.norm(dim=1, keepdim=True)
    want, members = literal_cut(X, 4)
    got, found = _cut(X, 4)
    assert got == pytest.approx(want, abs=1e-10)
    assert (found is None) == (members is None) and (found is None or same_groups(found.tolist(), members))


def test_the_best_cut_counts_and_not_the_finest():
    angles = torch.tensor([[0.0], [10.0], [90.0], [100.0]]) + 3 * torch.randn(4, 8, generator=generator())
    X = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], -1).reshape(32, 2).double()
    assert _cut(X, 4)[1].tolist() in ([0] * 16 + [1] * 16, [1] * 16 + [0] * 16)


def test_the_cut_is_scikit_learns():
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    I, _, present, _ = world()
    X = I[(present[:, 2] | present[:, 5] | present[:, 7]).nonzero()[:40, 0]]
    got, found = _cut(X, 3)
    fitted = AgglomerativeClustering(3, metric="cosine", linkage="average").fit_predict(X.numpy())
    assert same_groups(found.tolist(), fitted.tolist())
    assert got == pytest.approx(silhouette_score(X.numpy(), fitted, metric="cosine"))


def test_units_of_two_kinds_fall_into_their_two_kinds_and_units_of_one_do_not():
    I, _, present, Q = world()
    pairs = [(0, 3), (4, 2), (9, 10), (1, 8)]
    assignment, images = clusters(superposed(Q, pairs), I, top=0.05, generator=generator())
    assert assignment.shape == images.shape == (round(0.05 * N), len(pairs))
    for k, (i, j) in enumerate(pairs):
        said = [set(present[images[assignment[:, k] == c, k]].long().argmax(1).tolist()) for c in range(2)]
        assert sorted(said, key=min) == [{min(i, j)}, {max(i, j)}] and int(assignment[:, k].max()) == 1
        sizes = [int((assignment[:, k] == c).sum()) for c in range(2)]
        assert sizes == sorted(sizes, reverse=True) and 0.85 * len(images) <= sum(sizes) <= len(images)
    alone, images = clusters(Q, I, top=0.05, generator=generator())
    assert not alone.any() and torch.equal(images, top_images(Q, len(images)))


def test_units_without_meaning_are_split_as_rarely_as_stated():
    I, *_ = world()
    split = 0
    for seed in range(12):  # the sets drawn at random are new in each
        assignment, _ = clusters(
            torch.rand(N, 25, generator=generator(seed)), I, generator=generator(100 + seed)
        )
        split += int((assignment.amax(0) > 0).sum())
    assert split <= 0.025 * 300 + 3 * (300 * 0.025) ** 0.5


def test_clusters_do_not_depend_on_scale_or_order_of_units_and_repeat():
    I, _, _, Q = world()
    S = superposed(Q, [(0, 3), (5, 6), (4, 2), (9, 10)])
    first, images = clusters(S, I, generator=generator(3))
    again, _ = clusters(4 * S.flip(1) - 9, 5 * I, generator=generator(3))
    assert torch.equal(first, again.flip(1)) and first.any()
    assert len(images) == 20  # the share would be 12


def test_dead_units_and_one_cluster_at_most_are_not_split():
    I, _, present, Q = world()
    order = (present[:, 0] | present[:, 3]).int().argsort(descending=True, stable=True)
    I, Q = I[order], Q[order]  # the first images, which a dead unit has for its best, are of two kinds
    S = superposed(Q, [(0, 3), (4, 2)])
    S[:, 1] = 3.0
    assert clusters(S, I, generator=generator())[0].amax(0).tolist() == [1, 0]
    assert not clusters(S, I, most=1)[0].any() and not clusters(S, I, least=1.0)[0].any()


# --- labels


def test_superposed_units_get_both_names_where_the_single_label_has_one():
    I, T, _, Q = world()
    pairs = [(i, j) for i in range(M) for j in range(i)]
    S = superposed(Q, pairs)
    assignment, images = clusters(S, I, top=0.05, generator=generator())
    for P in (FactoredMatrix(I, T), I @ T.T):
        for method in ("soft_wpmi", "wpmi", "cos_similarity_cubed"):
            found = labels_by_cluster(P, S, assignment, images, method)
            both = [{c for c, _, _ in labels} == set(pair) for labels, pair in zip(found, pairs)]
            assert sum(both) >= 0.9 * len(pairs)
            assert all(sum(share for *_, share in labels) <= 1 + 1e-12 for labels in found)


def test_labels_are_those_of_pseudo_units_made_by_hand():
    g = generator(5)
    P, Q = torch.randn(N, M, generator=g).double(), torch.randn(N, K, generator=g).double()
    Q[:, 4] = 2.0  # dead
    images = top_images(Q, 21)
    assignment = torch.randint(0, 3, images.shape, generator=g)
    assignment[:, 2], assignment[3:6, 0] = 0, -1
    made, whose, shares = [], [], []
    for k in range(K):
        for c in range(3 if k not in (2, 4) else 1):
            q = Q[:, k].clone()
            for place, image in enumerate(images[:, k].tolist()):
                if assignment[place, k] != c:
                    q[image] = Q[:, k].min()
            if k != 4:
                made.append(q)
                whose.append(k)
                shares.append(float((assignment[:, k] == c).sum()) / 21)
    for method, options in (
        ("soft_wpmi", {"top_k": 10}),
        ("wpmi", {"top_k": 10}),
        ("soft_wpmi", {"top_k": 50}),
        ("cos_similarity", {}),
    ):
        given = {} if options.get("top_k") == 10 else options  # half of the 21 images by itself
        best = score(P, torch.stack(made, 1), method, **options).max(1)
        found = labels_by_cluster(P, Q, assignment, images, method, **given)
        assert found[4] == [] and len(found[2]) == 1
        flat = [(k, *label) for k, labels in enumerate(found) for label in labels]
        assert [row[0] for row in flat] == whose and [row[1] for row in flat] == best.indices.tolist()
        assert_close(
            [list(row[2:]) for row in flat], [list(pair) for pair in zip(best.values.tolist(), shares)]
        )
    assert labels_by_cluster(P, Q[:, [4]], assignment[:, [4]], images[:, [4]]) == [[]]


def test_the_label_of_one_cluster_is_the_units_own():
    I, T, _, Q = world()
    images = top_images(Q, 20)
    found = labels_by_cluster(
        FactoredMatrix(I, T), Q, torch.zeros_like(images), images, "soft_wpmi", top_k=30
    )
    best = score(FactoredMatrix(I, T), Q, "soft_wpmi", top_k=30).max(1)
    assert [labels[0][0] for labels in found] == best.indices.tolist() and {
        len(labels) for labels in found
    } == {1}
    assert_close([labels[0][1] for labels in found], best.values.tolist())


def test_what_switches_a_unit_off_is_named_unless_it_is_mostly_off():
    I, T, present, Q = world()
    both = torch.cat([-Q, Q.clamp_min(0.5), torch.ones(N, 1).double()], 1)  # inactive for most; dead
    scores = negative(FactoredMatrix(I, T), both, top_k=20)
    assert scores.shape == (2 * M + 1, M) and scores[:M].argmax(1).tolist() == list(range(M))
    assert not scores[M:].any()
    assert at_lowest(both)[-1] == 1 and bool((at_lowest(both)[M:-1] > 0.5).all())
    assert negative(FactoredMatrix(I, T), both, silent=1.0, top_k=20)[M:].any()
    assert_close(scores[:M], score(FactoredMatrix(I, T), -both, top_k=20)[:M])


# --- other images


def test_held_out_is_the_correlation_with_the_union_and_the_mean_over_other_units():
    g = generator(2)
    Q, present = torch.randn(N, K, generator=g), torch.rand(N, M, generator=g) < 0.3
    Q[:, 3], present[:, 8] = 0.1, True
    labels = {
        "single": [[k] for k in range(K)],
        "clusters": [[0, 1], [], [2], [4, 5], [8], [3, 7, 9], [6, 6]],
        "negative": [[1], [2], [], [], [], [], [0]],
    }
    table = heldout_correlations(present, Q, labels)
    assert table["kind"].tolist() == ["single"] * K + ["clusters"] * (K - 1) + ["negative"] * 3
    by_kind = {kind: rows.set_index("unit") for kind, rows in table.groupby("kind")}
    for kind, lists in labels.items():
        units = [k for k in range(K) if lists[k]]
        union = [[float(any(present[n, m] for m in lists[k])) for n in range(N)] for k in units]
        acts = (-1 if kind == "negative" else 1) * Q.double()
        for place, k in enumerate(units):
            r = []
            for said in union:
                constant = len(set(said)) == 1 or k == 3
                r.append(0.0 if constant else float(np.corrcoef(said, acts[:, k])[0, 1]))
            row = by_kind[kind].loc[k]
            assert row["correlation"] == pytest.approx(r[place], abs=1e-9)
            assert row["shuffled"] == pytest.approx((sum(r) - r[place]) / (len(units) - 1), abs=1e-9)
            assert row["labels"] == len(set(lists[k]))
    single = torch.tensor(by_kind["single"]["correlation"].to_numpy())
    assert_close(single, correlation(present[:, :K].double(), Q.double()))


def test_held_out_does_not_depend_on_scale_and_takes_probabilities():
    g = generator(8)
    Q, present = torch.randn(N, K, generator=g).double(), torch.rand(N, M, generator=g).double()
    labels = {"clusters": [[k, k + 1] for k in range(K)]}
    first = heldout_correlations(present, Q, labels)
    pd.testing.assert_frame_equal(first, heldout_correlations(present, 1e-250 * Q, labels))
    union = torch.stack([torch.maximum(present[:, k], present[:, k + 1]) for k in range(K)], 1)
    assert_close(torch.tensor(first["correlation"].to_numpy()), correlation(union, Q))
    alone = heldout_correlations(present, Q[:, :1], {"single": [[0]]})
    assert alone["shuffled"].tolist() == [0.0]


def test_two_labels_beat_one_on_other_scenes_of_the_microworld():
    scenes = [scene(seed) for seed in range(700)]
    truth = presence(scenes, CLASSES)
    Q = truth.double() + 0.3 * torch.randn(truth.shape, generator=generator(), dtype=torch.float64)
    pairs = [(k, k + 1) for k in range(0, len(CLASSES) - 1, 5)]
    S = superposed(Q, pairs)
    oracle = presence_oracle(S[:400], truth[:400])
    two = [labels.tolist() for labels in oracle.topk(2).indices]
    assert sum(set(said) == set(pair) for said, pair in zip(two, pairs)) >= 0.8 * len(pairs)
    table = heldout_correlations(
        truth[400:], S[400:], {"single": [said[:1] for said in two], "clusters": two}
    )
    mean = table.groupby("kind")[["correlation", "shuffled"]].mean()
    assert mean["correlation"]["clusters"] > mean["correlation"]["single"] + 0.05
    assert mean["shuffled"].abs().max() < 0.1


def test_superposed_is_the_larger_of_two_standard_scores():
    g = generator(1)
    Q = torch.randn(23, K, generator=g) * 10.0 ** torch.arange(-3, K - 3)
    Q[:, 6] = 5.0
    made = superposed(Q, [(0, 5), (4, 1), (6, 2)])
    z = [
        [(x - np.mean(column)) / max(np.std(column), 1e-30) for x in column]
        for column in Q.T.double().numpy()
    ]
    assert made.dtype == Q.dtype
    larger = [[max(a, b) for a, b in zip(z[i], z[j])] for i, j in [(0, 5), (4, 1), (6, 2)]]
    assert_close(made.double().T, torch.tensor(larger).double(), rtol=1e-6, atol=1e-6)
    assert_close(superposed(1e30 * Q.double(), [(0, 5)]), superposed(Q.double() - 7, [(5, 0)]))
    assert bool((made[:, 2] >= 0).all())  # a dead unit is at its mean everywhere


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda I, T, p, Q: clusters(Q[:19], I[:19]), "at least 20 images, got 19"),
        (lambda I, T, p, Q: clusters(Q[:-1], I), "equal N, got 613 and 612"),
        (lambda I, T, p, Q: clusters(Q.masked_fill(p, math.nan), I), "Q must be finite"),
        (lambda I, T, p, Q: clusters(Q, I / 0), "I must be finite"),
        (lambda I, T, p, Q: clusters(Q, I, top=1.2), "top must be a finite number from 0 to 1"),
        (lambda I, T, p, Q: clusters(Q, I, most=0), "most must be a positive whole number"),
        (
            lambda I, T, p, Q: labels_by_cluster(I @ T.T, Q, top_images(Q, 5) * 0, top_images(Q, 4)),
            "expected assignment",
        ),
        (
            lambda I, T, p, Q: labels_by_cluster(I @ T.T, Q[:, :3], *[top_images(Q, 5)] * 2),
            "expected assignment",
        ),
        (
            lambda I, T, p, Q: labels_by_cluster(I[:99] @ T.T, Q[:99], *[top_images(Q, 50)] * 2),
            "expected assignment",
        ),
        (lambda I, T, p, Q: negative(I @ T.T, Q, silent=-1), "silent must be a finite number"),
        (
            lambda I, T, p, Q: heldout_correlations(p, Q, {"single": [[0]]}),
            "one list of concepts for each of 11 units, got 1",
        ),
        (
            lambda I, T, p, Q: heldout_correlations(p, Q, {"single": [[11]] * M}),
            "11 concepts, from 0, got 11 of kind 'single'",
        ),
        (lambda I, T, p, Q: heldout_correlations(p, Q, {"single": [[-1]] * M}), "got -1"),
        (lambda I, T, p, Q: heldout_correlations(p[:-1], Q, {"single": [[0]] * M}), "equal N"),
        (lambda I, T, p, Q: heldout_correlations(p, Q, {"single": [[]] * M}), "labels for one unit or more"),
        (lambda I, T, p, Q: superposed(Q, [(1, 1)]), "two different units from 0 to 10, got .1, 1."),
        (lambda I, T, p, Q: superposed(Q, [(1, 11)]), "two different units"),
        (lambda I, T, p, Q: superposed(Q, []), "at least one pair"),
        (lambda I, T, p, Q: superposed(Q * math.inf, [(0, 1)]), "finite"),
    ],
)
def test_bad_input_is_said_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(*world())


def test_an_unknown_method_is_named_with_its_neighbours():
    I, T, _, Q = world()
    images = top_images(Q, 20)
    with pytest.raises(KeyError, match="no similarity function 'softwpmi'; nearest: soft_wpmi"):
        labels_by_cluster(I @ T.T, Q, images * 0, images, "softwpmi")
