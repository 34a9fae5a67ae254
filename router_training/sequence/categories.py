"""From files of ``{"query": ..., "category": ...}`` to a router that tells categories.

The labels are the categories, the models what they are mapped to. The classifier's temperature is
fitted on the validation rows, so that its confidences are calibrated as they are; the artifact has
no further map. Its recommended policy is the highest probability, and below the confidence
threshold, where there is one, the fallback's model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_runtime import __version__
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.config import EncoderRuntime, FallbackConfig, HighestProbabilityConfig
from router_runtime.errors import DataError
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.router_inference import CategoryConfig
from router_runtime.types import Json, Modality, Progress
from router_training.card import escaped
from router_training.fine_tuning.figures import confusion, per_label
from router_training.fine_tuning.recording import Recorder
from router_training.held_out import marks_of
from router_training.importers import import_file
from router_training.labels import Evaluations, OnBadRow
from router_training.predictor_configs import SequenceConfig
from router_training.sequence.learner import Learned, Lesson, learn
from router_training.sequence.targets import Texts, has_one_label
from router_training.splits import split_evaluations
from router_training.versioned import plain
from router_training.wording import yaml_lines

_HELD_OUT = (0.9, 0.1, 0.0, 0.0)
CHECKPOINTS = ".checkpoints"
"""Subfolder of the output while it learns; loading an artifact does not look at subfolders."""


@dataclass(frozen=True, eq=False)
class CategoryRows:
    """Labelled texts, and whether the validation rows were taken from the training file."""

    train: Evaluations
    validation: Evaluations
    divided: bool


def read_categories(
    path: Path, *, categories: tuple[str, ...] | None = None, on_bad_row: OnBadRow = "error"
) -> Evaluations:
    """Read rows of ``{"query", "category"}``; columns are the categories.

    Raises
    ------
    DataError
        Naming file, row and field; also for rows of another shape and unknown categories.
    """
    found = import_file(path, source="records", model_ids=categories, on_bad_row=on_bad_row)
    if not has_one_label(found.labels.Y):
        raise DataError(
            'Each row must name one category, as {"query": "...", "category": "..."}; these are '
            "rows of scores. Train on them with: router-train run, and 'predictor: sequence'.",
            file=str(path),
        )
    return found


def read_rows(
    train_data: Path,
    val_data: Path | None,
    *,
    categories: tuple[str, ...] | None,
    seed: int,
    on_bad_row: OnBadRow = "error",
) -> CategoryRows:
    """Read training and validation rows; without a file of the latter a tenth is held out.

    Raises
    ------
    DataError
        As ``read_categories``, or there are too few rows to divide.
    """
    train = read_categories(train_data, categories=categories, on_bad_row=on_bad_row)
    if val_data is None:
        split = split_evaluations(train, fractions=_HELD_OUT, seed=seed)
        return CategoryRows(train.take(split.train), train.take(split.validation), True)
    validation = read_categories(val_data, categories=train.model_ids, on_bad_row=on_bad_row)
    return CategoryRows(train, validation, False)


def fit_categories(
    rows: CategoryRows,
    output: Path,
    config: SequenceConfig,
    *,
    mapped: CategoryConfig,
    seed: int,
    runtime: EncoderRuntime,
    progress: Progress,
    recorder: Recorder | None = None,
) -> tuple[Artifact, Learned]:
    """Fine-tune and save the artifact.

    Parameters
    ----------
    rows : CategoryRows
        Columns are ``mapped.categories``.
    output : Path
        The artifact's folder; an interrupted call with the same arguments continues there.
    config : SequenceConfig
    mapped : CategoryConfig
        Categories, models, threshold and fallback.
    seed : int
    runtime : EncoderRuntime
        Its ``device``.
    progress : callable
    recorder : Recorder, optional

    Raises
    ------
    RouterError
        As ``learner.learn`` and ``save_artifact``.
    """
    models = mapped.models
    columns = tuple(models.index(mapped.model_of(label)) for label in mapped.categories)
    lesson = Lesson(
        labels=mapped.categories,
        columns=columns,
        train=Texts.of(rows.train.queries, rows.train.labels.Y),
        validation=Texts.of(rows.validation.queries, rows.validation.labels.Y),
        text=TextRule(),
    )
    learned = learn(
        lesson,
        config.model_copy(update={"objective": "one"}),
        seed=seed,
        runtime=runtime,
        checkpoints=output / CHECKPOINTS,
        progress=progress,
        recorder=recorder,
    )
    artifact = Artifact(
        model_ids=models,
        parts=learned.parts,
        calibrator=Calibrator.identity(len(models)),
        scored_modalities=dict.fromkeys(models, (Modality.TEXT,)),
        recommended_policy=_policy(mapped, rows.train).model_dump(mode="json"),
        training={
            "data_sha256": rows.train.fingerprint,
            "validation_sha256": rows.validation.fingerprint,
            "validation_rows": "a tenth of the training file" if rows.divided else "a file",
            "seen": marks_of(_joined(rows)),
            "seed": seed,
            "cost_unit": "unknown",
            "predictor": learned.log,
        },
        metrics={"validation": _figures(learned, lesson)},
    )
    card = _card(artifact, learned)
    created_by = f"model-router {__version__} fit-sequence"
    return save_artifact(artifact, output, created_by=created_by, card=card), learned


def _policy(mapped: CategoryConfig, train: Evaluations) -> HighestProbabilityConfig:
    settings = mapped.router_config
    if settings.confidence_threshold is None:
        return HighestProbabilityConfig()
    category = settings.fallback
    if category is None:
        category = train.model_ids[int(train.labels.Y.sum(axis=0).argmax())]
    fallback = FallbackConfig(
        model=mapped.model_of(category),
        novelty_above=None,
        confidence_below=settings.confidence_threshold,
    )
    return HighestProbabilityConfig(fallback=fallback)


def _joined(rows: CategoryRows) -> Evaluations:
    train, validation = rows.train, rows.validation
    return Evaluations(
        train.samples + validation.samples,
        type(train.labels).of_scores(
            train.model_ids, np.concatenate([train.labels.Y, validation.labels.Y])
        ),
    )


def _figures(learned: Learned, lesson: Lesson) -> dict[str, Json]:
    truth = lesson.validation.Y.argmax(axis=1)
    counts = confusion(truth, learned.validation_logits.argmax(axis=1), n_labels=len(lesson.labels))
    found = {**learned.log["validation"], "categories": per_label(counts, lesson.labels)}
    told: dict[str, Json] = plain(found)
    return told


def _card(artifact: Artifact, learned: Learned) -> str:
    log, description = learned.log, learned.parts.description
    front = {
        "library_name": "model-router",
        "pipeline_tag": "text-classification",
        "tags": ["llm-router"],
        "predictor": "sequence",
        "models": list(artifact.model_ids),
    }
    found = log["validation"]
    categories = "".join(
        f"| {escaped(label)} | {escaped(artifact.model_ids[column])} |\n"
        for label, column in zip(description.labels, description.columns, strict=True)
    )
    return (
        f"---\n{yaml_lines(front)}---\n\n# Category router\n\n"
        f"Tells {len(description.labels)} categories of requests apart by their text; "
        f"`{escaped(description.base)}`, fine-tuned on {log['rows']['train']} rows "
        f"({log['parameters']:,} parameters, epoch {log['best_epoch']} of "
        f"{len(log['epochs'])} was best).\n\n"
        f"| category | model |\n|---|---|\n{categories}\n"
        f"On {log['rows']['validation']} validation rows: accuracy {found['accuracy']:.3f}, "
        f"macro-F1 {found['macro_f1']:.3f}. The best epoch and the temperature were chosen on "
        "these rows, so that they flatter a little; `--mode evaluate` measures on others.\n\n"
        "Requests of no category are given to one all the same: set a confidence threshold. "
        "Pictures are not looked at.\n"
    )
