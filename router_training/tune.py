"""Choose a policy's numbers on the calibration split, for a wanted quality or a budget.

Two policies are tuned and shown side by side: one lambda for ``utility``, and one threshold per
model for ``cheapest_qualified``. Both are searched by calling ``Policy.rank`` and measuring what
it chose, so that what is tuned is what will serve.

Numbers chosen because they did well on a few hundred rows do less well elsewhere (the winner's
curse), thresholds more than lambda, since there is one for each model. Therefore quality is
measured on scores moved halfway towards the predicted probabilities (``SHRINKAGE``), which carry
no luck of the draw, and thresholds are recommended only where they are better by more than a
trifle. With a tenth of the rows for tuning, over 16 splits and targets of 95, 98 and 100 %, the
recommended policy's root mean square distance from its target on test rows fell from .031 to .009
on RouterBench, from .012 to .011 on MMLU and from .029 to .027 on BlindTest. (Halfway is the middle
of five weights tried on these same splits, so the figures flatter a little.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from router_runtime.config import CheapestQualifiedConfig, UtilityConfig
from router_runtime.errors import ConfigError, DataError
from router_runtime.policy import CheapestQualified, Policy, Utility, build_policy
from router_runtime.types import F64, Bool, Int, Json
from router_training.curves import lambda_grid
from router_training.labels import LabelMatrix
from router_training.metrics import (
    Outcome,
    actual_cost,
    best_single_model,
    check_aligned,
    outcome,
    single_model,
)

DEFAULT_TARGET_QUALITY = 0.98

SHRINKAGE = 0.5
"""How far scores are moved towards the probabilities: 0 trusts luck, 1 trusts the calibration."""

MAX_SWEEPS = 4
"""Rounds of coordinate descent; it settles after two or three."""

CLEARLY_CHEAPER, CLEARLY_BETTER = 0.9, 1.01
"""Thresholds beat ``utility`` if their cost (quality) is this many times its own; less is a tie."""

THRESHOLD_STEPS = 20
"""Quantiles of a model's probabilities that are tried as its threshold."""


@dataclass(frozen=True)
class Goal:
    """The wanted outcome, as numbers.

    Parameters
    ----------
    least_quality : float or None
        Reach this mean score at the least cost; or
    most_cost : float or None
        spend at most this per call, at the best quality.
    """

    least_quality: float | None
    most_cost: float | None

    def loss(self, result: Outcome) -> tuple[float, float, float]:
        """Return a key to minimise: distance from the goal first, then what is to be optimised."""
        if result.n_scored == 0:
            return (np.inf, np.inf, np.inf)
        if self.least_quality is not None:
            shortfall = max(0.0, self.least_quality - result.quality)
            return (_noiseless(shortfall), result.cost, -result.quality)
        overspend = max(0.0, result.cost - (self.most_cost or 0.0))
        return (_noiseless(overspend), -result.quality, result.cost)

    def met(self, result: Outcome) -> bool:
        """Whether ``result`` reaches the goal."""
        return self.loss(result)[0] == 0


@dataclass(frozen=True)
class Tuned:
    """One policy with its chosen numbers and what it achieves on the calibration split.

    Parameters
    ----------
    config : PolicyConfig
    outcome : Outcome
        Its quality is measured on the shrunken scores; by this sober estimate the goal is judged.
    measured_quality : float
        The mean of the scores as they are, which flatters numbers that were chosen for them.
    met : bool
    """

    config: UtilityConfig | CheapestQualifiedConfig
    outcome: Outcome
    measured_quality: float
    met: bool


@dataclass(frozen=True)
class TuneResult:
    """What each kind of policy reaches, and which one to use.

    Parameters
    ----------
    goal : Goal
    best_single : str
        The model that is best on its own on the calibration split.
    best_single_outcome : Outcome
        Its quality, too, is measured on the shrunken scores.
    utility, cheapest_qualified : Tuned
    recommended : PolicyConfig
        Of the two, the one that meets the goal, then the clearly cheaper (for a quality) or
        clearly better (for a budget); ``utility`` if they tie.
    met : bool
        Whether the recommended one meets the goal on the calibration split.
    message : str
        The same in a sentence.
    """

    goal: Goal
    best_single: str
    best_single_outcome: Outcome
    utility: Tuned
    cheapest_qualified: Tuned
    recommended: UtilityConfig | CheapestQualifiedConfig
    met: bool
    message: str

    def to_json(self) -> Json:
        """Return plain values."""
        return {
            "goal": asdict(self.goal),
            "best_single": {"model": self.best_single, **asdict(self.best_single_outcome)},
            **{
                tuned.config.kind: {
                    "config": tuned.config.model_dump(mode="json"),
                    "met": tuned.met,
                    "measured_quality": tuned.measured_quality,
                    **asdict(tuned.outcome),
                }
                for tuned in (self.utility, self.cheapest_qualified)
            },
            "recommended": self.recommended.model_dump(mode="json"),
            "met": self.met,
            "message": self.message,
        }


