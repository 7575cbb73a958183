"""What is in each image: known of the microworld, judged by an image-text model elsewhere.

true_presence    presence [N, M] of the concepts in microworld scenes
require_judge    refuse photos without a judge
class_truth      presence of the classes that an image's folder is named after
fit_judge        slope and offset that turn cosines into probabilities
unfitted         both where nothing is known of the images: from the embeddings alone
calibrated       both for a CLIP, from whatever is known of the images
calibrated_from  what that is, in words
judged_presence  probabilities [N, M] from embeddings
known_presence   the truth, or what a judge thinks where there is none
presence_oracle  correlation of every unit with the presence of every concept: the best name there is
oracle_blocks    the same, a block of units after the other
best_by_truth    the best concept of every unit by it
against_oracle   how much of that a method's labels reach
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from neuronym import cache
from neuronym.activations import embed_concepts
from neuronym.common.checks import check_number
from neuronym.common.memory import as_blocks, MEMORY, slices
from neuronym.common.statistics import cross_correlation
from neuronym.common.subsets import evenly_spaced
from neuronym.common.types import Clip
from neuronym.datasets.probe import Probe
from neuronym.similarity.matrix import FactoredMatrix
from neuronym.similarity.softened import mean_spread, SHARPNESS
from neuronym.similarity.sparse_columns import SparseColumns, unit_blocks

LOOKED_AT = 1_000  # images that an offset is found from
WEAK = 1e6  # of the penalty on a slope, which keeps it finite where cosines tell true from false
STEPS = 60  # of bisection: to the last digit of a float64


def true_presence(probe: Probe, concepts: Sequence[str]) -> Tensor:
    """Which concepts are in which microworld images: bool [N, M]; ValueError for images of another kind."""
    from neuronym.microworld.world import presence

    return presence(probe.scenes or [probe.scene(i) for i in range(probe.N)], concepts)


def require_judge(probe: Probe, judge: str) -> None:
    """ValueError where nothing says what is in the images: photos without a judge."""
    if not judge and probe.scenes is None:
        raise ValueError(
            f"what is in the images is known in the microworld alone, got '{probe.name}' without a judge; "
            "name "
            "another image-text model, as judge=conse:efficientnet_lite1 or openai:ViT-L/14"
        )


def class_truth(probe: Probe, least: int = 5) -> tuple[list[str], Tensor, Tensor]:
    """Names of the folders that hold at least `least` images, their presence bool [n, C] and the images n it
    is known of.

    Each image shows its own class only, as far as its folder tells. Names are read as words ("sea_horse":
    "sea horse").
    """
    labels = probe.labels or []
    names = sorted({label for label in labels if label and labels.count(label) >= least})
    rows = torch.tensor([i for i, label in enumerate(labels) if label in names], dtype=torch.long)
    where = {name: c for c, name in enumerate(names)}
    truth = torch.zeros(len(rows), len(names), dtype=torch.bool)
    truth[torch.arange(len(rows)), [where[labels[i]] for i in rows.tolist()]] = True
    return [re.sub(r"[_\W]+", " ", name).strip().lower() for name in names], truth, rows


def fit_judge(cosines: Tensor, truth: Tensor) -> tuple[float, float]:
    """Slope and offset (a, b) of the logistic regression of truth on cosine, the same for all concepts; both
    [N, C].

    Errors: ValueError where all or none are true, and where cosines do not rise with truth.
    """
    from scipy.optimize import minimize

    if cosines.shape != truth.shape or truth.all() or not truth.any():
        raise ValueError(
            f"a judge is fitted to cosines and truth of one shape, some true and some not, got "
            f"{list(cosines.shape)} and {list(truth.shape)} with {int(truth.sum())} true"
        )
    x, true = cosines.flatten().double(), truth.flatten()
    ridge, there = 1 / (WEAK * len(x)), (float(x[true].sum()) / len(x), float(true.double().mean()))

    def loss(ab: np.ndarray) -> tuple[float, list[float]]:
        """Mean of log(1 + e^z) - true z, z = a x + b, with the penalty; and its gradient."""
        a, b = map(float, ab)
        z = x * a + b
        value = float(softplus(z).mean()) - a * there[0] - b * there[1] + ridge / 2 * a * a
        said = z.sigmoid_()
        return value, [float(said @ x) / len(x) - there[0] + ridge * a, float(said.mean()) - there[1]]

    given = {"gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxls": 50, "maxiter": 100}
    a, b = map(float, minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", options=given).x)
    if a <= 0:
        raise ValueError(
            f"a judge's cosines rise with truth, got slope {a:.3g}; use another image-text model"
        )
    return a, b


def unfitted(I: Tensor, T: Tensor, shown: float = 1) -> tuple[float, float]:
    """Slope and offset from the embeddings alone: I [N, d], T [M, d] unit rows -> (a, b).

    a = 2 / (mean over images of the standard deviation over concepts of the cosines), the slope of
    `soft_correlation`; b is such that an image shows `shown` concepts on average, sum over c of
    sigmoid(a I T' + b) (over at most 1,000 images, spread evenly). How many an image really shows is not in
    the embeddings: `shown` is an assumption, which moves all probabilities up or down and hardly changes
    which images come first. Errors: ValueError where concepts cannot be told apart, and for `shown` outside
    0..M.
    """
    check_number("shown", shown)
    apart = mean_spread(FactoredMatrix(I, T))
    if apart <= 1e-6:
        raise ValueError(
            f"no probability follows from cosines that are all alike, got {len(T)} concepts whose cosines in "
            f"an image are {apart:.2g} apart; give two different concepts or more"
        )
    if not 0 < shown < len(T):
        raise ValueError(
            f"an image shows more than none and fewer than all of {len(T)} concepts, got {shown}"
        )
    a = SHARPNESS / apart
    some = I[evenly_spaced(min(LOOKED_AT, len(I)), len(I))]
    logits = torch.matmul(some, T.to(some.dtype).T).mul_(a)
    low, high = -float(logits.max()) - 40, -float(logits.min()) + 40
    for _ in range(STEPS):
        b = (low + high) / 2
        if float((logits + b).sigmoid_().sum(1, dtype=torch.float64).mean()) > shown:
            high = b
        else:
            low = b
    return a, b


def calibrated(
    clip: Clip, I: Tensor, probe: Probe, concepts: Sequence[str], truth: Tensor | None = None
) -> tuple[float, float]:
    """Slope and offset of the CLIP's cosines: fitted to the truth about microworld scenes, or to the classes
    of folders (all others count as absent), else `unfitted`. I [N, d] are the probe's embeddings; `truth` is
    `true_presence`, where it is at hand.

    What was fitted for another CLIP or other images is never used: cosines have another scale there.
    """
    if probe.scenes is not None:
        truth = true_presence(probe, concepts) if truth is None else truth
        return _fitted(I, embed_concepts(clip, concepts), truth)
    names, truth, rows = class_truth(probe)
    if len(names) < 2:
        return unfitted(I, embed_concepts(clip, concepts).to(I.device))
    return _fitted(I[rows.to(I.device)], embed_concepts(clip, names), truth)


def _fitted(I: Tensor, T: Tensor, truth: Tensor) -> tuple[float, float]:
    """`fit_judge` of the cosines, cached by what it is fitted to: it goes over all of them twenty times."""
    contents = [I.cpu().numpy(), T.cpu().numpy(), truth.cpu().numpy()]
    spec = {
        "schema": 1,
        "fitted to": [
            f"{a.dtype} {a.shape} {hashlib.sha256(np.ascontiguousarray(a)).hexdigest()}" for a in contents
        ],
    }

    def make() -> dict[str, Tensor]:
        return {"judge": torch.tensor(fit_judge(I @ T.to(I.device).T, truth), dtype=torch.float64)}

    a, b = cache.bundle("judges", spec, make)["judge"].tolist()
    return a, b


def calibrated_from(probe: Probe) -> str:
    """What `calibrated` goes by, in words."""
    if probe.scenes is not None:
        return "fitted to the truth about the scenes"
    names, _, rows = class_truth(probe)
    if len(names) < 2:
        return "not fitted, as nothing is known of the images: as if each showed one concept on average"
    return f"fitted to the {len(names)} classes that folders name, of {len(rows)} images"


def judged_presence(I: Tensor, T: Tensor, judge: tuple[float, float], memory: int = MEMORY) -> Tensor:
    """Probability that concept m is in image n, sigmoid(a I T' + b): I [N, d], T [M, d] unit rows -> [N,
    M].
    """
    a, b = judge
    out = I.new_empty(len(I), len(T))
    for rows in slices(len(I), memory // (2 * out.itemsize * len(T))):
        torch.sigmoid(torch.matmul(I[rows], T.to(I.dtype).T).mul_(a).add_(b), out=out[rows])
    return out


def known_presence(
    probe: Probe,
    concepts: Sequence[str],
    judge: tuple[Clip, Tensor, tuple[float, float]] | None,
    memory: int = MEMORY,
) -> Tensor:
    """What is in the images [N, M]: the truth about scenes (bool), or the probabilities of a judge, which is
    a CLIP, its embeddings I [N, d] of the images and its `calibrated` slope and offset.
    """
    if judge is None:
        return true_presence(probe, concepts)
    clip, I, fit = judge
    return judged_presence(I, embed_concepts(clip, list(concepts)).to(I.device), fit, memory)


def presence_oracle(Q: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation of every unit's activation with the presence of every concept: the best name there
    is.

    Q [N, K], truth [N, M] (bool) -> [K, M]; dead units and concepts that are always or never present get 0.
    """
    return cross_correlation(Q, truth)


def oracle_blocks(
    Q: Tensor | SparseColumns, truth: Tensor, memory: int = MEMORY
) -> Iterator[tuple[slice, Tensor]]:
    """(units, `presence_oracle` of these): of a matrix all at once, of SparseColumns in blocks."""
    for units, q in unit_blocks(Q, memory, beside=2 * truth.shape[1]):
        yield units, presence_oracle(q, truth)


def best_by_truth(Q: Tensor | SparseColumns, truth: Tensor, memory: int = MEMORY) -> Tensor:
    """Index of the concept whose presence correlates best with each unit: Q [N, K], truth [N, M] -> [K]."""
    return torch.cat([r.argmax(1) for _, r in oracle_blocks(Q, truth, memory)])


def against_oracle(
    labels: Sequence[str], oracle: Tensor | Iterable[tuple[slice, Tensor]], concepts: Sequence[str]
) -> dict[str, float]:
    """Share of units whose label is the oracle's, mean correlation of the labels with their units, and the
    oracle's own mean.

    oracle [K, M] from `presence_oracle`, or its blocks; one label per unit, "" for one that has none: it
    reaches 0. Units that no concept correlates with count as they are.
    """
    where = {c: i for i, c in enumerate(concepts)} | {"": -1}
    every, parts = torch.tensor([where[label] for label in labels]), []
    for units, r in as_blocks(oracle):
        chosen = every[units].to(r.device)
        own = r.gather(1, chosen.clamp_min(0)[:, None]).squeeze(1).where(chosen >= 0, 0.0)
        parts.append((own, r.max(1).values))
    reached, best = (torch.cat(column) for column in zip(*parts))
    return {
        "same_as_oracle": float((reached == best).double().mean()),
        "correlation": float(reached.mean()),
        "oracle_correlation": float(best.mean()),
    }
