"""What each model's threshold does: quality, cost and traffic while one of them moves.

The others stay where they are, and the choice is the policy's own (``cheapest_qualified``), so that
what is shown is what a config with these thresholds would serve. It is measured on the records
given: thresholds that are read off here were chosen with the answers known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router_runtime.config import CheapestQualifiedConfig
from router_runtime.policy import build_policy
from router_runtime.types import F64
from router_training.metrics import Outcome, actual_cost, outcome
from router_training.served import Served

STEPS = 51
"""Thresholds that are tried per model, from 0 to 1."""


@dataclass(frozen=True, eq=False)
class ThresholdSweep:
    """One threshold moved at a time.

    Parameters
    ----------
    model_ids : tuple of str
    cost_unit : str
    thresholds : mapping of model to float
        Where they stand.
    now : Outcome
        What they achieve there.
    grid : ndarray of shape (n_steps,), float64
        Where each is moved to, from 0 to 1.
    quality, cost, share : ndarray of shape (n_models, n_steps), float64
        Mean score and mean cost of a call, and the share of the queries that go to the model, with
        its threshold at ``grid``; NaN where nothing that was chosen is scored.
    """

    model_ids: tuple[str, ...]
    cost_unit: str
    thresholds: Mapping[str, float]
    now: Outcome
    grid: F64
    quality: F64
    cost: F64
    share: F64


def sweep_thresholds(
    served: Served, thresholds: Mapping[str, float], *, steps: int = STEPS
) -> ThresholdSweep:
    """Move every model's threshold from 0 to 1, one at a time.

    Parameters
    ----------
    served : Served
        A router on scored records; its own policy is not used.
    thresholds : mapping of model to float
        Where the others stand meanwhile; a model that is not named always qualifies.
    steps : int
        Values from 0 to 1 that are tried.

    Raises
    ------
    ConfigError
        A threshold is out of range, or of a model that the router does not know.
    """
    known, ids = served.known, served.router.model_ids
    P, expected, eligible = known["P"], known["expected_cost"], known["eligible"]
    Y = known["labels"].Y
    cost = actual_cost(known["labels"], expected, cost_unit=known["cost_unit"])
    grid = np.linspace(0.0, 1.0, steps)

    def chosen(moved: Mapping[str, float]) -> tuple[Outcome, F64]:
        config = CheapestQualifiedConfig(thresholds={**thresholds, **moved})
        columns = build_policy(config, model_ids=ids).rank(P, expected, eligible)[:, 0]
        counts = np.bincount(columns[columns >= 0], minlength=len(ids))
        return outcome(columns, Y, cost), counts / max(len(columns), 1)

    moved = [[chosen({model: float(value)}) for value in grid] for model in ids]
    return ThresholdSweep(
        model_ids=ids,
        cost_unit=known["cost_unit"],
        thresholds={model: float(thresholds.get(model, 0.0)) for model in ids},
        now=chosen({})[0],
        grid=grid,
        quality=np.array([[found.quality for found, _ in row] for row in moved]),
        cost=np.array([[found.cost for found, _ in row] for row in moved]),
        share=np.array([[to[j] for _, to in row] for j, row in enumerate(moved)]),
    )
