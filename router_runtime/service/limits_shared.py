"""The limiter of a service: Redis where there is one, this process while Redis is away.

A Redis that cannot be reached never stops a request. From the first failure on this process counts
alone, starting from what the store knows; that is counted and visible (``status``), since several
replicas together may then let more through. Once Redis answers again, what was spent meanwhile is
told to it and it counts as before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal

from router_runtime.service.budgets import to_nano
from router_runtime.service.limits import LocalLease, LocalLimiter, Spent, has_budget
from router_runtime.service.limits_redis import (
    UNREACHABLE,
    RedisCounter,
    RedisLease,
    Settlement,
)
from router_runtime.service.values import Caller, Lease, Limiter
from router_runtime.service_config import ServiceConfig
from router_runtime.types import Json

_log = logging.getLogger(__name__)

BEAT_S = 1.0
LOOK_AGAIN_S = 0.5
"""How old an answer to ``remaining_usd`` may be; the reservation is what a budget rests on."""
_LATER = 10_000


def open_limiter(
    config: ServiceConfig, *, spent: Spent, clock: Callable[[], float] = time.time
) -> Limiter:
    """Return the limiter that a config asks for; start it with ``start``, if it has one.

    Parameters
    ----------
    config : ServiceConfig
    spent : callable
        What a key has spent since a time according to the store; may block.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    ConfigError
        ``redis_url`` is no URL of Redis.
    """
    if config.redis_url is None:
        return LocalLimiter(spent=spent, clock=clock)
    counter = RedisCounter(config.redis_url, spent=spent, clock=clock)
    return SharedLimiter(counter, spent=spent, clock=clock)


@dataclass(slots=True)
class SharedLease(Lease):
    """A lease of ``SharedLimiter``: what Redis gave out, or this process while Redis was away."""

    remote: RedisLease | None = None
    local: LocalLease | None = None
    owner: LocalLimiter | None = None


class SharedLimiter:
    """Counts in Redis, and in this process while Redis is away; see ``values.Limiter``.

    Parameters
    ----------
    counter : RedisCounter
    spent : callable
        What a key has spent since a time according to the store; may block.
    beat_s : float
        Seconds between looks after a Redis that is away. Leases are renewed each third of their
        length.
    clock, monotonic : callable
    """

    def __init__(
        self,
        counter: RedisCounter,
        *,
        spent: Spent,
        beat_s: float = BEAT_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counter = counter
        self._spent = spent
        self._beat_s = beat_s
        self._clock = clock
        self._monotonic = monotonic
        self._local: LocalLimiter | None = None  # while Redis is away
        self._active: dict[str, RedisLease] = {}
        self._later: deque[Settlement] = deque(maxlen=_LATER)
        self._left: dict[str, tuple[float, Decimal | None]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._beating: asyncio.Task[None] | None = None
        self._renewed_s = monotonic()
        self.outages = 0
        self.counted_alone = 0
        self.untold = 0

    @property
    def degraded(self) -> bool:
        """Whether this process counts alone because Redis is away."""
        return self._local is not None

    async def start(self) -> None:
        """Look for Redis once, then keep leases and look after it until ``close``."""
        try:
            await self._counter.ping()
        except UNREACHABLE as error:
            self._lose(error)
        self._beating = asyncio.create_task(self._beat_for_ever())

    async def close(self) -> None:
        """Tell Redis what is left to tell, and leave it."""
        if self._beating is not None:
            self._beating.cancel()
            with suppress(asyncio.CancelledError):
                await self._beating
        await asyncio.gather(*self._telling, return_exceptions=True)
        with suppress(*UNREACHABLE):
            await self._tell_later()
        with suppress(*UNREACHABLE):
            await self._counter.close()

    async def admit(self, caller: Caller, *, tokens: int) -> SharedLease:
        lease = SharedLease(caller, tokens)
        alone = self._local
        if alone is None:
            try:
                lease.remote = await self._counter.admit(caller, tokens=tokens)
            except UNREACHABLE as error:
                alone = self._lose(error)
            else:
                lease.token = lease.remote.token
                if lease.remote.counted:
                    self._active[lease.token] = lease.remote
                return lease
        lease.owner = alone
        lease.local = await alone.admit(caller, tokens=tokens)
        self.counted_alone += 1
        return lease

    async def reserve(self, lease: Lease, *, cost_usd: Decimal) -> None:
        shared = _own(lease)
        if shared.settled:
            return
        if shared.local is None:
            alone = await self._reserved_in_redis(shared, cost_usd)
            if alone is not None:
                _take_over(shared, alone)
        if shared.local is not None and shared.owner is not None:
            await shared.owner.reserve(shared.local, cost_usd=cost_usd)
        shared.reserved_usd = cost_usd

    async def settle(self, lease: Lease, *, tokens: int, cost_usd: Decimal) -> None:
        shared = _own(lease)
        if shared.settled:
            return
        shared.settled = True
        self._active.pop(shared.token, None)
        told = self._settlement(shared, tokens=tokens, cost_usd=cost_usd)
        if told is not None and self._local is not None:
            self._keep_for_later(told)
        elif told is not None:
            # A client that leaves cancels its request; what it used is told to Redis even so.
            task = asyncio.create_task(self._tell(told))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
            await asyncio.shield(task)
        if self._local is not None and shared.local is None:
            _take_over(shared, self._local)
        if shared.local is not None and shared.owner is not None:
            await shared.owner.settle(shared.local, tokens=tokens, cost_usd=cost_usd)

    async def remaining_usd(self, caller: Caller) -> Decimal | None:
        if not has_budget(caller.limits):
            return None
        alone = self._local
        if alone is None:
            seen = self._left.get(caller.key_id)
            if seen is not None and self._monotonic() - seen[0] < LOOK_AGAIN_S:
                return seen[1]
            try:
                return self._see(caller, await self._counter.remaining_usd(caller))
            except UNREACHABLE as error:
                alone = self._lose(error)
        return await alone.remaining_usd(caller)

    async def beat(self) -> None:
        """Renew leases; or look whether Redis is back, and tell it what it missed.

        Called every ``beat_s`` once the limiter is started.
        """
        try:
            if self._local is not None:
                await self._counter.ping()
                await self._tell_later()
                self._local = None
                self._left.clear()
                _log.warning("redis is back; limits are shared again")
            elif self._monotonic() - self._renewed_s >= self._counter.lease_s / 3:
                self._renewed_s = self._monotonic()
                await self._counter.renew(list(self._active.values()))
        except UNREACHABLE as error:
            self._lose(error)

    def status(self) -> dict[str, Json]:
        """Return what an operator should see."""
        return {
            "kind": "redis",
            "degraded": self.degraded,
            "outages": self.outages,
            "counted_alone": self.counted_alone,
            "untold": self.untold + len(self._later),
            "in_flight": len(self._active),
            "seed_failures": self._counter.seed_failures,
        }

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._beat_s)
            await self.beat()

    async def _reserved_in_redis(
        self, shared: SharedLease, cost_usd: Decimal
    ) -> LocalLimiter | None:
        """Return who counts instead, where Redis cannot be asked; its refusal is raised."""
        remote = shared.remote
        if self._local is not None or remote is None:
            return self._local
        try:
            left = await self._counter.reserve(remote, cost_usd=cost_usd)
        except UNREACHABLE as error:
            return self._lose(error)
        if remote.day is not None:
            self._active[shared.token] = remote
            self._see(shared.caller, left)
        return None

    def _settlement(
        self, shared: SharedLease, *, tokens: int, cost_usd: Decimal
    ) -> Settlement | None:
        """Return what Redis is to be told, also of a request that was counted here."""
        if shared.remote is not None:
            told = self._counter.settlement(shared.remote, tokens=tokens, cost_usd=cost_usd)
            return told and replace(told, elsewhere=shared.local is not None)
        lease, limits = shared.local, shared.caller.limits
        if lease is None or lease.day is None or lease.month is None:
            return None
        return Settlement(
            key_id=shared.caller.key_id,
            token="",
            spent_nano=to_nano(cost_usd),
            day="" if limits.usd_per_day is None else lease.day.period.name,
            month="" if limits.usd_per_month is None else lease.month.period.name,
            elsewhere=True,
        )

    async def _tell(self, settlement: Settlement) -> None:
        try:
            await self._counter.apply(settlement)
        except UNREACHABLE as error:
            self._lose(error)
            self._keep_for_later(settlement)

    def _keep_for_later(self, settlement: Settlement) -> None:
        if len(self._later) == _LATER:
            self._later.popleft()
            self.untold += 1
        self._later.append(replace(settlement, elsewhere=True))

    async def _tell_later(self) -> None:
        while self._later:
            settlement = self._later.popleft()
            try:
                await self._counter.apply(settlement)
            except BaseException:  # a cancellation, too, must not forget it
                self._later.appendleft(settlement)
                raise

    def _lose(self, error: BaseException) -> LocalLimiter:
        if self._local is None:
            self._local = LocalLimiter(spent=self._spent, clock=self._clock)
            self.outages += 1
            _log.warning(
                "redis does not answer; this process counts limits alone until it is back",
                extra={"error_type": type(error).__name__},
            )
        return self._local

    def _see(self, caller: Caller, left: Decimal | None) -> Decimal | None:
        self._left[caller.key_id] = (self._monotonic(), left)
        return left


def _take_over(shared: SharedLease, alone: LocalLimiter) -> None:
    """Count here a request that Redis counted before it went away."""
    shared.owner = alone
    shared.local = alone.admit_anyway(shared.caller, tokens=shared.tokens)


def _own(lease: Lease) -> SharedLease:
    if not isinstance(lease, SharedLease):
        raise TypeError(f"a {type(lease).__name__} was not given out by this limiter")
    return lease
