"""The procedural world: scenes with known content, their captions and concepts, and text read back to scenes.

Thing           one object of a scene
Scene           a picture's full description
scene           draw a scene from a seed, with any part of it given
caption         say a scene in one of several phrasings
concepts        the true concepts of a scene, atoms and pairs
thing_concepts  the concepts that one object makes true
presence        which concepts are true of which scenes
read            text -> the words of it that the world knows
understood      text -> the words of it that the microworld CLIPs know
parse           text -> scene, so that the renderer serves as a text-to-image generator
tokenize        text -> token ids of the microworld CLIPs
held_out        scenes that no training or probing seed gives

Pixels and masks are in `neuronym.microworld.render`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuronym.common.checks import unknown

if TYPE_CHECKING:
    import torch

VERSION = 1  # raised whenever the same seed would give another picture, caption or concept
SIZE = 64  # pixels

# Every scene has a seed. Seeds are set apart by what scenes are for, so that nothing is judged by a picture
# it was made with: the first seed of each purpose, up to that of the next. A run's own `seed` s, from 0 to
# 99, moves it by s steps.
TRAIN_SEED = 1_000_000  # what the networks of the microworld learn from (`training.scene_pool`)
PROBE_SEED = 1_000_000_000  # + s SEED_STEP: probing sets (`datasets.probe`)
HELD_OUT_SEED = 5_000_000_000  # how well the networks learned (`held_out`)
TASK_SEED = 6_000_000_000  # + s SEED_STEP: zero-shot tasks (`datasets.tasks`)
SEGMENTED_SEED = 7_000_000_000  # + s SEED_STEP: pictures with masks (`datasets.tasks`)
CAPTION_SEED = 8_000_000_000  # texts alone, no pictures (`datasets.concepts`)
LABEL_SEED = 9_000_000_000  # + s PICTURE_STEP: pictures CoSy judges labels by (`models.generators`)
CANDIDATE_SEED = 10_000_000_000  # + s PICTURE_STEP: pictures that choose a label (`describe.selection`)
ADVERSARIAL_SEED = 11_000_000_000  # pictures meant to fool a CLIP (`second_order.adversarial`)
MARKED_SEED = 12_000_000_000  # scenes with a mark in their corner (`applications.spurious`)
COUNTERFACTUAL_SEED = 13_000_000_000  # + s SEED_STEP: one attribute changed (`trust.counterfactual`)
SEED_STEP = 10_000_000
PICTURE_STEP = 1_000_000
SHAPES = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "cross",
    "heart",
    "ring",
    "moon",
    "arrow",
    "hourglass",
    "bolt",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
TEXTURES = ("plain", "striped", "checkered", "dotted", "zigzag", "grid", "speckled", "shaded")
SIZES = ("small", "large")
PLACES = {
    "sky": "in the sky",
    "sea": "on the sea",
    "meadow": "on a meadow",
    "desert": "in the desert",
    "night": "at night",
    "snow": "on snow",
    "wall": "on a wall",
    "paper": "on paper",
}
LIGHTS = ("bright", "dim", "warm")
COUNTS = ("one", "two", "three")
POSITIONS = ("left", "right", "top", "bottom", "centre")
ATOMS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "place": tuple(PLACES),
    "light": LIGHTS,
    "count": COUNTS,
    "position": POSITIONS,
}
CLASSES = [word for words in ATOMS.values() for word in words]
PAIRS = (
    [f"{c} {s}" for c in COLOURS for s in SHAPES]
    + [f"{t} {s}" for t in TEXTURES for s in SHAPES]
    + [f"{z} {s}" for z in SIZES for s in SHAPES]
    + [f"{c} {t}" for c in COLOURS for t in TEXTURES]
)
CONCEPTS = CLASSES + PAIRS
CATEGORY = {word: kind for kind, words in ATOMS.items() for word in words} | dict.fromkeys(PAIRS, "pair")
PLURALS = {
    shape: {"cross": "crosses", "hourglass": "hourglasses"}.get(shape, shape + "s") for shape in SHAPES
}
SYNONYMS = {
    "gray": "grey",
    "crescent": "moon",
    "lightning": "bolt",
    "round": "circle",
    "circular": "circle",
    "stripes": "striped",
    "stripe": "striped",
    "checked": "checkered",
    "checkerboard": "checkered",
    "dots": "dotted",
    "spotted": "dotted",
    "gridded": "grid",
    "speckles": "speckled",
    "gradient": "shaded",
    "solid": "plain",
    "big": "large",
    "tiny": "small",
    "ocean": "sea",
    "grass": "meadow",
    "sand": "desert",
    "snowy": "snow",
    "bricks": "wall",
    "dark": "dim",
    "single": "one",
    "pair": "two",
    "center": "centre",
    "middle": "centre",
    "upper": "top",
    "lower": "bottom",
} | {plural: shape for shape, plural in PLURALS.items()}
GLUE = (
    "a",
    "an",
    "the",
    "on",
    "in",
    "at",
    "of",
    "and",
    "with",
    "light",
    "photo",
    "picture",
    "image",
    "above",
)
WORDS = list(CLASSES) + list(PLURALS.values()) + list(GLUE)
VOCABULARY = {word: i + 1 for i, word in enumerate(WORDS)}  # 0 pads
START, END = (
    len(WORDS) + 1,
    len(WORDS) + 2,
)  # END is the largest id: openai-clip finds the end of a text by argmax
CONTEXT = 24


@dataclass(frozen=True)
class Thing:
    """One object: its words, and where it stands (`x, y, radius` in pixels of a 64 x 64 image, `angle` in
    degrees).
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def position(self) -> str:
        dx, dy = self.x - SIZE / 2, self.y - SIZE / 2
        if max(abs(dx), abs(dy)) < 7:
            return "centre"
        return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("top" if dy < 0 else "bottom")


