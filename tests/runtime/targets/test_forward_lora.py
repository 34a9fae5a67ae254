import asyncio
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from router_runtime.config import CandidateConfig
from router_runtime.errors import ConfigError
from router_runtime.target_config import LoraVllmTargetConfig
from router_runtime.targets.calling import acomplete, complete
from router_runtime.targets.dispatch import adispatch
from router_runtime.targets.forward import build_forwarders
from router_runtime.targets.forward_lora import LoraForwarder
from router_runtime.targets.replies import Refused
from router_runtime.targets.streams import Stream
from router_runtime.targets.wholes import Whole

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from experts_parts.vllm import ROOT, Vllm

CHAT = "chat/completions"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "which day?"}]}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def replicas():
    """Starts servers; each argument is the settings of one."""
    with ExitStack() as stack:
        yield lambda *settings: [stack.enter_context(Vllm(**each)) for each in settings]


def target_of(servers, *, loads=True, key=None, max_in_flight=None, clock=None, **changed):
    content = {"kind": "lora-vllm", "base_urls": [server.url for server in servers]}
    content |= {"model": "calendar", "timeout_s": 10.0}
    if loads:
        content |= {"adapter_path": f"{ROOT}/calendar", "adapters_root": ROOT}
    config = LoraVllmTargetConfig.model_validate(content | changed)
    return LoraForwarder(
        "days", config, key=key, max_in_flight=max_in_flight, clock=clock or Clock()
    )


async def ask(target, **fields):
    """Return what the plan of attempts makes of one call."""
    return await adispatch(["days"], {"days": target}, CHAT, BODY | fields)


async def text_of(target):
    found = await ask(target)
    assert isinstance(found.answer, Whole), found.failure
    return found.answer.body["choices"][0]["message"]["content"]


async def streamed(target, **fields):
    found = await ask(target, stream=True, **fields)
    assert isinstance(found.answer, Stream), found.failure
    data = b"".join([chunk async for chunk in found.answer.chunks()]) + found.answer.ending
    await found.answer.aclose()
    return data, found.tried


def run(target, work):
    async def inside():
        try:
            return await work(target)
        finally:
            assert target.in_flight == 0
            assert [state.in_flight for state in target.replicas] == [0] * len(target.replicas)
            await target.aclose()

    return asyncio.run(inside())


def test_a_missing_adapter_is_loaded_once_and_its_answer_passes_as_it_came(replicas):
    [server] = replicas({})

    async def work(target):
        first = await ask(target, seed=7)
        return first, [await text_of(target) for _ in range(2)]

    first, texts = run(target_of([server], parameters={"temperature": 0.5}), work)
    assert (first.answer.status, first.answer.content_type) == (200, "application/json")
    assert json.loads(first.answer.content) == first.answer.body
    assert texts == ["calendar answers"] * 2
    assert (server.count("load_lora_adapter"), server.count("models")) == (1, 1)
    assert server.bodies[0] == {
        "model": "calendar",
        "messages": BODY["messages"],
        "seed": 7,
        "temperature": 0.5,
    }


@pytest.mark.parametrize("told", [True, False])
def test_a_stream_passes_and_usage_is_hidden_unless_asked_for(replicas, told):
    [server] = replicas({})
    options = {"stream_options": {"include_usage": True}} if told else {}
    data, tried = run(target_of([server]), lambda target: streamed(target, **options))
    assert (b'"usage"' in data) == told
    assert data.endswith(b"data: [DONE]\n\n")
    assert tried[0].usage == Vllm.USAGE
    assert [each.error for each in tried] == [None]


def test_after_a_restart_it_is_loaded_again_within_the_call(replicas):
    [server] = replicas({})

    async def work(target):
        first = await text_of(target)
        await asyncio.to_thread(server.restart)
        return first, await text_of(target), await streamed(target)

    first, second, (data, _) = run(target_of([server]), work)
    assert first == second == "calendar answers"
    assert b" answers" in data
    assert server.count("load_lora_adapter") == 2


def test_a_404_is_asked_again_once_only_and_is_the_targets_failure(replicas):
    [server] = replicas({})

    async def work(target):
        await text_of(target)
        server.adapters.clear()
        server.load = lambda handler, body: server.reply(handler, 200, "Success")  # it lies
        return await ask(target)

    found = run(target_of([server]), work)
    assert found.answer is None
    assert found.tried[0].error == "status_404"
    assert found.failure.whole_target
    assert server.count(CHAT) == 3


def test_an_adapter_that_cannot_be_had_is_said_and_leaves_the_call_to_another(replicas):
    [lacking, having] = replicas({"there": ()}, {})
    lacking_target, having_target = target_of([lacking]), target_of([having])
    having_target.model_id = "other"

    async def work(target):
        both = {"days": target, "other": having_target}
        found = await adispatch(["days", "other"], both, CHAT, BODY)
        await having_target.aclose()
        return found

    found = run(lacking_target, work)
    assert [(t.model_id, t.error) for t in found.tried] == [("days", "status_404"), ("other", None)]


