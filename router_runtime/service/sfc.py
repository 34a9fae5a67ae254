"""``POST /sfc_router/chat/completions``: LLM Router v2's answer, the chosen model's name.

Its clients read the name from the content of the first choice and call the model themselves.
"""

from __future__ import annotations

from router_runtime.service.asgi import Receive, Send, send_json
from router_runtime.service.choosing import AUTO, choose
from router_runtime.service.gateway import Exchange, Gateway
from router_runtime.service.reading import read_chat
from router_runtime.types import Json

_OWN_NAMES = frozenset({"", "sfc_router", "router"})
"""What its clients put into ``model``; the service behind it had but one."""


async def sfc_router(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """Answer with a chat completion that says a name, and call nobody."""
    body = await read_chat(exchange, receive)
    exchange.stream = False
    model = body.get("model")
    if not isinstance(model, str) or model in _OWN_NAMES:
        model = AUTO
    await gateway.admit(exchange, tokens=0)
    routed, _ = await choose(gateway, exchange, body, model=model)
    headers = exchange.answer_headers(model_id=routed.model_id)
    exchange.status = 200
    gateway.tell(exchange)
    await send_json(send, _completion(exchange, routed.model_id), headers=headers)


def _completion(exchange: Exchange, model_id: str) -> dict[str, Json]:
    message = {"role": "assistant", "content": model_id, "refusal": None}
    return {
        "id": exchange.decision_id,
        "object": "chat.completion",
        "created": int(exchange.at),
        "model": model_id,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
