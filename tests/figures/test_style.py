"""Figures are files that say what they should; progress is plain text when headless; the plain explorer draws
what is chosen.
"""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from PIL import Image

from neuronym.figures import style
from neuronym.microworld import training
from neuronym.runs import run
from neuronym.similarity.labels import COLUMNS

matplotlib.use("Agg")


@pytest.fixture
def table():
    rows = [
        ("net", layer, unit, "wpmi", rank, f"{'red' if unit % 2 else 'star'}{rank}", 1.0 / rank + unit)
        for layer in ("layer1", "fc")
        for unit in range(7)
        for rank in (1, 2)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_layer_figures_count_units(table):
    fig = style.scores_by_layer(table)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["layer1 (n=7)", "fc (n=7)"]
    fig = style.labels_by_category(table, {"red1": "colour"})
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["colour", "other"]
    assert style.labels_by_category(table).axes


def test_saved_figures_are_the_same_file_twice(tmp_path, table):
    for folder in ("a", "b"):
        style.save_figure(style.scores_by_layer(table), tmp_path / folder, "x")
    for suffix in ("png", "pdf"):
        assert (tmp_path / "a" / f"x.{suffix}").read_bytes() == (tmp_path / "b" / f"x.{suffix}").read_bytes()


def test_presented_figures_are_saved_shown_once_and_closed(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    fig = style.image_grid([Image.new("RGB", (8, 8))])
    style.present({"a": fig}, tmp_path)
    assert not plt.get_fignums() and len(shown) == 1 and shown[0].data == (tmp_path / "a.png").read_bytes()


def test_headless_progress_passes_items_and_prints_plain_lines(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setenv("NEURONYM_HEADLESS", "1")
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    assert list(run.progress("abcd", text="batches")) == list("abcd")
    assert (
        capsys.readouterr().out == "batches: 2/4 after 12 s, 12 s left\nbatches: 4/4 after 24 s, 0 s left\n"
    )


def test_training_curves_read_both_layouts(tmp_path):
    (tmp_path / "one").mkdir()
    line = '{"step": 50, "loss": 2.5, "seconds": 1}\n'
    (tmp_path / "one" / "curve.jsonl").write_text(line)
    (tmp_path / "two.jsonl").write_text(line)
    curves = training.read_curves(tmp_path)
    assert set(curves["stage"]) == {"one", "two"} and len(style.training_curves(curves).axes) == 2
    with pytest.raises(FileNotFoundError, match="no training curves"):
        training.read_curves(tmp_path / "one" / "none")


def test_the_plain_explorer_redraws_what_is_chosen(table):
    asked = []
    box = style.plain_explorer(table, lambda layer, unit: asked.append((layer, unit)) or plt.figure())
    layer, search, unit, told = box.children[0].children
    first = asked[0]
    layer.value = "fc"
    assert first == ("layer1", 0) and asked[-1] == ("fc", 0)  # another card, though it is unit 0 again
    search.value = "RED"
    unit.value = "fc", 5
    assert [where for _, where in unit.options] == [("fc", 1), ("fc", 3), ("fc", 5)]
    assert asked[-1] == ("fc", 5) and told.value.startswith("3 of ")
    drawn = len(asked)
    search.value = "no such name"
    assert unit.value is None and told.value.startswith("0 of ") and len(asked) == drawn
    layer.value = None
    search.value = "red"
    assert len(unit.options) > 3 and asked[-1] == unit.options[0][1]


def test_the_plain_explorer_ranks_one_method(table):
    both = pd.concat([table, table.assign(method="another", label="other")], ignore_index=True)
    box = style.plain_explorer(both, lambda layer, unit: plt.figure())
    search, unit = box.children[0].children[1:3]
    assert len(unit.options) == (table["rank"] == 1).sum()
    search.value = "other"
    assert unit.options == ()
