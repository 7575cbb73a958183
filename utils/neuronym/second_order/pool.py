"""What the last neurons of a ResNet CLIP write into its representation, through every head of its attention
pool (Bu & Gandelsman 2025, Interpreting ResNet-based CLIP via neuron-attention decomposition).

Pool                the matrices of an attention pool
PoolFactors         the direction of every pair (neuron, head), from the weights alone
has_pool            whether a CLIP's image tower ends in an attention pool
read_pool           clip -> Pool, proved on one image
pool_factors        these directions, from the matrices
looks               how much of every place each head carries
pool_contributions  s of some images, what no neuron writes, and the representation
pool_representation the representation alone
pool_effects        effects of the last layer's channels for a probe, cached
cached_parts        what is made of recorded layers for a probe, cached

A neuron n is a channel of the last layer, x_i its value at place i of T. The pool's tokens are the places and
their mean (token 0), a position is added to each, and token 0 asks. So head h carries of an image I

    s[I, h, n] = C sum_i (a_i + a_0 / T) x_i      C = 100 / |embedding|
    V[n, h]    = O_h V_h e_n

that is, what a pair writes lies along one direction whatever the image, and s is never negative behind a
ReLU: the pair has a sign too. `effects.Effects` holds both, with B = 0, as no neuron has a share here of what
none writes: positions and biases, `rest`. All pairs and `rest` add up to the representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn, Tensor

from neuronym.common.memory import where_it_fits
from neuronym.common.types import Clip, Progress
from neuronym.datasets.probe import Probe
from neuronym.hooks import record
from neuronym.jobs import Job
from neuronym.passes import compute, inference
from neuronym.second_order.effects import Effects, SCALE
from neuronym.second_order.tower import proved_once, TOLERANCE

SCHEMA = 1
POOLED = "layer4"  # what openai-clip and open_clip call the last layer of a ResNet


@dataclass(frozen=True)
class Pool:
    """An attention pool over K channels with inner width D (the same in CLIPs), matrices [out, in]."""

    name: str
    module: nn.Module  # what is called with images [b, 3, H, W]
    heads: int
    positions: Tensor  # [1 + T, K]
    q: Tensor  # [D, K], as k and v
    q_bias: Tensor
    k: Tensor  # its bias moves all tokens alike and cannot change the attention
    v: Tensor
    v_bias: Tensor
    out: Tensor  # [d, D]
    out_bias: Tensor


@dataclass(frozen=True)
class PoolFactors:
    """Directions of pairs: value [H, D / H, K] of every head, and where its output is written."""

    heads: tuple[int, ...]
    value: Tensor
    carry: Tensor  # [H, d, D / H]

    def V(self, units: slice | Sequence[int] = slice(None)) -> Tensor:
        """Directions [k, H, d] of the units."""
        return torch.einsum("hdD,hDk->khd", self.carry, self.value[:, :, units])


def has_pool(clip: Clip) -> bool:
    """Whether the image tower is a ResNet of openai-clip or open_clip with an attention pool."""
    visual = getattr(clip.model, "visual", None)
    return hasattr(visual, "attnpool") and hasattr(visual, POOLED)


def read_pool(clip: Clip) -> Pool:
    """The attention pool of a CLIP as matrices, which share its weights.

    They are proved on one image of noise: all pairs and `rest` must add up to the embedding, or the pool is
    refused and never misread. Errors: ValueError for towers without such a pool.
    """
    if not has_pool(clip):
        kind = type(getattr(clip.model, "visual", clip.model)).__name__
        raise ValueError(
            f"pairs of neuron and head exist in ResNet CLIPs with an attention pool, clip '{clip.name}' has "
            f"a {kind}; use microworld:rn or openai:RN50"
        )
    visual = clip.model.visual
    pool = visual.attnpool
    try:
        read = Pool(
            clip.name,
            visual,
            pool.num_heads,
            pool.positional_embedding,
            pool.q_proj.weight,
            pool.q_proj.bias,
            pool.k_proj.weight,
            pool.v_proj.weight,
            pool.v_proj.bias,
            pool.c_proj.weight,
            pool.c_proj.bias,
        )
    except AttributeError as error:
        raise _no_plain_pool(clip.name, str(error)) from error
    proved_once(visual, partial(_prove, read, clip))
    return read


def pool_factors(pool: Pool) -> PoolFactors:
    """Directions of all pairs, in the dtype and on the device of the weights."""
    H = pool.heads
    return PoolFactors(
        tuple(range(H)), pool.v.unflatten(0, (H, -1)), pool.out.unflatten(1, (H, -1)).transpose(0, 1)
    )


def looks(pool: Pool, x: Tensor) -> Tensor:
    """Attention [b, H, 1 + T] of the pool's query to the mean and to all places; x [b, 1 + T, K] without
    positions.

    Keys are never formed: q_h (W_K,h y_i) = (q_h W_K,h) y_i.
    """
    y, size = x + pool.positions, len(pool.q) // pool.heads
    q = F.linear(y[:, 0], pool.q, pool.q_bias).unflatten(1, (pool.heads, size)) * size**-0.5
    asks = torch.einsum("bhe,hek->bhk", q, pool.k.unflatten(0, (pool.heads, size)))
    return (asks @ y.transpose(1, 2)).softmax(dim=-1)


def pool_contributions(pool: Pool, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s [b, H, K], rest [b, d] and representations [b, d] of length 100; maps [b, K, h, w] of the last
    layer.
    """
    places = maps.flatten(2).transpose(1, 2)  # [b, T, K]
    s, written, rest = _written(pool, places)
    scale = SCALE / (written + rest).norm(dim=1, keepdim=True)
    return s * scale[:, :, None], rest * scale, (written + rest) * scale


