"""The decision in the request's path: which candidates, in which order, and why.

``Decider.decide`` walks: normalise, filter, features, predict, policy, sticky, choose. Each step
leaves a ``Step`` with a machine-readable reason. What is computed is ``ModelRouter``'s, so that a
request is decided as an evaluation decides it; added here are what only a service knows (keys,
budgets, health, conversations) and what it must not do (wait in the event loop, fail because the
router failed).

Decisions are deterministic: the propensity of what was chosen is 1.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

import numpy as np

from router_runtime.config import PolicyConfig, RuntimeConfig, UtilityConfig
from router_runtime.eligibility import Eligibility
from router_runtime.errors import ConfigError, NoEligibleModelError, QueryError, RequestError
from router_runtime.model_router import ModelRouter
from router_runtime.policy import Policy
from router_runtime.policy_set import thresholds_of
from router_runtime.service.filtering import (
    Circumstances,
    below_minimum,
    check_left,
    excluded_models,
    reasons_of,
)
from router_runtime.service.predictions import LaneWatch, Predicted, Predictions
from router_runtime.service.sessions import Identity, Sessions, gain
from router_runtime.service.values import Caller, Controls, Routed, Step
from router_runtime.types import F64, Json, Query, Reason, RoutingDecision

logger = logging.getLogger(__name__)

ROUTER_FAILURE: Final = "router_failure"
STICKY: Final = "sticky"

_NOTHING: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class _Rule:
    """A policy as it applies to one request."""

    policy: Policy
    config: PolicyConfig
    thresholds: Mapping[str, float]


class Decider:
    """Decides for the requests of one router; used from one event loop.

    Parameters
    ----------
    router : ModelRouter
    config : RuntimeConfig
        ``service`` in it: batching, stickiness, clamps, default models.
    resting : callable
        Whether a candidate's breaker is open. Asked for each candidate of each request.
    sessions : Sessions
        May outlive the router: its keys hold the artifact.
    clock : callable
        Seconds, only going forward.
    on_failure : callable, optional
        Told the name of an exception's type when the router itself failed; counts it.
    on_batch : callable, optional
        Told of each batch of queries that was encoded; see ``Predictions``.

    Raises
    ------
    ConfigError
        ``default_models`` names an unknown model, or ``clamps.max_cost_usd`` is set where costs
        are not dollars.
    """

    def __init__(
        self,
        router: ModelRouter,
        config: RuntimeConfig,
        *,
        resting: Callable[[str], bool],
        sessions: Sessions,
        clock: Callable[[], float],
        on_failure: Callable[[str], None] | None = None,
        on_batch: LaneWatch | None = None,
    ) -> None:
        self.router = router
        self.sessions = sessions
        self.predictions = Predictions(router, config.service.batching, watch=on_batch)
        self._config = config.service
        self._timeout_s = config.encoder.timeout_s
        self._resting = resting
        self._clock = clock
        self._on_failure = on_failure
        self._logged: set[str] = set()
        self._in_usd = router.cost_unit == "usd"
        self._rules = {
            name: _Rule(router.policy(name), numbers, thresholds_of(numbers, router.model_ids))
            for name in router.policy_names
            for numbers in (router.policy_config(name),)
        }
        served = [candidate.id for candidate in config.candidates] or list(router.model_ids)
        self._defaults = _default_order(config.service.default_models, served)
        if config.service.clamps.max_cost_usd is not None and not self._in_usd:
            raise ConfigError(
                "'service.clamps.max_cost_usd' cannot be kept: the candidates' costs are not known "
                "in US dollars. Give them a 'price', or remove it."
            )

    def close(self) -> None:
        """End the encoding thread; requests that wait for it are refused."""
        self.predictions.close()

    def served(self, routed: Routed, model_id: str) -> None:
        """Let the conversation of a decision stay with the candidate that really answered."""
        if routed.session and model_id != routed.model_id:
            self.sessions.set_model(routed.session, model_id)

    async def decide(
        self,
        query: Query,
        controls: Controls,
        caller: Caller,
        *,
        session: Identity | None = None,
        remaining_usd: Decimal | None = None,
        clamped: Mapping[str, str] = _NOTHING,
    ) -> Routed:
        """Rank the candidates for one request.

        Parameters
        ----------
        query : Query
        controls : Controls
            From ``read_controls``.
        caller : Caller
        session : Identity or None
            From ``identify``.
        remaining_usd : Decimal or None
            What is left of the key's tightest budget; None without one.
        clamped : mapping of model to reason
            Candidates taken from this key for a time.

        Raises
        ------
        NoEligibleModelError
            No candidate can serve it; the message gives each one's reason.
        QueryError
            A picture cannot be decoded.
        RequestError
            402 ``budget_exceeded``, 503 ``no_healthy_candidate`` or ``overloaded``.
        """
        made = _Making(self, query, controls, self._clock())
        about = Circumstances(controls, caller, remaining_usd, self._resting, clamped)
        try:
            return await made.decided(about, session)
        except (QueryError, NoEligibleModelError, RequestError):
            raise
        except Exception as error:  # our own failure, whatever it is, is not the client's
            self._tell_failure(type(error).__name__)
            return made.without_router(about)

    def _tell_failure(self, kind: str) -> None:
        if kind not in self._logged:  # the type only: a message may hold what was asked
            self._logged.add(kind)
            logger.error("routing failed with %s; default models serve meanwhile", kind)
        if self._on_failure is not None:
            self._on_failure(kind)


class _Making:
    """One decision while it is made: what its steps have found so far."""

    __slots__ = (
        "by",
        "controls",
        "eligibility",
        "encode_s",
        "excluded",
        "query",
        "started",
        "steps",
    )

    def __init__(self, by: Decider, query: Query, controls: Controls, started: float) -> None:
        self.by = by
        self.query = query
        self.controls = controls
        self.started = started
        self.steps: list[Step] = []
        self.excluded: dict[str, str] = {}
        self.eligibility: Eligibility | None = None  # until filtered
        self.encode_s = 0.0

    async def decided(self, about: Circumstances, session: Identity | None) -> Routed:
        """Take all steps."""
        self.steps.append(Step("normalise", "read", _facts(self.query)))
        cost = self.by.router.expected_cost([self.query])
        eligibility = self._filter(cost, about)
        predicted, cached = await self._predict(about.caller.key_id)
        rule = self._rule()
        if self.controls.min_probability is not None:
            eligibility = self._above(self.controls.min_probability, predicted, eligibility)
        decision = self.by.router.choose(predicted.found, cost, eligibility, policy=rule.policy)[0]
        self.steps.append(Step("policy", str(decision.reason), _numbers(rule)))
        key = self._session_key(session, about.caller, decision)
        stays = self._stick(decision, rule, key, follows=session is not None and session.follows)
        ranking, reason = decision.ranking, str(decision.reason)
        if stays is not None:
            ranking = (stays, *(model for model in ranking if model != stays))
            reason = STICKY
        self.steps.append(Step("choose", reason, {"model": ranking[0]}))
        if key and not self.controls.dry_run:
            self.by.sessions.set_model(key, ranking[0])
        return Routed(
            ranking,
            reason,
            steps=tuple(self.steps),
            policy=decision.policy,
            decision=decision,
            expected_cost=self._usd(decision.expected_cost),
            thresholds=rule.thresholds,
            features_sha256=predicted.features_sha256,
            artifact_id=decision.artifact_id,
            decide_s=self.by._clock() - self.started,
            encode_s=self.encode_s,
            session=key,
            cached=cached,
        )

    def without_router(self, about: Circumstances) -> Routed:
        """Return the default candidates that can serve the request, though nothing is predicted.

        Raises
        ------
        NoEligibleModelError, RequestError
            None can.
        """
        by, eligibility = self.by, self.eligibility
        if eligibility is None:  # the prices failed, and nothing is compared with them
            unpriced = replace(about, controls=replace(about.controls, max_cost_usd=None))
            unknown = np.full((1, len(by.router.model_ids)), np.nan)
            eligibility = self._filter(unknown, unpriced)
        able = dict(zip(by.router.model_ids, eligibility.mask[0].tolist(), strict=True))
        ranking = tuple(model for model in by._defaults if able[model])
        self.steps.append(Step("choose", ROUTER_FAILURE, {"model": ranking[0]}))
        return Routed(
            ranking,
            ROUTER_FAILURE,
            steps=tuple(self.steps),
            policy=self.controls.policy or by.router.default_policy,
            artifact_id=by.router.artifact.artifact_id,
            decide_s=by._clock() - self.started,
            encode_s=self.encode_s,
        )

    # ------------------------------------------------------------------ steps

    def _filter(self, cost: F64, about: Circumstances) -> Eligibility:
        router = self.by.router
        self.excluded = excluded_models(router.model_ids, cost, about, in_usd=self.by._in_usd)
        return self._eligible("filter")

    def _eligible(self, step: str) -> Eligibility:
        router = self.by.router
        eligibility = router.eligible([self.query], excluded=self.excluded)
        ineligible = reasons_of(router, eligibility)
        reason = "some_ineligible" if ineligible else "all_eligible"
        self.steps.append(Step(step, reason, ineligible))
        rest_s = self.by._config.breaker.rest_s
        check_left(router, self.query, eligibility, retry_after_s=rest_s)
        self.eligibility = eligibility
        return eligibility

    async def _predict(self, tenant: str) -> tuple[Predicted, bool]:
        started = self.by._clock()
        try:
            async with asyncio.timeout(self.by._timeout_s):
                predicted, cached = await self.by.predictions.of(self.query, tenant=tenant)
        finally:
            self.encode_s = self.by._clock() - started
        found = predicted.found
        self.steps.append(
            Step(
                "features",
                "cached" if cached else "encoded",
                {"sha256": predicted.features_sha256},
            )
        )
        novelty = None if found.novelty is None else float(found.novelty[0])
        self.steps.append(Step("predict", "predicted", {"novelty": novelty}))
        return predicted, cached

    def _rule(self) -> _Rule:
        router, controls = self.by.router, self.controls
        if controls.thresholds is None:
            return self.by._rules[controls.policy or router.default_policy]
        policy, numbers = router.policy_with_thresholds(controls.thresholds, name=controls.policy)
        return _Rule(policy, numbers, thresholds_of(numbers, router.model_ids))

    def _above(self, least: float, predicted: Predicted, eligibility: Eligibility) -> Eligibility:
        model_ids = self.by.router.model_ids
        below = below_minimum(predicted.found.P, eligibility, model_ids, least=least)
        if not below:
            return eligibility
        self.excluded |= below
        return self._eligible("min_probability")

    def _session_key(
        self, session: Identity | None, caller: Caller, decision: RoutingDecision
    ) -> str:
        if session is None or self.by._config.stickiness.margin == 0:
            return ""
        return Sessions.key(
            session,
            key_id=caller.key_id,
            policy=decision.policy,
            artifact_id=decision.artifact_id,
        )

    def _stick(
        self, decision: RoutingDecision, rule: _Rule, key: str, *, follows: bool
    ) -> str | None:
        """Return the conversation's model where the request stays with it."""
        reason = "new_conversation"
        detail: dict[str, Json] = {}
        current = self.by.sessions.model_of(key) if key and follows else None
        stays = None
        if not key:
            reason = "no_conversation"
        elif current is None:
            pass
        elif current not in decision.ranking:
            reason, detail = "left_ineligible", {"current": current}
        elif current == decision.model_id:
            reason, detail = "same", {"current": current}
        elif decision.reason is Reason.NOVEL_QUERY:
            reason, detail = "left_novel_query", {"current": current}
        else:
            won = gain(decision, current, policy=rule.config, thresholds=rule.thresholds)
            margin = self.by._config.stickiness.margin
            told = won if math.isfinite(won) else None
            detail = {"current": current, "gain": told, "margin": margin}
            reason = "left_for_gain" if won > margin else "stayed"
            stays = None if won > margin else current
        self.steps.append(Step("sticky", reason, detail))
        return stays

    def _usd(self, expected: Mapping[str, float | None]) -> Mapping[str, float | None]:
        return expected if self.by._in_usd else dict.fromkeys(expected)


def _facts(query: Query) -> dict[str, Json]:
    needs = query.requirements
    return {
        "modalities": sorted(query.modalities),
        "chars": query.total_chars,
        "images": len(query.images),
        "tools": needs.tools,
        "json_mode": needs.json_mode,
        "max_output_tokens": needs.max_output_tokens,
    }


def _numbers(rule: _Rule) -> dict[str, Json]:
    numbers: dict[str, Json] = {
        "policy": rule.policy.name,
        "kind": rule.config.kind,
        "thresholds": rule.thresholds,
    }
    if isinstance(rule.config, UtilityConfig):
        numbers["lambda_per_usd"] = rule.config.lambda_per_usd
    return numbers


def _default_order(first: Sequence[str], served: Sequence[str]) -> tuple[str, ...]:
    """Put the default models before the other candidates.

    Raises
    ------
    ConfigError
        One of them is no candidate.
    """
    for model in first:
        if model not in served:
            raise ConfigError(
                f"Model '{model}' in service.default_models is no candidate (known: "
                f"{', '.join(served)}). Correct or remove it."
            )
    return (*first, *(model for model in served if model not in first))
