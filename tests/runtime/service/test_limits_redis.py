"""Limits in a real Redis, each test under a prefix of its own."""

from __future__ import annotations

import asyncio
import uuid
from decimal import Decimal

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ConfigError, RequestError
from router_runtime.service.limits_redis import RedisCounter
from router_runtime.service.values import Caller, KeyLimits

pytestmark = pytest.mark.anyio

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC
URL = "redis://127.0.0.1:6379/0"
PATIENCE_S = 60.0  # a busy machine is no failure of Redis


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server():
    client = redis.Redis.from_url(URL)
    try:
        client.ping()
    except redis.RedisError:
        pytest.skip(f"no Redis answers at {URL}")
    yield client
    for key in client.scan_iter("test-limits:*"):
        client.delete(key)


class Clock:
    def __init__(self, now_s: float = NOON) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def counters(server):
    """Make counters that share a prefix and a clock, as replicas do."""
    made, prefix, clock = [], f"test-limits:{uuid.uuid4().hex}:", Clock()

    def make(spent=lambda _key, _since: Decimal(0)) -> RedisCounter:
        made.append(
            RedisCounter(
                URL,
                spent=spent,
                prefix=prefix,
                clock=clock,
                redis_clock=clock,
                timeout_s=PATIENCE_S,
            )
        )
        return made[-1]

    make.clock = clock
    yield make
    for counter in made:
        await counter.close()


def caller(**limits) -> Caller:
    return Caller("k", limits=KeyLimits(**limits))


async def use(counter: RedisCounter, who: Caller, tokens: int = 0, usd: str = "0") -> None:
    lease = await counter.admit(who, tokens=tokens)
    await counter.reserve(lease, cost_usd=Decimal(usd))
    await settle(counter, lease, tokens, usd)


async def settle(counter: RedisCounter, lease, tokens: int = 0, usd: str = "0") -> None:
    told = counter.settlement(lease, tokens=tokens, cost_usd=Decimal(usd))
    if told is not None:
        await counter.apply(told)


async def test_replicas_share_requests_per_minute_and_retry_after_is_exact(counters):
    a, b, who = counters(), counters(), caller(requests_per_minute=2)
    await use(a, who)
    counters.clock.now_s += 10
    await use(b, who)
    with pytest.raises(RequestError, match="2 requests per minute") as refused:
        await a.admit(who, tokens=0)
    assert refused.value.status == 429
    assert refused.value.retry_after_s == 51
    counters.clock.now_s += 50.9
    with pytest.raises(RequestError):
        await b.admit(who, tokens=0)
    counters.clock.now_s += 0.2
    await use(b, who)
    with pytest.raises(RequestError):
        await a.admit(who, tokens=0)


async def test_replicas_share_tokens_as_used(counters):
    a, b, who = counters(), counters(), caller(tokens_per_minute=100)
    lease = await a.admit(who, tokens=90)
    with pytest.raises(RequestError, match="100 tokens per minute"):
        await b.admit(who, tokens=20)
    await settle(a, lease, tokens=30)
    await use(b, who, tokens=70)
    with pytest.raises(RequestError, match="fewer tokens") as refused:
        await b.admit(who, tokens=101)
    assert refused.value.retry_after_s is None


async def test_replicas_share_places_and_those_of_a_killed_one_come_back(counters):
    a, b, who = counters(), counters(), caller(max_concurrency=2, usd_per_day=Decimal(1))
    await a.reserve(await a.admit(who, tokens=0), cost_usd=Decimal("0.6"))  # then a is killed
    kept = await b.admit(who, tokens=0)
    with pytest.raises(RequestError, match="2 requests at a time"):
        await b.admit(who, tokens=0)
    counters.clock.now_s += 20
    await b.renew([kept])
    counters.clock.now_s += 20
    assert await b.remaining_usd(who) == 1
    await b.admit(who, tokens=0)
    with pytest.raises(RequestError):
        await b.admit(who, tokens=0)


async def test_renewing_does_not_bring_a_settled_request_back(counters):
    a, who = counters(), caller(max_concurrency=1)
    lease = await a.admit(who, tokens=0)
    await settle(a, lease)
    await a.renew([lease])
    await use(a, who)


