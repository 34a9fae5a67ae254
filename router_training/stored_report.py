"""The report that an artifact carries, read as what it is: a file from anywhere.

A manifest is not covered by any digest. What can be printed and drawn is checked here, so that no
number or length that ``evaluate`` never gives reaches a table or a figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from router_runtime.artifacts import Manifest
from router_runtime.config import validate_policy
from router_runtime.errors import ConfigError, DataError
from router_training.evaluation_report import Curves, EvaluationReport, Point

MAX_ENTRIES = 2_000
"""Models, slices, points of a curve and so on; ``evaluate`` gives a few hundred at the most."""

MAX_COST = 1e12
"""Of a call, in any unit; axes and their ticks still have numbers there."""

_ONCE = ("random", "best_single", "oracle", "router")


def stored_report(manifest: Manifest, *, name: str) -> EvaluationReport:
    """Return the held-out figures that an artifact carries.

    Raises
    ------
    ConfigError
        It carries none.
    DataError
        They are of another version, or none that ``evaluate`` gives.
    """
    stored = manifest.metrics.get("test")
    if stored is None:
        raise ConfigError(f"Artifact '{name}' carries no figures; use: router-train evaluate")
    report = EvaluationReport.from_json(stored)
    for problem in _problems(report):
        raise DataError(
            f"The figures that artifact '{name}' carries are malformed: {problem}. Restore the "
            "artifact, or use: router-train evaluate"
        )
    for point in report.honest:
        validate_policy(point.policy, source=f"The policy '{point.name}' of artifact '{name}'")
    return report


def _problems(report: EvaluationReport) -> Iterator[str]:
    kinds = [strategy.kind for strategy in report.strategies]
    for kind in _ONCE:
        if kinds.count(kind) != 1:
            yield f"{kinds.count(kind)} strategies are '{kind}'"
    if "model" not in kinds or not report.models:
        yield "there is no single model"
    for name in ("strategies", "models", "slices", "honest", "reliability"):
        yield from _too_many(name, getattr(report, name))
    for model in report.models:
        yield from _too_many("histogram", model.histogram)
        yield from _too_many("reliability", model.reliability)
        if min(model.histogram, default=0) < 0:
            yield "a histogram counts below 0"
        if any(part.n < 1 for part in model.reliability):
            yield "a bin counts below 1"
    if report.curves is not None:
        yield from _problems_of_curves(report.curves)
    outcomes = [strategy.outcome for strategy in report.strategies]
    outcomes += [point.outcome for point in report.honest]
    if not all(_possible(Point(entry.cost, entry.quality)) for entry in outcomes):
        yield "an outcome lies outside the possible"
    drawn = [interval for point in report.honest for interval in (point.gap, point.cost_ratio)]
    if any(abs(value) > MAX_COST for one in drawn for value in (one.estimate, one.low, one.high)):
        yield "an interval lies outside the possible"


def _too_many(name: str, entries: Sequence[object]) -> Iterator[str]:
    if len(entries) > MAX_ENTRIES:
        yield f"{name} has {len(entries)} entries, more than {MAX_ENTRIES}"


def _problems_of_curves(curves: Curves) -> Iterator[str]:
    points = [curves.oracle, curves.random]
    for name in ("router", "router_hull", "zero_router", "singles"):
        line: tuple[Point, ...] = getattr(curves, name)
        yield from _too_many(f"curves.{name}", line)
        points += line
    if all(np.isnan(point.cost) or np.isnan(point.quality) for point in points):
        yield "no point of a curve is known"
    bounds = [Point(cost, 0.0) for cost in curves.cost_range]
    if not all(map(_possible, (*points, curves.operating, *bounds))):
        yield "a point of a curve lies outside the possible"


def _possible(point: Point) -> bool:
    """Return whether cost and quality are what calls and scores can be; NaN is unknown."""
    cost_known, quality_known = not np.isnan(point.cost), not np.isnan(point.quality)
    return (not cost_known or 0 <= point.cost <= MAX_COST) and (
        not quality_known or 0 <= point.quality <= 1
    )
