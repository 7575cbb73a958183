"""How the microworld's networks are made: one pool of rendered scenes, four stages, checkpoints that resume.

scene_pool     pictures, true concepts, captions and patch labels of many scenes, rendered once
train_target   a classifier of the 52 atoms (CNN or ViT)
train_clip     openai-clip's class with a ModifiedResNet tower, from captions and concepts
distil_clip    openai-clip's class with a ViT tower that reads patches, then matches the first CLIP and shares its text tower
"""
from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import nn

from utils.microworld import ATOMS, CLASSES, CONCEPTS, CONTEXT, END, caption, concepts, scene, tokenize
from utils.render import coverage, render

TRAIN_SEED = 1_000_000  # scenes of the pool; probes and held-out scenes use other seeds
PHRASINGS = 4  # captions 0..3 name one scene; the partial ones fit many and would be false negatives
DENSE = ("shape", "colour", "texture")  # what a patch is asked for when the ViT learns to read
GRID = 8
INDEX = {c: i for i, c in enumerate(CONCEPTS)}
WORD = {kind: {w: i for i, w in enumerate(ATOMS[kind])} for kind in DENSE}


def scene_pool(n: int, seed: int = TRAIN_SEED, workers: int | None = None) -> dict[str, np.ndarray]:
    """Render scenes seed..seed+n-1: images [n, 3, 64, 64] uint8, truth [n, 392] bool, captions [n, 4, 24], patches [n, 3, 8, 8].

    A patch's label is the word of the object that covers it by more than 30 %, or one past the last word for background.
    """
    chunks = [(seed + i, min(500, n - i)) for i in range(0, n, 500)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        parts = list(pool.map(_pool_chunk, *zip(*chunks)))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def train_target(model: nn.Module, pool: dict, steps: int, batch: int, folder: Path, report: Callable, seed: int = 0,
                 lr: float = 2e-3) -> nn.Module:
    """Fit the 52 atoms by binary cross-entropy; weights are averaged over the last steps (EMA)."""
    truth = torch.from_numpy(pool["truth"][:, :len(CLASSES)]).float()

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(model(images).float(), truth[take].to(images.device)) * len(CLASSES)

    return _fit(nn.ModuleDict({"model": model}), loss, pool, steps, batch, folder, report, seed, lr)["model"]


def new_clip(tower: str, width: int = 128) -> CLIP:
    """A microworld CLIP with random weights: tower "rn" (ModifiedResNet of width 16) or "vit" (6 blocks, 512 MLP neurons each)."""
    vision = dict(vision_layers=(2, 2, 2, 2), vision_width=16, vision_patch_size=None) if tower == "rn" else \
        dict(vision_layers=6, vision_width=128, vision_patch_size=64 // GRID)
    return CLIP(embed_dim=width, image_resolution=64, context_length=CONTEXT, vocab_size=END + 1, transformer_width=128,
                transformer_heads=2, transformer_layers=3, **vision).float()


def train_clip(model: CLIP, pool: dict, steps: int, batch: int, folder: Path, report: Callable, seed: int = 0,
               lr: float = 2e-3, bank: int = 98) -> CLIP:
    """Contrast images with their captions (Radford et al. 2021) and, with a sigmoid, with bare concepts whose truth is known.

    The sigmoid's offset is the concept's log-odds in the pool, so that cosine follows pointwise mutual information.
    """
    truth = torch.from_numpy(pool["truth"])
    prior = torch.logit(truth.float().mean(0).clamp(1e-4, 1 - 1e-4))
    dice = torch.Generator().manual_seed(seed)
    extra = nn.ParameterDict({"scale": torch.tensor(2.), "offset": torch.tensor(-1.)})

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        said = torch.from_numpy(pool["captions"][take.numpy(), torch.randint(PHRASINGS, (len(take),), generator=dice).numpy()]).long()
        asked = torch.randperm(len(CONCEPTS), generator=dice)[:bank]
        frames = torch.randint(3, (bank,), generator=dice)
        named = tokenize([("{}", "a {}", "a photo of a {}")[f].format(CONCEPTS[c]) for c, f in zip(asked, frames)])
        text = F.normalize(model.encode_text(torch.cat([said, named]).to(images.device)).float(), dim=-1)
        image = F.normalize(model.encode_image(images).float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * image @ text[:len(take)].T
        same = torch.arange(len(take), device=images.device)
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        odds = image @ text[len(take):].T * extra["scale"].exp() + extra["offset"] + prior[asked].to(images.device)
        naming = F.binary_cross_entropy_with_logits(odds, truth[take][:, asked].float().to(images.device))
        return contrast + 20 * naming

    return _fit(nn.ModuleDict({"model": model, "extra": extra}), loss, pool, steps, batch, folder, report, seed, lr)["model"]


def read_patches(model: CLIP, pool: dict, steps: int, batch: int, folder: Path, report: Callable, seed: int = 0,
                 lr: float = 2e-3) -> CLIP:
    """First half of the ViT's training: every patch token names the shape, colour and texture it lies on; the class token all concepts.

    A small ViT learns shapes late from one label an image; 64 labels an image make it attend over an object.
    """
    truth, patches = torch.from_numpy(pool["truth"]).float(), torch.from_numpy(pool["patches"]).long()
    width = model.visual.conv1.out_channels
    heads = nn.ModuleDict({kind: nn.Linear(width, len(ATOMS[kind]) + 1) for kind in DENSE} | {"all": nn.Linear(width, len(CONCEPTS))})

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        tokens = vit_tokens(model.visual, images)  # [B, 65, width]
        named = F.binary_cross_entropy_with_logits(heads["all"](tokens[:, 0]).float(), truth[take].to(images.device))
        dense = sum(F.cross_entropy(heads[kind](tokens[:, 1:]).float().flatten(0, 1), patches[take, k].flatten().to(images.device))
                    for k, kind in enumerate(DENSE))
        return 20 * named + dense

    return _fit(nn.ModuleDict({"model": model, "heads": heads}), loss, pool, steps, batch, folder, report, seed, lr)["model"]


def distil_clip(model: CLIP, teacher: CLIP, pool: dict, steps: int, batch: int, folder: Path, report: Callable, seed: int = 0,
                lr: float = 1e-3) -> CLIP:
    """Second half: take over the teacher's text tower, match its image embeddings and name concepts through its text tower."""
    truth = torch.from_numpy(pool["truth"])
    prior = torch.logit(truth.float().mean(0).clamp(1e-4, 1 - 1e-4))
    own = {k: v for k, v in model.state_dict().items() if k.startswith("visual.")}
    model.load_state_dict({k: own.get(k, v) for k, v in (teacher.state_dict() | own).items()})
    with torch.no_grad():
        bank = F.normalize(teacher.encode_text(tokenize(CONCEPTS).to(next(teacher.parameters()).device)), dim=-1)
    extra = nn.ParameterDict({"scale": torch.tensor(2.), "offset": torch.tensor(-1.)})

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        with torch.no_grad():
            target = F.normalize(teacher.encode_image(images).float(), dim=-1)
        image = F.normalize(model.encode_image(images).float(), dim=-1)
        odds = image @ bank.T * extra["scale"].exp() + extra["offset"] + prior.to(images.device)
        naming = F.binary_cross_entropy_with_logits(odds, truth[take].float().to(images.device))
        return 20 * naming + 10 * (1 - (image * target).sum(-1)).mean()

    parts = nn.ModuleDict({"model": model, "extra": extra})
    return _fit(parts, loss, pool, steps, batch, folder, report, seed, lr)["model"]


def vit_tokens(visual: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """All tokens [B, 1 + patches, width] of an openai-clip VisionTransformer after `ln_post`, class token first."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, patches, width]
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding.to(x.dtype)
    return visual.ln_post(visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network as safetensors in half precision (openai-clip's own precision; accuracy is measured after it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(half, str(path))


def _pool_chunk(seed: int, n: int) -> dict[str, np.ndarray]:
    scenes = [scene(s) for s in range(seed, seed + n)]
    images = np.stack([np.asarray(render(s)).transpose(2, 0, 1) for s in scenes])
    truth = np.zeros((n, len(CONCEPTS)), dtype=bool)
    patches = np.stack([np.full((n, GRID, GRID), len(ATOMS[kind]), dtype=np.int8) for kind in DENSE], axis=1)
    for i, s in enumerate(scenes):
        truth[i, [INDEX[c] for c in concepts(s)]] = True
        for thing in s.things:
            covered = coverage(thing).reshape(GRID, 64 // GRID, GRID, 64 // GRID).mean((1, 3)) > .3
            for k, kind in enumerate(DENSE):
                patches[i, k][covered] = WORD[kind][getattr(thing, kind)]
    said = tokenize([caption(s, p) for s in scenes for p in range(PHRASINGS)]).reshape(n, PHRASINGS, CONTEXT)
    return {"images": images, "truth": truth, "captions": said.numpy().astype(np.int8), "patches": patches}


def _fit(parts: nn.ModuleDict, loss: Callable, pool: dict, steps: int, batch: int, folder: Path, report: Callable, seed: int,
         lr: float) -> nn.ModuleDict:
    """Minimise `loss` with Muon (matrices of transformers) and AdamW (all else), warm-up, cosine, EMA; resume from `folder`."""
    device = next(parts.parameters()).device
    if device.type == "cpu":
        parts.to(memory_format=torch.channels_last)
    matrices = [p for n, p in parts.named_parameters() if p.ndim == 2 and ("resblocks" in n or "encoder_layer" in n)]
    others = [p for p in parts.parameters() if not any(p is m for m in matrices)]
    optims = [torch.optim.AdamW(others, lr=lr, betas=(.9, .98), weight_decay=.01)]
    if matrices:
        optims.append(torch.optim.Muon(matrices, lr=lr, weight_decay=.01, adjust_lr_fn="match_rms_adamw"))
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
                group["lr"] = lr * min((step + 1) / 100, .5 + .5 * math.cos(math.pi * step / steps) + 1e-3)
            optim.zero_grad(set_to_none=True)
        images = torch.from_numpy(pool["images"][take.numpy()]).to(device).float().div(127.5).sub(1)
        images = _jitter(images, seed + step).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(take, images, step)
        value.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 2.)
        for optim in optims:
            optim.step()
        decay = min(.998, step / (step + 20))
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
    """Shift by up to two pixels and change contrast a little, alike for a batch; keeps every word of the caption true."""
    dice = torch.Generator().manual_seed(seed)
    dx, dy = (int(v) for v in torch.randint(-2, 3, (2,), generator=dice))
    moved = F.pad(images, (2, 2, 2, 2), mode="replicate")[:, :, 2 + dy:66 + dy, 2 + dx:66 + dx]
    return moved * float(1 + .06 * torch.randn(1, generator=dice)) + float(.04 * torch.randn(1, generator=dice))


def _write_checkpoint(parts: nn.ModuleDict, optims: list, shadow: dict, folder: Path, row: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"now.{n}": v for n, v in parts.state_dict().items()} | {f"ema.{n}": v for n, v in shadow.items()}
    for i, optim in enumerate(optims):
        for p, state in optim.state_dict()["state"].items():
            tensors |= {f"optim.{i}.{p}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_file({n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}, str(folder / "new.safetensors"),
              metadata={"step": str(row["step"])})
    os.replace(folder / "new.safetensors", folder / "checkpoint.safetensors")
    with open(folder / "curve.jsonl", "a") as curve:
        curve.write(json.dumps(row) + "\n")


def _resume(parts: nn.ModuleDict, optims: list, shadow: dict, folder: Path) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open
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
