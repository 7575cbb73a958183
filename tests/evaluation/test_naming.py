"""The smaller experiments on names: missing concepts, pairs of words, ranges of activation, a class from one
unit.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from neuronym.common.memory import top_images
from neuronym.evaluation import naming
from neuronym.evaluation.naming import (
    by_range,
    class_from_neuron,
    compositional,
    contributions,
    missing_concepts,
    range_images,
    without,
)
from neuronym.microworld.world import CLASSES, presence, scene
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score

N, K, M, d = 211, 7, 11, 16
CONCEPTS = [f"word{m}" for m in range(M)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """I [N, d], T [M, d], Q [N, K], present [N, M] where unit k acts on concept k."""
    g = generator(seed)
    present = torch.rand(N, M, generator=g) < 0.15
    T = unit(torch.randn(M, d, generator=g).double())
    I = unit(present.double() @ T + 0.3 * torch.randn(N, d, generator=g))
    return I, T, present[:, :K] + 0.2 * torch.randn(N, K, generator=g).double(), present


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def codes(texts: list[str]) -> torch.Tensor:
    """An encoder of texts for which a pair lies between its words, nearer to the first."""
    words = {f"word{m}": row for m, row in enumerate(inputs()[1])}
    return unit(
        torch.stack([sum((1.0 - 0.2 * i) * words[w] for i, w in enumerate(text.split())) for text in texts])
    )


# --- missing concepts


def test_without_keeps_what_does_not_show_the_concept():
    present = inputs()[3]
    for m in range(M):
        rows = without(present, m)
        assert rows.tolist() == [n for n in range(N) if not present[n, m]]
        assert torch.equal(rows, without(present * 0.4 + 0.2, m))  # .6 where it is, .2 where not
    assert without(torch.full((3, 1), 0.5), 0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("method, options", [("soft_wpmi", {"top_k": 20}), ("cos_similarity_cubed", {})])
def test_missing_concepts_are_ranks_in_scores_of_the_images_left(method, options):
    I, T, Q, present = inputs()
    names = ["word3", "nothing", "word0", "word3", "word10", "else", "word6"]
    for P in (FactoredMatrix(I, T), I @ T.T):
        table = missing_concepts(P, Q, CONCEPTS, names, present, method, **options).set_index("unit")
        assert table.index.tolist() == [0, 2, 3, 4, 6] and table["name"].tolist() == [
            names[k] for k in table.index
        ]
        for k, row in table.iterrows():
            m = CONCEPTS.index(names[k])
            left = [n for n in range(N) if not present[n, m]]
            for images, rank, label in (
                (list(range(N)), "rank_before", "label_before"),
                (left, "rank", "label"),
            ):
                scores = score((I @ T.T)[images], Q[images], method, **options)[k].tolist()
                order = sorted(range(M), key=lambda c: (-scores[c], c))
                assert row[rank] == order.index(m) + 1 and row[label] == CONCEPTS[order[0]]
            assert row["removed"] == N - len(left) and row["kept"] == (row["rank"] == 1)


def test_a_unit_that_the_rest_still_serves_keeps_its_name_and_one_that_only_saw_its_concept_does_not():
    g = generator(4)
    T = torch.eye(M, dtype=torch.float64)
    kind = torch.arange(N) % M
    I = unit(
        T[kind] + 0.5 * T[(kind + 1) % M] + 0.02 * torch.randn(N, M, generator=g)
    )  # a kind looks like the next one
    present = torch.nn.functional.one_hot(kind, M).bool()
    P = I @ T.T
    likes, strict = (
        P[:, :3],
        P[:, 3:6].clone(),
    )  # by looks; the images of its own kind only, any order among others
    strict[~present[:, 3:6]] = torch.rand(int((~present[:, 3:6]).sum()), generator=g).double() * 0.1
    table = missing_concepts(
        P, torch.cat([likes, strict], 1), CONCEPTS, CONCEPTS[:6], present, "cos_similarity_cubed"
    )
    assert (table["rank_before"] == 1).all() and table["kept"].tolist()[:3] == [True] * 3
    assert not table["kept"][3:].any() and set(table["removed"]) <= {N // M, N // M + 1}


def test_of_equal_concepts_the_first_ranks_higher():
    I, T, Q, present = inputs()
    P = I @ T.T
    P[:, 4] = P[:, 2]
    names = ["word2", "word4", *["word2"] * 5]
    table = missing_concepts(P, Q[:, [2]].expand(N, K), CONCEPTS, names, present, top_k=20, lam=0.0)
    assert table["rank_before"][0] == 1 and table["rank_before"][1] == 2


def test_a_concept_that_no_image_shows_takes_nothing_away():
    I, T, Q, present = inputs()
    present[:, 2] = False
    table = missing_concepts(I @ T.T, Q, CONCEPTS, ["word2"] * K, present, top_k=20)
    assert (table["removed"] == 0).all() and (table["rank"] == table["rank_before"]).all()


# --- pairs of words


@pytest.mark.parametrize("method, options", [("soft_wpmi", {"top_k": 20}), ("cos_similarity", {})])
def test_phrases_are_all_pairs_of_the_best_words_scored_beside_the_whole_layer(method, options):
    I, T, Q, _ = inputs()
    scores = score(FactoredMatrix(I, T), Q, method, **options)
    table = compositional(codes, I, Q, CONCEPTS, scores[[5, 0]], 4, method=method, units=[5, 0], **options)
    assert table["unit"].tolist() == [5, 0]
    for row in table.itertuples():
        best = [CONCEPTS[m] for m in sorted(range(M), key=lambda m: -scores[row.unit, m])[:4]]
        texts = best + [f"{a} {b}" for a in best for b in best if a != b]
        found = score(I @ codes(texts).T, Q, method, **options)[row.unit].tolist()
        assert row.single == best[0] and row.single_score == pytest.approx(found[0])
        assert row.phrase == texts[found.index(max(found))] and row.score == pytest.approx(max(found))
        assert row.pair == (" " in row.phrase) and row.score >= row.single_score


def test_a_unit_for_two_words_together_is_given_both_and_one_for_a_word_is_not():
    I, T, _, _ = inputs()
    Q = torch.stack(
        [(I @ codes([text]).T)[:, 0] for text in ("word4 word9", "word7", "word9 word4", "word1")], 1
    )
    scores = score(FactoredMatrix(I, T), Q, "cos_similarity")
    table = compositional(codes, I, Q, CONCEPTS, scores, 6, method="cos_similarity")
    assert table["phrase"].tolist() == ["word4 word9", "word7", "word9 word4", "word1"]
    assert table["pair"].tolist() == [True, False, True, False]


def test_each_text_is_embedded_once():
    seen: list[list[str]] = []

    def encode(texts: list[str]) -> torch.Tensor:
        seen.append(texts)
        return unit(torch.randn(len(texts), d, generator=generator()).double())

    I, _, Q, _ = inputs()
    table = compositional(
        encode, I, Q, ["red", "circle", "red circle"], torch.tensor([[1.0, 2.0, 3.0]] * K), 3, top_k=9
    )
    assert len(seen) == K and sorted(seen[0]) == sorted(set(seen[0])) and len(seen[0]) == 8
    assert seen[0][:3] == ["red circle", "circle", "red"] and set(table["single"]) == {"red circle"}
    assert not table[table["phrase"] == "red circle"]["pair"].any()
    target = encode(["red circle"])[0]
    Q = (I @ target)[:, None].expand(N, K)  # the concept of two words is the best text
    table = compositional(
        encode,
        I,
        Q,
        ["red", "circle", "red circle"],
        torch.tensor([[1.0, 2.0, 3.0]] * K),
        3,
        method="cos_similarity",
    )
    assert set(table["phrase"]) == {"red circle"} and not table["pair"].any()


# --- ranges


def test_by_range_is_the_mean_over_the_top_images():
    I, T, Q, present = inputs()
    labels = [3, -1, 0, 10, 2, 2, -1]
    shares = (0.001, 0.02, 0.06, 0.3, 1.0)
    for what, table in (
        (present.double(), by_range(present, Q, labels, shares)),
        (I @ T.T, by_range(FactoredMatrix(I, T), Q, labels, shares)),
    ):
        assert table["unit"].unique().tolist() == [0, 2, 3, 4, 5] and len(table) == 5 * len(shares)
        for row in table.itertuples():
            n = max(1, round(row.share * N))
            order = sorted(range(N), key=lambda i: (-float(Q[i, row.unit]), i))[:n]
            assert row.label == labels[row.unit] and row.images == n
            assert row.present == pytest.approx(math.fsum(float(what[i, row.label]) for i in order) / n)
            assert row.all == pytest.approx(float(what[:, row.label].mean()))
            assert row.share < 1 or row.present == pytest.approx(row.all)


def test_higher_activations_show_more_of_a_planted_concept_in_the_microworld():
    truth = presence([scene(seed) for seed in range(500)], CLASSES)
    Q = truth[:, :24].double() + torch.randn(500, 24, generator=generator(), dtype=torch.float64)
    table = by_range(truth, Q, list(range(24)), (0.02, 0.1, 0.5))
    mean = table.groupby("share")["present"].mean()
    assert mean[0.02] > mean[0.1] > mean[0.5] > table["all"].mean()


def test_range_images_are_drawn_from_the_range_and_reach_all_of_it():
    Q = inputs()[2]
    inside = top_images(Q, 21)[:, 4].tolist()
    seen: set[int] = set()
    for seed in range(40):
        drawn = range_images(Q, 4, 0.1, 5, generator(seed)).tolist()
        assert len(set(drawn)) == 5 and [i for i in inside if i in drawn] == drawn  # different, best first
        seen |= set(drawn)
    assert seen == set(inside)
    assert (
        range_images(Q, 4, 0.1, 21).tolist() == inside and range_images(Q, 4, 0.0, 1).tolist() == inside[:1]
    )
    assert torch.equal(range_images(Q, 4, 0.5, 9, generator(1)), range_images(Q, 4, 0.5, 9, generator(1)))


# --- a class from one unit


def test_contributions_and_the_bias_are_the_logit():
    g = generator(3)
    layer = torch.nn.Linear(K, 5).double()
    Q = torch.randn(13, K, generator=g).double()
    logits = layer(Q)
    predicted = logits.argmax(1)
    found = contributions(Q, layer.weight, predicted)
    assert_close(found.sum(1) + layer.bias[predicted], logits.amax(1))
    assert found[4, 2] == Q[4, 2] * layer.weight[predicted[4], 2]
    places = contributions(
        Q.reshape(13, 1, K), layer.weight.reshape(5, 1, K), predicted
    )  # one unit, read in K places
    assert_close(places[:, 0], found.sum(1))


def test_the_guess_is_the_class_nearest_to_the_strongest_units_label():
    g = generator(6)
    labels, classes = [f"label {k}" for k in range(K)], [f"class {c}" for c in range(5)]
    tables = [{text: unit(torch.randn(width, generator=g)) for text in labels + classes} for width in (8, 3)]
    encoders = [lambda texts, table=table: torch.stack([table[text] for text in texts]) for table in tables]
    contribution = torch.randn(29, K, generator=g)
    for chosen, weights in (
        (encoders, (3, 1)),
        (encoders, (1, 8)),
        (encoders[:1], (3, 1)),
        (encoders[1:], (2,)),
    ):
        want = []
        for row in contribution.tolist():
            said = labels[row.index(max(row))]
            near = [
                sum(w * float(e([said])[0] @ e([c])[0]) for w, e in zip(weights, chosen)) for c in classes
            ]
            want.append(near.index(max(near)))
        assert class_from_neuron(contribution, labels, classes, chosen, weights).tolist() == want
    default = class_from_neuron(contribution, labels, classes, encoders)
    assert torch.equal(default, class_from_neuron(9 * contribution, labels, classes, encoders, (6, 2)))
    assert not torch.equal(default, class_from_neuron(contribution, labels, classes, encoders, (1, 8)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda I, T, Q, p: without(p, M), "a concept from 0 to M - 1"),
        (lambda I, T, Q, p: missing_concepts(I @ T.T, Q, CONCEPTS, ["word1"], p), "one name per unit"),
        (
            lambda I, T, Q, p: missing_concepts(I @ T.T, Q, CONCEPTS, CONCEPTS[:K], p[:, :5]),
            "one column of P and present",
        ),
        (lambda I, T, Q, p: missing_concepts(I @ T.T, Q, CONCEPTS, CONCEPTS[:K], p[:-1]), "equal N"),
        (
            lambda I, T, Q, p: missing_concepts(I @ T.T, Q, CONCEPTS, ["x"] * K, p),
            "none of the 7 names is among the 11",
        ),
        (
            lambda I, T, Q, p: missing_concepts(I @ T.T, Q, CONCEPTS, CONCEPTS[:K], p | True),
            "'word0' is in all 211 images",
        ),
        (lambda I, T, Q, p: compositional(codes, I, Q, CONCEPTS, torch.ones(3, M), 3), "of the same units"),
        (
            lambda I, T, Q, p: compositional(codes, I, Q, CONCEPTS, torch.ones(K, M), 12),
            "words 12 exceeds M 11 concepts",
        ),
        (lambda I, T, Q, p: compositional(codes, I, Q, CONCEPTS, torch.ones(K, M), 1), "pass at least 2"),
        (
            lambda I, T, Q, p: compositional(codes, I, Q, CONCEPTS, torch.ones(1, M), 3, units=[K]),
            "from 0 to 6, got 7",
        ),
        (lambda I, T, Q, p: by_range(p, Q, [0] * 3), "expected 7 labels"),
        (lambda I, T, Q, p: by_range(p, Q, [M] * K), "each from 0 to 10 or -1"),
        (lambda I, T, Q, p: by_range(p, Q, [-1] * K), "a labelled unit or more"),
        (lambda I, T, Q, p: by_range(p, Q, [0] * K, (2,)), "share must be a finite number from 0 to 1"),
        (lambda I, T, Q, p: by_range(p, Q / 0, [0] * K), "Q must be finite"),
        (lambda I, T, Q, p: range_images(Q, K, 0.1, 2), "a unit from 0 to K - 1"),
        (lambda I, T, Q, p: range_images(Q, 0, 0.01, 3), "n 3 exceeds the 2 images in the top 0.01 of 211"),
        (
            lambda I, T, Q, p: contributions(Q, torch.ones(3, K - 1), torch.zeros(N).long()),
            r"weight \[C, K\]",
        ),
        (
            lambda I, T, Q, p: contributions(Q, torch.ones(3, K), torch.full((N,), 3)),
            "from 0 to 2, got 3 to 3",
        ),
        (lambda I, T, Q, p: class_from_neuron(Q, ["a"], ["b"], [codes]), "one label per unit"),
        (lambda I, T, Q, p: class_from_neuron(Q / 0, ["a"] * K, ["b"], [codes]), "must be finite"),
        (lambda I, T, Q, p: class_from_neuron(Q, ["a"] * K, ["b"], []), "a weight for each encoder"),
        (
            lambda I, T, Q, p: class_from_neuron(Q, ["a"] * K, ["b"], [codes] * 3),
            "got 3 encoders and 2 weights",
        ),
    ],
)
def test_bad_input_is_said_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(*inputs())


def test_head_weight_is_checked_against_the_logits():
    dice = torch.Generator().manual_seed(4)
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    maps = torch.rand(50, 3, 4, generator=dice)  # 3 units at 4 positions
    maps = 0.2 * maps + maps.mean(2, keepdim=True)
    logits = head(maps).detach()
    weight = naming.head_weight(head, "1", maps.mean(2), logits)
    for c in range(5):
        for k in range(3):
            assert float(weight[c, k]) == pytest.approx(
                sum(float(head[1].weight[c, 4 * k + j]) for j in range(4)), abs=1e-6
            )
    other = torch.rand(
        50, 6, generator=dice
    )  # 12 inputs are twice 6, but these units are not what the head reads
    assert naming.head_weight(head, "1", other, logits) is None
    assert naming.head_weight(head, "1", maps[:, :, 0].repeat(1, 2)[:, :5], logits) is None
    assert naming.head_weight(head, "0", maps.mean(2), logits) is None
