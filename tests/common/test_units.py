"""Units by id, count, range, label and layer; what is none of these is refused in a sentence."""

from __future__ import annotations

import pandas as pd
import pytest

from neuronym.common.units import check_units, choose_units, layers_named, units_by_layer

SIZES = {"conv1": 24, "layer4": 192, "fc": 52}
LABELS = pd.DataFrame(
    {
        "layer": ["fc"] * 4 + ["layer4"] * 2,
        "unit": [3, 1, 2, 2, 7, 8],
        "rank": [1, 1, 1, 2, 1, 1],
        "label": ["red Dogs", "cat", "hotdog", "dog", "dog (sad)", "sea"],
    }
)


@pytest.mark.parametrize(
    "units, wanted",
    [
        ("all", list(range(52))),
        ("52", list(range(52))),
        ("100", list(range(52))),
        (100, list(range(52))),
        ("1", [0]),
        ("5", [0, 10, 20, 31, 41]),
        (5, [0, 10, 20, 31, 41]),
        ("ids:51,3,3", [3, 51]),
        (" ids: 3 , 0 - 2 ", [0, 1, 2, 3]),
        ([17, 3], [3, 17]),
        (range(2), [0, 1]),
    ],
)
def test_units_of_a_layer(units, wanted):
    assert choose_units(units, 52, "fc") == wanted


def test_units_by_their_label():
    assert choose_units("label:dog", 52, "fc", LABELS) == [3]
    assert choose_units("label:CAT", 52, "fc", LABELS) == [1]
    assert units_by_layer("label:dog", SIZES, LABELS) == {"layer4": [7], "fc": [3]}
    with pytest.raises(ValueError, match="no unit is chosen by 'label:bird' among layers conv1, layer4, fc"):
        units_by_layer("label:bird", SIZES, LABELS)
    assert units_by_layer("label:bird", SIZES, LABELS, required=False) == {}
    with pytest.raises(ValueError, match="label:dog needs labels"):
        choose_units("label:dog", 52, "fc")


def test_units_by_their_trust():
    trusted = LABELS.assign(trust=[0.9, 0.2, 0.5, 0.99, 0.3, float("nan")])
    assert units_by_layer("trust:0.3", SIZES, trusted) == {"layer4": [7], "fc": [2, 3]}
    assert units_by_layer("layer4=all;fc=trust:0-.5", SIZES, trusted)["fc"] == [1, 2]
    check_units("fc=trust:0.2-0.4")
    for form in ("trust:", "trust:high", "trust:.5-.2", "trust:-1"):
        with pytest.raises(ValueError, match="trust is a least value or a range, as trust:0.8"):
            check_units(form)
    with pytest.raises(ValueError, match="trust:0.5 needs labels with a column 'trust', got no such column"):
        units_by_layer("trust:0.5", SIZES, LABELS)


def test_units_layer_by_layer():
    assert units_by_layer("layer4=ids:1,2; fc=2", SIZES) == {"layer4": [1, 2], "fc": [0, 26]}
    assert units_by_layer({"fc": [5]}, SIZES) == {"fc": [5]}
    assert units_by_layer(2, SIZES) == {"conv1": [0, 12], "layer4": [0, 96], "fc": [0, 26]}


@pytest.mark.parametrize(
    "units, message",
    [
        ("ids:52", "layer 'fc' has units 0 to 51, got 52 in 'ids:52'"),
        ("ids:5-2", "numbers and ranges between commas"),
        ("ids:", "numbers and ranges between commas"),
        ("ids:a", "numbers and ranges between commas"),
        ("0", "units are all, a count"),
        ("-1", "units are all, a count"),
        ("some", "units are all, a count"),
        ("", "units are all, a count"),
        ("label:", "label: needs a word"),
        ([], "a list of numbers in a script"),
        ([1.5], "a list of numbers in a script"),
        (True, "a list of numbers in a script"),
        (None, "a list of numbers in a script"),
        ([-1], "has units 0 to 51, got -1"),
    ],
)
def test_what_chooses_no_units(units, message):
    with pytest.raises(ValueError, match=message):
        choose_units(units, 52, "fc", LABELS)


@pytest.mark.parametrize(
    "units, message", [("layer5=3", "no layer 'layer5'; nearest: layer4"), ("=3", "layer by layer")]
)
def test_layers_that_are_not_there(units, message):
    with pytest.raises((KeyError, ValueError), match=message):
        units_by_layer(units, SIZES)


@pytest.mark.parametrize(
    "units, message",
    [
        ("layer9=label:dog", "no layer 'layer9'; nearest: layer4"),
        ("layer4=label:dog;fc=ids:999", "layer 'fc' has units 0 to 51, got 999"),
        ("layer4=label:dog;fc=-1", "units are all, a count"),
        ("label:", "label: needs a word"),
        ("fc=label:unicorn", "none of the 2 concepts has the word 'unicorn'; choose a word of theirs"),
    ],
)
def test_what_is_wrong_is_said_before_there_are_labels(units, message):
    with pytest.raises((KeyError, ValueError), match=message):
        check_units(units, SIZES, ["red Dogs", "sea"])


def test_before_there_are_labels_what_may_be_is_left():
    for units in ("all", "3", "label:dog", "layer4=label:SEA;fc=ids:51", [3, 17]):
        check_units(units, SIZES, ["red Dogs", "sea"])
    check_units("label:unicorn", SIZES)  # nobody knows the words


def test_the_form_alone_is_checked_where_no_network_is_known():
    for units in ("all", "3", "99999999999", "label:dog", "layer9=label:dog;x=ids:5000"):
        check_units(units)
    for units in ("-1", "layer9=-1", "some", "ids:", "label:", "=3", "layer4="):
        with pytest.raises(ValueError, match="units are|ids are|label: needs|layer by layer"):
            check_units(units)
    assert layers_named("layer4=label:dog;fc=3") == ["layer4", "fc"] and layers_named("label:dog") == []
