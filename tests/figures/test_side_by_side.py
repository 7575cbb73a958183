"""Units named by several methods, and weights against names: what is drawn, counted and refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neuronym import clip_dissect, measure
from neuronym.evaluation.weights import weights_agreement, weights_and_names
from neuronym.figures.evaluation import weights_by_similarity
from neuronym.figures.side_by_side import first_labels, named_units
from neuronym.published.labels import labels_of_others


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measure("microworld:resnet", "fc", "microworld:60", "microworld", "microworld:atoms")


def test_every_method_has_its_line_beside_the_pictures(data, tmp_path):
    ours = clip_dissect(data, "cos_similarity_cubed")
    (tmp_path / "milan.csv").write_text("layer,unit,description\nfc,3,a $big$ thing\nconv9,1,other\n")
    labels = first_labels([ours, *labels_of_others(f"milan={tmp_path / 'milan.csv'}")])
    assert list(labels) == ["cos_similarity_cubed", "milan"] and labels["milan"][("fc", 3)] == "a $big$ thing"
    names = {("fc", k): name for k, name in enumerate(data.classes)}
    (ax,) = named_units(labels, data, units=[3, 17], names=names).axes
    said = [text.get_text() for text in ax.texts]
    assert said[0] == "fc  unit 3" and "a $big$ thing" in said and "–" in said  # MILAN has no unit 17
    assert said.count("milan") == said.count("true name") == 2
    assert said[said.index("cos_similarity_cubed") + 1] == labels["cos_similarity_cubed"][("fc", 3)]


def test_what_cannot_be_drawn_is_refused(data, tmp_path):
    ours = clip_dissect(data, "cos_similarity")
    with pytest.raises(ValueError, match="none of method"):
        first_labels(ours.drop(columns="method"))
    with pytest.raises(ValueError, match="two labels of unit 0 of 'fc'"):
        first_labels([ours, ours])
    with pytest.raises(ValueError, match="labels are of layers layer9, the measurements of fc"):
        named_units({"a": {("layer9", 0): "x"}}, data)
    with pytest.raises(ValueError, match="named as milan=FILE.csv or netdissect@1=FILE.csv, got 'milan'"):
        labels_of_others("milan")
    with pytest.raises(FileNotFoundError, match="no labels table at"):
        labels_of_others(f"milan={tmp_path}/absent.csv")


def vectors(texts):
    return torch.nn.functional.normalize(
        torch.stack([torch.tensor([float(len(t)), float(t.count("a")), 1.0]) for t in texts]), dim=1
    )


def test_correlation_of_weights_and_names_is_numpys():
    dice = torch.Generator().manual_seed(0)
    hidden, final = ["a", "bb", "", "aaa c", "d"], ["aa", "b", "cc a"]
    weight = torch.randn(3, 5, generator=dice)
    found, alike = weights_and_names(weight, hidden, final, vectors)
    assert found.shape == alike.shape == (3, 4)  # the unit without a label is left out
    assert alike[1, 3] == pytest.approx(float(vectors(["b"])[0] @ vectors(["d"])[0]))
    numbers = weights_agreement(found, alike, largest=2)
    assert numbers["r"] == pytest.approx(np.corrcoef(found.ravel(), alike.ravel())[0, 1])
    best = np.mean([alike[c, k] for c in range(3) for k in np.argsort(-found[c])[:2]])
    assert numbers["largest_weights"] == pytest.approx(best) and numbers["pairs"] == 12
    same = weights_agreement(alike, alike)
    assert same["r"] == pytest.approx(1) and same["r_low"] == pytest.approx(1)
    assert np.isnan(weights_agreement(np.ones((2, 3)), np.ones((2, 3)))["r"])
    assert weights_by_similarity(found, alike, "a $ title").axes[0].get_title() == "a $ title"
    with pytest.raises(ValueError, match="one label for each unit, got .3, 5., 3 final labels and 4 hidden"):
        weights_and_names(weight, hidden[1:], final, vectors)


def test_interval_holds_the_value_that_made_the_data():
    dice = np.random.default_rng(1)
    alike = dice.normal(size=(20, 400))
    weight = 0.3 * alike + dice.normal(size=alike.shape)
    numbers = weights_agreement(weight, alike, seed=3)
    assert numbers["r_low"] < 0.3 / np.hypot(1, 0.3) < numbers["r_high"] and numbers["r_high"] < 0.35
    pd.testing.assert_series_equal(pd.Series(numbers), pd.Series(weights_agreement(weight, alike, seed=3)))
