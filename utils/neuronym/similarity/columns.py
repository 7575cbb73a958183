"""Similarity functions that are products of columns: of activations, and of what each concept does over the
images.

cos_similarity        cosine of columns, not centred
cos_similarity_cubed  of columns centred and cubed
correlation           Pearson's, of columns
soft_correlation      Pearson's, of activations and the softmax over concepts
combined_correlation  the sum of the last three
dealt_best            best scores of units whose images are dealt anew, many times
mean_spread           how far apart an image's cosines are: what finds the softmax's slope
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from neuronym.common.checks import check_number
from neuronym.common.memory import items_within, MEMORY, nonzero, slices, working_bytes
from neuronym.similarity.matrix import block, checked, FactoredMatrix, largest
from neuronym.similarity.pmi import softmax_tiles, TILES, WIDE

TILE_BYTES = 2**18  # bytes of a tile that passes of columns share
SHARPNESS = 2  # standard deviations, in nats, of an image's logits


@torch.no_grad()
def cos_similarity(
    P: Tensor | FactoredMatrix, Q: Tensor, *, units: Sequence[int] | None = None, memory: int = MEMORY
) -> Tensor:
    """Cosine of columns, not centred; 0 for a column of zeros. P [N, M], Q [N, K] -> scores [K, M]

    S = (Q / |Q|)' (P / |P|), by columns.
    """
    return _column_products(P, Q, units, memory, 0, _unit_columns)


@torch.no_grad()
def cos_similarity_cubed(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    *,
    eps: float = 1e-3,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
) -> Tensor:
    """Cosine of columns centred and cubed; 0 for a constant column. P [N, M], Q [N, K] -> scores [K, M]

    S = c(Q)' c(P), c(x) = y / max(|y|, eps), y = (x - mean x)^3, by columns.
    """
    check_number("eps", eps, 0)
    return _column_products(P, Q, units, memory, 3, lambda X: _cubed_columns(X, eps), eps)


@torch.no_grad()
def correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor,
    *,
    slope: float = 0,
    offset: float = 0,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
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

    return _column_products(P, Q, units, memory, 1, _centred_columns, concept=seen if slope else None)


@torch.no_grad()
def soft_correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    sharpness: float = SHARPNESS,
    slope: float | None = None,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
) -> Tensor | list[Tensor]:
    """Pearson correlation of activations with the softmax over concepts of a P. P [N, M], Q [N, K] -> scores
    [K, M]

    S_kc = r(Q_k, X_c) over images, X_n = softmax over concepts of a P_n, a = sharpness / (mean over images n
    of the standard deviation over concepts of P_n), or the slope given.

    Not in CLIP-Dissect, but of its parts: the softmax of (soft-)WPMI, and correlation over all images in
    place of sums over the top ones. A cosine says little alone: all concepts rise in a picture that the CLIP
    finds easy. The softmax compares the concepts of one image, and leaves what stands out. A CLIP learns
    logits, a P + b with an a of its own that P lacks; how steep the softmax must be follows from how far
    apart its cosines are. With this a an image's logits have a standard deviation of `sharpness` nats on
    average, whatever the CLIP and however narrow its cone: at 2, a concept two standard deviations above an
    image's mean has e^4, 55 times, the share of an average one. Adding a constant to all cosines of an image,
    or scaling all of P, changes nothing.

    Columns that are constant but for rounding score 0: all of them where there is one concept only, or all
    cosines of every image are equal.
    """
    check_number("sharpness", sharpness)
    if slope is not None:
        check_number("slope", slope)
    layers, units, dtype, d = checked(P, Q, units, memory)
    (N, M), size, count = P.shape, dtype.itemsize, sum(len(chosen) for chosen in units)
    work = working_bytes(memory, layers[0].device, TILES)
    held, column = (24 + 8 * size) * N + 16 * d * d, (3 * N + 2 * d) * size
    apart = (held, 24 * (d or M), N) if slope is None else (0, 1, 1)
    some, m, k = items_within(
        memory,
        apart,
        (held + 3 * N * size, column, min(M, max(WIDE, work // (N * size)))),
        (held + column, 3 * N * size, count),
    )
    free = memory - held - m * column
    k = max(1, min(k, free // (3 * N * size)))
    keep = (free - 3 * N * size * k) // (N * m * size)
    if slope is None:
        apart = mean_spread(P, some)
        slope = sharpness / apart if apart else 0
    noise = 4 * torch.finfo(dtype).eps * (abs(slope) * largest(P) + 8)  # of the softmax, in parts of it
    rows = torch.arange(N, device=layers[0].device)
    width = min(m, max(64, work // (N * size)))
    _, blocks = softmax_tiles(P, rows, slope, dtype, m, max(0, keep), width, work)
    scores, q = layers[0].new_empty(count, M, dtype=dtype), None
    for tiles in blocks:
        for cols, x in tiles:
            low, high = _extremes(x)
            x = _centred_columns(x).masked_fill_(high - low <= noise * high, 0)
            for part in slices(count, k):
                if q is None or k < count:
                    q = _centred_columns(_take(layers, units, part).to(dtype))
                torch.matmul(q.T, x, out=scores[part, cols])
    return scores if isinstance(Q, Tensor) else list(scores.split([len(chosen) for chosen in units]))


def combined_correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    sharpness: float = SHARPNESS,
    units: Sequence[int] | None = None,
    memory: int = MEMORY,
) -> Tensor | list[Tensor]:
    """Sum of correlation, cubed cosine and soft correlation, without weights. P [N, M], Q [N, K] -> scores
    [K, M]

    S = r(Q, P) + c(Q)' c(P) + r(Q, X): `correlation`, `cos_similarity_cubed` with eps 0 (so that the scale of
    a unit changes nothing) and `soft_correlation`, each from -1 to 1 and added as they are.

    The three see other things: all images alike, the strongest ones, and what stands out in each image. Each
    is best somewhere and far behind elsewhere; docs/results/default_name.md has the comparison.
    """
    given = {"units": units, "memory": memory}
    total = soft_correlation(P, Q, sharpness=sharpness, **given)  # first, as it needs most memory
    for function, options in ((correlation, {}), (cos_similarity_cubed, {"eps": 0})):
        part = function(P, Q, **options, **given)
        for mine, its in [(total, part)] if isinstance(total, Tensor) else zip(total, part):
            mine += its
        del part
    return total


@torch.no_grad()
def dealt_best(
    P: Tensor | FactoredMatrix, Q: Tensor, method: str, deals: Tensor, *, memory: int = MEMORY, **options
) -> Tensor:
    """Best score over concepts of Q[deal] for each of the deals [draws, N]: P [N, M], Q [N, K] -> [draws, K]

    Every function of this file is a sum of products A' B of columns A of Q and B of P, made column by column,
    so that dealing the images of Q deals the rows of A: columns are made once for all draws, and the two
    correlations of `combined_correlation` share one product. A block of concepts after the other meets all
    draws.
    """
    [q], _, dtype, d = checked(P, Q, None, memory)
    (N, M), (draws, K) = P.shape, (len(deals), Q.shape[1])
    given = {"sharpness": SHARPNESS, "eps": 0 if method == "combined_correlation" else 1e-3} | options
    soft, slope = method in ("soft_correlation", "combined_correlation"), given.get("slope")
    of_units = {
        "cos_similarity": [_unit_columns],
        "cos_similarity_cubed": [lambda X: _cubed_columns(X, given["eps"])],
        "combined_correlation": [_centred_columns, lambda X: _cubed_columns(X, 0)],
    }.get(method, [_centred_columns])
    size, parts = dtype.itemsize, len(of_units)
    if soft and slope is None:
        apart = mean_spread(P)
        slope = given["sharpness"] / apart if apart else 0
    [m] = items_within(memory, (0, 2 * (6 * N + 2 * d) * size, M))
    [k] = items_within(memory, (0, 2 * (3 * parts * N + 2 * m) * size, K))
    shares = _log_total(P, slope, dtype, m) if soft else None
    best = q.new_full((draws, K), -torch.inf, dtype=dtype)
    for cols in slices(M, m):
        concepts = _concept_columns(P, method, cols, slope, shares, given, dtype)
        for units in slices(K, k):
            columns = [normalise(q[:, units].to(dtype, copy=True)) for normalise in of_units]
            for draw, deal in enumerate(deals):
                found = columns[0][deal].T @ concepts[0]
                for A, B in zip(columns[1:], concepts[1:]):
                    found.addmm_(A[deal].T, B)
                torch.maximum(best[draw, units], found.amax(1), out=best[draw, units])
    return best


def _log_total(P: Tensor | FactoredMatrix, slope: float, dtype: torch.dtype, m: int) -> Tensor:
    """log of the sum over concepts of exp(slope P), of every image: [N]."""
    N, M = P.shape
    total = None
    for cols in slices(M, m):
        part = block(P, None, cols, _empty(P, N, cols, dtype)).mul_(slope).logsumexp(1)
        total = part if total is None else torch.logaddexp(total, part)
    return total


def _concept_columns(
    P: Tensor | FactoredMatrix,
    method: str,
    cols: slice,
    slope: float | None,
    total: Tensor | None,
    given: dict,
    dtype: torch.dtype,
) -> list[Tensor]:
    """What `dealt_best` multiplies the columns of units with, of some concepts: [N, m] each."""
    N = P.shape[0]
    values = block(P, None, cols, _empty(P, N, cols, dtype))
    if method == "cos_similarity":
        return [_unit_columns(values)]
    if method == "cos_similarity_cubed":
        return [_cubed_columns(values, given["eps"])]
    if method == "correlation":
        seen = values.mul_(slope).add_(given.get("offset", 0)).sigmoid_() if slope else values
        return [_centred_columns(seen)]
    x = (values * slope - total[:, None]).exp_()
    low, high = _extremes(x)
    noise = 4 * torch.finfo(dtype).eps * (abs(slope) * largest(P) + 8)
    x = _centred_columns(x).masked_fill_(high - low <= noise * high, 0)
    if method == "soft_correlation":
        return [x]
    return [x.add_(_centred_columns(values.clone())), _cubed_columns(values, 0)]


def _empty(P: Tensor | FactoredMatrix, N: int, cols: slice, dtype: torch.dtype) -> Tensor:
    like = P if isinstance(P, Tensor) else P.I
    return like.new_empty(N, cols.stop - cols.start, dtype=dtype)


@torch.no_grad()
def mean_spread(P: Tensor | FactoredMatrix, some: int = 1024) -> float:
    """Mean over images of the standard deviation over concepts (divided by M) of their cosines, `some` images
    at once.

    From embeddings without P: the variance of image n is i_n' C i_n, C the covariance of the texts.
    """
    if isinstance(P, Tensor):
        spreads = [P[rows].double().std(1, correction=0) for rows in slices(len(P), some)]
        return float(torch.cat(spreads).mean())
    middle = P.T.mean(0, dtype=torch.float64)
    C = torch.zeros(len(middle), len(middle), dtype=torch.float64, device=middle.device)
    for rows in slices(len(P.T), some):
        T = P.T[rows].double() - middle
        C.addmm_(T.T, T)
    C /= len(P.T)
    spreads = []
    for rows in slices(len(P.I), some):
        I = P.I[rows].double()
        spreads.append(((I @ C) * I).sum(1).clamp(min=0).sqrt())
    return float(torch.cat(spreads).mean())


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
    whole = units is None and isinstance(Q, Tensor)
    layers, units, dtype, d = checked(P, Q, units, memory)
    (N, M), size, counts = P.shape, dtype.itemsize, [len(chosen) for chosen in units]
    [m] = items_within(memory, (0, (6 * N + 3 * d) * size, max(M, sum(counts))))
    scores = layers[0].new_empty(sum(counts), M, dtype=dtype)
    as_given = isinstance(P, Tensor) and P.dtype == dtype and concept is None
    for part in slices(sum(counts), m):
        columns = layers[0][:, part] if whole else _take(layers, units, part)
        columns, of_units = _measured(columns.to(dtype), power, normalise, eps)
        for cols in slices(M, m):
            if as_given:
                values = P[:, cols]
            else:
                values = block(P, None, cols, columns.new_empty(N, cols.stop - cols.start))
                values = values if concept is None else concept(values)
            values, of_concepts = _measured(values, power, normalise, eps)
            found = torch.matmul(columns.T, values, out=scores[part, cols])
            for rows in _tiles(found):
                found[rows].mul_(of_units[rows, None]).mul_(of_concepts)
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


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


def _take(layers: list[Tensor], units: list[Tensor], part: slice) -> Tensor:
    """Columns of the units, numbered through all layers, as a new tensor: [N, k]."""
    found, start = [], 0
    for layer, chosen in zip(layers, units):
        some = chosen[max(part.start - start, 0) : max(part.stop - start, 0)]
        found += [layer[:, some]] if len(some) else []
        start += len(chosen)
    return torch.cat(found, 1) if len(found) > 1 else found[0]


def _unit_columns(X: Tensor) -> Tensor:
    """Divide columns by their norms, in place: by their largest values first, since squares overflow and
    vanish.
    """
    X /= nonzero(_largest(X))
    X /= nonzero(X.norm(dim=0))
    return X


def _centred_columns(X: Tensor) -> Tensor:
    """Centre columns and divide them by their norms, in place; 0 for a constant one.

    `statistics.standard_columns` makes float64 copies; scoring stays in its dtype and its memory.
    """
    low, high = _extremes(X)
    X /= nonzero(torch.maximum(high, -low))
    X -= X.mean(0)
    return _unit_columns(X).masked_fill_(
        low == high, 0
    )  # the mean of equal values may differ from them by a rounding error


def _cubed_columns(X: Tensor, eps: float) -> Tensor:
    """Centre, cube and divide by max(norm, eps), in place: scaled to 1 before each power, and eps alike."""
    low, high = _extremes(X)
    first = nonzero(torch.maximum(high, -low))
    X /= first
    X -= X.mean(0)
    second = nonzero(_largest(X))
    X /= second
    X.pow_(3)
    floor = eps / first / first / first / second / second / second
    X /= torch.maximum(nonzero(X.norm(dim=0)), floor)
    return X.masked_fill_(low == high, 0)  # the mean of equal values may differ from them by a rounding error


def _largest(X: Tensor) -> Tensor:
    low, high = _extremes(X)
    return torch.maximum(high, -low)


def _extremes(X: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of columns; `aminmax` finds both at once, and takes ten times as long."""
    return X.amin(0), X.amax(0)
