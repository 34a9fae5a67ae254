"""From the bytes of a request to a checked JSON object, with every cap before what it protects.

Length is checked before reading, depth before parsing, counts before anything is decoded. Of the
content only what costs or endangers is looked at; other fields pass through as they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final

import orjson

from router_runtime.errors import RequestError
from router_runtime.service.asgi import Receive
from router_runtime.service_config import RequestLimits
from router_runtime.types import Json

_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND: Final = bytes.maketrans(b"[]", b"{}")
_TOKEN_CAPS: Final = ("max_completion_tokens", "max_tokens")
_IMAGE_PARTS: Final = frozenset({"image_url", "input_image", "image"})

BODY_S: Final = 120.0
"""Seconds for a whole body to come: who sends a byte now and then keeps a place from others."""

_DISCARDED: Final = 4  # times the cap
_DISCARD_S: Final = 5.0


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, *, max_bytes: int) -> bytes:
    """Return the whole body of a request that says it is JSON.

    A page of another site can make a browser post a form or plain text to a service on this
    machine, but not JSON; so anything else is refused. Compressed bodies are refused as well,
    because a few kilobytes can unpack to gigabytes.

    Raises
    ------
    RequestError
        408 where the body does not come in time, 413 beyond ``max_bytes``, 415 for another type or
        a compressed body, 499 where the client went away before the end.
    """
    length = headers.get(b"content-length", b"")
    announced = int(length) if length.isdigit() else 0
    ended, data = False, bytearray()
    try:
        _check_head(headers)
        if announced > max_bytes:
            raise _too_long(max_bytes)
        async with asyncio.timeout(BODY_S):
            while not ended:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise client_left()
                ended = not message.get("more_body", False)
                if ended and not data:  # all at once, as nearly always
                    data = message.get("body", b"")
                else:
                    data += message.get("body", b"")
                if len(data) > max_bytes:
                    raise _too_long(max_bytes)
    except TimeoutError:
        raise _too_slow() from None
    except RequestError as error:
        if error.status != 499 and not ended and announced <= _DISCARDED * max_bytes:
            await _discard(receive, _DISCARDED * max_bytes)
        raise
    return bytes(data)


async def _discard(receive: Receive, most: int) -> None:
    """Let a refused body come for a while: who hangs up on a sender takes the answer from it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            more = True
            while more and most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                more = message.get("more_body", False)


