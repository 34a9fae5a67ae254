"""Prometheus metrics: what happened, from events, and how things stand, asked when scraped.

Base units throughout, and labels that are bounded: models, policies and reasons as configured,
status classes, kinds of errors. No label comes from a request, and none names a key: who spent
what is the store's to tell.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from router_runtime.service.values import Attempt, RouteEvent

_log = logging.getLogger(__name__)

Reading: TypeAlias = float | Mapping[str, float]
"""One number, or one per value of the label."""

_PREFIX: Final = "model_router_"
_REQUEST_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OWN_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MOST_VALUES: Final = 200
_OTHER: Final = "other"
_STATUS: Final = re.compile(r"status_([1-5])\d\d")

M = TypeVar("M", Counter, Histogram)


class Metrics:
    """Metrics of one service, in a registry of its own; a ``Sink``.

    Parameters
    ----------
    baseline_model : str or None
        What ``baseline_cost_usd_total`` is told of: the expected cost of served routed requests,
        had this model served them.
    """

    def __init__(self, *, baseline_model: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self.baseline_model = baseline_model
        self._standing = _Standing()
        self.registry.register(self._standing)
        self._labels: defaultdict[str, set[str]] = defaultdict(set)
        self._requests = self._counter(
            "requests", "Requests by endpoint and class of the status.", "endpoint", "status_class"
        )
        self._decisions = self._counter(
            "decisions", "Decisions by first choice.", "model", "policy", "reason"
        )
        self._attempts = self._counter(
            "attempts", "Calls to candidates by how they ended.", "model", "outcome"
        )
        self._fallbacks = self._counter(
            "fallbacks", "Requests that another than the first choice served.", "chosen", "served"
        )
        self._cost = self._counter(
            "cost_usd", "US dollars spent, failed calls included.", "model", "estimated"
        )
        self._baseline_cost = self._counter(
            "baseline_cost_usd",
            "US dollars that served routed requests were expected to cost at the baseline model.",
        ).of()
        self._routed_cost = self._counter(
            "routed_cost_usd", "US dollars spent on the requests of baseline_cost_usd."
        ).of()
        self._tokens = self._counter(
            "tokens", "Tokens billed, failed calls included.", "model", "direction"
        )
        self._cuts = self._counter("stream_cuts", "Streams that broke after their first byte.").of()
        self._cached = self._counter(
            "predictions_cached", "Decisions from a prediction at hand."
        ).of()
        self._total_s = self._histogram(
            "request_seconds",
            "From the first byte in to the last byte out.",
            _REQUEST_S,
            "endpoint",
        )
        self._overhead_s = self._histogram(
            "overhead_seconds", "Of a request, what candidates did not take.", _OWN_S, "endpoint"
        )
        self._decide_s = self._histogram("decide_seconds", "For a decision.", _OWN_S).of()
        self._encode_s = self._histogram(
            "encode_seconds", "Of a decision, for encoding and predicting.", _OWN_S
        ).of()
        self._batch_size = self._histogram(
            "encoding_batch_size", "Queries encoded together.", _BATCH, "lane"
        )
        self._batch_wait_s = self._histogram(
            "encoding_wait_seconds", "Of the oldest query of a batch.", _OWN_S, "lane"
        )
        self._batch_s = self._histogram(
            "encoding_batch_seconds", "For encoding and predicting a batch.", _OWN_S, "lane"
        )
        self._first_byte_s = self._histogram(
            "upstream_first_byte_seconds", "Until a candidate's first byte.", _REQUEST_S, "model"
        )

    def record(self, event: RouteEvent) -> None:
        self._requests.of(event.endpoint, f"{event.status // 100}xx").inc()
        self._total_s.of(event.endpoint).observe(event.total_s)
        if event.attempts:
            own_s = max(event.total_s - event.upstream_s, 0.0)
            self._overhead_s.of(event.endpoint).observe(own_s)
        if event.error == "cut":
            self._cuts.inc()
        for attempt in event.attempts:
            self._record_attempt(attempt)
        self._record_routed(event)

    def record_batch(self, lane: str, size: int, waited_s: float, seconds: float) -> None:
        """Count a batch of queries that was encoded; see ``Predictions``."""
        self._batch_size.of(lane).observe(size)
        self._batch_wait_s.of(lane).observe(waited_s)
        self._batch_s.of(lane).observe(seconds)

    def gauge(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        *,
        label: str | None = None,
    ) -> None:
        """Add a number that is asked for when metrics are scraped.

        Parameters
        ----------
        name : str
            Without the prefix, with the unit: ``requests_in_flight``.
        documentation : str
        read : callable
            Where it fails, the number is left out of that scrape.
        label : str or None
            What the keys of its answer are, where that is a mapping.
        """
        self._standing.add(_PREFIX + name, documentation, read, label, counts=False)

    def counter(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        *,
        label: str | None = None,
    ) -> None:
        """Add a number that only grows and is counted elsewhere; see ``gauge``."""
        self._standing.add(_PREFIX + name, documentation, read, label, counts=True)

    def render(self) -> tuple[bytes, str]:
        """Return the text that Prometheus scrapes, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _record_attempt(self, attempt: Attempt) -> None:
        model = self._bounded("model", attempt.model_id)
        self._attempts.of(model, self._bounded("outcome", _outcome(attempt.error))).inc()
        if attempt.first_byte_s > 0:
            self._first_byte_s.of(model).observe(attempt.first_byte_s)
        if attempt.usage is not None:
            self._tokens.of(model, "input").inc(attempt.usage.input_tokens)
            self._tokens.of(model, "output").inc(attempt.usage.output_tokens)
        if attempt.cost_usd is not None:
            estimated = "true" if attempt.estimated else "false"
            self._cost.of(model, estimated).inc(float(attempt.cost_usd))

    def _record_routed(self, event: RouteEvent) -> None:
        routed, served = event.routed, event.served
        if routed is None or routed.policy is None:
            return
        chosen = self._bounded("model", routed.model_id)
        policy = self._bounded("policy", routed.policy)
        self._decisions.of(chosen, policy, self._bounded("reason", str(routed.reason))).inc()
        self._decide_s.observe(routed.decide_s)
        if routed.cached:
            self._cached.inc()
        elif routed.encode_s > 0:
            self._encode_s.observe(routed.encode_s)
        if served is None:
            return
        if served.model_id != routed.model_id:
            self._fallbacks.of(chosen, self._bounded("model", served.model_id)).inc()
        baseline = routed.expected_cost.get(self.baseline_model or "")
        if baseline is not None:
            self._baseline_cost.inc(baseline)
            self._routed_cost.inc(float(event.cost_usd))

    def _bounded(self, label: str, value: str) -> str:
        """Return a label's value, or ``other`` beyond any number that a config would bring."""
        seen = self._labels[label]
        if value in seen:
            return value
        if len(seen) >= _MOST_VALUES:
            return _OTHER
        seen.add(value)
        return value

    def _counter(self, name: str, documentation: str, *labels: str) -> _Labelled[Counter]:
        return _Labelled(Counter(_PREFIX + name, documentation, labels, registry=self.registry))

    def _histogram(
        self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str
    ) -> _Labelled[Histogram]:
        return _Labelled(
            Histogram(
                _PREFIX + name, documentation, labels, buckets=buckets, registry=self.registry
            )
        )


