"""Concurrent requests share one call of slow work, which a thread of its own does.

The event loop keeps the queue and never waits; the one worker thread gets whole batches and gives
whole batches back. So nothing here needs a lock.

When does a batch start? An item that finds the worker idle starts at the end of the same turn of
the event loop, together with all others of that turn: waiting for company that may not come would
only add to its answer. While the worker is busy, others gather by themselves; they go as soon as
it is free and the oldest has waited ``max_wait_ms`` or ``max_batch`` are there. With the embedded
encoder (0.3 ms alone, 0.2 ms a row in a batch of 64) what gathers by itself is enough: on one core
a wait of 2 ms took a third of the decisions per second at 8 and at 32 requests in flight. It pays
where a call costs much and a row of it little, as on a GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Generic, TypeAlias, TypeVar

from router_runtime.errors import OVERLOADED, RequestError
from router_runtime.service_config import BatchingConfig

T = TypeVar("T")
R = TypeVar("R")
BatchWatch: TypeAlias = Callable[[int, float, float], None]

_RETRY_AFTER_S: Final = 1.0


class _Item(Generic[T, R]):
    """One piece of work; ``answer`` belongs to the event loop."""

    __slots__ = ("answer", "at", "content")

    def __init__(self, content: T, answer: asyncio.Future[R], at: float) -> None:
        self.content = content
        self.answer = answer
        self.at = at


class _Outcomes(Generic[R]):
    """What became of a batch: for each item a result or an error."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[R | Exception]) -> None:
        self.values = values


class MicroBatcher(Generic[T, R]):
    """Groups what is submitted concurrently; used from one event loop.

    Parameters
    ----------
    work : callable
        Turns a non-empty list of items into as many results; called in the worker thread, never
        twice at a time. Where it raises for several items, each is tried alone, so that one that
        cannot be done fails alone.
    config : BatchingConfig
    name : str
        Of the worker thread.
    watch : callable, optional
        Told of each batch on the event loop: how many items, how many seconds the oldest had
        waited, and how many the work took.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Sequence[R]],
        config: BatchingConfig,
        *,
        name: str = "encoding",
        watch: BatchWatch | None = None,
    ) -> None:
        self._work = work
        self._watch = watch
        self._max_wait_s = config.max_wait_ms / 1000.0
        self._max_batch = config.max_batch
        self._max_queue = config.max_queue
        self._name = name
        self._waiting: dict[asyncio.Future[R], _Item[T, R]] = {}  # in the order of coming
        self._batches: queue.SimpleQueue[list[_Item[T, R]] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._turn: asyncio.Handle | None = None  # a start that is planned
        self._running: list[_Item[T, R]] = []
        self._started = 0.0
        self._closed = False

    @property
    def queued(self) -> int:
        """Items that wait for the worker."""
        return len(self._waiting)

    async def submit(self, content: T) -> R:
        """Return the result for one item; whatever ``work`` raised for it is raised.

        A cancelled caller's item is dropped where it has not started.

        Raises
        ------
        RequestError
            503 ``overloaded``: the queue is full, or the service is ending.
        """
        answer = self.put(content)
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    def put(self, content: T) -> asyncio.Future[R]:
        """Queue one item and return the future of its result, for several to wait for.

        Raises
        ------
        RequestError
            As ``submit``.
        """
        loop = self._opened()
        if self._closed:
            raise _ending()
        if len(self._waiting) >= self._max_queue:
            raise RequestError(
                f"Too many requests wait for a decision ({self._max_queue}); try again in a "
                "moment.",
                status=503,
                code=OVERLOADED,
                retry_after_s=_RETRY_AFTER_S,
            )
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting[answer] = _Item(content, answer, loop.time())
        if not self._running:
            if self._turn is None:
                self._turn = loop.call_soon(self._start)
            elif len(self._waiting) == self._max_batch:  # full: wait no longer
                self._turn.cancel()
                self._start()
        return answer

    def drop(self, answer: asyncio.Future[R]) -> None:
        """Forget an item that nobody waits for any more; one that has started runs to its end."""
        self._waiting.pop(answer, None)
        answer.cancel()

    def close(self) -> None:
        """Let the worker end after its current batch; what waits is refused."""
        self._closed = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        for answer in (*self._waiting, *(item.answer for item in self._running)):
            if not answer.done():
                answer.set_exception(_ending())
        self._waiting.clear()
        self._batches.put(None)

    def _opened(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return self._loop

    # ------------------------------------------------------------------ on the event loop

    def _start(self) -> None:
        """Hand the oldest items to the worker, which is idle."""
        self._turn = None
        batch = list(islice(self._waiting.values(), self._max_batch))
        if not batch:  # all of them were dropped
            return
        for item in batch:
            del self._waiting[item.answer]
        self._running = batch
        self._started = self._opened().time()
        self._batches.put(batch)

    def _finished(self, outcomes: _Outcomes[R]) -> None:
        batch, self._running = self._running, []
        if self._watch is not None:
            now = self._opened().time()
            self._watch(len(batch), self._started - batch[0].at, now - self._started)
        for item, outcome in zip(batch, outcomes.values, strict=True):
            if item.answer.done():  # cancelled, or closed
                continue
            if isinstance(outcome, Exception):
                item.answer.set_exception(outcome)
            else:
                item.answer.set_result(outcome)
        if self._waiting and not self._closed:
            self._plan()

    def _plan(self) -> None:
        loop = self._opened()
        oldest = next(iter(self._waiting.values())).at
        due = oldest + self._max_wait_s
        if len(self._waiting) >= self._max_batch or due <= loop.time():
            self._start()
        else:
            self._turn = loop.call_at(due, self._start)

    # ------------------------------------------------------------------ in the worker thread

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            outcomes = _Outcomes(self._done(batch))
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._finished, outcomes)  # type: ignore[union-attr]

    def _done(self, batch: list[_Item[T, R]]) -> Sequence[R | Exception]:
        try:
            results = self._work([item.content for item in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:
            if len(batch) == 1:
                return [_settable(error)]
            # Alone, so that one bad item fails alone; nobody waits any more for those that are
            # done, and a server that takes its time to fail would be asked for them in vain.
            return [_GONE if i.answer.done() else self._done([i])[0] for i in batch]
        return results


def _ending() -> RequestError:
    return RequestError(
        "The service is ending; ask again, another process may answer.",
        status=503,
        code=OVERLOADED,
        retry_after_s=_RETRY_AFTER_S,
    )


_GONE: Final = RuntimeError("nobody waits for this")


def _settable(error: Exception) -> Exception:
    """Return an error that a future takes; it refuses ``StopIteration``."""
    return RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
