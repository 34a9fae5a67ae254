"""The experts over HTTP: OpenAI's chat API, and vLLM's way to add and remove adapters."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from router_runtime.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    ConfigError,
    RequestError,
    RouterError,
)
from router_runtime.experts.batches import End, Piece
from router_runtime.experts.chat import Answers, Lines, error_body, line_of
from router_runtime.experts.service import Experts
from router_runtime.types import Json

MAX_BODY_BYTES: Final = 64 * 2**20
_CLOSED_REQUEST: Final = 499

Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(experts: Experts, *, key: str | None = None) -> Starlette:
    """Return the application.

    Parameters
    ----------
    experts : Experts
    key : str or None
        What clients must send as ``Authorization: Bearer``; None: nothing. ``/health`` is open.
    """
    open_to_all = [Route("/health", _health)]
    guarded = [
        Route("/v1/chat/completions", _checked(_chat), methods=["POST"]),
        Route("/v1/models", _checked(_models)),
        Route("/v1/load_lora_adapter", _checked(_load), methods=["POST"]),
        Route("/v1/unload_lora_adapter", _checked(_unload), methods=["POST"]),
    ]
    app = Starlette(routes=[*open_to_all, *guarded], exception_handlers={404: _no_such_page})
    app.state.experts = experts
    app.state.key = None if key is None else key.encode()
    app.state.started = int(time.time())
    return app


def _checked(endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        try:
            _check_key(request)
            return await endpoint(request)
        except RequestError as error:
            return _error(error)
        except ClientDisconnect:
            return Response(status_code=_CLOSED_REQUEST)

    return guarded


def _check_key(request: Request) -> None:
    key: bytes | None = request.app.state.key
    if key is None:
        return
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), key):
        raise RequestError("The key is missing or wrong.", status=401, code="invalid_api_key")


async def _health(request: Request) -> Response:
    engine = _experts(request).engine
    if not engine.alive:
        return PlainTextResponse("the model's thread has ended", status_code=503)
    return JSONResponse({"waiting": engine.waiting, "running": engine.running})


async def _models(request: Request) -> Response:
    experts = _experts(request)
    base = experts.config.base_name
    context = experts.engine.pool.base.context
    common = {"object": "model", "created": request.app.state.started, "owned_by": "model-router"}
    entries = [
        common
        | {
            "id": base,
            "root": experts.config.base.model,
            "parent": None,
            "max_model_len": context,
            "bytes": experts.engine.pool.base.n_bytes,
        }
    ]
    for card in experts.engine.pool.cards:
        entries.append(
            common
            | {
                "id": card.name,
                "root": str(card.path),
                "parent": base,
                "max_model_len": context,
                "bytes": card.n_bytes,
                "in_memory": card.inner is not None,
            }
        )
    return JSONResponse({"object": "list", "data": entries})


async def _load(request: Request) -> Response:
    experts = _experts(request)
    body = await _updating(request)
    name, path = body.get("lora_name"), body.get("lora_path")
    if not (isinstance(name, str) and isinstance(path, str) and name and path):
        raise _invalid("Both 'lora_name' and 'lora_path' must be provided.")
    if experts.engine.pool.knows(name):
        raise _invalid(f"The lora adapter '{name:.80}' has already been loaded.")
    try:
        await asyncio.to_thread(experts.engine.add_adapter, name, path)
    except ArtifactIntegrityError as error:
        missing = "there is no folder" in str(error)
        raise RequestError(
            f"No adapter found for '{path:.200}'." if missing else str(error),
            status=404 if missing else 400,
            code="NotFoundError" if missing else "BadRequestError",
        ) from None
    except (ArtifactError, ConfigError) as error:
        raise _invalid(str(error)) from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def _unload(request: Request) -> Response:
    experts = _experts(request)
    name = (await _updating(request)).get("lora_name")
    if not isinstance(name, str) or not name:
        raise _invalid("'lora_name' needs to be provided to unload a LoRA adapter.")
    try:
        await asyncio.to_thread(experts.engine.remove_adapter, name)
    except ConfigError:
        raise RequestError(
            f"The lora adapter '{name:.80}' cannot be found.", status=404, code="NotFoundError"
        ) from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def _updating(request: Request) -> dict[str, Json]:
    """Return the body of a request that changes which adapters there are, if that is allowed."""
    if not _experts(request).config.allow_updates:
        raise RequestError(
            "Adapters are not changed while this server runs. Its config may allow it with "
            "'allow_updates' and 'adapters_root'.",
            status=403,
            code="adapter_updates_disabled",
        )
    body = await _body(request)
    if not isinstance(body, dict):
        raise _invalid("The body must be a JSON object.")
    return body


async def _chat(request: Request) -> Response:
    experts = _experts(request)
    asked = experts.read(await _body(request))
    answers = Answers(asked.model)
    if asked.stream:
        events = experts.events(asked)
        first = await anext(events)  # a refusal is told by its status, before the stream begins
        lines = Lines(answers, include_usage=asked.include_usage)
        return StreamingResponse(_stream(lines, first, events), media_type="text/event-stream")
    end = await _unless_gone(request, experts.answer(asked))
    return JSONResponse(answers.whole(end))


async def _unless_gone(request: Request, answering: Awaitable[End]) -> End:
    """Return the answer; cancel it when the client hangs up."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return await answer
    finally:
        for task in (answer, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, RouterError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    lines: Lines, first: Piece | End, events: AsyncGenerator[Piece | End]
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        yield lines.of(first)
        try:
            async for event in events:
                yield lines.of(event)
        except RequestError as error:  # the status is sent, so an event must tell
            yield line_of(error_body(error))


async def _body(request: Request) -> Json:
    """Return a JSON body; of another type it could be sent by any web page."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(
            "Send JSON with 'Content-Type: application/json'.", status=400, code="invalid_request"
        )
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise RequestError(
                f"The body has more than {MAX_BODY_BYTES:,} bytes.",
                status=413,
                code="request_too_large",
            )
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _invalid("The body is no JSON.") from None


def _experts(request: Request) -> Experts:
    experts: Experts = request.app.state.experts
    return experts


def _invalid(message: str) -> RequestError:
    return RequestError(message, status=400, code="invalid_request")


def _error(error: RequestError) -> JSONResponse:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = f"{error.retry_after_s:.0f}"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


async def _no_such_page(request: Request, error: Exception) -> Response:
    return _error(
        RequestError(f"There is no {request.url.path:.80} here.", status=404, code="not_found")
    )
