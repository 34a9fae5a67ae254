"""A candidate behind any server that speaks OpenAI's chat API, called through the ``openai`` SDK.

OpenAI, Azure OpenAI, NVIDIA NIM, vLLM and whatever calls itself compatible differ in their URL and
the header that carries the key. The SDK knows those URLs and builds the requests; it neither
retries nor reads the environment here, and its answers are read by ``answers``, which trusts a
server less than the SDK's models do.

A target belongs to the event loop that first uses it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx2
import openai

from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetTimeoutError,
)
from router_runtime.target_config import AzureTargetConfig, HttpTargetConfig
from router_runtime.targets.answers import read_body, read_completion, read_models, well_formed
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.failures import Asked, complaint_of, texts_of
from router_runtime.targets.transport import Door
from router_runtime.types import Json

MAX_ANSWER_BYTES: Final = 32 * 2**20
_NO_KEY: Final = "no-key"  # the SDK insists on one; ``Door`` decides what is sent


class OpenAITarget:
    """A ``Target`` on a server that speaks OpenAI's API.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : HttpTargetConfig
        Where and how it is called.
    key : str or None
        Sent as the API key; None sends none.
    max_answer_bytes : int
        Longest answer that is read.

    Raises
    ------
    ConfigError
        The URL cannot be used, or ``parameters`` cannot be written as JSON.
    """

    def __init__(
        self,
        model_id: str,
        config: HttpTargetConfig,
        *,
        key: str | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.model_id = model_id
        self.model = config.model or model_id
        self._parameters = dict(config.parameters)
        self._timeout_s = config.timeout_s
        self._key = key
        url = config.endpoint if isinstance(config, AzureTargetConfig) else config.base_url
        renamed = "" if self.model == model_id else f" (model '{self.model}')"
        self._who = f"'{model_id}'{renamed} at {urlsplit(url).netloc}"
        _check_parameters(model_id, self._parameters)
        door = Door(
            Asked(self._who),
            _key_headers(config, key),
            max_connections=config.max_concurrency,
            max_bytes=max_answer_bytes,
        )
        try:
            self._client = _client(config, httpx2.AsyncClient(transport=door, timeout=None))
        except httpx2.InvalidURL:
            raise ConfigError(f"Target '{model_id}': its URL cannot be used; check it.") from None

    def __repr__(self) -> str:
        return f"OpenAITarget({self.model_id!r}, model={self.model!r})"

    async def acomplete(self, call: ChatCall) -> Completion:
        _check_parameters(self.model_id, call.parameters)
        asked = self._asked(texts_of(call))
        body: dict[str, Json] = {
            **self._parameters,
            **call.parameters,
            "model": self.model,
            "messages": list(call.messages),
        }
        started = time.perf_counter()
        answer = await self._send(asked, lambda: self._post(asked, body))
        seconds = time.perf_counter() - started
        return read_completion(
            asked,
            _json_of(asked, answer),
            model_id=self.model_id,
            call=call,
            seconds=seconds,
            headers=answer.headers,
        )

    async def list_models(self) -> tuple[str, ...]:
        """Return the ids of the models that the server says it serves (``GET /models``).

        vLLM lists the LoRA adapters that are loaded beside their base model. Azure lists the models
        that could be deployed, not the deployments.

        Raises
        ------
        TargetError
            As ``acomplete``.
        """
        asked = self._asked(())
        answer = await self._send(
            asked, lambda: self._client.get("/models", cast_to=httpx2.Response)
        )
        return read_models(asked, _json_of(asked, answer), headers=answer.headers)

    async def aclose(self) -> None:
        await self._client.close()

    def _asked(self, texts: Iterable[str]) -> Asked:
        return Asked(self._who, tuple(texts) if self._key is None else (self._key, *texts))

    async def _post(self, asked: Asked, body: Mapping[str, Json]) -> httpx2.Response:
        path = "/chat/completions"
        try:
            return await self._client.post(path, cast_to=httpx2.Response, body=body)
        except UnicodeEncodeError:  # half of a surrogate pair, from a data set that was cut there
            pass
        return await self._client.post(path, cast_to=httpx2.Response, body=well_formed(body))

    async def _send(
        self, asked: Asked, request: Callable[[], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        """Return a whole answer with a status of success, or raise what became of the call.

        The SDK's exceptions hold the request, with the key and the call. They are left behind
        before anything is raised, so that no traceback leads to them.
        """
        failure: TargetError
        try:
            async with asyncio.timeout(self._timeout_s):
                return await request()
        except (TimeoutError, openai.APITimeoutError):
            failure = TargetTimeoutError(
                f"{asked.who} gave no whole answer within {self._timeout_s:g} s. Raise 'timeout_s' "
                "if the model is slow.",
                retryable=True,
            )
        except openai.APIStatusError as error:
            response = error.response
            failure = asked.status_error(
                response.status_code, complaint_of(_any_json(response)), headers=response.headers
            )
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            failure = _connection_error(asked, error)
        raise failure


def _client(config: HttpTargetConfig, http: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    """Return the SDK's client; an empty text where it would look into the environment."""
    if isinstance(config, AzureTargetConfig):
        return openai.AsyncAzureOpenAI(
            azure_endpoint=config.endpoint,
            api_version=config.api_version,
            api_key=_NO_KEY,
            admin_api_key="",
            organization="",
            project="",
            webhook_secret="",
            timeout=None,
            max_retries=0,
            http_client=http,
        )
    return openai.AsyncOpenAI(
        base_url=config.base_url,
        api_key=_NO_KEY,
        admin_api_key="",
        organization="",
        project="",
        webhook_secret="",
        timeout=None,
        max_retries=0,
        http_client=http,
    )


def _key_headers(config: HttpTargetConfig, key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if isinstance(config, AzureTargetConfig):
        return {"api-key": key}
    return {"Authorization": f"Bearer {key}"}


def _check_parameters(model_id: str, parameters: Mapping[str, Json]) -> None:
    for name, value in parameters.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigError(
                f"Target '{model_id}': the parameter '{name}' cannot be written as JSON."
            ) from None


def _json_of(asked: Asked, answer: httpx2.Response) -> Mapping[str, Json]:
    return read_body(asked, answer.content, media_type=answer.headers.get("content-type", ""))


def _any_json(answer: httpx2.Response) -> Json:
    """Return the JSON of an error's body, None where it is none: often it is HTML."""
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return None


def _connection_error(asked: Asked, error: BaseException) -> TargetConnectionError:
    cause: BaseException | None = error
    kind = ""
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TargetConnectionError(
                f"{asked.who} shows a certificate that is not trusted. Check the URL, or install "
                "the certificate of who signed it.",
                retryable=False,
                whole_target=True,
            )
        if isinstance(cause, httpx2.HTTPError | OSError):
            kind = kind or type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    return TargetConnectionError(
        f"{asked.who} could not be reached, or the connection broke before the answer was whole "
        f"({kind or type(error).__name__}). Check that it runs and that the URL is right.",
        retryable=True,
    )
