"""Pictures behind URLs, for those who allow them: off unless hosts are configured.

A URL in a request makes this service call other machines, so each of these is checked: the scheme
is ``https``; the host is on the configured list; every address that it resolves to is public; the
connection goes to an address that was checked, not to a second look-up that may answer otherwise
(rebinding); a redirect is a new URL with all the same checks; bytes and seconds are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from router_runtime.config import ImageFetchConfig
from router_runtime.errors import QueryError
from router_runtime.images import ImageLimits, load_image
from router_runtime.service.body import fetched_urls
from router_runtime.types import Image, Json

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def urls_of(messages: Iterable[Mapping[str, Json]]) -> tuple[str, ...]:
    """Return the URLs in chat messages that would be fetched, each once, in order."""
    found: dict[str, None] = {}
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping):
                found.update(dict.fromkeys(fetched_urls(part)))
    return tuple(found)


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, whichever way it is written.

    Loopback, private, link-local (where clouds keep their credentials), shared, reserved and
    multicast ranges are not, nor are IPv6 addresses that stand for such IPv4 ones.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner and not is_public(str(inner)):
            return False
    return found.is_global and not found.is_multicast


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class PictureFetcher:
    """Fetches pictures from configured hosts.

    Parameters
    ----------
    config : ImageFetchConfig
    limits : ImageLimits
        Of each picture.
    resolver : AbstractResolver, optional
        Names to addresses; the system's by default.
    address_allowed : callable
        Which addresses may be connected to.
    tls : ssl.SSLContext, optional
        Whose certificates are trusted; the system's by default.
    """

    def __init__(
        self,
        config: ImageFetchConfig,
        limits: ImageLimits,
        *,
        resolver: AbstractResolver | None = None,
        address_allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._limits = limits
        self._resolver = _CheckedResolver(resolver, address_allowed)
        self._address_allowed = address_allowed
        self._tls = tls or ssl.create_default_context()
        self._session: aiohttp.ClientSession | None = None

    async def fetch_all(self, urls: Sequence[str]) -> dict[str, Image]:
        """Return the pictures by URL.

        Raises
        ------
        QueryError
            A URL is not allowed, or gives no picture within the limits. No URL is in the message:
            they often carry a signature.
        """
        if not urls:
            return {}
        try:
            async with asyncio.timeout(self._config.timeout_s):
                found = await asyncio.gather(*(self._fetch(url) for url in urls))
        except TimeoutError:
            raise QueryError(
                f"A picture's URL gave no whole answer within {self._config.timeout_s:g} s. "
                "Send the picture as a data: URI."
            ) from None
        return dict(zip(urls, found, strict=True))

    def check(self, urls: Iterable[str]) -> None:
        """Refuse URLs that are not on the list, where another will fetch them.

        Raises
        ------
        QueryError
            A URL is not ``https`` on a usual port of an allowed host.
        """
        for url in urls:
            self._check(url)

    async def aclose(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    async def _fetch(self, url: str) -> Image:
        for _ in range(self._config.max_redirects + 1):
            self._check(url)
            try:
                async with self._client().get(
                    url, allow_redirects=False, headers={"Accept-Encoding": "identity"}
                ) as answer:
                    if answer.status in _REDIRECTS:
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    if answer.status != 200:
                        raise QueryError(f"A picture's URL answered status {answer.status}.")
                    return load_image(
                        await self._bytes(answer), limits=self._limits, allow_paths=False
                    )
            except (aiohttp.ClientError, OSError, ValueError):
                raise QueryError(
                    "A picture's URL could not be read, or leads where it may not. Send the "
                    "picture as a data: URI."
                ) from None
        raise QueryError(f"A picture's URL redirects over {self._config.max_redirects} times.")

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise QueryError("A picture's URL is malformed.") from None
        usual = port in (None, 443, *self._config.ports)
        if parts.scheme != "https" or parts.username or parts.password or not usual:
            raise QueryError(
                "A picture's URL must be https on a usual port, without a user. Send the picture "
                "as a data: URI."
            )
        if not any(_matches(host, allowed) for allowed in self._config.hosts):
            raise QueryError(
                f"Pictures are not fetched from '{host[:100]}'. Send the picture as a data: URI, "
                "or have the host added to images.fetch.hosts."
            )
        if _is_literal(host) and not self._address_allowed(host):  # no resolver is asked then
            raise QueryError("A picture's URL leads to an address that is not public.")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver, use_dns_cache=False, ssl=self._tls, limit=16
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    async def _bytes(self, answer: aiohttp.ClientResponse) -> bytes:
        most = self._limits.max_bytes
        data = bytearray()
        async for part in answer.content.iter_chunked(65_536):
            data += part
            if len(data) > most:
                raise QueryError(f"A picture behind a URL has more than {most:,} bytes.")
        return bytes(data)


class _CheckedResolver(AbstractResolver):
    """Gives the connection only addresses that were checked; one bad address spoils the name."""

    def __init__(
        self, inner: AbstractResolver | None, address_allowed: Callable[[str], bool]
    ) -> None:
        self._inner = inner
        self._address_allowed = address_allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if self._inner is None:
            self._inner = aiohttp.ThreadedResolver()
        found: list[Any] = await self._inner.resolve(host, port, family)
        if not found or not all(self._address_allowed(entry["host"]) for entry in found):
            raise OSError("the name leads to an address that is not public")
        return found

    async def close(self) -> None:
        if self._inner is not None:
            await self._inner.close()


def _matches(host: str, allowed: str) -> bool:
    host, allowed = host.lower(), allowed.lower()
    if allowed.startswith("*."):
        return host.endswith(allowed[1:]) and len(host) > len(allowed) - 1
    return host == allowed


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
