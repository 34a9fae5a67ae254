"""Asking candidates for one request, and passing the answer on as it came.

What is passed on is accounted for first: of a whole answer before its first byte, of a stream
before its last ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from router_runtime.errors import AllTargetsFailedError, RequestError, RouterError
from router_runtime.service.asgi import Receive, Send, send_bytes
from router_runtime.service.billing import Bill
from router_runtime.service.gateway import Exchange, Gateway, Leaving
from router_runtime.service.relay import ending_of
from router_runtime.service.values import Routed
from router_runtime.targets.dispatch import (
    BREAKER_OPEN,
    BUDGET,
    BUSY,
    Dispatched,
    Rules,
    adispatch,
)
from router_runtime.targets.replies import Path, Refused
from router_runtime.targets.streams import Stream, Tried
from router_runtime.targets.wholes import Whole

_UNASKED: Final = frozenset({BUDGET, BREAKER_OPEN, BUSY})
_STREAM_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


async def call(
    gateway: Gateway,
    exchange: Exchange,
    receive: Receive,
    send: Send,
    *,
    path: Path,
    body: Mapping[str, Any],
    routed: Routed,
    max_cost_usd: Decimal | None = None,
) -> None:
    """Ask the ranking's candidates in turn and pass the first answer on.

    Parameters
    ----------
    gateway : Gateway
    exchange : Exchange
        Gets attempts, status and error.
    receive, send
        As in ASGI. The client's going away breaks the call off.
    path : Path
        Below the target's base URL.
    body : mapping
        As the client sent it.
    routed : Routed
    max_cost_usd : Decimal or None
        What all attempts together may cost.

    Raises
    ------
    RequestError
        402, 429, 503, 504.
    RouterError
        No candidate answered.
    """
    generation, tried = exchange.generation, list[Tried]()
    bill = Bill(path, body, prices=generation.prices)
    calls = generation.config.service.calls
    try:
        with Leaving(exchange, receive) as leaving:
            dispatched = await adispatch(
                routed.ranking,
                generation.forwarders,
                path,
                body,
                rules=Rules(calls.max_attempts, calls.deadline_s, calls.stream_idle_s),
                breakers=generation.breakers,
                before=_reserving(gateway, exchange, bill, tried, max_cost_usd),
                tried=tried,
            )
            if isinstance(dispatched.answer, Stream):
                await _pass_stream(gateway, exchange, send, dispatched.answer, bill, tried, leaving)
                return
    finally:
        exchange.attempts = bill.attempts(tried)
    if dispatched.answer is not None:
        await _pass_whole(gateway, exchange, send, dispatched.answer)
    elif dispatched.refused is not None:
        await _pass_refusal(gateway, exchange, send, dispatched.refused)
    else:
        raise _failure(dispatched)


def _reserving(
    gateway: Gateway,
    exchange: Exchange,
    bill: Bill,
    tried: Sequence[Tried],
    max_cost_usd: Decimal | None,
) -> Callable[[str], Awaitable[None]] | None:
    """Return what is done before each call: hold it to the budgets, as far as there are any."""
    limits, lease = exchange.caller.limits, exchange.lease
    budgeted = limits.usd_per_day is not None or limits.usd_per_month is not None
    if not budgeted and max_cost_usd is None:
        return None

    async def reserve(model_id: str) -> None:
        spent = sum((a.cost_usd for a in bill.attempts(tried) if a.cost_usd), Decimal(0))
        if max_cost_usd is not None and spent:
            expected = bill.expected_usd(model_id, exchange.routed)
            if expected is not None and spent + expected > max_cost_usd:
                raise RequestError(
                    "The attempts so far leave too little of 'router.max_cost_usd' for another.",
                    status=402,
                    code="max_cost_exceeded",
                    param="router.max_cost_usd",
                )
        if budgeted and lease is not None:
            most = bill.most_usd(model_id) or Decimal(0)
            await gateway.limiter.reserve(lease, cost_usd=spent + most)

    return reserve


async def _pass_whole(gateway: Gateway, exchange: Exchange, send: Send, answer: Whole) -> None:
    _served(exchange, answer.model_id)
    exchange.status = answer.status
    headers = [
        (b"content-type", answer.content_type.encode("latin-1") or b"application/json"),
        *_told_on(answer.headers),
        *exchange.answer_headers(
            model_id=answer.model_id,
            attempts=asked(exchange.attempts),
            cost_usd=exchange.cost_usd(),
        ),
    ]
    gateway.tell(exchange)
    await send_bytes(send, answer.status, headers, answer.content)


async def _pass_stream(
    gateway: Gateway,
    exchange: Exchange,
    send: Send,
    stream: Stream,
    bill: Bill,
    tried: Sequence[Tried],
    leaving: Leaving,
) -> None:
    _served(exchange, stream.model_id)
    try:
        headers = [
            (b"content-type", stream.content_type.encode("latin-1")),
            *_STREAM_HEADERS,
            *_told_on(stream.headers),
            *exchange.answer_headers(
                model_id=stream.model_id,
                attempts=asked(tried) + 1,
                cost_usd=bill.expected_usd(stream.model_id, exchange.routed),
                waited_s=sum(each.seconds for each in tried) + stream.first_byte_s,
            ),
        ]
        exchange.status = stream.status
        await send({"type": "http.response.start", "status": stream.status, "headers": headers})
        async for data in stream.chunks():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        exchange.attempts = bill.attempts(tried)
        exchange.error = None if stream.cut is None else "cut"
        gateway.tell(exchange)
        leaving.stop()
        await send({"type": "http.response.body", "body": ending_of(stream)})
    finally:
        await stream.aclose()


async def _pass_refusal(gateway: Gateway, exchange: Exchange, send: Send, refused: Refused) -> None:
    """Pass on what the provider says of the request: status and body as they came."""
    model_id = exchange.attempts[-1].model_id
    exchange.status, exchange.error = refused.status, f"status_{refused.status}"
    headers = [
        (b"content-type", refused.content_type.encode("latin-1") or b"application/json"),
        *exchange.answer_headers(model_id=model_id, attempts=asked(exchange.attempts)),
    ]
    gateway.tell(exchange)
    await send_bytes(send, refused.status, headers, refused.body)


def _served(exchange: Exchange, model_id: str) -> None:
    """Let a conversation stay with the candidate that took it over."""
    if exchange.routed is not None:
        exchange.generation.decider.served(exchange.routed, model_id)


def asked(attempts: Sequence[Any]) -> int:
    """Return how many of the attempts were calls."""
    return sum(attempt.error not in _UNASKED for attempt in attempts)


def _told_on(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def _failure(dispatched: Dispatched) -> RouterError:
    """Return what to tell the client; what all candidates say alike is told as such."""
    error = dispatched.error()
    if not isinstance(error, AllTargetsFailedError):
        return error
    kinds = {tried.error for tried in dispatched.tried} - _UNASKED
    if kinds == {"timeout"}:
        return RequestError(str(error), status=504, code="upstream_timeout")
    if kinds == {"status_429"}:
        failure = dispatched.failure
        wait_s = getattr(failure, "retry_after_s", None) or 1.0
        return RequestError(
            str(error), status=429, code="upstream_rate_limited", retry_after_s=wait_s
        )
    return error
