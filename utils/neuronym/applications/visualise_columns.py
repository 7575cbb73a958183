"""How far a synthesised picture may be believed: four columns, each beside what real pictures reach.

picture_columns   a row for each picture
by_layer          their shares, and path similarity layer by layer, beside what real pictures reach
activation_over   its activation, against the best real picture's
own_first         whether its own unit is the most excited one of the layer
path_similarity   whether earlier layers see it as they see the unit's top pictures
label_share       whether its label's text is nearer to it than other units' labels are
as_pictures       tensors -> pictures of 8 bits, which is what is measured and saved
top_pictures      the real pictures that excite a direction most
change            how far an accentuated photo is from what it was
seen_pictures     real pictures as a network sees them, as a tensor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from neuronym.applications.visualise import Aim
from neuronym.applications.visualise_images import as_shown
from neuronym.common.memory import top_images
from neuronym.common.statistics import standard_columns
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Progress, Target
from neuronym.datasets.probe import Probe
from neuronym.measurements import measure, Measurements
from neuronym.models.preprocess import preprocess_text, seen

TOP_PICTURES = 10  # real pictures that stand for a unit


def picture_columns(
    real: Measurements,
    aim: Aim,
    pictures: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    pool: Sequence[str] = (),
    *,
    top: int = TOP_PICTURES,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """A row for each picture, made for the directions of an aim; `real` are measurements of real pictures, of
    the layer and of the earlier ones; `labels` name the directions, `pool` holds the labels to compare with.

    Columns: layer, direction, activation, best_real, beats_best, times_best, z, own_rank, own_first,
    real_first, path, path_top, path_random, path_share, label, label_share, label_real.
    """
    made = measured(real, pictures, progress)
    q, Q = made.Q[aim.layer.name], real.Q[aim.layer.name]
    best = top_images(Q @ aim.directions.T, min(top, real.N))  # [top, n]
    table = pd.DataFrame({"layer": aim.layer.name, "direction": aim.names})
    parts = [activation_over(q, Q, aim.directions), own_first(q, Q, aim.directions)]
    photo = own_first(Q[best[0]], Q, aim.directions)
    parts.append({"real_first": photo["own_first"]})
    earlier = list(aim.earlier)
    if earlier:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randperm(real.N, generator=generator)[:top].to(best.device)
        paths = [path_similarity(made.Q[name], real.Q[name], best.T, random) for name in earlier]
        parts.append({key: torch.stack([path[key] for path in paths]).mean(0) for key in paths[0]})
    for part in parts:
        table = table.assign(**{key: value.cpu().numpy() for key, value in part.items()})
    if labels is not None:
        from neuronym.activations import embed_concepts

        words = list(dict.fromkeys([*labels, *pool]))
        T = embed_concepts(real.clip, words).to(real.I.device)
        at = torch.tensor([words.index(label) for label in labels], device=T.device)
        table["label"] = list(labels)
        table["label_share"] = label_share(made.I, T, at).cpu().numpy()
        table["label_real"] = label_share(real.I[best[0]], T, at).cpu().numpy()
    return table


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of the pictures of each layer (and of each `image`, where the table has it), beside those of the
    best real pictures; path_share is of the means, since that of one unit divides by a small gap.
    """
    keys = ["layer", *(key for key in ("image",) if key in table)]
    rows = []
    for key, some in table.groupby(keys, sort=False):
        row = dict(zip(keys, key)) | {"pictures": len(some), "times_best": some["times_best"].median()}
        row |= {name: some[name].mean() for name in ("beats_best", "own_first", "real_first")}
        if "path" in some:
            chance = some["path_random"].mean()
            row["path_share"] = (some["path"].mean() - chance) / (some["path_top"].mean() - chance)
        if "label_share" in some:
            row |= {name: some[name].mean() for name in ("label_share", "label_real")}
        rows.append(row)
    return pd.DataFrame(rows)


def measured(
    real: Measurements, pictures: Sequence[Image.Image], progress: Progress | None = None
) -> Measurements:
    """What network and CLIP make of synthesised pictures, as of the real ones; the network gets them as they
    are, without the resizing and cropping of photos.
    """
    shown = as_shown(real.target)
    plain = replace(real.target, preprocess=shown, preprocess_spec=preprocess_text(shown))
    layers = list(real.layers.values())
    return measure(
        plain,
        layers,
        list(pictures),
        real.clip,
        real.concepts,
        pool=real.pool,
        device=real.I.device,
        progress=progress,
    )


