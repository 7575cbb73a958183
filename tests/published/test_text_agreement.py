"""neuronym.published.texts: measures and controls against loops, labels against people, encoders that are not
at hand.
"""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from neuronym.common.text import content_words
from neuronym.evaluation.naming_accuracy import name_similarity
from neuronym.published import texts as texts_module
from neuronym.published.texts import (
    against_method,
    against_people,
    against_texts,
    among_people,
    by_characters,
    by_cosine,
    by_words,
    load_encoders,
    reliable,
    word_counts,
)

SAID = ["red dogs", "a cat", "the sea", "sky", "a red cat"]
TRUTH = [["a dog", "red thing"], ["cats", "one cat"], ["sky", "water"], ["the sky", "blue"], ["dog", "grass"]]


def encode(texts):
    """Unit rows that depend on the letters only."""
    return F.normalize(torch.tensor([[t.count(c) + 0.1 for c in "adegorst b"] for t in texts]).float(), dim=1)


def literal(pair, said, truth):
    """Own, shuffled and constant from the formula, with loops; pair(a, b) is the closeness of two texts."""

    def mean(label, texts):
        return sum(pair(label, t) for t in texts) / len(texts)

    n = len(said)
    own = sum(mean(said[k], truth[k]) for k in range(n)) / n
    others = sum(mean(said[k], truth[j]) for k in range(n) for j in range(n) if j != k) / (n * (n - 1))
    return own, others, max(sum(mean(label, texts) for texts in truth) / n for label in said)


def cosine(a, b):
    return float(encode([a]).double() @ encode([b]).double().T)


def letters(a, b):
    return sum(cosine(a, c) for c in b) / len(b)


@pytest.mark.parametrize(
    "measure, pair",
    [
        (by_cosine(encode), cosine),
        (by_characters(encode), letters),
        (by_words, lambda a, b: float(bool(content_words(a) & content_words(b)))),
    ],
)
def test_against_texts_is_the_formula(measure, pair):
    found = against_texts(measure, SAID, TRUTH)
    assert [found["value"], found["shuffled"], found["constant"]] == pytest.approx(
        list(literal(pair, SAID, TRUTH)), abs=1e-7
    )
    assert (
        found["units"] == 5
        and found["low"] <= found["value"] <= found["high"]
        and found["best_constant"] in SAID
    )
    again = against_texts(measure, SAID[::-1], TRUTH[::-1])
    assert [again[k] for k in ("value", "shuffled", "constant")] == pytest.approx(
        [found[k] for k in ("value", "shuffled", "constant")]
    )


def test_by_hand():
    assert by_words(SAID[:2], ["dogs", "of", "a red cat"]).tolist() == [[1, 0, 1], [0, 0, 1]]
    assert by_words(["the"], ["of"]).tolist() == [[0]]
    found = against_texts(by_words, SAID, TRUTH)
    assert found["value"] == pytest.approx((1 + 1 + 0 + 0.5 + 0) / 5) and found["best_constant"] == "red dogs"
    assert against_texts(by_words, ["x"] * 3, [["x"]] * 3)["low"] == 1


def test_agrees_with_name_similarity():
    names = [texts[0] for texts in TRUTH]
    ours = against_texts(by_cosine(encode), SAID, [[name] for name in names])
    theirs = name_similarity(encode, SAID, names, generator=torch.Generator().manual_seed(0), shuffles=4000)
    assert (ours["value"], ours["constant"]) == pytest.approx(
        (theirs["cosine"], theirs["constant"]), abs=1e-6
    )
    # its deals may give a neuron its own label, one in five on average
    assert 0.8 * ours["shuffled"] + 0.2 * ours["value"] == pytest.approx(theirs["shuffled"], abs=3e-3)


def test_people_are_compared_in_pairs():
    truth = [[*texts, "a red dog"] for texts in TRUTH]
    found = among_people(by_cosine(encode), truth)
    literal_own = [sum(cosine(a, b) for a, b in combinations(texts, 2)) / 3 for texts in truth]
    assert found["value"] == pytest.approx(sum(literal_own) / 5) and found["best_constant"] == ""
    with pytest.raises(ValueError, match="texts of two people for at least two neurons, got 1 for 5"):
        among_people(by_words, [[t[0]] for t in TRUTH])


@pytest.mark.parametrize(
    "said, truth, message",
    [
        (SAID[:4], TRUTH, "got 4 labels, 5 neurons"),
        (["a"], [["a"]], "at least two neurons, got 1 labels"),
        (["a", "b"], [["a"], ["a", "b"]], r"\[1, 2\] texts"),
        (["a", "b"], [[], []], r"\[0\] texts"),
        ([], [], "got 0 labels"),
    ],
)
def test_what_cannot_be_compared(said, truth, message):
    with pytest.raises(ValueError, match=message):
        against_texts(by_words, said, truth)


def labels(method, said, layer="layer1", first=0, rank=1):
    return pd.DataFrame(
        {
            "method": method,
            "layer": layer,
            "unit": range(first, first + len(said)),
            "rank": rank,
            "label": said,
        }
    )


def people(texts=TRUTH, **where):
    return pd.concat([labels("milannotations", [t[r] for t in texts], rank=r + 1, **where) for r in (1, 0)])


