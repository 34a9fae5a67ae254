"""Candidates that fail: another answers, or the client gets an error that it can act on."""

from __future__ import annotations

import http.client
import json
import time

import openai
import pytest

ALL = ("sim-large-vl", "sim-small-vl", "sim-large-text", "sim-small-text")

SMALL_THEN_LARGE = {"allow": ["sim-small-text", "sim-large-text"], "policy": "small_first"}


def broken(*names, kind="status_500", **more):
    return {name: {"errors": {"rate": 1.0, "kinds": [kind]}, **more} for name in names}


def events_of(site):
    """What the store has of the last request: (decision, attempts)."""
    from sqlalchemy import select

    from router_runtime.service.store import tables

    assert site.service.store.flush()
    with site.service.store.engine.connect() as connection:
        decision = connection.execute(
            select(tables.decisions).order_by(tables.decisions.c.at.desc())
        ).first()
        attempts = connection.execute(
            select(tables.attempts)
            .where(tables.attempts.c.decision_id == decision.decision_id)
            .order_by(tables.attempts.c.number)
        ).all()
    return decision, attempts


def until(true, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("status_500", "status_500"),
        ("status_429", "status_429"),
        ("status_401", "status_401"),
        ("closed", "connection"),
        ("reset", "connection"),
        ("not_http", "protocol"),
        ("html_page", "protocol"),
        ("empty_content", "empty"),
        ("empty_choices", "empty"),
        ("truncated_json", "protocol"),
        ("error_body_200", "status_500"),
    ],
)
def test_what_fails_before_the_answer_is_answered_by_the_next(open_site, kind, error):
    site = open_site(models=broken("sim-small-text", kind=kind))
    status, headers, body = site.chat(router=SMALL_THEN_LARGE)
    decision, attempts = events_of(site)
    assert status == 200, body
    assert decision.chosen == "sim-small-text"
    assert headers["x-router-attempts"] == "2"
    assert [a.error for a in attempts] == [error, None]
    assert headers["x-router-model"] == decision.served == "sim-large-text"


def test_when_all_fail_it_is_said_and_counted(open_site):
    site = open_site(models=broken(*ALL))
    status, headers, body = site.chat()
    assert (status, body["error"]["code"]) == (502, "all_targets_failed")
    assert headers["x-router-attempts"] == "3"
    assert "127.0.0.1" not in json.dumps(body)
    decision, attempts = events_of(site)
    assert (decision.status, decision.served, len(attempts)) == (502, None, 3)


def test_when_all_are_limited_the_client_is_told_to_wait(open_site):
    site = open_site(models=broken(*ALL, kind="status_429"))
    status, headers, body = site.chat()
    assert (status, body["error"]["code"]) == (429, "upstream_rate_limited")
    assert int(headers["retry-after"]) >= 1


def test_when_all_are_silent_it_is_a_timeout(open_site):
    def hurry(content):
        for candidate in content["candidates"]:
            candidate["target"]["timeout_s"] = 0.1

    site = open_site(models=broken(*ALL, kind="hang"), edit=hurry)
    status, _, body = site.chat()
    assert (status, body["error"]["code"]) == (504, "upstream_timeout")


def test_a_refusal_of_the_request_itself_is_passed_on_as_it_came(open_site):
    site = open_site(models=broken(*ALL, kind="status_400"))
    status, headers, body = site.chat()
    theirs = {"model": "sim-small-text", "messages": [{"role": "user", "content": "x"}]}
    direct = site.http("POST", "/v1/chat/completions", theirs, url=site.provider_url)
    assert (status, body) == (direct[0], json.loads(direct[2]))
    assert headers["x-router-attempts"] == "1"


