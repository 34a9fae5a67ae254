"""A LoRA adapter on vLLM replicas: found, loaded where it is missing, and spread over them.

vLLM knows an adapter by its name, which is the ``model`` of a call. Each replica has adapters of
its own and forgets those that were loaded at run time when it restarts. Therefore what a replica
has is asked before its first call and after every failure, and a 404 means: load it again, and ask
once more. A replica that fails rests; a call that did not reach it goes to another one.

A target belongs to the event loop that first uses it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx2

from router_runtime.config import CompatibleTargetConfig, LoraVllmTargetConfig
from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetProtocolError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.experts.config import NAME_RULE, is_adapter_name
from router_runtime.targets.answers import read_body
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.failures import Asked, Complaint, complaint_of
from router_runtime.targets.openai import OpenAITarget
from router_runtime.targets.transport import Door
from router_runtime.types import Json

_MAX_ADMIN_BYTES: Final = 2**20
_ELSEWHERE: Final = frozenset({502, 503})
"""Statuses that say that a call was not begun, so that another replica may be asked."""


@dataclass(frozen=True)
class ReplicaState:
    """What is known of a replica.

    Parameters
    ----------
    base_url : str
    has_adapter : bool or None
        None where it was not asked since it last failed.
    in_flight : int
    rests_s : float
        How long it is still left alone; 0 where it is not.
    """

    base_url: str
    has_adapter: bool | None
    in_flight: int
    rests_s: float


class _Replica:
    """One server, with what is known of it."""

    def __init__(
        self, model_id: str, model: str, url: str, config: LoraVllmTargetConfig, key: str | None
    ) -> None:
        self.url = url.rstrip("/")
        self.in_flight = 0
        self.has_adapter: bool | None = None
        self.rests_until = 0.0
        self.failure: TargetError | None = None
        self.lock = asyncio.Lock()
        self.target = OpenAITarget(
            model_id,
            CompatibleTargetConfig(
                kind="compatible",
                base_url=url,
                model=model,
                api_key_env=None,
                timeout_s=config.timeout_s,
                max_concurrency=config.max_concurrency,
                parameters=config.parameters,
            ),
            key=key,
        )
        self._asked = Asked(
            f"'{model_id}' at {urlsplit(url).netloc}", () if key is None else (key,)
        )
        self._timeout_s = config.timeout_s
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        door = Door(self._asked, headers, max_connections=2, max_bytes=_MAX_ADMIN_BYTES)
        self._client = httpx2.AsyncClient(transport=door, timeout=None)

    async def tell(self, action: str, body: Json) -> tuple[int, Complaint]:
        """Ask for a change of adapters; return the status and what it complains about.

        Raises
        ------
        TargetConnectionError, TargetTimeoutError, TargetProtocolError
            There is no answer, or none that can be read.
        """
        failure: TargetError
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.post(f"{self.url}/{action}", json=body)
            if answer.status_code == 200:
                return 200, Complaint()
            kind = answer.headers.get("content-type", "")
            try:
                told = complaint_of(read_body(self._asked, answer.content, media_type=kind))
            except TargetProtocolError:
                told = Complaint()
            return answer.status_code, told
        except TimeoutError:
            failure = TargetTimeoutError(
                f"{self._asked.who} did not {action} within {self._timeout_s:g} s.", retryable=True
            )
        except (httpx2.HTTPError, OSError) as error:
            failure = TargetConnectionError(
                f"{self._asked.who} could not be reached ({type(error).__name__}).", retryable=True
            )
        raise failure

    def status_error(self, status: int, told: Complaint) -> TargetStatusError:
        """Return the error of a change that was refused."""
        return self._asked.status_error(status, told, headers={})

    async def aclose(self) -> None:
        await self.target.aclose()
        await self._client.aclose()


class LoraVllmTarget:
    """A ``Target`` that is one adapter on several vLLM servers.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : LoraVllmTargetConfig
    key : str or None
        Sent as the API key to every replica.
    clock : callable
        Seconds, only going forward.

    Raises
    ------
    ConfigError
        The adapter is to be loaded but its name is not allowed, or ``parameters`` are not JSON.
    """

    def __init__(
        self,
        model_id: str,
        config: LoraVllmTargetConfig,
        *,
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model_id = model_id
        self.model = config.model or model_id
        self._path = config.adapter_path
        self._rest_s = config.rest_s
        self._clock = clock
        if self._path is not None and not is_adapter_name(self.model):
            raise ConfigError(
                f"Target '{model_id}': no adapter can be loaded as '{self.model:.80}'; a name has "
                f"{NAME_RULE}. Set 'model'."
            )
        self._replicas = [
            _Replica(model_id, self.model, url, config, key) for url in config.base_urls
        ]

    def __repr__(self) -> str:
        return f"LoraVllmTarget({self.model_id!r}, replicas={len(self._replicas)})"

    @property
    def replicas(self) -> tuple[ReplicaState, ...]:
        """What is known of each replica, in the order of the config."""
        now = self._clock()
        return tuple(
            ReplicaState(r.url, r.has_adapter, r.in_flight, max(0.0, r.rests_until - now))
            for r in self._replicas
        )

    async def acomplete(self, call: ChatCall) -> Completion:
        tried: list[_Replica] = []
        failure: TargetError | None = None
        while (replica := self._choose(tried)) is not None:
            tried.append(replica)
            replica.in_flight += 1
            try:
                return await self._ask(replica, call)
            except TargetError as error:
                if not _goes_on(error):
                    raise
                failure = error
            finally:
                replica.in_flight -= 1
        raise failure or self._all_rest()

    async def check(self) -> tuple[ReplicaState, ...]:
        """Ask every replica whether it is there and has the adapter, which is loaded if allowed.

        Nothing is raised; what failed shows in the states.
        """

        async def check_one(replica: _Replica) -> None:
            replica.has_adapter = None
            try:
                await self._have(replica)
                replica.rests_until = 0.0
            except TargetError as error:
                self._note(replica, error)

        await asyncio.gather(*(check_one(replica) for replica in self._replicas))
        return self.replicas

    async def unload(self) -> None:
        """Remove the adapter from every replica that has it; the next call loads it again.

        Raises
        ------
        TargetError
            A replica refuses or cannot be reached; the others were asked nevertheless.
        """
        results = await asyncio.gather(
            *(self._unload(replica) for replica in self._replicas), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def aclose(self) -> None:
        for replica in self._replicas:
            await replica.aclose()

    def _all_rest(self) -> TargetError:
        """Return why no replica can be asked now; what would not pass by waiting is said again."""
        lasting = [r.failure for r in self._replicas if r.failure and r.failure.whole_target]
        if len(lasting) == len(self._replicas):
            return lasting[0]
        wait_s = min(replica.rests_until for replica in self._replicas) - self._clock()
        return TargetConnectionError(
            f"'{self.model_id}': all {len(self._replicas)} replicas failed lately and rest. Check "
            "that they run.",
            retryable=True,
            retry_after_s=max(0.0, wait_s),
        )

    def _choose(self, tried: list[_Replica]) -> _Replica | None:
        """Return the replica with the fewest calls in flight, of equals one with the adapter."""
        now = self._clock()
        ready = [r for r in self._replicas if r not in tried and r.rests_until <= now]
        return min(ready, key=lambda r: (r.in_flight, not r.has_adapter), default=None)

    async def _ask(self, replica: _Replica, call: ChatCall) -> Completion:
        try:
            if not replica.has_adapter:
                await self._have(replica)
            try:
                return await replica.target.acomplete(call)
            except TargetStatusError as error:
                if error.status != 404 or self._path is None:
                    raise
            replica.has_adapter = None  # it has restarted since, or somebody unloaded it
            await self._have(replica)
            return await replica.target.acomplete(call)
        except TargetError as error:
            self._note(replica, error)
            raise

    async def _have(self, replica: _Replica) -> None:
        """See to it that a replica has the adapter."""
        async with replica.lock:
            if replica.has_adapter:
                return
            if self.model in await replica.target.list_models():
                replica.has_adapter = True
                return
            if self._path is None:
                raise TargetStatusError(
                    f"'{self.model_id}' at {urlsplit(replica.url).netloc} has no adapter "
                    f"'{self.model}'. Start the server with it, or set 'adapter_path' so that it "
                    "is loaded.",
                    status=404,
                    retryable=False,
                    whole_target=True,
                )
            await self._load(replica)
            replica.has_adapter = True

    async def _load(self, replica: _Replica) -> None:
        body = {"lora_name": self.model, "lora_path": self._path}
        status, told = await replica.tell("load_lora_adapter", body)
        if status == 200:
            return
        if status == 400 and self.model in await replica.target.list_models():
            return  # another router has loaded it in the meantime
        if status == 405 or (status in (403, 404) and "NotFoundError" not in told.codes):
            raise TargetStatusError(
                f"'{self.model_id}' at {urlsplit(replica.url).netloc} loads no adapters at run "
                f"time (status {status}). Start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or with the adapter itself.",
                status=status,
                retryable=False,
                whole_target=True,
            )
        raise replica.status_error(status, told)

    async def _unload(self, replica: _Replica) -> None:
        async with replica.lock:
            replica.has_adapter = None
            status, told = await replica.tell("unload_lora_adapter", {"lora_name": self.model})
        if status != 200 and not (status == 404 and "NotFoundError" in told.codes):
            raise replica.status_error(status, told)

    def _note(self, replica: _Replica, error: TargetError) -> None:
        """Let a replica rest that failed for another reason than what it was asked."""
        unwell = isinstance(error, TargetConnectionError | TargetTimeoutError)
        if isinstance(error, TargetStatusError):
            unwell = error.status >= 500
        if unwell or error.whole_target:
            replica.has_adapter = None
            replica.failure = error
            replica.rests_until = self._clock() + self._rest_s


def _goes_on(error: TargetError) -> bool:
    """Return whether another replica may be asked: the call was not begun, or not here."""
    if isinstance(error, TargetStatusError):
        return error.status in _ELSEWHERE or error.whole_target
    return isinstance(error, TargetConnectionError)
