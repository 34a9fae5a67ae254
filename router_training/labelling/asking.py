"""Ask candidates and judges: from what is kept, or at their targets, with every answer kept.

``LiveAsker`` never asks what the store has an answer for, sends within the target's limits and the
budget, repeats what may pass, and returns an answer only when it is durable; the slot of a call is
free for the next one only then. ``StoredAsker`` asks nobody.

What a try cost that brought no answer is known to nobody. Where it may have been billed (a timeout,
an answer that cannot be read) the most that it may have cost is kept as an estimate, in a row of
its own, and counts against the budget.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from router_runtime.config import CandidateConfig
from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetStatusError,
)
from router_runtime.pricing import Price, price_from_mapping
from router_runtime.targets.base import ChatCall, Completion, Target
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Keeping, Outcome, Status, call_key
from router_training.labelling.config import AskConfig, JudgeModelConfig, LabelConfig
from router_training.labelling.pacing import Pacing, Turnstile, pacer_of
from router_training.labelling.progress import Unwatched, Watch
from router_training.labelling.spending import Budget, CallSize, Spending, size_of

BUDGET_REACHED: Final = "budget_reached"
TARGET_STOPPED: Final = "target_stopped"
INTERRUPTED: Final = "interrupted"
NOT_ASKED: Final = "not_asked"

FAILURES_IN_A_ROW: Final = 200
"""So many calls of a target that failed, and none between them that did not, stop it."""

_FIRST_WAIT_S: Final = 0.5
_GRACE_S: Final = 60.0
_REASON_CHARS: Final = 300
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Flight:
    """One call on its way."""

    key: str
    model_id: str
    call: ChatCall
    size: CallSize
    upper_usd: Decimal
    asked: bool = False  # its outcome is news
    tries: int = 0
    sent_up: bool = False  # its last try was sent while the target was known to respond
    busy: bool = False  # sent and not yet kept: whoever gives up now leaves it to end
    left: bool = False  # its caller gave up: no further try
    task: asyncio.Task[Outcome] = field(init=False)

    def outcome(self, status: Status, reason: str | None = None) -> Outcome:
        return Outcome(self.key, self.model_id, status, reason=reason, tries=self.tries)


class LiveAsker:
    """Asks targets, and keeps what they answer.

    An ``Asker`` and an async context manager: at its end calls in flight are let end (for a minute
    at most, or until it is cancelled once more) and the targets closed. Leave it before the store.

    Parameters
    ----------
    targets : mapping of model id to Target
    prices : mapping of model id to Price or None
        Where there is none, costs are unknown and reserve nothing.
    store : Keeping
        An ``AnswerStore`` that is open to write, or what stands for one.
    pacers : mapping of model id to Pacing
    budget : Spending
    ask : AskConfig
        ``attempts`` and ``max_wait_s`` count; for judges too.
    watch : Watch, optional
    seed : int
        Of the jitter of waits.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        prices: Mapping[str, Price | None],
        store: Keeping,
        *,
        pacers: Mapping[str, Pacing],
        budget: Spending,
        ask: AskConfig,
        watch: Watch | None = None,
        seed: int = 0,
    ) -> None:
        self._targets = targets
        self._prices = prices
        self._store = store
        self._pacers = pacers
        self._budget = budget
        self._ask = ask
        self._watch: Watch = watch or Unwatched()
        self._random = random.Random(seed)  # noqa: S311 - jitter
        self._flights: dict[str, _Flight] = {}
        self._failures: dict[str, int] = defaultdict(int)
        self._stopped: dict[str, str] = {}
        self._up: set[str] = set()  # targets that did not break their last connection
        self._closed = False
        self._turnstile = Turnstile()

    @property
    def stopped(self) -> Mapping[str, str]:
        """Why each target that is not asked any more is not."""
        return dict(self._stopped)

    def stop(self, model_id: str, why: str) -> None:
        """Ask a target nothing more in this run, as where it refuses every call alike."""
        if model_id not in self._stopped:
            self._stopped[model_id] = why = " ".join(why.split())[:_REASON_CHARS]
            self._watch.stopped(model_id, why)

    async def ask(self, model_id: str, call: ChatCall, *, repeat: int = 0) -> Outcome:
        """Return the kept outcome, or ask.

        Equal calls at the same time are one call. What is cancelled while it waits to be sent is
        not sent; what was sent goes on and is kept.

        Raises
        ------
        RouterError
            The answer cannot be kept; nothing more should be asked.
        """
        target = _known(self._targets, model_id)
        key = call_key(model_id, target.model, call, repeat=repeat)
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait([flight.task])
            if not flight.task.cancelled():
                return self._told(flight.task.result(), asked=False)
        size = size_of(call)
        upper = size.upper_cost_usd(self._prices.get(model_id))
        flight = _Flight(key, model_id, call, size, upper)
        return self._told(await self._flown(flight), asked=flight.asked)

    async def _flown(self, flight: _Flight) -> Outcome:
        """Run the call in a task of its own, which outlives its caller once it is sent."""
        flight.task = asyncio.create_task(self._run(flight))
        self._flights[flight.key] = flight
        flight.task.add_done_callback(lambda _: self._flights.pop(flight.key))
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            flight.left = True
            if not flight.busy:
                flight.task.cancel()
            raise

    async def _run(self, flight: _Flight) -> Outcome:
        async with self._store.claimed(flight.key) as kept:
            if kept is not None:
                return kept
            if (reason := self._barred(flight)) is not None:
                return flight.outcome(Status.PENDING, reason)
            flight.asked = True
            try:
                outcome = await self._try(flight)
            except TargetError as error:
                outcome = await self._retried(flight, error)
            self._count(outcome)
            return outcome

    async def _retried(self, flight: _Flight, error: TargetError) -> Outcome:
        """Go on after a first try that failed: most calls need none of this, and it is not free."""
        failures = [error]

        async def attempt() -> Outcome:
            if failures:
                raise failures.pop()
            return await self._try(flight)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._ask.attempts),
            wait=self._wait_s,
            retry=retry_if_exception(partial(self._again, flight)),
            reraise=True,
        )
        try:
            outcome: Outcome = await retrying(attempt)
        except TargetError as last:
            return await self._failed(flight, last)
        return outcome

    async def _try(self, flight: _Flight) -> Outcome:
        """Send the call once; an answer is kept before the slot is free."""
        pacer = self._pacers[flight.model_id]
        async with pacer.slot(flight.size.input_tokens):
            await self._turnstile.passed()
            if (reason := self._barred(flight)) is not None:
                return flight.outcome(Status.PENDING, reason)
            if not await self._budget.reserve(flight.upper_usd):
                return flight.outcome(Status.PENDING, BUDGET_REACHED)
            flight.busy = True
            flight.tries += 1
            flight.sent_up = flight.model_id in self._up
            booked = flight.upper_usd  # should the try end in no way that is foreseen
            try:
                completion = await self._targets[flight.model_id].acomplete(flight.call)
                outcome = self._answered(flight, completion)
                booked = flight.upper_usd if outcome.cost_usd is None else outcome.cost_usd
                self._up.add(flight.model_id)
            except TargetError as error:
                booked = self._possible_cost(flight, error)
                await self._unanswered(flight, error, booked)
                raise
            finally:
                await self._budget.settle(flight.upper_usd, booked)
            estimated = booked if outcome.cost_usd is None and booked else None
            await self._store.append(outcome, estimated_usd=estimated)
            if outcome.usage is not None:
                tokens = outcome.usage.input_tokens + outcome.usage.output_tokens
                await pacer.used(tokens - flight.size.input_tokens)
            return outcome

    def _answered(self, flight: _Flight, completion: Completion) -> Outcome:
        usage, price = completion.usage, self._prices.get(flight.model_id)
        if usage is not None and not usage.images:
            usage = replace(usage, images=flight.size.images)
        return Outcome(
            flight.key,
            flight.model_id,
            Status.ANSWERED,
            text=completion.text,
            finish_reason=completion.finish_reason,
            usage=usage,
            cost_usd=None if usage is None or price is None else price.cost(usage),
            seconds=completion.seconds,
            tries=flight.tries,
        )

    def _possible_cost(self, flight: _Flight, error: TargetError) -> Decimal:
        """Return what a try without an answer may have cost.

        An error status is free. A connection that broke may have carried an answer; but one to a
        server that has not responded since connections to it break was most likely never made.
        """
        if not isinstance(error, TargetConnectionError):
            self._up.add(flight.model_id)
            return Decimal(0) if isinstance(error, TargetStatusError) else flight.upper_usd
        self._up.discard(flight.model_id)
        return flight.upper_usd if flight.sent_up else Decimal(0)

    async def _unanswered(self, flight: _Flight, error: TargetError, booked: Decimal) -> None:
        """Keep what a try may have cost, and draw the conclusions for the target."""
        if booked:
            tried = flight.outcome(Status.PENDING, "tried")
            await self._store.append(tried, estimated_usd=booked)
        if error.whole_target:
            self.stop(flight.model_id, str(error))
        elif error.retryable and error.retry_after_s is not None:
            pause_s = min(error.retry_after_s, self._ask.max_wait_s)
            await self._pacers[flight.model_id].pause(pause_s)
        flight.busy = not self._again(flight, error)  # what is at its end still has to be kept

    def _again(self, flight: _Flight, error: BaseException) -> bool:
        """Whether another try may bring an answer."""
        if not isinstance(error, TargetError) or not error.retryable or error.whole_target:
            return False
        return not flight.left and (error.retry_after_s or 0.0) <= self._ask.max_wait_s

    def _wait_s(self, state: RetryCallState) -> float:
        """Twice as long after every try, less up to half of it at random; or as the server asks."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked_s = (error.retry_after_s or 0.0) if isinstance(error, TargetError) else 0.0
        backoff_s = _FIRST_WAIT_S * 2.0 ** (state.attempt_number - 1)
        jittered_s = min(backoff_s, self._ask.max_wait_s) * self._random.uniform(0.5, 1.0)
        return max(asked_s, jittered_s)

    async def _failed(self, flight: _Flight, error: TargetError) -> Outcome:
        reason = _short(error)
        if error.whole_target:
            return flight.outcome(Status.PENDING, f"{TARGET_STOPPED}: {reason}")
        if error.retryable and flight.left:
            return flight.outcome(Status.PENDING, INTERRUPTED)
        flight.busy = True
        outcome = flight.outcome(Status.FAILED if error.retryable else Status.REFUSED, reason)
        await self._store.append(outcome)
        return outcome

    def _count(self, outcome: Outcome) -> None:
        model_id = outcome.model_id
        if outcome.status is Status.FAILED:
            self._failures[model_id] += 1
            if self._failures[model_id] >= FAILURES_IN_A_ROW:
                self.stop(
                    model_id,
                    f"{FAILURES_IN_A_ROW} calls in a row failed, the last with: {outcome.reason}",
                )
        elif outcome.status is not Status.PENDING:
            self._failures[model_id] = 0

    def _barred(self, flight: _Flight) -> str | None:
        if self._closed or flight.left:
            return INTERRUPTED
        why = self._stopped.get(flight.model_id)
        return None if why is None else f"{TARGET_STOPPED}: {why}"

    def _told(self, outcome: Outcome, *, asked: bool) -> Outcome:
        self._watch.ended(outcome, asked=asked)
        return outcome

    async def __aenter__(self) -> LiveAsker:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, *, grace_s: float = _GRACE_S) -> None:
        """Send nothing more, let calls in flight end for ``grace_s`` seconds, close the targets."""
        self._closed = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.left = True
            if not flight.busy:
                flight.task.cancel()
        if in_flight := sum(flight.busy for flight in flights):
            self._watch.draining(in_flight)
        tasks = [flight.task for flight in flights]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=grace_s)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    _LOG.warning("a call in flight was lost: %s", result)
            for target in self._targets.values():
                await target.aclose()


class StoredAsker:
    """Looks outcomes up and asks nobody; what is not kept is pending.

    Parameters
    ----------
    store : AnswerStore
    models : mapping of model id to str
        The ``model`` that each one's server is asked for, see ``models_of``.
    """

    def __init__(self, store: AnswerStore, models: Mapping[str, str]) -> None:
        self._store = store
        self._models = models

    async def ask(self, model_id: str, call: ChatCall, *, repeat: int = 0) -> Outcome:
        key = call_key(model_id, _known(self._models, model_id), call, repeat=repeat)
        kept = self._store.find([key]).get(key)
        return kept or Outcome(key, model_id, Status.PENDING, reason=NOT_ASKED)


def models_of(config: LabelConfig) -> dict[str, str]:
    """Return the ``model`` that the server of each candidate and judge is asked for.

    Raises
    ------
    ConfigError
        A candidate and a judge have one id and are not the same target.
    """
    targets = {candidate.id: candidate.target for candidate in config.candidates}
    for judge in config.judge.models if config.judge else ():
        if targets.setdefault(judge.id, judge.target) != judge.target:
            raise ConfigError(
                f"'{judge.id}' is a candidate and a judge with two different targets; rename one."
            )
    return {name: target.model or name for name, target in targets.items() if target is not None}


def live_asker(
    config: LabelConfig,
    targets: Mapping[str, Target],
    store: AnswerStore,
    *,
    watch: Watch | None = None,
) -> LiveAsker:
    """Return the asker of a config: its prices, limits and budget, less what was spent before.

    Parameters
    ----------
    config : LabelConfig
    targets : mapping of model id to Target
        Of all candidates and judges that may be asked.
    store : AnswerStore
        Open to write.
    watch : Watch, optional
    """
    return LiveAsker(
        targets,
        prices_of(config),
        store,
        pacers=pacers_of(config),
        budget=budget_of(config, store),
        ask=config.ask,
        watch=watch,
        seed=config.seed,
    )


def prices_of(config: LabelConfig) -> dict[str, Price | None]:
    """Return what every candidate and judge that has a price costs."""
    return {
        entry.id: price_from_mapping(entry.price.model_dump(), owner=entry.id)
        for entry in _asked(config)
        if entry.price is not None
    }


def pacers_of(config: LabelConfig) -> dict[str, Pacing]:
    """Return the limits of every candidate and judge."""
    return {
        entry.id: pacer_of(entry.target) for entry in _asked(config) if entry.target is not None
    }


def budget_of(config: LabelConfig, store: AnswerStore) -> Budget:
    """Return what may still be spent, after all runs that the store knows of."""
    return Budget(config.max_cost_usd, store.spent() + store.estimated())


def _asked(config: LabelConfig) -> tuple[CandidateConfig | JudgeModelConfig, ...]:
    return (*config.candidates, *(config.judge.models if config.judge else ()))


def _known(named: Mapping[str, T], model_id: str) -> T:
    if model_id not in named:
        raise ConfigError(f"There is no target '{model_id}' (known: {', '.join(named)}).")
    return named[model_id]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:_REASON_CHARS]
