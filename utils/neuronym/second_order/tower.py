"""ViT image towers of CLIPs read as matrices, whoever wrote the module: openai-clip, open_clip, Hugging
Face's CLIP.

Norm               a layer norm
TowerBlock, Tower  the matrices, and the names of the layers whose outputs are recorded
read_tower         clip -> Tower, proved on one image
proved_once        a proof that a module as it is needs once in a process
checked_layers     layers that have second-order effects
chosen_layers      the same from "all" or "8,9,10"
numbers_said       the numbers of such a text
class_attention    how the class token of a block looks at all tokens, from the residual stream before it
class_token        the class token behind a block, without the others
representation     last residual stream -> embedding, not normalised
statistics         mean and standard deviation of layer norm
tokens             what a layer gives, tokens behind the batch
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn, Tensor

from neuronym.common.types import Clip
from neuronym.hooks import first_tensor, record
from neuronym.passes import inference

TOLERANCE = 1e-3  # of what is rebuilt from the matrices, relative to its largest value


@dataclass(frozen=True)
class Norm:
    """Layer norm gamma (x - mean) / sd + beta; gamma and beta [D]."""

    gamma: Tensor
    beta: Tensor
    eps: float


@dataclass(frozen=True)
class TowerBlock:
    """One block of a ViT: x + attention(norm(x)), to which its MLP is added; matrices [out, in] as in
    nn.Linear.
    """

    residual: str  # layer whose output is the residual stream behind the block
    activation: str  # layer whose output are the MLP's neurons
    heads: int
    norm: Norm
    q: Tensor  # [D, D], as k, v and out
    q_bias: Tensor
    k: Tensor  # its bias moves all tokens alike and cannot change the attention
    v: Tensor
    v_bias: Tensor
    out: Tensor
    out_bias: Tensor
    write: Tensor  # [D, K]: column n is what neuron n writes into the residual stream
    write_bias: Tensor
    mlp: Callable[[Tensor], Tensor]  # what the MLP adds to tokens [b, D], its own layer norm included
    run: Callable[[Tensor], Tensor]  # residual stream before the block, as recorded -> behind it


@dataclass(frozen=True)
class Tower:
    """L blocks, the final layer norm of the class token, and the projection [D, d]."""

    name: str
    module: nn.Module  # what is called with images [b, 3, H, W]
    blocks: tuple[TowerBlock, ...]
    post: Norm
    projection: Tensor
    tokens_first: bool  # residual streams are [T, b, D]
    before: str  # layer whose output is the residual stream before the first block, [b, T, D]

    @property
    def streams(self) -> list[str]:
        """Layers whose outputs are the residual streams before each block, and the last one."""
        return [self.before, *(block.residual for block in self.blocks)]

    @property
    def lens_layers(self) -> range:
        """Layers whose neurons have second-order effects: all but the last, behind which no attention
        comes.
        """
        return range(len(self.blocks) - 1)


def read_tower(clip: Clip) -> Tower:
    """The image tower of a CLIP as matrices, which share its weights.

    They are proved on one image of noise: every block's class token and the embedding are rebuilt from them.
    So a variant of the ViT that computes anything else (layer scale, other pooling) is refused and never
    misread. Errors: ValueError for towers that are no such ViT.
    """
    parts = vars(clip.model).get("_modules", {}) if clip.model is not None else {}
    visual = parts.get("visual")
    try:
        if visual is not None and hasattr(visual, "transformer") and hasattr(visual, "ln_post"):
            tower = _openai(visual)
        elif "vision_model" in parts and "visual_projection" in parts:
            tower = _hf(clip.model)
        else:
            kind = type(visual if visual is not None else clip.model).__name__
            raise ValueError(
                f"second-order effects exist in ViT image towers of CLIPs, clip '{clip.name}' has a {kind}; "
                "use microworld:vit, openai:ViT-B/32, open_clip:ViT-..., or hf: with a CLIPModel"
            )
    except AttributeError as error:
        raise _no_plain_vit(clip.name, str(error)) from error
    tower = replace(tower, name=clip.name)
    if len(tower.post.gamma) != len(tower.blocks[0].out):
        raise _no_plain_vit(
            clip.name,
            f"its last layer norm has {len(tower.post.gamma)} values, its blocks {len(tower.blocks[0].out)}",
        )
    try:
        proved_once(tower.module, partial(_prove, tower, clip))
    except KeyError as error:
        raise _no_plain_vit(clip.name, str(error)) from error
    return tower


PROVED: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()  # modules, and how they were


def proved_once(module: nn.Module, prove: Callable[[], None]) -> None:
    """Prove that a module is read rightly, unless that was done in this process: of this module, with the
    same parts, hooks and parameters, none of them changed since.
    """
    tensors = [*module.parameters(), *module.buffers()]
    state = (
        tuple((id(part), *part._forward_hooks) for part in module.modules()),
        tuple((id(x), x.device, x.dtype, 0 if x.is_inference() else x._version) for x in tensors),
    )
    if PROVED.get(module) != state:
        prove()
        PROVED[module] = state


def checked_layers(tower: Tower, layers: Iterable[int]) -> list[int]:
    """The layers once each, ascending, or ValueError names the one that has no second-order effects."""
    layers, last = sorted(set(layers)), len(tower.blocks) - 1
    wrong = [layer for layer in layers if layer not in tower.lens_layers]
    if wrong:
        why = (
            f"layer {wrong[0]} is the last one, behind which no attention carries anything"
            if wrong[0] == last
            else f"there is no layer {wrong[0]}"
        )
        raise ValueError(
            f"second-order effects exist in MLP layers 0 to {last - 1} of clip '{tower.name}': {why}"
        )
    if not layers:
        raise ValueError(
            f"no layers were given; clip '{tower.name}' has MLP layers 0 to {last - 1} to look into"
        )
    return layers


def chosen_layers(tower: Tower, text: str) -> list[int]:
    """Layers from "all" (that have effects) or numbers separated by commas, ascending; ValueError for any
    other.
    """
    numbers = numbers_said(text)
    if numbers is None:
        return list(tower.lens_layers)
    if not numbers:
        raise ValueError(
            f"layers are 'all' or numbers from 0 separated by commas, got '{text}'; write 8,9,10"
        )
    return checked_layers(tower, numbers)


def numbers_said(text: str) -> list[int] | None:
    """Whole numbers separated by commas, none where a part is none; None for "all"."""
    parts = [part.strip() for part in text.split(",")]
    if parts == ["all"]:
        return None
    return [int(part) for part in parts] if all(part.lstrip("-").isdecimal() for part in parts) else []


def class_attention(block: TowerBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the class token to all tokens, a [b, H, T], and the mean and sd [b, T] of the block's
    layer norm.

    x [b, T, D] is the residual stream before the block. Keys are never formed: q_h (W_K,h y_i) = (q_h W_K,h)
    y_i.
    """
    mean, sd = statistics(x, block.norm.eps)
    y = (x - mean[..., None]) / sd[..., None] * block.norm.gamma + block.norm.beta
    size = len(block.q) // block.heads
    q = F.linear(y[:, 0], block.q, block.q_bias).unflatten(1, (block.heads, size)) * size**-0.5  # [b, H, D/H]
    looks = torch.einsum("bhe,heD->bhD", q, block.k.unflatten(0, (block.heads, size)))
    return torch.matmul(looks, y.transpose(1, 2)).softmax(dim=-1), mean, sd


