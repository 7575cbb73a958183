"""Second-order effects of the MLP neurons of a CLIP's ViT, exactly and in factors (Gandelsman et al. 2025,
section 3).

SCALE                 length that representations are taken to
Factors               what V and B are made of, from the weights
Directed              what Effects need of factors
Effects               phi[i, n] = sum_j s[i, j, n] V[n, j] + B[i]
second_order_effects  effects of layers for a probe, cached
coefficients          s and B of a batch of images, and their representations, from one forward pass
layer_factors         the factors of a layer
materialize           phi itself, of a few images and neurons
carried               what all later heads carry of a neuron: 0 for every image where it is dead
representations       the representations alone
compression           what the factors take of the memory that the effects would
Mean                  the mean of effects over images
Directions            principal directions of deviations from it
mean                  effects -> Mean
norms                 length of every neuron's deviation for every image
principal_directions  the direction r along which a neuron's largest deviations lie, and how much of them does
check_images          whether there are as many images as that takes
significant           which deviations are longer than a threshold
projections           deviations along given directions
total                 deviations of all neurons, or of those marked, added up

A neuron n of layer l writes its activation p_i times w_n into token i. Attention head h of a later layer l'
carries it to the class token, with the weight a_i that it gave the token anyway; layer norms divide by the
standard deviations sd that the model had. So for an image I all that remains of a neuron are J scalars, one
for every later layer and head,

    s[I, j, n] = C / sd_post sum_i a_i p_i / sd_i         C = 100 / |embedding|
    V[n, j]    = P' diag(gamma_post) O_h V_h diag(gamma_1) w_n

and B(I), the neuron's equal share of what no neuron writes: biases and the means of layer norms, spread
evenly over their contributors (1 + 2 l' before block l', and K neurons each).

Deviations d = phi - m (m the mean over images) are never formed for all images: with these factors, d = (s -
s_mean) V + (B - B_mean), so that lengths follow from the Gram matrix V V' of J x J values a neuron. Neurons
are taken a few at a time, as many as `memory` bytes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from neuronym.activations import image_embeddings
from neuronym.common.memory import items_within, MEMORY, slices, where_it_fits
from neuronym.common.types import Clip, Progress
from neuronym.datasets.probe import Probe
from neuronym.hooks import record
from neuronym.jobs import Job
from neuronym.passes import compute, VIT_PIECE
from neuronym.second_order.tower import (
    checked_layers,
    class_attention,
    read_tower,
    representation,
    statistics,
    tokens,
    Tower,
)

SCHEMA = 1
SCALE = 100.0  # the paper's length of an embedding


@dataclass(frozen=True)
class Factors:
    """What the effects of a layer have from the weights alone; J later heads, in order of layer and head."""

    layer: int
    heads: tuple[tuple[int, int], ...]  # (layer, head) of every j
    write: Tensor  # w_n, the columns of [D, K]
    read: Tensor  # diag(gamma_1) V_h', [J, D, D / H]
    carry: Tensor  # O_h' diag(gamma_post) P, [J, D / H, d]
    from_bias: Tensor  # [J, d], for each of the c_proj bias ...
    from_mean: Tensor  # ... the mean of layer norm ...
    constant: Tensor  # ... and the value, output and layer norm biases: a neuron's share of what they give
    from_post_mean: Tensor  # [d], the same for the last layer norm
    post_constant: Tensor  # [d]

    def V(self, units: slice | Sequence[int] = slice(None)) -> Tensor:
        """Directions [k, J, d] of the units."""
        read = torch.einsum("Dk,jDe->kje", self.write[:, units], self.read)
        return torch.einsum("kje,jed->kjd", read, self.carry)


class Directed(Protocol):
    """Factors of any tower: directions V(units) [k, J, d] of J heads."""

    heads: tuple

    def V(self, units: slice | Sequence[int] = slice(None)) -> Tensor: ...


@dataclass(frozen=True)
class Effects:
    """Second-order effects of the K neurons of a layer on N images: phi[i, n] = sum_j s[i, j, n] V[n, j] +
    B[i].
    """

    s: Tensor  # [N, J, K]; on the CPU where a GPU that has the rest has no room for it
    B: Tensor  # [N, d]
    factors: Directed
    rep: Tensor  # [N, d]: representations of length 100, what the effects are parts of

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N images, K neurons, J later heads, d values."""
        N, J, K = self.s.shape
        return N, K, J, self.B.shape[1]


