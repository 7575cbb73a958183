"""The softmax over concepts of a P, for some images and a few concepts at a time, in bounded memory.

softmax_blocks   the extremes of every image, and blocks of concepts that write tiles

The denominators run over all concepts, so P is gone through twice. What the first time was made from embeddings is kept
as far as the memory goes.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from utils.blocks import Embedded, block, compiled_loops, in_threads, largest, slices

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


def softmax_blocks(P: Tensor | Embedded, rows: Tensor, a: float, dtype: torch.dtype, m: int, keep: int,
                   work: int) -> tuple[Tensor, Iterator[tuple[slice, Callable[[slice, Tensor], None]]]]:
    """Softmax x over concepts of a P[rows]: least and largest by image [U, 2], and an iterator of (concepts, write).

    write(cols, out [U, width]) puts x of columns of the block into out; several threads may call it. Blocks are m
    concepts wide, and `keep` of them are kept; `work` bytes are worked on at a time. ValueError when a P overflows.
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
    return extremes * scale[:, None], _blocks(source, a, shift, scale, work)


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


def _blocks(source: Source, a: float, shift: Tensor, scale: Tensor,
            work: int) -> Iterator[tuple[slice, Callable[[slice, Tensor], None]]]:
    """(concepts, write) of every block, from the last to the first: the last is in its store."""
    for i in reversed(range(len(source.blocks))):
        yield source.blocks[i], partial(_write, *source.take(i, again=True), a, shift, scale, work)


def _write(S: Tensor, rows: Tensor, block_cols: slice, a: float, shift: Tensor, scale: Tensor, work: int, cols: slice,
           out: Tensor) -> None:
    """out [U, width] = scale exp(a S - shift) of the rows, and of some columns of the block."""
    cols = slice(block_cols.start + cols.start, block_cols.start + cols.stop)
    if loops := _loops(S, scale.dtype):
        return loops.write_powers(S, rows, cols, a, shift, scale, out)
    for part, powers in _parts(S, rows, cols, a, shift, scale.dtype, work):
        torch.mul(powers, scale[part, None], out=out[part])
