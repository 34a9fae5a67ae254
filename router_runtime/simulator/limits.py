"""Requests per minute as providers count them: a bucket that is refilled evenly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from router_runtime.simulator.config import RateLimitConfig


@dataclass
class Bucket:
    """How many calls may still come.

    Parameters
    ----------
    limit : RateLimitConfig
    clock : callable
        Seconds that never go back.
    """

    limit: RateLimitConfig
    clock: Callable[[], float]
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self.refill()

    def refill(self) -> None:
        """Forget all calls so far."""
        self._left, self._at = float(self._capacity), self.clock()

    def wait_s(self) -> float:
        """Take one call and return 0, or return the seconds until one may come."""
        per_second = self.limit.requests_per_minute / 60
        now = self.clock()
        self._left = min(self._capacity, self._left + (now - self._at) * per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / per_second
        self._left -= 1
        return 0.0

    @property
    def _capacity(self) -> int:
        return self.limit.burst or self.limit.requests_per_minute
