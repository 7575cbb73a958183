"""neuronym.describe.recall: every column by loops over units and texts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neuronym.describe.pipeline import Described
from neuronym.describe.recall import candidate_recall, label_diversity, recall_shares

CANDIDATES = {3: ["red rings", "moon", "red ring at night"], 0: ["star"], 2: ["sea", "grass"]}
SCORES = {3: [0.1, 0.9, 0.2], 0: [0.0], 2: [0.5, 0.4]}
WORDS = ["red ring", "sun", "grass"]
TEXTS = ["red rings", "moon", "red ring at night", "star", "sea", "grass", "red ring", "sun"]


@pytest.fixture(scope="module")
def seen():
    """Activations and presence of all texts in 40 images that name and 30 held out."""
    dice = torch.Generator().manual_seed(0)
    parts = []
    for n in (40, 30):
        there = (torch.rand(n, len(TEXTS), generator=dice) < 0.4).double()
        there[:, TEXTS.index("red rings")] = there[:, TEXTS.index("red ring")]
        parts.append((torch.randn(n, 4, generator=dice), there))
    return parts


def rows(seen, words=WORDS):
    described = Described(
        "layer", CANDIDATES, {unit: torch.tensor(some) for unit, some in SCORES.items()}, None
    )
    sides = [
        (Q, lambda texts, there=there: there[:, [TEXTS.index(text) for text in texts]]) for Q, there in seen
    ]
    return candidate_recall(described, words, *sides)


def test_every_column_literally(seen):
    table = rows(seen)
    assert table["unit"].tolist() == list(CANDIDATES) and set(table["layer"]) == {"layer"}

    def r(part, unit, text):
        Q, there = seen[part]
        return float(np.corrcoef(Q[:, unit].double().numpy(), there[:, TEXTS.index(text)].numpy())[0, 1])

    for row, (unit, some), word in zip(table.itertuples(), CANDIDATES.items(), WORDS):
        label = some[int(np.argmax(SCORES[unit]))]
        best = max(some, key=lambda text: r(0, unit, text))
        assert (row.label, row.best_candidate, row.word, row.candidates) == (label, best, word, len(some))
        for value, text in ((row.correlation, label), (row.best_correlation, best)):
            assert value == pytest.approx(r(1, unit, text))
        assert row.word_correlation == pytest.approx(r(1, unit, word))
        assert row.as_good == (r(0, unit, best) >= r(0, unit, word) - 1e-9)
    assert table["recalled"].tolist() == [True, False, True], "red rings is red ring"
    assert table["as_good"][0], "the same phrase is as good"


def test_shares_by_group(seen):
    table = pd.concat([rows(seen), rows(seen).assign(layer="fc")], ignore_index=True)
    shares = recall_shares(table, {"layer": "inner layers", "fc": "fc"}).set_index("group")
    assert list(shares.index) == ["inner layers", "fc"] and set(shares["units"]) == {3}
    one, own = shares.loc["fc"], rows(seen)
    assert one["recalled"] == pytest.approx(2 / 3) and one["candidates"] == 2
    assert 0 < one["recalled_low"] < 2 / 3 < one["recalled_high"] < 1
    means = own[["correlation", "best_correlation"]].mean()
    expected = means["correlation"] / means["best_correlation"] if means["best_correlation"] > 0 else np.nan
    assert one["share_of_best"] == pytest.approx(expected, nan_ok=True)
    perfect = own.assign(correlation=0.5, best_correlation=0.5, recalled=True)
    row = recall_shares(perfect, {"layer": "all"}).iloc[0]
    assert row["share_of_best"] == row["share_of_best_low"] == row["share_of_best_high"] == 1
    assert row["recalled_low"] < 0.5 and row["recalled_high"] == 1, "Wilson's: three of three"
    nothing = recall_shares(own.assign(best_correlation=-0.1), {"layer": "all"}).iloc[0]
    assert np.isnan(nothing["share_of_best"])


def test_each_unit_has_its_word(seen):
    with pytest.raises(ValueError, match="each unit has its best word, got 2 words for 3 units"):
        rows(seen, WORDS[:2])


def test_diversity_beside_the_oracle():
    labels = {"a": {"dnd": ["x", "y", "x", "x"], "oracle": ["x", "y", "z", "z"]}, "b": {"oracle": ["x"]}}
    table = label_diversity(labels)
    assert table[["layer", "method", "units", "distinct_labels", "oracle_distinct"]].values.tolist() == [
        ["a", "dnd", 4, 2, 3],
        ["a", "oracle", 4, 3, 3],
        ["b", "oracle", 1, 1, 1],
    ]
    assert table["distinct_share"].tolist() == [0.5, 0.75, 1]
    assert table["entropy"].tolist() == pytest.approx([0.811278, 1.5, 0])
