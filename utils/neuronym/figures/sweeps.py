"""What a number of many runs depends on.

check_column   a column of collected runs, or the sentence that names the nearest
metric_means   mean and interval of a metric for every value of one or two parameters
metric_figure  these, drawn
"""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neuronym.common.checks import unknown
from neuronym.common.statistics import interval
from neuronym.figures.style import as_written, legend_beside, MARKERS, palette

WIDEST = 13  # characters of a line below a place


def check_column(runs: pd.DataFrame, name: str, numbers: bool = False) -> str:
    """The name of a column of collected runs; with `numbers` that of a metric, where a parameter has its name
    too. KeyError with the nearest for one that is not there, ValueError for one without numbers.
    """
    if numbers and f"metric.{name}" in runs:
        name = f"metric.{name}"
    of_numbers = [column for column in runs if _numbers(runs[column]).notna().any()]
    known = of_numbers if numbers else list(runs.columns)
    if name not in runs:
        raise unknown("metric of these runs" if numbers else "parameter of these runs", name, known)
    if numbers and name not in of_numbers:
        raise ValueError(f"'{name}' has no numbers in these runs; these have: {', '.join(of_numbers)}")
    return name


def metric_means(
    runs: pd.DataFrame, metric: str, against: str, group: str = "", seed: int = 0, draws: int = 2000
) -> pd.DataFrame:
    """Mean of `metric` over the runs that share their values of `against` and `group`: these, mean, low,
    high, runs. The interval resamples runs, and is not there for one run alone. Runs without the metric are
    left out.
    """
    keys = [against, *([group] if group else [])]
    kept = runs.assign(**{metric: _numbers(runs[metric])}).dropna(subset=[metric])
    rows = []
    for values, part in kept.groupby(keys, sort=True, dropna=False):
        found = part[metric].to_numpy(float)
        low, high = interval(found, seed, draws) if len(found) > 1 else (np.nan, np.nan)
        rows.append([*values, found.mean(), low, high, len(found)])
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high", "runs"])


@as_written
def metric_figure(means: pd.DataFrame, metric: str, against: str, group: str = "") -> Figure:
    """Means with their intervals: `against` along the axis (to scale where it is numbers, else a place each),
    a colour and a marker for every value of `group`.
    """
    groups = list(means[group].drop_duplicates()) if group else [None]
    values = list(means[against].drop_duplicates())
    scaled = len(values) > 2 and pd.api.types.is_numeric_dtype(means[against])
    place = {value: value if scaled else i for i, value in enumerate(values)}
    fig, ax = plt.subplots(figsize=(max(3.5, 1.3 * len(values)), 3))
    for i, (value, colour) in enumerate(zip(groups, palette(len(groups)))):
        part = means if value is None else means[means[group] == value]
        shift = 0 if scaled or len(groups) == 1 else 0.12 * (i - (len(groups) - 1) / 2)
        x = np.array([place[one] for one in part[against]], float) + shift
        mean = part["mean"].to_numpy()
        spread = np.nan_to_num(np.abs(part[["low", "high"]].to_numpy().T - mean))
        line = "-" if scaled else ""
        marker = MARKERS[i % len(MARKERS)]
        label = None if value is None else str(value)
        ax.errorbar(x, mean, spread, fmt=marker + line, color=colour, capsize=3, markersize=6, label=label)
    if not scaled:
        ax.set_xticks(range(len(values)), [_in_lines(str(value)) for value in values])
        ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set(xlabel=against, ylabel=f"{metric}\nmean over runs, 95 % interval")
    ax.yaxis.grid(True, alpha=0.3)
    if group:
        legend_beside(ax, title=group)
    return fig


def _in_lines(name: str) -> str:
    """A long name in lines that break after colons, slashes and underscores."""
    parts = re.split(r"(?<=[:/_])", name)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part) > WIDEST:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _numbers(column: pd.Series) -> pd.Series:
    """The column as numbers; truth values and texts that are none are missing."""
    return pd.to_numeric(column.where(~column.map(lambda v: isinstance(v, bool))), errors="coerce")