def tune(
    *,
    P: F64,
    expected_cost: F64,
    labels: LabelMatrix,
    model_ids: Sequence[str],
    target_quality: float | None = None,
    max_cost_per_1k: float | None = None,
    eligible: Bool | None = None,
    cost_unit: str = "usd",
) -> TuneResult:
    """Choose lambda and thresholds for a wanted outcome on scored queries.

    Parameters
    ----------
    P : ndarray of shape (n_queries, n_models)
        Calibrated probabilities of queries that the head never saw.
    expected_cost : ndarray of shape (n_queries, n_models)
        In ``cost_unit``. Where an eligible model's cost is unknown, the highest probability is
        recommended, as there is nothing to trade.
    labels : LabelMatrix
    model_ids : sequence of str
        Columns of ``P``.
    target_quality : float, optional
        Wanted share of the best single model's quality, at the least cost; 0.98 if neither goal is
        given.
    max_cost_per_1k : float, optional
        Wanted cost of a thousand calls, at the best quality.
    eligible : ndarray of shape (n_queries, n_models), bool, optional
        All by default.
    cost_unit : str
        ``usd`` or ``relative``.

    Raises
    ------
    ConfigError
        Both goals are given, one is not finite and positive, or a budget is given and costs are
        unknown.
    DataError
        Shapes or model ids disagree, or nothing is scored.
    """
    search = _Search(P, expected_cost, labels, tuple(model_ids), eligible, cost_unit)
    goal = _goal(target_quality, max_cost_per_1k, search.reference)
    if search.unpriced:
        _refuse_budget(goal, search.unpriced)
        thresholds = CheapestQualifiedConfig(default_threshold=1.0)  # the highest probability
    else:
        thresholds = _tune_thresholds(
            search.measure, goal, P, search.eligible, search.best, model_ids
        )
    utility, qualified = search.utility(goal), search.tuned(thresholds, goal)
    tuned = _recommended(goal, utility, qualified)
    return TuneResult(
        goal=goal,
        best_single=model_ids[search.best],
        best_single_outcome=search.reference,
        utility=utility,
        cheapest_qualified=qualified,
        recommended=tuned.config,
        met=tuned.met,
        message=_message(goal, tuned, cost_unit, search.unpriced),
    )


def tune_utility(
    *,
    P: F64,
    expected_cost: F64,
    labels: LabelMatrix,
    model_ids: Sequence[str],
    targets: Sequence[float],
    eligible: Bool | None = None,
    cost_unit: str = "usd",
) -> tuple[Tuned, ...]:
    """Choose a lambda for each of several wanted qualities, with one sweep for all of them.

    Parameters
    ----------
    targets : sequence of float
        Wanted shares of the best single model's quality, each at the least cost.
    P, expected_cost, labels, model_ids, eligible, cost_unit
        As in ``tune``.

    Returns
    -------
    tuple of Tuned
        One per target.

    Raises
    ------
    ConfigError
        A target is not finite and positive.
    DataError
        As in ``tune``.
    """
    search = _Search(P, expected_cost, labels, tuple(model_ids), eligible, cost_unit)
    return tuple(search.utility(_goal(share, None, search.reference)) for share in targets)


class _Search:
    """The calibration rows, and what policies achieve on them by shrunken scores."""

    def __init__(
        self,
        P: F64,
        expected_cost: F64,
        labels: LabelMatrix,
        model_ids: tuple[str, ...],
        eligible: Bool | None,
        cost_unit: str,
    ) -> None:
        self.eligible = np.ones(P.shape, dtype=np.bool_) if eligible is None else eligible
        check_aligned(P, labels, expected_cost, self.eligible, model_ids=model_ids)
        self._P, self._expected_cost, self._Y = P, expected_cost, labels.Y
        self._model_ids = model_ids
        self._cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
        self._scores = labels.Y + SHRINKAGE * (P - labels.Y)
        best = best_single_model(self._scores, self._cost, self.eligible)
        if best is None:
            raise DataError("No query has a scored eligible model; there is nothing to tune on.")
        self.best = best
        self.reference = outcome(single_model(best, self.eligible), self._scores, self._cost)
        unknown = np.flatnonzero((np.isnan(expected_cost) & self.eligible).any(axis=0))
        self.unpriced = ", ".join(model_ids[int(column)] for column in unknown)

    def measure(self, policy: Policy) -> Outcome:
        """Return what a policy achieves on the shrunken scores."""
        return outcome(self._choice(policy), self._scores, self._cost)

    def tuned(self, config: UtilityConfig | CheapestQualifiedConfig, goal: Goal) -> Tuned:
        """Return a policy's numbers with what they achieve."""
        choice = self._choice(build_policy(config, model_ids=self._model_ids))
        result = outcome(choice, self._scores, self._cost)
        measured = outcome(choice, self._Y, self._cost).quality
        return Tuned(config, result, measured, goal.met(result))

    def utility(self, goal: Goal) -> Tuned:
        """Return the lambda that is nearest to the goal; 0 where costs are unknown."""
        # Of equal outcomes the first is taken: the smallest lambda, which leans towards quality.
        value = min(self._sweep, key=lambda value: goal.loss(self._sweep[value]))
        return self.tuned(UtilityConfig(lambda_per_usd=value), goal)

    @cached_property
    def _sweep(self) -> dict[float, Outcome]:
        if self.unpriced:
            return {0.0: self.measure(Utility(0.0))}
        grid = lambda_grid(self._P, self._expected_cost, self.eligible)
        return {float(value): self.measure(Utility(float(value))) for value in grid}

    def _choice(self, policy: Policy) -> Int:
        return policy.rank(self._P, self._expected_cost, self.eligible)[:, 0]