class _Labelled(Generic[M]):
    """A metric and its children by their labels' values, which ``labels`` looks up slowly."""

    __slots__ = ("_children", "_metric")

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._children: dict[tuple[str, ...], M] = {}

    def of(self, *values: str) -> M:
        """Return the child for values of the labels; the metric itself where it has none."""
        child = self._children.get(values)
        if child is None:
            child = self._metric.labels(*values) if values else self._metric
            self._children[values] = child
        return child


def _outcome(error: str | None) -> str:
    if error is None:
        return "ok"
    return _STATUS.sub(r"status_\1xx", error)


class _Standing(Collector):
    """Numbers that are asked for at each scrape."""

    def __init__(self) -> None:
        self._readings: dict[str, tuple[str, Callable[[], Reading], str | None, bool]] = {}

    def add(
        self,
        name: str,
        documentation: str,
        read: Callable[[], Reading],
        label: str | None,
        *,
        counts: bool,
    ) -> None:
        if name in self._readings:
            raise ValueError(f"there is a metric '{name}' already")
        self._readings[name] = (documentation, read, label, counts)

    def collect(self) -> Iterable[Metric]:
        for name, (documentation, read, label, counts) in self._readings.items():
            kind = CounterMetricFamily if counts else GaugeMetricFamily
            metric = kind(name, documentation, labels=[] if label is None else [label])
            try:
                reading = read()
                values = reading if isinstance(reading, Mapping) else {None: reading}
                for value, number in values.items():
                    metric.add_metric([] if value is None else [str(value)], float(number))
            except Exception as error:
                extra = {"metric": name, "error_type": type(error).__name__}
                _log.warning("a metric cannot be read", extra=extra)
            else:
                yield metric
