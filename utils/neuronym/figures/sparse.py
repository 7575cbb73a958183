"""Figures of sparse features.

named_at_equal_count  labels of neurons and of features side by side, a panel a measure
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from neuronym.figures.style import as_written, MARKERS, palette

MEASURES = {"correlation": "correlation with\nthe truth, held out", "distinct_labels": "distinct labels"}
BY = {"named": "CLIP-Dissect", "oracle": "best concept of the naming images"}


@as_written
def named_at_equal_count(table: pd.DataFrame) -> Figure:
    """Table of `over_repeats`: a row for each kind of unit, colours for poolings, filled marks for labels and
    open ones for the best possible; lines from the lowest to the highest repeat, of one repeat the middle
    95 % of its draws.
    """
    kinds, pools = (list(dict.fromkeys(table[column])) for column in ("layer", "pooling"))
    size = (6.6, 0.55 * len(kinds) + 1.3)
    fig, axes = plt.subplots(1, len(MEASURES), figsize=size, sharey=True)
    for ax, (column, said) in zip(axes, MEASURES.items()):
        for i, (pool, colour, mark) in enumerate(zip(pools, palette(), MARKERS)):
            for method, face in (("named", colour), ("oracle", "white")):
                some = table[(table["pooling"] == pool) & (table["method"] == method)]
                at = [kinds.index(kind) + 0.22 * (i - (len(pools) - 1) / 2) for kind in some["layer"]]
                ends = (some[f"{column}_low"], some[f"{column}_high"])
                ax.hlines(at, *ends, color=colour, lw=1.2)
                style = {"color": colour, "mfc": face, "marker": mark, "ms": 5, "ls": ""}
                ax.plot(some[column], at, label=f"{pool}, {BY[method]}", **style)
        ax.set_xlabel(said)
        ax.set_xlim(0, 1.06 * float(table[f"{column}_high"].max()))
        ax.grid(axis="x", color=".9", lw=0.8)
    axes[0].set_yticks(range(len(kinds)), kinds)
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    fig.tight_layout(rect=(0, 0, 1, 1 - 0.5 / size[1]))
    fig.legend(handles, names, loc="upper center", ncols=2, frameon=False, fontsize=7)
    return fig
