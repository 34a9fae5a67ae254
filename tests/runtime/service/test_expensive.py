from __future__ import annotations

from collections import deque
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.config import CandidateConfig, PriceConfig
from router_runtime.errors import ConfigError
from router_runtime.service.expensive import ExpensiveWatch, dear_models
from router_runtime.service.values import Attempt, Routed, RouteEvent
from router_runtime.service_config import ExpensiveConfig


def event(model: str, *, key: str = "k", policy: str | None = "p", served: str | None = None):
    routed = Routed((model,), "highest_utility", policy=policy)
    attempts = (Attempt(served, None, 0.1),) if served else ()
    return RouteEvent("d", 0.0, key, "chat", "auto", routed, attempts, 200, False, None, 0.1)


def watch(**config) -> ExpensiveWatch:
    settled = ExpensiveConfig(**{"window": 10, "share": 0.5, "action": "clamp", **config})
    return ExpensiveWatch(settled, dear=frozenset({"dear"}))


def tell(watched: ExpensiveWatch, model: str, times: int, **options) -> None:
    for _ in range(times):
        watched.record(event(model, **options))


def test_a_leap_to_the_dearest_is_told_and_held_back_until_it_is_over(caplog):
    watched = watch()
    tell(watched, "dear", 5)
    assert watched.excluded("k") == frozenset()
    tell(watched, "dear", 1)
    assert watched.excluded("k") == {"dear"}
    assert watched.status()["alarmed_keys"] == ["k"]
    assert watched.excluded("another") == frozenset()
    tell(watched, "cheap", 5)
    assert watched.excluded("k") == {"dear"}  # 5 of 10: not far enough below to be over
    tell(watched, "cheap", 1)
    assert watched.excluded("k") == frozenset()
    assert watched.status()["alarms"] == 1
    assert [record.key_id for record in caplog.records] == ["k", "k"]


def test_an_alarm_alone_takes_nothing_away():
    watched = watch(action="alarm")
    tell(watched, "dear", 10)
    assert watched.alarmed == ["k"]
    assert watched.excluded("k") == frozenset()


def test_what_was_served_counts_and_models_called_by_name_do_not():
    watched = watch()
    tell(watched, "dear", 10, policy=None)
    tell(watched, "dear", 10, served="cheap")
    watched.record(RouteEvent("d", 0.0, "k", "chat", "auto", None, (), 400, False, "x", 0.1))
    assert watched.alarmed == []
    tell(watched, "cheap", 10, served="dear")
    assert watched.alarmed == ["k"]


def test_a_share_of_one_switches_it_off():
    watched = watch(share=1.0)
    tell(watched, "dear", 50)
    assert watched.alarmed == []


@given(st.lists(st.booleans(), max_size=80))
def test_the_alarm_is_the_share_of_the_last_calls(calls):
    watched, last, alarmed = watch(), deque(maxlen=10), False
    for dear in calls:
        tell(watched, "dear" if dear else "cheap", 1)
        last.append(dear)
        alarmed = sum(last) > 5 or (alarmed and sum(last) > 4)
        assert (watched.alarmed == ["k"]) == alarmed


def test_keys_that_are_remembered_are_bounded():
    watched = watch()
    for number in range(10_050):
        tell(watched, "dear", 1, key=str(number))
    assert len(watched._keys) == 10_000


def candidate(name: str, price: str | None = None, cost: float | None = None) -> CandidateConfig:
    priced = PriceConfig(input_mtok=Decimal(0), output_mtok=Decimal(price)) if price else None
    return CandidateConfig(id=name, price=priced, cost=cost)


def test_the_dear_ones_are_those_configured_or_the_dearest():
    priced = [candidate("a", "1"), candidate("b", "12"), candidate("c", "12"), candidate("d")]
    assert dear_models(ExpensiveConfig(), priced) == {"b", "c"}
    assert dear_models(ExpensiveConfig(models=("a",)), priced) == {"a"}
    assert dear_models(ExpensiveConfig(), [candidate("a", cost=1), candidate("b", cost=0.3)]) == {
        "a"
    }
    assert dear_models(ExpensiveConfig(), [candidate("a", "1"), candidate("b", "1")]) == frozenset()
    assert dear_models(ExpensiveConfig(), [candidate("a")]) == frozenset()
    with pytest.raises(ConfigError, match=r"service\.expensive\.models: 'x'"):
        dear_models(ExpensiveConfig(models=("x",)), priced)
