"""All that speaks for or against a label, unit by unit; and does trust in it predict that it is right?

untestable                  layers of which nothing can be told, and what cannot succeed, before any work
signals                     from the probing images alone: null, margin, bootstrap, halves
conditions                  whether the label is the same under noise, other CLIPs, prompts and methods
of_labels                   the score of each unit's own label
trust_score                 one number: the mean of the shares that say "the same label again"
correctness                 whether labels are right, as far as the truth is known
auroc_intervals             does trust rank right labels above wrong ones? The same neurons drawn for all
                            scores
reliability                 share right by bins of trust, beside the trust itself
expected_calibration_error  mean distance of the two
brier                       mean squared distance of trust and correctness
risk_coverage               share right among the most trusted: what abstaining buys

All in float64. A neuron is the unit of resampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.common.memory import MEMORY, slices
from neuronym.common.statistics import (
    auroc,
    check_trust,
    column_auroc,
    draw_neurons,
    Numbers,
    sort_columns,
    wilson,
)
from neuronym.evaluation.presence import oracle_blocks
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.pmi import TOP_IMAGES
from neuronym.similarity.sparse_columns import over_blocks, score_blocks, SparseColumns
from neuronym.trust.null import abstain, best_scores, null_best, p_values, z_values
from neuronym.trust.probability import OF_CONCEPTS
from neuronym.trust.stability import best_concepts, bootstrap_labels, consensus, halves, margin, same

DRAWN_AT_ONCE = 2**21  # draws of neurons, of which ten copies are made
SHARES = ("bootstrap", "halves", "conditions", "methods")


def untestable(
    sizes: Mapping[str, int], concepts: int, images: int, held_out: float, method: str = "soft_wpmi"
) -> list[str]:
    """Layers {name: units} whose single unit wpmi and soft_wpmi have no others to compare with.

    Errors: ValueError where all layers are such, for fewer than two concepts, and for fewer images than two
    to name from and two held out.
    """
    check_number("held_out", held_out, 0, 1)
    if concepts < 2:
        raise ValueError(
            f"trust needs at least 2 concepts, of which one can be the better name, got {concepts}; give more"
        )
    held = round(images * held_out)
    if min(held, images - held) < 2:
        raise ValueError(
            f"trust needs at least 2 images to name from and 2 held out, got {images - held} and {held} of "
            f"{images} with held_out={held_out}; probe with more images"
        )
    alone = [name for name, units in sizes.items() if units == 1] if method in TOP_IMAGES else []
    if len(alone) == len(sizes):
        raise ValueError(
            f"{method} compares a unit with the others of its layer, and {', '.join(alone)} have one each; "
            "choose other layers, or similarity=cos_similarity_cubed"
        )
    return alone


def signals(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str = "soft_wpmi",
    *,
    draws: int = 1000,
    samples: int = 50,
    splits: int = 10,
    level: float = 0.05,
    correction: str = "bh",
    options: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> pd.DataFrame:
    """One row a unit of Q [N, K]: label (index of the concept), score, p, z, abstain, margin, bootstrap, low,
    high, alternative, halves; see `neuronym.trust.null` and `neuronym.trust.stability`. `options` are those
    of the similarity function. SparseColumns are looked at in blocks of units, each with the same draws; by
    (soft-)WPMI, which compares all units of a layer, in blocks for each draw.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    begun, drawn = generator.get_state(), {"draws": draws, "samples": samples, "splits": splits}

    def of_units(_: slice, q: Tensor | SparseColumns) -> pd.DataFrame:
        generator.set_state(begun)
        return _of_units(P, q, method, **drawn, memory=memory, generator=generator, options=options or {})

    if method in TOP_IMAGES:
        table = of_units(slice(0, Q.shape[1]), Q)
    else:
        table = over_blocks(of_units, Q, memory, beside=OF_CONCEPTS * P.shape[1])
    away = abstain(table["p"].to_list(), level, correction)
    return table.assign(unit=range(len(table)), abstain=away.numpy())


