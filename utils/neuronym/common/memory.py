"""Work in bounded memory: sizes from a budget, stable sorting, largest values, and parts in threads.

MEMORY            the least default budget
budget            the bytes given, or a share of what is free where more is wanted than MEMORY
machine_budget    so many MiB, or for 0 that share: the `memory` of notebooks
items_within      how many items a budget holds
working_bytes     bytes to work on at a time, for speed
slices            the ranges of so many items
as_blocks         a matrix as one block, blocks of rows as they are
stable_order      indices that sort, equal values in order of index
strongest_images  the most activated images of units
first_largest     the largest of every row, equal ones by lower index
distinct_images   the different ones among chosen images
in_threads        work on parts, one a thread
nonzero           a divisor without zeros
top_images        the most activated images of every unit, inputs checked
give_back         free memory to the system
where_it_fits     tensors on a device, or where they are
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

MEMORY = 2**28  # bytes: the default budget where no more is asked for, or free
FREE_SHARE = 8  # the default budget is an eighth of what is free
CGROUP = Path("/sys/fs/cgroup")
CACHED = 2**23  # bytes that a processor works on quickly: on a CPU, larger temporaries only cost time
SORTING_BYTES_PER_VALUE = 40  # at the most, for each value that `stable_order` sorts


def budget(memory: int | None, device: torch.device, wanted: int) -> int:
    """The bytes given; else MEMORY, or where more is wanted those of `machine_budget`."""
    if memory is not None or wanted <= MEMORY:
        return MEMORY if memory is None else memory
    return machine_budget(device)


def machine_budget(device: torch.device, mib: int = 0) -> int:
    """Bytes of so many MiB; of 0 an eighth of what is free on the device, or MEMORY if that is more."""
    return mib * 2**20 or max(MEMORY, _free(device) // FREE_SHARE)


def _free(device: torch.device) -> int:
    """Bytes that programs may still take on the device, 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0
    try:  # in a container
        most, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, most - used))


def items_within(memory: int, *stages: tuple[int, int, int]) -> list[int]:
    """How many items fit into memory, at least one, for each stage (bytes beside them, bytes of one, their
    number).
    """
    least = max(beside + one for beside, one, _ in stages)
    if memory < least:
        raise ValueError(f"memory {memory} bytes is too small for these sizes; pass at least {least}")
    return [min(count, (memory - beside) // one) for beside, one, count in stages]


def working_bytes(memory: int, device: torch.device, cached: int = CACHED) -> int:
    """Bytes to work on at a time, for speed: the whole budget, but on a CPU what its caches hold."""
    return min(memory, cached) if device.type == "cpu" else memory


def slices(count: int, step: int) -> Iterator[slice]:
    """0..count in ranges of `step`, at least 1."""
    step = max(1, step)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def as_blocks(rows: Tensor | Iterable[tuple[slice, Tensor]]) -> Iterable[tuple[slice, Tensor]]:
    """(rows, their values) of a matrix at once, or of blocks that come one after the other."""
    return [(slice(0, len(rows)), rows)] if isinstance(rows, Tensor) else rows


def stable_order(values: Tensor) -> Tensor:
    """Indices that sort the last axis ascending, equal values in order of index."""
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return values.sort(dim=-1, stable=True).indices
    # floats as integers of the same order, with the index below them: numpy sorts such keys about ten times
    # faster
    bits = (values + 0.0).contiguous().view(torch.int32)  # adding 0 makes -0 equal to 0
    keys = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF)).long()
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(values.shape[-1]))
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(0xFFFFFFFF)