def test_a_target_that_keeps_failing_is_left_alone(open_site):
    site = open_site(
        models=broken("sim-small-text"), service={"breaker": {"failures": 2, "rest_s": 100}}
    )
    for _ in range(2):
        assert site.chat(model="sim-small-text")[0] == 502
    asked = site.ledger()["models"]["sim-small-text"]["requests"]
    status, headers, body = site.chat(model="sim-small-text")
    assert (status, body["error"]["code"]) == (503, "no_target_available")
    assert int(headers["retry-after"]) > 1
    assert site.ledger()["models"]["sim-small-text"]["requests"] == asked
    told = site.post("/v1/route", {"messages": [{"role": "user", "content": "Hi"}]})[2]
    reasons = {c["model"]: c["reason"] for c in told["candidates"]}
    assert reasons["sim-small-text"] == "breaker_open"


@pytest.mark.parametrize("kind", ["reset_midway", "chunked_cut_off"])
def test_a_stream_that_breaks_ends_with_an_error_and_never_cleanly(open_site, kind):
    site = open_site(models=broken(*ALL, kind=kind))
    body = {
        "model": "sim-large-text",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": True,
    }
    status, _, data = site.http("POST", "/v1/chat/completions", body)
    assert status == 200
    assert b"[DONE]" not in data
    last = data.strip().rpartition(b"data: ")[2]
    assert json.loads(last)["error"]["code"] == "stream_cut"
    decision, attempts = events_of(site)
    assert (decision.status, decision.error) == (200, "cut")
    assert attempts[0].error == "cut"
    assert attempts[0].estimated


def test_the_openai_client_sees_a_broken_stream_as_an_error(open_site):
    site = open_site(models=broken(*ALL, kind="reset_midway"))
    with pytest.raises(openai.APIError):
        list(
            site.client().chat.completions.create(
                model="sim-large-text",
                messages=[{"role": "user", "content": "Tell me a story."}],
                stream=True,
            )
        )


@pytest.mark.parametrize("kind", ["status_503", "closed", "empty_content"])
def test_a_stream_falls_back_before_its_first_byte(open_site, kind):
    site = open_site(models=broken("sim-small-text", kind=kind))
    stream = site.client().chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "What is 17 + 25?"}],
        stream=True,
        extra_body={"router": SMALL_THEN_LARGE},
    )
    assert {chunk.model for chunk in stream} == {"sim-large-text"}


def test_the_overhead_of_a_stream_leaves_out_the_wait_for_its_first_byte(open_site):
    slow = {"latency": {"median_s": 1.0, "sigma": 0}}
    site = open_site(models={**broken("sim-small-text"), "sim-large-text": slow})
    raw = site.client().chat.completions.with_raw_response.create(
        model="auto",
        messages=[{"role": "user", "content": "What is 17 + 25?"}],
        stream=True,
        extra_headers={"x-router-debug": "true"},
        extra_body={"router": SMALL_THEN_LARGE},
    )
    assert list(raw.parse())
    waited_s = sum(attempt.first_byte_s for attempt in events_of(site)[1])
    assert waited_s >= 1
    assert float(raw.headers["x-router-overhead-ms"]) < 1000 * waited_s


def test_a_client_that_leaves_ends_the_call_and_is_accounted_for(open_site):
    site = open_site(models={"sim-small-text": {"tokens_per_second": 5}})
    connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=20)
    body = {
        "model": "sim-small-text",
        "messages": [{"role": "user", "content": "Tell me a long story. " * 20}],
        "stream": True,
    }
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    assert answer.read(5)
    answer.close()
    connection.close()
    until(lambda: site.service.gateway.in_flight == 0)
    until(lambda: site.ledger()["models"]["sim-small-text"].get("in_flight", 0) == 0)
    decision, attempts = events_of(site)
    assert (decision.status, decision.error) == (499, "client_left")
    assert [a.error for a in attempts] == ["cancelled"]
    assert attempts[0].estimated
    assert attempts[0].cost_usd > 0


