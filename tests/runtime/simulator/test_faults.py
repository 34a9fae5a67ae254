"""Every fault, as a plain HTTP client meets it."""

from __future__ import annotations

import http.client
import json
import time

import pytest

from router_runtime.simulator.faults import FAULT_KINDS

STATUS = {
    "html_error_page": 502,
    "redirect_loop": 307,
    "insufficient_quota": 429,
    "rate_limit_storm": 429,
    **{kind: int(kind[-3:]) for kind in FAULT_KINDS if kind.startswith("status_")},
}
BROKEN = {
    "hang": TimeoutError,
    "reset": ConnectionResetError,
    "reset_midway": ConnectionResetError,
    "closed": http.client.RemoteDisconnected,
    "short_body": http.client.IncompleteRead,
    "chunked_cut_off": http.client.IncompleteRead,
    "bad_chunk": http.client.IncompleteRead,
    "not_http": http.client.BadStatusLine,
}
NO_JSON = ("truncated_json", "invalid_utf8", "html_page", "html_error_page", "empty_body")


def message(body):
    return body["choices"][0]["message"]


EDITED = {
    "json_list": lambda body: body == [],
    "json_text": lambda body: body == "ok",
    "error_body_200": lambda body: body["error"]["type"] == "server_error",
    "empty_choices": lambda body: body["choices"] == [],
    "missing_choices": lambda body: "choices" not in body,
    "null_message": lambda body: message(body) is None,
    "missing_message": lambda body: "message" not in body["choices"][0],
    "empty_content": lambda body: message(body)["content"] == "",
    "null_content": lambda body: message(body)["content"] is None,
    "content_filter": lambda body: body["choices"][0]["finish_reason"] == "content_filter",
    "usage_missing": lambda body: "usage" not in body and message(body)["content"],
    "usage_nonsense": lambda body: body["usage"]["prompt_tokens"] < 0,
    "duplicate_ids": lambda body: body["id"] == "chatcmpl-duplicate" and message(body)["content"],
}
HEADERS = {
    "wrong_content_type": ("content-type", "image/png"),
    "bad_gzip": ("content-encoding", "gzip"),
    "redirect_loop": ("location", "/v1/chat/completions"),
    "status_429": ("retry-after", "1"),
    "status_503": ("retry-after", "1"),
}
LARGE = ("huge_body", "deeply_nested", "slow_trickle")


@pytest.fixture(scope="module")
def provider(start):
    errors = {kind: {"errors": {"rate": 1, "kinds": [kind]}} for kind in FAULT_KINDS}
    return start({**errors, "vectors": {"role": "embedding", "errors": {"rate": 1}}})


def ask(provider, kind, timeout=5, **parameters):
    body = {"model": kind, "messages": provider.user("Say a secret word."), **parameters}
    return provider.http("POST", "/v1/chat/completions", body, timeout=timeout)


def test_at_least_thirty_faults_are_known_and_all_are_shown_here():
    shown = {*STATUS, *BROKEN, *NO_JSON, *EDITED, *HEADERS, *LARGE}
    assert shown == set(FAULT_KINDS) and len(FAULT_KINDS) >= 30
    assert all((fault.play is None) != (fault.edit is None) for fault in FAULT_KINDS.values())


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("stream", [False, True])
def test_connections_break(provider, kind, stream):
    with pytest.raises(BROKEN[kind]):
        ask(provider, kind, timeout=0.3, stream=stream)
    assert provider.ledger()["models"][kind]["answered"] == 0


@pytest.mark.parametrize("kind", STATUS)
def test_statuses_come_with_an_error_that_shows_nothing(provider, kind):
    status, _, body = ask(provider, kind)
    assert status == STATUS[kind] and b"secret" not in body


@pytest.mark.parametrize("kind", NO_JSON)
def test_bodies_are_no_json(provider, kind):
    with pytest.raises(ValueError):
        json.loads(ask(provider, kind)[2])


@pytest.mark.parametrize("kind", EDITED)
def test_bodies_are_json_that_the_api_does_not_promise(provider, kind):
    assert EDITED[kind](json.loads(ask(provider, kind)[2]))


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_mislead_or_tell_when_to_come_back(provider, kind):
    name, value = HEADERS[kind]
    assert ask(provider, kind)[1][name] == value


def test_a_deep_list_is_too_deep_for_json(provider):
    with pytest.raises(RecursionError):
        json.loads(ask(provider, "deeply_nested")[2])


def begun(provider, kind):
    """An answer whose body is still to be read."""
    connection = http.client.HTTPConnection(provider.url.removeprefix("http://"), timeout=5)
    body = {"model": kind, "messages": provider.user("hi")}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection, connection.getresponse()


def test_a_huge_body_can_be_left_in_the_middle(provider):
    connection, response = begun(provider, "huge_body")
    assert len(response.read(2**21)) == 2**21
    response.close()
    connection.close()
    assert ask(provider, "usage_missing")[0] == 200


def test_a_trickle_defeats_timeouts_that_count_from_byte_to_byte(provider):
    connection, response = begun(provider, "slow_trickle")
    began = time.monotonic()
    assert [response.read(1) for _ in range(5)] == [b" "] * 5
    assert time.monotonic() - began > 0.15
    response.close()
    connection.close()


def test_edits_reach_streams(provider):
    events = ask(provider, "duplicate_ids", stream=True)[2].decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-duplicate"} and len(chunks) > 2
    assert events[-2:] == ["data: [DONE]", ""]


def test_a_caller_that_leaves_frees_the_model(provider):
    with pytest.raises(TimeoutError):
        ask(provider, "hang", timeout=0.2)
    deadline = time.monotonic() + 5
    while provider.ledger()["models"]["hang"]["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    models = provider.ledger()["models"].values()
    assert [model["in_flight"] for model in models] == [0] * len(models)


def test_embeddings_meet_faults_too(provider):
    body = {"model": "vectors", "input": "x"}
    assert provider.http("POST", "/v1/embeddings", body)[0] == 500
