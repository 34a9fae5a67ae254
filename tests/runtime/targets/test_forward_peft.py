import asyncio
import gc
import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from router_runtime.config import CandidateConfig
from router_runtime.errors import ConfigError, TargetTimeoutError
from router_runtime.target_config import PeftTargetConfig
from router_runtime.targets.calling import acomplete
from router_runtime.targets.dispatch import Rules, adispatch
from router_runtime.targets.forward import build_forwarders
from router_runtime.targets.replies import Refused
from router_runtime.targets.streams import Stream
from router_runtime.targets.wholes import Whole

pytest.importorskip("torch")
forward_peft = pytest.importorskip("router_runtime.targets.forward_peft", exc_type=ImportError)
from router_runtime.targets.peft import SharedExperts  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
making = pytest.importorskip("experts_parts.making", exc_type=ImportError)

CHAT = "chat/completions"
BODY = {"model": "auto", "messages": [{"role": "user", "content": "which day?"}]}
GREEDY = {"temperature": 0, "max_tokens": 12}
NAMES = ("calendar", "claim-window")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two trained adapters, and an experts config with both."""
    folder = tmp_path_factory.mktemp("experts")
    base = making.make_llama(folder / "llama")
    for name in NAMES:
        making.train_adapter(base, folder / name, answer=making.WORDS[name])
    write(folder)
    return folder


def write(folder, names=NAMES, more="", file="experts.yml"):
    listed = ", ".join(f"{name}: {name}" for name in names)
    text = f"base: {{model: llama}}\nadapters: {{{listed}}}\nmax_tokens: 400\n{more}"
    (folder / file).write_text(text)
    return folder / file


@pytest.fixture
def shared():
    shared = SharedExperts()
    yield shared
    assert not shared._loaded


def built(file, shared, names=NAMES, **settings):
    configs = {
        name: PeftTargetConfig(kind="peft", experts=file, **{"parameters": GREEDY} | settings)
        for name in names
    }
    bound = settings.get("max_concurrency")
    chosen = {file: {name: (config, bound) for name, config in configs.items()}}
    return forward_peft.build_peft_forwarders(chosen, shared=shared)


def run(targets, work):
    async def inside():
        try:
            return await work(targets)
        finally:
            assert [target.in_flight for target in targets.values()] == [0] * len(targets)
            for target in targets.values():
                await target.aclose()

    return asyncio.run(inside())


async def ask(targets, name="calendar", rules=Rules(), **fields):
    return await adispatch([name], targets, CHAT, BODY | fields, rules=rules)


async def text_of(targets, name="calendar", **fields):
    found = await ask(targets, name, **fields)
    assert isinstance(found.answer, Whole), found.failure
    return found.answer.body["choices"][0]["message"]["content"]


async def events_of(targets, **fields):
    found = await ask(targets, stream=True, **fields)
    assert isinstance(found.answer, Stream), found.failure
    data = b"".join([chunk async for chunk in found.answer.chunks()]) + found.answer.ending
    await found.answer.aclose()
    return data, found


@contextmanager
def held(target):
    """Keep the model's thread from its next batch."""
    engine, gate, entered = target._experts.engine, threading.Event(), threading.Event()
    held = threading.Thread(
        target=engine.call, args=(lambda _: (entered.set(), gate.wait(60)),), daemon=True
    )
    held.start()
    assert entered.wait(30)
    try:
        yield engine
    finally:
        gate.set()
        held.join(30)


def test_each_candidate_is_answered_by_its_adapter_on_one_base(folder, shared):
    targets = built(folder / "experts.yml", shared)

    async def work(targets):
        return [await ask(targets, name) for name in NAMES]

    found = run(targets, work)
    for name, each in zip(NAMES, found, strict=True):
        body = each.answer.body
        assert body["object"] == "chat.completion"
        assert body["model"] == name
        assert body["choices"][0]["message"]["content"] == making.WORDS[name]
        assert body["choices"][0]["finish_reason"] == "stop"
        assert each.tried[0].usage["completion_tokens"] > 1
        assert json.loads(each.answer.content) == body
        assert each.answer.content_type == "application/json"


def test_the_model_is_in_memory_once(folder, shared):
    targets = built(folder / "experts.yml", shared)
    first, second = (target._experts for target in targets.values())
    assert first is second
    run(targets, text_of)
    assert not first.engine.alive


