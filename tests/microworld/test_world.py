"""The world: determinism, truth of captions, concepts and masks, and text read back into scenes."""

from __future__ import annotations

import numpy as np
import pytest

from neuronym.microworld import world
from neuronym.microworld.render import masks, render
from neuronym.microworld.world import (
    ATOMS,
    caption,
    CLASSES,
    CONCEPTS,
    concepts,
    parse,
    POSITIONS,
    presence,
    read,
    scene,
    tokenize,
)

SEEDS = range(400)


def looks(s):
    return sorted((t.shape, t.colour, t.texture, t.size) for t in s.things), s.place, s.light


def test_world_is_rich_and_its_names_are_unique():
    assert len(ATOMS["shape"]) >= 12 and len(ATOMS["colour"]) >= 11 and len(ATOMS["texture"]) >= 8
    assert len(CONCEPTS) == len(set(CONCEPTS)) and CONCEPTS[: len(CLASSES)] == CLASSES
    assert max(world.VOCABULARY.values()) < world.START < world.END


def test_same_seed_same_scene_and_pixels():
    assert scene(7) == scene(7) and scene(7) != scene(8)
    assert np.array_equal(np.asarray(render(scene(7))), np.asarray(render(scene(7))))
    assert render(scene(7)).size == (world.SIZE, world.SIZE) and render(scene(7)).mode == "RGB"


def test_pixels_are_those_the_weights_were_trained_on():
    # a renderer that draws otherwise needs a new VERSION and new weights
    means = [float(np.asarray(render(scene(s))).mean()) for s in (1, 2, 3)]
    assert world.VERSION == 1 and means == pytest.approx([113.8, 139.0, 94.3], abs=0.2)


@pytest.mark.parametrize("phrasing", [0, 1, 2])
def test_full_captions_read_back_into_the_same_scene(phrasing):
    for seed in SEEDS:
        s = scene(seed)
        assert looks(parse(caption(s, phrasing), seed + 1)) == looks(s), caption(s, phrasing)


def test_partial_captions_say_only_what_is_true():
    for seed in SEEDS:
        s = scene(seed)
        for phrasing in (3, 4, 5):
            said = read(caption(s, phrasing))
            words = {w for g in said["given"] for w in g.values()} | {
                said[k] for k in ("place", "light", "count") if said[k]
            }
            assert words <= concepts(s), (caption(s, phrasing), words - concepts(s))


def test_every_concept_read_as_text_gives_a_scene_that_shows_it():
    for concept in CONCEPTS:
        for seed in range(3):
            shown = parse(concept, seed)
            assert concept in concepts(shown), concept
            assert masks(shown, concept).any(), concept


def test_masks_cover_what_they_name():
    red = scene(
        3,
        [{"colour": "red", "shape": "square", "texture": "plain", "size": "large"}],
        place="snow",
        light="bright",
    )
    inside, outside = masks(red, "red square"), masks(red, "snow")
    pixels = np.asarray(render(red)).astype(float)
    assert pixels[inside].mean(0)[0] > 180 and pixels[inside].mean(0)[2] < 90
    assert pixels[outside].mean(0).min() > 150
    assert not (inside & outside).any() and (inside | outside).all()
    assert not masks(red, "blue").any() and masks(red, "bright").all()


def test_every_concept_occurs_and_positions_agree_with_pixels():
    seen = set().union(*(concepts(scene(s)) for s in range(3000)))
    assert seen == set(CONCEPTS)
    for position in POSITIONS:
        y, x = np.nonzero(masks(scene(5, [{"position": position, "size": "small"}]), position))
        dx, dy = x.mean() - 31.5, y.mean() - 31.5
        assert {
            "left": dx < -6,
            "right": dx > 6,
            "top": dy < -6,
            "bottom": dy > 6,
            "centre": abs(dx) + abs(dy) < 9,
        }[position]


def test_objects_do_not_overlap():
    for seed in SEEDS:
        things = scene(seed).things
        for i, a in enumerate(things):
            for b in things[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > 0.85 * (a.radius + b.radius)


def test_lenient_reading_of_foreign_text():
    words = read("A gray crescent, spotted; big!")
    assert words["given"] == [{"colour": "grey", "shape": "moon", "texture": "dotted", "size": "large"}]
    assert parse("nothing that it knows") == parse("zzz")


def test_presence_is_a_table_of_truth():
    scenes = [scene(s) for s in range(23)]
    table = presence(scenes, [*CONCEPTS[:9], "submarine"])
    assert table.shape == (23, 10) and not table[:, 9].any()
    assert all(
        bool(table[i, j]) == (c in concepts(s))
        for i, s in enumerate(scenes)
        for j, c in enumerate(CONCEPTS[:9])
    )


def test_tokens_end_with_the_largest_id():
    ids = tokenize(["red circle", "a"])
    assert ids.shape == (2, world.CONTEXT)
    assert ids.argmax(1).tolist() == [3, 2] and int(ids[0, 0]) == world.START


@pytest.mark.parametrize(
    "call, error, pattern",
    [
        (lambda: tokenize("red submarine"), ValueError, "'submarine' in 'red submarine'"),
        (lambda: tokenize("red " * 30), ValueError, "at most 22 words, got 30"),
        (lambda: scene(0, [{"shape": "sqare"}]), KeyError, "nearest: square"),
        (lambda: scene(0, [{"form": "square"}]), KeyError, "no kind of word 'form'"),
        (lambda: scene(0, [{}, {}, {}]), ValueError, "at most two different objects, got 3"),
        (lambda: caption(scene(0), 9), ValueError, "0..5, got 9"),
    ],
)
def test_errors_say_what_is_wrong(call, error, pattern):
    with pytest.raises(error, match=pattern):
        call()


def test_seeds_of_different_purposes_never_meet():
    """The first and the last seed of each, for the 100 values of a run's `seed` and the most that one
    takes.
    """
    last = 99 * world.SEED_STEP + world.SEED_STEP
    ranges = [
        (world.TRAIN_SEED, 100_000),
        (world.PROBE_SEED, last),
        (world.HELD_OUT_SEED, 100_000),
        (world.TASK_SEED, last),
        (world.SEGMENTED_SEED, last),
        (world.CAPTION_SEED, 2_000),
        (world.LABEL_SEED, 100 * world.PICTURE_STEP),
        (world.CANDIDATE_SEED, 100 * world.PICTURE_STEP),
        (world.ADVERSARIAL_SEED, 100_000),
        (world.MARKED_SEED, 1_000_000),
        (world.COUNTERFACTUAL_SEED, last),
    ]
    starts = {name for name in vars(world) if name.endswith("_SEED")}
    assert len(starts) == len(ranges) and {getattr(world, name) for name in starts} == {s for s, _ in ranges}
    for (first, count), (following, _) in zip(ranges, ranges[1:]):
        assert first + count <= following
