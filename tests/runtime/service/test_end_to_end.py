"""The real OpenAI client against the real service in front of a simulated provider."""

from __future__ import annotations

import asyncio
import base64
import json
from io import BytesIO

import openai
import pytest
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def user(text):
    return [{"role": "user", "content": text}]


def picture():
    buffer = BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def seeing(text="How many squares?"):
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": picture()}}]
    return [{"role": "user", "content": parts}]


def create(site, **parameters):
    raw = site.client().chat.completions.with_raw_response.create(**parameters)
    return raw.parse(), raw.headers


def test_auto_is_answered_by_a_candidate_which_the_headers_name(site):
    answer, headers = create(site, model="auto", messages=user("What is 17 + 25?"))
    assert answer.choices[0].message.content
    assert answer.model == headers["x-router-model"]
    assert headers["x-router-decision-id"].startswith("dec_")
    assert headers["x-router-attempts"] == "1"
    assert headers["x-router-schema-version"] == "1"
    assert "x-router-probability" not in headers


def test_debug_headers_tell_policy_probability_cost_and_time(site):
    client = site.client(default_headers={"x-router-debug": "true"})
    raw = client.chat.completions.with_raw_response.create(
        model="auto:quality", messages=user("What is 17 + 25?")
    )
    assert raw.headers["x-router-policy"] == "quality"
    assert 0 <= float(raw.headers["x-router-probability"]) <= 1
    assert float(raw.headers["x-router-cost-usd"]) > 0
    assert float(raw.headers["x-router-overhead-ms"]) > 0


def test_a_named_candidate_is_passed_through(site):
    answer, headers = create(site, model="sim-large-text", messages=user("Hello"))
    assert answer.model == "sim-large-text"
    assert headers["x-router-reason"] == "requested"


def test_an_answer_is_what_the_provider_answers_byte_by_byte(site):
    body = {"model": "sim-small-text", "messages": user("Hello"), "seed": 3}
    ours = site.http("POST", "/v1/chat/completions", body)[2]
    theirs = site.http("POST", "/v1/chat/completions", body, url=site.provider_url)[2]
    assert ours == theirs


