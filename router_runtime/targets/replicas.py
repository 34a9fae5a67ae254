"""A LoRA adapter on vLLM replicas: found, loaded where it is missing, and spread over them.

vLLM knows an adapter by its name, which is the ``model`` of a call. Each replica has adapters of
its own and forgets those that were loaded at run time when it restarts. Therefore what a replica
has is asked before its first call and after every failure, and a 404 means: load it again, and ask
once more. A replica that fails rests; a call that did not reach it goes to another one.

How replicas are spoken to is left to a ``Wire``: one reads answers (``lora``), another passes them
on (``forward_lora``).
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.experts.config import NAME_RULE, is_adapter_name
from router_runtime.target_config import CompatibleTargetConfig, LoraVllmTargetConfig
from router_runtime.targets.failures import Asked, Complaint
from router_runtime.types import Json

_ELSEWHERE: Final = frozenset({502, 503})
"""Statuses that say that a call was not begun, so that another replica may be asked."""

T = TypeVar("T")


class Wire(Protocol):
    """How one replica is spoken to."""

    asked: Asked
    """Names the replica in errors."""

    async def list_models(self) -> tuple[str, ...]:
        """Return the names of its base model and of the adapters that it has.

        Raises
        ------
        TargetError
            It does not say.
        """

    async def tell(self, action: str, body: Json) -> tuple[int, Complaint]:
        """Ask for a change of adapters; return the status and what it complains about.

        Raises
        ------
        TargetError
            There is no answer, or none that can be read.
        """

    async def aclose(self) -> None:
        """Close its connections."""


W = TypeVar("W", bound=Wire)


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


class Replica(Generic[W]):
    """One server, with what is known of it.

    Parameters
    ----------
    url : str
    wire : Wire
    """

    def __init__(self, url: str, wire: W) -> None:
        self.url = url.rstrip("/")
        self.wire = wire
        self.in_flight = 0
        self.has_adapter: bool | None = None
        self.rests_until = 0.0
        self.failure: TargetError | None = None
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def netloc(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    @property
    def changing(self) -> asyncio.Lock:
        """Held while its adapters are asked for or changed; one per event loop.

        Two loops may load an adapter at once; the later one is told that it is there.
        """
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def hold(self) -> Callable[[], None]:
        """Count a call as in flight until what is returned is called."""
        self.in_flight += 1
        return self._left

    def _left(self) -> None:
        self.in_flight -= 1


class Replicas(Generic[W]):
    """The servers of one adapter.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : LoraVllmTargetConfig
    wires : iterable of Wire
        One per ``base_urls``.
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
        wires: Iterable[W],
        *,
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
        self._all = [Replica(url, w) for url, w in zip(config.base_urls, wires, strict=True)]

    def __len__(self) -> int:
        return len(self._all)

    @property
    def wires(self) -> tuple[W, ...]:
        """In the order of the config."""
        return tuple(replica.wire for replica in self._all)

    @property
    def states(self) -> tuple[ReplicaState, ...]:
        """What is known of each replica, in the order of the config."""
        now = self._clock()
        return tuple(
            ReplicaState(r.url, r.has_adapter, r.in_flight, max(0.0, r.rests_until - now))
            for r in self._all
        )

    async def ask(
        self, send: Callable[[Replica[W]], Awaitable[T]], *, until: float | None = None
    ) -> T:
        """Return what a replica answers that has the adapter; others are asked as long as may be.

        Parameters
        ----------
        send : callable
            Makes the call; raises ``TargetError``. Called again where a replica lost the adapter.
        until : float or None
            On the event loop's clock: when looking for the adapter ends. ``send`` has its own
            limits.

        Raises
        ------
        TargetError
            No replica answers.
        """
        tried: list[Replica[W]] = []
        failure: TargetError | None = None
        while (replica := self._choose(tried)) is not None:
            tried.append(replica)
            leave = replica.hold()
            try:
                return await self._ask(replica, send, until)
            except TargetError as error:
                if not _goes_on(error):
                    raise
                failure = error
            finally:
                leave()
        raise failure or self._all_rest()

    async def check(self) -> tuple[ReplicaState, ...]:
        """Ask every replica whether it is there and has the adapter, which is loaded if allowed.

        Nothing is raised; what failed shows in the states.
        """

        async def check_one(replica: Replica[W]) -> None:
            replica.has_adapter = None
            try:
                await self._have(replica)
                replica.rests_until = 0.0
            except TargetError as error:
                self._note(replica, error)

        await asyncio.gather(*(check_one(replica) for replica in self._all))
        return self.states

    async def unload(self) -> None:
        """Remove the adapter from every replica that has it; the next call loads it again.

        Raises
        ------
        TargetError
            A replica refuses or cannot be reached; the others were asked nevertheless.
        """
        results = await asyncio.gather(
            *(self._unload(replica) for replica in self._all), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def aclose(self) -> None:
        """Close the connections to all."""
        for replica in self._all:
            await replica.wire.aclose()

    def _all_rest(self) -> TargetError:
        """Return why no replica can be asked now; what would not pass by waiting is said again."""
        lasting = [r.failure for r in self._all if r.failure and r.failure.whole_target]
        if len(lasting) == len(self._all):
            return lasting[0]
        wait_s = min(replica.rests_until for replica in self._all) - self._clock()
        return TargetConnectionError(
            f"'{self.model_id}': all {len(self._all)} replicas failed lately and rest. Check "
            "that they run.",
            retryable=True,
            retry_after_s=max(0.0, wait_s),
        )

    def _choose(self, tried: list[Replica[W]]) -> Replica[W] | None:
        """Return the replica with the fewest calls in flight, of equals one with the adapter."""
        now = self._clock()
        ready = [r for r in self._all if r not in tried and r.rests_until <= now]
        return min(ready, key=lambda r: (r.in_flight, not r.has_adapter), default=None)

    async def _ask(
        self,
        replica: Replica[W],
        send: Callable[[Replica[W]], Awaitable[T]],
        until: float | None,
    ) -> T:
        try:
            if not replica.has_adapter:
                await self._have(replica, until)
            try:
                return await send(replica)
            except TargetStatusError as error:
                if error.status != 404 or self._path is None:
                    raise
            replica.has_adapter = None  # it has restarted since, or somebody unloaded it
            await self._have(replica, until)
            return await send(replica)
        except TargetError as error:
            self._note(replica, error)
            raise

    async def _have(self, replica: Replica[W], until: float | None = None) -> None:
        """See to it that a replica has the adapter."""
        try:
            async with asyncio.timeout_at(until), replica.changing:
                if replica.has_adapter:
                    return
                if self.model not in await replica.wire.list_models():
                    await self._load(replica)
                replica.has_adapter = True
                return
        except TimeoutError:
            pass
        raise TargetTimeoutError(
            f"'{self.model_id}' at {replica.netloc} did not say in time whether it has the adapter "
            f"'{self.model}', or did not load it. Raise 'timeout_s' if loading takes that long.",
            retryable=True,
        )

    async def _load(self, replica: Replica[W]) -> None:
        if self._path is None:
            raise TargetStatusError(
                f"'{self.model_id}' at {replica.netloc} has no adapter '{self.model}'. Start the "
                "server with it, or set 'adapter_path' so that it is loaded.",
                status=404,
                retryable=False,
                whole_target=True,
            )
        body = {"lora_name": self.model, "lora_path": self._path}
        status, told = await replica.wire.tell("load_lora_adapter", body)
        if status == 200:
            return
        if status == 400 and self.model in await replica.wire.list_models():
            return  # another router has loaded it in the meantime
        if status == 405 or (status in (403, 404) and "NotFoundError" not in told.codes):
            raise TargetStatusError(
                f"'{self.model_id}' at {replica.netloc} loads no adapters at run "
                f"time (status {status}). Start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or with the adapter itself.",
                status=status,
                retryable=False,
                whole_target=True,
            )
        raise replica.wire.asked.status_error(status, told, headers={})

    async def _unload(self, replica: Replica[W]) -> None:
        async with replica.changing:
            replica.has_adapter = None
            status, told = await replica.wire.tell("unload_lora_adapter", {"lora_name": self.model})
        if status != 200 and not (status == 404 and "NotFoundError" in told.codes):
            raise replica.wire.asked.status_error(status, told, headers={})

    def _note(self, replica: Replica[W], error: TargetError) -> None:
        """Let a replica rest that failed for another reason than what it was asked."""
        unwell = isinstance(error, TargetConnectionError | TargetTimeoutError)
        if isinstance(error, TargetStatusError):
            unwell = error.status >= 500
        if unwell or error.whole_target:
            replica.has_adapter = None
            replica.failure = error
            replica.rests_until = self._clock() + self._rest_s


def replica_config(config: LoraVllmTargetConfig, url: str, *, model: str) -> CompatibleTargetConfig:
    """Return the target that one replica is by itself; limits are the whole target's."""
    return CompatibleTargetConfig(
        kind="compatible",
        base_url=url,
        model=model,
        api_key_env=None,
        timeout_s=config.timeout_s,
        max_concurrency=config.max_concurrency,
        parameters=config.parameters,
    )


def _goes_on(error: TargetError) -> bool:
    """Return whether another replica may be asked: the call was not begun, or not here."""
    if isinstance(error, TargetStatusError):
        return error.status in _ELSEWHERE or error.whole_target
    return isinstance(error, TargetConnectionError)
