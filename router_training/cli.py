"""``router-train``: from evaluation records to an artifact, whole or stage by stage.

Commands parse, call one function and print. ``evaluate`` is also ``model-router evaluate``, through
the entry point group that the runtime's command line reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from router_runtime import __version__
from router_runtime.artifacts import read_manifest
from router_runtime.config import RuntimeConfig, validate
from router_runtime.console import err, out, progress_bar
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_training import pipeline
from router_training.config import TrainingConfig, TuneConfig, load_training_config
from router_training.evaluate import EvaluationReport
from router_training.importers import import_file
from router_training.labels import Evaluations, write_evaluations
from router_training.report import render_table, render_tuning, write_report_json
from router_training.simulated import write_workload

app = typer.Typer(
    name="router-train",
    help="Trains routers from evaluation records.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigArgument = Annotated[Path, typer.Argument(help="Training config (YAML).")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Records; replaces data.path.")]
ImageRootOption = Annotated[
    Path | None, typer.Option(help="Folder with the pictures, as files or in tar files.")
]
OutputOption = Annotated[Path | None, typer.Option(help="Artifact folder; replaces output.")]
SeedOption = Annotated[int | None, typer.Option(help="Replaces seed.")]
BadRowOption = Annotated[
    Literal["error", "skip"] | None,
    typer.Option("--on-bad-row", help="skip leaves bad rows out, counted and listed."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(asked: bool) -> None:
    if asked:
        out.print(f"model-router {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Trains routers from evaluation records."""


