"""OpenTelemetry spans, made from events when requests have ended; no content, and no key.

A request is one span with a child for each call to a candidate, named and described as the semantic
conventions for generative AI say (``gen_ai.*``). Making spans afterwards keeps the request's path
free of them. The price: when each call began is reckoned from how long everything took.

The OpenTelemetry packages are an extra (``otel``), asked for only where ``traces.endpoint`` is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router_runtime.errors import MissingDependencyError
from router_runtime.service.values import Attempt, RouteEvent
from router_runtime.service_config import TracesConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_OPERATIONS: Final = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "route": "route",
    "sfc_router": "route",
}
_CLOSE_MS: Final = 5_000


def open_tracing(config: TracesConfig, *, service_name: str = "model-router") -> Tracing | None:
    """Return what sends spans to the configured endpoint; None where there is none.

    Parameters
    ----------
    config : TracesConfig
        ``endpoint`` takes OTLP over HTTP, such as ``http://127.0.0.1:4318/v1/traces``.
    service_name : str
        Names this service among others at the endpoint.

    Raises
    ------
    MissingDependencyError
        OpenTelemetry is not installed; the message names the extra.
    """
    if config.endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise MissingDependencyError("opentelemetry-exporter-otlp-proto-http", "otel") from None
    return Tracing(
        OTLPSpanExporter(endpoint=config.endpoint, timeout=5),
        sample=config.sample,
        service_name=service_name,
    )


class Tracing:
    """Turns events into spans; a ``Sink``.

    Spans are sent in the background, and dropped where the endpoint cannot keep up.

    Parameters
    ----------
    exporter : SpanExporter
    sample : float
        Share of requests that are traced.
    service_name : str
    """

    def __init__(
        self, exporter: SpanExporter, *, sample: float = 1.0, service_name: str = "model-router"
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

        self._provider = TracerProvider(
            sampler=TraceIdRatioBased(sample),
            resource=Resource.create({"service.name": service_name}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("router_runtime.service")

    def record(self, event: RouteEvent) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        operation = _OPERATIONS[event.endpoint]
        span = self._tracer.start_span(
            f"{operation} {event.routed.model_id}" if event.routed else operation,
            kind=SpanKind.SERVER,
            start_time=_ns(event.at),
        )
        if span.is_recording():
            _describe_request(span, event)
            context = set_span_in_context(span)
            began_s = event.at + (event.routed.decide_s if event.routed else 0.0)
            for attempt in event.attempts:
                child = self._tracer.start_span(
                    f"{operation} {attempt.model_id}",
                    context=context,
                    kind=SpanKind.CLIENT,
                    start_time=_ns(began_s),
                )
                began_s += attempt.seconds
                _describe_attempt(child, attempt, operation)
                child.end(_ns(began_s))
        span.end(_ns(event.at + event.total_s))

    def flush(self) -> None:
        """Send what is waiting."""
        self._provider.force_flush(_CLOSE_MS)

    def close(self) -> None:
        """Send what is waiting and end."""
        self.flush()
        self._provider.shutdown()


def _describe_request(span: Span, event: RouteEvent) -> None:
    routed, served = event.routed, event.served
    span.set_attribute("gen_ai.operation.name", _OPERATIONS[event.endpoint])
    span.set_attribute("http.response.status_code", event.status)
    span.set_attribute("model_router.decision.id", event.decision_id)
    span.set_attribute("model_router.stream", event.stream)
    span.set_attribute("model_router.cost_usd", float(event.cost_usd))
    if routed is not None:
        span.set_attribute("gen_ai.request.model", routed.model_id)
        span.set_attribute("model_router.reason", str(routed.reason))
        span.set_attribute("model_router.decide_s", routed.decide_s)
        span.set_attribute("model_router.encode_s", routed.encode_s)
        if routed.policy is not None:
            span.set_attribute("model_router.policy", routed.policy)
    if served is not None:
        span.set_attribute("gen_ai.response.model", served.model_id)
    if event.error is not None or event.status >= 500:
        _fail(span, event.error or str(event.status))


def _describe_attempt(span: Span, attempt: Attempt, operation: str) -> None:
    span.set_attribute("gen_ai.operation.name", operation)
    span.set_attribute("gen_ai.request.model", attempt.model_id)
    span.set_attribute("model_router.first_byte_s", attempt.first_byte_s)
    if attempt.usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", attempt.usage.input_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", attempt.usage.output_tokens)
        span.set_attribute("model_router.usage_estimated", attempt.estimated)
    if attempt.cost_usd is not None:
        span.set_attribute("model_router.cost_usd", float(attempt.cost_usd))
    if attempt.error is not None:
        _fail(span, attempt.error)


def _fail(span: Span, error: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
