"""``fit-adapter``: from classification conversations to an artifact.

The names are the models. The temperature is fitted on the validation rows, so that the
probabilities are calibrated as they are; the artifact has no further map. Its recommended policy is
the highest probability.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from router_runtime import __version__
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.config import EncoderRuntime, HighestProbabilityConfig
from router_runtime.errors import ConfigError
from router_runtime.messages import TextRule
from router_runtime.prediction.adapter import AdapterPrompt
from router_runtime.prediction.calibration import Calibrator
from router_runtime.types import Json, Modality, Progress
from router_training.adapter.conversations import Conversations
from router_training.adapter.fine_tuning import EpochFolders
from router_training.adapter.learner import Learned, learn, load_own_base
from router_training.adapter.lessons import Lesson, Requests
from router_training.card import escaped
from router_training.fine_tuning.figures import confusion, per_label
from router_training.fine_tuning.recording import Recorder
from router_training.held_out import marks_of
from router_training.labels import Evaluations
from router_training.predictor_configs import AdapterConfig
from router_training.versioned import plain
from router_training.wording import yaml_lines

CHECKPOINTS: Final = ".checkpoints"
EPOCHS: Final = "epochs"
"""Subfolders of the output; loading an artifact does not look at subfolders."""


def fit_conversations(
    rows: Conversations,
    output: Path,
    config: AdapterConfig,
    *,
    seed: int,
    runtime: EncoderRuntime,
    progress: Progress,
    keep_epochs: int = 3,
    recorder: Recorder | None = None,
) -> tuple[Artifact, Learned]:
    """Fine-tune and save the artifact.

    Parameters
    ----------
    rows : Conversations
    output : Path
        The artifact's folder; an interrupted call with the same arguments continues there. Below
        it ``epochs/epoch-<n>`` are PEFT folders of the newest epochs.
    config : AdapterConfig
    seed : int
    runtime : EncoderRuntime
        Its ``device``.
    progress : callable
    keep_epochs : int
    recorder : Recorder, optional

    Raises
    ------
    RouterError
        As ``learner.learn`` and ``save_artifact``.
    """
    base = load_own_base(config, runtime)
    prompt = _readable(rows.prompt, sees_pictures=base.sees_pictures, base=base.name)
    lesson = Lesson(
        labels=rows.train.model_ids,
        prompt=prompt,
        train=Requests.of(rows.train, prompt),
        validation=Requests.of(rows.validation, prompt),
        text=TextRule(),
    )
    learned = learn(
        lesson,
        config,
        base=base,
        seed=seed,
        checkpoints=output / CHECKPOINTS,
        progress=progress,
        recorder=recorder,
        epochs=EpochFolders(output / EPOCHS, keep_epochs),
    )
    artifact = _artifact(rows, lesson, learned, seed=seed)
    card = _card(artifact, learned)
    created_by = f"model-router {__version__} fit-adapter"
    return save_artifact(artifact, output, created_by=created_by, card=card), learned


def _artifact(rows: Conversations, lesson: Lesson, learned: Learned, *, seed: int) -> Artifact:
    models = rows.train.model_ids
    seen = {"both": tuple(Modality), "picture": (Modality.IMAGE,), "request": (Modality.TEXT,)}
    return Artifact(
        model_ids=models,
        parts=learned.parts,
        calibrator=Calibrator.identity(len(models)),
        scored_modalities=dict.fromkeys(models, tuple(Modality)),
        recommended_policy=HighestProbabilityConfig().model_dump(mode="json"),
        training={
            "data_sha256": rows.train.fingerprint,
            "validation_sha256": rows.validation.fingerprint,
            "validation_rows": "a tenth of the training file" if rows.divided else "a file",
            "looks_at": [str(modality) for modality in seen[lesson.prompt.shows]],
            "seen": marks_of(_joined(rows)),
            "seed": seed,
            "cost_unit": "unknown",
            "predictor": learned.log,
        },
        metrics={"validation": _figures(learned, lesson)},
    )


def _readable(prompt: AdapterPrompt, *, sees_pictures: bool, base: str) -> AdapterPrompt:
    if sees_pictures or prompt.shows == "request":
        return prompt
    raise ConfigError(
        f"The rows show pictures, and '{base}' reads text only. Take a vision-language base, or "
        "convert with --question request."
    )


def _joined(rows: Conversations) -> Evaluations:
    train, validation = rows.train, rows.validation
    Y = np.concatenate([train.labels.Y, validation.labels.Y])
    return replace(
        train,
        samples=train.samples + validation.samples,
        labels=type(train.labels).of_scores(train.model_ids, Y),
    )


def _figures(learned: Learned, lesson: Lesson) -> dict[str, Json]:
    counts = confusion(
        lesson.validation.shares.argmax(axis=1),
        learned.validation_scores.argmax(axis=1),
        n_labels=len(lesson.labels),
    )
    found = {
        **learned.log["validation"],
        "categories": per_label(counts, lesson.labels),
        "confusion": counts.tolist(),
    }
    told: dict[str, Json] = plain(found)
    return told


def _card(artifact: Artifact, learned: Learned) -> str:
    log, description = learned.log, learned.parts.description
    front = {
        "library_name": "model-router",
        "tags": ["llm-router", "lora"],
        "predictor": "adapter",
        "base_model": Path(description.base).name
        if Path(description.base).is_dir()
        else description.base,
        "models": list(artifact.model_ids),
    }
    found = log["validation"]
    looks = {"both": "pictures and text", "picture": "pictures alone", "request": "text alone"}
    return (
        f"---\n{yaml_lines(front)}---\n\n# Router adapter\n\n"
        f"A LoRA adapter (rank {description.adapter['r']}, {log['parameters']:,} parameters) on "
        f"`{escaped(str(front['base_model']))}`, trained on {log['rows']['train']} rows to name "
        f"the model that should answer (epoch {log['best_epoch']} of {len(log['epochs'])} was "
        f"best). It looks at {looks[description.prompt.shows]}.\n\n"
        f"Names: {', '.join(escaped(label) for label in description.labels)}.\n\n"
        f"On {log['rows']['validation']} validation rows: accuracy {found['accuracy']:.3f}, "
        f"macro-F1 {found['macro_f1']:.3f}. The best epoch and the temperature were chosen on "
        "these rows, so that they flatter a little.\n\n"
        "Probabilities are those of the names as whole answers, compared with each other: requests "
        "for none of them are given to one all the same. The base model is not in this folder; "
        "another than the one it was trained on is refused.\n"
    )
