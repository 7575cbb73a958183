"""What is measured on second-order effects: deviations, norms, principal directions, projections, sums over neurons.

mean                  of the effects over images
norms                 length of every neuron's deviation for every image
principal_directions  the direction r along which a neuron's largest deviations lie, and how much of them lies along it
enough                whether there are as many images as that takes
significant           which deviations are longer than a threshold
projections           deviations along given directions
total                 deviations of all neurons, or of those marked, added up
Mean, Directions      what the first and the third give

Deviations d = phi - m (m the mean over images) are never formed for all images: with the factors of `neuronym.second_order.lens`,
d = (s - s_mean) V + (B - B_mean), so that lengths follow from the Gram matrix V V' of J x J values a neuron. Neurons
are taken a few at a time, as many as `memory` bytes hold.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.blocks import fit, MEMORY, slices
from neuronym.second_order.lens import Effects


@dataclass(frozen=True)
class Mean:
    """Mean effect of every neuron over some images, in factors: s [J, K], B [d]."""

    s: Tensor
    B: Tensor


@dataclass(frozen=True)
class Directions:
    """Rank-1 view of every neuron: phi is about m + x r. `top` holds the images of largest deviation, largest first."""

    r: Tensor          # [K, d], unit rows
    explained: Tensor  # [K], share of the top deviations' squared length that lies along r
    threshold: Tensor  # [K], the smallest length among the top images; beyond it a deviation is significant
    top: Tensor        # [top, K]


def mean(effects: Effects) -> Mean:
    """Mean over the images."""
    return Mean(effects.s.mean(0), effects.B.mean(0))


def norms(effects: Effects, about: Mean, memory: int = MEMORY) -> Tensor:
    """||phi - m|| for every image and neuron, [N, K]; in float64 inside, as squares of differences would cancel.

    ||x V + b||^2 = x V V' x' + 2 x V b' + ||b||^2, where b lies in a space of few dimensions, the same for all neurons.
    """
    N, K, J, d = effects.shape
    b = (effects.B - about.B).double()
    axes, along = _axes(b)                                                                     # [C, d], [N, C]
    squares, C = b.pow(2).sum(1), len(axes)
    out = effects.s.new_empty(N, K)
    for units, x, V in _some(effects, about, memory, 8 * (4 * N * J + 2 * N * C + J * (4 * d + J + C)), torch.float64):
        square = torch.einsum("knj,knj->kn", x @ (V @ V.transpose(1, 2)), x)
        square += 2 * torch.einsum("knc,nc->kn", x @ (V @ axes.T), along) + squares
        out[:, units] = square.clamp_min_(0).sqrt_().T.to(out.dtype)
    return out


def principal_directions(effects: Effects, about: Mean, lengths: Tensor, top: int = 100,
                         memory: int = MEMORY) -> Directions:
    """First right singular vector of each neuron's `top` largest deviations (section 4.2), not centred again.

    Its sign makes more than half of the projections positive; where exactly half are (the released rule then keeps
    whatever sign its SVD gave), it makes their sum positive. `lengths` [N, K] are the `norms`. Errors: ValueError for
    fewer images than `top`.
    """
    N, K, J, d = effects.shape
    enough(N, top)
    best, b = lengths.topk(top, dim=0), effects.B - about.B
    r, explained = effects.s.new_empty(K, d), effects.s.new_empty(K)
    for units, x, V in _some(effects, about, memory, 8 * (3 * N * J + 5 * J * d + top * (4 * d + 4 * J) + 8 * top * top)):
        rows = best.indices[:, units].T                                                        # [k, top]
        x = x.gather(1, rows[:, :, None].expand(-1, -1, J)).double()
        deviations = x @ V.double() + b[rows].double()                     # [k, top, d]
        values, vectors = torch.linalg.eigh(deviations @ deviations.transpose(1, 2))
        first = torch.einsum("kt,ktd->kd", vectors[:, :, -1], deviations)
        first = torch.nn.functional.normalize(first, dim=1)
        along = torch.einsum("ktd,kd->kt", deviations, first)
        votes = 2 * (along > 0).sum(1) - top
        r[units] = (first * torch.where(torch.where(votes == 0, along.sum(1), votes) > 0, 1, -1)[:, None]).to(r.dtype)
        explained[units] = (values[:, -1] / values.sum(1).clamp_min(1e-300)).to(r.dtype)
    return Directions(r, explained, best.values[-1].clone(), best.indices)


def enough(N: int, top: int) -> None:
    """ValueError unless N images are as many as `top`."""
    if not 1 <= top <= N:
        raise ValueError(f"principal directions take the {top} images of largest effect, got {N} images; use more "
                         "images or a smaller top")


def significant(lengths: Tensor, threshold: Tensor) -> Tensor:
    """lengths [N, K] > threshold [K], bool: beyond rounding, as the image that gave the threshold is not above it."""
    return lengths > threshold * (1 + 1e-6)


def projections(effects: Effects, about: Mean, R: Tensor, memory: int = MEMORY) -> Tensor:
    """<phi - m, R_n> of every image and neuron, [N, K]; R [K, d] has a direction for each neuron."""
    N, K, J, d = effects.shape
    out = (effects.B - about.B) @ R.T
    for units, x, V in _some(effects, about, memory, 8 * (2 * N * J + 2 * J * d)):
        out[:, units] += torch.einsum("knj,kj->nk", x, torch.einsum("kjd,kd->kj", V, R[units]))
    return out


def total(effects: Effects, about: Mean, marked: Tensor | None = None, memory: int = MEMORY) -> Tensor:
    """Sum of phi - m over the neurons, [N, d]; with `marked` [N, K] (bool) over those marked for the image."""
    N, K, J, d = effects.shape
    b = effects.B - about.B
    out = b * (K if marked is None else marked.sum(1, keepdim=True))
    for units, x, V in _some(effects, about, memory, 8 * (3 * N * J + 2 * J * d)):
        if marked is not None:
            x = x * marked[:, units].T[:, :, None]
        out += torch.einsum("knj,kjd->nd", x, V)
    return out


def _some(effects: Effects, about: Mean, memory: int, size: int,
          dtype: torch.dtype | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some neurons at a time, `size` bytes each: (units, s - s_mean [k, N, J], V [k, J, d])."""
    K = effects.shape[1]
    (some,) = fit(memory, (0, size, K))
    for units in slices(K, some):
        x = (effects.s[:, :, units] - about.s[:, units]).permute(2, 0, 1)
        yield units, x.to(dtype or x.dtype, memory_format=torch.contiguous_format), \
            effects.factors.V(units).to(dtype or x.dtype)


def _axes(b: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows that span b [N, d], [C, d], and b in their terms, [N, C]."""
    values, vectors = torch.linalg.eigh(b.T @ b)
    kept = vectors[:, values > values[-1].clamp_min(1e-300) * len(values) * 1e-15]
    return kept.T, b @ kept
