"""``router-train fit-sequence``, ``route-sequence`` and ``make-prompted``: parse, call, print.

``router_inference.py`` and ``train_router.py`` are the first two as scripts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router_runtime.cli_options import JsonOption, complete_artifacts
from router_runtime.console import err, explained_imports, out, print_json, progress_bar
from router_runtime.errors import ConfigError, QueryError
from router_runtime.types import Json
from router_runtime.yaml_config import validate
from router_training.cli_options import BadRowOption, print_learned, print_skipped, shown
from router_training.predictor_configs import SequenceConfig

if TYPE_CHECKING:
    from router_runtime.config import EncoderRuntime
    from router_runtime.router_inference import RouterInference

_DEFAULTS = SequenceConfig()
_MODEL_PATH = Path("router_model")
_PROJECT = "model-router"


class Mode(StrEnum):
    """What ``route-sequence`` does."""

    SINGLE = "single"
    INTERACTIVE = "interactive"
    BATCH = "batch"
    EVALUATE = "evaluate"


DeviceOption = Annotated[
    str | None, typer.Option(help="auto (GPU when there), cpu, cuda or cuda:N.")
]


def fit_sequence(
    train_data: Annotated[
        Path, typer.Option("--train_data", "--train-data", help='JSONL of {"query", "category"}.')
    ],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "--output-dir", help="The artifact's folder.")
    ] = _MODEL_PATH,
    val_data: Annotated[
        Path | None,
        typer.Option(
            "--val_data", "--val-data", help="Likewise; default: a tenth of the training rows."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows, at most.")] = 3,
    batch_size: Annotated[
        int, typer.Option("--batch_size", "--batch-size", min=1, help="Rows of a step.")
    ] = 16,
    model: Annotated[
        str, typer.Option(help="What is fine-tuned: a local folder or a hub id.")
    ] = _DEFAULTS.base,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML of categories, model_mappings and router_config."),
    ] = None,
    learning_rate: Annotated[
        float, typer.Option("--learning_rate", "--learning-rate", help="Of AdamW, at its highest.")
    ] = _DEFAULTS.learning_rate,
    max_tokens: Annotated[
        int, typer.Option("--max_tokens", "--max-tokens", help="Longer texts keep their end.")
    ] = _DEFAULTS.max_tokens,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better macro-F1 before it stops.")
    ] = _DEFAULTS.patience,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    device: DeviceOption = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Send settings and figures to Weights & Biases.")
    ] = False,
    on_bad_row: BadRowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a text classifier that tells categories of requests, and save it as an artifact.

    Ctrl-C keeps what was done; the same command continues.
    """
    with explained_imports("clip"):
        from router_runtime.router_inference import CategoryConfig, load_category_config
        from router_training.fine_tuning.wandb_log import wandb_run
        from router_training.sequence.categories import fit_categories, read_rows
    given = None if config is None else load_category_config(config)
    settings = {
        "base": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_tokens": max_tokens,
        "patience": patience,
    }
    settled = validate(SequenceConfig, settings, source="fit-sequence")
    rows = read_rows(
        train_data,
        val_data,
        categories=None if given is None else given.categories,
        seed=seed,
        on_bad_row=on_bad_row or "error",
    )
    print_skipped(rows.train)
    mapped = given or CategoryConfig(categories=rows.train.model_ids)
    with ExitStack() as stack:
        recorder = None
        if wandb:
            recorder = stack.enter_context(wandb_run(_PROJECT, settings={**settings, "seed": seed}))
        _, learned = fit_categories(
            rows,
            output_dir,
            settled,
            mapped=mapped,
            seed=seed,
            runtime=_runtime(device or mapped.router_config.device),
            progress=stack.enter_context(progress_bar("steps")),
            recorder=recorder,
        )
    print_learned(learned.log, output_dir, as_json=as_json)


