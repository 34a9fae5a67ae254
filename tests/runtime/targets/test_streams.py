from __future__ import annotations

import asyncio
import json

import pytest

from router_runtime.errors import TargetConnectionError, TargetStatusError, TargetTimeoutError
from router_runtime.service_config import BreakerConfig
from router_runtime.target_config import CompatibleTargetConfig
from router_runtime.targets.breaker import Breaker, State
from router_runtime.targets.dispatch import Rules, adispatch
from router_runtime.targets.forward_http import HttpForwarder
from router_runtime.targets.streams import Stream

CHAT = "chat/completions"
BODY = {"messages": [{"role": "user", "content": "private words of a prompt"}], "stream": True}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


class Seen:
    """What one streamed call gave."""

    def __init__(self, result, breaker, upstream):
        self.result, self.breaker, self.upstream = result, breaker, upstream
        self.stream = result.answer if isinstance(result.answer, Stream) else None
        self.parts = []

    @property
    def passed(self):
        return b"".join(self.parts)

    @property
    def tried(self):
        return self.result.tried[-1]


def streamed(kit, reply, *, body=BODY, idle_s=5.0, leave_after=None):
    async def scene():
        async with kit.serving(reply) as upstream:
            config = CompatibleTargetConfig(kind="compatible", base_url=upstream.url, timeout_s=5)
            target = HttpForwarder("m", config)
            breaker = Breaker(BreakerConfig(failures=1))
            result = await adispatch(
                ["m"],
                {"m": target},
                CHAT,
                body,
                rules=Rules(idle_s=idle_s),
                breakers={"m": breaker},
            )
            seen = Seen(result, breaker, upstream)
            if seen.stream is not None:
                try:
                    async for data in seen.stream.chunks():
                        seen.parts.append(data)
                        if leave_after == len(seen.parts):
                            break
                finally:
                    await seen.stream.aclose()
            assert target.in_flight == 0
            if leave_after is not None:
                await asyncio.wait_for(upstream.hung_up.wait(), 5)
            await target.aclose()
            return seen

    return asyncio.run(scene())


def events(*found, done=True):
    datas = [json.dumps(event) for event in found] + (["[DONE]"] if done else [])
    return b"".join(f"data: {data}\n\n".encode() for data in datas)


def test_a_whole_stream_passes_as_it_came_and_ends_when_its_end_is_sent(kit):
    parts = [kit.delta("", role="assistant"), kit.delta("a"), kit.delta("b", finish="stop")]
    seen = streamed(kit, kit.sse(*parts, {"choices": [], "usage": USAGE}))
    assert seen.passed == events(*parts, done=False)
    assert seen.stream.ending == b"data: [DONE]\n\n"
    assert seen.stream.cut is None
    assert (seen.tried.error, seen.tried.usage) == (None, USAGE)
    assert seen.tried.seconds >= seen.tried.first_byte_s > 0
    assert seen.breaker.state is State.CLOSED


def test_usage_is_asked_for_and_shown_only_to_who_asked(kit):
    parts = [kit.delta("a", finish="stop"), {"choices": [], "usage": USAGE}]
    wanted = {**BODY, "stream_options": {"include_usage": True}}
    assert streamed(kit, kit.sse(*parts), body=wanted).passed == events(*parts, done=False)
    hidden = streamed(kit, kit.sse(*parts))
    assert hidden.passed == events(parts[0], done=False)
    assert hidden.upstream.bodies[0]["stream_options"] == {"include_usage": True}


def test_the_connection_of_a_whole_stream_lives_on(kit):
    async def scene():
        async with kit.serving(kit.sse(kit.delta("a", finish="stop"))) as upstream:
            config = CompatibleTargetConfig(kind="compatible", base_url=upstream.url)
            target = HttpForwarder("m", config)
            for _ in range(3):
                result = await adispatch(["m"], {"m": target}, CHAT, BODY)
                assert [data async for data in result.answer.chunks()]
                await result.answer.aclose()
            await target.aclose()
            return upstream.connections

    assert asyncio.run(scene()) == 1


def test_a_stream_that_is_cut_has_no_ending_and_counts_as_a_failure(kit):
    async def cut(reader, writer):
        writer.write(kit.sse(kit.delta("abc"), done=False, whole=False))
        await writer.drain()

    seen = streamed(kit, cut)
    assert seen.passed == events(kit.delta("abc"), done=False)
    assert isinstance(seen.stream.cut, TargetConnectionError)
    assert seen.stream.ending == b""
    assert (seen.tried.error, seen.tried.text_bytes) == ("cut", 3)
    assert seen.breaker.state is State.OPEN


def test_a_stream_that_just_ends_without_an_end_is_cut_as_well(kit):
    seen = streamed(kit, kit.sse(kit.delta("abc"), done=False))
    assert seen.stream.cut is not None
    assert seen.tried.error == "cut"


def test_silence_within_a_stream_is_a_cut(kit):
    async def silent(reader, writer):
        writer.write(kit.sse(kit.delta("abc"), done=False, whole=False))
        await reader.read()

    seen = streamed(kit, silent, idle_s=0.05)
    assert isinstance(seen.stream.cut, TargetTimeoutError)
    assert "stream_idle_s" in str(seen.stream.cut)


def test_the_servers_own_error_event_passes_and_its_words_go_no_further(kit):
    error = {"error": {"message": "private words of a prompt", "code": "server_error"}}
    seen = streamed(kit, kit.sse(kit.delta("a"), error))
    assert seen.passed == events(kit.delta("a"), error, done=False)
    assert seen.stream.ending == b""
    assert isinstance(seen.stream.cut, TargetStatusError)
    assert "private" not in str(seen.stream.cut)


def test_leaving_a_stream_hangs_up_and_blames_nobody(kit):
    async def endless(reader, writer):
        writer.write(kit.sse(kit.delta("abc"), done=False, whole=False))
        await reader.read()

    seen = streamed(kit, endless, leave_after=1)
    assert (seen.tried.error, seen.tried.text_bytes) == ("cancelled", 3)
    assert seen.breaker.state is State.CLOSED


def test_what_comes_first_is_held_back_until_something_is_said(kit):
    held = [kit.delta("", role="assistant"), kit.delta(None), kit.delta("first")]
    seen = streamed(kit, kit.sse(*held, kit.delta(finish="stop")))
    assert seen.parts[0].startswith(events(*held, done=False))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (events(), "empty"),
        (b"", "empty"),
        (events({"choices": []}, {"choices": [], "usage": USAGE}), "empty"),
        (events({"error": {"code": 503, "message": "x"}}), "status_503"),
        (b"<html>\n\n", "protocol"),
        (b"data: {half\n\n", "protocol"),
        (b": ping\n\n" * 40_000, "protocol"),
    ],
)
def test_a_stream_that_says_nothing_never_begins(kit, body, error):
    seen = streamed(kit, kit.http(200, body, media_type="text/event-stream"))
    assert seen.stream is None
    assert seen.tried.error == error


def test_usage_of_a_stream_that_says_nothing_is_kept(kit):
    seen = streamed(kit, kit.sse(kit.delta(""), {"choices": [], "usage": USAGE}))
    assert (seen.tried.error, seen.tried.usage) == ("empty", USAGE)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"error": {"code": "server_error", "message": "x"}}, "status_500"),
        ({"choices": []}, "protocol"),
        (b"[", "protocol"),
    ],
)
def test_json_in_the_place_of_a_stream_is_a_failure(kit, content, error):
    assert streamed(kit, kit.http(200, content)).tried.error == error
