"""From requests and the names that answer them to the parts of an ``adapter`` predictor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from router_runtime.prediction.adapter_network import (  # isort: skip - makes torchvision importable
    PromptReader,
    prompts_digest,
    usable_dtype,
)

import numpy as np

from router_runtime import __version__
from router_runtime.config import EncoderRuntime
from router_runtime.errors import ConfigError
from router_runtime.experts.base_model import BaseModel, load_base
from router_runtime.experts.config import BaseConfig
from router_runtime.prediction.adapter import AdapterDescription, AdapterParts
from router_runtime.types import F64, Json, Progress
from router_runtime.weights.base_digest import base_digest
from router_runtime.weights.torch_setup import pick_device
from router_training.adapter.fine_tuning import EpochFolders, FineTuning
from router_training.adapter.lessons import Lesson, Requests, check_lesson
from router_training.adapter.lora import add_lora, learned, tensors_of
from router_training.fine_tuning.checkpoints import Checkpoints
from router_training.fine_tuning.figures import measure
from router_training.fine_tuning.loop import FineTuned
from router_training.fine_tuning.recording import Recorder
from router_training.fine_tuning.temperature import fit_temperature
from router_training.learners import base_rates
from router_training.predictor_configs import AdapterConfig
from router_training.store import digest_of
from router_training.versioned import plain


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned.

    Parameters
    ----------
    parts : AdapterParts
    log : mapping
        Settings, epochs and figures, for the artifact's provenance.
    validation_scores : ndarray of shape (n_validation, n_labels), float64
        Log-probabilities of the names.
    """

    parts: AdapterParts
    log: dict[str, Json]
    validation_scores: F64


def load_own_base(config: AdapterConfig, runtime: EncoderRuntime) -> BaseModel:
    """Return the base of a config, to be changed.

    Raises
    ------
    ConfigError, EncoderError
        It cannot be had, or does not compute in the wanted type on this device.
    """
    device = pick_device(runtime.device)
    settings = BaseConfig(
        model=config.base, revision=config.revision, dtype=config.dtype, device=runtime.device
    )
    if config.dtype == "bfloat16" and usable_dtype("bfloat16", device) != "bfloat16":
        raise ConfigError(
            f"'{device}' computes nothing in bfloat16. Use dtype 'float32' or 'auto' (--bf16 auto)."
        )
    base = load_base(settings, own=True)
    name = str(base.dtype).removeprefix("torch.")
    if usable_dtype(name, device) != name or name == "float16":
        # float16 overflows where bfloat16 does not, and is no type to learn in.
        base = load_base(settings.model_copy(update={"dtype": "float32"}), own=True)
    return base


def learn(
    lesson: Lesson,
    config: AdapterConfig,
    *,
    base: BaseModel,
    seed: int,
    checkpoints: Path,
    progress: Progress,
    recorder: Recorder | None = None,
    epochs: EpochFolders | None = None,
) -> Learned:
    """Fine-tune; continue where an interrupted call with the same arguments stopped.

    Parameters
    ----------
    lesson : Lesson
    config : AdapterConfig
    base : BaseModel
        Of ``load_own_base``; has the learned adapter on it afterwards.
    seed : int
        Of the first matrices, dropout and order.
    checkpoints : Path
        Folder of their own; removed when finished.
    progress : callable
    recorder : Recorder, optional
    epochs : EpochFolders, optional

    Raises
    ------
    DataError
        There is nothing to learn from, or the base cannot read a row.
    ConfigError
        There are no such modules to adapt, or the base reads no pictures where they alone are
        shown.
    KeyboardInterrupt
        Ctrl-C; what was done is kept.
    """
    check_lesson(lesson)
    weights_digest = base_digest(base.folder)
    kept = Checkpoints(
        checkpoints, inputs=_inputs(lesson, config, base, seed=seed, weights=weights_digest)
    )
    reader = PromptReader(
        base,
        lesson.prompt,
        labels=lesson.labels,
        max_tokens=config.max_tokens,
        max_side=config.max_side,
    )
    prompts = prompts_digest(base)
    adapter = add_lora(base, config, seed=seed)
    tuned = FineTuning(
        reader,
        lesson,
        adapter=adapter,
        config=config,
        seed=seed,
        checkpoints=kept,
        recorder=recorder,
        epochs=epochs,
    ).run(progress)
    shares = lesson.validation.shares
    figures = measure(tuned.logits, shares, objective="one")
    temperature = fit_temperature(tuned.logits, shares)
    weights = learned(base.model)
    parts = AdapterParts.of(
        AdapterDescription(
            base=config.base,
            revision=config.revision,
            base_sha256=weights_digest,
            prompts_sha256=prompts,
            dtype=str(base.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            labels=lesson.labels,
            prompt=lesson.prompt,
            temperature=temperature,
            max_tokens=config.max_tokens,
            max_side=config.max_side,
            base_rates=base_rates(lesson.train.Y),
            text=lesson.text,
            adapter=adapter,
        ),
        tensors_of(base, weights),
    )
    log = _log(
        lesson,
        tuned,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        figures=asdict(figures),
        temperature=temperature,
    )
    kept.remove()
    return Learned(parts, plain(log), tuned.logits)


def _log(
    lesson: Lesson,
    tuned: FineTuned,
    *,
    parameters: int,
    figures: Json,
    temperature: float,
) -> dict[str, Json]:
    """Return what the artifact's provenance tells of the fitting."""
    return {
        "rows": {"train": len(lesson.train), "validation": len(lesson.validation)},
        "left_out": {"train": lesson.train.left_out, "validation": lesson.validation.left_out},
        "parameters": parameters,
        "best_epoch": tuned.best_epoch,
        "validation": figures,
        "epochs": list(tuned.history),
        "temperature": temperature,
    }


def _inputs(
    lesson: Lesson, config: AdapterConfig, base: BaseModel, *, seed: int, weights: str
) -> str:
    return digest_of(
        {
            "labels": lesson.labels,
            "prompt": lesson.prompt.model_dump(mode="json"),
            "train": _rows_digest(lesson.train),
            "validation": _rows_digest(lesson.validation),
            "config": config.model_dump(mode="json", exclude={"base"}),
            "base": [weights, str(base.dtype)],
            "seed": seed,
            "version": __version__,
        }
    )


def _rows_digest(rows: Requests) -> str:
    shown = [[query.text, [image.sha256 for image in query.images]] for query in rows.queries]
    return digest_of([shown, np.nan_to_num(rows.Y, nan=-1.0).tolist()])
