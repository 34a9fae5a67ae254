"""Commands about what the service remembers: ``spend``, ``export-feedback``, ``db upgrade``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router_runtime.cli_options import JsonOption, complete_models
from router_runtime.console import err, explained_imports, out, plain_table, print_json
from router_runtime.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from router_runtime.config import RuntimeConfig
    from router_runtime.service.spending import Spending, SpendingReport

ConfigOption = Annotated[Path, typer.Option(help="Runtime config (YAML) of the service.")]
KeyOption = Annotated[str | None, typer.Option(help="Only this key's id.")]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only from this day or time on (UTC)."
    ),
]

db = typer.Typer(help="The service's database.", no_args_is_help=True)


class _By(StrEnum):
    KEY = "key"
    MODEL = "model"
    DAY = "day"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("spend")(spend)
    app.command("export-feedback")(export_feedback_command)
    app.add_typer(db, name="db")


def spend(
    config: ConfigOption,
    by: Annotated[_By, typer.Option(help="What a line is.")] = _By.MODEL,
    since: SinceOption = None,
    key: KeyOption = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Model that savings are told against, instead of the configured one.",
            autocompletion=complete_models,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent by key, model or day, and saved against a baseline model."""
    from router_runtime.config import load_config

    settled = load_config(config)
    with explained_imports("service"):
        from router_runtime.service.spending import baseline_of, spending
    with _database(settled, config) as engine:
        report = spending(
            engine,
            by=by.value,
            since=_seconds(since),
            key_id=key,
            baseline=baseline or baseline_of(settled),
        )
    if as_json:
        print_json(asdict(report))
    else:
        _print_spending(report)


def export_feedback_command(
    config: ConfigOption,
    output: Annotated[Path, typer.Option(help="Evaluation records to write (.jsonl).")],
    since: SinceOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write decisions that got feedback as evaluation records, which router-train reads."""
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output '{output}' must end in .jsonl: a record is a line of JSON.")
    with explained_imports("service"):
        from router_runtime.config import load_config
        from router_runtime.service.exporting import export_feedback
    with _database(load_config(config), config) as engine:
        done = export_feedback(engine, output, key_id=key, since=_seconds(since))
    if as_json:
        print_json({"output": output, **asdict(done)})
    else:
        out.print(f"wrote {output}: {done.records} records", soft_wrap=True)
    if done.without_content:
        err.print(
            f"{done.without_content} left out: their messages were not kept (service.store.content "
            "was off) or are past their retention"
        )
    if done.not_served:
        err.print(f"{done.not_served} left out: no chat, or no model answered")


@db.command("upgrade")
def upgrade_command(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Make the service's tables, or bring them to this version; serving does so as well."""
    from router_runtime.config import load_config

    settled = load_config(config)
    with explained_imports("service"):
        from router_runtime.service.store.engine import located, open_engine, upgrade
    engine = open_engine(located(settled.service.store, config.parent).url)
    try:
        revision = upgrade(engine)
        url = engine.url.render_as_string(hide_password=True)
        if as_json:
            print_json({"url": url, "revision": revision})
        else:
            out.print(f"{url}: revision {revision}", soft_wrap=True)
    finally:
        engine.dispose()


@contextmanager
def _database(settled: RuntimeConfig, config: Path) -> Iterator[Engine]:
    with explained_imports("service"):
        from router_runtime.service.store.engine import located, open_engine, require_current
    engine = open_engine(located(settled.service.store, config.parent).url)
    try:
        require_current(engine)
        yield engine
    finally:
        engine.dispose()


def _seconds(since: datetime | None) -> float | None:
    return None if since is None else since.replace(tzinfo=UTC).timestamp()


def _print_spending(report: SpendingReport) -> None:
    table = plain_table(f"USD spent by {report.by}")
    table.add_column(report.by, overflow="fold")
    for title in ("requests", "calls", "failed", "USD", "estimated"):
        table.add_column(title, justify="right")
    if report.baseline is not None:
        table.add_column("saved USD", justify="right")
        table.add_column("saved", justify="right")
    for line in (*report.lines, report.total):
        table.add_row(*_cells(line, savings=report.baseline is not None))
    out.print(table)
    if report.baseline is not None:
        out.print(
            f"Saved: {report.total.compared} answered requests against what '{report.baseline}' "
            "was expected to cost for them.",
            soft_wrap=True,
        )
    if report.total.unpriced:
        err.print(f"{report.total.unpriced} calls to models without a price are not in USD")
    if report.total.lost:
        err.print(f"{report.total.lost} records were lost; what they cost is included")


def _cells(line: Spending, *, savings: bool) -> list[str]:
    cells = [
        line.name,
        f"{line.requests:,}",
        f"{line.attempts:,}",
        f"{line.failed:,}",
        f"{line.cost_usd:.6f}",
        f"{_share(line.estimated_usd, line.cost_usd):.0%}",
    ]
    if not savings:
        return cells
    share = line.saved_share
    return [*cells, f"{line.saved_usd:.6f}", "-" if share is None else f"{share:.0%}"]


def _share(part: Decimal, whole: Decimal) -> Decimal:
    return part / whole if whole else Decimal(0)
