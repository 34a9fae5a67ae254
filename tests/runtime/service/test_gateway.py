"""What happens around every endpoint: keys, caps, errors, records, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from types import SimpleNamespace

import pytest

from router_runtime.errors import RequestError
from router_runtime.service.asgi import send_json
from router_runtime.service.gateway import DecisionIds, Gateway, Leaving
from router_runtime.service.values import ANONYMOUS, Caller, Lease, Routed
from router_runtime.service_config import ServiceConfig

KEY = Caller("key-1")
LOOPBACK = [(b"host", b"127.0.0.1")]


class Collected:
    def __init__(self):
        self.events = []

    def record(self, event):
        self.events.append(event)


class Limiter:
    def __init__(self):
        self.settled = []

    async def admit(self, caller, *, tokens):
        return Lease(caller, tokens)

    async def settle(self, lease, *, tokens, cost_usd):
        await asyncio.sleep(0)
        self.settled.append((tokens, cost_usd))


class Generations:
    def __init__(self, service):
        self.generation = SimpleNamespace(
            config=SimpleNamespace(service=service), config_sha256="abc"
        )

    @contextlib.contextmanager
    def enter(self):
        yield self.generation


class Keys:
    def __init__(self, caller):
        self.caller = caller

    def authenticate(self, header):
        if self.caller is None:
            raise RequestError("No key.", status=401, code="invalid_api_key")
        return self.caller


def gateway_of(caller=KEY, **limits):
    service = ServiceConfig.model_validate({"requests": limits})
    return Gateway(
        generations=Generations(service),
        keys=Keys(caller),
        limiter=Limiter(),
        withheld=lambda key: (),
        store=Collected(),
        telemetry=Collected(),
        wall=lambda: 1_000.0,
    )


def scope(headers=LOOPBACK):
    return {"type": "http", "path": "/x", "headers": headers, "query_string": b""}


async def silent():
    await asyncio.Event().wait()


async def ask(gateway, work, *, headers=LOOPBACK, receive=silent, endpoint="chat"):
    sent = []

    async def send(message):
        sent.append(message)

    await gateway.handler(work, endpoint=endpoint)(scope(headers), receive, send)
    return sent


def answer_of(sent):
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body)


async def decided(gateway, exchange, receive, send):
    exchange.routed = Routed(("small",), "requested")
    exchange.status = 200
    gateway.tell(exchange)
    await send_json(send, {})


async def never(gateway, exchange, receive, send):
    raise AssertionError("reached")


def test_without_a_key_nothing_is_reached_or_stored():
    gateway = gateway_of(None)
    status, headers, body = answer_of(asyncio.run(ask(gateway, never)))
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert headers[b"x-router-decision-id"]
    assert gateway.store.events == []
    assert [event.status for event in gateway.telemetry.events] == [401]


def test_anybody_is_served_under_this_machines_own_names_only():
    gateway = gateway_of(ANONYMOUS)
    foreign = [(b"host", b"attacker.example")]
    assert answer_of(asyncio.run(ask(gateway, never, headers=foreign)))[0] == 403
    assert answer_of(asyncio.run(ask(gateway, decided)))[0] == 200
    with_key = gateway_of(KEY)
    assert answer_of(asyncio.run(ask(with_key, decided, headers=foreign)))[0] == 200


def test_more_at_once_than_allowed_are_told_to_come_back():
    async def both():
        gateway = gateway_of(max_in_flight=1)
        begun, over = asyncio.Event(), asyncio.Event()

        async def slow(gateway, exchange, receive, send):
            begun.set()
            await over.wait()
            await send_json(send, {})

        first = asyncio.create_task(ask(gateway, slow))
        await begun.wait()
        second = await ask(gateway, never)
        over.set()
        await first
        third = await ask(gateway, decided)
        return second, third

    second, third = asyncio.run(both())
    status, headers, body = answer_of(second)
    assert (status, body["error"]["code"]) == (503, "overloaded")
    assert headers[b"retry-after"] == b"1"
    assert answer_of(third)[0] == 200


def test_a_decision_is_stored_once_before_the_answer_ends():
    gateway = gateway_of()
    seen = []

    async def work(gateway, exchange, receive, send):
        await decided(gateway, exchange, receive, send)
        seen.append(len(gateway.store.events))

    asyncio.run(ask(gateway, work))
    assert seen == [1]
    assert len(gateway.store.events) == len(gateway.telemetry.events) == 1
    event = gateway.store.events[0]
    assert (event.status, event.key_id, event.config_sha256) == (200, "key-1", "abc")


def test_an_endpoint_without_a_name_tells_nothing():
    gateway = gateway_of()
    asyncio.run(ask(gateway, decided, endpoint=None))
    assert gateway.telemetry.events == []


def test_a_defect_is_an_internal_error_and_its_words_are_nowhere(caplog):
    async def broken(gateway, exchange, receive, send):
        raise ValueError("the prompt was: canary")

    gateway = gateway_of()
    with caplog.at_level(logging.DEBUG):
        status, _, body = answer_of(asyncio.run(ask(gateway, broken)))
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "canary" not in json.dumps(body) + caplog.text
    assert "ValueError" in caplog.text


def test_a_failure_after_the_answer_began_sends_nothing_more():
    async def begun(gateway, exchange, receive, send):
        exchange.status = 200
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RequestError("Too late.", status=400, code="late")

    gateway = gateway_of()
    sent = asyncio.run(ask(gateway, begun))
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert gateway.telemetry.events[0].error == "late"


def test_a_lease_is_settled_whatever_happens():
    async def failing(gateway, exchange, receive, send):
        await gateway.admit(exchange, tokens=5)
        raise RequestError("No.", status=400, code="no")

    gateway = gateway_of()
    asyncio.run(ask(gateway, failing))
    assert gateway.limiter.settled == [(0, 0)]


@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_leaves_cancels_the_work_and_is_recorded(late):
    cancelled = []

    async def work(gateway, exchange, receive, send):
        await gateway.admit(exchange, tokens=5)
        exchange.routed = Routed(("small",), "requested")
        with Leaving(exchange, receive):
            try:
                await asyncio.sleep(0 if late else 10)
                if late:  # it leaves in the moment in which the work ends
                    while not exchange.left:
                        await asyncio.sleep(0)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    async def leaving():
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def main():
        sent = await ask(gateway, work, receive=leaving)
        await asyncio.sleep(0)  # nothing of the cancellation is left to hit what comes next
        return sent

    gateway = gateway_of()
    assert asyncio.run(main()) == []
    assert cancelled or late
    event = gateway.store.events[0]
    assert (event.status, event.error) == (499, "client_left")
    assert len(gateway.limiter.settled) == 1


def test_the_end_of_the_process_is_no_client_that_leaves():
    async def work(gateway, exchange, receive, send):
        exchange.routed = Routed(("small",), "requested")
        with Leaving(exchange, receive):
            await asyncio.sleep(10)

    async def main():
        task = asyncio.create_task(ask(gateway, work))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    gateway = gateway_of()
    asyncio.run(main())
    assert gateway.store.events[0].error == "shutdown"


def test_ids_are_new_and_sort_by_time():
    ids = DecisionIds()
    made = [ids.new(at) for at in (1.0, 2.0, 3_000_000_000.0)]
    assert made == sorted(made)
    assert len({ids.new(1.0) for _ in range(2_000)}) == 2_000
    assert len({len(ids.new(1.0)) for _ in range(2_000)}) == 1
