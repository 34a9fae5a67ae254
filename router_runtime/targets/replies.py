"""The answer of a target while it comes in: bounded, timed, and broken off when nobody wants it.

``Reply`` is what whoever reads one needs; ``HttpReply`` is that of a server.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

import aiohttp

from router_runtime.errors import (
    TargetConnectionError,
    TargetError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.targets.failures import Asked, complaint_of
from router_runtime.types import Json

Path: TypeAlias = Literal["chat/completions", "completions", "embeddings"]

HIDDEN_KEY: Final = b"***"
"""Stands in the place of a key that a server quotes."""

_MAX_ERROR_BYTES: Final = 2**20
_DRAIN_S: Final = 0.5
_LOOK_S: Final = 0.25
_RETURNED: Final = ("openai-processing-ms", "openai-version", "x-request-id")


@dataclass(frozen=True, slots=True)
class Refused:
    """A status that is not success, with what it means and what the server said.

    Parameters
    ----------
    error : TargetStatusError
    codes : tuple of str
        The server's error codes, in lower case.
    body : bytes
        As it came, without the key should the server have quoted it; may quote the request, so it
        is for the caller alone.
    content_type : str
    """

    error: TargetStatusError
    codes: tuple[str, ...] = ()
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.error.status


class Reply(Protocol):
    """An answer with a status of success, whose body is still to be read."""

    @property
    def asked(self) -> Asked:
        """Names the target in errors; knows nothing of the request's texts."""

    @property
    def status(self) -> int:
        """The HTTP status, 200 to 299."""

    @property
    def content_type(self) -> str:
        """The header as it came; empty where there is none."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that may be told on, with lower-case names."""

    def began(self) -> None:
        """Say that the stream has begun: from now on only silence is timed.

        The request's texts are let go, which may be many megabytes; see ``complained``.
        """

    def complained(self, body: Mapping[str, Json]) -> TargetStatusError:
        """Return what an error body under a status of success means.

        Its words are not repeated once the request is no longer at hand to compare them with.
        """

    async def read(self) -> bytes:
        """Return the whole body and free what the answer holds.

        Raises
        ------
        TargetError
            It broke off, took too long or is too long.
        """

    async def chunk(self) -> bytes:
        """Return the bytes that are there or come next; none at the end.

        Raises
        ------
        TargetError
            The body broke off, or did not come in time.
        """

    async def drain(self) -> None:
        """Wait a moment for the end of a body that has said all, so that its connection lives."""

    def close(self) -> None:
        """Free what the answer holds; one that was not read whole is broken off. Idempotent."""

    def when_closed(self, told: Callable[[], None]) -> None:
        """Have ``told`` called as well when it is closed."""


