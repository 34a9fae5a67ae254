from __future__ import annotations

import asyncio
from collections import deque
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import RequestError
from router_runtime.service.limits import LocalLimiter
from router_runtime.service.values import ANONYMOUS, Caller, KeyLimits, Lease

pytestmark = pytest.mark.anyio

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self, now_s: float = NOON) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def nothing_spent(_key_id: str, _since_s: float) -> Decimal:
    return Decimal(0)


def limiter(clock: Clock | None = None, spent=nothing_spent) -> LocalLimiter:
    return LocalLimiter(spent=spent, clock=clock or Clock())


def caller(**limits) -> Caller:
    return Caller("k", limits=KeyLimits(**limits))


async def use(limits: LocalLimiter, who: Caller, tokens: int = 0, usd: str = "0") -> None:
    lease = await limits.admit(who, tokens=tokens)
    await limits.reserve(lease, cost_usd=Decimal(usd))
    await limits.settle(lease, tokens=tokens, cost_usd=Decimal(usd))


async def test_requests_beyond_the_minute_are_refused_until_the_first_is_a_minute_old():
    clock, who = Clock(), caller(requests_per_minute=2)
    limits = limiter(clock)
    await use(limits, who)
    clock.now_s += 10
    await use(limits, who)
    with pytest.raises(RequestError, match="2 requests per minute") as refused:
        await limits.admit(who, tokens=0)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    clock.now_s += refused.value.retry_after_s - 0.1
    with pytest.raises(RequestError):
        await limits.admit(who, tokens=0)
    clock.now_s += 0.1
    await use(limits, who)
    with pytest.raises(RequestError):
        await limits.admit(who, tokens=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(min_value=0, max_value=30), max_size=60), st.integers(1, 8))
def test_no_minute_ever_holds_more_than_the_limit_and_retry_after_is_never_in_vain(gaps, most):
    async def run() -> None:
        clock, who, admitted = Clock(), caller(requests_per_minute=most), deque()
        limits = limiter(clock)
        for gap in gaps:
            clock.now_s += gap
            try:
                await use(limits, who)
            except RequestError as error:
                clock.now_s += error.retry_after_s
                await use(limits, who)
            admitted.append(clock.now_s)
            while admitted[0] <= clock.now_s - 60:
                admitted.popleft()
            assert len(admitted) <= most

    asyncio.run(run())


async def test_tokens_are_counted_as_estimated_and_then_as_used():
    clock, who = Clock(), caller(tokens_per_minute=100)
    limits = limiter(clock)
    lease = await limits.admit(who, tokens=90)
    with pytest.raises(RequestError, match="100 tokens per minute") as refused:
        await limits.admit(who, tokens=20)
    assert 60 <= refused.value.retry_after_s <= 61
    await limits.settle(lease, tokens=30, cost_usd=Decimal(0))
    lease = await limits.admit(who, tokens=70)
    clock.now_s += 61
    await limits.settle(lease, tokens=0, cost_usd=Decimal(0))  # of a minute that is over
    await limits.admit(who, tokens=100)


async def test_a_request_larger_than_the_limit_is_not_told_to_wait():
    with pytest.raises(RequestError, match="fewer tokens") as refused:
        await limiter().admit(caller(tokens_per_minute=10), tokens=11)
    assert refused.value.retry_after_s is None


async def test_a_place_is_given_back_once_however_often_a_request_is_settled():
    limits, who = limiter(), caller(max_concurrency=1)
    lease = await limits.admit(who, tokens=0)
    with pytest.raises(RequestError, match="1 requests at a time") as refused:
        await limits.admit(who, tokens=0)
    assert refused.value.retry_after_s > 0
    for _ in range(3):
        await limits.settle(lease, tokens=0, cost_usd=Decimal(0))
    assert limits.status()["in_flight"] == 0
    await limits.admit(who, tokens=0)
    with pytest.raises(RequestError):
        await limits.admit(who, tokens=0)


async def test_keys_do_not_share_limits():
    limits = limiter()
    for name in ("a", "b"):
        who = Caller(name, limits=KeyLimits(requests_per_minute=1, usd_per_day=Decimal(1)))
        await use(limits, who, usd="1")
    assert await limits.remaining_usd(ANONYMOUS) is None


async def test_a_budget_goes_on_from_what_the_store_knows_and_is_asked_once():
    asked = []

    def spent(key_id: str, since_s: float) -> Decimal:
        asked.append((key_id, NOON - since_s))
        return Decimal("0.75")

    limits, who = limiter(spent=spent), caller(usd_per_day=Decimal(1))
    await asyncio.gather(*(limits.remaining_usd(who) for _ in range(5)))
    assert asked == [("k", 12 * 3600)]
    assert await limits.remaining_usd(who) == Decimal("0.25")
    with pytest.raises(RequestError) as refused:
        await use(limits, who, usd="0.26")
    assert refused.value.code == "budget_exceeded"
    await use(limits, who, usd="0.25")
    assert await limits.remaining_usd(who) == 0


async def test_a_store_that_is_down_stops_nobody_and_is_asked_again():
    clock, down = Clock(), [True]

    def spent(_key_id: str, _since_s: float) -> Decimal:
        if down[0]:
            raise OSError("no database")
        return Decimal("0.9")

    limits, who = limiter(clock, spent), caller(usd_per_month=Decimal(1))
    await use(limits, who, usd="0.3")
    assert await limits.remaining_usd(who) == Decimal("0.7")
    assert limits.seed_failures == 1
    down[0] = False
    clock.now_s += 6
    assert await limits.remaining_usd(who) == Decimal("0.1")


async def test_what_ends_after_midnight_belongs_to_the_day_before():
    clock, who = Clock(NOON + 43_199), caller(usd_per_day=Decimal(1))
    limits = limiter(clock)
    late = await limits.admit(who, tokens=0)
    await limits.reserve(late, cost_usd=Decimal(1))
    clock.now_s += 2
    assert await limits.remaining_usd(who) == 1
    await limits.settle(late, tokens=0, cost_usd=Decimal(1))
    assert await limits.remaining_usd(who) == 1


async def test_a_lease_of_another_limiter_is_refused():
    with pytest.raises(TypeError, match="not given out"):
        await limiter().settle(Lease(ANONYMOUS, 0), tokens=0, cost_usd=Decimal(0))


amounts = st.decimals(min_value=0, max_value=1, places=6)
steps = st.lists(st.tuples(st.sampled_from(["reserve", "settle"]), st.integers(0, 5), amounts))


@settings(max_examples=100, deadline=None)
@given(steps)
def test_spend_never_passes_the_budget_where_calls_cost_at_most_what_was_reserved(steps):
    async def run() -> None:
        limits, who = limiter(), caller(usd_per_day=Decimal(2), usd_per_month=Decimal(3))
        leases = {n: await limits.admit(who, tokens=0) for n in range(6)}
        spent = Decimal(0)
        for what, number, amount in steps:
            lease = leases[number]
            if lease.settled:
                continue
            if what == "reserve":
                before = lease.reserved_usd
                try:
                    await limits.reserve(lease, cost_usd=amount)
                except RequestError:
                    assert lease.reserved_usd == before
            else:
                cost = min(amount, lease.reserved_usd)
                await limits.settle(lease, tokens=0, cost_usd=cost)
                spent += cost
            held = sum((x.reserved_usd for x in leases.values() if not x.settled), Decimal(0))
            assert spent + held <= 2
            assert await limits.remaining_usd(who) == 2 - spent - held

    asyncio.run(run())
