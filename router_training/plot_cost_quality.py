"""The figure that matters most: what each way to choose costs, and how good its answers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from router_runtime.types import F64
from router_training.evaluation_report import Curves, EvaluationReport, HonestPoint, Point
from router_training.plot_files import no_glyph_warnings
from router_training.plot_labels import in_reading_order, place_labels
from router_training.plot_style import (
    PALETTE,
    compact,
    cost_label,
    cost_scale,
    percent,
    shown_name,
    shown_names,
)

MAX_NAMED = 8
"""More models than this get numbers, and their names stand in a list beside the plot."""

_LOG_FROM = 10.0  # ratio of costs from which the axis is logarithmic
_FREE = 1e-15  # costs below are drawn as 0: axes cannot tell them
_STEPS = 40  # points per straight piece, which a logarithmic axis bends
_LABEL_SIZE = 8.5
_FAR = 13.0  # pixels from which a line joins label and point


@dataclass(frozen=True)
class _Mark:
    """A point with its label."""

    x: float
    y: float
    text: str
    color: str
    weight: str = "normal"


def cost_quality_figure(report: EvaluationReport, curves: Curves) -> Figure:
    """Draw curves, single models, references and honest points.

    Parameters
    ----------
    report : EvaluationReport
    curves : Curves
        ``report.curves``, which is not None.
    """
    numbered = len(curves.singles) > MAX_NAMED
    figure = Figure(figsize=(9.6, 5.6), layout=None)
    axes = figure.add_axes((0.075, 0.17, 0.60 if numbered else 0.895, 0.79))
    scale = cost_scale(report.cost_unit)
    _set_axes(axes, report, curves, scale)
    lines = _draw_lines(axes, curves, scale)
    honest, bars = _draw_honest(axes, report, scale)
    marks = [
        *_draw_singles(axes, report, curves, scale, numbered=numbered),
        *_draw_references(axes, curves, scale),
        *honest,
    ]
    _draw_labels(figure, axes, marks, [*lines, *bars])
    _draw_legend(figure)
    if numbered:
        _draw_names(figure, report, curves.singles)
    return figure


def _set_axes(axes: Axes, report: EvaluationReport, curves: Curves, scale: float) -> None:
    points = [*curves.singles, curves.oracle, curves.random, curves.operating, *curves.router]
    points += [Point(entry.outcome.cost, entry.outcome.quality) for entry in report.honest]
    costs = np.array([p.cost * scale for p in points])
    quality = np.array([p.quality for p in points])
    costs, quality = costs[~np.isnan(costs)], quality[~np.isnan(quality)]
    costs[costs < _FREE] = 0.0
    low, high = float(costs.min()), float(costs.max())
    if high > _LOG_FROM * low and high > 0:
        least = float(costs[costs > 0].min())
        if low > 0:
            axes.set_xscale("log")
            reach = (high / low) ** 0.09
            axes.set_xlim(low / reach, high * reach)
        else:  # something is free
            axes.set_xscale("symlog", linthresh=least)
            axes.set_xlim(-0.15 * least, high * 2)
        _set_log_ticks(axes, least, high)
    else:
        margin = 0.08 * ((high - low) or abs(high) or 1.0)
        axes.set_xlim(max(low - margin, -0.02 * high) if low >= 0 else low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(float(value))))
    room = 0.09 * ((quality.max() - quality.min()) or 0.1)
    axes.set_ylim(quality.min() - room, quality.max() + room)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(float(value))))
    axes.set_xlabel(cost_label(report.cost_unit))
    axes.set_ylabel("Quality (mean score)")


def _set_log_ticks(axes: Axes, low: float, high: float) -> None:
    decades = np.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades < 2.6 else (1.0, 3.0) if decades < 4 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)


def _draw_lines(axes: Axes, curves: Curves, scale: float) -> list[F64]:
    """Draw the curves; return their points as (n, 2) arrays in data coordinates."""
    right = curves.cost_range[1]
    zero = _bent(curves.zero_router, right, scale)
    hull = _bent(curves.router_hull, right, scale)
    sweep = np.array([(p.cost * scale, p.quality) for p in curves.router]).reshape(-1, 2)
    axes.plot(*zero.T, color=PALETTE["zero"], linestyle=(0, (5, 2.5)), zorder=2)
    axes.plot(*sweep.T, color=PALETTE["router"], linewidth=0.9, alpha=0.55, zorder=2)
    axes.plot(*hull.T, color=PALETTE["router"], linewidth=2.2, zorder=3)
    return [zero, hull, sweep]


def _bent(corners: Sequence[Point], right: float, scale: float) -> F64:
    """Return the straight pieces between corners as many points, then flat to ``right``."""
    points = np.array([(p.cost, p.quality) for p in corners]).reshape(-1, 2)
    if len(points) == 0:
        return points
    if points[-1, 0] < right:
        points = np.concatenate([points, [[right, points[-1, 1]]]])
    at = np.arange(len(points), dtype=np.float64)
    fine = np.linspace(0, len(points) - 1, (len(points) - 1) * _STEPS + 1)
    return np.stack(
        [np.interp(fine, at, points[:, 0]) * scale, np.interp(fine, at, points[:, 1])]
    ).T


def _draw_singles(
    axes: Axes, report: EvaluationReport, curves: Curves, scale: float, *, numbered: bool
) -> list[_Mark]:
    order = in_reading_order([p.quality for p in curves.singles])
    names = shown_names([p.name for p in curves.singles], longest=30)
    marks = []
    for number, at in enumerate(order, start=1):
        point = curves.singles[at]
        if np.isnan(point.cost) or np.isnan(point.quality):
            continue
        best = point.name == report.best_single
        axes.plot(
            point.cost * scale,
            point.quality,
            marker="o",
            markersize=7.5 if best else 6,
            color=PALETTE["ink"] if best else PALETTE["muted"],
            markeredgecolor=PALETTE["paper"],
            markeredgewidth=0.8,
            linestyle="none",
            zorder=4,
        )
        name = str(number) if numbered else names[at]
        marks.append(
            _Mark(
                point.cost * scale,
                point.quality,
                f"{name} (best single)" if best and not numbered else name,
                PALETTE["ink"],
                "bold" if best else "normal",
            )
        )
    return marks


def _draw_references(axes: Axes, curves: Curves, scale: float) -> list[_Mark]:
    marks = []
    for point, text, marker, color in (
        (curves.oracle, "oracle", "*", PALETTE["oracle"]),
        (curves.random, "random", "X", PALETTE["muted"]),
    ):
        if np.isnan(point.cost) or np.isnan(point.quality):
            continue
        axes.plot(
            point.cost * scale,
            point.quality,
            marker=marker,
            markersize=12 if marker == "*" else 7.5,
            color=color,
            markeredgecolor=PALETTE["paper"],
            markeredgewidth=0.8,
            linestyle="none",
            zorder=5,
        )
        marks.append(_Mark(point.cost * scale, point.quality, text, color))
    return marks


def _draw_honest(
    axes: Axes, report: EvaluationReport, scale: float
) -> tuple[list[_Mark], list[F64]]:
    """Draw the points with their intervals; return the labels, one per place, and the bars."""
    color = PALETTE["honest"]
    names: dict[tuple[float, float], list[str]] = {}
    bars = []
    for place, entry in enumerate(report.honest):
        x, y = entry.outcome.cost * scale, entry.outcome.quality
        if np.isnan(x) or np.isnan(y):
            continue
        if (x, y) not in names:
            across, along = _arms(entry, x)
            axes.errorbar(
                x,
                y,
                xerr=across,
                yerr=along,
                color=color,
                elinewidth=1.1,
                capsize=2.5,
                marker="D" if place == 0 else "s",
                markersize=8 if place == 0 else 5.5,
                markeredgecolor=PALETTE["paper"],
                markeredgewidth=0.8,
                linestyle="none",
                zorder=7 - min(place, 1),
            )
            bars += [_between((x - across[0, 0], y), (x + across[1, 0], y))]
            bars += [_between((x, y - along[0, 0]), (x, y + along[1, 0]))]
        text = shown_name(entry.name, longest=20)
        names.setdefault((x, y), []).append(f"router ({text})" if place == 0 else text)
    marks = [
        _Mark(x, y, ", ".join(texts), color, "bold" if "router" in texts[0] else "normal")
        for (x, y), texts in names.items()
    ]
    return marks, bars


def _between(start: tuple[float, float], end: tuple[float, float]) -> F64:
    return np.linspace(start, end, _STEPS)


def _arms(entry: HonestPoint, x: float) -> tuple[F64, F64]:
    """Return the intervals' arms (2, 1) in cost and quality, 0 where an interval is unknown.

    The intervals are of differences from the best single model, which the axes do not show as
    such: an arm is how far the difference may lie from its estimate.
    """
    gap, ratio = entry.gap, entry.cost_ratio
    along = np.array([[gap.estimate - gap.low], [gap.high - gap.estimate]])
    relative = np.array([[ratio.estimate - ratio.low], [ratio.high - ratio.estimate]])
    across = relative * (x / ratio.estimate if ratio.estimate > 0 else np.nan)
    return np.maximum(np.nan_to_num(across), 0), np.maximum(np.nan_to_num(along), 0)


def _draw_labels(figure: Figure, axes: Axes, marks: Sequence[_Mark], lines: Sequence[F64]) -> None:
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    points = axes.transData.transform(np.array([(m.x, m.y) for m in marks]).reshape(-1, 2))
    texts = [
        axes.annotate(
            mark.text,
            (mark.x, mark.y),
            fontsize=_LABEL_SIZE,
            color=mark.color,
            fontweight=mark.weight,
            zorder=8,
        )
        for mark in marks
    ]
    with no_glyph_warnings():
        boxes = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2)
    drawn = [axes.transData.transform(line) for line in lines if len(line)]
    area = axes.get_window_extent(renderer)
    placed = place_labels(
        points,
        sizes,
        (area.x0 + 2, area.y0 + 2, area.x1 - 2, area.y1 - 2),
        obstacles=np.concatenate(drawn) if drawn else None,
    )
    to_data = axes.transData.inverted()
    for text, box, mark, point in zip(texts, placed, marks, points, strict=True):
        left, bottom = to_data.transform((box.left, box.bottom))
        text.set_position((float(left), float(bottom)))
        text.set_verticalalignment("bottom")
        if box.distance > _FAR:
            near = np.clip(
                point, (box.left, box.bottom), (box.left + box.width, box.bottom + box.height)
            )
            ends = to_data.transform(np.array([point, near]))
            axes.plot(*ends.T, color=mark.color, linewidth=0.7, alpha=0.7, zorder=3.5)


def _draw_legend(figure: Figure) -> None:
    muted, paper = PALETTE["muted"], PALETTE["paper"]

    def mark(marker: str, color: str, size: float) -> Line2D:
        return Line2D(
            [], [], marker=marker, color=color, markersize=size, markeredgecolor=paper, ls="none"
        )

    entries = {
        "router, any trade-off (its hull bold)": Line2D([], [], color=PALETTE["router"], lw=2.2),
        "mixing single models (zero router)": Line2D(
            [], [], color=PALETTE["zero"], linestyle=(0, (5, 2.5))
        ),
        "policies chosen on other rows, 95 % interval": mark("D", PALETTE["honest"], 7),
        "single model": mark("o", muted, 6),
    }
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="lower left",
        bbox_to_anchor=(0.065, 0.0),
        ncols=4,
        fontsize=8,
        columnspacing=1.4,
        handlelength=2.0,
        handletextpad=0.5,
    )


def _draw_names(figure: Figure, report: EvaluationReport, singles: Sequence[Point]) -> None:
    """List the models by falling quality under their numbers, right of the plot."""
    order = in_reading_order([p.quality for p in singles])
    step = min(0.042, 0.80 / len(order))
    size = min(8.0, step * 5.6 * 72 * 0.72)
    names = shown_names([p.name for p in singles], longest=34)
    for row, at in enumerate(order):
        best = singles[at].name == report.best_single
        weight = "bold" if best else "normal"
        height = 0.945 - row * step
        figure.text(0.705, height, str(row + 1), fontsize=size, ha="right", va="top", weight=weight)
        figure.text(0.715, height, names[at], fontsize=size, va="top", weight=weight)
