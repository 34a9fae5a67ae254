"""``POST /v1/chat/completions``: routed where ``model`` is ``auto``, else passed through."""

from __future__ import annotations

from router_runtime.service.asgi import Receive, Send
from router_runtime.service.body import model_of
from router_runtime.service.calling import call
from router_runtime.service.choosing import choose
from router_runtime.service.gateway import Exchange, Gateway
from router_runtime.service.reading import estimated_tokens, read_chat
from router_runtime.service.route import send_explanation


async def chat(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """Read, admit, decide, call; with ``router.dry_run`` explain instead of calling."""
    body = await read_chat(exchange, receive)
    model = model_of(body)
    await gateway.admit(exchange, tokens=estimated_tokens(exchange, body))
    routed, controls = await choose(gateway, exchange, body, model=model)
    if controls.dry_run:
        await send_explanation(gateway, exchange, routed, send)
        return
    await call(
        gateway,
        exchange,
        receive,
        send,
        path="chat/completions",
        body=body,
        routed=routed,
        max_cost_usd=controls.max_cost_usd,
    )
