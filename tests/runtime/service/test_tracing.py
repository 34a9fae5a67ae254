from __future__ import annotations

import gzip
import sys
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from router_runtime.errors import MissingDependencyError
from router_runtime.pricing import Usage
from router_runtime.service.tracing import Tracing, open_tracing
from router_runtime.service.values import Attempt, Routed, RouteEvent
from router_runtime.service_config import TracesConfig

CANARY = "canary-7f3a"


def event(**changes) -> RouteEvent:
    routed = Routed(("dear", "cheap"), "highest_utility", policy="p", decide_s=0.25)
    attempts = (
        Attempt("dear", "status_503", 0.5),
        Attempt("cheap", None, 1.0, usage=Usage(10, 20), cost_usd=Decimal("0.5")),
    )
    fields = {
        "decision_id": "d1", "at": 1000.0, "key_id": CANARY, "endpoint": "chat",
        "requested": CANARY, "routed": routed, "attempts": attempts, "status": 200,
        "stream": False, "error": None, "total_s": 2.0,
        "messages": ({"role": "user", "content": CANARY},),
    }  # fmt: skip
    return RouteEvent(**{**fields, **changes})


def spans_of(*events: RouteEvent, sample: float = 1.0):
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, sample=sample)
    for one in events:
        tracing.record(one)
    tracing.close()
    return exporter.get_finished_spans()


def test_a_request_is_a_span_with_a_child_for_each_call():
    first, second, whole = spans_of(event())
    assert [span.name for span in (whole, first, second)] == [
        "chat dear",
        "chat dear",
        "chat cheap",
    ]
    assert {first.parent.span_id, second.parent.span_id} == {whole.context.span_id}
    assert (whole.start_time, whole.end_time) == (1000 * 10**9, 1002 * 10**9)
    assert (first.start_time, first.end_time) == (1000_250_000_000, 1000_750_000_000)
    assert second.start_time == first.end_time
    assert whole.attributes["gen_ai.request.model"] == "dear"
    assert whole.attributes["gen_ai.response.model"] == "cheap"
    assert whole.attributes["http.response.status_code"] == 200
    assert whole.attributes["model_router.cost_usd"] == 0.5
    assert whole.status.status_code is StatusCode.UNSET
    assert first.attributes["error.type"] == "status_503"
    assert first.status.status_code is StatusCode.ERROR
    assert second.attributes["gen_ai.usage.output_tokens"] == 20


def test_a_refused_request_and_a_cut_stream_are_errors():
    refused = event(routed=None, attempts=(), status=429, error="rate_limit_exceeded")
    (span,) = spans_of(refused)
    assert span.name == "chat"
    assert span.attributes["error.type"] == "rate_limit_exceeded"


def test_neither_content_nor_keys_nor_spellings_are_in_a_span():
    shown = "".join(span.to_json() for span in spans_of(event(), event(routed=None, status=404)))
    assert "gen_ai.request.model" in shown
    assert CANARY not in shown


def test_a_sample_of_zero_traces_nothing():
    assert spans_of(event(), sample=0.0) == ()


def test_spans_reach_a_collector():
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.append((self.path, body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
    tracing = open_tracing(TracesConfig(endpoint=endpoint))
    tracing.record(event())
    tracing.close()
    server.shutdown()
    server.server_close()
    ((path, body),) = received
    request = ExportTraceServiceRequest.FromString(body)
    names = {s.name for r in request.resource_spans for x in r.scope_spans for s in x.spans}
    assert path == "/v1/traces"
    assert names == {"chat dear", "chat cheap"}
    assert CANARY.encode() not in body


def test_without_an_endpoint_there_is_no_tracing():
    assert open_tracing(TracesConfig()) is None


def test_a_missing_extra_is_named(monkeypatch):
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"model-router\[otel\]"):
        open_tracing(TracesConfig(endpoint="http://127.0.0.1:4318/v1/traces"))
