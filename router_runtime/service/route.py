"""``POST /v1/route``: decide as for a chat, explain every step, call nobody."""

from __future__ import annotations

from collections.abc import Mapping

from router_runtime.service.asgi import Receive, Send, send_json
from router_runtime.service.body import model_of
from router_runtime.service.choosing import AUTO, choose
from router_runtime.service.gateway import Exchange, Gateway
from router_runtime.service.reading import read_chat
from router_runtime.service.values import Routed
from router_runtime.types import Json


async def route(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """Answer with the explanation; ``model`` may be left out and is ``auto`` then."""
    body = await read_chat(exchange, receive)
    body.setdefault("model", AUTO)
    exchange.stream = False
    await gateway.admit(exchange, tokens=0)
    routed, _ = await choose(gateway, exchange, body, model=model_of(body))
    await send_explanation(gateway, exchange, routed, send)


async def send_explanation(
    gateway: Gateway, exchange: Exchange, routed: Routed, send: Send
) -> None:
    """Record a decision that nobody is called for, and answer with its explanation."""
    headers = exchange.answer_headers(model_id=routed.model_id)
    exchange.status = 200
    gateway.tell(exchange)
    await send_json(send, explanation(exchange.decision_id, routed), headers=headers)


def explanation(decision_id: str, routed: Routed) -> dict[str, Json]:
    """Return a decision as plain values."""
    decision = routed.decision
    return {
        "object": "router.decision",
        "decision_id": decision_id,
        "model": routed.model_id,
        "ranking": list(routed.ranking),
        "reason": routed.reason,
        "policy": routed.policy,
        "artifact_id": routed.artifact_id or None,
        "novelty": None if decision is None else decision.novelty,
        "cost_unit": None if decision is None else decision.cost_unit,
        "thresholds": dict(routed.thresholds),
        "candidates": _candidates(routed),
        "steps": [
            {"name": step.name, "reason": step.reason, "detail": dict(step.detail)}
            for step in routed.steps
        ],
    }


def _candidates(routed: Routed) -> list[dict[str, Json]]:
    """Return every candidate, eligible ones first in the order of the ranking."""
    decision = routed.decision
    probabilities: Mapping[str, float] = {} if decision is None else decision.probabilities
    against: Mapping[str, str] = {} if decision is None else decision.ineligible
    names = dict.fromkeys([*routed.ranking, *probabilities, *against])
    return [
        {
            "model": name,
            "eligible": name in routed.ranking,
            "reason": against.get(name),
            "probability": probabilities.get(name),
            "threshold": routed.thresholds.get(name),
            "expected_cost": routed.expected_cost.get(name),
        }
        for name in names
    ]
