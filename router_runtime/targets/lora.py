"""A candidate that is a LoRA adapter on vLLM replicas, for programs that read answers.

A target belongs to the event loop that first uses it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httpx2

from router_runtime.errors import (
    TargetConnectionError,
    TargetError,
    TargetProtocolError,
    TargetTimeoutError,
)
from router_runtime.target_config import LoraVllmTargetConfig
from router_runtime.targets.answers import read_body
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.failures import Asked, Complaint, complaint_of
from router_runtime.targets.openai import OpenAITarget
from router_runtime.targets.replicas import Replica, Replicas, ReplicaState, replica_config
from router_runtime.targets.transport import Door
from router_runtime.types import Json

__all__ = ["LoraVllmTarget", "ReplicaState"]

_MAX_ADMIN_BYTES: Final = 2**20


class _Wire:
    """One replica, asked through the SDK."""

    def __init__(
        self, model_id: str, model: str, url: str, config: LoraVllmTargetConfig, key: str | None
    ) -> None:
        self.target = OpenAITarget(model_id, replica_config(config, url, model=model), key=key)
        self.asked = Asked(f"'{model_id}' at {urlsplit(url).netloc}", () if key is None else (key,))
        self._url = url.rstrip("/")
        self._timeout_s = config.timeout_s
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        door = Door(self.asked, headers, max_connections=2, max_bytes=_MAX_ADMIN_BYTES)
        self._client = httpx2.AsyncClient(transport=door, timeout=None)

    async def list_models(self) -> tuple[str, ...]:
        return await self.target.list_models()

    async def tell(self, action: str, body: Json) -> tuple[int, Complaint]:
        failure: TargetError
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.post(f"{self._url}/{action}", json=body)
            if answer.status_code == 200:
                return 200, Complaint()
            kind = answer.headers.get("content-type", "")
            try:
                told = complaint_of(read_body(self.asked, answer.content, media_type=kind))
            except TargetProtocolError:
                told = Complaint()
            return answer.status_code, told
        except TimeoutError:
            failure = TargetTimeoutError(
                f"{self.asked.who} did not {action} within {self._timeout_s:g} s.", retryable=True
            )
        except (httpx2.HTTPError, OSError) as error:
            failure = TargetConnectionError(
                f"{self.asked.who} could not be reached ({type(error).__name__}).", retryable=True
            )
        raise failure

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
        wires = (_Wire(model_id, self.model, url, config, key) for url in config.base_urls)
        self._replicas = Replicas(model_id, config, wires, clock=clock)

    def __repr__(self) -> str:
        return f"LoraVllmTarget({self.model_id!r}, replicas={len(self._replicas)})"

    @property
    def replicas(self) -> tuple[ReplicaState, ...]:
        """What is known of each replica, in the order of the config."""
        return self._replicas.states

    async def acomplete(self, call: ChatCall) -> Completion:
        async def send(replica: Replica[_Wire]) -> Completion:
            return await replica.wire.target.acomplete(call)

        return await self._replicas.ask(send)

    async def check(self) -> tuple[ReplicaState, ...]:
        """Ask every replica whether it is there and has the adapter, which is loaded if allowed.

        Nothing is raised; what failed shows in the states.
        """
        return await self._replicas.check()

    async def unload(self) -> None:
        """Remove the adapter from every replica that has it; the next call loads it again.

        Raises
        ------
        TargetError
            A replica refuses or cannot be reached; the others were asked nevertheless.
        """
        await self._replicas.unload()

    async def aclose(self) -> None:
        await self._replicas.aclose()
