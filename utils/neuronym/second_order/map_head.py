"""What the MLP neurons of a SigLIP write into its representation, through every head of its attention pool.

MapBlock           a block of the tower, by the names of its layers
MapHead            the matrices of the pool, and the blocks whose neurons it reads
has_map_head       whether an image tower ends in such a pool: Hugging Face's, or timm's inside open_clip
read_map_head      clip -> MapHead, proved on one image
map_factors        directions of the pairs (neuron, head) of a layer, from the weights alone
map_attention      how much of every token each head carries, and the standard deviations it is divided by
map_contributions  s of some images, and their representations
map_heads          what every head adds to the representation
map_representation last residual stream -> representation
map_layers         layers from "all" or "8,9,10"
map_effects        effects of layers for a probe, and what no neuron writes, cached

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

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn, Tensor

from neuronym.common.memory import where_it_fits
from neuronym.common.types import Clip, Progress
from neuronym.datasets.probe import Probe
from neuronym.hooks import first_tensor, record
from neuronym.jobs import Job
from neuronym.passes import inference
from neuronym.second_order.effects import Effects, SCALE
from neuronym.second_order.pool import cached_parts, PoolFactors
from neuronym.second_order.tower import Norm, numbers_said, proved_once, statistics, TOLERANCE


@dataclass(frozen=True)
class MapBlock:
    """x + attention(norm(x)), to which its MLP is added; layers by name, matrices [out, in]."""

    residual: str  # layer whose output is the residual stream behind the block
    attention: str  # layer whose output is what attention adds
    neurons: str  # layer whose output are the MLP's neurons
    write: Tensor  # [D, K]
    write_bias: Tensor
    run: Callable[[Tensor], Tensor]  # residual stream before the block -> behind it


@dataclass(frozen=True)
class MapHead:
    """Blocks of MLP neurons and an attention pool of H heads, matrices [out, in]."""

    name: str
    module: nn.Module  # what is called with images [b, 3, H, W]
    pool: str  # its attention pool's own name
    embeddings: str  # layer whose output is the residual stream before the first block
    blocks: tuple[MapBlock, ...]
    post: Norm
    heads: int
    asks: Tensor  # [H, D]: the query as every head's keys see it; the keys' bias cannot change the attention
    v: Tensor  # [D, D]
    v_bias: Tensor
    out: Tensor  # [D, D]
    out_bias: Tensor
    after: Callable[[Tensor], Tensor]  # what the pool's own MLP adds to what heads carry, [b, D]

    @property
    def last(self) -> str:
        """Name of the module whose output is the last residual stream."""
        return self.blocks[-1].residual


def has_map_head(clip: Clip) -> bool:
    """Whether the image tower is a SigLIP with its pool, of Hugging Face or of timm inside open_clip."""
    return _theirs(clip) is not None


def read_map_head(clip: Clip) -> MapHead:
    """The pool of a SigLIP as matrices, which share its weights but for `asks`.

    They are proved on one image of noise: the last residual stream must be the sum of embeddings, attention
    and what neurons write, and the embedding must be what the pool makes of it. Errors: ValueError for all
    other towers.
    """
    found = _theirs(clip)
    if found is None:
        raise _no_plain_head(clip.name, f"it has a {type(clip.model).__name__}")
    try:
        head = found[0](clip.name, found[1])
        proved_once(head.module, partial(_prove, head, clip))
    except (AttributeError, KeyError) as error:
        raise _no_plain_head(clip.name, str(error)) from error
    return head


def _theirs(clip: Clip) -> tuple[Callable[[str, nn.Module], MapHead], nn.Module] | None:
    """How the tower is read, and the tower."""
    tower = getattr(clip.model, "vision_model", None)
    if hasattr(getattr(tower, "head", None), "probe") and hasattr(tower, "post_layernorm"):
        return _hugging_face, tower
    trunk = getattr(getattr(clip.model, "visual", None), "trunk", None)
    if hasattr(getattr(trunk, "attn_pool", None), "latent") and hasattr(trunk, "blocks"):
        return _timm, trunk
    return None


def _hugging_face(name: str, tower: nn.Module) -> MapHead:
    attention, blocks = tower.head.attention, []
    q, k, v = attention.in_proj_weight.chunk(3)
    q_bias, _, v_bias = attention.in_proj_bias.chunk(3)
    for i, layer in enumerate(tower.encoder.layers):
        at, mlp = f"encoder.layers.{i}", layer.mlp
        masks = {key: None for key in inspect.signature(layer.forward).parameters if "mask" in key}
        blocks.append(
            MapBlock(
                at,
                f"{at}.self_attn",
                f"{at}.mlp.activation_fn",
                mlp.fc2.weight,
                mlp.fc2.bias,
                lambda x, run=partial(layer, **masks): first_tensor(run(x)),
            )
        )
    query = F.linear(tower.head.probe[0, 0], q, q_bias)
    return MapHead(
        name,
        tower,
        "head.attention",
        "embeddings",
        tuple(blocks),
        _norm(tower.post_layernorm),
        attention.num_heads,
        _asks(query, k, attention.num_heads),
        v,
        v_bias,
        attention.out_proj.weight,
        attention.out_proj.bias,
        lambda carried: tower.head.mlp(tower.head.layernorm(carried)),
    )


def _timm(name: str, trunk: nn.Module) -> MapHead:
    pool, blocks = trunk.attn_pool, []
    (k, v), (_, v_bias) = pool.kv.weight.chunk(2), pool.kv.bias.chunk(2)
    for i, block in enumerate(trunk.blocks):
        at, fc2 = f"blocks.{i}", block.mlp.fc2
        blocks.append(MapBlock(at, f"{at}.attn", f"{at}.mlp.act", fc2.weight, fc2.bias, block))
    return MapHead(
        name,
        trunk,
        "attn_pool",
        "norm_pre",
        tuple(blocks),
        _norm(trunk.norm),
        pool.num_heads,
        _asks(pool.q(pool.latent[0, 0]), k, pool.num_heads),
        v,
        v_bias,
        pool.proj.weight,
        pool.proj.bias,
        lambda carried: pool.mlp(pool.norm(carried)),
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _asks(query: Tensor, k: Tensor, H: int) -> Tensor:
    """The query [D], divided by the root of the heads' width, as keys [D, D] see it: [H, D]."""
    query = query.unflatten(0, (H, -1)) * (len(query) // H) ** -0.5
    return torch.einsum("he,heD->hD", query, k.unflatten(0, (H, -1))).detach()


def map_factors(head: MapHead, layer: int) -> PoolFactors:
    """Directions of all pairs of a layer, in the dtype and on the device of the weights."""
    write = head.blocks[layer].write  # [D, K]
    read = (head.v * head.post.gamma) @ (write - write.mean(0))
    H = head.heads
    carry = head.out.unflatten(1, (H, -1)).transpose(0, 1)
    return PoolFactors(tuple(range(H)), read.unflatten(0, (H, -1)), carry)


def map_attention(head: MapHead, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention a [b, H, T] of the pool's query, tokens y [b, T, D] that it reads, and the sd [b, T] that
    they were divided by; x [b, T, D] is the last residual stream.
    """
    mean, sd = statistics(x, head.post.eps)
    y = (x - mean[..., None]) / sd[..., None] * head.post.gamma + head.post.beta
    return (head.asks @ y.transpose(1, 2)).softmax(dim=-1), y, sd


def map_contributions(
    head: MapHead, x: Tensor, neurons: Mapping[int, Tensor], others: Tensor | None = None
) -> tuple[dict[int, Tensor], Tensor, Tensor | None]:
    """{layer: s [b, H, K]}, representations [b, d] of length 100, and `rest` [b, d].

    x [b, T, D] is the last residual stream, `neurons` {layer: [b, T, K]}, `others` [b, T, D] what all but
    neurons write into x: with it, `rest` is what these, the biases and the pool's own MLP add.
    """
    a, y, sd = map_attention(head, x)
    carried = _carried(head, a @ y) + F.linear(head.v_bias, head.out, head.out_bias)
    after = head.after(carried)
    scale = SCALE / (carried + after).norm(dim=1, keepdim=True)
    weight = a / sd[:, None] * scale[:, :, None]
    s = {layer: weight @ p for layer, p in neurons.items()}
    if others is None:
        return s, (carried + after) * scale, None
    frozen = (others - others.mean(-1, keepdim=True)) / sd[..., None] * head.post.gamma + head.post.beta
    fixed = _carried(head, a @ frozen) + F.linear(head.v_bias, head.out, head.out_bias)
    return s, (carried + after) * scale, (fixed + after) * scale


def map_heads(head: MapHead, x: Tensor) -> Tensor:
    """Outputs [b, H, d] of the pool's heads, without its last bias and its MLP; x as above."""
    a, y, _ = map_attention(head, x)
    value, bias = (part.unflatten(0, (head.heads, -1)) for part in (head.v, head.v_bias))
    seen = torch.einsum("bhD,heD->bhe", a @ y, value) + bias
    parts = torch.einsum("bhe,dhe->bhd", seen, head.out.unflatten(1, (head.heads, -1)))
    carried = parts.sum(1) + head.out_bias
    return parts * SCALE / (carried + head.after(carried)).norm(dim=1)[:, None, None]


def map_representation(head: MapHead, x: Tensor) -> Tensor:
    """Representations [b, d] of length 100; x as above."""
    return map_contributions(head, x, {})[1]


def _carried(head: MapHead, seen: Tensor) -> Tensor:
    """What heads write of the mean tokens that they see, seen [b, H, D] -> [b, d], without biases."""
    value = torch.einsum("bhD,heD->bhe", seen, head.v.unflatten(0, (head.heads, -1)))
    return F.linear(value.flatten(1), head.out)


def map_layers(head: MapHead, text: str) -> list[int]:
    """Layers from "all" or numbers from 0 separated by commas, ascending; ValueError for those that are not
    there.
    """
    last = len(head.blocks) - 1
    numbers = numbers_said(text)
    if numbers is None:
        return list(range(last + 1))
    if not numbers or not 0 <= min(numbers) <= max(numbers) <= last:
        raise ValueError(
            f"layers of clip '{head.name}' are 'all' or numbers from 0 to {last} separated by commas, got "
            f"'{text}'"
        )
    return sorted(set(numbers))


def map_effects(
    clip: Clip,
    probe: Probe,
    layers: Sequence[int],
    batch_size: int = 32,
    progress: Progress | None = None,
    beside: Sequence[Job] = (),
) -> tuple[dict[int, Effects], Tensor]:
    """Effects of every neuron of the layers for every image, {layer: Effects}, B is 0; and `rest` [N, d],
    what no neuron of any layer writes; cached.

    Errors: ValueError for a CLIP without such a pool.
    """
    head = read_map_head(clip)
    factors = {layer: map_factors(head, layer) for layer in layers}
    widths = {"map rep": len(head.out), "map rest": len(head.out)}
    widths |= {f"map s {layer}": head.heads * f.value.shape[2] for layer, f in factors.items()}

    def make(acts: dict[str, Tensor]) -> dict[str, Tensor]:
        neurons = {layer: acts[head.blocks[layer].neurons] for layer in layers}
        s, rep, rest = map_contributions(head, acts[head.last], neurons, _others(head, acts))
        return {"map rep": rep, "map rest": rest} | {f"map s {layer}": s[layer] for layer in layers}

    names = [head.embeddings, *(block.attention for block in head.blocks), head.last]
    names += [head.blocks[layer].neurons for layer in layers]
    part = cached_parts(clip, probe, head.module, names, widths, make, batch_size, progress, beside)
    rep, rest = (part[name].to(head.out.device) for name in ("map rep", "map rest"))
    large = where_it_fits([part[f"map s {layer}"] for layer in factors], rep.device)
    return {
        layer: Effects(s.unflatten(1, (head.heads, -1)), torch.zeros_like(rep), f, rep)
        for s, (layer, f) in zip(large, factors.items())
    }, rest


def _others(head: MapHead, acts: Mapping[str, Tensor]) -> Tensor:
    """What all but neurons write into the last residual stream, [b, T, D]: embeddings, attention, and biases
    of MLPs.
    """
    return acts[head.embeddings] + sum(acts[block.attention] + block.write_bias for block in head.blocks)


def _prove(head: MapHead, clip: Clip) -> None:
    """ValueError unless the parts rebuild what the module computes for an image of noise."""
    size = clip.preprocess(Image.new("RGB", (64, 64))).shape
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(head.out)
    names = [name for block in head.blocks for name in (block.attention, block.neurons)]
    with inference(head.module), record(head.module, [head.embeddings, *names, head.last]) as acts:
        theirs = F.normalize(clip.encode_image(image).to(image), dim=-1)
        written = (F.linear(acts[block.neurons], block.write) for block in head.blocks)
        stream = _others(head, acts) + sum(written)
        last = acts[head.last]
        rep = map_representation(head, last)
    for what, ours, real in (("the residual stream", stream, last), ("the embedding", rep / SCALE, theirs)):
        gap = (ours - real).abs().max() / real.abs().max()
        if not gap < TOLERANCE:
            raise _no_plain_head(clip.name, f"{what}, rebuilt from its parts, is off by {gap:.1%}")


def _no_plain_head(name: str, reason: str) -> ValueError:
    return ValueError(
        f"the image tower of clip '{name}' is no SigLIP with an attention pool: {reason}; use hf: with a "
        "SiglipModel, or open_clip:ViT-B-16-SigLIP:TAG"
    )
