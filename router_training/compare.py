"""Several routers on the same scored queries, each with its distance from the first.

All are billed alike: a call costs what was recorded, else what the first router expects of it, so
that nobody wins by a kinder estimate. What they choose rests on their own expectations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from router_runtime.errors import DataError
from router_runtime.policy import Policy
from router_runtime.types import F64, Bool, Int, Json
from router_training import curves
from router_training.bootstrap import (
    Resamples,
    aiq_difference,
    divided,
    mean_difference,
    probability_contrast,
)
from router_training.evaluation_report import Interval
from router_training.footprint import Footprint
from router_training.labels import LabelMatrix
from router_training.metrics import (
    actual_cost,
    best_single_model,
    outcome,
    probability_metrics,
    ratio,
    single_model,
)
from router_training.trade_off import Case, cost_range
from router_training.versioned import plain

NAN = float("nan")

SCHEMA_VERSION = 1
"""Raised when a field of ``Comparison.to_json`` changes its meaning or goes away."""


@dataclass(frozen=True, eq=False)
class Contestant:
    """One router and what it makes of the queries.

    Parameters
    ----------
    name : str
    model_ids : tuple of str
        Its columns; all contestants know the same models, in any order.
    P, expected_cost : ndarray of shape (n_queries, n_models), float64
    eligible : ndarray of shape (n_queries, n_models), bool
    policy : Policy
        Bound to these columns.
    labels : LabelMatrix
        Of these columns.
    cost_unit : str
    novelty : ndarray of shape (n_queries,), float64, or None
    footprint : Footprint or None
        What it takes; None where nobody asked.
    """

    name: str
    model_ids: tuple[str, ...]
    P: F64
    expected_cost: F64
    eligible: Bool
    policy: Policy
    labels: LabelMatrix
    cost_unit: str
    novelty: F64 | None = None
    footprint: Footprint | None = None


@dataclass(frozen=True)
class Difference:
    """A router minus the first one, on the same queries; cost per call, in its unit."""

    quality: Interval
    cost: Interval
    savings: Interval
    aiq: Interval
    auc: Interval
    brier: Interval
    ece: Interval


@dataclass(frozen=True)
class Standing:
    """What one router achieves.

    Parameters
    ----------
    name, policy : str
    quality, cost : float
        Mean score and cost of a call, over queries whose chosen model is scored.
    savings : float
        1 - cost / the best single model's.
    aiq, auc, brier, ece : float
        Over the shared range of costs; pooled over all scored cells.
    difference : Difference or None
        None for the first.
    footprint : Footprint or None
    """

    name: str
    policy: str
    quality: float
    cost: float
    savings: float
    aiq: float
    auc: float
    brier: float
    ece: float
    difference: Difference | None
    footprint: Footprint | None = None


@dataclass(frozen=True)
class Comparison:
    """Several routers on the same queries, in the order in which they were given.

    Parameters
    ----------
    n_queries : int
    cost_unit : str
    cost_range : (float, float)
        Bounds of every ``aiq``: mean costs of the cheapest and the dearest single model.
    best_single : str
    best_single_quality, best_single_cost : float
    standings : tuple of Standing
    machine : str
        What decisions were timed on; empty where none were.
    """

    n_queries: int
    cost_unit: str
    cost_range: tuple[float, float]
    best_single: str
    best_single_quality: float
    best_single_cost: float
    standings: tuple[Standing, ...]
    machine: str = ""

    def to_json(self) -> Json:
        """Return plain values: NaN as None, infinity as ``"inf"``."""
        return {"schema_version": SCHEMA_VERSION, **plain(asdict(self))}


def compare(
    contestants: Sequence[Contestant],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    n_resamples: int = 1000,
    machine: str = "",
) -> Comparison:
    """Compare routers on the same scored queries.

    Parameters
    ----------
    contestants : sequence of Contestant
        At least one, all of the same queries in the same order.
    groups : sequence of str, optional
        Queries of one group are resampled together.
    seed, n_resamples : int
        Of the bootstrap.
    machine : str
        What the contestants' decisions were timed on.

    Raises
    ------
    DataError
        Models, scores or units of cost differ, or nothing is scored.
    """
    first = contestants[0]
    Y, expected = first.labels.Y, first.expected_cost
    cost = actual_cost(first.labels, expected, cost_unit=first.cost_unit)
    best = best_single_model(Y, cost, first.eligible)
    if best is None:
        raise DataError("No query has a scored eligible model; there is nothing to compare.")
    draws = Resamples.of_groups(groups, len(Y), seed=seed, n_resamples=n_resamples)
    entrants = [_entrant(one, first, cost, draws) for one in contestants]
    alone, singles = single_model(best, first.eligible), entrants[0].case.alternatives()
    reference = outcome(alone, Y, cost)
    bounds = cost_range(entrants[0].case.points(singles))

    def standing(entrant: _Entrant) -> Standing:
        achieved = outcome(entrant.chosen, Y, cost)
        pooled = probability_metrics(entrant.case.P, Y)
        return Standing(
            name=entrant.name,
            policy=entrant.policy,
            quality=achieved.quality,
            cost=achieved.cost,
            savings=1 - ratio(achieved.cost, reference.cost),
            aiq=NAN
            if entrant.sweep is None
            else curves.aiq(entrant.case.points(entrant.sweep), cost_range=bounds),
            auc=pooled.auc,
            brier=pooled.brier,
            ece=pooled.ece,
            difference=None
            if entrant is entrants[0]
            else _difference(entrant, entrants[0], singles=singles, alone=alone),
            footprint=entrant.footprint,
        )

    return Comparison(
        n_queries=len(Y),
        cost_unit=first.cost_unit,
        cost_range=bounds,
        best_single=first.model_ids[best],
        best_single_quality=reference.quality,
        best_single_cost=reference.cost,
        standings=tuple(standing(entrant) for entrant in entrants),
        machine=machine,
    )


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A contestant in the column order of the first: its case, choices and sweep of lambda."""

    name: str
    policy: str
    case: Case
    chosen: Int
    sweep: Int | None
    footprint: Footprint | None


