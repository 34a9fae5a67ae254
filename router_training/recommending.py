"""What a run recommends: its policy with a fallback, and honest points for other wanted qualities.

All of it is chosen on calibration rows (the best model alone also on training rows), none on test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router_runtime.config import (
    FallbackConfig,
    HighestProbabilityConfig,
    PolicyConfig,
    UtilityConfig,
)
from router_runtime.errors import DataError
from router_runtime.policy_set import RECOMMENDED
from router_runtime.types import F64, Bool
from router_training.config import NoveltyConfig
from router_training.evaluate import OperatingPoint
from router_training.labels import LabelMatrix
from router_training.metrics import actual_cost, best_single_model
from router_training.tune import TuneResult, tune_utility

HONEST_TARGETS = (0.90, 0.95, 0.98, 1.00)
"""Shares of the best single model's quality for which a report shows an honest point."""


def recommended_policy(tuned: TuneResult | None, fallback: FallbackConfig | None) -> PolicyConfig:
    """Return the tuned policy, or the highest probability where no cost is known."""
    policy = HighestProbabilityConfig() if tuned is None else tuned.recommended
    return policy.model_copy(update={"fallback": fallback})


def novelty_fallback(
    config: NoveltyConfig, *, default_model: Callable[[], str]
) -> FallbackConfig | None:
    """Return who takes novel queries: the configured model, else the default one; None if off."""
    if config.fallback == "off":
        return None
    model = config.fallback.model
    return FallbackConfig(
        model=default_model() if model is None else model,
        novelty_above=config.fallback.novelty_above,
    )


def best_alone(labels: LabelMatrix, expected_cost: F64, eligible: Bool, *, cost_unit: str) -> str:
    """Return the model that is best alone.

    Raises
    ------
    DataError
        No row has a scored eligible model.
    """
    cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
    best = best_single_model(labels.Y, cost, eligible)
    if best is None:
        raise DataError("No training row has a scored eligible model; nothing can be learned.")
    return labels.model_ids[best]


def operating_points(
    recommended: PolicyConfig, rows: Mapping[str, Any] | None
) -> tuple[OperatingPoint, ...]:
    """Return the recommended policy, then lambdas for other wanted qualities.

    Parameters
    ----------
    recommended : PolicyConfig
    rows : mapping, optional
        What ``tune.tune_utility`` wants to know of the calibration rows; None where no cost is
        known, and there are no lambdas then.
    """
    first = OperatingPoint(RECOMMENDED, recommended)
    if rows is None:
        return (first,)
    fallback = recommended.model_dump().get("fallback")
    found = tune_utility(**rows, targets=HONEST_TARGETS)
    configs = (UtilityConfig(**(t.config.model_dump() | {"fallback": fallback})) for t in found)
    named = zip(HONEST_TARGETS, configs, strict=True)
    return first, *(OperatingPoint(f"{100 * t:.0f} %", config) for t, config in named)
