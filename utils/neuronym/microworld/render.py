"""Pixels of the microworld.

render    draw a scene
masks     which pixels show a concept
coverage  where an object is
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from PIL import Image, ImageDraw

from neuronym.microworld.world import CATEGORY, concepts, COUNTS, Scene, SIZE, Thing, thing_concepts

COLOUR_RGB = {
    "red": (222, 28, 36),
    "orange": (255, 132, 12),
    "yellow": (250, 226, 38),
    "green": (30, 160, 58),
    "blue": (32, 72, 228),
    "purple": (128, 42, 178),
    "pink": (252, 142, 194),
    "brown": (120, 70, 32),
    "black": (20, 20, 24),
    "white": (248, 248, 248),
    "grey": (136, 136, 140),
}
LIGHTENED = (
    "green",
    "blue",
    "purple",
    "brown",
    "black",
)  # their second tone is lighter, that of the others darker
GAIN = {"bright": (1.0, 1.0, 1.0), "dim": (0.66, 0.66, 0.7), "warm": (1.04, 0.9, 0.68)}


def render(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of 64 x 64 pixels; the same scene always gives the same pixels."""
    rng = np.random.default_rng(
        [scene.seed & 0xFFFFFFFF, scene.seed >> 32 & 0xFFFFFFFF, zlib.crc32(scene.place.encode())]
    )
    canvas = _background(scene.place, rng)  # [64, 64, 3]
    for thing in scene.things:
        rim = coverage(thing, 1.5)[..., None]
        inside = coverage(thing)[..., None]
        base = np.array(COLOUR_RGB[thing.colour], dtype=np.float32) + rng.uniform(-9, 9, 3)
        other = base + 0.58 * (255 - base) if thing.colour in LIGHTENED else base * 0.48
        pattern = _pattern(thing, rng)[..., None]
        rim_tone = np.full(3, 150.0) if thing.colour == "black" else base * 0.25
        canvas += rim * (rim_tone - canvas)
        canvas += inside * (base + pattern * (other - base) - canvas)
    canvas *= np.array(GAIN[scene.light], dtype=np.float32)
    canvas += rng.normal(0, 3, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def masks(scene: Scene, concept: str) -> np.ndarray:
    """Pixels [64, 64] (bool) that show a concept: its objects, the background for a place, everything for
    light and count.
    """
    if concept not in concepts(scene):
        return np.zeros((SIZE, SIZE), dtype=bool)
    kind = CATEGORY[concept]
    if kind == "light":
        return np.ones((SIZE, SIZE), dtype=bool)
    shown = np.zeros((SIZE, SIZE), dtype=bool)
    for thing in scene.things:
        if kind == "place" or concept in COUNTS or concept in thing_concepts(thing):
            shown |= coverage(thing) > 0.5
    return ~shown if kind == "place" else shown


def coverage(thing: Thing, grow: float = 0) -> np.ndarray:
    """Coverage [64, 64] in 0..1 of an object's outline, grown by `grow` pixels; drawn at twice the size, then
    halved.
    """
    big = Image.new("L", (2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(big)
    for points, fill in _outlines(thing.shape, grow / thing.radius):
        draw.polygon(_place(points, thing), fill=fill)
    return np.asarray(big.reduce(2), dtype=np.float32) / 255


def _place(points: np.ndarray, thing: Thing) -> list[tuple[float, float]]:
    a = math.radians(thing.angle)
    turn = np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    return [tuple(p) for p in 2 * (points @ turn * thing.radius + (thing.x, thing.y))]


def _outlines(shape: str, grow: float) -> list[tuple[np.ndarray, int]]:
    """Polygons (points in units of the radius, y down; fill 255 draws, 0 cuts out) of a shape, grown by
    `grow`.
    """
    round_ = _regular(40)
    if shape == "circle":
        return [(round_ * (1 + grow), 255)]
    if shape == "ring":
        return [(round_ * (1 + grow), 255), (round_ * max(0.5 - grow, 0.1), 0)]
    if shape == "moon":
        return [(round_ * (1 + grow), 255), (round_ * (0.82 - grow) + (0.5 + grow / 2, -0.12), 0)]
    points = {
        "square": np.array([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]),
        "triangle": np.array([(0, -1), (0.95, 0.75), (-0.95, 0.75)]),
        "diamond": np.array([(0, -1.1), (0.68, 0), (0, 1.1), (-0.68, 0)]),
        "star": np.array(
            [
                (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5))
                for k in range(10)
                for r in [(1.08, 0.42)[k % 2]]
            ]
        ),
        "cross": np.array(
            [
                (-0.32, -1),
                (0.32, -1),
                (0.32, -0.32),
                (1, -0.32),
                (1, 0.32),
                (0.32, 0.32),
                (0.32, 1),
                (-0.32, 1),
                (-0.32, 0.32),
                (-1, 0.32),
                (-1, -0.32),
                (-0.32, -0.32),
            ]
        ),
        "heart": np.array(
            [
                (
                    0.066 * 16 * math.sin(t) ** 3,
                    -0.066 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
                )
                for t in np.linspace(0, 2 * math.pi, 40, endpoint=False)
            ]
        ),
        "arrow": np.array(
            [(1.08, 0), (0.2, -0.88), (0.2, -0.36), (-1, -0.36), (-1, 0.36), (0.2, 0.36), (0.2, 0.88)]
        ),
        "hourglass": np.array([(-0.85, -1), (0.85, -1), (0.14, 0), (0.85, 1), (-0.85, 1), (-0.14, 0)]),
        "bolt": np.array(
            [(0.15, -1.1), (-0.75, 0.2), (-0.12, 0.2), (-0.3, 1.1), (0.75, -0.3), (0.1, -0.3), (0.6, -1.1)]
        ),
    }[shape]
    if not grow:
        return [(points, 255)]
    away = points / np.linalg.norm(points, axis=1, keepdims=True)
    return [(points + away * grow * 1.2, 255)]


def _regular(n: int) -> np.ndarray:
    t = np.arange(n) * 2 * math.pi / n
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def _pattern(thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """How much of the second tone [64, 64] shows, in coordinates that turn with the object and shift at
    random.
    """
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    a = math.radians(thing.angle)
    u = (x - thing.x) * math.cos(a) + (y - thing.y) * math.sin(a)
    v = (y - thing.y) * math.cos(a) - (x - thing.x) * math.sin(a)
    du, dv = rng.uniform(0, 8, 2)
    step = 5.5 if thing.size == "small" else 7.0  # pixels from one line, dot or square to the next
    s, t = (u + du) % step, (v + dv) % step
    if thing.texture == "striped":
        return ((u + v + du) % step < 0.42 * step).astype(np.float32)
    if thing.texture == "checkered":
        return (((u + du) // (0.75 * step) + (v + dv) // (0.75 * step)) % 2).astype(np.float32)
    if thing.texture == "dotted":
        return ((s - step / 2) ** 2 + (t - step / 2) ** 2 < (0.31 * step) ** 2).astype(np.float32)
    if thing.texture == "zigzag":
        return ((v + dv + 1.1 * np.abs(s - step / 2)) % step < 0.42 * step).astype(np.float32)
    if thing.texture == "grid":
        return ((s < 0.24 * step) | (t < 0.24 * step)).astype(np.float32)
    if thing.texture == "speckled":
        return (rng.random((SIZE, SIZE)) < 0.3).astype(np.float32)
    if thing.texture == "shaded":
        return (0.5 + 0.5 * v / thing.radius).clip(0, 1)
    return np.zeros((SIZE, SIZE), dtype=np.float32)  # plain


def _background(place: str, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    p, q = rng.uniform(0, 2 * math.pi, 2)
    level = rng.uniform(0.93, 1.05)
    if place == "sky":
        white = sum(
            np.exp(-(((x - cx) / 11) ** 2) - ((y - cy) / 4.5) ** 2) for cx, cy in rng.uniform(4, 60, (3, 2))
        )
        tone, change = (104 + 1.1 * y, 172 + 0.7 * y, 244 - 0.05 * y), (120 * white, 70 * white, 10 * white)
    elif place == "sea":
        wave = np.sin(y / 1.5 + 1.4 * np.sin(x / 6 + p) + q)
        tone, change = (18, 96, 150), (22 * wave, 30 * wave, 32 * wave)
    elif place == "meadow":
        blade = np.repeat(rng.normal(0, 1, (16, SIZE)), 4, axis=0)
        tone, change = (92, 172, 66), (14 * blade, 22 * blade, 12 * blade)
    elif place == "desert":
        dune = np.sin((x + 2.4 * y) / 9 + p + np.sin(x / 13 + q))
        tone, change = (226, 188, 122), (16 * dune, 18 * dune, 22 * dune)
    elif place == "night":
        star = (rng.random((SIZE, SIZE)) < 0.014) * rng.uniform(120, 220)
        tone, change = (14, 16, 46), (star, star, star)
    elif place == "snow":
        flake = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 3) for cx, cy in rng.uniform(0, 64, (12, 2)))
        tone, change = (228, 236, 248), (-70 * flake, -50 * flake, -22 * flake)
    elif place == "wall":
        row = (y + 4 * p) // 7
        mortar = ((y + 4 * p) % 7 < 1.2) | ((x + 7 * (row % 2) + 4 * q) % 14 < 1.2)
        tone, change = (158, 84, 66), (44 * mortar, 92 * mortar, 100 * mortar)
    else:  # paper
        line = (y + 2 * p) % 9 < 1.2
        tone, change = (242, 238, 222), (-92 * line, -60 * line, -14 * line)
    return np.stack([t + c for t, c in zip(tone, change)], axis=-1).astype(np.float32) * np.float32(level)
