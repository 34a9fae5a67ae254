from __future__ import annotations

import asyncio
import gc
import io
import json
import logging

import pytest

from router_runtime.errors import ConfigError
from router_runtime.pricing import Usage
from router_runtime.service.logs import Logs, configure_logs
from router_runtime.service.values import Attempt, Routed, RouteEvent

CANARY = "canary-7f3a"


def event(*attempts: Attempt, status: int = 200, error: str | None = None, reason: str = "fixed"):
    routed = Routed(("a", "b"), reason, policy="p")
    messages = ({"role": "user", "content": CANARY},)
    return RouteEvent(
        "d1", 0.0, "k1", "chat", "auto", routed, attempts, status, False, error, 0.5,
        messages=messages,
    )  # fmt: skip


OK = Attempt("a", None, 0.4, usage=Usage(1, 2))


@pytest.fixture
def lines():
    """Configure logging as the service does, to a buffer; give the lines that came so far."""
    root, own = logging.getLogger(), logging.getLogger("router_runtime")
    before = root.handlers[:], root.level, own.level
    stream = io.StringIO()

    def configured(level: str = "warning"):
        configure_logs(level, stream=stream)
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield configured
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def test_a_smooth_request_is_told_at_info_only(lines):
    told = lines("warning")
    Logs().record(event(OK))
    assert told() == []
    lines("info")
    Logs().record(event(OK))
    assert told()[0]["event"] == "request"


@pytest.mark.parametrize(
    ("rough", "message"),
    [
        (event(Attempt("a", "timeout", 1.0), Attempt("b", None, 0.1)), "request fell back"),
        (event(OK, reason="router_failure"), "request fell back"),
        (event(Attempt("a", "cut", 1.0), error="cut"), "request failed"),
        (event(status=429, error="rate_limit_exceeded"), "request failed"),
    ],
)
def test_a_request_that_failed_or_fell_back_is_one_warning(lines, rough, message):
    told = lines()
    Logs().record(rough)
    (line,) = told()
    assert (line["event"], line["level"]) == (message, "warning")
    assert line["decision_id"] == "d1"
    assert line["attempts"] == [{"model": a.model_id, "error": a.error} for a in rough.attempts]
    assert line["timestamp"].endswith("Z")


def test_what_the_client_said_or_spelt_is_in_no_line(lines):
    told = lines("debug")
    for routed in (None, event().routed):
        refused = RouteEvent(
            "d", 0.0, "k", "chat", CANARY, routed, (), 404, False, "model_not_found", 0.1
        )
        Logs().record(refused)
    Logs().record(event(OK))
    assert len(told()) == 3
    assert CANARY not in json.dumps(told())


def test_shed_requests_are_told_by_their_number_once_a_second(lines):
    told = lines()
    now_s = [0.0]
    logs = Logs(clock=lambda: now_s[0])
    for n in range(25):
        now_s[0] = n / 10
        logs.record(event(status=503, error="overloaded"))
    assert [line["requests"] for line in told()] == [1, 10, 10]
    assert {line["event"] for line in told()} == {"requests shed"}


def test_an_exception_is_told_by_type_and_place_and_not_by_its_words(lines):
    told = lines()
    try:
        raise ValueError(CANARY) from KeyError(CANARY)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n%s", CANARY)
        logging.getLogger("router_runtime.x").exception("it failed", extra={"value": object()})
    assert [line["error_type"] for line in told()] == ["ValueError"] * 2
    assert "test_an_exception_is_told" in told()[0]["traceback"][0]
    assert told()[1]["value"] == "<object>"
    assert CANARY not in json.dumps(told())


def test_what_asyncio_says_of_a_lost_task_shows_no_content(lines):
    told = lines()

    async def fail() -> None:
        raise ValueError(CANARY)

    async def run() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    asyncio.run(run())
    gc.collect()
    (line,) = told()
    assert line["event"] == "Task exception was never retrieved"
    assert CANARY not in json.dumps(line)


def test_libraries_are_heard_from_warnings_on(lines):
    told = lines("debug")
    logging.getLogger("aiohttp.client").info("sent %s", CANARY)
    logging.getLogger("uvicorn.access").info("GET /%s", CANARY)
    logging.getLogger("router_runtime.x").debug("own")
    assert [line["event"] for line in told()] == ["own"]


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match="no log level 'loud'"):
        configure_logs("loud")
