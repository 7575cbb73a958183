"""neuronym.second_order.ablation: hand values, numpy's correlation, and falls by editing the whole
network.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neuronym import hooks
from neuronym.common.statistics import correlation
from neuronym.datasets.probe import subset
from neuronym.second_order import ablation
from neuronym.second_order.ablation import logit_drop, predicted_effect, word_percentile
from neuronym.second_order.tower import read_tower


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_simulated_is_the_literal_sum():
    weights, present = random(3, 7), random(5, 7, seed=1) > 0
    expected = [
        [math.fsum(float(weights[k, j]) for j in range(7) if present[i, j]) for k in range(3)]
        for i in range(5)
    ]
    assert_close(
        predicted_effect(weights, present),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-12,
        atol=1e-12,
    )
    label = torch.zeros(1, 7)
    label[0, 4] = 1
    assert predicted_effect(label, present)[:, 0].tolist() == present[:, 4].tolist()
    assert predicted_effect(label, random(5, 7)).dtype == torch.float32


# correlation


def test_correlation_by_hand():
    true = torch.tensor([1.0, 2.0, 3.0])
    predicted = torch.tensor([[2.0, 4.0, 6.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [0.0, 1.0, 0.0]]).T
    assert correlation(predicted, true[:, None].expand(-1, 4)).tolist() == pytest.approx(
        [1.0, -1.0, 0.5, 0.0], abs=1e-15
    )


def test_correlation_is_numpys_whatever_scale_and_offset():
    p, t = random(13, 3), random(13, 3, seed=1)
    expected = [np.corrcoef(p[:, k], t[:, k])[0, 1] for k in range(3)]
    for scale, offset in ((1, 0), (1e-9, 0), (1e-200, 0), (1e100, 0), (-1, 0), (1, 1e3)):
        found = correlation(scale * p + offset, 1e-5 * t - 3)
        assert found.tolist() == pytest.approx([math.copysign(1, scale) * r for r in expected], rel=1e-9)
    assert correlation(p.float(), t.float()).tolist() == pytest.approx(expected, rel=1e-5)
    assert correlation(p > 0, t).tolist() == pytest.approx(
        [np.corrcoef((p > 0)[:, k].double(), t[:, k])[0, 1] for k in range(3)]
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1, -1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_constant_correlates_with_nothing(constant, dtype):
    t = 1e4 * random(7, 2).to(dtype)
    c = torch.full((7, 2), constant, dtype=dtype)
    assert (
        correlation(c, t).tolist() == correlation(t, c).tolist() == correlation(c, c).tolist() == [0.0, 0.0]
    )
    rounded = c * torch.tensor([1.0, 1 + torch.finfo(dtype).eps, 1, 1, 1, 1, 1], dtype=dtype)[:, None]
    assert correlation(rounded, t).tolist() == [0.0, 0.0]
    assert correlation(c[:1], t[:1]).tolist() == [0.0, 0.0]
    t[0, 0] = math.nan
    assert correlation(t, t)[0].isnan() and correlation(t, t)[1] == pytest.approx(1)


# percentile


def test_percentile_by_hand():
    values = torch.tensor(
        [
            [0.1, 0.5, 0.9, 0.3, 0.7],
            [0.1, 0.5, 0.9, 0.3, 0.7],
            [0.1, 0.5, 0.9, 0.3, 0.7],
            [0.1, 0.5, 0.9, 0.3, 0.7],
            [2.0, 2.0, 1.0, 2.0, 3.0],
            [4.0, 4.0, 4.0, 4.0, 4.0],
        ]
    )
    assert word_percentile(values, [2, 0, 1, -1, 0, 3]).tolist() == [1.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert word_percentile(values[4:5], torch.tensor([3])).tolist() == [
        0.5
    ]  # above one, equal to two, of four
    assert word_percentile(values[4:], [2, -1]).tolist() == [0.0, 0.5] and word_percentile(
        values[4:], [4, 4]
    ).tolist() == [1.0, 0.5]


def test_percentile_of_chance_is_one_half():
    values = random(400, 9).round()  # with many ties
    words = torch.randint(9, (400,), generator=torch.Generator().manual_seed(2))
    assert word_percentile(values, words).mean() == pytest.approx(0.5, abs=0.04)
    own = values.gather(1, words[:, None])[:, 0]
    expected = [
        sum((x < y) + 0.5 * (x == y) for j, x in enumerate(row) if j != word) / 8
        for row, y, word in zip(values.tolist(), own.tolist(), words.tolist())
    ]
    assert word_percentile(values, words).tolist() == pytest.approx(expected)


# the causal check


def test_falls_by_editing_the_network(small):
    clip, probe = small
    name = read_tower(clip).blocks[0].activation
    mean = ablation.mean_activations(clip, probe, 0)
    units, rows = [3, 200, 41], torch.tensor([[7, 0, 10], [2, 9, 0]])
    T = torch.nn.functional.normalize(random(6, 20), dim=1).float()
    seen = []
    ours = logit_drop(
        clip, probe, 0, units, rows, mean, T, lambda todo, total, text: seen.append((total, text)) or todo
    )
    assert ours.shape == (3, 6) and seen == [(3, "neurons ablated")] and ours.abs().max() > 1e-3
    for k, unit in enumerate(units):
        x = torch.stack([clip.preprocess(probe.image(int(i))) for i in rows[:, k]])
        before = 100 * clip.encode_image(x) @ T.T

        def to_mean(p, unit=unit):
            p = p.clone()
            p[:, :, unit] = mean[:, unit, None]
            return p

        with torch.no_grad(), hooks.edit(clip.model.visual, {name: to_mean}):
            after = 100 * clip.encode_image(x) @ T.T
        assert_close(ours[k], (before - after).mean(0), rtol=1e-3, atol=1e-4)


def test_only_some_images(small):
    _, probe = small
    some = subset(probe, [9, 2, 2])
    assert (some.N, some.ids) == (3, [probe.ids[9], probe.ids[2], probe.ids[2]]) and some.labels is None
    assert [some.image(i).tobytes() for i in range(3)] == [probe.image(i).tobytes() for i in (9, 2, 2)]
    prints = [subset(probe, rows).fingerprint for rows in ([9, 2, 2], [2, 9, 2], [9, 2])]
    assert len({*prints, probe.fingerprint}) == 4 and subset(probe, [9, 2]).fingerprint == prints[2]
    from neuronym.datasets.probe import probe_from_scenes

    assert subset(probe_from_scenes("mine", [5, 6, 7], ["a", "b", "c"]), [2, 0]).labels == ["c", "a"]


# bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: correlation(random(4, 2), random(4, 3)),
            r"predicted and true values \[N, K\] of one shape, got \[4, 2\] and \[4, 3\]",
        ),
        (
            lambda: word_percentile(random(2, 3), [0]),
            r"expected a word below 3 or -1 for each of 2 rows, got 1 words up to 0",
        ),
        (
            lambda: word_percentile(random(2, 3), [0, 3]),
            "below 3 or -1 for each of 2 rows, got 2 words up to 3",
        ),
        (
            lambda: logit_drop(None, None, 0, [1, 2], torch.zeros(5, 3), None, None),
            r"expected images \[n, k\] for k units, at least one, got \[5, 3\] and 2",
        ),
        (
            lambda: logit_drop(None, None, 0, [], torch.zeros(5, 0), None, None),
            r"at least one, got \[5, 0\] and 0",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_falls_of_a_layer_without_effects(small):
    clip, probe = small
    with pytest.raises(ValueError, match="layer 1 is the last one"):
        logit_drop(clip, probe, 1, [0], torch.tensor([[0]]), torch.zeros(5, 256), torch.eye(20))
