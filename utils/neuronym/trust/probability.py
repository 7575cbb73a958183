"""How likely is a name to be near? Signals that need no truth, and a map from them to a probability.

QUICK            the signals that cost two products a layer
EVIDENCE         these, how common the concept is, and how many images speak
steepness        slope and offset from cosines to what the CLIP sees
seen_concepts    what the CLIP sees of some concepts
ratios           what the CLIP sees of a label against the best that it sees of any concept
evidence         the signals EVIDENCE
fit_map          a logistic regression of what is near on signals: a map
shipped          the maps of data/trust/map.json, with their source
probability      signals and a map -> the probability that a name is near
is_probability   whether it is one, or no more than an order of names
kept             the most trusted units of which so many are expected to be near

docs/protocols/trust.md says what was chosen how, docs/results/trust.md what came out. A map is learnt where
the truth is known, in the microworld: elsewhere its numbers order names, and are not calibrated.
K units, M concepts, n images held out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number
from neuronym.common.memory import MEMORY, nonzero, slices
from neuronym.common.statistics import Numbers
from neuronym.datasets.concepts import load_concepts
from neuronym.evaluation.presence import unfitted
from neuronym.measurements import Measurements
from neuronym.runs.folders import ROOT
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.scores import score
from neuronym.similarity.softened import mean_spread, SHARPNESS
from neuronym.similarity.sparse_columns import over_blocks, SparseColumns

QUICK = ("ratio", "soft_ratio", "foreseen")
EVIDENCE = ("prevalence", "ratio", "soft_ratio", "evidence", "images", "few")
MAP = ROOT / "data" / "trust" / "map.json"
NEAR_SHARE = 0.5  # of the best concept's correlation
LEAST = 1e-6  # between cosines that can be told apart
LEARNT = 20, 5000  # images that the map of EVIDENCE was learnt with
CALIBRATED = 500  # scenes from which on its calibration error was within .05
OF_CONCEPTS = 4  # values of a unit and concept held at once, at the most
RAREST = 1e-3  # of a concept, in parts of an average one


def steepness(P: FactoredMatrix) -> tuple[float, float]:
    """Slope and offset of X = sigmoid(a P + b) from the embeddings alone
    (`neuronym.evaluation.presence.unfitted`); 0 and 0 where the concepts cannot be told apart (or there is
    one).
    """
    if P.shape[1] < 2 or mean_spread(P) <= LEAST:
        return 0.0, 0.0
    return unfitted(P.I, P.T)


@torch.no_grad()
def ratios(
    P: FactoredMatrix,
    Q: Tensor | SparseColumns,
    labels: Sequence[int] | Tensor,
    memory: int = MEMORY,
    fit: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """foreseen r(Q, X_c), ratio r(Q, X_c) / max_m r(Q, X_m), and soft_ratio, the same with the softmax: P [n,
    M] and Q [n, K] of images held out, labels c [K] -> K rows.

    X = sigmoid(a P + b), a and b the `fit`, or else those of `steepness`, which are the same for all units.
    Ratios are from 0 to 1; 0 where no concept goes along with the unit, and all are 0 where the concepts
    cannot be told apart (or there is one).
    """
    chosen = torch.as_tensor(labels, dtype=torch.long, device=Q.device)
    if len(chosen) != Q.shape[1]:
        raise ValueError(f"expected one label for each of {Q.shape[1]} units, got {len(chosen)}")
    a, b = steepness(P) if fit is None else fit
    if not a:
        return pd.DataFrame(0.0, index=range(len(chosen)), columns=list(QUICK))
    if isinstance(Q, SparseColumns):
        every, beside = chosen, OF_CONCEPTS * P.shape[1]
        return over_blocks(lambda some, q: ratios(P, q, every[some], memory, (a, b)), Q, memory, beside)
    found = {}
    for name, scores in (
        ("ratio", score(P, Q, "correlation", slope=a, offset=b, memory=memory)),
        ("soft_ratio", score(P, Q, "soft_correlation", slope=a, memory=memory)),
    ):
        own, best = scores.gather(1, chosen[:, None])[:, 0].double(), scores.amax(1).double()
        found[name] = (own / nonzero(best)).clamp(0, 1).masked_fill(best <= 0, 0).cpu().numpy()
        if name == "ratio":
            found["foreseen"] = own.cpu().numpy()
    return pd.DataFrame(found, columns=list(QUICK))


@torch.no_grad()
def evidence(
    P: FactoredMatrix,
    Q: Tensor | SparseColumns,
    labels: Sequence[int] | Tensor,
    memory: int = MEMORY,
    fit: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """The signals EVIDENCE and QUICK of labels c [K] that were chosen on these very images: P [N, M], Q [N,
    K] -> K rows.

    prevalence log10(M mean_n X_nc), X the softmax over concepts, 0 for a concept as common as the average
    one; evidence log(1 + max(0, atanh(foreseen) sqrt(N - 3))); images log10 N and few 1 / sqrt(N), since
    ratios of labels that have seen the images are the more too high the fewer there are. N in these is
    within LEARNT. All but the last two are 0 where the concepts cannot be told apart (or there is one).
    """
    fit = steepness(P) if fit is None else fit
    if isinstance(Q, SparseColumns):
        every, beside = torch.as_tensor(labels), OF_CONCEPTS * P.shape[1]
        return over_blocks(lambda some, q: evidence(P, q, every[some], memory, fit), Q, memory, beside)
    found, N = ratios(P, Q, labels, memory, fit), min(len(Q), LEARNT[1])
    chosen = torch.as_tensor(labels, dtype=torch.long, device=Q.device)
    common = found["ratio"] * 0.0
    if fit[0]:
        share = seen_concepts(P, chosen, memory, fit[0]).double().mean(0) * P.shape[1]
        common = share.clamp(min=RAREST).log10().cpu().numpy()
    z = np.arctanh(found["foreseen"].clip(0, 1 - 1e-12)) * max(N - 3, 0) ** 0.5
    n = max(N, LEARNT[0])
    more = {"prevalence": common, "evidence": np.log1p(z), "images": np.log10(n), "few": n**-0.5}
    return found.assign(**more)


@torch.no_grad()
def seen_concepts(
    P: FactoredMatrix, chosen: Tensor, memory: int = MEMORY, slope: float | None = None
) -> Tensor:
    """Softmax over concepts of each image (`soft_correlation`), of the chosen ones: [N, K]; the cosine itself
    where there is one concept. The slope is 2 / mean spread if none is given.
    """
    if len(P.T) == 1:
        return (P.I @ P.T.T)[:, chosen]
    if slope is None:
        apart = mean_spread(P)
        slope = SHARPNESS / apart if apart else 0
    out = P.I.new_empty(len(P.I), len(chosen))
    for rows in slices(len(P.I), memory // (8 * len(P.T))):
        x = (P.I[rows] @ P.T.to(P.I.dtype).T).mul_(slope)
        out[rows] = x.softmax(1)[:, chosen]
    return out


def fit_map(table: pd.DataFrame, near: Numbers, signals: Sequence[str] = QUICK, C: float = 1.0) -> dict:
    """Logistic regression of near [K] on the standardised columns `signals`: {"signals", "mean", "scale",
    "weights", "offset"}.

    Errors: ValueError where all or none are near.
    """
    from sklearn.linear_model import LogisticRegression

    x, right = table[list(signals)].to_numpy(np.float64), np.asarray(near).astype(bool)
    if right.all() or not right.any():
        raise ValueError(f"a map is fitted to near names and others, got {right.sum()} near of {len(right)}")
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    model = LogisticRegression(C=C, max_iter=1000).fit((x - mean) / scale, right)
    return {
        "signals": list(signals),
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "weights": model.coef_[0].tolist(),
        "offset": float(model.intercept_[0]),
    }


def shipped(name: str = "quick") -> dict:
    """The map of that name in data/trust/map.json, which `docs/protocols/trust.py fit` writes."""
    return json.loads(MAP.read_text(encoding="utf-8"))[name]


def probability(table: pd.DataFrame, by: Mapping | None = None) -> np.ndarray:
    """1 / (1 + exp(-(offset + sum_s weight_s (x_s - mean_s) / scale_s))) of each row: [K]; `by` is a map, the
    shipped one by default.
    """
    by = shipped() if by is None else by
    x = table[list(by["signals"])].to_numpy(np.float64)
    z = (x - np.array(by["mean"])) / np.array(by["scale"])
    return 1 / (1 + np.exp(-(by["offset"] + z @ np.array(by["weights"]))))


def is_probability(data: Measurements) -> bool:
    """Whether trust in names from these images is a probability: for CALIBRATED scenes of the microworld or
    more, and the concepts that the map was learnt with. With fewer, with other concepts and on photos its
    calibration error was up to .15, .25 and .46 (docs/results/trust.md): there it orders names.
    """
    scenes = data.probe.scenes is not None and data.N >= CALIBRATED
    return scenes and set(data.concepts) == set(load_concepts("microworld"))


def kept(trust: Numbers, share: float = 0.9) -> np.ndarray:
    """Which units to name so that a `share` of the names is near, as far as trust [K] is a probability: the
    most trusted, as many as have that mean; bool [K].

    Equal trust is kept or left together. Errors: ValueError for a share outside 0..1.
    """
    check_number("share", share, 0, 1)
    values = np.asarray(trust, np.float64)
    if not len(values):
        return np.zeros(0, bool)
    order = np.sort(values)[::-1]
    means = np.cumsum(order) / np.arange(1, len(order) + 1)
    last = np.append(order[1:] != order[:-1], True)  # of a run of equal values
    enough = np.flatnonzero(last & (means >= share))
    return values >= order[enough[-1]] if len(enough) else np.zeros(len(values), bool)
