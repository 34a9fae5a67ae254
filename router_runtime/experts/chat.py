"""OpenAI's chat API in JSON: what a request asks for, and what an answer looks like.

What cannot be done here is refused by name and never ignored: an answer without the tool calls or
the JSON that were asked for would be billed and thrown away.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from router_runtime.errors import RequestError
from router_runtime.experts.batches import End, Piece
from router_runtime.experts.sampling import Sampling
from router_runtime.types import Json

_MAX_STOPS: Final = 16
_MAX_STOP_CHARS: Final = 200
_READ: Final = frozenset(
    {"max_completion_tokens", "max_tokens", "messages", "model", "seed", "stop", "stream"}
    | {"stream_options", "temperature", "top_k", "top_p"}
)
_WITHOUT_EFFECT: Final = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier"}
    | {"store", "user"}
)
"""Fields that change nothing of an answer's text on any server."""

_NEUTRAL: Final[Mapping[str, tuple[Json, ...]]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields that are not offered, with the values that ask for nothing."""

_ERROR_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "BadRequestError",
    503: "ServiceUnavailableError",
}


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be answered.

    Parameters
    ----------
    model : str
        An adapter or the base model.
    messages : JSON-like
        Not yet looked at.
    sampling : Sampling
    stream, include_usage : bool
    """

    model: str
    messages: Json = field(repr=False)
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False


def read_request(body: Json, *, max_tokens: int) -> ChatRequest:
    """Return what a request's body asks for.

    Parameters
    ----------
    body : JSON-like
    max_tokens : int
        Longest answer, for requests that ask for more or say nothing.

    Raises
    ------
    RequestError
        A field is missing, of another kind, or not offered.
    """
    if not isinstance(body, Mapping):
        raise _refusal("The body must be a JSON object.", None)
    for name, value in body.items():
        neutral = value is None or value in _NEUTRAL.get(name, ())
        if name not in _READ | _WITHOUT_EFFECT and not neutral:
            raise _refusal(
                f"'{name:.40}' is not offered by in-process experts; leave it out.",
                name,
                code="unsupported_parameter",
            )
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _refusal("'model' must name an adapter or the base model.", "model")
    if "messages" not in body:
        raise _refusal("'messages' is missing.", "messages")
    options = body.get("stream_options")
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise _refusal("'stream_options' must be an object.", "stream_options")
    return ChatRequest(
        model=model,
        messages=body["messages"],
        sampling=Sampling(
            max_tokens=min(_cap(body) or max_tokens, max_tokens),
            temperature=_number(body, "temperature", 1.0, low=0.0, high=2.0),
            top_p=_number(body, "top_p", 1.0, low=0.0, high=1.0),
            top_k=max(_whole(body, "top_k", low=-1) or 0, 0),  # -1 is vLLM's word for no bound
            stop=_stops(body.get("stop")),
            seed=_whole(body, "seed", low=-(2**63)),
        ),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
    )


def _cap(body: Mapping[str, Json]) -> int | None:
    """Return the request's limit; the newer name goes before the older one."""
    newer = _whole(body, "max_completion_tokens", low=1)
    return newer if newer is not None else _whole(body, "max_tokens", low=1)


def _whole(body: Mapping[str, Json], name: str, *, low: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        raise _refusal(f"'{name}' must be a whole number of at least {low}.", name)
    return value


def _number(
    body: Mapping[str, Json], name: str, default: float, *, low: float, high: float
) -> float:
    value = body.get(name)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _refusal(f"'{name}' must be a number from {low:g} to {high:g}.", name)
    return float(value)


def _flag(body: Mapping[str, Json], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _refusal(f"'{name}' must be true or false.", name)
    return bool(value)


def _stops(value: Json) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    usable = isinstance(stops, list) and len(stops) <= _MAX_STOPS
    if not usable or not all(isinstance(s, str) and 0 < len(s) <= _MAX_STOP_CHARS for s in stops):
        raise _refusal(
            f"'stop' must be a text or at most {_MAX_STOPS} texts, each of 1 to {_MAX_STOP_CHARS} "
            "characters.",
            "stop",
        )
    return tuple(stops)


def _refusal(message: str, param: str | None, *, code: str = "invalid_request") -> RequestError:
    return RequestError(message, status=400, code=code, param=param)


@dataclass(frozen=True)
class Answers:
    """The bodies of one answer, whole or in chunks, with one id and time.

    Parameters
    ----------
    model : str
        As the request names it.
    id : str
    created : int
        Seconds since the epoch.
    """

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, end: End) -> dict[str, Json]:
        """Return the body of an answer that is not streamed."""
        message = {"role": "assistant", "content": end.text}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = end.finish_reason
        return self._body("chat.completion", [choice]) | {"usage": usage_of(end)}

    def begin(self) -> dict[str, Json]:
        """Return the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Json]:
        """Return a chunk with some text."""
        return self._chunk({"content": text})

    def end(self, end: End) -> dict[str, Json]:
        """Return the chunk that says why the answer ended."""
        return self._chunk({}, end.finish_reason)

    def usage(self, end: End) -> dict[str, Json]:
        """Return the last chunk, which only tells the usage."""
        return self._body("chat.completion.chunk", []) | {"usage": usage_of(end)}

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> dict[str, Json]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._body("chat.completion.chunk", [choice])

    def _body(self, kind: str, choices: list[Json]) -> dict[str, Json]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class Lines:
    """One answer as server-sent events.

    Parameters
    ----------
    answers : Answers
    include_usage : bool
        Tell the usage before the stream ends.
    """

    def __init__(self, answers: Answers, *, include_usage: bool) -> None:
        self._answers = answers
        self._include_usage = include_usage
        self._begun = False

    def of(self, event: Piece | End) -> bytes:
        """Return the bytes that tell an event; with the end the whole stream ends."""
        chunks = [] if self._begun else [self._answers.begin()]
        self._begun = True
        if isinstance(event, Piece):
            return b"".join(map(line_of, [*chunks, self._answers.piece(event.text)]))
        chunks.append(self._answers.end(event))
        if self._include_usage:
            chunks.append(self._answers.usage(event))
        return b"".join(map(line_of, chunks)) + b"data: [DONE]\n\n"


def line_of(body: Json) -> bytes:
    """Return a JSON body as one server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def error_body(error: RequestError) -> dict[str, Json]:
    """Return OpenAI's envelope of a refusal, with vLLM's types."""
    kind = _ERROR_TYPES.get(error.status, "InternalServerError")
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


def usage_of(end: End) -> dict[str, int]:
    """Return OpenAI's ``usage`` of an answer."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }
