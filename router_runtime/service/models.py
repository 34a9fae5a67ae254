"""``GET /v1/models`` and ``GET /v1/models/ID``: what may be put into the ``model`` field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from router_runtime.config import CandidateConfig
from router_runtime.service.asgi import Receive, Send, send_json
from router_runtime.service.choosing import AUTO, no_such_model
from router_runtime.service.gateway import Exchange, Gateway
from router_runtime.service.generations import Generation
from router_runtime.service.values import Caller
from router_runtime.types import Json

OWNER: Final = "model-router"
PREFIX: Final = "/v1/models/"


async def list_models(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """List ``auto``, a name per policy, and every model that the key may use."""
    found = list(models_of(exchange.generation, exchange.caller))
    await send_json(send, {"object": "list", "data": found}, headers=exchange.answer_headers())


async def one_model(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
    """Describe one of them."""
    name = exchange.path.removeprefix(PREFIX)
    for model in models_of(exchange.generation, exchange.caller):
        if model["id"] == name:
            await send_json(send, model, headers=exchange.answer_headers())
            return
    raise no_such_model()


def models_of(generation: Generation, caller: Caller) -> Iterator[dict[str, Json]]:
    """Yield the models in the form of OpenAI's list; candidates say what they can."""
    yield _entry(AUTO, generation)
    for policy in generation.router.policy_names:
        yield _entry(f"{AUTO}:{policy}", generation)
    for candidate in (*generation.config.candidates, *generation.config.direct):
        if candidate.id in generation.forwarders and caller.may_use(candidate.id):
            yield _entry(candidate.id, generation) | _abilities(candidate)


def _entry(name: str, generation: Generation) -> dict[str, Json]:
    return {
        "id": name,
        "object": "model",
        "created": int(generation.loaded_at),
        "owned_by": OWNER,
    }


def _abilities(candidate: CandidateConfig) -> dict[str, Json]:
    return {
        "modalities": sorted(str(modality) for modality in candidate.modalities),
        "context_window": candidate.context_window,
        "tools": candidate.tools,
        "json_mode": candidate.json_mode,
    }
