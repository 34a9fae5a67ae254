from __future__ import annotations

from router_runtime.service.sinks import Sinks
from router_runtime.service.values import RouteEvent

EVENT = RouteEvent("d", 0.0, "k", "chat", "auto", None, (), 200, False, None, 0.1)


class Kept:
    def __init__(self) -> None:
        self.events: list[RouteEvent] = []

    def record(self, event: RouteEvent) -> None:
        self.events.append(event)


class Broken:
    def record(self, event: RouteEvent) -> None:
        raise ValueError("the request said: CANARY")


def test_every_sink_is_told_although_one_fails():
    kept = Kept()
    sinks = Sinks({"broken": Broken(), "kept": kept})
    sinks.record(EVENT)
    assert kept.events == [EVENT]
    assert sinks.status() == {"broken": 1, "kept": 0}


def test_a_failing_sink_is_logged_once_a_minute_and_without_what_it_says(caplog):
    now_s = [0.0]
    sinks = Sinks({"a": Broken(), "b": Broken()}, clock=lambda: now_s[0])
    for now_s[0] in (0.0, 30.0, 59.0, 60.0, 61.0):
        sinks.record(EVENT)
    assert [(r.sink, r.failures) for r in caplog.records] == [
        ("a", 1),
        ("b", 1),
        ("a", 4),
        ("b", 4),
    ]
    assert {record.error_type for record in caplog.records} == {"ValueError"}
    assert "CANARY" not in caplog.text
