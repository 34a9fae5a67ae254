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
import os
import ssl
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from yarl import URL

from router_runtime.config import AzureTargetConfig, CandidateConfig, HttpTargetConfig
from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
)
from router_runtime.pricing import estimate_tokens
from router_runtime.targets.base import ChatCall
from router_runtime.targets.failures import Asked, Complaint, complaint_of, texts_of
from router_runtime.targets.quota import MinuteQuota
from router_runtime.targets.registry import key_of
from router_runtime.targets.replies import (
    HIDDEN_KEY,
    Path,
    Refused,
    Reply,
    connection_error,
    some_of,
    too_slow,
)
from router_runtime.types import Json

MAX_ANSWER_BYTES: Final = 64 * 2**20
_KEEPALIVE_S: Final = 4.0  # below the 5 s after which common servers hang up
_ANSWER_LIMITS: Final = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A body for one target.

    Parameters
    ----------
    data : bytes
    stream : bool
        A stream is asked for.
    hides_usage : bool
        Its usage was asked for here and not by the client, who is not to see it.
    """

    data: bytes = field(repr=False)
    stream: bool = False
    hides_usage: bool = False


class Forwarder:
    """Passes requests on to one target; its connections are pooled and kept.

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
        self.model_id = model_id
        self.model = config.model or model_id
        self.timeout_s = config.timeout_s
        self.max_answer_bytes = max_answer_bytes
        self._places: set[object] = set()  # of calls in flight, maybe of several event loops
        self._max_in_flight = max_in_flight
        rates = config.requests_per_minute, config.tokens_per_minute
        self._quota = None if rates == (None, None) else MinuteQuota(*rates)
        self._parameters = dict(config.parameters)
        self._key = key
        base = config.endpoint if isinstance(config, AzureTargetConfig) else config.base_url
        renamed = "" if self.model == model_id else f" (model '{self.model}')"
        self._who = f"'{model_id}'{renamed} at {urlsplit(base).netloc}"
        self._asked = Asked(self._who, () if key is None else (key,))
        self.identity = f"{base.rstrip('/')} {self.model}"
        self._urls: dict[Path, URL] = {
            path: _url(config, self.model, path)
            for path in ("chat/completions", "completions", "embeddings")
        }
        self._headers = _headers(config, key)
        self._sessions: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, aiohttp.ClientSession
        ] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Forwarder({self.model_id!r}, model={self.model!r})"

    @property
    def in_flight(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._places)

    @property
    def busy(self) -> bool:
        """Whether there are as many calls, or were as many this minute, as the target takes."""
        if self._quota is not None and self._quota.full:
            return True
        return self._max_in_flight is not None and len(self._places) >= self._max_in_flight

    def prepare(self, body: Mapping[str, Json], *, asks_usage: bool = True) -> Prepared:
        """Return a client's body as this target is to get it; all else in it stays as it is.

        A configured limit of tokens does not stand beside the client's own under the other name.

        Parameters
        ----------
        body : mapping
            The client's JSON object.
        asks_usage : bool
            Ask a stream to tell its usage.
        """
        sent = {**body, "model": self.model}
        sent.pop("router", None)
        limited = any(name in body for name in _ANSWER_LIMITS)
        for name, value in self._parameters.items():
            if name not in sent and not (limited and name in _ANSWER_LIMITS):
                sent[name] = value
        stream, hides = bool(sent.get("stream")), False
        if stream and asks_usage:
            options = sent.get("stream_options")
            options = options if isinstance(options, Mapping) else {}
            if not options.get("include_usage"):
                sent["stream_options"] = {**options, "include_usage": True}
                hides = True
        return Prepared(_dumped(sent), stream, hides)

    async def open(
        self, path: Path, body: bytes, *, timeout_s: float, idle_s: float
    ) -> Reply | Refused:
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
            response = await self._send(path, body, deadline, timeout_s)
        except BaseException:
            self._places.discard(place)
            raise
        reply = Reply(
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

    def _too_busy(self) -> TargetConnectionError:
        if self._quota is not None and self._quota.full:
            return TargetConnectionError(
                f"{self._who} has had as many calls this minute as its configured limits allow. "
                "Raise 'requests_per_minute' or 'tokens_per_minute' if the server takes more.",
                retryable=True,
                retry_after_s=self._quota.free_in_s,
            )
        return TargetConnectionError(
            f"{self._who} has {self.in_flight} calls in flight, as many as it takes. Raise "
            "'max_concurrency' if the server takes more.",
            retryable=True,
            retry_after_s=1.0,
        )

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
        self, path: Path, body: bytes, deadline: float, timeout_s: float
    ) -> aiohttp.ClientResponse:
        failure: TargetError
        try:
            async with asyncio.timeout_at(deadline):
                return await self._session().post(
                    self._urls[path], data=aiohttp.BytesPayload(body), allow_redirects=False
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
    def _check(reply: Reply, response: aiohttp.ClientResponse) -> None:
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise reply.asked.protocol_error(
                "answered a compressed body although none was accepted.",
                retryable=False,
                whole_target=True,
            )

    async def _refusal(
        self, reply: Reply, response: aiohttp.ClientResponse, body: bytes
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


def build_forwarders(
    candidates: Iterable[CandidateConfig],
    *,
    environment: Mapping[str, str] | None = None,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
) -> dict[str, Forwarder]:
    """Return a forwarder for each candidate that has a target. Nothing is sent yet.

    A target's ``max_concurrency`` binds where it is written in the config; its default is meant
    for labelling, where one run has the provider to itself.

    Raises
    ------
    ConfigError
        The variable that an ``api_key_env`` names is not set or holds no key.
    """
    found = os.environ if environment is None else environment
    forwarders = {}
    for candidate in candidates:
        target = candidate.target
        if target is None:
            continue
        if not isinstance(target, HttpTargetConfig):
            raise ConfigError(
                f"Candidate '{candidate.id}': the service does not call targets of kind "
                f"'{target.kind}'. Serve the experts with 'model-router experts serve' or vLLM, "
                "and give a target of kind 'compatible' or 'vllm' with its 'base_url'."
            )
        bound = target.max_concurrency if "max_concurrency" in target.model_fields_set else None
        forwarders[candidate.id] = Forwarder(
            candidate.id,
            target,
            key=key_of(candidate.id, target.api_key_env, found),
            max_in_flight=bound,
            max_answer_bytes=max_answer_bytes,
        )
    return forwarders


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


def _dumped(body: Mapping[str, Json]) -> bytes:
    """Return JSON; the standard library writes what orjson cannot: huge integers, surrogates."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body, separators=(",", ":")).encode()


@cache
def _tls() -> ssl.SSLContext:
    """Return the one context of all targets; reading the certificates takes a while."""
    return ssl.create_default_context()


def _complaint(content: bytes) -> Complaint:
    try:
        return complaint_of(json.loads(content))
    except (ValueError, RecursionError):
        return Complaint()
