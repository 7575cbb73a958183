"""Correlations with cosines that are standardised first, each concept over the images, or each image over the
concepts too, so that no concept and no image is loud by nature.

standardised_correlation  the sum of three: with a softmax, with a power, and of what is high with a power
standardised_columns      what its scores are products of, some concepts at a time
columns_of_answers        and some units

Cosines are read three times, a block of images after the other: for the moments of images and concepts, for
how far apart the standardised ones of an image are, and for the products [K, M], which add up over blocks
together with the moments that they are divided by at the end. What the exponentials see has mean 0 and
deviation 1, so that the second is the square of the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuronym.common.checks import check_number
from neuronym.common.memory import items_within, nonzero, slices, working_bytes
from neuronym.similarity.columns import largest_of, taken
from neuronym.similarity.matrix import block, checked, FactoredMatrix, largest
from neuronym.similarity.softened import SHARPNESS

HIGHEST = 8  # deviations above its mean that e^z sees of a cosine: what is higher counts as much
FARTHEST = 64  # the same of e^(z / 2), whose square stays in range; of up to 64^2 images none is higher
ROUNDINGS = 16  # what varies by so many roundings of its mean is constant
BLOCK = 2**20  # bytes of a block of images on a CPU: passes over it stay in caches


@torch.no_grad()
def standardised_correlation(
    P: Tensor | FactoredMatrix,
    Q: Tensor | Sequence[Tensor],
    *,
    sharpness: float = SHARPNESS,
    units: Sequence[int] | None = None,
    memory: int | None = None,
) -> Tensor | list[Tensor]:
    """Sum of three correlations with standardised cosines, without weights. P [N, M], Q [N, K] -> scores
    [K, M]

    S = r(Q, X) + r(Q, e^(z/2)) + r(u + max(u, 0)^2 / 2, e^z), with z = P standardised per concept over images
    (at most 8 in e^z), u = Q standardised per unit over images, and X = softmax over concepts of a D, D = P
    standardised per image over concepts and then per concept over images, a = sharpness / (mean over images
    of the standard deviation over concepts of D).

    The default names inner layers by it; final units among photos of other things `combined_correlation`
    names better (docs/results/default_name.md). X compares the concepts of one image, each by what it usually
    is beside others; the powers let the images that show most of a concept weigh most, and the last term
    those too that a unit answers most. Scaling P, or a unit, changes nothing.

    Constant columns are 0 once standardised, and so is an image whose cosines are all equal.
    """
    check_number("sharpness", sharpness)
    layers, chosen, dtype, d, memory = checked(P, Q, units, memory)
    (N, M), size, counts = P.shape, dtype.itemsize, [len(some) for some in chosen]
    held, row = (120 + d * size) * M + 2 * N * size, (6 * M + 2 * d) * size
    unit = 2 * M * size + (2 * size + 40) * N
    near = min(N, max(64, working_bytes(memory, layers[0].device, BLOCK) // (M * size)))
    some, k = items_within(memory, (held + unit, row, near), (held + row, unit, sum(counts)))
    k = max(1, min(k, (memory - held - some * row) // unit))
    if d and held + some * row + k * unit + N * M * size <= memory:
        P = _made(P, dtype, some)
    cosines = _Cosines.of(P, dtype, some)
    spread = cosines.spread()
    slope = sharpness / spread if spread else 0
    scores = layers[0].new_zeros(sum(counts), M, dtype=dtype)
    for part in slices(sum(counts), k):
        cosines.products(*columns_of_answers(taken(layers, chosen, part), dtype), slope, scores[part])
    return scores if isinstance(Q, Tensor) else list(scores.split(counts))


def _made(P: FactoredMatrix, dtype: torch.dtype, some: int) -> Tensor:
    """P, made in the blocks that are read, so that it has the bits that these have where it does not fit."""
    texts, whole = P.T.to(dtype).T, P.I.new_empty(P.shape, dtype=dtype)
    for rows in slices(len(whole), some):
        torch.matmul(P.I[rows].to(dtype), texts, out=whole[rows])
    return whole


class _Moments:
    """Mean of columns [N, M] and the sum of squares about it, by blocks of rows, added up in float64."""

    def __init__(self, like: Tensor, M: int) -> None:
        self.count, self.eps = 0, torch.finfo(like.dtype).eps
        self.mean, self.squares = like.new_zeros(2, M, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        n, mean = len(x), x.mean(0)
        squares = (x - mean).square_().sum(0)
        apart, total = mean.double().sub_(self.mean), n + self.count
        self.squares += squares
        self.squares += apart.square() * (n * self.count / total)
        self.mean += apart * (n / total)
        self.count = total

    def scales(self, lost: float = 0) -> Tensor:
        """1 / deviation of each column, 0 where it is constant but for rounding; `lost` is what values were
        before something was taken off them.
        """
        rounding = ROUNDINGS * self.eps * (self.mean.abs() + lost)
        deviation = (self.squares / self.count).sqrt_()
        return (1 / nonzero(deviation)).masked_fill_(deviation <= rounding, 0)


@dataclass
class _Cosines:
    """P in blocks of `some` images, and what standardises it: of every image mean and 1 / deviation; of every
    concept the same, as it is, and once images are standardised.
    """

    P: Tensor | FactoredMatrix
    texts: Tensor | None
    some: int
    factor: float  # brings values so large or small that squares leave the range into it
    images: Tensor  # [2, N, 1]
    concepts: Tensor  # [2, M]
    twice: Tensor  # [2, M]

    @classmethod
    def of(cls, P: Tensor | FactoredMatrix, dtype: torch.dtype, some: int) -> _Cosines:
        (N, M), given = P.shape, P if isinstance(P, Tensor) else P.I
        texts, most = None if given is P else P.T.to(dtype).T, largest(P)
        factor = 1 / most if most and not 1e-6 < most < 1e6 else 1.0
        images, concepts = (given.new_empty(*shape, dtype=dtype) for shape in ((2, N, 1), (2, M)))
        found = cls(P, texts, some, factor, images, concepts, concepts.clone())
        once, twice, lost = _Moments(images, M), _Moments(images, M), 0.0
        for rows, x in found.blocks():
            once.add(x)
            mean = x.mean(1, keepdim=True)
            y = x - mean
            deviation = y.square().mean(1, keepdim=True).sqrt_()
            equal = deviation <= ROUNDINGS * once.eps * mean.abs()
            scale = (1 / nonzero(deviation)).masked_fill_(equal, 0)
            twice.add(y.mul_(scale))
            lost += float((mean * scale).abs().sum(dtype=torch.float64)) / N
            images[0, rows], images[1, rows] = mean, scale
        concepts[0], concepts[1] = once.mean, once.scales()
        found.twice[0], found.twice[1] = twice.mean, twice.scales(lost)
        return found

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Images, and their cosines [n, M], to be left as they are."""
        for rows in slices(self.P.shape[0], self.some):
            if self.texts is None:
                x = self.P[rows].to(self.images.dtype)
                yield rows, x if self.factor == 1 else x * self.factor
            else:
                I = self.P.I[rows].to(self.images.dtype)
                yield rows, torch.matmul(I if self.factor == 1 else I * self.factor, self.texts)

    def doubly(self, rows: slice, x: Tensor) -> Tensor:
        """Standardised per image, then per concept."""
        y = (x - self.images[0, rows]).mul_(self.images[1, rows])
        return y.sub_(self.twice[0]).mul_(self.twice[1])

    def spread(self) -> float:
        """Mean over images of the standard deviation over concepts, once doubly standardised."""
        total = 0.0
        for rows, x in self.blocks():
            y = self.doubly(rows, x)
            y -= y.mean(1, keepdim=True)
            total += float(y.square_().mean(1).sqrt_().sum(dtype=torch.float64))
        return total / self.P.shape[0]

    def products(self, units: Tensor, bent: Tensor, slope: float, scores: Tensor) -> None:
        """Add the three correlations to scores [k, M], of columns of units [N, k]."""
        found = [scores, torch.zeros_like(scores), torch.zeros_like(scores)]
        moments = [_Moments(self.images, scores.shape[1]) for _ in found]
        for rows, x in self.blocks():
            z = (x - self.concepts[0]).mul_(self.concepts[1])
            if self.P.shape[0] > FARTHEST**2:  # so many images can be further from their mean
                z.clamp_(max=FARTHEST)
            half = z.mul_(0.5).exp_()
            _add(found[1], moments[1], units[rows], half)
            _add(found[2], moments[2], bent[rows], half.clamp_(max=math.exp(HIGHEST / 2)).square_())
            if slope:
                _add(found[0], moments[0], units[rows], self.doubly(rows, x).mul_(slope).softmax(1))
        for product, moment in zip(found, moments):
            if moment.count:
                product *= (moment.scales() / moment.count**0.5).to(product.dtype)
        scores += found[1].add_(found[2])

    def sums(self, slope: float) -> Tensor:
        """log of the sum over concepts of exp(slope D), D doubly standardised: [N, 1]"""
        found = [self.doubly(rows, x).mul_(slope).logsumexp(1, keepdim=True) for rows, x in self.blocks()]
        return torch.cat(found)

    def columns(self, cols: slice, slope: float, sums: Tensor) -> list[Tensor]:
        """Columns [N, m] of some concepts, each centred and of length 1: shares of the softmax and e^(z/2),
        added; and e^z.
        """
        x = block(self.P, None, cols, self.images.new_empty(self.P.shape[0], cols.stop - cols.start))
        x = x if self.factor == 1 else x * self.factor
        half = (x - self.concepts[0, cols]).mul_(self.concepts[1, cols]).clamp_(max=FARTHEST).mul_(0.5).exp_()
        raised = half.clamp(max=math.exp(HIGHEST / 2)).square_()
        both = _of_length_1(half)
        if slope:
            y = (x - self.images[0]).mul_(self.images[1]).sub_(self.twice[0, cols]).mul_(self.twice[1, cols])
            both += _of_length_1(y.mul_(slope).sub_(sums).exp_())
        return [both, _of_length_1(raised)]


