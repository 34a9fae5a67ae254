"""From probabilities, expected costs and eligibility to a ranking: the only selection rule.

Serving, evaluation and tuning all call ``Policy.rank``. A policy is built from a small validated
``config.PolicyConfig`` by ``build_policy``; ``PRESETS`` names some that need no tuning.

Arrays are written as everywhere: ``P (n_queries, n_models) float64 in [0, 1]``, ``cost (n_queries,
n_models) float64 >= 0, NaN = unknown``, ``eligible (n_queries, n_models) bool``. Costs are expected
US dollars per call, or relative factors; a policy only compares them, so that one unit for all
models is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from router_runtime.config import (
    CheapestQualifiedConfig,
    FixedConfig,
    HighestProbabilityConfig,
    PolicyConfig,
    UtilityConfig,
)
from router_runtime.errors import ConfigError, NoEligibleModelError, RouterError
from router_runtime.ranking import all_true, order, unknown_last
from router_runtime.types import F64, Bool, Int, Reason

# NumPy converts a Python number anew in every call, which counts where there is one query.
_ZERO, _ONE = np.zeros(()), np.ones(())


class Policy(Protocol):
    """Ranks candidates; holds no state of a request and is safe to share between threads."""

    @property
    def name(self) -> str:
        """What decisions and reports call this policy."""
        ...

    @property
    def needs_cost(self) -> bool:
        """Whether the rule is undefined while an eligible candidate's cost is unknown."""
        ...

    @property
    def needs_novelty(self) -> bool:
        """Whether the rule is undefined without the queries' novelty."""
        ...

    def rank(self, P: F64, cost: F64, eligible: Bool, novelty: F64 | None = None) -> Int:
        """Return int64 (n_queries, n_models): eligible columns, best first, then -1.

        ``novelty`` (n_queries,) float64 in [0, 1] only matters to a policy with a fallback.
        A row without an eligible candidate is all -1; the caller decides what that means.

        Raises
        ------
        RouterError
            The shapes disagree, ``P`` leaves [0, 1] or is NaN, or a cost is negative or infinite.
        ConfigError
            The policy needs costs and an eligible candidate has none, or has a fallback and no
            novelty is given.
        """
        ...

    def reasons(
        self, P: F64, cost: F64, eligible: Bool, ranking: Int, novelty: F64 | None = None
    ) -> list[Reason]:
        """Return for each query why ``ranking[:, 0]`` was chosen.

        Raises
        ------
        NoEligibleModelError
            A row of ``ranking`` is empty, so that there is nothing to give a reason for.
        """
        ...


@dataclass(frozen=True, eq=False)
class CheapestQualified:
    """The cheapest candidate whose probability reaches its own threshold.

    Order: first those that qualify (``P >= threshold``), the cheapest first, equal costs by higher
    probability; a candidate of unknown cost comes after all whose cost is known. Then those that
    do not qualify, by higher probability and then lower cost. Remaining ties go to the lower
    column. So with nobody qualified the highest probability wins (``Reason.NONE_QUALIFIED``).

    Parameters
    ----------
    thresholds : ndarray of shape (n_models,)
        Least probability per column, in [0, 1]. 0 always qualifies; 1 practically never.
    name : str

    Raises
    ------
    ConfigError
        A threshold is outside [0, 1].
    """

    thresholds: F64
    name: str = "cheapest_qualified"
    needs_cost: bool = False
    needs_novelty: bool = False

    def __post_init__(self) -> None:
        thresholds = np.asarray(self.thresholds, dtype=np.float64)
        if thresholds.ndim != 1 or not np.all((thresholds >= 0) & (thresholds <= 1)):
            raise ConfigError(
                f"Thresholds must be one number in [0, 1] per model, not {thresholds.tolist()}."
            )
        object.__setattr__(self, "thresholds", thresholds)

    def rank(self, P: F64, cost: F64, eligible: Bool, novelty: F64 | None = None) -> Int:
        _check(P, cost, eligible)
        if P.shape[1] != len(self.thresholds):
            raise RouterError(
                f"The policy '{self.name}' has {len(self.thresholds)} thresholds, "
                f"but P has {P.shape[1]} columns."
            )
        qualified = self.thresholds <= P
        known = unknown_last(cost)
        likely_first = -P
        return order(
            eligible,
            ~qualified,
            np.where(qualified, known, likely_first),
            np.where(qualified, likely_first, known),
        )

    def reasons(
        self, P: F64, cost: F64, eligible: Bool, ranking: Int, novelty: F64 | None = None
    ) -> list[Reason]:
        chosen = _chosen(ranking)
        qualified = P[np.arange(len(P)), chosen] >= self.thresholds[chosen]
        return _explain(
            eligible, qualified, Reason.CHEAPEST_QUALIFIED, otherwise=Reason.NONE_QUALIFIED
        )


