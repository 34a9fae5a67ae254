"""``POST /v1/completions`` and ``/v1/embeddings``: passed through to the model that is named."""

from __future__ import annotations

from router_runtime.service.asgi import Receive, Send
from router_runtime.service.body import model_of
from router_runtime.service.calling import call
from router_runtime.service.choosing import named
from router_runtime.service.gateway import Exchange, Gateway
from router_runtime.service.reading import estimated_tokens, read_other
from router_runtime.targets.replies import Path


async def completions(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """Pass a request for completions through."""
    await _pass(gateway, exchange, receive, send, path="completions")


async def embeddings(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """Pass a request for embeddings through."""
    await _pass(gateway, exchange, receive, send, path="embeddings")


async def _pass(
    gateway: Gateway, exchange: Exchange, receive: Receive, send: Send, *, path: Path
) -> None:
    body = await read_other(exchange, receive)
    routed = named(exchange, model_of(body))
    await gateway.admit(exchange, tokens=estimated_tokens(exchange, body))
    await call(gateway, exchange, receive, send, path=path, body=body, routed=routed)
