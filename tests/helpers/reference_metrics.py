"""NeuronEval's metrics for one unit in plain Python, from their formulas with loops; nothing here imports
from the package.

active          images of largest activation, by rank
LITERAL         name -> function of activations q, predictions p and active images t (all lists) -> float
drawn           Pearson or Spearman correlation on chosen images
"""

from __future__ import annotations

import math


def active(q: list[float], share: float) -> list[bool]:
    """As many as share N, rounded up, and all that equal the last of them; none that equal the least."""
    count = math.ceil(round(share * len(q), 9))
    cutoff = sorted(q, reverse=True)[max(count, 1) - 1]
    return [x >= cutoff and x > min(q) for x in q]


def pearson(a: list[float], b: list[float]) -> float:
    if min(a) == max(a) or min(b) == max(b):
        return 0.0
    ma, mb = math.fsum(a) / len(a), math.fsum(b) / len(b)
    top = math.fsum((x - ma) * (y - mb) for x, y in zip(a, b))
    return top / math.sqrt(math.fsum((x - ma) ** 2 for x in a) * math.fsum((y - mb) ** 2 for y in b))


def ranks(a: list[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their places."""
    return [sum(y < x for y in a) + (sum(y == x for y in a) + 1) / 2 for x in a]


def cosine(a: list[float], b: list[float]) -> float:
    below = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b)) / below if below else 0.0


def area(true: list[bool], score: list[float]) -> float:
    """Share of pairs of a true and a false image with the higher score on the true one, ties half."""
    pairs = [(x > y) + 0.5 * (x == y) for x, t in zip(score, true) if t for y, f in zip(score, true) if not f]
    return math.fsum(pairs) / len(pairs) if pairs else 0.5


def average_precision(true: list[bool], score: list[float]) -> float:
    """Sum over thresholds, descending, of the gain in recall times the precision there."""
    if not any(true):
        return 0.0
    total = before = 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = [t for x, t in zip(score, true) if x >= threshold]
        recall = sum(taken) / sum(true)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


def table(p: list[float], t: list[bool]) -> tuple[int, int, int, int]:
    """TP, FP, FN, TN of the explanation as a predictor of the active images."""
    found = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for x, true in zip(p, t):
        found[x >= 0.5, true] += 1
    return found[True, True], found[True, False], found[False, True], found[False, False]


def ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def balanced(q, p, t):
    tp, fp, fn, tn = table(p, t)
    return (tp / (tp + fn) + tn / (tn + fp)) / 2 if tp + fn and tn + fp else 0.5


def inverse_balanced(q, p, t):
    tp, fp, fn, tn = table(p, t)
    return (tp / (tp + fp) + tn / (tn + fn)) / 2 if tp + fp and tn + fn else 0.5


def mad(q, p, t, scale=True):
    there, other = [x for x, y in zip(q, p) if y >= 0.5], [x for x, y in zip(q, p) if y < 0.5]
    if not there or not other or min(q) == max(q):
        return 0.0
    mean = math.fsum(q) / len(q)
    gap = math.fsum(there) / len(there) - math.fsum(other) / len(other)
    return gap / math.sqrt(math.fsum((x - mean) ** 2 for x in q) / len(q)) if scale else gap


def wpmi(q, p, t, lam=1.0):
    if not any(t):
        return 0.0
    logs = [math.log(max(x, 1e-8)) for x, true in zip(p, t) if true]
    return math.fsum(logs) / len(logs) - lam * math.log(max(math.fsum(p) / len(p), 1e-8))


def drawn(q, p, rows, by_rank=False):
    a, b = [q[i] for i in rows], [p[i] for i in rows]
    return pearson(ranks(a), ranks(b)) if by_rank else pearson(a, b)


LITERAL = {
    "correlation": lambda q, p, t: pearson(q, p),
    "cosine": lambda q, p, t: cosine(q, p),
    "auprc": lambda q, p, t: average_precision(t, p),
    "f1": lambda q, p, t: ratio(2 * table(p, t)[0], 2 * table(p, t)[0] + table(p, t)[1] + table(p, t)[2]),
    "iou": lambda q, p, t: ratio(table(p, t)[0], sum(table(p, t)[:3])),
    "recall": lambda q, p, t: ratio(table(p, t)[0], table(p, t)[0] + table(p, t)[2]),
    "precision": lambda q, p, t: ratio(table(p, t)[0], table(p, t)[0] + table(p, t)[1]),
    "accuracy": lambda q, p, t: (table(p, t)[0] + table(p, t)[3]) / len(p),
    "balanced_accuracy": balanced,
    "inverse_balanced_accuracy": inverse_balanced,
    "auroc": lambda q, p, t: area(t, p),
    "inverse_auroc": lambda q, p, t: area([x >= 0.5 for x in p], q),
    "mad": mad,
    "wpmi": wpmi,
    "spearman": lambda q, p, t: pearson(ranks(q), ranks(p)),
    "inverse_auprc": lambda q, p, t: average_precision([x >= 0.5 for x in p], q),
}
