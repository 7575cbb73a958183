"""neuronym.describe.variants: each variant is the method with one thing changed by hand; its numbers by
loops.
"""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wilcoxon

from neuronym.activations import embed_concepts
from neuronym.common.text import names_it
from neuronym.describe import selection
from neuronym.describe import variants as variants_module
from neuronym.describe.pipeline import best_labels, describe_units, of_units, ordinary_rows
from neuronym.describe.scoring import SCORES
from neuronym.describe.simulation import SIMULATED
from neuronym.describe.variants import labels_by_variant, step_ablation, VARIANTS
from neuronym.evaluation import explanations
from neuronym.models.transcripts import open_transcript
from tests.helpers.describe import last_words, looks, seen_by, sources

UNITS = [0, 26, 43]


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    """Two looks, two language models and two sources on the final layer."""
    book = open_transcript(tmp_path_factory.mktemp("answers") / "b.jsonl")
    other = seen_by([])
    own = world.looked["fc"], world.ordinary
    fake = looks(world, book, other, "fc", UNITS), ["a green moon in dim light"] * 3
    looked = {("all steps", "the method"): own, ("captions", "fake"): fake}
    return SimpleNamespace(looks=looked, asks={"extractive": None, "llm": last_words}, own=own, fake=fake)


@pytest.mark.parametrize("first", ["microworld", "retrieval"])
def test_each_variant_changes_one_thing(world, asked, first, monkeypatch, tmp_path):
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path))
    both = sources(world, "fc")
    where = {first: both[first]} | both
    more, scored = {"tries": 3, "beta": 2, "top": 4}, []
    told = []
    monkeypatch.setattr(
        variants_module,
        "describe_units",
        lambda look, *given, reference, **options: (
            told.append((look, reference)) or describe_units(look, *given, reference=reference, **options)
        ),
    )
    monkeypatch.setattr(
        variants_module,
        "score_shown",
        lambda shown, how, real=selection.score_shown, **options: (
            scored.append((how, options)) or real(shown, how, **options)
        ),
    )
    found = labels_by_variant(asked.looks, asked.asks, where, selection="topk_compare", seed=1, **more)

    def by_hand(look=asked.own, ask=None, source=first, **changed):
        drawer, given = both[source]
        return best_labels(
            describe_units(
                look[0],
                drawer,
                ask=ask,
                reference=look[1],
                **{"selection": "topk_compare", "seed": 1, **more, **given, **changed},
            )
        )

    expected = {
        ("all steps", "the method"): by_hand(),
        ("captions", "fake"): by_hand(asked.fake),
        ("summary", "captions as candidates"): by_hand(summary=False),
        ("summary", "llm"): by_hand(ask=last_words),
        ("selection", "none: the first candidate"): by_hand(selection="first"),
    }
    expected |= {("selection", how): by_hand(selection=how) for how in SCORES if how != "topk_compare"}
    (second,) = set(both) - {first}
    expected["pictures", second] = by_hand(source=second)
    if first == "microworld":
        expected["as shipped", "pictures of 32 pixels"] = by_hand(shrink=32)
    expected["as shipped", "scores as shipped"] = by_hand(negative="as_shipped", ties="as_shipped")
    assert found == expected and list(found) == list(expected), "parts in the order of VARIANTS"
    shipped = {"beta": 2, "top": 4, "negative": "as_shipped", "ties": "as_shipped"}
    assert scored[-1] == ("topk_compare", shipped), "what few labels show"
    own = [(asked.fake if look is asked.fake[0] else asked.own)[1] for look, _ in told]
    assert all(a is b for a, (_, b) in zip(own, told)), "a look is compared with its own captions"
    assert all(len(texts) == len(UNITS) and all(texts) for texts in found.values())
    assert len({tuple(texts) for texts in found.values()}) > 4, "variants differ"


