"""From a checked request to a simulated model's reply, and the reply as OpenAI's JSON or events."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from router_runtime.errors import QueryError
from router_runtime.pricing import Usage, estimate_tokens
from router_runtime.simulator.chat_request import ChatRequest
from router_runtime.simulator.config import SimulatedModelConfig, SimulatorConfig
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.judging import judged
from router_runtime.simulator.known import KnownAnswer, KnownAnswers
from router_runtime.simulator.logprobs import logprobs_json
from router_runtime.simulator.skills import Answer, answer, find_or_make_up
from router_runtime.simulator.structured import instance_of
from router_runtime.types import Json, Modality

_CREATED: Final = 1_700_000_000  # a fixed time: equal calls get equal bytes
_MOST_PIECES: Final = 32


@dataclass(frozen=True)
class Choice:
    """One of the answers: text, or the call of a tool."""

    text: str
    finish_reason: str
    tool_call: Mapping[str, Json] | None = None
    logprobs: Json = None


@dataclass(frozen=True)
class Reply:
    """What a simulated model replies.

    Parameters
    ----------
    id, model : str
    choices : tuple of Choice
    usage : Usage
    first_byte_s, rest_s : float
        Seconds to the first byte, and from there to the last.
    """

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    first_byte_s: float
    rest_s: float


@dataclass(frozen=True)
class Brain:
    """Answers for all simulated models of a config.

    Parameters
    ----------
    config : SimulatorConfig
    known : KnownAnswers
    """

    config: SimulatorConfig
    known: KnownAnswers = field(default_factory=KnownAnswers)

    def reply(self, model_id: str, request: ChatRequest, *, before: int = 0) -> Reply:
        """Return the reply; equal calls get equal replies.

        Parameters
        ----------
        model_id : str
        request : ChatRequest
        before : int
            How many equal calls came before, where they are to be answered differently.

        Raises
        ------
        QueryError
            The model does not take pictures, or not this response format.
        """
        model = self.config.models[model_id]
        _check(request, model_id, model)
        draws = Draws.of(self.config.seed, model_id, request.fingerprint, before)
        drawn = [
            self._choice(request, model, Draws.of(draws.key.hex(), n)) for n in range(request.n)
        ]
        output_tokens = sum(tokens for _, tokens in drawn)
        latency = model.latency
        speed = model.tokens_per_second
        return Reply(
            id=f"chatcmpl-sim-{draws.integer('id'):014x}",
            model=model_id,
            choices=tuple(choice for choice, _ in drawn),
            usage=Usage(
                input_tokens=_input_tokens(request, model),
                output_tokens=output_tokens,
                images=len(request.images_sha256),
            ),
            first_byte_s=latency.median_s * math.exp(latency.sigma * draws.normal("latency")),
            rest_s=output_tokens / speed if speed else 0.0,
        )

    def _choice(
        self, request: ChatRequest, model: SimulatedModelConfig, draws: Draws
    ) -> tuple[Choice, int]:
        """Return an answer and its tokens, both cut at the caller's cap."""
        if tool := _called_tool(request):
            arguments = json.dumps(instance_of(tool.get("parameters") or {}, request.prompt))
            call_id = f"call_sim_{draws.integer('call'):014x}"
            function = {"name": tool["name"], "arguments": arguments}
            call = {"id": call_id, "type": "function", "function": function}
            return Choice("", "tool_calls", call), _output_tokens(
                len(arguments), None, model, draws
            )
        said = self._said(request, model, draws)
        tokens = _output_tokens(len(said.text), said.output_tokens, model, draws)
        cap = request.max_tokens
        text, reason = said.text, "stop"
        if cap is not None and tokens > cap:
            text, reason = said.text[: max(1, len(said.text) * cap // tokens)], "length"
            tokens = cap
        told = None
        if request.top_logprobs is not None and model.logprobs:
            told = logprobs_json(text, top=request.top_logprobs, draws=draws)
        return Choice(text, reason, logprobs=told), tokens

    def _said(self, request: ChatRequest, model: SimulatedModelConfig, draws: Draws) -> Answer:
        if model.role == "judge":
            reply = judged(
                request,
                model.judge,
                draws=draws,
                reference_of=lambda prompt: self._right(prompt, request).text,
            )
            return Answer(reply, True)
        right = self._right(request.prompt, request)
        said = answer(right, model, self.known, draws=draws)
        if request.schema is not None:
            return Answer(json.dumps(instance_of(request.schema, said.text)), said.good)
        if request.response_format == "json_object":
            return Answer(json.dumps({"answer": said.text}), said.good)
        return said

    def _right(self, prompt: str, request: ChatRequest) -> KnownAnswer:
        config = self.config
        return find_or_make_up(
            prompt,
            request.images_sha256,
            known=self.known,
            topics=config.topics,
            seed=config.seed,
        )


def _check(request: ChatRequest, model_id: str, model: SimulatedModelConfig) -> None:
    if model.role == "embedding":
        raise QueryError(f"The model '{model_id}' makes embeddings and does not chat.")
    if request.images_sha256 and Modality.IMAGE not in model.modalities:
        raise QueryError(f"The model '{model_id}' does not take image_url parts.")
    wanted = request.response_format
    if wanted != "text" and wanted not in model.response_formats:
        raise QueryError(f"The model '{model_id}' does not support response_format '{wanted}'.")


def _called_tool(request: ChatRequest) -> Mapping[str, Json] | None:
    """Return the function to call: the one asked for, or named in the prompt, or the first.

    A model that may choose calls one once, and answers when it has the result.
    """
    choice = request.tool_choice
    if not request.tools or choice == "none" or (choice == "auto" and request.answers_a_tool):
        return None
    wanted = [tool for tool in request.tools if tool["name"] == choice]
    named = [tool for tool in request.tools if tool["name"] in request.prompt]
    return (wanted or named or list(request.tools))[0]


def _input_tokens(request: ChatRequest, model: SimulatedModelConfig) -> int:
    pictures = len(request.images_sha256) * model.usage.image_tokens
    return max(1, round(estimate_tokens(request.chars))) + pictures


def _output_tokens(
    chars: int, needed: float | None, model: SimulatedModelConfig, draws: Draws
) -> int:
    usage = model.usage
    needed = estimate_tokens(chars) if needed is None else needed
    drawn = needed * usage.verbosity * math.exp(usage.sigma * draws.normal("length"))
    return max(1, round(drawn))


# --------------------------------------------------------------------------- as OpenAI writes it


def usage_json(usage: Usage) -> dict[str, Json]:
    """Return usage as a response reports it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
    }


def completion_json(reply: Reply) -> dict[str, Json]:
    """Return a reply as the body of a response."""
    choices = []
    for at, choice in enumerate(reply.choices):
        message: dict[str, Json] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_call is not None:
            message |= {"content": None, "tool_calls": [choice.tool_call]}
        choices.append(
            {
                "index": at,
                "message": message,
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
            }
        )
    head = _head(reply, "chat.completion")
    return {**head, "choices": choices, "usage": usage_json(reply.usage)}


def completion_chunks(reply: Reply, *, include_usage: bool) -> Iterator[dict[str, Json]]:
    """Yield a reply as the events of a stream, in the order in which tokens would come."""
    head = _head(reply, "chat.completion.chunk")
    if include_usage:
        head["usage"] = None
    for at, choice in enumerate(reply.choices):
        deltas: list[dict[str, Json]] = [{"role": "assistant", "content": ""}]
        if choice.tool_call is None:
            deltas += [{"content": piece} for piece in _pieces(choice.text)]
        else:
            deltas = [{"role": "assistant", "content": None}, *_tool_deltas(choice.tool_call)]
        for delta in deltas:
            yield {**head, "choices": [{"index": at, "delta": delta, "finish_reason": None}]}
        end = {"index": at, "delta": {}, "finish_reason": choice.finish_reason}
        yield {**head, "choices": [end]}
    if include_usage:
        yield {**head, "choices": [], "usage": usage_json(reply.usage)}


def _head(reply: Reply, kind: str) -> dict[str, Json]:
    return {
        "id": reply.id,
        "object": kind,
        "created": _CREATED,
        "model": reply.model,
        "system_fingerprint": "model-router-simulator",
    }


def _tool_deltas(call: Mapping[str, Json]) -> Iterator[dict[str, Json]]:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    opening = {**call, "index": 0, "function": {"name": name, "arguments": ""}}
    yield {"tool_calls": [opening]}
    for piece in _pieces(arguments):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _pieces(text: str) -> list[str]:
    """Cut text into at most 32 pieces, as near to a token each as that allows."""
    size = max(4, math.ceil(len(text) / _MOST_PIECES))
    return [text[at : at + size] for at in range(0, len(text), size)]
