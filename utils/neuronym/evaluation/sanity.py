"""Can a metric tell a good explanation from a spoilt one? NeuronEval's two sanity tests, in theory and on
real units.

A metric passes when its score falls by more than .001 of its range once half of an explanation's true labels
are gone (missing), and once as many wrong ones are added (extra). One that does not notice rewards
explanations that are too narrow, or too wide.

RELEASED          the 18 metrics as NeuronEval's release has them, where ours differ
printed_sanity    NeuronEval's own results
missing_labels    labels with some of the true ones dropped
extra_labels      labels with wrong ones added
in_theory         both tests on perfect neurons of known frequencies
varying           units that can be tested
in_practice       both tests on units and their true concepts
verdict           which metrics pass
beside_published  shares of cases passed beside NeuronEval's own
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from neuronym.common.checks import check_number, check_positive_int
from neuronym.evaluation.metrics import (
    ACTIVE,
    mad,
    metric_values,
    METRICS,
    Pairs,
    spearman,
    spearman_top_and_random,
)
from neuronym.published.values import printed

FREQUENCIES = (0.499, 0.1, 0.01, 0.001, 0.0001)
TESTS = ("missing", "extra")
LEAST = 0.001  # fall of the score, as a share of the metric's range, that counts
SIGNED = ("correlation", "cosine", "spearman", "correlation_top_and_random", "spearman_top_and_random")
UNBOUNDED = ("mad", "wpmi")
RANDOM = ("spearman", "correlation_top_and_random", "spearman_top_and_random")  # or may be, with random ties
OTHERS = 20  # concepts each unit meets for the observed range of these
# ties of ranks broken by noise, means of activations not divided: with averaged ranks a Spearman correlation
# of what is
# binary is Pearson's, and passes in theory; a divided difference of means changes which frequencies pass
RELEASED: dict[str, Callable[..., Tensor]] = METRICS | {
    "spearman": partial(spearman, ties="random"),
    "mad": partial(mad, scale=False),
    "spearman_top_and_random": partial(spearman_top_and_random, ties="random"),
}


def printed_sanity() -> pd.DataFrame:
    """NeuronEval's own results, one row a metric: shares of cases passed in columns (test, kind), such as
    ("missing", "theory"), and ("passes", "all"), bool.
    """
    table = printed("metric_sanity")
    wide = table.pivot(index="metric", columns=["test", "kind"], values="value").reindex(
        table["metric"].unique()
    )
    return wide.astype({("passes", "all"): bool}).rename_axis(index=None)


def missing_labels(present: Tensor, generator: torch.Generator | None = None, share: float = 0.5) -> Tensor:
    """Labels [N, K], bool or 0 and 1, with each true one dropped with probability `share`; in their own
    dtype.
    """
    check_number("share", share, 0, 1)
    return present * (_random(present, generator) >= share)


def extra_labels(present: Tensor, generator: torch.Generator | None = None, factor: float = 2) -> Tensor:
    """Labels [N, K], bool or 0 and 1, with wrong ones added until there are `factor` times as many in
    expectation.

    Each of the N - n images without the concept gets it with probability (factor - 1) n / (N - n), at most 1.
    """
    check_number("factor", factor, 1)
    n = _true(present).sum(0).double()
    added = _random(present, generator) < (factor - 1) * n / (len(present) - n).clamp_min(1)
    return (present.bool() | added).to(present.dtype)


def in_theory(
    metrics: Mapping[str, Callable[..., Tensor]] = RELEASED,
    N: int = 500_000,
    frequencies: Sequence[float] = FREQUENCIES,
    draws: int = 3,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Both tests on neurons that are 1 exactly where their concept is, present in a share `frequencies` of N
    images.

    Columns metric, test, frequency, change (of the score, as a share of its range, mean over draws), passed
    (share of draws). `metrics` maps names to functions of `Pairs`. Metrics that draw at random are measured
    again before every draw, where the release measures once: one lucky draw would decide about all.
    """
    check_positive_int("N", N)
    for share in frequencies:
        check_number("frequency", share, 0, 1)
    n = torch.tensor([round(share * N) for share in frequencies])
    if not len(n) or (n < 1).any() or (n >= N).any():
        raise ValueError(
            f"each frequency of {list(frequencies)} must give 1 to {N - 1} of {N} images; pass another N"
        )
    perfect = torch.arange(N)[:, None] < n  # [N, K]
    changes = _changes(perfect, perfect, metrics, perfect, draws, generator)
    return _table("frequency", list(frequencies), changes, each=True)


