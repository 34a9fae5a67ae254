"""Too many requests, and clients that leave: others are served, nothing runs on for nobody."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from router_runtime.service.store import tables

MODEL = "sim-small-text"
SLOW = {MODEL: {"latency": {"median_s": 0.2}}}
HANGING = {MODEL: {"errors": {"rate": 1.0, "kinds": ["hang"]}}}


def until(true, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def calls(site):
    return site.ledger()["models"][MODEL]["in_flight"]


def last_event(site):
    assert site.service.store.flush()
    with site.service.store.engine.connect() as connection:
        found = connection.execute(
            select(tables.decisions).order_by(tables.decisions.c.at.desc())
        ).first()
        attempts = connection.execute(
            select(tables.attempts).where(tables.attempts.c.decision_id == found.decision_id)
        ).all()
    return found, attempts


def test_beyond_what_is_taken_at_once_clients_are_told_to_come_back(open_site):
    site = open_site(models=SLOW, service={"requests": {"max_in_flight": 4}})
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: site.chat(f"{n}", model=MODEL), range(16)))
    refused = [(headers, body) for status, headers, body in found if status == 503]
    assert {status for status, _, _ in found} == {200, 503}
    assert len(found) - len(refused) >= 4
    for headers, body in refused:
        assert body["error"]["code"] == "overloaded"
        assert int(headers["retry-after"]) >= 1
    assert site.ledger()["models"][MODEL]["peak_in_flight"] <= 4
    assert site.chat(model=MODEL)[0] == 200
    until(lambda: site.service.gateway.in_flight == 0)


def test_health_is_told_while_the_service_is_full(open_site):
    site = open_site(models=HANGING, service={"requests": {"max_in_flight": 1}})
    connection = send(site, {"model": MODEL})
    until(lambda: site.service.gateway.in_flight == 1)
    assert site.chat()[0] == 503
    assert site.http("GET", "/healthz")[0] == 200
    connection.close()
    until(lambda: site.service.gateway.in_flight == 0)


def send(site, body):
    """Send a chat request and do not wait for its answer."""
    host, port = site.url.removeprefix("http://").split(":")
    data = json.dumps({"messages": [{"role": "user", "content": "Hello there."}], **body}).encode()
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)
    )
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [MODEL, "auto:small_first"])
def test_a_client_that_leaves_before_the_first_byte_cancels_the_call(open_site, stream, model):
    site = open_site(models=HANGING)
    connection = send(site, {"model": model, "stream": stream})
    until(lambda: calls(site) == 1)
    connection.close()
    until(lambda: calls(site) == 0)
    until(lambda: site.service.gateway.in_flight == 0)
    decision, attempts = last_event(site)
    assert (decision.status, decision.error, decision.served) == (499, "client_left", None)
    assert [(a.model_id, a.error) for a in attempts] == [(MODEL, "cancelled")]
    ledger = site.ledger()["models"]
    assert sum(model["requests"] for model in ledger.values()) == 1, "nobody else was asked"


def test_a_client_that_leaves_is_no_fault_of_the_target(open_site):
    site = open_site(models=HANGING, service={"breaker": {"failures": 1, "rest_s": 100}})
    for _ in range(3):
        connection = send(site, {"model": MODEL})
        until(lambda: calls(site) == 1)
        connection.close()
        until(lambda: calls(site) == 0)
    until(lambda: site.service.gateway.in_flight == 0)
    assert site.admin("GET", "/admin/status")[1]["breakers"][MODEL] == "closed"
