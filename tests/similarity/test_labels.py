"""The labels table: its columns, round trips, and the unit base of published files."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from neuronym.similarity.labels import (
    COLUMNS,
    labels_table,
    marked,
    MARKS,
    read_labels,
    unit_notes,
    write_labels,
)
from neuronym.similarity.scores import score

CONCEPTS = [f"concept {i}" for i in range(11)]


@pytest.fixture
def table():
    scores = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    return scores, labels_table(scores, CONCEPTS, model="net", layer="layer1", method="wpmi", k=3)


def test_rows_are_units_by_rank(table):
    scores, rows = table
    assert list(rows) == COLUMNS and len(rows) == 21
    assert (
        rows["unit"].tolist() == [u for u in range(7) for _ in range(3)]
        and rows["rank"].tolist() == [1, 2, 3] * 7
    )
    first = rows[rows["rank"] == 1]
    assert first["label"].tolist() == [CONCEPTS[i] for i in scores.argmax(1)]
    assert torch.allclose(torch.tensor(first["score"].to_numpy()), scores.max(1).values.double())


def test_units_can_be_named_and_columns_added():
    rows = labels_table(
        torch.eye(2, 11), CONCEPTS, model="n", layer="l", method="m", k=99, units=[5, 9], run="a"
    )
    assert rows["unit"].unique().tolist() == [5, 9] and len(rows) == 22 and set(rows["run"]) == {"a"}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_written_tables_read_back(table, tmp_path, suffix):
    write_labels(table[1], tmp_path)
    again = read_labels(tmp_path / f"labels.{suffix}")
    pd.testing.assert_frame_equal(again, table[1], check_exact=suffix == "parquet", rtol=1e-5)


def test_published_columns_are_renamed_and_missing_ones_asked_for(tmp_path):
    path = tmp_path / "milan.csv"
    path.write_text("layer,unit,description\nlayer1,0, dots\nlayer1,1,lines\n")
    rows = read_labels(path, model="rn50", method="milan")
    assert rows["label"].tolist() == ["dots", "lines"] and rows["rank"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="milan.csv lacks model, method"):
        read_labels(path)


def test_units_from_one_are_refused_unless_named(tmp_path):
    path = tmp_path / "netdissect.csv"
    path.write_text("unit,label,score\n1,a,.1\n2,b,.2\n")
    given = {"model": "rn50", "layer": "layer4", "method": "netdissect"}
    with pytest.raises(ValueError, match="start at 1; .* pass unit_base=1"):
        read_labels(path, **given)
    assert read_labels(path, unit_base=1, **given)["unit"].tolist() == [0, 1]


def test_netdissect_is_detected_in_the_published_files(shared):
    folder = shared / "published" / "clip_dissect"
    ours = read_labels(
        next((folder / "CLIP_Dissect_results").glob("resnet50*.csv")), model="rn50", method="clip_dissect"
    )
    assert len(ours) == 3904 and ours["unit"].min() == 0
    theirs = sorted((folder / "NetDissect_results").glob("resnet50_imagenet_layer1.csv"))[0]
    with pytest.raises(ValueError, match="start at 1"):
        read_labels(theirs, model="rn50", layer="layer1", method="netdissect")


@pytest.mark.parametrize(
    "call, error, pattern",
    [
        (
            lambda: labels_table(torch.zeros(7, 11), CONCEPTS[:5], model="", layer="", method=""),
            ValueError,
            r"\(7, 11\) and 5",
        ),
        (
            lambda: labels_table(torch.zeros(7, 11), CONCEPTS, model="", layer="", method="", units=[1]),
            ValueError,
            "1 units and 7 rows",
        ),
        (lambda: read_labels("nowhere.csv"), FileNotFoundError, "no labels table at nowhere.csv"),
    ],
)
def test_errors_say_what_is_wrong(call, error, pattern):
    with pytest.raises(error, match=pattern):
        call()


def activations():
    """A sound unit; dead, constant, saturated and nearly saturated ones; a sparse and a binary one."""
    Q = torch.rand(100, 7, generator=torch.Generator().manual_seed(0))
    Q[:, 1], Q[:, 2] = 0, 5 + 1e-6 * Q[:, 2]
    Q[:95, 3], Q[:85, 4], Q[:97, 5] = 1, 1, 0
    Q[:, 6] = (Q[:, 6] > 0.5).float()
    return Q


def test_units_that_nothing_can_be_named_by_are_noted():
    notes = unit_notes(activations())
    assert [note.partition(":")[0] for note in notes["note"]] == [
        "", "dead", "constant", "saturated", "", "", "",
    ]  # fmt: skip
    assert notes["active_share"].tolist()[:3] == [1, 0, 1] and notes["active_share"][5] == 0.03
    assert notes["note"][3] == "saturated: at its largest value for 95% of the images"
    for Q in (activations() * 1e-20, activations() * 1e20, activations() - 7, activations().double()):
        assert (unit_notes(Q)["note"] != "").tolist() == [False, Q[0, 1] == Q[1, 1], True, True] + [False] * 3
    assert unit_notes(-torch.ones(4, 1))["note"][0].startswith("constant")
    with pytest.raises(ValueError, match="at least one image, got .0, 3."):
        unit_notes(torch.zeros(0, 3))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_units_with_a_note_have_no_name(tmp_path, suffix):
    scores = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    plain = labels_table(scores, CONCEPTS, model="net", layer="l", method="wpmi", k=2)
    rows = labels_table(
        scores, CONCEPTS, model="net", layer="l", method="wpmi", k=2, activations=activations()
    )
    assert list(rows) == COLUMNS + MARKS
    nameless = rows["unit"].isin([1, 2, 3])
    pd.testing.assert_frame_equal(rows.loc[~nameless, COLUMNS], plain[~nameless])
    assert set(rows.loc[nameless, "label"]) == {""} and rows.loc[nameless, "score"].isna().all()
    write_labels(rows, tmp_path)
    again = read_labels(tmp_path / f"labels.{suffix}")
    assert (
        again["label"].tolist() == rows["label"].tolist() and again["note"].tolist() == rows["note"].tolist()
    )
    some = labels_table(
        scores[[2, 5]],
        CONCEPTS,
        model="n",
        layer="l",
        method="m",
        k=1,
        units=[2, 5],
        activations=activations(),
    )
    assert some["note"].tolist()[0].startswith("constant") and some["label"][1] != ""


def test_equal_scores_name_nothing():
    """Dead and constant units by their scores alone; of one concept all are equal."""
    Q = activations()
    scores = score(torch.rand(len(Q), 11, generator=torch.Generator().manual_seed(0)), Q, "soft_wpmi")
    rows = labels_table(scores, CONCEPTS, model="n", layer="l", method="soft_wpmi", k=2)
    nameless = rows["unit"].isin([1, 2])
    assert (rows["note"] != "").tolist() == nameless.tolist() == (rows["label"] == "").tolist()
    assert rows.loc[nameless, "note"].unique() == ["even: the same score for every concept"]
    alone = labels_table(scores[:, :1], CONCEPTS[:1], model="n", layer="l", method="m", k=1)
    assert "note" not in alone and set(alone["label"]) == set(CONCEPTS[:1])


def test_any_table_of_units_is_marked():
    table = pd.DataFrame({"layer": "l", "unit": [3, 0, 1], "text": ["a", "b", "c"], "auc": 0.5})
    rows = marked(table, {"l": activations()})
    assert rows["text"].tolist() == ["", "b", ""] and list(rows) == ["layer", "unit", "text", "auc", *MARKS]
    assert [note[:4] for note in rows["note"]] == ["satu", "", "dead"] and rows["auc"].tolist() == [0.5] * 3


WORDS = [
    "null",
    "None",
    "NA",
    "nan",
    "N/A",
    "007",
    "1e5",
    "True",
    "-inf",
    "=cmd",
    "+1",
    "-x",
    "@x",
    "'tis",
    "red",
]


def test_labels_that_look_like_something_else_come_back(tmp_path):
    table = labels_table(torch.eye(len(WORDS)), WORDS, model="nan", layer="1", method="x", k=2)
    write_labels(table, tmp_path)
    for file in ("labels.parquet", "labels.csv"):
        found = read_labels(tmp_path / file)
        assert found["label"].tolist() == table["label"].tolist()
        assert set(found["model"]) == {"nan"} and set(found["layer"]) == {"1"}
        assert found["unit"].tolist() == table["unit"].tolist()


@pytest.mark.parametrize("words", [["007", "1984", "101"], ["True", "False", "True"], ["1e5", "", "-inf"]])
def test_labels_of_others_stay_texts(tmp_path, words):
    lines = [f"l,{i},{word}" for i, word in enumerate(words)]
    (tmp_path / "d.csv").write_text("\n".join(["layer,unit,description", *lines]) + "\n")
    assert read_labels(tmp_path / "d.csv", model="m", method="x")["label"].tolist() == words


@pytest.mark.parametrize(
    "content, message",
    [
        ("layer,unit,description\n", "c.csv holds no labels, only the columns layer, unit, label"),
        ("layer,unit,description\nl,0,red\nl,,blue\n", "'unit' of c.csv must hold whole .*, got .* in row 2"),
        ("layer,unit,description\nl,0.5,red\n", "'unit' of c.csv must hold whole numbers from 0, got '?0.5"),
        (
            "layer,unit,description\nl,x,red\n",
            "'unit' of c.csv must hold whole numbers from 0, got 'x' in row 1",
        ),
        (
            "layer,unit,description\nl,-1,red\n",
            "'unit' of c.csv must hold whole numbers from 0, got -1 in row 1",
        ),
    ],
)
def test_tables_that_lack_something_are_refused(tmp_path, content, message):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "c.csv", model="m", method="x")
