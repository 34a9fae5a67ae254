"""How fast a target is asked: calls in flight, requests and tokens per minute, pauses.

The limits hold for every minute that one may choose, not only on average: what a leaky bucket lets
through at once (a burst) is taken off its steady rate.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from aiolimiter import AsyncLimiter

from router_runtime.target_config import TargetConfig

_MINUTE_S: Final = 60.0
_REQUEST_BURST: Final = 0.01  # of a minute's, and one at least
_TOKEN_BURST: Final = 0.1


class Pacing(Protocol):
    """Says when a target may be asked; shared by all who ask it."""

    def slot(self, tokens: float) -> AbstractAsyncContextManager[None]:
        """Wait for leave to send one request, and count it as in flight until it ends.

        Parameters
        ----------
        tokens : float
            As estimated, >= 0.
        """
        ...

    async def used(self, extra_tokens: float) -> None:
        """Correct an estimate: tokens beyond it (or, negative, below it) count for later slots."""
        ...

    async def pause(self, seconds: float) -> None:
        """Let nothing be sent for a while."""
        ...


class Pacer:
    """The limits of one target, for one process and event loop.

    Parameters
    ----------
    requests_per_minute, tokens_per_minute : int or None
        None: no limit.
    max_concurrency : int
        Requests in flight.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        *,
        max_concurrency: int,
    ) -> None:
        self._in_flight = asyncio.Semaphore(max_concurrency)
        self._requests = None
        if requests_per_minute is not None:
            burst = max(1.0, _REQUEST_BURST * requests_per_minute)
            self._requests = _limiter(requests_per_minute, burst)
        self._tokens = None
        if tokens_per_minute is not None:
            self._tokens = _limiter(tokens_per_minute, max(1.0, _TOKEN_BURST * tokens_per_minute))
        self._token_turn = asyncio.Lock()
        self._owed_tokens = 0.0
        self._paused_until = 0.0

    @asynccontextmanager
    async def slot(self, tokens: float) -> AsyncIterator[None]:
        async with self._in_flight:
            await self._unpaused()
            if self._tokens is not None:
                await self._take_tokens(self._tokens, tokens)
            if self._requests is not None:
                await self._requests.acquire()
            await self._unpaused()
            yield

    async def used(self, extra_tokens: float) -> None:
        if self._tokens is not None:
            self._owed_tokens += extra_tokens

    async def pause(self, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        self._paused_until = max(self._paused_until, until)

    async def _unpaused(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait_s := self._paused_until - loop.time()) > 0:
            await asyncio.sleep(wait_s)

    async def _take_tokens(self, limiter: AsyncLimiter, tokens: float) -> None:
        """Take them in order of arrival; more than fit the bucket are taken in parts."""
        async with self._token_turn:
            needed = tokens + self._owed_tokens
            self._owed_tokens = min(0.0, needed)
            while needed > 0:
                part = min(needed, limiter.max_rate)
                await limiter.acquire(part)
                needed -= part


class Turnstile:
    """Lets one task through per turn of the event loop, in order of arrival.

    Calls that end together, as those of one commit do, would go on together: each step of the way
    for all of them before the next step of any, so that the first is sent when the last one is
    ready to be. They would then be answered together as well, and for ever. One by one, the first
    is on its way while the others are made ready, and calls spread over time.

    For one event loop.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False  # in this turn

    async def passed(self) -> None:
        """Wait for one's turn."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._taken = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its caller gave up
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False


def pacer_of(target: TargetConfig) -> Pacer:
    """Return the pacer for a target's configured limits."""
    return Pacer(
        target.requests_per_minute,
        target.tokens_per_minute,
        max_concurrency=target.max_concurrency,
    )


def _limiter(per_minute: int, burst: float) -> AsyncLimiter:
    """Return a bucket of which ``burst`` and a minute's steady flow make ``per_minute``.

    A burst of one needs nothing taken off: evenly spaced requests are as many as spaces.
    """
    steady = per_minute - burst if burst > 1 else per_minute
    return AsyncLimiter(burst, _MINUTE_S * burst / steady)
