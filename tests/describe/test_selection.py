"""Choosing among candidates: drawn and retrieved pictures against literal loops, caches, and the microworld's
truth.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym.activations import activations_and_embeddings
from neuronym.common.memory import top_images
from neuronym.datasets.probe import load_probe
from neuronym.describe import selection
from neuronym.describe.scoring import best, score_candidates, SCORES
from neuronym.describe.selection import (
    candidate_pictures,
    on_generated,
    on_retrieved,
    PROMPT,
    rank_candidates,
    score_shown,
)
from neuronym.hooks import resolve_layers
from neuronym.models.clips import load_clip
from neuronym.models.generators import Generator, load_generator, pictures_of
from neuronym.models.targets import load_target

TEXTS = {
    3: ["star", "sea", "a tree"],
    40: ["a tree", "night"],
    7: ["sea", "a red star", "striped", "sea"],
    9: [],
}
N, n = 37, 3


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_rows(rows: int, d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=dice(seed)), dim=1)


@pytest.fixture(scope="module")
def target():
    return load_target("microworld:resnet", suggest=False)


@pytest.fixture(scope="module")
def fc(target):
    return resolve_layers(target.model, "fc", target.example)[0]


@pytest.fixture(scope="module")
def clip():
    return load_clip("microworld")


@pytest.fixture(scope="module")
def E(clip):
    """Examples of each unit, another number for each."""
    return {unit: unit_rows(4 + i, clip.d, unit) for i, unit in enumerate(TEXTS)}


@pytest.fixture(scope="module")
def known(clip):
    """Q [N, 52], I [N, d] of a probe that needs no pictures."""
    return {"Q": torch.randn(N, 52, generator=dice(1)), "I": unit_rows(N, clip.d, 2), "clip": clip}


@pytest.fixture
def counted():
    """The microworld's renderer with a log of its prompts and seeds."""
    asked, source = [], load_generator("microworld")

    def draw(prompts, seeds):
        asked.extend(zip(prompts, seeds))
        return source.draw(prompts, seeds)

    return replace(source, draw=draw), asked


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.allclose(a[u], b[u], rtol=1e-4, atol=1e-5, equal_nan=True) for u in a
    )


# --- drawn pictures


def test_units_see_the_pictures_of_their_candidates(target, fc, clip, E, counted):
    source, asked = counted
    shown = on_generated(TEXTS, E, source, target=target, layer=fc, clip=clip, n=n)
    assert sorted({text for text, _ in asked}) == ["a red star", "night", "sea", "star", "striped"]
    assert len(asked) == 5 * n and len({seed for _, seed in asked}) == n, (
        "each text once, with the same seeds"
    )
    assert shown.rows is None and list(shown.activations) == list(shown.cosines) == list(TEXTS)
    for unit, texts in TEXTS.items():
        assert shown.activations[unit].shape == shown.cosines[unit].shape == (len(texts), n)
        for c, text in enumerate(texts):
            if text == "a tree":  # the microworld has none
                assert shown.activations[unit][c].isnan().all() and shown.cosines[unit][c].isnan().all()
                continue
            for j, picture in enumerate(candidate_pictures([text], source, n)[text]):
                with torch.no_grad():
                    q = target.model(target.preprocess(picture)[None])[0, unit]
                    e = clip.encode_image(clip.preprocess(picture)[None])[0]
                assert shown.activations[unit][c, j].item() == pytest.approx(q.item(), rel=1e-4, abs=1e-4)
                mean = math.fsum(float(e @ example) for example in E[unit]) / len(E[unit])
                assert shown.cosines[unit][c, j].item() == pytest.approx(mean, abs=1e-5)


def test_pictures_that_are_missing_are_not_scored(target, fc, clip, E):
    """A safety checker blacks out one picture of a candidate, and all of another."""
    source = load_generator("microworld")

    def draw(prompts, seeds):
        made = source.draw(prompts, seeds)
        return [
            None if p == "star" or p == "sea" and s == min(seeds) else m
            for p, s, m in zip(prompts, seeds, made)
        ]

    options = {"target": target, "layer": fc, "clip": clip, "n": n}
    some, whole = {3: ["sea", "star", "night"]}, {3: unit_rows(4, clip.d, 1)}
    found = on_generated(some, whole, replace(source, draw=draw), **options).activations[3]
    usual = on_generated(some, whole, source, **options).activations[3]
    assert found[1].isnan().all() and int(found[0].isnan().sum()) == 1
    assert torch.allclose(found[0, : n - 1], usual[0, 1:], atol=1e-4) and torch.allclose(found[2], usual[2])
    for how in ("sq_mean", "topk_sq_mean"):
        scores, _ = rank_candidates(some, whole, replace(source, draw=draw), how=how, **options)
        assert scores[how][3].argmin() == 1 and scores[how][3].isfinite().all()


