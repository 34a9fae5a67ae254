"""The body of a chat request, checked and taken apart.

Prompts never appear in the errors: a provider that echoes them is not worth imitating.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from router_runtime.errors import QueryError
from router_runtime.types import Json

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_MOST_CHOICES: Final = 16
_MOST_TOP: Final = 20


@dataclass(frozen=True)
class ChatRequest:
    """What a caller asks for.

    Parameters
    ----------
    prompt : str
        The text of the last user turn.
    data : str
        The text of all user turns.
    chars : int
        Characters of all turns.
    images_sha256 : tuple of str
        Digests of all pictures' bytes, in order.
    fingerprint : str
        Digest of the messages and the caller's own ``seed``: equal calls have equal ones.
    varies : bool
        The caller wants variety: a ``temperature`` above 0, and no ``seed``.
    answers_a_tool : bool
        The last turn is a tool's result.
    n : int
        Choices.
    stream, include_usage : bool
        Server-sent events, and whether their last one reports usage.
    max_tokens : int or None
        Cap on output.
    tools : tuple of mapping
        Functions that may be called.
    tool_choice : str
        ``none``, ``auto``, ``required`` or the name of a function.
    response_format : str
        ``text``, ``json_object`` or ``json_schema``.
    schema : mapping or None
        Of ``json_schema``.
    top_logprobs : int or None
        Alternatives of each token whose log-probabilities are wanted; None: no log-probabilities.
    """

    prompt: str
    data: str
    chars: int
    images_sha256: tuple[str, ...]
    fingerprint: str
    varies: bool = False
    answers_a_tool: bool = False
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    tools: tuple[Mapping[str, Json], ...] = ()
    tool_choice: str = "auto"
    response_format: str = "text"
    schema: Mapping[str, Json] | None = field(default=None)
    top_logprobs: int | None = None


def read_chat_request(body: Mapping[str, Json]) -> ChatRequest:
    """Return what a request's JSON body asks for.

    Raises
    ------
    QueryError
        Naming the field.
    """
    turns = body.get("messages")
    if not isinstance(turns, list) or not turns:
        raise QueryError("'messages' must be a list with at least one message.")
    texts: list[str] = []
    pictures: list[str] = []
    for at, turn in enumerate(turns):
        texts.append(_turn_text(turn, f"messages[{at}]", pictures))
    users = [text for turn, text in zip(turns, texts, strict=True) if turn["role"] == "user"]
    tools = _tools(body)
    response_format, schema = _response_format(body)
    return ChatRequest(
        prompt=users[-1] if users else "",
        data="\n\n".join(users),
        chars=sum(map(len, texts)) + (len(json.dumps(tools)) if tools else 0),
        images_sha256=tuple(pictures),
        fingerprint=_fingerprint(turns, body.get("seed")),
        varies=_temperature(body) > 0 and body.get("seed") is None,
        answers_a_tool=turns[-1]["role"] in ("tool", "function"),
        n=_whole(body, "n", most=_MOST_CHOICES) or 1,
        stream=_flag(body, "stream"),
        include_usage=_flag(_object(body, "stream_options"), "include_usage"),
        max_tokens=_whole(body, "max_completion_tokens") or _whole(body, "max_tokens"),
        tools=tools,
        tool_choice=_tool_choice(body, tools),
        response_format=response_format,
        schema=schema,
        top_logprobs=_top_logprobs(body),
    )


def picture_bytes(uri: Any, where: str) -> bytes:
    """Return the bytes of a picture's data URI.

    Raises
    ------
    QueryError
        It is none; nothing is ever fetched.
    """
    if not isinstance(uri, str) or not uri[:5].lower() == "data:" or ";base64," not in uri[:200]:
        raise QueryError(f"{where} must be a base64 data URI; URLs are not fetched.")
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise QueryError(f"{where} is damaged base64.") from None


def _turn_text(turn: Json, where: str, pictures: list[str]) -> str:
    if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
        raise QueryError(f"{where} must be an object with a 'role' of {', '.join(_ROLES)}.")
    content = turn.get("content")
    if content is None and turn["role"] == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise QueryError(f"{where}.content must be text or a list of parts.")
    return "".join(
        _part_text(part, f"{where}.content[{at}]", pictures) for at, part in enumerate(content)
    )


def _part_text(part: Json, where: str, pictures: list[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return str(part[kind])
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        pictures.append(hashlib.sha256(picture_bytes(url, where)).hexdigest())
        return ""
    raise QueryError(f"{where} must be a text or image_url part.")


def _fingerprint(turns: Sequence[Json], seed: Json) -> str:
    content = json.dumps([turns, seed], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _temperature(body: Mapping[str, Json]) -> float:
    value = body.get("temperature")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2:
        raise QueryError("'temperature' must be a number from 0 to 2.")
    return float(value)


def _tools(body: Mapping[str, Json]) -> tuple[Mapping[str, Json], ...]:
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise QueryError("'tools' must be a list.")
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise QueryError(f"tools[{at}] must be a function with a name.")
    return tuple(tool["function"] for tool in tools)


def _tool_choice(body: Mapping[str, Json], tools: Sequence[Mapping[str, Json]]) -> str:
    choice = body.get("tool_choice") or "auto"
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        choice = choice["function"].get("name")
        if choice in [tool["name"] for tool in tools]:
            return str(choice)
    elif choice in ("none", "auto", "required"):
        return str(choice)
    raise QueryError("'tool_choice' must be none, auto, required or a function of 'tools'.")


def _response_format(body: Mapping[str, Json]) -> tuple[str, Mapping[str, Json] | None]:
    asked = _object(body, "response_format")
    kind = asked.get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise QueryError("'response_format.type' must be text, json_object or json_schema.")
    if kind != "json_schema":
        return str(kind), None
    schema = _object(asked, "json_schema").get("schema")
    if not isinstance(schema, dict):
        raise QueryError("'response_format.json_schema.schema' must be an object.")
    return "json_schema", schema


def _object(body: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise QueryError(f"'{name}' must be an object.")
    return value


def _top_logprobs(body: Mapping[str, Json]) -> int | None:
    if _flag(body, "logprobs"):
        if body.get("top_logprobs") == 0:
            return 0
        return _whole(body, "top_logprobs", most=_MOST_TOP) or 0
    if body.get("top_logprobs") is not None:
        raise QueryError("'top_logprobs' needs 'logprobs': true.")
    return None


def _flag(body: Mapping[str, Json], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise QueryError(f"'{name}' must be true or false.")
    return bool(value)


def _whole(body: Mapping[str, Json], name: str, *, most: int = 2**31) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise QueryError(f"'{name}' must be a whole number from 1 to {most}.")
    return value