def in_practice(
    Q: Tensor,
    present: Tensor,
    metrics: Mapping[str, Callable[..., Tensor]] = METRICS,
    active: float | Tensor = ACTIVE,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Both tests on units Q [N, K] and their true concepts present [N, K], bool or 0 and 1: column k is unit
    k's own.

    Columns metric, test, unit (column), change (as in `in_theory`), passed (0 or 1: of the mean over draws).
    Errors: ValueError for a constant unit and for a concept never or always present: no label could change
    its score.
    """
    true, _ = _true(present), Pairs(Q, present, active)
    for what, odd in (
        ("a concept never or always present", true.all(0) | ~true.any(0)),
        ("a constant activation", Q.amax(0) == Q.amin(0)),
    ):
        if bool(odd.any()):
            raise ValueError(
                f"a sanity test needs units and labels that vary, got {what} at unit "
                f"{odd.nonzero()[0].item()}; leave that unit out"
            )
    return _table(
        "unit", range(Q.shape[1]), _changes(Q, present, metrics, active, draws, generator), each=False
    )


def varying(Q: Tensor, present: Tensor) -> list[int]:
    """Units whose activation varies, and whose own concept is in some of the images and not in all: Q and
    present [N, K].
    """
    true = _true(present)
    good = true.any(0) & ~true.all(0) & (Q.amax(0) > Q.amin(0)).to(true.device)
    return good.nonzero().squeeze(1).tolist()


def verdict(*tables: pd.DataFrame, enough: float = 0.9) -> pd.DataFrame:
    """Share of cases passed by metric, the least over tables (theory, practice), and passes: both at least
    `enough`.

    .9 gives NeuronEval's five from its numbers: the worst of theirs is .936 (IoU, missing, in practice), the
    best of the others' worst .895 (inverse AUPRC, extra, in theory). One table alone may pass more: in theory
    WPMI does.
    """
    check_number("enough", enough, 0, 1)
    if not tables or any(table.empty for table in tables):
        raise ValueError("a verdict needs a table of in_theory or in_practice with rows, got none")
    shares = [
        table.groupby(["metric", "test"], sort=False)["passed"].mean().unstack()[list(TESTS)]
        for table in tables
    ]
    least = pd.concat(shares).groupby(level=0, sort=False).min()
    return least.assign(passes=(least >= enough).all(axis=1)).rename_axis(columns=None)


def beside_published(theory: pd.DataFrame, practice: pd.DataFrame | None = None) -> pd.DataFrame:
    """Shares of cases passed, one row a metric of `printed_sanity` and in its order; columns (test, kind,
    whose), such as ("missing", "theory", "published"), and ("passes", "all", ...) for the verdicts.
    """
    kinds = {"theory": theory} | ({} if practice is None else {"practice": practice})
    theirs = printed_sanity()
    order = list(theirs.index)
    columns = {}
    for test in TESTS:
        for kind, table in kinds.items():
            columns[test, kind, "here"] = verdict(table)[test].reindex(order)
            columns[test, kind, "published"] = theirs[test, kind]
    columns["passes", "all", "here"] = verdict(*kinds.values())["passes"].reindex(order)
    columns["passes", "all", "published"] = theirs["passes", "all"]
    return pd.DataFrame(columns, index=order)


def _changes(
    Q: Tensor,
    present: Tensor,
    metrics: Mapping[str, Callable[..., Tensor]],
    active: float | Tensor,
    draws: int,
    generator: torch.Generator | None,
) -> dict[str, dict[str, Tensor]]:
    """metric -> test -> change of the score as a share of the metric's range, [draws, K]."""
    check_positive_int("draws", draws)
    before = metric_values(Q, present, metrics, active, generator)
    spoilt, found = [present], {name: {test: [] for test in TESTS} for name in metrics}
    for draw in range(draws):
        if draw:
            again = {name: metrics[name] for name in RANDOM if name in metrics}
            before |= metric_values(Q, present, again, active, generator)
        for test, spoil in zip(TESTS, (missing_labels, extra_labels)):
            labels = spoil(present, generator)
            spoilt += [labels] if draw == 0 else []
            for name, score in metric_values(Q, labels, metrics, active, generator).items():
                found[name][test].append(score - before[name])
    for name, tests in found.items():
        width = _width(name, metrics[name], Q, spoilt, active, generator)
        found[name] = {test: torch.stack(changes) / width for test, changes in tests.items()}
    return found


def _width(
    name: str,
    metric: Callable[..., Tensor],
    Q: Tensor,
    spoilt: list[Tensor],
    active: float | Tensor,
    generator: torch.Generator | None,
) -> float:
    """What the score can range over: by definition, or what is seen when units meet other units' concepts as
    well.
    """
    if name in METRICS and name not in UNBOUNDED:
        return 2.0 if name in SIGNED else 1.0
    seen = torch.cat(
        [
            metric(Pairs(Q, labels.roll(shift, 1), active, generator))
            for labels in spoilt
            for shift in range(min(Q.shape[1], OTHERS))
        ]
    )
    return float(seen.max() - seen.min()) or 1.0


def _table(what: str, cases: Sequence, changes: dict[str, dict[str, Tensor]], each: bool) -> pd.DataFrame:
    """A row for each metric, test and case; passed is judged draw by draw (each), or on the mean over
    draws.
    """
    rows = []
    for name, tests in changes.items():
        for test, change in tests.items():
            mean = change.mean(0)
            passed = (change < -LEAST).double().mean(0) if each else (mean < -LEAST).double()
            rows += [(name, test, *row) for row in zip(cases, mean.tolist(), passed.tolist())]
    return pd.DataFrame(rows, columns=["metric", "test", what, "change", "passed"])


def _true(present: Tensor) -> Tensor:
    """Labels as bool, if they are."""
    if not isinstance(present, Tensor) or present.ndim != 2 or not present.numel():
        raise ValueError(
            "expected labels as a tensor [N, K], not empty, got "
            f"{list(present.shape) if isinstance(present, Tensor) else type(present).__name__}"
        )
    if not bool(((present == 0) | (present == 1)).all()):
        odd = present[(present != 0) & (present != 1)][0].item()
        raise ValueError(f"labels must be 0 or 1, got {odd:.4g}; compare them with a threshold first")
    return present.bool()


def _random(present: Tensor, generator: torch.Generator | None) -> Tensor:
    device = present.device if generator is None else generator.device
    return torch.rand(_true(present).shape, generator=generator, device=device).to(present.device)
