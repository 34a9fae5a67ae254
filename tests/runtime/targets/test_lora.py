import asyncio
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetStatusError,
)
from router_runtime.target_config import LoraVllmTargetConfig, LoraxTargetConfig
from router_runtime.targets.base import ChatCall
from router_runtime.yaml_config import validate

lora = pytest.importorskip("router_runtime.targets.lora", exc_type=ImportError)
openai_target = pytest.importorskip("router_runtime.targets.openai", exc_type=ImportError)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from experts_parts.vllm import ROOT, Vllm  # noqa: E402

CALL = ChatCall(({"role": "user", "content": "which day?"},))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def replicas():
    """Starts servers; each argument is the settings of one."""
    with ExitStack() as stack:
        yield lambda *settings: [stack.enter_context(Vllm(**each)) for each in settings]


def config_of(servers, *, model="calendar", loads=True, **changed):
    content = {"kind": "lora-vllm", "base_urls": [server.url for server in servers]}
    content |= {"model": model, "timeout_s": 10.0}
    if loads:
        content |= {"adapter_path": f"{ROOT}/{model}", "adapters_root": ROOT}
    return LoraVllmTargetConfig.model_validate(content | changed)


def run(servers, clock, work, *, key=None, **changed):
    """Run ``work(target)`` in an event loop of its own, and close the target."""

    async def inside():
        config = config_of(servers, **changed)
        target = lora.LoraVllmTarget("days", config, key=key, clock=clock)
        try:
            return await work(target)
        finally:
            await target.aclose()

    return asyncio.run(inside())


async def ask(target):
    return (await target.acomplete(CALL)).text


def test_a_missing_adapter_is_loaded_once_and_answers(replicas, clock):
    [server] = replicas({})

    async def work(target):
        return [await ask(target) for _ in range(3)], target.replicas

    texts, states = run([server], clock, work)
    assert texts == ["calendar answers"] * 3
    assert server.adapters == {"calendar": f"{ROOT}/calendar"}
    assert (server.count("load_lora_adapter"), server.count("models")) == (1, 1)
    assert [(state.has_adapter, state.in_flight, state.rests_s) for state in states] == [
        (True, 0, 0.0)
    ]


def test_many_calls_at_once_load_it_once(replicas, clock):
    [server] = replicas({})

    async def work(target):
        return await asyncio.gather(*(ask(target) for _ in range(12)))

    assert set(run([server], clock, work)) == {"calendar answers"}
    assert server.count("load_lora_adapter") == 1


def test_an_adapter_that_is_there_is_not_loaded(replicas, clock):
    [server] = replicas({"updates": False})
    server.adapters["calendar"] = "elsewhere"
    assert run([server], clock, ask, loads=False) == "calendar answers"
    assert server.count("load_lora_adapter") == 0


def test_after_a_restart_it_is_loaded_again_and_the_call_is_answered(replicas, clock):
    [server] = replicas({})

    async def work(target):
        first = await ask(target)
        await asyncio.to_thread(server.restart)
        return first, await ask(target)

    assert run([server], clock, work) == ("calendar answers",) * 2
    assert server.count("load_lora_adapter") == 2


def test_a_404_is_asked_again_once_only(replicas, clock):
    [server] = replicas({})

    async def work(target):
        await ask(target)
        server.adapters.clear()
        server.load = lambda handler, body: server.reply(handler, 200, "Success")  # it lies
        await ask(target)

    with pytest.raises(TargetStatusError) as caught:
        run([server], clock, work)
    assert caught.value.status == 404
    assert server.count("chat/completions") == 3


def test_one_that_another_router_has_loaded_meanwhile_is_taken(replicas, clock):
    [server] = replicas({})
    real = server.load

    def raced(handler, body):
        server.adapters["calendar"] = "by another"
        real(handler, body)

    server.load = raced
    assert run([server], clock, ask) == "calendar answers"


