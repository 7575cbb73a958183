"""Texts of users are drawn as they are written, in every figure; what no font has is told in one line."""

from __future__ import annotations

import inspect
import sys
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from neuronym.figures import cards, describe, evaluation, published, second_order, style, trust

WORDS = [
    "$$",
    "price $x_$",
    "from $5 to $10",
    "_under_score",
    "{braces}",
    r"\alpha",
    "日本語",
    "صورة",
    "x^2 & <b>",
]
PICTURE = Image.new("RGB", (20, 20), "red")
UNITS = range(len(WORDS))


def labels(layer: str = "fc") -> pd.DataFrame:
    columns = {"model": "m", "layer": layer, "unit": UNITS, "method": "x", "rank": 1, "label": WORDS}
    return pd.DataFrame(columns).assign(score=[i / 10 for i in UNITS])


def long(**columns) -> pd.DataFrame:
    """Three rows of numbers for every word, in the columns that a figure wants."""
    table = pd.DataFrame({name: np.repeat(WORDS, 3) for name, kind in columns.items() if kind == "words"})
    for i, name in enumerate(name for name, kind in columns.items() if kind == "numbers"):
        table[name] = np.linspace(0.1 + 0.1 * i, 0.9, len(table))
    return table.assign(
        **{name: value for name, value in columns.items() if value not in ("words", "numbers")}
    )


def strip(word: str) -> describe.Strip:
    return describe.Strip(word, word, [PICTURE], [[(1, 1, 9, 9)]], [word], [(word, 1.0)], word, 20)


def ablation() -> pd.DataFrame:
    return long(variant="words", mean="numbers", low="numbers", high="numbers", part="a", group="b")


def meanings() -> pd.DataFrame:
    return long(layer="words", correlation="numbers", shuffled="numbers", kind="single")


