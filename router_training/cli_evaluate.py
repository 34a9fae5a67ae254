"""The commands of ``router-train`` that measure routers and extend them; ``cli`` registers them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router_runtime.cli_options import (
    ArtifactArgument,
    JsonOption,
    PolicyOption,
    complete_artifacts,
    complete_routers,
)
from router_runtime.console import err, explained_imports, out, print_json, progress_bar
from router_runtime.errors import ConfigError
from router_training.cli_options import (
    EXAMPLES,
    AllRowsOption,
    BadRowOption,
    ConfigArgument,
    DataOption,
    ExamplesOption,
    HtmlOption,
    ImageRootOption,
    NoExamplesOption,
    PlotsOption,
    ReportOption,
    SeedOption,
    configured,
    print_skipped,
    shown,
)
from router_training.fitting import FOLDS
from router_training.footprint import TIMED

if TYPE_CHECKING:
    from router_training.add_model import Addition
    from router_training.evaluation_report import EvaluationReport


def evaluate(
    artifact: Annotated[
        Path | None, typer.Argument(help="Artifact folder.", autocompletion=complete_artifacts)
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Evaluation records.")] = None,
    config: Annotated[Path | None, typer.Option(help="Runtime config instead of ARTIFACT.")] = None,
    image_root: ImageRootOption = None,
    on_bad_row: BadRowOption = None,
    policy: PolicyOption = None,
    all_rows: AllRowsOption = False,
    output: ReportOption = None,
    html: HtmlOption = None,
    plots: PlotsOption = None,
    examples: ExamplesOption = EXAMPLES,
    no_examples: NoExamplesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a router on records, with the policy that serves."""
    with explained_imports("train"):
        from router_runtime.config import RuntimeConfig
        from router_runtime.model_router import ModelRouter
        from router_training.held_out import held_out
        from router_training.report_pages import Wanted, write_served_files
        from router_training.served import Served, read_records
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
        list[Path],
        typer.Argument(
            help="Artifact folders, runtime configs or training configs.",
            autocompletion=complete_routers,
        ),
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
    """
    from router_training.compare_tables import render_comparison
    from router_training.contestants import compare_files
    from router_training.store import write_whole

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
    content = found.comparison.to_json()
    if output is not None:
        write_whole(output, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    if as_json:
        print_json(content)
    else:
        render_comparison(found.comparison, out)


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT|CONFIG",
            help="Artifact folder or training config.",
            autocompletion=complete_routers,
        ),
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
    """
    from router_runtime.artifacts import read_manifest
    from router_training.config import load_training_config
    from router_training.report_pages import (
        Wanted,
        added_since,
        subject_of_manifest,
        write_files,
        write_walk_files,
    )
    from router_training.stored_report import stored_report

    wanted = Wanted(output, html, plots, 0 if no_examples else examples)
    wanted.check()
    if source.is_file():
        from router_training import pipeline

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
    artifact: ArtifactArgument,
    data: Annotated[Path, typer.Option("--data", help="Records with scores of the new model.")],
    model: Annotated[str, typer.Option("--model", help="The new model's name in the records.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the new artifact; default: ARTIFACT+MODEL. ARTIFACT is kept."),
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
    as_json: JsonOption = False,
) -> None:
    """Add one more model to an artifact from some hundred of its scores, without retraining."""
    from router_runtime.artifacts import load_artifact
    from router_training.add_model import add_model, free_output, save_addition
    from router_training.importers import import_file

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
    if as_json:
        print_json(
            {
                "artifact_id": saved.artifact_id,
                "output": target,
                "model_id": addition.model_id,
                "labels": addition.labels,
                "uncertainty": addition.uncertainty,
                "held_out": None if addition.held_out is None else asdict(addition.held_out),
                "notes": addition.notes,
                "skipped": len(records.skipped),
            }
        )
        return
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
    """Train without each data set in turn and measure on it: how the router meets the unknown."""
    from router_training.keep_left_out import check_same_run, keep_left_out
    from router_training.leave_out import leave_out, render_left_out

    settled = configured(config, data, image_root, None, seed, on_bad_row)
    if keep is not None:
        check_same_run(settled, keep)
    found = leave_out(settled, watch=progress_bar)
    if keep is not None:
        keep_left_out(found, keep, candidates=settled.candidates)
    if as_json:
        print_json({"left_out": [entry.to_json() for entry in found]})
    else:
        render_left_out(found, out)


def _present(report: EvaluationReport, as_json: bool) -> None:
    from router_training.report import render_table

    if as_json:
        print_json(report.to_json())
    else:
        render_table(report, out)


def _print_addition(addition: Addition) -> None:
    from router_training.wording import interval, number, signed

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