def route_sequence(
    mode: Annotated[Mode, typer.Option(help="What to do.")] = Mode.INTERACTIVE,
    model_path: Annotated[
        Path | None,
        typer.Option(
            "--model_path",
            "--model-path",
            help="The artifact's folder.",
            autocompletion=complete_artifacts,
        ),
    ] = None,
    query: Annotated[str | None, typer.Option(help="The text, in mode single.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input_file", "--input-file", help="JSONL to read, in mode batch."),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output_file", "--output-file", help="JSONL to write; JSON of figures in evaluate."
        ),
    ] = None,
    test_file: Annotated[
        Path | None,
        typer.Option("--test_file", "--test-file", help='JSONL of {"query", "category"}.'),
    ] = None,
    plot: Annotated[
        Path, typer.Option(help="Picture of the confusion matrix, in mode evaluate.")
    ] = Path("confusion_matrix.png"),
    config: Annotated[
        Path | None, typer.Option(help="YAML with router_config: model_path, device, threshold.")
    ] = None,
    device: DeviceOption = None,
    batch_size: Annotated[
        int, typer.Option("--batch_size", "--batch-size", min=1, help="Texts per pass.")
    ] = 32,
    as_json: JsonOption = False,
) -> None:
    """Tell the category of texts: of one, of typed ones, of a file's, or measure on labelled ones.

    Modes single and interactive print a line of JSON per text anyway.
    """
    from router_runtime.router_inference import (
        InferenceSettings,
        RouterInference,
        load_category_config,
    )

    _check_options(mode, query=query, input_file=input_file, test_file=test_file)
    settings = InferenceSettings()
    if config is not None:
        settings = load_category_config(config).router_config
    router = RouterInference.from_pretrained(
        model_path or settings.model_path, device=device or settings.device, batch_size=batch_size
    )
    threshold = settings.confidence_threshold
    match mode:
        case Mode.SINGLE:
            print(_told(router, str(query), threshold))
        case Mode.INTERACTIVE:
            for line in _typed():
                try:
                    print(_told(router, line, threshold))
                except QueryError as error:
                    err.print(str(error), markup=False)
        case Mode.BATCH:
            _batch(router, Path(str(input_file)), output_file, as_json)
        case Mode.EVALUATE:
            _evaluate(router, Path(str(test_file)), output_file, plot, as_json)


def make_prompted_command(
    config: Annotated[Path, typer.Argument(help="YAML: predictor, candidates, output.")],
    output: Annotated[Path | None, typer.Option(help="Artifact folder; replaces output.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a router that asks a model which kind of request it is; nothing is trained."""
    from router_training.make_prompted import make_prompted

    artifact, folder = make_prompted(config, output=output)
    if as_json:
        told = {"artifact_id": artifact.artifact_id, "output": folder}
        print_json({**told, "model_ids": artifact.model_ids})
        return
    out.print(f"artifact {artifact.artifact_id} saved in {shown(folder)}")
    out.print("It is not calibrated; 'router-train run' with the same predictor does that.")


def _runtime(device: str) -> EncoderRuntime:
    from router_runtime.config import EncoderRuntime

    return validate(EncoderRuntime, {"device": device}, source="--device")


_NEEDED = {Mode.SINGLE: "query", Mode.BATCH: "input_file", Mode.EVALUATE: "test_file"}


def _check_options(mode: Mode, **given: Path | str | None) -> None:
    """Refuse a mode without what it reads, and what another mode reads.

    Raises
    ------
    ConfigError
        Naming the option.
    """
    needed = _NEEDED.get(mode)
    for name, value in given.items():
        if name == needed and value is None:
            raise ConfigError(f"--mode {mode} needs --{name}.")
        if name != needed and value is not None:
            raise ConfigError(f"--{name} changes nothing in --mode {mode}; leave it out.")


def _told(router: RouterInference, query: str, threshold: float | None) -> str:
    told: dict[str, Json] = router.route_query(query)
    model = router.model_mappings[told["category"]]
    if model != told["category"]:
        told["model"] = model
    if threshold is not None:
        told["confident"] = told["confidence"] >= threshold
    return json.dumps(told, ensure_ascii=False)


def _typed() -> Iterator[str]:
    err.print("One request per line; an empty line, quit or exit ends.")
    while True:
        if sys.stdin.isatty():
            err.print("> ", end="")
        line = sys.stdin.readline().strip()
        if line in ("", "quit", "exit"):
            return
        yield line


def _batch(router: RouterInference, source: Path, target: Path | None, as_json: bool) -> None:
    from router_training.sequence.batches import route_file

    if target is None:
        raise ConfigError("--mode batch needs --output_file.")
    with progress_bar("rows") as progress:
        done = route_file(router, source, target, progress=progress)
    if as_json:
        print_json({"output": target, "rows": done.rows, "resumed": done.resumed})
        return
    resumed = f", {done.resumed} of them before" if done.resumed else ""
    out.print(f"{done.rows} rows{resumed}: {shown(target)}")


def _evaluate(
    router: RouterInference, test_file: Path, report: Path | None, plot: Path, as_json: bool
) -> None:
    from router_training.sequence.evaluating import evaluate_rows, print_evaluated
    from router_training.store import write_whole

    with explained_imports("clip"):
        from router_training.sequence.categories import read_categories
    data = read_categories(test_file, categories=router.categories)
    with explained_imports("report"):
        from router_training.sequence.plot_confusion import write_confusion
    with progress_bar("rows") as progress:
        found = evaluate_rows(router, data, progress)
    write_confusion(found.counts, found.categories, plot)
    if report is not None:
        write_whole(report, (json.dumps(found.to_json(), indent=2) + "\n").encode())
    if as_json:
        print_json({**found.to_json(), "plot": plot, "output": report})
        return
    print_evaluated(found, out)
    out.print(f"confusion matrix saved in {shown(plot)}")
    if report is not None:
        out.print(f"figures saved in {shown(report)}")
