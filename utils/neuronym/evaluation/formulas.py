"""Compositional labels: a neuron as a short logical formula of concepts, found by beam search (Mu and Andreas
2020).

SCORES        the scores by name: iou, f1, correlation
Found         the best formula of a unit, its score, and the best of every length
search        find them for all units
evaluate      on which images a formula is true
formula_text  "(red AND circle) OR blue"

A formula is a concept's index, or a tuple (operator, left, right) of formulas; operators are "and", "or",
"and not".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int, unknown
from neuronym.common.memory import first_largest, items_within, MEMORY, slices
from neuronym.common.statistics import standard_columns
from neuronym.common.types import Progress
from neuronym.evaluation.linear import check_presence
from neuronym.evaluation.metrics import active_images

Formula = int | tuple  # concept, or (operator, left, right)
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "and": lambda left, right: left & right,
    "or": lambda left, right: left | right,
    "and not": lambda left, right: left & ~right,
}
SCORES: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {  # (hit, size, total, N) -> score
    "iou": lambda hit, size, total, N: hit / (size + total - hit),
    "f1": lambda hit, size, total, N: 2 * hit / (size + total),
    "correlation": lambda hit, size, total, N: hit / (size * (N - size) / N).sqrt(),
}
SPARE = 4  # candidates looked at for each place in the beam: some are true of the same images


@dataclass(frozen=True)
class Found:
    """A unit's best formula, its score on the images searched, and the best (formula, score) of length 1, 2,
    ...
    """

    formula: Formula | None
    score: float
    by_length: tuple[tuple[Formula, float], ...]


@torch.no_grad()
def search(
    present: Tensor,
    Q: Tensor,
    length: int = 3,
    beam: int = 10,
    by: str = "iou",
    *,
    active: float = 0.05,
    gain: float = 0.01,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> list[Found]:
    """Beam search for each unit: present bool [N, M], Q [N, K] -> Found for all K, or for `units`.

    A formula of length l is one of the `beam` best of length l - 1, an operator, and a further concept.
    Formulas true of no image, or of the same images as one of the two they join or as a better one of their
    length, do not count. `by` is the score against the images that activate the unit (the `active` share,
    neuronym.evaluation.metrics.active_images), or the correlation with its activations. The best formula is
    the shortest, unless every further concept adds more than `gain` (absolute) to its score. Ties go to the
    lower index of the concept added. A formula whose parts score low by themselves needs a wider beam. Dead
    units, and those that no concept shares an image with, have no formula and score 0. `memory` bytes beside
    inputs and result change only the time; progress(groups, total, text) wraps the loop. KeyError for an
    unknown score, ValueError for unequal N, values not finite, presence not bool.
    """
    check_presence(present, Q)
    if present.dtype != torch.bool:
        raise ValueError(
            f"expected present as bool, got {present.dtype}; cut probabilities, as in present >= .5"
        )
    if by not in SCORES:
        raise unknown("score of formulas", by, SCORES)
    for name, value in (("length", length), ("beam", beam), ("memory", memory)):
        check_positive_int(name, value)
    check_number("active", active, 0, 1)
    check_number("gain", gain, 0)
    (N, M), K = present.shape, Q.shape[1]
    units = list(range(K)) if units is None else [int(unit) for unit in units]
    if not units or min(units) < 0 or max(units) >= K:
        raise ValueError(f"units must be a list of indices from 0 to {K - 1} (K {K}), got {units}")
    size = 8 if by == "correlation" else 4
    step = min(M, max(1, memory // (4 * N * (size + 5))))
    one = N * (16 + beam * (6 + 2 * size) + SPARE * beam * 8) + beam * step * 200 + 32 * (M + beam**2)
    [count] = items_within(memory, (N * step * (size + 5), one, len(units)))
    groups, found = list(slices(len(units), count)), []
    for part in groups if progress is None else progress(groups, len(groups), "formulas"):
        q = Q[:, units[part]]
        if by == "correlation":
            values = standard_columns(q).T
        else:
            values = active_images(q, active).T.float()
        lengths = _search(present, values.contiguous(), length, beam, by, step)
        found += [_best([at[u] for at in lengths if at[u] is not None], gain) for u in range(len(values))]
    return found


def evaluate(formula: Formula, present: Tensor) -> Tensor:
    """On which images a formula is true: present bool [N, M] -> bool [N]."""
    if present.ndim != 2 or present.dtype != torch.bool:
        raise ValueError(f"expected present as bool [N, M], got {present.dtype} {list(present.shape)}")
    return _walk(
        formula, lambda c: present[:, _known(c, present.shape[1])], lambda op, a, b: OPERATORS[op](a, b)
    )


def formula_text(formula: Formula | None, concepts: Sequence[str]) -> str:
    """A formula in words, with brackets only where AND meets OR; None is "nothing"."""
    if formula is None:
        return "nothing"

    def join(op: str, left: tuple[str, str], right: tuple[str, str]) -> tuple[str, str]:
        kind = "or" if op == "or" else "and"
        within = [
            f"({words})" if made not in ("", kind) or (op == "and not" and made and place) else words
            for place, (words, made) in enumerate((left, right))
        ]
        return f"{within[0]} {op.upper()} {within[1]}", kind

    return _walk(formula, lambda c: (concepts[_known(c, len(concepts))], ""), join)[0]


def _walk(formula: Formula, leaf: Callable, join: Callable):
    """Fold a formula: leaf(concept), join(operator, left, right)."""
    if isinstance(formula, int) and not isinstance(formula, bool):
        return leaf(formula)
    if not isinstance(formula, tuple) or len(formula) != 3:
        raise ValueError(f"a formula is a concept's index or (operator, left, right), got {formula!r}")
    if formula[0] not in OPERATORS:
        raise unknown("operator", formula[0], OPERATORS)
    return join(formula[0], *(_walk(part, leaf, join) for part in formula[1:]))


def _known(concept: int, M: int) -> int:
    if not 0 <= concept < M:
        raise ValueError(
            f"concept {concept} is not among 0 to {M - 1}; pass all concepts in the order searched with"
        )
    return concept


def _search(present: Tensor, values: Tensor, length: int, beam: int, by: str, step: int) -> list[list]:
    """For each length the best (formula, score) of each unit, or None; values [U, N] are 0-1, or
    activations.
    """
    (N, M), U = present.shape, len(values)
    total, sizes, hits = values.sum(1).double(), values.new_empty(M).double(), values.new_empty(U, M).double()
    for cols in slices(M, step):
        x = present[:, cols].to(values.dtype)
        sizes[cols], hits[:, cols] = x.sum(0).double(), (values @ x).double()
    score = _score(by, hits, sizes.expand(U, M), total[:, None], N).masked_fill(sizes == 0, -torch.inf)
    scores, concepts = _add([], score, torch.arange(M, device=values.device).expand(U, M), SPARE * beam)
    chains, masks = concepts[..., None], present.T[concepts]  # [U, b, 1], [U, b, N]
    scores, chains, masks = _different(scores, chains, masks, beam)
    lengths = [_formulas(scores, chains)]
    for _ in range(1, min(length, M)):
        best, codes = [], None
        own, size = (
            (masks.to(values.dtype) @ values[..., None])[..., 0].double(),
            masks.sum(2).double(),
        )  # [U, b]
        on, weighted = masks.float().flatten(0, 1), (masks * values[:, None]).flatten(0, 1)
        for cols in slices(M, step):
            x = present[:, cols]
            both = (on @ x.float()).view(U, -1, x.shape[1]).double()  # [U, b, c]
            hit = (weighted @ x.to(values.dtype)).view(both.shape).double()
            n, s = sizes[cols], size[..., None]
            differ = (both < s) & (both < n)  # else one contains the other, and AND and OR are one of them
            score = torch.stack(
                [
                    _score(by, hit, both, total[:, None, None], N).masked_fill(
                        ~differ | (both == 0), -torch.inf
                    ),
                    _score(
                        by, own[..., None] + hits[:, None, cols] - hit, s + n - both, total[:, None, None], N
                    ).masked_fill(~differ, -torch.inf),
                    _score(by, own[..., None] - hit, s - both, total[:, None, None], N).masked_fill(
                        (both == 0) | (both == s), -torch.inf
                    ),
                ],
                3,
            )  # [U, b, c, 3]
            parts = torch.cat([chains[..., :1], chains[..., 1:] // 3], 2)
            inside = (parts >= cols.start) & (parts < cols.start + len(n))
            u, b, _ = inside.nonzero(as_tuple=True)
            score[
                u, b, parts[inside] - cols.start
            ] = -torch.inf  # with a concept twice there is a shorter one
            score = score.transpose(1, 2).flatten(1)  # [U, c b 3]
            code = torch.arange(score.shape[1], device=n.device) + cols.start * 3 * masks.shape[1]
            best = _add(best, score, code.expand(U, -1), SPARE * beam)
        scores, codes = best
        concept, parent, op = codes // (3 * masks.shape[1]), codes // 3 % masks.shape[1], codes % 3
        chains = chains.gather(1, parent[..., None].expand(-1, -1, chains.shape[2]))
        chains = torch.cat([chains, (concept * 3 + op)[..., None]], 2)
        old, new = masks.gather(1, parent[..., None].expand(-1, -1, N)), present.T[concept]
        masks = torch.where((op == 1)[..., None], old | new, old & (new ^ (op == 2)[..., None]))
        scores, chains, masks = _different(scores, chains, masks, beam)
        lengths.append(_formulas(scores, chains))
    return lengths


def _score(by: str, hit: Tensor, size: Tensor, total: Tensor, N: int) -> Tensor:
    """Scores in float64, those of dead units and of sets that tell nothing 0, equal ones equal despite
    rounding.
    """
    score = SCORES[by](hit, size, total, N).nan_to_num(0, 0, 0)
    return score.mul_(2**40).round_().div_(2**40) if by == "correlation" else score


def _add(best: Sequence[Tensor], score: Tensor, code: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n best of those before and the new ones [U, c], with their codes, descending, ties as they come."""
    if len(best):
        score, code = torch.cat([best[0], score], 1), torch.cat([best[1], code], 1)
    top = first_largest(score, min(n, score.shape[1]))
    return score.gather(1, top), code.gather(1, top)