def second_order_effects(
    clip: Clip,
    probe: Probe,
    layers: Iterable[int],
    batch_size: int = 32,
    progress: Progress | None = None,
    beside: Sequence[Job] = (),
) -> dict[int, Effects]:
    """Effects of every neuron of the given MLP layers (counted from 0) for every image: {layer: Effects}.

    What the cache lacks is computed in one pass over the images, all layers together, with what the jobs
    `beside` lack (activations of the same tower, embeddings); s stays in the cached file, but where a GPU has
    room for all layers'. Errors: ValueError for a clip without ViT, for layers outside the tower, the last.
    """
    tower = read_tower(clip)
    layers = checked_layers(tower, layers)
    factors = {layer: layer_factors(tower, layer) for layer in layers}
    widths = {"rep": tower.projection.shape[1]}
    for layer, f in factors.items():
        widths |= {f"s {layer}": len(f.heads) * f.write.shape[1], f"B {layer}": widths["rep"]}
    specs = {part: _spec(clip, probe, part) for part in widths}
    job = Job(
        "second_order",
        clip.name,
        clip.preprocess,
        clip.preprocess_spec,
        specs,
        widths,
        tower.module,
        lambda names, count: _taker(tower, names),
        {"clip": clip.name, "probe": probe.name},
        placed={"piece": VIT_PIECE},
    )
    compute(probe, [job, *beside], batch_size, None, progress, None)
    device, part = tower.projection.device, {name: job.result(name) for name in widths}
    large = where_it_fits([part[f"s {layer}"] for layer in factors], device)
    rep = part["rep"].to(device)
    return {
        layer: Effects(s.unflatten(1, (len(f.heads), -1)), part[f"B {layer}"].to(device), f, rep)
        for s, (layer, f) in zip(large, factors.items())
    }


def coefficients(
    tower: Tower, images: Tensor, factors: Iterable[Factors]
) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
    """One forward pass of images [b, 3, H, W] -> {layer: (s [b, J, K], B [b, d])}, representations [b, d]."""
    with _watched(tower, list(factors)) as made:
        tower.module(images)
        return made()


@contextmanager
def _watched(tower: Tower, factors: Sequence[Factors]) -> Iterator[Callable]:
    """Yield the function that gives the `coefficients` of the images that passed last."""
    first = min(f.layer for f in factors)
    names = [tower.blocks[f.layer].activation for f in factors] + [b.residual for b in tower.blocks[first:]]
    with record(tower.module, names, partial(tokens, tower)) as acts:

        def made() -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
            last = acts[tower.blocks[-1].residual][:, 0]
            post_mean, post_sd = statistics(last, tower.post.eps)
            rep = representation(tower, last)
            scale = SCALE / rep.norm(dim=1)  # C, [b]
            seen = {
                m: class_attention(tower.blocks[m], acts[tower.blocks[m - 1].residual])
                for m in range(first + 1, len(tower.blocks))
            }
            return {
                f.layer: _of_layer(f, acts[tower.blocks[f.layer].activation], seen, scale, post_mean, post_sd)
                for f in factors
            }, rep * scale[:, None]

        yield made


