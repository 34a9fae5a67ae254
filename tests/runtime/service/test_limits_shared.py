"""A limiter whose Redis is killed and comes back: a real server, started by the tests."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
import uuid
from decimal import Decimal

import pytest
import redis

from router_runtime.errors import RequestError
from router_runtime.service.limits import LocalLimiter
from router_runtime.service.limits_redis import RedisCounter
from router_runtime.service.limits_shared import SharedLimiter, open_limiter
from router_runtime.service.values import Caller, KeyLimits, Lease
from router_runtime.service_config import ServiceConfig

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0  # a busy machine is no failure of Redis


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def nothing_spent(_key_id: str, _since_s: float) -> Decimal:
    return Decimal(0)


class Server:
    """A Redis of one's own, without a file: killed, it has forgotten everything."""

    def __init__(self, program: str, folder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - a program of the system, on loopback
            [*self._command, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL
        )
        client = redis.Redis.from_url(self.url)
        for _ in range(400):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.025)
        client.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path):
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    server = Server(program, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def limiters(server):
    made = []

    def make(spent=nothing_spent, url: str = server.url) -> SharedLimiter:
        prefix = f"test:{uuid.uuid4().hex}:"
        counter = RedisCounter(url, spent=spent, prefix=prefix, timeout_s=PATIENCE_S)
        made.append(SharedLimiter(counter, spent=spent, beat_s=3600))
        return made[-1]

    yield make
    for limiter in made:
        await limiter.close()


def caller(**limits) -> Caller:
    return Caller("k", limits=KeyLimits(**limits))


async def use(limiter: SharedLimiter, who: Caller, usd: str = "0") -> None:
    lease = await limiter.admit(who, tokens=0)
    await limiter.reserve(lease, cost_usd=Decimal(usd))
    await limiter.settle(lease, tokens=0, cost_usd=Decimal(usd))


async def test_limits_hold_with_redis(limiters):
    limiter, who = limiters(), caller(max_concurrency=1, usd_per_day=Decimal(1))
    lease = await limiter.admit(who, tokens=0)
    await limiter.reserve(lease, cost_usd=Decimal("0.4"))
    assert await limiter.remaining_usd(who) == Decimal("0.6")
    with pytest.raises(RequestError, match="at a time"):
        await limiter.admit(who, tokens=0)
    for _ in range(2):
        await limiter.settle(lease, tokens=0, cost_usd=Decimal("0.1"))
    await use(limiter, who, usd="0.9")
    with pytest.raises(RequestError, match="budget"):
        await use(limiter, who, usd="0.01")
    assert limiter.status()["degraded"] is False


async def test_a_redis_that_dies_stops_nobody_and_limits_hold_within_the_process(limiters, server):
    limiter, who = limiters(), caller(requests_per_minute=2, usd_per_day=Decimal(1))
    server.kill()
    await use(limiter, who, usd="0.5")
    assert limiter.degraded
    with pytest.raises(RequestError, match="budget"):
        await use(limiter, who, usd="0.6")
    with pytest.raises(RequestError, match="2 requests per minute"):
        await limiter.admit(who, tokens=0)
    status = limiter.status()
    assert (status["degraded"], status["outages"], status["counted_alone"]) == (True, 1, 2)


async def test_a_request_that_redis_admitted_goes_on_without_it(limiters, server):
    limiter, who = limiters(), caller(max_concurrency=1, usd_per_day=Decimal(1))
    lease = await limiter.admit(who, tokens=0)
    await limiter.reserve(lease, cost_usd=Decimal("0.3"))
    server.kill()
    await limiter.reserve(lease, cost_usd=Decimal("0.8"))
    assert await limiter.remaining_usd(who) == Decimal("0.2")
    with pytest.raises(RequestError, match="at a time"):
        await limiter.admit(who, tokens=0)
    await limiter.settle(lease, tokens=0, cost_usd=Decimal("0.7"))
    assert await limiter.remaining_usd(who) == Decimal("0.3")
    await limiter.admit(who, tokens=0)


async def test_what_was_spent_while_redis_restarted_counts_afterwards(limiters, server):
    ledger = [Decimal(0)]
    limiter = limiters(lambda _key, _since: ledger[0])
    who = caller(usd_per_day=Decimal(1))
    await use(limiter, who, usd="0.2")
    ledger[0] = Decimal("0.2")
    server.kill()
    await use(limiter, who, usd="0.3")
    ledger[0] = Decimal("0.5")
    server.start()
    await limiter.beat()
    assert not limiter.degraded
    assert await limiter.remaining_usd(who) == Decimal("0.5")


async def test_what_was_spent_while_redis_was_only_out_of_reach_is_told_to_it(limiters):
    limiter, who = limiters(), caller(usd_per_day=Decimal(1))
    await use(limiter, who, usd="0.2")
    early = await limiter.admit(who, tokens=0)
    await limiter.reserve(early, cost_usd=Decimal("0.1"))
    limiter._lose(ConnectionError())  # as when the network breaks; Redis itself lives on
    await limiter.settle(early, tokens=0, cost_usd=Decimal("0.1"))
    late = await limiter.admit(who, tokens=0)
    await limiter.reserve(late, cost_usd=Decimal("0.3"))
    await limiter.beat()
    await limiter.settle(late, tokens=0, cost_usd=Decimal("0.3"))
    assert limiter.status()["untold"] == 0
    assert await limiter.remaining_usd(who) == Decimal("0.4")


async def test_leases_of_requests_that_run_are_renewed(server):
    now_s = [1000.0]
    counter = RedisCounter(
        server.url,
        spent=nothing_spent,
        lease_s=30,
        timeout_s=PATIENCE_S,
        redis_clock=lambda: now_s[0],
    )
    limiter = SharedLimiter(counter, spent=nothing_spent, monotonic=lambda: now_s[0])
    who = caller(max_concurrency=1)
    lease = await limiter.admit(who, tokens=0)
    for _ in range(5):
        now_s[0] += 11
        await limiter.beat()
        with pytest.raises(RequestError, match="at a time"):
            await limiter.admit(who, tokens=0)
    await limiter.settle(lease, tokens=0, cost_usd=Decimal(0))
    await limiter.beat()
    await limiter.admit(who, tokens=0)
    await limiter.close()


async def test_a_started_limiter_looks_after_redis_by_itself(server):
    counter = RedisCounter(server.url, spent=nothing_spent)
    limiter = SharedLimiter(counter, spent=nothing_spent, beat_s=0.01)
    server.kill()
    await limiter.start()
    assert limiter.degraded
    server.start()
    for _ in range(1000):
        if not limiter.degraded:
            break
        await asyncio.sleep(0.01)
    assert not limiter.degraded
    await limiter.close()


async def test_a_redis_that_is_away_at_start_is_found_later(limiters, server):
    server.kill()
    limiter = limiters()
    await limiter.start()
    assert limiter.degraded
    await limiter.beat()
    assert limiter.degraded
    server.start()
    await limiter.beat()
    assert not limiter.degraded


async def test_a_cancelled_request_is_settled_even_so(limiters):
    limiter, who = limiters(), caller(usd_per_day=Decimal(1))
    lease = await limiter.admit(who, tokens=0)
    await limiter.reserve(lease, cost_usd=Decimal(1))
    task = asyncio.create_task(limiter.settle(lease, tokens=0, cost_usd=Decimal("0.25")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*limiter._telling)
    limiter._left.clear()
    assert await limiter.remaining_usd(who) == Decimal("0.75")


async def test_without_redis_the_process_counts():
    limiter = open_limiter(ServiceConfig(), spent=nothing_spent)
    assert isinstance(limiter, LocalLimiter)
    limiter = open_limiter(ServiceConfig(redis_url="redis://127.0.0.1:1"), spent=nothing_spent)
    assert isinstance(limiter, SharedLimiter)
    with pytest.raises(TypeError, match="not given out"):
        await limiter.settle(Lease(Caller("k"), 0), tokens=0, cost_usd=Decimal(0))
    await limiter.close()
