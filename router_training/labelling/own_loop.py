"""An event loop of one's own, also where one runs in this thread already, as in a notebook."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class OwnLoop:
    """Runs coroutines one after the other while the block lasts, like ``asyncio.Runner``.

    Where an event loop runs in this thread they run in another, and this one waits. Ctrl-C cancels
    what runs, which may then end what it has begun, as under ``asyncio.run``.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._elsewhere = ThreadPoolExecutor(1) if _is_taken() else None
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._elsewhere is None:
            self._runner.close()
            return
        self._elsewhere.submit(self._runner.close).result()
        self._elsewhere.shutdown()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C, after ``work`` has ended.
        """
        if self._elsewhere is None:
            return self._runner.run(work)
        running = self._elsewhere.submit(self._runner.run, self._named(work))
        try:
            return running.result()
        except KeyboardInterrupt:
            if self._task is not None:
                self._runner.get_loop().call_soon_threadsafe(self._task.cancel)
            running.exception()
            raise

    async def _named(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        return await work


def _is_taken() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
