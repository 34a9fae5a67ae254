"""What the dashboard is told, on both databases."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from router_runtime.service.dashboard import Dashboard
from router_runtime.service.feedback import Feedbacks
from router_runtime.service.values import Caller, Feedback

DAY_S = 86_400.0
K1 = Caller("k1")


@pytest.fixture
def store(url, opened):
    return opened(url)


@pytest.fixture
def told(store, clock):
    """Return the summary of a caller's last day, of what was recorded."""
    config = SimpleNamespace(service=SimpleNamespace(baseline_model="large"))
    dashboard = Dashboard(
        store.engine,
        config=lambda: config,
        breakers=lambda: {"small": "closed", "large": "open"},
        in_flight=lambda: 3,
        lost=lambda: 4,
        clock=clock,
    )

    def summary(caller=K1, seconds=DAY_S):
        store.flush()
        return asyncio.run(dashboard.summary(caller, seconds=seconds))

    return summary


def record(store, make_event, *events):
    for number, changes in enumerate(events):
        store.record(make_event(f"d{number}", **changes))


def test_nothing_is_told_of_nothing(told):
    found = told()
    assert found["requests"] == found["errors"] == found["left"] == found["decided_only"] == 0
    assert found["saved_usd"] is None
    assert found["saved_share"] is None
    assert found["models"] == found["latency"] == found["recent"] == []
    assert sum(slot["requests"] for slot in found["timeline"]) == 0


def test_ends_are_told_apart(store, make_event, told):
    nobody = {"attempts": (), "cost": None}
    record(
        store,
        make_event,
        {},
        {"attempts": ()},
        {**nobody, "status": 502, "error": "all_targets_failed"},
        {**nobody, "status": 422},
        {**nobody, "status": 499},
    )
    found = told()
    assert found["requests"] == 5
    assert (found["errors"], found["left"], found["decided_only"]) == (2, 1, 1)


def test_spend_and_savings_are_told_with_the_baseline(store, make_event, told):
    record(store, make_event, {"cost": "0.01"}, {"cost": "0.02"})
    found = told()
    assert found["cost_usd"] == pytest.approx(0.03)
    assert found["saved_usd"] == pytest.approx(0.07)
    assert found["saved_share"] == pytest.approx(0.7)
    assert found["baseline"] == "large"


def test_shares_are_of_answers_and_models_that_only_failed_are_shown(store, make_event, told):
    record(
        store,
        make_event,
        {"model": "small"},
        {"model": "small", "failed": ("broken",)},
        {"model": "small"},
        {"model": "large"},
    )
    models = {each["model"]: each for each in told()["models"]}
    assert list(models) == ["small", "large", "broken"]
    assert [each["share"] for each in models.values()] == [0.75, 0.25, 0.0]
    assert [each["failed"] for each in models.values()] == [0, 0, 1]


def test_the_timeline_has_every_request_of_the_window_once(store, make_event, told, clock):
    slot_s = DAY_S / 48
    now = clock.now
    record(
        store,
        make_event,
        {"at": now},
        {"at": now - 0.5 * slot_s, "status": 502},
        {"at": now - 1.5 * slot_s, "status": 499},
        {"at": now - DAY_S},
        {"at": now - DAY_S - 1},
    )
    timeline = told()["timeline"]
    assert len(timeline) == 48
    assert timeline[0]["at"] == now - DAY_S
    assert {n: slot["requests"] for n, slot in enumerate(timeline) if slot["requests"]} == {
        0: 1,
        46: 1,
        47: 2,
    }
    assert [slot["errors"] for slot in timeline if slot["errors"]] == [1]


def test_latency_is_told_by_part(store, make_event, told):
    record(store, make_event, {"total_s": 1.0}, {"total_s": 2.0}, {"total_s": 3.0})
    found = {each["part"]: each for each in told()["latency"]}
    assert found["Whole request"]["p50_s"] == 2.0
    assert found["Whole request"]["p95_s"] == pytest.approx(2.9)
    assert found["Waiting for models"]["p50_s"] == 0.5
    assert found["Deciding"]["p50_s"] == 0.002
    assert found["of it, encoding"]["p50_s"] == 0.001


def test_only_the_callers_requests_and_models_are_told(store, make_event, told):
    record(store, make_event, {"key_id": "k2"})
    assert told()["requests"] == 0
    assert told()["recent"] == []
    narrow = told(Caller("k2", allowed_models=frozenset({"large"})))
    assert narrow["requests"] == 1
    assert narrow["breakers"] == [{"model": "large", "state": "open"}]
    assert (narrow["in_flight"], narrow["records_lost"]) == (3, 4)


def test_recent_decisions_come_newest_first_with_their_feedback(store, make_event, told, clock):
    record(store, make_event, *({"at": clock.now - n} for n in range(30)))
    store.flush()
    asyncio.run(Feedbacks(store, clock=clock).give(K1, Feedback("d1", 1.0)))
    found = told()["recent"]
    assert [each["decision_id"] for each in found] == [f"d{n}" for n in range(25)]
    assert [each["score"] for each in found[:3]] == [None, 1.0, None]


def test_a_shorter_window_tells_less(store, make_event, told, clock):
    record(store, make_event, {"at": clock.now - 10}, {"at": clock.now - 1000})
    assert told(seconds=100.0)["requests"] == 1
    assert told(seconds=2000.0)["requests"] == 2
