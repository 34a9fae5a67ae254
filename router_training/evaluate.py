"""What the router would have achieved on scored queries, beside every alternative to it.

The choices are made by ``Policy.rank``, the function that serves. So are the references: a single
model is the fixed choice, the cheapest is "everyone qualifies", and the oracle is the highest
probability of a predictor that knows the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from router_runtime.config import PolicyConfig
from router_runtime.errors import DataError
from router_runtime.policy import CheapestQualified, HighestProbability, Policy, build_policy
from router_runtime.types import F64, Bool, Int
from router_training.bootstrap import Resamples, contrasts
from router_training.evaluation_report import (
    EvaluationReport,
    HonestPoint,
    Interval,
    ModelReport,
    ReliabilityBin,
    Slice,
    Strategy,
)
from router_training.labels import LabelMatrix
from router_training.metrics import (
    Outcome,
    actual_cost,
    best_single_model,
    check_aligned,
    cost_forecast,
    histogram,
    mean,
    outcome,
    pick,
    probability_metrics,
    reliability_bins,
    single_model,
)
from router_training.slices import DATA_SET, slice_rows
from router_training.trade_off import Case, trade_off


@dataclass(frozen=True)
class OperatingPoint:
    """A policy whose numbers were chosen on other rows than those it is measured on.

    Parameters
    ----------
    name : str
        ``recommended``, or the wanted share of the best single model's quality, such as ``98 %``.
    policy : PolicyConfig
    """

    name: str
    policy: PolicyConfig


@dataclass(frozen=True)
class Regret:
    """A query on which another model would have scored higher than the chosen one.

    Parameters
    ----------
    row : int
        Place of the query among those given.
    regret : float
        The best eligible score minus the chosen model's, above 0.
    chosen, best : str
        The chosen model, and the cheapest of those with the best score.
    chosen_probability, best_probability : float
    chosen_expected_cost, best_expected_cost : float
        What the policy knew; NaN where unknown.
    chosen_cost, best_cost : float
        What the calls cost; NaN where unknown.
    novelty : float or None
    """

    row: int
    regret: float
    chosen: str
    best: str
    chosen_probability: float
    best_probability: float
    chosen_expected_cost: float
    best_expected_cost: float
    chosen_cost: float
    best_cost: float
    novelty: float | None


def evaluate(
    *,
    P: F64,
    labels: LabelMatrix,
    expected_cost: F64,
    policy: Policy,
    model_ids: Sequence[str],
    eligible: Bool | None = None,
    novelty: F64 | None = None,
    cost_unit: str = "usd",
    groups: Sequence[str] | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    points: Sequence[OperatingPoint] = (),
    seed: int = 0,
    n_resamples: int = 1000,
) -> EvaluationReport:
    """Measure a policy on scored queries.

    Parameters
    ----------
    P : ndarray of shape (n_queries, n_models)
        Calibrated probabilities.
    labels : LabelMatrix
        Scores and recorded dollars of the same queries and models; NaN = missing.
    expected_cost : ndarray of shape (n_queries, n_models)
        What the policy knows, in ``cost_unit``; also the actual cost where none was recorded.
    policy : Policy
    model_ids : sequence of str
        Columns of ``P``.
    eligible : ndarray of shape (n_queries, n_models), bool, optional
        All by default.
    novelty : ndarray of shape (n_queries,), float64 in [0, 1], optional
        For policies with a fallback.
    cost_unit : str
        Of ``expected_cost``. With ``relative``, recorded dollars are left aside.
    groups : sequence of str, optional
        Queries of one group (the same picture, the same prompt) are resampled together, since they
        are not independent; each query by itself by default.
    slices : mapping of kind to values, optional
        See ``slices.slice_labels``.
    points : sequence of OperatingPoint, optional
        Policies that were chosen on other rows than these, the evaluated one first.
    seed, n_resamples : int
        Of the bootstrap.

    Raises
    ------
    DataError
        Shapes, model ids or the number of groups disagree, or no query has a scored eligible model.
    """
    eligible = np.ones(P.shape, dtype=np.bool_) if eligible is None else eligible
    check_aligned(P, labels, expected_cost, eligible, model_ids=model_ids)
    draws = Resamples.of_groups(groups, len(labels), seed=seed, n_resamples=n_resamples)
    cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
    case = Case(P, labels.Y, expected_cost, cost, eligible, tuple(model_ids), draws)
    return _report(case, policy, novelty, labels, cost_unit, slices or {}, points)


def _report(
    case: Case,
    policy: Policy,
    novelty: F64 | None,
    labels: LabelMatrix,
    cost_unit: str,
    slices: Mapping[str, Sequence[str]],
    points: Sequence[OperatingPoint],
) -> EvaluationReport:
    best = best_single_model(case.Y, case.cost, case.eligible)
    if best is None:
        raise DataError("No query has a scored eligible model; there is nothing to evaluate.")
    ranking = policy.rank(case.P, case.expected_cost, case.eligible, novelty=novelty)
    chosen, reference = ranking[:, 0], single_model(best, case.eligible)
    strategies, router_cost = _strategies(case, chosen, reference, slices.get(DATA_SET))
    by_kind = {strategy.kind: strategy for strategy in strategies}
    curves, summary = trade_off(
        case,
        chosen,
        router=by_kind["router"],
        best=by_kind["best_single"],
        oracle=by_kind["oracle"],
        random=by_kind["random"],
    )
    scored = ~np.isnan(case.Y)
    recorded = np.full(case.Y.shape, np.nan) if cost_unit == "relative" else labels.cost_usd
    return EvaluationReport(
        policy=policy.name,
        cost_unit=cost_unit,
        n_queries=len(case.Y),
        n_scores=int(scored.sum()),
        recorded_cost_share=mean(~np.isnan(recorded[scored])),
        best_single=case.model_ids[best],
        strategies=strategies,
        models=tuple(
            _model_report(case, column, recorded, labels.seconds, chosen)
            for column in range(len(case.model_ids))
        ),
        pooled=probability_metrics(case.P, case.Y),
        reasons=_count_reasons(policy, case, ranking, novelty),
        quality_gap=by_kind["router"].gap,
        cost_ratio=router_cost,
        curves=curves,
        summary=summary,
        honest=_honest(case, points, reference, novelty),
        slices=_slices(case, slices, chosen, reference),
        reliability=_reliability(case.P[scored], case.Y[scored]),
    )


def worst_regrets(
    *,
    P: F64,
    labels: LabelMatrix,
    expected_cost: F64,
    policy: Policy,
    model_ids: Sequence[str],
    eligible: Bool | None = None,
    novelty: F64 | None = None,
    cost_unit: str = "usd",
    limit: int = 20,
) -> tuple[Regret, ...]:
    """Return the queries on which the policy lost most, for somebody to look at.

    They are no part of the report: a row leads to a prompt, and reports are shown around. Of equal
    regrets that comes first in which the router was surest of its choice.

    Parameters
    ----------
    P, labels, expected_cost, policy, model_ids, eligible, novelty, cost_unit
        As in ``evaluate``.
    limit : int
        At most so many.

    Raises
    ------
    DataError
        Shapes or model ids disagree.
    """
    eligible = np.ones(P.shape, dtype=np.bool_) if eligible is None else eligible
    check_aligned(P, labels, expected_cost, eligible, model_ids=model_ids)
    cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
    chosen = policy.rank(P, expected_cost, eligible, novelty=novelty)[:, 0]
    best = _oracle(labels.Y, cost, eligible)
    regret = pick(best, labels.Y) - pick(chosen, labels.Y)
    sure = pick(chosen, P)
    order = np.lexsort((-sure, -regret))
    rows = [int(row) for row in order if regret[row] > 0][:limit]  # NaN is not above 0 either
    return tuple(
        Regret(
            row=row,
            regret=float(regret[row]),
            chosen=model_ids[ours],
            best=model_ids[theirs],
            chosen_probability=float(P[row, ours]),
            best_probability=float(P[row, theirs]),
            chosen_expected_cost=float(expected_cost[row, ours]),
            best_expected_cost=float(expected_cost[row, theirs]),
            chosen_cost=float(cost[row, ours]),
            best_cost=float(cost[row, theirs]),
            novelty=None if novelty is None else float(novelty[row]),
        )
        for row, ours, theirs in ((row, int(chosen[row]), int(best[row])) for row in rows)
    )


# --------------------------------------------------------------------------- strategies


def _strategies(
    case: Case, chosen: Int, reference: Int, datasets: Sequence[str] | None
) -> tuple[tuple[Strategy, ...], Interval]:
    """Return every way to choose in reading order, and the router's cost over the reference's."""
    named: list[tuple[str, str, Int]] = [
        (name, "model", columns)
        for name, columns in zip(case.model_ids, case.singles(), strict=True)
    ]
    n_single = len(named)
    named += _references(case)
    if datasets is not None and len(datasets) == len(case.Y):
        named.append(("dataset_oracle", "dataset_oracle", _dataset_oracle(case, datasets)))
    named += [("best_single", "best_single", reference), ("router", "router", chosen)]
    achieved = [case.achieved(columns) for _, _, columns in named]
    random, spread = _random(case)
    found = contrasts([*achieved, spread], case.achieved(reference), case.resamples)
    strategies = [
        Strategy(name, kind, outcome(columns, case.Y, case.cost), contrast.gap, contrast.savings)
        for (name, kind, columns), contrast in zip(named, found, strict=False)
    ]
    strategies.insert(
        n_single, Strategy("random", "random", random, found[-1].gap, found[-1].savings)
    )
    return tuple(strategies), found[-2].cost_ratio


def _references(case: Case) -> list[tuple[str, str, Int]]:
    """Return name, kind and chosen columns of the cheapest (if costs are known) and the oracle."""
    oracle = ("oracle", "oracle", _oracle(case.Y, case.cost, case.eligible))
    if not case.priced:
        return [oracle]
    everyone = CheapestQualified(np.zeros(case.Y.shape[1]))
    # Ties go to the first: a reference knows neither the scores nor the router's probabilities.
    ranking = everyone.rank(np.zeros(case.Y.shape), case.expected_cost, case.eligible)
    return [("cheapest", "cheapest", ranking[:, 0]), oracle]


def _oracle(Y: F64, cost: F64, eligible: Bool) -> Int:
    """Return the cheapest of the best scored models of each query, -1 where none is scored."""
    known = eligible & ~np.isnan(Y)
    return HighestProbability().rank(np.where(known, Y, 0.0), cost, known)[:, 0]


def _dataset_oracle(case: Case, datasets: Sequence[str]) -> Int:
    """Return the choice of the model that is best alone on the query's data set, -1 = none.

    The oracle picks the luckiest of many random answers to every query; this one knows kinds of
    queries and nothing about single ones.
    """
    chosen = np.full(len(case.Y), -1, dtype=np.int64)
    names = np.asarray(datasets, dtype=object)
    for name in dict.fromkeys(datasets):
        rows = names == name
        best = best_single_model(case.Y[rows], case.cost[rows], case.eligible[rows])
        if best is not None:
            chosen[rows] = single_model(best, case.eligible[rows])
    return chosen


def _random(case: Case) -> tuple[Outcome, tuple[F64, F64]]:
    """Return the expectation of a uniform choice among each query's eligible, scored models."""
    weights = case.known.astype(np.float64)
    counts = weights.sum(axis=1)
    served = counts > 0
    weights[served] /= counts[served, None]
    # A weight of 0 must silence NaN, hence where=.
    quality, spent = (
        np.where(served, np.sum(values * weights, axis=1, where=weights > 0), np.nan)
        for values in (case.Y, case.cost)
    )
    result = Outcome(mean(quality[served]), mean(spent[served]), int(served.sum()))
    return result, (quality, spent)