async def test_replicas_share_budgets_and_the_store_is_asked_by_the_first(counters):
    asked = []

    def spent(key_id: str, since_s: float) -> Decimal:
        asked.append((key_id, NOON - since_s))
        return Decimal("0.75")

    a, b, who = counters(spent), counters(spent), caller(usd_per_day=Decimal(1))
    await use(a, who, usd="0.05")
    assert await b.remaining_usd(who) == Decimal("0.2")
    assert asked == [("k", 12 * 3600)]
    held = await a.admit(who, tokens=0)
    assert await a.reserve(held, cost_usd=Decimal("0.15")) == Decimal("0.05")
    with pytest.raises(RequestError, match=r"has 0\.05 USD left") as refused:
        await use(b, who, usd="0.050000001")
    assert (refused.value.status, refused.value.code) == (402, "budget_exceeded")
    await use(b, who, usd="0.05")
    assert await a.reserve(held, cost_usd=Decimal("0.1")) == Decimal("0.05")
    counters.clock.now_s += 12 * 3600
    assert await b.remaining_usd(who) == Decimal("0.25")  # a new day, and the store is asked again


async def test_a_lost_redis_is_filled_from_the_store(counters, server):
    ledger = [Decimal(0)]
    a, who = counters(lambda _key, _since: ledger[0]), caller(usd_per_month=Decimal(1))
    await use(a, who, usd="0.25")
    ledger[0] = Decimal("0.25")
    running = await a.admit(who, tokens=0)
    await a.reserve(running, cost_usd=Decimal("0.1"))
    for key in server.scan_iter(f"{a._prefix}*"):
        server.delete(key)
    await settle(a, running, usd="0.1")
    assert await a.remaining_usd(who) == Decimal("0.65")


async def test_a_store_that_is_down_stops_nobody_and_is_asked_again(counters):
    down = [True]

    def spent(_key_id: str, _since_s: float) -> Decimal:
        if down[0]:
            raise OSError("no database")
        return Decimal("0.9")

    a, who = counters(spent), caller(usd_per_day=Decimal(1))
    await use(a, who, usd="0.3")
    assert await a.remaining_usd(who) == Decimal("0.7")
    assert a.seed_failures == 1
    down[0] = False
    counters.clock.now_s += 6
    assert await a.remaining_usd(who) == Decimal("0.1")


async def test_a_key_without_limits_asks_redis_nothing():
    nowhere = RedisCounter("redis://127.0.0.1:1/0", spent=lambda _key, _since: Decimal(0))
    await use(nowhere, Caller("k"), tokens=5, usd="1")
    assert await nowhere.remaining_usd(Caller("k")) is None
    await nowhere.close()


async def test_a_url_that_is_none_is_refused_without_showing_it():
    with pytest.raises(ConfigError, match=r"service\.redis_url") as refused:
        RedisCounter("http://:hunter2@host", spent=lambda _key, _since: Decimal(0))
    assert "hunter2" not in str(refused.value)


amounts = st.decimals(min_value=0, max_value=1, places=6)
steps = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "at once"]), st.integers(0, 5), amounts),
    max_size=25,
)


@pytest.mark.usefixtures("server")
@settings(max_examples=40, deadline=None)
@given(steps)
def test_two_replicas_never_spend_more_than_the_budget(steps):
    """Calls cost at most what was reserved; then so do all of them together, to the nano-dollar."""

    async def run() -> None:
        prefix, clock = f"test-limits:{uuid.uuid4().hex}:", Clock()
        replicas = [
            RedisCounter(
                URL,
                spent=lambda _key, _since: Decimal("0.5"),
                prefix=prefix,
                clock=clock,
                redis_clock=clock,
                timeout_s=PATIENCE_S,
            )
            for _ in range(2)
        ]
        who = caller(usd_per_day=Decimal(2), usd_per_month=Decimal(3), max_concurrency=100)
        leases = [await replicas[n % 2].admit(who, tokens=0) for n in range(6)]
        spent = Decimal("0.5")

        async def reserve(number: int, amount: Decimal) -> None:
            try:
                await replicas[number % 2].reserve(leases[number], cost_usd=amount)
            except RequestError as error:
                assert error.code == "budget_exceeded"

        for what, number, amount in steps:
            if what == "at once":
                open_leases = [n for n in range(6) if not leases[n].settled]
                await asyncio.gather(*(reserve(n, amount) for n in open_leases))
            elif leases[number].settled:
                continue
            elif what == "reserve":
                await reserve(number, amount)
            else:
                cost = min(amount, leases[number].reserved_usd)
                await settle(replicas[number % 2], leases[number], usd=str(cost))
                leases[number].settled = True
                spent += cost
            held = sum((x.reserved_usd for x in leases if not x.settled), Decimal(0))
            assert spent + held <= 2
            assert await replicas[number % 2].remaining_usd(who) == 2 - spent - held
        for replica in replicas:
            await replica.close()

    asyncio.run(run())
