from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig
from router_runtime.errors import NoEligibleModelError, RequestError
from router_runtime.service.filtering import (
    Circumstances,
    below_minimum,
    check_left,
    excluded_models,
    reasons_of,
)
from router_runtime.service.values import Caller, Controls
from router_runtime.types import Query, Requirements
from router_runtime.yaml_config import validate

MODELS = ("a", "b", "c")
COST = np.array([[0.01, 0.5, np.nan]])


def taken(
    *, controls=None, cost=COST, in_usd=True, allowed=None, left=None, resting=(), clamped=()
):
    about = Circumstances(
        controls=controls or Controls(),
        caller=Caller("k", allowed_models=None if allowed is None else frozenset(allowed)),
        remaining_usd=None if left is None else Decimal(left),
        resting=lambda model: model in resting,
        clamped=dict.fromkeys(clamped, "clamped"),
    )
    return excluded_models(MODELS, COST, about, in_usd=in_usd)


def test_without_circumstances_nothing_is_taken():
    assert taken() == {}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"allowed": ["a"]}, {"b": "not_allowed_for_key", "c": "not_allowed_for_key"}),
        ({"controls": Controls(deny=frozenset("a"))}, {"a": "denied_by_request"}),
        (
            {"controls": Controls(allow=frozenset("a"))},
            {"b": "not_in_allow", "c": "not_in_allow"},
        ),
        ({"clamped": "b"}, {"b": "clamped"}),
        ({"resting": "b"}, {"b": "breaker_open"}),
        ({"left": "0.1"}, {"b": "budget_exceeded"}),
        (
            {"controls": Controls(max_cost_usd=Decimal("0.1"))},
            {"b": "max_cost_exceeded", "c": "cost_unknown"},
        ),
    ],
)
def test_each_circumstance_takes_what_it_is_about_and_says_so(about, expected):
    assert taken(**about) == expected


def test_a_cost_of_exactly_the_bound_is_within_it():
    assert taken(controls=Controls(max_cost_usd=Decimal("0.5"))) == {"c": "cost_unknown"}
    assert taken(left="0.5") == {}


def test_relative_costs_are_compared_with_no_dollars():
    assert taken(left="0", controls=Controls(max_cost_usd=Decimal(0)), in_usd=False) == {}


def test_the_reason_that_lasts_is_told_before_the_one_that_passes():
    assert taken(allowed="bc", resting="a", left="0") == {
        "a": "not_allowed_for_key",
        "b": "budget_exceeded",
    }


# ---------------------------------------------------------------------- with a router

LARGE, SMALL = "sim-large-vl", "sim-small-text"


@pytest.fixture(scope="module")
def router(trained):
    content = {
        "artifact": trained[0].output,
        "candidates": [
            {"id": LARGE, "modalities": ["text", "image"]},
            {"id": SMALL, "modalities": ["text"], "tools": False, "context_window": 1000},
        ],
    }
    return ModelRouter.from_config(validate(RuntimeConfig, content, source="test"))


def check(router, query, excluded):
    check_left(router, query, router.eligible([query], excluded=excluded), retry_after_s=7.0)


def test_one_that_is_left_is_enough(router):
    check(router, Query("Hello"), {LARGE: "breaker_open"})


def test_what_the_request_needs_is_the_requests_fault(router):
    query = Query("Hello", requirements=Requirements(tools=True, max_output_tokens=2000))
    with pytest.raises(NoEligibleModelError, match=f"{LARGE}: denied_by_request") as caught:
        check(router, query, {LARGE: "denied_by_request"})
    assert f"{SMALL}: does_not_support_tools" in str(caught.value)


def test_a_rest_of_one_that_could_serve_it_is_503_with_a_time(router):
    with pytest.raises(RequestError) as caught:
        check(router, Query("Hello"), {LARGE: "denied_by_request", SMALL: "breaker_open"})
    error = caught.value
    assert (error.status, error.code, error.retry_after_s) == (503, "no_healthy_candidate", 7.0)


def test_a_rest_of_one_that_could_not_serve_it_anyway_is_no_503(router):
    query = Query("Hello", requirements=Requirements(tools=True))
    with pytest.raises(NoEligibleModelError):
        check(router, query, {LARGE: "denied_by_request", SMALL: "breaker_open"})


def test_a_budget_that_does_not_reach_is_402(router):
    with pytest.raises(RequestError) as caught:
        check(router, Query("Hello"), {LARGE: "budget_exceeded", SMALL: "budget_exceeded"})
    assert (caught.value.status, caught.value.code) == (402, "budget_exceeded")


def test_below_the_minimum_counts_only_who_is_eligible(router):
    eligibility = router.eligible([Query("Hello")], excluded={LARGE: "x"})
    P = np.array([[0.1, 0.9, 0.9, 0.4]])
    assert below_minimum(P, eligibility, router.model_ids, least=0.5) == {
        SMALL: "below_min_probability"
    }
    assert below_minimum(P, eligibility, router.model_ids, least=0.4) == {}


def test_reasons_name_every_ineligible_candidate(router):
    assert reasons_of(router, router.eligible([Query("Hello")])) == {
        "sim-small-vl": "not_configured",
        "sim-large-text": "not_configured",
    }
