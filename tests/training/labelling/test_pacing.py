from __future__ import annotations

import asyncio
from bisect import bisect_left

import pytest

from router_runtime.target_config import CompatibleTargetConfig
from router_training.labelling.pacing import Pacer, Turnstile, pacer_of


class SkippingLoop(asyncio.SelectorEventLoop):
    """Skips waits: an hour of timers passes at once."""

    skipped_s = 0.0

    def time(self):
        return super().time() + self.skipped_s

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.skipped_s += max(0.0, self._scheduled[0].when() - self.time())
        super()._run_once()


def run(main):
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(main)


async def sent_at(pacer, sizes, *, seconds=0.0):
    """Return when each of some requests was sent, in seconds since the first."""
    loop, times = asyncio.get_running_loop(), []

    async def one(size):
        async with pacer.slot(size):
            times.append(loop.time())
            await asyncio.sleep(seconds)

    await asyncio.gather(*(one(size) for size in sizes))
    return [at - times[0] for at in times]


def most_in_a_minute(times, weights=None):
    weights = weights or [1] * len(times)
    ends = [bisect_left(times, start + 59.9) for start in times]
    return max(sum(weights[i:end]) for i, end in enumerate(ends))


@pytest.mark.parametrize("limit", [3, 60, 450, 2000])
def test_requests_stay_within_the_limit_in_every_minute_and_near_it(limit):
    pacer = Pacer(limit, None, max_concurrency=10_000)
    times = run(sent_at(pacer, [0] * 3 * limit))
    assert most_in_a_minute(times) <= limit
    assert times[-1] <= 60 * 3 * 1.02


def test_tokens_stay_within_the_limit_in_every_minute_and_near_it():
    sizes = [50, 400, 10, 140] * 100  # 60,000
    pacer = Pacer(None, 10_000, max_concurrency=1000)
    times = run(sent_at(pacer, sizes))
    assert most_in_a_minute(times, sizes) <= 10_000
    assert times[-1] <= 60 * 6 * 1.15


def test_a_call_larger_than_what_flows_at_once_is_sent_late_and_not_refused():
    times = run(sent_at(Pacer(None, 1000, max_concurrency=9), [10, 3000, 10]))
    assert times[1] == pytest.approx((3010 - 100) / 15, rel=0.01)  # 100 at once, then 15 a second


def test_tokens_beyond_the_estimate_delay_later_calls_and_unused_ones_speed_them_up():
    async def main(extra):
        pacer = Pacer(None, 1000, max_concurrency=9)
        async with pacer.slot(100):
            await pacer.used(extra)
        began = asyncio.get_running_loop().time()
        async with pacer.slot(100):
            return asyncio.get_running_loop().time() - began

    assert run(main(0)) == pytest.approx(100 / 15, rel=0.01)
    assert run(main(50)) == pytest.approx(150 / 15, rel=0.01)
    assert run(main(-100)) == pytest.approx(0, abs=0.01)


def test_no_more_than_max_concurrency_are_in_flight():
    times = run(sent_at(Pacer(None, None, max_concurrency=2), [0] * 5, seconds=10))
    assert times == pytest.approx([0, 0, 10, 10, 20], abs=0.01)


def test_a_pause_holds_everything_and_the_longest_counts():
    async def main():
        pacer = Pacer(None, None, max_concurrency=5)
        began = asyncio.get_running_loop().time()
        await pacer.pause(30)
        await pacer.pause(5)
        async with pacer.slot(0):
            return asyncio.get_running_loop().time() - began

    assert run(main()) == pytest.approx(30, abs=0.01)


def test_a_pause_also_holds_what_was_waiting_for_its_turn():
    async def main():
        pacer = Pacer(1, None, max_concurrency=5)
        began = asyncio.get_running_loop().time()
        sending = asyncio.create_task(sent_at(pacer, [0, 0]))
        await asyncio.sleep(1)
        await pacer.pause(100)
        await sending
        return asyncio.get_running_loop().time() - began

    assert run(main()) == pytest.approx(101, abs=0.01)


def test_a_cancelled_wait_gives_its_slot_back():
    async def main():
        pacer = Pacer(None, None, max_concurrency=1)
        await pacer.pause(10)
        waiting = asyncio.create_task(sent_at(pacer, [0]))
        await asyncio.sleep(1)
        waiting.cancel()
        return await sent_at(pacer, [0])

    assert run(main()) == [0]


def test_a_target_s_configured_limits_are_its_pacer_s():
    target = CompatibleTargetConfig(
        kind="compatible", base_url="http://h/v1", max_concurrency=1, requests_per_minute=60
    )
    times = run(sent_at(pacer_of(target), [0] * 3, seconds=5))
    assert times == pytest.approx([0, 5, 10], abs=0.01)
    limited = target.model_copy(update={"tokens_per_minute": 60, "max_concurrency": 3})
    times = run(sent_at(pacer_of(limited), [60] * 3, seconds=5))
    assert times[-1] > 120


async def went(n, turnstile, *, hasty=()):
    """Return who was made ready and sent, in order, of some that come at the same time."""
    seen = []

    async def one(number):
        await turnstile.passed()
        seen.append(("ready", number))
        await asyncio.sleep(0)
        seen.append(("sent", number))

    tasks = [asyncio.create_task(one(number)) for number in range(n)]
    await asyncio.sleep(0)
    for number in hasty:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


def test_calls_that_come_at_once_are_sent_one_by_one_and_not_when_all_are_ready():
    async def twice():
        turnstile = Turnstile()
        return await went(4, turnstile), await went(3, turnstile)

    first, second = run(twice())
    assert [number for what, number in first if what == "ready"] == [0, 1, 2, 3]
    for seen, n in ((first, 4), (second, 3)):
        assert len(seen) == 2 * n
        for number in range(n - 2):
            assert seen.index(("sent", number)) < seen.index(("ready", number + 2))


def test_who_gives_up_at_the_turnstile_holds_nobody():
    seen = run(went(5, Turnstile(), hasty=[1, 2]))
    assert [number for what, number in seen if what == "sent"] == [0, 3, 4]
