"""What the router would have achieved on scored queries, beside every alternative to it.

The choices are made by ``Policy.rank``, the function that serves. So are the references: a single
model is the fixed choice, the cheapest is "everyone qualifies", and the oracle is the highest
probability of a predictor that knows the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from router_runtime.errors import DataError
from router_runtime.policy import CheapestQualified, HighestProbability, Policy, Utility
from router_runtime.types import F64, Bool, Int, Json
from router_training.labels import LabelMatrix
from router_training.metrics import (
    Outcome,
    ProbabilityMetrics,
    actual_cost,
    aiq,
    best_single_model,
    check_aligned,
    cost_quality_curve,
    lambda_grid,
    mean,
    outcome,
    pick,
    probability_metrics,
    ratio,
    single_model,
    single_model_points,
)

SCHEMA_VERSION = 1
"""Raised when a field of ``EvaluationReport.to_json`` changes its meaning or goes away."""


@dataclass(frozen=True)
class Strategy:
    """One way to choose, and what it achieves.

    Parameters
    ----------
    name : str
        A model id, or ``random``, ``cheapest``, ``best_single``, ``oracle``, ``router``.
    kind : str
        ``model`` for the single models, else the same as ``name``.
    outcome : Outcome
        Over the queries whose chosen model is scored; other strategies may see other queries.
    gap, savings : float
        Quality minus the best single model's, and 1 - cost / the best single model's cost, both
        over the queries on which the two are scored, so that the comparison is of like with like.
    """

    name: str
    kind: str
    outcome: Outcome
    gap: float
    savings: float


@dataclass(frozen=True)
class ModelReport:
    """One candidate: its probabilities' quality, how often it was chosen and with what success."""

    model_id: str
    metrics: ProbabilityMetrics
    share: float
    quality_when_chosen: float


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval of the paired bootstrap."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationReport:
    """All that ``evaluate`` found; ``report.render_table`` prints it.

    Parameters
    ----------
    policy : str
    cost_unit : str
        ``usd``, ``relative`` or ``unknown``.
    n_queries, n_scores : int
        Queries given, and scored (query, model) cells among them.
    recorded_cost_share : float
        Share of the scored cells whose cost is a recorded one and not an expectation.
    best_single : str
        The model that is best on its own on these very queries, which flatters it a little.
    strategies : tuple of Strategy
    models : tuple of ModelReport
    pooled : ProbabilityMetrics
        Over all scored cells of all models.
    reasons : mapping
        How often the policy gave which reason.
    quality_gap, cost_ratio : Interval
        Router minus best single model, and router's cost over the best single model's.
    aiq : mapping
        ``router`` (the hull of a sweep of ``Utility`` over the same probabilities), ``zero_router``
        (the hull of the single models) and ``oracle``, over the single models' range of costs.
        NaN where costs are unknown.
    """

    policy: str
    cost_unit: str
    n_queries: int
    n_scores: int
    recorded_cost_share: float
    best_single: str
    strategies: tuple[Strategy, ...]
    models: tuple[ModelReport, ...]
    pooled: ProbabilityMetrics
    reasons: dict[str, int]
    quality_gap: Interval
    cost_ratio: Interval
    aiq: dict[str, float]

    def strategy(self, kind: str) -> Strategy:
        """Return ``random``, ``cheapest``, ``best_single``, ``oracle`` or ``router``.

        Raises
        ------
        KeyError
            There is none: ``cheapest`` is left out where costs are unknown.
        """
        for strategy in self.strategies:
            if strategy.kind == kind:
                return strategy
        raise KeyError(kind)

    def to_json(self) -> Json:
        """Return plain values, NaN as None."""
        return {"schema_version": SCHEMA_VERSION, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, content: Json) -> EvaluationReport:
        """Read back what ``to_json`` gave.

        Raises
        ------
        DataError
            It has another schema version, or is no report.
        """
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"The report is not of schema version {SCHEMA_VERSION}; evaluate again."
            )
        fields = {key: value for key, value in content.items() if key != "schema_version"}
        try:
            return _REPORT.validate_python(_with_nan(fields))
        except ValidationError as error:
            raise DataError(f"The report is malformed: {error.errors()[0]['msg']}.") from error


_REPORT = TypeAdapter(EvaluationReport)


