"""Walk samples and candidates, and get every eligible cell's outcome.

Every candidate walks the samples by itself, with a bounded number of calls under way, so a slow one
never holds another. Samples are read, and their calls made, beside the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any, Final, NamedTuple

from router_runtime.candidates import capabilities_of
from router_runtime.config import CandidateConfig
from router_runtime.eligibility import find_eligible
from router_runtime.targets.base import ChatCall
from router_training.labelling.asking import (
    BUDGET_REACHED,
    NOT_ASKED,
    TARGET_STOPPED,
    LiveAsker,
    StoredAsker,
    live_asker,
    models_of,
)
from router_training.labelling.calls import Asker, Outcome, Status
from router_training.labelling.config import AskConfig, LabelConfig
from router_training.labelling.progress import Unwatched, Watch
from router_training.labelling.samples import LabelSample, chat_messages
from router_training.labelling.spending import total

__all__ = [
    "BUDGET_REACHED",
    "NOT_ASKED",
    "TARGET_STOPPED",
    "CollectSummary",
    "LiveAsker",
    "StoredAsker",
    "Tally",
    "call_for",
    "cell_state",
    "collect",
    "ineligible_reason",
    "live_asker",
    "models_of",
]

_CHUNK: Final = 32  # samples made ready at a time
_CALLS_PER_SLOT: Final = 2  # under way for each call in flight, so that no slot waits for a sample
_OTHER: Final = "other reasons"
_MAX_REASONS: Final = 50


@dataclass(frozen=True)
class Tally:
    """How the cells of one candidate ended.

    Parameters
    ----------
    answered, refused, failed, pending, ineligible : int
    cost_usd : Decimal
        Of the answers whose cost is known, whenever they were asked for.
    unpriced : int
        Answers whose cost is not known.
    reasons : mapping
        How often each reason stands behind cells without an answer, as ``cell_state`` says it.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    pending: int = 0
    ineligible: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectSummary:
    """How all cells ended, by candidate."""

    tallies: Mapping[str, Tally]

    @property
    def pending(self) -> int:
        """Cells that were not asked, or not to the end; 0 when asking is done."""
        return sum(tally.pending for tally in self.tallies.values())

    @property
    def cost_usd(self) -> Decimal:
        """Exact US dollars of all answers whose cost is known."""
        return total([tally.cost_usd for tally in self.tallies.values()])


def call_for(sample: LabelSample, candidate: CandidateConfig, ask: AskConfig) -> ChatCall:
    """Return what a candidate is asked about a sample.

    All parameters are the call's own, the target's before those of ``ask``, so that an answer is
    kept under everything that it depends on.
    """
    own = {} if candidate.target is None else candidate.target.parameters
    return ChatCall(chat_messages(sample.sample, ask.system), {**ask.parameters, **own})


def ineligible_reason(sample: LabelSample, candidate: CandidateConfig) -> str | None:
    """Return why a candidate cannot be asked about a sample; None where it can."""
    can = capabilities_of([candidate], model_ids=[candidate.id], scored_modalities={})
    return find_eligible([sample.sample.query], can).reason(0, 0) or None


def cell_state(
    sample: LabelSample, candidate: CandidateConfig, outcome: Outcome | None
) -> str | None:
    """Return why a cell has no answer, as ``ineligible: ...`` or ``failed: ...``; None if it has.

    Parameters
    ----------
    sample : LabelSample
    candidate : CandidateConfig
    outcome : Outcome or None
        None where it was not looked for.
    """
    reason = ineligible_reason(sample, candidate)
    if reason is not None:
        return f"ineligible: {reason}"
    if outcome is None:
        return f"{Status.PENDING}: {NOT_ASKED}"
    if outcome.status is Status.ANSWERED:
        return None
    return f"{outcome.status}: {outcome.reason or 'unknown'}"


