"""An ``adapter`` predictor from evaluation records: the names are the models'."""

from __future__ import annotations

from collections.abc import Sequence

from router_runtime.errors import ConfigError
from router_runtime.prediction.adapter import AdapterPrompt, system_prompt
from router_training.adapter.learner import learn, load_own_base
from router_training.adapter.lessons import Lesson, Requests
from router_training.learners import Task, Taught
from router_training.predictor_configs import AdapterConfig


def learn_adapter(task: Task) -> Taught:
    """Fine-tune on the training rows and stop by the validation rows.

    Where several models are good, an epoch teaches one of them, drawn by their scores; rows of
    which none is good teach nothing. Their number is in the log.

    Raises
    ------
    ConfigError, DataError, EncoderError
        As ``learner.learn``.
    """
    config = task.config.predictor
    if not isinstance(config, AdapterConfig):
        raise ConfigError("The run's predictor is not of kind 'adapter'.")
    base = load_own_base(config, task.config.encoder)
    prompt = prompt_of(config, task.train.model_ids, sees_pictures=base.sees_pictures)
    lesson = Lesson(
        labels=task.train.model_ids,
        prompt=prompt,
        train=Requests.of(task.train, prompt),
        validation=Requests.of(task.validation, prompt),
        text=task.config.features.text,
    )
    learned = learn(
        lesson,
        config,
        base=base,
        seed=task.config.seed,
        checkpoints=task.checkpoints,
        progress=task.progress,
    )
    return Taught(learned.parts, learned.log)


def prompt_of(config: AdapterConfig, names: Sequence[str], *, sees_pictures: bool) -> AdapterPrompt:
    """Return how requests are put where no conversation says it."""
    asked = (
        {}
        if config.question is None
        else dict.fromkeys(("question", "text_question"), config.question)
    )
    return AdapterPrompt(
        system=system_prompt(names) if config.system is None else config.system,
        shows="both" if sees_pictures else "request",
        **asked,
    )