@pytest.mark.parametrize("selection", ["first", "balanced"])
def test_a_method_without_pictures(world, asked, tmp_path, monkeypatch, selection):
    """What differs in pictures alone is then chosen by the paper's function."""
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path))
    both, (look, said) = sources(world, "fc"), asked.own
    heard = world.Q["fc"][ordinary_rows(60, 20)]
    T = embed_concepts(world.clip, ["circle", "star", "night", "red"])
    seen = {"Q": world.Q["fc"], "I": world.I, "clip": world.clip, "T": T}
    given = {"seen": seen, "reference_Q": heard, "captions_of": "both", "tries": 3}
    other = asked.fake[0], asked.fake[1][:1] * 20  # a caption for each row of reference_Q
    looked = {("all steps", "the method"): asked.own, ("captions", "fake"): other}
    found = labels_by_variant(looked, {"llm": last_words}, both, selection=selection, **given)

    def by_hand(how, source="microworld", captions_of="both", **more):
        drawer, its = both[source]
        its = {} if how == "first" else seen if how in SIMULATED else its | more
        told = {"ask": last_words, "reference": said, "reference_Q": heard, "tries": 3}
        return best_labels(
            describe_units(look, drawer, selection=how, captions_of=captions_of, **told, **its)
        )

    assert found["all steps", "the method"] == by_hand(selection)
    for how in ("mention", "simulate", "agreed", "balanced", "topk_compare", "mean"):
        if how != selection:
            assert found["selection", how] == by_hand(how)
    assert found["selection", "none: the first candidate"] == by_hand("first")
    for origin in ("examples", "ordinary"):
        assert found["candidates", f"captions of {origin}"] == by_hand(selection, captions_of=origin)
    paper = "topk_compare"
    assert found["pictures", f"{paper}, retrieval"] == by_hand(paper, "retrieval")
    assert found["as shipped", f"{paper}, pictures of 32 pixels"] == by_hand(paper, shrink=32)
    shipped = {"negative": "as_shipped", "ties": "as_shipped"}
    assert found["as shipped", f"{paper}, scores as shipped"] == by_hand(paper, **shipped)
    assert {part for part, _ in found} == set(VARIANTS) - {"crops"}


# numbers

NAMES = ["circle", "red star", "night", "ring"]
LABELS = {
    "inner": {
        ("all steps", "the method"): ["circle", "night"],
        ("crops", "no crops"): ["night", "night"],
        ("summary", "a | b"): ["blue ring", "circle"],
    },
    "last": {
        ("all steps", "the method"): ["blue circles", "red star", "snow", "dotted ring"],
        ("crops", "no crops"): ["circle", "star", "night", "moon"],
        ("summary", "a | b"): ["sea", "sea", "sea", "ring"],
    },
}
ROWS = {"inner": [4, 1], "last": [2, 0, 3, 1]}
GROUPS = {"inner": "inner layers", "last": "last"}


@pytest.fixture(scope="module")
def numbers(world):
    dice = torch.Generator().manual_seed(0)
    Q = {"inner": torch.rand(60, 5, generator=dice), "last": torch.rand(60, 4, generator=dice)}
    present = lambda texts: explanations.phrase_presence(world.probe, texts)
    table = step_ablation(LABELS, present, Q, {"inner": 0.1, "last": 0.1}, ROWS, GROUPS, {"last": NAMES})
    values = {}
    for layer, variants in LABELS.items():
        for variant, texts in variants.items():
            q = [Q[layer][:, unit].double().numpy() for unit in ROWS[layer]]
            x = [present([text])[:, 0].double().numpy() for text in texts]
            values["correlation", GROUPS[layer], variant] = [
                np.corrcoef(a, b)[0, 1] if b.std() else 0.0 for a, b in zip(q, x)
            ]
            if layer == "last":
                said = [" ".join(w.removesuffix("s") for w in text.split()) for text in texts]
                values["named", "last", variant] = [
                    float(re.search(rf"\b{name}\b", t) is not None) for name, t in zip(NAMES, said)
                ]
    return table, values


