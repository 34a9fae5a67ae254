"""The API as the real client sees it."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import openai
import pytest

from router_runtime.errors import ConfigError
from router_runtime.simulator.app import build_app
from router_runtime.simulator.config import SimulatorConfig

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PRICE = {"input_mtok": "3", "output_mtok": "12", "image": "0.001"}


@pytest.fixture(scope="module")
def provider(start, tmp_path_factory):
    path = tmp_path_factory.mktemp("known") / "answers.jsonl"
    picture = hashlib.sha256(start.provider.picture()).hexdigest()
    rows = [
        {"prompt": f"What is {at} + 1?", "answer": str(at + 1), "topic": "sum", "difficulty": 0.5}
        for at in range(100)
    ]
    rows += [
        {"prompt": "How many?", "images_sha256": [picture], "answer": "7", "topic": "shapes"},
        {"prompt": "Long?", "answer": "yes", "topic": "sum", "output_tokens": 100},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {
        "sure": {"default_skill": [1, 1], "modalities": ["text", "image"], "price": PRICE},
        "wrong": {"default_skill": [0, 0]},
        "half": {"skills": {"sum": [0.5, 0.5]}},
        "wordy": {"default_skill": [1, 1], "usage": {"verbosity": 2, "image_tokens": 5}},
        "plain": {"response_formats": ["json_object"]},
        "slow": {"latency": {"median_s": 0.2}, "tokens_per_second": 200, "default_skill": [1, 1]},
        "busy": {"latency": {"median_s": 0.3}, "max_concurrency": 1},
        "limited": {"rate_limit": {"requests_per_minute": 30, "burst": 2}},
        "sticky": {"errors": {"rate": 0.5, "kinds": ["status_422"], "sticky": True}},
        "flaky": {"errors": {"rate": 0.3, "kinds": ["status_500", "usage_missing"]}},
        "stormy": {"errors": {"rate": 1, "kinds": ["rate_limit_storm"]}},
        "org/vectors": {"role": "embedding", "modalities": ["text", "image"], "dimensions": 16},
    }
    return start(models, answers=path, seed=3)


# --------------------------------------------------------------------------- answers


def test_a_known_answer_is_given_by_a_model_of_skill_and_by_no_other(provider):
    assert "42" in provider.text("sure", "What is 41 + 1?")
    assert "42" not in provider.text("wrong", "What is 41 + 1?")


def test_pictures_belong_to_the_prompt(provider):
    shown = provider.user("How many?", provider.picture())
    other = provider.user("How many?", provider.picture("blue"))
    assert "7" in provider.text("sure", shown) and "7" not in provider.text("sure", other)


def test_equal_calls_are_answered_alike_in_whatever_order(provider):
    prompts = [f"What is {at} + 1?" for at in range(30)]
    first = [provider.chat("half", prompt).to_dict() for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        again = pool.map(lambda prompt: provider.chat("half", prompt).to_dict(), prompts[::-1])
    assert list(again)[::-1] == first
    right = [
        str(at + 1) in each["choices"][0]["message"]["content"].split()
        for at, each in enumerate(first)
    ]
    assert len({each["id"] for each in first}) == 30 and 0 < sum(right) < 30


def test_a_temperature_makes_equal_calls_vary_and_a_seed_holds_them(provider):
    provider.reset()
    warm = [provider.text("half", "What is 4 + 1?", temperature=1) for _ in range(12)]
    held = [provider.text("half", "What is 4 + 1?", temperature=1, seed=5) for _ in range(3)]
    provider.reset()
    again = [provider.text("half", "What is 4 + 1?", temperature=1) for _ in range(12)]
    assert len(set(warm)) > 2 and len(set(held)) == 1 and again == warm


def test_n_choices_are_drawn_apart(provider):
    choices = provider.chat("half", "What is 8 + 1?", n=8).choices
    assert [choice.index for choice in choices] == list(range(8))
    assert len({choice.message.content for choice in choices}) > 1


def test_max_tokens_cuts_the_answer_and_says_so(provider):
    whole = provider.chat("sure", "Long?")
    cut = provider.chat("sure", "Long?", max_tokens=10)
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (100, "stop")
    assert (cut.usage.completion_tokens, cut.choices[0].finish_reason) == (10, "length")
    assert len(cut.choices[0].message.content) < len(whole.choices[0].message.content)


def test_usage_counts_characters_pictures_and_verbosity(provider):
    picture = provider.user("x" * 40, provider.picture())
    assert provider.chat("sure", picture).usage.prompt_tokens == 10 + 800
    assert provider.chat("wordy", "Long?").usage.completion_tokens == 200


def test_tools_are_called_once_and_then_answered(provider):
    asked = provider.user("Which weather?")
    choice = provider.chat("sure", asked, tools=[TOOL]).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.function.name, list(json.loads(call.function.arguments))) == ("weather", ["city"])
    turns = [*asked, choice.message.to_dict()]
    turns.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    assert provider.chat("sure", turns, tools=[TOOL]).choices[0].message.content
    assert provider.text("sure", asked, tools=[TOOL], tool_choice="none")


def test_structured_output_fits_its_schema(provider):
    schema = {"type": "object", "properties": {"sum": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    said = json.loads(provider.text("sure", "What is 41 + 1?", response_format=wanted))
    assert "42" in said["sum"]
    said = provider.text("sure", "What is 41 + 1?", response_format={"type": "json_object"})
    assert "42" in json.loads(said)["answer"]


# --------------------------------------------------------------------------- streams


def test_a_stream_holds_the_same_answer_and_the_usage_if_asked(provider):
    whole = provider.chat("sure", "What is 41 + 1?")
    stream = provider.chat(
        "sure", "What is 41 + 1?", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, deltas)) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    quiet = list(provider.chat("sure", "What is 41 + 1?", stream=True))
    assert all(chunk.usage is None for chunk in quiet)


def test_tools_stream_in_pieces(provider):
    chunks = list(provider.chat("sure", "Which weather?", tools=[TOOL], stream=True))
    calls = [d.tool_calls[0] for c in chunks if (d := c.choices[0].delta).tool_calls]
    assert calls[0].function.name == "weather"
    assert json.loads("".join(call.function.arguments for call in calls)).keys() == {"city"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_latency_comes_first_and_then_tokens_at_their_speed(provider):
    began = time.monotonic()
    times = [time.monotonic() - began for _ in provider.chat("slow", "Long?", stream=True)]
    assert times[0] >= 0.2 and times[-1] - times[0] >= 0.3
    began = time.monotonic()
    provider.chat("slow", "Long?")
    assert time.monotonic() - began >= 0.7


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "parameters", "said"),
    [
        ("plain", {"messages": "picture"}, "image_url"),
        ("org/vectors", {}, "does not chat"),
        ("plain", {"messages": []}, "messages"),
        ("plain", {"messages": [{"role": "king", "content": "x"}]}, "role"),
        ("plain", {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "part"),
        ("plain", {"n": 1000}, "'n'"),
        ("plain", {"max_tokens": 0}, "max_tokens"),
        ("plain", {"temperature": 9}, "temperature"),
        ("plain", {"tools": [{"type": "function"}]}, "tools"),
        ("plain", {"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ("plain", {"response_format": {"type": "xml"}}, "response_format"),
        (
            "plain",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "json_schema",
        ),
    ],
)
def test_a_request_that_a_model_cannot_serve_is_a_400(provider, model, parameters, said):
    before = provider.ledger()["models"][model]["refused"]
    if parameters.get("messages") == "picture":
        parameters = {"messages": provider.user("?", provider.picture())}
    body = {"model": model, "messages": provider.user("hi"), **parameters}
    status, _, data = provider.http("POST", "/v1/chat/completions", body)
    assert status == 400 and said in json.loads(data)["error"]["message"]
    assert provider.ledger()["models"][model]["refused"] == before + 1


def test_a_picture_is_never_fetched(provider):
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        provider.chat("sure", [{"role": "user", "content": [part]}])


@pytest.mark.parametrize("body", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_json_object_is_a_400(provider, body):
    assert provider.http("POST", "/v1/chat/completions", body)[0] == 400


def test_unknown_models_and_routes_are_404(provider):
    with pytest.raises(openai.NotFoundError) as caught:
        provider.chat("ghost", "hi")
    assert caught.value.code == "model_not_found"
    assert provider.http("GET", "/v1/nothing")[0] == 404
    assert provider.http("GET", "/v1/models/ghost")[0] == 404


def test_a_key_is_asked_for_where_one_is_configured(start, monkeypatch):
    monkeypatch.setenv("SIMULATOR_KEY", "open-sesame")
    guarded = start({"m": {}}, api_key_env="SIMULATOR_KEY")
    with pytest.raises(openai.AuthenticationError):
        guarded.chat("m", "hi")
    for path in ("/v1/models", "/simulator/ledger"):
        assert guarded.http("GET", path)[0] == 401
    bearer = {"Authorization": "Bearer open-sesame"}
    assert guarded.http("GET", "/v1/models", headers=bearer)[0] == 200
    azure = openai.AzureOpenAI(
        azure_endpoint=guarded.url, api_key="open-sesame", api_version="2024-10-21", max_retries=0
    )
    messages = guarded.user("hi")
    assert azure.chat.completions.create(model="m", messages=messages).model == "m"


def test_a_key_that_is_not_set_is_a_config_error(monkeypatch):
    monkeypatch.delenv("SIMULATOR_KEY", raising=False)
    config = {"models": {"m": {}}, "api_key_env": "SIMULATOR_KEY"}
    with pytest.raises(ConfigError, match="SIMULATOR_KEY"):
        build_app(SimulatorConfig.model_validate(config))


# --------------------------------------------------------------------------- limits and faults


def test_calls_above_the_limit_are_told_how_long_to_wait(provider):
    provider.reset()
    body = {"model": "limited", "messages": provider.user("hi")}
    answers = [provider.http("POST", "/v1/chat/completions", body) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 429, 429]
    assert answers[-1][1]["retry-after"] == "2"
    assert 0 < int(answers[-1][1]["retry-after-ms"]) <= 2000
    assert provider.ledger()["models"]["limited"]["rate_limited"] == 2


def test_more_calls_at_a_time_than_a_model_takes_are_429(provider):
    with ThreadPoolExecutor(2) as pool:
        body = {"model": "busy", "messages": provider.user("hi")}
        calls = [pool.submit(provider.http, "POST", "/v1/chat/completions", body) for _ in range(2)]
        assert sorted(call.result()[0] for call in calls) == [200, 429]


def test_a_sticky_fault_meets_equal_calls_and_another_does_not_matter(provider):
    body = {"model": "sticky"}

    def statuses():
        texts = [provider.user(f"prompt {at}") for at in range(20)]
        bodies = [{**body, "messages": text} for text in texts]
        return [provider.http("POST", "/v1/chat/completions", each)[0] for each in bodies]

    first = statuses()
    assert set(first) == {200, 422} and statuses() == first


def test_other_faults_come_at_their_rate_and_pass(provider):
    provider.reset()
    body = {"model": "flaky", "messages": provider.user("hi")}
    for _ in range(100):
        provider.http("POST", "/v1/chat/completions", body)
    account = provider.ledger()["models"]["flaky"]
    assert 18 <= sum(account["faults"].values()) <= 42
    assert account["answered"] == 100 - account["faults"]["status_500"]


def test_in_a_storm_every_call_is_429(provider):
    body = {"model": "stormy", "messages": provider.user("hi")}
    answers = [provider.http("POST", "/v1/chat/completions", body) for _ in range(3)]
    assert {(status, headers["retry-after"]) for status, headers, _ in answers} == {(429, "2")}


# --------------------------------------------------------------------------- the rest


def test_models_say_that_they_are_simulated(provider):
    listed = provider.client.models.list().data
    assert [model.id for model in listed][:2] == ["sure", "wrong"]
    assert all(model.owned_by == "model-router-simulator" for model in listed)
    assert all(model.to_dict()["simulated"] is True for model in listed)
    assert provider.client.models.retrieve("org/vectors").id == "org/vectors"


def test_the_ledger_is_exact_and_can_be_reset(provider):
    provider.reset()
    usages = [provider.chat("sure", f"What is {at} + 1?").usage for at in range(5)]
    provider.chat("sure", provider.user("How many?", provider.picture()))
    account = provider.ledger()["models"]["sure"]
    assert (account["requests"], account["answered"], account["images"]) == (6, 6, 1)
    assert account["input_tokens"] == sum(usage.prompt_tokens for usage in usages) + 802
    dollars = Decimal(account["input_tokens"] * 3 + account["output_tokens"] * 12) / 10**6
    assert Decimal(account["cost_usd"]) == dollars + Decimal("0.001")
    assert Decimal(provider.ledger()["cost_usd"]) == Decimal(account["cost_usd"])
    assert (account["in_flight"], account["peak_in_flight"]) == (0, 1)
    provider.reset()
    assert provider.ledger()["models"]["sure"]["requests"] == 0


def test_embeddings_follow_from_content_in_either_encoding(provider):
    create = provider.client.embeddings.create
    texts = ["a red house", "a red car", "quantum fields"]
    plain = create(model="org/vectors", input=texts, encoding_format="float")
    packed = create(model="org/vectors", input=texts)  # the client asks for base64
    vectors = [each.embedding for each in plain.data]
    assert [each.embedding for each in packed.data] == [pytest.approx(v, abs=1e-6) for v in vectors]
    assert all(sum(x * x for x in v) == pytest.approx(1, abs=1e-5) for v in vectors)
    dot = [sum(a * b for a, b in zip(vectors[0], v, strict=True)) for v in vectors]
    assert dot[1] > 0.4 > dot[2]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == round(34 / 4)


def test_embeddings_take_pictures_beside_texts(provider):
    uri = provider.data_uri(provider.picture())
    mixed = provider.client.embeddings.create(
        model="org/vectors", input=["a red square", uri], encoding_format="float"
    )
    assert len(mixed.data) == 2 and mixed.usage.prompt_tokens == 3 + 800
    for wrong in ([], [""], ["data:image/png;base64,%"], 5):
        body = {"model": "org/vectors", "input": wrong}
        assert provider.http("POST", "/v1/embeddings", body)[0] == 400
    body = {"model": "sure", "input": "x"}
    assert provider.http("POST", "/v1/embeddings", body)[0] == 400
