"""The figures of a report, drawn with matplotlib: what ``report.html`` and the PNG files show.

Every colour is one of ``PALETTE``, so that the page can replace each by its own for light and dark;
marks differ in shape as well as in colour. Names come from data files: they are shortened and never
read as mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from router_training.evaluation_report import EvaluationReport, ModelReport, Slice
from router_training.plot_cost_quality import cost_quality_figure
from router_training.plot_files import write_png
from router_training.plot_labels import in_reading_order
from router_training.plot_style import PALETTE, STYLE, percent, shown_names

MAX_SLICES = 40
"""Slices in the figure; the ones with the most queries where there are more."""

MAX_MODELS = 40
"""Models with panels and bars of their own; the ones chosen most where there are more."""

_WIDTH = 9.6  # inches, of every figure
_TITLE_CHARS = 25  # of a small panel
_PERCENT = FuncFormatter(lambda value, _: percent(float(value)))


def figures(report: EvaluationReport) -> dict[str, Figure]:
    """Return every figure that the report has numbers for, by the stem of its file.

    ``cost_quality`` needs costs and ``slices`` needs slices; the others are always there.
    """
    with mpl.rc_context({**STYLE}):
        found = {}
        if report.curves is not None:
            found["cost_quality"] = cost_quality_figure(report, report.curves)
        found["reliability"] = reliability_figure(report)
        found["shares"] = shares_figure(report)
        found["histograms"] = histograms_figure(report)
        if report.slices:
            found["slices"] = slices_figure(report)
        return found


def write_plots(report: EvaluationReport, folder: Path) -> tuple[Path, ...]:
    """Write every figure as PNG and return the paths.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    paths = []
    for name, figure in figures(report).items():
        paths.append(folder / f"{name}.png")
        write_png(figure, paths[-1])
    return tuple(paths)


def reliability_figure(report: EvaluationReport) -> Figure:
    """Draw observed against predicted scores, pooled and per model, with the diagonal."""
    panels = [("all models", report.reliability, report.pooled.ece)]
    models = most_chosen(report.models)
    names = shown_names([m.model_id for m in models], longest=_TITLE_CHARS)
    panels += [(name, m.reliability, m.metrics.ece) for name, m in zip(names, models, strict=True)]
    figure, grid = _panels(len(panels), height=1.0, shared="both")
    for axes, (name, bins, error) in zip(grid, panels, strict=True):
        predicted = np.array([b.predicted for b in bins])
        observed = np.array([b.observed for b in bins])
        sizes = np.array([b.n for b in bins], dtype=np.float64)
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=0.9, linestyle=(0, (2, 2)))
        axes.plot(predicted, observed, color=PALETTE["router"], linewidth=1.2)
        if len(bins):
            areas = 8 + 26 * sizes / sizes.max()
            axes.scatter(predicted, observed, s=areas, color=PALETTE["router"], zorder=3)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        _title(axes, name, f"ECE {error:.3f}" if not np.isnan(error) else "ECE -")
    _name_axes(figure, "Predicted probability", "Observed mean score")
    return figure


def histograms_figure(report: EvaluationReport) -> Figure:
    """Draw how often each probability is predicted, per model, with the mean score observed."""
    models = most_chosen(report.models)
    figure, grid = _panels(len(models), height=0.72, shared="x")
    names = shown_names([m.model_id for m in models], longest=_TITLE_CHARS)
    for axes, model, name in zip(grid, models, names, strict=True):
        counts = np.array(model.histogram, dtype=np.float64)
        share = counts / max(counts.sum(), 1.0)
        edges = np.linspace(0, 1, len(counts) + 1)
        axes.bar(
            edges[:-1],
            share,
            width=np.diff(edges) * 0.9,
            align="edge",
            color=PALETTE["router"],
            alpha=0.85,
        )
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.tick_params(axis="y", labelsize=7.5)
        _title(axes, name, f"{int(counts.sum()):,} scores")
    _name_axes(figure, "Predicted probability", "Share of the scored queries")
    return figure