def _entrant(one: Contestant, first: Contestant, cost: F64, draws: Resamples) -> _Entrant:
    """Return a contestant in the column order of the first.

    Raises
    ------
    DataError
        Models, scores or units of cost differ.
    """
    if set(one.model_ids) != set(first.model_ids):
        raise DataError(
            f"'{one.name}' chooses among {', '.join(one.model_ids)}, '{first.name}' among "
            f"{', '.join(first.model_ids)}. Compare routers of the same models."
        )
    if one.cost_unit != first.cost_unit:
        raise DataError(
            f"Costs of '{one.name}' are in unit '{one.cost_unit}', those of '{first.name}' in "
            f"'{first.cost_unit}'. Give both prices, or both relative costs."
        )
    order = [one.model_ids.index(model) for model in first.model_ids]
    Y = one.labels.Y[:, order]
    if not np.array_equal(Y, first.labels.Y, equal_nan=True):
        raise DataError(
            f"The scores of '{one.name}' are not those of '{first.name}'. Compare on one file."
        )
    case = Case(
        P=one.P[:, order],
        Y=Y,
        expected_cost=one.expected_cost[:, order],
        cost=cost,
        eligible=one.eligible[:, order],
        model_ids=first.model_ids,
        resamples=draws,
    )
    # The policy is bound to its own columns.
    own = one.policy.rank(one.P, one.expected_cost, one.eligible, novelty=one.novelty)[:, 0]
    chosen = np.where(own < 0, -1, np.argsort(order)[own])
    sweep = case.swept() if case.priced else None
    return _Entrant(one.name, one.policy.name, case, chosen, sweep, one.footprint)


def _difference(one: _Entrant, first: _Entrant, *, singles: Int, alone: Int) -> Difference:
    case, draws = one.case, one.case.resamples
    (quality, spent), (quality_first, spent_first) = map(case.achieved, (one.chosen, first.chosen))
    quality_best, spent_best = case.achieved(alone)
    both = ~np.isnan(quality) & ~np.isnan(quality_first)
    three = both & ~np.isnan(quality_best)
    saved = [np.where(three, values, 0.0) for values in (spent_first - spent, spent_best)]
    measures = probability_contrast(case.P, first.case.P, case.Y, draws)
    return Difference(
        quality=mean_difference(quality, quality_first, draws),
        cost=mean_difference(np.where(both, spent, NAN), spent_first, draws),
        savings=draws.measured(
            np.stack(saved, axis=1), lambda sums: divided(sums[:, 0], sums[:, 1])
        ),
        aiq=Interval(NAN, NAN, NAN)
        if one.sweep is None or first.sweep is None
        else aiq_difference(
            one.sweep, first.sweep, singles, Y=case.Y, cost=case.cost, resamples=draws
        ),
        auc=measures.auc,
        brier=measures.brier,
        ece=measures.ece,
    )
