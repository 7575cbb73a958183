"""One pass over a probe fills the cache with all that one or more networks lack of it.

compute        the pass: each image decoded once, rows written as they come, taken up where a kill stopped it
checked_rows   images whose cached rows are compared with fresh ones
spread         some numbers of many
differ_by      how far two arrays are apart
DTYPES         precision of a pass
PIECE          pixels that pass a network on a CPU at once
piece_of       the same of a network
inference      a network made ready to be read: evaluation mode, its device, no gradients, exact float32
inference_of   the same of a target
exact_float32  without the shortened formats that stand in for float32
kept_memory    freed memory is used again
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, ExitStack
from itertools import chain

import numpy as np
import torch
from PIL.Image import Image
from torch import nn, Tensor

from neuronym import cache
from neuronym.common.types import Device, Progress, Target
from neuronym.datasets.probe import batches, Probe
from neuronym.jobs import groups_of, Job, rounds_of
from neuronym.trials import evaluating

CHECKED = 3  # images whose cached rows are computed anew
ALIKE, ALIKE_UNDER_AUTOCAST = 1e-3, 2e-2  # how far rows may be apart, as a share of the largest value there
CALLS_BEHIND = 4  # blocks that wait to be written: two batches of a target and a CLIP


def compute(
    probe: Probe,
    jobs: list[Job],
    batch_size: int,
    device: Device,
    progress: Progress | None,
    workers: int | None,
) -> None:
    """Fill the cache with what the jobs lack, in one pass over the images that none of the arrays has yet.

    A network passes once for all jobs that read it; one that is asked for other pictures too, in a further
    pass.
    """
    if probe.N < 1:
        raise ValueError(f"probe '{probe.name}' has no images")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    _discard_stale(probe, jobs, device)
    for groups in rounds_of(groups_of(jobs)):
        _pass(probe, groups, batch_size, device, progress, workers)


def _pass(
    probe: Probe,
    groups: list[list[Job]],
    batch_size: int,
    device: Device,
    progress: Progress | None,
    workers: int | None,
) -> None:
    """One pass over the images: each is decoded once, and goes through the network of each group once."""
    jobs = [job for group in groups for job in group]
    with ExitStack() as stack:
        todo = {cache.key_of(job.specs[name]): (job, name) for job in jobs for name in job.missing()}
        for _, (job, name) in sorted(todo.items()):  # one order of locks
            shape = (probe.N, job.widths[name])
            writer = cache.writer(job.kind, job.specs[name], shape, np.float32, {**job.info, "name": name})
            job.writers[name] = stack.enter_context(writer)
            job.starts[name] = job.writers[name].start
        active = [job for job in jobs if any(start < probe.N for start in job.starts.values())]
        if not active:
            return
        groups = [
            some for group in groups if (some := [job for job in group if any(job is one for one in active)])
        ]
        reads = [
            stack.enter_context(_reading(group, [list(job.writers) for job in group], device))
            for group in groups
        ]
        start = min(start for job in active for start in job.starts.values())
        workers = min(os.cpu_count() or 1, 8) if workers is None else workers
        preprocesses = {job.preprocess_spec: job.preprocess for job in active}  # equal ones run once
        # a network is on a GPU, which copies from pinned memory while it computes
        pin = torch.cuda.is_initialized()
        stream = batches(
            probe, list(preprocesses.values()), batch_size, start=start, workers=workers, pin=pin
        )
        if progress is not None:
            stream = progress(
                stream,
                -(-(probe.N - start) // batch_size),
                " + ".join(dict.fromkeys(job.who for job in active)),
            )
        later = stack.enter_context(_behind())
        for rows, inputs in stream:
            images = dict(zip(preprocesses, inputs))
            for group, read in zip(groups, reads):
                if rows.stop > min(start for job in group for start in job.starts.values()):
                    batch = images[group[0].preprocess_spec]
                    batch = batch if len(preprocesses) == len(groups) else batch.clone()  # from work in place
                    for job, blocks in zip(group, _given(group[0], read, batch, probe, rows)):
                        later(_write, job, rows.start, *_fetch(blocks), probe)


@contextmanager
def _reading(
    jobs: list[Job], names: list[list[str]], device: Device
) -> Iterator[Callable[[Tensor], list[dict[str, Tensor]]]]:
    """Yield the function that brings images [b, 3, H, W] through the network of the jobs, one after another
    {name: [b, width]} of each.
    """
    first, count = jobs[0], 0
    place_of = next((job.device for job in jobs if job.device is not None), device)
    pieces = [job.placed["piece"] for job in jobs if "piece" in job.placed]
    orders = {key: all(job.placed.get(key, True) for job in jobs) for key in ("channels_last", "alone")}
    model = first.module if first.run is None else first.model
    with ExitStack() as stack:
        most = max(pieces, default=None)
        place = stack.enter_context(inference(model, place_of, first.dtype, most, **orders))
        takes = [stack.enter_context(job.taker(some, lambda: count)) for job, some in zip(jobs, names)]

        def read(images: Tensor) -> list[dict[str, Tensor]]:
            nonlocal count
            parts: list[list[dict[str, Tensor]]] = [[] for _ in jobs]
            for piece in place(images):
                count = len(piece)
                output = (first.run or first.module)(piece)
                for part, take in zip(parts, takes):
                    part.append(take(output))
            return [
                {
                    name: torch.cat([blocks[name] for blocks in part])[: len(images)]
                    for name in part[0]
                    if name in some
                }
                for part, some in zip(parts, names)
            ]

        yield read


def _given(job: Job, read: Callable, batch: Tensor, probe: Probe, rows: slice) -> list[dict[str, Tensor]]:
    """What a batch gives; RuntimeError for exit() in a network, which would end the run without a word."""
    try:
        return read(batch)
    except SystemExit as error:
        raise RuntimeError(
            f"{job.who} calls exit() in its forward pass on images '{probe.ids[rows.start]}' to "
            f"'{probe.ids[rows.stop - 1]}', which would end the run; raise an error there"
        ) from error


def checked_rows(probe: Probe) -> list[int]:
    """The images whose cached rows are compared with fresh ones: the first, the last, one between."""
    return spread(probe.N, CHECKED)


def spread(count: int, n: int) -> list[int]:
    """The first, the last and numbers between of 0..count: n of them, or all that there are."""
    return sorted({i * (count - 1) // max(n - 1, 1) for i in range(n)})


def differ_by(kept: Tensor, fresh: Tensor) -> float:
    """Largest difference as a share of the largest fresh value; NaN where one of them is."""
    return float((kept - fresh).abs().max() / fresh.abs().max().clamp_min(1e-12))


def _discard_stale(probe: Probe, jobs: list[Job], device: Device) -> None:
    """Compare what the cache has with a few fresh rows, and remove what differs."""
    hits = [job for job in jobs if len(job.missing()) < len(job.specs)]
    images = [probe.image(row) for row in checked_rows(probe)] if hits else []
    for job in hits:
        for name in _stale(job, probe, images, device):
            why = f"'{name}' of {job.who} gives other values for a few images now"
            cache.discard(job.kind, job.specs[name], why)


def _stale(job: Job, probe: Probe, images: list[Image], device: Device) -> list[str]:
    """Names of cached arrays that differ from what the images `checked_rows` give now, beyond rounding.

    This catches what no key can: a network that was changed after it was loaded, code that a hash cannot
    reach. Batches of 1 to 64 and 1 to 4 threads differ by less than a hundredth of what is allowed.
    """
    cached = {name: cache.load(job.kind, spec) for name, spec in job.specs.items()}
    cached = {name: array for name, array in cached.items() if array is not None}
    if not cached:
        return []
    rows = checked_rows(probe)
    inputs = torch.stack([job.preprocess(image.copy()) for image in images])
    with _reading([job], [list(cached)], device) as read:
        fresh = {name: block.float().cpu() for name, block in read(inputs)[0].items()}
    found = []
    for name, block in fresh.items():
        kept = torch.from_numpy(np.array(cached[name][rows]))
        exact = job.specs[name].get("dtype", "float32") == "float32"
        if not differ_by(kept, block) <= (ALIKE if exact else ALIKE_UNDER_AUTOCAST):
            found.append(name)
    return found


@contextmanager
def _behind() -> Iterator[Callable]:
    """Yield later(function, *arguments): calls run in order on a thread, and the caller is a few of them
    ahead at most.

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
        raise ValueError(
            f"'{name}' of {job.who} should give {job.widths[name]} values per image, got shape "
            f"{list(block.shape)}; list the layers of this model again"
        )
    bad = (~torch.isfinite(block)).nonzero()
    if len(bad):
        row, unit = bad[0].tolist()
        raise ValueError(
            f"activations must be finite; '{name}' of {job.who} gave {block[row, unit].item()} for "
            f"image '{probe.ids[first + row]}' (unit {unit}); check weights and image, or use float32"
        )
    job.check(block)


DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""name -> type that autocast uses."""
PIECE = 100_000
"""Pixels per thread that pass a network on a CPU at once: two photos, whose activations are 20 MB a layer."""
VIT_PIECE = 8 * PIECE
"""Sixteen photos: a layer of a ViT has 20 MB of activations for them, and products of few rows are slow."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@contextmanager
def inference(
    model: nn.Module | None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    piece: int | None = None,
    channels_last: bool = True,
    alone: bool = True,
) -> Iterator[Callable[[Tensor], Iterator[Tensor]]]:
    """Prepare a model for passes without gradients and yield the function that brings images [b, C, H, W] to
    it.

    What it gives are pieces of the images, in order, to be passed one after another: a few images each on a
    CPU (of `piece` pixels a thread, by default those of `piece_of`), and on a GPU all, copied beside what it
    computes where they come from pinned memory. `device` None is where the model is. `channels_last` False is
    for networks that do not run in that order of memory, `alone` False for those that lose the batch of a
    single image: it is there twice, and callers take as many rows as there are images. Device, modes and
    precision switches are given back at the end. Errors: ValueError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    weight = torch.empty(0) if model is None else next(model.parameters(), torch.empty(0))
    device = weight.device if device is None else torch.device(device)
    # convolutions on CPUs run up to 3 times faster on this memory order, with the same results up to rounding
    faster = channels_last and (device.type == "cpu" or DTYPES[dtype] is not None)
    order = torch.channels_last if faster else torch.contiguous_format
    kind = weight.dtype if weight.is_floating_point() else torch.float32
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    pixels = (piece or piece_of(model)) * torch.get_num_threads()

    def place(images: Tensor) -> Iterator[Tensor]:
        size = len(images)
        if device.type == "cpu":  # a few at a time are as fast, and in memory that no batch size raises
            size = max(1 if alone else 2, round(pixels / images[0, 0].numel()))
        for part in images.split(size) if alone else _none_alone(images, size):
            yield _moved(part, device, copies).to(kind, memory_format=order)

    with ExitStack() as stack:
        if (
            model is not None
        ):  # moved outside inference mode, inside of which parameters could never be trained again
            stack.enter_context(evaluating(model))
            if any(x.device != device for x in chain(model.parameters(), model.buffers())):
                stack.callback(model.to, weight.device)
                model.to(device)
        if device.type == "cpu":
            stack.enter_context(kept_memory())
        stack.enter_context(exact_float32())
        stack.enter_context(torch.inference_mode())
        if DTYPES[dtype]:
            stack.enter_context(torch.autocast(device.type, DTYPES[dtype]))
        yield place


def piece_of(model: nn.Module | None) -> int:
    """Pixels per thread that pass a network at once on a CPU: more where no convolution but one makes maps,
    that of the patches of a ViT.
    """
    if model is None:
        return PIECE
    return PIECE if sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1 else VIT_PIECE


def inference_of(target: Target, device: Device = None, dtype: str = "float32"):
    """`inference` of a target's network, as its passes have shown that it runs."""
    return inference(target.model, device, dtype, channels_last=target.channels_last, alone=False)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch off TF32 and bfloat16 in place of float32 (GPU and CPU), whose results differ beyond
    rounding.
    """
    backends = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        switches = [(part, "fp32_precision", "ieee") for part in parts]
    else:  # torch before 2.9
        switches = [(part, "allow_tf32", False) for part in (backends.cuda.matmul, backends.cudnn)]
    with ExitStack() as stack:
        for part, name, value in switches:
            stack.callback(setattr, part, name, getattr(part, name))
            setattr(part, name, value)
        yield


@contextmanager
def kept_memory(size: int = 2**28) -> Iterator[None]:
    """Have glibc keep up to `size` bytes of freed memory, and blocks up to that; other C libraries are left
    alone.

    By itself it returns blocks above 32 MB to the system, and what is free above 64 MB: every layer's
    activations then come from the system anew, page by page, and a pass takes up to twice as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    try:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, 2**25)  # all that older versions accept for the first
            mallopt(option, size)
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # where glibc raises both to by itself
        mallopt(M_TRIM_THRESHOLD, 2**26)


def _none_alone(images: Tensor, size: int) -> list[Tensor]:
    """The images in parts of `size` and none of a single one: the last goes with those before it, or is there
    twice.
    """
    parts = list(images.split(size))
    if len(parts[-1]) > 1:
        return parts
    if len(parts) == 1:
        return [torch.cat([images, images])]
    return [*parts[:-2], images[-len(parts[-2]) - 1 :]]


def _moved(images: Tensor, device: torch.device, copies: torch.cuda.Stream | None) -> Tensor:
    """The images on the device; on a GPU the stream `copies` brings them while the current one still
    computes.
    """
    if copies is None:
        return images.to(device)
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        images = images.to(device, non_blocking=True)
    current.wait_stream(copies)
    images.record_stream(current)  # their memory is not used again before the current stream is done with it
    return images
