"""Means, deviations, verdicts and intervals as JSON and as Markdown tables for the docs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quality_parts.intervals import COMPARED, Comparison
from quality_parts.measures import FIGURES
from quality_parts.tables import Demand, Table
from router_runtime.types import Json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds.

    Parameters
    ----------
    mean : float
        Infinite if the figure is infinite for one seed: a quality that is never reached.
    deviation : float
        Standard deviation; NaN for one seed alone.
    n, never : int
        Seeds that have the figure, and those among them for which it is infinite.
    """

    mean: float
    deviation: float
    n: int
    never: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise one value per seed; NaN is no value."""
        known = np.array([value for value in values if not math.isnan(value)])
        never = int(np.isinf(known).sum())
        if len(known) == 0:
            return cls(math.nan, math.nan, 0)
        deviation = float(known.std(ddof=1)) if len(known) > 1 and not never else math.nan
        return cls(float(known.mean()), deviation, len(known), never)


@dataclass(frozen=True)
class SystemResult:
    """One system on one table.

    Parameters
    ----------
    key, title : str
    figures : mapping
        Per key of ``measures.FIGURES`` its spread over the seeds.
    shares : mapping
        Mean share of the queries per model at the honest point for 98 %.
    seconds : mapping
        Mean wall seconds per stage.
    """

    key: str
    title: str
    figures: dict[str, Spread]
    shares: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A demand and what was found."""

    demand: Demand
    found: Spread

    @property
    def met(self) -> bool:
        """Whether the mean over the seeds keeps the bound."""
        return self.demand.met(self.found.mean)


@dataclass(frozen=True)
class TableResult:
    """All systems on one table.

    Parameters
    ----------
    table : Table
    seeds, rows : int
        Seeds, and rows of the table.
    systems : tuple of SystemResult
        The default recipe first.
    comparisons : tuple of Comparison
        The default recipe against each other system.
    """

    table: Table
    seeds: int
    rows: int
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Every demand beside what the default recipe reached."""
        figures = self.systems[0].figures
        nothing = Spread(math.nan, math.nan, 0)
        return tuple(Verdict(d, figures.get(d.figure, nothing)) for d in self.table.demands)


@dataclass(frozen=True)
class Section:
    """A table of an additional study, ready to print.

    Parameters
    ----------
    title, note : str
    header : tuple of str
    rows : tuple of tuple of str
    data : JSON
        The same with full precision.
    failed : tuple of str
        Demands that the study shows to be missed.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: Json
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class QualityReport:
    """Everything that one run of the benchmark found."""

    tables: tuple[TableResult, ...]
    sections: tuple[Section, ...] = ()

    @property
    def missed_musts(self) -> tuple[str, ...]:
        """What falsifies the claims: musts missed, and systems that the recipe is behind of."""
        missed = [
            f"{result.table.key}: {_demand(verdict)} found {_shown(verdict.found, verdict)}"
            for result in self.tables
            for verdict in result.verdicts
            if verdict.demand.level == "must" and not verdict.met
        ]
        behind = [
            f"{result.table.key}: behind '{comparison.title}' in {name}"
            for result in self.tables
            for comparison in result.comparisons
            for name in comparison.behind
        ]
        return (*missed, *behind, *(line for section in self.sections for line in section.failed))

    def to_json(self) -> Json:
        """Return plain values; NaN is None and infinity ``"inf"``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tables": [_table_json(result) for result in self.tables],
            "sections": [
                {"title": section.title, "note": section.note, "data": plain(section.data)}
                for section in self.sections
            ],
            "missed_musts": list(self.missed_musts),
        }

    def to_markdown(self) -> str:
        """Return the tables for the docs."""
        parts = [part for result in self.tables for part in _table_markdown(result)]
        for section in self.sections:
            parts += [f"## {section.title}", section.note, grid(section.header, section.rows)]
        return "\n\n".join(part for part in parts if part) + "\n"


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, *, percent: bool = False) -> str:
    """Return a figure as text: three decimals, or percent with one."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "never"
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def spread(found: Spread, *, percent: bool = False) -> str:
    """Return mean and standard deviation as text."""
    text = number(found.mean, percent=percent)
    if found.never and found.n > 1:
        return f"never in {found.never} of {found.n}"
    if math.isnan(found.deviation):
        return text
    deviation = f"{100 * found.deviation:.1f}" if percent else f"{found.deviation:.3f}"
    return f"{text} ± {deviation}"