def _recommended(goal: Goal, utility: Tuned, thresholds: Tuned) -> Tuned:
    if not (utility.met and thresholds.met):
        return min((utility, thresholds), key=lambda tuned: goal.loss(tuned.outcome))
    ours, theirs = thresholds.outcome, utility.outcome
    if goal.least_quality is not None:
        clear = ours.cost < CLEARLY_CHEAPER * theirs.cost
    else:
        clear = ours.quality > CLEARLY_BETTER * theirs.quality
    return thresholds if clear else utility


def _goal(target_quality: float | None, max_cost_per_1k: float | None, reference: Outcome) -> Goal:
    if target_quality is not None and max_cost_per_1k is not None:
        raise ConfigError(
            "target_quality and max_cost_per_1k are two goals; keep one "
            f"(given: {target_quality} and {max_cost_per_1k})."
        )
    if max_cost_per_1k is not None:
        if not 0 < max_cost_per_1k < np.inf:
            raise ConfigError(f"max_cost_per_1k must be finite and > 0, not {max_cost_per_1k}.")
        return Goal(least_quality=None, most_cost=max_cost_per_1k / 1000)
    share = DEFAULT_TARGET_QUALITY if target_quality is None else target_quality
    if not 0 < share < np.inf:
        raise ConfigError(f"target_quality must be finite and > 0, not {share}.")
    return Goal(least_quality=share * reference.quality, most_cost=None)


def _refuse_budget(goal: Goal, unpriced: str) -> None:
    if goal.most_cost is not None:
        raise ConfigError(
            f"A budget needs the expected cost of every model; unknown for {unpriced}. Configure "
            "prices or relative costs, or record costs in the data."
        )


def _tune_thresholds(
    measure: Callable[[Policy], Outcome],
    goal: Goal,
    P: F64,
    eligible: Bool,
    best_single: int,
    model_ids: Sequence[str],
) -> CheapestQualifiedConfig:
    """Coordinate descent from the best common threshold and from the best single model."""

    def loss(thresholds: F64) -> tuple[float, float, float]:
        return goal.loss(measure(CheapestQualified(thresholds)))

    grids = [_threshold_grid(P[eligible[:, j], j]) for j in range(P.shape[1])]
    common = [np.full(P.shape[1], value) for value in _threshold_grid(P[eligible])]
    alone = np.where(np.arange(P.shape[1]) == best_single, 0.0, 1.0)
    starts = [min(common, key=loss), alone]
    thresholds = min((_descend(start, grids, loss) for start in starts), key=loss)
    return CheapestQualifiedConfig(
        thresholds=dict(zip(model_ids, thresholds.tolist(), strict=True))
    )


def _threshold_grid(p: F64) -> F64:
    quantiles = np.quantile(p, np.linspace(0, 1, THRESHOLD_STEPS)) if len(p) else np.zeros(0)
    return np.unique(np.concatenate([[0.0], quantiles, [1.0]]))


def _descend(
    start: F64, grids: Sequence[F64], loss: Callable[[F64], tuple[float, float, float]]
) -> F64:
    """Improve one threshold at a time until a whole sweep changes nothing."""
    current, lowest = start.copy(), loss(start)
    for _ in range(MAX_SWEEPS):
        before = lowest
        for column, grid in enumerate(grids):
            for value in grid:
                trial = current.copy()
                trial[column] = value
                if (trial_loss := loss(trial)) < lowest:
                    current, lowest = trial, trial_loss
        if lowest == before:
            break
    return current


def _message(goal: Goal, tuned: Tuned, cost_unit: str, unpriced: str) -> str:
    unit = "USD" if cost_unit == "usd" else "relative cost"
    spent = tuned.outcome.cost
    price = "an unknown cost" if np.isnan(spent) else f"{1000 * spent:.4g} {unit} per 1,000 calls"
    reached = f"quality {tuned.outcome.quality:.4f} at {price} with {tuned.config.kind}"
    if goal.least_quality is not None:
        wanted = f"quality {goal.least_quality:.4f}"
    else:
        wanted = f"{1000 * (goal.most_cost or 0.0):.4g} {unit} per 1,000 calls"
    if tuned.met:
        verdict = f"The goal of {wanted} is met on the calibration split: {reached}."
    else:
        verdict = (
            f"The goal of {wanted} cannot be met on the calibration split; "
            f"the nearest is {reached}."
        )
    if unpriced:
        verdict += f" Costs are unknown for {unpriced}, so that only quality could be weighed."
    return verdict


def _noiseless(distance: float) -> float:
    """Round away what float64 summation leaves, so that a goal met exactly counts as met."""
    return 0.0 if distance < 1e-12 else distance
