from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from router_runtime.errors import RouterError
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.ask_local import COLLECT
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.config import LabelConfig
from router_training.labelling.progress import Unwatched
from router_training.labelling.ray_desk import Desk
from router_training.ray_mail import Client, Mailbox, Server

CONFIG = LabelConfig.model_validate(
    {
        "data": {"path": "x"},
        "candidates": [
            {
                "id": "m",
                "target": {"kind": "compatible", "base_url": "http://h/v1", "max_concurrency": 1},
                "price": {"input_mtok": 1, "output_mtok": 1},
            }
        ],
        "scoring": {"scorers": {"e": "exact"}, "default": ["e"]},
        "max_cost_usd": "1",
    }
)


class Told(Unwatched):
    def __init__(self):
        self.stops = []

    def stopped(self, model_id, why):
        self.stops.append((model_id, why))


class _Method:
    def __init__(self, method):
        self.remote = lambda *values: asyncio.ensure_future(method(*values))


class HereActor:
    """A mailbox in this process, called as an actor is."""

    def __init__(self):
        mailbox = Mailbox()
        self.send, self.receive = _Method(mailbox.send), _Method(mailbox.receive)


def served(tmp_path, scenario, *, watch=None):
    """Run a scenario with a desk, and two of its workers, of parts 0 and 1."""

    async def main(store):
        mailbox = HereActor()
        watches = {COLLECT: watch or Told()}
        desk = Desk(CONFIG, store, files=(), watches=watches, ray=None)
        heard = [], []
        async with Server(mailbox, desk.handle) as server:
            desk.notify = server.notify
            async with (
                Client(mailbox, notice=heard[0].append) as one,
                Client(mailbox, notice=heard[1].append) as other,
            ):
                await one.request("hello", 0)
                await other.request("hello", 1)
                await scenario(desk, one, other, heard)

    with AnswerStore.open(tmp_path, holder="test") as store:
        asyncio.run(main(store))


async def waits(task):
    done, _ = await asyncio.wait([task], timeout=0.05)
    return not done


def answered(key):
    return Outcome(key, "m", Status.ANSWERED, text="yes", cost_usd=Decimal("0.1"))


def test_a_call_that_one_worker_makes_is_awaited_by_the_others(tmp_path):
    async def scenario(desk, one, other, heard):
        assert await one.request("claim", "k") is None
        second = asyncio.create_task(other.request("claim", "k"))
        assert await waits(second)
        await one.request("append", answered("k"), None)
        one.tell("unclaim", "k")
        assert await second == answered("k")
        assert await other.request("find", "k") == answered("k")

    served(tmp_path, scenario)


def test_places_in_flight_are_those_of_the_cluster(tmp_path):
    async def scenario(desk, one, other, heard):
        slot = await one.request("slot", "m", 10.0)
        second = asyncio.create_task(other.request("slot", "m", 10.0))
        assert await waits(second)
        assert desk.in_flight == 1
        one.tell("unslot", slot)
        await second

    served(tmp_path, scenario)


def test_the_budget_is_that_of_the_cluster(tmp_path):
    async def scenario(desk, one, other, heard):
        assert await one.request("reserve", Decimal("0.7"))
        second = asyncio.create_task(other.request("reserve", Decimal("0.7")))
        assert await waits(second)
        one.tell("settle", Decimal("0.7"), Decimal("0.5"))
        assert await second is False
        assert not await one.request("reserve", Decimal("0.1"))

    served(tmp_path, scenario)


def test_what_a_lost_worker_held_is_free_again_and_its_money_may_be_spent(tmp_path):
    async def scenario(desk, one, other, heard):
        await one.request("claim", "k")
        await one.request("slot", "m", 10.0)
        assert await one.request("reserve", Decimal("0.7"))
        again = Client(one_mailbox(one), notice=heard[0].append)
        async with again:
            assert await again.request("hello", 0) == []
            assert await other.request("claim", "k") is None
            await other.request("slot", "m", 10.0)
            assert not await other.request("reserve", Decimal("0.4"))
            with pytest.raises(RouterError, match="taken over"):
                await one.request("find", "k")

    def one_mailbox(client):
        return client._post._mailbox

    served(tmp_path, scenario)


def test_a_worker_that_leaves_gives_everything_back(tmp_path):
    async def scenario(desk, one, other, heard):
        await one.request("slot", "m", 10.0)
        assert await one.request("reserve", Decimal("0.9"))
        await one.request("bye")
        await other.request("slot", "m", 10.0)
        assert await other.request("reserve", Decimal("0.9"))

    served(tmp_path, scenario)


def test_a_target_that_stops_in_one_worker_stops_in_all_and_is_said_once(tmp_path):
    watch = Told()

    async def scenario(desk, one, other, heard):
        one.tell("stopped", COLLECT, "m", "no such key")
        other.tell("stopped", COLLECT, "m", "no such key either")
        await other.request("find", "k")
        assert watch.stops == [("m", "no such key")]
        assert desk.stopped == {"m": "no such key"}
        assert heard[1] == [("stop", "m", "no such key")]
        await other.request("bye")
        desk.interrupt()
        assert await other.request("hello", 1) == [("stop", "m", "no such key"), ("interrupt",)]

    served(tmp_path, scenario, watch=watch)


def test_an_error_is_raised_where_it_was_asked_for(tmp_path):
    async def scenario(desk, one, other, heard):
        with pytest.raises(RouterError, match="KeyError"):
            await one.request("slot", "nobody", 1.0)

    served(tmp_path, scenario)
