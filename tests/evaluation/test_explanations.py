"""Labels, sums, formulas and controls, all as predictions of what units do."""

from __future__ import annotations

import pytest
import torch

from neuronym.evaluation import explanations, formulas, linear

WORDS = ["red", "blue", "circle", "square"]


@pytest.fixture
def world():
    """present [N, 4] bool and units: red; 2 circle + blue; red or square."""
    present = torch.rand(301, 4, generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [0.3, 0.4, 0.2, 0.3]
    )
    p = present.double()
    return present, torch.stack([p[:, 0], 2 * p[:, 2] + p[:, 1], (present[:, 0] | present[:, 3]).double()], 1)


def test_single_takes_names_or_indices(world):
    present, _ = world
    by_name, by_index = (
        explanations.single(["blue", "red"], WORDS),
        explanations.single(torch.tensor([1, 0]), WORDS),
    )
    assert by_name.texts == by_index.texts == ["blue", "red"] and by_name.cut is None
    assert torch.equal(by_name.predict(present), present[:, [1, 0]]) and torch.equal(
        by_index.predict(present), present[:, [1, 0]]
    )
    with pytest.raises(KeyError, match="1 labels are not among the 4 concepts, e.g. 'green'"):
        explanations.single(["red", "green"], WORDS)


def test_additive_predicts_without_bias_and_cuts_near_the_share(world):
    present, Q = world
    found = linear.explain(present, Q + 5)
    said = explanations.additive(found, WORDS, present, 0.3)
    assert torch.allclose(said.predict(present), linear.predict(found, present) - found.bias)
    assert torch.allclose(said.predict(torch.zeros(2, 4)), torch.zeros(2, 3, dtype=torch.float64), atol=1e-12)
    assert said.texts[0].endswith("red") and "circle" in said.texts[1] and "blue" in said.texts[1]
    # unit 0 is 0 or 1: all images with red are above the cut, whatever the share asked
    assert torch.equal(said.predict(present)[:, 0] > said.cut[0], present[:, 0])
    # unit 1 has the values 0, 1, 2, 3: of all cuts the one that leaves nearest to .3 of the images
    levels = [float((Q[:, 1] > level).double().mean()) for level in (0.5, 1.5, 2.5)]
    assert float((said.predict(present)[:, 1] > said.cut[1]).double().mean()) == min(
        levels, key=lambda x: abs(x - 0.3)
    )


def test_a_unit_without_terms_predicts_nothing(world):
    present, Q = world
    said = explanations.additive(linear.explain(present, torch.full_like(Q, 2.0)), WORDS, present, 0.1)
    assert not (said.predict(present) > said.cut).any() and bool(said.cut.isfinite().all())


def test_logical_cuts_probabilities_at_a_half(world):
    present, Q = world
    said = explanations.logical([f.formula for f in formulas.search(present, Q, 2, by="correlation")], WORDS)
    expected = torch.stack([present[:, 0], present[:, 2] | present[:, 1], present[:, 0] | present[:, 3]], 1)
    assert said.texts[0] == "red" and torch.equal(said.predict(present)[:, [0, 2]], expected[:, [0, 2]])
    assert (
        torch.equal(said.predict(present * 0.6), said.predict(present))
        and not said.predict(present * 0.4).any()
    )


def test_a_dead_unit_has_no_formula_and_no_prediction(world):
    present, Q = world
    said = explanations.logical([f.formula for f in formulas.search(present, Q * 0, 2)], WORDS)
    assert not said.predict(present).any() and len(said.texts) == 3


def test_controls_know_nothing_of_the_unit(world):
    present, Q = world
    labels = torch.tensor([0, 2, 3])
    found = explanations.controls(labels, WORDS, present, Q, torch.Generator().manual_seed(1))
    assert sorted(found["shuffled"].texts) == sorted(WORDS[i] for i in labels.tolist())
    assert len(set(found["constant"].texts)) == 1
    means = [
        [float(torch.corrcoef(torch.stack([present[:, m].double(), Q[:, k]]))[0, 1]) for k in range(3)]
        for m in range(4)
    ]
    assert found["constant"].texts[0] == WORDS[max(range(4), key=lambda m: sum(means[m]))]


@pytest.mark.parametrize("images, held_out", [(5, 0.4), (20, 0.9), (20, 0.05)])
def test_too_few_images_are_refused_before_work(images, held_out):
    with pytest.raises(ValueError, match="at least 4 images to name from and 2 held out, got"):
        explanations.need_images(images, held_out)
    explanations.need_images(7, 0.4)
