"""The service as an ASGI application: which path goes to which endpoint.

Paths are looked up in a dict, because that is what the hot ones need; what lies below a prefix
(``/v1/models/ID``, the web page) is asked after that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from router_runtime.service.asgi import Receive, Scope, Send, send_bytes
from router_runtime.service.envelope import Refusal

Handler: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Routes: TypeAlias = Mapping[str, Mapping[str, Handler]]


class App:
    """An ASGI application over a table of paths.

    Parameters
    ----------
    routes : mapping of path to mapping of method to handler
        ``GET`` answers ``HEAD`` as well.
    below : sequence of (prefix, mapping of method to handler)
        For paths that begin with a prefix and are not in ``routes``; the first that fits is taken.
        ``*`` stands for every method.
    """

    def __init__(
        self, routes: Routes, *, below: Sequence[tuple[str, Mapping[str, Handler]]] = ()
    ) -> None:
        self._routes = routes
        self._below = tuple(below)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; web sockets are closed, start and end are the server's business."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        methods = self._routes.get(scope["path"])
        if methods is None:
            methods = self._prefixed(scope["path"])
        method = scope["method"]
        handler = methods.get(method) or methods.get("*")
        if handler is None and method == "HEAD":
            handler = methods.get("GET")
        if handler is not None:
            await handler(scope, receive, send)
        else:
            await _refuse(send, _no_such(scope["path"], method, methods))

    def _prefixed(self, path: str) -> Mapping[str, Handler]:
        for prefix, methods in self._below:
            if path.startswith(prefix):
                return methods
        return {}


def _no_such(path: str, method: str, methods: Mapping[str, Handler]) -> Refusal:
    if not methods:
        return Refusal(404, "not_found", "There is nothing at this path; see /openapi.json.")
    allowed = ", ".join(methods)
    return Refusal(
        405,
        "method_not_allowed",
        f"{method} is not answered at this path; send {allowed}.",
        headers={"allow": allowed},
    )


async def _refuse(send: Send, refusal: Refusal) -> None:
    await send_bytes(send, refusal.status, refusal.header_list(), refusal.body())
