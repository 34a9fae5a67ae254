"""From the body of an answer to a ``Completion``, or to the error that it really is.

An answer without a usable text is an error, never an empty answer: the two would be scored alike.
Only a tool call has no text of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from router_runtime.pricing import Usage
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.failures import Asked, complaint_of
from router_runtime.types import Json

_MEDIA_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_TEXT_PARTS: Final = ("text", "output_text")
_MOST_TOKENS: Final = 10**9  # beyond, a count is nonsense and not a bill


def read_body(asked: Asked, content: bytes, *, media_type: str) -> Mapping[str, Json]:
    """Return the JSON object of an answer.

    NaN and infinities, which JSON does not have, become null; halves of surrogate pairs, which no
    file can hold, become ``?``.

    Parameters
    ----------
    asked : Asked
        Names the target in errors.
    content : bytes
        The body.
    media_type : str
        The ``Content-Type`` header; empty where there is none.

    Raises
    ------
    TargetProtocolError
        It says that it is no JSON, or is none: HTML, cut off, not UTF-8, or no object.
    """
    kind = media_type.partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        shown = kind if _MEDIA_TYPE.fullmatch(kind) else "something"
        raise asked.protocol_error(f"answered {shown} where JSON was expected. Check the URL.")
    body: Json = None
    problem = ""
    try:
        text = content.decode("utf-8-sig")
        body = json.loads(text, parse_constant=lambda _: None)
        if _SURROGATE.search(text):
            body = well_formed(body)
    except UnicodeDecodeError:
        problem = "answered what is not UTF-8."
    except (ValueError, RecursionError):
        problem = "answered what is no whole JSON."
    if not problem and isinstance(body, Mapping):
        return body
    raise asked.protocol_error(problem or "answered JSON that is no object.")


def well_formed(value: Json) -> Json:
    """Return JSON with halves of surrogate pairs in its texts replaced by ``?``."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {well_formed(key): well_formed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [well_formed(entry) for entry in value]
    return value


def read_completion(
    asked: Asked,
    body: Mapping[str, Json],
    *,
    model_id: str,
    call: ChatCall,
    seconds: float,
    headers: Mapping[str, str],
) -> Completion:
    """Return what a chat answer says.

    Of several choices the first counts. A refusal is an answer: its words are the text.

    Parameters
    ----------
    asked : Asked
        Names the target in errors.
    body : mapping
        The answer.
    model_id : str
        The candidate that was asked.
    call : ChatCall
        What was asked; its pictures are counted.
    seconds : float
        How long it took.
    headers : mapping
        Of the answer, with lower-case names.

    Raises
    ------
    TargetStatusError
        The body is an error although the status is 200.
    TargetProtocolError
        There is no choice, no message, or no text.
    """
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    for place in (body, choice):
        if isinstance(place, Mapping) and (place.get("error") or place.get("object") == "error"):
            raise asked.status_error(200, complaint_of(place), headers=headers)
    if choice is None:
        raise asked.protocol_error("answered without choices.")
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise asked.protocol_error("answered a choice without a message.")
    reason = choice.get("finish_reason")
    finish_reason = reason if isinstance(reason, str) else None
    text = _text(message.get("content")) or _text(message.get("refusal"))
    if not text.strip() and not (message.get("tool_calls") or message.get("function_call")):
        _raise_empty(asked, finish_reason)
    return Completion(
        model_id=model_id,
        text=text,
        usage=read_usage(body.get("usage"), images=count_images(call)),
        finish_reason=finish_reason,
        seconds=seconds,
        raw=body,
    )


def _raise_empty(asked: Asked, finish_reason: str | None) -> None:
    if finish_reason == "content_filter":
        raise asked.protocol_error("withheld the answer (content_filter).", retryable=False)
    if finish_reason == "length":
        raise asked.protocol_error(
            "used up all output tokens before the first word of an answer. Raise the limit "
            "('max_tokens') in 'parameters'.",
            retryable=False,
        )
    raise asked.protocol_error("answered an empty text.")


def _text(content: Json) -> str:
    """Return a text or the texts of a list of parts; thoughts and other parts are left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS else part
        for part in content
    ]
    return "".join(text for text in texts if isinstance(text, str))


def count_images(call: ChatCall) -> int:
    """Return how many pictures a call sends."""
    contents = (message.get("content") for message in call.messages)
    return sum(
        isinstance(part, Mapping) and part.get("type") == "image_url"
        for content in contents
        if isinstance(content, list | tuple)
        for part in content
    )


def read_usage(usage: Json, *, images: int = 0) -> Usage | None:
    """Return the tokens that a provider reports, None where it reports none or nonsense.

    Reasoning tokens are billed as output; where a provider counts them beside the completion, which
    only its total shows, they are added. A count of cached tokens that cannot be is taken for none,
    so that no cost is understated.

    Parameters
    ----------
    usage : JSON-like
        OpenAI's ``usage`` object.
    images : int
        Pictures of the call, which no provider counts.
    """
    if not isinstance(usage, Mapping):
        return None
    given, produced = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if given is None or produced is None:
        return None
    thoughts = _count(_detail(usage, "completion_tokens_details", "reasoning_tokens"))
    if thoughts and _count(usage.get("total_tokens")) == given + produced + thoughts:
        produced += thoughts
    cached = _count(_detail(usage, "prompt_tokens_details", "cached_tokens"))
    if cached is None:
        cached = _count(usage.get("prompt_cache_hit_tokens"))
    return Usage(
        input_tokens=given,
        output_tokens=produced,
        cached_input_tokens=cached if cached is not None and cached <= given else 0,
        images=images,
    )


def _detail(usage: Mapping[str, Json], name: str, key: str) -> Json:
    details = usage.get(name)
    return details.get(key) if details and isinstance(details, Mapping) else None


def _count(value: Json) -> int | None:
    if type(value) is int:  # as in nearly every answer
        return value if 0 <= value <= _MOST_TOKENS else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MOST_TOKENS and value == int(value) else None


def read_models(
    asked: Asked, body: Mapping[str, Json], *, headers: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the ids of a ``GET /models`` answer.

    Raises
    ------
    TargetStatusError
        The body is an error although the status is 200.
    TargetProtocolError
        It is no list of models.
    """
    if body.get("error") or body.get("object") == "error":
        raise asked.status_error(200, complaint_of(body), headers=headers)
    entries = body.get("data")
    if not isinstance(entries, list):
        raise asked.protocol_error("answered no list of models.")
    ids = (entry.get("id") for entry in entries if isinstance(entry, Mapping))
    return tuple(model for model in ids if isinstance(model, str))
