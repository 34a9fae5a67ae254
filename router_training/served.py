"""A router as it serves, measured on evaluation records.

Its predictor, costs, eligibility and policy are used as they are: what is evaluated is what
``ModelRouter.decide_batch`` does.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from router_runtime.candidates import price_table_of
from router_runtime.config import validate_policy
from router_runtime.errors import DataError
from router_runtime.model_router import ModelRouter
from router_training.costing import fill_costs
from router_training.evaluate import OperatingPoint, Regret, evaluate, worst_regrets
from router_training.evaluation_report import EvaluationReport
from router_training.importers import import_file
from router_training.labels import Evaluations, OnBadRow
from router_training.slices import slice_labels


def read_records(
    router: ModelRouter,
    path: str | Path,
    *,
    image_root: Path | None = None,
    on_bad_row: OnBadRow = "error",
) -> Evaluations:
    """Read records as the router reads requests, with its models as columns.

    Rows that are marked as contaminated are left out unless the router was trained on them.

    Raises
    ------
    DataError
        Naming file, row and field.
    """
    return import_file(
        path,
        image_root=image_root,
        on_bad_row=on_bad_row,
        drop_contaminated=router.artifact.training.get("drop_contaminated", True),
        rule=router.artifact.text,
        limits=router.limits,
        model_ids=router.model_ids,
    )


@dataclass(frozen=True, eq=False)
class Served:
    """A router on records; what it says of them is computed once, when first asked for.

    Parameters
    ----------
    router : ModelRouter
    data : Evaluations
        Labels in the router's column order.
    policy : str, optional
        Name of the policy; the router's default otherwise.
    """

    router: ModelRouter
    data: Evaluations
    policy: str | None = None

    def report(self, *, seed: int = 0) -> EvaluationReport:
        """Evaluate; ``seed`` is the bootstrap's.

        Raises
        ------
        DataError
            If nothing is scored, or the columns differ.
        """
        known, data = self.known, self.data
        return evaluate(
            **known,
            groups=data.groups,
            slices=slice_labels(data.queries, data.datasets, known["novelty"]),
            points=_points_of(self.router, known["policy"].name),
            seed=seed,
        )

    def regrets(self, limit: int = 20) -> tuple[Regret, ...]:
        """Return the records on which the router lost most; see ``worst_regrets``."""
        return worst_regrets(**self.known, limit=limit)

    @cached_property
    def known(self) -> dict[str, Any]:
        """What ``evaluate``, ``worst_regrets`` and ``Contestant`` all want to know."""
        router, queries = self.router, self.data.queries
        prices = price_table_of(router.config.candidates, model_ids=router.model_ids)
        found = router.predict(queries)
        return {
            "P": found.P,
            "novelty": found.novelty,
            "labels": fill_costs(self.data.labels, queries, prices=prices),
            "expected_cost": router.expected_cost(queries),
            "policy": router.policy(self.policy),
            "eligible": router.eligible(queries).mask,
            "model_ids": router.model_ids,
            "cost_unit": router.cost_unit,
        }


def _points_of(router: ModelRouter, served: str) -> tuple[OperatingPoint, ...]:
    """Return the served policy, then those that the artifact's own report tells, in like units."""
    points = {served: router.policy_config(served)}
    training, metrics = router.artifact.training, router.artifact.metrics
    if training.get("cost_unit") == router.cost_unit:
        with suppress(DataError):  # an artifact without a report, or with one of another version
            for point in EvaluationReport.from_json(metrics.get("test")).honest:
                config = validate_policy(point.policy, source=f"The artifact's '{point.name}'")
                points.setdefault(point.name, config)
    return tuple(OperatingPoint(name, config) for name, config in points.items())