@dataclass(frozen=True)
class Scene:
    """A picture's full description; `seed` fixes what words leave open (waves, stars, noise)."""

    things: tuple[Thing, ...]
    place: str
    light: str
    seed: int


def scene(
    seed: int,
    given: Sequence[dict] = (),
    place: str | None = None,
    light: str | None = None,
    count: str | None = None,
) -> Scene:
    """Draw the scene of `seed`; `given` fixes words of its objects (one dict of shape/colour/... per
    different object).

    Without `given`: 55 % one object, 20 % two or three alike, 25 % two different ones.
    """
    dice = random.Random(f"microworld {VERSION} {seed}")
    for kind, word in (("place", place), ("light", light), ("count", count)):
        _check(kind, word)
    kind = dice.random()
    if not given and not count:
        count = "one" if kind < 0.55 else ("two" if kind < 0.65 else "three") if kind < 0.75 else "two"
        given = [{}, {}] if kind >= 0.75 else [{}]
    given = [dict(g) for g in given] or [{}]
    for words in given:
        for name, word in words.items():
            _check(name, word)
    if len(given) > 2:
        raise ValueError(f"a scene holds at most two different objects, got {len(given)}")
    number = max(len(given), COUNTS.index(count) + 1 if count else 1)
    spots = _spots(dice, [g.get("position") for g in given], number)
    looks = [
        {name: g.get(name) or dice.choice(ATOMS[name]) for name in ("shape", "colour", "texture", "size")}
        for g in given
    ]
    if len(looks) == 1:
        looks = looks * number
    things = tuple(_thing(dice, look, spot, number) for look, spot in zip(looks, spots))
    return Scene(things, place or dice.choice(list(PLACES)), light or dice.choice(LIGHTS), seed)


