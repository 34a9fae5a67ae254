"""A ``sequence`` predictor from evaluation records: the labels are the models."""

from __future__ import annotations

from router_runtime.errors import ConfigError
from router_training.learners import Task, Taught
from router_training.predictor_configs import SequenceConfig
from router_training.sequence.learner import Lesson, learn
from router_training.sequence.targets import Texts


def learn_sequence(task: Task) -> Taught:
    """Fine-tune on the training rows and stop by the validation rows.

    Raises
    ------
    ConfigError, DataError, EncoderError
        As ``learner.learn``.
    """
    config = task.config.predictor
    if not isinstance(config, SequenceConfig):
        raise ConfigError("The run's predictor is not of kind 'sequence'.")
    models = task.train.model_ids
    lesson = Lesson(
        labels=models,
        columns=tuple(range(len(models))),
        train=Texts.of(task.train.queries, task.train.labels.Y),
        validation=Texts.of(task.validation.queries, task.validation.labels.Y),
        text=task.config.features.text,
    )
    learned = learn(
        lesson,
        config,
        seed=task.config.seed,
        runtime=task.config.encoder,
        checkpoints=task.checkpoints,
        progress=task.progress,
    )
    return Taught(learned.parts, learned.log)
