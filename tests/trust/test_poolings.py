"""Units that another pooling names much better: literal correlations, the rule, and one pass for all."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neuronym.activations import other_poolings
from neuronym.measurements import measure, Measurements
from neuronym.similarity.scores import score
from neuronym.trust.poolings import pooled_otherwise, pooling_notes

N, K, M = 300, 3, 5
WORDS = ["a", "b", "c", "d", "e"]


def parts() -> tuple[Measurements, Measurements]:
    """Unit 0 follows concept 2 by its mean and its largest value, unit 1 by its largest value alone, unit 2
    nothing.
    """
    dice = torch.Generator().manual_seed(0)
    I = nn.functional.normalize(torch.randn(2 * N, 4, generator=dice, dtype=torch.float64), dim=1)
    T = nn.functional.normalize(torch.randn(M, 4, generator=dice, dtype=torch.float64), dim=1)
    avg, most = (torch.randn(2 * N, K, generator=dice, dtype=torch.float64) for _ in range(2))
    avg[:, 0] += 4 * (I @ T[2])
    most[:, 0] += 4 * (I @ T[2])
    most[:, 1] += 4 * (I @ T[3])
    both = []
    for rows in (slice(0, N), slice(N, None)):
        of = {"Q": {"x": avg[rows]}, "I": I[rows], "T": T, "beside": {"x": {"max": most[rows]}}}
        both.append(Measurements(None, {}, None, None, WORDS, **of))
    return both[0], both[1]


def literal(test: Measurements, q: np.ndarray, c: int) -> float:
    P = (test.I @ test.T.T).numpy()
    slope = 2 / np.mean([math.sqrt(sum((x - row.mean()) ** 2 for x in row) / M) for row in P])
    powers = np.exp(slope * P)
    return float(np.corrcoef(q, (powers / powers.sum(1, keepdims=True))[:, c])[0, 1])


def test_correlations_are_the_literal_ones_and_one_unit_is_better_otherwise():
    naming, test = parts()
    named = score(naming.P, naming.Q["x"], "soft_correlation").argmax(1)
    found = pooled_otherwise(naming, test, {"x": named}, "soft_correlation")
    labels = score(naming.P, naming.beside["x"]["max"], "soft_correlation").argmax(1)
    for k in range(K):
        r, other = (
            literal(test, q[:, k].numpy(), int(c[k]))
            for q, c in ((test.Q["x"], named), (test.beside["x"]["max"], labels))
        )
        row = found.loc[k]
        assert row["correlation"] == pytest.approx(r) and row["other_correlation"] == pytest.approx(other)
        sure = math.atanh(other) - math.atanh(r) > 2.326 * math.sqrt(2 / (N - 3))
        assert row["better"] == (sure and other - r >= 0.05)
    assert found["better"].tolist() == [False, True, False] and found["other_label"][1] == "d"
    table = pd.DataFrame({"layer": ["x", "x", "y"], "unit": [1, 0, 1]})
    notes = pooling_notes(table, found)["pooling_note"].tolist()
    r, other = (f"{found[name][1]:.2f}".replace("0.", ".") for name in ("correlation", "other_correlation"))
    assert notes == [f"max: 'd' {other}, here {r}", "", ""]
    few = pooled_otherwise(
        naming,
        test.__class__(**vars(test) | {"I": test.I[:3]} | of_rows(test, 3)),
        {"x": named},
        "soft_correlation",
    )
    assert not few["better"].any()
    alone = pooled_otherwise(Measurements(**vars(naming) | {"beside": {}}), test, {"x": named}, "correlation")
    assert not len(alone) and (pooling_notes(table, alone)["pooling_note"] == "").all()


def of_rows(data: Measurements, n: int) -> dict:
    return {"Q": {"x": data.Q["x"][:n]}, "beside": {"x": {"max": data.beside["x"]["max"][:n]}}}


@pytest.mark.parametrize("network, layer", [("resnet", "layer4"), ("vit", "encoder.layers.encoder_layer_5")])
def test_other_poolings_come_out_of_the_same_pass(network, layer):
    given = ("microworld:40", "microworld", ["a red circle", "a star"])
    data = measure(
        f"microworld:{network}",
        f"{layer},fc" if network == "resnet" else layer,
        *given,
        pool="auto",
        beside=True,
    )
    expected = ["max"] if network == "resnet" else ["avg", "max"]
    assert list(data.beside) == [layer] and list(data.beside[layer]) == expected
    assert other_poolings(list(data.layers.values()), "auto") == {layer: expected}
    for how, q in data.beside[layer].items():
        assert torch.equal(q, measure(data.target, layer, *given, pool=how).Q[layer])
    part = data.rows([3, 1])
    assert torch.equal(part.beside[layer]["max"], data.beside[layer]["max"][[3, 1]])