def _config(
    path: Path,
    data: Path | None,
    image_root: Path | None,
    output: Path | None,
    seed: int | None,
    on_bad_row: Literal["error", "skip"] | None,
) -> TrainingConfig:
    given = {
        "data.path": data,
        "data.image_root": image_root,
        "output": output,
        "seed": seed,
        "data.on_bad_row": on_bad_row,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    return load_training_config(path, overrides=overrides)


@app.command()
def run(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    output: OutputOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
    export_legacy: Annotated[
        bool, typer.Option(help="Also write nn_router.pth and its companions.")
    ] = False,
) -> None:
    """Read, split, embed, fit, calibrate, tune, evaluate, and save the artifact.

    Example: router-train run configs/quickstart.yml
    """
    settled = _config(config, data, image_root, output, seed, on_bad_row)
    result = pipeline.run(settled, watch=progress_bar, export_legacy=export_legacy)
    _print_skipped(result.evaluations)
    if result.tuned is None:
        out.print("No cost is known, so nothing was tuned: the highest probability is chosen.")
    else:
        render_tuning(result.tuned, out, cost_unit=result.report.cost_unit)
    render_table(result.report, out)
    out.print(f"artifact {result.artifact.artifact_id} saved in {_shown(settled.output)}")


@app.command()
def embed(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
) -> None:
    """Read, split and embed; the features stay in the work folder."""
    walk = _walk(config, data, image_root, seed, on_bad_row)
    rows, columns = walk.features.X.shape
    out.print(f"{rows} rows x {columns} features: {walk.features.metadata['embedding_structure']}")


@app.command()
def fit(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
) -> None:
    """Do all up to fitting the head, which stays in the work folder."""
    head, _ = _walk(config, data, image_root, seed, on_bad_row).fitted
    out.print(f"fitted {head.kind}: {head.n_features} features, {head.n_models} models")


@app.command()
def calibrate(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
) -> None:
    """Do all up to calibration, and say which map each model got and why."""
    _, log = _walk(config, data, image_root, seed, on_bad_row).calibrated
    print(json.dumps(log, indent=2))


def _walk(
    config: Path,
    data: Path | None,
    image_root: Path | None,
    seed: int | None,
    on_bad_row: Literal["error", "skip"] | None,
) -> pipeline.Walk:
    settled = _config(config, data, image_root, None, seed, on_bad_row)
    walk = pipeline.Walk(settled, watch=progress_bar)
    _print_skipped(walk.data)
    return walk


@app.command()
def tune(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    target_quality: Annotated[
        float | None, typer.Option(help="Share of the best single model's quality, at least cost.")
    ] = None,
    max_cost_per_1k: Annotated[
        float | None, typer.Option(help="USD per 1,000 calls, at best quality.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose lambda and thresholds for a wanted quality or budget; saves nothing.

    Example: router-train tune configs/quickstart.yml --max-cost-per-1k 2.50
    """
    settled = _config(config, data, image_root, None, seed, None)
    if target_quality is not None or max_cost_per_1k is not None:
        goal = {"target_quality": target_quality, "max_cost_per_1k": max_cost_per_1k}
        goal_config = validate(TuneConfig, goal, source="router-train tune")
        settled = settled.model_copy(update={"tune": goal_config})
    walk = pipeline.Walk(settled, watch=progress_bar)
    tuned = walk.tuned
    if tuned is None:
        raise ConfigError("No cost is known: record model_costs, or give candidates a price.")
    if as_json:
        print(json.dumps(tuned.to_json(), indent=2))
    else:
        render_tuning(tuned, out, cost_unit=walk.costs.unit)


@app.command()
def evaluate(
    artifact: Annotated[Path | None, typer.Argument(help="Artifact folder.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Evaluation records.")] = None,
    config: Annotated[Path | None, typer.Option(help="Runtime config instead of ARTIFACT.")] = None,
    image_root: ImageRootOption = None,
    on_bad_row: BadRowOption = None,
    policy: Annotated[str | None, typer.Option(help="Policy or preset.")] = None,
    output: Annotated[Path | None, typer.Option(help="Also write report.json here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a router on records, with the policy that serves.

    Example: router-train evaluate router_artifacts/quickstart --data records.jsonl
    """
    if (artifact is None) == (config is None):
        raise ConfigError("Name one of ARTIFACT and --config FILE.")
    if data is None:
        raise ConfigError("Name the records with --data FILE.")
    router = ModelRouter.from_config(config or RuntimeConfig(artifact=artifact or Path()))
    records = import_file(
        data,
        image_root=image_root,
        on_bad_row=on_bad_row or "error",
        rule=router.artifact.features.text,
        limits=router.limits,
        model_ids=router.model_ids,
    )
    _print_skipped(records)
    _present(pipeline.evaluate_router(router, records, policy=policy), output, as_json)


@app.command()
def report(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    output: Annotated[Path | None, typer.Option(help="Also write report.json here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the held-out figures that an artifact carries."""
    stored = read_manifest(artifact).metrics.get("test")
    if stored is None:
        raise ConfigError(f"Artifact '{artifact}' carries no figures; use: router-train evaluate")
    _present(EvaluationReport.from_json(stored), output, as_json)


@app.command("import")
def import_records(
    source: Annotated[Path, typer.Argument(help="RouterBench, RouteLLM, Not Diamond or own file.")],
    output: Annotated[Path, typer.Option(help=".json, .jsonl, .jsonl.gz or .parquet to write.")],
    source_format: Annotated[str, typer.Option("--format", help="auto, or its name.")] = "auto",
    image_root: ImageRootOption = None,
    on_bad_row: BadRowOption = None,
    keep_contaminated: Annotated[
        bool, typer.Option(help="Keep rows that are marked as contaminated.")
    ] = False,
) -> None:
    """Convert published tables to evaluation records.

    Example: router-train import routerbench.parquet --output records.jsonl.gz
    """
    records = import_file(
        source,
        source=source_format,
        image_root=image_root,
        drop_contaminated=not keep_contaminated,
        on_bad_row=on_bad_row or "error",
    )
    _print_skipped(records)
    write_evaluations(records, output)
    out.print(f"wrote {len(records)} records of {len(records.model_ids)} models to {output}")


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(help="Where records.jsonl and the pictures go.")],
    rows: Annotated[int, typer.Option(min=20, help="Number of records.")] = 3000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a SIMULATED workload: prompts, real PNG pictures and scores of simulated models."""
    path = write_workload(folder, rows=rows, seed=seed)
    out.print(f"wrote {rows} simulated records to {path}")


def _present(report: EvaluationReport, output: Path | None, as_json: bool) -> None:
    if output is not None:
        write_report_json(report, output)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        render_table(report, out)


def _print_skipped(records: Evaluations) -> None:
    if records.skipped:
        err.print(f"left out {len(records.skipped)} rows:")
        for row in records.skipped:
            err.print(f"  row {row.row}, {row.field}: {row.reason}", soft_wrap=True)


def _shown(path: Path) -> str:
    """Return the path relative to the current folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
