from __future__ import annotations

import asyncio
import json
import ssl

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.config import CandidateConfig
from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetProtocolError,
    TargetTimeoutError,
)
from router_runtime.target_config import (
    AzureTargetConfig,
    CompatibleTargetConfig,
    OpenAITargetConfig,
)
from router_runtime.targets.forward import build_forwarders
from router_runtime.targets.forward_http import HttpForwarder
from router_runtime.targets.replies import Refused, connection_error

KEY = "sk-canary-key-0123456789abcdef"
PROMPT = "the private words of a prompt"
BODY = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
CHAT = "chat/completions"


def forwarder(url, *, key=None, max_in_flight=None, max_answer_bytes=10_000, **settings):
    config = CompatibleTargetConfig(kind="compatible", base_url=url, **settings)
    return HttpForwarder(
        "m", config, key=key, max_in_flight=max_in_flight, max_answer_bytes=max_answer_bytes
    )


async def ask(target, *, body=BODY, path=CHAT, timeout_s=5.0):
    """Return the whole answer of one call, or the refusal."""
    reply = await target.open(path, target.prepare(body).data, timeout_s=timeout_s, idle_s=5.0)
    return reply if isinstance(reply, Refused) else await reply.read()


def asked(kit, *replies, work=ask, **settings):
    async def scene():
        async with kit.serving(*replies) as upstream:
            target = forwarder(upstream.url, **settings)
            try:
                return await work(target), upstream
            finally:
                assert target.in_flight == 0
                await target.aclose()

    return asyncio.run(scene())


def failure(kit, reply, **settings):
    with pytest.raises(TargetError) as caught:
        asked(kit, reply, **settings)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "a traceback would lead to the request"
    return caught.value


# --------------------------------------------------------------------------- bodies

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_all_of_a_body_but_model_and_router_survives(body):
    target = forwarder("http://host/v1", model="theirs")
    sent = orjson.loads(target.prepare(body, asks_usage=False).data)
    expected = {**body, "model": "theirs"}
    expected.pop("router", None)
    assert sent == expected
    assert json.dumps(sent, sort_keys=True) == json.dumps(expected, sort_keys=True)


def test_what_the_fast_writer_cannot_write_survives_too():
    body = {"huge": 2**70, "half": "\ud83d", "seed": 2**53 + 1}
    sent = json.loads(forwarder("http://host/v1").prepare(body).data)
    assert sent == {**body, "model": "m"}


def test_the_order_of_fields_stays():
    body = {"a": 1, "model": "auto", "b": 2}
    assert list(orjson.loads(forwarder("http://h/v1").prepare(body).data)) == ["a", "model", "b"]


def test_configured_parameters_are_sent_where_the_client_is_silent():
    target = forwarder("http://host/v1", parameters={"temperature": 0.1, "top_p": 0.5})
    sent = orjson.loads(target.prepare({"temperature": None}).data)
    assert sent == {"temperature": None, "top_p": 0.5, "model": "m"}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_configured_limit_gives_way_to_the_clients_under_either_name(name):
    target = forwarder("http://host/v1", parameters={"max_tokens": 99})
    sent = orjson.loads(target.prepare({name: 7}).data)
    assert sent == {name: 7, "model": "m"}
    assert orjson.loads(target.prepare({}).data) == {"max_tokens": 99, "model": "m"}


@pytest.mark.parametrize(
    ("given", "sent", "hidden"),
    [
        ({}, {"include_usage": True}, True),
        ({"stream_options": None}, {"include_usage": True}, True),
        ({"stream_options": {"x": 1}}, {"x": 1, "include_usage": True}, True),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}, True),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}, False),
    ],
)
def test_a_stream_is_asked_for_its_usage(given, sent, hidden):
    prepared = forwarder("http://host/v1").prepare({"stream": True, **given})
    assert orjson.loads(prepared.data)["stream_options"] == sent
    assert (prepared.stream, prepared.hides_usage) == (True, hidden)


def test_what_is_no_stream_is_not_asked_for_stream_options():
    prepared = forwarder("http://host/v1").prepare({"stream": False})
    assert "stream_options" not in orjson.loads(prepared.data)
    assert not prepared.stream


# --------------------------------------------------------------------------- what is sent