@dataclass(frozen=True)
class Utility:
    """The highest ``P - lambda * cost``: what a unit of probability is worth in dollars decides.

    Unlike an absolute threshold it pays for a dear candidate exactly where that candidate is
    better by enough. Equal utilities go to the lower cost, then the higher probability, then the
    lower column, so that a larger lambda never chooses a dearer candidate.

    Parameters
    ----------
    lambda_per_usd : float
        Probability that one dollar is worth (per unit of relative cost when costs are factors),
        >= 0. With 0 costs only break ties and may be unknown.
    name : str
    model_ids : tuple of str, optional
        Names of the columns, used in messages only.

    Raises
    ------
    ConfigError
        ``lambda_per_usd`` is negative or not finite.
    """

    lambda_per_usd: float
    name: str = "utility"
    model_ids: tuple[str, ...] = ()
    needs_novelty: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_per_usd < np.inf:
            raise ConfigError(
                f"lambda_per_usd must be a finite number >= 0, not {self.lambda_per_usd}."
            )

    @property
    def needs_cost(self) -> bool:
        return self.lambda_per_usd > 0

    def rank(self, P: F64, cost: F64, eligible: Bool, novelty: F64 | None = None) -> Int:
        _check(P, cost, eligible)
        known = unknown_last(cost)
        if not self.needs_cost:
            return order(eligible, -P, known)
        self._require_costs(cost, eligible)
        return order(eligible, self.lambda_per_usd * known - P, known, -P)

    def reasons(
        self, P: F64, cost: F64, eligible: Bool, ranking: Int, novelty: F64 | None = None
    ) -> list[Reason]:
        return _explain(eligible, _chosen(ranking) >= 0, Reason.HIGHEST_UTILITY)

    def _require_costs(self, cost: F64, eligible: Bool) -> None:
        lacking = np.isnan(cost) & eligible
        if np.count_nonzero(lacking):
            unknown = np.flatnonzero(lacking.any(axis=0))
            who = ", ".join(
                f"'{self.model_ids[j]}'" if self.model_ids else f"column {j}" for j in unknown
            )
            raise ConfigError(
                f"The policy '{self.name}' needs an expected cost for every candidate; unknown: "
                f"{who}. Configure prices or relative costs, or choose 'highest_probability'."
            )


@dataclass(frozen=True)
class HighestProbability:
    """The highest probability, whatever it costs; equal probabilities go to the cheaper one.

    Parameters
    ----------
    name : str
    """

    name: str = "highest_probability"
    needs_cost: bool = False
    needs_novelty: bool = False

    def rank(self, P: F64, cost: F64, eligible: Bool, novelty: F64 | None = None) -> Int:
        _check(P, cost, eligible)
        return order(eligible, -P, unknown_last(cost))

    def reasons(
        self, P: F64, cost: F64, eligible: Bool, ranking: Int, novelty: F64 | None = None
    ) -> list[Reason]:
        return _explain(eligible, _chosen(ranking) >= 0, Reason.HIGHEST_PROBABILITY)


@dataclass(frozen=True)
class Fixed:
    """Always the same candidate; the others stand behind it by probability, as fallbacks.

    Parameters
    ----------
    column : int
        Column of the candidate, from 0.
    name : str
    """

    column: int
    name: str = "fixed"
    needs_cost: bool = False
    needs_novelty: bool = False

    def rank(self, P: F64, cost: F64, eligible: Bool, novelty: F64 | None = None) -> Int:
        _check(P, cost, eligible)
        if not 0 <= self.column < P.shape[1]:
            raise RouterError(
                f"The policy '{self.name}' fixes column {self.column}, "
                f"but P has {P.shape[1]} columns."
            )
        other = np.broadcast_to(np.arange(P.shape[1]) != self.column, P.shape)
        return order(eligible, other, -P, unknown_last(cost))

    def reasons(
        self, P: F64, cost: F64, eligible: Bool, ranking: Int, novelty: F64 | None = None
    ) -> list[Reason]:
        hit = _chosen(ranking) == self.column
        return [Reason.FIXED if fixed else Reason.FIXED_INELIGIBLE for fixed in hit]


