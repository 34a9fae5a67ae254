from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
import time
import traceback
from contextlib import asynccontextmanager, suppress

import pytest

from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetProtocolError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.pricing import Usage
from router_runtime.target_config import (
    AzureTargetConfig,
    CompatibleTargetConfig,
    NimTargetConfig,
    OpenAITargetConfig,
    VllmTargetConfig,
)
from router_runtime.targets.base import ChatCall
from router_runtime.targets.failures import Asked

module = pytest.importorskip("router_runtime.targets.openai", exc_type=ImportError)

PROMPT = "What did the canary say to the miner?"
KEY = "sk-test-canary-key-0123456789"
CALL = ChatCall(({"role": "user", "content": PROMPT},))
MESSAGE = {"index": 0, "message": {"content": "forty-two"}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
ANSWER = {"id": "the-same-every-time", "choices": [MESSAGE], "usage": USAGE}


def http(status, body, *headers, media_type="application/json", length=None):
    """Return a whole response as bytes; ``length`` lies about its body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data) if length is None else length}"]
    lines += [f"Content-Type: {media_type}"] if media_type else []
    return "\r\n".join([*lines, *headers, "", ""]).encode() + data


class Loopback:
    """A raw server: what was asked (request line, headers, body), and what is answered in turn.

    A reply is bytes, written before the connection is closed, or ``async (writer) -> None``. The
    last one is repeated.
    """

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.url = ""

    async def handle(self, reader, writer):
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((head[0], headers, json.loads(body) if body else None))
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(writer)
        writer.close()


@asynccontextmanager
async def serving(*replies):
    server = Loopback(*replies)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()


def asked(reply, *, call=CALL, key=KEY, ask=None, cap=module.MAX_ANSWER_BYTES, **settings):
    """Return what one call to a server with this reply gives, and the server."""

    async def scene():
        async with serving(*(reply if isinstance(reply, list) else [reply])) as server:
            config = CompatibleTargetConfig(kind="compatible", base_url=server.url, **settings)
            target = module.OpenAITarget("candidate", config, key=key, max_answer_bytes=cap)
            try:
                return await (ask(target) if ask else target.acomplete(call)), server
            finally:
                await target.aclose()

    return asyncio.run(scene())


def failure(reply, **settings):
    with pytest.raises(TargetError) as caught:
        asked(reply, **settings)
    return caught.value


# --------------------------------------------------------------------------- what is sent


def test_an_answer_comes_with_its_usage_and_time():
    completion, _ = asked(http(200, ANSWER))
    assert (completion.model_id, completion.text) == ("candidate", "forty-two")
    assert completion.usage == Usage(12, 3)
    assert completion.finish_reason == "stop"
    assert 0 < completion.seconds < 5
    assert completion.raw == ANSWER


def test_only_what_is_asked_is_sent():
    _, server = asked(http(200, ANSWER))
    (line, headers, body), *more = server.requests
    assert not more
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert body == {"model": "candidate", "messages": list(CALL.messages)}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert set(headers) == {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    }


def test_parameters_of_the_call_go_before_the_targets_own():
    call = ChatCall(CALL.messages, {"temperature": 1, "seed": 7})
    own = {"temperature": 0, "max_tokens": 5, "unknown_to_the_sdk": {"a": [1]}}
    _, server = asked(http(200, ANSWER), call=call, model="served-as", parameters=own)
    assert server.requests[0][2] == {
        "model": "served-as",
        "messages": list(CALL.messages),
        "temperature": 1,
        "max_tokens": 5,
        "unknown_to_the_sdk": {"a": [1]},
        "seed": 7,
    }


def test_the_environment_adds_nothing(monkeypatch):
    for name, value in {
        "OPENAI_API_KEY": "sk-of-the-environment",
        "OPENAI_ADMIN_KEY": "sk-of-the-environment",
        "OPENAI_ORG_ID": "org",
        "OPENAI_PROJECT_ID": "project",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/elsewhere",
        "OPENAI_CUSTOM_HEADERS": "X-Extra: yes\nAuthorization: Bearer sk-of-the-environment",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    _, server = asked(http(200, ANSWER), key=None)
    headers = server.requests[0][1]
    assert "authorization" not in headers
    assert not {"x-extra", "openai-organization", "openai-project"} & set(headers)


def test_cookies_are_not_kept():
    async def twice(target):
        await target.acomplete(CALL)
        return await target.acomplete(CALL)

    _, server = asked(http(200, ANSWER, "Set-Cookie: who=you"), ask=twice)
    assert "cookie" not in server.requests[1][1]


def test_half_a_surrogate_pair_is_sent_as_a_question_mark():
    call = ChatCall(({"role": "user", "content": "cut \ud83d"},))
    completion, server = asked(http(200, ANSWER), call=call)
    assert completion.text == "forty-two"
    assert server.requests[0][2]["messages"] == [{"role": "user", "content": "cut ?"}]


def test_azure_names_the_deployment_in_the_path_and_its_own_key_header():
    async def scene():
        async with serving(http(200, ANSWER)) as server:
            config = AzureTargetConfig(
                kind="azure",
                endpoint=server.url.removesuffix("/v1"),
                api_version="2024-10-21",
                model="my deployment",
            )
            target = module.OpenAITarget("gpt", config, key=KEY)
            await target.acomplete(CALL)
            await target.aclose()
            return server.requests

    ((line, headers, body),) = asyncio.run(scene())
    assert line == (
        "POST /openai/deployments/my%20deployment/chat/completions?api-version=2024-10-21 HTTP/1.1"
    )
    assert headers["api-key"] == KEY
    assert "authorization" not in headers
    assert body["model"] == "my deployment"


@pytest.mark.parametrize(
    ("config", "host"),
    [
        (OpenAITargetConfig(), "api.openai.com"),
        (NimTargetConfig(kind="nim"), "integrate.api.nvidia.com"),
        (VllmTargetConfig(kind="vllm", base_url="http://gpu-1:8000/v1"), "gpu-1:8000"),
    ],
)
def test_every_kind_is_built_without_asking_anyone(config, host):
    target = module.OpenAITarget("m", config, key=KEY)
    assert (target.model_id, target.model) == ("m", "m")
    assert host in target._who
    assert KEY not in repr(target)


def test_a_parameter_that_is_no_json_is_refused_by_name():
    config = OpenAITargetConfig(parameters={"temperature": float("nan")})
    with pytest.raises(ConfigError, match="'temperature' cannot be written as JSON"):
        module.OpenAITarget("m", config)
    with pytest.raises(ConfigError, match="'top_p'"):
        asked(http(200, ANSWER), call=ChatCall(CALL.messages, {"top_p": float("inf")}))


# --------------------------------------------------------------------------- broken servers


async def reset(writer):
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, 0 s: closing sends RST
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def trickle(writer):
    writer.write(http(200, b"", length=1000))
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def silence(writer):
    await asyncio.sleep(60)


async def endless(writer):
    writer.write(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


WHOLE = json.dumps(ANSWER).encode()
CHUNKED = b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def said(**error):
    return {"error": {"message": "no", **error}}


def chosen(message, finish_reason="stop", **more):
    return {"choices": [{"message": message, "finish_reason": finish_reason, **more}]}


AGAIN, NEVER, STOP = (True, False), (False, False), (False, True)  # retryable, whole target

CUT, LATE = TargetConnectionError, TargetTimeoutError
ODD, BAD = TargetProtocolError, TargetStatusError

BROKEN = {
    "closed without an answer": (b"", CUT, AGAIN),
    "reset": (reset, CUT, AGAIN),
    "no HTTP": (b"SSH-2.0-OpenSSH_9\r\n\r\n", CUT, AGAIN),
    "body cut off": (http(200, WHOLE[:40], length=900), CUT, AGAIN),
    "chunks cut off": (CHUNKED + b"8\r\n" + WHOLE[:8], CUT, AGAIN),
    "silence": (silence, LATE, AGAIN),
    "slow trickle": (trickle, LATE, AGAIN),
    "truncated JSON": (http(200, WHOLE[:40]), ODD, AGAIN),
    "HTML page": (http(200, b"<html>Sorry</html>", media_type="text/html"), ODD, AGAIN),
    "wrong content type": (http(200, WHOLE, media_type="text/plain"), ODD, AGAIN),
    "empty body": (http(200, b""), ODD, AGAIN),
    "invalid UTF-8": (http(200, WHOLE.replace(b"forty", b"\xff\xfe")), ODD, AGAIN),
    "a JSON list": (http(200, [ANSWER]), ODD, AGAIN),
    "JSON nested too deep": (http(200, b"[" * 100_000), ODD, AGAIN),
    "no choices": (http(200, {"choices": []}), ODD, AGAIN),
    "choices of a wrong type": (http(200, {"choices": "yes"}), ODD, AGAIN),
    "choice without message": (http(200, {"choices": [{}]}), ODD, AGAIN),
    "null message": (http(200, chosen(None)), ODD, AGAIN),
    "empty content": (http(200, chosen({"content": " "})), ODD, AGAIN),
    "null content": (http(200, chosen({"content": None})), ODD, AGAIN),
    "content of a wrong type": (http(200, chosen({"content": 7})), ODD, AGAIN),
    "content filtered": (http(200, chosen({"content": ""}, "content_filter")), ODD, NEVER),
    "all tokens spent on thoughts": (http(200, chosen({"content": ""}, "length")), ODD, NEVER),
    "longer than said it may be": (http(200, b"", length=10**12), ODD, AGAIN),
    "endless body": (endless, ODD, AGAIN),
    "compressed": (http(200, gzip.compress(WHOLE), "Content-Encoding: gzip"), ODD, STOP),
    "redirect": (http(307, b"", "Location: /v1/chat/completions"), ODD, STOP),
    "redirect to nowhere": (http(302, b"", "Location: http://[::1"), ODD, STOP),
    "200 with an error": (http(200, said(code=503)), BAD, AGAIN),
    "200 with an error about the key": (http(200, said(code="invalid_api_key")), BAD, STOP),
    "200 with an error in the choice": (
        http(200, chosen({"content": "half"}, "error", error={"code": 502, "message": "no"})),
        BAD,
        AGAIN,
    ),
    "400": (http(400, said(type="invalid_request_error")), BAD, NEVER),
    "401": (http(401, said(code="invalid_api_key")), BAD, STOP),
    "403": (http(403, b"", media_type=None), BAD, STOP),
    "404": (http(404, said(code="model_not_found")), BAD, STOP),
    "404 page": (http(404, b"<html>", media_type="text/html"), BAD, STOP),
    "408": (http(408, b""), BAD, AGAIN),
    "409": (http(409, b""), BAD, AGAIN),
    "413": (http(413, b""), BAD, NEVER),
    "422": (http(422, {"detail": "no"}), BAD, NEVER),
    "429": (http(429, said(code="rate_limit_exceeded")), BAD, AGAIN),
    "429 for want of credit": (http(429, said(code="insufficient_quota")), BAD, STOP),
    "500 page": (http(500, b"<html>", media_type="text/html"), BAD, AGAIN),
    "502": (http(502, b""), BAD, AGAIN),
    "503": (http(503, b"\xff"), BAD, AGAIN),
    "endless error page": (http(500, b" " * 200_000), ODD, AGAIN),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_server_gives_an_error_of_its_kind(kind):
    reply, error_type, follows = BROKEN[kind]
    error = failure(reply, timeout_s=0.3 if error_type is TargetTimeoutError else 20, cap=100_000)
    assert type(error) is error_type
    assert (error.retryable, error.whole_target) == follows
    assert str(error).startswith("'candidate' at 127.0.0.1:")
    assert "\n" not in str(error)


HARMLESS = {
    "no usage": {"choices": [MESSAGE]},
    "negative usage": {**ANSWER, "usage": {"prompt_tokens": -1, "completion_tokens": 3}},
    "usage of texts": {**ANSWER, "usage": {"prompt_tokens": "12", "completion_tokens": "3"}},
    "usage of a wrong type": {**ANSWER, "usage": [12, 3]},
    "error that is null": {"choices": [MESSAGE], "error": None},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_missing_or_nonsensical_usage_is_unknown_and_the_answer_counts(kind):
    completion, _ = asked(http(200, HARMLESS[kind]))
    assert completion.text == "forty-two"
    assert completion.usage is None


@pytest.mark.parametrize("media_type", [None, "application/json; charset=utf-8", "a/b+json"])
def test_json_by_another_name_is_read(media_type):
    assert asked(http(200, ANSWER, media_type=media_type))[0].text == "forty-two"


def test_the_same_id_for_every_answer_does_no_harm():
    async def twice(target):
        return [(await target.acomplete(CALL)).text for _ in range(2)]

    assert asked(http(200, ANSWER), ask=twice)[0] == ["forty-two"] * 2


def test_nothing_is_retried_and_no_redirect_followed():
    for status in (307, 429, 500):

        async def ask(target):
            with suppress(TargetError):
                await target.acomplete(CALL)

        _, server = asked(http(status, b"", "Location: /v1/elsewhere"), ask=ask)
        assert len(server.requests) == 1


def test_a_server_that_trickles_holds_a_call_no_longer_than_its_timeout():
    started = time.perf_counter()
    error = failure(trickle, timeout_s=0.2)
    assert time.perf_counter() - started < 2
    assert "within 0.2 s" in str(error)


def test_a_server_that_is_not_there_can_be_asked_again():
    async def scene():
        async with serving(b"") as server:
            url = server.url
        target = module.OpenAITarget("m", CompatibleTargetConfig(kind="compatible", base_url=url))
        try:
            await target.acomplete(CALL)
        finally:
            await target.aclose()

    with pytest.raises(TargetConnectionError, match="ConnectError") as caught:
        asyncio.run(scene())
    assert caught.value.retryable


def test_calls_work_again_after_a_broken_one():
    async def scene(target):
        for _ in range(3):
            with pytest.raises(TargetError):
                await target.acomplete(CALL)
        return await target.acomplete(CALL)

    replies = [http(200, WHOLE, length=10**12), http(200, WHOLE[:40], length=900), reset]
    completion, _ = asked([*replies, http(200, ANSWER)], ask=scene, cap=10_000, max_concurrency=1)
    assert completion.text == "forty-two"


def test_as_many_calls_as_configured_are_in_flight_at_once():
    async def scene():
        together = asyncio.Barrier(20)

        async def answer_when_all_are_here(writer):
            await together.wait()
            writer.write(http(200, ANSWER))
            await writer.drain()

        async with serving(answer_when_all_are_here) as server:
            config = CompatibleTargetConfig(
                kind="compatible", base_url=server.url, max_concurrency=20, timeout_s=10
            )
            target = module.OpenAITarget("m", config)
            answers = await asyncio.gather(*[target.acomplete(CALL) for _ in range(20)])
            await target.aclose()
            return answers

    assert len(asyncio.run(scene())) == 20


# --------------------------------------------------------------------------- what is said


def test_a_server_says_how_long_to_wait():
    assert failure(http(429, b"", "Retry-After: 7")).retry_after_s == 7
    assert failure(http(503, b"", "retry-after-ms: 250", "Retry-After: 1")).retry_after_s == 0.25
    dates = "Date: Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After: Wed, 21 Oct 2015 07:28:30 GMT"
    assert failure(http(429, b"", *dates)).retry_after_s == 30
    assert failure(http(429, b"")).retry_after_s is None
    assert failure(http(200, said(code=429), "Retry-After: 3")).retry_after_s == 3


def test_neither_prompt_nor_key_is_in_errors_tracebacks_or_logs(caplog):
    caplog.set_level(logging.DEBUG)
    echo = f"Bad request for Bearer {KEY}: {PROMPT}"
    for status in (200, 400, 401, 429, 500):
        body = {"error": {"message": echo, "code": PROMPT, "type": KEY, "param": PROMPT}}
        error = failure(http(status, body))
        assert error.__cause__ is None
        assert error.__context__ is None
        shown = "".join(traceback.format_exception(error)) + repr(error)
        for secret in (KEY, KEY[:12], PROMPT, "canary say"):
            assert secret not in shown
            assert secret not in caplog.text


def test_what_a_provider_says_is_shown_where_it_repeats_nothing():
    body = {"error": {"message": "max_tokens is too large: 9000", "type": "invalid_request_error"}}
    error = failure(http(400, body))
    assert "status 400 (invalid_request_error): max_tokens is too large: 9000." in str(error)


# --------------------------------------------------------------------------- models


def test_the_models_of_a_server_are_listed():
    listing = {"data": [{"id": "base"}, {"id": "adapter", "parent": "base"}, {"no": "id"}, 7]}
    models, server = asked(http(200, listing), ask=lambda target: target.list_models())
    assert models == ("base", "adapter")
    assert server.requests[0][0] == "GET /v1/models HTTP/1.1"
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("reply", "error_type"),
    [
        (http(404, b""), TargetStatusError),
        (http(200, {"error": "rate_limit_exceeded"}), TargetStatusError),
        (http(200, {"data": None}), TargetProtocolError),
    ],
)
def test_a_server_that_lists_no_models_is_an_error(reply, error_type):
    assert type(failure(reply, ask=lambda target: target.list_models())) is error_type


def test_a_certificate_that_is_not_trusted_stops_the_target():
    error = OSError("connect")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    found = module._connection_error(Asked("'m'"), error)
    assert (found.retryable, found.whole_target) == (False, True)
    assert "certificate" in str(found)
