"""Kinds of unit at an equal count: the numbers of a plain loop, and that draws do not matter where all are
taken.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from neuronym.evaluation.presence import true_presence
from neuronym.measurements import measure
from neuronym.microworld.world import CLASSES
from neuronym.sae.naming import at_equal_count, differences, MEASURED, name_layers, NamedLayer, over_repeats

M = 6


def layer(n: int, seed: int) -> NamedLayer:
    g = torch.Generator().manual_seed(seed)
    labels, oracle = (torch.randint(M, (n,), generator=g) for _ in range(2))
    held, trust = torch.rand(n, M, generator=g) - 0.3, torch.rand(n, generator=g)
    return NamedLayer(torch.arange(n), labels, oracle, held, trust, n + 3)


def correlation(q: torch.Tensor, shown: torch.Tensor) -> float:
    """0 for a concept that is always or never there."""
    pair = torch.stack([q.double(), shown.double()])
    return float(torch.corrcoef(pair)[0, 1]) if shown.any() and not shown.all() else 0.0


def test_equal_counts_are_means_over_draws():
    named = {"few": layer(25, 0), "many": layer(60, 1)}
    table = at_equal_count(named, draws=7, generator=torch.Generator().manual_seed(5))
    assert table["count"].eq(25).all() and list(table["layer"]) == ["few", "few", "many", "many"]
    assert list(table["alive"]) == [25, 25, 60, 60] and list(table["units"]) == [28, 28, 63, 63]
    g, drawn = torch.Generator().manual_seed(5), []
    torch.randperm(25, generator=g)
    for _ in range(7):
        some = torch.randperm(60, generator=g)[:25].tolist()
        of = [float(named["many"].held[i, named["many"].labels[i]]) for i in some]
        trust = sum(float(named["many"].trust[i]) for i in some) / 25
        drawn.append((sum(of) / 25, len({int(named["many"].labels[i]) for i in some}), trust))
    row = table.set_index(["layer", "method"]).loc[("many", "named")]
    assert row["correlation"] == pytest.approx(sum(c for c, _, _ in drawn) / 7, abs=1e-6)
    assert row["distinct_labels"] == pytest.approx(sum(n for _, n, _ in drawn) / 7)
    assert row["trust"] == pytest.approx(sum(t for _, _, t in drawn) / 7, abs=1e-6)
    assert row["correlation_low"] < row["correlation"] < row["correlation_high"]
    whole = table.set_index(["layer", "method"]).loc[("few", "named")]
    expected = named["few"].held.gather(1, named["few"].labels[:, None]).mean()
    assert whole["correlation"] == whole["correlation_low"] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="at least count=26, got 25 in one"):
        at_equal_count(named, 26)


def repeated(values: dict) -> pd.DataFrame:
    """A table of `at_equal_count`: {(repeat, pooling, layer): correlation of the labels}."""
    rows = []
    for (repeat, pool, kind), value in values.items():
        for method, own in (("named", value), ("oracle", value + 0.1)):
            row = {"layer": kind, "method": method, "units": 9, "alive": 8, "count": 5}
            for column in MEASURED:
                row |= {column: own, f"{column}_low": own - 1, f"{column}_high": own + 1}
            rows.append(row | {"pooling": pool, "repeat": repeat})
    return pd.DataFrame(rows)


def test_repeats_become_means_and_paired_differences():
    g = torch.Generator().manual_seed(4)
    keys = [(r, p, k) for r in (1, 2, 3) for p in ("avg", "max") for k in ("neurons", "topk", "untrained")]
    base = {"neurons": 0.4, "topk": 0.45, "untrained": 0.2}
    values = {key: base[key[2]] + 0.02 * float(torch.rand(1, generator=g)) for key in keys}
    table = repeated(values)
    means = over_repeats(table).set_index(["pooling", "layer", "method"])
    own = [values[r, "max", "topk"] for r in (1, 2, 3)]
    row = means.loc[("max", "topk", "named")]
    assert row["correlation"] == pytest.approx(sum(own) / 3)
    assert (row["correlation_low"], row["correlation_high"]) == (min(own), max(own))
    single = table[table["repeat"] == 1]
    assert over_repeats(single).equals(single.drop(columns="repeat"))

    found = differences(table).set_index(["layer", "pooling"])
    gaps = [values[r, "max", "topk"] - values[r, "max", "neurons"] for r in (1, 2, 3)]
    mean = sum(gaps) / 3
    wide = 4.302652729911275 * (sum((x - mean) ** 2 for x in gaps) / 2 / 3) ** 0.5
    row = found.loc[("topk", "max")]
    assert row[["difference", "low", "high"]].tolist() == pytest.approx([mean, mean - wide, mean + wide])
    assert row["verdict"] == ("better" if mean > wide else "not told apart")
    assert found.loc[("untrained", "avg"), "verdict"] == "worse"
    assert set(differences(table, "untrained")["layer"]) == {"neurons", "topk"}
    best = differences(table, best=True).set_index("layer")
    pools = {
        kind: max(("avg", "max"), key=lambda p: sum(values[r, p, kind] for r in (1, 2, 3))) for kind in base
    }
    assert best.loc["topk", "pooling"] == f"{pools['topk']}, {pools['neurons']}"
    one = differences(single).iloc[0]
    assert one["verdict"] == "not told apart" and one[["low", "high"]].isna().all()
    with pytest.raises(ValueError, match="compared with one of neurons, topk, untrained, got 'units'"):
        differences(table, "units")


def test_labels_and_oracle_are_of_the_naming_images():
    words = ["circle", "star", "red", "blue", "a red circle"]
    data = measure("microworld:resnet", "fc", "microworld:120", "microworld", words)
    naming, testing = data.split(0.5)
    truth = [true_presence(part.probe, words) for part in (naming, testing)]
    (named,) = name_layers(naming, testing, *truth).values()
    right = torch.tensor(
        [CLASSES[k] in words[m] for k, m in zip(named.units.tolist(), named.labels.tolist())]
    )
    assert named.trust[right].mean() > 0.8 > 0.4 > named.trust[~right].mean()
    assert named.total == 52 and named.held.shape == (len(named.units), len(words))
    for i in range(0, len(named.units), 17):
        q = testing.Q["fc"][:, named.units[i]]
        expected = [correlation(q, truth[1][:, m]) for m in range(len(words))]
        assert named.held[i].tolist() == pytest.approx(expected, abs=1e-4)
        q = naming.Q["fc"][:, named.units[i]]
        assert int(named.oracle[i]) == max(range(len(words)), key=lambda m: correlation(q, truth[0][:, m]))