def class_token(block: TowerBlock, x: Tensor) -> Tensor:
    """Class tokens [b, D] behind the block, from the residual stream x [b, T, D] before it; other tokens cost
    nothing.
    """
    a, mean, sd = class_attention(block, x)
    y = (x - mean[..., None]) / sd[..., None] * block.norm.gamma + block.norm.beta
    value = block.v.unflatten(0, (block.heads, -1))  # [H, D/H, D]
    seen = torch.einsum("bhD,heD->bhe", a @ y, value).flatten(1) + block.v_bias
    moved = x[:, 0] + F.linear(seen, block.out, block.out_bias)
    return moved + block.mlp(moved)


def representation(tower: Tower, x: Tensor) -> Tensor:
    """Class tokens of the last residual stream, x [b, D] -> embeddings [b, d] before normalisation."""
    mean, sd = statistics(x, tower.post.eps)
    return ((x - mean[:, None]) / sd[:, None] * tower.post.gamma + tower.post.beta) @ tower.projection


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (with layer norm's eps) over the last axis."""
    variance, mean = torch.var_mean(x, dim=-1, correction=0)
    return mean, (variance + eps).sqrt()


def tokens(tower: Tower, name: str, output: Tensor) -> Tensor:
    """What a recorded layer gives as [b, T, ...]; to be passed to `hooks.record`."""
    return output.transpose(0, 1) if tower.tokens_first and name != tower.before else output


def _openai(visual: nn.Module) -> Tower:
    """openai-clip's VisionTransformer and open_clip's, which has the same names."""
    blocks = []
    for i, block in enumerate(visual.transformer.resblocks):
        attention, name = block.attn, f"transformer.resblocks.{i}"
        if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
            raise ValueError(
                f"the lens reads torch's MultiheadAttention, got {type(attention).__name__} in {name}; use "
                "a CLIP without variants of attention"
            )
        (q, k, v), (q_bias, _, v_bias) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        blocks.append(
            TowerBlock(
                name,
                f"{name}.mlp.gelu",
                attention.num_heads,
                _norm(block.ln_1),
                q,
                q_bias,
                k,
                v,
                v_bias,
                attention.out_proj.weight,
                attention.out_proj.bias,
                block.mlp.c_proj.weight,
                block.mlp.c_proj.bias,
                lambda x, b=block: b.mlp(b.ln_2(x)),
                block,
            )
        )
    tokens_first = not visual.transformer.resblocks[0].attn.batch_first
    return Tower("", visual, tuple(blocks), _norm(visual.ln_post), visual.proj, tokens_first, "ln_pre")


def _hf(model: nn.Module) -> Tower:
    blocks = []
    for i, block in enumerate(model.vision_model.encoder.layers):
        a, name = block.self_attn, f"encoder.layers.{i}"
        masks = {key: None for key in inspect.signature(block.forward).parameters if "mask" in key}
        blocks.append(
            TowerBlock(
                name,
                f"{name}.mlp.activation_fn",
                a.num_heads,
                _norm(block.layer_norm1),
                a.q_proj.weight,
                a.q_proj.bias,
                a.k_proj.weight,
                a.v_proj.weight,
                a.v_proj.bias,
                a.out_proj.weight,
                a.out_proj.bias,
                block.mlp.fc2.weight,
                block.mlp.fc2.bias,
                lambda x, b=block: b.mlp(b.layer_norm2(x)),
                lambda x, run=partial(block, **masks): first_tensor(run(x)),
            )
        )
    return Tower(
        "",
        model.vision_model,
        tuple(blocks),
        _norm(model.vision_model.post_layernorm),
        model.visual_projection.weight.T,
        tokens_first=False,
        before="pre_layrnorm",
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _prove(tower: Tower, clip: Clip) -> None:
    """ValueError unless the matrices rebuild what the module computes for an image of noise."""
    size = clip.preprocess(Image.new("RGB", (64, 64))).shape
    weight = tower.projection
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    names = [*tower.streams, *(block.activation for block in tower.blocks)]
    with inference(tower.module):
        with record(
            tower.module, names, partial(tokens, tower)
        ) as acts:  # blocks are run again, without the hooks
            tower.module(image)
            kept = dict(acts)
        for before, block in zip(tower.streams, tower.blocks):
            behind = kept[block.residual][:, 0]
            written = F.linear(kept[block.activation][:, 0], block.write, block.write_bias)
            _same(tower, block.residual, class_token(block, kept[before]), behind)
            _same(tower, block.activation, block.mlp(behind - written), written)
        _same(
            tower,
            "the embedding",
            F.normalize(representation(tower, behind), dim=-1),
            clip.encode_image(image).to(behind.dtype),
        )


def _same(tower: Tower, what: str, ours: Tensor, theirs: Tensor) -> None:
    gap = (ours - theirs).abs().max() / theirs.abs().max()
    if not gap < TOLERANCE:
        raise _no_plain_vit(tower.name, f"{what}, rebuilt from attention and MLP, is off by {gap:.1%}")


def _no_plain_vit(name: str, reason: str) -> ValueError:
    return ValueError(
        f"the image tower of clip '{name}' is no plain ViT: {reason}; use a CLIP without layer scale, "
        "register tokens or other pooling than the class token"
    )
