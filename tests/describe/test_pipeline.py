"""neuronym.describe.pipeline on the microworld's network: every step against what it is made of, one picture
and unit at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest
import torch

from neuronym.activations import embed_concepts
from neuronym.common.tables import write_table
from neuronym.describe import pipeline as module
from neuronym.describe.candidates import propose
from neuronym.describe.counting import correlated
from neuronym.describe.examples import Example, examples, picture
from neuronym.describe.pipeline import (
    best_labels,
    candidates_table,
    CaptionedExamples,
    choose,
    cropped,
    describe_units,
    Described,
    labels_of,
    of_units,
    ordinary_captions,
    ordinary_rows,
    release_table,
    several_labels,
    several_table,
)
from neuronym.describe.selection import rank_candidates
from neuronym.models.captioners import Captioner, picture_key
from neuronym.models.transcripts import BudgetReached, open_transcript
from neuronym.similarity.labels import COLUMNS
from tests.helpers.describe import FEW, last_words, looks, seen_by, sources, UNITS, words


def never():
    return Captioner("fake", "fake", lambda pictures: pytest.fail("nothing is asked"))


def same(a: CaptionedExamples, b: CaptionedExamples, units):
    where = [{u: [(e.image, e.box) for e in some.examples[u]] for u in units} for some in (a, b)]
    return where[0] == where[1] and all(
        a.captions[u] == b.captions[u] and torch.allclose(a.E[u], b.E[u], atol=1e-5) for u in units
    )


# looking


def test_captions_and_embeddings_belong_to_their_examples(world):
    for name, looked in world.looked.items():
        units = list(looked.examples)
        assert looked.layer == name and list(looked.captions) == list(looked.E) == units
        assert looked.examples == examples(
            world.target, world.layers[name], units, world.probe, world.Q[name], **FEW
        )
        for unit in units:
            shown = [picture(world.probe, e) for e in looked.examples[unit]]
            assert looked.captions[unit] == [world.captioner.caption([p])[0] for p in shown]
            alone = torch.cat([world.clip.encode_image(world.clip.preprocess(p)[None]) for p in shown])
            assert looked.E[unit].shape == alone.shape == (len(shown), world.clip.d)
            assert torch.allclose(looked.E[unit], alone, atol=1e-5)
    boxes = [e.box for some in world.looked["layer4"].examples.values() for e in some]
    assert (
        len(boxes) == 15 and 0 < cropped(world.looked["layer4"]) == sum(b is not None for b in boxes) / 15 < 1
    )
    assert cropped(world.looked["fc"]) == 0 and len(set(world.looked["layer4"].captions[UNITS[0]])) > 1


def test_company_and_batches_do_not_matter(world, tmp_path, monkeypatch):
    log = []
    together = looks(world, open_transcript(tmp_path / "a"), seen_by(log))
    assert list(together.captions) == UNITS
    asked = [key for call in log for key in call]
    different = {(e.image, e.box) for some in together.examples.values() for e in some}
    assert len(asked) == len(set(asked)) == len(different), "a picture of several units is captioned once"
    monkeypatch.setattr(module, "TOGETHER", 3)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "another"))
    seen = []

    def bars(items, total, text):
        seen.extend([(len(items), total)] if isinstance(items, list) else [])
        return items

    for unit in UNITS:
        alone = looks(
            world,
            open_transcript(tmp_path / str(unit)),
            seen_by(log),
            units=[unit],
            batch_size=2,
            progress=bars,
        )
        assert list(alone.captions) == [unit] and same(together, alone, [unit])
    assert seen and all(total == n for n, total in seen) and max(map(len, log[1:])) == 2
    part = of_units(together, UNITS[::-2])
    assert (
        list(part.examples) == list(part.captions) == list(part.E) == UNITS[::-2] and part.layer == "layer4"
    )
    assert same(part, together, UNITS[::2])


def test_a_second_time_and_a_replay_ask_nothing(world, tmp_path):
    log, file = [], tmp_path / "a"
    first = looks(world, open_transcript(file), seen_by(log))
    said = ordinary_captions(world.probe, seen_by(log), open_transcript(file), 9)
    written = file.read_bytes()
    for mode in ("record", "replay"):
        book = open_transcript(file, mode)
        assert same(first, looks(world, book, never()), UNITS) and book.asked == 0 and book.replayed > 10
        assert ordinary_captions(world.probe, never(), book, 9) == said
    assert file.read_bytes() == written
    with pytest.raises(LookupError, match="a replay asks nothing, and .* answers of kind 'caption'"):
        looks(world, open_transcript(file, "replay"), seen_by(log, key="another"))
    asked = len(log)
    looks(world, open_transcript(file, "live"), seen_by(log))
    assert len(log) > asked, "live asks again"


@pytest.mark.parametrize("name, part", [("fake", "BATCH"), ("vlm:model", "WORKERS")])
def test_what_was_captioned_before_an_error_is_kept(world, tmp_path, monkeypatch, name, part):
    monkeypatch.setattr(module, part, 3)
    log, file = [], tmp_path / "a"
    with pytest.raises(ConnectionError, match="the line is dead"):
        looks(world, open_transcript(file), seen_by(log, fails=3, name=name))
    kept = [json.loads(line)["answer"] for line in file.read_text().splitlines()]
    answered = [key for i, call in enumerate(log) for key in call if i != 2]
    assert sorted(kept) == sorted(map(words, answered)), "every answer that came is kept"
    assert len(kept) >= (6 if part == "BATCH" else 2)
    again = []
    whole = looks(world, open_transcript(file), seen_by(again, name=name))
    assert max(Counter(answered + [key for call in again for key in call]).values()) == 1, (
        "nothing is asked twice"
    )
    fresh = looks(world, open_transcript(tmp_path / "b"), seen_by([], name=name))
    assert same(whole, fresh, UNITS)


def test_only_models_of_servers_cost(world, tmp_path):
    log, file = [], tmp_path / "a"
    looks(world, open_transcript(file, budget=0), seen_by(log), units=[3])
    with pytest.raises((BudgetReached, ValueError), match="3 answers are missing, the 2 that came are kept"):
        looks(world, open_transcript(tmp_path / "b", budget=2), seen_by(log, name="vlm:m"), units=[3])
    assert [len(call) for call in log] == [5, 1, 1] and len((tmp_path / "b").read_text().splitlines()) == 2


def test_the_error_of_a_budget_names_the_budget(world, tmp_path):
    with pytest.raises(BudgetReached, match="budget=2 is reached by 2 answers"):
        looks(world, open_transcript(tmp_path / "a", budget=2), seen_by([], name="vlm:m"), units=[3])


def test_a_captioner_that_loses_a_picture_is_an_error(world, tmp_path):
    lost = Captioner("short", "k", lambda pictures: [words(picture_key(p)) for p in pictures[1:]])
    with pytest.raises(ValueError, match="one caption for each picture, short gave 4 for 5"):
        looks(world, open_transcript(tmp_path / "a"), lost, units=[3])
    assert not (tmp_path / "a").exists(), "no caption of another picture is kept"


def test_ordinary_captions(world, tmp_path):
    book = open_transcript(tmp_path / "a")
    rows = sorted(torch.randperm(60, generator=torch.Generator().manual_seed(4))[:7].tolist())
    expected = [words(picture_key(picture(world.probe, Example(i, None, 0.0)))) for i in rows]
    assert ordinary_captions(world.probe, seen_by([]), book, 7, 4) == expected
    assert ordinary_captions(world.probe, seen_by([]), book, 7, 5) != expected
    everything = ordinary_captions(world.probe, seen_by([]), book, 999)
    assert len(everything) == 60 and everything[rows[3]] == expected[3]
    with pytest.raises(ValueError, match="n must be"):
        ordinary_captions(world.probe, seen_by([]), book, 0)


def test_candidates_from_ordinary_captions(world):
    looked, heard = world.looked["fc"], world.Q["fc"][ordinary_rows(60, 20)]
    units = list(looked.captions)
    given = {"selection": "first", "reference": world.ordinary, "tries": 3}
    own = propose(looked.captions, None, world.ordinary, tries=3)
    wide = dict(zip(units, correlated(world.ordinary, heard[:, units], 3)))
    assert any(wide.values())
    for origin, expected in (
        ("examples", own),
        ("ordinary", {unit: wide[unit] or own[unit] for unit in units}),
        ("both", {unit: list(dict.fromkeys([*own[unit], *wide[unit]])) for unit in units}),
    ):
        found = describe_units(looked, reference_Q=heard, captions_of=origin, **given)
        assert found.candidates == expected
    asked = describe_units(looked, reference_Q=heard, captions_of="ordinary", ask=never, **given)
    assert asked.candidates == {unit: wide[unit] for unit in units}, "no language model is asked"
    few = describe_units(
        looked, reference_Q=heard[:4], captions_of="ordinary", **given | {"reference": ["x"] * 4}
    )
    assert few.candidates == propose(looked.captions, None, ["x"] * 4, tries=3), "what captions do not give"
    with pytest.raises(ValueError, match="need the activations on their images, got none"):
        describe_units(looked, captions_of="both", **given)
    with pytest.raises(KeyError, match="no source of captions 'all'"):
        describe_units(looked, captions_of="all", **given)


@pytest.mark.parametrize("source", ["microworld", "retrieval"])
@pytest.mark.parametrize("ask", [None, last_words])
def test_describe_is_candidates_then_pictures(world, source, ask):
    looked, (drawer, given) = world.looked["fc"], sources(world, "fc")[source]
    found = describe_units(
        looked, drawer, ask=ask, reference=world.ordinary, tries=3, seed=2, selection="sq_mean", **given
    )
    candidates = propose(looked.captions, ask, world.ordinary, tries=3, seed=2)
    assert found.layer == "fc" and found.candidates == candidates and max(map(len, candidates.values())) > 1
    seeded = {"seed": 2} if source == "microworld" else {}
    scores, shown = rank_candidates(candidates, looked.E, drawer, how="sq_mean", **seeded, **given)
    again, seen = choose(candidates, looked, drawer, "sq_mean", 2, **given)
    for unit, some in candidates.items():
        assert found.scores[unit].shape == (len(some),) and torch.equal(
            found.scores[unit], scores["sq_mean"][unit]
        )
        assert torch.equal(again[unit], found.scores[unit])
        assert torch.equal(
            found.shown.activations[unit].nan_to_num(-9), shown.activations[unit].nan_to_num(-9)
        )
        assert torch.equal(seen.cosines[unit].nan_to_num(-9), shown.cosines[unit].nan_to_num(-9))
    alone = describe_units(
        of_units(looked, [26]),
        drawer,
        ask=ask,
        reference=world.ordinary,
        tries=3,
        seed=2,
        selection="sq_mean",
        **given,
    )
    assert alone.candidates[26] == candidates[26] and torch.allclose(alone.scores[26], found.scores[26])


def test_seeds(world):
    looked, (drawer, given) = world.looked["fc"], sources(world, "fc")["microworld"]
    a, b, c = (
        describe_units(looked, drawer, reference=world.ordinary, seed=seed, **given) for seed in (0, 0, 1)
    )
    assert (
        all(torch.equal(a.scores[u], b.scores[u]) for u in a.scores)
        and a.candidates == b.candidates == c.candidates
    )
    assert not torch.equal(a.shown.activations[0], c.shown.activations[0]), "other pictures"


def test_options_reach_their_steps(world):
    looked, (drawer, given) = world.looked["fc"], sources(world, "fc")["retrieval"]
    raw = describe_units(looked, drawer, reference=world.ordinary, summary=False, tries=2, **given)
    assert raw.candidates == propose(looked.captions, None, world.ordinary, tries=2, summary=False)
    assert all(
        set(some) <= {c.lower() for c in looked.captions[unit]} for unit, some in raw.candidates.items()
    )
    told = []
    describe_units(
        looked,
        ask=lambda requests: told.extend(requests) or last_words(requests),
        prompt="satellite",
        seed=7,
        selection="first",
    )
    assert all("satellite" in messages[0]["content"] and settings["seed"] == 7 for messages, settings in told)
    given |= {"beta": 1, "negative": "as_shipped", "ties": "as_shipped"}
    shipped = describe_units(looked, drawer, reference=world.ordinary, **given)
    scores, _ = rank_candidates(shipped.candidates, looked.E, drawer, **given)
    assert all(
        torch.equal(shipped.scores[unit], scores["topk_compare"][unit]) for unit in scores["topk_compare"]
    )


def test_without_pictures_the_first_candidate_is_the_label(world):
    found = describe_units(
        world.looked["fc"], "no source is looked at", reference=world.ordinary, selection="first"
    )
    assert found.shown is None
    assert best_labels(found) == [some[0] for some in found.candidates.values()]
    assert all(s.tolist() == [-i for i in range(len(s))] for s in found.scores.values())
    assert labels_of(found, "m")["label"].tolist() == [
        text for some in found.candidates.values() for text in some[:3]
    ]


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"selection": "topk_compar"}, KeyError, "no scoring function 'topk_compar'; nearest: topk_compare"),
        ({"source": "retrival"}, KeyError, "no source of pictures 'retrival'"),
        ({"prompt": "object"}, KeyError, "no prompt 'object'; nearest: objects"),
        ({"tries": 0}, ValueError, "tries must be"),
    ],
)
def test_what_it_refuses(world, given, error, message):
    more = sources(world, "fc")["retrieval"][1]
    with pytest.raises(error, match=message):
        describe_units(world.looked["fc"], **{"reference": world.ordinary} | more | given)


def test_blank_captions(world, tmp_path):
    """A caption that says nothing counts for nothing; a unit of which nothing is said is named in the
    error.
    """
    some = seen_by(
        [], say=lambda key: "" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 3 == 0 else words(key)
    )
    looked = looks(world, open_transcript(tmp_path / "a"), some)
    assert any("" in some for some in looked.captions.values())
    found = describe_units(looked, selection="first")
    assert all(text for some in found.candidates.values() for text in some)
    silent = looks(world, open_transcript(tmp_path / "b"), seen_by([], say=lambda key: ""), units=[41])
    with pytest.raises(ValueError, match="captions of unit 41 must hold one that says something"):
        describe_units(silent, selection="first")


# tables


def made(candidates, scores):
    return Described(
        "some.layer",
        candidates,
        {unit: torch.tensor(some, dtype=torch.float64) for unit, some in scores.items()},
        None,
    )


SOME = made(
    {7: ["a", "b", "c", "d"], 2: ["only one"], 5: ["x", "y"]},
    {7: [1.0, 3.0, 3.0, 2.0], 2: [-4.0], 5: [0.0, 0.5]},
)


def test_labels():
    assert best_labels(SOME) == ["b", "only one", "y"] and best_labels(SOME, [5, 7]) == ["y", "b"]
    with pytest.raises(KeyError, match="no described unit '3'"):
        best_labels(SOME, [7, 3])
    table = labels_of(SOME, "net", 2, run="r")
    assert list(table.columns) == [*COLUMNS, "run"]
    assert table[["unit", "rank", "label", "score"]].values.tolist() == [
        [7, 1, "b", 3.0],
        [7, 2, "c", 3.0],
        [2, 1, "only one", -4.0],
        [5, 1, "y", 0.5],
        [5, 2, "x", 0.0],
    ]
    assert (
        set(table["model"]) == {"net"}
        and set(table["layer"]) == {"some.layer"}
        and set(table["method"]) == {"dnd"}
    )
    assert len(labels_of(SOME, "net")) == 6 and set(labels_of(SOME, "net", method="mine")["method"]) == {
        "mine"
    }


def test_candidates_table():
    table = candidates_table([SOME, made({1: ["z"]}, {1: [2.0]})])
    assert list(table.columns) == ["layer", "unit", "candidate", "score"]
    assert table["candidate"].tolist() == ["a", "b", "c", "d", "only one", "x", "y", "z"]
    assert table["score"].tolist() == [1, 3, 3, 2, -4, 0, 0.5, 2] and table["unit"].tolist() == [7] * 4 + [
        2,
        5,
        5,
        1,
    ]
    assert list(candidates_table([]).columns) == list(table.columns)


def test_several_labels_literally(world):
    candidates = {
        4: ["red circle", "a president", "circle", "red ring", "snow", "blue star at night"],
        9: ["a senate", "a president"],
        1: ["night"],
    }
    scores = {4: [5.0, 9.0, 4.0, 4.0, 1.0, 3.0], 9: [1.0, 2.0], 1: [0.0]}
    T = {
        text: embed_concepts(world.clip, [text])[0]
        for some in candidates.values()
        for text in some
        if text not in ("a president", "a senate")
    }
    for most, limit in ((3, 0.81), (2, 0.5), (5, 0.95), (9, 1.0)):
        expected = {}
        for unit, some in candidates.items():
            order = sorted(range(len(some)), key=lambda c: (-scores[unit][c], c))
            kept = []
            for c in order:
                text = some[c]
                if (
                    text in T
                    and len(kept) < most
                    and all(float(T[text] @ T[other]) <= limit for other in kept)
                ):
                    kept.append(text)
            expected[unit] = kept or [some[order[0]]]
        assert several_labels(made(candidates, scores), world.clip, most, limit) == expected
    assert several_labels(made({9: candidates[9]}, {9: scores[9]}), world.clip) == {9: ["a president"]}


def test_tables_of_several_labels_and_of_the_release(tmp_path):
    candidates = {7: ["red ring", "=star", "moon", "sea"], 2: ["night"]}
    scores = {7: torch.tensor([0.1, 0.9, 0.4, -1.0]), 2: torch.tensor([0.0])}
    found = release_table(Described("layer4", candidates, scores, None))
    file = tmp_path / "results.csv"
    write_table(found, file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines == ["Neuron ID,Label 1,Label 2,Label 3", "7,'=star,moon,red ring", "2,night,,"]
    several = {"layer4": {7: ["=star", "moon"], 2: ["night"]}, "fc": {}}
    rows = [("layer4", 7, 1, "=star"), ("layer4", 7, 2, "moon"), ("layer4", 2, 1, "night")]
    assert list(several_table(several).itertuples(index=False, name=None)) == rows
