"""Similarity functions that are products of columns: of activations, and of what each concept does over the
images.

cos_similarity        cosine of columns, not centred
cos_similarity_cubed  of columns centred and cubed
correlation           Pearson's, of columns
taken                 columns of the units to score
unit_columns, centred_columns, cubed_columns   columns normalised step by step
extremes, largest_of  least and largest values of columns

Columns are measured while they are centred and raised to powers, in compiled loops where there are any, and
it is the products [K, M] that are scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from neuronym.common.checks import check_number
from neuronym.common.memory import CACHED, items_within, MEMORY, nonzero, slices
from neuronym.similarity.matrix import block, check_finite, checked, compiled_loops, FactoredMatrix
from neuronym.similarity.pmi import WIDE

TILE_BYTES = 2**18  # bytes of a tile that passes of columns share


@torch.no_grad()
def cos_similarity(
    P: Tensor | FactoredMatrix, Q: Tensor, *, units: Sequence[int] | None = None, memory: int | None = None
) -> Tensor:
    """Cosine of columns, not centred; 0 for a column of zeros. P [N, M], Q [N, K] -> scores [K, M]

    S = (Q / |Q|)' (P / |P|), by columns.
    """
    return _column_products(P, Q, units, memory, 0, unit_columns)


@torch.no_grad()
def cos_similarity_cubed(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    *,
    eps: float = 1e-3,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor:
    """Cosine of columns centred and cubed; 0 for a constant column. P [N, M], Q [N, K] -> scores [K, M]

    S = c(Q)' c(P), c(x) = y / max(|y|, eps), y = (x - mean x)^3, by columns.
    """
    check_number("eps", eps, 0)
    return _column_products(P, Q, units, memory, 3, lambda X: cubed_columns(X, eps), eps)


@torch.no_grad()
def correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    *,
    slope: float = 0,
    offset: float = 0,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor:
    """Pearson correlation of columns; 0 for a constant column. P [N, M], Q [N, K] -> scores [K, M]

    Not in CLIP-Dissect: the first of the metrics that pass NeuronEval's sanity tests, used to find labels.
    With a slope, of sigmoid(slope P + offset), the probability that the concept is there
    (`presence.calibrated`), instead of P.
    """
    check_number("slope", slope)
    check_number("offset", offset)

    def seen(X: Tensor) -> Tensor:
        return X.mul_(slope).add_(offset).sigmoid_()

    return _column_products(P, Q, units, memory, 1, centred_columns, concept=seen if slope else None)


def _column_products(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    units: Sequence[int] | None,
    memory: int,
    power: int,
    normalise: Callable[[Tensor], Tensor],
    eps: float = 0,
    concept: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """Products of normalised columns, a block of units against a block of concepts at a time: `_measured`
    says how; `concept` changes the values of concepts before that, in place.
    """
    loops = compiled_loops(P.device, "column_loops") if isinstance(P, Tensor) and concept is None else None
    if loops and units is None and _plain(loops, P, Q, memory, power):
        return _one_block(loops, P.detach(), Q.detach(), power, normalise, eps)
    whole = units is None and isinstance(Q, Tensor)
    layers, units, dtype, d, memory = checked(P, Q, units, memory, finite=concept is not None)
    device = layers[0].device
    loops = compiled_loops(device, "column_loops")
    if not loops and not concept:
        check_finite(P, Q)
    (N, M), size, counts = P.shape, dtype.itemsize, [len(chosen) for chosen in units]
    [m] = items_within(memory, (0, (6 * N + 3 * d) * size, max(M, sum(counts))))
    as_given = isinstance(P, Tensor) and P.dtype == dtype and concept is None
    near = max(WIDE, (CACHED if power or not as_given else 8 * CACHED) // (N * size))
    near = min(m, near) if device.type == "cpu" else m
    scores = layers[0].new_empty(sum(counts), M, dtype=dtype)
    # blocks of concepts share their room: the system hands out new memory page by page
    room, made = (scores.new_empty(N * min(near, M) if held else 0) for held in (power, not as_given))

    def measured(X: Tensor, cols: slice, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if loops and loops.is_compiled(X):
            return _in_loops(loops, P, Q, X, cols, power, normalise, eps, room)
        return _measured(X[:, cols], power, normalise, eps)

    for part in slices(sum(counts), m):
        columns = layers[0] if whole else taken(layers, units, part)
        columns, some = columns.to(dtype), part if whole else slice(0, part.stop - part.start)
        columns, of_units = measured(columns, some)
        for cols in slices(M, near):
            if as_given:
                values, of_concepts = measured(P.detach(), cols, room)
            else:
                values = block(P, None, cols, _matrix(made, N, cols.stop - cols.start))
                values = values if concept is None else concept(values)
                values, of_concepts = measured(values, slice(0, values.shape[1]), room)
            found = torch.matmul(columns.T, values, out=scores[part, cols])
            if loops:
                loops.level_out(scores[part], cols, of_units, of_concepts)
                continue
            for rows in _tiles(found):
                found[rows].mul_(of_units[rows, None]).mul_(of_concepts)
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


def _plain(loops: ModuleType, P: Tensor, Q: Tensor, memory: int | None, power: int) -> bool:
    """Whether P and Q are whole matrices of one dtype that fit, with all that is made of them, into the
    budget and a processor's cache: what `checked` would say of others is not said here.
    """
    if not isinstance(Q, Tensor) or P.ndim != 2 or Q.ndim != 2 or type(memory) not in (int, type(None)):
        return False
    (N, M), (rows, K) = P.shape, Q.shape
    near = not power or N * max(M, K) * P.itemsize <= CACHED
    fits = (
        N == rows
        and 0 not in (N, M, K)
        and (6 * N + 1) * max(M, K) * P.itemsize <= (MEMORY if memory is None else memory)
    )
    return near and fits and P.device == Q.device and loops.is_compiled(P, Q)


def _one_block(
    loops: ModuleType, P: Tensor, Q: Tensor, power: int, normalise: Callable[[Tensor], Tensor], eps: float
) -> Tensor:
    A, of_units = _in_loops(loops, P, Q, Q, slice(0, Q.shape[1]), power, normalise, eps)
    B, of_concepts = _in_loops(loops, P, Q, P, slice(0, P.shape[1]), power, normalise, eps)
    scores = torch.mm(A.T, B)
    loops.level_out(scores, slice(0, P.shape[1]), of_units, of_concepts)
    return scores


def _in_loops(
    loops: ModuleType,
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    X: Tensor,
    cols: slice,
    power: int,
    normalise: Callable[[Tensor], Tensor],
    eps: float,
    room: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`_measured` of X[:, cols] in compiled loops, in `room` if it is given; ValueError where P or Q is not
    finite.
    """
    count = cols.stop - cols.start
    Y = X if count == X.shape[1] else X[:, cols]
    if power:
        Y = X.new_empty(len(X), count) if room is None else _matrix(room, len(X), count)
    scales, _, odd = loops.measure_columns(X, cols.start, count, power, eps, Y)
    if odd is not None:
        check_finite(P, Q)
        odd = torch.from_numpy(odd)
        Y = Y if power else Y.clone()
        Y[:, odd] = normalise(X[:, cols][:, odd])
    return Y, scales


