"""A decision as the plain values that LLM Router v2 returned."""

from __future__ import annotations

from collections.abc import Mapping

from router_runtime.types import Json, RoutingDecision


def all_info(
    decision: RoutingDecision, *, thresholds: Mapping[str, float], has_images: bool
) -> dict[str, Json]:
    """Return v2's keys and, beside them, the fields of the decision.

    ``original_choice`` is the eligible model of the highest probability, and ``threshold_applied``
    whether another one was chosen.
    """
    original = max(decision.ranking, key=lambda model: decision.probabilities[model])
    return {
        "chosen_model": decision.model_id,
        "probabilities": dict(decision.probabilities),
        "original_choice": original,
        "threshold_applied": decision.model_id != original,
        "thresholds": dict(thresholds),
        "threshold_config": decision.policy,
        "has_images": has_images,
        "reason": str(decision.reason),
        "ranking": list(decision.ranking),
        "expected_cost": dict(decision.expected_cost),
        "cost_unit": decision.cost_unit,
        "ineligible": dict(decision.ineligible),
        "artifact_id": decision.artifact_id,
        "novelty": decision.novelty,
    }
