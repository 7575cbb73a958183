"""Literal references of synthesised pictures in float64, from the formulas with loops; nothing here imports
from the package.
"""

from __future__ import annotations

import cmath
import math


def mean_and_covariance(pictures) -> tuple[list[float], list[list[float]]]:
    """Over all pixels of pictures [N][3][H][W]: mean [3], covariance [3][3] with divisor N H W."""
    pixels = [
        [picture[c][y][x] for c in range(3)]
        for picture in pictures
        for y in range(len(picture[0]))
        for x in range(len(picture[0][0]))
    ]
    n = len(pixels)
    mean = [math.fsum(p[c] for p in pixels) / n for c in range(3)]
    return mean, [
        [math.fsum((p[a] - mean[a]) * (p[b] - mean[b]) for p in pixels) / n for b in range(3)]
        for a in range(3)
    ]


def transform(plane) -> list[list[complex]]:
    """Unitary discrete Fourier transform of a plane [H][W]."""
    H, W = len(plane), len(plane[0])
    return [
        [
            sum(
                plane[y][x] * cmath.exp(-2j * cmath.pi * (u * y / H + v * x / W))
                for y in range(H)
                for x in range(W)
            )
            / math.sqrt(H * W)
            for v in range(W)
        ]
        for u in range(H)
    ]


def scale(H: int, W: int, decay: float) -> list[list[float]]:
    """1 / max(f, 1 / max(H, W)) ** decay, f the frequency in cycles a pixel, [H][W // 2 + 1]."""
    rows = []
    for u in range(H):
        vertical = min(u, H - u) / H
        rows.append([1 / max(math.hypot(vertical, v / W), 1 / max(H, W)) ** decay for v in range(W // 2 + 1)])
    return rows


def pearson(a, b) -> float:
    ma, mb = math.fsum(a) / len(a), math.fsum(b) / len(b)
    top = math.fsum((x - ma) * (y - mb) for x, y in zip(a, b))
    return top / math.sqrt(math.fsum((x - ma) ** 2 for x in a) * math.fsum((y - mb) ** 2 for y in b))


def path_similarity(picture, Q, best, random) -> tuple[float, float, float]:
    """One picture [K]: mean correlation with its top pictures, among these, and of these with random ones;
    every unit in standard deviations (divisor N - 1) over Q [N][K].
    """
    N, K = len(Q), len(Q[0])
    mean = [math.fsum(row[k] for row in Q) / N for k in range(K)]
    sd = [math.sqrt(math.fsum((row[k] - mean[k]) ** 2 for row in Q) / (N - 1)) for k in range(K)]

    def z(row):
        return [(row[k] - mean[k]) / sd[k] for k in range(K)]

    tops, others = [z(Q[i]) for i in best], [z(Q[i]) for i in random]
    own = [pearson(z(picture), top) for top in tops]
    among = [pearson(a, b) for i, a in enumerate(tops) for j, b in enumerate(tops) if i != j]
    chance = [pearson(a, b) for a in tops for b in others]
    return tuple(math.fsum(some) / len(some) for some in (own, among, chance))


def own_rank(picture, Q, unit: int) -> int:
    """1 and how many units of the layer are further above their mean, in standard deviations, than `unit`."""
    N, K = len(Q), len(Q[0])
    z = []
    for k in range(K):
        column = [row[k] for row in Q]
        mean = math.fsum(column) / N
        z.append((picture[k] - mean) / math.sqrt(math.fsum((v - mean) ** 2 for v in column) / (N - 1)))
    return 1 + sum(value > z[unit] for value in z)


def label_share(image, texts, own: int) -> float:
    """Share of the other texts with a smaller product, equal ones half."""
    products = [math.fsum(a * b for a, b in zip(image, text)) for text in texts]
    others = [p for i, p in enumerate(products) if i != own]
    return sum((p < products[own]) + 0.5 * (p == products[own]) for p in others) / len(others)
