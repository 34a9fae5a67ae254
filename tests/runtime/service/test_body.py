"""Caps come before what they protect; the rest of a body is none of the service's business."""

from __future__ import annotations

import asyncio
import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import RequestError
from router_runtime.service.body import (
    check_chat,
    check_common,
    model_of,
    parse_object,
    read_body,
)
from router_runtime.service_config import RequestLimits

JSON = {b"content-type": b"application/json; charset=utf-8"}
LIMITS = RequestLimits(max_messages=3, max_images=2, max_output_tokens=100)


def receiving(*parts, then=None):
    messages = [
        {"type": "http.request", "body": part, "more_body": at < len(parts) - 1}
        for at, part in enumerate(parts)
    ]
    if then is not None:
        messages[-1]["more_body"] = True
        messages.append(then)
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    return receive


def read(headers, receive, max_bytes=1000):
    return asyncio.run(read_body(headers, receive, max_bytes=max_bytes))


def refused(function, *arguments, **options):
    with pytest.raises(RequestError) as caught:
        function(*arguments, **options)
    return caught.value.status, caught.value.code


def test_a_body_is_read_whole_from_however_many_parts():
    assert read(JSON, receiving(b"{}")) == b"{}"
    assert read(JSON, receiving(b'{"a"', b":", b"1}")) == b'{"a":1}'


def test_a_body_that_says_it_is_far_too_long_is_refused_unread():
    async def receive():
        raise AssertionError("read")

    headers = {**JSON, b"content-length": b"4001"}
    assert refused(read, headers, receive) == (413, "request_too_large")


def test_a_body_somewhat_too_long_is_let_come_so_that_its_sender_hears_why():
    came = []

    def parts():
        for left in (3, 2, 1, 0):
            came.append(left)
            yield {"type": "http.request", "body": b"x" * 1000, "more_body": left > 0}

    waiting = parts()

    async def receive():
        return next(waiting)

    assert refused(read, {**JSON, b"content-length": b"4000"}, receive)[0] == 413
    assert came[-1] == 0


def test_a_body_that_does_not_come_in_time_is_refused(monkeypatch):
    monkeypatch.setattr("router_runtime.service.body.BODY_S", 0.02)

    async def receive():
        await asyncio.sleep(60)

    assert refused(read, JSON, receive) == (408, "request_timeout")


def test_a_body_that_grows_too_long_is_refused_while_it_comes():
    def endless():
        while True:
            yield {"type": "http.request", "body": b"x" * 600, "more_body": True}

    parts = endless()

    async def receive():
        return next(parts)

    assert refused(read, JSON, receive) == (413, "request_too_large")
    assert refused(read, JSON, receiving(b"x" * 1001)) == (413, "request_too_large")


def test_what_a_browser_may_post_without_asking_is_refused():
    for kind in (b"text/plain", b"application/x-www-form-urlencoded", b""):
        assert refused(read, {b"content-type": kind}, receiving(b"{}"))[0] == 415


def test_compressed_bodies_are_refused():
    headers = {**JSON, b"content-encoding": b"gzip"}
    assert refused(read, headers, receiving(b"{}")) == (415, "unsupported_content_encoding")


def test_a_client_that_leaves_while_it_sends_is_not_answered():
    receive = receiving(b"{", then={"type": "http.disconnect"})
    assert refused(read, JSON, receive) == (499, "client_left")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"1", b"\xff{}", b'{"a": NaN}', b"}{"])
def test_what_is_no_object_is_refused(data):
    assert refused(parse_object, data, max_depth=8) == (400, "invalid_json")


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


texts = st.text(alphabet='ab{}[]"\\ \u00e4', max_size=6)
values = st.recursive(
    st.none() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(texts, values, max_size=3), st.integers(1, 6), st.booleans())
def test_depth_is_counted_exactly_and_brackets_in_texts_do_not_count(value, most, indented):
    data = json.dumps(value, indent=1 if indented else None).encode()
    if depth(value) > most:
        assert refused(parse_object, data, max_depth=most) == (400, "json_too_deep")
    else:
        assert parse_object(data, max_depth=most) == value