def caption(scene: Scene, phrasing: int = 0, seed: int | None = None) -> str:
    """Say a scene in words: 0-2 say everything but positions, 3 the objects and where they are, 4 a part, 5
    the pair or atom.

    `seed` chooses what the partial phrasings leave out (default: the scene's own).
    """
    dice = random.Random(f"caption {phrasing} {scene.seed if seed is None else seed}")
    first, rest = scene.things[0], scene.things[1:]
    place, light = PLACES[scene.place], f"in {scene.light} light"
    if phrasing in (0, 1, 2):
        what = _noun_phrases(scene, ("size", "colour", "texture"))
        return (
            f"{what} {place} {light}",
            f"{light} {place} {what}",
            f"a {dice.choice(GLUE[10:13])} of {what} {light} {place}",
        )[phrasing]
    if phrasing == 3:
        where = f" on the {first.position}" if not rest else ""
        return _noun_phrases(scene, ("size", "colour", "texture")) + where
    if phrasing == 4:
        kept = tuple(k for k in ("size", "colour", "texture") if dice.random() < 0.5)
        return " ".join([_noun_phrases(scene, kept)] + [s for s in (place, light) if dice.random() < 0.4])
    if phrasing == 5:
        return dice.choice(sorted(concepts(scene)))
    raise ValueError(f"phrasing must be 0..5, got {phrasing}")


def concepts(scene: Scene) -> set[str]:
    """The concepts that are true of a scene: atoms ("striped"), pairs ("red circle") and scene words ("sea",
    "dim").
    """
    true = {scene.place, scene.light, COUNTS[len(scene.things) - 1]}
    for t in scene.things:
        true |= thing_concepts(t)
    return true


def thing_concepts(t: Thing) -> set[str]:
    """The concepts that one object makes true."""
    return {
        t.shape,
        t.colour,
        t.texture,
        t.size,
        t.position,
        f"{t.colour} {t.shape}",
        f"{t.texture} {t.shape}",
        f"{t.size} {t.shape}",
        f"{t.colour} {t.texture}",
    }


def presence(scenes: Sequence[Scene], among: Sequence[str] = CONCEPTS) -> torch.Tensor:
    """Which concepts are true of which scenes: [N, M] bool; a word that is no concept of the world is false
    everywhere.
    """
    import torch

    where = {c: i for i, c in enumerate(dict.fromkeys(among))}
    true = [(n, where[c]) for n, s in enumerate(scenes) for c in concepts(s) if c in where]
    table = torch.zeros(len(scenes), len(where), dtype=torch.bool)
    table[tuple(torch.tensor(true, dtype=torch.long).reshape(-1, 2).T)] = True
    return table[:, [where[c] for c in among]]


def read(text: str) -> dict:
    """The words of `text` that the world knows, as arguments of `scene`: given, place, light, count.

    Adjectives belong to the noun that follows them, or to the last noun when none follows; unknown words are
    passed over.
    """
    found: dict = {"place": None, "light": None, "count": None}
    given: list[dict] = []
    open_words: dict = {}
    for word in re.findall(r"[a-z]+", text.lower()):
        word = SYNONYMS.get(word, word)
        kind = CATEGORY.get(word)
        if kind in found:
            found[kind] = found[kind] or word
        elif kind == "shape":
            given.append(open_words | {"shape": word})
            open_words = {}
        elif kind == "position" and given and not open_words:
            given[-1].setdefault("position", word)
        elif kind:
            open_words.setdefault(kind, word)
    if open_words:
        given = (
            [given[0] | {k: v for k, v in open_words.items() if k not in given[0]}] + given[1:]
            if given
            else [open_words]
        )
    if len(given) > 1 and "above" in text.lower().split():
        given[0].setdefault("position", "top")
        given[1].setdefault("position", "bottom")
    return found | {"given": given[:2]}


def understood(text: str) -> str:
    """The words of `text` that `tokenize` knows, as many as fit; "" where none says what is in a scene."""
    words = [
        word if word in VOCABULARY else SYNONYMS.get(word, "") for word in re.findall(r"[a-z]+", text.lower())
    ]
    return " ".join([word for word in words if word][: CONTEXT - 2]) if any(read(text).values()) else ""


def parse(text: str, seed: int = 0) -> Scene:
    """Text -> a scene that shows it; what the text leaves open is drawn from `seed`. The inverse of `caption`
    and of concepts.
    """
    found = read(text)
    if not found["count"]:  # plain text about one thing shows one thing
        found["count"] = COUNTS[max(len(found["given"]), 1) - 1]
    return scene(seed, **found)