def activation_over(q: Tensor, Q: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Activation of each picture q [n, K] along its direction [n, K], and the highest of real ones Q [N,
    K].
    """
    value, real = (q * directions).sum(1), Q @ directions.T
    best = real.amax(0)
    return {
        "activation": value,
        "best_real": best,
        "beats_best": value > best,
        "times_best": torch.where(best > 0, value / best, torch.nan),
        "z": (value - real.mean(0)) / real.std(0).clamp_min(1e-6),
    }


def own_first(q: Tensor, Q: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """Whether a picture q [n, K] excites its own direction [n, K] more than any unit of the layer, each in
    standard deviations over real pictures Q [N, K]; own_rank counts from 1.
    """
    mean, sd = Q.mean(0), Q.std(0)
    varies = sd > 1e-6
    z = torch.where(varies, (q - mean) / torch.where(varies, sd, 1), -torch.inf)
    along = Q @ directions.T
    own = ((q * directions).sum(1) - along.mean(0)) / along.std(0).clamp_min(1e-6)
    alone = (directions != 0) & ((directions != 0).sum(1, keepdim=True) == 1)
    others = z.masked_fill(alone, -torch.inf)  # a vector of several units is compared with all of them
    rank = (others > own[:, None]).sum(1) + 1
    return {"own_rank": rank, "own_first": rank == 1}


def path_similarity(q: Tensor, Q: Tensor, best: Tensor, random: Tensor) -> dict[str, Tensor]:
    """Correlation over the units of an earlier layer, each in standard deviations, between a picture and the
    top real pictures of its unit (path), among these (path_top), and between them and random ones
    (path_random): q [n, K], Q [N, K], best [n, t], random [r] -> [n] each.

    path_share is (path - path_random) / (path_top - path_random): 1 where the picture is processed as the
    top pictures are, 0 where as any picture is (Geirhos et al. 2024, section 4, normalise so).
    """
    mean, sd = Q.mean(0), Q.std(0).clamp_min(1e-6)
    made, tops, others = (standard_rows((x - mean) / sd) for x in (q, Q[best], Q[random]))
    t = tops.shape[1]
    path = (tops * made[:, None]).sum(2).mean(1)
    among = tops @ tops.transpose(1, 2)  # [n, t, t], 1 on the diagonal
    diagonal = among.diagonal(dim1=1, dim2=2).sum(1)
    among = (among.sum((1, 2)) - diagonal) / max(t * (t - 1), 1)
    chance = (tops @ others.T).mean((1, 2))
    gap = among - chance
    share = torch.where(gap > 1e-6, (path - chance) / gap, torch.nan)
    return {"path": path, "path_top": among, "path_random": chance, "path_share": share}


def label_share(I: Tensor, T: Tensor, at: Tensor) -> Tensor:
    """Share of the other labels whose text is farther from a picture than its own label's: I [n, d], T [M,
    d], `at` [n] -> [n]; .5 is what shuffled labels reach, equal ones count half, alone it is nan.
    """
    cosine = I @ T.T
    own = cosine.gather(1, at[:, None])
    below = (cosine < own).sum(1) + 0.5 * ((cosine == own).sum(1) - 1)
    return below / (len(T) - 1) if len(T) > 1 else torch.full_like(below, torch.nan)


def standard_rows(x: Tensor) -> Tensor:
    """Rows without their mean, of length 1; constant ones 0."""
    flat = x.reshape(-1, x.shape[-1])
    return standard_columns(flat.T).T.reshape(x.shape)


def as_pictures(pictures: Tensor) -> list[Image.Image]:
    """Pictures [n, 3, H, W] in [0, 1] of 8 bits."""
    shown = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one) for one in shown]


def top_pictures(data: Measurements, direction: Tensor, layer: str, n: int) -> list[Image.Image]:
    """The n real pictures that excite a direction [K] of a layer most, as the network sees them."""
    rows = top_images(data.Q[layer] @ direction[:, None], min(n, data.N))[:, 0].tolist()
    return as_pictures(seen_pictures(data.target, data.probe, rows))


def change(after: Tensor, before: Tensor) -> Tensor:
    """Mean squared difference in parts of the variance of the picture before, [n, 3, H, W] -> [n]."""
    return (after - before).square().mean((1, 2, 3)) / before.var((1, 2, 3)).clamp_min(1e-4)


def seen_pictures(target: Target, probe: Probe, rows: Sequence[int] | None = None, most: int = 500) -> Tensor:
    """Real pictures as the network sees them, at most so many, evenly spread: [n, 3, H, W] in [0, 1]."""
    rows = evenly_spaced(min(most, probe.N), probe.N) if rows is None else rows
    ends: Mapping = {}
    shown = [np.asarray(seen(target.preprocess, probe.image(int(row)), ends)) for row in rows]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float().div(255)
