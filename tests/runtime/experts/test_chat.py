import pytest

from router_runtime.errors import RequestError

pytest.importorskip("torch")
chat = pytest.importorskip("router_runtime.experts.chat", exc_type=ImportError)

from router_runtime.experts.batches import End  # noqa: E402

BODY = {"model": "m", "messages": []}


def read(**fields):
    return chat.read_request(BODY | fields, max_tokens=100)


def test_a_plain_request_has_the_defaults_of_openai():
    asked = read()
    assert (asked.model, asked.stream, asked.include_usage) == ("m", False, False)
    said = asked.sampling
    assert (said.max_tokens, said.temperature, said.top_p, said.stop, said.seed) == (
        100, 1.0, 1.0, (), None,
    )  # fmt: skip


def test_settings_are_read():
    asked = read(
        temperature=0, top_p=0.5, top_k=-1, stop="x", seed=3, stream=True, max_tokens=7,
        stream_options={"include_usage": True}, user="u", tools=[], n=1, logprobs=False,
        response_format={"type": "text"}, logit_bias=None, tool_choice="auto",
    )  # fmt: skip
    said = asked.sampling
    assert (said.temperature, said.top_p, said.top_k) == (0.0, 0.5, 0)
    assert (said.stop, said.seed, said.max_tokens) == (("x",), 3, 7)
    assert asked.stream
    assert asked.include_usage


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 500}, 100),
        ({"max_tokens": 50, "max_completion_tokens": 60}, 60),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
    ],
)
def test_the_newer_limit_goes_first_and_none_passes_the_servers(fields, expected):
    assert read(**fields).sampling.max_tokens == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2), ("logprobs", True), ("tools", [{}]), ("response_format", {"type": "json_object"}),
        ("presence_penalty", 0.5), ("logit_bias", {"1": 5}), ("audio", {}), ("made_up", 1),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(field, value):
    with pytest.raises(RequestError, match=f"'{field}' is not offered") as caught:
        read(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", 2.1), ("temperature", "0"), ("temperature", True),
        ("temperature", float("nan")), ("top_p", 1.5), ("top_k", 1.5), ("seed", "a"),
        ("seed", 2**70), ("max_tokens", 0), ("max_tokens", 1.5), ("stop", ""), ("stop", [""]),
        ("stop", ["x"] * 17), ("stop", 3), ("stream", "yes"), ("stream_options", []), ("model", ""),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(RequestError, match=f"'{field}'") as caught:
        read(**{field: value})
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [None, [], "x", {"model": "m"}, {"messages": []}])
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(RequestError):
        chat.read_request(body, max_tokens=1)


def test_a_whole_answer_and_its_chunks_share_id_and_model():
    answers, end = chat.Answers("m"), End("hi", "length", 3, 2)
    whole = answers.whole(end)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "hi"}
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    chunks = [answers.begin(), answers.piece("hi"), answers.end(end), answers.usage(end)]
    assert {chunk["id"] for chunk in chunks} == {whole["id"]}
    assert chunks[1]["choices"][0]["delta"] == {"content": "hi"}
    assert chunks[2]["choices"][0]["finish_reason"] == "length"
    assert (chunks[3]["choices"], chunks[3]["usage"]) == ([], whole["usage"])