def shares_figure(report: EvaluationReport) -> Figure:
    """Draw what share of the queries each model gets, and its score on those."""
    models = most_chosen(report.models)
    models = [models[at] for at in in_reading_order([model.share for model in models])]
    figure = Figure(figsize=(_WIDTH, 0.75 + 0.29 * len(models)), layout="constrained")
    axes = figure.add_subplot()
    at = np.arange(len(models))
    shares = np.nan_to_num([model.share for model in models])
    axes.barh(at, shares, height=0.62, color=PALETTE["router"])
    for row, model in enumerate(models):
        good = model.quality_when_chosen
        text = f"{shares[row]:.1%}"
        if not np.isnan(good):
            text += f", then right {good:.1%}"
        axes.annotate(
            text, (shares[row], row), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(at, shown_names([model.model_id for model in models], longest=40))
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, max(float(shares.max()), 0.01) * 1.32)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.set_xlabel("Share of the queries that the router sends here")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def slices_figure(report: EvaluationReport) -> Figure:
    """Draw the router's gap to the best single model on each slice, with its interval."""
    slices = largest_slices(report.slices)
    rows: list[Slice | str] = []
    for part in slices:
        if not rows or (isinstance(rows[-1], Slice) and rows[-1].by != part.by):
            rows.append(part.by)
        rows.append(part)
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.235 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=PALETTE["muted"], linewidth=1.0)
    for at, row in enumerate(rows):
        if isinstance(row, Slice):
            _draw_gap(axes, at, row)
    values = shown_names([part.value for part in slices], longest=34)
    shown = iter(values)
    names = [row if isinstance(row, str) else f"{next(shown)}  (n = {row.n:,})" for row in rows]
    axes.set_yticks(np.arange(len(rows)), names)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xlabel("Router's quality minus that of the best single model, points (95 % interval)")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def largest_slices(slices: Sequence[Slice], *, most: int = MAX_SLICES) -> list[Slice]:
    """Return at most ``most`` slices, those with the most queries, in their own order."""
    kept = in_reading_order([part.n for part in slices])[:most]
    return [slices[at] for at in sorted(kept)]


def most_chosen(models: Sequence[ModelReport], *, most: int = MAX_MODELS) -> list[ModelReport]:
    """Return at most ``most`` models, those that are chosen most, in their own order."""
    kept = in_reading_order([model.share for model in models])[:most]
    return [models[at] for at in sorted(kept)]


def _draw_gap(axes: Axes, at: int, part: Slice) -> None:
    gap = part.gap
    if np.isnan(gap.estimate):
        return
    below, above = gap.high < 0, gap.low > 0
    color = PALETTE["zero"] if below else PALETTE["oracle"] if above else PALETTE["muted"]
    marker = "v" if below else "^" if above else "o"
    axes.plot([100 * gap.low, 100 * gap.high], [at, at], color=color, linewidth=1.6)
    axes.plot(100 * gap.estimate, at, marker=marker, color=color, markersize=6.5)


def _panels(count: int, *, height: float, shared: str) -> tuple[Figure, Iterator[Axes]]:
    """Return a figure of ``count`` small axes in rows, as many across as stay readable.

    Placed by hand, since matplotlib's layout engines take seconds for twenty axes.

    Parameters
    ----------
    count : int
    height : float
        Of one axes, as a share of its width.
    shared : str
        ``both`` where all have the same scales, ``x`` where each has its own upright scale.
    """
    columns = count if count <= 5 else 4 if count <= 8 else 5
    rows = -(-count // columns)
    left, right, top, bottom = 0.78, 0.12, 0.42, 0.55  # inches
    across, along = (0.16 if shared == "both" else 0.46), 0.56
    width = min(_WIDTH, left + right + 2.9 * columns)
    side = (width - left - right - across * (columns - 1)) / columns
    tall = top + bottom + rows * side * height + (rows - 1) * along
    figure = Figure(figsize=(width, tall))
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=True,
        sharey=shared == "both",
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "top": 1 - top / tall,
            "bottom": bottom / tall,
            "wspace": across / side,
            "hspace": along / (side * height),
        },
    )
    found = list(grid.flat)
    for axes in found[count:]:
        axes.remove()
    for axes in found[max(0, count - columns) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)  # the last of its column may be left alone
    return figure, iter(found[:count])


def _name_axes(figure: Figure, across: str, along: str) -> None:
    """Name the axes that all panels of a figure share."""
    width, height = figure.get_size_inches()
    figure.supxlabel(across, fontsize=9, y=0.06 / height, va="bottom")
    figure.supylabel(along, fontsize=9, x=0.06 / width, ha="left")


def _title(axes: Axes, name: str, figures_below: str) -> None:
    axes.set_title(f"{name}\n{figures_below}", fontsize=7.5, linespacing=1.35)
