"""Everything drawn: figures for papers, progress, and the widget that browses units.

style               one look for all figures
palette             its colours
MARKERS, DASHES, HATCHES   so that groups differ without their colours
as_written          makes a function draw all texts as they are written
without_glyph       characters of figures that no font at hand has
image_grid          pictures in a grid
hatch               boxes of groups, told apart without their colours
scores_by_layer     distribution of the best scores, layer by layer
labels_by_category  share of labels of each kind, layer by layer
training_curves     loss against step, a panel per stage
save_figure         png and pdf, without dates
save_figures        several
present             save figures, show what was saved
plain_explorer      browse units with ipywidgets
legible             names for legends
legend_beside       a legend right of its axes
"""

from __future__ import annotations

import io
import re
import textwrap
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from PIL import Image

DPI = 200  # of saved figures
SEPARATORS = r"[/\\:]+"  # of folders, in names of layers
COLOURS = (  # seaborn's colour-blind palette; importing seaborn takes a second
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#fbafe4",
    "#949494",
    "#ece133",
    "#56b4e9",
)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")  # groups differ without their colours too
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "....", "xxxx", "----")
DARK = ".15"
LOOK = {  # what seaborn.set_theme(context="paper", style="ticks") sets, and our own
    "figure.dpi": 110,
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans", "sans-serif"],
    "font.size": 9.6,
    "text.color": DARK,
    "axes.axisbelow": True,
    "axes.edgecolor": DARK,
    "axes.labelcolor": DARK,
    "axes.labelsize": 9.6,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.fontsize": 8.8,
    "legend.title_fontsize": 9.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.8,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
    "patch.linewidth": 0.8,
} | {
    f"{axis}.{name}": value
    for axis in ("xtick", "ytick")
    for name, value in {
        "color": DARK,
        "labelsize": 8.8,
        "major.size": 4.8,
        "major.width": 1,
        "minor.size": 3.2,
        "minor.width": 0.8,
    }.items()
}


# fonts for what the first lacks, the first of each line that is installed
FALLBACKS = (
    "Noto Sans CJK SC, Noto Sans CJK JP, Noto Serif CJK SC, Source Han Sans SC, WenQuanYi Zen Hei, "
    "WenQuanYi Micro Hei, Droid Sans Fallback, Hiragino Sans GB, PingFang SC, Microsoft YaHei, MS Gothic, "
    "Arial Unicode MS",
    "DejaVu Sans",
    "Noto Sans Arabic, Noto Naskh Arabic, Geeza Pro, Segoe UI",
    "Noto Sans Devanagari, Lohit Devanagari, Kohinoor Devanagari, Nirmala UI",
    "Noto Sans Thai, Loma, Thonburi, Leelawadee UI",
    "Noto Emoji, Symbola, Segoe UI Emoji, Segoe UI Symbol",
)


def style() -> None:
    """Set the look of all figures: seaborn's colour-blind palette, small sans text, no chart junk. Tables
    that a notebook shows keep their dollar signs, too.
    """
    pd.options.display.html.use_mathjax = False
    plt.rcParams.update(LOOK)
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS)