def test_a_failure_of_the_router_is_no_error_of_the_clients(open_site, monkeypatch):
    site = open_site()
    router = site.service.generations.current.decider.predictions

    async def fails(query, *, tenant):
        raise RuntimeError("canary")

    monkeypatch.setattr(router, "of", fails, raising=False)
    status, headers, _ = site.chat()
    assert status == 200
    assert headers["x-router-reason"] == "router_failure"
    assert headers["x-router-fallback"] == "router_failure"
    assert site.admin("GET", "/admin/status")[1]["router_failures"] == {"RuntimeError": 1}


def test_the_cost_bound_of_a_request_holds_over_its_attempts(open_site):
    site = open_site(models=broken("sim-small-text", kind="empty_content"))
    told = site.post(
        "/v1/route",
        {
            "messages": [{"role": "user", "content": "What is 17 + 25?"}],
            "router": SMALL_THEN_LARGE,
        },
    )[2]
    costs = {c["model"]: c["expected_cost"] for c in told["candidates"]}
    bounded = {**SMALL_THEN_LARGE, "max_cost_usd": costs["sim-large-text"]}
    status, _, body = site.chat(router=bounded)
    assert status == 502, body
    assert [a.error for a in events_of(site)[1]] == ["empty", "budget"]
    generous = {**SMALL_THEN_LARGE, "max_cost_usd": 2 * costs["sim-large-text"]}
    assert site.chat(router=generous)[1]["x-router-model"] == "sim-large-text"


def test_a_keys_budget_is_reserved_before_and_settled_after(open_site):
    from router_runtime.service.keys import create_key
    from router_runtime.service.values import KeyLimits

    site = open_site()
    limits = KeyLimits(usd_per_day=site.ledger_usd() + 1)
    rich = create_key(
        site.service.store.engine, b"pepper-of-the-tests-0123456789", name="rich", limits=limits
    )
    poor = create_key(
        site.service.store.engine,
        b"pepper-of-the-tests-0123456789",
        name="poor",
        limits=KeyLimits(usd_per_day=limits.usd_per_day / 10**7),
    )
    site.service.keys.refresh()
    status, _, _ = site.chat(headers={"authorization": f"Bearer {rich.key}"})
    assert status == 200
    assert site.spent(rich.id) == site.ledger_usd()
    status, _, body = site.chat(
        model="sim-large-vl", headers={"authorization": f"Bearer {poor.key}"}
    )
    assert (status, body["error"]["code"]) == (402, "budget_exceeded")


def test_a_key_that_may_not_use_a_model_is_refused_it(open_site):
    from router_runtime.service.keys import create_key

    site = open_site()
    made = create_key(
        site.service.store.engine,
        b"pepper-of-the-tests-0123456789",
        name="small",
        allowed_models=["sim-small-text"],
    )
    site.service.keys.refresh()
    sent = {"authorization": f"Bearer {made.key}"}
    status, _, body = site.chat(model="sim-large-vl", headers=sent)
    assert (status, body["error"]["code"]) == (403, "model_not_allowed")
    assert site.chat(headers=sent)[1]["x-router-model"] == "sim-small-text"
    listed = json.loads(site.http("GET", "/v1/models", None, sent)[2])["data"]
    assert "sim-large-vl" not in {model["id"] for model in listed}


@pytest.mark.parametrize("kept", [False, True])
def test_messages_are_stored_only_where_that_is_switched_on(open_site, kept):
    from sqlalchemy import func, select

    from router_runtime.service.store import tables

    def switch(content):
        content["service"]["store"]["content"] = kept

    site = open_site(edit=switch)
    site.chat("My canary words")
    assert site.service.store.flush()
    with site.service.store.engine.connect() as connection:
        rows = connection.execute(select(func.count()).select_from(tables.content)).scalar()
    assert rows == int(kept)
    files = [path for path in site.folder.rglob("*") if path.is_file()]
    found = any(b"My canary words" in path.read_bytes() for path in files)
    assert found is kept
