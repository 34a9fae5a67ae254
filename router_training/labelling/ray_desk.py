"""What there is one of while a Ray cluster asks: answers, limits, budget, and who watches.

It is where the run was started, on the disk and the screen of that machine. Workers ask by message
(``ray_mail``); what a worker holds (places in flight, claims on calls, reservations) is given back
when it ends, and when another takes over its part because it was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from router_runtime.errors import RouterError
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.ask_local import Stage
from router_training.labelling.asking import budget_of, pacers_of
from router_training.labelling.calls import Outcome
from router_training.labelling.config import LabelConfig
from router_training.labelling.progress import Watch

Notify: TypeAlias = Callable[[str, Any], None]


@dataclass
class _Held:
    """What a worker has and others wait for."""

    part: int
    slots: dict[int, AbstractAsyncContextManager[None]] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)
    reserved: list[Decimal] = field(default_factory=list)
    waiting: set[asyncio.Task[Any]] = field(default_factory=set)


class Desk:
    """Serves the workers of one run.

    Parameters
    ----------
    config : LabelConfig
    store : AnswerStore
        Open to write.
    files : tuple of Path
        The shards of the samples.
    watches : mapping of stage to Watch
    ray : module
    """

    def __init__(
        self,
        config: LabelConfig,
        store: AnswerStore,
        *,
        files: tuple[Path, ...],
        watches: Mapping[Stage, Watch],
        ray: ModuleType,
    ) -> None:
        self._store = store
        self._files = files
        self._watches = watches
        self._ray = ray
        self._pacers = pacers_of(config)
        self._budget = budget_of(config, store)
        self._held: dict[str, _Held] = {}
        self._claimed: dict[str, asyncio.Future[None]] = {}
        self._interrupted = False
        self.stopped: dict[str, str] = {}
        self.notify: Notify = lambda _worker, _notice: None

    @property
    def in_flight(self) -> int:
        """Calls that are on their way."""
        return sum(len(held.slots) for held in self._held.values())

    def interrupt(self) -> None:
        """Have all workers stop asking, let their calls in flight end, and end."""
        self._interrupted = True
        self._tell_all(("interrupt",))

    async def handle(self, worker: str, number: int | None, name: str, values: Any) -> Any:
        """Do what a worker asks for; see ``ray_mail.Server``."""
        if name == "hello":
            return await self._hello(worker, *values)
        held = self._held.get(worker)
        if held is None:
            raise RouterError("Another worker has taken over the part of this one.")
        waiting = asyncio.current_task()
        if waiting is not None:
            held.waiting.add(waiting)
        try:
            if name == "slot":
                return await self._slot(held, number, *values)
            action: Callable[..., Awaitable[Any]] = getattr(self, f"_on_{name}")
            return await action(held, *values)
        finally:
            if waiting is not None:
                held.waiting.discard(waiting)

    async def _hello(self, worker: str, part: int) -> list[tuple[str, ...]]:
        """Take a worker in; return the notices that it has missed."""
        for other in [name for name, held in self._held.items() if held.part == part]:
            await self._give_back(self._held.pop(other), lost=True)
        self._held[worker] = _Held(part)
        missed: list[tuple[str, ...]] = [("stop", *stopped) for stopped in self.stopped.items()]
        return [*missed, ("interrupt",)] if self._interrupted else missed

    async def _on_bye(self, held: _Held) -> None:
        for worker in [name for name, entry in self._held.items() if entry is held]:
            del self._held[worker]
        await self._give_back(held, lost=False)

    async def _give_back(self, held: _Held, *, lost: bool) -> None:
        """Release what a worker holds; what a lost one had reserved may have been spent."""
        for task in held.waiting - {asyncio.current_task()}:
            task.cancel()
        for slot in held.slots.values():
            await slot.__aexit__(None, None, None)
        for key in held.claims:
            self._claimed.pop(key).set_result(None)
        for amount in held.reserved:
            await self._budget.settle(amount, amount if lost else Decimal(0))

    async def _on_find(self, _held: _Held, key: str) -> Outcome | None:
        return self._store.find([key]).get(key)

    async def _on_claim(self, held: _Held, key: str) -> Outcome | None:
        """Return the kept outcome; None once nobody else asks the same, until ``unclaim``."""
        while (other := self._claimed.get(key)) is not None:
            await asyncio.shield(other)
        kept = self._store.settled(key)
        if kept is None:
            self._claimed[key] = asyncio.get_running_loop().create_future()
            held.claims.add(key)
        return kept

    async def _on_unclaim(self, held: _Held, key: str) -> None:
        held.claims.discard(key)
        self._claimed.pop(key).set_result(None)

    async def _on_append(
        self, _held: _Held, outcome: Outcome, estimated_usd: Decimal | None
    ) -> None:
        await self._store.append(outcome, estimated_usd=estimated_usd)

    async def _slot(
        self, held: _Held, number: int | None, model_id: str, tokens: float
    ) -> int | None:
        slot = self._pacers[model_id].slot(tokens)
        await slot.__aenter__()
        if number is not None:
            held.slots[number] = slot
        return number

    async def _on_unslot(self, held: _Held, number: int) -> None:
        await held.slots.pop(number).__aexit__(None, None, None)

    async def _on_used(self, _held: _Held, model_id: str, extra_tokens: float) -> None:
        await self._pacers[model_id].used(extra_tokens)

    async def _on_pause(self, _held: _Held, model_id: str, seconds: float) -> None:
        await self._pacers[model_id].pause(seconds)

    async def _on_reserve(self, held: _Held, amount_usd: Decimal) -> bool:
        granted = await self._budget.reserve(amount_usd)
        if granted:
            held.reserved.append(amount_usd)
        return granted

    async def _on_settle(self, held: _Held, amount_usd: Decimal, cost_usd: Decimal) -> None:
        held.reserved.remove(amount_usd)
        await self._budget.settle(amount_usd, cost_usd)

    async def _on_started(
        self, _held: _Held, stage: Stage, model_id: str, total: int | None
    ) -> None:
        self._watches[stage].started(model_id, total)

    async def _on_ineligible(self, _held: _Held, stage: Stage, model_id: str) -> None:
        self._watches[stage].ineligible(model_id)

    async def _on_ended(self, _held: _Held, stage: Stage, outcome: Outcome, asked: bool) -> None:
        self._watches[stage].ended(outcome, asked=asked)

    async def _on_stopped(self, _held: _Held, stage: Stage, model_id: str, why: str) -> None:
        """Stop the target everywhere; it is said once."""
        if model_id not in self.stopped:
            self.stopped[model_id] = why
            self._watches[stage].stopped(model_id, why)
            self._tell_all(("stop", model_id, why))

    async def _on_shard(self, _held: _Held, number: int) -> Any:
        """Return a reference to a shard's bytes."""
        content = await asyncio.to_thread(self._files[number].read_bytes)
        return self._ray.put(np.frombuffer(content, dtype=np.uint8))

    def _tell_all(self, notice: tuple[str, ...]) -> None:
        for worker in self._held:
            self.notify(worker, notice)