def _add(found: Tensor, moments: _Moments, units: Tensor, x: Tensor) -> None:
    found.addmm_(units.T, x)
    moments.add(x)


def _of_length_1(x: Tensor) -> Tensor:
    moments = _Moments(x, x.shape[1])
    moments.add(x)
    return x.sub_(moments.mean).mul_(moments.scales() / len(x) ** 0.5)


def standardised_columns(
    P: Tensor | FactoredMatrix, dtype: torch.dtype, sharpness: float, some: int
) -> Callable[[slice], list[Tensor]]:
    """What makes, of some concepts, the two columns [N, m] each that those of `columns_of_answers` meet, P
    read `some` images at once.
    """
    cosines = _Cosines.of(P, dtype, some)
    spread = cosines.spread()
    slope = sharpness / spread if spread else 0
    sums = cosines.sums(slope)
    return lambda cols: cosines.columns(cols, slope, sums)


def columns_of_answers(q: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Columns of units [N, k], and of u + max(u, 0)^2 / 2, u standardised: centred, of length 1, 0 for a
    constant one.
    """
    u = q.double()
    u = u / nonzero(largest_of(u))
    u -= u.mean(0)
    deviation = u.square().mean(0).sqrt_()
    constant = deviation <= ROUNDINGS * torch.finfo(dtype).eps
    u /= nonzero(deviation)
    u.masked_fill_(constant, 0)
    bent = u.clamp(min=0).square_().mul_(0.5).add_(u)
    bent -= bent.mean(0)
    bent /= nonzero(bent.norm(dim=0))
    return u.div_(len(u) ** 0.5).to(dtype), bent.to(dtype)
