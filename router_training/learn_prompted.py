"""A ``prompted`` predictor from evaluation records: nothing is fitted but base rates."""

from __future__ import annotations

from collections.abc import Sequence

from router_runtime.errors import ConfigError
from router_runtime.prediction.prompted import PromptedConfig, PromptedParts
from router_training.learners import Task, Taught, base_rates


def learn_prompted(task: Task) -> Taught:
    """Return the parts; what the target says is calibrated on records by the pipeline.

    Raises
    ------
    ConfigError
        The described models are not those of the records.
    """
    config = task.config.predictor
    if not isinstance(config, PromptedConfig):
        raise ConfigError("The run's predictor is not of kind 'prompted'.")
    check_described(config, task.train.model_ids)
    rates = base_rates(task.train.labels.Y)
    parts = PromptedParts.of(config, base_rates=rates, text=task.config.features.text)
    return Taught(parts, {"rows": {"train": len(task.train)}})


def check_described(config: PromptedConfig, model_ids: Sequence[str]) -> None:
    """Refuse descriptions of other models than these.

    Raises
    ------
    ConfigError
        Naming the first model without a description, or the first description without a model.
    """
    described = config.descriptions
    for model in model_ids:
        if model not in described:
            raise ConfigError(f"predictor.descriptions lacks model '{model}'. Describe it.")
    for model in described:
        if model not in model_ids:
            raise ConfigError(
                f"predictor.descriptions has '{model}', which has no scores "
                f"(scored: {', '.join(model_ids)}). Correct or remove it."
            )
