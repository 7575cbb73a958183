"""How good is a name? Rank of the true name, closeness of texts, and the oracle that knows what is in every image.

rank_of_truth       accuracy, ranks and AUROC when the true name is among the concepts
name_similarity     cosine of predicted and true names, beside shuffled and constant labels
presence_oracle     correlation of every unit with the presence of every concept
against_oracle      how much of the oracle's correlation a method's labels reach
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuronym.trust.calibration import auroc


def rank_of_truth(scores: Tensor, concepts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Top-1 and top-5 accuracy (shares), mean and median rank (1 is best) of the true name, AUROC of the best score as a
    predictor of correctness (CLIP-Dissect, Table 3); scores [K, M], one true name per unit.

    Units whose name is not among the concepts are left out and counted (`units` says how many remain).
    """
    where = {c: i for i, c in reversed(list(enumerate(concepts)))}
    known = [k for k, name in enumerate(names) if name in where]
    if len(names) != len(scores):
        raise ValueError(f"expected one true name per unit, got {len(names)} names and scores {tuple(scores.shape)}")
    if not known:
        raise ValueError(f"none of the {len(names)} true names is among the {len(concepts)} concepts, e.g. '{names[0]}'")
    rows = scores[known]
    truth = torch.tensor([where[names[k]] for k in known], device=rows.device)
    own = rows.gather(1, truth[:, None])
    rank = 1 + (rows > own).sum(1) + ((rows == own) & (torch.arange(rows.shape[1], device=rows.device) < truth[:, None])).sum(1)
    rank = rank.double()
    return {"units": len(known), "top1": float((rank <= 1).double().mean()), "top5": float((rank <= 5).double().mean()),
            "mean_rank": float(rank.mean()), "median_rank": float(rank.median()),
            "auroc": auroc(rows.max(1).values, rank <= 1)}


def name_similarity(encode: Callable[[list[str]], Tensor], labels: Sequence[str], names: Sequence[str], *,
                    generator: torch.Generator | None = None, shuffles: int = 20) -> dict[str, float]:
    """Mean cosine of predicted and true names in a text embedding (CLIP-Dissect, Table 1), with two controls.

    `encode` maps texts to unit rows. `shuffled`: the same labels dealt to other units (mean of `shuffles` deals);
    `constant`: the one label that would score best if every unit had it. A method is only as good as its distance to both.
    """
    if len(labels) != len(names):
        raise ValueError(f"expected one label per true name, got {len(labels)} and {len(names)}")
    said, true = encode(list(labels)), encode(list(names))
    deals = [torch.randperm(len(said), generator=generator) for _ in range(shuffles)]
    shuffled = sum(float((said[deal.to(said.device)] * true).sum(1).mean()) for deal in deals) / shuffles
    return {"cosine": float((said * true).sum(1).mean()), "shuffled": shuffled, "constant": float((said @ true.mean(0)).max())}


def presence_oracle(Q: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation of every unit's activation with the presence of every concept: the best name there is.

    Q [N, K], truth [N, M] (bool) -> [K, M]; dead units and concepts that are always or never present get 0.
    """
    if len(Q) != len(truth):
        raise ValueError(f"expected Q [N, K] and truth [N, M] with equal N, got {len(Q)} and {len(truth)}")
    q, t = _standard(Q.double()), _standard(truth.double())
    return q.T @ t / len(q)


def against_oracle(labels: Sequence[str], oracle: Tensor, concepts: Sequence[str]) -> dict[str, float]:
    """Share of units whose label is the oracle's, mean correlation of the labels with their units, and the oracle's own mean.

    oracle [K, M] from `presence_oracle`; one label per unit. Units that no concept correlates with count as they are.
    """
    where = {c: i for i, c in enumerate(concepts)}
    chosen = torch.tensor([where[label] for label in labels], device=oracle.device)
    reached = oracle.gather(1, chosen[:, None]).squeeze(1)
    best = oracle.max(1).values
    return {"same_as_oracle": float((reached == best).double().mean()), "correlation": float(reached.mean()),
            "oracle_correlation": float(best.mean())}


def _standard(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    spread = x.pow(2).mean(0).sqrt()
    return x / spread.where(spread > 1e-12, torch.ones_like(spread))