@pytest.mark.parametrize("told", [True, False])
def test_a_stream_has_the_form_and_the_text_of_a_servers(folder, shared, told):
    options = {"stream_options": {"include_usage": True}} if told else {}

    async def work(targets):
        return await events_of(targets, **options), await text_of(targets)

    (data, found), text = run(built(folder / "experts.yml", shared), work)
    events = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]
    assert events.pop() == b"[DONE]"
    chunks = [json.loads(event) for event in events]
    usage = chunks.pop()["usage"] if told else found.tried[0].usage
    assert usage["completion_tokens"] > 1
    assert not any(chunk.get("usage") for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert found.answer.content_type.startswith("text/event-stream")
    assert [each.error for each in found.tried] == [None]


def test_the_event_loop_goes_on_while_the_model_works(folder, shared):
    async def work(targets):
        with held(targets["calendar"]):
            call = asyncio.create_task(text_of(targets))
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert not call.done()
        return await call

    assert run(built(folder / "experts.yml", shared), work) == making.WORDS["calendar"]


def test_a_full_queue_is_busy_and_a_retryable_503_where_it_fills_meanwhile(folder, shared):
    file = write(folder, more="max_waiting: 1\nmax_batch: 1\n", file="small.yml")
    targets = built(file, shared)

    async def work(targets):
        with held(targets["calendar"]) as engine:
            waits = asyncio.create_task(text_of(targets))
            while not engine.waiting:
                await asyncio.sleep(0.001)
            assert targets["claim-window"].busy  # it is one queue
            skipped = await ask(targets, "claim-window")
            refused = await targets["calendar"].open(
                CHAT, targets["calendar"].prepare(BODY).data, timeout_s=9, idle_s=9
            )
        return skipped, refused, await waits

    skipped, refused, text = run(targets, work)
    assert [tried.error for tried in skipped.tried] == ["busy"]
    error = skipped.error()
    assert (error.status, error.retry_after_s) == (503, 1.0)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.error.retryable, refused.error.retry_after_s) == (503, True, 1)
    assert json.loads(refused.body)["error"]["code"] == "overloaded"
    assert text == making.WORDS["calendar"]


def test_a_call_that_is_given_up_leaves_the_queue(folder, shared):
    async def work(targets):
        target = targets["calendar"]
        with held(target) as engine:
            call = asyncio.create_task(ask(targets))
            while not engine.waiting:
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait([call])
            assert [row.cancelled for row in engine._waiting] == [True]
        return await text_of(targets, "claim-window")

    assert run(built(folder / "experts.yml", shared), work) == making.WORDS["claim-window"]


def test_a_stream_that_is_given_up_leaves_the_batch(folder, shared):
    async def work(targets):
        found = await ask(targets, stream=True, temperature=1.9, max_tokens=400, seed=3)
        chunks = found.answer.chunks()
        await anext(chunks)
        rows = list(targets["calendar"]._experts.engine._running)
        await found.answer.aclose()
        return found, [row.cancelled for row in rows]

    found, cancelled = run(built(folder / "experts.yml", shared), work)
    assert cancelled == [True]
    assert found.tried[-1].error == "cancelled"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"tools": [{"type": "function"}]}, "unsupported_parameter"),
        ({"n": 2}, "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "canary words " * 400}]}, None),
    ],
)
def test_what_is_not_offered_is_the_clients_to_change(folder, shared, fields, code):
    found = run(built(folder / "experts.yml", shared), lambda targets: ask(targets, **fields))
    assert found.refused.status == 400
    told = json.loads(found.refused.body)["error"]
    assert told["code"] == (code or "context_length_exceeded")
    assert "canary" not in f"{found.refused.error}{told}"


def test_other_paths_are_not_found(folder, shared):
    async def work(targets):
        return await adispatch(["calendar"], targets, "embeddings", {"input": "x"})

    found = run(built(folder / "experts.yml", shared), work)
    assert [tried.error for tried in found.tried] == ["status_404"]


def test_an_answer_that_comes_too_late_is_a_timeout(folder, shared):
    targets = built(folder / "experts.yml", shared, timeout_s=0.05)

    async def work(targets):
        with held(targets["calendar"]):
            whole, stream = await ask(targets), await ask(targets, stream=True)
        return whole, stream

    for found in run(targets, work):
        assert [tried.error for tried in found.tried] == ["timeout"]
        assert isinstance(found.failure, TargetTimeoutError)


def test_silence_within_a_stream_cuts_it(folder, shared):
    async def work(targets):
        found = await ask(targets, stream=True, max_tokens=400, temperature=1.9, seed=3)
        reply = found.answer._reply
        reply._idle_s = 0.0
        async for _ in found.answer.chunks():
            pass
        await found.answer.aclose()
        return found

    found = run(built(folder / "experts.yml", shared), work)
    assert isinstance(found.answer.cut, TargetTimeoutError)
    assert found.tried[-1].error == "cut"


def test_an_adapter_that_fails_lets_another_candidate_answer(folder, shared):
    targets = built(folder / "experts.yml", shared)

    async def work(targets):
        targets["calendar"]._experts.engine.remove_adapter("calendar")
        return await adispatch(["calendar", "claim-window"], targets, CHAT, BODY)

    found = run(targets, work)
    assert [tried.error for tried in found.tried] == ["status_404", None]


def test_limits_that_are_written_bind(folder, shared):
    targets = built(folder / "experts.yml", shared, max_concurrency=1, requests_per_minute=2)

    async def work(targets):
        with held(targets["calendar"]):
            first = asyncio.create_task(text_of(targets))
            while not targets["calendar"].in_flight:
                await asyncio.sleep(0.001)
            second = await ask(targets)
        await first
        await text_of(targets)
        return second, await ask(targets)

    assert [f.tried[0].error for f in run(targets, work)] == ["busy", "busy"]


