"""Limits of keys, counted in this process: a minute's requests and tokens, concurrency, budgets.

With several replicas each counts alone; ``limits_shared`` counts in Redis instead and comes back
here while Redis cannot be reached.

Rates are exact over any minute: requests are counted by the second in which they came, and a second
leaves the count when all of it is more than a minute old. A token bucket would let twice the
limit through within the first minute.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from router_runtime.errors import RequestError
from router_runtime.service.budgets import (
    Ledger,
    PeriodMoney,
    limits_nano,
    remaining,
    reserve,
    settle,
    to_nano,
)
from router_runtime.service.values import Caller, KeyLimits, Lease
from router_runtime.types import Json

Spent: TypeAlias = Callable[[str, float], Decimal]
"""(key_id, since in seconds since the epoch) -> USD that the store knows of; may block."""

WINDOW_S = 60
SEED_RETRY_S = 5.0
CONCURRENCY_RETRY_S = 1.0
"""When a place may be free again is unknown; a second is what calls take at least, mostly."""


def rate_exceeded(noun: str, limit: int, *, retry_after_s: float | None) -> RequestError:
    """Return the error for a request beyond one of a key's limits.

    Parameters
    ----------
    noun : str
        ``requests per minute``, ``tokens per minute`` or ``requests at a time``.
    limit : int
    retry_after_s : float or None
        None where waiting would not help: the request alone is larger than the limit.
    """
    remedy = (
        "Ask for fewer tokens (max_tokens) or for a higher limit."
        if retry_after_s is None
        else f"Try again in {math.ceil(retry_after_s)} s."
    )
    return RequestError(
        f"This key is limited to {limit:,} {noun}. {remedy}",
        status=429,
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )


def has_rates(limits: KeyLimits) -> bool:
    """Whether anything is counted when a request is admitted."""
    return not (
        limits.requests_per_minute is None
        and limits.tokens_per_minute is None
        and limits.max_concurrency is None
    )


def has_budget(limits: KeyLimits) -> bool:
    """Whether dollars are counted."""
    return limits.usd_per_day is not None or limits.usd_per_month is not None


@dataclass(slots=True)
class _Second:
    at: int
    requests: int = 0
    tokens: int = 0


@dataclass(slots=True)
class SlidingMinute:
    """Requests and tokens of the last minute, by second, oldest first."""

    seconds: deque[_Second] = field(default_factory=deque)
    requests: int = 0
    tokens: int = 0

    def check(self, limits: KeyLimits, *, tokens: int, now_s: float) -> None:
        """Refuse a request that would be one too many.

        Raises
        ------
        RequestError
            429 ``rate_limit_exceeded``.
        """
        self._forget(now_s)
        most = limits.requests_per_minute
        if most is not None and self.requests + 1 > most:
            wait_s = self._wait_s(self.requests + 1 - most, "requests", now_s)
            raise rate_exceeded("requests per minute", most, retry_after_s=wait_s)
        most = limits.tokens_per_minute
        if most is not None and self.tokens + tokens > most:
            too_large = tokens > most
            wait_s = self._wait_s(self.tokens + tokens - most, "tokens", now_s)
            raise rate_exceeded(
                "tokens per minute", most, retry_after_s=None if too_large else wait_s
            )

    def add(self, *, tokens: int, now_s: float) -> int:
        """Count a request; return the second that it is counted in."""
        second = int(now_s)
        if not self.seconds or self.seconds[-1].at < second:
            self.seconds.append(_Second(second))
        self.seconds[-1].requests += 1
        self.seconds[-1].tokens += tokens
        self.requests += 1
        self.tokens += tokens
        return self.seconds[-1].at

    def correct(self, second: int, more_tokens: int) -> None:
        """Add tokens, or take them back, where a request was counted; nothing if that is over."""
        for entry in reversed(self.seconds):
            if entry.at == second:
                entry.tokens += more_tokens
                self.tokens += more_tokens
            if entry.at <= second:
                return

    def _forget(self, now_s: float) -> None:
        oldest = int(now_s) - WINDOW_S
        while self.seconds and self.seconds[0].at < oldest:
            gone = self.seconds.popleft()
            self.requests -= gone.requests
            self.tokens -= gone.tokens

    def _wait_s(self, excess: int, what: str, now_s: float) -> float:
        for entry in self.seconds:
            excess -= entry.requests if what == "requests" else entry.tokens
            if excess <= 0:
                return max(entry.at + WINDOW_S + 1 - now_s, 0.0)
        return float(WINDOW_S)


@dataclass(slots=True)
class LocalLease(Lease):
    """A lease of ``LocalLimiter``: where the request is counted, in seconds and in money."""

    second: int | None = None
    in_flight: bool = False
    day: PeriodMoney | None = None
    month: PeriodMoney | None = None


@dataclass(slots=True)
class _KeyState:
    ledger: Ledger
    minute: SlidingMinute = field(default_factory=SlidingMinute)
    in_flight: int = 0
    seeding: asyncio.Lock = field(default_factory=asyncio.Lock)


class LocalLimiter:
    """Counts what keys use in this process; see ``values.Limiter``.

    Parameters
    ----------
    spent : callable
        What a key has spent since a time according to the store; called once per key and period,
        in a thread. While it fails, a key starts from 0, and it is asked again.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, *, spent: Spent, clock: Callable[[], float] = time.time) -> None:
        self._spent = spent
        self._clock = clock
        self._states: dict[str, _KeyState] = {}
        self.seed_failures = 0

    async def admit(self, caller: Caller, *, tokens: int) -> LocalLease:
        limits = caller.limits
        if has_rates(limits):
            state, now_s = self._state(caller), self._clock()
            most = limits.max_concurrency
            if most is not None and state.in_flight >= most:
                raise rate_exceeded("requests at a time", most, retry_after_s=CONCURRENCY_RETRY_S)
            state.minute.check(limits, tokens=tokens, now_s=now_s)
        return self.admit_anyway(caller, tokens=tokens)

    def admit_anyway(self, caller: Caller, *, tokens: int) -> LocalLease:
        """Count a request that was admitted elsewhere, whatever the limits say."""
        lease = LocalLease(caller, tokens)
        if has_rates(caller.limits):
            state = self._state(caller)
            lease.second = state.minute.add(tokens=tokens, now_s=self._clock())
            lease.in_flight = True
            state.in_flight += 1
        if has_budget(caller.limits):
            lease.day, lease.month = self._state(caller).ledger.at(self._clock())
        return lease

    async def reserve(self, lease: Lease, *, cost_usd: Decimal) -> None:
        local = _own(lease)
        if local.day is None or local.month is None or local.settled:
            return
        monies = (local.day, local.month)
        await self._seed(local.caller, monies)
        reserve(
            monies,
            limits_nano(local.caller.limits),
            before_nano=to_nano(local.reserved_usd),
            wanted_nano=to_nano(cost_usd),
        )
        local.reserved_usd = cost_usd

    async def settle(self, lease: Lease, *, tokens: int, cost_usd: Decimal) -> None:
        local = _own(lease)
        if local.settled:
            return
        local.settled = True
        if local.in_flight:
            state = self._state(local.caller)
            state.in_flight -= 1
            if local.second is not None:
                state.minute.correct(local.second, tokens - local.tokens)
        if local.day is not None and local.month is not None:
            settle(
                (local.day, local.month),
                reserved_nano=to_nano(local.reserved_usd),
                spent_nano=to_nano(cost_usd),
            )

    async def remaining_usd(self, caller: Caller) -> Decimal | None:
        if not has_budget(caller.limits):
            return None
        monies = self._state(caller).ledger.at(self._clock())
        await self._seed(caller, monies)
        return remaining(monies, limits_nano(caller.limits))

    def status(self) -> dict[str, Json]:
        """Return what an operator should see."""
        return {
            "kind": "process",
            "keys": len(self._states),
            "in_flight": sum(state.in_flight for state in self._states.values()),
            "seed_failures": self.seed_failures,
        }

    def _state(self, caller: Caller) -> _KeyState:
        state = self._states.get(caller.key_id)
        if state is None:
            state = self._states[caller.key_id] = _KeyState(Ledger.opened(self._clock()))
        return state

    async def _seed(self, caller: Caller, monies: tuple[PeriodMoney, PeriodMoney]) -> None:
        """Ask the store what was spent before; requests of the key wait for one answer."""
        for money, limit in zip(monies, limits_nano(caller.limits), strict=True):
            if limit is None or not money.needs_seed(self._clock()):
                continue
            async with self._state(caller).seeding:
                if money.needs_seed(self._clock()):
                    spent = await ask_spent(self._spent, caller.key_id, money.period.start_s)
                    if spent is None:
                        self.seed_failures += 1
                        money.retry_seed_s = self._clock() + SEED_RETRY_S
                    else:
                        money.seed(spent)


async def ask_spent(spent: Spent, key_id: str, since_s: float) -> int | None:
    """Return nano-dollars that the store knows of; None where it cannot be asked.

    A store that is down does not stop requests, whatever it raises.
    """
    try:
        return to_nano(await asyncio.to_thread(spent, key_id, since_s))
    except Exception:
        return None


def _own(lease: Lease) -> LocalLease:
    if not isinstance(lease, LocalLease):
        raise TypeError(f"a {type(lease).__name__} was not given out by this limiter")
    return lease