def strongest_images(Q: Tensor, units: Tensor, n: int, dtype: torch.dtype, some: int) -> Tensor:
    """The n images that activate each unit most, descending, ties by lower index: [units, n]; `some` units at
    once.
    """
    top, cpu = torch.empty(len(units), n, dtype=torch.int64, device=Q.device), Q.device.type == "cpu"
    threads = torch.get_num_threads() if cpu else 1

    def find(share: slice) -> None:
        for part in slices(share.stop - share.start, some // threads):
            part = slice(share.start + part.start, share.start + part.stop)
            q = Q.new_empty(part.stop - part.start, len(Q), dtype=dtype)  # [some, N]
            for rows in slices(len(Q), 64 if cpu else len(Q)):  # transposing little by little is faster
                q[:, rows] = Q[rows][:, units[part]].T
            top[part] = first_largest(q, n)

    in_threads(len(units), min(threads, some), find)
    return top  # [units, n]


def first_largest(values: Tensor, n: int) -> Tensor:
    """Indices of the n largest of each row, descending, equal ones by lower index: values [r, N] -> [r,
    n].
    """
    best = values.topk(min(n + 1, values.shape[1]), dim=1)
    top, equal = best.indices[:, :n].clone(), best.values[:, 1:] == best.values[:, :-1]
    if not bool(equal.any()):
        return top
    tied = equal.any(1)  # topk puts equal values in any order ...
    chosen = top[tied].sort(dim=1).values
    top[tied] = chosen.gather(1, stable_order(values[tied].gather(1, chosen).neg()))
    tied = equal[:, n - 1 :].any(1)  # ... and takes any of those that equal the last
    top[tied] = stable_order(values[tied].neg())[:, :n]
    return top


def distinct_images(top: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """The different images among top [K, n], ascending, and top as int32 indices of these."""
    present = torch.zeros(N, dtype=torch.bool, device=top.device)
    present[top] = True
    number_of = present.cumsum(0, dtype=torch.int32).sub_(1)
    return present.nonzero()[:, 0], number_of[top]


def in_threads(count: int, n: int, work: Callable[[slice], None]) -> None:
    """Call work with n equal parts of 0..count, each in a thread in which torch uses no others.

    Torch's own threads share every single operation, and wait for the next one without leaving their
    processor.
    """
    n = max(1, min(n, count))
    if n == 1:
        return work(slice(0, count))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n) as pool:
            list(pool.map(work, (slice(count * i // n, count * (i + 1) // n) for i in range(n))))
    finally:
        torch.set_num_threads(before)


def nonzero(x: Tensor) -> Tensor:
    """x with 1 for 0, to divide by."""
    return torch.where(x == 0, 1, x)


def where_it_fits(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on a CUDA device if they take at most half of what is free there, else where they are."""
    size = sum(tensor.nbytes for tensor in tensors)
    fits = device.type == "cuda" and 2 * size <= torch.cuda.mem_get_info(device)[0]
    return [tensor.to(device) if fits else tensor for tensor in tensors]


RANKING_BYTES = 2**27


def top_images(Q: Tensor, k: int) -> Tensor:
    """The k highest activated images of each unit, best first: Q [N, K] -> indices [k, K]; ties go to the
    lower index.

    Errors: ValueError for k outside 1 .. N and for values that are not finite.
    """
    if Q.ndim != 2 or not 1 <= k <= len(Q):
        raise ValueError(f"expected Q [N, K] and k within 1 .. N, got {list(Q.shape)} and k = {k}")
    if not torch.isfinite(Q).all():
        raise ValueError("activations must be finite to be ranked; Q holds NaN or infinity")
    units = torch.arange(Q.shape[1], device=Q.device)
    return strongest_images(
        Q, units, k, Q.dtype, max(1, RANKING_BYTES // (16 * len(Q)))
    ).T.contiguous()  # [k, K]


def give_back(least: int = 0) -> None:
    """Give free memory back to the system, in milliseconds, where the C library keeps more than `least` bytes
    of it: what uses memory next asks the system for it page by page.

    glibc keeps blocks of up to 32 MiB that were freed where something later lies behind them, and arrow,
    which has the texts of tables, keeps its own: after some blocks of work that is more than their budget.
    """
    if hasattr(_C, "malloc_trim") and _free_bytes(least + 1) > least:
        _C.malloc_trim(0)
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()


class _Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "free", "keepcost")]


def _free_bytes(otherwise: int) -> int:
    """Bytes of the heap that are free; `otherwise` where the C library does not tell."""
    if not hasattr(_C, "mallinfo2"):
        return otherwise
    _C.mallinfo2.restype = _Heap
    return _C.mallinfo2().free


_C = ctypes.CDLL(None) if sys.platform == "linux" else None
