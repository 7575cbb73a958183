"""Methods against metrics: the numbers, the pairing, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wilcoxon

from neuronym.evaluation import explanations
from neuronym.evaluation.explanations import choose_active, method_differences, method_means, score_methods
from neuronym.evaluation.metrics import active_images, METRICS, SOUND
from neuronym.evaluation.presence import presence_oracle

WORDS = ["a", "b", "c"]


@pytest.fixture
def world():
    """present [N, 3], and two layers of 4 and 2 units that act on one concept each, with noise."""
    dice = torch.Generator().manual_seed(3)
    present = torch.rand(257, 3, generator=dice) < torch.tensor([0.1, 0.3, 0.5])
    on = {"first": [0, 1, 2, 1], "second": [2, 0]}
    Q = {
        layer: present[:, some].double()
        + 0.3 * torch.randn(257, len(some), generator=dice, dtype=torch.float64)
        for layer, some in on.items()
    }
    return present, Q, on


def test_choose_active_finds_the_frequency_of_the_concepts(world):
    present, Q, _ = world
    for share, unit in ((0.1, 0), (0.5, 2)):
        assert choose_active(present, Q["first"][:, [unit]]) == share
    literal = {
        s: float(
            np.mean(
                [
                    max(np.corrcoef(on, p)[0, 1] for p in present.T.double().numpy())
                    for on in active_images(Q["first"], s).T.double().numpy()
                ]
            )
        )
        for s in (0.05, 0.2, 0.5)
    }
    assert choose_active(present, Q["first"], (0.05, 0.2, 0.5)) == max(literal, key=literal.get)


def test_scored_gives_each_metric_of_each_unit(world):
    present, Q, on = world
    explained = {
        layer: {
            "right": explanations.single(torch.tensor(some), WORDS),
            "wrong": explanations.single(torch.tensor([(i + 1) % 3 for i in some]), WORDS),
        }
        for layer, some in on.items()
    }
    table = score_methods(explained, present, Q, {"first": 0.3, "second": 0.2}, list(METRICS)[:8])
    assert len(table) == 12 and table["text"].tolist()[:4] == ["a", "b", "c", "b"]
    for row in table.itertuples():
        concept = WORDS.index(row.text)
        for name in list(METRICS)[:8]:
            one = METRICS[name](
                Q[row.layer][:, [row.unit]], present[:, [concept]], 0.3 if row.layer == "first" else 0.2
            )
            assert getattr(row, name) == pytest.approx(float(one), abs=1e-12)
    wide = table.pivot(index=["layer", "unit"], columns="method", values="correlation")
    assert (wide["right"] > wide["wrong"] + 0.3).all()


def test_a_cut_is_used_where_predictions_are_no_probabilities(world):
    present, Q, on = world
    raw = lambda p: 7 * p[:, on["first"]].double() - 2
    cut = explanations.Explanations(list("wxyz"), raw, torch.zeros(4, dtype=torch.float64))
    plain = explanations.single(torch.tensor(on["first"]), WORDS)
    table = score_methods({"first": {"sum": cut, "label": plain}}, present, Q, {"first": 0.3}).set_index(
        "method"
    )
    for name in ("correlation", "auprc", "f1", "iou"):
        assert np.allclose(table.loc["sum", name], table.loc["label", name])


def test_units_can_be_chosen(world):
    present, Q, on = world
    some = {"first": [3, 1]}
    table = score_methods(
        {"first": {"right": explanations.single(torch.tensor([1, 1]), WORDS)}},
        present,
        Q,
        {"first": 0.3},
        units=some,
    )
    full = score_methods(
        {"first": {"right": explanations.single(torch.tensor(on["first"]), WORDS)}},
        present,
        Q,
        {"first": 0.3},
    ).set_index("unit")
    assert table["unit"].tolist() == [3, 1] and np.allclose(table["iou"], full.loc[[3, 1], "iou"])


@pytest.mark.parametrize(
    "units, labels, rows, message",
    [
        ({"first": [0, 0]}, [0, 0], None, "scored once"),
        (None, [0, 1], None, "explains 2 units of first, which has 4"),
        (None, [0, 1, 2, 1], slice(0, 100), "same images, got 100 and 257"),
    ],
)
def test_scored_refuses(world, units, labels, rows, message):
    present, Q, _ = world
    with pytest.raises(ValueError, match=message):
        score_methods(
            {"first": {"m": explanations.single(torch.tensor(labels), WORDS)}},
            present[rows] if rows else present,
            Q,
            {"first": 0.3},
            units=units,
        )


def made(seed: int = 0) -> pd.DataFrame:
    """Two layers of 9 and 5 units, three methods that differ by .1 with common noise."""
    dice = np.random.default_rng(seed)
    rows = [
        (layer, unit, method, common + shift + 0.01 * dice.normal())
        for layer, n in (("x", 9), ("y", 5))
        for unit in range(n)
        for common in [dice.normal()]
        for method, shift in (("low", 0.0), ("high", 0.1), ("same", 0.0))
    ]
    return pd.DataFrame(rows, columns=["layer", "unit", "method", "iou"])


def test_means_resample_neurons_within_layers_jointly():
    table = made()
    found = method_means(table, ["iou"], {"x": "all", "y": "all"}).set_index("method")
    assert (
        np.allclose(found["mean"], table.groupby("method")["iou"].mean()[found.index])
        and (found["units"] == 14).all()
    )
    assert ((found["low"] < found["mean"]) & (found["mean"] < found["high"])).all()
    # the same neurons are drawn for all, so the ends of both intervals are .1 apart though the noise is ten
    # times as much
    assert abs(found.loc["high", "low"] - found.loc["low", "low"] - 0.1) < 0.02
    assert method_means(table, ["iou"])["group"].tolist() == ["x"] * 3 + ["y"] * 3
    assert method_means(table, ["iou"], seed=1).equals(method_means(table, ["iou"], seed=1))


def test_against_pairs_neurons_and_corrects():
    table = made()
    found = method_differences(table, "low", "iou", {"x": "all", "y": "all"}).set_index("method")
    wide = table.pivot(index=["layer", "unit"], columns="method", values="iou")
    for method in ("high", "same"):
        d = wide[method] - wide["low"]
        assert found.loc[method, "difference"] == pytest.approx(d.mean()) and found.loc[
            method, "p"
        ] == pytest.approx(wilcoxon(d).pvalue)
    assert (
        found.loc["high", "holm"] == pytest.approx(2 * found.loc["high", "p"])
        and found.loc["high", "low"] > 0.05
    )
    assert found.loc["same", "low"] < 0 < found.loc["same", "high"]
    with pytest.raises(KeyError, match="no method 'hihg'; nearest: high"):
        method_differences(table, "hihg", "iou")
    identical = method_differences(
        pd.concat([table, table[table["method"] == "low"].assign(method="twin")]), "low", "iou"
    ).set_index("method")
    assert (identical.loc["twin", "p"] == 1).all() and (identical.loc["twin", "difference"] == 0).all()


def test_mismatched_units_and_duplicates_are_refused():
    table = made()
    with pytest.raises(ValueError, match="high has unit 2 of x twice"):
        method_means(
            pd.concat(
                [table, table[(table["method"] == "high") & (table["unit"] == 2) & (table["layer"] == "x")]]
            ),
            ["iou"],
        )
    with pytest.raises(ValueError, match="1 of 9 lack iou of some method"):
        method_means(
            table.drop(
                table[(table["layer"] == "x") & (table["unit"] == 4) & (table["method"] == "same")].index
            ),
            ["iou"],
        )


def test_the_oracle_is_the_best_label_by_its_own_metric(world):
    present, Q, _ = world
    methods = {str(m): explanations.single(torch.full((4,), m), WORDS) for m in range(3)}
    methods["oracle"] = explanations.single(presence_oracle(Q["first"], present).argmax(1), WORDS)
    wide = score_methods({"first": methods}, present, Q, {"first": 0.3}, SOUND).pivot(
        index="unit", columns="method", values="correlation"
    )
    assert np.allclose(wide["oracle"], wide[["0", "1", "2"]].max(axis=1))