def pool_representation(pool: Pool, places: Tensor) -> Tensor:
    """Representations [b, d] of length 100; places [b, T, K] of the last layer."""
    _, written, rest = _written(pool, places)
    return SCALE * F.normalize(written + rest, dim=1)


def _written(pool: Pool, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s [b, H, K], what all pairs write and what none does, [b, d], before any scale."""
    a = looks(pool, torch.cat([places.mean(1, keepdim=True), places], dim=1))
    factors = pool_factors(pool)
    s = (a[:, :, 1:] + a[:, :, :1] / places.shape[1]) @ places
    fixed = torch.einsum("bht,tk,hek->bhe", a, pool.positions, factors.value).flatten(1) + pool.v_bias
    written = torch.einsum("bhk,hek->bhe", s, factors.value).flatten(1) @ pool.out.T
    return s, written, F.linear(fixed, pool.out, pool.out_bias)


def pool_effects(
    clip: Clip,
    probe: Probe,
    batch_size: int = 64,
    progress: Progress | None = None,
    beside: Sequence[Job] = (),
) -> tuple[Effects, Tensor]:
    """Effects of every channel of the last layer for every image, and `rest` [N, d]; cached.

    Effects.heads are J = H heads of the pool and B is 0. Errors: ValueError for a CLIP without such a pool.
    """
    pool = read_pool(clip)
    factors, d = pool_factors(pool), len(pool.out)
    widths = {"pool s": pool.heads * pool.v.shape[1], "pool rest": d, "pool rep": d}

    def make(acts: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(widths, pool_contributions(pool, acts[POOLED])))

    part = cached_parts(clip, probe, pool.module, [POOLED], widths, make, batch_size, progress, beside)
    rest, rep = (part[name].to(pool.out.device) for name in ("pool rest", "pool rep"))
    [s] = where_it_fits([part["pool s"]], rep.device)
    return Effects(s.unflatten(1, (pool.heads, -1)), torch.zeros_like(rep), factors, rep), rest


def cached_parts(
    clip: Clip,
    probe: Probe,
    module: nn.Module,
    layers: Sequence[str],
    widths: Mapping[str, int],
    make: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    batch_size: int,
    progress: Progress | None,
    beside: Sequence[Job] = (),
) -> dict[str, Tensor]:
    """{part: [N, width]} that `make` gives from the recorded `layers` of images; what the cache lacks is
    computed in one pass.
    """
    about = {"schema": SCHEMA, "weights": clip.weights_key, "preprocess": clip.preprocess_spec}
    specs = {part: about | {"part": part, "probe": probe.fingerprint, "tf32": False} for part in widths}
    job = Job(
        "second_order",
        clip.name,
        clip.preprocess,
        clip.preprocess_spec,
        specs,
        widths,
        module,
        lambda names, count: _taker(module, layers, make, names),
        {"clip": clip.name, "probe": probe.name},
    )
    compute(probe, [job, *beside], batch_size, None, progress, None)
    return {name: job.result(name) for name in widths}


@contextmanager
def _taker(
    module: nn.Module,
    layers: Sequence[str],
    make: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    names: Sequence[str],
) -> Iterator:
    with record(module, layers) as acts:

        def take(_: object) -> dict[str, Tensor]:
            made = make(acts)
            return {name: made[name].flatten(1) for name in names}

        yield take


def _prove(pool: Pool, clip: Clip) -> None:
    """ValueError unless pairs and rest add up to what the CLIP embeds an image of noise as."""
    size = clip.preprocess(Image.new("RGB", (64, 64))).shape
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(pool.out)
    with inference(pool.module), record(pool.module, [POOLED]) as acts:
        theirs = F.normalize(clip.encode_image(image).to(image), dim=-1)
        _, _, ours = pool_contributions(pool, acts[POOLED])
    gap = (ours / SCALE - theirs).abs().max() / theirs.abs().max()
    if not gap < TOLERANCE:
        raise _no_plain_pool(clip.name, f"the embedding, rebuilt from it, is off by {gap:.1%}")


def _no_plain_pool(name: str, reason: str) -> ValueError:
    return ValueError(
        f"the attention pool of clip '{name}' is none of CLIP's: {reason}; use a ResNet of openai-clip or "
        "open_clip"
    )
