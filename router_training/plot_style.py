"""What all figures share: colours by meaning, matplotlib's settings, how names and numbers look."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from router_training.wording import one_line

PALETTE: Final = MappingProxyType(
    {
        "ink": "#1b1f24",
        "muted": "#5b6570",
        "grid": "#e4e7eb",
        "paper": "#ffffff",
        "router": "#0067a6",
        "zero": "#b35a00",
        "oracle": "#007a5a",
        "honest": "#9b2f7a",
    }
)
"""Colours on white by what they stand for; the first four of Okabe and Ito's eight that are told
apart with any kind of colour vision, darkened until text in them is readable."""

STYLE: Final[Any] = MappingProxyType(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": PALETTE["muted"],
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": PALETTE["ink"],
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "figure.facecolor": PALETTE["paper"],
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
        "font.size": 9,
        "grid.color": PALETTE["grid"],
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "path.simplify": False,
        "svg.fonttype": "none",
        "text.color": PALETTE["ink"],
        "text.parse_math": False,
        "xtick.color": PALETTE["muted"],
        "ytick.color": PALETTE["muted"],
        "xtick.labelcolor": PALETTE["ink"],
        "ytick.labelcolor": PALETTE["ink"],
    }
)
"""Matplotlib's settings for every figure."""


def shown_name(name: str, *, longest: int = 34) -> str:
    """Return a name in one line without control characters, its middle left out where it is long.

    The end of a model's name says its size and date, the beginning its maker; both tell more than
    the middle.
    """
    clean = one_line(name) or "(no name)"
    if len(clean) <= longest:
        return clean
    head = (longest - 1) // 2
    return f"{clean[:head]}…{clean[len(clean) - (longest - 1 - head) :]}"


def shown_names(names: Sequence[str], *, longest: int) -> list[str]:
    """Return short names that differ wherever the given ones do.

    Where a name is too long, what stands before the last ``/`` goes first; what then looks alike is
    numbered.
    """
    clean = [shown_name(name, longest=10_000) for name in names]
    short = [
        shown_name(name if len(name) <= longest else name.rpartition("/")[2], longest=longest)
        for name in clean
    ]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else f"{shown_name(name, longest=longest - 4)} #{number}"
        for number, name in enumerate(short, start=1)
    ]


def percent(value: float) -> str:
    """Return a share as percent with as many decimals as it needs, for the ticks of an axis."""
    return f"{round(100 * value, 6):g}%"


def cost_label(cost_unit: str) -> str:
    """Return the title of an axis of mean costs, times ``cost_scale``."""
    return "Cost, USD per 1,000 calls" if cost_unit == "usd" else "Cost per call (relative)"


def cost_scale(cost_unit: str) -> float:
    """Return what a mean cost of one call is multiplied by before it is shown."""
    return 1000.0 if cost_unit == "usd" else 1.0


def compact(value: float) -> str:
    """Return three significant digits without exponent where that is short, ``-`` for NaN."""
    if math.isnan(value):
        return "-"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