def _check_head(headers: Mapping[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise RequestError(
            "The body must be JSON; send it with 'Content-Type: application/json'.",
            status=415,
            code="unsupported_media_type",
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise RequestError(
            "Compressed bodies are not read; send the body as it is.",
            status=415,
            code="unsupported_content_encoding",
        )


def client_left() -> RequestError:
    """Return the error of a client that went away; nobody gets it but the records."""
    return RequestError("The client went away.", status=499, code="client_left")


def _too_slow() -> RequestError:
    return RequestError(
        f"The body did not come within {BODY_S:g} s; send it faster, or send less.",
        status=408,
        code="request_timeout",
    )


def _too_long(max_bytes: int) -> RequestError:
    return RequestError(
        f"The body is longer than {max_bytes:,} bytes; send less.",
        status=413,
        code="request_too_large",
    )


def parse_object(data: bytes, *, max_depth: int) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises
    ------
    RequestError
        400: it is nested deeper than ``max_depth``, no JSON, or no object.
    """
    if _deeper_than(data, max_depth):
        raise RequestError(
            f"The body is nested more than {max_depth} levels deep; send flatter JSON.",
            status=400,
            code="json_too_deep",
        )
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise RequestError(
            "The body is not valid JSON in UTF-8; check how it is written.",
            status=400,
            code="invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise RequestError(
            "The body must be a JSON object, such as one with 'model' and 'messages'.",
            status=400,
            code="invalid_json",
        )
    return body


def _deeper_than(data: bytes, most: int) -> bool:
    """Tell whether brackets outside of strings are nested deeper than ``most``.

    Every pass over the brackets takes away the innermost level, so that depth costs time and
    length hardly does: all of it happens in C.
    """
    if data.count(b"{") + data.count(b"[") <= most:
        return False
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(data.split(b'"')[::2])
    left = outside.translate(_ONE_KIND, _BRACKETS)
    for _ in range(most):
        fewer = left.replace(b"{}", b"")
        if len(fewer) == len(left):
            return False  # none, or unbalanced, which the parser will say
        left = fewer
    return b"{}" in left


def check_chat(
    body: MutableMapping[str, Json], limits: RequestLimits, *, allow_urls: bool = False
) -> None:
    """Check counts and caps of a chat request; what else is in it is not looked at.

    Parameters
    ----------
    body : mapping
    limits : RequestLimits
    allow_urls : bool
        Whether pictures may come as URLs, because hosts to fetch them from are configured.

    Raises
    ------
    RequestError
        400 for a wrong shape or beyond a cap.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("'messages' must be a list with at least one message.", "messages")
    if len(messages) > limits.max_messages:
        raise _wrong(
            f"{len(messages):,} messages are more than the {limits.max_messages:,} that are taken.",
            "messages",
            code="too_many_messages",
        )
    images = 0
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{at}] must be an object.", "messages")
        content = message.get("content")
        if isinstance(content, list):
            images += sum(_is_image(part, at, allow_urls) for part in content)
    if images > limits.max_images:
        raise _wrong(
            f"{images:,} pictures are more than the {limits.max_images:,} that are taken.",
            "messages",
            code="too_many_images",
        )
    check_common(body, limits)


def check_common(body: MutableMapping[str, Json], limits: RequestLimits) -> None:
    """Check what chat and completion requests have in common: ``stream`` and caps on the answer.

    Raises
    ------
    RequestError
        400.
    """
    for name in (*_TOKEN_CAPS, "n"):
        value = body.get(name)
        if isinstance(value, float) and value.is_integer():  # 16.0 is an integer in JSON
            body[name] = int(value)
    for name in _TOKEN_CAPS:
        value = body.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise _wrong(f"'{name}' must be a whole number of at least 1.", name)
        if value > limits.max_output_tokens:
            raise _wrong(
                f"'{name}' is {value:,}; at most {limits.max_output_tokens:,} are allowed.",
                name,
                code="max_tokens_too_large",
            )
    if not isinstance(body.get("stream", False), bool | None):
        raise _wrong("'stream' must be true or false.", "stream")
    if not isinstance(body.get("stream_options"), dict | None):
        raise _wrong("'stream_options' must be an object.", "stream_options")
    n = body.get("n", 1)
    if n is not None and (type(n) is not int or not 1 <= n <= MOST_CHOICES):
        raise _wrong(f"'n' must be a whole number from 1 to {MOST_CHOICES}.", "n")


MOST_CHOICES: Final = 128
"""Answers to one request, as OpenAI's API bounds them; each costs as much as another request."""


def model_of(body: Mapping[str, Json]) -> str:
    """Return the ``model`` field.

    Raises
    ------
    RequestError
        400: it is missing or no text.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("'model' must be 'auto', 'auto:POLICY' or the name of a model.", "model")
    return model


def _is_image(part: Json, at: int, allow_urls: bool) -> bool:
    """Tell whether a part is a picture; one that would have to be fetched is refused.

    A URL is fetched by whoever gets it, inside of the network in which that stands. That holds for
    films and sounds as well, and for parts without a type, which some servers read all the same.
    """
    if not isinstance(part, dict):
        return False
    if not all(allow_urls and url[:8].lower() == "https://" for url in fetched_urls(part)):
        raise _wrong(
            f"messages[{at}] holds a picture or the like by URL, which is not fetched; send it as "
            "a data URI (data:image/png;base64,...).",
            "messages",
            code="image_url_not_allowed",
        )
    return part.get("type") in _IMAGE_PARTS


def fetched_urls(part: Mapping[str, Json]) -> Iterator[str]:
    """Yield what a part of a message would have its reader fetch: any URL that is no data URI."""
    for name in _PLACES:
        place = part.get(name)
        url = place.get("url") if isinstance(place, dict) else place
        if isinstance(url, str) and _FETCHED.match(url):
            yield url


_PLACES: Final = ("image_url", "video_url", "audio_url", "file_url", "image", "url", "source")
_FETCHED: Final = re.compile(r"\s*(?!data:)([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def _wrong(message: str, param: str, *, code: str = "invalid_request") -> RequestError:
    return RequestError(message, status=400, code=code, param=param)
