"""Lines that Pillow draws: as matplotlib's, to a few pixels; what it does not draw is matplotlib's own."""

from __future__ import annotations

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from neuronym.figures import style
from neuronym.figures.lines import Line

matplotlib.use("Agg")


def drawn(kind, text, size=(600, 60), **look):
    """The line, and the pixels [60, 600, 3] of a figure that holds it, its baseline at 20 from below."""
    style.style()
    fig = plt.figure(figsize=(size[0] / 200, size[1] / 200), dpi=200)
    with plt.rc_context({"font.family": style._families(), "text.parse_math": False}):
        line = fig.add_artist(kind(16 / size[0], 20 / size[1], text, **{"fontsize": 8, "color": "k"} | look))
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    plt.close(fig)
    return line, np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def ink(pixels):
    """Where something is drawn: left, top, right, below."""
    rows, columns = np.nonzero((pixels < 200).any(2))
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


@pytest.mark.parametrize("weight", ["normal", "bold"])
@pytest.mark.parametrize("text", ["red striped ball  (0.123)", "$x_$ {jp}…", "✓ true name: Äpfel"])
def test_lines_are_where_matplotlib_writes_them(text, weight):
    """Widths of letters are whole pixels or are not: a line's end may differ by some."""
    own, ours = drawn(Line, text, weight=weight)
    _, theirs = drawn(Text, text, weight=weight)
    assert own._font() is not None
    assert (np.abs(ink(ours) - ink(theirs)) <= [1, 1, 0.02 * ink(theirs)[2] + 1, 1]).all()
    assert abs((255 - ours).sum() / (255 - theirs).sum() - 1) < 0.1
    box = own.get_window_extent()
    left, top, right, below = ink(ours)
    assert box.x0 == 16 and left >= 16 and abs(box.x1 - right) <= 3
    assert abs(60 - box.y1 - top) <= 2 and abs(60 - box.y0 - 1 - below) <= 2


def test_a_line_has_its_colour_on_what_is_below():
    _, red = drawn(Line, "lllll", color="#d55e00", fontsize=20, weight="bold")
    assert (red == (0xD5, 0x5E, 0)).all(2).any()
    assert (red[..., 0] >= red[..., 1]).all() and (red[..., 1] >= red[..., 2]).all()
    _, none = drawn(Line, "lllll", visible=False)
    assert (none == 255).all() and (drawn(Line, "")[1] == 255).all()


@pytest.mark.parametrize("text", ["赤 ball", "كرة", "two\nlines", "गेंद"])
def test_what_wants_other_fonts_or_shaping_is_written_by_matplotlib(text):
    with style._without_warnings():
        own, ours = drawn(Line, text)
        assert own._font() is None and (ours == drawn(Text, text)[1]).all()


def test_a_line_beyond_the_edge_is_cut():
    _, whole = drawn(Line, "w" * 60)
    assert (whole[:, -1] < 255).any() and (whole[:, :16] == 255).all()


def test_a_pdf_holds_the_text():
    style.style()
    fig = plt.figure(figsize=(3, 1))
    fig.add_artist(Line(0.1, 0.5, "red ball"))
    file = io.BytesIO()
    fig.savefig(file, format="pdf", metadata={"CreationDate": None})
    plt.close(fig)
    assert b"/FontFile2" in file.getvalue() and b"/Subtype /Image" not in file.getvalue()
