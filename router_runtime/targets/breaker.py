"""Circuit breakers: a target that keeps failing is left alone for a while.

One breaker belongs to one server and model, not to a candidate's name or to one config: it keeps
what it knows when the config is loaded again. A call asks for a ``Permit`` and says on it how it
ended, exactly once. What counts is the end: a stream that breaks half-way is a failure, and a call
that its client gave up says nothing about the target.

In the closed state each success takes one failure back, so that a breaker opens where failures
outnumber successes and not where a busy target fails now and then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from router_runtime.service_config import BreakerConfig


class State(StrEnum):
    """What a breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit:
    """Leave to make one call; the first of its methods that is called counts."""

    __slots__ = ("_breaker", "_era")

    def __init__(self, breaker: Breaker, era: int) -> None:
        self._breaker: Breaker | None = breaker
        self._era = era

    def success(self) -> None:
        """Say that the target answered; a refusal of the request's content is an answer."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._succeeded(self._era)

    def failure(self, *, for_all: bool = False, rest_s: float = 0.0) -> None:
        """Say that the target failed.

        Parameters
        ----------
        for_all : bool
            Every other call would fail alike (a bad key, no such model): open at once.
        rest_s : float
            How long the server asks to wait; counts where the breaker opens, up to ``max_rest_s``.
        """
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._failed(self._era, for_all, rest_s)

    def cancel(self) -> None:
        """Say that nothing was learned about the target."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._cancelled(self._era)


class Breaker:
    """Lets calls to one target through, or not.

    Parameters
    ----------
    config : BreakerConfig
    clock : callable
        Seconds, only going forward.
    """

    __slots__ = ("_clock", "_config", "_era", "_failures", "_opened_at", "_probing", "_rest_s")

    def __init__(
        self, config: BreakerConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._clock = clock
        self._failures: deque[float] = deque()
        self._opened_at: float | None = None
        self._rest_s = 0.0
        self._probing = 0
        self._era = 0  # counts openings and closings, so that late ends of older calls are known

    @property
    def state(self) -> State:
        """Closed, open, or half open: it has rested and lets probes through."""
        if self._opened_at is None:
            return State.CLOSED
        return State.OPEN if self.wait_s > 0 else State.HALF_OPEN

    @property
    def wait_s(self) -> float:
        """Seconds that it still rests; 0 where it does not."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._rest_s - self._clock())

    @property
    def refuses(self) -> bool:
        """Whether no call would be let through now."""
        if self._opened_at is None:
            return False
        return self._probing >= self._config.probes or self.wait_s > 0

    def permit(self) -> Permit | None:
        """Return leave for one call, None where the target rests or is being probed."""
        if self._opened_at is not None:
            if self.refuses:
                return None
            self._probing += 1
        return Permit(self, self._era)

    def reconfigure(self, config: BreakerConfig) -> None:
        """Follow other numbers from now on; what is known of the target stays known."""
        self._config = config

    def _succeeded(self, era: int) -> None:
        if era != self._era:
            return
        if self._opened_at is None:
            if self._failures:
                self._failures.popleft()
            return
        self._turn()
        self._opened_at, self._rest_s = None, 0.0

    def _failed(self, era: int, for_all: bool, rest_s: float) -> None:
        if era != self._era:
            return
        config, now = self._config, self._clock()
        if self._opened_at is None:
            failures = self._failures
            failures.append(now)
            while failures[0] <= now - config.window_s:
                failures.popleft()
            if len(failures) < config.failures and not for_all:
                return
            rested = config.rest_s
        else:
            rested = 2 * self._rest_s
        self._turn()
        self._opened_at = now
        self._rest_s = min(max(rested, rest_s), config.max_rest_s)

    def _cancelled(self, era: int) -> None:
        if era == self._era and self._opened_at is not None:
            self._probing -= 1

    def _turn(self) -> None:
        self._era += 1
        self._probing = 0
        self._failures.clear()


class Breakers:
    """The breakers of a process, by what identifies a target.

    Parameters
    ----------
    clock : callable
        Seconds, only going forward.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breakers: dict[str, Breaker] = {}

    def of(self, identity: str, config: BreakerConfig) -> Breaker:
        """Return the breaker of a target, made when it is first asked for."""
        breaker = self._breakers.get(identity)
        if breaker is None:
            breaker = self._breakers[identity] = Breaker(config, clock=self._clock)
        breaker.reconfigure(config)
        return breaker

    def for_models(
        self, identities: Mapping[str, str], config: BreakerConfig
    ) -> dict[str, Breaker]:
        """Return the breaker of each model, given the identity of its target."""
        return {model: self.of(identity, config) for model, identity in identities.items()}

    def keep_only(self, identities: Iterable[str]) -> None:
        """Forget targets that no config names any more."""
        wanted = set(identities)
        self._breakers = {name: b for name, b in self._breakers.items() if name in wanted}
