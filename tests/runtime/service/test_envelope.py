"""Errors come in OpenAI's envelope with the status that they stand for."""

from __future__ import annotations

import json

import pytest

from router_runtime.errors import (
    AllTargetsFailedError,
    NoEligibleModelError,
    QueryError,
    RequestError,
    TargetTimeoutError,
)
from router_runtime.service.envelope import Refusal, error_event, refusal_of


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (
            RequestError("m", status=401, code="invalid_api_key"),
            401,
            "authentication_error",
            "invalid_api_key",
        ),
        (
            RequestError("m", status=402, code="budget_exceeded"),
            402,
            "insufficient_quota",
            "budget_exceeded",
        ),
        (
            RequestError("m", status=404, code="model_not_found"),
            404,
            "invalid_request_error",
            "model_not_found",
        ),
        (QueryError("m"), 400, "invalid_request_error", "invalid_request"),
        (NoEligibleModelError("m"), 422, "invalid_request_error", "no_eligible_model"),
        (AllTargetsFailedError("m"), 502, "server_error", "all_targets_failed"),
    ],
)
def test_every_error_has_its_status_type_and_code(error, status, kind, code):
    refusal = refusal_of(error)
    assert refusal.status == status
    assert json.loads(refusal.body())["error"] == {
        "message": "m",
        "type": kind,
        "param": "messages" if status == 400 else None,
        "code": code,
    }


def test_a_defect_of_ours_is_told_without_its_words():
    refusal = refusal_of(ValueError("the prompt was: my secret"))
    assert refusal.status == 500
    assert b"secret" not in refusal.body()


def test_retry_after_is_whole_seconds_rounded_up():
    refusal = refusal_of(RequestError("m", status=429, code="x", retry_after_s=1.2))
    assert (b"retry-after", b"2") in refusal.header_list()
    assert all(name != b"retry-after" for name, _ in Refusal(429, "x", "m").header_list())


def test_an_error_event_is_one_server_sent_event():
    event = error_event(Refusal(502, "cut", "line\none"))
    assert event.startswith(b'data: {"error":')
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2


def test_servers_behind_the_service_are_not_named():
    refusal = refusal_of(TargetTimeoutError("'x' at 10.0.0.7:8000 hangs", retryable=True))
    assert (refusal.status, refusal.code) == (502, "target_failed")
    assert b"10.0.0.7" not in refusal.body()
