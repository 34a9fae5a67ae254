"""A grid of plots instead of sliders: what each threshold does to quality, cost and traffic."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from router_runtime.types import F64
from router_training.plot_style import (
    PALETTE,
    STYLE,
    compact,
    cost_label,
    cost_scale,
    percent,
    shown_names,
)
from router_training.threshold_sweep import ThresholdSweep

_WIDTH = 9.6  # inches
_NAME_CHARS = 22


def threshold_figure(sweep: ThresholdSweep) -> Figure:
    """Draw a column of plots per model, with its threshold from left to right.

    Rows are quality, cost and the model's share of the queries. The upright line is where the
    threshold stands now, the level one what all thresholds achieve as they are.
    """
    scale = cost_scale(sweep.cost_unit)
    now = sweep.now
    rows: tuple[tuple[str, F64, float, str], ...] = (
        ("Quality", sweep.quality, now.quality, PALETTE["router"]),
        (cost_label(sweep.cost_unit).replace(", ", ",\n"), sweep.cost * scale, now.cost * scale,
         PALETTE["zero"]),
        ("Share of the\nqueries", sweep.share, np.nan, PALETTE["oracle"]),
    )  # fmt: skip
    names = shown_names(sweep.model_ids, longest=_NAME_CHARS)
    with mpl.rc_context({**STYLE}):
        figure = Figure(figsize=(_WIDTH, 5.2), layout="constrained")
        grid = figure.subplots(3, len(names), squeeze=False, sharex=True, sharey="row")
        for row, (label, values, level, color) in enumerate(rows):
            for column, model in enumerate(sweep.model_ids):
                _draw(grid[row, column], sweep, model, values[column], level, color)
            grid[row, 0].set_ylabel(label)
        for column, name in enumerate(names):
            standing = sweep.thresholds[sweep.model_ids[column]]
            grid[0, column].set_title(f"{name}\nstands at {standing:.2f}", fontsize=8.5)
        for axes, form in zip(grid[:, 0], (percent, compact, percent), strict=True):
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, f=form: f(float(value))))
        figure.supxlabel("Threshold of this model, the others as they stand", fontsize=9)
    return figure


def _draw(
    axes: Axes, sweep: ThresholdSweep, model: str, values: F64, level: float, color: str
) -> None:
    muted, standing = PALETTE["muted"], sweep.thresholds[model]
    axes.axvline(standing, color=muted, linewidth=0.9, linestyle=(0, (2, 2)))
    if not np.isnan(level):
        axes.axhline(level, color=muted, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.plot(sweep.grid, values, color=color, drawstyle="steps-mid")
    at = int(np.argmin(np.abs(sweep.grid - standing)))
    axes.plot(
        sweep.grid[at],
        values[at],
        marker="o",
        markersize=6,
        color=color,
        markeredgecolor=PALETTE["paper"],
        markeredgewidth=0.8,
        zorder=4,
    )
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
