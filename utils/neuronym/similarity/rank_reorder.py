"""rank_reorder, the similarity function that asks how well a concept orders a unit's top images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import (
    distinct_images,
    in_threads,
    items_within,
    nonzero,
    slices,
    SORTING_BYTES_PER_VALUE,
    stable_order,
    strongest_images,
    working_bytes,
)
from neuronym.similarity.matrix import block, checked, compiled_loops, FactoredMatrix


@torch.no_grad()
def rank_reorder(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    p: float = 3,
    top_fraction: float = 0.05,
    scale_p: float = 0.5,
    n_permutations: int | None = 5,
    eps: float = 1e-7,
    as_shipped: bool = False,
    generator: torch.Generator | None = None,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """How well a concept orders a unit's n = int(top_fraction N) top images. P [N, M], Q [N, K] -> scores [K,
    M]

    S = -e / (mean of P over the n images)^scale_p, e = mean_j |a_j - b_(r_j)|^p / B, with activations a, the
    same ascending b, and ranks r of P. B is the mean of |b_j - b_perm(j)|^p over n_permutations draws, unit
    after unit, of torch.randperm(n, generator=generator) (seed 0 without a generator); n_permutations=None:
    over all permutations. Images of equal P are ranked upwards from the most activated one: a constant
    concept gets no credit. A mean of P below eps counts as eps: its score is finite and bad. A unit of n
    equal activations has e = 1, that of chance. as_shipped: nan for such a unit and for a negative mean; and
    without a generator torch's global one draws.
    """
    check_number("p", p)
    check_number("scale_p", scale_p, 0)
    check_number("eps", eps)
    check_number("top_fraction", top_fraction, 0, 1)
    if p <= 0 or eps <= 0:
        raise ValueError(f"p and eps must be positive, got p {p} and eps {eps}")
    if n_permutations is not None:
        check_positive_int("n_permutations", n_permutations)
    layers, units, dtype, d, memory = checked(P, Q, units, memory)
    (N, M), size, counts = P.shape, dtype.itemsize, [len(chosen) for chosen in units]
    n, count = int(top_fraction * N), sum(counts)
    if n < 2:
        raise ValueError(
            f"top_fraction {top_fraction} of N {N} images is {n}, and an order needs 2; "
            f"pass at least {math.ceil(2000 / N) / 1000}"
        )
    U, draws, loops = min(N, n * count), n_permutations or 1, compiled_loops(layers[0].device)
    held = count * n * (24 + 4 * size) + 16 * N
    # bytes of a concept, and of a concept for a unit: compiled loops sort all images once, torch those of a
    # unit at a time
    column = (3 * U + 2 * d + 4 * count) * size + (SORTING_BYTES_PER_VALUE * U if loops else 0)
    pair = 0 if loops else n * (4 * size + 24)
    some, few, m = items_within(
        memory,
        (held, N * SORTING_BYTES_PER_VALUE, count),
        (held, n * draws * (24 + 3 * size), max(layer.shape[1] for layer in layers)),
        (held, column + pair, M),
    )
    work = working_bytes(memory, layers[0].device)
    m = min(m, max(64, work // (U * size if loops else pair)))
    k = count if loops else max(1, min((memory - held - m * column) // (m * pair), work // (m * pair)))

    top = [strongest_images(layer, chosen, n, dtype, some) for layer, chosen in zip(layers, units)]
    a = torch.cat(
        [layer[images, chosen[:, None]].to(dtype) for layer, images, chosen in zip(layers, top, units)]
    )  # [count, n]
    a = a / nonzero(a.abs().amax(1, keepdim=True))
    a = (a - a[:, -1:]) / nonzero(
        a[:, :1] - a[:, -1:]
    )  # to 0..1, which e does not see, and powers do not overflow
    b = a.flip(1)
    if n_permutations is None:
        B = _expected_power(b, p)
    else:
        B = torch.cat(
            [
                _drawn_power(part, p, draws, layer.shape[1], chosen, few, generator, as_shipped)
                for part, layer, chosen in zip(b.split(counts), layers, units)
            ]
        )
    if not as_shipped and bool((B == 0).any()):  # all draws were the identity, or the unit is constant
        B = torch.where(B == 0, _expected_power(b, p), B)
    top = torch.cat(top)
    rows, top = distinct_images(top, N)  # no other rows of P are needed
    reorder = loops.reorder_errors if loops else _reorder_errors
    scores, store = a.new_empty(count, M), a.new_empty(m, len(rows))
    for cols in slices(M, m):
        values = block(P, rows, cols, store[: cols.stop - cols.start].T).T  # [m, U]

        def score_some(part: slice) -> None:
            for some in slices(count, k):
                e, mean = reorder(values[part], top[some], a[some], p)  # [m, k]
                if as_shipped:
                    e = -(e / B[some]) / mean.pow(scale_p)
                else:
                    e = (
                        torch.where(B[some] > 0, e / nonzero(B[some]), 1)
                        .neg_()
                        .div_(mean.clamp_(min=eps).pow_(scale_p))
                    )
                scores[some, cols.start + part.start : cols.start + part.stop] = e.T

        in_threads(len(values), torch.get_num_threads() if loops else 1, score_some)
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


def _reorder_errors(values: Tensor, top: Tensor, a: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """As `kernels.reorder_errors`, by sorting: values [m, U], top and a [k, n] -> two [m, k]."""
    seen = values.index_select(1, top.flatten()).view(len(values), *top.shape)  # [m, k, n]
    # |a_j - b_(r_j)| over images j is |a_(order r) - b_r| over ranks r: one sort, and no ranks to invert
    found = a.expand_as(seen).gather(2, stable_order(seen))
    return found.sub_(a.flip(1)).abs_().pow_(p).mean(2), seen.mean(2)


def _drawn_power(
    b: Tensor,
    p: float,
    draws: int,
    K: int,
    units: Tensor,
    few: int,
    generator: torch.Generator | None,
    as_shipped: bool,
) -> Tensor:
    """Mean over draws and images of |b - permuted b|^p: b [count, n] -> [count]. All K units draw, scored or
    not.
    """
    if generator is None and not as_shipped:
        generator = torch.Generator().manual_seed(0)
    where = generator.device if generator is not None else "cpu"
    B = b.new_empty(len(b))
    for part in slices(K, few):
        drawn = torch.stack(
            [
                torch.randperm(b.shape[1], generator=generator, device=where)
                for _ in range(draws * (part.stop - part.start))
            ]
        )
        drawn = drawn.view(-1, draws, b.shape[1])  # [few, draws, n]
        rows = ((units >= part.start) & (units < part.stop)).nonzero().flatten()
        permuted = b[rows, None].expand(-1, draws, -1).gather(2, drawn.to(b.device)[units[rows] - part.start])
        B[rows] = permuted.sub_(b[rows, None]).abs_().pow_(p).mean((1, 2))
    return B


def _expected_power(b: Tensor, p: float) -> Tensor:
    """Mean of |b_i - b_j|^p over all pairs, which is that over all permutations: b [count, n] ascending ->
    [count].
    """
    total = b.new_zeros(len(b))
    for i in range(b.shape[1] - 1):
        total += (b[:, i + 1 :] - b[:, i : i + 1]).pow_(p).sum(1)
    return total * (2 / b.shape[1] ** 2)
