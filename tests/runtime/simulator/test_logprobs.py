from __future__ import annotations

import json
import math

import pytest

from router_runtime.errors import QueryError
from router_runtime.simulator.chat_request import read_chat_request
from router_runtime.simulator.config import SimulatedModelConfig, SimulatorConfig
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.known import KnownAnswer, answer_line, read_answers
from router_runtime.simulator.logprobs import logprobs_json
from router_runtime.simulator.replies import Brain, completion_json


def test_a_letter_has_the_other_letters_as_alternatives_and_is_the_likeliest():
    told = logprobs_json("The answer is (B).", top=5, draws=Draws.of("x"))["content"]
    assert [token["token"] for token in told] == ["The", " answer", " is", " (B)."]
    letter = told[-1]
    tops = letter["top_logprobs"]
    assert len(tops) == 5 and tops[0]["token"] == " (B)."  # noqa: S105 - of a text
    assert {top["token"].strip(" ().") for top in tops[1:]} < set("ACDEFGHIJ")
    probabilities = [math.exp(top["logprob"]) for top in tops]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) <= 1 + 1e-9
    assert [len(token["top_logprobs"]) for token in told[:-1]] == [1, 1, 1]


def test_equal_draws_give_equal_logprobs():
    one, two = (logprobs_json("B", top=3, draws=Draws.of("x", "y")) for _ in range(2))
    assert one == two
    assert one != logprobs_json("B", top=3, draws=Draws.of("x", "z"))


def reply(tmp_path, *, tells=True, **asked):
    known = KnownAnswer("B", "letters", 0.0)
    (tmp_path / "answers.jsonl").write_text(answer_line("Which?", known))
    model = SimulatedModelConfig(skills={"letters": (1.0, 1.0)}, logprobs=tells)
    brain = Brain(SimulatorConfig(models={"m": model}), read_answers(tmp_path / "answers.jsonl"))
    body = {"messages": [{"role": "user", "content": "Which?"}], **asked}
    return completion_json(brain.reply("m", read_chat_request(body)))["choices"][0]


def test_an_answer_has_logprobs_for_who_asks_for_them(tmp_path):
    assert reply(tmp_path)["logprobs"] is None
    choice = reply(tmp_path, logprobs=True, top_logprobs=4)
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == choice["message"]["content"]
    assert len(content[-1]["top_logprobs"]) == 4
    assert json.loads(json.dumps(choice)) == choice


def test_a_model_without_logprobs_leaves_them_null(tmp_path):
    assert reply(tmp_path, tells=False, logprobs=True, top_logprobs=4)["logprobs"] is None


def test_top_logprobs_alone_are_refused():
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(QueryError, match="needs 'logprobs'"):
        read_chat_request({"messages": messages, "top_logprobs": 3})
    with pytest.raises(QueryError, match="from 1 to 20"):
        read_chat_request({"messages": messages, "logprobs": True, "top_logprobs": 21})
    asked = read_chat_request({"messages": messages, "logprobs": True, "top_logprobs": 0})
    assert asked.top_logprobs == 0
