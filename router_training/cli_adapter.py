"""``router-train fit-adapter``: parse, call, print.

Options are spelt as training scripts of LoRA adapters spell them, with underscores or dashes.
"""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from router_runtime.cli_options import JsonOption
from router_runtime.console import explained_imports, progress_bar
from router_runtime.types import Json
from router_runtime.yaml_config import validate
from router_training.cli_options import (
    BadRowOption,
    ImageRootOption,
    print_learned,
    print_skipped,
)
from router_training.fine_tuning.recording import Recorder
from router_training.fine_tuning.tensorboard_log import tensorboard_run
from router_training.fine_tuning.wandb_log import wandb_run
from router_training.predictor_configs import AdapterConfig

_DEFAULTS = AdapterConfig(base="-")
_OUTPUT = Path("router_adapter")
_PROJECT = "model-router"
_LOGS = "logs"


class Switch(StrEnum):
    """Whether something is wanted; scripts write ``True`` and ``False``."""

    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"


class Log(StrEnum):
    """Where figures go beside the artifact."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


class Scheduler(StrEnum):
    """What the learning rate does after its warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


def _spelt(name: str) -> tuple[str, str]:
    return f"--{name}", f"--{name.replace('_', '-')}"


def fit_adapter(
    base: Annotated[
        str,
        typer.Option(
            *_spelt("model_name_or_path"), help="The experts' base: a local folder or a hub id."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            *_spelt("data_path"),
            help="train-classification.jsonl, or the folder of convert-routing-to-classification.",
        ),
    ],
    eval_data: Annotated[
        Path | None,
        typer.Option(
            *_spelt("eval_data_path"),
            help="Likewise; default: the folder's val- or eval-classification.jsonl, or a tenth.",
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(*_spelt("output_dir"), help="The artifact's folder.")
    ] = _OUTPUT,
    image_root: ImageRootOption = None,
    epochs: Annotated[
        int, typer.Option(*_spelt("num_train_epochs"), min=1, help="Passes over the rows, at most.")
    ] = _DEFAULTS.epochs,
    batch_size: Annotated[
        int,
        typer.Option(*_spelt("per_device_train_batch_size"), min=1, help="Rows at a time."),
    ] = _DEFAULTS.batch_size,
    eval_batch_size: Annotated[
        int,
        typer.Option(*_spelt("per_device_eval_batch_size"), min=1, help="Rows at a time."),
    ] = _DEFAULTS.eval_batch_size,
    accumulation: Annotated[
        int,
        typer.Option(*_spelt("gradient_accumulation_steps"), min=1, help="Batches of a step."),
    ] = _DEFAULTS.accumulation,
    learning_rate: Annotated[
        float, typer.Option(*_spelt("learning_rate"), help="Of AdamW, at its highest.")
    ] = _DEFAULTS.learning_rate,
    weight_decay: Annotated[
        float, typer.Option(*_spelt("weight_decay"), help="Of AdamW.")
    ] = _DEFAULTS.weight_decay,
    warmup_ratio: Annotated[
        float, typer.Option(*_spelt("warmup_ratio"), help="Share of the steps until the highest.")
    ] = _DEFAULTS.warmup_ratio,
    schedule: Annotated[
        Scheduler, typer.Option(*_spelt("lr_scheduler_type"), help="How the rate falls then.")
    ] = Scheduler.COSINE,
    max_grad_norm: Annotated[
        float, typer.Option(*_spelt("max_grad_norm"), help="Longer gradients are cut.")
    ] = _DEFAULTS.max_grad_norm,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better macro-F1 before it stops.")
    ] = _DEFAULTS.patience,
    save_total_limit: Annotated[
        int,
        typer.Option(*_spelt("save_total_limit"), min=1, help="Epochs whose adapters are kept."),
    ] = 3,
    bf16: Annotated[
        Switch,
        typer.Option(
            case_sensitive=False,
            help="The base in bfloat16; auto: in its own type, float32 where there is no bfloat16.",
        ),
    ] = Switch.AUTO,
    gradient_checkpointing: Annotated[
        Switch,
        typer.Option(
            *_spelt("gradient_checkpointing"),
            case_sensitive=False,
            help="Less memory, more time; auto: on a GPU.",
        ),
    ] = Switch.AUTO,
    lora_rank: Annotated[
        int, typer.Option(*_spelt("lora_rank"), min=1, help="Of the matrices.")
    ] = _DEFAULTS.rank,
    lora_alpha: Annotated[
        float, typer.Option(*_spelt("lora_alpha"), help="The adapter counts alpha / rank.")
    ] = _DEFAULTS.alpha,
    lora_dropout: Annotated[
        float, typer.Option(*_spelt("lora_dropout"), help="Of the adapter's input.")
    ] = _DEFAULTS.dropout,
    lora_target_modules: Annotated[
        str | None,
        typer.Option(
            *_spelt("lora_target_modules"),
            help="Ends of names, by commas; default: every linear module of the language model.",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(*_spelt("max_tokens"), help="Longer requests lose their beginning.")
    ] = _DEFAULTS.max_tokens,
    max_side: Annotated[
        int, typer.Option(*_spelt("max_side"), help="Larger pictures are shrunk to so many pixels.")
    ] = _DEFAULTS.max_side,
    report_to: Annotated[
        Log, typer.Option(*_spelt("report_to"), help="Where figures go beside the artifact.")
    ] = Log.NONE,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    device: Annotated[
        str, typer.Option(help="auto (GPU when there), cpu, cuda or cuda:N.")
    ] = "auto",
    on_bad_row: BadRowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a LoRA adapter that names the expert for a request, and save it as an artifact.

    Ctrl-C keeps what was done; the same command continues.
    """
    from router_runtime.config import EncoderRuntime

    runtime = validate(EncoderRuntime, {"device": device}, source="--device")
    with explained_imports("lora"):
        from router_runtime.weights.torch_setup import pick_device
        from router_training.adapter.conversations import read_conversations
        from router_training.adapter.fitting import fit_conversations
    checkpointing = gradient_checkpointing
    if checkpointing is Switch.AUTO:
        on_gpu = pick_device(device).type == "cuda"
        checkpointing = Switch.TRUE if on_gpu else Switch.FALSE
    targets = (lora_target_modules or "").split(",")
    settings: dict[str, Json] = {
        "base": base,
        "dtype": {Switch.AUTO: "auto", Switch.TRUE: "bfloat16", Switch.FALSE: "float32"}[bf16],
        "rank": lora_rank,
        "alpha": lora_alpha,
        "dropout": lora_dropout,
        "target_modules": [name.strip() for name in targets if name.strip()],
        "epochs": epochs,
        "batch_size": batch_size,
        "eval_batch_size": eval_batch_size,
        "accumulation": accumulation,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup_ratio": warmup_ratio,
        "schedule": str(schedule),
        "max_grad_norm": max_grad_norm,
        "patience": patience,
        "gradient_checkpointing": checkpointing is Switch.TRUE,
        "max_tokens": max_tokens,
        "max_side": max_side,
    }
    settled = validate(AdapterConfig, settings, source="fit-adapter")
    rows = read_conversations(
        data, eval_data, image_root=image_root, on_bad_row=on_bad_row or "error", seed=seed
    )
    print_skipped(rows.train)
    with ExitStack() as stack:
        recorder = _recorder(stack, report_to, output_dir, settings)
        _, learned = fit_conversations(
            rows,
            output_dir,
            settled,
            seed=seed,
            runtime=runtime,
            progress=stack.enter_context(progress_bar("steps")),
            keep_epochs=save_total_limit,
            recorder=recorder,
        )
    print_learned(learned.log, output_dir, as_json=as_json)


def _recorder(
    stack: ExitStack, report_to: Log, output: Path, settings: dict[str, Json]
) -> Recorder | None:
    match report_to:
        case Log.NONE:
            return None
        case Log.WANDB:
            return stack.enter_context(wandb_run(_PROJECT, settings=settings))
        case Log.TENSORBOARD:
            return stack.enter_context(tensorboard_run(output / _LOGS, settings=settings))