def test_ablation_literally(numbers):
    table, values = numbers
    assert list(table[["metric", "group", "part", "variant"]].itertuples(index=False, name=None)) == [
        (metric, group, *variant)
        for metric, group in (("correlation", "inner layers"), ("correlation", "last"), ("named", "last"))
        for variant in LABELS["last"]
    ]
    pvalues = {}
    for row in table.itertuples():
        mine = np.array(values[row.metric, row.group, (row.part, row.variant)])
        base = np.array(values[row.metric, row.group, ("all steps", "the method")])
        assert row.mean == pytest.approx(mine.mean(), abs=1e-6)
        assert row.low - 1e-9 <= row.mean <= row.high + 1e-9
        if row.part == "all steps":
            assert all(
                np.isnan(v) for v in (row.difference, row.low_difference, row.high_difference, row.holm)
            )
            continue
        assert row.difference == pytest.approx((mine - base).mean(), abs=1e-6)
        assert row.low_difference - 1e-9 <= row.difference <= row.high_difference + 1e-9
        p = wilcoxon(mine - base).pvalue if (mine != base).any() else 1.0
        pvalues.setdefault(row.metric, []).append((p, row.holm))
    for (
        pairs
    ) in pvalues.values():  # Holm: the smallest p times all, the next times all but one, ..., never falling
        least = 0.0
        for i, (p, corrected) in enumerate(sorted(pairs)):
            least = max(least, min(1.0, p * (len(pairs) - i)))
            assert corrected == pytest.approx(least)
    named = table[table["metric"] == "named"].set_index("variant")["mean"]
    assert named.to_dict() == {"the method": 0.75, "no crops": 0.5, "a | b": 0.25}


def test_labels_dealt_to_other_units(numbers):
    """Exactly: over all orders a label is at each unit equally often; a hundred draws come near."""
    table, _ = numbers
    assert table[table["metric"] == "correlation"]["shuffled"].isna().all()
    for row in table[table["metric"] == "named"].itertuples():
        texts = LABELS["last"][row.part, row.variant]
        exact = np.mean([[names_it(text, name) for name in NAMES] for text in texts])
        assert row.shuffled == pytest.approx(exact, abs=0.1)
    assert table.set_index(["metric", "variant"]).loc[("named", "the method"), "shuffled"] < 0.4


def test_ablation_without_true_names(numbers, world):
    table = numbers[0]
    dice = torch.Generator().manual_seed(0)
    Q = {"inner": torch.rand(60, 5, generator=dice), "last": torch.rand(60, 4, generator=dice)}
    given = (
        LABELS,
        lambda texts: explanations.phrase_presence(world.probe, texts),
        Q,
        {"inner": 0.1, "last": 0.1},
        ROWS,
    )
    plain = step_ablation(*given, GROUPS)
    assert "shuffled" not in plain and set(plain["metric"]) == {"correlation"}
    same = table[table["metric"] == "correlation"].drop(columns="shuffled")
    pd.testing.assert_frame_equal(plain, same, check_like=True)
    joined = step_ablation(*given, dict.fromkeys(GROUPS, "all"), metric="f1")
    assert set(joined["metric"]) == {"f1"} and joined["group"].tolist() == ["all"] * 3


def test_parts_are_those_of_tables():
    assert len(set(VARIANTS)) == len(VARIANTS) and VARIANTS[0] == "all steps"
    with pytest.raises(ValueError):
        labels_by_variant({("all steps", "m"): (None, [])}, {}, {})


def test_examples_shown_together(world):
    """What is said of all examples are the candidates; no language model reads it."""
    phrases = {0: ["Red ring.", "dim light"], 26: ["a star"], 43: ["a very long phrase of seven words"]}
    look = replace(world.looked["fc"], captions=phrases, together=True)
    assert of_units(look, [26]).together and not world.looked["fc"].together
    found = describe_units(look, selection="first")
    assert found.candidates == {0: ["red ring", "dim light"], 26: ["a star"], 43: ["a very long phrase"]}
    where = {"retrieval": sources(world, "fc")["retrieval"]}
    own = {("all steps", "the method"): (look, world.ordinary)}
    asks = {"extractive": None, "llm": lambda requests: pytest.fail("no language model is asked")}
    labels = labels_by_variant(own, asks, where, selection="topk_compare")
    assert not any(part == "summary" for part, _ in labels) and len(labels) == 8
