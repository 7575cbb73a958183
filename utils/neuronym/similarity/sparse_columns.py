"""Activations of which most are 0, kept column by column: what a layer of 50,000 features gives N images.

SparseColumns  activations [N, K] by what is not 0
from_rows      the same from parts, image by image
block_slices   parts of units whose columns go into memory
unit_blocks    dense columns, a block of units after the other
over_blocks    what a function finds in each block, joined
score_blocks   a similarity function's scores, likewise
score_units    those of some units

What similarity functions read of activations are columns: all images of a unit. Those that are products of
columns, and rank_reorder, read each unit by itself, so that a block of units scored alone has the scores it
has among all. wpmi and soft_wpmi read a unit's most active images, and for their prior the likelihoods of
all units of the layer, S = l - lam (logsumexp of l over units - log K): blocks are scored with lam 0, which
is l, and the prior is taken from what all blocks said. A block is dense, [N, units], in the memory given.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_positive_int, unknown
from neuronym.common.memory import give_back, MEMORY, slices
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import constant_units, score, SIMILARITIES

BLOCKED = 4  # of the memory, what a block of columns and scores takes; half is the function's
HELD = 0.25  # of the memory, up to which (soft-)WPMI keeps its likelihoods and scores blocks once
COPIED = 16  # values for each of a dense block, where float64 copies are made of it
SCORES = 3  # of a block at the most: the result, and two parts of a sum
Active = tuple[Tensor, Tensor, Tensor]  # images [n], units [n], values [n]


@dataclass(frozen=True, eq=False)
class SparseColumns:
    """Activations [N, K]: column k has values[starts[k] : starts[k + 1]] at the images `rows` there, and 0
    elsewhere. starts [K + 1] int64, rows int32 and values float32: 8 bytes for what is not 0, 8 a unit.

    Takes what code asks of a matrix of activations: `shape`, `Q[:, units]` (a dense [N, n]), and `Q[images]`
    (the same of images in the order given, with repeats).
    """

    starts: Tensor
    rows: Tensor
    values: Tensor
    N: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.N, len(self.starts) - 1

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.starts.nbytes + self.rows.nbytes + self.values.nbytes

    def __len__(self) -> int:
        return self.N

    def __getitem__(self, index: object) -> Tensor | SparseColumns:
        if isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None):
            return self._columns(index[1])
        return self._images(index)

    def to(self, device: str | torch.device) -> SparseColumns:
        """The same on a device."""
        parts = (self.starts.to(device), self.rows.to(device), self.values.to(device))
        return SparseColumns(*parts, self.N)

    def blocks(self, memory: int = MEMORY, beside: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """(units, their columns [N, n]) of all units in order, in `memory`, `beside` more values a unit."""
        for some in slices(self.shape[1], memory // (4 * (self.N + beside))):
            yield some, self._columns(some)
            give_back()

    def _columns(self, units: slice | int | Sequence[int] | Tensor) -> Tensor:
        chosen = torch.arange(self.shape[1], device=self.device)[units]
        single, chosen = chosen.ndim == 0, chosen.reshape(-1)
        first = self.starts[chosen]
        counts = self.starts[chosen + 1] - first
        column = torch.repeat_interleave(torch.arange(len(chosen), device=self.device), counts)
        at = torch.arange(len(column), device=self.device) + (first - counts.cumsum(0) + counts)[column]
        out = self.values.new_zeros(self.N, len(chosen))
        out[self.rows[at].long(), column] = self.values[at]
        return out[:, 0] if single else out

    def _images(self, index: slice | Sequence[int] | Tensor) -> SparseColumns:
        chosen = torch.arange(self.N, device=self.device)[index].reshape(-1)
        times = torch.bincount(chosen, minlength=self.N)
        places = chosen.argsort(stable=True)  # of the first image, then of the second ...
        first, rows = times.cumsum(0) - times, self.rows.long()
        copies = times[rows]
        source = torch.repeat_interleave(torch.arange(len(rows), device=self.device), copies)
        before = torch.cat([copies.new_zeros(1), copies.cumsum(0)])
        number = torch.arange(len(source), device=self.device) - before[source]
        moved = places[first[rows[source]] + number]
        return SparseColumns(before[self.starts], moved.int(), self.values[source], len(chosen))


def from_rows(parts: Sequence[Active], N: int, K: int) -> SparseColumns:
    """Activations [N, K] from parts: images, units and values of what is not 0, images of a later part behind
    those of an earlier one.
    """
    counts = sum((torch.bincount(units.long(), minlength=K) for _, units, _ in parts), torch.zeros(K).long())
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    rows, values = torch.empty(int(starts[-1]), dtype=torch.int32), torch.empty(int(starts[-1]))
    free = starts[:-1].clone()
    for images, units, given in parts:
        order = units.argsort(stable=True)
        units = units[order].long()
        own = torch.bincount(units, minlength=K)
        at = torch.arange(len(units)) + (free - own.cumsum(0) + own)[units]
        rows[at], values[at] = images[order].int(), given[order].float()
        free += own
    return SparseColumns(starts, rows, values, N)


def block_slices(
    Q: Tensor | SparseColumns, count: int, memory: int = MEMORY, beside: int = 0
) -> Iterator[slice]:
    """Parts of so many units: of a matrix [N, K] all at once, of SparseColumns as many as go into `memory`
    dense with `COPIED` values for each, and `beside` more a unit, as those of concepts.
    """
    return slices(count, count if isinstance(Q, Tensor) else memory // (4 * (COPIED * Q.N + beside)))


def unit_blocks(
    Q: Tensor | SparseColumns, memory: int = MEMORY, beside: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """(units, their columns [N, n]) of all units in order, in `block_slices`."""
    for some in block_slices(Q, Q.shape[1], memory, beside):
        yield some, Q if isinstance(Q, Tensor) else Q[:, some]
        if not isinstance(Q, Tensor):
            give_back()


def over_blocks(
    found: Callable[[slice, Tensor], Tensor | pd.DataFrame],
    Q: Tensor | SparseColumns,
    memory: int = MEMORY,
    beside: int = 0,
    axis: int = 0,
) -> Tensor | pd.DataFrame:
    """What `found` makes of units and their columns [N, n], of all units in `unit_blocks`: joined along
    `axis`, tables row by row.
    """
    parts = [found(some, q) for some, q in unit_blocks(Q, memory, beside)]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, axis)
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def score_blocks(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str,
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(units, their columns [N, n], scores [n, M]) of all units in order, as `score` gives them to the same
    activations held dense; of a matrix all at once.

    `memory` holds a block of columns with its scores and what the function needs beside it. (soft-)WPMI with
    a prior scores every block twice where [K, M] is more than `HELD` of `memory`. Errors: those of `score`.
    """
    if isinstance(Q, Tensor):
        found = score(P, Q, method, memory=memory, generator=generator, **options)
        yield slice(0, Q.shape[1]), Q, found
        return
    if method not in SIMILARITIES:
        raise unknown("similarity function", method, SIMILARITIES)
    memory = MEMORY if memory is None else memory
    check_positive_int("memory", memory)
    parameters = inspect.signature(SIMILARITIES[method]).parameters
    if "generator" in parameters and generator is None:  # one for all blocks, as one call has
        generator = torch.Generator().manual_seed(0)
    given = {"memory": memory // 2, "generator": generator, **options}
    in_blocks = memory // BLOCKED, SCORES * P.shape[1]
    lam = options.get("lam", parameters["lam"].default) if "lam" in parameters else 0
    if not lam:
        for some, q in Q.blocks(*in_blocks):
            yield some, q, score(P, q, method, **given)
        return
    keeps, kept, total = 4 * Q.shape[1] * P.shape[1] <= HELD * memory, [], None
    for _, q in Q.blocks(*in_blocks):
        likely = _likelihoods(P, q, method, given)
        mine = likely.logsumexp(0)
        total = mine if total is None else torch.logaddexp(total, mine)
        kept += [likely] if keeps else []
    prior = (total - math.log(Q.shape[1])) * lam
    for i, (some, q) in enumerate(Q.blocks(*in_blocks)):
        scores = (kept[i] if keeps else _likelihoods(P, q, method, given)) - prior
        level = constant_units(q)
        scores[level] = scores[level].mean(1, keepdim=True)
        yield some, q, scores


def score_units(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str,
    units: Sequence[int],
    *,
    memory: int | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor:
    """Scores of some units [n, M], in their order: what runs over units runs over all of the layer."""
    given = {"memory": memory, "generator": generator, **options}
    if isinstance(Q, Tensor):
        return score(P, Q, method, units=units, **given)
    if "lam" not in inspect.signature(SIMILARITIES[method]).parameters:
        return score(P, Q[:, list(units)], method, **given)
    wanted, found = torch.as_tensor(units, device=Q.device), []
    for some, _, scores in score_blocks(P, Q, method, **given):
        here = ((wanted >= some.start) & (wanted < some.stop)).nonzero()[:, 0]
        found.append((here, scores[wanted[here] - some.start]))
    places, scores = map(torch.cat, zip(*found))
    return scores[places.argsort()]


def _likelihoods(P: Tensor | FactoredMatrix, q: Tensor, method: str, given: dict) -> Tensor:
    """l [n, M] of (soft-)WPMI, constant units not made level."""
    named = {name: value for name, value in given.items() if name != "generator"}
    return SIMILARITIES[method](P, q, **named | {"lam": 0})
