"""Two replicas on one PostgreSQL and one Redis: budgets hold, spend and feedback are shared."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import ExitStack
from decimal import Decimal

import pytest

from router_runtime.service.keys import create_key
from router_runtime.service.store.engine import open_engine, upgrade
from router_runtime.service.values import KeyLimits

PEPPER = b"pepper-of-the-tests-0123456789"
ASKED = 60


@pytest.fixture
def redis_url():
    """A database of the local Redis that nobody else uses, empty before and after."""
    import redis

    url = "redis://127.0.0.1:6379/11"
    client = redis.Redis.from_url(url, socket_connect_timeout=2)
    try:
        client.flushdb()
    except redis.ConnectionError:
        pytest.skip("no Redis at 127.0.0.1:6379")
    yield url
    client.flushdb()
    client.close()


@pytest.fixture
def replicas(site_maker, postgres_url, redis_url, tmp_path):
    """Two running services on the same database and the same Redis, and a way to make keys."""
    engine = open_engine(postgres_url)
    upgrade(engine)

    def key(**limits):
        name = f"tenant-{uuid.uuid4().hex[:6]}"
        return create_key(
            engine, PEPPER, name=name, allowed_models=None, limits=KeyLimits(**limits)
        )

    first = key()
    with ExitStack() as stack:
        sites = []
        for name in ("a", "b"):
            folder = tmp_path / name
            folder.mkdir()
            shared = {"redis_url": redis_url, "store": {"url": postgres_url, "spool": "spool"}}
            sites.append(site_maker(stack, folder, service=shared))
        yield sites, key, first
    engine.dispose()


def ask(site, key, number):
    status, _, body = site.chat(
        f"What is {number} + 25? Explain every step in detail.",
        model="sim-large-vl",
        headers={"authorization": f"Bearer {key}"},
        max_tokens=60,
    )
    return status, body


def hammer(sites, key):
    """Ask both replicas at once; return (status, body) of every request."""
    found = []

    def work(site, numbers):
        found.extend(ask(site, key, number) for number in numbers)

    threads = [
        threading.Thread(target=work, args=(sites[at % 2], range(at, ASKED, 6))) for at in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_budget_holds_over_both_and_what_it_paid_for_is_on_one_book(replicas):
    sites, make_key, _ = replicas
    budget = Decimal("0.006")
    made = make_key(usd_per_day=budget)
    for site in sites:
        site.service.keys.refresh()
    found = hammer(sites, made.key)
    statuses = {status for status, _ in found}
    assert statuses == {200, 402}
    refused = [body for status, body in found if status == 402]
    assert {body["error"]["code"] for body in refused} == {"budget_exceeded"}
    for site in sites:
        site.service.store.flush()
    spent = [site.service.store.spent(made.id, 0.0) for site in sites]
    charged = sum(site.ledger_usd() for site in sites)
    assert spent[0] == spent[1] == charged  # either replica tells all of it
    assert 0 < charged <= budget


def test_requests_per_minute_are_counted_together(replicas):
    sites, make_key, _ = replicas
    made = make_key(requests_per_minute=20)
    for site in sites:
        site.service.keys.refresh()
    found = hammer(sites, made.key)
    assert sum(status == 200 for status, _ in found) == 20
    assert {status for status, _ in found} == {200, 429}


def test_feedback_may_be_given_at_the_other_replica(replicas):
    (one, other), _, first = replicas
    headers = {"authorization": f"Bearer {first.key}"}
    status, told, _ = one.chat(headers=headers)
    assert status == 200
    one.service.store.flush()
    body = {"decision_id": told["x-router-decision-id"], "score": 1.0}
    status, _, answer = other.post("/v1/feedback", body, headers)
    assert status in (200, 201), json.dumps(answer)
