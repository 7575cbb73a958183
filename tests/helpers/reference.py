"""Slow, literal references in float64, written from the formulas with loops; nothing here imports from the
package.

cos_similarity, cos_similarity_cubed, rank_reorder, wpmi, soft_wpmi, correlation, soft_correlation,
combined_correlation, standardised_correlation, layered_correlation    P [N, M], A [N, K] -> scores [K, M],
as lists
twice_standardised    the softmax that the last of these compares with
best_images    images by activation, ties by lower index
"""

from __future__ import annotations

import math

import torch


def columns(X) -> list[list[float]]:
    """The columns of a matrix as lists of Python floats."""
    rows = X.double().tolist()
    return [[row[c] for row in rows] for c in range(len(rows[0]))]


def best_images(activations: list[float], n: int) -> list[int]:
    """The n images of largest activation, descending, equal activations by lower index."""
    return sorted(range(len(activations)), key=lambda i: (-activations[i], i))[:n]


def cos_similarity(P, A) -> list[list[float]]:
    """Inner product of columns divided by their norms; a column of zeros stays zero."""

    def unit(column):
        norm = math.sqrt(math.fsum(x * x for x in column))
        return [x / norm if norm else 0.0 for x in column]

    return products([unit(c) for c in columns(A)], [unit(c) for c in columns(P)])


def cos_similarity_cubed(P, A, eps=1e-3) -> list[list[float]]:
    """Columns centred, cubed, divided by max(norm, eps)."""

    def cubed(column):
        mean = math.fsum(column) / len(column)
        cubes = [(x - mean) ** 3 for x in column]
        norm = math.sqrt(math.fsum(x * x for x in cubes))
        return [x / max(norm, eps) for x in cubes]

    return products([cubed(c) for c in columns(A)], [cubed(c) for c in columns(P)])


def correlation(P, A, slope=0, offset=0) -> list[list[float]]:
    """Pearson's, of A and P, or with a slope of A and the sigmoid of slope P + offset; 0 for a constant
    column.
    """

    def standard(column):
        mean = math.fsum(column) / len(column)
        norm = math.sqrt(math.fsum((x - mean) ** 2 for x in column))
        return [(x - mean) / norm if max(column) > min(column) else 0.0 for x in column]

    seen = [[1 / (1 + math.exp(-slope * x - offset)) for x in c] if slope else c for c in columns(P)]
    return products([standard(c) for c in columns(A)], [standard(c) for c in seen])


def soft_correlation(P, A, sharpness=2, slope=None) -> list[list[float]]:
    """Pearson's, of A and the softmax of a P over concepts: a = sharpness / mean standard deviation of a
    row.
    """
    if slope is None:
        spreads = []
        for row in P.double().tolist():
            mean = math.fsum(row) / len(row)
            spreads.append(math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row)))
        spread = math.fsum(spreads) / len(spreads)
        slope = sharpness / spread if spread else 0
    return correlation(torch.tensor(softmax_rows(P, slope), dtype=torch.float64), A)


def combined_correlation(P, A, sharpness=2, cubed=1) -> list[list[float]]:
    """Correlation, `cubed` times the cubed cosine without eps, and soft correlation, added."""
    parts = (correlation(P, A), cos_similarity_cubed(P, A, eps=1e-300), soft_correlation(P, A, sharpness))
    return [[r + cubed * c + s for r, c, s in zip(*rows)] for rows in zip(*parts)]


def standardised_correlation(P, A, sharpness=2) -> list[list[float]]:
    """r(A, X) + r(A, e^(z/2)) + r(u + max(u, 0)^2 / 2, e^z), z at most 8 in the last."""
    z = [standard_list(column) for column in columns(P)]
    u = [standard_list(column) for column in columns(A)]
    parts = (
        correlation(twice_standardised(P, sharpness), A),
        correlation(rows([[math.exp(x / 2) for x in column] for column in z]), A),
        correlation(
            rows([[math.exp(min(x, 8)) for x in column] for column in z]),
            rows([[x + max(x, 0) ** 2 / 2 for x in column] for column in u]),
        ),
    )
    return [[sum(values) for values in zip(*units)] for units in zip(*parts)]


def layered_correlation(P, A, sharpness=2, final=False) -> list[list[float]]:
    """Of the last layer the sum with the cubed cosine twice, of others the standardised one."""
    return combined_correlation(P, A, sharpness, 2) if final else standardised_correlation(P, A, sharpness)


