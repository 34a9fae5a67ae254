"""The ways in which upstreams break, by name, for simulated models and for tests of clients.

A fault either edits an answer that is otherwise whole (and billed), or answers in its stead.
``FAULT_KINDS`` lists them all. None of them shows anything of the prompt.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from router_runtime.simulator.wire import Wire
from router_runtime.types import Json

Play: TypeAlias = Callable[[Wire], Awaitable[None]]
Edit: TypeAlias = Callable[[dict[str, Json]], dict[str, Json]]

_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=utf-8"
_PAGE: Final = (
    b"<!DOCTYPE html><html><head><title>Bad gateway</title></head><body>Sorry.</body></html>"
)
_MIB: Final = b" " * 2**20
_HUGE_MIB: Final = 256
_TRICKLE_S: Final = 0.05
_STORM_S: Final = 2.0


@dataclass(frozen=True)
class Fault:
    """One way to break; exactly one of ``play`` and ``edit`` is set.

    Parameters
    ----------
    summary : str
    play : callable or None
        Answers on the wire.
    edit : callable or None
        Changes the right answer's JSON, of a stream each event's.
    lasts_s : float
        How long every other call to the model meets it too.
    """

    summary: str
    play: Play | None = None
    edit: Edit | None = None
    lasts_s: float = 0.0


def error_body(message: str, *, kind: str, code: str | None = None) -> dict[str, Json]:
    """Return an error as OpenAI's API words it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# --------------------------------------------------------------------------- whole HTTP answers