def plain(value: Json) -> Json:
    """Return JSON without NaN (None) and infinity (text)."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _demand(verdict: Verdict) -> str:
    demand = verdict.demand
    figure = FIGURES[demand.figure]
    bound = number(demand.bound, percent=figure.percent)
    return f"{demand.level} {figure.title} {demand.sense} {bound}"


def _shown(found: Spread, verdict: Verdict) -> str:
    return spread(found, percent=FIGURES[verdict.demand.figure].percent)


def _table_markdown(result: TableResult) -> list[str]:
    shown = [key for key in FIGURES if any(key in system.figures for system in result.systems)]
    halves = (shown[: len(shown) // 2 + 1], shown[len(shown) // 2 + 1 :])
    parts = [f"## {result.table.title}", f"{result.rows:,} rows, {result.seeds} seeds."]
    for keys in halves:
        rows = [
            [
                system.title,
                *(
                    spread(system.figures[key], percent=FIGURES[key].percent)
                    if key in system.figures
                    else ""
                    for key in keys
                ),
            ]
            for system in result.systems
        ]
        parts.append(grid(["system", *(FIGURES[key].title for key in keys)], rows))
    verdicts = [
        [_demand(verdict), _shown(verdict.found, verdict), "met" if verdict.met else "**missed**"]
        for verdict in result.verdicts
    ]
    parts.append(grid(["demand", "default recipe", ""], verdicts) if verdicts else "")
    parts.append(_comparison_markdown(result.comparisons))
    parts.append(_shares_markdown(result))
    return parts


def _comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    titles = [FIGURES[key].title for key in COMPARED]
    rows = [
        [
            comparison.title,
            *(
                f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
                for interval in (comparison.differences[key] for key in COMPARED)
            ),
            comparison.verdict,
            _claim(comparison),
        ]
        for comparison in comparisons
    ]
    return grid(["default recipe minus", *titles, "beyond the interval", "claim"], rows)


def _claim(comparison: Comparison) -> str:
    """Say whether the recipe is as good as is claimed: not behind, and above LLM Router v2."""
    if not comparison.binding:
        return "none"
    failed = ", ".join(comparison.behind)
    return f"**fails**: {failed}" if failed else "holds"


def _shares_markdown(result: TableResult) -> str:
    recipe = result.systems[0]
    shares = ", ".join(
        f"{model} {100 * share:.0f} %"
        for model, share in sorted(recipe.shares.items(), key=lambda item: -item[1])
    )
    seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in recipe.seconds.items())
    total = sum(recipe.seconds.values())
    lines = [f"Selection shares at the honest point for 98 %: {shares}." if shares else ""]
    if {"embed", "fit"} <= set(recipe.seconds):  # otherwise something was there already
        lines.append(f"Wall time of the whole default recipe: {total:.0f} s ({seconds}).")
    return "\n\n".join(line for line in lines if line)


def _table_json(result: TableResult) -> Json:
    return plain(
        {
            "table": result.table.key,
            "title": result.table.title,
            "rows": result.rows,
            "seeds": result.seeds,
            "systems": [
                {
                    "key": system.key,
                    "title": system.title,
                    "figures": {key: vars(found) for key, found in system.figures.items()},
                    "shares": dict(system.shares),
                    "seconds": dict(system.seconds),
                }
                for system in result.systems
            ],
            "demands": [
                {**vars(verdict.demand), "found": verdict.found.mean, "met": verdict.met}
                for verdict in result.verdicts
            ],
            "comparisons": [
                {
                    "against": comparison.key,
                    "differences": {k: vars(v) for k, v in comparison.differences.items()},
                    "verdict": comparison.verdict,
                }
                for comparison in result.comparisons
            ],
        }
    )