def test_order_company_batches_and_interruption_do_not_matter(
    target, fc, clip, E, counted, monkeypatch, tmp_path
):
    source, asked = counted
    options = {"target": target, "layer": fc, "clip": clip, "n": n}
    whole = on_generated(TEXTS, E, source, **options)
    passes = []

    def logged(*args):
        passes.append(args)
        return activations_and_embeddings(*args)

    def computed() -> int:
        return len(list((tmp_path / "cache" / "activations").iterdir()))

    before = computed()
    again = on_generated(TEXTS, E, source, **options)
    assert same(again.activations, whole.activations) and same(again.cosines, whole.cosines)
    assert computed() == before == 5
    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "other"))
    turned = {unit: texts[::-1] for unit, texts in reversed(TEXTS.items())}
    other = on_generated(turned, E, source, **options, batch_size=2)
    assert same({u: x.flip(0) for u, x in other.activations.items()}, whole.activations)
    assert same({u: x.flip(0) for u, x in other.cosines.items()}, whole.cosines)
    alone = on_generated({7: TEXTS[7]}, None, source, target=target, layer=fc, n=n)
    assert alone.cosines is None and same(alone.activations, {7: whole.activations[7]})

    monkeypatch.setenv("NEURONYM_CACHE", str(tmp_path / "third"))
    monkeypatch.setattr(
        selection, "activations_and_embeddings", lambda *args: 1 / 0 if len(passes) > 2 else logged(*args)
    )
    with pytest.raises(ZeroDivisionError):
        on_generated(TEXTS, E, source, **options)
    monkeypatch.setattr(selection, "activations_and_embeddings", logged)
    resumed = on_generated(TEXTS, E, source, **options)
    assert same(resumed.activations, whole.activations) and same(resumed.cosines, whole.cosines)
    assert len(list((tmp_path / "third" / "activations").iterdir())) == 5


def test_what_pictures_are_asked_for(monkeypatch):
    asked = []

    def draw(prompts, seeds):
        asked.append((list(prompts), list(seeds)))
        return [Image.new("RGB", (70, 50), (int(seed) % 200, 0, 0)) for seed in seeds]

    painter = Generator("diffusers:none", "0", draw, cached=True)
    found = candidate_pictures(["a tree", "sea", "a tree"], painter, 2)
    assert list(found) == ["a tree", "sea"] and [prompts[0] for prompts, _ in asked] == [
        "One realistic image of a tree",
        PROMPT.replace("{}", "sea"),
    ]
    assert asked[0][1] == asked[1][1] and found["sea"][0].size == (70, 50)
    candidate_pictures(["sea"], painter, 2)
    assert len(asked) == 2, "drawn once, then cached"
    small = candidate_pictures(["sea"], painter, 2, shrink=32)["sea"][1]
    assert small.size == (32, 32) and np.array_equal(
        np.asarray(small), np.asarray(found["sea"][1].resize((32, 32), Image.Resampling.BICUBIC))
    )
    candidate_pictures(["sea"], painter, 2, seed=1, template="{} from above")
    assert asked[2][0] == ["sea from above"] * 2 and not set(asked[2][1]) & set(asked[0][1])


def test_pictures_that_choose_a_label_are_none_that_cosy_judges_it_by(counted):
    source, asked = counted
    candidate_pictures(["sea"], source, 10)
    mine = set(asked)
    pictures_of(["sea"], source, 50)
    assert not mine & set(asked[10:])


def test_shrunk_pictures_are_what_target_and_clip_see(target, fc, clip, E):
    source = load_generator("microworld")
    options = {"target": target, "layer": fc, "clip": clip, "n": 2}
    shrunk = on_generated({3: ["star"]}, E, source, shrink=32, **options)
    picture = candidate_pictures(["star"], source, 2)["star"][1].resize((32, 32), Image.Resampling.BICUBIC)
    with torch.no_grad():
        q = target.model(target.preprocess(picture)[None])[0, 3]
    assert shrunk.activations[3][0, 1].item() == pytest.approx(q.item(), rel=1e-4, abs=1e-4)
    full = on_generated({3: ["star"]}, E, source, **options)
    assert not same(full.activations, shrunk.activations) and not same(full.cosines, shrunk.cosines)


# --- retrieved images


def literal_rows(text: str, known: dict, left_out: list[int]) -> list[int]:
    """The nearest images that are not left out, by sorting all."""
    t = known["clip"].encode_text([text])[0].tolist()
    near = [math.fsum(a * b for a, b in zip(t, i)) for i in known["I"].tolist()]
    return [i for i in sorted(range(N), key=lambda i: -near[i]) if i not in left_out][:n]