def test_a_hundred_thousand_levels_are_refused_without_parsing():
    assert refused(parse_object, b"[" * 100_000, max_depth=32) == (400, "invalid_json")
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert refused(parse_object, deep, max_depth=32) == (400, "json_too_deep")


USER = {"role": "user", "content": "Hello"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_a_usual_request_passes():
    body = {"model": "auto", "messages": [USER], "stream": True, "max_tokens": 100, "n": 2}
    check_chat(body, LIMITS)
    check_chat({"messages": [{"role": "user", "content": [PICTURE, PICTURE]}]}, LIMITS)
    assert model_of(body) == "auto"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"messages": []}, "invalid_request"),
        ({"messages": "Hello"}, "invalid_request"),
        ({"messages": ["Hello"]}, "invalid_request"),
        ({"messages": [USER] * 4}, "too_many_messages"),
        ({"messages": [{"role": "user", "content": [PICTURE] * 3}]}, "too_many_images"),
        ({"messages": [USER], "max_tokens": 101}, "max_tokens_too_large"),
        ({"messages": [USER], "max_completion_tokens": 101}, "max_tokens_too_large"),
        ({"messages": [USER], "max_tokens": 0}, "invalid_request"),
        ({"messages": [USER], "max_tokens": True}, "invalid_request"),
        ({"messages": [USER], "max_tokens": 1.5}, "invalid_request"),
        ({"messages": [USER], "stream": "yes"}, "invalid_request"),
        ({"messages": [USER], "stream_options": []}, "invalid_request"),
        ({"messages": [USER], "n": 0}, "invalid_request"),
        ({"messages": [USER], "n": 129}, "invalid_request"),
    ],
)
def test_wrong_shapes_and_too_much_are_refused(body, code):
    assert refused(check_chat, body, LIMITS) == (400, code)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "image_url", "image_url": {"url": " FILE:///etc/passwd"}},
        {"type": "input_image", "image_url": "//example.com/a.png"},
        {"type": "image", "source": {"type": "url", "url": "gopher://127.0.0.1"}},
        {"type": "image", "url": "http://127.0.0.1"},
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1/film"}},
        {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/sound"}},
        {"image_url": {"url": "http://127.0.0.1/without/a/type"}},
    ],
)
def test_pictures_that_would_have_to_be_fetched_are_refused(part):
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert refused(check_chat, body, LIMITS) == (400, "image_url_not_allowed")


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://example.com/a.png", True),
        ("data:image/png;base64,AA", True),
        ("http://example.com/a.png", False),
        ("file:///etc/passwd", False),
        ("//example.com/a.png", False),
        (" https://example.com/a.png", False),
    ],
)
def test_where_pictures_are_fetched_only_https_is(url, taken):
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    if taken:
        check_chat(body, LIMITS, allow_urls=True)
    else:
        found = refused(check_chat, body, LIMITS, allow_urls=True)
        assert found == (400, "image_url_not_allowed")


def test_words_that_are_urls_are_words():
    part = {"type": "text", "text": "http://127.0.0.1"}
    check_chat({"messages": [{"role": "user", "content": [part]}]}, LIMITS)


def test_a_null_stands_for_an_absent_field():
    check_common({"max_tokens": None, "stream": None, "stream_options": None, "n": None}, LIMITS)


def test_a_whole_number_may_be_written_with_a_point():
    body = {"max_tokens": 16.0}
    check_common(body, LIMITS)
    assert body == {"max_tokens": 16}
    assert type(body["max_tokens"]) is int


@pytest.mark.parametrize("model", [None, "", 3, ["auto"]])
def test_a_model_must_be_named(model):
    assert refused(model_of, {"model": model}) == (400, "invalid_request")


def test_no_error_repeats_what_was_sent():
    private = "my-own-words"
    with pytest.raises(RequestError) as caught:
        check_chat({"messages": [private]}, LIMITS)
    assert private not in str(caught.value)
    with pytest.raises(RequestError) as caught:
        parse_object(orjson.dumps([private]), max_depth=8)
    assert private not in str(caught.value)
