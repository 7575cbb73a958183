"""All that speaks for or against a label, unit by unit, in one table.

signals      from the probing images alone: null, margin, bootstrap, halves
conditions   whether the label is the same under noise, other CLIPs, other prompts, other methods
foreseen     correlation of what the CLIP sees of the label with the unit, on images not used for naming
trusted      one number: the mean of the shares that say "the same label again"
rightness    whether labels are right, as far as the truth is known
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.blocks import Embedded, MEMORY, number
from neuronym.evaluation.evaluate import presence_oracle
from neuronym.second_order.bridge import correlation
from neuronym.similarity.similarity import score
from neuronym.trust.label_bootstrap import best_concepts, bootstrap_labels, margin
from neuronym.trust.stability import consensus, halves, same
from neuronym.trust.trust import abstain, best_scores, null_best, p_values, z_values

SHARES = ("bootstrap", "halves", "conditions", "methods")


def signals(P: Tensor | Embedded, Q: Tensor, method: str = "soft_wpmi", *, draws: int = 1000, samples: int = 50,
            splits: int = 10, level: float = .05, correction: str = "bh", generator: torch.Generator | None = None,
            memory: int = MEMORY) -> pd.DataFrame:
    """One row a unit of Q [N, K]: label (index of the concept), score, p, z, abstain, margin, bootstrap, low, high,
    alternative, halves; see `neuronym.trust.trust`, `neuronym.trust.label_bootstrap` and `neuronym.trust.stability`.
    """
    scores = score(P, Q, method, memory=memory)
    alone = best_scores(P, Q, method, memory=memory)
    null = null_best(P, Q, method, draws=draws, generator=generator, memory=memory)
    p = p_values(alone, null)
    again = bootstrap_labels(P, Q, method, draws=samples, generator=generator, memory=memory)
    share, _ = halves(P, Q, method, repeats=splits, generator=generator, memory=memory)
    columns = {"label": best_concepts(scores), "score": scores.amax(1), "p": p, "z": z_values(alone, null),
               "abstain": abstain(p, level, correction), "margin": margin(scores), "bootstrap": again.stability,
               "low": again.low, "high": again.high, "alternative": again.alternative, "halves": share}
    return pd.DataFrame({"unit": range(len(scores)), **{name: x.cpu().numpy() for name, x in columns.items()}})


def conditions(labels: Sequence[str], others: Mapping[str, Sequence[str]], methods: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Columns same_NAME for each other condition (noise, CLIP, prompt), `conditions` (share of them with the same label; 1
    when there are none), `methods` (share of methods that give it), `consensus` (the label most methods give). K labels each.
    """
    table = pd.DataFrame({f"same_{name}": same(labels, some).numpy() for name, some in others.items()}, index=range(len(labels)))
    by_method = pd.DataFrame({name: same(labels, some).numpy() for name, some in methods.items()})
    return table.assign(conditions=table.mean(axis=1) if others else 1., methods=by_method.mean(axis=1),
                        consensus=consensus(methods)["label"])


def foreseen(I: Tensor, T: Tensor, Q: Tensor, labels: Sequence[int]) -> Tensor:
    """Correlation [K] of a CLIP's cosine of image and label with the activation, on images held out.

    I [N, d] and Q [N, K] are of those images, T [M, d] of the concepts; needs no truth, and shares the CLIP's mistakes.
    """
    chosen = torch.as_tensor(labels, dtype=torch.long, device=I.device)
    return correlation(I @ T[chosen].to(I.device).T, Q)


def trusted(table: pd.DataFrame, shares: Sequence[str] = SHARES) -> pd.Series:
    """Mean of the shares of cases in which the unit got the same label; nothing is fitted to what is right."""
    return table[list(shares)].mean(axis=1)


def rightness(labels: Sequence[int], present: Tensor, Q: Tensor, names: Sequence[int] | None = None, good: float = .5) -> pd.DataFrame:
    """Columns reached, possible, exact, near: correlation of the label's true presence with the unit, that of the best
    concept, whether the label is that concept (or the unit's true name, where `names` has them), and whether it reaches
    the share `good` of what is possible.

    present [N, M] bool and Q [N, K] are of images held out. A unit that no concept correlates with is never named right.
    """
    number("good", good, 0, 1)
    oracle = presence_oracle(Q, present)
    chosen = torch.as_tensor(labels, dtype=torch.long, device=oracle.device)
    if len(chosen) != len(oracle):
        raise ValueError(f"expected one label for each of {len(oracle)} units, got {len(chosen)}")
    reached, (possible, best) = oracle.gather(1, chosen[:, None]).squeeze(1), oracle.max(1)
    true = best if names is None else torch.as_tensor(names, dtype=torch.long, device=oracle.device)
    alive = possible > 0
    exact = (chosen == true) & alive
    return pd.DataFrame({name: x.cpu().numpy() for name, x in {
        "reached": reached, "possible": possible, "exact": exact, "near": (reached >= good * possible) & alive}.items()})