@dataclass(frozen=True)
class WithFallback:
    """A policy that gives queries of which little is known to one fixed candidate.

    Where novelty is above its bound, or no eligible candidate's probability reaches the other, and
    the candidate is eligible, it comes first (``Reason.NOVEL_QUERY``, ``Reason.LOW_CONFIDENCE``)
    and the others keep the order of the wrapped policy behind it. All other rows are ranked by the
    wrapped policy alone.

    Parameters
    ----------
    policy : Policy
        The wrapped policy.
    column : int
        Column of the candidate, from 0.
    novelty_above, confidence_below : float or None
        The bounds, in [0, 1]; exactly a bound does not fall back, None never does.

    Raises
    ------
    ConfigError
        A bound is outside [0, 1].
    """

    policy: Policy
    column: int
    novelty_above: float | None
    confidence_below: float | None = None

    def __post_init__(self) -> None:
        for name in ("novelty_above", "confidence_below"):
            bound = getattr(self, name)
            if bound is not None and not 0 <= bound <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {bound}.")

    @property
    def needs_novelty(self) -> bool:
        return self.novelty_above is not None

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def needs_cost(self) -> bool:
        return self.policy.needs_cost

    def rank(self, P: F64, cost: F64, eligible: Bool, novelty: F64 | None = None) -> Int:
        ranking = self.policy.rank(P, cost, eligible, novelty)
        if not 0 <= self.column < P.shape[1]:
            raise RouterError(
                f"The policy '{self.name}' falls back to column {self.column}, "
                f"but P has {P.shape[1]} columns."
            )
        little_known = self._novel(novelty, len(P)) | self._unsure(P, eligible)
        moved = (little_known & eligible[:, self.column]).nonzero()[0]
        if not moved.size:
            return ranking
        others = np.argsort(ranking[moved] != self.column, axis=1, kind="stable")
        ranking = ranking.copy()
        ranking[moved] = ranking[moved[:, None], others]
        return ranking

    def reasons(
        self, P: F64, cost: F64, eligible: Bool, ranking: Int, novelty: F64 | None = None
    ) -> list[Reason]:
        reasons = self.policy.reasons(P, cost, eligible, ranking, novelty)
        taken = _chosen(ranking) == self.column
        for row in (taken & self._unsure(P, eligible)).nonzero()[0].tolist():
            if reasons[row] is not Reason.ONLY_ELIGIBLE:
                reasons[row] = Reason.LOW_CONFIDENCE
        for row in (taken & self._novel(novelty, len(P))).nonzero()[0].tolist():
            if reasons[row] is not Reason.ONLY_ELIGIBLE:
                reasons[row] = Reason.NOVEL_QUERY
        return reasons

    def _unsure(self, P: F64, eligible: Bool) -> Bool:
        if self.confidence_below is None:
            return np.zeros(len(P), dtype=np.bool_)
        unsure: Bool = np.where(eligible, P, 0.0).max(axis=1, initial=0.0) < self.confidence_below
        return unsure

    def _novel(self, novelty: F64 | None, n_queries: int) -> Bool:
        if self.novelty_above is None:
            return np.zeros(n_queries, dtype=np.bool_)
        if novelty is None:
            raise ConfigError(
                f"The policy '{self.name}' falls back on novel queries, but their novelty is not "
                "known here. Retrain with 'novelty: {enabled: true}', or remove 'fallback'."
            )
        if novelty.shape != (n_queries,) or not all_true((novelty >= _ZERO) & (novelty <= _ONE)):
            raise RouterError(
                f"Novelty must be {n_queries} numbers in [0, 1], one per query; got an array of "
                f"shape {novelty.shape}."
            )
        return novelty > self.novelty_above