def test_against_people_takes_the_neurons_that_all_have():
    table = pd.concat(
        [
            people(),
            people(layer="layer2"),
            labels("a", SAID),
            labels("a", SAID[:4], "layer2"),
            labels("b", ["sky", "dog", "cat"], first=1),
            labels("b", ["sky"] * 5, "layer2"),
            labels("a", ["never"] * 9, rank=2),
        ]
    )
    found = against_people(by_words, table).set_index(["whose", "layer"])
    assert (
        found["units"]
        .unstack()
        .loc[["a", "b", "depiction", "milannotations"], ["layer1", "layer2", "all"]]
        .values.tolist()
        == [[3, 4, 7]] * 4
    )
    assert found.loc[("a", "layer1"), "value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.loc[("a", "all"), "value"] == pytest.approx(
        (3 * (1 + 0 + 0.5) / 3 + 4 * (1 + 1 + 0 + 0.5) / 4) / 7
    )
    assert found.loc[("milannotations", "layer1"), "value"] == pytest.approx(1 / 3)
    some = against_people(by_words, table, units={("layer1", 1), ("layer1", 3)}, word="sky")
    assert set(some["units"]) == {2} and some.set_index(["whose", "layer"]).loc[
        ("sky", "all"), "value"
    ] == pytest.approx(0.25)


def test_mismatched_or_duplicate_neurons():
    with pytest.raises(ValueError, match="no neurons in common; choose tables of one model"):
        against_people(by_words, pd.concat([people(), labels("a", SAID, "layer3")]))
    with pytest.raises(ValueError, match="one label of rank 1 of a method, got several; choose one model"):
        against_people(by_words, pd.concat([people(), labels("a", SAID), labels("a", SAID)]))
    for second in (labels("b", SAID, "fc"), pd.concat([labels("b", SAID)] * 2)):
        with pytest.raises(ValueError, match="choose one method and one model for each"):
            against_method(by_words, labels("a", SAID), second)


def test_two_methods():
    first = pd.concat([labels("a", SAID), labels("a", SAID, "fc")])
    second = pd.concat(
        [
            labels("b", ["cat", "sea", "a sea"], first=1),
            labels("b", SAID, "fc"),
            labels("b", ["x"] * 5, rank=2),
        ]
    )
    found = against_method(by_words, first, second).set_index("layer")
    assert found["units"].to_dict() == {"layer1": 3, "fc": 5, "all": 8}
    assert found["value"].to_dict() == pytest.approx({"layer1": 2 / 3, "fc": 1, "all": 7 / 8})


def test_reliable():
    assert reliable(by_words, people(), 0.5) == [("layer1", 1)]
    third = labels("milannotations", ["a dog", "tree", "water", "sky", "sun"], rank=3)
    assert reliable(by_words, pd.concat([people(), third]), 0.5) == [("layer1", i) for i in (0, 1, 2, 3)]
    closest = [max(cosine(a, b) for a, b in combinations(texts, 2)) for texts in TRUTH]
    assert (
        reliable(by_cosine(encode), people(), 0.6)
        == [("layer1", i) for i, c in enumerate(closest) if c > 0.6]
        != []
    )


def test_word_counts():
    assert word_counts(["Fishing, fishing and boats", "a fishing trip", "boats"], 2).to_dict() == {
        "boats": 2,
        "fishing": 2,
    }
    assert word_counts([]).to_dict() == {}


# encoders


def test_encoders_take_every_text_once(monkeypatch):
    taken = []

    def counted(texts):
        taken.extend(texts)
        return encode(texts)

    monkeypatch.setattr(
        texts_module,
        "load_sentence_encoder",
        lambda name, device: SimpleNamespace(encode=counted, weights_key="w"),
    )
    monkeypatch.setattr(
        texts_module, "load_clip", lambda name, device: SimpleNamespace(encode_text=counted, text_key="t")
    )
    found, absent = load_encoders("s", "c")
    assert list(found) == ["s", "c"] and absent == [] and load_encoders("", "") == ({}, [])
    rows = found["s"](["dog", "cat", "dog"])
    torch.testing.assert_close(rows, encode(["dog", "cat", "dog"]))
    torch.testing.assert_close(found["s"](("cat", "sea")), encode(["cat", "sea"]))
    assert sorted(taken) == ["cat", "dog", "sea"]
    torch.testing.assert_close(load_encoders("s", "")[0]["s"](["cat", "dog"]), encode(["cat", "dog"]))
    assert sorted(taken[3:]) == ["cat", "dog"]  # from the cache of the first, a few looked at again
    assert found["c"](["dog"]).shape == (1, 10) and taken[5:] == ["dog"]  # another encoder's rows are its own


def test_an_encoder_that_is_not_at_hand_is_said(monkeypatch):
    def missing(name, device):
        raise ModuleNotFoundError("it needs the package x; pip install x")

    monkeypatch.setattr(texts_module, "load_sentence_encoder", missing)
    assert load_encoders("minilm", "") == (
        {},
        ["no column for 'minilm': it needs the package x; pip install x"],
    )
    with pytest.raises(KeyError, match="no clip 'openai'"):
        load_encoders("", "openai")