@pytest.mark.parametrize(
    ("settings", "changed", "words"),
    [
        ({"updates": False}, {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({}, {"loads": False}, "has no adapter 'calendar'.*adapter_path"),
        ({"there": ()}, {}, "No adapter found"),
    ],
)
def test_an_adapter_that_cannot_be_had_is_said_with_the_remedy(
    replicas, clock, settings, changed, words
):
    servers = replicas(settings)

    async def work(target):
        failures = []
        for _ in range(2):  # the second time without asking anybody
            with pytest.raises(TargetStatusError) as caught:
                await ask(target)
            failures.append(caught.value)
        return failures

    first, second = run(servers, clock, work, **changed)
    assert not first.retryable
    assert first.whole_target
    assert str(second) == str(first)
    assert servers[0].count("models") == 1
    with pytest.raises(TargetStatusError, match=words):
        raise first


def test_a_loading_route_that_refuses_the_method_is_the_same(replicas, clock):
    [server] = replicas({})
    server.load = lambda handler, body: server.reply(handler, 405, {"detail": "Not Allowed"})
    with pytest.raises(TargetStatusError, match="loads no adapters"):
        run([server], clock, ask)


def test_a_replica_without_the_file_leaves_the_call_to_another(replicas, clock):
    lacking, having = replicas({"there": ()}, {})
    assert run([lacking, having], clock, ask) == "calendar answers"
    assert not lacking.adapters


def test_calls_go_to_the_replica_with_the_fewest_in_flight(replicas, clock):
    servers = replicas({}, {}, {})
    for server in servers:
        server.gate = threading.Event()

    async def work(target):
        calls = []
        for _ in range(9):
            calls.append(asyncio.create_task(ask(target)))
            await asyncio.sleep(0)
        for server in servers:
            for _ in range(3):
                assert await asyncio.to_thread(server.entered.acquire, timeout=30)
        in_flight = [state.in_flight for state in target.replicas]
        for server in servers:
            server.gate.set()
        return in_flight, await asyncio.gather(*calls)

    in_flight, texts = run(servers, clock, work)
    assert in_flight == [3, 3, 3]
    assert texts == ["calendar answers"] * 9


def test_a_replica_that_is_down_rests_and_then_serves_again(replicas, clock):
    first, second = replicas({}, {})
    first.stop()

    async def work(target):
        texts = [await ask(target) for _ in range(4)]
        states = target.replicas
        await asyncio.to_thread(first.restart)
        clock.now = 9.9
        await ask(target)
        before = first.count("chat/completions")
        clock.now = 10.1
        second.gate = threading.Event()
        held = asyncio.create_task(ask(target))
        other = asyncio.create_task(ask(target))
        await asyncio.wait({held, other}, return_when=asyncio.FIRST_COMPLETED)
        second.gate.set()
        await asyncio.gather(held, other)
        return texts, states, before

    texts, states, before = run([first, second], clock, work)
    assert texts == ["calendar answers"] * 4
    assert [state.rests_s > 0 for state in states] == [True, False]
    assert (before, first.count("chat/completions")) == (0, 1)


def test_a_server_error_rests_a_replica_and_is_left_to_the_caller(replicas, clock):
    first, second = replicas({}, {})

    async def work(target):
        await target.check()
        first.status = 500
        with pytest.raises(TargetStatusError) as caught:  # it may have been begun, so not twice
            await ask(target)
        return caught.value, await ask(target), target.replicas

    error, text, states = run([first, second], clock, work)
    assert (error.status, error.retryable) == (500, True)
    assert text == "calendar answers"
    assert [state.rests_s for state in states] == [10.0, 0.0]


def test_a_503_was_not_begun_and_goes_to_another_replica(replicas, clock):
    first, second = replicas({}, {})

    async def work(target):
        await target.check()
        first.status = 503
        return await ask(target)

    assert run([first, second], clock, work) == "calendar answers"


def test_when_all_rest_it_says_for_how_long(replicas, clock):
    servers = replicas({}, {})
    for server in servers:
        server.stop()

    async def work(target):
        with pytest.raises(TargetConnectionError):
            await ask(target)
        clock.now = 4.0
        with pytest.raises(TargetConnectionError, match="all 2 replicas") as caught:
            await ask(target)
        return caught.value

    error = run(servers, clock, work)
    assert error.retryable
    assert error.retry_after_s == pytest.approx(6.0)


def test_a_check_asks_every_replica_and_loads_what_is_missing(replicas, clock):
    servers = replicas({}, {"there": ()}, {})
    servers[2].stop()

    async def work(target):
        return await target.check()

    states = run(servers, clock, work)
    assert [state.has_adapter for state in states] == [True, None, None]
    assert [state.rests_s > 0 for state in states] == [False, True, True]
    assert servers[0].adapters


def test_unloading_reaches_every_replica_also_those_without_it(replicas, clock):
    servers = replicas({}, {})

    async def work(target):
        await target.check()
        servers[1].adapters.clear()
        await target.unload()
        empty = not (servers[0].adapters or servers[1].adapters)
        return empty, await ask(target)

    assert run(servers, clock, work) == (True, "calendar answers")


def test_unloading_tells_which_replica_refuses_and_still_asks_the_others(replicas, clock):
    servers = replicas({"updates": False}, {})
    servers[0].adapters["calendar"] = "x"

    async def work(target):
        await target.check()
        with pytest.raises(TargetStatusError, match=str(servers[0].port)):
            await target.unload()

    run(servers, clock, work)
    assert not servers[1].adapters


def test_the_key_is_sent_to_every_route_and_never_shown(replicas, clock):
    servers = replicas({"key": "canary-key"})
    assert run(servers, clock, ask, key="canary-key") == "calendar answers"
    with pytest.raises(TargetError) as caught:
        run(servers, clock, ask, key="canary-other")
    assert caught.value.status == 401
    assert "canary" not in str(caught.value)


def test_a_call_that_is_refused_for_its_content_rests_nobody(replicas, clock):
    [server] = replicas({})

    async def work(target):
        await target.check()
        server.chat = lambda handler, body: server.error(handler, 400, "BadRequestError", "no")
        with pytest.raises(TargetStatusError) as caught:
            await ask(target)
        return caught.value.status, target.replicas[0]

    status, state = run([server], clock, work)
    assert status == 400
    assert (state.rests_s, state.has_adapter, state.in_flight) == (0.0, True, 0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"adapter_path": "/etc/x"}, "below 'adapters_root'"),
        ({"adapter_path": f"{ROOT}/../x"}, "below 'adapters_root'"),
        ({"adapter_path": ROOT}, "below 'adapters_root'"),
        ({"adapter_path": "calendar"}, "below 'adapters_root'"),
        ({"adapters_root": None}, "needs 'adapters_root'"),
        ({"base_urls": []}, "base_urls"),
        ({"base_urls": ["http://a/v1", "http://a/v1/"]}, "twice"),
        ({"base_urls": ["ftp://a"]}, "http"),
        ({"rest_s": 0}, "rest_s"),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(changed, words):
    content = {"kind": "lora-vllm", "base_urls": ["http://a/v1"], "adapters_root": ROOT}
    content |= {"adapter_path": f"{ROOT}/calendar"}
    with pytest.raises(ConfigError, match=words):
        validate(LoraVllmTargetConfig, content | changed, source="test")


def test_a_name_that_no_server_should_get_is_refused_before_it_is_sent(replicas, clock):
    with pytest.raises(ConfigError, match="'model'"):
        run(replicas({}), clock, ask, model="a b")


def test_lorax_takes_the_adapters_id_as_the_model(replicas):
    [server] = replicas({"lorax": True})

    async def work():
        config = LoraxTargetConfig(kind="lorax", base_url=server.url, model="org/some-adapter")
        target = openai_target.OpenAITarget("days", config)
        try:
            return (await target.acomplete(CALL)).text
        finally:
            await target.aclose()

    assert asyncio.run(work()) == "org/some-adapter answers"
