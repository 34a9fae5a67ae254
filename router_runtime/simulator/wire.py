"""A connection on which a simulated upstream may misbehave, below HTTP if need be."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from router_runtime.errors import ConfigError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TRANSPORT: Final = "model_router_simulator_transport"
"""Where ``serve`` puts the connection's transport among the scope's ``extensions``."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger
_LONGEST_S: Final = 600.0


@dataclass(frozen=True)
class Wire:
    """One call's connection, with the answer that a working server would give.

    Parameters
    ----------
    scope, receive, send
        As in ASGI.
    honest : bytes
        The body of the right answer.
    media_type : str
        Its content type.
    """

    scope: Scope
    receive: Receive
    send: Send
    honest: bytes
    media_type: str

    async def respond(
        self,
        body: bytes,
        *,
        status: int = 200,
        media_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer over HTTP as it should be; ``media_type`` None is the right answer's."""
        shown = {
            "content-type": media_type or self.media_type,
            "content-length": str(len(body)),
            **(headers or {}),
        }
        await self.start(status, shown)
        await self.send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers; without a content-length the body is sent in chunks."""
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})

    async def more(self, body: bytes) -> None:
        """Send a part of the body."""
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    def write(self, data: bytes) -> None:
        """Put bytes on the connection as they are."""
        self._transport.write(data)

    async def close(self) -> None:
        """End the connection, whether or not the answer is whole."""
        self._transport.close()
        await self.gone()

    async def reset(self) -> None:
        """Tear the connection down, so that the caller sees a reset."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()
        await self.gone()

    async def gone(self) -> bool:
        """Wait until the caller has gone; after ten minutes give up and return False."""
        try:
            async with asyncio.timeout(_LONGEST_S):
                while (await self.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True

    @property
    def _transport(self) -> asyncio.Transport:
        transport: asyncio.Transport | None = self.scope.get("extensions", {}).get(TRANSPORT)
        if transport is None:
            raise ConfigError(
                "This fault breaks the connection itself, which needs the simulator's own server; "
                "start it with: model-router simulate CONFIG"
            )
        return transport