def _of_units(
    P: Tensor | FactoredMatrix,
    Q: Tensor | SparseColumns,
    method: str,
    draws: int,
    samples: int,
    splits: int,
    memory: int,
    generator: torch.Generator,
    options: Mapping[str, float],
) -> pd.DataFrame:
    """`signals` of units taken for all of a layer, abstained from none."""
    given = {"memory": memory} | dict(options)
    blocks = score_blocks(P, Q, method, **given)
    found = [(best_concepts(scores), scores.amax(1), margin(scores)) for _, _, scores in blocks]
    (label, best, lead), alone = map(torch.cat, zip(*found)), best_scores(P, Q, method, **given)
    given["generator"] = generator
    null = null_best(P, Q, method, draws=draws, **given)
    p = p_values(alone, null)
    again = bootstrap_labels(P, Q, method, draws=samples, **given)
    share, _ = halves(P, Q, method, repeats=splits, **given)
    columns = {
        "label": label,
        "score": best,
        "p": p,
        "z": z_values(alone, null),
        "abstain": torch.zeros_like(p, dtype=torch.bool),
        "margin": lead,
        "bootstrap": again.stability,
        "low": again.low,
        "high": again.high,
        "alternative": again.alternative,
        "halves": share,
    }
    return pd.DataFrame({"unit": range(len(label)), **{name: x.cpu().numpy() for name, x in columns.items()}})


