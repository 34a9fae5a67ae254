"""Evaluation and tuning as console tables, and the evaluation as a JSON file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from router_runtime.config import CheapestQualifiedConfig, UtilityConfig
from router_runtime.errors import RouterError
from router_training.evaluate import EvaluationReport, Interval, Strategy
from router_training.tune import Tuned, TuneResult

_TITLES = {"random": "random choice", "cheapest": "always the cheapest"}


def render_table(report: EvaluationReport, console: Console) -> None:
    """Print every candidate, the references and the router, then what the router rests on."""
    console.print(Group(_strategy_table(report), *_notes(report), Text(), _model_table(report)))


def render_tuning(result: TuneResult, console: Console, *, cost_unit: str = "usd") -> None:
    """Print what ``utility`` and per-model thresholds reach on the calibration split."""
    table = _table("Tuning on the calibration split")
    table.add_column("policy")
    for header in ("quality", "as measured", _cost_header(cost_unit), "goal"):
        table.add_column(header, justify="right")
    best = result.best_single_outcome
    table.add_row(
        Text(f"best single ({result.best_single})"),
        _share(best.quality),
        "",
        _per_1k(best.cost),
        "",
    )
    for tuned in (result.utility, result.cheapest_qualified):
        chosen = " (recommended)" if tuned.config == result.recommended else ""
        table.add_row(
            f"{tuned.config.kind}{chosen}",
            _share(tuned.outcome.quality),
            _share(tuned.measured_quality),
            _per_1k(tuned.outcome.cost),
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
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o644)  # temporary files are private; a report is not
        os.replace(temporary, path)
    except OSError as error:
        raise RouterError(f"The report '{path}' cannot be written: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _table(title: str) -> Table:
    """Return an empty table that leaves room for long model names on 80 columns."""
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _strategy_table(report: EvaluationReport) -> Table:
    table = _table(f"{report.n_queries} queries, policy '{report.policy}'")
    table.add_column("strategy", overflow="fold")
    for header in ("accuracy", "vs best", _cost_header(report.cost_unit), "savings"):
        table.add_column(header, justify="right")
    gaps = any(s.outcome.n_unscored or s.outcome.n_unserved for s in report.strategies)
    if gaps:
        table.add_column("unscored", justify="right")
        table.add_column("unserved", justify="right")
    for strategy in report.strategies:
        result = strategy.outcome
        cells: list[Text | str] = [
            Text(_title(strategy, report)),
            _share(result.quality),
            _signed(strategy.gap),
            _per_1k(result.cost),
            _percent(strategy.savings),
        ]
        if gaps:
            cells += [str(result.n_unscored), str(result.n_unserved)]
        table.add_row(*cells, style="bold" if strategy.kind == "router" else None)
        if strategy is _last_model(report):
            table.add_section()
    return table


def _last_model(report: EvaluationReport) -> Strategy:
    return [strategy for strategy in report.strategies if strategy.kind == "model"][-1]


def _title(strategy: Strategy, report: EvaluationReport) -> str:
    if strategy.kind == "best_single":
        return f"best single ({report.best_single})"
    return _TITLES.get(strategy.kind, strategy.name)


def _notes(report: EvaluationReport) -> list[Text]:
    pooled = report.pooled
    notes = [
        f"router vs best single, 95 % interval: accuracy {_interval(report.quality_gap, '+.4f')}, "
        f"cost x {_interval(report.cost_ratio, '.3f')}",
        f"probabilities: AUC {_number(pooled.auc)}, Brier {_number(pooled.brier)}, "
        f"log loss {_number(pooled.log_loss)}, ECE {_number(pooled.ece)} "
        f"({pooled.n} scores of {report.n_queries * len(report.models)})",
        "mean quality over the range of costs (AIQ): "
        + ", ".join(
            f"{name.replace('_', ' ')} {_number(value)}" for name, value in report.aiq.items()
        ),
    ]
    if report.cost_unit == "usd" and report.recorded_cost_share < 1:
        notes.append(
            f"{report.recorded_cost_share:.0%} of the calls have a recorded cost; the others "
            "count with their expected cost"
        )
    return [Text(note) for note in notes]


def _model_table(report: EvaluationReport) -> Table:
    table = _table("Probabilities per model")
    table.add_column("model", overflow="fold")
    for header in ("AUC", "acc", "F1", "pos.", "Brier", "ECE", "chosen", "then acc"):
        table.add_column(header, justify="right")
    for model in report.models:
        m = model.metrics
        values = (m.auc, m.accuracy, m.f1, m.positive_rate, m.brier, m.ece)
        table.add_row(
            Text(model.model_id),
            *map(_number, values),
            _percent(model.share),
            _number(model.quality_when_chosen),
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


def _cost_header(cost_unit: str) -> str:
    return "USD/1k calls" if cost_unit == "usd" else "relative cost x 1k"


def _interval(interval: Interval, form: str) -> str:
    low, high = format(interval.low, form), format(interval.high, form)
    return f"{format(interval.estimate, form)} [{low}, {high}]"


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.4f}"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1%}"


def _per_1k(value: float) -> str:
    return "-" if np.isnan(value) else f"{1000 * value:.4g}"
