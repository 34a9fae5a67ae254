"""What travels between the parts of the service: frozen values and Protocols, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, Protocol, TypeAlias

from router_runtime.pricing import Usage
from router_runtime.types import Json, RoutingDecision

Endpoint: TypeAlias = Literal["chat", "completions", "embeddings", "route", "sfc_router"]


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use; None: no bound.

    Parameters
    ----------
    requests_per_minute, tokens_per_minute, max_concurrency : int or None
    usd_per_day, usd_per_month : Decimal or None
        By UTC calendar day and month.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key that was checked, or anybody on loopback where there are no keys.

    Parameters
    ----------
    key_id : str
        Public id of the key; ``anonymous`` without keys.
    name : str
        What the key's owner called it.
    allowed_models : frozenset of str or None
        Candidates that it may use; None: all.
    limits : KeyLimits
    """

    key_id: str
    name: str = ""
    allowed_models: frozenset[str] | None = None
    limits: KeyLimits = KeyLimits()

    def may_use(self, model_id: str) -> bool:
        """Whether the key may use a candidate."""
        return self.allowed_models is None or model_id in self.allowed_models


ANONYMOUS = Caller("anonymous")


@dataclass(frozen=True, slots=True)
class Controls:
    """A request's ``router`` object, checked and clamped.

    Parameters
    ----------
    policy : str or None
        Name of a policy; ``auto:NAME`` says the same.
    thresholds : mapping or None
        Least probability by model, instead of the policy's; in the configured bounds.
    max_cost_usd : Decimal or None
        Candidates that are expected to cost more are left out, and all attempts together may not
        cost more.
    min_probability : float or None
        Candidates below it are left out.
    allow, deny : frozenset of str
        Candidates; an empty ``allow`` allows all.
    dry_run : bool
        Decide, explain and call nobody.
    """

    policy: str | None = None
    thresholds: Mapping[str, float] | None = None
    max_cost_usd: Decimal | None = None
    min_probability: float | None = None
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a decision: its name, a machine-readable reason, and what it found."""

    name: str
    reason: str
    detail: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routed:
    """What was decided for one request, whoever decided it.

    Parameters
    ----------
    ranking : tuple of str
        Candidates to try, best first; never empty.
    reason : str
        Why the first one: a ``types.Reason``, or ``sticky``, ``router_failure``, ``requested``
        (a concrete model was named).
    steps : tuple of Step
        normalise, filter, features, predict, policy, sticky, choose - as far as they were taken.
    policy : str or None
        None for a concrete model.
    decision : RoutingDecision or None
        The router's own; None where it failed or was not asked.
    expected_cost : mapping
        USD per call by candidate; None where unknown.
    thresholds : mapping
        Least probability by candidate that was applied; empty where the policy has none.
    features_sha256 : str
        Hex digest of the features, empty where there are none.
    artifact_id : str
    decide_s, encode_s : float
        Seconds for all of it, and for encoding and predicting (waiting for a batch included).
    session : str
        Digest of the conversation's identity; empty without one.
    cached : bool
        The prediction was made before.
    """

    ranking: tuple[str, ...]
    reason: str
    steps: tuple[Step, ...] = ()
    policy: str | None = None
    decision: RoutingDecision | None = None
    expected_cost: Mapping[str, float | None] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    features_sha256: str = ""
    artifact_id: str = ""
    decide_s: float = 0.0
    encode_s: float = 0.0
    session: str = ""
    cached: bool = False

    @property
    def model_id(self) -> str:
        """The first choice."""
        return self.ranking[0]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to a candidate, however it ended.

    Parameters
    ----------
    model_id : str
    error : str or None
        None: it answered. Else ``timeout``, ``connection``, ``status_503``, ``protocol``,
        ``empty``,
        ``cut`` (the stream broke), ``cancelled`` (the client left), ``budget``, ``breaker_open``.
    seconds, first_byte_s : float
        Until the last byte, and until the first of the body.
    usage : Usage or None
        Reported or estimated; None where the call cannot have cost anything.
    estimated : bool
        ``usage`` was not reported.
    cost_usd : Decimal or None
        None where the candidate has no price.
    """

    model_id: str
    error: str | None
    seconds: float
    first_byte_s: float = 0.0
    usage: Usage | None = None
    estimated: bool = False
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class RouteEvent:
    """One request, told once when it has ended, to the store and to instrumentation. No text.

    Parameters
    ----------
    decision_id : str
        Unique; in ``x-router-decision-id``.
    at : float
        Seconds since the epoch when the request came.
    key_id : str
    endpoint : Endpoint
    requested : str
        ``auto``, ``auto:NAME`` or a configured model.
    routed : Routed or None
        None where the request was refused before a decision.
    attempts : tuple of Attempt
    status : int
        HTTP status that the client got; 499 where it left.
    stream : bool
    error : str or None
        Code of the error envelope, ``cut`` for a stream that broke after its first byte.
    total_s : float
        From the first byte of the request to the last of the answer.
    config_sha256 : str
    messages : tuple of mapping or None
        Only where the store keeps content.
    """

    decision_id: str
    at: float
    key_id: str
    endpoint: Endpoint
    requested: str
    routed: Routed | None
    attempts: tuple[Attempt, ...]
    status: int
    stream: bool
    error: str | None
    total_s: float
    config_sha256: str = ""
    messages: tuple[Mapping[str, Json], ...] | None = field(default=None, repr=False)

    @property
    def served(self) -> Attempt | None:
        """The attempt whose answer the client got, if any."""
        answered = [a for a in self.attempts if a.error is None or a.error == "cut"]
        return answered[-1] if answered else None

    @property
    def cost_usd(self) -> Decimal:
        """What all attempts cost together, as far as prices are known."""
        return sum((a.cost_usd for a in self.attempts if a.cost_usd is not None), Decimal(0))

    @property
    def upstream_s(self) -> float:
        """Seconds in which candidates were asked."""
        return sum(attempt.seconds for attempt in self.attempts)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a caller says of an answer.

    Parameters
    ----------
    decision_id : str
    score : float
        In [0, 1].
    comment : str or None
    """

    decision_id: str
    score: float
    comment: str | None = field(default=None, repr=False)


class Sink(Protocol):
    """Is told of every request when it has ended; never raises, never waits."""

    def record(self, event: RouteEvent) -> None: ...


class Limiter(Protocol):
    """Counts what keys use; in this process, or shared through Redis.

    One request is ``admit``, then ``reserve`` before each attempt, then ``settle`` exactly once,
    whatever happened. ``settle`` never raises.
    """

    async def admit(self, caller: Caller, *, tokens: int) -> Lease:
        """Count a request that is estimated to take ``tokens``.

        Raises
        ------
        RequestError
            429 ``rate_limit_exceeded`` with ``retry_after_s``.
        """
        ...

    async def reserve(self, lease: Lease, *, cost_usd: Decimal) -> None:
        """Set what the request may cost, in the place of what was reserved before.

        Raises
        ------
        RequestError
            402 ``budget_exceeded``; then what was reserved before still is.
        """
        ...

    async def settle(self, lease: Lease, *, tokens: int, cost_usd: Decimal) -> None:
        """Replace estimates by what was used and give the request's place back."""
        ...

    async def remaining_usd(self, caller: Caller) -> Decimal | None:
        """Return what is left of the key's tightest budget; None without one."""
        ...


@dataclass(slots=True)
class Lease:
    """A request that was admitted; mutable, owned by its ``Limiter``.

    Parameters
    ----------
    caller : Caller
    tokens : int
        As estimated at admission.
    reserved_usd : Decimal
    token : str
        Names the request at the limiter.
    settled : bool
    """

    caller: Caller
    tokens: int
    reserved_usd: Decimal = Decimal(0)
    token: str = ""
    settled: bool = False
