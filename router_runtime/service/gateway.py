"""What all endpoints have in common: who asks, how many at once, errors, records, the end.

``Gateway.handler`` wraps an endpoint. An endpoint either sends an answer or raises; it fills the
``Exchange`` with what happened, and from that one event is made when the request has ended, before
the last bytes of the answer go out: what a client holds in its hands is accounted for, even if the
process dies at that moment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Protocol, Self

from router_runtime.errors import OVERLOADED, RequestError, RouterError
from router_runtime.service.asgi import Message, Receive, Scope, Send, send_bytes
from router_runtime.service.envelope import Refusal, refusal_of
from router_runtime.service.generations import Generation, Generations
from router_runtime.service.headers import Told, answer_headers, debug_asked, named_loopback
from router_runtime.service.values import (
    ANONYMOUS,
    Attempt,
    Caller,
    Endpoint,
    Lease,
    Limiter,
    Routed,
    RouteEvent,
    Sink,
)
from router_runtime.types import Json

logger = logging.getLogger(__name__)

_BUSY_RETRY_S: Final = 1.0


class Authenticator(Protocol):
    """Knows keys."""

    def authenticate(self, header: bytes | None) -> Caller:
        """Return who sent an ``Authorization`` header.

        Raises
        ------
        RequestError
            401.
        """
        ...


@dataclass(slots=True)
class Exchange:
    """One request while it is served; filled by its endpoint, told when it has ended.

    Parameters
    ----------
    endpoint : Endpoint or None
        None where no event is told, such as for the list of models.
    path : str
    headers : mapping
        Of the request, names in lower case.
    generation : Generation
        Config and router that the request began with; it ends with them as well.
    decision_id : str
    at, started : float
        Seconds since the epoch, and of a clock that only goes forward.
    caller : Caller
    lease : Lease or None
        At the limiter.
    requested : str
        The ``model`` field.
    routed : Routed or None
    attempts : list of Attempt
    stream : bool
    messages : tuple of mapping or None
        Kept only where the store keeps content.
    status : int
        0 until an answer begins.
    error : str or None
    left : bool
        The client went away.
    told : bool
        The event was told.
    """

    endpoint: Endpoint | None
    path: str
    headers: Mapping[bytes, bytes]
    generation: Generation
    decision_id: str
    at: float
    started: float
    caller: Caller = ANONYMOUS
    lease: Lease | None = None
    requested: str = ""
    routed: Routed | None = None
    attempts: list[Attempt] = field(default_factory=list)
    stream: bool = False
    messages: tuple[Mapping[str, Json], ...] | None = field(default=None, repr=False)
    status: int = 0
    error: str | None = None
    left: bool = False
    told: bool = False

    @property
    def known(self) -> bool:
        """A decision was made, so there is something to account for."""
        return self.routed is not None

    def cost_usd(self) -> Decimal:
        """Return what all attempts cost, as far as prices are known."""
        return sum((a.cost_usd for a in self.attempts if a.cost_usd is not None), Decimal(0))

    def tokens(self) -> int:
        """Return what all attempts used."""
        used = (a.usage for a in self.attempts if a.usage is not None)
        return sum(usage.input_tokens + usage.output_tokens for usage in used)

    def answer_headers(
        self,
        *,
        model_id: str | None = None,
        attempts: int | None = None,
        cost_usd: Decimal | float | None = None,
        waited_s: float | None = None,
    ) -> list[tuple[bytes, bytes]]:
        """Return the ``x-router-*`` headers of the answer.

        Parameters
        ----------
        model_id : str or None
            Who answered.
        attempts : int or None
            None: as many as are recorded.
        cost_usd : Decimal or float or None
        waited_s : float or None
            Of the time so far, for candidates. None: as long as the recorded attempts took.
        """
        debug = debug_asked(self.headers)
        overhead_s = 0.0
        if debug:
            if waited_s is None:
                waited_s = sum(attempt.seconds for attempt in self.attempts)
            overhead_s = max(0.0, time.perf_counter() - self.started - waited_s)
        told = Told(
            self.decision_id,
            model_id,
            self.routed,
            attempts=len(self.attempts) if attempts is None else attempts,
            cost_usd=cost_usd,
            overhead_s=overhead_s,
        )
        return answer_headers(told, debug=debug)


Work = Callable[["Gateway", Exchange, Receive, Send], Awaitable[None]]


class Gateway:
    """What endpoints need, and what happens around every one of them.

    Parameters
    ----------
    generations : Generations
        The config and router in force.
    keys : Authenticator
    limiter : Limiter
    withheld : callable
        Candidates that a key shall not get for now, by its id.
    store : Sink
        Is told of every request with a decision, before its answer ends.
    telemetry : Sink
        Is told of every request.
    wall : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        *,
        generations: Generations,
        keys: Authenticator,
        limiter: Limiter,
        withheld: Callable[[str], Collection[str]],
        store: Sink,
        telemetry: Sink,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.generations = generations
        self.keys = keys
        self.limiter = limiter
        self.withheld = withheld
        self.store = store
        self.telemetry = telemetry
        self.in_flight = 0
        self._ids = DecisionIds()
        self.wall = wall

    def handler(
        self, work: Work, *, endpoint: Endpoint | None = None
    ) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return the ASGI handler of an endpoint that needs a key."""

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            with self.generations.enter() as generation:
                at = self.wall()
                exchange = Exchange(
                    endpoint,
                    scope["path"],
                    dict(scope["headers"]),
                    generation,
                    self._ids.new(at),
                    at,
                    time.perf_counter(),
                )
                self.in_flight += 1
                try:
                    await self._serve(exchange, work, receive, send)
                finally:
                    self.in_flight -= 1

        return handle

    async def _serve(self, exchange: Exchange, work: Work, receive: Receive, send: Send) -> None:
        try:
            self._let_in(exchange)
            await work(self, exchange, receive, send)
        except asyncio.CancelledError:
            if not exchange.left:
                exchange.status, exchange.error = 503, "shutdown"
                raise
            _forgive()
        except Exception as error:
            await self._refuse(exchange, error, send)
        finally:
            if exchange.left:
                await _settled_cancellation()
                exchange.status, exchange.error = 499, "client_left"
            self.tell(exchange)
            if exchange.lease is not None:
                await self.limiter.settle(
                    exchange.lease, tokens=exchange.tokens(), cost_usd=exchange.cost_usd()
                )

    def _let_in(self, exchange: Exchange) -> None:
        exchange.caller = self.keys.authenticate(exchange.headers.get(b"authorization"))
        if exchange.caller is ANONYMOUS and not named_loopback(exchange.headers):
            raise RequestError(
                "Without keys only requests to this machine's own names are served (Host: "
                "localhost or 127.0.0.1). Create a key with 'model-router keys create'.",
                status=403,
                code="host_not_allowed",
            )
        if self.in_flight > exchange.generation.config.service.requests.max_in_flight:
            raise RequestError(
                "The service has as many requests in flight as it takes; send this one again.",
                status=503,
                code=OVERLOADED,
                retry_after_s=_BUSY_RETRY_S,
            )

    async def admit(self, exchange: Exchange, *, tokens: int) -> None:
        """Count a request against the limits of its key.

        Raises
        ------
        RequestError
            429 ``rate_limit_exceeded``.
        """
        exchange.lease = await self.limiter.admit(exchange.caller, tokens=tokens)

    async def _refuse(self, exchange: Exchange, error: Exception, send: Send) -> None:
        refusal = refusal_of(error)
        if not isinstance(error, RouterError):
            logger.error("a request failed with %s at %s", type(error).__name__, _where(error))
        if exchange.status:  # the answer has begun; that it does not end is all that can be said
            exchange.error = exchange.error or refusal.code
            return
        await self.answer_refusal(exchange, refusal, send)

    async def answer_refusal(self, exchange: Exchange, refusal: Refusal, send: Send) -> None:
        """Send an error and record it."""
        exchange.status, exchange.error = refusal.status, refusal.code
        headers = [*refusal.header_list(), *exchange.answer_headers()]
        if refusal.status in (408, 413, 415):  # the rest of the body is not worth reading
            headers.append((b"connection", b"close"))
        self.tell(exchange)
        await send_bytes(send, refusal.status, headers, refusal.body())

    def tell(self, exchange: Exchange) -> None:
        """Tell store and telemetry how a request ended; once, however often it is called."""
        if exchange.told or exchange.endpoint is None:
            return
        exchange.told = True
        event = RouteEvent(
            decision_id=exchange.decision_id,
            at=exchange.at,
            key_id=exchange.caller.key_id,
            endpoint=exchange.endpoint,
            requested=exchange.requested,
            routed=exchange.routed,
            attempts=tuple(exchange.attempts),
            status=exchange.status,
            stream=exchange.stream,
            error=exchange.error,
            total_s=time.perf_counter() - exchange.started,
            config_sha256=exchange.generation.config_sha256,
            messages=exchange.messages,
        )
        if exchange.known:
            self.store.record(event)
        self.telemetry.record(event)


class Leaving:
    """While the block runs, the client's going away cancels the task that serves it."""

    __slots__ = ("_exchange", "_receive", "_task", "_waiter")

    def __init__(self, exchange: Exchange, receive: Receive) -> None:
        self._exchange = exchange
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._waiter: asyncio.Future[Message] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._waiter = asyncio.ensure_future(self._receive())
        self._waiter.add_done_callback(self._heard)
        return self

    def _heard(self, waiter: asyncio.Future[Message]) -> None:
        if waiter.cancelled() or waiter.exception() is not None or self._task is None:
            return
        self._exchange.left = True
        self._task.cancel()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Watch no longer: the answer is about to end."""
        if self._waiter is not None:
            self._waiter.remove_done_callback(self._heard)
            self._waiter.cancel()
        self._task = None


def _forgive() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def _settled_cancellation() -> None:
    """Take the cancellation that may still be on its way, so that it hits nothing later."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        _forgive()


def _where(error: BaseException) -> str:
    """Return where an error came from; its words may quote the request and are left out."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))


class DecisionIds:
    """Makes ids that nobody can guess; ids made later sort later, which databases like.

    Random bytes are drawn many at a time: each drawing lets other threads run, and waits for them.
    """

    def __init__(self) -> None:
        self._random = b""
        self._at = 0

    def new(self, at: float) -> str:
        """Return an id for a request that came at ``at`` seconds since the epoch."""
        start, self._at = self._at, self._at + _RANDOM_BYTES
        if self._at > len(self._random):
            self._random = os.urandom(512 * _RANDOM_BYTES)
            start, self._at = 0, _RANDOM_BYTES
        return f"dec_{int(at * 1000):012x}{self._random[start : self._at].hex()}"


_RANDOM_BYTES: Final = 10
