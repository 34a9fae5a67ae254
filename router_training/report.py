"""Evaluation and tuning as console tables, and the evaluation as a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from router_runtime.config import CheapestQualifiedConfig, UtilityConfig
from router_runtime.console import plain_table
from router_training.evaluation_report import EvaluationReport, Strategy
from router_training.store import write_whole
from router_training.tune import Tuned, TuneResult
from router_training.wording import (
    bounds,
    cost_header,
    curve_figures,
    failures,
    honest_name,
    number,
    per_1k,
    percent,
    policy_lines,
    share,
    signed,
    verdict,
)

WIDE = 100
"""Columns of a console from which intervals are printed."""

_COUNTS = 20
"""Columns more that a table of strategies then needs where it counts what is not scored."""

_INTERVAL = "95 %"
_TITLES = {
    "random": "random choice",
    "cheapest": "always the cheapest",
    "dataset_oracle": "best of each data set",
}


def render_table(report: EvaluationReport, console: Console) -> None:
    """Print what was found: choices, honest points, curve figures, slices, models, failures.

    Intervals stand beside the estimates where the console is at least ``WIDE`` columns wide.
    """
    wide = console.width >= WIDE
    parts: list[RenderableType] = [
        _strategy_table(report, width=console.width),
        *_notes(report),
        Text(),
    ]
    if report.honest:
        parts.append(_honest_table(report, wide=wide))
    if curve_figures(report):
        parts.append(_curve_table(report))
    if report.slices:
        parts.append(_slice_table(report, wide=wide))
    parts += [_model_table(report), Text("Where it fails", style="bold")]
    parts += [Text(f"- {sentence}") for sentence in failures(report)]
    if report.honest:
        lines = policy_lines(report.honest[0].policy).rstrip()
        parts += [Text(), Text("To serve with this policy", style="bold"), Text(lines)]
    console.print(Group(*parts))


def render_tuning(result: TuneResult, console: Console, *, cost_unit: str = "usd") -> None:
    """Print what ``utility`` and per-model thresholds reach on the calibration split."""
    table = plain_table("Tuning on the calibration split")
    table.add_column("policy")
    for header in ("quality", "as measured", cost_header(cost_unit), "goal"):
        table.add_column(header, justify="right")
    best = result.best_single_outcome
    table.add_row(
        Text(f"best single ({result.best_single})"),
        share(best.quality),
        "",
        per_1k(best.cost),
        "",
    )
    for tuned in (result.utility, result.cheapest_qualified):
        chosen = " (recommended)" if tuned.config == result.recommended else ""
        table.add_row(
            f"{tuned.config.kind}{chosen}",
            share(tuned.outcome.quality),
            share(tuned.measured_quality),
            per_1k(tuned.outcome.cost),
            "met" if tuned.met else "missed",
            style="bold" if chosen else None,
        )
    numbers = [Text(_numbers(tuned)) for tuned in (result.utility, result.cheapest_qualified)]
    console.print(Group(table, *numbers, Text(result.message)))


def write_report_json(report: EvaluationReport, path: Path) -> None:
    """Write ``report.to_json()``, which carries ``schema_version``, completely or not at all.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    content = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
    write_whole(path, content.encode())


def _strategy_table(report: EvaluationReport, *, width: int) -> Table:
    table = plain_table(f"{report.n_queries} queries, policy '{report.policy}'")
    table.add_column("strategy", overflow="fold")
    headers = ["accuracy", "vs best", "95 %", cost_header(report.cost_unit), "savings", "95 %"]
    gaps = any(s.outcome.n_unscored or s.outcome.n_unserved for s in report.strategies)
    headers += ["unscored", "unserved"] if gaps else []
    wide = width >= WIDE + _COUNTS * gaps
    _add_columns(table, headers, wide=wide)
    for strategy in report.strategies:
        result = strategy.outcome
        cells = [
            share(result.quality),
            signed(strategy.gap.estimate),
            bounds(strategy.gap, signed),
            per_1k(result.cost),
            percent(strategy.savings.estimate),
            bounds(strategy.savings, percent),
        ]
        cells += [str(result.n_unscored), str(result.n_unserved)] if gaps else []
        name = Text(_title(strategy, report))
        style = "bold" if strategy.kind == "router" else None
        table.add_row(name, *_shown(cells, headers, wide=wide), style=style)
        if strategy is _last_model(report):
            table.add_section()
    return table


def _add_columns(table: Table, headers: Sequence[str], *, wide: bool) -> None:
    for header in headers:
        if wide or header != _INTERVAL:
            table.add_column(header, justify="right", no_wrap=True)


