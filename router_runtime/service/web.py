"""``/ui``: a page to try the router and to watch it; plain files, nothing from other hosts.

The files hold no data and need no key; what they show is asked from the same API with the key that
the user types, which stays in the tab. The content security policy lets the page load and call
nothing but this service, and no other page frame it.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final
from urllib.parse import parse_qs

from sqlalchemy.exc import SQLAlchemyError

from router_runtime.errors import RequestError
from router_runtime.service.app import Handler
from router_runtime.service.asgi import Receive, Scope, Send, send_bytes, send_json
from router_runtime.service.dashboard import Dashboard
from router_runtime.service.gateway import Exchange, Gateway

FILES: Final = {
    "/ui": ("index.html", b"text/html; charset=utf-8"),
    "/ui/style.css": ("style.css", b"text/css; charset=utf-8"),
    **{
        f"/ui/{name}.js": (f"{name}.js", b"text/javascript; charset=utf-8")
        for name in ("app", "common", "dashboard", "decision", "playground")
    },
}
SUMMARY: Final = "/ui/api/summary"
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LONGEST_S: Final = 366 * 86_400.0


class WebFile:
    """One file of the page."""

    def __init__(self, name: str, media_type: bytes) -> None:
        self._content = files("router_runtime.service").joinpath("ui", name).read_bytes()
        tag = hashlib.sha256(self._content).hexdigest()[:32]
        self._tag = f'"{tag}"'.encode()
        self._headers = [
            (b"content-type", media_type),
            (b"content-security-policy", _POLICY),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache"),
            (b"etag", self._tag),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET`` and ``HEAD``."""
        if dict(scope["headers"]).get(b"if-none-match") == self._tag:
            await send_bytes(send, 304, self._headers, b"")
            return
        body = b"" if scope["method"] == "HEAD" else self._content
        await send_bytes(send, 200, self._headers, body)


def web_files() -> dict[str, Handler]:
    """Return handlers of the page's files by path.

    ``/ui/`` leads to ``/ui``, because the page's links are relative to that.
    """
    found = {path: WebFile(name, media_type) for path, (name, media_type) in FILES.items()}
    return {**found, "/ui/": _to_page}


async def _to_page(scope: Scope, receive: Receive, send: Send) -> None:
    await send_bytes(send, 308, [(b"location", b"../ui")], b"")


def summary_handler(gateway: Gateway, dashboard: Dashboard) -> Handler:
    """Return the handler of ``/ui/api/summary?seconds=N``: the caller's own figures.

    Without ``seconds`` they are of the last day. It is answered 400 for seconds that are none, and
    503 where the database does not answer.
    """

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        async def work(_: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
            seconds = _seconds(scope["query_string"])
            try:
                found = await dashboard.summary(exchange.caller, seconds=seconds)
            except SQLAlchemyError:
                raise RequestError(
                    "The store's database does not answer, so there is nothing to show yet.",
                    status=503,
                    code="store_unavailable",
                    retry_after_s=5,
                ) from None
            await send_json(send, found, headers=[(b"cache-control", b"no-store")])

        await gateway.handler(work)(scope, receive, send)

    return handle


def _seconds(query_string: bytes) -> float:
    given = parse_qs(query_string.decode("ascii", "replace")).get("seconds", ["86400"])[-1]
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST_S:
        raise RequestError(
            "'seconds' must be a number above 0, at most a year.",
            status=400,
            code="invalid_value",
            param="seconds",
        )
    return seconds
