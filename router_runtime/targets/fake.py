"""A target in this process: for tests and dry runs, without network, keys or costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router_runtime.errors import TargetError
from router_runtime.targets.base import ChatCall, Completion


class FakeTarget:
    """A ``Target`` that is answered by a function.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    answer : callable
        What a call is answered: a text (without usage, ended by ``stop``), a whole ``Completion``,
        or a ``TargetError``, which is raised.
    seconds : float
        How long each answer takes.
    model : str or None
        The ``model`` that a server would know; None: ``model_id``.

    Attributes
    ----------
    calls : int
        How often it was asked.
    in_flight, most_in_flight : int
        Calls being answered now, and the most there ever were.
    closed : bool
        Whether ``aclose`` was called.
    """

    def __init__(
        self,
        model_id: str,
        answer: Callable[[ChatCall], str | Completion | TargetError],
        *,
        seconds: float = 0.0,
        model: str | None = None,
    ) -> None:
        self.model_id = model_id
        self.model = model or model_id
        self.calls = self.in_flight = self.most_in_flight = 0
        self.closed = False
        self._answer = answer
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"FakeTarget({self.model_id!r}, calls={self.calls})"

    async def acomplete(self, call: ChatCall) -> Completion:
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self._seconds)
            answer = self._answer(call)
        finally:
            self.in_flight -= 1
        if isinstance(answer, TargetError):
            raise answer
        if isinstance(answer, Completion):
            return answer
        return Completion(
            self.model_id, answer, usage=None, finish_reason="stop", seconds=self._seconds
        )

    async def aclose(self) -> None:
        self.closed = True
