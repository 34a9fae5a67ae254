"""What a router's probabilities buy at every price: the curves of a report, and their summary.

The curve is a sweep of ``Utility`` over these very rows, so that a point on it was chosen with the
answers known; the operating point is the evaluated policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router_runtime.policy import Utility
from router_runtime.types import F64, Bool, Int
from router_training import curves
from router_training.bootstrap import Resamples, aiq_difference, apgr_interval
from router_training.evaluation_report import Curves, Interval, Point, Strategy, Summary, TwoModels
from router_training.metrics import mean, pick, single_model

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Case:
    """Scored queries, what a router knows of them, and the draws to judge it by.

    Parameters
    ----------
    P : ndarray of shape (n_queries, n_models), float64 in [0, 1]
    Y : ndarray of shape (n_queries, n_models), float64 in [0, 1]
        Scores, NaN = unscored.
    expected_cost, cost : ndarray of shape (n_queries, n_models), float64
        What the policy knows, and what is billed; NaN = unknown.
    eligible : ndarray of shape (n_queries, n_models), bool
    model_ids : tuple of str
    resamples : Resamples
    """

    P: F64
    Y: F64
    expected_cost: F64
    cost: F64
    eligible: Bool
    model_ids: tuple[str, ...]
    resamples: Resamples

    @property
    def priced(self) -> bool:
        """Whether every eligible model has an expected cost, so that something can be weighed."""
        return not bool(np.isnan(self.expected_cost[self.eligible]).any())

    @property
    def known(self) -> Bool:
        """Eligible and scored cells (n_queries, n_models)."""
        return self.eligible & ~np.isnan(self.Y)

    def achieved(self, columns: Int) -> tuple[F64, F64]:
        """Return quality and cost (n_queries,) of a choice, NaN where it is not scored."""
        return pick(columns, self.Y), pick(columns, self.cost)

    def swept(self, *, perfect: bool = False) -> Int:
        """Return the choices (n_lambdas, n_queries) of a sweep of ``Utility``.

        Parameters
        ----------
        perfect : bool
            With the scores as probabilities and the bill as expectation: the oracle's sweep.
        """
        P = np.where(self.known, self.Y, 0.0) if perfect else self.P
        cost = self.cost if perfect else self.expected_cost
        eligible = self.known if perfect else self.eligible
        grid = curves.lambda_grid(P, cost, eligible)
        return curves.choices(P, cost, eligible, [Utility(float(value)) for value in grid])

    def singles(self) -> Int:
        """Return the choices (n_models, n_queries) of every model alone."""
        columns = range(len(self.model_ids))
        return np.array([single_model(column, self.eligible) for column in columns])

    def alternatives(self) -> Int:
        """Return the choices of the models that serve as many queries as any does.

        One that sees no pictures is no alternative to a router that does: measured on its texts
        alone, it would put the zero router above all that can serve.
        """
        return alternatives(self.eligible)

    def points(self, choices: Int) -> F64:
        """Return (n_choices, 2) mean cost and quality."""
        return curves.outcome_points(choices, self.Y, self.cost)


def alternatives(eligible: Bool) -> Int:
    """Return the choices (n_alternatives, n_queries) of ``Case.alternatives``."""
    served = eligible.sum(axis=0)
    columns = np.flatnonzero(served == served.max()).tolist()
    return np.array([single_model(column, eligible) for column in columns])


def cost_range(singles: F64) -> tuple[float, float]:
    """Return the least and greatest mean cost of single models (n_models, 2); NaN if unknown."""
    known = singles[~np.isnan(singles[:, 0]), 0]
    return (float(known.min()), float(known.max())) if len(known) else (NAN, NAN)


def trade_off(
    case: Case, chosen: Int, *, router: Strategy, best: Strategy, oracle: Strategy, random: Strategy
) -> tuple[Curves | None, Summary]:
    """Draw the curves of a router and sum them up.

    Parameters
    ----------
    case : Case
    chosen : ndarray of shape (n_queries,), int64
        What the evaluated policy chooses.
    router, best, oracle, random : Strategy
        What it achieves, and the references.

    Returns
    -------
    curves : Curves or None
        None where costs are unknown.
    summary : Summary
    """
    two = _two_models(case, chosen) if len(case.model_ids) == 2 else None
    part = curves.headroom(router.gap.estimate, best_single=0.0, oracle=oracle.gap.estimate)
    alone = case.alternatives()
    alternatives = case.points(alone)
    bounds = cost_range(alternatives)
    if not case.priced or np.isnan(bounds[0]):
        return None, _unpriced(part, two)
    sweep = case.swept()
    swept = case.points(sweep)
    zero = curves.upper_hull(alternatives)
    reference, operating = best.outcome, router.outcome
    qnc = curves.qnc(swept, quality=reference.quality, cost=reference.cost)
    cheapest = alternatives[np.nanargmin(alternatives[:, 0])]
    coin = np.array([cheapest, (reference.cost, reference.quality)])
    summary = Summary(
        aiq={
            "router": curves.aiq(swept, cost_range=bounds),
            "zero_router": curves.aiq(alternatives, cost_range=bounds),
            "oracle": curves.aiq(case.points(case.swept(perfect=True)), cost_range=bounds),
        },
        aiq_gain=aiq_difference(
            sweep, alone, alone, Y=case.Y, cost=case.cost, resamples=case.resamples
        ),
        deferral_area={
            name: curves.deferral_area(points, cost_max=bounds[1])
            for name, points in (("router", swept), ("zero_router", zero), ("random", coin))
        },
        qnc=qnc,
        savings_at_parity=1 - qnc,
        headroom=part,
        rank_score=curves.rank_score(operating.quality, operating.cost, cost_range=bounds),
        two_models=two,
    )
    drawn = Curves(
        cost_range=bounds,
        router=_points(np.unique(swept[~np.isnan(swept).any(axis=1)], axis=0)),
        router_hull=_points(curves.upper_hull(swept)),
        zero_router=_points(zero),
        singles=tuple(
            Point(float(cost), float(quality), name)
            for (cost, quality), name in zip(
                case.points(case.singles()), case.model_ids, strict=True
            )
        ),
        oracle=_point(oracle),
        random=_point(random),
        operating=_point(router),
    )
    return drawn, summary


def _unpriced(headroom: float, two: TwoModels | None) -> Summary:
    return Summary(
        aiq=dict.fromkeys(("router", "zero_router", "oracle"), NAN),
        aiq_gain=Interval(NAN, NAN, NAN),
        deferral_area=dict.fromkeys(("router", "zero_router", "random"), NAN),
        qnc=NAN,
        savings_at_parity=NAN,
        headroom=headroom,
        rank_score=NAN,
        two_models=two,
    )


def _point(strategy: Strategy) -> Point:
    return Point(strategy.outcome.cost, strategy.outcome.quality, strategy.name)


def _points(points: F64) -> tuple[Point, ...]:
    return tuple(Point(float(cost), float(quality)) for cost, quality in points)


def _two_models(case: Case, chosen: Int) -> TwoModels | None:
    """Return RouteLLM's measures over the queries that both models may serve and are scored on."""
    rows = np.flatnonzero(case.known.all(axis=1))
    if len(rows) == 0:
        return None
    Y, P = case.Y[rows], case.P[rows]
    strong = int(np.argmax(Y.mean(axis=0)))
    weak = 1 - strong
    preference = P[:, strong] - P[:, weak]
    curve = curves.recovery_curve(preference, Y[:, weak], Y[:, strong])
    return TwoModels(
        weak=case.model_ids[weak],
        strong=case.model_ids[strong],
        pgr=curves.pgr(
            mean(pick(chosen[rows], Y)), weak=mean(Y[:, weak]), strong=mean(Y[:, strong])
        ),
        apgr=apgr_interval(preference, Y[:, weak], Y[:, strong], case.resamples.take(rows)),
        cpt50=curves.cpt(curve, 0.5),
        cpt80=curves.cpt(curve, 0.8),
    )