class HttpReply:
    """The answer of a server.

    Parameters
    ----------
    response : aiohttp.ClientResponse
    asked : Asked
        Names the target in errors; knows nothing of the request's texts.
    knowing : callable
        Returns the same with the texts, for what repeats a server's words.
    deadline : float
        On the event loop's clock; until then the first byte, or a whole body, must be there.
    idle_s : float
        Longest silence once ``began`` was called.
    max_bytes : int
        Longest body that ``read`` returns.
    on_close : callable
        Called once, when the connection is given back.
    """

    __slots__ = (
        "_closed",
        "_deadline",
        "_idle_s",
        "_knowing",
        "_max_bytes",
        "_on_close",
        "_response",
        "asked",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        asked: Asked,
        *,
        knowing: Callable[[], Asked],
        deadline: float,
        idle_s: float,
        max_bytes: int,
        on_close: Callable[[], None],
    ) -> None:
        self.asked = asked
        self._knowing: Callable[[], Asked] | None = knowing
        self._max_bytes = max_bytes
        self._response = response
        self._deadline: float | None = deadline
        self._idle_s = idle_s
        self._on_close = on_close
        self._closed = False

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def content_type(self) -> str:
        return self._response.headers.get("Content-Type", "")

    @property
    def headers(self) -> dict[str, str]:
        found = self._response.headers
        return {name: found[name] for name in _RETURNED if name in found}

    def began(self) -> None:
        self._deadline = None
        self._knowing = None

    def complained(self, body: Mapping[str, Json]) -> TargetStatusError:
        complaint = complaint_of(body)
        if self._knowing is None:
            return self.asked.status_error(200, complaint._replace(message=""), headers={})
        return self._knowing().status_error(200, complaint, headers={})

    async def read(self) -> bytes:
        parts, size, limit = [], 0, self._max_bytes
        while chunk := await self.chunk():
            size += len(chunk)
            if size > limit:
                self.close()
                raise self.asked.protocol_error(
                    f"answered more than {limit:,} bytes; the rest was not read."
                )
            parts.append(chunk)
        self.close()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunk(self) -> bytes:
        failure: TargetError
        content = self._response.content
        try:
            if content.exception() is None:
                if data := content.read_nowait():
                    return data
                if content.at_eof():
                    return b""
            return await self._next(content)
        except TimeoutError:
            failure = self._timed_out()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = connection_error(self.asked, error)
        self.close()
        raise failure

    async def _next(self, content: aiohttp.StreamReader) -> bytes:
        """Wait for bytes; and look now and then whether any can come.

        aiohttp closes a connection on a chunk size that is none, and leaves its reader waiting.
        """
        now = asyncio.get_running_loop().time
        until = self._deadline or now() + self._idle_s
        while True:
            look_at = now() + _LOOK_S
            try:
                async with asyncio.timeout_at(min(until, look_at)):
                    return await content.readany()
            except TimeoutError:
                if until <= look_at:
                    raise
            connection = self._response.connection
            if connection is not None and _is_closed(connection.transport):
                raise aiohttp.ClientPayloadError

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await self._response.content.readany():
                    pass
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            pass
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._response.close()
            self._on_close()

    def when_closed(self, told: Callable[[], None]) -> None:
        before = self._on_close

        def both() -> None:
            before()
            told()

        self._on_close = both

    def _timed_out(self) -> TargetTimeoutError:
        if self._deadline is not None:
            return too_slow(self.asked)
        return TargetTimeoutError(
            f"{self.asked.who} was silent for {self._idle_s:g} s in the middle of its answer. "
            "Raise 'stream_idle_s' if the model is slow.",
            retryable=True,
        )


def _is_closed(transport: asyncio.Transport | None) -> bool:
    return transport is None or transport.is_closing()


async def some_of(reply: Reply) -> bytes:
    """Return the beginning of an error's body; what cannot be read of it is left out."""
    parts, size = [], 0
    try:
        while size < _MAX_ERROR_BYTES and (chunk := await reply.chunk()):
            parts.append(chunk)
            size += len(chunk)
    except TargetError:
        pass
    return b"".join(parts)[:_MAX_ERROR_BYTES]


def too_slow(asked: Asked, timeout_s: float | None = None) -> TargetTimeoutError:
    """Return the error of an answer that did not come in time."""
    within = "in time" if timeout_s is None else f"within {timeout_s:g} s"
    return TargetTimeoutError(
        f"{asked.who} gave no whole answer {within}. Raise 'timeout_s' if the model is slow.",
        retryable=True,
    )


def connection_error(asked: Asked, error: BaseException) -> TargetError:
    """Return what an exception of the HTTP client means."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TargetConnectionError(
                f"{asked.who} shows a certificate that is not trusted. Check the URL, or install "
                "the certificate of who signed it.",
                retryable=False,
                whole_target=True,
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, aiohttp.ClientResponseError):
        return asked.protocol_error("answered what is no HTTP.")
    return TargetConnectionError(
        f"{asked.who} could not be reached, or the connection broke before the answer was whole "
        f"({type(error).__name__}). Check that it runs and that the URL is right.",
        retryable=True,
    )
