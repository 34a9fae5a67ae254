"""ASGI's types, and sending whole answers; the floor of the HTTP front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

import orjson

from router_runtime.types import Json

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
HeaderList: TypeAlias = Sequence[tuple[bytes, bytes]]

JSON_HEADERS: HeaderList = ((b"content-type", b"application/json"),)


async def send_bytes(send: Send, status: int, headers: HeaderList, body: bytes) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_json(
    send: Send, content: Json, *, status: int = 200, headers: HeaderList = ()
) -> None:
    """Send a value as JSON."""
    body = orjson.dumps(content, default=str, option=orjson.OPT_NON_STR_KEYS)
    await send_bytes(send, status, [*JSON_HEADERS, *headers], body)
