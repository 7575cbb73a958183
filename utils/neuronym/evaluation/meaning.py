"""Is a unit worth a name: what the images that excite it have in common, by an image-text model's embeddings.

MEANING          the columns
meaning_columns  all of them for the units of a layer, in one pass over its activations
any_images       the same of images that have nothing to do with a unit: what numbers are to be held against
with_meaning     a labels table with these columns

With e_i [d] the embedding of image i, of length 1, and a_i its activation scaled to 0..1 over the images; the
examples of a unit are its n most active images, without those of its lowest value (0, of a rare feature).

    monosemanticity | sum over pairs i < j of a_i a_j e_i'e_j, divided by that of a_i a_j: the mean cosine of
                      two images drawn by activation (Pach et al. 2025), here without a loop over pairs as
                      (|sum a_i e_i|^2 - sum a_i^2) / ((sum a_i)^2 - sum a_i^2)
    clarity         | mean cosine of two examples (Dreyer et al. 2025)
    redundancy      | largest cosine of the examples' mean with that of another unit of the layer
    polysemanticity | 1 - cosine of the means of two clusters of the examples

All are nan for a unit of one value, which has no examples, and clarity and polysemanticity for a unit of one
example. A CLIP's cosines are high for any two images, and how high depends on the CLIP and the probe.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from neuronym.common.checks import check_positive_int
from neuronym.common.memory import give_back, MEMORY, nonzero, slices, strongest_images
from neuronym.common.tables import of_their_units
from neuronym.similarity.scores import constant_units

MEANING = ["monosemanticity", "clarity", "redundancy", "polysemanticity"]
EXAMPLES = 20  # images of a unit
ROUNDS = 10  # of two-means


@torch.no_grad()
def meaning_columns(Q: Tensor, I: Tensor, examples: int = EXAMPLES, memory: int = MEMORY) -> pd.DataFrame:
    """MEANING of each unit: activations Q [N, K], embeddings I [N, d] with unit rows -> K rows.

    `examples` are at most N; fewer than two have no pairs, and all is nan. Blocks of units take `memory`.
    Errors: ValueError for another number of images, and none.
    """
    check_positive_int("examples", examples)
    if Q.shape[0] != len(I) or not len(I):
        raise ValueError(
            f"expected Q [N, K] and I [N, d] of the same images, got {list(Q.shape)} and {list(I.shape)}"
        )
    (N, K), E = Q.shape, normalize(I.float(), dim=1)
    n = min(examples, N)
    found = torch.full((K, len(MEANING)), torch.nan, dtype=torch.float64, device=E.device)
    means, varies = E.new_zeros(K, E.shape[1]), torch.zeros(K, dtype=torch.bool, device=E.device)
    if n > 1:
        for part in slices(K, memory // (64 * N + 16 * n * (E.shape[1] + 2 * n))):
            varies[part], means[part], found[part] = _of_units(Q[:, part].to(E), E, n)
            if not isinstance(Q, Tensor):
                give_back()
        found[:, 2] = _redundancy(means, varies, memory)
    found[~varies] = torch.nan
    return pd.DataFrame(found.cpu().numpy(), columns=MEANING)


def _of_units(q: Tensor, E: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of activations [N, m]: which vary, the mean of each unit's examples, and MEANING without redundancy."""
    top = strongest_images(q, torch.arange(q.shape[1], device=E.device), n, q.dtype, q.shape[1])
    there = q.T.gather(1, top) > q.amin(0)[:, None]  # [m, n]
    V, count = E[top] * there[:, :, None], there.sum(1).double()
    total, pairs = V.sum(1), torch.where(count > 1, count * (count - 1), torch.nan)
    clarity = (total.double().square().sum(1) - count) / pairs
    apart = _apart(V, there).masked_fill(count < 2, torch.nan)
    columns = [_monosemanticity(q, E), clarity, torch.full_like(clarity, torch.nan), apart]
    return ~constant_units(q), normalize(total, dim=1), torch.stack(columns, 1)


def any_images(I: Tensor) -> float:
    """Mean cosine of two of the images [N, d]: monosemanticity of a unit that tells none of them apart."""
    total, N = normalize(I.float(), dim=1).double().sum(0), len(I)
    return float((total.square().sum() - N) / (N * (N - 1))) if N > 1 else float("nan")


def with_meaning(
    labels: pd.DataFrame, Q: Mapping[str, Tensor], I: Tensor, examples: int = EXAMPLES, memory: int = MEMORY
) -> pd.DataFrame:
    """The labels table with MEANING, the same for all ranks of a unit: Q {layer: [N, K]}, I [N, d]."""
    parts = [
        meaning_columns(Q[layer], I, examples, memory).assign(layer=layer, unit=range(Q[layer].shape[1]))
        for layer in labels["layer"].unique()
    ]
    return of_their_units(labels, pd.concat(parts, ignore_index=True), MEANING)


def _monosemanticity(q: Tensor, E: Tensor) -> Tensor:
    """The closed form of activations [N, m]: [m]."""
    low = q.amin(0)
    a = (q - low) / nonzero(q.amax(0) - low)
    own, total = a.double().square().sum(0), a.double().sum(0)
    pairs = total.square() - own
    return ((a.T @ E).double().square().sum(1) - own) / torch.where(pairs > 0, pairs, torch.nan)


def _apart(V: Tensor, there: Tensor) -> Tensor:
    """1 - cosine of the means of two clusters of each unit's examples [m, n, d], those that are `there` [m,
    n], others being 0: [m].

    Spherical two-means from the two examples that are farthest apart; of equal pairs the first.
    """
    m, n, _ = V.shape
    cosines = (V @ V.transpose(1, 2)).masked_fill(~(there[:, :, None] & there[:, None]), torch.inf)
    far, every = cosines.flatten(1).argmin(1), torch.arange(m, device=V.device)
    centres = torch.stack([V[every, far // n], V[every, far % n]], 1)  # [m, 2, d]
    for _ in range(ROUNDS):
        nearest = (V @ centres.transpose(1, 2)).argmax(2)  # [m, n]
        members = torch.stack([(nearest == 0) & there, (nearest == 1) & there], 1)
        moved = normalize(members.to(V) @ V, dim=2)
        centres = torch.where(members.any(2, keepdim=True), moved, centres)
    return 1 - (centres[:, 0] * centres[:, 1]).double().sum(1)


def _redundancy(means: Tensor, varies: Tensor, memory: int) -> Tensor:
    """Largest cosine of each mean [K, d] with that of another unit that varies: [K], nan where there is
    none.
    """
    K = len(means)
    best = torch.full((K,), -torch.inf, dtype=torch.float64, device=means.device)
    out, none = means.new_empty(max(1, min(K, memory // (8 * K))), K), ~varies
    for rows in slices(K, len(out)):
        r = torch.matmul(means[rows], means.T, out=out[: rows.stop - rows.start])
        r.masked_fill_(none, -torch.inf)
        r[torch.arange(len(r)), torch.arange(rows.start, rows.stop)] = -torch.inf
        best[rows] = r.amax(1).double()
    return best.masked_fill(best == -torch.inf, torch.nan)
