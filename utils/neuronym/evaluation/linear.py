"""A neuron as a sum of a few concepts, each with a positive weight: Q ~ bias + present w, w >= 0 and sparse.

Linear          concepts, weights and bias of units
explain         find them: forward selection, as many terms as cross-validation pays for
predict         what such sums say the units do on images
sum_text        "2.10 red + .80 circle"
nnls            non-negative least squares, many small problems at once
check_presence  ValueError for inputs that cannot be
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import items_within, MEMORY, nonzero, slices, working_bytes

# spread below which values are constant but for rounding; presence and scaled activations are about 1
CONSTANT = 1e-9
LOST = 1e-13  # of a sum of squares, less that of the mean


@dataclass(frozen=True)
class Linear:
    """Units as sums: chosen [K, m] (int64, as found, then -1), weights [K, m] (0 beyond the terms), bias
    [K].
    """

    chosen: Tensor
    weights: Tensor
    bias: Tensor

    @property
    def terms(self) -> Tensor:
        """How many concepts each unit's sum has: [K]."""
        return (self.chosen >= 0).sum(1)


@torch.no_grad()
def explain(
    present: Tensor,
    Q: Tensor,
    most: int = 10,
    tolerance: float = 0.02,
    folds: int = 5,
    *,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Linear:
    """Sparse non-negative sums by forward selection: present [N, M] (bool or 0..1), Q [N, K] -> Linear of K
    units.

    Each step adds the concept of largest positive correlation with the residual, ties by lower index, then
    refits all weights >= 0 and a free bias by least squares. Selection and fit are repeated without each of
    the folds (dealt by `generator`, else image i to fold i mod folds); a unit ends before the first term that
    raises its cross-validated correlation (Pearson r on the fold left out, 0 where one side is constant, mean
    over folds) by less than `tolerance`, or after `most`. The first needs only a positive correlation; dead
    units have none, and their value as bias. What a later term has pushed to weight 0 is left out. All M
    concepts are candidates at every step. `memory` bytes beside inputs and result change only the time.
    ValueError for unequal N, values not finite, presence outside 0..1.
    """
    check_presence(present, Q)
    check_number("tolerance", tolerance, 0, 1)
    for name, value in (("most", most), ("folds", folds), ("memory", memory)):
        check_positive_int(name, value)
    (N, M), K, m = present.shape, Q.shape[1], min(most, present.shape[1])
    if folds < 2 or N < 2 * folds:
        raise ValueError(
            f"expected 2 folds or more, of 2 images or more each, got {folds} folds of {N} images"
        )
    deal = (
        torch.arange(N)
        if generator is None
        else torch.randperm(N, generator=generator, device=generator.device)
    )
    fold = (deal % folds).to(Q.device)
    keep = fold != torch.arange(folds + 1, device=Q.device)[:, None]  # the last row: all images
    away = [(~some).nonzero()[:, 0] for some in keep]
    dtype = torch.float64 if torch.float64 in (present.dtype, Q.dtype) else torch.float32
    size, step = dtype.itemsize, min(M, max(1, memory // (32 * N)))
    beside = 2 * N * step * size + max(memory // 4, _refit_bytes(N, m)) + 32 * M * (folds + 2)
    one = 40 * N + (folds + 1) * (2 * N + 4 * step) * size
    [units] = items_within(memory, (beside, one, K))
    centre, spread = _moments(present, keep, step)
    chosen, weights = Q.new_full((K, m), -1, dtype=torch.int64), Q.new_zeros(K, m, dtype=torch.float64)
    bias = torch.empty_like(weights[:, 0])
    for part in slices(K, units):
        q, mean, scale = _standard(Q[:, part])
        given = away, centre, spread
        chosen[part], found = _pursue(present, q, *given, m, tolerance, dtype, step, memory)
        weights[part] = found * scale[:, None]
        bias[part] = mean - (weights[part] * centre[chosen[part].clamp(min=0)]).sum(1)
    real = Q.dtype if Q.dtype in (torch.float32, torch.float64) else torch.float32
    return Linear(chosen, weights.to(real), bias.to(real))


@torch.no_grad()
def predict(linear: Linear, present: Tensor) -> Tensor:
    """Bias and weights times presence: present [N, M], of the concepts in the order explained with -> [N,
    K].
    """
    if present.ndim != 2 or present.is_complex() or present.shape[1] <= int(linear.chosen.max()):
        raise ValueError(
            f"expected present [N, M] with M > {int(linear.chosen.max())}, the last concept chosen, "
            f"got {list(present.shape)}; pass all concepts in the order explained with"
        )
    said = linear.bias.repeat(len(present), 1)
    for concept, weight in zip(linear.chosen.clamp(min=0).T, linear.weights.T):
        said += present[:, concept] * weight
    return said


def sum_text(linear: Linear, concepts: Sequence[str], unit: int) -> str:
    """A unit's sum in words, largest weight first, like "2.10 red + .80 circle"; "nothing" where it has no
    terms.
    """
    if not isinstance(unit, Integral) or not 0 <= unit < len(linear.chosen):
        raise ValueError(f"unit must be from 0 to {len(linear.chosen) - 1}, got {unit!r}")
    if len(concepts) <= int(linear.chosen.max()):
        raise ValueError(
            f"expected more than {int(linear.chosen.max())} concepts, those explained with, "
            f"got {len(concepts)}"
        )
    terms = [
        (w, concepts[c])
        for c, w in zip(linear.chosen[unit].tolist(), linear.weights[unit].tolist())
        if c >= 0
    ]
    if not terms:
        return "nothing"
    terms.sort(key=lambda term: -term[0])
    top = math.floor(math.log10(terms[0][0]))
    form = f".{max(0, 2 - top)}f" if -5 < top < 7 else ".2e"
    return " + ".join(f"{w:{form}}".removeprefix("0" if w < 1 else "") + f" {name}" for w, name in terms)


def nnls(H: Tensor, A: Tensor) -> Tensor:
    """argmin |X w - y|^2 over w >= 0 from H = X'X [p, t, t] and A = X'y [p, t] -> w [p, t].

    Active sets (Lawson and Hanson 1974, ch. 23), all problems in step. A column of zeros, or one that depends
    on others in use, has weight 0.
    """
    if A.shape[1] == 1:
        return (A / nonzero(H[..., 0])).clamp(min=0)
    d, noise = nonzero(H.diagonal(dim1=1, dim2=2).sqrt()), 1e3 * torch.finfo(H.dtype).eps
    H, top = H / d[:, :, None] / d[:, None], nonzero((A / d).abs().amax(1, keepdim=True))
    A, eye = A / d / top, torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    w, used = torch.zeros_like(A), torch.zeros_like(A, dtype=torch.bool)
    for _ in range(3 * A.shape[1]):  # each concept enters about once, as a rule
        slope = (A - (H @ w[..., None])[..., 0]).masked_fill(used, -1)
        best, enters = slope.max(1)
        if not bool((best > noise).any()):
            break
        used[best > noise, enters[best > noise]] = True
        for _ in range(A.shape[1]):  # at least one concept leaves a set at a time
            both = used[:, :, None] & used[:, None]
            s = torch.linalg.solve_ex(torch.where(both, H, eye), A.where(used, 0))[0].nan_to_num(0, 0, 0)
            falls = used & (s <= 0)
            share = (w / nonzero(w - s)).where(falls, 1).amin(1, keepdim=True).clamp(0, 1)
            w = (w + share * (s - w)).masked_fill(falls & (w <= share * (w - s) + noise), 0)
            used &= ~(falls & (w == 0))
            if not bool(falls.any()):
                break
    return w.clamp(min=0) * top / d


def check_presence(present: Tensor, Q: Tensor) -> None:
    """ValueError unless present [N, M] (bool or 0..1) and Q [N, K] are finite, none empty, equal N, one
    device.
    """
    for name, X in (("present", present), ("Q", Q)):
        if not isinstance(X, Tensor) or X.ndim != 2 or 0 in X.shape or X.is_complex():
            got = f"{X.dtype} {list(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(f"expected {name} as a real torch tensor of two axes, none empty, got {got}")
        if X.is_floating_point() and not bool(X.isfinite().all()):
            i, j = (~X.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{name} must be finite, got {X[i, j].item()} at image {i}, column {j}; leave one out"
            )
    if len(present) != len(Q):
        raise ValueError(
            f"expected present [N, M] and Q [N, K] with equal N, got {len(present)} and {len(Q)}"
        )
    if present.device != Q.device:
        raise ValueError(
            f"expected all tensors on one device, got present on {present.device} and Q on {Q.device}"
        )
    low, high = (0, 1) if present.dtype == torch.bool else (x.item() for x in present.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"present must be bool or from 0 to 1, got {low:g} to {high:g}; pass probabilities")


def _pursue(
    present: Tensor,
    q: Tensor,
    away: list[Tensor],
    centre: Tensor,
    spread: Tensor,
    m: int,
    tolerance: float,
    dtype: torch.dtype,
    step: int,
    memory: int,
) -> tuple[Tensor, Tensor]:
    """Selection for the units q [U, N], without the images of each fold `away`, the last being empty ->
    chosen, weights [U, m].
    """
    chosen, weights = q.new_full((len(q), m), -1, dtype=torch.int64), q.new_zeros(len(q), m)
    alive, best = torch.arange(len(q), device=q.device), q.new_zeros(len(q))
    path = q.new_full((len(away), len(q), m), -1, dtype=torch.int64)
    left = q.new_empty(len(away), *q.shape, dtype=dtype)
    _refit(present, q, away, centre, path[..., :0], left, memory)
    for t in range(m):
        path[..., t] = _strongest(present, centre, spread, left, path[..., :t], step)
        found, r = _refit(present, q, away, centre, path[..., : t + 1], left, memory)
        r = r[:-1].mean(0)
        goes_on = (path[-1, :, t] >= 0) & ((r - best >= tolerance) | (t == 0))
        if not bool(goes_on.any()):
            break
        alive, q, best = alive[goes_on], q[goes_on], r[goes_on]
        path, left = path[:, goes_on], left[:, goes_on]
        chosen[alive, : t + 1], weights[alive, : t + 1] = path[-1, :, : t + 1], found[-1, goes_on]
    last = (weights <= 0).long().argsort(dim=1, stable=True)  # terms without weight go to the end, and out
    weights = weights.gather(1, last)
    return chosen.gather(1, last).masked_fill(weights <= 0, -1), weights


def _strongest(
    present: Tensor, centre: Tensor, spread: Tensor, left: Tensor, path: Tensor, step: int
) -> Tensor:
    """The concept, not in path [f, U, t], that correlates most with residuals left [f, U, N], or -1: [f,
    U].
    """
    single = left.dtype == torch.float32
    tie, floor = (1e-5, 1e-5) if single else (1e-12, CONSTANT)  # equal but for rounding; nothing but rounding
    best = left.new_full(left.shape[:2], floor)
    found = torch.full_like(best, -1, dtype=torch.int64)
    for cols in slices(present.shape[1], step):
        x = present[:, cols].to(left.dtype) - centre[cols].to(left.dtype)  # [N, c]
        score = (left @ x).div_(spread[:, None, cols])  # [f, U, c]
        taken = (path >= cols.start) & (path < cols.start + x.shape[1])
        fold, unit, _ = taken.nonzero(as_tuple=True)
        score[fold, unit, path[taken] - cols.start] = -1
        top = score.amax(-1)
        first = (score >= (top * (1 - tie))[..., None]).byte().argmax(-1)
        better = top > best * (1 + tie)
        best, found = top.where(better, best), (first + cols.start).where(better, found)
    return found


def _refit(
    present: Tensor, q: Tensor, away: list[Tensor], centre: Tensor, path: Tensor, left: Tensor, memory: int
) -> tuple[Tensor, Tensor]:
    """Weights [f, U, t] of the concepts path [f, U, t] fitted to q [U, N] without the images of each fold
    `away`, and r [f, U] on these.

    Writes to left [f, U, N] what remains on the images kept, 0 on the others, in parts of the norm of the
    activation there. All sums of a fit come from two products, of all images and of those of the fold;
    concepts are less their mean `centre`, so that differences of sums lose no digits.
    """
    (f, U, t), N = path.shape, q.shape[1]
    weights, r = q.new_zeros(f, U, t), q.new_zeros(f, U)
    least = N * CONSTANT**2
    for fold, out in enumerate(away):
        kept = N - len(out)
        for part in slices(U, working_bytes(memory // 4, q.device) // _refit_bytes(N, t)):
            chosen = path[fold, part]
            concepts = chosen.clamp(min=0)
            z = q.new_empty(len(chosen), t + 1, N)  # concepts, and the unit after them
            z[:, :t] = present.T.index_select(0, concepts.flatten()).view(len(chosen), t, N)
            z[:, :t] -= centre[concepts][..., None]
            z[:, :t] *= (chosen >= 0)[..., None]
            z[:, t] = q[part]
            off = z.index_select(2, out)
            products, off_products = z @ z.mT, off @ off.mT  # [p, t + 1, t + 1]
            off_sums = off.sum(2)
            mean = (z.sum(2) - off_sums) / kept
            squares = products - off_products - kept * mean[:, :, None] * mean[:, None]
            w = nnls(squares[:, :t, :t], squares[:, :t, t]) if t else weights[fold, part]
            weights[fold, part] = w
            both = torch.cat([-w, w.new_ones(len(w), 1)], 1)  # what remains is their sum with z
            remains = (both[:, None] @ z)[:, 0] - (both * mean).sum(1, keepdim=True)
            norm = squares[:, t, t].where(squares[:, t, t] > least, torch.inf).sqrt()
            left[fold, part] = (remains / norm[:, None]).index_fill_(1, out, 0)
            if len(out):
                apart = off_products - off_sums[:, :, None] * off_sums[:, None] / len(out)
                r[fold, part] = _correlation(apart, off_products, w, least)
    return weights, r


def _correlation(apart: Tensor, raw: Tensor, w: Tensor, least: float) -> Tensor:
    """r [p] of sums with weights w [p, t] and the unit, from products [p, t + 1, t + 1] of what is less its
    mean and of what is not; 0 where one of them is constant but for rounding.
    """
    t = w.shape[1]
    both = (w * apart[:, :t, t]).sum(1)
    said = (w[:, None] @ apart[:, :t, :t] @ w[..., None])[:, 0, 0]
    raw_said = (w[:, None] @ raw[:, :t, :t] @ w[..., None])[:, 0, 0]
    constant = (said <= least + LOST * raw_said) | (apart[:, t, t] <= least + LOST * raw[:, t, t])
    return (both / nonzero((said * apart[:, t, t]).clamp(min=0).sqrt())).masked_fill(constant, 0)


def _refit_bytes(N: int, t: int) -> int:
    return 8 * N * (2 * t + 6)


def _standard(Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations [U, N] with mean 0 and deviation 1 (0 for dead units), in float64, their means and their
    scales: what `statistics.standard_columns` leaves out, and a bias needs.
    """
    q = Q.T.double()
    peak = nonzero(q.abs().amax(1))
    q = q / peak[:, None]
    mean, dead = q.mean(1), Q.amax(0) == Q.amin(0)
    q = (q - mean[:, None]).masked_fill(dead[:, None], 0)
    sd = q.pow(2).mean(1).sqrt()
    return q / nonzero(sd)[:, None], (mean * peak).where(~dead, Q[0].double()), peak * sd


def _moments(present: Tensor, keep: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Mean [M] over all images, and sqrt(sum of squared deviations) [f, M] over those kept; infinite where
    constant.
    """
    on, parts = keep.double(), []
    for cols in slices(present.shape[1], max(1, step // 4)):
        x = present[:, cols].double()
        mean = x.mean(0)
        x = x - mean  # not in place: x may be the input
        squares = on @ x.square() - (on @ x).square() / on.sum(1, keepdim=True)
        spread = squares.clamp(min=0).sqrt()
        parts.append((mean, spread.where(spread > CONSTANT * math.sqrt(len(x)), torch.inf)))
    mean, spread = (torch.cat(x, -1) for x in zip(*parts))
    return mean, spread
