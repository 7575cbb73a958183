"""One pass over a probe fills the cache with all that one or more networks lack of it.

Job      arrays that one network gives for one probe: where they are cached and how a batch of them is made
compute  the pass: each image decoded once, rows written as they come, taken up where a killed pass stopped
"""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from neuronym import cache_keys
from neuronym import cache
from neuronym.datasets.probe import batches, Probe

Device = str | torch.device | None
Progress = Callable[[Iterable, int, str], Iterable]
CALLS_BEHIND = 4  # blocks that wait to be written: two batches of a target and a CLIP


@dataclass
class Job:
    """Arrays that one network gives for one probe: where they are cached and how a batch of them is made."""

    kind: str
    who: str
    preprocess: Callable
    preprocess_spec: str
    specs: dict[str, dict]
    widths: dict[str, int]
    reader: Callable  # (names, device) -> context manager of a function: images [b, 3, H, W] -> {name: [b, width]}
    info: dict
    check: Callable[[Tensor], None] = lambda block: None  # refuses values that cannot be right
    writers: dict = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Names of the arrays that the cache does not have."""
        return [name for name, spec in self.specs.items() if cache.load(self.kind, spec) is None]

    def result(self, name: str) -> Tensor:
        """A cached array as a tensor over its file."""
        found = cache.load(self.kind, self.specs[name])
        # mode "c": what a caller writes stays in memory; torch warns of tensors over arrays that cannot be written
        private = np.memmap(found.filename, found.dtype, "c", found.offset, found.shape)
        return torch.from_numpy(np.asarray(private))


def compute(probe: Probe, jobs: list[Job], batch_size: int, device: Device, progress: Progress | None,
            workers: int | None) -> None:
    """Fill the cache with what the jobs lack, in one pass over the images that none of the arrays has yet."""
    if probe.N < 1:
        raise ValueError(f"probe '{probe.name}' has no images")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    with ExitStack() as stack:
        todo = [(job, name) for job in jobs for name in job.missing()]
        for job, name in sorted(todo, key=lambda item: cache_keys.key_of(item[0].specs[item[1]])):  # one order of locks
            shape = (probe.N, job.widths[name])
            writer = cache.writer(job.kind, job.specs[name], shape, np.float32, {**job.info, "name": name})
            job.writers[name] = stack.enter_context(writer)
            job.starts[name] = job.writers[name].start
        active = [job for job in jobs if any(start < probe.N for start in job.starts.values())]
        if not active:
            return
        reads = [stack.enter_context(job.reader(list(job.writers), device)) for job in active]
        start = min(start for job in active for start in job.starts.values())
        workers = min(os.cpu_count() or 1, 8) if workers is None else workers
        preprocesses = {job.preprocess_spec: job.preprocess for job in active}  # equal ones run once
        # a network is on a GPU, which copies from pinned memory while it computes
        pin = torch.cuda.is_initialized()
        stream = batches(probe, list(preprocesses.values()), batch_size, start=start, workers=workers, pin=pin)
        if progress is not None:
            stream = progress(stream, -(-(probe.N - start) // batch_size), " + ".join(job.who for job in active))
        later = stack.enter_context(_behind())
        for rows, inputs in stream:
            images = dict(zip(preprocesses, inputs))
            for job, read in zip(active, reads):
                if rows.stop > min(job.starts.values()):
                    later(_write, job, rows.start, *_fetch(read(images[job.preprocess_spec])), probe)


@contextmanager
def _behind() -> Iterator[Callable]:
    """Yield later(function, *arguments): calls run in order on a thread, and the caller is a few of them ahead at most.

    Their errors are raised by a later call or at the end of the block, which waits for all of them.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1) as pool:
        def later(*call: object) -> None:
            waiting.append(pool.submit(*call))
            if len(waiting) > CALLS_BEHIND:
                waiting.popleft().result()

        yield later
        for call in waiting:
            call.result()


def _fetch(blocks: dict[str, Tensor]) -> tuple[dict[str, Tensor], list]:
    """The blocks on the CPU, and the events after which their values are there: a GPU is not waited for."""
    fetched = {name: block.to("cpu", non_blocking=block.is_cuda) for name, block in blocks.items()}
    devices = {block.device for block in blocks.values() if block.is_cuda}
    return fetched, [torch.cuda.current_stream(device).record_event() for device in devices]


def _write(job: Job, first: int, blocks: dict[str, Tensor], events: list, probe: Probe) -> None:
    """Check the blocks [b, width] of the rows from `first` and hand over what the arrays do not have yet."""
    for event in events:
        event.synchronize()
    for name, block in blocks.items():
        _check(job, name, first, block, probe)
        have = max(job.starts[name] - first, 0)
        if have < len(block):
            job.writers[name].write(first + have, block[have:].numpy())


def _check(job: Job, name: str, first: int, block: Tensor, probe: Probe) -> None:
    if block.ndim != 2 or block.shape[1] != job.widths[name]:
        raise ValueError(f"'{name}' of {job.who} should give {job.widths[name]} values per image, got shape "
                         f"{list(block.shape)}; list the layers of this model again")
    bad = (~torch.isfinite(block)).nonzero()
    if len(bad):
        row, unit = bad[0].tolist()
        raise ValueError(f"activations must be finite; '{name}' of {job.who} gave {block[row, unit].item()} for "
                         f"image '{probe.ids[first + row]}' (unit {unit}); check weights and image, or use float32")
    job.check(block)
