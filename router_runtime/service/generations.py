"""One config with all that was built from it, and the change from one to the next.

A ``Generation`` never changes. A request takes the current one when it comes and keeps it to its
end, so that a reload never mixes two configs in one request. ``reload`` validates, builds and warms
beside the running service and only then swaps; whatever fails leaves everything as it was. The
previous generation is kept, warm, for ``rollback``; the one before it is closed as soon as its last
request has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import PIL.Image

from router_runtime.config import RuntimeConfig, load_config
from router_runtime.errors import ConfigError, RouterError
from router_runtime.model_router import ModelRouter
from router_runtime.service.deciding import Decider
from router_runtime.types import Image, Json, Query

if TYPE_CHECKING:
    from router_runtime.pricing import Price
    from router_runtime.service.pictures import PictureFetcher
    from router_runtime.targets.breaker import Breaker
    from router_runtime.targets.forward import Forwarder

logger = logging.getLogger(__name__)

_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s\"]*@")


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A config and what was built from it.

    Parameters
    ----------
    config : RuntimeConfig
    router : ModelRouter
    decider : Decider
    forwarders : mapping of model to Forwarder
        Candidates and direct models that have a target.
    config_sha256, artifact_id : str
        Tell replicas and moments apart.
    loaded_at : float
        Seconds since the epoch.
    close : callable
        Frees what ``forwarders`` and ``pictures`` hold; awaited once, when no request uses the
        generation any more.
    pictures : PictureFetcher or None
        Fetches pictures from the allowed hosts; None where there are none.
    breakers : mapping of model to Breaker
        Of the models in ``forwarders``; shared with other generations.
    prices : mapping of model to Price
        Of those that have one.
    """

    config: RuntimeConfig
    router: ModelRouter
    decider: Decider
    forwarders: Mapping[str, Forwarder]
    config_sha256: str
    artifact_id: str
    loaded_at: float
    close: Callable[[], Awaitable[None]] = field(repr=False)
    pictures: PictureFetcher | None = None
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)

    @property
    def callable_models(self) -> Collection[str]:
        """Models that a request may name."""
        return self.forwarders.keys()


class Generations:
    """The generations of a service; used from one event loop.

    Parameters
    ----------
    build : callable
        Makes a generation of a config, without blocking the event loop: ``load_router`` for the
        router, then what belongs to the service.
    """

    def __init__(self, build: Callable[[RuntimeConfig], Awaitable[Generation]]) -> None:
        self._build = build
        self._current: Generation | None = None
        self._previous: Generation | None = None
        self._in_flight: dict[Generation, int] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()

    @property
    def current(self) -> Generation:
        """What new requests are served with.

        Raises
        ------
        ConfigError
            Nothing was loaded.
        """
        if self._current is None:
            raise ConfigError("No config is loaded yet; wait for the service to start.")
        return self._current

    @property
    def previous(self) -> Generation | None:
        """What ``rollback`` would return to."""
        return self._previous

    @property
    def loaded(self) -> bool:
        """Whether there is a current one."""
        return self._current is not None

    def in_flight(self, generation: Generation) -> int:
        """Return how many requests use a generation."""
        return self._in_flight.get(generation, 0)

    @contextlib.contextmanager
    def enter(self) -> Iterator[Generation]:
        """Hold the current generation for one request."""
        generation = self.current
        self._in_flight[generation] = self._in_flight.get(generation, 0) + 1
        try:
            yield generation
        finally:
            self._in_flight[generation] -= 1
            if not self._in_flight[generation]:
                del self._in_flight[generation]
                self._close_unused(generation)

    async def reload(self, path: str | Path) -> Generation:
        """Read, build, warm and swap; the first call loads the first generation.

        Raises
        ------
        RouterError
            Whatever was wrong; the current generation stays, and so does the previous one.
        """
        async with self._changing:
            try:
                config = await asyncio.to_thread(load_config, path)
                generation = await self._build(config)
            except RouterError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"The config '{path}' cannot be served ({type(error).__name__}). Correct it; "
                    "what was served before still is."
                ) from error
            oldest, self._previous = self._previous, self._current
            self._current = generation
            if oldest is not None:
                self._close_unused(oldest)
        logger.info(
            "serving config %.12s with artifact %s",
            generation.config_sha256,
            generation.artifact_id,
        )
        return generation

    async def rollback(self) -> Generation:
        """Swap the current generation and the previous one; a second call swaps them back.

        Raises
        ------
        ConfigError
            There is no previous one.
        """
        async with self._changing:
            if self._previous is None:
                raise ConfigError("There is no previous config to return to; reload one instead.")
            self._current, self._previous = self._previous, self._current
            return self.current

    async def close(self) -> None:
        """Close all generations, whether requests use them or not."""
        async with self._changing:
            kept = {self._current, self._previous, *self._in_flight}
            self._current = self._previous = None
            for generation in kept:
                if generation is not None:
                    self._close_later(generation)
            while self._closing:
                await asyncio.gather(*self._closing)

    def _close_unused(self, generation: Generation) -> None:
        kept = generation is self._current or generation is self._previous
        if not kept and not self.in_flight(generation) and self._current is not None:
            self._close_later(generation)

    def _close_later(self, generation: Generation) -> None:
        task = asyncio.get_running_loop().create_task(_close(generation))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close(generation: Generation) -> None:
    generation.decider.close()
    try:
        await generation.close()
    except Exception as error:  # what is left open ends with the process
        logger.warning("an old config could not be closed: %s", type(error).__name__)


async def load_router(config: RuntimeConfig) -> ModelRouter:
    """Load and warm a router in a thread: its first answer must not be a client's.

    Raises
    ------
    RouterError
        The artifact, the encoder or the config cannot be used, or a first prediction failed.
    """
    return await asyncio.to_thread(_loaded, config)


def _loaded(config: RuntimeConfig) -> ModelRouter:
    router = ModelRouter.from_config(config)
    capable = [router.eligible([query]).mask.any() for query in _warm_queries()]
    queries = [query for query, able in zip(_warm_queries(), capable, strict=True) if able]
    if queries:
        router.decide_batch(queries)
    else:
        router.predict(_warm_queries())
    return router


def _warm_queries() -> list[Query]:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), (90, 120, 150)).save(buffer, "PNG")
    picture = Image(buffer.getvalue(), "image/png")
    return [Query("What is shown here, and how many are there?", (picture,)), Query("Hello.")]


def config_digest(config: RuntimeConfig) -> str:
    """Return a hex digest of what a config says, the same in every process.

    Left out are the artifact's path, since what lies there has an id of its own, the folders of
    experts' configs, and a user and password in a URL.
    """
    content = config.model_dump(exclude={"artifact"})
    for candidate in (*content["candidates"], *content["direct"]):
        target = candidate["target"] or {}
        if "experts" in target:
            target["experts"] = target["experts"].name
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(_USER_INFO.sub("", text).encode()).hexdigest()


def _plain(value: object) -> Json:
    return sorted(value) if isinstance(value, frozenset) else str(value)
