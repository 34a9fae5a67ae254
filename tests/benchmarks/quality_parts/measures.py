"""What is measured of a system on the test rows of one table and seed.

Probabilities are judged pooled over all (query, model) cells, the AUC also as the mean over models.
A policy is judged by what it chooses: "honest" points are chosen by lambda, or by thresholds, that
were tuned on the calibration rows; points of the test curve are named so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from quality_parts.systems import Part, Predictions
from router_runtime.config import HighestProbabilityConfig, PolicyConfig
from router_runtime.policy import CheapestQualified, Policy, Utility, build_policy
from router_runtime.types import F64, Bool
from router_training.curves import aiq, cost_quality_curve, lambda_grid
from router_training.evaluate import OperatingPoint, evaluate
from router_training.evaluation_report import EvaluationReport
from router_training.metrics import mean
from router_training.tune import tune, tune_utility


@dataclass(frozen=True)
class Figure:
    """How a figure is called and shown.

    Parameters
    ----------
    title : str
    percent : bool
        Shown in percent (or percentage points) instead of as a number.
    """

    title: str
    percent: bool = False


FIGURES: dict[str, Figure] = {
    "auc": Figure("AUC"),
    "model_auc": Figure("AUC, mean of models"),
    "brier": Figure("Brier"),
    "log_loss": Figure("log loss"),
    "ece": Figure("ECE"),
    "aiq": Figure("AIQ"),
    "aiq_thresholds": Figure("AIQ, one absolute threshold"),
    "zero_aiq": Figure("AIQ, zero router"),
    "oracle_aiq": Figure("AIQ, oracle"),
    "aiq_gain": Figure("AIQ over zero router"),
    "gap_98": Figure("98 %: accuracy - best single", percent=True),
    "cost_98": Figure("98 %: cost / best single", percent=True),
    "served_gap": Figure("as served: accuracy - best single", percent=True),
    "served_cost": Figure("as served: cost / best single", percent=True),
    "gap_100": Figure("100 %: accuracy - best single", percent=True),
    "cost_100": Figure("100 %: cost / best single", percent=True),
    "lead": Figure("highest probability - best single", percent=True),
    "parity_cost": Figure("cost at parity, test hull", percent=True),
    "apgr": Figure("APGR"),
    "cpt50": Figure("CPT50", percent=True),
    "cpt80": Figure("CPT80", percent=True),
    "picture_auc": Figure("AUC over question only"),
    "best_single": Figure("best single accuracy", percent=True),
    "oracle": Figure("oracle accuracy", percent=True),
}
"""Figures in the order in which they are shown."""

GOALS = (0.98, 1.0)
"""Shares of the best single model's quality that the honest points are tuned to."""

_STEPS = 101  # absolute thresholds from 0 to 1


@dataclass(frozen=True, eq=False)
class Judged:
    """Calibration and test rows on which a system is measured."""

    calibration: Part
    test: Part

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The columns."""
        return self.test.labels.model_ids


def measure(rows: Judged, found: Predictions, *, thresholds: bool) -> dict[str, float]:
    """Return the figures of one system by the keys of ``FIGURES``; what is undefined is missing.

    Parameters
    ----------
    rows : Judged
    found : Predictions
        Of the same rows.
    thresholds : bool
        The honest points' policy has tuned absolute thresholds instead of lambda.
    """
    points = [
        OperatingPoint("lead", HighestProbabilityConfig()),
        *(
            OperatingPoint(f"gap_{100 * goal:.0f}", config)
            for goal, config in honest_policies(rows, found, thresholds=thresholds).items()
        ),
    ]
    if found.policy is not None:
        points.append(OperatingPoint("served_gap", _POLICY.validate_python(found.policy)))
    report = evaluate(
        P=found.P_test,
        labels=rows.test.labels,
        expected_cost=found.cost_test,
        policy=build_policy(points[0].policy, model_ids=rows.model_ids),
        model_ids=rows.model_ids,
        eligible=rows.test.eligible,
        novelty=found.novelty_test,
        groups=rows.test.groups,
        points=points,
        n_resamples=1,  # only estimates are used; see ``intervals``
    )
    figures = {
        "auc": report.pooled.auc,
        "model_auc": mean(np.array([model.metrics.auc for model in report.models])),
        "brier": report.pooled.brier,
        "log_loss": report.pooled.log_loss,
        "ece": report.pooled.ece,
        "best_single": report.strategy("best_single").outcome.quality,
        "oracle": report.strategy("oracle").outcome.quality,
    }
    for point in report.honest:
        figures[point.name] = point.gap.estimate
        if point.name != "lead":
            figures[point.name.replace("gap", "cost")] = point.cost_ratio.estimate
    return figures | _curve_figures(rows, found, report)


def honest_policies(
    rows: Judged, found: Predictions, *, thresholds: bool
) -> dict[float, PolicyConfig]:
    """Return per goal the policy that is tuned to it on the calibration rows."""
    given = {
        "P": found.P_calibration,
        "expected_cost": found.cost_calibration,
        "labels": rows.calibration.labels,
        "model_ids": rows.model_ids,
        "eligible": rows.calibration.eligible,
    }
    if thresholds:
        return {
            goal: tune(**given, target_quality=goal).cheapest_qualified.config for goal in GOALS
        }
    tuned = tune_utility(**given, targets=GOALS)
    return {goal: each.config for goal, each in zip(GOALS, tuned, strict=True)}


def selection_shares(rows: Judged, found: Predictions, *, thresholds: bool) -> dict[str, float]:
    """Return the share of the test rows per model at the honest point for 98 %."""
    config = honest_policies(rows, found, thresholds=thresholds)[GOALS[0]]
    policy = build_policy(config, model_ids=rows.model_ids)
    chosen = policy.rank(found.P_test, found.cost_test, rows.test.eligible)[:, 0]
    return {model: mean(chosen == j) for j, model in enumerate(rows.model_ids)}


def utilities(P: F64, cost: F64, eligible: Bool) -> list[Policy]:
    """Return the sweep of lambda whose hull is a system's cost-quality curve."""
    return [Utility(float(value)) for value in lambda_grid(P, cost, eligible)]


def _curve_figures(rows: Judged, found: Predictions, report: EvaluationReport) -> dict[str, float]:
    """Return what is read off the test curve."""
    if report.curves is None:
        raise ValueError("The benchmark needs a known cost for every model.")
    summary = report.summary
    bars = [CheapestQualified(np.full(len(rows.model_ids), t)) for t in np.linspace(0, 1, _STEPS)]
    by_bars = cost_quality_curve(
        found.P_test, found.cost_test, rows.test.labels, bars, eligible=rows.test.eligible
    )
    figures = {
        "aiq": summary.aiq["router"],
        "aiq_thresholds": aiq(by_bars, cost_range=report.curves.cost_range),
        "zero_aiq": summary.aiq["zero_router"],
        "oracle_aiq": summary.aiq["oracle"],
        "aiq_gain": summary.aiq["router"] - summary.aiq["zero_router"],
        "parity_cost": summary.qnc,
    }
    if summary.two_models is not None:
        figures |= {
            "apgr": summary.two_models.apgr.estimate,
            "cpt50": summary.two_models.cpt50,
            "cpt80": summary.two_models.cpt80,
        }
    return figures


_POLICY: TypeAdapter[PolicyConfig] = TypeAdapter(PolicyConfig)
