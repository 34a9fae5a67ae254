from __future__ import annotations

import json

import pytest

from router_runtime.errors import TargetProtocolError
from router_runtime.pricing import Usage
from router_runtime.targets.answers import read_body, read_completion, read_usage, well_formed
from router_runtime.targets.base import ChatCall
from router_runtime.targets.failures import Asked

ASKED = Asked("'m'")
CALL = ChatCall(({"role": "user", "content": "hello"},))


def completed(message, *, finish_reason="stop", call=CALL, **body):
    choices = [{"message": message, "finish_reason": finish_reason}]
    return read_completion(
        ASKED, {"choices": choices, **body}, model_id="m", call=call, seconds=1.0, headers={}
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "plain"}, "plain"),
        ({"content": " blanks stay \n"}, " blanks stay \n"),
        (
            {"content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]},
            "in parts",
        ),
        ({"content": ["in ", {"type": "output_text", "text": "parts"}]}, "in parts"),
        ({"content": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "yes"}]}, "yes"),
        ({"content": None, "refusal": "I cannot"}, "I cannot"),
        ({"content": "said", "refusal": None}, "said"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, ""),
        ({"content": None, "function_call": {"name": "f"}}, ""),
    ],
)
def test_the_text_is_found_in_every_form(message, text):
    assert completed(message).text == text


@pytest.mark.parametrize(
    ("finish_reason", "retryable", "message"),
    [
        ("stop", True, "empty text"),
        (None, True, "empty text"),
        ("content_filter", False, "content_filter"),
        ("length", False, "max_tokens"),
    ],
)
def test_an_answer_without_text_is_an_error(finish_reason, retryable, message):
    with pytest.raises(TargetProtocolError, match=message) as caught:
        completed({"content": ""}, finish_reason=finish_reason)
    assert caught.value.retryable is retryable
    assert not caught.value.whole_target


def test_a_cut_answer_is_an_answer():
    assert completed({"content": "half of"}, finish_reason="length").finish_reason == "length"


def test_a_finish_reason_of_a_wrong_type_is_unknown():
    assert completed({"content": "x"}, finish_reason=3).finish_reason is None


def test_pictures_of_the_call_are_counted():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    call = ChatCall(({"role": "user", "content": [part, {"type": "text", "text": "?"}, part]},))
    usage = {"prompt_tokens": 900, "completion_tokens": 1}
    assert completed({"content": "x"}, call=call, usage=usage).usage == Usage(900, 1, images=2)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(5, 2)),
        ({"prompt_tokens": 5.0, "completion_tokens": 0}, Usage(5, 0)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
            Usage(5, 2, 4),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_cache_hit_tokens": 3},
            Usage(5, 2, 3),
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 50},
            },
            Usage(5, 2, 0),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None},
            Usage(5, 2),
        ),
        ({"prompt_tokens": 5}, None),
        ({"prompt_tokens": None, "completion_tokens": 2}, None),
        ({"prompt_tokens": -5, "completion_tokens": 2}, None),
        ({"prompt_tokens": "5", "completion_tokens": 2}, None),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": 5.5, "completion_tokens": 2}, None),
        ({"prompt_tokens": 10**18, "completion_tokens": 2}, None),
        ({"prompt_tokens": float("inf"), "completion_tokens": 2}, None),
        ({}, None),
        ("5 tokens", None),
        (None, None),
    ],
)
def test_usage_is_read_or_unknown(usage, expected):
    assert read_usage(usage) == expected


@pytest.mark.parametrize(("total", "output"), [(17, 12), (7, 2), (None, 2), (16, 2)])
def test_thoughts_counted_beside_the_completion_are_output(total, output):
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": 10},
    }
    assert read_usage(usage) == Usage(5, output)


def test_what_json_does_not_have_becomes_null():
    content = b'\xef\xbb\xbf{"a": NaN, "b": [-Infinity], "c": "\\ud83d\\ude00", "d": "\\ud83d!"}'
    body = read_body(ASKED, content, media_type="application/json")
    assert body == {"a": None, "b": [None], "c": "\U0001f600", "d": "?!"}
    assert json.dumps(body, ensure_ascii=False).encode()


def test_a_media_type_is_named_only_if_it_is_one():
    with pytest.raises(TargetProtocolError, match="answered text/html where"):
        read_body(ASKED, b"{}", media_type="text/html; charset=utf-8")
    with pytest.raises(TargetProtocolError, match="answered something where"):
        read_body(ASKED, b"{}", media_type="the prompt, repeated")


def test_well_formed_json_stays_as_it_is():
    value = {"a": ["\U0001f600", 1, None, {"b": True}]}
    assert well_formed(value) == value
