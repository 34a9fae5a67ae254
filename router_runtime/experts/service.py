"""A base model with its adapters that answers chat requests, for the server and the target."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Self

from router_runtime.errors import RequestError
from router_runtime.experts.base_model import load_base
from router_runtime.experts.batches import End, Event, Failure, Piece, score
from router_runtime.experts.chat import ChatRequest, read_request
from router_runtime.experts.config import ExpertsConfig
from router_runtime.experts.engine import Engine, no_such_model
from router_runtime.experts.pool import AdapterPool
from router_runtime.experts.prompts import PromptMaker
from router_runtime.images import ImageLimits
from router_runtime.types import Json


class Experts:
    """Answers chat requests.

    Parameters
    ----------
    engine : Engine
        Closed with this.
    config : ExpertsConfig
    """

    def __init__(self, engine: Engine, config: ExpertsConfig) -> None:
        self.engine = engine
        self.config = config
        limits = ImageLimits(config.images.max_bytes, config.images.max_pixels)
        self._prompts = PromptMaker(engine.pool.base, limits=limits)

    @classmethod
    def load(cls, config: ExpertsConfig) -> Self:
        """Load a base model and its adapters.

        Raises
        ------
        RouterError
            The base cannot be had, or an adapter cannot be served; the message names it.
        """
        pool = AdapterPool(
            load_base(config.base),
            base_name=config.base_name,
            root=config.adapters_root,
            max_bytes=config.max_adapter_bytes,
            evict=config.evict,
        )
        for name, path in config.adapters.items():
            pool.add(pool.read(name, path))
        engine = Engine(pool, max_batch=config.max_batch, max_waiting=config.max_waiting)
        return cls(engine, config)

    @property
    def models(self) -> tuple[str, ...]:
        """The base model's name and those of the adapters."""
        return (self.config.base_name, *(card.name for card in self.engine.pool.cards))

    def read(self, body: Json) -> ChatRequest:
        """Return what a body asks for.

        Raises
        ------
        RequestError
            It asks for what is not here or not offered.
        """
        request = read_request(body, max_tokens=self.config.max_tokens)
        if request.model not in self.models:
            raise no_such_model(request.model)
        return request

    async def events(self, request: ChatRequest) -> AsyncGenerator[Piece | End]:
        """Yield the pieces of an answer and its end; leaving early cancels the request.

        Raises
        ------
        RequestError
            It is refused or fails.
        """
        prompt = await asyncio.to_thread(self._prompts.make, request.messages)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Event] = asyncio.Queue()

        def sink(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(arrived.put_nowait, event)

        adapter = None if request.model == self.config.base_name else request.model
        ticket = self.engine.submit(prompt, adapter=adapter, sampling=request.sampling, sink=sink)
        try:
            while True:
                event = await arrived.get()
                if isinstance(event, Failure):
                    raise event.error
                yield event
                if isinstance(event, End):
                    return
        finally:
            ticket.cancel()

    async def answer(self, request: ChatRequest) -> End:
        """Return a whole answer.

        Raises
        ------
        RequestError
            As ``events``.
        """
        async with aclosing(self.events(request)) as events:
            async for event in events:
                if isinstance(event, End):
                    return event
        raise RequestError("The answer did not end.", status=500, code="server_error")

    def score(self, model: str, messages: Json, answers: Sequence[str]) -> list[float]:
        """Return for each text the log-probability that it is a model's whole answer.

        What a router that names experts is asked: a distribution over the names, not one name.
        Blocks until the batch that is being answered is done.

        Raises
        ------
        RequestError
            There is no such model, or the messages cannot be read.
        """
        if model not in self.models:
            raise no_such_model(model)
        prompt = self._prompts.make(messages)
        adapter = None if model == self.config.base_name else model
        return self.engine.call(lambda pool: score(pool, prompt, adapter=adapter, answers=answers))

    def close(self) -> None:
        """Fail what waits and end the model's thread."""
        self.engine.close()
