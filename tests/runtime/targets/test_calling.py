from __future__ import annotations

import asyncio

import pytest

from router_runtime.errors import (
    AllTargetsFailedError,
    RouterError,
    TargetConnectionError,
    TargetProtocolError,
    TargetStatusError,
)
from router_runtime.pricing import Usage
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.target_config import CompatibleTargetConfig
from router_runtime.targets.calling import acomplete, astream, complete
from router_runtime.targets.forward_http import HttpForwarder

BODY = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0}
MODELS = {
    "good": {},
    "other": {},
    "broken": {"errors": {"rate": 1.0, "kinds": ["status_500"]}},
    "refusing": {"errors": {"rate": 1.0, "kinds": ["status_422"]}},
    "cut": {"errors": {"rate": 1.0, "kinds": ["chunked_cut_off"]}},
}


@pytest.fixture(scope="module")
def provider():
    with SimulatorServer(SimulatorConfig.model_validate({"models": MODELS})) as server:
        yield server


@pytest.fixture
def forwarders(provider):
    config = CompatibleTargetConfig(kind="compatible", base_url=provider.base_url)
    made = {name: HttpForwarder(name, config) for name in MODELS}
    yield made
    asyncio.run(close(made))
    assert not any(len(target._sessions) for target in made.values())


async def close(forwarders):
    for target in forwarders.values():
        await target.aclose()


def closed(forwarders, work):
    async def scene():
        try:
            return await work
        finally:
            await close(forwarders)

    return asyncio.run(scene())


def test_an_answer_names_who_gave_it_and_what_it_used(forwarders):
    found = closed(forwarders, acomplete(["broken", "good", "other"], forwarders, BODY))
    assert found.model_id == "good"
    assert found.text
    assert isinstance(found.usage, Usage)
    assert found.seconds > 0


def test_without_an_event_loop_it_is_the_same_answer(forwarders):
    found = complete(["broken", "good"], forwarders, BODY)
    assert found.text == closed(forwarders, acomplete(["good"], forwarders, BODY)).text


def test_it_may_be_called_within_a_running_event_loop(forwarders):
    async def scene():
        return complete(["good"], forwarders, BODY)

    assert asyncio.run(scene()).text


def test_where_nobody_answers_all_are_named(forwarders):
    with pytest.raises(AllTargetsFailedError, match="broken: status_500"):
        complete(["broken"], forwarders, BODY)


def test_a_refusal_is_raised_as_what_it_is(forwarders):
    with pytest.raises(TargetStatusError) as caught:
        complete(["refusing", "good"], forwarders, BODY)
    assert caught.value.status == 422


def streamed(forwarders, ranking):
    parts = []

    async def scene():
        async for part in astream(ranking, forwarders, BODY):
            parts.append(part)

    try:
        closed(forwarders, scene())
    except RouterError as error:
        return parts, error
    return parts, None


def test_a_stream_gives_the_same_text_in_parts(forwarders):
    whole = complete(["good"], forwarders, BODY).text
    parts, error = streamed(forwarders, ["broken", "good"])
    assert error is None
    assert "".join(part.text for part in parts) == whole
    assert {part.model_id for part in parts} == {"good"}
    assert len(parts) > 2
    assert "usage" not in parts[0].raw, "nothing is sent that was not asked for"


def test_a_stream_that_breaks_says_so_after_its_parts(forwarders):
    parts, error = streamed(forwarders, ["cut", "good"])
    assert parts
    assert {part.model_id for part in parts} == {"cut"}
    assert isinstance(error, TargetConnectionError | TargetProtocolError)