def as_written(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A function whose figures show texts as they are: dollar signs begin no formula, and what the font
    lacks is taken from others that are installed.
    """

    @wraps(draw)
    def drawn(*args, **more) -> Figure:
        with plt.rc_context({"text.parse_math": False, "font.family": _families()}), _without_warnings():
            return draw(*args, **more)

    return drawn


def without_glyph(figures: Iterable[Figure]) -> list[str]:
    """Characters in the texts of figures that none of their fonts has, in order, each once."""
    kinds: dict[tuple[str, ...], set[str]] = {}
    for fig in figures:
        for text in fig.findobj(Text):
            kinds.setdefault(tuple(text.get_fontfamily()), set()).update(text.get_text())
    missing = set()
    for families, characters in kinds.items():
        seen = {c for c in characters if c > "\x7f" and not c.isspace()}
        seen = {c for c in seen if unicodedata.category(c) not in ("Cc", "Cf", "Mn")}
        for family in families if seen else []:
            file = font_manager.findfont(font_manager.FontProperties(family=[family]))
            font = font_manager.get_font(file)  # its table of all characters takes as long as a figure
            seen = {c for c in seen if not font.get_char_index(ord(c))}
        missing |= seen
    return sorted(missing)


def _families() -> list[str]:
    """The font of all figures, and those that stand in for it."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    stand_ins = [next((name for name in line.split(", ") if name in known), None) for line in FALLBACKS]
    return [*plt.rcParams["font.family"], *filter(None, stand_ins)]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without matplotlib's one warning for each character that has no glyph: `present` tells them in one
    line.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def palette(n: int = len(COLOURS)) -> list[str]:
    """n colours; beyond ten they come again."""
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


@as_written
def image_grid(
    images: Sequence[Image.Image], titles: Sequence[str] | None = None, columns: int = 8, size: float = 1.1
) -> Figure:
    """Pictures in a grid, `size` inches each; titles are wrapped, and have their own lines where they hold
    line breaks.
    """
    columns = min(columns, max(1, len(images)))
    rows, texts = -(-len(images) // columns), []
    for title in titles or ():
        lines = [textwrap.fill(line, int(18 * size)) for line in title.split("\n")]
        texts.append("\n".join(lines))
    room = 0.115 * (max(text.count("\n") for text in texts) + 1) + 0.08 if texts else 0
    fig, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * (size + room)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            ax.imshow(images[i], interpolation="nearest" if images[i].width < 100 else "auto")
            if texts:
                ax.set_title(texts[i], fontsize=6.5, parse_math=False)
    fig.tight_layout(pad=0.3)
    return fig


def hatch(ax: Axes, groups: int) -> None:
    """Hatch the boxes of seaborn's `groups` so that they differ without their colours, in the legend too."""
    boxes = [container.boxes for container in ax.containers if hasattr(container, "boxes")]
    for g, some in enumerate(boxes[:groups]):
        for box in some:
            box.set(hatch=HATCHES[g % len(HATCHES)], edgecolor=DARK)
    for g, handle in enumerate(ax.get_legend().legend_handles[:groups]):
        handle.set(hatch=HATCHES[g % len(HATCHES)], edgecolor=DARK)


@as_written
def scores_by_layer(table: pd.DataFrame) -> Figure:
    """Box plot of the best label's score for every layer; scores compare within one method and concept set
    only.
    """
    best = table[table["rank"] == 1]
    layers = list(dict.fromkeys(best["layer"]))
    fig, ax = plt.subplots(figsize=(4.6, 0.34 * len(layers) + 1))
    line = {"color": "0.3", "linewidth": 0.8}
    ax.boxplot(
        [best.loc[best["layer"] == name, "score"].dropna() for name in layers],
        orientation="horizontal",
        positions=range(len(layers)),
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": COLOURS[0], "edgecolor": "0.3", "linewidth": 0.8},
        medianprops=line,
        whiskerprops=line,
        capprops=line,
        flierprops={"markersize": 1.5, "markeredgecolor": "0.3"},
        manage_ticks=False,
    )
    ax.invert_yaxis()
    counts = best.groupby("layer")["unit"].nunique()
    ax.set_yticks(range(len(layers)), [f"{name} (n={counts[name]})" for name in layers])
    ax.set(xlabel=f"score of the best label ({best['method'].iloc[0]})", ylabel="")
    fig.tight_layout()
    return fig


@as_written
def labels_by_category(
    table: pd.DataFrame, category: Mapping[str, str] | None = None, most: int = 8
) -> Figure:
    """Share of each layer's units whose label is of each kind; without `category` the `most` frequent labels
    are the kinds.
    """
    best = table[table["rank"] == 1]
    layers = list(dict.fromkeys(best["layer"]))
    if "note" in best:
        best = best.assign(label=best["label"].where(best["note"] == "", "no name"))
    if category:
        kind, title = best["label"].map(lambda label: category.get(label, "other")), "kind of label"
    else:
        often = set(best["label"].value_counts().index[:most])
        kind, title = best["label"].where(best["label"].isin(often), "other"), "label"
    share = pd.crosstab(best["layer"], kind, normalize="index").loc[layers]
    share = share[share.mean().sort_values(ascending=False).index]
    if "other" in share:
        share = share[[c for c in share if c != "other"] + ["other"]]
    fig, ax = plt.subplots(figsize=(5.6, 0.34 * len(layers) + 1))
    colours = [".85" if c == "other" else palette(share.shape[1])[i] for i, c in enumerate(share)]
    share.iloc[::-1].plot.barh(stacked=True, ax=ax, width=0.75, color=colours, legend=False)
    ax.set(xlabel="share of units", ylabel="", xlim=(0, 1))
    # without their handles matplotlib leaves out labels that begin with an underscore
    legend_beside(ax, ax.containers, list(share), title=title)
    fig.tight_layout()
    return fig


@as_written
def training_curves(curves: pd.DataFrame) -> Figure:
    """Loss against step, a panel per stage."""
    stages = list(dict.fromkeys(curves["stage"]))
    fig, axes = plt.subplots(1, len(stages), figsize=(1.9 * len(stages), 1.9), squeeze=False)
    for ax, stage in zip(axes[0], stages):
        rows = curves[curves["stage"] == stage]
        ax.plot(rows["step"], rows["loss"], lw=1.2)
        ax.set(title=stage, xlabel="step", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("training loss")
    fig.tight_layout()
    return fig


def save_figure(fig: Figure, folder: Path, name: str) -> Path:
    """Write <name>.png (200 dpi) and <name>.pdf into `folder`, without dates, so that the same figure is the
    same file.
    """
    return save_figures({name: fig}, folder)[0]


def save_figures(
    figures: Mapping[str, Figure] | Iterable[tuple[str, Figure]], folder: Path, pixels: bool = False
) -> list[Path]:
    """Write each figure as <name>.png and <name>.pdf, with "_" for what separates folders in a layer's name;
    returns the pictures' paths.

    With `pixels` a PDF holds the pixels of the picture, which for figures of photographs costs a third of the
    time.
    """
    return [file for file, _ in _saved(figures, folder, pixels)]


def _saved(
    figures: Mapping[str, Figure] | Iterable[tuple[str, Figure]], folder: Path, pixels: bool
) -> Iterator[tuple[Path, Figure]]:
    """Each figure once it is drawn, and its picture's path; the files are all there at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with ThreadPoolExecutor(1) as writer:  # packs one picture while the next is drawn
        for said, fig in figures.items() if isinstance(figures, Mapping) else figures:
            file = folder / f"{re.sub(SEPARATORS, '_', said)}.png"
            with _without_warnings():
                picture, box = _drawn(fig)
                written.append(writer.submit(_write_pixels, picture, file, pixels))
                if not pixels:
                    dates = {"CreationDate": None, "ModDate": None}
                    fig.savefig(file.with_suffix(".pdf"), bbox_inches=box, metadata=dates)
            yield file, fig
        for one in written:
            one.result()


def _drawn(fig: Figure) -> tuple[Image.Image, Bbox]:
    """The part of a figure that has something on it in pixels, and where it is, in inches."""
    shown, before = fig.dpi, fig.canvas
    try:
        fig.dpi, canvas = DPI, FigureCanvasAgg(fig)
        box = _whole_pixels(fig.get_tightbbox())
        width, height = canvas.get_width_height()
        (left, below), (right, above) = np.rint(box.get_points() * DPI).astype(int)
        within = left >= 0 and below >= 0 and right <= width and above <= height
        box = _whole_pixels(box.padded(0.1))
        if within:
            canvas.draw()  # by what texts were measured for, which is half of its work
            whole = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba())
    finally:
        fig.set_canvas(before)  # a widget shows the figure on
        fig.dpi = shown
    (left, below), (right, above) = np.rint(box.get_points() * DPI).astype(int)
    size = right - left, above - below
    if within:
        paper = tuple(round(255 * part) for part in fig.get_facecolor())
        picture = Image.new("RGBA", size, paper)
        picture.paste(whole, (-left, above - height))
        return picture.convert("RGB"), box
    drawn = io.BytesIO()
    fig.savefig(drawn, format="rgba", dpi=DPI, bbox_inches=box)
    return Image.frombuffer("RGBA", size, drawn.getbuffer()).convert("RGB"), box


def _whole_pixels(box: Bbox) -> Bbox:
    """A box in inches, no smaller, whose edges are edges of pixels: rasters stay sharp."""
    low, high = box.get_points() * DPI
    return Bbox([np.floor(low) / DPI, np.ceil(high) / DPI])


def _write_pixels(picture: Image.Image, file: Path, pdf: bool) -> None:
    """A picture and, with `pdf`, a page that holds its pixels."""
    picture.save(file, dpi=(DPI, DPI), compress_level=2 if pdf else 4)
    if pdf:
        start = time.gmtime(0)
        picture.save(file.with_suffix(".pdf"), resolution=DPI, quality=95, creationDate=start, modDate=start)


def present(
    figures: Mapping[str, Figure] | Iterable[tuple[str, Figure]], folder: Path, pixels: bool = False
) -> None:
    """`save_figures`, close them and show the saved pictures at their sizes; `plt.show` would draw them once
    more. A line says which characters no font at hand has.
    """
    from IPython.display import display
    from IPython.display import Image as Shown

    saved, lacking = [], set()
    for file, fig in _saved(figures, folder, pixels):
        lacking |= set(without_glyph([fig]))
        plt.close(fig)
        saved.append((file, fig.dpi))
    if lacking := sorted(lacking):
        told = ", ".join(f"{c} (U+{ord(c):04X})" for c in lacking[:12]) + (", ..." if lacking[12:] else "")
        print(f"drawn as boxes, since no font here has them: {told}; fonts such as Noto's have")
    for file, dpi in saved:
        with Image.open(file) as image:
            display(Shown(str(file), width=round(image.width * dpi / DPI)))


def plain_explorer(table: pd.DataFrame, draw: Callable[[str, int], Figure]):
    """A widget that shows any unit: choose a layer or search labels, then one of what fits; `draw(layer,
    unit)` gives its figure. Of several methods' labels the first one's are read.
    """
    import ipywidgets as widgets
    from IPython.display import display

    best = table[(table["rank"] == 1) & (table["method"] == table["method"].iloc[0])]
    layer = widgets.Dropdown(
        options=[("all", None), *dict.fromkeys((name, name) for name in best["layer"])], description="layer"
    )
    search = widgets.Text(description="label has", continuous_update=False)
    unit, told, out = widgets.Dropdown(description="unit"), widgets.Label(), widgets.Output()

    def fill(*_) -> None:
        has = best["label"].str.casefold().str.contains(search.value.casefold(), regex=False)
        found = best[has & (best["layer"].eq(layer.value) | (layer.value is None))]
        told.value = f"{len(found)} of {len(best)} units"
        unit.options = [
            (f"{row.layer} {row.unit}: {row.label}", (row.layer, row.unit)) for row in found.itertuples()
        ]
        unit.index = 0 if len(found) else None

    def change(*_) -> None:
        with out:
            out.clear_output(wait=unit.value is not None)
            if unit.value is not None:
                fig = draw(*unit.value)
                display(fig)
                plt.close(fig)

    for widget, act in ((layer, fill), (search, fill), (unit, change)):
        widget.observe(act, "value")
    fill()
    return widgets.VBox([widgets.HBox([layer, search, unit, told]), out])


def legible(name: str) -> str:
    """A layer's name as legends show it: matplotlib leaves out those that begin with an underscore, but not
    where a character without width stands before it.
    """
    return f"\u200b{name}" if name.startswith("_") else name


def legend_beside(ax: Axes, *given: Sequence, at: float = 1.01, title: str | None = None) -> None:
    """A legend in small print, right of the axes, of handles and labels if they are given; `at` is where it
    begins, in widths of the axes.
    """
    small = {"fontsize": 7, "title_fontsize": 7, "frameon": False}
    ax.legend(*given, title=title, loc="center left", bbox_to_anchor=(at, 0.5), **small)
