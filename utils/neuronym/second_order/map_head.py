"""What the MLP neurons of a SigLIP write into its representation, through every head of its attention pool.

MapHead            the matrices of the pool, and the layers whose neurons it reads
has_map_head       whether a Hugging Face image tower ends in such a pool
read_map_head      clip -> MapHead, proved on one image
map_factors        directions of the pairs (neuron, head) of a layer, from the weights alone
map_contributions  s of some images, and their representations
map_layers         layers from "all" or "8,9,10": their neurons, and their names
map_effects        effects of layers for a probe, cached

SigLIP has no class token: a learnt query asks all tokens y_i = norm(x_i) of the last residual stream, and
what its heads carry, A, is the representation together with an MLP of its own, A + MLP(norm(A)). The residual
stream is a sum, and neuron n of any layer adds p_i w_n to token i. So, with the attention a and the standard
deviation sd that the model had, head h carries of an image

    s[I, h, n] = C sum_i a_i p_i / sd_i      C = 100 / |embedding|
    V[n, h]    = O_h V_h diag(gamma) (w_n - its mean)

where the mean of layer norm, which is a sum too, has gone to whom it belongs. `effects.Effects` holds both,
with B = 0. What is missing to the representation is written by no neuron: embeddings, attention, biases, and
the pool's own MLP. Attention inside the tower is not followed: effects are those on the pool, one step away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn, Tensor

from neuronym.common.types import Clip, Progress
from neuronym.datasets.probe import Probe
from neuronym.hooks import record
from neuronym.passes import inference
from neuronym.second_order.effects import Effects, SCALE
from neuronym.second_order.pool import cached_parts, PoolFactors
from neuronym.second_order.tower import Norm, statistics, TOLERANCE


@dataclass(frozen=True)
class MapHead:
    """L layers of MLP neurons and an attention pool of H heads, matrices [out, in]."""

    name: str
    module: nn.Module  # what is called with images [b, 3, H, W]
    layers: tuple[nn.Module, ...]
    post: Norm
    heads: int
    asks: Tensor  # [H, D]: the query as every head's keys see it; the keys' bias cannot change the attention
    v: Tensor  # [D, D]
    v_bias: Tensor
    out: Tensor  # [D, D]
    out_bias: Tensor

    def neurons(self, layer: int) -> str:
        """Name of the module whose output are the neurons of a layer."""
        return f"encoder.layers.{layer}.mlp.activation_fn"

    @property
    def last(self) -> str:
        """Name of the module whose output is the last residual stream."""
        return f"encoder.layers.{len(self.layers) - 1}"


def has_map_head(clip: Clip) -> bool:
    """Whether the image tower is Hugging Face's SigLIP with its pool."""
    tower = getattr(clip.model, "vision_model", None)
    return hasattr(getattr(tower, "head", None), "probe") and hasattr(tower, "post_layernorm")


def read_map_head(clip: Clip) -> MapHead:
    """The pool of a SigLIP as matrices, which share its weights but for `asks`.

    They are proved on one image of noise: the last residual stream must be the sum of embeddings, attention
    and what neurons write, and the embedding must be what the pool makes of it. Errors: ValueError for all
    other towers.
    """
    if not has_map_head(clip):
        raise _no_plain_head(clip.name, f"it has a {type(clip.model).__name__}")
    try:
        head = _matrices(clip.name, clip.model.vision_model)
        _prove(head, clip)
    except (AttributeError, KeyError) as error:
        raise _no_plain_head(clip.name, str(error)) from error
    return head


