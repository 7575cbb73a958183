"""Columns of `evaluation.meaning` from their definitions, pair by pair in float64."""

from __future__ import annotations

import itertools
import math

from torch import Tensor


def unit_rows(I: Tensor) -> list[list[float]]:
    return [[x / math.hypot(*row) for x in row] for row in I.double().tolist()]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


def direction(rows: list[list[float]]) -> list[float]:
    total = [sum(column) for column in zip(*rows)]
    return [x / math.hypot(*total) for x in total]


def monosemanticity(q: list[float], E: list[list[float]]) -> float:
    """Sum over pairs of a_i a_j e_i'e_j, divided by that of a_i a_j."""
    low, high = min(q), max(q)
    a = [(x - low) / (high - low) for x in q]
    pairs = list(itertools.combinations(range(len(a)), 2))
    weight = sum(a[i] * a[j] for i, j in pairs)
    return sum(a[i] * a[j] * cosine(E[i], E[j]) for i, j in pairs) / weight if weight else math.nan


def examples(q: list[float], n: int) -> list[int]:
    best = sorted(range(len(q)), key=lambda i: (-q[i], i))[:n]
    return [i for i in best if q[i] > min(q)]


def clarity(rows: list[list[float]]) -> float:
    pairs = list(itertools.combinations(rows, 2))
    return sum(cosine(a, b) for a, b in pairs) / len(pairs) if pairs else math.nan


def polysemanticity(rows: list[list[float]], rounds: int = 10) -> float:
    n = len(rows)
    if n < 2:
        return math.nan
    i, j = min(itertools.product(range(n), repeat=2), key=lambda ij: cosine(rows[ij[0]], rows[ij[1]]))
    centres = [rows[i], rows[j]]
    for _ in range(rounds):
        first = [cosine(row, centres[0]) >= cosine(row, centres[1]) for row in rows]
        groups = [[r for r, f in zip(rows, first) if f], [r for r, f in zip(rows, first) if not f]]
        centres = [direction(group) if group else centre for group, centre in zip(groups, centres)]
    return 1 - cosine(*centres)


def meaning(Q: Tensor, I: Tensor, n: int) -> list[list[float]]:
    """K rows of monosemanticity, clarity, redundancy, polysemanticity; no unit is constant."""
    E, columns = unit_rows(I), Q.double().T.tolist()
    shown = [[E[i] for i in examples(q, n)] for q in columns]
    means = [direction(rows) for rows in shown]
    found = []
    for k, q in enumerate(columns):
        others = [cosine(means[k], mean) for other, mean in enumerate(means) if other != k]
        redundancy = max(others) if others else math.nan
        found.append([monosemanticity(q, E), clarity(shown[k]), redundancy, polysemanticity(shown[k])])
    return found
