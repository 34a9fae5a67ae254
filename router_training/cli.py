"""``router-train``: from a data set to records to an artifact, whole or stage by stage.

Commands parse, call one function and print. ``evaluate`` is also ``model-router evaluate``, through
the entry point group that the runtime's command line reads.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from router_runtime.cli_examples import teach
from router_runtime.cli_options import JsonOption, VersionOption
from router_runtime.console import out, plain_table, print_json, progress_bar
from router_runtime.errors import ConfigError, MissingDependencyError
from router_training.cli_adapter import fit_adapter
from router_training.cli_evaluate import (
    add_model_to_artifact,
    compare_routers,
    evaluate,
    leave_out_command,
    report,
)
from router_training.cli_examples import EXAMPLES as TAUGHT
from router_training.cli_examples import RESULTS
from router_training.cli_label import (
    audit_command,
    collect_command,
    judge_command,
    label_command,
    trust_command,
)
from router_training.cli_options import (
    EXAMPLES,
    BadRowOption,
    ConfigArgument,
    DataOption,
    ExamplesOption,
    ImageRootOption,
    NoExamplesOption,
    OutputOption,
    SeedOption,
    configured,
    print_skipped,
    shown,
)
from router_training.cli_routing import (
    ANY_OPTIONS,
    check_command,
    convert_command,
    draw_command,
    generate_command,
)
from router_training.cli_sequence import fit_sequence, make_prompted_command, route_sequence
from router_training.cli_tiers import make_tiers

if TYPE_CHECKING:
    from router_training.pipeline import RunResult, Walk

app = typer.Typer(
    name="router-train",
    help="Labels data sets, and trains routers from evaluation records.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(version: VersionOption = False) -> None:
    """Labels data sets, and trains routers from evaluation records."""


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
    as_json: JsonOption = False,
) -> None:
    """Read, split, embed, fit, calibrate, tune, evaluate, and save the artifact."""
    from router_training import pipeline
    from router_training.report import render_table, render_tuning

    settled = configured(config, data, image_root, output, seed, on_bad_row)
    result = pipeline.run(settled, watch=progress_bar, export_legacy=export_legacy)
    print_skipped(result.evaluations)
    page, unwritten = _write_run_report(result, 0 if no_examples else examples)
    if as_json:
        _print_run(result, settled.output, page)
        return
    if result.tuned is None:
        out.print("No cost is known, so nothing was tuned: the highest probability is chosen.")
    else:
        render_tuning(result.tuned, out, cost_unit=result.report.cost_unit)
    render_table(result.report, out)
    out.print(f"artifact {result.artifact.artifact_id} saved in {shown(settled.output)}")
    out.print(f"report saved in {shown(page)}{unwritten}")


def _write_run_report(result: RunResult, examples: int) -> tuple[Path, str]:
    """Write page and JSON into the work folder; the artifact's is no place for prompts.

    Returns
    -------
    page : Path
        Where the page was written, or the JSON where no page can be.
    unwritten : str
        Why there is no page; empty where there is.
    """
    from router_training.report_pages import Wanted, write_walk_files

    walk = result.walk
    folder = walk.config.work_dir / "report"
    page = folder / "report.html"
    try:
        write_walk_files(walk, Wanted(folder / "report.json", page, examples=examples))
    except MissingDependencyError as error:
        write_walk_files(walk, Wanted(folder / "report.json"))
        return folder / "report.json", f"; no page: {error}"
    return page, ""


def _print_run(result: RunResult, output: Path, page: Path) -> None:
    print_json(
        {
            "artifact_id": result.artifact.artifact_id,
            "output": output,
            "page": page,
            "skipped": len(result.evaluations.skipped),
            "tuned": None if result.tuned is None else result.tuned.to_json(),
            "report": result.report.to_json(),
        }
    )


@app.command()
def embed(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: on the machines of a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="A running cluster, or auto; default: start one here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read, split and embed; the features stay in the work folder, where run finds them."""
    walk = _walk(config, data, image_root, seed, on_bad_row)
    if engine == "ray":
        from router_training.embed_ray import encode_on_ray

        walk.encode = partial(encode_on_ray, runtime=walk.config.encoder, address=ray_address)
    elif ray_address is not None:
        raise ConfigError("--ray-address goes with --engine ray; add that, or leave it out.")
    rows, columns = walk.features.X.shape
    structure = walk.features.metadata["embedding_structure"]
    if as_json:
        print_json({"rows": rows, "features": columns, "structure": structure})
    else:
        out.print(f"{rows} rows x {columns} features: {structure}")


