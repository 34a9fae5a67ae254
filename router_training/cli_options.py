"""What the commands of ``router-train`` share: options, and how paths and skipped rows are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from router_runtime.console import err, out, print_json
from router_runtime.types import Json

if TYPE_CHECKING:
    from router_training.config import TrainingConfig
    from router_training.labels import Evaluations

EXAMPLES = 12
"""Worst regrets that a page shows by default."""

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


def configured(
    path: Path,
    data: Path | None,
    image_root: Path | None,
    output: Path | None,
    seed: int | None,
    on_bad_row: Literal["error", "skip"] | None,
) -> TrainingConfig:
    """Return the training config with what the command line replaces."""
    from router_training.config import load_training_config

    given = {
        "data.path": data,
        "data.image_root": image_root,
        "output": output,
        "seed": seed,
        "data.on_bad_row": on_bad_row,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    return load_training_config(path, overrides=overrides)


def print_skipped(records: Evaluations) -> None:
    """List the rows that were left out, on stderr."""
    if records.skipped:
        err.print(f"left out {len(records.skipped)} rows:")
        for row in records.skipped:
            err.print(f"  row {row.row}, {row.field}: {row.reason}", soft_wrap=True)


def shown(path: Path) -> str:
    """Return the path relative to the current folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_learned(log: Json, folder: Path, *, as_json: bool) -> None:
    """Print how fine-tuning went, epoch by epoch, and where the best is."""
    if as_json:
        print_json({"output": folder, "best_epoch": log["best_epoch"], "epochs": log["epochs"]})
        return
    for epoch in log["epochs"]:
        out.print(
            "epoch {epoch}: training loss {train_loss:.4f}, validation loss {loss:.4f}, "
            "accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}".format(**epoch)
        )
    out.print(f"epoch {log['best_epoch']} saved in {shown(folder)}")