def tokenize(texts: Sequence[str] | str) -> torch.Tensor:
    """Texts -> ids [m, 24]: START, one id per word, END, zeros. Words outside the vocabulary and long texts
    are errors.
    """
    import torch

    texts = [texts] if isinstance(texts, str) else list(texts)
    ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    strange: dict[str, str] = {}
    for row, text in zip(ids, texts):
        words = re.findall(r"\w+", text.lower())
        strange |= {w: text for w in words if w not in VOCABULARY}
        if len(words) > CONTEXT - 2:
            raise ValueError(f"microworld texts have at most {CONTEXT - 2} words, got {len(words)}: '{text}'")
        if not strange:
            row[: len(words) + 2] = torch.tensor([START, *(VOCABULARY[w] for w in words), END])
    if strange:
        shown = ", ".join(f"'{w}' in '{t}'" for w, t in list(strange.items())[:3])
        raise ValueError(
            f"the microworld CLIP knows {len(WORDS)} words; {len(strange)} words are not among them: "
            f"{shown}; "
            "use concepts='microworld' or another clip"
        )
    return ids


def _noun_phrases(scene: Scene, kinds: Sequence[str]) -> str:
    def phrase(thing: Thing, number: int) -> str:
        noun = thing.shape if number == 1 else PLURALS[thing.shape]
        words = [*(getattr(thing, k) for k in kinds), noun]
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article if number == 1 else COUNTS[number - 1], *words])

    first, last = scene.things[0], scene.things[-1]
    alike = all(
        (t.shape, t.colour, t.texture, t.size) == (first.shape, first.colour, first.texture, first.size)
        for t in scene.things
    )
    if alike:
        return phrase(first, len(scene.things))
    joint = "above" if first.position == "top" else "and"
    return f"{phrase(first, 1)} {joint} {phrase(last, 1)}"


def _spots(dice: random.Random, wanted: Sequence[str | None], number: int) -> list[tuple[float, float]]:
    """Centres in pixels, apart enough that objects do not overlap; `wanted` positions are honoured where room
    allows.
    """
    step = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
    middle = SIZE / 2
    if number == 1:
        dx, dy = step[wanted[0] or dice.choice(POSITIONS)]
        return [
            (
                middle + dx * dice.uniform(10, 13) + (1 - abs(dx)) * dice.uniform(-4, 4),
                middle + dy * dice.uniform(10, 13) + (1 - abs(dy)) * dice.uniform(-4, 4),
            )
        ]
    if number == 2:
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
        first = (
            next((w for w in wanted[:1] if w in opposite), None)
            or opposite.get(wanted[-1])
            or dice.choice(["left", "top"])
        )
        steps = [step[first], step[opposite[first]]]
        return [
            (
                middle + 16 * dx + dice.uniform(-2, 2) * abs(dy),
                middle + 16 * dy + dice.uniform(-2, 2) * abs(dx),
            )
            for dx, dy in steps
        ]
    return [
        (middle + dx + dice.uniform(-1.5, 1.5), middle + dy + dice.uniform(-1.5, 1.5))
        for dx, dy in ((-18, 11), (18, 11), (0, -17))
    ]


def _thing(dice: random.Random, look: dict, spot: tuple[float, float], number: int) -> Thing:
    # crowded scenes need smaller objects; "large" stays clearly larger than "small" at every number
    low, high = {
        ("small", 1): (9, 11.5),
        ("large", 1): (16, 20),
        ("small", 2): (8.5, 10.5),
        ("large", 2): (14, 15),
        ("small", 3): (8, 9),
        ("large", 3): (12.5, 13.5),
    }[look["size"], number]
    return Thing(**look, x=spot[0], y=spot[1], radius=dice.uniform(low, high), angle=dice.uniform(-12, 12))


def _check(kind: str, word: str | None) -> None:
    if kind not in ATOMS:
        raise unknown("kind of word", kind, ATOMS)
    if word is not None and word not in ATOMS[kind]:
        raise unknown(f"microworld {kind}", word, ATOMS[kind])


def held_out(n: int, single: bool = False, seed: int = HELD_OUT_SEED) -> list[Scene]:
    """The first n scenes from `seed` on; `single` keeps those with one object."""
    drawn = (scene(each) for each in itertools.count(seed))
    wanted = (one for one in drawn if not single or len(one.things) == 1)
    return list(itertools.islice(wanted, n))