def _matrix(room: Tensor, rows: int, columns: int) -> Tensor:
    """The first values of `room` as a matrix."""
    return room[: rows * columns].view(rows, columns)


def _measured(
    X: Tensor, power: int, normalise: Callable[[Tensor], Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """Columns to be multiplied, and 1 / max(norm, eps) of each: X [N, m], left as it is -> Y [N, m], [m].

    Y is X for power 0, else (X - mean)^power; scaling their products [K, M] costs less than scaling columns.
    Columns whose squares may overflow or vanish, or that may be constant but for rounding, are normalised
    step by step instead, by `normalise`, and their scale is 1.
    """
    N, m = X.shape
    mean = X.mean(0) if power else None
    Y = torch.empty_like(X, memory_format=torch.contiguous_format) if power else X
    squares, tiles = X.new_zeros(m), list(_tiles(X))
    scratch = X.new_empty(tiles[0].stop, m)
    for rows in tiles:  # the vectorised square and sum take a fifth of the time of `norm`
        y, work = Y[rows], scratch[: rows.stop - rows.start]
        if power:
            torch.sub(X[rows], mean, out=y)
        if power > 1:
            y.pow_(power)
        squares += torch.mul(y, y, out=work).sum(0)
    norms, limit = squares.sqrt_(), torch.finfo(X.dtype).max ** 0.25
    odd = (norms * limit < 1) | ~(norms < limit)
    if power:
        odd |= norms <= N**0.5 * (1e-4 * mean.abs()) ** power
    odd = odd.nonzero()[:, 0]
    scales = norms.clamp_(min=eps).reciprocal_()
    if len(odd):
        Y = Y if power else X.clone()
        Y[:, odd] = normalise(X[:, odd])
        scales[odd] = 1
    return Y, scales


def _tiles(X: Tensor) -> Iterator[slice]:
    """Ranges of rows that stay in a processor's nearest cache; all of them elsewhere."""
    return slices(len(X), TILE_BYTES // (X.shape[1] * X.itemsize) if X.device.type == "cpu" else len(X))


def taken(layers: list[Tensor], units: list[Tensor], part: slice) -> Tensor:
    """Columns of the units, numbered through all layers, as a new tensor: [N, k]."""
    found, start = [], 0
    for layer, chosen in zip(layers, units):
        some = chosen[max(part.start - start, 0) : max(part.stop - start, 0)]
        found += [layer[:, some]] if len(some) else []
        start += len(chosen)
    return torch.cat(found, 1) if len(found) > 1 else found[0]


def unit_columns(X: Tensor) -> Tensor:
    """Divide columns by their norms, in place: by their largest values first, since squares overflow and
    vanish.
    """
    X /= nonzero(largest_of(X))
    X /= nonzero(X.norm(dim=0))
    return X


def centred_columns(X: Tensor) -> Tensor:
    """Centre columns and divide them by their norms, in place; 0 for a constant one.

    `statistics.standard_columns` makes float64 copies; scoring stays in its dtype and its memory.
    """
    low, high = extremes(X)
    X /= nonzero(torch.maximum(high, -low))
    X -= X.mean(0)
    return unit_columns(X).masked_fill_(
        low == high, 0
    )  # the mean of equal values may differ from them by a rounding error


def cubed_columns(X: Tensor, eps: float) -> Tensor:
    """Centre, cube and divide by max(norm, eps), in place: scaled to 1 before each power, and eps alike."""
    low, high = extremes(X)
    first = nonzero(torch.maximum(high, -low))
    X /= first
    X -= X.mean(0)
    second = nonzero(largest_of(X))
    X /= second
    X.pow_(3)
    floor = eps / first / first / first / second / second / second
    X /= torch.maximum(nonzero(X.norm(dim=0)), floor)
    return X.masked_fill_(low == high, 0)  # the mean of equal values may differ from them by a rounding error


def largest_of(X: Tensor) -> Tensor:
    low, high = extremes(X)
    return torch.maximum(high, -low)


def extremes(X: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of columns; `aminmax` finds both at once, and takes ten times as long."""
    return X.amin(0), X.amax(0)
