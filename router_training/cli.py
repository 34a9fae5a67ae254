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
from router_runtime.artifacts import load_artifact, read_manifest
from router_runtime.config import RuntimeConfig, validate
from router_runtime.console import err, out, progress_bar
from router_runtime.errors import ConfigError, MissingDependencyError
from router_runtime.model_router import ModelRouter
from router_training import pipeline
from router_training.add_model import FOLDS, Addition, add_model, free_output, save_addition
from router_training.compare import render_comparison
from router_training.config import TrainingConfig, TuneConfig, load_training_config
from router_training.contestants import compare_files
from router_training.evaluation_report import EvaluationReport
from router_training.held_out import held_out
from router_training.importers import import_file
from router_training.labels import Evaluations, write_evaluations
from router_training.leave_out import leave_out, render_left_out
from router_training.report import render_table, render_tuning
from router_training.report_pages import (
    EXAMPLES,
    Wanted,
    stored_report,
    subject_of_manifest,
    write_files,
    write_served_files,
    write_walk_files,
)
from router_training.served import Served, read_records
from router_training.simulated import write_workload
from router_training.store import write_whole
from router_training.wording import interval, number, signed

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
AllRowsOption = Annotated[
    bool, typer.Option("--all-rows", help="Also rows that it was trained on; the figures flatter.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReportOption = Annotated[Path | None, typer.Option(help="Also write report.json here.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Also write a self-contained HTML page here.")
]
PlotsOption = Annotated[Path | None, typer.Option(help="Also write the figures as PNG here.")]
ExamplesOption = Annotated[
    int, typer.Option(min=0, max=200, help="Worst regrets in the page, with prompt and pictures.")
]
NoExamplesOption = Annotated[
    bool, typer.Option("--no-examples", help="Keep prompts and pictures out of the page.")
]


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
    examples: ExamplesOption = EXAMPLES,
    no_examples: NoExamplesOption = False,
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
    _write_run_report(result, 0 if no_examples else examples)


def _write_run_report(result: pipeline.RunResult, examples: int) -> None:
    """Write page and JSON into the work folder; the artifact's is no place for prompts."""
    walk = result.walk
    folder = walk.config.work_dir / "report"
    page = folder / "report.html"
    try:
        write_walk_files(walk, Wanted(folder / "report.json", page, examples=examples))
        out.print(f"report saved in {_shown(page)}")
    except MissingDependencyError as error:
        write_walk_files(walk, Wanted(folder / "report.json"))
        out.print(f"report saved in {_shown(folder / 'report.json')}; no page: {error}")


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
    all_rows: AllRowsOption = False,
    output: ReportOption = None,
    html: HtmlOption = None,
    plots: PlotsOption = None,
    examples: ExamplesOption = EXAMPLES,
    no_examples: NoExamplesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a router on records, with the policy that serves.

    Example: router-train evaluate router_artifacts/quickstart --data records.jsonl
    """
    if (artifact is None) == (config is None):
        raise ConfigError("Name one of ARTIFACT and --config FILE.")
    if data is None:
        raise ConfigError("Name the records with --data FILE.")
    wanted = Wanted(output, html, plots, 0 if no_examples else examples)
    wanted.check()
    router = ModelRouter.from_config(config or RuntimeConfig(artifact=artifact or Path()))
    records = read_records(router, data, image_root=image_root, on_bad_row=on_bad_row or "error")
    _print_skipped(records)
    kept = held_out(router.artifact.training, records, all_rows=all_rows)
    if kept.message:
        err.print(kept.message, soft_wrap=True)
    served = Served(router, records.take(kept.rows), policy)
    found = served.report()
    write_served_files(found, served, wanted, name=data.name)
    _present(found, as_json)


@app.command("compare")
def compare_routers(
    routers: Annotated[
        list[Path], typer.Argument(help="Artifact folders, runtime configs or training configs.")
    ],
    data: DataOption = None,
    image_root: ImageRootOption = None,
    on_bad_row: BadRowOption = None,
    all_rows: AllRowsOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write it as JSON here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare routers on the same held-out records, with intervals against the first.

    Example: router-train compare router_artifacts/old router_artifacts/new --data records.jsonl
    """
    found = compare_files(
        routers,
        data=data,
        image_root=image_root,
        on_bad_row=on_bad_row,
        all_rows=all_rows,
        seed=seed,
        watch=progress_bar,
    )
    for message in found.messages:
        err.print(message, soft_wrap=True)
    content = json.dumps(found.comparison.to_json(), indent=2, allow_nan=False)
    if output is not None:
        write_whole(output, f"{content}\n".encode())
    if as_json:
        print(content)
    else:
        render_comparison(found.comparison, out)


@app.command()
def report(
    source: Annotated[
        Path, typer.Argument(metavar="ARTIFACT|CONFIG", help="Artifact folder or training config.")
    ],
    output: ReportOption = None,
    html: HtmlOption = None,
    plots: PlotsOption = None,
    examples: ExamplesOption = EXAMPLES,
    no_examples: NoExamplesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the held-out figures of an artifact, or of the run that a training config describes.

    An artifact holds no prompts; with a training config the page shows the worst regrets too.

    Example: router-train report router_artifacts/quickstart --html report.html
    """
    wanted = Wanted(output, html, plots, 0 if no_examples else examples)
    wanted.check()
    if source.is_file():
        walk = pipeline.Walk(load_training_config(source), watch=progress_bar)
        _print_skipped(walk.data)
        write_walk_files(walk, wanted)
        _present(walk.report, as_json)
    else:
        manifest = read_manifest(source)
        found = stored_report(manifest, name=str(source))
        write_files(found, wanted, subject_of_manifest(manifest, name=source.resolve().name))
        _present(found, as_json)


@app.command("add-model")
def add_model_to_artifact(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder; it stays as it is.")],
    data: Annotated[Path, typer.Option("--data", help="Records with scores of the new model.")],
    model: Annotated[str, typer.Option("--model", help="The new model's name in the records.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the new artifact; default: ARTIFACT+MODEL.")
    ] = None,
    image_root: ImageRootOption = None,
    on_bad_row: BadRowOption = None,
    folds: Annotated[
        int, typer.Option(help="Parts held out in turn to judge the new column; 0: none.")
    ] = FOLDS,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
    work_dir: Annotated[
        Path | None, typer.Option(help="Work folder of a run, whose embeddings are used again.")
    ] = None,
) -> None:
    """Add one more model to an artifact from some hundred of its scores, without retraining.

    Example: router-train add-model router_artifacts/quickstart --data new.jsonl --model new-model
    """
    target = output or free_output(artifact, model)
    trained = load_artifact(artifact)
    records = import_file(
        data, image_root=image_root, on_bad_row=on_bad_row or "error", rule=trained.features.text
    )
    _print_skipped(records)
    with progress_bar("embed") as progress:
        addition = add_model(
            trained,
            records,
            model_id=model,
            cache_folder=None if work_dir is None else work_dir / "embedding-cache",
            folds=folds,
            seed=seed,
            progress=progress,
        )
    saved = save_addition(addition, source=artifact, output=target)
    _print_addition(addition)
    out.print(f"artifact {saved.artifact_id} saved in {_shown(target)}")


@app.command("leave-out")
def leave_out_command(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train without each data set in turn and measure on it: how the router meets the unknown.

    Example: router-train leave-out configs/routerbench.yml --data records.jsonl
    """
    settled = _config(config, data, image_root, None, seed, on_bad_row)
    found = leave_out(settled, watch=progress_bar)
    if as_json:
        print(json.dumps([entry.to_json() for entry in found], indent=2))
    else:
        render_left_out(found, out)


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


def _present(report: EvaluationReport, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        render_table(report, out)


def _print_addition(addition: Addition) -> None:
    out.print(f"{addition.model_id}: column fitted on {addition.labels} scores")
    held_out = addition.held_out
    if held_out is not None:
        out.print("cross-validated, with 95 % intervals:")
        out.print(f"  AUC                          {interval(held_out.auc, number)}")
        out.print(f"  Brier                        {interval(held_out.brier, number)}")
        out.print(f"  Brier below the base rate's  {interval(held_out.brier_gain, signed)}")
        out.print(f"  ECE                          {interval(held_out.ece, number)}")
    out.print(f"mean uncertainty of its probabilities: {addition.uncertainty:.3f}")
    for note in addition.notes:
        out.print(f"note: {note}", soft_wrap=True)


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
