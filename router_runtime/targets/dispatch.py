"""One request, several candidates: who is asked, for how long, and when it is over.

``plan`` is the rule, a generator without I/O: it yields whom to ask next and is sent what came of
it. ``adispatch`` drives it over HTTP, for the service and for programs (``calling``).

The next candidate is asked only while nothing has been passed on. What fails for every call to a
target (a bad key, no such model) and what may pass (a timeout, 429, 5xx, an answer without content)
goes on; a refusal of the request itself ends it, since others would refuse it too - but for a
prompt that is too long, which another may take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from router_runtime.errors import (
    AllTargetsFailedError,
    NoEligibleModelError,
    RequestError,
    RouterError,
    TargetError,
    TargetProtocolError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.targets.breaker import Breaker, Permit
from router_runtime.targets.forward import Forwarder
from router_runtime.targets.replies import Path, Refused
from router_runtime.targets.sse import text_bytes
from router_runtime.targets.streams import (
    CANCELLED,
    Failed,
    Stream,
    Tried,
    failed,
    start_stream,
)
from router_runtime.targets.wholes import Whole, read_whole
from router_runtime.types import Json

BUDGET: Final = "budget"
BREAKER_OPEN: Final = "breaker_open"
BUSY: Final = "busy"

_TOO_LONG: Final = frozenset({"context_length_exceeded", "string_above_max_length"})
_NO_SUCH_PATH: Final = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Rules:
    """How far a request goes.

    Parameters
    ----------
    max_attempts : int
        Calls, the first included.
    deadline_s : float
        Seconds for all calls, up to the first byte that is passed on.
    idle_s : float
        Longest silence within a stream.
    """

    max_attempts: int = 3
    deadline_s: float = 300.0
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Try:
    """Whom to ask, and how long to wait."""

    model_id: str
    timeout_s: float


class Outcome(StrEnum):
    """What came of a try: an answer, nothing (ask another), no call, or an end without answer."""

    ANSWERED = "answered"
    FAILED = "failed"
    SKIPPED = "skipped"
    FINAL = "final"


def plan(
    ranking: Sequence[str],
    *,
    rules: Rules,
    timeout_s: Mapping[str, float],
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Try, Outcome, None]:
    """Yield whom to ask, best first, each once; is sent what came of it.

    Parameters
    ----------
    ranking : sequence of str
        Candidates, best first. Those that ``timeout_s`` does not name cannot be called.
    rules : Rules
    timeout_s : mapping of model to float
        How long each may take.
    clock : callable
        Seconds, only going forward.
    """
    until = clock() + rules.deadline_s
    called = 0
    for model_id in dict.fromkeys(ranking):
        left_s = until - clock()
        if called >= rules.max_attempts or left_s <= 0:
            return
        if model_id not in timeout_s:
            continue
        outcome = yield Try(model_id, min(timeout_s[model_id], left_s))
        if outcome is Outcome.ANSWERED or outcome is Outcome.FINAL:
            return
        called += outcome is Outcome.FAILED


@dataclass(slots=True)
class Dispatched:
    """What came of a request.

    Parameters
    ----------
    answer : Whole or Stream or None
    refused : Refused or None
        The request itself was refused; body and status are for the client.
    tried : list of Tried
        In order. A stream is added when it ends.
    failure : RouterError or None
        The last failure where there is neither: of a call, or of a reservation.
    retry_after_s : float or None
        When a candidate that was passed over may be asked again.
    """

    tried: list[Tried]
    answer: Whole | Stream | None = None
    refused: Refused | None = None
    failure: RouterError | None = None
    retry_after_s: float | None = None

    def error(self) -> RouterError:
        """Return what to raise where there is no answer."""
        if self.refused is not None:
            return self.refused.error
        if isinstance(self.failure, TargetError) and not (
            self.failure.retryable or self.failure.whole_target
        ):
            return self.failure
        if not self.tried:
            return self.failure or NoEligibleModelError(
                "None of the chosen models has a target that can be called. Give it one in the "
                "config ('target')."
            )
        skipped = {tried.error for tried in self.tried}
        if skipped == {BUDGET} and isinstance(self.failure, RequestError):
            return self.failure
        told = ", ".join(f"{tried.model_id}: {tried.error}" for tried in self.tried)
        if skipped <= {BUDGET, BREAKER_OPEN, BUSY}:
            return RequestError(
                f"No candidate takes calls at present ({told}). Send the request again later.",
                status=503,
                code="no_target_available",
                retry_after_s=self.retry_after_s,
            )
        return AllTargetsFailedError(f"Every candidate failed ({told}).", attempts=self.tried)


async def adispatch(
    ranking: Sequence[str],
    forwarders: Mapping[str, Forwarder],
    path: Path,
    body: Mapping[str, Json],
    *,
    rules: Rules = Rules(),
    breakers: Mapping[str, Breaker] | None = None,
    before: Callable[[str], Awaitable[None]] | None = None,
    tried: list[Tried] | None = None,
    asks_usage: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Dispatched:
    """Ask candidates until one answers; of a stream, until it says something.

    Cancelling it breaks the call off that is under way.

    Parameters
    ----------
    ranking : sequence of str
        Candidates, best first.
    forwarders : mapping of model to Forwarder
    path : Path
    body : mapping
        As the client sent it.
    rules : Rules
    breakers : mapping of model to Breaker, optional
    before : callable, optional
        Awaited with a candidate's id before it is called; ``RequestError`` with status 402 passes
        it over.
    tried : list, optional
        Where tries are noted as they end; the caller still has it where this is cancelled.
    asks_usage : bool
        Ask streams for their usage.
    clock : callable
        Seconds, only going forward.
    """
    run = _Run(forwarders, path, body, rules, breakers or {}, before, asks_usage, clock)
    run.result = Dispatched([] if tried is None else tried)
    timeouts = {model: found.timeout_s for model, found in forwarders.items()}
    steps = plan(ranking, rules=rules, timeout_s=timeouts, clock=clock)
    try:
        step = next(steps)
        while True:
            step = steps.send(await run.take(step))
    except StopIteration:
        return run.finished()


@dataclass(slots=True)
class _Run:
    forwarders: Mapping[str, Forwarder]
    path: Path
    body: Mapping[str, Json]
    rules: Rules
    breakers: Mapping[str, Breaker]
    before: Callable[[str], Awaitable[None]] | None
    asks_usage: bool
    clock: Callable[[], float]
    result: Dispatched = field(init=False)
    too_long: Refused | None = None
    only_too_long: bool = True

    async def take(self, step: Try) -> Outcome:
        """Make one try."""
        model_id, breaker = step.model_id, self.breakers.get(step.model_id)
        forwarder = self.forwarders[model_id]
        if forwarder.busy:
            return self._skip(model_id, BUSY, 1.0)
        if breaker is not None and breaker.refuses:
            return self._skip(model_id, BREAKER_OPEN, breaker.wait_s)
        if self.before is not None:
            try:
                await self.before(model_id)
            except RequestError as error:
                if error.status != 402:
                    raise
                self.result.failure = error
                return self._skip(model_id, BUDGET, None)
        permit = None
        if breaker is not None and (permit := breaker.permit()) is None:
            return self._skip(model_id, BREAKER_OPEN, breaker.wait_s)
        return await self._call(forwarder, step, permit)

    def finished(self) -> Dispatched:
        """Return the result; a prompt that all found too long is the client's to shorten."""
        result = self.result
        if result.answer is None and result.refused is None and self.only_too_long:
            result.refused = self.too_long
        return result

    def _skip(self, model_id: str, error: str, wait_s: float | None) -> Outcome:
        self.result.tried.append(Tried(model_id, error))
        if wait_s is not None:
            sooner = self.result.retry_after_s
            self.result.retry_after_s = wait_s if sooner is None else min(sooner, wait_s)
        return Outcome.SKIPPED

    async def _call(self, forwarder: Forwarder, step: Try, permit: Permit | None) -> Outcome:
        started = self.clock()
        try:
            found = await self._ask(forwarder, step, permit, started)
        except BaseException as error:
            if permit is not None:
                permit.cancel()
            if isinstance(error, asyncio.CancelledError):
                self.result.tried.append(Tried(step.model_id, CANCELLED, self.clock() - started))
            raise
        if isinstance(found, Stream):
            self.result.answer = found
            return Outcome.ANSWERED
        seconds = self.clock() - started
        if isinstance(found, Whole):
            if permit is not None:
                permit.success()
            self.result.answer = found
            usage = found.body.get("usage")
            told = isinstance(usage, Mapping) or self.path == "embeddings"
            length = 0 if told else text_bytes(found.content)
            self.result.tried.append(Tried(step.model_id, None, seconds, seconds, usage, length))
            return Outcome.ANSWERED
        failure, code, usage = _told(found)
        self.result.tried.append(Tried(step.model_id, code, seconds, usage=usage))
        self.result.failure = failure
        hurried = isinstance(failure, TargetTimeoutError) and step.timeout_s < forwarder.timeout_s
        _report(permit, failure, neutral=hurried or self._lacks_path(failure))
        return self._after(found, failure)

    def _lacks_path(self, error: TargetError) -> bool:
        """Tell whether a chat server merely has no such path, which says nothing of its chats."""
        status = error.status if isinstance(error, TargetStatusError) else None
        return self.path != "chat/completions" and status in _NO_SUCH_PATH

    def _after(self, found: Failed | Refused, error: TargetError) -> Outcome:
        if isinstance(found, Refused) and not _TOO_LONG.isdisjoint(found.codes):
            self.too_long = found
            return Outcome.FAILED
        self.only_too_long = False
        if error.retryable or error.whole_target:
            return Outcome.FAILED
        if isinstance(found, Refused):
            self.result.refused = found
        return Outcome.FINAL

    async def _ask(
        self, forwarder: Forwarder, step: Try, permit: Permit | None, started: float
    ) -> Whole | Stream | Failed | Refused:
        prepared = forwarder.prepare(self.body, asks_usage=self.asks_usage)
        try:
            reply = await forwarder.open(
                self.path, prepared.data, timeout_s=step.timeout_s, idle_s=self.rules.idle_s
            )
        except TargetError as error:
            return failed(error)
        if isinstance(reply, Refused):
            return reply
        begun = False
        try:
            if not prepared.stream:
                return await read_whole(reply, self.path, forwarder.model_id)
            head = await start_stream(reply)
            begun = isinstance(head, bytes)
            if isinstance(head, Failed):
                return head
            return Stream(
                forwarder.model_id,
                reply,
                head,
                hides_usage=prepared.hides_usage,
                permit=permit,
                tried=self.result.tried,
                started=started,
                clock=self.clock,
            )
        except TargetError as error:
            return failed(error)
        finally:
            if not begun:
                reply.close()


def _told(found: Failed | Refused) -> tuple[TargetError, str, Json]:
    if isinstance(found, Failed):
        return found.error, found.code, found.usage
    return found.error, f"status_{found.status}", None


def _report(permit: Permit | None, error: TargetError, *, neutral: bool) -> None:
    """Tell a breaker how a call failed.

    ``neutral`` is what says nothing of the target: less time than configured, a path it never had.
    A key that is refused or a model that is not there is so for every call; an answer that breaks
    the protocol may have been that one's.
    """
    if permit is None:
        return
    if neutral:
        permit.cancel()
    elif error.retryable or error.whole_target:
        for_all = error.whole_target and not isinstance(error, TargetProtocolError)
        permit.failure(for_all=for_all, rest_s=error.retry_after_s or 0.0)
    else:
        permit.success()