def test_an_answer_comes_back_byte_by_byte(kit):
    answer = kit.http(200, b'{"choices":  [1],\n "x": 1.50}')
    found, upstream = asked(kit, answer, key=KEY)
    assert found == b'{"choices":  [1],\n "x": 1.50}'
    line, headers, _ = upstream.requests[0]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert headers.pop("host").startswith("127.0.0.1")
    assert headers.pop("content-length").isdigit()
    assert headers == {
        "accept": "*/*",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "user-agent": "model-router",
    }


def test_without_a_key_none_is_sent_whatever_the_environment_says(kit, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _, upstream = asked(kit, kit.http(200, {}))
    assert "authorization" not in upstream.requests[0][1]


def test_azure_names_the_deployment_in_the_path_and_has_its_own_key_header(kit):
    async def scene():
        async with kit.serving(kit.http(200, {})) as upstream:
            config = AzureTargetConfig(
                kind="azure", endpoint=upstream.url.removesuffix("/v1"), model="my gpt"
            )
            target = HttpForwarder("m", config, key=KEY)
            await ask(target, path="embeddings")
            await target.aclose()
            return upstream.requests[0]

    line, headers, _ = asyncio.run(scene())
    path = "/openai/deployments/my%20gpt/embeddings?api-version=2024-10-21"
    assert line == f"POST {path} HTTP/1.1"
    assert (headers["api-key"], "authorization" in headers) == (KEY, False)


def test_connections_are_kept_and_cookies_are_not(kit):
    async def twice(target):
        return [await ask(target), await ask(target)]

    _, upstream = asked(kit, kit.http(200, {}, "Set-Cookie: a=b"), work=twice)
    assert upstream.connections == 1
    assert "cookie" not in upstream.requests[1][1]


def test_of_the_servers_headers_only_harmless_ones_are_told_on(kit):
    async def headers(target):
        reply = await target.open(CHAT, b"{}", timeout_s=5, idle_s=5)
        await reply.read()
        return reply.headers

    sent = kit.http(200, {}, "X-Request-Id: r1", "Set-Cookie: a=b", "x-router-model: forged")
    assert asked(kit, sent, work=headers)[0] == {"x-request-id": "r1"}


# --------------------------------------------------------------------------- what goes wrong


def test_a_refusal_keeps_the_servers_body_for_the_caller_alone(kit):
    body = {"error": {"message": f"bad: {PROMPT}", "code": "context_length_exceeded"}}
    refused, _ = asked(kit, kit.http(400, body))
    assert json.loads(refused.body) == body
    assert (refused.status, refused.codes) == (400, ("context_length_exceeded",))
    assert not refused.error.retryable
    assert PROMPT not in f"{refused.error} {refused!r}"


def test_a_key_that_the_server_quotes_is_taken_out(kit):
    refused, _ = asked(kit, kit.http(400, {"error": {"message": f"key {KEY}"}}), key=KEY)
    assert KEY.encode() not in refused.body
    assert KEY not in str(refused.error)


@pytest.mark.parametrize(
    ("status", "body", "retryable", "whole_target"),
    [
        (401, {"error": {"code": "invalid_api_key"}}, False, True),
        (404, b"<html>", False, True),
        (422, {"detail": "no"}, False, False),
        (429, {"error": {"code": "rate_limit_exceeded"}}, True, False),
        (500, b"", True, False),
    ],
)
def test_a_status_means_what_it_means_everywhere(kit, status, body, retryable, whole_target):
    error = asked(kit, kit.http(status, body, "Retry-After: 3"))[0].error
    assert (error.retryable, error.whole_target, error.retry_after_s) == (
        retryable,
        whole_target,
        3.0,
    )


def test_a_redirect_is_not_followed(kit):
    error = failure(kit, kit.http(307, b"", "Location: http://127.0.0.1:9/"))
    assert isinstance(error, TargetProtocolError)
    assert (error.retryable, error.whole_target) == (False, True)


def test_a_compressed_answer_is_not_unpacked(kit):
    error = failure(kit, kit.http(200, b"\x1f\x8b", "Content-Encoding: gzip"))
    assert "compressed" in str(error)


def test_an_answer_is_read_no_further_than_allowed(kit):
    error = failure(kit, kit.http(200, b"x" * 20_000))
    assert "more than 10,000 bytes" in str(error)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123"])
def test_a_connection_that_breaks_is_worth_another_try(kit, head):
    async def cut(reader, writer):
        writer.write(head)
        await writer.drain()

    error = failure(kit, cut)
    assert isinstance(error, TargetConnectionError)
    assert error.retryable


@pytest.mark.parametrize(
    "reply",
    [
        b"\x16\x03\x01 nothing that HTTP knows\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
    ],
)
def test_what_is_no_http_is_worth_another_try(kit, reply):
    async def garbled(reader, writer):
        writer.write(reply)
        await writer.drain()

    assert failure(kit, garbled).retryable


def test_a_chunk_size_that_is_none_is_noticed_though_it_comes_late(kit):
    async def garbled(reader, writer):
        writer.write(kit.sse_head + kit.chunked(b"good"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"this is no chunk size\r\n")
        await writer.drain()
        await reader.read()

    error = failure(kit, garbled, work=lambda target: ask(target, timeout_s=60))
    assert isinstance(error, TargetConnectionError)


def test_nobody_at_the_address_is_a_connection_error():
    async def scene():
        target = forwarder("http://127.0.0.1:9/v1")
        try:
            await ask(target)
        finally:
            await target.aclose()

    with pytest.raises(TargetConnectionError) as caught:
        asyncio.run(scene())
    assert caught.value.retryable


def test_a_certificate_that_is_not_trusted_concerns_the_whole_target():
    from router_runtime.targets.failures import Asked

    outer = OSError("tls")
    outer.__cause__ = ssl.SSLCertVerificationError("self-signed")
    error = connection_error(Asked("'m' at host"), outer)
    assert (error.retryable, error.whole_target) == (False, True)


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: x/y\r\nContent-Length: 9\r\n\r\n1"]
)
def test_one_deadline_holds_for_headers_and_body(kit, head):
    async def hang(reader, writer):
        writer.write(head)
        await reader.read()

    error = failure(kit, hang, work=lambda target: ask(target, timeout_s=0.05))
    assert isinstance(error, TargetTimeoutError)


def test_giving_a_call_up_hangs_up(kit):
    async def hang(reader, writer):
        await reader.read()

    async def scene():
        async with kit.serving(hang) as upstream:
            target = forwarder(upstream.url)
            call = asyncio.create_task(ask(target))
            while not upstream.requests:
                await asyncio.sleep(0.005)
            assert target.in_flight == 1
            call.cancel()
            await asyncio.wait([call])
            await asyncio.wait_for(upstream.hung_up.wait(), 5)
            assert target.in_flight == 0
            await target.aclose()

    asyncio.run(scene())


def test_beyond_its_concurrency_a_target_is_busy_at_once(kit):
    async def scene():
        async with kit.serving(kit.http(200, {})) as upstream:
            target = forwarder(upstream.url, max_in_flight=1)
            first = await target.open(CHAT, b"{}", timeout_s=5, idle_s=5)
            assert target.busy
            with pytest.raises(TargetConnectionError, match="max_concurrency"):
                await target.open(CHAT, b"{}", timeout_s=5, idle_s=5)
            await first.read()
            assert not target.busy
            await target.aclose()

    asyncio.run(scene())


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
def test_beyond_its_limits_per_minute_a_target_is_busy_at_once(kit, limit):
    async def scene():
        async with kit.serving(kit.http(200, {})) as upstream:
            target = forwarder(upstream.url, **{limit: 1})
            first = await target.open(CHAT, b'{"a": 1}', timeout_s=5, idle_s=5)
            await first.read()
            assert target.busy
            with pytest.raises(TargetConnectionError, match=limit) as caught:
                await target.open(CHAT, b"{}", timeout_s=5, idle_s=5)
            assert 50 < caught.value.retry_after_s <= 60
            await target.aclose()

    asyncio.run(scene())


# --------------------------------------------------------------------------- building


def test_candidates_with_a_target_get_a_forwarder_and_only_written_limits_bind():
    target = {"kind": "openai", "base_url": "http://h/v1"}
    candidates = [
        CandidateConfig.model_validate({"id": "a", "target": target}),
        CandidateConfig.model_validate({"id": "b", "target": {**target, "max_concurrency": 2}}),
        CandidateConfig.model_validate({"id": "c"}),
    ]
    built = build_forwarders(candidates, environment={"OPENAI_API_KEY": KEY})
    assert list(built) == ["a", "b"]
    assert [found._max_in_flight for found in built.values()] == [None, 2]
    assert KEY not in repr(built)


def test_a_missing_key_is_said_when_building():
    candidate = CandidateConfig(id="a", target=OpenAITargetConfig())
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        build_forwarders([candidate], environment={})


def test_what_identifies_a_target_is_its_url_and_model():
    one = forwarder("http://host/v1/", model="x")
    assert one.identity == forwarder("http://host/v1", model="x").identity == "http://host/v1 x"
