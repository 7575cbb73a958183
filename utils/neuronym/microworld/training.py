"""How the microworld's networks are made: one pool of rendered scenes and six stages, each of which resumes.

RECIPE           steps, batch and learning rate of each stage
make_networks    all stages in order, weights into a folder
scene_pool       pictures, true concepts, captions and patch labels of many scenes, rendered once
new_clip         a CLIP of openai-clip's class with random weights
train_clip       the one with a ModifiedResNet tower, from captions and concepts
read_patches     first half of the one with a ViT tower: what lies on every patch
distil_clip      second half: match the first CLIP and take over its text tower
vit_tokens       all tokens of that tower
train_target     a classifier of the 52 atoms (CNN or ViT)
train_captioner  a BLIP that says scenes and close-ups of their things
training_report  what prints a line now and then
read_curves      the training curves below a folder
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from neuronym.common.checks import openai_networks
from neuronym.microworld.fitting import fit, save_weights
from neuronym.microworld.networks import (
    close_up,
    crop,
    full_caption,
    micro_vit,
    MicroResNet,
    new_blip,
    take_vision,
)
from neuronym.microworld.render import coverage, render
from neuronym.microworld.world import (
    ATOMS,
    caption,
    CLASSES,
    CONCEPTS,
    concepts,
    CONTEXT,
    END,
    scene,
    SIZE,
    tokenize,
    TRAIN_SEED,
)

if TYPE_CHECKING:
    from clip.model import CLIP
    from transformers import BlipForConditionalGeneration


PHRASINGS = 4  # captions 0..3 name one scene; the partial ones fit many and would be false negatives

DENSE = ("shape", "colour", "texture")  # what a patch is asked for when the ViT learns to read

GRID = 8

STILL = 0.5  # share of the captioner's steps in which only its decoder learns

NEAR = 1 / 3  # share of close-ups among its images

INDEX = {c: i for i, c in enumerate(CONCEPTS)}

WORD = {kind: {w: i for i, w in enumerate(ATOMS[kind])} for kind in DENSE}

POOL = 100_000  # scenes

RECIPE = {
    "clip_rn": {"steps": 2400, "batch": 256, "lr": 2e-3},
    "read_patches": {"steps": 2800, "batch": 128, "lr": 2e-3},
    "clip_vit": {"steps": 500, "batch": 128, "lr": 1e-3},
    "target_resnet": {"steps": 1500, "batch": 256, "lr": 2e-3},
    "target_vit": {"steps": 1300, "batch": 128, "lr": 2e-3},
    "captioner": {"steps": 2400, "batch": 64, "lr": 1.5e-3},
}


def make_networks(
    folder: Path,
    work: Path,
    pool: dict[str, np.ndarray],
    report: Callable[[str, dict], None],
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    most_steps: int | None = None,
) -> dict[str, Path]:
    """Run RECIPE's stages in order and write their weights into `folder`; checkpoints and curves stay below
    `work`.

    `report(stage, {step, loss, seconds})` is called every 50 steps; `most_steps` and small pools are for
    trying it out. Returns the weight files. A stage whose last checkpoint is there is not run again.
    """

    def stage(name: str) -> dict:
        recipe = RECIPE[name] | {"seed": seed, "folder": work / name, "report": lambda row: report(name, row)}
        recipe["batch"] = min(recipe["batch"], len(pool["images"]))
        return recipe | {"steps": min(recipe["steps"], most_steps or recipe["steps"])}

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second = new_clip("rn").to(device), new_clip("vit").to(device)
        targets = {
            "target_resnet": MicroResNet(len(CLASSES)).to(device),
            "target_vit": micro_vit(len(CLASSES)).to(device),
        }
        captioner = new_blip().to(device)
    train_clip(first, pool, **stage("clip_rn"))
    read_patches(second, pool, **stage("read_patches"))
    distil_clip(second, first, pool, **stage("clip_vit"))
    for name, model in targets.items():
        train_target(model, pool, **stage(name))
    train_captioner(captioner, second, pool, **stage("captioner"))
    made = {"clip_rn": first, "clip_vit": second} | targets | {"captioner": captioner}
    for name, model in made.items():
        save_weights(model, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in made}


def scene_pool(n: int, seed: int = TRAIN_SEED, workers: int | None = None) -> dict[str, np.ndarray]:
    """Render scenes seed..seed+n-1: images [n, 3, 64, 64] uint8, truth [n, 392] bool, captions [n, 4, 24],
    patches [n, 3, 8, 8].

    A patch's label is the word of the object that covers it by more than 30 %, or one past the last word for
    background. For the captioner: full_captions [n, 24], and boxes [n, 4] around one object with
    near_captions [n, 24].
    """
    chunks = [(seed + i, min(500, n - i)) for i in range(0, n, 500)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        parts = list(pool.map(_pool_chunk, *zip(*chunks)))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _pool_chunk(seed: int, n: int) -> dict[str, np.ndarray]:
    scenes = [scene(s) for s in range(seed, seed + n)]
    images = np.stack([np.asarray(render(s)).transpose(2, 0, 1) for s in scenes])
    truth = np.zeros((n, len(CONCEPTS)), dtype=bool)
    patches = np.stack([np.full((n, GRID, GRID), len(ATOMS[kind]), dtype=np.int8) for kind in DENSE], axis=1)
    for i, s in enumerate(scenes):
        truth[i, [INDEX[c] for c in concepts(s)]] = True
        for thing in s.things:
            covered = coverage(thing).reshape(GRID, 64 // GRID, GRID, 64 // GRID).mean((1, 3)) > 0.3
            for k, kind in enumerate(DENSE):
                patches[i, k][covered] = WORD[kind][getattr(thing, kind)]
    said = tokenize([caption(s, p) for s in scenes for p in range(PHRASINGS)]).reshape(n, PHRASINGS, CONTEXT)
    boxes, near = zip(*map(close_up, scenes))
    return {
        "images": images,
        "truth": truth,
        "captions": said.numpy().astype(np.int8),
        "patches": patches,
        "full_captions": tokenize([full_caption(s) for s in scenes]).numpy().astype(np.int8),
        "boxes": np.array(boxes, dtype=np.float32),
        "near_captions": tokenize(near).numpy().astype(np.int8),
    }


def new_clip(tower: str, width: int = 128) -> CLIP:
    """A microworld CLIP with random weights: tower "rn" (ModifiedResNet of width 16) or "vit" (6 blocks, 512
    MLP neurons each).
    """
    vision = (
        dict(vision_layers=(2, 2, 2, 2), vision_width=16, vision_patch_size=None)
        if tower == "rn"
        else dict(vision_layers=6, vision_width=128, vision_patch_size=64 // GRID)
    )
    return (
        openai_networks()
        .CLIP(
            embed_dim=width,
            image_resolution=64,
            context_length=CONTEXT,
            vocab_size=END + 1,
            transformer_width=128,
            transformer_heads=2,
            transformer_layers=3,
            **vision,
        )
        .float()
    )


def train_clip(
    model: CLIP,
    pool: dict,
    steps: int,
    batch: int,
    folder: Path,
    report: Callable,
    seed: int = 0,
    lr: float = 2e-3,
    bank: int = 98,
) -> CLIP:
    """Contrast images with their captions (Radford et al. 2021) and, with a sigmoid, with bare concepts whose
    truth is known.

    The sigmoid's offset is the concept's log-odds in the pool, so that cosine follows pointwise mutual
    information.
    """
    truth = torch.from_numpy(pool["truth"])
    prior = torch.logit(truth.float().mean(0).clamp(1e-4, 1 - 1e-4))
    extra = nn.ParameterDict({"scale": torch.tensor(2.0), "offset": torch.tensor(-1.0)}).to(_device(model))

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        dice = torch.Generator().manual_seed(
            seed * 1_000_003 + step
        )  # by step, so that a resumed run draws the same
        said = torch.from_numpy(
            pool["captions"][take.numpy(), torch.randint(PHRASINGS, (len(take),), generator=dice).numpy()]
        ).long()
        asked = torch.randperm(len(CONCEPTS), generator=dice)[:bank]
        frames = torch.randint(3, (bank,), generator=dice)
        named = tokenize(
            [("{}", "a {}", "a photo of a {}")[f].format(CONCEPTS[c]) for c, f in zip(asked, frames)]
        )
        text = F.normalize(model.encode_text(torch.cat([said, named]).to(images.device)).float(), dim=-1)
        image = F.normalize(model.encode_image(images).float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * image @ text[: len(take)].T
        same = torch.arange(len(take), device=images.device)
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        odds = (
            image @ text[len(take) :].T * extra["scale"].exp()
            + extra["offset"]
            + prior[asked].to(images.device)
        )
        naming = F.binary_cross_entropy_with_logits(odds, truth[take][:, asked].float().to(images.device))
        return contrast + 20 * naming

    return fit(
        nn.ModuleDict({"model": model, "extra": extra}), loss, pool, steps, batch, folder, report, seed, lr
    )["model"]


def read_patches(
    model: CLIP,
    pool: dict,
    steps: int,
    batch: int,
    folder: Path,
    report: Callable,
    seed: int = 0,
    lr: float = 2e-3,
) -> CLIP:
    """First half of the ViT's training: every patch token names the shape, colour and texture it lies on; the
    class token all concepts.

    A small ViT learns shapes late from one label an image; 64 labels an image make it attend over an object.
    """
    truth, patches = torch.from_numpy(pool["truth"]).float(), torch.from_numpy(pool["patches"]).long()
    width = model.visual.conv1.out_channels
    heads = nn.ModuleDict(
        {kind: nn.Linear(width, len(ATOMS[kind]) + 1) for kind in DENSE}
        | {"all": nn.Linear(width, len(CONCEPTS))}
    ).to(_device(model))

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        tokens = vit_tokens(model.visual, images)  # [B, 65, width]
        named = F.binary_cross_entropy_with_logits(
            heads["all"](tokens[:, 0]).float(), truth[take].to(images.device)
        )
        dense = sum(
            F.cross_entropy(
                heads[kind](tokens[:, 1:]).float().flatten(0, 1), patches[take, k].flatten().to(images.device)
            )
            for k, kind in enumerate(DENSE)
        )
        return 20 * named + dense

    return fit(
        nn.ModuleDict({"model": model, "heads": heads}), loss, pool, steps, batch, folder, report, seed, lr
    )["model"]


def distil_clip(
    model: CLIP,
    teacher: CLIP,
    pool: dict,
    steps: int,
    batch: int,
    folder: Path,
    report: Callable,
    seed: int = 0,
    lr: float = 1e-3,
) -> CLIP:
    """Second half: take over the teacher's text tower, match its image embeddings and name concepts through
    its text tower.
    """
    truth = torch.from_numpy(pool["truth"])
    prior = torch.logit(truth.float().mean(0).clamp(1e-4, 1 - 1e-4))
    text = {name: value for name, value in teacher.state_dict().items() if not name.startswith("visual.")}
    model.load_state_dict(model.state_dict() | text)
    with torch.no_grad():
        bank = F.normalize(teacher.encode_text(tokenize(CONCEPTS).to(_device(teacher))), dim=-1)
    extra = nn.ParameterDict({"scale": torch.tensor(2.0), "offset": torch.tensor(-1.0)}).to(_device(model))
    teacher.eval()

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        with torch.no_grad():
            target = F.normalize(teacher.encode_image(images).float(), dim=-1)
        image = F.normalize(model.encode_image(images).float(), dim=-1)
        odds = image @ bank.T * extra["scale"].exp() + extra["offset"] + prior.to(images.device)
        naming = F.binary_cross_entropy_with_logits(odds, truth[take].float().to(images.device))
        return 20 * naming + 10 * (1 - (image * target).sum(-1)).mean()

    parts = nn.ModuleDict({"model": model, "extra": extra})
    return fit(parts, loss, pool, steps, batch, folder, report, seed, lr)["model"]


def vit_tokens(visual: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """All tokens [B, 1 + patches, width] of an openai-clip VisionTransformer after `ln_post`, class token
    first.
    """
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, patches, width]
    x = torch.cat(
        [visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1
    ) + visual.positional_embedding.to(x.dtype)
    return visual.ln_post(visual.transformer(visual.ln_pre(x).transpose(0, 1)).transpose(0, 1))


def train_target(
    model: nn.Module,
    pool: dict,
    steps: int,
    batch: int,
    folder: Path,
    report: Callable,
    seed: int = 0,
    lr: float = 2e-3,
) -> nn.Module:
    """Fit the 52 atoms by binary cross-entropy; weights are averaged over the last steps (EMA)."""
    truth = torch.from_numpy(pool["truth"][:, : len(CLASSES)]).float()

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(model(images).float(), truth[take].to(images.device)) * len(
            CLASSES
        )

    return fit(nn.ModuleDict({"model": model}), loss, pool, steps, batch, folder, report, seed, lr)["model"]


def train_captioner(
    model: BlipForConditionalGeneration,
    clip: CLIP,
    pool: dict,
    steps: int,
    batch: int,
    folder: Path,
    report: Callable,
    seed: int = 0,
    lr: float = 1.5e-3,
) -> BlipForConditionalGeneration:
    """Fit the next word of captions in three phrasings that leave nothing out, from the ViT CLIP's image
    tower on.

    NEAR of the images are close-ups, as attention crops are; the tower keeps still until the decoder can read
    it.
    """
    take_vision(
        model, clip.visual, torch.from_numpy(pool["images"][:256]).to(_device(clip)).float().div(127.5).sub(1)
    )

    def loss(take: torch.Tensor, images: torch.Tensor, step: int) -> torch.Tensor:
        dice = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows, phrasing = take.numpy(), torch.randint(3, (len(take),), generator=dice).numpy()
        near = torch.rand(len(take), generator=dice) < NEAR
        said = np.where(phrasing[:, None] > 0, pool["captions"][rows, phrasing], pool["full_captions"][rows])
        said = np.where(near[:, None], pool["near_captions"][rows], said)
        said, boxes = torch.from_numpy(said).long().to(images.device), torch.from_numpy(pool["boxes"][rows])
        images = crop(
            images, torch.where(near[:, None], boxes, torch.tensor([0.0, 0.0, SIZE, SIZE])).to(images.device)
        )
        with torch.set_grad_enabled(step >= STILL * steps):
            tokens = model.vision_model(pixel_values=images).last_hidden_state
        logits = model.text_decoder(
            input_ids=said[:, :-1], encoder_hidden_states=tokens, use_cache=False
        ).logits
        return F.cross_entropy(logits.float().flatten(0, 1), said[:, 1:].flatten(), ignore_index=0)

    return fit(nn.ModuleDict({"model": model}), loss, pool, steps, batch, folder, report, seed, lr)["model"]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def training_report(seconds: float = 10) -> Callable[[str, dict], None]:
    """A `report(stage, row)` that prints one line at most every `seconds`, and one when the stage changes."""
    last: dict = {"at": float("-inf"), "stage": None}

    def report(stage: str, row: Mapping) -> None:
        if stage != last["stage"] or time.monotonic() - last["at"] >= seconds:
            last.update(at=time.monotonic(), stage=stage)
            print(f"{stage}: step {row['step']}, loss {row['loss']:.3f}, {row['seconds']:.0f} s", flush=True)

    return report


def read_curves(folder: Path) -> pd.DataFrame:
    """Training curves below a folder: <stage>/curve.jsonl or <stage>.jsonl -> columns stage, step, loss,
    seconds.
    """
    files = sorted([*folder.glob("*/curve.jsonl"), *folder.glob("*.jsonl")])
    if not files:
        raise FileNotFoundError(f"no training curves (*.jsonl) below {folder}")
    return pd.concat(
        [
            pd.read_json(f, lines=True).assign(stage=f.parent.name if f.stem == "curve" else f.stem)
            for f in files
        ]
    )
