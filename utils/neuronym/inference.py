"""A network made ready to be read: evaluation mode, its device, no gradients, exact float32; all undone afterwards.

ready          all of it, for a while
evaluating     evaluation mode only
exact_float32  without the shortened formats that stand in for float32
kept_memory    freed memory is used again
DTYPES         precision of a pass
PIECE          pixels that pass a network on a CPU at once
"""
from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack

import torch
from torch import nn, Tensor

DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""name -> type that autocast uses."""
PIECE = 100_000
"""Pixels per thread that pass a network on a CPU at once: two photos, whose activations are some 20 MB a layer."""
VIT_PIECE = 8 * PIECE
"""Sixteen photos: a layer of a ViT has 20 MB of activations for them, and products of few rows are slow."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@contextmanager
def ready(model: nn.Module | None, device: str | torch.device | None = None, dtype: str = "float32",
          piece: int | None = None) -> Iterator[Callable[[Tensor], Iterator[Tensor]]]:
    """Prepare a model for passes without gradients and yield the function that brings images [b, 3, H, W] to it.

    What it gives are pieces of the images, in order, to be passed one after another: a few images each on a CPU (of
    `piece` pixels a thread, PIECE by default), and on a GPU all, copied beside what it computes where they come from
    pinned memory.
    `device` None is where the model is. Device, modes and precision switches are given back at the end.
    Errors: ValueError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    weight = torch.empty(0) if model is None else next(model.parameters(), torch.empty(0))
    device = weight.device if device is None else torch.device(device)
    # convolutions on CPUs run up to 3 times faster on this memory order, with the same results up to rounding
    order = torch.channels_last if device.type == "cpu" or DTYPES[dtype] else torch.contiguous_format
    kind = weight.dtype if weight.is_floating_point() else torch.float32
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def place(images: Tensor) -> Iterator[Tensor]:
        size = len(images)
        if device.type == "cpu":  # a few at a time are as fast, and in memory that no batch size raises
            size = max(1, round((piece or PIECE) * torch.get_num_threads() / images[0, 0].numel()))
        for part in images.split(size):
            yield _moved(part, device, copies).to(kind, memory_format=order)

    with ExitStack() as stack:
        if model is not None:  # moved outside inference mode, inside of which parameters could never be trained again
            stack.enter_context(evaluating(model))
            stack.callback(model.to, weight.device)
            model.to(device)
        if device.type == "cpu":
            stack.enter_context(kept_memory())
        stack.enter_context(exact_float32())
        stack.enter_context(torch.inference_mode())
        if DTYPES[dtype]:
            stack.enter_context(torch.autocast(device.type, DTYPES[dtype]))
        yield place


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode and give every module its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch off TF32 and bfloat16 in place of float32 (GPU and CPU), whose results differ beyond rounding."""
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
def kept_memory(size: int = 2 ** 28) -> Iterator[None]:
    """Have glibc keep up to `size` bytes of freed memory, and blocks up to that; other C libraries are left alone.

    By itself it returns blocks above 32 MB to the system, and what is free above 64 MB: every layer's activations then
    come from the system anew, page by page, and a pass takes up to twice as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    try:
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(option, 2 ** 25)  # all that older versions accept for the first
            mallopt(option, size)
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 2 ** 25)  # where glibc raises both to by itself
        mallopt(M_TRIM_THRESHOLD, 2 ** 26)


def _moved(images: Tensor, device: torch.device, copies: torch.cuda.Stream | None) -> Tensor:
    """The images on the device; on a GPU the stream `copies` brings them while the current one still computes."""
    if copies is None:
        return images.to(device)
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        images = images.to(device, non_blocking=True)
    current.wait_stream(copies)
    images.record_stream(current)  # their memory is not used again before the current stream is done with it
    return images
