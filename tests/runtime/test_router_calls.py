"""A router that calls what it chose, over HTTP, from a program."""

from __future__ import annotations

import asyncio

import pytest

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig
from router_runtime.errors import AllTargetsFailedError, ConfigError, NoEligibleModelError
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer

MODELS = ("sim-large-vl", "sim-small-vl", "sim-large-text", "sim-small-text")
FIRST, SECOND = "sim-small-text", "sim-large-text"
QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def broken(kind):
    return {"errors": {"rate": 1.0, "kinds": [kind]}}


@pytest.fixture
def router_for(trained):
    """Return a function that gives a router and its provider, some models of which are broken."""
    servers = []

    def made(*, models=None, without_target=(), calls=None):
        simulated = {name: (models or {}).get(name, {}) for name in MODELS}
        server = SimulatorServer(SimulatorConfig.model_validate({"models": simulated}))
        servers.append(server)
        target = {"kind": "compatible", "base_url": server.__enter__().base_url}
        candidates = [
            {
                "id": name,
                "tools": name != FIRST,
                "price": {"input_mtok": 1 + at, "output_mtok": 1 + at},
                **({} if name in without_target else {"target": target}),
            }
            for at, name in enumerate((FIRST, SECOND))
        ]
        content = {
            "artifact": trained[0].output,
            "candidates": candidates,
            "policies": {"first": {"kind": "fixed", "model": FIRST}},
            "policy": "first",
            "service": {"calls": calls or {}},
        }
        return ModelRouter.from_config(RuntimeConfig.model_validate(content))

    yield made
    for server in servers:
        server.__exit__(None, None, None)


def test_the_chosen_model_answers(router_for):
    answer = router_for().complete(QUESTION, max_tokens=50)
    assert answer.model_id == FIRST
    assert answer.text and answer.usage.output_tokens <= 50


def test_a_failing_model_is_followed_by_the_next_of_the_ranking(router_for):
    router = router_for(models={FIRST: broken("status_500")})
    assert asyncio.run(router.acomplete(QUESTION)).model_id == SECOND
    with pytest.raises(AllTargetsFailedError):
        router_for(models=dict.fromkeys((FIRST, SECOND), broken("reset"))).complete(QUESTION)


def test_the_config_says_how_many_are_tried(router_for):
    router = router_for(models={FIRST: broken("status_500")}, calls={"max_attempts": 1})
    with pytest.raises(AllTargetsFailedError):
        router.complete(QUESTION)


def test_an_answer_comes_in_parts(router_for):
    async def scene():
        router = router_for(models={FIRST: broken("status_503")})
        parts = [part async for part in router.astream(QUESTION, policy="first")]
        await router.aclose()
        return parts

    parts = asyncio.run(scene())
    assert len(parts) > 2 and {part.model_id for part in parts} == {SECOND}
    assert "".join(part.text for part in parts)


def test_what_a_request_needs_and_who_can_be_called_decide_first(router_for):
    assert router_for().complete(QUESTION, tools=[TOOL]).model_id == SECOND
    with pytest.raises(NoEligibleModelError, match="no_target"):
        router_for(without_target=(SECOND,)).complete(QUESTION, tools=[TOOL])


def test_without_targets_the_remedy_is_told(router_for):
    with pytest.raises(ConfigError, match="'target'"):
        router_for(without_target=(FIRST, SECOND)).complete(QUESTION)


def test_connections_that_were_closed_are_opened_again(router_for):
    async def scene():
        router = router_for()
        first = await router.acomplete(QUESTION)
        await router.aclose()
        again = await router.acomplete(QUESTION)
        await router.aclose()
        return first, again

    first, again = asyncio.run(scene())
    assert first.text == again.text