def twice_standardised(P, sharpness=2):
    """Softmax over concepts of sharpness / mean spread times P standardised per image, then per concept."""
    by_image = [standard_list(row) for row in P.double().tolist()]
    double = rows([standard_list(list(column)) for column in zip(*by_image)])
    spreads = [
        math.sqrt(math.fsum((x - math.fsum(r) / len(r)) ** 2 for x in r) / len(r)) for r in double.tolist()
    ]
    spread = math.fsum(spreads) / len(spreads)
    return torch.tensor(softmax_rows(double, sharpness / spread if spread else 0), dtype=torch.float64)


def standard_list(values: list[float]) -> list[float]:
    """Mean 0 and deviation 1; zeros where values vary by no more than rounding."""
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    return [(x - mean) / deviation if deviation > 4e-15 * abs(mean) else 0.0 for x in values]


def rows(columns: list[list[float]]):
    """The matrix of these columns."""
    return torch.tensor(columns, dtype=torch.float64).T


def rank_reorder(P, A, permutations, p=3, top_fraction=0.05, scale_p=0.5, floor=None) -> list[list[float]]:
    """Reordering error; permutations[k] lists the permutations of unit k, or is "all" for the mean over all
    of them.

    floor: the least mean of P that is put under the root. None is the released form, with nan for a negative
    one.
    """
    scores = []
    for k, activations in enumerate(columns(A)):
        n = int(top_fraction * len(activations))
        images = best_images(activations, n)
        a = [activations[i] for i in images]
        b = sorted(a)
        if permutations == "all":
            baseline = math.fsum(abs(x - y) ** p for x in b for y in b) / n**2
        else:
            errors = [abs(b[j] - b[perm[j]]) ** p for perm in permutations[k] for j in range(n)]
            baseline = math.fsum(errors) / len(errors)
        scores.append([])
        for column in columns(P):
            seen = [column[i] for i in images]
            rank = [sum((other, i) < (seen[j], j) for i, other in enumerate(seen)) for j in range(n)]
            error = math.fsum(abs(a[j] - b[rank[j]]) ** p for j in range(n)) / n
            mean = math.fsum(seen) / n
            if floor is None:
                scores[-1].append(
                    math.nan if mean <= 0 or not baseline else -(error / baseline) / mean**scale_p
                )
            else:
                scores[-1].append(-(error / baseline if baseline else 1.0) / max(mean, floor) ** scale_p)
    return scores


def wpmi(P, A, top_k=28, a=2, lam=0.6, eps=1e-7) -> list[list[float]]:
    """Sum of log(Q + eps) over the top images, less lam times the log-mean over units."""
    Q, logs = softmax_rows(P, a), []
    for activations in columns(A):
        images = best_images(activations, top_k)
        logs.append([math.fsum(math.log(Q[i][c] + eps) for i in images) for c in range(len(Q[0]))])
    return minus_prior(logs, lam)


def soft_wpmi(P, A, top_k=100, a=10, lam=1, p_start=0.998, p_end=0.97, eps=1e-7) -> list[list[float]]:
    """Sum of log(1 + p_j (Q - 1) + eps) over the ordered top images, less lam times the log-mean over
    units.
    """
    Q, logs = softmax_rows(P, a), []
    for activations in columns(A):
        images = best_images(activations, top_k)
        trust = [p_start - (j / top_k) * (p_start - p_end) for j in range(top_k)]
        logs.append(
            [
                math.fsum(math.log(1 + p * (Q[i][c] - 1) + eps) for p, i in zip(trust, images))
                for c in range(len(Q[0]))
            ]
        )
    return minus_prior(logs, lam)


def softmax_rows(P, a) -> list[list[float]]:
    out = []
    for row in P.double().tolist():
        top = max(a * x for x in row)
        powers = [math.exp(a * x - top) for x in row]
        out.append([x / math.fsum(powers) for x in powers])
    return out


def minus_prior(logs: list[list[float]], lam: float) -> list[list[float]]:
    """S = l(c|k) - lam log(mean over units of exp l(c|k))."""
    prior = []
    for c in range(len(logs[0])):
        top = max(unit[c] for unit in logs)
        prior.append(
            top + math.log(math.fsum(math.exp(unit[c] - top) for unit in logs)) - math.log(len(logs))
        )
    return [[x - lam * prior[c] for c, x in enumerate(unit)] for unit in logs]


def products(A: list[list[float]], P: list[list[float]]) -> list[list[float]]:
    """All inner products of two lists of columns: [K, M]."""
    return [[math.fsum(x * y for x, y in zip(a, p)) for p in P] for a in A]