def _different(scores: Tensor, chains: Tensor, masks: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first n of [U, c] candidates true of images of their own; where there are fewer, score -inf and no
    image.
    """
    x, size = masks.float(), masks.sum(2).float()
    same = (x @ x.mT == size[..., None]) & (size[..., None] == size[:, None])
    scores = scores.masked_fill(same.tril(-1).any(2), -torch.inf)
    order = first_largest(scores, min(n, scores.shape[1]))
    scores, chains = (
        scores.gather(1, order),
        chains.gather(1, order[..., None].expand(-1, -1, chains.shape[2])),
    )
    masks = masks.gather(1, order[..., None].expand(-1, -1, masks.shape[2]))
    return scores, chains, masks & (scores > -torch.inf)[..., None]


def _formulas(scores: Tensor, chains: Tensor) -> list[tuple[Formula, float] | None]:
    """The first of every unit as a formula; none where there is none."""
    found = zip(scores[:, 0].tolist(), chains[:, 0].tolist())
    return [None if score == -torch.inf else (_formula(chain), score) for score, chain in found]


def _formula(chain: list[int]) -> Formula:
    """A chain of concepts (first concept, then 3 concept + operator) as a formula; where order is free, by
    index.
    """
    formula, rest = chain[0], [(code % 3 == 1, code % 3 == 2, code // 3) for code in chain[1:]]
    while rest:
        n = next((i for i, step in enumerate(rest) if step[0] != rest[0][0]), len(rest))
        run, rest = sorted(rest[:n]), rest[n:]
        if isinstance(formula, int) and not run[0][1]:
            first, *others = sorted([formula] + [c for _, negative, c in run if not negative])
            formula, run = first, [(run[0][0], False, c) for c in others] + [step for step in run if step[1]]
        for either, negative, concept in run:
            formula = ("or" if either else "and not" if negative else "and", formula, concept)
    return formula


def _best(by_length: list[tuple[Formula, float]], gain: float) -> Found:
    """The shortest formula, unless a longer one scores more than `gain` better for every concept it has
    more.
    """
    if not by_length or max(score for _, score in by_length) == 0:
        return Found(None, 0.0, ())
    best, size = by_length[0], 1
    for n, longer in enumerate(by_length[1:], 2):
        if longer[1] > best[1] + gain * (n - size):
            best, size = longer, n
    return Found(*best, tuple(by_length))