def test_a_stream_is_what_the_provider_streams_byte_by_byte(site):
    body = {
        "model": "sim-small-text",
        "messages": user("Hello"),
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    status, headers, ours = site.http("POST", "/v1/chat/completions", body)
    theirs = site.http("POST", "/v1/chat/completions", body, url=site.provider_url)[2]
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert ours == theirs
    assert ours.endswith(b"data: [DONE]\n\n")


def test_usage_that_was_not_asked_for_is_hidden_again(site):
    stream = site.client().chat.completions.create(
        model="auto", messages=user("Hello"), stream=True
    )
    chunks = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_usage_that_was_asked_for_comes(site):
    stream = site.client().chat.completions.create(
        model="auto",
        messages=user("Hello"),
        stream=True,
        stream_options={"include_usage": True},
    )
    assert list(stream)[-1].usage.completion_tokens > 0


def test_the_async_client_is_served_many_at_a_time(site):
    async def many():
        async with site.async_client() as client:
            calls = [
                client.chat.completions.create(model="auto", messages=user(f"What is {n} + 1?"))
                for n in range(20)
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(many())
    assert len({answer.id for answer in answers}) == 20


def test_the_async_client_streams(site):
    async def streamed():
        async with site.async_client() as client:
            stream = await client.chat.completions.create(
                model="auto", messages=user("Hello"), stream=True
            )
            return [chunk async for chunk in stream]

    assert asyncio.run(streamed())[-1].choices[0].finish_reason == "stop"


def test_tools_pass_through(site):
    answer, _ = create(site, model="auto", messages=user("add 2 and 3"), tools=[TOOL])
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) == {"a", "b"}


def test_streamed_tools_pass_through(site):
    stream = site.client().chat.completions.create(
        model="auto", messages=user("add 2 and 3"), tools=[TOOL], stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    names = [call.function.name for delta in deltas for call in delta.tool_calls or ()]
    assert "add" in names


def test_json_mode_passes_through(site):
    answer, _ = create(
        site, model="auto", messages=user("Hello"), response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_pictures_go_to_a_model_that_sees(site):
    answer, headers = create(site, model="auto", messages=seeing())
    assert headers["x-router-model"].endswith("-vl")
    assert answer.choices[0].message.content


def test_a_picture_sent_to_a_model_that_does_not_see_is_the_providers_error(site):
    with pytest.raises(openai.BadRequestError) as caught:
        create(site, model="sim-small-text", messages=seeing())
    assert "image_url" in caught.value.message


def test_several_choices_and_unknown_fields_pass_through(site):
    answer, _ = create(
        site,
        model="auto",
        messages=user("Hello"),
        n=3,
        logprobs=True,
        extra_body={"house_option": {"deep": [1, 2**60]}},
    )
    assert len(answer.choices) == 3


def test_embeddings_pass_through(site):
    answer = site.client().embeddings.create(model="sim-embedding", input=["a", "b"])
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) == 8


def test_embeddings_are_not_routed(site):
    with pytest.raises(openai.NotFoundError):
        site.client().embeddings.create(model="auto", input="a")


def test_models_are_listed_and_described(site):
    names = [model.id for model in site.client().models.list()]
    assert {"auto", "auto:quality", "sim-large-vl", "sim-embedding"} <= set(names)
    assert site.client().models.retrieve("sim-large-vl").id == "sim-large-vl"
    with pytest.raises(openai.NotFoundError):
        site.client().models.retrieve("other")


def test_an_unknown_model_is_not_found_and_not_repeated(site):
    status, headers, body = site.chat(model="my-secret-model")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "my-secret-model" not in json.dumps(body)
    assert "x-router-decision-id" in headers


def test_an_unknown_policy_and_a_wrong_control_are_refused(site):
    assert site.chat(model="auto:no-such")[2]["error"]["code"] == "unknown_policy"
    status, _, body = site.chat(router={"max_cost": 1})
    assert (status, body["error"]["code"]) == (400, "invalid_router_controls")


def test_controls_choose_and_are_not_forwarded(site):
    status, headers, _ = site.chat(router={"deny": ["sim-small-text", "sim-small-vl"]})
    assert status == 200
    assert "large" in headers["x-router-model"]


def test_a_request_that_nobody_can_serve_says_why(site):
    status, _, body = site.chat(router={"min_probability": 1.0})
    assert (status, body["error"]["code"]) == (422, "no_eligible_model")
    assert "below_min_probability" in body["error"]["message"]


def test_a_dry_run_explains_and_calls_nobody(site):
    before = site.ledger()
    status, _, told = site.chat(router={"dry_run": True})
    assert status == 200
    assert told["object"] == "router.decision"
    assert site.ledger() == before


def test_a_route_is_explained_step_by_step(site):
    status, headers, told = site.post("/v1/route", {"messages": seeing()})
    assert status == 200
    assert told["model"] == headers["x-router-model"]
    assert told["ranking"][0] == told["model"]
    steps = [step["name"] for step in told["steps"]]
    assert steps == ["normalise", "filter", "features", "predict", "policy", "sticky", "choose"]
    blind = {c["model"]: c for c in told["candidates"]}["sim-small-text"]
    assert (blind["eligible"], blind["reason"]) == (False, "does_not_accept_image")
    assert 0 <= blind["probability"] <= 1
    assert told["artifact_id"]


def test_the_ancestors_route_answers_with_the_models_name(site):
    body = {"model": "", "messages": user("What is 17 + 25?")}
    status, headers, told = site.post("/sfc_router/chat/completions", body)
    assert status == 200
    assert told["choices"][0]["message"]["content"] == headers["x-router-model"]


def test_feedback_is_taken_once_replaced_and_bound_to_known_decisions(site):
    decision = site.chat()[1]["x-router-decision-id"]

    def give(**body):
        status, _, told = site.post("/v1/feedback", body)
        return status, told.get("status") or told["error"]["code"]

    assert give(decision_id=decision, score=1) == (201, "created")
    assert give(decision_id=decision, verdict="good") == (200, "unchanged")
    assert give(decision_id=decision, score=0.5) == (200, "replaced")
    assert give(decision_id="dec_unknown", score=1) == (404, "decision_not_found")
    assert give(decision_id=decision) == (400, "invalid_request")
    assert give(decision_id=decision, score=2) == (400, "invalid_request")


def test_spend_in_the_store_is_what_the_provider_bills(open_site):
    site = open_site()
    for n in range(3):
        site.chat(f"What is {n} + 1?")
        site.chat(f"What is {n} + 2?", stream=False, model="sim-large-vl")
        list(
            site.client().chat.completions.create(
                model="auto", messages=user(f"What is {n} + 3?"), stream=True
            )
        )
    site.client().embeddings.create(model="sim-embedding", input=["some words", "more"])
    assert site.ledger_usd() > 0
    assert site.spent() == site.ledger_usd()


def test_metrics_and_the_document_are_served(site):
    site.chat()
    status, headers, text = site.http("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert b"model_router_requests_total" in text
    document = json.loads(site.http("GET", "/openapi.json")[2])
    assert "/v1/chat/completions" in document["paths"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/startupz"])
def test_health_is_told_without_a_key(site, path):
    status, _, data = site.http("GET", path)
    assert (status, json.loads(data)["status"]) == (200, "ok")


def test_the_page_is_served(site):
    status, headers, _ = site.http("GET", "/ui")
    assert status == 200
    assert headers["content-type"].startswith("text/html")


def test_spoofed_headers_are_dropped(site):
    sent = {"x-router-model": "evil", "x-router-decision-id": "dec_mine"}
    _, headers, _ = site.chat(headers=sent)
    assert headers["x-router-model"] != "evil"
    assert headers["x-router-decision-id"] != "dec_mine"


def test_another_sites_name_is_refused_without_keys(site):
    status, _, body = site.chat(headers={"host": "attacker.example"})
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")