def layer_factors(tower: Tower, layer: int) -> Factors:
    """Factors of the neurons of MLP `layer`, in the dtype and on the device of the weights."""
    block, L = tower.blocks[layer], len(tower.blocks)
    K = block.write.shape[1]
    heads, read, carry, bias, mean, constant, post_shares = [], [], [], [], [], [], 0.0
    for m in range(layer + 1, L):
        later = tower.blocks[m]
        H, before = (
            later.heads,
            (1 + 2 * m) * K,
        )  # contributors to the residual stream before block m, by neurons
        shared_output = later.out_bias * tower.post.gamma @ tower.projection / (before * H)
        for h in range(H):
            rows = slice(h * len(later.v) // H, (h + 1) * len(later.v) // H)
            value, value_bias = later.v[rows], later.v_bias[rows]  # [D/H, D]
            out = (later.out[:, rows].T * tower.post.gamma) @ tower.projection  # [D/H, d]
            through = value * later.norm.gamma
            heads.append((m, h))
            read.append(through.T)
            carry.append(out)
            bias.append(through @ block.write_bias / K @ out)
            mean.append(-through.sum(1) / before @ out)
            constant.append((value @ later.norm.beta + value_bias) / before @ out + shared_output)
            post_shares += 1 / (before * (1 + 2 * L) * H)
    return Factors(
        layer,
        tuple(heads),
        block.write,
        torch.stack(read),
        torch.stack(carry),
        torch.stack(bias),
        torch.stack(mean),
        torch.stack(constant),
        -post_shares * (tower.post.gamma @ tower.projection),
        post_shares * (tower.post.beta @ tower.projection),
    )


def materialize(
    effects: Effects, images: slice | Sequence[int] = slice(None), units: slice | Sequence[int] = slice(None)
) -> Tensor:
    """The effects phi [n, k, d] themselves, of the images and units chosen; d values each, so choose."""
    s = effects.s[images][:, :, units].to(effects.B.device)
    return torch.einsum("njk,kjd->nkd", s, effects.factors.V(units)) + effects.B[images][:, None]


def carried(effects: Effects) -> Tensor:
    """Activation of every neuron as later heads carry it, summed over them, [N, K]: a sum over tokens with
    positive weights. A dead neuron's are 0, though its effects, which have a share of the biases, are not.
    """
    parts = slices(len(effects.s), MEMORY // (4 * effects.s[0].nbytes))
    return torch.cat([effects.s[part].sum(1) for part in parts]).to(effects.B.device)


def representations(
    clip: Clip, probe: Probe, batch_size: int = 64, progress: Progress | None = None
) -> Tensor:
    """Embeddings of length 100, [N, d], cached: what `SCALE` makes the effects add up to with all else."""
    return SCALE * image_embeddings(clip, probe, batch_size, progress=progress)


def compression(effects: Effects) -> float:
    """Bytes of s and B over those of phi [N, K, d]."""
    N, K, _, d = effects.shape
    return (effects.s.nbytes + effects.B.nbytes) / (N * K * d * effects.s.itemsize)


def _of_layer(
    f: Factors,
    p: Tensor,
    seen: dict[int, tuple[Tensor, Tensor, Tensor]],
    scale: Tensor,
    post_mean: Tensor,
    post_sd: Tensor,
) -> tuple[Tensor, Tensor]:
    """s [b, J, K] and B [b, d] of one layer; p [b, T, K] are its activations, `seen` the attention of later
    layers.
    """
    s, B = [], 0.0
    for m in sorted({m for m, _ in f.heads}):
        a, mean, sd = seen[m]
        here = slice(f.heads.index((m, 0)), f.heads.index((m, 0)) + a.shape[1])
        weight = a / sd[:, None] * (scale / post_sd)[:, None, None]  # [b, H, T]
        s.append(weight @ p)
        B = B + weight.sum(2) @ f.from_bias[here] + (weight * mean[:, None]).sum(2) @ f.from_mean[here]
    B = B + (scale / post_sd)[:, None] * f.constant.sum(0)
    B = B + (scale * post_mean / post_sd)[:, None] * f.from_post_mean + scale[:, None] * f.post_constant
    return torch.cat(s, dim=1), B


@contextmanager
def _taker(tower: Tower, names: Sequence[str]) -> Iterator:
    layers = sorted({int(name.split()[1]) for name in names if name != "rep"}) or [0]
    with _watched(tower, [layer_factors(tower, layer) for layer in layers]) as made:

        def take(_: object) -> dict[str, Tensor]:
            found, rep = made()
            parts = {
                f"{name} {layer}": x.flatten(1)
                for layer, both in found.items()
                for name, x in zip("sB", both)
            }
            return parts | {"rep": rep}

        yield take


def _spec(clip: Clip, probe: Probe, part: str) -> dict:
    return {
        "schema": SCHEMA,
        "weights": clip.weights_key,
        "part": part,
        "preprocess": clip.preprocess_spec,
        "probe": probe.fingerprint,
        "tf32": False,
    }


@dataclass(frozen=True)
class Mean:
    """Mean effect of every neuron over some images, in factors: s [J, K], B [d]."""

    s: Tensor
    B: Tensor


@dataclass(frozen=True)
class Directions:
    """Rank-1 view of every neuron: phi is about m + x r. `top` holds the images of largest deviation, largest
    first.
    """

    r: Tensor  # [K, d], unit rows
    explained_variance: Tensor  # [K], share of the top deviations' squared length that lies along r
    threshold: Tensor  # [K], the smallest length among the top images; beyond it a deviation is significant
    top: Tensor  # [top, K]


def mean(effects: Effects) -> Mean:
    """Mean over the images."""
    return Mean(effects.s.mean(0).to(effects.B.device), effects.B.mean(0))


def norms(effects: Effects, about: Mean, memory: int = MEMORY) -> Tensor:
    """||phi - m|| for every image and neuron, [N, K]; in float64 inside, as squares of differences would
    cancel.

    ||x V + b||^2 = x V V' x' + 2 x V b' + ||b||^2, where b lies in a space of few dimensions, the same for
    all neurons.
    """
    N, K, J, d = effects.shape
    b = (effects.B - about.B).double()
    axes, along = _axes(b)  # [C, d], [N, C]
    squares, C = b.pow(2).sum(1), len(axes)
    out = effects.B.new_empty(N, K)
    for units, x, V in _some(
        effects, about, memory, 8 * (4 * N * J + 2 * N * C + J * (4 * d + J + C)), torch.float64
    ):
        square = torch.einsum("knj,knj->kn", x @ (V @ V.transpose(1, 2)), x)
        square += 2 * torch.einsum("knc,nc->kn", x @ (V @ axes.T), along) + squares
        out[:, units] = square.clamp_min_(0).sqrt_().T.to(out.dtype)
    return out


def principal_directions(
    effects: Effects, about: Mean, lengths: Tensor, top: int = 100, memory: int = MEMORY
) -> Directions:
    """First right singular vector of each neuron's `top` largest deviations (section 4.2), not centred again.

    Its sign makes more than half of the projections positive; where exactly half are (the released rule then
    keeps whatever sign its SVD gave), it makes their sum positive. `lengths` [N, K] are the `norms`. Errors:
    ValueError for fewer images than `top`.
    """
    N, K, J, d = effects.shape
    check_images(N, top)
    best, b = lengths.topk(top, dim=0), effects.B - about.B
    r, explained = b.new_empty(K, d), b.new_empty(K)
    for units, x, V in _some(
        effects, about, memory, 8 * (3 * N * J + 5 * J * d + top * (4 * d + 4 * J) + 8 * top * top)
    ):
        rows = best.indices[:, units].T  # [k, top]
        x = x.gather(1, rows[:, :, None].expand(-1, -1, J)).double()
        deviations = x @ V.double() + b[rows].double()  # [k, top, d]
        values, vectors = torch.linalg.eigh(deviations @ deviations.transpose(1, 2))
        first = torch.einsum("kt,ktd->kd", vectors[:, :, -1], deviations)
        first = torch.nn.functional.normalize(first, dim=1)
        along = torch.einsum("ktd,kd->kt", deviations, first)
        votes = 2 * (along > 0).sum(1) - top
        r[units] = (first * torch.where(torch.where(votes == 0, along.sum(1), votes) > 0, 1, -1)[:, None]).to(
            r.dtype
        )
        explained[units] = (values[:, -1] / values.sum(1).clamp_min(1e-300)).to(r.dtype)
    return Directions(r, explained, best.values[-1].clone(), best.indices)


def check_images(N: int, top: int) -> None:
    """ValueError unless N images are as many as `top`."""
    if not 1 <= top <= N:
        raise ValueError(
            f"principal directions take the {top} images of largest effect, got {N} images; use more "
            "images or a smaller top"
        )


def significant(lengths: Tensor, threshold: Tensor) -> Tensor:
    """lengths [N, K] > threshold [K], bool: beyond rounding, as the image that gave the threshold is not
    above it.
    """
    return lengths > threshold * (1 + 1e-6)


def projections(effects: Effects, about: Mean, R: Tensor, memory: int = MEMORY) -> Tensor:
    """<phi - m, R_n> of every image and neuron, [N, K]; R [K, d] has a direction for each neuron."""
    N, K, J, d = effects.shape
    out = (effects.B - about.B) @ R.T
    for units, x, V in _some(effects, about, memory, 8 * (2 * N * J + 2 * J * d)):
        out[:, units] += torch.einsum("knj,kj->nk", x, torch.einsum("kjd,kd->kj", V, R[units]))
    return out


def total(effects: Effects, about: Mean, marked: Tensor | None = None, memory: int = MEMORY) -> Tensor:
    """Sum of phi - m over the neurons, [N, d]; with `marked` [N, K] (bool) over those marked for the
    image.
    """
    N, K, J, d = effects.shape
    b = effects.B - about.B
    out = b * (K if marked is None else marked.sum(1, keepdim=True))
    for units, x, V in _some(effects, about, memory, 8 * (3 * N * J + 2 * J * d)):
        if marked is not None:
            x = x * marked[:, units].T[:, :, None]
        out += torch.einsum("knj,kjd->nd", x, V)
    return out


def _some(
    effects: Effects, about: Mean, memory: int, size: int, dtype: torch.dtype | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some neurons at a time, `size` bytes each: (units, s - s_mean [k, N, J], V [k, J, d])."""
    K = effects.shape[1]
    (some,) = items_within(memory, (0, size, K))
    for units in slices(K, some):
        x = (effects.s[:, :, units].to(about.s.device) - about.s[:, units]).permute(2, 0, 1)
        yield (
            units,
            x.to(dtype or x.dtype, memory_format=torch.contiguous_format),
            effects.factors.V(units).to(dtype or x.dtype),
        )


def _axes(b: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows that span b [N, d], [C, d], and b in their terms, [N, C]."""
    values, vectors = torch.linalg.eigh(b.T @ b)
    kept = vectors[:, values > values[-1].clamp_min(1e-300) * len(values) * 1e-15]
    return kept.T, b @ kept
