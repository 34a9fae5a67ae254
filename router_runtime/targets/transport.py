"""The door through which every byte to and from a target goes.

What leaves is decided here alone: the SDK reads organisations, keys and whole headers from the
environment and adds some about the machine, so a request keeps the headers of ``_SENT`` and gets
the target's own key, if it has one. What comes back is bounded here: no redirect is followed, since
it would carry the call to a server that nobody chose; nothing is unpacked, since a few kilobytes
can unpack to gigabytes; and a body is read no further than ``max_bytes``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import aiohttp
import httpx2
from yarl import URL

from router_runtime.errors import TargetProtocolError
from router_runtime.targets.failures import Asked

_SENT = frozenset(
    {
        b"accept",
        b"connection",
        b"content-length",
        b"content-type",
        b"host",
        b"transfer-encoding",
        b"user-agent",
    }
)
_KEEPALIVE_S = 4.0  # below the 5 s after which common servers hang up


class Door(httpx2.AsyncBaseTransport):
    """HTTP over TCP, without environment, redirects or compression, and bounded.

    Parameters
    ----------
    asked : Asked
        Names the target in errors.
    key_headers : mapping
        The headers that carry the key; empty for a target without one.
    max_connections : int
        Connections at a time.
    max_bytes : int
        Longest body that is read.
    """

    def __init__(
        self,
        asked: Asked,
        key_headers: Mapping[str, str],
        *,
        max_connections: int,
        max_bytes: int,
    ) -> None:
        self._asked = asked
        self._headers = [*key_headers.items(), ("Accept-Encoding", "identity")]
        self._max_bytes = max_bytes
        self._wire = _Wire(max_connections)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; return a response whose body is still to be read.

        Raises
        ------
        TargetProtocolError
            The answer is a redirect, compressed, or longer than ``max_bytes``; the last also
            while the body is read.
        """
        kept = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request.headers.raw
            if name.lower() in _SENT
        ]
        answer = await self._wire.send(
            request.method, str(request.url), [*kept, *self._headers], await request.aread()
        )
        response = httpx2.Response(
            answer.status,
            headers=answer.raw_headers,
            stream=_Body(answer, self._asked, self._max_bytes),
        )
        try:
            self._check(response)
        except BaseException:
            await response.aclose()
            raise
        return response

    def _check(self, response: httpx2.Response) -> None:
        if 300 <= response.status_code < 400:
            raise self._asked.protocol_error(
                f"answered a redirect (status {response.status_code}), which is not followed. "
                "Give the URL that it leads to.",
                retryable=False,
                whole_target=True,
            )
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise self._asked.protocol_error(
                "answered a compressed body although none was accepted.",
                retryable=False,
                whole_target=True,
            )
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max_bytes:
            raise _too_long(self._asked, self._max_bytes)

    async def aclose(self) -> None:
        await self._wire.aclose()


class _Wire:
    """HTTP through aiohttp, whose parser is written in C: half the processor time of httpx2's own.

    Errors are httpx2's, caused by aiohttp's.
    """

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> aiohttp.ClientResponse:
        """Send a request as it is; return its answer when the headers are there."""
        if self._session is None:  # made in the event loop that uses it
            self._session = _session(self._max_connections)
        for _ in range(2):  # so that a connection that the server closed meanwhile is seen to be
            await asyncio.sleep(0)
        with _translated():
            return await self._session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body or None,
                allow_redirects=False,
            )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


def _session(max_connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=max_connections, keepalive_timeout=_KEEPALIVE_S, ssl=_tls()
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


@cache
def _tls() -> ssl.SSLContext:
    """Return the one context of all targets; reading the certificates takes 50 ms."""
    return httpx2.create_ssl_context(trust_env=False)


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, which ends in an error after ``max_bytes``."""

    def __init__(self, answer: aiohttp.ClientResponse, asked: Asked, max_bytes: int) -> None:
        self._answer = answer
        self._asked = asked
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max_bytes
        with _translated():
            async for chunk in self._answer.content.iter_any():
                left -= len(chunk)
                if left < 0:
                    raise _too_long(self._asked, self._max_bytes)
                yield chunk

    async def aclose(self) -> None:
        self._answer.release()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise httpx2.ConnectError(str(error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise httpx2.ReadError(str(error)) from error
    except (aiohttp.http_exceptions.HttpProcessingError, ValueError) as error:
        raise httpx2.RemoteProtocolError(str(error)) from error


def _too_long(asked: Asked, max_bytes: int) -> TargetProtocolError:
    return asked.protocol_error(f"answered more than {max_bytes:,} bytes; the rest was not read.")
