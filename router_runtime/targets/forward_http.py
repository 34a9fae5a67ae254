"""A request for a candidate as the client wrote it, and the answer as the server wrote it.

``openai`` asks through the SDK and reads answers; here bytes pass, because a gateway must change
nothing: of the body only ``model`` is replaced, ``router`` taken out, the target's configured
``parameters`` added where the client is silent, and the usage of a stream asked for. Headers of the
client do not pass at all.

As in ``transport``, no redirect is followed, nothing is unpacked, no proxy or key is read from the
environment, and what is read is bounded. Failures mean what ``failures`` says they mean.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import weakref
from dataclasses import dataclass, field
from functools import cache
from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from router_runtime.errors import TargetError
from router_runtime.pricing import estimate_tokens
from router_runtime.target_config import AzureTargetConfig, HttpTargetConfig
from router_runtime.targets.base import ChatCall
from router_runtime.targets.failures import Asked, Complaint, complaint_of, texts_of
from router_runtime.targets.forward_base import ForwarderBase
from router_runtime.targets.replies import (
    HIDDEN_KEY,
    HttpReply,
    Path,
    Refused,
    connection_error,
    some_of,
    too_slow,
)

MAX_ANSWER_BYTES: Final = 64 * 2**20
_MAX_SIDE_BYTES: Final = 2**20
_KEEPALIVE_S: Final = 4.0  # below the 5 s after which common servers hang up


@dataclass(frozen=True, slots=True)
class SideAnswer:
    """What a server answers to a call that is no completion.

    Parameters
    ----------
    status : int
    content_type : str
    content : bytes
    asked : Asked
        Names the target in errors.
    """

    status: int
    content_type: str
    content: bytes = field(repr=False)
    asked: Asked


class HttpForwarder(ForwarderBase):
    """Passes requests on to one server; its connections are pooled and kept.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : HttpTargetConfig
        Where and how it is called.
    key : str or None
        Sent as the API key; None sends none.
    max_in_flight : int or None
        Calls at a time; beyond it a call fails at once, so that another candidate takes it. None:
        no bound.
    max_answer_bytes : int
        Longest answer that is not a stream.
    """

    def __init__(
        self,
        model_id: str,
        config: HttpTargetConfig,
        *,
        key: str | None = None,
        max_in_flight: int | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        base = config.endpoint if isinstance(config, AzureTargetConfig) else config.base_url
        model = config.model or model_id
        renamed = "" if model == model_id else f" (model '{model}')"
        super().__init__(
            model_id,
            config,
            who=f"'{model_id}'{renamed} at {urlsplit(base).netloc}",
            identity=f"{base.rstrip('/')} {model}",
            max_in_flight=max_in_flight,
        )
        self.max_answer_bytes = max_answer_bytes
        self._base = base.rstrip("/")
        self._key = key
        self._asked = Asked(self._who, () if key is None else (key,))
        self._urls: dict[Path, URL] = {
            path: _url(config, self.model, path)
            for path in ("chat/completions", "completions", "embeddings")
        }
        self._headers = _headers(config, key)
        self._sessions: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, aiohttp.ClientSession
        ] = weakref.WeakKeyDictionary()

    async def open(
        self, path: Path, body: bytes, *, timeout_s: float, idle_s: float
    ) -> HttpReply | Refused:
        """Send a request and return its answer when the headers are there.

        Cancelling it breaks the connection off, by which servers know that nobody waits.

        Parameters
        ----------
        path : Path
        body : bytes
            From ``prepare``.
        timeout_s : float
            Seconds to the whole answer, of a stream to ``Reply.began``.
        idle_s : float
            Longest silence within a stream after that.

        Raises
        ------
        TargetError
            No answer, or one that cannot be passed on: a redirect, a compressed one.
        """
        if self.busy:
            raise self._too_busy()
        if self._quota is not None:
            self._quota.count(estimate_tokens(len(body)))
        deadline = asyncio.get_running_loop().time() + timeout_s
        place = object()
        self._places.add(place)
        try:
            response = await self._send("POST", self._urls[path], body, deadline, timeout_s)
        except BaseException:
            self._places.discard(place)
            raise
        reply = HttpReply(
            response,
            self._asked,
            knowing=lambda: self.asked(body),
            deadline=deadline,
            idle_s=idle_s,
            max_bytes=self.max_answer_bytes,
            on_close=lambda: self._places.discard(place),
        )
        try:
            if 200 <= response.status < 300:
                self._check(reply, response)
                return reply
            refused = await self._refusal(reply, response, body)
        except BaseException:
            reply.close()
            raise
        reply.close()
        return refused

    async def side_call(
        self, method: str, path: str, body: bytes | None, *, timeout_s: float
    ) -> SideAnswer:
        """Make a call that is no completion, such as ``GET models``; any status is an answer.

        It counts against no limit.

        Raises
        ------
        TargetError
            There is no answer, or one that is too long.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        url = URL(f"{self._base}/{path}", encoded=True)
        response = await self._send(method, url, body or b"", deadline, timeout_s)
        reply = HttpReply(
            response,
            self._asked,
            knowing=lambda: self._asked,
            deadline=deadline,
            idle_s=timeout_s,
            max_bytes=_MAX_SIDE_BYTES,
            on_close=lambda: None,
        )
        try:
            self._check(reply, response)
            content = await reply.read()
        finally:
            reply.close()
        return SideAnswer(response.status, reply.content_type, content, self._asked)

    async def aclose(self) -> None:
        """Close the connections, those of other running event loops (``complete``) as well."""
        here = asyncio.get_running_loop()
        for loop, session in list(self._sessions.items()):
            if loop is here:
                await session.close()
            elif loop.is_running():
                elsewhere = asyncio.run_coroutine_threadsafe(session.close(), loop)
                await asyncio.wrap_future(elsewhere)
        self._sessions.clear()

    async def _send(
        self, method: str, url: URL, body: bytes, deadline: float, timeout_s: float
    ) -> aiohttp.ClientResponse:
        failure: TargetError
        try:
            async with asyncio.timeout_at(deadline):
                return await self._session().request(
                    method, url, data=aiohttp.BytesPayload(body), allow_redirects=False
                )
        except TimeoutError:
            failure = too_slow(self._asked, timeout_s)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = connection_error(self._asked, error)
        raise failure  # outside, so that no traceback leads to the request

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, ssl=_tls()),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers=self._headers,
            )
        return session

    @staticmethod
    def _check(reply: HttpReply, response: aiohttp.ClientResponse) -> None:
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise reply.asked.protocol_error(
                "answered a compressed body although none was accepted.",
                retryable=False,
                whole_target=True,
            )

    async def _refusal(
        self, reply: HttpReply, response: aiohttp.ClientResponse, body: bytes
    ) -> Refused:
        if response.status < 400:
            raise reply.asked.protocol_error(
                f"answered a redirect (status {response.status}), which is not followed. Give the "
                "URL that it leads to.",
                retryable=False,
                whole_target=True,
            )
        content = await some_of(reply)
        complaint = _complaint(content)
        headers = {name.lower(): value for name, value in response.headers.items()}
        error = self.asked(body).status_error(response.status, complaint, headers=headers)
        if self._key is not None:
            content = content.replace(self._key.encode(), HIDDEN_KEY)
        codes = tuple(code.lower() for code in complaint.codes)
        return Refused(error, codes, content, reply.content_type)

    def asked(self, body: bytes) -> Asked:
        """Return what names this target in messages and keeps the request's texts out of them."""
        key = () if self._key is None else (self._key,)
        try:
            sent = json.loads(body)
            messages = sent.get("messages") or [
                {"content": [sent.get("prompt"), sent.get("input")]}
            ]
            return Asked(self._who, (*key, *texts_of(ChatCall(tuple(messages)))))
        except (ValueError, AttributeError, TypeError, RecursionError):
            return Asked(self._who, (*key, body.decode("utf-8", "replace")))


def _url(config: HttpTargetConfig, model: str, path: Path) -> URL:
    if isinstance(config, AzureTargetConfig):
        root = config.endpoint.rstrip("/")
        version = quote(config.api_version, safe="")
        deployment = quote(model, safe="")
        text = f"{root}/openai/deployments/{deployment}/{path}?api-version={version}"
    else:
        text = f"{config.base_url.rstrip('/')}/{path}"
    return URL(text, encoded=True)


def _headers(config: HttpTargetConfig, key: str | None) -> dict[str, str]:
    headers = {
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": "model-router",
    }
    if key is not None and isinstance(config, AzureTargetConfig):
        headers["api-key"] = key
    elif key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return headers


@cache
def _tls() -> ssl.SSLContext:
    """Return the one context of all targets; reading the certificates takes a while."""
    return ssl.create_default_context()


def _complaint(content: bytes) -> Complaint:
    try:
        return complaint_of(json.loads(content))
    except (ValueError, RecursionError):
        return Complaint()
