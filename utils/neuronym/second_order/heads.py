"""Attention heads by text: what a head writes into a CLIP's representation, as a few texts (TextSpan,
Gandelsman, Efros & Steinhardt 2024, algorithm 1).

head_outputs  what every head adds to the representation of every image, cached
text_span     outputs of one head, texts -> texts that span them, greedily
head_words    CLIP, probe, words -> rows of the labels table, a unit for each head

In a ViT head h of block l adds o_h = O_h sum_i a_i (V_h y_i + b_h) to the class token, which the last layer
norm, with the standard deviation that the model had, and the projection take to the representation,

    c_h(I) = C / sd_post P' diag(gamma_post) (o_h - its mean)      C = 100 / |embedding|

In a ResNet the heads are those of the attention pool, and o_h itself is the head's part; in a SigLIP too,
where the pool's own MLP, which reads all heads, belongs to none.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from neuronym.activations import embed_concepts
from neuronym.common.checks import check_positive_int
from neuronym.common.types import Clip, Progress
from neuronym.datasets.concepts import load_concepts
from neuronym.datasets.probe import load_probe, Probe
from neuronym.models.clips import load_clip
from neuronym.second_order.effects import SCALE
from neuronym.second_order.map_head import has_map_head, map_heads, read_map_head
from neuronym.second_order.pool import cached_parts, has_pool, looks, Pool, POOLED, read_pool
from neuronym.second_order.tower import class_attention, read_tower, representation, statistics, tokens, Tower
from neuronym.similarity.labels import COLUMNS

RANK = 80  # directions of a head's outputs that texts are read in, as released
LAST = 4  # blocks of a ViT, from the end, that the paper names


def head_outputs(
    clip: Clip, probe: Probe, last: int = LAST, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, Tensor]:
    """{layer: outputs [N, H, d]} of the heads in the `last` blocks of a ViT, or of the attention pool of a
    ResNet or a SigLIP. Errors: ValueError for other towers.
    """
    check_positive_int("last", last)
    if has_pool(clip):
        pool = read_pool(clip)
        module, names, heads, d = pool.module, [POOLED], {"attnpool": pool.heads}, len(pool.out)

        def make(acts: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"heads attnpool": pool_heads(pool, acts[POOLED])}
    elif has_map_head(clip):
        mapped = read_map_head(clip)
        module, names, heads = mapped.module, [mapped.last], {mapped.pool: mapped.heads}
        d = len(mapped.out)

        def make(acts: dict[str, Tensor]) -> dict[str, Tensor]:
            return {f"heads {mapped.pool}": map_heads(mapped, acts[mapped.last])}
    else:
        tower = read_tower(clip)
        numbers = range(max(0, len(tower.blocks) - last), len(tower.blocks))
        names = tower.streams[numbers[0] :]
        heads = {f"{tower.blocks[l].residual} heads": tower.blocks[l].heads for l in numbers}
        module, d = tower.module, tower.projection.shape[1]

        def make(acts: dict[str, Tensor]) -> dict[str, Tensor]:
            streams = [tokens(tower, name, acts[name]) for name in names]
            made = block_heads(tower, streams, list(numbers))
            return {f"heads {name}": made[l] for name, l in zip(heads, numbers)}

    widths = {f"heads {name}": H * d for name, H in heads.items()}
    part = cached_parts(clip, probe, module, names, widths, make, batch_size, progress)
    return {name: part[f"heads {name}"].unflatten(1, (H, d)) for name, H in heads.items()}


def pool_heads(pool: Pool, maps: Tensor) -> Tensor:
    """Outputs [b, H, d] of an attention pool's heads, without its last bias; maps [b, K, h, w]."""
    places = maps.flatten(2).transpose(1, 2)
    x = torch.cat([places.mean(1, keepdim=True), places], dim=1)
    seen = looks(pool, x) @ (x + pool.positions)
    value, bias = (part.unflatten(0, (pool.heads, -1)) for part in (pool.v, pool.v_bias))
    out = pool.out.unflatten(1, (pool.heads, -1))
    parts = torch.einsum("bhe,dhe->bhd", torch.einsum("bhk,hek->bhe", seen, value) + bias, out)
    return parts * SCALE / (parts.sum(1) + pool.out_bias).norm(dim=1)[:, None, None]