def _check(P: F64, cost: F64, eligible: Bool) -> None:
    if P.ndim != 2 or cost.shape != P.shape or eligible.shape != P.shape:
        raise RouterError(
            "P, cost and eligible must have one shape (n_queries, n_models), "
            f"not {P.shape}, {cost.shape} and {eligible.shape}."
        )
    if eligible.dtype != np.bool_:
        raise RouterError(f"eligible must be bool, not {eligible.dtype}.")
    inside = (P >= _ZERO) & (P <= _ONE)
    if not all_true(inside):
        row, column = np.argwhere(~inside)[0]
        raise RouterError(
            f"Probabilities must lie in [0, 1]: row {row}, column {column} is {P[row, column]}."
        )
    if np.count_nonzero((cost < _ZERO) | np.isinf(cost)):
        raise RouterError("Expected costs must be finite and >= 0, or NaN where unknown.")


def _chosen(ranking: Int) -> Int:
    chosen = ranking[:, 0]
    if np.count_nonzero(chosen < 0):
        row = int(np.argmax(chosen < 0))
        raise NoEligibleModelError(f"Row {row} has no eligible candidate to give a reason for.")
    return chosen


def _explain(
    eligible: Bool, rule_held: Bool, reason: Reason, *, otherwise: Reason | None = None
) -> list[Reason]:
    """Say per row ``reason`` or ``otherwise``, or ``ONLY_ELIGIBLE`` where there was no choice."""
    alone = eligible.sum(axis=1) == 1
    return [
        Reason.ONLY_ELIGIBLE if single else reason if held or otherwise is None else otherwise
        for single, held in zip(alone.tolist(), rule_held.tolist(), strict=True)
    ]


PRESETS: dict[str, PolicyConfig] = {
    "quality": HighestProbabilityConfig(),
    "economy": CheapestQualifiedConfig(default_threshold=0.5),
    "conservative": CheapestQualifiedConfig(default_threshold=0.8),
    "balanced": CheapestQualifiedConfig(default_threshold=0.65),
    "aggressive": CheapestQualifiedConfig(default_threshold=0.5),
    "none": HighestProbabilityConfig(),
}
"""Policies by name, for use before anything has been tuned.

``conservative``, ``balanced`` and ``aggressive`` are one threshold for every model, whatever the
models are called: the higher, the surer a cheap model must be before it is preferred. ``none`` sets
no threshold, so that probability alone decides. ``quality`` and ``economy`` say the two ends in
plain words. A policy tuned on data (``router-train tune``) is better than any of them.
"""


def build_policy(
    config: PolicyConfig, *, model_ids: Sequence[str], name: str | None = None
) -> Policy:
    """Bind a config to the columns of ``P``.

    Parameters
    ----------
    config : PolicyConfig
    model_ids : sequence of str
        The column order of ``P``.
    name : str, optional
        What decisions call the policy; the config's ``kind`` by default.

    Returns
    -------
    Policy

    Raises
    ------
    ConfigError
        The config names a model that is not in ``model_ids``.
    """
    name = name or config.kind
    rule = _rule(config, model_ids=model_ids, name=name)
    if isinstance(config, FixedConfig) or config.fallback is None:
        return rule
    fallback = config.fallback
    _require_known([fallback.model], model_ids, f"The policy '{name}' falls back to")
    column = list(model_ids).index(fallback.model)
    return WithFallback(rule, column, fallback.novelty_above, fallback.confidence_below)


def _rule(config: PolicyConfig, *, model_ids: Sequence[str], name: str) -> Policy:
    match config:
        case CheapestQualifiedConfig():
            _require_known(config.thresholds, model_ids, f"The policy '{name}' has a threshold for")
            thresholds = [config.thresholds.get(m, config.default_threshold) for m in model_ids]
            return CheapestQualified(np.asarray(thresholds, dtype=np.float64), name=name)
        case UtilityConfig():
            return Utility(config.lambda_per_usd, name=name, model_ids=tuple(model_ids))
        case FixedConfig():
            _require_known([config.model], model_ids, f"The policy '{name}' fixes")
            return Fixed(list(model_ids).index(config.model), name=name)
        case HighestProbabilityConfig():
            return HighestProbability(name=name)


def _require_known(named: Sequence[str] | dict[str, float], known: Sequence[str], who: str) -> None:
    unknown = [model for model in named if model not in known]
    if unknown:
        raise ConfigError(
            f"{who} {', '.join(map(repr, unknown))}, which this router does not know "
            f"(known: {', '.join(known)}). Correct the name or remove it."
        )
