"""neuronym.published.labels: words by hand, the published methods' agreement to the digit, and a table that
counts from 1.
"""

from __future__ import annotations

import pandas as pd
import pytest

from neuronym.common.text import content_words
from neuronym.published.labels import agreement, load_published, offsets

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def table(labels, layer="layer1", first=0):
    return pd.DataFrame(
        {"layer": layer, "unit": range(first, first + len(labels)), "rank": 1, "label": labels}
    )


@pytest.mark.parametrize(
    "label, words",
    [
        ("Dogs and the grass", {"dog", "grass"}),
        ("green-c", {"green"}),
        ("bus", {"bus"}),
        ("street-s", {"street"}),
        ("", set()),
        ("The, of", set()),
        ("x-ray", {"x", "ray"}),
        ("glasses", {"glasse"}),
    ],
)
def test_content_words(label, words):
    assert content_words(label) == words


def test_agreement_by_hand():
    found = agreement(
        table(["red dogs", "a cat", "sea", "sky"]), table(["dog", "the cat", "the sky", "of"]), shifts=[1, 7]
    )
    assert found.values.tolist() == [
        ["layer1", 4, 0.5, 0.125]
    ]  # moved by 1 none meet, by 3 (or 7) the two skies do
    several = pd.concat([table(["dog", "sun"]), table(["cat"], "layer2")])
    assert agreement(several, several)["agreement"].tolist() == [1, 1]


def test_units_are_matched_by_number():
    found = agreement(table(["a dog", "a cat", "a sea"]), table(["cat", "sea", "sky"], first=1), shifts=[])
    assert found[["units", "agreement"]].values.tolist() == [[2, 1.0]] and found["chance"][0] == 0


@pytest.fixture(scope="module")
def methods(shared):
    published = load_published(shared / "published", models=["resnet50"])
    published = published[published["rank"] == 1]
    return dict(list(published.groupby("method")))


@pytest.mark.parametrize(
    "first, second, shares",
    [
        ("clip_dissect", "netdissect", [0.094, 0.084, 0.043, 0.043]),
        ("clip_dissect", "milan_base", [0.086, 0.064, 0.040, 0.031]),
        ("milan_base", "netdissect", [0.086, 0.096, 0.079, 0.043]),
        ("milan_base", "milan_places365", [0.570, 0.473, 0.358, 0.434]),
        ("clip_dissect", "dnd", [0.120, 0.160, 0.140, 0.100]),
    ],
)
def test_published_methods(methods, first, second, shares):
    found = agreement(methods[first], methods[second]).set_index("layer").loc[LAYERS]
    assert found["agreement"].round(3).tolist() == shares
    assert (found["chance"] < found["agreement"]).all() and (
        second == "milan_places365" or found["chance"].max() < 0.05
    )


def test_a_table_that_counts_from_one_is_told(methods):
    right = offsets(methods["clip_dissect"], methods["netdissect"])
    assert right.idxmax() == 0 and right.drop(0).max() < 0.25 * right[0]
    wrong = offsets(
        methods["clip_dissect"], methods["netdissect"].assign(unit=methods["netdissect"]["unit"] + 1)
    )
    assert wrong.idxmax() == -1 and list(wrong.index) == [-2, -1, 0, 1, 2]


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="units that both tables have, got layers .'layer1'. and .'layer2'."):
        agreement(table(["dog"]), table(["dog"], "layer2"))
    with pytest.raises(
        ValueError, match="one label of rank 1, got several for unit 0 of layer1; choose one method"
    ):
        agreement(pd.concat([table(["dog"])] * 2), table(["dog"]))
