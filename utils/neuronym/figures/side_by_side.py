"""The same units with the names that several methods give them (CLIP-Dissect, figures 1, 3, 6, 7 and 9).

named_units    one row a unit: its most active images, and a line a method
first_labels   labels tables, of whatever source, as {method: {(layer, unit): label}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from neuronym.common.memory import top_images
from neuronym.common.units import Units, units_by_layer
from neuronym.datasets.probe import thumbnails
from neuronym.figures.style import as_written, COLOURS, DPI
from neuronym.measurements import Measurements

SIDE_PX, SPACE_PX, LINE_PX = 120, 8, 30  # a picture, the space around it, a line of text: in pixels
NAMES_PX, TEXTS_PX, EDGE_PX = 310, 500, 16  # columns of text, and the edge
MOST_ROWS = 60  # rows of a figure
MOST_LETTERS = 30  # of a label; longer ones are cut
UnitLabels = Mapping[tuple[str, int], str]


def first_labels(tables: pd.DataFrame | Iterable[pd.DataFrame]) -> dict[str, dict[tuple[str, int], str]]:
    """{method: {(layer, unit): label}} of rank 1 in labels tables: those of `clip_dissect`, and CSV files of
    others read by `similarity.labels.read_labels` or `published.labels.load_published`.

    Methods stand in the order of the tables. Errors: ValueError for a table without method, layer, unit,
    rank and label, and where a method gives a unit two labels of rank 1.
    """
    found: dict[str, dict[tuple[str, int], str]] = {}
    for table in [tables] if isinstance(tables, pd.DataFrame) else tables:
        lacking = [c for c in ("method", "layer", "unit", "rank", "label") if c not in table]
        if lacking:
            raise ValueError(
                f"a labels table says method, layer, unit, rank and label, got none of {', '.join(lacking)}; "
                "read a CSV of others by similarity.labels.read_labels(path, method=..., layer=...)"
            )
        for row in table[table["rank"] == 1].itertuples():
            own, where = found.setdefault(str(row.method), {}), (str(row.layer), int(row.unit))
            if where in own:
                raise ValueError(
                    f"method '{row.method}' has two labels of unit {row.unit} of '{row.layer}'; give each "
                    "table a method of its own"
                )
            own[where] = row.label if isinstance(row.label, str) else ""
    return found


@as_written
def named_units(
    labels: Mapping[str, UnitLabels],
    data: Measurements,
    units: Units | Mapping[str, Units] = 5,
    images: int = 5,
    names: Mapping[tuple[str, int], str] | None = None,
) -> Figure:
    """A row for each chosen unit: its most active images, and below one another the label of every method.

    `labels` as of `first_labels`; `units` as in `neuronym.common.units`, of the layers that a method has
    labels of; `names` are true ones, where there are some, and a label that is the true name is green.
    A method without a label of a unit has a dash. Errors: ValueError where no method has labels of the
    layers measured, and for more than MOST_ROWS units.

    >>> from neuronym import clip_dissect, measure
    >>> data = measure("microworld:resnet", "fc", "microworld:60", "microworld", "microworld:atoms")
    >>> tables = [clip_dissect(data, name) for name in ("cos_similarity", "soft_wpmi")]
    >>> figure = named_units(first_labels(tables), data, units=[3, 17])
    """
    labelled = {layer for some in labels.values() for layer, _ in some}
    known = {layer: count for layer, count in data.sizes.items() if layer in labelled}
    if not known:
        raise ValueError(
            f"labels are of layers {', '.join(sorted(labelled)) or 'none'}, the measurements of "
            f"{', '.join(data.sizes)}; give those that belong together"
        )
    wanted = units_by_layer(units, known)
    chosen = [(layer, int(unit)) for layer, some in wanted.items() for unit in some]
    if not 0 < len(chosen) <= MOST_ROWS:
        raise ValueError(
            f"a figure has 1 to {MOST_ROWS} units, got {len(chosen)} by {units!r}; draw some of them"
        )
    lines = len(labels) + 1 + (names is not None)
    row = max(SIDE_PX, lines * LINE_PX) + 3 * SPACE_PX
    width = 2 * EDGE_PX + images * (SIDE_PX + SPACE_PX) + NAMES_PX + TEXTS_PX
    fig = plt.figure(figsize=(width / DPI, len(chosen) * row / DPI))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.imshow(_pictures_of_rows(data, wanted, images, row, width), interpolation="none", aspect="auto")
    for i, where in enumerate(chosen):
        top, left = i * row + SPACE_PX, 2 * EDGE_PX + images * (SIDE_PX + SPACE_PX)
        _names_of_row(ax, labels, where, (names or {}).get(where), left, top)
        if i:
            ax.axhline(i * row, color=".85", lw=0.6)
    return fig


def _pictures_of_rows(
    data: Measurements, wanted: Mapping[str, Sequence[int]], images: int, row: int, width: int
) -> np.ndarray:
    """The pictures of all rows as one raster."""
    strips = []
    for layer, some in wanted.items():
        best = top_images(data.Q[layer][:, list(some)], min(images, data.N)).T.tolist()
        for rows in best:
            strip = Image.new("RGB", (width, row), "white")
            for i, picture in enumerate(thumbnails(data.probe, rows, SIDE_PX)):
                left = EDGE_PX + i * (SIDE_PX + SPACE_PX)
                strip.paste(picture, (left + (SIDE_PX - picture.width) // 2, (row - picture.height) // 2))
            strips.append(np.asarray(strip.convert("RGBA")))
    return np.concatenate(strips)


def _names_of_row(
    ax: plt.Axes,
    labels: Mapping[str, UnitLabels],
    where: tuple[str, int],
    truth: str | None,
    left: int,
    top: int,
) -> None:
    """A unit's title, its true name and the label of each method, from `top` downwards."""
    layer, unit = where
    title = f"{layer}  unit {unit}"
    style = {"va": "top", "parse_math": False, "fontsize": 7}
    ax.text(left, top, title if len(title) <= 40 else f"…{title[-39:]}", **style | {"weight": "bold"})
    lines = [("true name", truth)] if truth is not None else []
    lines += [(method, some.get(where, "")) for method, some in labels.items()]
    for i, (method, label) in enumerate(lines, 1):
        right = truth is not None and label == truth
        shown = label if len(label) <= MOST_LETTERS else f"{label[: MOST_LETTERS - 1]}…"
        ax.text(left, top + i * LINE_PX, method, color=".45", **style)
        color = COLOURS[2] if right else "black"
        ax.text(left + NAMES_PX, top + i * LINE_PX, shown or "–", color=color, **style)
