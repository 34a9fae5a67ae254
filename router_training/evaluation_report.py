"""The values that ``evaluate`` finds: one versioned report, to JSON and back.

Only numbers, model ids and the names of slices are in it; no prompt, no picture and no row id, so
that a report may be kept in an artifact's manifest and shown to anybody.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from router_runtime.types import Json
from router_training.metrics import Number, Outcome, ProbabilityMetrics
from router_training.versioned import from_versioned, to_versioned

SCHEMA_VERSION = 2
"""Raised when a field of ``EvaluationReport.to_json`` changes its meaning or goes away."""


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval of the paired bootstrap."""

    estimate: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Strategy:
    """One way to choose, and what it achieves.

    Parameters
    ----------
    name : str
        A model id, or ``random``, ``cheapest``, ``oracle``, ``dataset_oracle`` (where there are
        several data sets: the best single model of each), ``best_single``, ``router``.
    kind : str
        ``model`` for the single models, else the same as ``name``.
    outcome : Outcome
        Over the queries whose chosen model is scored; other strategies may see other queries.
    gap, savings : Interval
        Quality minus the best single model's, and 1 - cost / the best single model's cost, both
        over the queries on which the two are scored, so that the comparison is of like with like.
    """

    name: str
    kind: str
    outcome: Outcome
    gap: Interval
    savings: Interval


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of the reliability curve: mean predicted and mean observed score of ``n`` cells."""

    predicted: Number
    observed: Number
    n: int


@dataclass(frozen=True)
class ModelReport:
    """One candidate: its probabilities' quality, how often it was chosen and with what success.

    Parameters
    ----------
    metrics : ProbabilityMetrics
    reliability : tuple of ReliabilityBin
        The very bins of ``metrics.ece``.
    histogram : tuple of int
        Scored cells whose probability lies in each of 20 equal intervals of [0, 1].
    share : float
        Share of the queries that the router sends here.
    quality_when_chosen : float
    cost_mape : float
        Mean absolute error of the expected cost over recorded costs, relative to the recorded one;
        NaN where none was recorded.
    cost_bias : float
        Summed expected cost over summed recorded cost of the same calls, minus 1; NaN likewise.
    median_seconds : float
        Median duration of the recorded calls; NaN where none was recorded.
    """

    model_id: str
    metrics: ProbabilityMetrics
    reliability: tuple[ReliabilityBin, ...]
    histogram: tuple[int, ...]
    share: Number
    quality_when_chosen: Number
    cost_mape: Number
    cost_bias: Number
    median_seconds: Number = float("nan")


@dataclass(frozen=True)
class Point:
    """Mean cost of a call and mean quality; ``name`` is a model id or empty."""

    cost: Number
    quality: Number
    name: str = ""


@dataclass(frozen=True)
class HonestPoint:
    """What a policy achieves whose numbers were chosen on other rows than these.

    Parameters
    ----------
    name : str
        ``recommended``, or the wanted share of the best single model's quality, such as ``98 %``.
    policy : mapping
        The policy's config.
    outcome : Outcome
    gap, cost_ratio : Interval
        Against the best single model.
    """

    name: str
    policy: dict[str, Json]
    outcome: Outcome
    gap: Interval
    cost_ratio: Interval


@dataclass(frozen=True)
class Curves:
    """Cost against quality on these rows; a point read off here was chosen with the answers known.

    Parameters
    ----------
    cost_range : (float, float)
        Least and greatest mean cost of the single models that can serve as many queries as any:
        the bounds of ``Summary.aiq``.
    router : tuple of Point
        A sweep of ``Utility`` over the router's probabilities, by rising cost.
    router_hull, zero_router : tuple of Point
        Corners of the non-decreasing hulls of ``router``, and of those of ``singles`` that can
        serve as many queries as any.
    singles : tuple of Point
    oracle, random, operating : Point
        ``operating`` is the evaluated policy.
    """

    cost_range: tuple[Number, Number]
    router: tuple[Point, ...]
    router_hull: tuple[Point, ...]
    zero_router: tuple[Point, ...]
    singles: tuple[Point, ...]
    oracle: Point
    random: Point
    operating: Point


@dataclass(frozen=True)
class TwoModels:
    """RouteLLM's measures (arXiv 2406.18665), for exactly two candidates.

    ``pgr`` is the operating point's, ``cpt50`` and ``cpt80`` are shares of calls to ``strong``.
    """

    weak: str
    strong: str
    pgr: Number
    apgr: Interval
    cpt50: Number
    cpt80: Number


@dataclass(frozen=True)
class Summary:
    """Single numbers of the curves; NaN where costs are unknown.

    Parameters
    ----------
    aiq : mapping
        ``router``, ``zero_router``, ``oracle``: mean quality over ``Curves.cost_range``.
    aiq_gain : Interval
        Router minus zero router.
    deferral_area : mapping
        ``router``, ``zero_router``, ``random``: mean quality along the curve over cost from 0 to
        the greatest one (UniRoute, arXiv 2502.08773); more is better.
        ``random`` tosses a coin between the cheapest and the best single model.
    qnc : float
        Least cost that reaches the best single model's quality on the test curve, relative to that
        model's cost; inf if never (JSON: ``"inf"``).
    savings_at_parity : float
        1 - ``qnc``; -inf if parity is never reached.
    headroom : float
        (router - best single) / (oracle - best single), at the operating point.
    rank_score : float
        RouterArena's score of the operating point.
    two_models : TwoModels or None
    """

    aiq: dict[str, Number]
    aiq_gain: Interval
    deferral_area: dict[str, Number]
    qnc: Number
    savings_at_parity: Number
    headroom: Number
    rank_score: Number
    two_models: TwoModels | None = None


@dataclass(frozen=True)
class Slice:
    """The same router on some of the queries.

    Parameters
    ----------
    by, value : str
        Such as ``data set`` and ``mbpp``.
    n : int
        Queries.
    outcome, best_single : Outcome
        Of the router, and of the model that is best on its own over *all* queries.
    oracle_quality : float
    gap, cost_ratio : Interval
        Router against that best single model on these queries.
    metrics : ProbabilityMetrics
        Pooled over the slice's scored cells.
    """

    by: str
    value: str
    n: int
    outcome: Outcome
    best_single: Outcome
    oracle_quality: Number
    gap: Interval
    cost_ratio: Interval
    metrics: ProbabilityMetrics


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
    reliability : tuple of ReliabilityBin
        The very bins of ``pooled.ece``.
    reasons : mapping
        How often the policy gave which reason.
    quality_gap, cost_ratio : Interval
        Router minus best single model, and router's cost over the best single model's.
    curves : Curves or None
        None where costs are unknown.
    summary : Summary
    honest : tuple of HonestPoint
        The evaluated policy first.
    slices : tuple of Slice
    """

    policy: str
    cost_unit: str
    n_queries: int
    n_scores: int
    recorded_cost_share: Number
    best_single: str
    strategies: tuple[Strategy, ...]
    models: tuple[ModelReport, ...]
    pooled: ProbabilityMetrics
    reasons: dict[str, int]
    quality_gap: Interval
    cost_ratio: Interval
    curves: Curves | None
    summary: Summary
    honest: tuple[HonestPoint, ...] = ()
    slices: tuple[Slice, ...] = ()
    reliability: tuple[ReliabilityBin, ...] = ()

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
        """Return plain values: NaN as None, infinity as ``"inf"``."""
        return to_versioned(asdict(self), SCHEMA_VERSION)

    @classmethod
    def from_json(cls, content: Json) -> EvaluationReport:
        """Read back what ``to_json`` gave.

        Raises
        ------
        DataError
            It has another schema version, or is no report.
        """
        return from_versioned(
            _REPORT, content, SCHEMA_VERSION, what="The report", remedy="evaluate again"
        )


_REPORT = TypeAdapter(EvaluationReport)