@pytest.mark.parametrize("exclude", [0, 6, {3: [1, 4, 4, 30], 40: [], 7: list(range(20)), 9: [0]}])
def test_the_nearest_images_that_no_example_comes_from(known, E, exclude):
    shown = on_retrieved(TEXTS, E, n=n, exclude=exclude, **known)
    for unit, texts in TEXTS.items():
        strongest = sorted(range(N), key=lambda i: -known["Q"][i, unit].item())
        left_out = strongest[:exclude] if isinstance(exclude, int) else exclude[unit]
        for c, text in enumerate(texts):
            expected = [-1] * n if text == "a tree" else literal_rows(text, known, left_out)
            assert shown.rows[unit][c].tolist() == expected
            for j, row in enumerate(expected):
                acts, cosines = shown.activations[unit][c, j].item(), shown.cosines[unit][c, j].item()
                if row < 0:
                    assert math.isnan(acts) and math.isnan(cosines)
                    continue
                assert acts == known["Q"][row, unit].item()
                mean = math.fsum(float(known["I"][row] @ example) for example in E[unit]) / len(E[unit])
                assert cosines == pytest.approx(mean, abs=1e-6)
        assert shown.rows[unit].shape == shown.activations[unit].shape == (len(texts), n)


def test_memory_company_and_dtype_do_not_matter(known, E):
    whole = on_retrieved(TEXTS, E, n=n, **known)
    tight = on_retrieved(dict(reversed(TEXTS.items())), E, n=n, memory=16 * N, **known)
    assert all(torch.equal(tight.rows[unit], whole.rows[unit]) for unit in TEXTS)
    alone = on_retrieved({40: TEXTS[40]}, None, n=n, **known)
    assert torch.equal(alone.rows[40], whole.rows[40]) and alone.cosines is None
    double = on_retrieved(TEXTS, E, n=n, Q=known["Q"].double(), I=known["I"].double(), clip=known["clip"])
    assert double.activations[3].dtype == double.cosines[3].dtype == torch.float64 and same(
        double.rows, whole.rows
    )
    unread = on_retrieved({3: ["a tree"], 5: []}, None, n=n, **known)
    assert unread.activations[3].isnan().all() and unread.rows[5].shape == (0, n)


def test_the_microworld_clip_gets_the_words_it_knows(known):
    shown = on_retrieved(
        {3: ["a Crescent-shaped thing", "moon", "photo of a"]}, None, n=n, exclude=0, **known
    )
    assert shown.rows[3][0].tolist() == literal_rows("a moon", known, [])
    assert shown.rows[3][2].tolist() == [-1] * n, "words that say nothing"
    on_retrieved({3: ["red star " * 40]}, None, n=n, **known)  # longer than it can read


def test_an_image_that_a_candidate_was_made_from_does_not_confirm_it(clip):
    """Unit 0 fires for what images 10..19 share, and for image 0 most; "sea" describes image 0 and no
    other.
    """
    sea, star = clip.encode_text(["sea"])[0], clip.encode_text(["star"])[0]
    I = unit_rows(60, clip.d, 3)
    I[0], I[10:20] = sea, star
    Q = torch.rand(60, 1, generator=dice(5))
    Q[0], Q[10:20, 0] = 9, 5 + torch.rand(10, generator=dice(6))
    options = {"how": "topk_sq_mean", "n": 1, "Q": Q, "I": I, "clip": clip}
    chosen = [
        best(
            ["sea", "star"],
            rank_candidates({0: ["sea", "star"]}, None, exclude=some, **options)[0]["topk_sq_mean"][0],
        )[0][0]
        for some in (0, 3)
    ]
    assert chosen == ["sea", "star"]


# --- scores


def test_one_or_several_functions_score_what_was_shown(known, E):
    several, shown = rank_candidates(TEXTS, E, n=n, how=list(SCORES), top=4, beta=2, **known)
    assert list(several) == list(SCORES)
    for how in SCORES:
        one, _ = rank_candidates(TEXTS, E, n=n, how=how, top=4, beta=2, **known)
        assert list(one) == [how] and list(one[how]) == list(TEXTS)
        for unit, texts in TEXTS.items():
            direct = score_candidates(shown.activations[unit], shown.cosines[unit], how, top=4, beta=2)
            assert torch.equal(one[how][unit], direct) and torch.equal(several[how][unit], direct)
            if "a tree" in texts:
                assert direct.argmin() == texts.index("a tree"), "no picture, the lowest score"
    shipped = score_shown(shown, "topk_compare", top=1, negative="as_shipped", ties="as_shipped")[
        "topk_compare"
    ]
    assert not torch.equal(shipped[7], score_shown(shown, top=1)["topk_compare"][7])
    assert best([], several["mean"][9])[0][0] == ""


