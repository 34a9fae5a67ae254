"""The one thread that owns the model: what waits for it together is answered together.

There is no waiting for company: while a batch is answered the next one gathers by itself, and a
lone request is answered at once. Adapters come and go between batches. The queue is bounded; a
request that finds it full is refused, so that a router asks another candidate.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

import torch

from router_runtime.errors import RequestError, RouterError
from router_runtime.experts.batches import Row, Sink, answer
from router_runtime.experts.pool import AdapterCard, AdapterPool
from router_runtime.experts.prompts import Prompt
from router_runtime.experts.sampling import Sampling

_LOG: Final = logging.getLogger(__name__)
_RETRY_S: Final = 1.0

T = TypeVar("T")


class Ticket:
    """A request that was accepted."""

    __slots__ = ("_row",)

    def __init__(self, row: Row) -> None:
        self._row = row

    def cancel(self) -> None:
        """Say that nobody waits any more; nothing is told from the next token on."""
        self._row.cancelled = True


class Engine:
    """Answers requests with the adapters of a pool.

    Parameters
    ----------
    pool : AdapterPool
        Belongs to the engine's thread from now on.
    max_batch : int
        Requests that are answered together.
    max_waiting : int
        Requests that may wait beside them.
    """

    def __init__(self, pool: AdapterPool, *, max_batch: int = 8, max_waiting: int = 64) -> None:
        self.pool = pool
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[Row] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._turn = threading.Condition()
        self._closing = False
        self._running: list[Row] = []
        self._thread = threading.Thread(target=self._work, name="experts", daemon=True)
        self._thread.start()
        # A thread that is within PyTorch when the interpreter ends would abort the process.
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether a request would be refused because too many wait."""
        if len(self._waiting) < self._max_waiting:
            return False
        with self._turn:
            self._forget_cancelled()
            return len(self._waiting) >= self._max_waiting

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    def submit(
        self, prompt: Prompt, *, adapter: str | None, sampling: Sampling, sink: Sink
    ) -> Ticket:
        """Take a request; its answer is told to ``sink``, in the engine's thread.

        Parameters
        ----------
        prompt : Prompt
        adapter : str or None
            None: the base model alone.
        sampling : Sampling
        sink : callable
            Must return at once and raise nothing.

        Raises
        ------
        RequestError
            No such adapter (404), too many wait, or the engine is closed (503).
        """
        if adapter is not None and not self.pool.knows(adapter):
            raise no_such_model(adapter)
        row = Row(self.pool.base, prompt=prompt, adapter=adapter, sampling=sampling, sink=sink)
        with self._turn:
            if self._closing:
                raise _closed()
            if len(self._waiting) >= self._max_waiting:
                self._forget_cancelled()
            if len(self._waiting) >= self._max_waiting:
                raise overloaded(self._max_waiting)
            self._waiting.append(row)
            self._turn.notify()
        return Ticket(row)

    def call(self, task: Callable[[AdapterPool], T]) -> T:
        """Run a function in the engine's thread between two batches; return what it returns.

        Raises
        ------
        RequestError
            The engine is closed (503).
        Exception
            Whatever the function raises.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(task(self.pool))
            except BaseException as error:  # it is raised again in the thread that asked
                future.set_exception(error)

        with self._turn:
            if self._closing:
                raise _closed()
            self._tasks.append(run)
            self._turn.notify()
        return future.result()

    def add_adapter(self, name: str, path: str | Path) -> AdapterCard:
        """Read, check and take an adapter while others are served.

        Raises
        ------
        ConfigError, ArtifactError, ArtifactIntegrityError
            As ``AdapterPool.read`` and ``AdapterPool.add``.
        """
        folder = self.pool.read(name, path)
        return self.call(lambda pool: pool.add(folder))

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; requests that still wait for it get a 404.

        Raises
        ------
        ConfigError
            There is none of that name.
        """
        self.call(lambda pool: pool.remove(name))

    def close(self, timeout_s: float = 10.0) -> None:
        """Fail what waits or runs with a 503, and end the thread."""
        with self._turn:
            self._closing = True
            for row in self._running:
                row.cancelled = True
            self._turn.notify()
        self._thread.join(timeout_s)
        atexit.unregister(self.close)

    def _forget_cancelled(self) -> None:
        self._waiting = deque(row for row in self._waiting if not row.cancelled)

    def _work(self) -> None:
        while True:
            task, rows = self._next()
            if task is not None:
                task()
            elif rows:
                self._answer(rows)
                self._running = []
            elif self._closing:
                return

    def _next(self) -> tuple[Callable[[], None] | None, list[Row]]:
        with self._turn:
            while not (self._tasks or self._waiting or self._closing):
                self._turn.wait()
            if self._closing:
                for row in self._waiting:
                    row.fail(_closed())
                self._waiting.clear()
            if self._tasks:
                return self._tasks.popleft(), []
            self._running = self._together()
            return None, self._running

    def _together(self) -> list[Row]:
        """Take the oldest request and what may share a batch with it, in order of arrival."""
        taken: list[Row] = []
        left: deque[Row] = deque()
        for row in self._waiting:
            if row.cancelled:
                continue
            if row.adapter is not None and not self.pool.knows(row.adapter):
                row.fail(no_such_model(row.adapter))
            elif not taken or (
                len(taken) < self._max_batch
                and self.pool.fits_together([each.adapter for each in (*taken, row)])
            ):
                taken.append(row)
            else:
                left.append(row)
        self._waiting = left
        return taken

    def _answer(self, rows: list[Row]) -> None:
        try:
            answer(self.pool, rows)
        except Exception as error:  # whatever it is, the next batch must be answered
            self._recover(rows, error)
        for row in rows:
            row.fail(_closed() if self._closing else _failed())

    def _recover(self, rows: list[Row], error: Exception) -> None:
        """Ask again one by one where a batch failed before its first token; else tell the failure.

        One request too large for the memory, or one adapter whose file is gone, then fails alone.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) == 1 or any(row.n_made for row in rows):
            if not isinstance(error, RouterError):
                _LOG.error("a batch of %d failed: %s", len(rows), type(error).__name__)
                _LOG.debug("the batch's failure", exc_info=error)
            for row in rows:
                row.fail(_told(error))
            return
        for row in rows:
            row.begin()
            self._answer([row])


def no_such_model(name: str) -> RequestError:
    """Return the refusal of a request for a model that is not here."""
    return RequestError(
        f"The model '{name:.80}' does not exist.", status=404, code="model_not_found", param="model"
    )


def overloaded(max_waiting: int) -> RequestError:
    """Return the refusal of a request that finds the queue full."""
    return RequestError(
        f"{max_waiting} requests wait already, as many as 'max_waiting' allows. Try again later.",
        status=503,
        code="overloaded",
        retry_after_s=_RETRY_S,
    )


def _closed() -> RequestError:
    return RequestError("The server is shutting down.", status=503, code="shutting_down")


def _failed() -> RequestError:
    return RequestError("The model failed on this request.", status=500, code="server_error")


def _told(error: Exception) -> RouterError:
    """Return what a client is told; folders of this machine are none of it."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RouterError):
        _LOG.error("an adapter cannot be had: %s", error)
        return RequestError(
            "The adapter cannot be had now; the server's log says why.",
            status=503,
            code="adapter_unavailable",
        )
    return _failed()
