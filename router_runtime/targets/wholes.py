"""A whole answer of a target: read as far as must be known of it, and kept as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from router_runtime.targets.answers import read_body
from router_runtime.targets.failures import Asked, complaint_of
from router_runtime.targets.replies import Path, Refused, Reply
from router_runtime.targets.sse import is_error
from router_runtime.targets.streams import EMPTY, Failed, failed
from router_runtime.types import Json


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer.

    Parameters
    ----------
    model_id : str
    status : int
    content_type : str
    headers : mapping
        Those that may be told on.
    content : bytes
        The body as it came.
    body : mapping
        The same, read.
    asked : Asked
        Names the target in errors.
    """

    model_id: str
    status: int
    content_type: str
    headers: Mapping[str, str]
    content: bytes = field(repr=False)
    body: Mapping[str, Json] = field(repr=False)
    asked: Asked


async def read_whole(reply: Reply, path: Path, model_id: str) -> Whole | Failed | Refused:
    """Return a whole answer that says something, or what it is instead.

    Raises
    ------
    TargetError
        The body broke off, is too long, or is no JSON object.
    """
    content = await reply.read()
    asked = reply.asked
    body = _object_of(asked, content, reply.content_type)
    if is_error(body):
        error = reply.complained(body)
        if error.retryable or error.whole_target or error.status < 400:
            return failed(error, usage=body.get("usage"))
        codes = tuple(code.lower() for code in complaint_of(body).codes)
        return Refused(error, codes, content, reply.content_type)
    if _says_nothing(path, body):
        empty = asked.protocol_error("answered nothing.")
        return failed(empty, usage=body.get("usage"), code=EMPTY)
    return Whole(
        model_id,
        reply.status,
        reply.content_type,
        reply.headers,
        content,
        body,
        asked,
    )


def _object_of(asked: Asked, content: bytes, content_type: str) -> Mapping[str, Json]:
    """Return an answer's JSON object; the fast reader for what is as it should be."""
    if content_type.startswith("application/json"):
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict):
            return body
    return read_body(asked, content, media_type=content_type)


def _says_nothing(path: Path, body: Mapping[str, Json]) -> bool:
    """Return whether an answer has no choice with content, tool call or refusal, or no vector.

    An answer that is short for want of tokens or by a filter is one, and as short anywhere else.
    """
    if path == "embeddings":
        return not body.get("data")
    choices = body.get("choices")
    return not any(map(_has_content, choices if isinstance(choices, list) else ()))


def _has_content(choice: Json) -> bool:
    if not isinstance(choice, dict):
        return False
    if choice.get("finish_reason") in ("length", "content_filter"):
        return True
    message = choice.get("message")
    said = [choice.get("text")]
    if isinstance(message, dict):
        said += [value for name, value in message.items() if name != "role"]
    return any(value.strip() if isinstance(value, str) else value for value in said)
