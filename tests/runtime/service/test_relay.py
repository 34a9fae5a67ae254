from __future__ import annotations

import asyncio
import json

import openai
import pytest

from router_runtime.service.relay import ending_of
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.target_config import CompatibleTargetConfig
from router_runtime.targets.dispatch import Rules, adispatch
from router_runtime.targets.forward_http import HttpForwarder

KINDS = ("none", "chunked_cut_off", "reset_midway", "short_body", "bad_chunk")


@pytest.fixture(scope="module")
def provider():
    models = {kind: {"errors": {"rate": 1.0, "kinds": [kind]}} for kind in KINDS[1:]}
    content = {"models": {**models, "none": {}}}
    with SimulatorServer(SimulatorConfig.model_validate(content)) as server:
        yield server


async def relay(provider, model):
    target = HttpForwarder(
        model, CompatibleTargetConfig(kind="compatible", base_url=provider.base_url)
    )
    body = {"messages": [{"role": "user", "content": "tell me " * 40}], "stream": True}
    try:
        result = await adispatch(
            [model], {model: target}, "chat/completions", body, rules=Rules(idle_s=2)
        )
        stream = result.answer
        if stream is None:
            return None, result
        passed = b"".join([data async for data in stream.chunks()])
        ending = ending_of(stream)
        await stream.aclose()
        return passed + ending, result
    finally:
        await target.aclose()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_stream_that_broke_ends_in_an_error_event_and_never_cleanly(provider, kind):
    sent, result = asyncio.run(relay(provider, kind))
    if sent is None:  # broke before its first word, so that another could take over
        assert result.tried[0].error in ("connection", "protocol", "empty")
        return
    *events, last = sent.decode().rstrip("\n").split("\n\n")
    assert b"[DONE]" not in sent
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("stream_cut", "server_error")
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events)


def test_at_least_one_fault_breaks_a_stream_after_it_began(provider):
    assert any(asyncio.run(relay(provider, kind))[0] for kind in KINDS[1:])


def test_a_whole_stream_ends_as_its_server_ended_it(provider):
    sent, result = asyncio.run(relay(provider, "none"))
    assert sent.endswith(b"data: [DONE]\n\n")
    assert b'"prompt_tokens"' not in sent
    assert result.tried[0].usage["prompt_tokens"] > 0


def test_the_openai_client_sees_a_cut_stream_as_an_error(provider):
    sent, _ = asyncio.run(relay(provider, "chunked_cut_off"))

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writer.write(head + sent)
        await writer.drain()
        writer.close()

    async def scene():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0
        )
        try:
            stream = await client.chat.completions.create(model="m", messages=[], stream=True)
            with pytest.raises(openai.APIError, match="broke off"):
                async for _ in stream:
                    pass
        finally:
            await client.close()
            server.close()

    asyncio.run(scene())