def test_loading_again_finds_what_is_there_and_what_changed_is_new_on_the_same_base(
    folder, shared, tmp_path
):
    for name in ("llama", *NAMES):
        shutil.copytree(folder / name, tmp_path / name)
    file = write(tmp_path, NAMES[:1])
    first = built(file, shared, NAMES[:1])
    again = built(file, shared, NAMES[:1])
    write(tmp_path)
    second = built(file, shared)
    assert again["calendar"]._experts is first["calendar"]._experts
    old, new = first["calendar"]._experts, second["calendar"]._experts
    assert new is not old
    assert new.engine.pool.base.model is old.engine.pool.base.model
    assert old.models == ("llama", "calendar")

    async def work(_):
        texts = [
            await text_of(first),
            await text_of(second),
            await text_of(second, "claim-window"),
        ]
        for target in (*first.values(), *again.values()):
            await target.aclose()
        return texts, await text_of(second, "claim-window")

    texts, text = run(second, work)
    assert [*texts, text] == [making.WORDS[name] for name in (*NAMES[:1], *NAMES, "claim-window")]


def test_an_adapter_that_was_trained_again_in_its_place_is_new(folder, shared, tmp_path):
    for name in ("llama", *NAMES):
        shutil.copytree(folder / name, tmp_path / name)
    file = write(tmp_path)
    first = built(file, shared)
    shutil.rmtree(tmp_path / "calendar")
    shutil.copytree(tmp_path / "claim-window", tmp_path / "calendar")
    second = built(file, shared)

    async def work(_):
        texts = [await text_of(first), await text_of(second)]
        for target in first.values():
            await target.aclose()
        return texts

    assert run(second, work) == [making.WORDS[name] for name in NAMES]


def test_the_matrices_of_experts_that_nobody_uses_are_freed(folder, shared, tmp_path):
    for name in ("llama", *NAMES):
        shutil.copytree(folder / name, tmp_path / name)
    kept = built(write(tmp_path), shared)
    left = built(write(tmp_path, file="other.yml", more="max_batch: 2\n"), shared)
    model = kept["calendar"]._experts.engine.pool.base.model

    def matrices():
        return sum("lora_A" in name for name, _ in model.named_parameters())

    before = matrices()
    run(left, text_of)
    del left
    gc.collect()

    async def work(targets):
        return await text_of(targets), matrices()

    text, after = run(kept, work)
    assert (text, 2 * after) == (making.WORDS["calendar"], before)


def test_a_model_that_is_not_served_is_named_and_nothing_stays_loaded(folder, shared):
    with pytest.raises(ConfigError, match=r"no 'nobody' \(known: llama, calendar"):
        built(folder / "experts.yml", shared, ("calendar", "nobody"))
    assert not shared._loaded


def test_a_config_is_built_in_the_order_of_its_candidates(folder):
    experts = {"kind": "peft", "experts": str(folder / "experts.yml"), "parameters": GREEDY}
    targets = {
        "calendar": experts,
        "external": {"kind": "compatible", "base_url": "http://h/v1"},
        "days": {**experts, "model": "calendar", "max_concurrency": 2},
    }
    candidates = [
        CandidateConfig.model_validate({"id": name, "target": target})
        for name, target in targets.items()
    ]
    found = build_forwarders(candidates, environment={})
    assert list(found) == list(targets)
    assert [target._max_in_flight for target in found.values()] == [None, None, 2]
    assert found["calendar"]._experts is found["days"]._experts
    assert found["days"].identity.endswith("experts.yml calendar")

    async def both(targets):
        answer = await acomplete(["days"], targets, BODY)
        return answer.model_id, answer.text

    assert run(found, both) == ("days", making.WORDS["calendar"])


def test_without_experts_in_this_process_torch_is_not_imported():
    program = (
        "import sys\n"
        "from router_runtime.config import CandidateConfig\n"
        "from router_runtime.targets.forward import build_forwarders\n"
        "import router_runtime.service.parts, router_runtime.router_targets\n"
        "lora = {'kind': 'lora-vllm', 'base_urls': ['http://h/v1']}\n"
        "one = CandidateConfig.model_validate({'id': 'a', 'target': lora})\n"
        "assert list(build_forwarders([one], environment={})) == ['a']\n"
        "heavy = {'torch', 'transformers', 'peft', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)  # noqa: S603


def test_a_program_may_end_in_the_middle_of_an_answer(folder):
    program = (
        "import sys, threading, time\n"
        "from router_runtime.config import CandidateConfig\n"
        "from router_runtime.targets.calling import complete\n"
        "from router_runtime.targets.forward import build_forwarders\n"
        "target = {'kind': 'peft', 'experts': sys.argv[1], 'model': 'llama'}\n"
        "one = CandidateConfig.model_validate({'id': 'a', 'target': target})\n"
        "built = build_forwarders([one], environment={})\n"
        "body = {'messages': [{'role': 'user', 'content': 'hi'}], 'seed': 1}\n"
        "threading.Thread(target=complete, args=(['a'], built, body), daemon=True).start()\n"
        "while not built['a']._experts.engine.running:\n"
        "    time.sleep(0.001)\n"
    )
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", program, folder / "experts.yml"], check=True, timeout=120
    )
