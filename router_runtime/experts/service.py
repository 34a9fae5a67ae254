"""A base model with its adapters that answers chat requests, for the server and for targets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Final, Self

from router_runtime.errors import RequestError
from router_runtime.experts.base_model import load_base
from router_runtime.experts.batches import End, Event, Failure, Piece, score
from router_runtime.experts.chat import ChatRequest, read_request
from router_runtime.experts.config import ExpertsConfig
from router_runtime.experts.engine import Engine, Ticket, no_such_model, overloaded
from router_runtime.experts.pool import AdapterPool
from router_runtime.experts.prompts import Prompt, PromptMaker
from router_runtime.experts.sampling import Sampling
from router_runtime.images import ImageLimits
from router_runtime.types import Json

_PROMPT_THREADS: Final = 2  # tokenizing is one at a time, but pictures are decoded beside it


class Running:
    """A request that is being answered, in the event loop that asked."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._more = asyncio.Event()
        self._ticket: Ticket | None = None

    def submit(
        self, engine: Engine, prompt: Prompt, *, adapter: str | None, sampling: Sampling
    ) -> None:
        """Put the request into an engine's queue.

        Raises
        ------
        RequestError
            As ``Engine.submit``.
        """
        self._ticket = engine.submit(prompt, adapter=adapter, sampling=sampling, sink=self._sink)

    async def next(self) -> Piece | End:
        """Return what comes next of the answer; nothing comes after its end.

        Raises
        ------
        RequestError
            The request failed.
        """
        while not self._events:
            self._more.clear()
            await self._more.wait()
        event = self._events.popleft()
        if isinstance(event, Failure):
            raise event.error
        return event

    def next_at_hand(self) -> Piece | End | None:
        """Return what has come already, None where ``next`` would wait or raise."""
        if not self._events or isinstance(self._events[0], Failure):
            return None
        event = self._events.popleft()
        return None if isinstance(event, Failure) else event

    def cancel(self) -> None:
        """Say that nobody waits any more; the request leaves its batch with the next token."""
        if self._ticket is not None:
            self._ticket.cancel()

    def _sink(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self._loop.call_soon_threadsafe(self._arrived, event)

    def _arrived(self, event: Event) -> None:
        self._events.append(event)
        self._more.set()


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
        self._threads = ThreadPoolExecutor(_PROMPT_THREADS, thread_name_prefix="experts-prompts")
        self._making: set[object] = set()  # prompts, maybe for several event loops

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

    @property
    def full(self) -> bool:
        """Whether a request would be refused because too many wait."""
        most = self.config.max_waiting + self.config.max_batch
        return len(self._making) >= most or self.engine.full

    async def ask(self, request: ChatRequest) -> Running:
        """Make the prompt and queue the request; whoever asks cancels what is returned.

        Raises
        ------
        RequestError
            It is refused.
        """
        if self.full:
            raise overloaded(self.config.max_waiting)
        running, place = Running(), object()
        self._making.add(place)
        try:
            loop = asyncio.get_running_loop()
            prompt = await loop.run_in_executor(self._threads, self._prompts.make, request.messages)
        finally:
            self._making.discard(place)
        adapter = None if request.model == self.config.base_name else request.model
        running.submit(self.engine, prompt, adapter=adapter, sampling=request.sampling)
        return running

    async def events(self, request: ChatRequest) -> AsyncGenerator[Piece | End]:
        """Yield the pieces of an answer and its end; leaving early cancels the request.

        Raises
        ------
        RequestError
            It is refused or fails.
        """
        running = await self.ask(request)
        try:
            while True:
                event = await running.next()
                yield event
                if isinstance(event, End):
                    return
        finally:
            running.cancel()

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
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.engine.close()
