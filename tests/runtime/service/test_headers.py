"""What of x-router-* is read, and what an answer says."""

from __future__ import annotations

from decimal import Decimal

import pytest

from router_runtime.service.headers import (
    Told,
    answer_headers,
    debug_asked,
    named_loopback,
    session_of,
)
from router_runtime.service.values import Routed
from router_runtime.types import Reason, RoutingDecision

DECISION = RoutingDecision(
    model_id="small",
    ranking=("small",),
    probabilities={"small": 0.75},
    expected_cost={"small": 0.001},
    cost_unit="usd",
    ineligible={},
    reason=Reason.HIGHEST_UTILITY,
    artifact_id="a",
    policy="saver",
)
ROUTED = Routed(("small",), "highest_utility", policy="saver", decision=DECISION)


def test_details_come_only_when_asked_for():
    told = Told(
        "d-1", "small", ROUTED, attempts=2, cost_usd=Decimal("0.000000125"), overhead_s=0.0012
    )
    assert dict(answer_headers(told, debug=False)) == {
        b"x-router-schema-version": b"1",
        b"x-router-decision-id": b"d-1",
        b"x-router-model": b"small",
        b"x-router-reason": b"highest_utility",
        b"x-router-attempts": b"2",
    }
    details = dict(answer_headers(told, debug=True))
    assert details[b"x-router-policy"] == b"saver"
    assert details[b"x-router-probability"] == b"0.750000"
    assert details[b"x-router-cost-usd"] == b"0.000000125"
    assert details[b"x-router-overhead-ms"] == b"1.200"


def test_a_failure_of_the_router_itself_is_said():
    routed = Routed(("small",), "router_failure")
    headers = dict(answer_headers(Told("d-1", "small", routed), debug=False))
    assert headers[b"x-router-fallback"] == b"router_failure"
    assert b"x-router-fallback" not in dict(
        answer_headers(Told("d-1", "small", ROUTED), debug=False)
    )


def test_a_refused_request_has_an_id_and_no_model():
    assert dict(answer_headers(Told("d-1"), debug=True)) == {
        b"x-router-schema-version": b"1",
        b"x-router-decision-id": b"d-1",
    }


def test_names_cannot_add_headers_of_their_own():
    routed = Routed(("x",), "requested")
    told = Told("d-1", "evil\r\nset-cookie: a=b\u00e9", routed)
    value = dict(answer_headers(told, debug=False))[b"x-router-model"]
    assert b"\r" not in value
    assert b"\n" not in value
    assert value.isascii()


@pytest.mark.parametrize(
    ("value", "asked"), [(b"true", True), (b"TRUE ", True), (b"1", False), (b"", False)]
)
def test_debug_is_asked_for_by_the_word_true(value, asked):
    assert debug_asked({b"x-router-debug": value}) is asked


def test_a_session_is_what_the_configured_header_says():
    assert session_of({b"x-chat": b" c-1 "}, "x-chat") == "c-1"
    assert session_of({b"x-chat": b" "}, "x-chat") is None
    assert session_of({}, "x-chat") is None


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        (b"127.0.0.1:8080", True),
        (b"localhost", True),
        (b"[::1]:8080", True),
        (b"[::1]", True),
        (b"LOCALHOST:1", True),
        (b"attacker.example:8080", False),
        (b"127.0.0.1.attacker.example", False),
        (b"", False),
    ],
)
def test_only_names_of_this_machine_count_as_loopback(host, ours):
    assert named_loopback({b"host": host}) is ours
