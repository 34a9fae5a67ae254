"""Requests passed on to a LoRA adapter on vLLM replicas, and answers as they came.

Which replica is asked, and what is done where the adapter is missing, ``replicas`` says.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Final

from router_runtime.errors import TargetProtocolError
from router_runtime.pricing import estimate_tokens
from router_runtime.target_config import LoraVllmTargetConfig
from router_runtime.targets.answers import read_body, read_models
from router_runtime.targets.failures import Complaint, complaint_of
from router_runtime.targets.forward_base import ForwarderBase
from router_runtime.targets.forward_http import MAX_ANSWER_BYTES, HttpForwarder, SideAnswer
from router_runtime.targets.replicas import Replica, Replicas, ReplicaState, replica_config
from router_runtime.targets.replies import Path, Refused, Reply
from router_runtime.types import Json

_OK: Final = 200


class _Wire:
    """One replica, to which bytes are passed."""

    def __init__(self, forwarder: HttpForwarder) -> None:
        self.forwarder = forwarder
        self.asked = forwarder.asked(b"{}")

    async def list_models(self) -> tuple[str, ...]:
        answer = await self._call("GET", "models", None)
        if answer.status != _OK:
            raise self.asked.status_error(answer.status, self._complaint(answer), headers={})
        body = read_body(self.asked, answer.content, media_type=answer.content_type)
        return read_models(self.asked, body, headers={})

    async def tell(self, action: str, body: Json) -> tuple[int, Complaint]:
        answer = await self._call("POST", action, json.dumps(body).encode())
        told = Complaint() if answer.status == _OK else self._complaint(answer)
        return answer.status, told

    async def _call(self, method: str, path: str, body: bytes | None) -> SideAnswer:
        timeout_s = self.forwarder.timeout_s
        return await self.forwarder.side_call(method, path, body, timeout_s=timeout_s)

    def _complaint(self, answer: SideAnswer) -> Complaint:
        kind = answer.content_type
        try:
            return complaint_of(read_body(self.asked, answer.content, media_type=kind))
        except TargetProtocolError:
            return Complaint()

    async def aclose(self) -> None:
        await self.forwarder.aclose()


class LoraForwarder(ForwarderBase):
    """Passes requests on to one adapter on several vLLM servers.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : LoraVllmTargetConfig
    key : str or None
        Sent as the API key to every replica.
    max_in_flight : int or None
        Calls at a time, at all replicas together; None: no bound.
    max_answer_bytes : int
        Longest answer that is not a stream.
    clock : callable
        Seconds, only going forward.

    Raises
    ------
    ConfigError
        The adapter is to be loaded but its name is not allowed.
    """

    def __init__(
        self,
        model_id: str,
        config: LoraVllmTargetConfig,
        *,
        key: str | None = None,
        max_in_flight: int | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        urls = sorted(url.rstrip("/") for url in config.base_urls)
        model = config.model or model_id
        super().__init__(
            model_id,
            config,
            who=f"'{model_id}' on {len(urls)} replicas",
            identity=f"{' '.join(urls)} {model}",
            max_in_flight=max_in_flight,
        )
        wires = (
            _Wire(
                HttpForwarder(
                    model_id,
                    replica_config(config, url, model=model),
                    key=key,
                    max_answer_bytes=max_answer_bytes,
                )
            )
            for url in config.base_urls
        )
        self._replicas = Replicas(model_id, config, wires, clock=clock)

    @property
    def replicas(self) -> tuple[ReplicaState, ...]:
        """What is known of each replica, in the order of the config."""
        return self._replicas.states

    async def open(
        self, path: Path, body: bytes, *, timeout_s: float, idle_s: float
    ) -> Reply | Refused:
        if self.busy:
            raise self._too_busy()
        if self._quota is not None:
            self._quota.count(estimate_tokens(len(body)))
        now = asyncio.get_running_loop().time
        until = now() + timeout_s
        refused: Refused | None = None

        async def send(replica: Replica[_Wire]) -> Reply:
            nonlocal refused
            found = await replica.wire.forwarder.open(
                path, body, timeout_s=max(0.0, until - now()), idle_s=idle_s
            )
            if isinstance(found, Refused):
                refused = found
                raise found.error
            found.when_closed(replica.hold())
            return found

        place = object()
        self._places.add(place)
        try:
            reply = await self._replicas.ask(send, until=until)
        except BaseException as error:
            self._places.discard(place)
            if refused is not None and error is refused.error:
                return refused
            raise
        reply.when_closed(lambda: self._places.discard(place))
        return reply

    async def aclose(self) -> None:
        """Close the connections to all replicas."""
        await self._replicas.aclose()
