"""The confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from router_runtime.types import Int
from router_training.plot_files import no_glyph_warnings, write_png
from router_training.plot_style import PALETTE, STYLE, shown_names

_LONGEST = 22
_CELL, _LEAST, _MOST = 0.62, 4.2, 14.0  # inches
_MOST_NUMBERS = 30  # categories; beyond, numbers would not be readable


def confusion_figure(counts: Int, categories: Sequence[str]) -> Figure:
    """Return the matrix, coloured by the share of each true category, with its counts.

    Parameters
    ----------
    counts : ndarray of shape (n_categories, n_categories), int64
        Rows are true, columns are said.
    categories : sequence of str
    """
    n = len(categories)
    side = min(_MOST, max(_LEAST, _CELL * n + 2.0))
    with mpl.rc_context({**STYLE, "axes.grid": False}), no_glyph_warnings():
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        totals = counts.sum(axis=1, keepdims=True)
        shares = counts / np.maximum(totals, 1)
        shades = LinearSegmentedColormap.from_list("said", [PALETTE["paper"], PALETTE["router"]])
        picture = axes.imshow(shares, cmap=shades, vmin=0.0, vmax=1.0)
        names = shown_names(categories, longest=_LONGEST)
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
        axes.set_xlabel("told category")
        axes.set_ylabel("true category")
        right = int(np.trace(counts))
        axes.set_title(f"{right} of {int(counts.sum())} rows told right")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if n <= _MOST_NUMBERS:
            for row, column in np.ndindex(counts.shape):
                if counts[row, column]:
                    dark = shares[row, column] > 0.5
                    axes.text(
                        column,
                        row,
                        str(counts[row, column]),
                        ha="center",
                        va="center",
                        color=PALETTE["paper"] if dark else PALETTE["ink"],
                    )
        bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label("share of the true category")
        bar.outline.set_visible(False)
    return figure


def write_confusion(counts: Int, categories: Sequence[str], path: Path) -> None:
    """Write the figure as PNG.

    Raises
    ------
    RouterError
        The folder cannot be written, or is an artifact's.
    """
    write_png(confusion_figure(counts, categories), path)