DRAWN = {
    "cards": lambda: cards.draw(
        [{"title": w, "labels": [(w, 0.5)], "truth": w, "images": [PICTURE]} for w in WORDS], 1
    ),
    "grid": lambda: style.image_grid([PICTURE] * len(WORDS), WORDS),
    "scores_by_layer": lambda: style.scores_by_layer(pd.concat([labels(word) for word in WORDS])),
    "frequent labels": lambda: style.labels_by_category(labels(), most=20),
    "kinds of labels": lambda: style.labels_by_category(labels(), {word: word for word in WORDS}),
    "training": lambda: style.training_curves(
        pd.DataFrame(
            {"stage": np.repeat(WORDS, 2), "step": [0, 1] * len(WORDS), "loss": [1, 0.02] * len(WORDS)}
        )
    ),
    "strips": lambda: describe.strips([strip(word) for word in WORDS]),
    "ablation": lambda: describe.ablation(ablation().groupby("variant", sort=False).first().reset_index()),
    "responses": lambda: evaluation.responses(long(layer="words", auc="numbers", method="a")),
    "methods of responses": lambda: evaluation.responses(long(method="words", auc="numbers", layer="a")),
    "settings": lambda: evaluation.accuracy_by(long(by="words", top1="numbers", similarity="a"), "by"),
    "sanity": lambda: evaluation.sanity_table(
        pd.DataFrame(0.5, WORDS, pd.MultiIndex.from_product([["a"], ["all", "b"]]))
    ),
    "ranges": lambda: evaluation.ranges(
        pd.DataFrame({"layer": np.repeat(WORDS[:8], 2), "share": [0.01, 1] * 8, "present": [0.5, 0.1] * 8})
    ),
    "agreement": lambda: published.agreement_by_layer(
        pd.DataFrame({"pair": WORDS[:8], "layer": "layer4", "agreement": 0.3, "chance": 0.1})
    ),
    "common labels": lambda: published.common_labels(labels(), 20),
    "texts": lambda: published.texts_by_method(
        long(
            whose="words",
            value="numbers",
            low="numbers",
            high="numbers",
            shuffled="numbers",
            constant="numbers",
            panel="a",
        )
        .groupby("whose", sort=False)
        .first()
        .reset_index()
    ),
    "rates": lambda: second_order.rates(
        pd.DataFrame({"source": WORDS, "pair": WORDS[::-1], "fooled": 0.5}), "fooled"
    ),
    "masks": lambda: second_order.mask_strip(
        [PICTURE] * len(WORDS), *[torch.rand(len(WORDS), 20, 20)] * 3, WORDS
    ),
    "correlations": lambda: second_order.correlations(
        long(method="words", correlation="numbers", predicted="a")
    ),
    "words": lambda: second_order.accuracy_by_words(
        pd.DataFrame({"words": [1, 2, 4], "pool": WORDS[2], "accuracy": [0.1, 0.2, 0.3]}), 0.9, 0.1
    ),
    "curves": lambda: second_order.curves(
        {WORDS[2]: (WORDS[1], pd.DataFrame({"value": [1, 2], "metric": WORDS[3], "score": [0.1, 0.2]}))}
    ),
    "null": lambda: trust.null_scores(
        {word: np.random.rand(9) for word in WORDS}, {word: np.random.rand(5, 9) for word in WORDS}
    ),
    "signals": lambda: trust.signals_by_layer(long(layer="words", halves="numbers"), ["halves"]),
    "forest": lambda: trust.auroc_forest(
        long(trust="words", auroc="numbers", low="numbers", high="numbers", group="_g")
        .groupby("trust", sort=False)
        .first()
        .reset_index()
    ),
    "meanings": lambda: trust.meanings(meanings()),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_texts_are_drawn_as_written(name, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph")
        fig = DRAWN[name]()
        fig.set_dpi(30)
        fig.canvas.draw()
        if name == "grid":  # one of them as a file, too
            style.save_figures({"f": fig}, tmp_path)
    texts = [text for text in fig.findobj(Text) if any(word in text.get_text() for word in WORDS)]
    assert texts and not any(text.get_parse_math() for text in texts)
    written = [text.get_text() for text in fig.findobj(Text) if not text.get_parse_math()]
    assert not any("mathdefault" in text for text in written)


def test_every_figure_is_drawn_so():
    for module in (cards, describe, evaluation, published, second_order, style, trust):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and inspect.signature(function).return_annotation in (
                "Figure",
                Figure,
            ):
                assert hasattr(function, "__wrapped__"), f"{module.__name__}.{name} lacks @as_written"


def test_the_settings_of_others_stay():
    before = dict(plt.rcParams)
    style.image_grid([PICTURE], ["$x$"])
    assert dict(plt.rcParams) == before


def test_labels_that_begin_with_an_underscore_stand_in_legends():
    fig = style.labels_by_category(labels(), most=20)
    assert set(WORDS) <= {text.get_text() for text in fig.axes[0].get_legend().get_texts()}
    fig = trust.auroc_forest(
        pd.DataFrame({"group": ["_g"], "trust": "a", "auroc": 0.5, "low": 0.4, "high": 0.6})
    )
    assert fig.axes[0].get_legend().get_texts()[0].get_text().endswith("_g")


def test_what_no_font_has_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    shown = SimpleNamespace(display=lambda *_: None, Image=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = {
            str(i): style.image_grid([PICTURE], [f"a\U000e1234b {i} é \u200d\ufe0f"]) for i in range(2)
        }
        style.present(figures, tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "(U+E1234)" in told[0] and told[0].count("U+") == 1
    assert style.without_glyph([style.image_grid([PICTURE], ["plain é"])]) == []


def test_tables_of_notebooks_keep_dollars():
    style.style()
    assert "mathjax_ignore" in pd.DataFrame({"label": ["$5 to $10", "<b>"]})._repr_html_()
    assert "&lt;b&gt;" in pd.DataFrame({"label": ["<b>"]})._repr_html_()