async def _status(
    wire: Wire,
    *,
    status: int,
    kind: str,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    body = error_body(f"Simulated fault: status {status}.", kind=kind, code=code)
    await wire.respond(json.dumps(body).encode(), status=status, media_type=_JSON, headers=headers)


async def _body(
    wire: Wire,
    *,
    body: bytes | Callable[[bytes], bytes],
    status: int = 200,
    media_type: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    data = body if isinstance(body, bytes) else body(wire.honest)
    await wire.respond(data, status=status, media_type=media_type, headers=headers)


async def _redirect_loop(wire: Wire) -> None:
    here = {"location": str(wire.scope["path"])}
    await wire.respond(b"", status=307, headers=here)


async def _huge_body(wire: Wire) -> None:
    await wire.start(200, {"content-type": _JSON})
    await wire.more(b'{"id": "')
    for _ in range(_HUGE_MIB):
        await wire.more(_MIB)
        await asyncio.sleep(0)
    await wire.send({"type": "http.response.body", "body": b'"}'})


# --------------------------------------------------------------------------- broken connections


async def _hang(wire: Wire) -> None:
    if not await wire.gone():
        await wire.close()


async def _slow_trickle(wire: Wire) -> None:
    """Send a blank now and then, which JSON allows forever."""
    await wire.start(200, {"content-type": _JSON})
    gone = asyncio.create_task(wire.gone())
    while not gone.done():
        await wire.more(b" ")
        await asyncio.wait([gone], timeout=_TRICKLE_S)
    if not await gone:
        await wire.close()


async def _reset(wire: Wire) -> None:
    await wire.reset()


async def _closed(wire: Wire) -> None:
    await wire.close()


async def _reset_midway(wire: Wire) -> None:
    await wire.start(200, _whole_length(wire))
    await wire.more(_half(wire.honest))
    await asyncio.sleep(_TRICKLE_S)  # let the caller read what there is
    await wire.reset()


async def _short_body(wire: Wire) -> None:
    await wire.start(200, _whole_length(wire))
    await wire.more(_half(wire.honest))
    await wire.close()


async def _chunked_cut_off(wire: Wire) -> None:
    await wire.start(200, {"content-type": wire.media_type})
    await wire.more(_half(wire.honest))
    await wire.close()


async def _bad_chunk(wire: Wire) -> None:
    await wire.start(200, {"content-type": wire.media_type})
    wire.write(b"this is no chunk size\r\n" + _half(wire.honest))
    await wire.close()


async def _not_http(wire: Wire) -> None:
    wire.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 nothing that HTTP knows\r\n\r\n")
    await wire.close()


def _whole_length(wire: Wire) -> dict[str, str]:
    return {"content-type": wire.media_type, "content-length": str(len(wire.honest))}


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


# --------------------------------------------------------------------------- edits


def _with(name: str, value: Json) -> Edit:
    return lambda body: {**body, name: value}


def _without(name: str) -> Edit:
    return lambda body: {key: value for key, value in body.items() if key != name}


def _each_choice(change: Callable[[dict[str, Json]], dict[str, Json]]) -> Edit:
    return lambda body: {**body, "choices": [change(choice) for choice in body["choices"]]}


def _null_message(choice: dict[str, Json]) -> dict[str, Json]:
    return {**choice, "delta" if "delta" in choice else "message": None}


def _without_message(choice: dict[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in choice.items() if key not in ("delta", "message")}


def _with_content(
    choice: dict[str, Json], *, content: Json, finish_reason: str | None = None
) -> dict[str, Json]:
    name = "delta" if "delta" in choice else "message"
    message = choice[name]
    if "content" in message:
        message = {**message, "content": content}
    ended = choice["finish_reason"] and (finish_reason or choice["finish_reason"])
    return {**choice, name: message, "finish_reason": ended}


_NONSENSE: Final = {"prompt_tokens": -5, "completion_tokens": "many", "total_tokens": None}


def _refusal(status: int, kind: str, code: str | None = None, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    play = partial(_status, status=status, kind=kind, code=code, headers=named)
    return Fault(f"status {status}, {code or kind}", play)


FAULT_KINDS: Final[Mapping[str, Fault]] = {
    "hang": Fault("never answers", _hang),
    "slow_trickle": Fault("a byte now and then, without end", _slow_trickle),
    "reset": Fault("the connection is reset before any answer", _reset),
    "reset_midway": Fault("the connection is reset in the middle of the body", _reset_midway),
    "closed": Fault("the connection is closed without an answer", _closed),
    "short_body": Fault("fewer bytes than content-length says", _short_body),
    "chunked_cut_off": Fault("a chunked body without its last chunk", _chunked_cut_off),
    "bad_chunk": Fault("a chunk size that is none", _bad_chunk),
    "not_http": Fault("bytes that are no HTTP", _not_http),
    "truncated_json": Fault("half of the JSON as a whole body", partial(_body, body=_half)),
    "invalid_utf8": Fault(
        "JSON that is no UTF-8",
        partial(_body, body=lambda honest: b'{"id": "\xff\xfe", ' + honest[1:]),
    ),
    "wrong_content_type": Fault(
        "the right JSON, said to be a picture", partial(_body, body=bytes, media_type="image/png")
    ),
    "bad_gzip": Fault(
        "said to be gzip and is not",
        partial(_body, body=bytes, headers={"content-encoding": "gzip"}),
    ),
    "html_page": Fault("a page with status 200", partial(_body, body=_PAGE, media_type=_HTML)),
    "html_error_page": Fault(
        "a page with status 502", partial(_body, body=_PAGE, status=502, media_type=_HTML)
    ),
    "empty_body": Fault("status 200 and nothing", partial(_body, body=b"")),
    "json_list": Fault("a list, no object", partial(_body, body=b"[]", media_type=_JSON)),
    "json_text": Fault(
        "a text instead of an object", partial(_body, body=b'"ok"', media_type=_JSON)
    ),
    "deeply_nested": Fault(
        "a list 100,000 levels deep",
        partial(_body, body=b"[" * 100_000 + b"]" * 100_000, media_type=_JSON),
    ),
    "huge_body": Fault(f"{_HUGE_MIB} MiB of blanks in JSON", _huge_body),
    "redirect_loop": Fault("a redirect to itself", _redirect_loop),
    "error_body_200": Fault(
        "status 200 with an error in the body",
        partial(
            _body,
            body=json.dumps(error_body("Simulated fault.", kind="server_error")).encode(),
            media_type=_JSON,
        ),
    ),
    "status_400": _refusal(400, "invalid_request_error"),
    "status_401": _refusal(401, "invalid_request_error", "invalid_api_key"),
    "status_403": _refusal(403, "permission_error"),
    "status_404": _refusal(404, "invalid_request_error", "model_not_found"),
    "status_408": _refusal(408, "timeout"),
    "status_409": _refusal(409, "conflict_error"),
    "status_413": _refusal(413, "invalid_request_error"),
    "status_422": _refusal(422, "invalid_request_error"),
    "status_429": _refusal(429, "requests", "rate_limit_exceeded", retry_after="1"),
    "insufficient_quota": _refusal(429, "insufficient_quota", "insufficient_quota"),
    "rate_limit_storm": Fault(
        f"429 for every call during {_STORM_S:g} s",
        partial(
            _status,
            status=429,
            kind="requests",
            code="rate_limit_exceeded",
            headers={"retry-after": f"{_STORM_S:g}"},
        ),
        lasts_s=_STORM_S,
    ),
    "status_500": _refusal(500, "server_error"),
    "status_502": _refusal(502, "server_error"),
    "status_503": _refusal(503, "overloaded_error", retry_after="1"),
    "status_504": _refusal(504, "timeout"),
    "status_529": _refusal(529, "overloaded_error"),
    "empty_choices": Fault("no choices", edit=_with("choices", [])),
    "missing_choices": Fault("'choices' is absent", edit=_without("choices")),
    "null_message": Fault("a choice whose message is null", edit=_each_choice(_null_message)),
    "missing_message": Fault("a choice without a message", edit=_each_choice(_without_message)),
    "empty_content": Fault(
        "a message with empty content", edit=_each_choice(partial(_with_content, content=""))
    ),
    "null_content": Fault(
        "a message with null as content", edit=_each_choice(partial(_with_content, content=None))
    ),
    "content_filter": Fault(
        "content filtered away",
        edit=_each_choice(partial(_with_content, content="", finish_reason="content_filter")),
    ),
    "usage_missing": Fault("no usage", edit=_without("usage")),
    "usage_nonsense": Fault("negative and textual usage", edit=_with("usage", _NONSENSE)),
    "duplicate_ids": Fault("the same id for every answer", edit=_with("id", "chatcmpl-duplicate")),
}
"""All faults by the name that a config uses."""
