"""The simulator as an ASGI application with OpenAI's routes and a ledger.

``POST /v1/chat/completions``, ``POST /v1/embeddings``, ``GET /v1/models`` and, by name,
``GET /v1/models/ID``; Azure's ``POST /openai/deployments/ID/chat/completions``;
``GET /simulator/ledger`` and ``POST /simulator/reset``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from router_runtime.errors import ConfigError, QueryError
from router_runtime.pricing import price_from_mapping
from router_runtime.simulator.chat_request import ChatRequest, read_chat_request
from router_runtime.simulator.config import SimulatedModelConfig, SimulatorConfig
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.embeddings import embed
from router_runtime.simulator.faults import FAULT_KINDS, Edit, Fault, error_body
from router_runtime.simulator.known import KnownAnswers, read_answers
from router_runtime.simulator.ledger import Account, ledger_json
from router_runtime.simulator.limits import Bucket
from router_runtime.simulator.replies import Brain, Reply, completion_chunks, completion_json
from router_runtime.simulator.wire import Receive, Scope, Send, Wire
from router_runtime.types import Json

OWNER: Final = "model-router-simulator"
_MOST_BYTES: Final = 64 * 2**20
_BUSY_WAIT_S: Final = 1.0


@dataclass
class _Model:
    """One simulated model with what changes while it is served."""

    id: str
    config: SimulatedModelConfig
    account: Account
    bucket: Bucket | None
    n_draws: int = 0
    storm: str = ""
    storm_until: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        self.account.clear()
        self.asked.clear()
        self.n_draws, self.storm_until = 0, 0.0
        if self.bucket is not None:
            self.bucket.refill()

    def times_before(self, request: ChatRequest) -> int:
        """Return how many equal calls came before, where the caller wants variety; else 0."""
        if not request.varies:
            return 0
        self.asked[request.fingerprint] += 1
        return self.asked[request.fingerprint] - 1

    def limit_wait_s(self) -> float:
        """Return 0 if a call may begin, or how long the caller is to wait."""
        most = self.config.max_concurrency
        if most is not None and self.account.in_flight >= most:
            return _BUSY_WAIT_S
        return 0.0 if self.bucket is None else self.bucket.wait_s()


@dataclass
class _Simulator:
    config: SimulatorConfig
    brain: Brain
    key: str | None = field(repr=False)
    models: dict[str, _Model]

    def fault(self, model: _Model, fingerprint: str) -> Fault | None:
        """Return the fault that a call meets, and count it."""
        errors = model.config.errors
        kind = model.storm if time.monotonic() < model.storm_until else ""
        if not kind and errors.rate:
            mark = fingerprint if errors.sticky else model.n_draws
            model.n_draws += 1
            draws = Draws.of(self.config.seed, model.id, "fault", mark)
            if draws.uniform("met") < errors.rate:
                kind = draws.pick("kind", errors.kinds)
                model.storm = kind
                model.storm_until = time.monotonic() + FAULT_KINDS[kind].lasts_s
        if not kind:
            return None
        model.account.faults[kind] += 1
        return FAULT_KINDS[kind]


def build_app(config: SimulatorConfig) -> Starlette:
    """Return the application.

    Raises
    ------
    ConfigError, DataError
        The file of answers cannot be used, or the variable of ``api_key_env`` is not set.
    """
    known = KnownAnswers() if config.answers is None else read_answers(config.answers)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/openai/deployments/{model:path}/chat/completions", _chat, methods=["POST"]),
            Route("/v1/embeddings", _embeddings, methods=["POST"]),
            Route("/v1/models", _list_models),
            Route("/v1/models/{model:path}", _one_model),
            Route("/simulator/ledger", _ledger),
            Route("/simulator/reset", _reset, methods=["POST"]),
        ],
        exception_handlers={QueryError: _bad_request, HTTPException: _http_error},
    )
    app.state.simulator = _Simulator(
        config,
        Brain(config, known),
        _api_key(config),
        {name: _model(name, model) for name, model in config.models.items()},
    )
    return app


def _model(model_id: str, config: SimulatedModelConfig) -> _Model:
    price = config.price
    found = None if price is None else price_from_mapping(price.model_dump(), owner=model_id)
    limit = config.rate_limit
    bucket = None if limit is None else Bucket(limit, time.monotonic)
    return _Model(model_id, config, Account(found), bucket)


def _api_key(config: SimulatorConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError(
            f"Environment variable '{config.api_key_env}' (api_key_env) is not set; set it to the "
            "key that callers are to send."
        )
    return key


# --------------------------------------------------------------------------- endpoints


async def _chat(request: Request) -> Response:
    simulator, body, model = await _begin(request)
    if refused := _limited(model):
        return refused
    try:
        asked = read_chat_request(body)
        reply = simulator.brain.reply(model.id, asked, before=model.times_before(asked))
    except QueryError:
        model.account.refused += 1
        raise
    fault = simulator.fault(model, asked.fingerprint)
    model.account.enter()
    return _Answer(model, asked, reply, fault)


async def _embeddings(request: Request) -> Response:
    simulator, body, model = await _begin(request)
    if refused := _limited(model):
        return refused
    try:
        embedded = embed(body, model.id, model.config, seed=simulator.config.seed)
    except QueryError:
        model.account.refused += 1
        raise
    fault = simulator.fault(model, str(body.get("input")))
    model.account.enter()
    try:
        await asyncio.sleep(model.config.latency.median_s)
        if fault is None or fault.edit is not None:
            model.account.bill(embedded.usage)
    finally:
        model.account.leave()
    honest = dict(embedded.body)
    if fault is None:
        return JSONResponse(honest)
    if fault.edit is not None:
        return JSONResponse(fault.edit({"choices": [], **honest}))
    return _Broken(fault, json.dumps(honest).encode())


async def _list_models(request: Request) -> Response:
    simulator = _admitted(request)
    listed = [_model_json(model) for model in simulator.models]
    return JSONResponse({"object": "list", "data": listed})


async def _one_model(request: Request) -> Response:
    simulator = _admitted(request)
    return JSONResponse(_model_json(_named(simulator, request.path_params["model"]).id))


async def _ledger(request: Request) -> Response:
    simulator = _admitted(request)
    return JSONResponse(ledger_json({m.id: m.account for m in simulator.models.values()}))


async def _reset(request: Request) -> Response:
    simulator = _admitted(request)
    for model in simulator.models.values():
        model.reset()
    return await _ledger(request)


def _model_json(model_id: str) -> dict[str, Json]:
    return {
        "id": model_id,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "simulated": True,
    }


# --------------------------------------------------------------------------- before the answer


async def _begin(request: Request) -> tuple[_Simulator, Mapping[str, Json], _Model]:
    """Check key, body and model, in the order in which providers do."""
    simulator = _admitted(request)
    body = await _json_body(request)
    model = _named(simulator, body.get("model") or request.path_params.get("model"))
    model.account.requests += 1
    return simulator, body, model


def _admitted(request: Request) -> _Simulator:
    simulator: _Simulator = request.app.state.simulator
    if simulator.key is not None:
        bearer = request.headers.get("authorization", "").partition(" ")[2]
        sent = bearer or request.headers.get("api-key", "")
        if not hmac.compare_digest(sent.encode(), simulator.key.encode()):
            raise HTTPException(401)
    return simulator


def _named(simulator: _Simulator, model_id: Json) -> _Model:
    model = simulator.models.get(model_id) if isinstance(model_id, str) else None
    if model is None:
        raise HTTPException(404, "model_not_found")
    return model


async def _json_body(request: Request) -> Mapping[str, Json]:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _MOST_BYTES:
            raise HTTPException(413)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise QueryError("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise QueryError("The body must be a JSON object.")
    return body


def _limited(model: _Model) -> Response | None:
    wait_s = model.limit_wait_s()
    if not wait_s:
        return None
    model.account.rate_limited += 1
    body = error_body("Simulated rate limit.", kind="requests", code="rate_limit_exceeded")
    headers = {
        "retry-after": str(math.ceil(wait_s)),
        "retry-after-ms": str(math.ceil(1000 * wait_s)),
    }
    return JSONResponse(body, status_code=429, headers=headers)


async def _bad_request(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), kind="invalid_request_error"), status_code=400)


_HTTP_ERRORS: Final = {
    401: ("Incorrect API key.", "invalid_api_key"),
    404: ("There is no such simulated model or route.", None),
    413: ("The body is too large.", None),
}


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message, code = _HTTP_ERRORS.get(status, ("This does not work.", None))
    if isinstance(error, HTTPException) and error.detail == "model_not_found":
        code = error.detail
    body = error_body(message, kind="invalid_request_error", code=code)
    return JSONResponse(body, status_code=status)


# --------------------------------------------------------------------------- the answer


class _Answer(Response):
    """A reply that takes its time; the model is busy until the last byte."""

    def __init__(
        self, model: _Model, asked: ChatRequest, reply: Reply, fault: Fault | None
    ) -> None:
        super().__init__()
        self._model = model
        self._asked = asked
        self._reply = reply
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(self._reply.first_byte_s)
            await self._response()(scope, receive, send)
        finally:
            self._model.account.leave()

    def _response(self) -> Response:
        fault, reply, stream = self._fault, self._reply, self._asked.stream
        if fault is not None and fault.edit is None:
            body = "".join(_events(self._asked, reply, None)) if stream else _body(reply, None)
            return _Broken(fault, body.encode(), "text/event-stream" if stream else _JSON)
        self._model.account.bill(reply.usage)
        edit = None if fault is None else fault.edit
        if stream:
            return StreamingResponse(self._paced(edit), media_type="text/event-stream")
        return _Late(_body(reply, edit), reply.rest_s)

    async def _paced(self, edit: Edit | None) -> AsyncIterator[str]:
        events = _events(self._asked, self._reply, edit)
        pause_s = self._reply.rest_s / len(events)
        for event in events:
            yield event
            if pause_s:
                await asyncio.sleep(pause_s)


_JSON: Final = "application/json"


class _Late(Response):
    """A body that comes after some seconds."""

    media_type = _JSON

    def __init__(self, body: str, seconds: float) -> None:
        super().__init__(body)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._seconds:
            await asyncio.sleep(self._seconds)
        await super().__call__(scope, receive, send)


class _Broken(Response):
    """A fault in the place of an answer."""

    def __init__(self, fault: Fault, honest: bytes, media_type: str = _JSON) -> None:
        super().__init__()
        self._fault = fault
        self._honest = honest
        self._type = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._fault.play is not None:
            await self._fault.play(Wire(scope, receive, send, self._honest, self._type))


def _body(reply: Reply, edit: Edit | None) -> str:
    body = completion_json(reply)
    return json.dumps(body if edit is None else edit(body))


def _events(asked: ChatRequest, reply: Reply, edit: Edit | None) -> list[str]:
    chunks = completion_chunks(reply, include_usage=asked.include_usage)
    edited = chunks if edit is None else map(edit, chunks)
    return [*(f"data: {json.dumps(chunk)}\n\n" for chunk in edited), "data: [DONE]\n\n"]
