"""Several routers side by side: what each achieves, costs and takes, a row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from router_training.compare import Comparison, Standing
from router_training.plot_style import (
    PALETTE,
    STYLE,
    compact,
    cost_label,
    cost_scale,
    percent,
    shown_names,
)

_WIDTH = 9.6  # inches
_ROW = 0.36
_LOG_FROM = 10.0  # ratio of values from which an axis is logarithmic


def comparison_figure(comparison: Comparison) -> Figure:
    """Draw quality, cost, AIQ, seconds of learning and milliseconds of a decision.

    The bars are 95 % intervals of the difference from the first router, whose own value is the
    upright line. AUC stands for AIQ where costs do not tell the models apart. What nobody measured
    is left out.
    """
    standings = comparison.standings
    unit = comparison.cost_unit
    flat = any(np.isnan(one.aiq) for one in standings)
    names = shown_names([one.name for one in standings], longest=26)
    with mpl.rc_context({**STYLE}):
        figure = Figure(figsize=(_WIDTH, 1.15 + _ROW * len(standings)), layout="constrained")
        panels = figure.subplots(1, 5, sharey=True)
        quality, cost, third, learning, deciding = panels
        _compared(quality, standings, "quality", percent)
        _compared(cost, standings, "cost", compact, scale=cost_scale(unit), most=np.inf)
        _compared(third, standings, "auc" if flat else "aiq", compact if flat else percent)
        _taken(learning, [_seconds(one) for one in standings])
        _taken(deciding, [_milliseconds(one) for one in standings])
        titles = (
            "Quality",
            cost_label(unit).replace(", ", ",\n"),
            "AUC" if flat else "Quality over all\nbudgets (AIQ)",
            "Learning,\nseconds",
            "One decision,\nmilliseconds",
        )
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title, fontsize=8.5)
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        quality.set_yticks(range(len(names)), names)
        quality.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _compared(
    axes: Axes,
    standings: Sequence[Standing],
    field: str,
    form: Callable[[float], str],
    *,
    scale: float = 1.0,
    most: float = 1.0,
) -> None:
    """Draw values and intervals, which end where the values themselves must end."""
    first = scale * float(getattr(standings[0], field))
    axes.axvline(first, color=PALETTE["muted"], linewidth=0.9, linestyle=(0, (2, 2)))
    for row, one in enumerate(standings):
        value = scale * float(getattr(one, field))
        if one.difference is not None:
            between = getattr(one.difference, field)
            ends = np.clip([first + scale * b for b in (between.low, between.high)], 0, most)
            axes.plot(ends, [row, row], color=PALETTE["router"], linewidth=1.4)
        axes.plot(value, row, marker="o", markersize=6, color=PALETTE["router"], zorder=3)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(float(value))))


def _taken(axes: Axes, values: Sequence[float]) -> None:
    known = [value for value in values if value > 0]
    if known and max(known) > _LOG_FROM * min(known):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlim(min(known) / 2, max(known) * 2)
    else:
        axes.set_xlim(0, 1.2 * max(known, default=1.0))
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    for row, value in enumerate(values):
        axes.plot(value, row, marker="s", markersize=5.5, color=PALETTE["zero"])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(float(value))))


def _seconds(one: Standing) -> float:
    if one.footprint is None:
        return np.nan
    parts = (one.footprint.embed_s, one.footprint.fit_s)
    return float(np.nansum([np.nan if part is None else part for part in parts]) or np.nan)


def _milliseconds(one: Standing) -> float:
    found = one.footprint
    return np.nan if found is None or found.latency is None else found.latency.median_ms
