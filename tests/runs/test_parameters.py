"""Parameters read from a notebook, written on the command line, given by papermill."""

from __future__ import annotations

import pytest

from neuronym.runs.parameters import check, differing, from_text, Parameter, read_parameters
from tests.helpers.notebooks import values, write_notebook


def test_parameters_are_read_with_types_defaults_and_help(toy):
    known = read_parameters(toy)
    assert list(known) == [
        "smoke",
        "device",
        "seed",
        "run_name",
        "target",
        "top_k",
        "lam",
        "limit",
        "layers",
        "method",
    ]
    assert {n: p.default for n, p in known.items()} == values()
    assert known["limit"] == Parameter("limit", "int|None", None, "images")
    assert known["target"].help == "network with a '#' and a = in its help"
    assert known["method"].choices == ("wpmi", "soft_wpmi")


@pytest.mark.parametrize(
    "cell, message",
    [
        ("import os", "expected `name = literal"),
        ("a = b = 1", "expected `name = literal"),
        ("x = 1\ny = x + 1", "line 2.*got 'y = x \\+ 1'"),
        ("x = 1  # type: tensor  # help", "unknown type 'tensor'"),
        ("x = 1  # type: list[tensor]  # help", "unknown type"),
        ("x = 0\ny = 1\nx = 2", "line 3: x is there twice"),
    ],
)
def test_cells_that_hold_anything_but_literals_are_refused(folder, cell, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(write_notebook(folder, parameters=cell))


@pytest.mark.parametrize(
    "kind, text, value",
    [
        ("int", "7", 7),
        ("int", "-7", -7),
        ("float", "7", 7.0),
        ("float", "1e-3", 1e-3),
        ("bool", "True", True),
        ("bool", "false", False),
        ("str", "5", "5"),
        ("str", "None", "None"),
        ("str|None", "None", None),
        ("str", "", ""),
        ("int|float", "3", 3),
        ("float|None", "3", 3.0),
        ("list[str]", "a", ["a"]),
        ("list[str]", "a, b", ["a", "b"]),
        ("list[str]", "5", ["5"]),
        ("list[str]", "['a', 'b']", ["a", "b"]),
        ("list[str]", "[a, b]", ["a", "b"]),
        ("list[str]", "['a', b]", ["a", "b"]),
        ("list[int]", "[1, 2]", [1, 2]),
        ("int|None", "null", None),
        ("str|None", "~", None),
        ("list[int]", "1,2", [1, 2]),
        ("list[int]", "1", [1]),
        ("list[float]", "(1, 2)", [1.0, 2.0]),
        ("str|list[str]", "a,b", "a,b"),
        ("str|list[str]", "['a']", ["a"]),
        ("dict", "{'a': 1}", {"a": 1}),
        ("list", "[1, 'a']", [1, "a"]),
        ("int|str", "5", 5),
        ("int|str", "five", "five"),
    ],
)
def test_texts_become_values_of_the_declared_type(kind, text, value):
    found = from_text(Parameter("x", kind, None), text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("int", "five"),
        ("int", "1.5"),
        ("int", "1e3"),
        ("int", "True"),
        ("float", "nan"),
        ("float", "1e999"),
        ("bool", "1"),
        ("bool", "yes"),
        ("int|None", "x"),
        ("list[int]", "a,b"),
        ("list[int]", "[1"),
        ("dict", "[]"),
        ("int", "__import__('os')"),
    ],
)
def test_texts_of_another_type_are_refused(kind, text):
    with pytest.raises(ValueError, match=r"parameter 'x' must be .*, got .* \(default None; the help\)"):
        from_text(Parameter("x", kind, None, "the help"), text)


def test_values_are_normalized_and_choices_hold():
    assert type(check(Parameter("x", "float", 1.0), 2)) is float
    assert check(Parameter("x", "list[int]", []), (1, 2)) == [1, 2]
    with pytest.raises(ValueError, match="one of a, b, got 'c'"):
        check(Parameter("x", "str", "a", "", ("a", "b")), "c")
    with pytest.raises(ValueError, match="one of a, b, got 'c'"):
        from_text(Parameter("x", "list[str]", ["a"], "", ("a", "b")), "a,c")


COMMAS = Parameter("x", "str", "layer4,fc", "layer names, globs or all")


@pytest.mark.parametrize(
    "given, value",
    [
        ("[conv1, fc]", "conv1,fc"),
        ("['conv1', \"fc\"]", "conv1,fc"),
        ("[fc]", "fc"),
        ("conv1, fc", "conv1, fc"),
        ("[0-9]", "[0-9]"),
        ("[012]", "[012]"),
        ("layer[12]", "layer[12]"),
        ("[a, b].conv", "[a, b].conv"),
    ],
)
def test_yaml_lists_become_a_str_with_commas(given, value):
    assert from_text(COMMAS, given) == value == check(COMMAS, given)


@pytest.mark.parametrize("given, value", [(["conv1", "fc"], "conv1,fc"), ([8, 9], "8,9"), (["fc"], "fc")])
def test_lists_of_papermill_become_a_str_with_commas(given, value):
    assert check(COMMAS, given) == value


def test_lists_and_nulls_elsewhere():
    with pytest.raises(ValueError, match=r"'x' must be str, got \['a'\]"):
        check(Parameter("x", "str", "a", "parts with | between them"), ["a"])
    assert check(Parameter("x", "str", "a", "empty for none"), None) == ""
    assert from_text(Parameter("x", "int", 5), "null") == 5
    assert check(Parameter("x", "int|None", 5), None) is None
    assert from_text(Parameter("x", "str", "a", "", kinds=("a",)), "null") == "a"


def test_an_empty_text_is_a_value_where_the_help_says_so_or_it_is_the_default():
    assert (
        check(Parameter("x", "str", "a", "empty for none"), "") == "" == check(Parameter("x", "str", ""), "")
    )
    with pytest.raises(ValueError, match=r"'x' must not be empty \(default 'a'; of all\)"):
        from_text(Parameter("x", "str", "a", "of all"), "")


def test_a_kind_may_be_followed_by_a_folder():
    assert from_text(Parameter("x", "str", "b", kinds=("a", "b")), "a@/photos") == "a@/photos"


def test_kinds_hold_for_every_part_of_a_str_with_commas():
    several = Parameter("x", "str", "", "separated by commas", kinds=("a", "b"))
    assert from_text(several, "a:1,b") == "a:1,b" and from_text(several, "") == ""
    with pytest.raises(ValueError, match="no kind 'c'"):
        from_text(several, "a:1,c:2")


def test_what_differs_from_the_defaults(toy):
    assert differing(read_parameters(toy), values(lam=2.0, top_k=5)) == {"lam": 2.0}