def _shown(cells: Sequence[str], headers: Sequence[str], *, wide: bool) -> list[str]:
    pairs = zip(cells, headers, strict=True)
    return [cell for cell, header in pairs if wide or header != _INTERVAL]


def _honest_table(report: EvaluationReport, *, wide: bool) -> Table:
    table = plain_table("What to expect: policies whose numbers were chosen on other rows")
    table.add_column("policy", overflow="fold")
    headers = ("accuracy", "vs best", "95 %", cost_header(report.cost_unit), "of its cost", "95 %")
    _add_columns(table, headers, wide=wide)
    for point in report.honest:
        cells = (
            share(point.outcome.quality),
            signed(point.gap.estimate),
            bounds(point.gap, signed),
            per_1k(point.outcome.cost),
            percent(point.cost_ratio.estimate),
            bounds(point.cost_ratio, percent),
        )
        style = "bold" if point is report.honest[0] else None
        name = Text(honest_name(point.name))
        table.add_row(name, *_shown(cells, headers, wide=wide), style=style)
    return table


def _curve_table(report: EvaluationReport) -> Table:
    table = plain_table(
        "Read off the test curves, with the answers known: to compare, not to expect"
    )
    table.add_column("measure", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column(_INTERVAL, justify="right")
    for name, value, interval_text in curve_figures(report):
        table.add_row(Text(name), value, interval_text)
    return table


def _slice_table(report: EvaluationReport, *, wide: bool) -> Table:
    table = plain_table("Slices, against the model that is best over all queries")
    table.add_column("slice", overflow="fold")
    headers = ["n", "accuracy", "vs best", "95 %", "of its cost", "oracle", "AUC", "ECE"]
    _add_columns(table, headers, wide=wide)
    before = ""
    for part in report.slices:
        if part.by != before:
            if before:
                table.add_section()
            table.add_row(Text(part.by, style="italic"))
        before = part.by
        cells = (
            str(part.n),
            share(part.outcome.quality),
            signed(part.gap.estimate),
            bounds(part.gap, signed),
            percent(part.cost_ratio.estimate),
            share(part.oracle_quality),
            number(part.metrics.auc),
            number(part.metrics.ece),
        )
        table.add_row(Text(f"  {part.value}"), *_shown(cells, headers, wide=wide))
    return table


def _last_model(report: EvaluationReport) -> Strategy:
    return [strategy for strategy in report.strategies if strategy.kind == "model"][-1]


def _title(strategy: Strategy, report: EvaluationReport) -> str:
    if strategy.kind == "best_single":
        return f"best single ({report.best_single})"
    return _TITLES.get(strategy.kind, strategy.name)


def _notes(report: EvaluationReport) -> list[Text]:
    pooled = report.pooled
    return [
        Text(verdict(report)),
        Text(
            f"probabilities: AUC {number(pooled.auc)}, Brier {number(pooled.brier)}, "
            f"log loss {number(pooled.log_loss)}, ECE {number(pooled.ece)} "
            f"({pooled.n} scores of {report.n_queries * len(report.models)})"
        ),
    ]


def _model_table(report: EvaluationReport) -> Table:
    table = plain_table("Probabilities per model")
    table.add_column("model", overflow="fold")
    timed = any(math.isfinite(model.median_seconds) for model in report.models)
    headers = ["AUC", "acc", "F1", "pos.", "Brier", "ECE", "chosen", "then acc"]
    for header in [*headers, *(["med. s"] if timed else [])]:
        table.add_column(header, justify="right")
    for model in report.models:
        m = model.metrics
        values = (m.auc, m.accuracy, m.f1, m.positive_rate, m.brier, m.ece)
        table.add_row(
            Text(model.model_id),
            *map(number, values),
            percent(model.share),
            number(model.quality_when_chosen),
            *([number(model.median_seconds)] if timed else []),
        )
    return table


def _numbers(tuned: Tuned) -> str:
    """Spell out a config, such as ``utility: lambda_per_usd = 37.5``."""
    match tuned.config:
        case UtilityConfig(lambda_per_usd=value):
            numbers = f"lambda_per_usd = {value:.6g}"
        case CheapestQualifiedConfig(thresholds=thresholds) if thresholds:
            numbers = ", ".join(f"{model} {value:.3f}" for model, value in thresholds.items())
        case CheapestQualifiedConfig(default_threshold=value):
            numbers = f"every model {value:.3f}"
    return f"{tuned.config.kind}: {numbers}"