def conditions(
    labels: Sequence[str], others: Mapping[str, Sequence[str]], methods: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Columns same_NAME for each other condition (noise, CLIP, prompt), `conditions` (share of them with the
    same label; 1 when there are none), `methods` (share of methods that give it), `consensus` (the label most
    methods give). K labels each.
    """
    table = pd.DataFrame(
        {f"same_{name}": same(labels, some).numpy() for name, some in others.items()},
        index=range(len(labels)),
    )
    by_method = pd.DataFrame({name: same(labels, some).numpy() for name, some in methods.items()})
    return table.assign(
        conditions=table.mean(axis=1) if others else 1.0,
        methods=by_method.mean(axis=1),
        consensus=consensus(methods)["label"],
    )


def of_labels(scores: Tensor, labels: Sequence[int]) -> np.ndarray:
    """The score of each unit's own label: scores [K, M], labels [K] -> [K]."""
    chosen = torch.as_tensor(list(labels), dtype=torch.long, device=scores.device)
    return scores.gather(1, chosen[:, None])[:, 0].double().cpu().numpy()


def trust_score(table: pd.DataFrame, shares: Sequence[str] = SHARES) -> pd.Series:
    """Mean of the shares of cases in which the unit got the same label; nothing is fitted to what is
    right.
    """
    return table[list(shares)].mean(axis=1)


def correctness(
    labels: Sequence[int],
    present: Tensor,
    Q: Tensor | SparseColumns,
    names: Sequence[int] | None = None,
    good: float = 0.5,
    memory: int = MEMORY,
) -> pd.DataFrame:
    """Columns reached, possible, exact, near: correlation of the label's true presence with the unit, that of
    the best concept, whether the label is that concept (or the unit's true name, where `names` has them), and
    whether it reaches the share `good` of what is possible.

    present [N, M] bool and Q [N, K] are of images held out. A unit that no concept correlates with is never
    named right.
    """
    check_number("good", good, 0, 1)
    chosen = torch.as_tensor(labels, dtype=torch.long, device=present.device)
    if len(chosen) != Q.shape[1]:
        raise ValueError(f"expected one label for each of {Q.shape[1]} units, got {len(chosen)}")
    parts = []
    for some, oracle in oracle_blocks(Q, present, memory):
        parts.append((oracle.gather(1, chosen[some, None].to(oracle.device))[:, 0], *oracle.max(1)))
    reached, possible, best = map(torch.cat, zip(*parts))
    chosen = chosen.to(best.device)
    true = best if names is None else torch.as_tensor(names, dtype=torch.long, device=best.device)
    alive = possible > 0
    exact = (chosen == true) & alive
    return pd.DataFrame(
        {
            name: x.cpu().numpy()
            for name, x in {
                "reached": reached,
                "possible": possible,
                "exact": exact,
                "near": (reached >= good * possible) & alive,
            }.items()
        }
    )


def auroc_intervals(
    trust: pd.DataFrame, right: Numbers, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> pd.DataFrame:
    """`auroc` of every column of `trust` (one row a neuron) with its percentile bootstrap interval: trust,
    units, right, auroc, low, high.

    Resampled are neurons, jointly: trust and rightness stay together, and each draw takes the same neurons
    for all columns. Draws with one kind only are left out; when all neurons are of one kind the interval is 0
    to 1.
    """
    check_number("level", level, 0, 1)
    columns = [check_trust(trust[name].to_numpy(), right) for name in trust]
    if not columns:
        raise ValueError(f"expected a table with a column for each trust score, got {trust.shape}")
    right, K = columns[0][1], len(trust)
    orders = [sort_columns(torch.from_numpy(values)[:, None]) for values, _ in columns]
    good, drawn = torch.from_numpy(right)[:, None], []
    parts = (
        some[part] for some in draw_neurons(K, seed, draws) for part in slices(len(some), DRAWN_AT_ONCE // K)
    )
    for some in parts:
        times = torch.from_numpy(np.stack([np.bincount(row, minlength=K) for row in some], 1))  # [K, some]
        drawn.append(np.stack([column_auroc(order, times * good, times * ~good) for order in orders], 1))
    drawn = np.concatenate(drawn)
    drawn = drawn[~np.isnan(drawn[:, 0])]  # [draws, columns]
    limits = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(drawn, limits, axis=0) if len(drawn) else (0.0, 1.0)
    return pd.DataFrame(
        {
            "trust": list(trust),
            "units": K,
            "right": int(right.sum()),
            "auroc": [auroc(values, right) for values, _ in columns],
            "low": low,
            "high": high,
        }
    )


def reliability(trust: Numbers, right: Numbers, bins: int = 10) -> pd.DataFrame:
    """Neurons by trust, in bins of about equal numbers: bin, units, trust (mean), right (share), low, high
    (Wilson, 95 %).

    trust [K] in 0..1, right [K] bool. Equal trust is never torn apart: its bin is that of its middle neuron,
    so bins may differ in size, and those without neurons are left out. The intervals take neurons as
    independent.
    """
    check_positive_int("bins", bins)
    trust, right = check_trust(trust, right, share=True)
    _, value, times = np.unique(trust, return_inverse=True, return_counts=True)
    middle = np.cumsum(times) - times / 2
    _, place = np.unique(np.floor(middle / len(trust) * bins).astype(int), return_inverse=True)
    place = place[value]
    units = np.bincount(place)
    share = np.bincount(place, right) / units
    low, high = wilson(share, units)
    return pd.DataFrame(
        {
            "bin": np.arange(len(units)),
            "units": units,
            "trust": np.bincount(place, trust) / units,
            "right": share,
            "low": low,
            "high": high,
        }
    )


def expected_calibration_error(trust: Numbers, right: Numbers, bins: int = 10) -> float:
    """Mean over neurons of |mean trust - share right| of their bin of `reliability`."""
    table = reliability(trust, right, bins)
    return float((table["units"] * (table["trust"] - table["right"]).abs()).sum() / table["units"].sum())


def brier(trust: Numbers, right: Numbers) -> float:
    """Mean of (trust - right)^2: trust [K] in 0..1, right [K] bool. Constant trust of .5 has .25."""
    trust, right = check_trust(trust, right, share=True)
    return float(((trust - right) ** 2).mean())


def risk_coverage(trust: Numbers, right: Numbers) -> pd.DataFrame:
    """Labels kept when those of less trust are withheld: threshold (least trust kept), units, coverage (share
    kept), right (share of these); one row for each value of trust, the highest first.
    """
    trust, right = check_trust(trust, right)
    values, kept, good = _kept(trust, right)
    return pd.DataFrame(
        {"threshold": values, "units": kept, "coverage": kept / len(trust), "right": good / kept}
    )


def _kept(trust: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of trust, descending, and how many neurons have at least that, and how many of these are
    right.
    """
    values, place = np.unique(-trust, return_inverse=True)
    return -values, np.cumsum(np.bincount(place)), np.cumsum(np.bincount(place, right))
