"""From scored texts to the parts of a ``sequence`` predictor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from router_runtime import __version__
from router_runtime.config import EncoderRuntime
from router_runtime.errors import DataError
from router_runtime.messages import TextRule
from router_runtime.prediction.sequence import SequenceDescription, SequenceParts
from router_runtime.prediction.sequence_network import Reader, pad_id_of, write_weights
from router_runtime.types import F64, Json, Progress
from router_runtime.weights.torch_setup import pick_device
from router_training.fine_tuning.checkpoints import Checkpoints
from router_training.fine_tuning.figures import measure
from router_training.fine_tuning.recording import Recorder
from router_training.fine_tuning.temperature import fit_temperature
from router_training.learners import base_digest, base_rates
from router_training.predictor_configs import SequenceConfig
from router_training.sequence.base_model import load_base
from router_training.sequence.fine_tuning import FineTuning
from router_training.sequence.targets import Texts, settled_objective
from router_training.store import digest_of
from router_training.versioned import plain


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is to be learned.

    Parameters
    ----------
    labels : tuple of str
        What is told apart.
    columns : tuple of int
        The model of each label.
    train, validation : Texts
        Their columns follow ``labels``.
    text : TextRule
        How texts were made from conversations.
    """

    labels: tuple[str, ...]
    columns: tuple[int, ...]
    train: Texts
    validation: Texts
    text: TextRule


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned.

    Parameters
    ----------
    parts : SequenceParts
    log : mapping
        Settings, epochs and figures, for the artifact's provenance.
    validation_logits : ndarray of shape (n_validation, n_labels), float64
    """

    parts: SequenceParts
    log: dict[str, Json]
    validation_logits: F64


def learn(
    lesson: Lesson,
    config: SequenceConfig,
    *,
    seed: int,
    runtime: EncoderRuntime,
    checkpoints: Path,
    progress: Progress,
    recorder: Recorder | None = None,
) -> Learned:
    """Fine-tune; continue where an interrupted call with the same arguments stopped.

    Parameters
    ----------
    lesson : Lesson
    config : SequenceConfig
    seed : int
        Of the classifier's first weights, dropout and order.
    runtime : EncoderRuntime
        Its ``device``.
    checkpoints : Path
        Folder of their own; removed when finished.
    progress : callable
    recorder : Recorder, optional

    Raises
    ------
    DataError
        There is nothing to learn from.
    ConfigError, EncoderError
        The base model cannot be fine-tuned, or had; there is no such device.
    KeyboardInterrupt
        Ctrl-C; what was done is kept.
    """
    _check(lesson)
    objective = settled_objective(config.objective, lesson.train.Y)
    if objective == "one":
        settled_objective("one", lesson.validation.Y)
    device = pick_device(runtime.device)
    base = load_base(config.base, labels=lesson.labels, max_tokens=config.max_tokens, seed=seed)
    reader = Reader(base.tokenizer, max_tokens=config.max_tokens, pad_id=pad_id_of(base.config))
    kept = Checkpoints(checkpoints, inputs=_inputs(lesson, config, seed=seed, objective=objective))
    tuned = FineTuning(
        base.model,
        reader,
        train=lesson.train,
        validation=lesson.validation,
        config=config,
        objective=objective,
        seed=seed,
        device=device,
        checkpoints=kept,
        recorder=recorder,
    ).run(progress)
    figures = measure(tuned.logits, lesson.validation.Y, objective=objective)
    temperature = 1.0
    if objective == "one":
        temperature = fit_temperature(tuned.logits, lesson.validation.Y)
    parts = SequenceParts.of(
        SequenceDescription(
            base=base.name,
            labels=lesson.labels,
            columns=lesson.columns,
            objective=objective,
            temperature=temperature,
            max_tokens=config.max_tokens,
            base_rates=_model_rates(lesson, objective),
            text=lesson.text,
            config=base.config,
        ),
        write_weights(tuned.model),
        base.tokenizer,
    )
    log: dict[str, Json] = {
        "objective": objective,
        "rows": {"train": len(lesson.train), "validation": len(lesson.validation)},
        "parameters": sum(p.numel() for p in tuned.model.parameters()),
        "best_epoch": tuned.best_epoch,
        "validation": asdict(figures),
        "epochs": list(tuned.history),
        "temperature": temperature,
    }
    kept.remove()
    return Learned(parts, plain(log), tuned.logits)


def _check(lesson: Lesson) -> None:
    for part, rows in (("training", lesson.train), ("validation", lesson.validation)):
        if not len(rows):
            raise DataError(
                f"No {part} row has a text and a score; a classifier that reads text cannot learn "
                "from it."
            )
    taught = np.nansum(lesson.train.Y, axis=0)
    if (taught > 0).sum() < 2:
        raise DataError(
            "The training rows name fewer than two labels "
            f"(of {', '.join(lesson.labels)}); there is nothing to tell apart."
        )


def _model_rates(lesson: Lesson, objective: Literal["one", "several"]) -> tuple[float, ...]:
    rates = base_rates(lesson.train.Y)
    found = [0.0] * (max(lesson.columns) + 1)
    for rate, column in zip(rates, lesson.columns, strict=True):
        found[column] += rate
    return tuple(min(1.0, rate) for rate in found)


def _inputs(lesson: Lesson, config: SequenceConfig, *, seed: int, objective: str) -> str:
    return digest_of(
        {
            "labels": [lesson.labels, lesson.columns],
            "train": _rows_digest(lesson.train),
            "validation": _rows_digest(lesson.validation),
            "config": config.model_dump(mode="json"),
            "base": base_digest(config.base),
            "objective": objective,
            "seed": seed,
            "version": __version__,
        }
    )


def _rows_digest(rows: Texts) -> str:
    return digest_of([rows.texts, rows.Y.tolist()])
