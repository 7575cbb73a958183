"""Kinds of unit at an equal count: the numbers of a plain loop, and that draws do not matter where all are
taken.
"""

from __future__ import annotations

import pytest
import torch

from neuronym.evaluation.presence import true_presence
from neuronym.measurements import measure
from neuronym.sae.naming import at_equal_count, name_layers, NamedLayer

M = 6


def layer(n: int, seed: int) -> NamedLayer:
    g = torch.Generator().manual_seed(seed)
    labels, oracle = (torch.randint(M, (n,), generator=g) for _ in range(2))
    return NamedLayer(torch.arange(n), labels, oracle, torch.rand(n, M, generator=g) - 0.3, n + 3)


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
        drawn.append((sum(of) / 25, len({int(named["many"].labels[i]) for i in some})))
    row = table.set_index(["layer", "method"]).loc[("many", "named")]
    assert row["correlation"] == pytest.approx(sum(c for c, _ in drawn) / 7, abs=1e-6)
    assert row["distinct_labels"] == pytest.approx(sum(n for _, n in drawn) / 7)
    assert row["correlation_low"] < row["correlation"] < row["correlation_high"]
    whole = table.set_index(["layer", "method"]).loc[("few", "named")]
    expected = named["few"].held.gather(1, named["few"].labels[:, None]).mean()
    assert whole["correlation"] == whole["correlation_low"] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="at least count=26, got 25 in one"):
        at_equal_count(named, 26)


def test_labels_and_oracle_are_of_the_naming_images():
    words = ["circle", "star", "red", "blue", "a red circle"]
    data = measure("microworld:resnet", "fc", "microworld:120", "microworld", words)
    naming, testing = data.split(0.5)
    truth = [true_presence(part.probe, words) for part in (naming, testing)]
    (named,) = name_layers(naming, testing, *truth).values()
    assert named.total == 52 and named.held.shape == (len(named.units), len(words))
    for i in range(0, len(named.units), 17):
        q = testing.Q["fc"][:, named.units[i]]
        expected = [correlation(q, truth[1][:, m]) for m in range(len(words))]
        assert named.held[i].tolist() == pytest.approx(expected, abs=1e-4)
        q = naming.Q["fc"][:, named.units[i]]
        assert int(named.oracle[i]) == max(range(len(words)), key=lambda m: correlation(q, truth[0][:, m]))