def test_true_names_win_in_the_microworld(target, fc, clip):
    probe, names, shuffled = load_probe("microworld:250"), target.classes, random.Random(0)
    acts, I = activations_and_embeddings(target, [fc], clip, probe)
    Q, candidates = acts["fc"], {}
    for unit, name in enumerate(names):
        candidates[unit] = [name, *shuffled.sample([other for other in names if other != name], 4)]
        shuffled.shuffle(candidates[unit])
    E = {unit: I[top] for unit, top in enumerate(top_images(Q, 10).T)}

    def right(scores):
        return {
            how: sum(names[u] == candidates[u][some[u].argmax()] for u in candidates) / len(names)
            for how, some in scores.items()
        }

    drawn = right(
        rank_candidates(
            candidates, E, load_generator("microworld"), how=list(SCORES), target=target, layer=fc, clip=clip
        )[0]
    )
    found = right(rank_candidates(candidates, E, how=list(SCORES), Q=Q, I=I, clip=clip)[0])
    print(f"drawn {drawn}\nretrieved {found}")
    assert min(drawn[how] for how in ("mean", "median", "sq_mean", "topk_sq_mean")) >= 0.9
    assert min(found[how] for how in ("mean", "median", "sq_mean", "topk_sq_mean", "topk_compare")) >= 0.9
    assert (
        drawn["topk_compare"] >= 0.8 and min(drawn["image_products"], found["image_products"]) > 0.35
    )  # chance .2


# --- bad input


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"candidates": {}}, ValueError, "candidates are {unit: texts} of one unit or more, got none"),
        ({"candidates": {52: ["sea"]}}, ValueError, "units of Q are numbers from 0 to 51, got 52"),
        ({"candidates": {"3": ["sea"]}}, ValueError, "units of Q are numbers from 0 to 51, got '3'"),
        (
            {"candidates": {3: "sea"}},
            ValueError,
            "a unit's candidates are a list of texts, none empty, got 'sea' for",
        ),
        ({"candidates": {3: ["sea", " "]}}, ValueError, r"none empty, got \['sea', ' '\] for unit 3"),
        ({"candidates": {5: ["sea"]}}, KeyError, "no unit with examples '5'; .*known: 3"),
        ({"E": {3: torch.ones(2, 128)}}, ValueError, "examples are rows of length 1, got 11.31 for unit 3"),
        (
            {"E": {3: torch.ones(2, 5)}},
            ValueError,
            r"examples \[m, 128\] of unit 3, as microworld gives, got \[2, 5\]",
        ),
        ({"E": None}, ValueError, "topk_compare compares pictures with the unit's examples, got no cosines"),
        ({"source": "retreival"}, KeyError, "no source of pictures 'retreival'; nearest: retrieval"),
        ({"how": "men"}, KeyError, "no scoring function 'men'; nearest: mean"),
        ({"n": 0}, ValueError, "n must be a positive whole number, got 0"),
        (
            {"n": 30},
            ValueError,
            "30 images a candidate beside 10 left out exceed the probe's 37; pass a smaller",
        ),
        ({"exclude": 99}, ValueError, "exclude 99 exceeds the probe's 37 images"),
        ({"exclude": {4: [1]}}, KeyError, "no unit with images to exclude '3'"),
        ({"exclude": {3: [1, 37]}}, ValueError, r"rows of Q from 0 to 36, got \[1, 37\] for unit 3"),
        (
            {"Q": torch.zeros(5, 52)},
            ValueError,
            r"Q \[N, K\] and I \[N, d\] of one probe, got \[5, 52\] and \[37, 128\]",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(known, change, error, message):
    given = {"candidates": {3: ["sea"]}, "E": {3: unit_rows(4, 128, 0)}, "n": n, **known, **change}
    with pytest.raises(error, match=message):
        rank_candidates(given.pop("candidates"), given.pop("E"), given.pop("source", "retrieval"), **given)


def test_bad_input_is_refused_before_anything_is_drawn(target, fc, clip, counted):
    source, asked = counted
    for candidates, options, message in (
        ({99: ["sea"]}, {"clip": clip}, "units of layer 'fc' are numbers from 0 to 51, got 99"),
        ({3: ["sea"]}, {}, "cosines to the examples E need their CLIP, got none"),
        ({3: ["sea"]}, {"clip": clip, "n": 0}, "n must be a positive whole number, got 0"),
        ({3: ["sea"]}, {"clip": clip, "shrink": 0}, "shrink must be a positive whole number, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_candidates(candidates, {3: unit_rows(4, 128, 0)}, source, target=target, layer=fc, **options)
    assert not asked
