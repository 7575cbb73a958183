"""neuronym.published.texts: printed values beside ours, final-layer names, and NetDissect's places to the
digit.
"""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest

from neuronym.datasets.concepts import load_concepts
from neuronym.published.labels import load_published
from neuronym.published.texts import (
    against_people,
    beside_printed,
    by_words,
    CLIP,
    final_layer,
    MPNET,
    places_accuracy,
    printed_reliable,
)
from neuronym.published.values import printed


def test_only_the_same_encoder_has_a_difference():
    rows = [("class names", "dnd", "fc", e, 0.5) for e in (MPNET, f"{CLIP}@file.pt", "minilm", "words")]
    rows += [("people", "dnd", "all", e, 0.2) for e in ("mpnet, characters", MPNET, CLIP)] + [
        ("people, all neurons", "dnd", "all", CLIP, 0.2)
    ]
    found = beside_printed(pd.DataFrame(rows, columns=["table", "whose", "layer", "encoder", "value"]))
    assert found["difference"].fillna(9).round(4).tolist() == [0.0414, -0.2598, 9, 9, 0.0911, 9, -0.5766, 9]
    assert found["CLIP"].fillna(9).tolist() == [0.7598] * 4 + [0.7766] * 3 + [9]
    assert found["mpnet"].fillna(9).tolist() == [0.4586] * 4 + [0.1089, 9, 9, 9]


def test_printed_layers_give_their_mean():
    """Table 9 averages neurons: layers weighted by their reliable neurons give the printed value of all."""
    cosines = printed("text_cosines").set_index(["table", "whose", "layer", "encoder"])["value"]
    sizes = Counter(layer for layer, _ in printed_reliable())
    assert sizes == {"layer1": 22, "layer2": 22, "layer3": 31, "layer4": 28}
    assert len(set(printed_reliable())) == 103
    for table, encoder in (("people", CLIP), ("people", "mpnet, characters")):
        for whose in ("clip_dissect", "dnd", "milan_places365", "depiction", "milannotations"):
            mean = sum(n * cosines[table, whose, layer, encoder] for layer, n in sizes.items()) / 103
            assert mean == pytest.approx(cosines[table, whose, "all", encoder], abs=1e-4)


def test_reliable_neurons_are_in_the_files(shared):
    neurons = load_published(shared / "published", models=["resnet152"])
    found = against_people(by_words, neurons, units=set(printed_reliable()))
    assert found.groupby("layer")["units"].unique().map(list).to_dict() == {
        "layer1": [22],
        "layer2": [22],
        "layer3": [31],
        "layer4": [28],
        "all": [103],
    }
    found = found.set_index(["whose", "layer"])["value"]
    # counted once with a loop over the files
    people = neurons[neurons["method"] == "milannotations"].groupby(["layer", "unit"])["label"].agg(list)
    dnd = neurons[(neurons["method"] == "dnd") & (neurons["rank"] == 1)].set_index(["layer", "unit"])["label"]
    from neuronym.common.text import content_words

    met = [
        bool(content_words(dnd[("layer4", u)]) & content_words(t))
        for u in (u for layer, u in printed_reliable() if layer == "layer4")
        for t in people[("layer4", u)]
    ]
    assert found[("dnd", "layer4")] == pytest.approx(sum(met) / len(met))


def labels(said, method="a", units=None):
    return pd.DataFrame(
        {"method": method, "layer": "fc", "unit": units or range(len(said)), "rank": 1, "label": said}
    )


def test_final_layer():
    table = pd.concat([labels(["cat", "red dogs", "sea"]), labels(["sky", "dog", "cat"], "b", [2, 1, 0])])
    found = final_layer(by_words, table, ["cat", "dog", "sky"]).set_index("whose")
    assert found["value"].to_dict() == pytest.approx({"a": 2 / 3, "b": 1}) and found[
        "constant"
    ].to_dict() == pytest.approx({"a": 1 / 3, "b": 1 / 3})
    assert final_layer(by_words, labels(["dog", "cat"], units=[7, 3]), {3: "cat", 7: "dog"})[
        "value"
    ].tolist() == [1]


@pytest.mark.parametrize(
    "table, names, message",
    [
        (
            labels(["a", "b"]),
            ["a", "b", "c"],
            "each of 3 class names, got 2 labels of 2 neurons of fc, 0 of them without a name",
        ),
        (labels(["a", "b", "c"]), ["a", "b"], "got 3 labels of 3 neurons of fc, 1 of them without"),
        (pd.concat([labels(["a", "b"])] * 2), ["a", "b"], "got 4 labels of 2 neurons"),
    ],
)
def test_units_must_match_the_names(table, names, message):
    with pytest.raises(ValueError, match=message):
        final_layer(by_words, table, names)


def test_places(shared, monkeypatch):
    """117/267 is the printed 43.82 % and, between the bounds, of no other number of classes; 155/267 is 58.05
    %.
    """
    monkeypatch.setenv("NEURONYM_CONCEPTS", str(shared / "concept-lists"))
    found = places_accuracy(
        load_published(shared / "published", ["netdissect"]),
        load_concepts("places365"),
        load_concepts("broden"),
    )
    assert found == {"classes": 365, "right": 141, "right_as_released": 117, "least": 188, "most": 281}
    fitting = [
        n
        for n in range(found["least"], found["most"] + 1)
        if round(100 * found["right_as_released"] / n, 2) == 43.82
    ]
    assert fitting == [267] and round(100 * 155 / 267, 2) == 58.05


def test_places_by_hand():
    table = labels(["attic-s", "bar-outdoor-s", "house", "sky"], "netdissect").assign(
        model="resnet18_places365"
    )
    categories, words = ["attic", "bar, outdoor", "house", "zoo"], ["zoo", "attic", "sky"]
    assert places_accuracy(table, categories, words) == {
        "classes": 4,
        "right": 3,
        "right_as_released": 2,
        "least": 3,
        "most": 2,
    }
    with pytest.raises(
        ValueError, match="one NetDissect label for every category, got 4 labels of fc and 3 categories"
    ):
        places_accuracy(table, categories[:3], words)
