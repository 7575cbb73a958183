"""The training loop of the microworld's networks: minimise a loss, average the weights, resume after a kill.

fit           the loop
save_weights  a network as safetensors in half precision
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


def fit(
    parts: nn.ModuleDict,
    loss: Callable,
    pool: dict,
    steps: int,
    batch: int,
    folder: Path,
    report: Callable,
    seed: int,
    lr: float,
) -> nn.ModuleDict:
    """Minimise `loss` with Muon (matrices of transformers) and AdamW (all else), warm-up, cosine, EMA; resume
    from `folder`.
    """
    device = next(parts.parameters()).device
    matrices = [
        p for n, p in parts.named_parameters() if p.ndim == 2 and ("resblocks" in n or "encoder_layer" in n)
    ]
    others = [p for p in parts.parameters() if not any(p is m for m in matrices)]
    optims = [torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        optims.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    shadow = {n: v.clone() for n, v in parts.state_dict().items()}
    start = _resume(parts, optims, shadow, folder)
    order = _order(len(pool["images"]), batch, steps, seed)
    began, lately = time.time(), []
    parts.train()
    for step, take in enumerate(order):
        if step < start:
            continue
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = lr * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 1e-3)
            optim.zero_grad(set_to_none=True)
        images = torch.from_numpy(pool["images"][take.numpy()]).to(device).float().div(127.5).sub(1)
        images = _jitter(
            images, seed + step
        )  # not channels_last: its backward corrupts memory in torch 2.15 on CPUs
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(take, images, step)
        value.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 2.0)
        for optim in optims:
            optim.step()
        decay = min(0.998, step / (step + 20))
        with torch.no_grad():
            for n, v in parts.state_dict().items():
                shadow[n].lerp_(v, 1 - decay) if v.is_floating_point() else shadow[n].copy_(v)
        lately.append(float(value.detach()))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            row = {"step": step + 1, "loss": sum(lately) / len(lately), "seconds": time.time() - began}
            lately = []
            _write_checkpoint(parts, optims, shadow, folder, row)
            report(row)
    parts.load_state_dict(shadow)
    return parts.eval()


def _order(n: int, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(left) < batch:
            left = torch.randperm(n, generator=dice)
        yield left[:batch]
        left = left[batch:]


def _jitter(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Shift by up to two pixels and change contrast a little, alike for a batch; keeps every word of the
    caption true.
    """
    dice = torch.Generator().manual_seed(seed)
    dx, dy = (int(v) for v in torch.randint(-2, 3, (2,), generator=dice))
    moved = F.pad(images, (2, 2, 2, 2), mode="replicate")[:, :, 2 + dy : 66 + dy, 2 + dx : 66 + dx]
    return moved * float(1 + 0.06 * torch.randn(1, generator=dice)) + float(
        0.04 * torch.randn(1, generator=dice)
    )


def _write_checkpoint(parts: nn.ModuleDict, optims: list, shadow: dict, folder: Path, row: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"now.{n}": v for n, v in parts.state_dict().items()} | {
        f"ema.{n}": v for n, v in shadow.items()
    }
    for i, optim in enumerate(optims):
        for p, state in optim.state_dict()["state"].items():
            tensors |= {f"optim.{i}.{p}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_file(
        {n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()},
        str(folder / "new.safetensors"),
        metadata={"step": str(row["step"])},
    )
    os.replace(folder / "new.safetensors", folder / "checkpoint.safetensors")
    with open(folder / "curve.jsonl", "a") as curve:
        curve.write(json.dumps(row) + "\n")


def _resume(parts: nn.ModuleDict, optims: list, shadow: dict, folder: Path) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(str(path), "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(str(path))
    parts.load_state_dict({n[4:]: v for n, v in tensors.items() if n.startswith("now.")})
    shadow.update({n[4:]: v.clone() for n, v in tensors.items() if n.startswith("ema.")})
    for i, optim in enumerate(optims):
        state: dict = {}
        for name, value in tensors.items():
            if name.startswith(f"optim.{i}."):
                _, _, p, k = name.split(".")
                state.setdefault(int(p), {})[k] = value
        optim.load_state_dict({"state": state, "param_groups": optim.state_dict()["param_groups"]})
    return step


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network as safetensors in half precision (openai-clip's own precision; accuracy is measured
    after it).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {
        k: (v.half() if v.is_floating_point() else v).cpu().contiguous().clone()
        for k, v in model.state_dict().items()
    }
    save_file(half, str(path))