# --------------------------------------------------------------------------- parts of the report


def _model_report(case: Case, column: int, recorded: F64, seconds: F64, chosen: Int) -> ModelReport:
    rows = chosen == column
    p, y = case.P[:, column], case.Y[:, column]
    scored = ~np.isnan(y)
    timed = seconds[~np.isnan(seconds[:, column]), column]
    mape, bias = cost_forecast(case.expected_cost[:, column], recorded[:, column])
    return ModelReport(
        model_id=case.model_ids[column],
        metrics=probability_metrics(p, y),
        reliability=_reliability(p[scored], y[scored]),
        histogram=histogram(p[scored]),
        share=mean(rows),
        quality_when_chosen=mean(y[rows & scored]),
        cost_mape=mape,
        cost_bias=bias,
        median_seconds=float(np.median(timed)) if len(timed) else float("nan"),
    )


def _reliability(p: F64, y: F64) -> tuple[ReliabilityBin, ...]:
    return tuple(
        ReliabilityBin(predicted, observed, int(n))
        for predicted, observed, n in reliability_bins(p, y).tolist()
    )


def _count_reasons(policy: Policy, case: Case, ranking: Int, novelty: F64 | None) -> dict[str, int]:
    rows = ranking[:, 0] >= 0
    found = policy.reasons(
        case.P[rows],
        case.expected_cost[rows],
        case.eligible[rows],
        ranking[rows],
        novelty=None if novelty is None else novelty[rows],
    )
    reasons = [str(reason) for reason in found]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _honest(
    case: Case, points: Sequence[OperatingPoint], reference: Int, novelty: F64 | None
) -> tuple[HonestPoint, ...]:
    choices = [
        build_policy(point.policy, model_ids=case.model_ids, name=point.name).rank(
            case.P, case.expected_cost, case.eligible, novelty=novelty
        )[:, 0]
        for point in points
    ]
    found = contrasts(
        [case.achieved(columns) for columns in choices], case.achieved(reference), case.resamples
    )
    return tuple(
        HonestPoint(
            name=point.name,
            policy=point.policy.model_dump(mode="json"),
            outcome=outcome(columns, case.Y, case.cost),
            gap=contrast.gap,
            cost_ratio=contrast.cost_ratio,
        )
        for point, columns, contrast in zip(points, choices, found, strict=True)
    )


def _slices(
    case: Case, labels: Mapping[str, Sequence[str]], chosen: Int, reference: Int
) -> tuple[Slice, ...]:
    for kind, values in labels.items():
        if len(values) != len(case.Y):
            raise DataError(f"Slice '{kind}' has {len(values)} values for {len(case.Y)} queries.")
    rows = slice_rows(labels)
    quality, spent = case.achieved(chosen)
    ours = [(np.where(mask, quality, np.nan), spent) for _, _, mask in rows]
    found = contrasts(ours, case.achieved(reference), case.resamples)
    best = pick(_oracle(case.Y, case.cost, case.eligible), case.Y)
    return tuple(
        Slice(
            by=kind,
            value=value,
            n=int(mask.sum()),
            outcome=outcome(chosen[mask], case.Y[mask], case.cost[mask]),
            best_single=outcome(reference[mask], case.Y[mask], case.cost[mask]),
            oracle_quality=mean(best[mask & ~np.isnan(best)]),
            gap=contrast.gap,
            cost_ratio=contrast.cost_ratio,
            metrics=probability_metrics(case.P[mask], case.Y[mask]),
        )
        for (kind, value, mask), contrast in zip(rows, found, strict=True)
    )