async def collect(
    samples: Callable[[], Iterable[LabelSample]],
    config: LabelConfig,
    asker: Asker,
    *,
    watch: Watch | None = None,
    n_samples: int | None = None,
) -> CollectSummary:
    """Get the outcome of every sample at every candidate that can serve it.

    When it is cancelled (the first Ctrl-C under ``asyncio.run``) nothing more is sent; calls in
    flight are left to the asker, whose closing lets them end.

    Parameters
    ----------
    samples : callable
        Returns a fresh iterator over all samples; called once for each candidate, and run in
        threads.
    config : LabelConfig
    asker : Asker
    watch : Watch, optional
        Told of totals and ineligible cells; a ``LiveAsker`` tells its own watch of outcomes.
    n_samples : int, optional
        How many there are, for the remaining time.

    Raises
    ------
    RouterError
        A sample cannot be read or an answer cannot be kept.
    """
    watch = watch or Unwatched()
    walks = [_Walk(candidate, config.ask, asker, watch) for candidate in config.candidates]
    for walk in walks:
        watch.started(walk.candidate.id, n_samples)
    await _together([walk.run(iter(samples())) for walk in walks])
    return CollectSummary({walk.candidate.id: walk.tally() for walk in walks})


class _Cell(NamedTuple):
    call: ChatCall | None
    reason: str | None


class _Walk:
    """One candidate's way through the samples."""

    def __init__(
        self, candidate: CandidateConfig, ask: AskConfig, asker: Asker, watch: Watch
    ) -> None:
        self.candidate = candidate
        self._ask = ask
        self._asker = asker
        self._watch = watch
        self._ready: deque[_Cell] = deque()
        self._turn = asyncio.Lock()
        self._ended = Counter[str]()
        self._reasons = Counter[str]()
        self._cost_usd = Decimal(0)
        self._unpriced = 0

    async def run(self, samples: Iterator[LabelSample]) -> None:
        target = self.candidate.target
        slots = 1 if target is None else target.max_concurrency
        await _together([self._work(samples) for _ in range(_CALLS_PER_SLOT * slots)])

    def tally(self) -> Tally:
        return Tally(
            **{status: self._ended[status] for status in Status},
            ineligible=self._ended["ineligible"],
            cost_usd=self._cost_usd,
            unpriced=self._unpriced,
            reasons=dict(self._reasons.most_common()),
        )

    async def _work(self, samples: Iterator[LabelSample]) -> None:
        while (cell := await self._next(samples)) is not None:
            if cell.call is None:
                self._ended["ineligible"] += 1
                self._because(f"ineligible: {cell.reason}")
                self._watch.ineligible(self.candidate.id)
            else:
                self._count(await self._asker.ask(self.candidate.id, cell.call))

    async def _next(self, samples: Iterator[LabelSample]) -> _Cell | None:
        async with self._turn:
            if not self._ready:
                self._ready.extend(await asyncio.to_thread(self._cells, samples))
            return self._ready.popleft() if self._ready else None

    def _cells(self, samples: Iterator[LabelSample]) -> list[_Cell]:
        return [self._cell(sample) for sample in islice(samples, _CHUNK)]

    def _cell(self, sample: LabelSample) -> _Cell:
        reason = ineligible_reason(sample, self.candidate)
        call = None if reason else call_for(sample, self.candidate, self._ask)
        return _Cell(call, reason)

    def _count(self, outcome: Outcome) -> None:
        self._ended[outcome.status] += 1
        if outcome.status is not Status.ANSWERED:
            self._because(f"{outcome.status}: {outcome.reason or 'unknown'}")
        elif outcome.cost_usd is None:
            self._unpriced += 1
        else:
            self._cost_usd = total([self._cost_usd, outcome.cost_usd])

    def _because(self, reason: str) -> None:
        known = reason in self._reasons or len(self._reasons) < _MAX_REASONS
        self._reasons[reason if known else _OTHER] += 1


async def _together(parts: list[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first error, or being cancelled, ends them all."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