def block_heads(tower: Tower, streams: Sequence[Tensor], numbers: Sequence[int]) -> dict[int, Tensor]:
    """Outputs {block: [b, H, d]} of a ViT's heads, without output biases.

    streams [b, T, D] are the residual streams before the blocks `numbers`, which follow each other, and the
    last one.
    """
    _, post_sd = statistics(streams[-1][:, 0], tower.post.eps)
    rep = representation(tower, streams[-1][:, 0])
    scale = (SCALE / rep.norm(dim=1) / post_sd)[:, None, None]
    found = {}
    for number, x in zip(numbers, streams):
        block = tower.blocks[number]
        a, mean, sd = class_attention(block, x)
        y = (x - mean[..., None]) / sd[..., None] * block.norm.gamma + block.norm.beta
        value, bias = (part.unflatten(0, (block.heads, -1)) for part in (block.v, block.v_bias))
        seen = torch.einsum("bhD,heD->bhe", a @ y, value) + bias
        o = torch.einsum("bhe,Dhe->bhD", seen, block.out.unflatten(1, (block.heads, -1)))
        o = (o - o.mean(2, keepdim=True)) * tower.post.gamma
        found[number] = scale * (o @ tower.projection)
    return found


@torch.no_grad()
def text_span(outputs: Tensor, T: Tensor, m: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Texts [m'] chosen for outputs [N, d] of a head, and the share [m'] of their variance that each adds.

    Texts T [M, d] are taken to the span of the outputs' first `rank` right singular vectors; then the one
    along which the centred outputs vary most is chosen, and taken out of outputs and texts, m times or until
    nothing is left. In float64.
    """
    check_positive_int("m", m)
    check_positive_int("rank", rank)
    if outputs.ndim != 2 or T.ndim != 2 or outputs.shape[1] != T.shape[1]:
        raise ValueError(
            f"expected outputs [N, d] and texts [M, d] of one d, got {list(outputs.shape)} and "
            f"{list(T.shape)}"
        )
    outputs, T = outputs.double(), T.double()
    _, sizes, first = torch.linalg.svd(outputs, full_matrices=False)
    first = first[:rank][sizes[:rank] > 1e-12 * sizes[0]]
    texts, left = T @ first.T @ first, outputs - outputs.mean(0)
    smallest, whole = 1e-9 * texts.norm(dim=1).max(), outputs.pow(2).sum()
    total = left.pow(2).sum()
    goes_on, chosen, shares, used = total > 1e-18 * whole, [], [], []
    for _ in range(min(m, len(T))):  # nothing here waits for a GPU
        spread = (left @ texts.T).pow(2).sum(0)  # variance times N, as `left` has mean 0
        spread = spread.masked_fill(texts.norm(dim=1) <= smallest, -1)  # what is left of these is rounding
        most, j = spread.max(0)
        goes_on = goes_on & (most > 0) & (left.pow(2).sum() >= 1e-18 * total)
        axis = F.normalize(texts.index_select(0, j[None])[0], dim=0)
        along = left @ axis
        chosen.append(j)
        shares.append(along.pow(2).sum() / total)
        used.append(goes_on)
        left = left - along[:, None] * axis
        texts = texts - (texts @ axis)[:, None] * axis
    used = torch.stack(used).cpu()
    return torch.stack(chosen).cpu()[used], torch.stack(shares).cpu()[used]


def head_words(
    clip: str | Clip,
    probe: str | Sequence | Probe,
    words: str | Sequence[str],
    last: int = LAST,
    *,
    m: int = 5,
    rank: int = RANK,
    template: str = "{}",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Texts of attention heads as a labels table: method textspan, a unit for each head, ranks as chosen,
    score the share of the variance of the head's outputs that the text adds.

    Layers are "... heads", the block's name before it, or the name of the pool. Errors: ValueError for a CLIP
    that is neither a ViT, nor a ResNet of openai-clip's kind, nor a SigLIP.

    >>> head_words("microworld:rn", "microworld:60", "microworld:atoms", m=1)["unit"].tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    clip, texts = load_clip(clip), load_concepts(words)
    outputs = head_outputs(clip, load_probe(probe, progress=progress), last, batch_size, progress)
    T = embed_concepts(clip, texts, template)
    rows = []
    for layer, of_layer in outputs.items():
        for head in range(of_layer.shape[1]):
            chosen, shares = text_span(of_layer[:, head], T.to(of_layer.device), m, rank)
            for place, (j, share) in enumerate(zip(chosen.tolist(), shares.tolist())):
                rows.append((clip.name, layer, head, "textspan", place + 1, texts[j], share))
    return pd.DataFrame(rows, columns=COLUMNS)
