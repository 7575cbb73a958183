"""neuronym.describe.simulation against loops over images and phrases in float64, and what must not matter."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neuronym.activations import embed_concepts
from neuronym.common.checks import UnknownName
from neuronym.common.text import names_it
from neuronym.describe.pipeline import best_labels, describe_units
from neuronym.describe.simulation import by_simulation, mentioned, simulated, UNREAD
from tests.helpers.describe import sources

TEXTS = {41: ["red circle", "circle", "a large dotted moon in dim light"], 3: ["circle", "night"]}
WORDS = ["red", "blue", "circle", "star", "night", "dotted"]


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def literal(Q, I, texts, words):
    """Slope and offset from cosines of images and words, by loops; correlations of probabilities, [K][C]."""
    I, texts, words = (x.double().tolist() for x in (I, texts, words))

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b))

    spreads = []
    for image in I:
        cosines = [dot(image, word) for word in words]
        middle = sum(cosines) / len(cosines)
        spreads.append(math.sqrt(sum((c - middle) ** 2 for c in cosines) / len(cosines)))
    a = 2 / (sum(spreads) / len(spreads))
    low, high = -500.0, 500.0
    for _ in range(200):
        b = (low + high) / 2
        shown = sum(logistic(a * dot(image, word) + b) for image in I for word in words) / len(I)
        low, high = (low, b) if shown > 1 else (b, high)
    seen = np.array([[logistic(a * dot(image, text) + b) for text in texts] for image in I])
    return [[np.corrcoef(q, x)[0, 1] for x in seen.T] for q in Q.double().numpy().T]


def test_simulated_is_the_literal_one(world):
    Q = world.Q["layer4"]
    T = embed_concepts(world.clip, WORDS)
    found = simulated(TEXTS, Q, world.I, world.clip, T)
    for unit, texts in TEXTS.items():
        t = embed_concepts(world.clip, [world.clip.reads(text) for text in texts])
        [expected] = literal(Q[:, [unit]], world.I, t, T)
        plain = simulated({unit: texts}, Q, world.I, world.clip, T, plain=True)[unit].tolist()
        P = (world.I.double() @ t.double().T).numpy()
        assert plain == pytest.approx([np.corrcoef(Q[:, unit], p)[0, 1] for p in P.T], abs=2e-5)
        assert found[unit].dtype == torch.float64
        assert found[unit].tolist() == pytest.approx(expected, abs=2e-5)
    assert found[41].unique().numel() == 3


def test_neither_memory_nor_other_units_nor_order_change_a_score(world):
    Q, T = world.Q["layer4"], embed_concepts(world.clip, WORDS)
    every = simulated(TEXTS, Q, world.I, world.clip, T)
    alone = simulated({3: TEXTS[3][::-1]}, Q, world.I, world.clip, T, memory=40 * 60)
    assert alone[3].tolist() == pytest.approx(every[3].tolist()[::-1], abs=1e-6)
    again = simulated({3: ["circle"], 41: ["circle"]}, Q * 7 - 3, world.I, world.clip, T)
    assert float(again[3][0]) == pytest.approx(float(every[3][0]), abs=1e-5), "another scale of the unit"
    assert simulated({}, Q, world.I, world.clip, T) == {}


def test_what_the_clip_cannot_read_is_last(world):
    T = embed_concepts(world.clip, WORDS)
    found = simulated({3: ["zebra", "circle", "zebra"], 5: []}, world.Q["layer4"], world.I, world.clip, T)
    assert found[3].tolist()[::2] == [UNREAD, UNREAD] and -1 <= found[3][1] <= 1 and not len(found[5])
    only = simulated({3: ["zebra"]}, world.Q["layer4"], world.I, world.clip, T)
    assert only[3].tolist() == [UNREAD]


def test_mentioned_is_the_literal_one(world):
    Q, rows = world.Q["layer4"], [4, 0, 33, 17, 8]
    captions = ["a red circle", "two blue stars", "dim light", "a star, red", "a circle at night"]
    candidates = {41: ["star", "red circle", "moon"], 3: ["circle"]}
    found = mentioned(candidates, Q[rows], captions)
    for unit, texts in candidates.items():
        q = Q[rows, unit].double().numpy()
        said = [[names_it(caption, text) for caption in captions] for text in texts]
        expected = [np.corrcoef(q, s)[0, 1] if 0 < sum(s) < 5 else 0.0 for s in said]
        assert found[unit].tolist() == pytest.approx(expected, abs=1e-12)


def test_by_name(world):
    Q, captions = world.Q["layer4"], ["a red circle", "night", "a star"]
    T, heard = embed_concepts(world.clip, WORDS), Q[[1, 2, 3]]
    seen = {"Q": Q, "I": world.I, "clip": world.clip, "T": T}
    said, probable = mentioned(TEXTS, heard, captions), simulated(TEXTS, Q, world.I, world.clip, T)
    cosine = simulated(TEXTS, Q, world.I, world.clip, T, plain=True)
    for how, given, expected in (
        ("mention", seen, said),
        ("mention", {}, said),
        ("simulate", seen | {"clip": None}, said),
        ("agreed", seen | {"clip": None}, said),
        ("simulate", seen, probable),
        ("agreed", seen, {unit: said[unit] + probable[unit] for unit in TEXTS}),
        ("balanced", seen | {"clip": None}, said),
        ("balanced", seen, {unit: (cosine[unit] + probable[unit]) / 4 + said[unit] for unit in TEXTS}),
        ("balanced", seen | {"own_words": True}, {k: (cosine[k] + probable[k]) / 2 for k in TEXTS}),
    ):
        found = by_simulation(TEXTS, how, captions, heard, **given)
        assert all(torch.allclose(found[unit], expected[unit], atol=1e-12) for unit in TEXTS), how
    for how, given in (("agreed", {}), ("balanced", {}), ("balanced", {"own_words": True})):
        captions = ["a zebra", "night", "star"]
        unread = by_simulation({3: ["zebra", "circle"]}, how, captions, heard, **seen, **given)
        assert unread[3].argmax() == 1 and unread[3][0] <= -2


def test_no_picture_is_drawn(world):
    looked = world.looked["layer4"]
    T = embed_concepts(world.clip, WORDS)
    nothing = SimpleNamespace()  # neither a generator nor a source of pictures
    given = {"Q": world.Q["layer4"], "I": world.I, "clip": world.clip, "T": T}
    found = describe_units(looked, nothing, reference=world.ordinary, selection="simulate", **given)
    assert found.shown is None
    expected = simulated(found.candidates, given["Q"], world.I, world.clip, T)
    for unit, texts in found.candidates.items():
        assert torch.equal(found.scores[unit], expected[unit])
        assert best_labels(found, [unit]) == [texts[int(expected[unit].argmax())]]
    drawer, its = sources(world, "layer4")["retrieval"]
    by_pictures = describe_units(looked, drawer, reference=world.ordinary, selection="sq_mean", **its)
    assert by_pictures.candidates == found.candidates


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda w, T: simulated(TEXTS, w.Q["layer4"][:9], w.I, w.clip, T), r"Q \[N, K\] and I \[N, d\]"),
        (lambda w, T: simulated(TEXTS, w.Q["layer4"], w.I, w.clip, T[:1]), "concepts whose cosines"),
        (lambda w, T: mentioned(TEXTS, w.Q["layer4"][:2], ["a"]), "got 1 captions and 2 rows"),
        (lambda w, T: by_simulation(TEXTS, "agreed", Q=w.Q["layer4"]), "two at least, got 0 captions"),
        (lambda w, T: simulated(TEXTS, w.Q["layer4"], w.I, w.clip, T, memory=9), "memory 9 bytes"),
    ],
)
def test_errors(world, call, message):
    with pytest.raises(ValueError, match=message):
        call(world, embed_concepts(world.clip, WORDS))


def test_an_unknown_name(world):
    with pytest.raises(UnknownName, match=re.escape("no selection without pictures 'simulated'")):
        by_simulation(TEXTS, "simulated", Q=world.Q["layer4"])
