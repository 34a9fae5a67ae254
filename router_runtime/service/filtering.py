"""Hard filters of one request: who may not answer it, and why, before anything is predicted.

Capabilities are the router's own (``eligibility``). Here is what else takes candidates away: a
key's models, a request's ``allow`` and ``deny``, a clamp, targets that rest, and dollars. Each
leaves a reason by candidate; the first that applies is the one told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np

from router_runtime.eligibility import Eligibility
from router_runtime.errors import NoEligibleModelError, RequestError
from router_runtime.model_router import ModelRouter
from router_runtime.service.values import Caller, Controls
from router_runtime.types import F64, Query

NOT_ALLOWED: Final = "not_allowed_for_key"
DENIED: Final = "denied_by_request"
NOT_IN_ALLOW: Final = "not_in_allow"
BREAKER_OPEN: Final = "breaker_open"
BUDGET: Final = "budget_exceeded"
MAX_COST: Final = "max_cost_exceeded"
COST_UNKNOWN: Final = "cost_unknown"
BELOW_MIN: Final = "below_min_probability"

_PASSING: Final = frozenset({BREAKER_OPEN, BUDGET})
"""Reasons that say nothing of the request: the same one may be served later."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is true of one request besides its query.

    Parameters
    ----------
    controls : Controls
    caller : Caller
    remaining_usd : Decimal or None
        What is left of the key's tightest budget.
    resting : callable
        Whether a candidate's breaker is open.
    clamped : mapping of model to reason
        Taken from this key for a time.
    """

    controls: Controls
    caller: Caller
    remaining_usd: Decimal | None
    resting: Callable[[str], bool]
    clamped: Mapping[str, str]


def excluded_models(
    model_ids: Collection[str], cost: F64, circumstances: Circumstances, *, in_usd: bool
) -> dict[str, str]:
    """Return the candidates that are taken away, each with its reason.

    Parameters
    ----------
    model_ids : collection of str
        Column order.
    cost : ndarray of shape (1, n_models)
        Expected cost of the query; NaN = unknown.
    circumstances : Circumstances
    in_usd : bool
        Costs are dollars; relative ones are compared with no budget.

    Returns
    -------
    dict
        A candidate of unknown cost is taken away by ``max_cost_usd``, which could not be promised
        then, and not by a key's budget, to which only what has a price is billed.
    """
    about = circumstances
    controls, caller = about.controls, about.caller
    most = _float(controls.max_cost_usd) if in_usd else None
    left = _float(about.remaining_usd) if in_usd else None
    costs: list[float] = cost[0].tolist()
    found: dict[str, str] = {}
    for model, expected in zip(model_ids, costs, strict=True):
        if not caller.may_use(model):
            found[model] = NOT_ALLOWED
        elif model in controls.deny:
            found[model] = DENIED
        elif controls.allow and model not in controls.allow:
            found[model] = NOT_IN_ALLOW
        elif model in about.clamped:
            found[model] = about.clamped[model]
        elif most is not None and math.isnan(expected):
            found[model] = COST_UNKNOWN
        elif most is not None and expected > most:
            found[model] = MAX_COST
        elif left is not None and expected > left:
            found[model] = BUDGET
        elif about.resting(model):
            found[model] = BREAKER_OPEN
    return found


def _float(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)


def below_minimum(
    P: F64, eligibility: Eligibility, model_ids: Collection[str], *, least: float
) -> dict[str, str]:
    """Return the eligible candidates of one query whose probability is below ``least``."""
    below = (P[0] < least) & eligibility.mask[0]
    return {model: BELOW_MIN for model, out in zip(model_ids, below.tolist(), strict=True) if out}


def check_left(
    router: ModelRouter, query: Query, eligibility: Eligibility, *, retry_after_s: float
) -> None:
    """Refuse a request that no candidate is left for, with the status that tells what to do.

    Raises
    ------
    RequestError
        503 ``no_healthy_candidate``: one that could serve it rests after failures. 402
        ``budget_exceeded``: the key's budget does not reach for one that could.
    NoEligibleModelError
        The request itself can be served by none; the message gives each one's reason.
    """
    if bool(np.any(eligibility.mask)):
        return
    reasons = reasons_of(router, eligibility)
    capable = router.eligible([query]).mask[0].tolist()
    passing = {
        reason
        for (_, reason), able in zip(reasons.items(), capable, strict=True)
        if able and reason in _PASSING
    }
    listed = ", ".join(f"{model}: {reason}" for model, reason in reasons.items())
    if BREAKER_OPEN in passing:
        raise RequestError(
            f"No candidate can be called now ({listed}); try again in a moment.",
            status=503,
            code="no_healthy_candidate",
            retry_after_s=retry_after_s,
        )
    if BUDGET in passing:
        raise RequestError(
            f"The key's budget does not reach for this request ({listed}). Wait for the next "
            "period, or ask for a higher budget.",
            status=402,
            code="budget_exceeded",
        )
    raise NoEligibleModelError(f"No candidate can serve the request ({listed}).")


def reasons_of(router: ModelRouter, eligibility: Eligibility) -> dict[str, str]:
    """Return the reason against each candidate of one query; only the ineligible are in it."""
    mask = eligibility.mask[0].tolist()
    return {
        model: eligibility.reason(0, column)
        for column, model in enumerate(router.model_ids)
        if not mask[column]
    }
