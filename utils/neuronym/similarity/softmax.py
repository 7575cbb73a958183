"""The softmax over concepts of a P, for some images and a few concepts at a time, in bounded memory.

softmax_tiles   the extremes of every image, and tile after tile

The denominators run over all concepts, so P is gone through twice. What the first time was made from embeddings is kept
as far as the memory goes.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.blocks import block, compiled_loops, Embedded, in_threads, largest, slices

SAFE = .7  # share of a dtype's range of exponents that powers, and products of them, may use


@dataclass(frozen=True)
class Source:
    """Where blocks of P[rows] come from: the matrix itself if there are no stores, or stores that hold a block each."""

    P: Tensor | Embedded
    rows: Tensor
    blocks: list[slice]
    stores: list[Tensor]

    def take(self, i: int, again: bool = False) -> tuple[Tensor, Tensor, slice]:
        """Block i as rows and columns of a matrix; `again`: it has been taken, and may be in its store still."""
        if not self.stores:
            return self.P, self.rows, self.blocks[i]
        width, last = self.blocks[i].stop - self.blocks[i].start, len(self.stores) - 1
        S = self.stores[min(i, last)][:len(self.rows) * width].view(-1, width)
        if not again or last <= i < len(self.blocks) - 1:  # blocks from the last store on have shared it
            block(self.P, self.rows, self.blocks[i], S)
        return S, torch.arange(len(S), device=S.device), slice(0, width)


def softmax_tiles(P: Tensor | Embedded, rows: Tensor, a: float, dtype: torch.dtype, m: int, keep: int, width: int,
                  work: int) -> tuple[Tensor, Iterator[list[tuple[slice, Tensor]]]]:
    """Softmax x over concepts of a P[rows]: least and largest by image [U, 2], and an iterator of lists of (concepts, x).

    A list has the tiles [U, width] of a block of m concepts, in memory that the next list overwrites. `keep` blocks of
    P are kept; `work` bytes are worked on at a time. ValueError when a P overflows.
    """
    example = P if isinstance(P, Tensor) else P.I
    blocks = list(slices(P.shape[1], m))
    ready = isinstance(P, Tensor) and P.dtype == dtype
    stores = 0 if ready else min(len(blocks), 1 + keep)
    source = Source(P.detach() if ready else P, rows, blocks, [example.new_empty(len(rows) * m, dtype=dtype) for _ in range(stores)])
    shift = example.new_zeros(len(rows), dtype=dtype)
    if _exceeds(P, a, dtype):
        shift -= math.inf
        for i in range(len(blocks)):
            for part, x in _parts(*source.take(i), a, None, dtype, work):
                torch.maximum(shift[part], x.amax(1), out=shift[part])
    total, extremes = torch.zeros_like(shift), shift.new_tensor([math.inf, 0]).repeat(len(rows), 1)
    for i in range(len(blocks)):
        _add_powers(*source.take(i), a, shift, total, extremes, work)
    scale = total.reciprocal()
    return extremes * scale[:, None], _tiles(source, a, shift, scale, width, work)


def _exceeds(P: Tensor | Embedded, a: float, dtype: torch.dtype) -> bool:
    """Whether exp(a P) may leave the safe range; ValueError when a P itself leaves that of the dtype."""
    bound = abs(a) * largest(P)
    if not bound < torch.finfo(dtype).max:
        raise ValueError(f"a {a} times P overflows {str(dtype).removeprefix('torch.')}; "
                         "pass a smaller a, or float64 inputs")
    return bound > SAFE * math.log(torch.finfo(dtype).max)


def _parts(S: Tensor, rows: Tensor, cols: slice, a: float, shift: Tensor | None, dtype: torch.dtype,
           work: int) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows, each with exp(a S[rows, cols] - shift), or without a shift with a S[rows, cols]."""
    for part in slices(len(rows), work // ((cols.stop - cols.start) * dtype.itemsize)):
        x = S[:, cols].index_select(0, rows[part]).to(dtype).mul_(a)
        yield part, x if shift is None else x.sub_(shift[part, None]).exp_()


def _loops(S: Tensor, dtype: torch.dtype):
    return compiled_loops("kernels", S.device) if dtype == S.dtype == torch.float32 and S.is_contiguous() else None


def _add_powers(S: Tensor, rows: Tensor, cols: slice, a: float, shift: Tensor, total: Tensor, extremes: Tensor,
                work: int) -> None:
    """Add the sums of exp(a S[rows, cols] - shift) to total [U], and keep the least and largest in extremes [U, 2]."""
    if loops := _loops(S, total.dtype):
        return in_threads(len(rows), torch.get_num_threads(), lambda part: loops.add_powers(
            S, rows[part], cols, a, shift[part], total[part], extremes[part]))
    for part, x in _parts(S, rows, cols, a, shift, total.dtype, work):
        total[part] += x.sum(1)
        low, high = x.aminmax(dim=1)
        extremes[part] = torch.stack([torch.minimum(extremes[part, 0], low), torch.maximum(extremes[part, 1], high)], 1)


def _tiles(source: Source, a: float, shift: Tensor, scale: Tensor, width: int,
           work: int) -> Iterator[list[tuple[slice, Tensor]]]:
    """(concepts, scale exp(a P - shift)) of every tile, from the last block to the first: the last is in its store."""
    U, store = len(scale), scale.new_empty(len(scale) * (source.blocks[0].stop - source.blocks[0].start))
    for i in reversed(range(len(source.blocks))):
        S, rows, cols = source.take(i, again=True)
        first, count = source.blocks[i].start, cols.stop - cols.start
        tiles = [(slice(first + some.start, first + some.stop), store[U * some.start:U * some.stop].view(U, -1))
                 for some in slices(count, width)]
        if loops := _loops(S, scale.dtype):
            out = store[:U * count].view(U, count)
            in_threads(U, torch.get_num_threads(), lambda part: loops.write_powers(
                S, rows[part], cols, a, shift[part], scale[part], out, part.start, width))
        else:
            for part, powers in _parts(S, rows, cols, a, shift, scale.dtype, work):
                for concepts, x in tiles:
                    torch.mul(powers[:, concepts.start - first:concepts.stop - first], scale[part, None], out=x[part])
        yield tiles
