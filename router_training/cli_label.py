"""The commands of ``router-train`` that label a data set; ``cli`` registers them.

What they do needs the extra ``label`` and is imported when it is done, so that the other commands
and the help work without it.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from router_runtime.cli_options import JsonOption
from router_runtime.console import explained_imports

if TYPE_CHECKING:
    from router_training.labelling.config import LabelConfig

LabelConfigArgument = Annotated[Path, typer.Argument(help="Labelling config (YAML).")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Estimate calls, tokens and USD, and ask nobody.")
]
MaxCostOption = Annotated[
    float | None,
    typer.Option(min=0, help="Replaces max_cost_usd: over all runs with this work folder."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Replaces data.limit.")]
EngineOption = Annotated[
    Literal["local", "ray"] | None, typer.Option(help="Replaces engine: local or ray.")
]
RecordsOption = Annotated[Path | None, typer.Option("--output", help="Replaces output.")]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="Write records also while answers are missing.")
]


def configured(
    path: Path,
    *,
    max_cost_usd: float | None = None,
    limit: int | None = None,
    engine: Literal["local", "ray"] | None = None,
    output: Path | None = None,
) -> LabelConfig:
    """Return the labelling config with what the command line replaces."""
    from router_training.labelling.config import load_label_config

    given: dict[str, Any] = {
        "max_cost_usd": None if max_cost_usd is None else Decimal(str(max_cost_usd)),
        "data.limit": limit,
        "engine": engine,
        "output": output,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    if engine == "local":
        overrides["ray_address"] = None
    return load_label_config(path, overrides=overrides)


def _run(
    config: LabelConfig,
    command: Literal["collect", "judge", "label"],
    *,
    dry_run: bool,
    partly: bool = False,
    as_json: bool,
) -> None:
    with explained_imports("label"):
        from router_training import cli_label_run
    if dry_run:
        cli_label_run.print_estimate(
            config,
            collecting=command != "judge",
            judging=command != "collect",
            as_json=as_json,
        )
    elif command == "collect":
        cli_label_run.collect_answers(config, as_json=as_json)
    elif command == "judge":
        cli_label_run.judge_answers(config, partly=partly, as_json=as_json)
    else:
        cli_label_run.label_samples(config, partly=partly, as_json=as_json)


def collect_command(
    config: LabelConfigArgument,
    dry_run: DryRunOption = False,
    max_cost_usd: MaxCostOption = None,
    limit: LimitOption = None,
    engine: EngineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask every candidate about every sample, and keep the answers."""
    settled = configured(config, max_cost_usd=max_cost_usd, limit=limit, engine=engine)
    _run(settled, "collect", dry_run=dry_run, as_json=as_json)


def judge_command(
    config: LabelConfigArgument,
    dry_run: DryRunOption = False,
    max_cost_usd: MaxCostOption = None,
    limit: LimitOption = None,
    engine: EngineOption = None,
    output: RecordsOption = None,
    partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Judge the answers that are kept, and write evaluation records."""
    settled = configured(
        config, max_cost_usd=max_cost_usd, limit=limit, engine=engine, output=output
    )
    _run(settled, "judge", dry_run=dry_run, partly=partial, as_json=as_json)


def label_command(
    config: LabelConfigArgument,
    dry_run: DryRunOption = False,
    max_cost_usd: MaxCostOption = None,
    limit: LimitOption = None,
    engine: EngineOption = None,
    output: RecordsOption = None,
    partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Collect, judge, and write evaluation records that router-train run reads."""
    settled = configured(
        config, max_cost_usd=max_cost_usd, limit=limit, engine=engine, output=output
    )
    _run(settled, "label", dry_run=dry_run, partly=partial, as_json=as_json)


def audit_command(
    config: LabelConfigArgument,
    output: Annotated[Path, typer.Option(help="Folder for audit.csv and audit.html.")],
    rows: Annotated[int, typer.Option(min=1, help="Answers at most.")] = 200,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draw; replaces seed.")] = None,
    limit: LimitOption = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Leave pictures out of the page.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw answers for a person to look at and mark; trust --human reads the marks."""
    settled = configured(config, limit=limit)
    with explained_imports("label"):
        from router_training import cli_label_run
    cli_label_run.write_audit(
        settled,
        output,
        rows=rows,
        seed=seed,
        pictures=not no_pictures,
        again=str(config) if limit is None else f"{config} --limit {limit}",
        as_json=as_json,
    )


def trust_command(
    config: LabelConfigArgument,
    human: Annotated[
        Path | None, typer.Option(help="CSV with a column human, as audit writes it.")
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far the labels can be trusted: judges, their agreement, and human marks."""
    settled = configured(config, limit=limit)
    with explained_imports("label"):
        from router_training import cli_label_run
    cli_label_run.print_trust(settled, human=human, as_json=as_json)
