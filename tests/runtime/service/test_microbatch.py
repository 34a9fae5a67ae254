from __future__ import annotations

import asyncio
import threading
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import QueryError, RequestError
from router_runtime.service.microbatch import MicroBatcher
from router_runtime.service_config import BatchingConfig


class Work:
    """Doubles numbers; records its batches, and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.release()
        assert self.may_end.wait(10)
        return [2 * item for item in items]


def batcher(work, **config) -> MicroBatcher[int, int]:
    return MicroBatcher(work, BatchingConfig(**config))


async def busy(work, batching):
    """Let the worker be at item 0, and hold it there."""
    work.may_end.clear()
    first = asyncio.ensure_future(batching.submit(0))
    await asyncio.to_thread(work.started.acquire)
    return first


def test_what_comes_in_one_turn_is_one_batch():
    work = Work()

    async def walk():
        batching = batcher(work)
        found = await asyncio.gather(*(batching.submit(i) for i in range(5)))
        batching.close()
        return found

    assert asyncio.run(walk()) == [0, 2, 4, 6, 8]
    assert work.batches == [[0, 1, 2, 3, 4]]


def test_a_lone_item_does_not_wait_for_company():
    work = Work()

    async def walk():
        batching = batcher(work, max_wait_ms=1000)
        answer = batching.put(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # Blocks the event loop: no timer can start the batch now, so it must have started.
        assert work.started.acquire(timeout=10)
        assert await answer == 2
        batching.close()

    asyncio.run(walk())


def test_what_gathers_while_the_worker_is_busy_goes_together():
    work = Work()

    async def walk():
        batching = batcher(work, max_wait_ms=0)
        first = await busy(work, batching)
        rest = [asyncio.ensure_future(batching.submit(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        assert batching.queued == 3
        work.may_end.set()
        assert await asyncio.gather(first, *rest) == [0, 2, 4, 6]
        batching.close()

    asyncio.run(walk())
    assert work.batches == [[0], [1, 2, 3]]


@pytest.mark.parametrize(("wait_ms", "batches"), [(1000, [[0], [1, 2]]), (0, [[0], [1], [2]])])
def test_after_a_busy_time_company_is_awaited_for_as_long_as_configured(wait_ms, batches):
    work = Work()

    async def walk():
        batching = batcher(work, max_wait_ms=wait_ms, max_batch=2)
        first = await busy(work, batching)
        second = asyncio.ensure_future(batching.submit(1))
        await asyncio.sleep(0)
        work.may_end.set()
        await first
        if wait_ms == 0:
            await second
        third = batching.put(2)  # fills the batch
        assert await asyncio.gather(second, third) == [2, 4]
        batching.close()

    asyncio.run(walk())
    assert work.batches == batches


def test_the_wait_ends_by_itself():
    work = Work()

    async def walk():
        batching = batcher(work, max_wait_ms=20, max_batch=64)
        first = await busy(work, batching)
        second = asyncio.ensure_future(batching.submit(1))
        await asyncio.sleep(0)
        work.may_end.set()
        assert await asyncio.gather(first, second) == [0, 2]
        batching.close()

    asyncio.run(walk())


def test_a_full_queue_refuses_with_503_and_a_time():
    work = Work()

    async def walk():
        batching = batcher(work, max_queue=2)
        first = await busy(work, batching)
        rest = [batching.put(1), batching.put(2)]
        with pytest.raises(RequestError) as caught:
            await batching.submit(3)
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        assert caught.value.retry_after_s
        work.may_end.set()
        assert await asyncio.gather(first, *rest) == [0, 2, 4]
        assert await batching.submit(4) == 8
        batching.close()

    asyncio.run(walk())


def test_a_cancelled_item_is_not_worked_on_and_frees_its_place():
    work = Work()

    async def walk():
        batching = batcher(work, max_queue=1, max_wait_ms=0)
        first = await busy(work, batching)
        leaving = asyncio.ensure_future(batching.submit(1))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        staying = batching.put(2)
        work.may_end.set()
        assert await asyncio.gather(first, staying) == [0, 4]
        batching.close()

    asyncio.run(walk())
    assert work.batches == [[0], [2]]


def test_an_item_that_leaves_while_it_is_worked_on_harms_nobody():
    work = Work()

    async def walk():
        batching = batcher(work)
        first = await busy(work, batching)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = batching.put(1)
        work.may_end.set()
        assert await second == 2
        batching.close()

    asyncio.run(walk())


def test_an_item_that_cannot_be_done_fails_alone():
    def work(items):
        if 3 in items:
            raise QueryError("three")
        return items

    async def walk():
        batching = batcher(work)
        found = await asyncio.gather(
            *(batching.submit(i) for i in range(5)), return_exceptions=True
        )
        batching.close()
        return found

    found = asyncio.run(walk())
    assert [item for item in found if isinstance(item, int)] == [0, 1, 2, 4]
    assert isinstance(found[3], QueryError)


def test_after_a_failed_batch_nothing_is_tried_that_nobody_waits_for():
    seen = []
    failing, left = threading.Event(), threading.Event()

    def work(items):
        seen.append(list(items))
        if len(items) > 1:
            failing.set()
            assert left.wait(10)
            raise RuntimeError("the server is away")
        return items

    async def walk():
        batching = batcher(work)
        staying, leaving = batching.put(1), batching.put(2)
        await asyncio.to_thread(failing.wait, 10)
        leaving.cancel()
        left.set()
        assert await staying == 1
        batching.close()

    asyncio.run(walk())
    assert seen == [[1, 2], [1]]


@pytest.mark.parametrize("work", [lambda items: [], lambda items: next(iter(()))])
def test_work_that_answers_wrongly_is_an_error_and_no_hang(work):
    async def walk():
        batching = batcher(work)
        with pytest.raises(RuntimeError):
            await batching.submit(1)
        batching.close()

    asyncio.run(walk())


def test_closing_refuses_what_waits_and_what_comes():
    work = Work()

    async def walk():
        batching = batcher(work)
        first = await busy(work, batching)
        waiting = asyncio.ensure_future(batching.submit(1))
        await asyncio.sleep(0)
        batching.close()
        work.may_end.set()
        for answer in (first, waiting, batching.submit(2)):
            with pytest.raises(RequestError) as caught:
                await answer
            assert caught.value.status == 503

    asyncio.run(walk())
    assert work.batches == [[0]]


@settings(max_examples=40, deadline=None)
@given(
    max_batch=st.integers(1, 5),
    turns=st.lists(st.lists(st.integers(), max_size=6), max_size=5),
)
def test_everyone_gets_the_own_result_in_batches_of_at_most_max_batch(max_batch, turns):
    work = Work()

    async def walk():
        batching = batcher(work, max_batch=max_batch, max_wait_ms=0)
        answers = []
        for items in turns:
            answers += [(i, batching.put(i)) for i in items]
            await asyncio.sleep(0)
        for item, answer in answers:
            assert await answer == 2 * item
        batching.close()

    asyncio.run(walk())
    assert list(chain(*work.batches)) == list(chain(*turns))
    assert all(1 <= len(batch) <= max_batch for batch in work.batches)
