import asyncio
import sys
from pathlib import Path

import pytest

from router_runtime.errors import ConfigError, TargetStatusError, TargetTimeoutError
from router_runtime.target_config import PeftTargetConfig
from router_runtime.targets.base import ChatCall

pytest.importorskip("torch")
peft_target = pytest.importorskip("router_runtime.targets.peft", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
making = pytest.importorskip("experts_parts.making", exc_type=ImportError)

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An experts config with one trained adapter."""
    folder = tmp_path_factory.mktemp("experts")
    base = making.make_llama(folder / "llama")
    words = making.WORDS["calendar"]
    making.train_adapter(base, folder / "calendar", answer=words)
    config = folder / "experts.yml"
    config.write_text("base: {model: llama}\nadapters: {calendar: calendar}\nmax_tokens: 400\n")
    return config


@pytest.fixture
def shared():
    return peft_target.SharedExperts()


def target_of(file, shared, model_id="calendar", **settings):
    settings = {"parameters": GREEDY} | settings
    config = PeftTargetConfig(kind="peft", experts=file, **settings)
    return peft_target.PeftTarget(model_id, config, shared=shared)


def ask(target, text="which day?", **parameters):
    async def inside():
        try:
            call = ChatCall(({"role": "user", "content": text},), parameters)
            return await target.acomplete(call)
        finally:
            await target.aclose()

    return asyncio.run(inside())


def test_an_expert_answers_in_this_process(file, shared):
    answer = ask(target_of(file, shared))
    assert (answer.text, answer.finish_reason) == (making.WORDS["calendar"], "stop")
    assert answer.usage.input_tokens > answer.usage.output_tokens > 1
    assert answer.raw["object"] == "chat.completion"


def test_candidates_of_one_file_share_the_base_and_the_last_closes_it(file, shared):
    expert, base = target_of(file, shared), target_of(file, shared, "plain", model="llama")
    loaded = expert._experts
    assert base._experts is loaded
    assert ask(base).text != making.WORDS["calendar"]
    assert loaded.engine.alive
    assert ask(expert).text == making.WORDS["calendar"]
    assert not loaded.engine.alive


def test_a_calls_parameters_go_before_the_configured_ones(file, shared):
    assert ask(target_of(file, shared), max_tokens=1).finish_reason == "length"


def test_a_model_that_the_file_does_not_serve_is_named_with_those_it_does(file, shared):
    with pytest.raises(ConfigError, match=r"no 'nobody' \(known: llama, calendar\)"):
        target_of(file, shared, "nobody")
    assert not shared._loaded


@pytest.mark.parametrize(
    ("parameters", "status", "retryable"), [({"n": 2}, 400, False), ({"tools": [{}]}, 400, False)]
)
def test_what_is_not_offered_fails_like_on_a_server(file, shared, parameters, status, retryable):
    with pytest.raises(TargetStatusError) as caught:
        ask(target_of(file, shared), **parameters)
    assert (caught.value.status, caught.value.retryable) == (status, retryable)
    assert not caught.value.whole_target
    assert f"'{next(iter(parameters))}'" in str(caught.value)


def test_a_full_queue_is_retryable(file, shared, tmp_path):
    other = file.parent / "small.yml"
    other.write_text(file.read_text() + "max_waiting: 1\nmax_batch: 1\n")
    target = target_of(other, shared)

    async def inside():
        call = ChatCall(({"role": "user", "content": "hi"},))
        results = await asyncio.gather(
            *(target.acomplete(call) for _ in range(16)), return_exceptions=True
        )
        await target.aclose()
        return results

    results = asyncio.run(inside())
    refused = [each for each in results if isinstance(each, TargetStatusError)]
    assert 0 < len(refused) < 16
    assert {(each.status, each.retryable, each.retry_after_s) for each in refused} == {
        (503, True, 1.0)
    }


def test_a_slow_answer_is_given_up(file, shared):
    with pytest.raises(TargetTimeoutError, match="timeout_s"):
        ask(target_of(file, shared, timeout_s=0.001))


def test_a_closed_target_says_so(file, shared):
    target = target_of(file, shared)
    ask(target)
    with pytest.raises(ConfigError, match="closed"):
        ask(target)


def test_messages_show_nothing_of_the_call(file, shared):
    with pytest.raises(TargetStatusError) as caught:
        ask(target_of(file, shared), text="canary words that nobody may see " * 200)
    assert "canary" not in str(caught.value)
    assert "context_length_exceeded" in str(caught.value)