def evaluate(
    *,
    P: F64,
    labels: LabelMatrix,
    expected_cost: F64,
    policy: Policy,
    model_ids: Sequence[str],
    eligible: Bool | None = None,
    cost_unit: str = "usd",
    groups: Sequence[str] | None = None,
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
    cost_unit : str
        Of ``expected_cost``. With ``relative``, recorded dollars are left aside.
    groups : sequence of str, optional
        Queries of one group (the same picture, the same prompt) are resampled together, since they
        are not independent; each query by itself by default.
    seed, n_resamples : int
        Of the bootstrap.

    Raises
    ------
    DataError
        Shapes, model ids or the number of groups disagree, or no query has a scored eligible model.
    """
    n = len(labels)
    eligible = np.ones(P.shape, dtype=np.bool_) if eligible is None else eligible
    check_aligned(P, labels, expected_cost, eligible, model_ids=model_ids)
    if groups is not None and len(groups) != n:
        raise DataError(f"There are {len(groups)} groups for {n} queries; give one per query.")
    cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
    best = best_single_model(labels.Y, cost, eligible)
    if best is None:
        raise DataError("No query has a scored eligible model; there is nothing to evaluate.")

    ranking = policy.rank(P, expected_cost, eligible)
    chosen = ranking[:, 0]
    reference = single_model(best, eligible)
    singles = [(name, "model", single_model(j, eligible)) for j, name in enumerate(model_ids)]
    choices = [
        *_references(labels.Y, cost, expected_cost, eligible),
        ("best_single", "best_single", reference),
        ("router", "router", chosen),
    ]
    gap, cost_ratio = _bootstrap(
        [pick(columns, labels.Y) for columns in (chosen, reference)],
        [pick(columns, cost) for columns in (chosen, reference)],
        groups=groups,
        rng=np.random.default_rng(seed),
        n_resamples=n_resamples,
    )
    scored = ~np.isnan(labels.Y)
    return EvaluationReport(
        policy=policy.name,
        cost_unit=cost_unit,
        n_queries=n,
        n_scores=int(scored.sum()),
        recorded_cost_share=0.0
        if cost_unit == "relative"
        else mean(~np.isnan(labels.cost_usd[scored])),
        best_single=model_ids[best],
        strategies=(
            *(_strategy(*single, reference, labels.Y, cost) for single in singles),
            _random(labels.Y, cost, eligible, reference),
            *(_strategy(*choice, reference, labels.Y, cost) for choice in choices),
        ),
        models=tuple(
            _model_report(j, model_id, P, labels.Y, chosen) for j, model_id in enumerate(model_ids)
        ),
        pooled=probability_metrics(P, labels.Y),
        reasons=_count_reasons(policy, P, expected_cost, eligible, ranking),
        quality_gap=gap,
        cost_ratio=cost_ratio,
        aiq=_aiq(P, expected_cost, labels, eligible, cost_unit),
    )


def _references(
    Y: F64, cost: F64, expected_cost: F64, eligible: Bool
) -> list[tuple[str, str, Int]]:
    """Return name, kind and chosen columns of the cheapest (if costs are known) and the oracle."""
    known = eligible & ~np.isnan(Y)
    scores = np.where(known, Y, 0.0)
    oracle = HighestProbability().rank(scores, cost, known)[:, 0]
    if np.isnan(expected_cost[eligible]).any():
        return [("oracle", "oracle", oracle)]
    everyone = CheapestQualified(np.zeros(Y.shape[1]))
    # Ties go to the first: a reference knows neither the scores nor the router's probabilities.
    cheapest = everyone.rank(np.zeros(Y.shape), expected_cost, eligible)[:, 0]
    return [("cheapest", "cheapest", cheapest), ("oracle", "oracle", oracle)]


def _strategy(name: str, kind: str, columns: Int, reference: Int, Y: F64, cost: F64) -> Strategy:
    gap, savings = _compare(
        pick(columns, Y), pick(columns, cost), pick(reference, Y), pick(reference, cost)
    )
    return Strategy(name, kind, outcome(columns, Y, cost), gap, savings)


def _compare(quality: F64, cost: F64, quality_ref: F64, cost_ref: F64) -> tuple[float, float]:
    both = ~np.isnan(quality) & ~np.isnan(quality_ref)
    gap = mean(quality[both] - quality_ref[both])
    return gap, 1 - ratio(float(cost[both].sum()), float(cost_ref[both].sum()))


def _random(Y: F64, cost: F64, eligible: Bool, reference: Int) -> Strategy:
    """Return the expectation of a uniform choice among each query's eligible, scored models."""
    weights = (eligible & ~np.isnan(Y)).astype(np.float64)
    counts = weights.sum(axis=1)
    served = counts > 0
    weights[served] /= counts[served, None]
    # A weight of 0 must silence NaN, hence where=.
    quality = np.where(served, np.sum(Y * weights, axis=1, where=weights > 0), np.nan)
    spent = np.where(served, np.sum(cost * weights, axis=1, where=weights > 0), np.nan)
    gap, savings = _compare(quality, spent, pick(reference, Y), pick(reference, cost))
    result = Outcome(mean(quality[served]), mean(spent[served]), int(served.sum()))
    return Strategy("random", "random", result, gap, savings)


def _model_report(column: int, model_id: str, P: F64, Y: F64, chosen: Int) -> ModelReport:
    rows = chosen == column
    scores = Y[rows, column]
    return ModelReport(
        model_id=model_id,
        metrics=probability_metrics(P[:, column], Y[:, column]),
        share=mean(rows),
        quality_when_chosen=mean(scores[~np.isnan(scores)]),
    )


def _count_reasons(
    policy: Policy, P: F64, cost: F64, eligible: Bool, ranking: Int
) -> dict[str, int]:
    rows = ranking[:, 0] >= 0
    reasons = [str(r) for r in policy.reasons(P[rows], cost[rows], eligible[rows], ranking[rows])]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _bootstrap(
    qualities: Sequence[F64],
    costs: Sequence[F64],
    *,
    groups: Sequence[str] | None,
    rng: np.random.Generator,
    n_resamples: int,
) -> tuple[Interval, Interval]:
    """Resample queries (or groups of them) on which router and reference are both scored."""
    both = ~np.isnan(qualities[0]) & ~np.isnan(qualities[1])
    group = np.arange(len(both)) if groups is None else np.unique(groups, return_inverse=True)[1]
    columns = np.stack([both, qualities[0] - qualities[1], *costs], axis=1)[both]
    _, members = np.unique(group[both], return_inverse=True)
    sums = np.zeros((int(members.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(sums, members, columns)

    def measure(totals: F64) -> tuple[float, float]:
        count, difference, spent, reference = map(float, totals)
        return ratio(difference, count), ratio(spent, reference)

    draws = (rng.integers(0, len(sums), len(sums)) for _ in range(n_resamples if len(sums) else 0))
    resampled = np.array([measure(sums[draw].sum(axis=0)) for draw in draws]).reshape(-1, 2)
    estimates = measure(sums.sum(axis=0))
    gap, cost_ratio = (_interval(estimates[k], resampled[:, k]) for k in (0, 1))
    return gap, cost_ratio


def _interval(estimate: float, resampled: F64) -> Interval:
    resampled = resampled[~np.isnan(resampled)]
    if len(resampled) == 0:
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def _aiq(
    P: F64, expected_cost: F64, labels: LabelMatrix, eligible: Bool, cost_unit: str
) -> dict[str, float]:
    cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
    known = eligible & ~np.isnan(labels.Y)
    singles = single_model_points(labels.Y, cost, eligible)
    if np.isnan(expected_cost[eligible]).any() or np.isnan(singles).all():
        return dict.fromkeys(("router", "zero_router", "oracle"), float("nan"))
    cost_range = (float(np.nanmin(singles[:, 0])), float(np.nanmax(singles[:, 0])))

    def swept(scores: F64, costs: F64, allowed: Bool) -> F64:
        policies = [Utility(float(value)) for value in lambda_grid(scores, costs, allowed)]
        return cost_quality_curve(
            scores, costs, labels, policies, eligible=allowed, cost_unit=cost_unit
        )

    return {
        "router": aiq(swept(P, expected_cost, eligible), cost_range=cost_range),
        "zero_router": aiq(singles, cost_range=cost_range),
        "oracle": aiq(swept(np.where(known, labels.Y, 0.0), cost, known), cost_range=cost_range),
    }


def _with_nan(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _with_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_nan(entry) for entry in value]
    return np.nan if value is None else value


def _plain(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value
