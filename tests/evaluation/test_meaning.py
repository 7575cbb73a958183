"""Columns that say whether a unit is worth a name: their definitions, and what must not matter."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from neuronym.evaluation.meaning import any_images, EXAMPLES, MEANING, meaning_columns, with_meaning
from tests.helpers import reference_meaning as reference

N, K, d = 31, 6, 5


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    Q = torch.randn(N, K, generator=g)
    Q[:, 1] = Q[:, 1].relu()  # as behind a ReLU
    Q[:, 2] = Q[:, 0] * 2 + 1  # the same images
    Q[:, 5] = (Q[:, 5] - 1.5).relu()  # rare
    I = torch.nn.functional.normalize(torch.randn(N, d, generator=g) + 0.5, dim=1)
    return Q, I


@pytest.mark.parametrize("n", [2, 7, N, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_columns_are_their_definitions(n, seed):
    Q, I = data(seed)
    found = meaning_columns(Q, I, n)
    assert list(found) == MEANING
    expected = torch.tensor(reference.meaning(Q, I, min(n, N)), dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found.to_numpy()), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert found["redundancy"][0] == pytest.approx(1, abs=1e-6)


def test_blocks_order_and_scale_do_not_matter():
    Q, I = data()
    found = meaning_columns(Q, I)
    small = meaning_columns(Q, I, memory=1)
    pd.testing.assert_frame_equal(small, found, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(meaning_columns(Q * 3 + 2, I * 1.005), found, rtol=1e-4, atol=1e-5)
    deal = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    again = meaning_columns(Q[deal], I[deal])
    columns = ["monosemanticity", "clarity", "redundancy"]  # equal pairs of two-means go by their order
    pd.testing.assert_frame_equal(again[columns], found[columns], rtol=1e-4, atol=1e-5)


def test_units_of_one_value_have_no_meaning_and_are_nobodys_double():
    Q, I = data()
    Q[:, 3], Q[:, 4] = 0, 2.5
    found = meaning_columns(Q, I)
    assert found.loc[[3, 4]].isna().all(axis=None) and found.drop([3, 4]).notna().all(axis=None)
    some = meaning_columns(Q[:, [0, 1, 2, 5]], I)
    pd.testing.assert_frame_equal(some, found.drop([3, 4]).reset_index(drop=True), rtol=1e-5, atol=1e-6)
    alone = meaning_columns(Q[:, [0, 3]], I)
    assert alone.loc[0, "redundancy"] != alone.loc[0, "redundancy"] and alone.loc[0, "clarity"] < 1
    assert meaning_columns(Q[:1], I[:1]).isna().all(axis=None)
    once = torch.zeros(N, 1)
    once[4] = 1  # one image alone makes no pair
    assert meaning_columns(once, I).isna().all(axis=None)


def test_two_meanings_are_far_apart_and_one_is_clear():
    g = torch.Generator().manual_seed(3)
    axes = torch.eye(d)[[0] * 10 + [1] * 10 + [2] * 20]
    I = torch.nn.functional.normalize(axes + 0.05 * torch.randn(40, d, generator=g), dim=1)
    Q = torch.zeros(40, 2)
    Q[:20, 0], Q[20:, 1] = 1 + torch.rand(20, generator=g), 1 + torch.rand(20, generator=g)
    found = meaning_columns(Q, I, 20)
    assert found.loc[0, "polysemanticity"] > 0.9 and found.loc[1, "polysemanticity"] < 0.05
    assert found.loc[1, "clarity"] > 0.95 and found.loc[1, "monosemanticity"] > 0.95
    assert found.loc[0, "clarity"] < 0.55
    pairs = reference.monosemanticity([1.0] * 39 + [0.0], reference.unit_rows(I))
    assert any_images(I[:39]) == pytest.approx(pairs, abs=1e-6)


def test_a_labels_table_has_them_beside_every_rank():
    Q, I = data()
    labels = pd.DataFrame({"layer": ["b", "b", "a"], "unit": [4, 4, 0], "rank": [1, 2, 1]})
    table = with_meaning(with_meaning(labels, {"a": Q, "b": Q + 1}, I), {"a": Q, "b": Q + 1}, I)
    own = meaning_columns(Q, I, EXAMPLES)
    assert table[MEANING].to_numpy() == pytest.approx(own.loc[[4, 4, 0]].to_numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="of the same images, got"):
        meaning_columns(Q, I[1:])
