from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.errors import QueryError
from router_runtime.simulator.chat_request import read_chat_request
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.replies import Brain

FIELDS = (
    *("messages", "role", "content", "type", "text", "image_url", "url", "tools", "function"),
    *("name", "parameters", "tool_choice", "response_format", "json_schema", "schema", "n"),
    *("max_tokens", "temperature", "seed", "stream", "stream_options", "include_usage"),
)
WORDS = ("user", "assistant", "tool", "text", "image_url", "json_schema", "auto", "required", "f")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=15,
)
TURNS = [{"role": "user", "content": "What is 41 + 1?"}]
DATA = '<data-0a name="prompt">p</data-0a><data-0a name="answer">a</data-0a>'
BRAIN = Brain(SimulatorConfig(models={"m": {}, "judge": {"role": "judge"}}))


def refused_or_answered(body):
    try:
        request = read_chat_request(body)
        for model in ("m", "judge"):
            assert BRAIN.reply(model, request).choices
    except QueryError as error:
        assert "41" not in str(error)


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=6))
def test_any_body_is_read_or_refused_with_the_field_and_without_the_prompt(body):
    refused_or_answered(body)
    refused_or_answered({**body, "messages": TURNS})
    refused_or_answered({**body, "messages": [{"role": "user", "content": DATA}]})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": []},
        {"properties": {"score": 3}},
        {"properties": {"score": {"enum": ["a", "b"]}}},
        {"properties": {"score": {"enum": 7}}},
    ],
)
def test_a_judge_replies_whatever_is_said_to_be_a_schema(schema):
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    request = read_chat_request(
        {"messages": [{"role": "user", "content": DATA}], "response_format": wanted}
    )
    assert BRAIN.reply("judge", request).choices[0].text