@pytest.mark.parametrize("status", [502, 503])
def test_a_replica_that_did_not_begin_leaves_the_call_to_the_next_and_rests(replicas, status):
    servers = replicas({}, {})
    clock = Clock()

    async def work(target):
        await text_of(target), await text_of(target)
        servers[0].status = status
        texts = [await text_of(target) for _ in range(3)]
        states = target.replicas
        servers[0].status, clock.now = None, 11.0
        return texts, states, await text_of(target), target.replicas

    texts, during, text, after = run(target_of(servers, clock=clock), work)
    assert texts == ["calendar answers"] * 3
    assert [state.rests_s > 0 for state in during] == [True, False]
    assert text == "calendar answers"
    assert [state.rests_s for state in after] == [0.0, 0.0]


def test_what_a_replica_says_of_the_request_is_the_clients_and_rests_nobody(replicas):
    [server] = replicas({})
    server.chat = lambda handler, body: server.error(handler, 400, "BadRequestError", "too hot")
    target = target_of([server])
    found = run(target, ask)
    assert isinstance(found.refused, Refused)
    assert (found.refused.status, b"too hot" in found.refused.body) == (400, True)
    assert [(s.rests_s, s.has_adapter) for s in target.replicas] == [(0.0, True)]


def test_calls_spread_and_a_stream_counts_until_it_is_read(replicas):
    servers = replicas({}, {})

    async def work(target):
        streams = [await ask(target, stream=True) for _ in range(4)]
        in_flight = [state.in_flight for state in target.replicas]
        for found in streams:
            await found.answer.aclose()
        return in_flight

    assert run(target_of(servers), work) == [2, 2]


def test_giving_a_call_up_frees_its_place(replicas):
    [server] = replicas({})
    server.gate = threading.Event()

    async def work(target):
        call = asyncio.create_task(ask(target))
        assert await asyncio.to_thread(server.entered.acquire, timeout=30)
        held = target.in_flight, target.replicas[0].in_flight
        call.cancel()
        await asyncio.wait([call])
        server.gate.set()
        return held

    assert run(target_of([server]), work) == (1, 1)


def test_a_replica_that_loads_for_ever_ends_with_the_call(replicas):
    [server] = replicas({})
    server.gate = threading.Event()
    real = server.load
    server.load = lambda handler, body: (server.gate.wait(60), real(handler, body))

    async def work(target):
        found = await adispatch(["days"], {"days": target}, CHAT, BODY)
        server.gate.set()
        return found

    found = run(target_of([server], timeout_s=0.2), work)
    assert found.tried[0].error == "timeout"


def test_beyond_its_limits_it_is_busy_at_once(replicas):
    [server] = replicas({})

    async def work(target):
        first = await ask(target, stream=True)
        second = await ask(target)
        await first.answer.aclose()
        return second, await text_of(target)

    second, text = run(target_of([server], max_in_flight=1), work)
    assert [tried.error for tried in second.tried] == ["busy"]
    assert text == "calendar answers"


def test_event_loops_do_not_get_into_each_others_way(replicas):
    [server] = replicas({})
    target = target_of([server])

    async def here():
        found = await asyncio.gather(
            *(acomplete(["days"], {"days": target}, BODY) for _ in range(8)),
            *(asyncio.to_thread(complete, ["days"], {"days": target}, BODY) for _ in range(8)),
        )
        return {answer.text for answer in found}

    assert run(target, lambda _: here()) == {"calendar answers"}
    assert 1 <= server.count("load_lora_adapter") <= 2


def test_the_key_goes_to_every_route_and_is_never_shown(replicas):
    servers = replicas({"key": "canary-key"})
    assert run(target_of(servers, key="canary-key"), text_of) == "calendar answers"
    found = run(target_of(servers, key="canary-other"), ask)
    assert found.tried[0].error == "status_401"
    assert "canary" not in str(found.failure)


def test_what_identifies_it_is_its_replicas_in_any_order_and_the_adapter(replicas):
    servers = replicas({}, {})
    one, other = target_of(servers), target_of(servers[::-1])
    assert one.identity == other.identity
    assert one.identity != target_of(servers, model="day").identity


def test_a_config_is_built_into_one_and_lorax_is_a_plain_server(replicas):
    [vllm, lorax] = replicas({"key": "canary"}, {"lorax": True})
    targets = {
        "days": {
            "kind": "lora-vllm",
            "base_urls": [vllm.url],
            "model": "calendar",
            "adapter_path": f"{ROOT}/calendar",
            "adapters_root": ROOT,
            "api_key_env": "VLLM_KEY",
            "max_concurrency": 3,
        },
        "org/some-adapter": {"kind": "lorax", "base_url": lorax.url},
    }
    candidates = [
        CandidateConfig.model_validate({"id": name, "target": target})
        for name, target in targets.items()
    ]
    built = build_forwarders(candidates, environment={"VLLM_KEY": "canary"})
    assert list(built) == list(targets)
    assert built["days"]._max_in_flight == 3

    async def both():
        try:
            return [(await acomplete([name], built, BODY)).text for name in built]
        finally:
            for target in built.values():
                await target.aclose()

    assert asyncio.run(both()) == ["calendar answers", "org/some-adapter answers"]


def test_a_name_that_no_server_should_get_is_refused_when_building(replicas):
    with pytest.raises(ConfigError, match="'model'"):
        target_of(replicas({}), model="a b")
