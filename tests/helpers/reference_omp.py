"""Orthogonal matching pursuit and its pool written literally in float64, with loops; nothing here imports
from the package.

text_pool           texts [M][d] -> atoms, as an array
matching_pursuit    directions [K, d], atoms [M, d] -> for each direction a list of (atom, coefficient) in
                    order of choice
"""

from __future__ import annotations

import math

import numpy as np


def text_pool(texts, text_norm="unit"):
    """100 times the texts, less their mean; rows or columns to norm 100, zeros stay zeros."""
    rows = [[100 * x for x in row] for row in np.asarray(texts, dtype=np.float64).tolist()]
    means = [math.fsum(column) / len(rows) for column in zip(*rows)]
    rows = [[x - mean for x, mean in zip(row, means)] for row in rows]
    if text_norm == "none":
        return np.array(rows)
    lines = rows if text_norm == "unit" else [list(column) for column in zip(*rows)]
    norms = [math.sqrt(math.fsum(x * x for x in line)) for line in lines]
    lines = [[100 * x / norm if norm else 0.0 for x in line] for line, norm in zip(lines, norms)]
    return np.array(lines if text_norm == "unit" else [list(row) for row in zip(*lines)])


def matching_pursuit(R, T, m):
    """Up to m atoms: the one most correlated with the residual, the first among equals, then least squares on
    all.
    """
    R, T = np.asarray(R, dtype=np.float64), np.asarray(T, dtype=np.float64)
    return [_pursuit(r, T, m) for r in R]


def _pursuit(r, T, m):
    chosen, gamma, residual = [], np.zeros(0), r.copy()
    while len(chosen) < m and math.sqrt(residual @ residual) > 1e-12 * math.sqrt(r @ r):
        best, most = -1, -1.0
        for j, t in enumerate(T):
            correlation = abs(math.fsum(t * residual))
            if correlation > most:
                best, most = j, correlation
        if np.linalg.matrix_rank(T[chosen + [best]]) <= len(chosen):
            break
        chosen.append(best)
        gamma = np.linalg.lstsq(T[chosen].T, r, rcond=None)[0]
        residual = r - T[chosen].T @ gamma
    return list(zip(chosen, gamma.tolist()))