def _matrices(name: str, tower: nn.Module) -> MapHead:
    attention, H = tower.head.attention, tower.head.attention.num_heads
    (q, k, v), (q_bias, _, v_bias) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query = F.linear(tower.head.probe[0, 0], q, q_bias).unflatten(0, (H, -1)) * (len(q) // H) ** -0.5
    norm = tower.post_layernorm
    return MapHead(
        name,
        tower,
        tuple(tower.encoder.layers),
        Norm(norm.weight, norm.bias, norm.eps),
        H,
        torch.einsum("he,heD->hD", query, k.unflatten(0, (H, -1))).detach(),
        v,
        v_bias,
        attention.out_proj.weight,
        attention.out_proj.bias,
    )


def map_factors(head: MapHead, layer: int) -> PoolFactors:
    """Directions of all pairs of a layer, in the dtype and on the device of the weights."""
    write = head.layers[layer].mlp.fc2.weight  # [D, K]
    read = (head.v * head.post.gamma) @ (write - write.mean(0))
    H = head.heads
    carry = head.out.unflatten(1, (H, -1)).transpose(0, 1)
    return PoolFactors(tuple(range(H)), read.unflatten(0, (H, -1)), carry)


def map_contributions(
    head: MapHead, x: Tensor, neurons: dict[int, Tensor]
) -> tuple[dict[int, Tensor], Tensor]:
    """{layer: s [b, H, K]} and representations [b, d] of length 100.

    x [b, T, D] is the last residual stream, `neurons` {layer: [b, T, K]}.
    """
    mean, sd = statistics(x, head.post.eps)
    y = (x - mean[..., None]) / sd[..., None] * head.post.gamma + head.post.beta
    a = (head.asks @ y.transpose(1, 2)).softmax(dim=-1)  # [b, H, T]
    seen = torch.einsum("bhD,heD->bhe", a @ y, head.v.unflatten(0, (head.heads, -1))).flatten(1)
    carried = F.linear(seen + head.v_bias, head.out, head.out_bias)
    rep = carried + head.module.head.mlp(head.module.head.layernorm(carried))
    scale = SCALE / rep.norm(dim=1, keepdim=True)
    weight = a / sd[:, None] * scale[:, :, None]
    return {layer: weight @ p for layer, p in neurons.items()}, rep * scale


def map_layers(clip: Clip, text: str) -> tuple[dict[str, int], dict[int, str]]:
    """Neurons by name, and names by number, of layers: "all", or numbers from 0 separated by commas.

    Errors: ValueError for layers that are not there.
    """
    head = read_map_head(clip)
    parts, last = [part.strip() for part in text.split(",")], len(head.layers) - 1
    if parts == ["all"]:
        parts = [str(layer) for layer in range(last + 1)]
    if not all(part.isdecimal() and int(part) <= last for part in parts):
        raise ValueError(
            f"layers of clip '{clip.name}' are 'all' or numbers from 0 to {last} separated by commas, got "
            f"'{text}'"
        )
    names = {layer: head.neurons(layer) for layer in sorted(set(map(int, parts)))}
    return {name: head.layers[layer].mlp.fc2.in_features for layer, name in names.items()}, names


def map_effects(
    clip: Clip, probe: Probe, layers: Sequence[int], batch_size: int = 32, progress: Progress | None = None
) -> dict[int, Effects]:
    """Effects of every neuron of the layers for every image, {layer: Effects}; cached, B is 0.

    Errors: ValueError for a CLIP without such a pool.
    """
    head = read_map_head(clip)
    factors = {layer: map_factors(head, layer) for layer in layers}
    widths = {"map rep": len(head.out)}
    widths |= {f"map s {layer}": head.heads * f.value.shape[2] for layer, f in factors.items()}

    def make(acts: dict[str, Tensor]) -> dict[str, Tensor]:
        neurons = {layer: acts[head.neurons(layer)] for layer in layers}
        s, rep = map_contributions(head, acts[head.last], neurons)
        return {"map rep": rep} | {f"map s {layer}": of_layer for layer, of_layer in s.items()}

    names = [*(head.neurons(layer) for layer in layers), head.last]
    part = cached_parts(clip, probe, head.module, names, widths, make, batch_size, progress)
    rep = part["map rep"].to(head.out.device)
    return {
        layer: Effects(
            part[f"map s {layer}"].to(rep.device).unflatten(1, (head.heads, -1)),
            torch.zeros_like(rep),
            f,
            rep,
        )
        for layer, f in factors.items()
    }


def _prove(head: MapHead, clip: Clip) -> None:
    """ValueError unless the parts rebuild what the module computes for an image of noise."""
    size = clip.preprocess(Image.new("RGB", (64, 64))).shape
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(head.out)
    blocks = range(len(head.layers))
    attention = [f"encoder.layers.{layer}.self_attn" for layer in blocks]
    neurons = [head.neurons(layer) for layer in blocks]
    with inference(head.module), record(head.module, ["embeddings", *attention, *neurons, head.last]) as acts:
        theirs = F.normalize(clip.encode_image(image).to(image), dim=-1)
        stream = acts["embeddings"] + sum(acts[name] for name in attention)
        for layer, name in zip(head.layers, neurons):
            stream = stream + F.linear(acts[name], layer.mlp.fc2.weight, layer.mlp.fc2.bias)
        _, rep = map_contributions(head, acts[head.last], {})
        last = acts[head.last]
    for what, ours, real in (("the residual stream", stream, last), ("the embedding", rep / SCALE, theirs)):
        gap = (ours - real).abs().max() / real.abs().max()
        if not gap < TOLERANCE:
            raise _no_plain_head(clip.name, f"{what}, rebuilt from its parts, is off by {gap:.1%}")


def _no_plain_head(name: str, reason: str) -> ValueError:
    return ValueError(
        f"the image tower of clip '{name}' is no SigLIP with an attention pool: {reason}; use hf: with a "
        "SiglipModel"
    )
