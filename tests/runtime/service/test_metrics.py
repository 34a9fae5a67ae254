from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router_runtime.pricing import Usage
from router_runtime.service.metrics import Metrics
from router_runtime.service.parts import _gauges
from router_runtime.service.values import Attempt, Routed, RouteEvent

ROOT = Path(__file__).parents[3]
CANARY = "canary-7f3a"


def event(*attempts: Attempt, routed: Routed | None = None, **changes) -> RouteEvent:
    fields = {
        "decision_id": CANARY, "at": 0.0, "key_id": CANARY, "endpoint": "chat",
        "requested": CANARY, "routed": routed, "attempts": attempts, "status": 200,
        "stream": False, "error": None, "total_s": 1.0,
        "messages": ({"role": "user", "content": CANARY},),
    }  # fmt: skip
    return RouteEvent(**{**fields, **changes})


def samples(metrics: Metrics) -> dict[tuple, float]:
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    assert CANARY not in text.decode()
    assert list(text_string_to_metric_families(text.decode()))  # a scraper can read it
    return {
        (sample.name.removeprefix("model_router_"), *sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


ROUTED = Routed(
    ("dear", "cheap"), "highest_utility", policy="p", decide_s=0.001, encode_s=0.0005,
    expected_cost={"dear": 0.02, "cheap": 0.001},
)  # fmt: skip
FAILED = Attempt("dear", "status_503", 0.2)
SERVED = Attempt(
    "cheap", None, 0.7, first_byte_s=0.3, usage=Usage(10, 20), cost_usd=Decimal("0.0015")
)


def test_a_request_that_fell_back_is_counted_in_every_respect():
    metrics = Metrics(baseline_model="dear")
    metrics.record(event(FAILED, SERVED, routed=ROUTED))
    found = samples(metrics)
    expected = {
        ("requests_total", "chat", "2xx"): 1,
        ("decisions_total", "dear", "p", "highest_utility"): 1,
        ("attempts_total", "dear", "status_5xx"): 1,
        ("attempts_total", "cheap", "ok"): 1,
        ("fallbacks_total", "dear", "cheap"): 1,
        ("cost_usd_total", "cheap", "false"): 0.0015,
        ("baseline_cost_usd_total",): 0.02,
        ("routed_cost_usd_total",): 0.0015,
        ("tokens_total", "cheap", "input"): 10,
        ("tokens_total", "cheap", "output"): 20,
        ("request_seconds_sum", "chat"): 1.0,
        ("decide_seconds_sum",): 0.001,
        ("encode_seconds_sum",): 0.0005,
        ("upstream_first_byte_seconds_sum", "cheap"): 0.3,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["overhead_seconds_sum", "chat"] == pytest.approx(0.1)
    assert ("upstream_first_byte_seconds_sum", "dear") not in found


def test_estimates_cuts_and_refusals_are_told_apart():
    metrics = Metrics()
    cut = Attempt("cheap", "cut", 0.5, usage=Usage(1, 1), estimated=True, cost_usd=Decimal(1))
    metrics.record(event(cut, error="cut", stream=True))
    metrics.record(event(status=429, error="rate_limit_exceeded", endpoint="embeddings"))
    metrics.record(event(SERVED, routed=Routed(("cheap",), "requested")))
    found = samples(metrics)
    assert found["stream_cuts_total",] == 1
    assert found["cost_usd_total", "cheap", "true"] == 1
    assert found["requests_total", "embeddings", "4xx"] == 1
    assert ("overhead_seconds_count", "embeddings") not in found
    assert found["decide_seconds_count",] == 0
    assert found["baseline_cost_usd_total",] == 0


def test_a_prediction_at_hand_takes_no_encoding():
    metrics = Metrics()
    cached = Routed(("a",), "fixed", policy="p", encode_s=0.1, cached=True)
    metrics.record(event(Attempt("a", None, 0.1), routed=cached))
    found = samples(metrics)
    assert found["predictions_cached_total",] == 1
    assert found["encode_seconds_count",] == 0


def test_batches_are_counted_by_lane():
    metrics = Metrics()
    metrics.record_batch("text", 3, 0.002, 0.01)
    metrics.record_batch("image", 1, 0.0, 0.5)
    found = samples(metrics)
    assert found["encoding_batch_size_sum", "text"] == 3
    assert found["encoding_wait_seconds_sum", "text"] == 0.002
    assert found["encoding_batch_seconds_sum", "image"] == 0.5


def test_how_things_stand_is_asked_when_scraped():
    metrics, in_flight = Metrics(), [3]
    metrics.gauge("requests_in_flight", "Now.", lambda: in_flight[0])
    metrics.gauge("breaker_open", "1 while open.", lambda: {"a": 1, "b": 0}, label="model")
    metrics.counter("records_lost", "Since start.", lambda: 7)
    metrics.gauge("broken", "Fails.", lambda: {}["gone"])
    found = samples(metrics)
    assert found["requests_in_flight",] == 3
    assert (found["breaker_open", "a"], found["breaker_open", "b"]) == (1, 0)
    assert found["records_lost_total",] == 7
    assert not any(key[0].startswith("broken") for key in found)
    in_flight[0] = 4
    assert samples(metrics)["requests_in_flight",] == 4
    with pytest.raises(ValueError, match="already"):
        metrics.gauge("broken", "Again.", lambda: 0)


def test_labels_are_bounded_whatever_comes():
    metrics = Metrics()
    for number in range(300):
        metrics.record(event(Attempt(f"m{number}", None, 0.1)))
    attempts = {k: v for k, v in samples(metrics).items() if k[0] == "attempts_total"}
    assert len(attempts) == 201
    assert attempts["attempts_total", "other", "ok"] == 100


def test_services_in_one_process_do_not_share_metrics():
    one, other = Metrics(), Metrics()
    one.record(event())
    assert ("requests_total", "chat", "2xx") not in samples(other)


def test_the_dashboard_asks_for_metrics_that_there_are():
    board = json.loads((ROOT / "configs" / "grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"model_router_\w+", target["expr"])
    }
    metrics = Metrics(baseline_model="dear")
    metrics.record(event(FAILED, SERVED, routed=ROUTED))
    known = {f"model_router_{key[0]}" for key in samples(metrics)}
    _gauges(SimpleNamespace(metrics=metrics, store=None))  # only names are asked for here
    for name, (*_, counts) in metrics._standing._readings.items():
        known.add(f"{name}_total" if counts else name)
    assert asked
    assert asked <= known