@app.command()
def fit(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do all up to fitting the head, which stays in the work folder."""
    head, _ = _walk(config, data, image_root, seed, on_bad_row).fitted
    if as_json:
        told = {"head": head.kind, "features": head.n_features, "models": head.n_models}
        print_json(told)
    else:
        out.print(f"fitted {head.kind}: {head.n_features} features, {head.n_models} models")


@app.command()
def calibrate(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do all up to calibration, and say which map each model got and why."""
    _, log = _walk(config, data, image_root, seed, on_bad_row).calibrated
    if as_json:
        print_json({"models": log})
        return
    table = plain_table("Calibration")
    table.add_column("model", overflow="fold")
    table.add_column("map")
    table.add_column("rows", justify="right")
    table.add_column("mean log loss, cross-validated", overflow="fold")
    for entry in log:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in entry["cv_loss"].items())
        table.add_row(entry["model_id"], entry["chosen"], f"{entry['n']:,}", losses)
    out.print(table)
    for entry in log:
        if "note" in entry:
            out.print(f"{entry['model_id']}: {entry['note']}", soft_wrap=True)


def _walk(
    config: Path,
    data: Path | None,
    image_root: Path | None,
    seed: int | None,
    on_bad_row: Literal["error", "skip"] | None,
) -> Walk:
    from router_training.pipeline import Walk

    settled = configured(config, data, image_root, None, seed, on_bad_row)
    walk = Walk(settled, watch=progress_bar)
    print_skipped(walk.data)
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
    """Choose lambda and thresholds for a wanted quality or budget; saves nothing."""
    from router_runtime.yaml_config import validate
    from router_training.config import TuneConfig
    from router_training.pipeline import Walk
    from router_training.report import render_tuning

    settled = configured(config, data, image_root, None, seed, None)
    if target_quality is not None or max_cost_per_1k is not None:
        goal = {"target_quality": target_quality, "max_cost_per_1k": max_cost_per_1k}
        goal_config = validate(TuneConfig, goal, source="router-train tune")
        settled = settled.model_copy(update={"tune": goal_config})
    walk = Walk(settled, watch=progress_bar)
    tuned = walk.tuned
    if tuned is None:
        raise ConfigError("No cost is known: record model_costs, or give candidates a price.")
    if as_json:
        print_json(tuned.to_json())
    else:
        render_tuning(tuned, out, cost_unit=walk.costs.unit)


app.command()(evaluate)
app.command("compare")(compare_routers)
app.command()(report)
app.command("add-model")(add_model_to_artifact)
app.command("leave-out")(leave_out_command)
app.command("collect")(collect_command)
app.command("judge")(judge_command)
app.command("label")(label_command)
app.command("audit")(audit_command)
app.command("trust")(trust_command)
app.command("fit-sequence")(fit_sequence)
app.command("fit-adapter")(fit_adapter)
app.command("make-tiers")(make_tiers)
app.command("route-sequence")(route_sequence)
app.command("make-prompted")(make_prompted_command)
app.command("generate-routing-data", context_settings=ANY_OPTIONS)(generate_command)
app.command("check-routing-data")(check_command)
app.command("convert-routing-to-classification")(convert_command)
app.command("draw-screens")(draw_command)


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
    as_json: JsonOption = False,
) -> None:
    """Convert published tables to evaluation records."""
    from router_training.importers import import_file
    from router_training.labels import write_evaluations

    records = import_file(
        source,
        source=source_format,
        image_root=image_root,
        drop_contaminated=not keep_contaminated,
        on_bad_row=on_bad_row or "error",
    )
    print_skipped(records)
    write_evaluations(records, output)
    if as_json:
        told = {"output": output, "records": len(records), "model_ids": records.model_ids}
        print_json({**told, "skipped": len(records.skipped)})
    else:
        out.print(f"wrote {len(records)} records of {len(records.model_ids)} models to {output}")


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    rows: Annotated[int, typer.Option(min=20, help="Number of records.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled",
            help="Write samples.jsonl without scores, and answers.jsonl for model-router simulate.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a SIMULATED workload: prompts, real PNG pictures and scores of simulated models."""
    from router_training.simulated import write_unlabelled, write_workload

    kind, beside = ("samples", "answers.jsonl") if unlabelled else ("records", None)
    path = (write_unlabelled if unlabelled else write_workload)(folder, rows=rows, seed=seed)
    answers = None if beside is None else path.parent / beside
    if as_json:
        print_json({"output": path, "rows": rows, "answers": answers})
    else:
        also = "" if answers is None else f", and {answers}"
        out.print(f"wrote {rows} simulated {kind} to {path}{also}")


teach(app, TAUGHT, RESULTS)
