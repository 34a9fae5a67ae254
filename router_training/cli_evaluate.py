"""The commands of ``router-train`` that measure routers and extend them; ``cli`` registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from router_runtime.artifacts import load_artifact, read_manifest
from router_runtime.config import RuntimeConfig
from router_runtime.console import err, out, progress_bar
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_training import pipeline
from router_training.add_model import FOLDS, Addition, add_model, free_output, save_addition
from router_training.cli_options import (
    AllRowsOption,
    BadRowOption,
    ConfigArgument,
    DataOption,
    ExamplesOption,
    HtmlOption,
    ImageRootOption,
    JsonOption,
    NoExamplesOption,
    PlotsOption,
    ReportOption,
    SeedOption,
    configured,
    print_skipped,
    shown,
)
from router_training.compare_tables import render_comparison
from router_training.config import load_training_config
from router_training.contestants import compare_files
from router_training.evaluation_report import EvaluationReport
from router_training.footprint import TIMED
from router_training.held_out import held_out
from router_training.importers import import_file
from router_training.keep_left_out import check_same_run, keep_left_out
from router_training.leave_out import leave_out, render_left_out
from router_training.report import render_table
from router_training.report_pages import (
    EXAMPLES,
    Wanted,
    added_since,
    subject_of_manifest,
    write_files,
    write_served_files,
    write_walk_files,
)
from router_training.served import Served, read_records
from router_training.store import write_whole
from router_training.stored_report import stored_report
from router_training.wording import interval, number, signed


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
    print_skipped(records)
    kept = held_out(router.artifact.training, records, all_rows=all_rows)
    if kept.message:
        err.print(kept.message, soft_wrap=True)
    served = Served(router, records.take(kept.rows), policy)
    found = served.report()
    write_served_files(found, served, wanted, name=data.name)
    _present(found, as_json)


def compare_routers(
    routers: Annotated[
        list[Path], typer.Argument(help="Artifact folders, runtime configs or training configs.")
    ],
    data: DataOption = None,
    image_root: ImageRootOption = None,
    on_bad_row: BadRowOption = None,
    all_rows: AllRowsOption = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    timed: Annotated[
        int, typer.Option(min=0, help="Queries on which decisions are timed; 0: none.")
    ] = TIMED,
    output: Annotated[Path | None, typer.Option(help="Also write it as JSON here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare routers on the same held-out records, with intervals against the first.

    One table tells accuracy and cost, what training took, and the size and the time of a decision.

    Example: router-train compare router_artifacts/old router_artifacts/new --data records.jsonl
    """
    found = compare_files(
        routers,
        data=data,
        image_root=image_root,
        on_bad_row=on_bad_row,
        all_rows=all_rows,
        seed=seed,
        n_timed=timed,
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
        print_skipped(walk.data)
        write_walk_files(walk, wanted)
        _present(walk.report, as_json)
    else:
        manifest = read_manifest(source)
        found = stored_report(manifest, name=str(source))
        added = added_since(manifest, found)
        if added:
            err.print(
                f"The figures are of the router before {', '.join(added)} came to it; for its own: "
                "router-train evaluate ARTIFACT --data FILE",
                soft_wrap=True,
            )
        subject = subject_of_manifest(manifest, name=source.resolve().name, added=added)
        write_files(found, wanted, subject)
        _present(found, as_json)


def add_model_to_artifact(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder; kept, unless it is --output.")],
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
    print_skipped(records)
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
    out.print(f"artifact {saved.artifact_id} saved in {shown(target)}")


def leave_out_command(
    config: ConfigArgument,
    data: DataOption = None,
    image_root: ImageRootOption = None,
    seed: SeedOption = None,
    on_bad_row: BadRowOption = None,
    keep: Annotated[
        Path | None, typer.Option(help="Artifact of the same config, whose card shall tell it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train without each data set in turn and measure on it: how the router meets the unknown.

    Example: router-train leave-out configs/routerbench.yml --data records.jsonl
    """
    settled = configured(config, data, image_root, None, seed, on_bad_row)
    if keep is not None:
        check_same_run(settled, keep)
    found = leave_out(settled, watch=progress_bar)
    if keep is not None:
        keep_left_out(found, keep, candidates=settled.candidates)
    if as_json:
        print(json.dumps([entry.to_json() for entry in found], indent=2))
    else:
        render_left_out(found, out)


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
