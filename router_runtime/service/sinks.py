"""Telling several hooks of a request, none of which can fail it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from router_runtime.service.values import RouteEvent, Sink
from router_runtime.types import Json

_log = logging.getLogger(__name__)

_QUIET_S = 60.0


class Sinks:
    """Hands each event to every sink, in their order.

    Parameters
    ----------
    sinks : mapping of str to Sink
        By name; the store comes first.
    clock : callable
        Seconds that grow; a failing sink is logged once a minute, and always counted.
    """

    def __init__(
        self, sinks: Mapping[str, Sink], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sinks = tuple(sinks.items())
        self._clock = clock
        self._quiet_until: dict[str, float] = {}
        self.failures: dict[str, int] = dict.fromkeys(sinks, 0)

    def record(self, event: RouteEvent) -> None:
        for name, sink in self._sinks:
            try:
                sink.record(event)
            except Exception as error:
                self._failed(name, error)

    def status(self) -> dict[str, Json]:
        """Return how often each sink failed."""
        return dict(self.failures)

    def _failed(self, name: str, error: Exception) -> None:
        self.failures[name] += 1
        now_s = self._clock()
        if now_s >= self._quiet_until.get(name, now_s):
            self._quiet_until[name] = now_s + _QUIET_S
            # What the exception says may quote a request.
            _log.error(
                "a sink fails",
                extra={
                    "sink": name,
                    "error_type": type(error).__name__,
                    "failures": self.failures[name],
                },
            )
