"""Reading a request's body under the limits of the config that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_runtime.service.asgi import Receive
from router_runtime.service.billing import estimate_total_tokens, size_of
from router_runtime.service.body import check_chat, check_common, parse_object, read_body
from router_runtime.service.gateway import Exchange


async def read_chat(exchange: Exchange, receive: Receive) -> dict[str, Any]:
    """Return the checked body of a chat request.

    Raises
    ------
    RequestError
        400, 413 or 415.
    """
    config = exchange.generation.config
    body = await _read(exchange, receive)
    check_chat(body, config.service.requests, allow_urls=config.images.fetch is not None)
    exchange.stream = bool(body.get("stream"))
    if config.service.store.content:
        exchange.messages = tuple(body["messages"])
    return body


async def read_other(exchange: Exchange, receive: Receive) -> dict[str, Any]:
    """Return the checked body of a request for completions or embeddings.

    Raises
    ------
    RequestError
        400, 413 or 415.
    """
    body = await _read(exchange, receive)
    check_common(body, exchange.generation.config.service.requests)
    exchange.stream = bool(body.get("stream"))
    return body


async def _read(exchange: Exchange, receive: Receive) -> dict[str, Any]:
    limits = exchange.generation.config.service.requests
    data = await read_body(exchange.headers, receive, max_bytes=limits.max_body_bytes)
    return parse_object(data, max_depth=limits.max_depth)


def estimated_tokens(exchange: Exchange, body: Mapping[str, Any]) -> int:
    """Return what a request is counted as at admission; 0 where the key has no such limit."""
    if exchange.caller.limits.tokens_per_minute is None:
        return 0
    return estimate_total_tokens(size_of(body))
