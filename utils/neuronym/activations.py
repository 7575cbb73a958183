"""The matrices everything is built on: unit activations Q [N, K] and image embeddings I [N, d], cached by
content.

target_layers               layers of a target by name
unit_activations            Q of each layer
image_embeddings            I
activations_and_embeddings  both, each image decoded once
measured_arrays             the same, and Q by other poolings out of the same pass
other_poolings              poolings beside the one that is chosen
unit_job, image_job         what either has a pass compute, for a pass that computes more
activation_spec             what determines Q of one layer
embedding_spec              what determines I
activation_maps             maps of a few images
embed_concepts              T of concepts, cached
zero_shot_head              T averaged over prompt templates

A pass (`neuronym.passes`) computes what the cache lacks, all layers together. Never more than a few batches
are in memory; results are float32 tensors over the cached files, private copies where they are written to.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn, Tensor

from neuronym import cache, hooks
from neuronym.common.memory import MEMORY
from neuronym.common.types import Device, Progress
from neuronym.datasets.probe import Probe
from neuronym.jobs import Job
from neuronym.layouts import LayerInfo, LAYOUTS
from neuronym.passes import ALIKE, CHECKED, compute, differ_by, inference_of, spread
from neuronym.sparse import COPIES, features_key, load_sae, pooled_features, SparseAutoencoder, split_name
from neuronym.trials import holds, try_out

if TYPE_CHECKING:
    from neuronym.common.types import Clip, Target

SCHEMA = 1
IMAGES = "image embeddings"


def target_layers(target: Target, patterns: str | list[str]) -> list[LayerInfo]:
    """`hooks.resolve_layers` of a target, from the passes at its loading; of other modules from new ones."""
    if not holds(target.trial, target.model, target.example):
        target.trial = try_out(target.model, target.example)
    return hooks.resolve_layers(target.model, patterns, target.example, target.layouts, target.trial)


def unit_activations(
    target: Target,
    probe: Probe,
    layers: list[LayerInfo],
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    *,
    dtype: str = "float32",
    workers: int | None = None,
) -> dict[str, Tensor]:
    """Activations of every unit for every image, pooled over positions: {layer name: Q [N, K]}.

    pool "avg", "max", "cls" or "auto" (see `hooks.pool` and `hooks.poolings`); device None is where the model
    is, and it returns there afterwards; `workers` threads decode ahead (by default one per core, at most 8);
    progress(batches, total, text) wraps the loop. Errors: ValueError for a pooling that a layer's layout does
    not have, and for an activation that is not finite.
    """
    job = unit_job(target, probe, layers, pool, dtype)
    compute(probe, [job], batch_size, device, progress, workers)
    return {layer.name: job.result(layer.name) for layer in layers}


def image_embeddings(
    clip: Clip,
    probe: Probe,
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    *,
    dtype: str = "float32",
    workers: int | None = None,
) -> Tensor:
    """Embedding of every image by the CLIP's image tower: I [N, d], unit rows; on the device it was loaded
    on.
    """
    job = image_job(clip, probe, dtype, device)
    compute(probe, [job], batch_size, device, progress, workers)
    return job.result(IMAGES)


def activations_and_embeddings(
    target: Target,
    layers: list[LayerInfo],
    clip: Clip,
    probe: Probe,
    pool: str = "avg",
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    *,
    dtype: str = "float32",
    workers: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """`unit_activations` and `image_embeddings` at once; where both are missing each image is decoded once
    for both.
    """
    of_others = {"dtype": dtype, "workers": workers}
    Q, _, I = measured_arrays(
        target, layers, clip, probe, pool, {}, batch_size, device, progress, **of_others
    )
    return Q, I


def measured_arrays(
    target: Target,
    layers: list[LayerInfo],
    clip: Clip,
    probe: Probe,
    pool: str,
    beside: Mapping[str, Sequence[str]],
    batch_size: int = 64,
    device: Device = None,
    progress: Progress | None = None,
    *,
    dtype: str = "float32",
    workers: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], Tensor]:
    """Q of each layer, Q of the layers of `beside` {layer: poolings} by each of these poolings, and I; from
    one pass.
    """
    units = unit_job(target, probe, layers, pool, dtype, beside)
    images = image_job(clip, probe, dtype, device)
    compute(probe, [units, images], batch_size, device, progress, workers)
    others = {name: {how: units.result(_array(name, how)) for how in hows} for name, hows in beside.items()}
    return {layer.name: units.result(layer.name) for layer in layers}, others, images.result(IMAGES)


def other_poolings(layers: Sequence[LayerInfo], how: str) -> dict[str, list[str]]:
    """Poolings beside those that `how` stands for, of layers with positions: "avg", "max", and "cls" where
    there is a class token; features of autoencoders have none.
    """
    found = {}
    for layer, own in zip(layers, hooks.poolings(layers, how).values()):
        if layer.layout != "fc" and not split_name(layer.name)[1]:
            led = layer.layout.startswith("tokens") and layer.grid and layer.start
            found[layer.name] = [one for one in ("avg", "max", *(["cls"] if led else [])) if one != own]
    return found


def activation_spec(
    target: Target, probe: Probe, layer: LayerInfo, pool: str = "avg", dtype: str = "float32"
) -> dict:
    """Everything that determines Q of one layer, and nothing else; cache kind "activations"."""
    # a layer without positions has the same values under every pooling
    name, file = split_name(layer.name)
    return {
        "schema": SCHEMA,
        "weights": target.weights_key,
        "layer": name,
        **({"features": features_key(layer.name)} if file else {}),
        "layout": layer.layout,
        "pool": "none" if layer.layout == "fc" else pool,
        "preprocess": target.preprocess_spec,
        "probe": probe.fingerprint,
        "dtype": dtype,
        "tf32": False,
    }


def embedding_spec(clip: Clip, probe: Probe, dtype: str = "float32") -> dict:
    """Everything that determines I, and nothing else; cache kind "image_embeddings"."""
    return {
        "schema": SCHEMA,
        "weights": clip.weights_key,
        "preprocess": clip.preprocess_spec,
        "probe": probe.fingerprint,
        "dtype": dtype,
        "tf32": False,
    }


def activation_maps(
    target: Target,
    probe: Probe,
    layer: LayerInfo,
    indices: Iterable[int],
    units: Iterable[int] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    batch_size: int = 64,
    device: Device = None,
) -> Tensor:
    """Maps of the given images and units (all by default): [n, K, h, w], not cached; `grid` as in
    `hooks.as_maps`, by default the layer's own.
    """
    rows = _within(indices, probe.N, "image")
    chosen = _within(range(layer.units) if units is None else units, layer.units, f"unit of '{layer.name}'")
    if split_name(layer.name)[1]:  # features of few images at a time: they are made of all units
        batch_size = min(batch_size, max(1, MEMORY // (COPIES * 4 * math.prod(layer.shape))))
    parts = []

    def maps(name: str, output: Tensor) -> Tensor:
        return hooks.maps_of(output, layer, grid)[:, chosen].float()

    with inference_of(target, device) as place, hooks.record(target.model, [layer.name], maps) as acts:
        for i in range(0, len(rows), batch_size):
            images = torch.stack([target.preprocess(probe.image(row)) for row in rows[i : i + batch_size]])
            found = []
            for piece in place(images):
                target.model(piece)
                found.append(acts[layer.name].cpu())
            parts.append(torch.cat(found)[: len(images)])
    return torch.cat(parts)


def unit_job(
    target: Target,
    probe: Probe,
    layers: list[LayerInfo],
    how: str = "avg",
    dtype: str = "float32",
    beside: Mapping[str, Sequence[str]] | None = None,
) -> Job:
    """What `unit_activations` has a pass compute, for a pass that computes more: an array for each layer,
    under its name, and one for each other pooling of those of `beside`.
    """
    if not layers or not all(isinstance(layer, LayerInfo) for layer in layers):
        raise ValueError(
            f"layers is a list of LayerInfo, at least one, got {layers!r}; make it with resolve_layers"
        )
    arrays = {}  # name -> (layer, pooling)
    for layer, own in zip(layers, hooks.poolings(layers, how).values()):
        arrays[layer.name] = layer, own
        arrays |= {_array(layer.name, other): (layer, other) for other in (beside or {}).get(layer.name, ())}
    for layer, one in arrays.values():  # refuses early
        hooks.pool(torch.zeros([1] * LAYOUTS[layer.layout][0]), layer.layout, one, 1)
    return Job(
        "activations",
        target.name,
        target.preprocess,
        target.preprocess_spec,
        {name: activation_spec(target, probe, *of, dtype) for name, of in arrays.items()},
        {name: layer.units for name, (layer, _) in arrays.items()},
        target.model,
        lambda names, count: _unit_taker(target.model, {name: arrays[name] for name in names}, count),
        {"target": target.name, "probe": probe.name},
        dtype=dtype,
        placed={"channels_last": target.channels_last, "alone": False},
    )


def _array(layer: str, how: str) -> str:
    return f"{layer}, {how}"


def image_job(clip: Clip, probe: Probe, dtype: str = "float32", device: Device = None) -> Job:
    """What `image_embeddings` has a pass compute, for a pass that computes more."""
    home = None if clip.model is None else next(clip.model.parameters()).device
    if device is not None and home is not None and torch.device(device).type != home.type:
        raise ValueError(
            f"a CLIP runs where it was loaded; clip '{clip.name}' is on {home}, asked for {device}; use "
            "load_clip(name, device)"
        )

    def check(block: Tensor) -> None:
        gap = (block.norm(dim=1) - 1).abs().max()
        if gap > 1e-2:
            raise ValueError(f"image embeddings of {clip.name} must have length 1, one is off by {gap:.3g}")

    return Job(
        "image_embeddings",
        clip.name,
        clip.preprocess,
        clip.preprocess_spec,
        {IMAGES: embedding_spec(clip, probe, dtype)},
        {IMAGES: clip.d},
        image_tower(clip),
        lambda names, count: nullcontext(lambda embeddings: {IMAGES: embeddings.float()}),  # [b, d]
        {"clip": clip.name, "probe": probe.name},
        clip.encode_image,
        clip.model,
        home,
        dtype,
        {"channels_last": clip.channels_last},
        check,
    )


def image_tower(clip: Clip) -> nn.Module | None:
    """The module that `clip.encode_image` calls once with the images as they are; None for none known."""
    towers = (getattr(clip.model, name, None) for name in ("visual", "vision_model"))
    return next((tower for tower in towers if isinstance(tower, nn.Module)), None)


@contextmanager
def _unit_taker(
    model: nn.Module, arrays: dict[str, tuple[LayerInfo, str]], count: Callable[[], int]
) -> Iterator[Callable[[object], dict[str, Tensor]]]:
    layouts = {layer.name: layer.layout for layer, _ in arrays.values()}
    hows: dict[str, dict[str, str]] = {name: {} for name in layouts}  # layer -> {array: pooling}
    for name, (layer, how) in arrays.items():
        hows[layer.name][name] = how
    plain = [name for name in layouts if not split_name(name)[1]]

    def pooled(name: str, output: Tensor) -> Tensor:
        several = [hooks.pool(output, layouts[name], how, count()) for how in hows[name].values()]
        return torch.stack(several).float()  # [poolings, b, K]

    def of_features(name: str, sae: SparseAutoencoder) -> Callable[[str, Tensor], Tensor]:
        def by(how: str, output: Tensor) -> Tensor:
            def one(features: Tensor, images: int) -> Tensor:
                return hooks.pool(features, layouts[name], how, images)

            return pooled_features(sae.to(output.device), output, layouts[name], one).float()  # [b, D]

        return lambda layer, output: torch.stack([by(how, output) for how in hows[name].values()])

    with ExitStack() as stack:
        recorded = {"": stack.enter_context(hooks.record(model, plain, pooled))}
        for name in layouts.keys() - set(plain):  # features of one image can be many: a few images at a time
            layer, file = split_name(name)
            reads = hooks.record(model, [layer], of_features(name, load_sae(file)))
            recorded[name] = stack.enter_context(reads)

        def take(_: object) -> dict[str, Tensor]:
            given = {name: acts[split_name(name)[0]] for name, acts in recorded.items() if name}
            found = {}
            for layer, several in (
                recorded[""] | given
            ).items():  # as they ran: what went wrong first is told
                found |= dict(zip(hows[layer], several.unbind(0)))  # [b, K] each
            return found

        yield take


def _within(numbers: Iterable[int], count: int, what: str) -> list[int]:
    numbers = [int(number) for number in numbers]
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong or not numbers:
        raise ValueError(f"{what} numbers lie within 0 .. {count - 1}, got {wrong[0] if wrong else 'none'}")
    return numbers


UNIT = 1e-3  # how far from 1 the length of an embedding may be


def embed_concepts(
    clip,
    concepts: Sequence[str],
    template: str = "{}",
    batch_size: int = 256,
    device: str | torch.device | None = None,
    checked: int = CHECKED,
) -> Tensor:
    """Text embeddings of the concepts inside `template` ("a photo of a {}") -> T [M, d], unit rows, float32.

    Cached by the text tower's weights, the concepts in order and the template; batch size and device do not
    matter. Of embeddings that were cached, `checked` are computed anew and compared.
    """
    concepts = list(concepts)
    if not concepts:
        raise ValueError("embed_concepts needs at least one concept")
    if template.count("{}") != 1:
        raise ValueError(f"a template contains {{}} once, got '{template}'")
    spec = {
        "schema": SCHEMA,
        "text": clip.text_key,
        "template": template,
        "dtype": "float32",
        "concepts": hashlib.sha256(json.dumps(concepts).encode()).hexdigest(),
    }

    def make() -> np.ndarray:
        texts = [template.replace("{}", concept) for concept in concepts]
        with torch.inference_mode():
            parts = [clip.encode_text(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        T = torch.cat(parts).float().cpu()
        _check(T, texts, clip)
        return T.numpy()

    def differs(cached: np.ndarray) -> str:
        rows = spread(len(concepts), checked)
        return rows_differ(clip, cached[rows], [template.replace("{}", concepts[row]) for row in rows])

    info = {"clip": clip.name, "concepts": len(concepts), "first": concepts[:3]}
    found = cache.array("text_embeddings", spec, make, info, differs if checked else None)
    T = torch.from_numpy(np.array(found))  # a copy: entries are read-only
    return T if device is None else T.to(device)


def zero_shot_head(
    clip,
    names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> Tensor:
    """Mean over the templates of each name's embedding, scaled to length 1 -> T [M, d] (Radford et al. 2021,
    3.1.4).
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates:
        raise ValueError("zero_shot_head needs at least one template, such as 'a photo of a {}'")
    ends = (templates[0], templates[-1])  # one text each of the first and the last is looked at
    T = sum(
        embed_concepts(clip, names, template, batch_size, device, int(template in ends))
        for template in templates
    )
    return torch.nn.functional.normalize(T, dim=1)


def rows_differ(clip, cached: np.ndarray, texts: list[str]) -> str:
    """Why cached embeddings [n, d] cannot be those of the texts, or "" where they are up to rounding."""
    with torch.inference_mode():
        fresh = clip.encode_text(texts).float().cpu()
    if fresh.shape == cached.shape and differ_by(torch.from_numpy(np.array(cached)), fresh) <= ALIKE:
        return ""
    return f"{clip.name} gives other embeddings for a few texts now"


def _check(T: Tensor, texts: list[str], clip) -> None:
    """Refuse embeddings that are not [M, d], not finite or not of length 1."""
    if T.ndim != 2 or len(T) != len(texts):
        raise ValueError(f"{clip.name} has to give one row per text, [{len(texts)}, d], got {list(T.shape)}")
    wrong = ~((T.norm(dim=1) - 1).abs() <= UNIT)  # also where there are NaNs
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{clip.name} gives {int(wrong.sum())} text embeddings that are not of length 1, the first "
            f"for '{texts[first]}': {T[first].norm():.4g}"
        )
