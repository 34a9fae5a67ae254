from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from router_runtime.targets.base import ChatCall
from router_runtime.targets.failures import (
    SHOWN_CHARS,
    Asked,
    Complaint,
    complaint_of,
    retry_after_s,
    texts_of,
    verdict_of,
)

PRIVATE = "My grandmother's maiden name is Featherstonehaugh"


def said(message, *codes, status=400, private=(PRIVATE,)):
    complaint = Complaint(codes=codes, message=message)
    return str(Asked("'m' at host", tuple(private)).status_error(status, complaint, headers={}))


# --------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("status", "codes", "retryable", "whole_target"),
    [
        (400, (), False, False),
        (400, ("context_length_exceeded",), False, False),
        (400, ("invalid_api_key",), False, True),
        (401, (), False, True),
        (402, (), False, True),
        (403, (), False, True),
        (403, ("content_policy_violation",), False, False),
        (404, ("DeploymentNotFound",), False, True),
        (405, (), False, True),
        (418, (), False, False),
        (425, (), True, False),
        (429, (), True, False),
        (429, ("insufficient_quota",), False, True),
        (500, (), True, False),
        (503, ("model_not_found",), True, False),
        (529, (), True, False),
        (200, (), True, False),
    ],
)
def test_a_status_and_its_codes_decide_what_follows(status, codes, retryable, whole_target):
    assert verdict_of(status, Complaint(codes=codes)) == (retryable, whole_target)


def test_a_403_about_flagged_content_is_about_this_call_alone():
    body = {"error": {"code": 403, "message": "x", "metadata": {"flagged_input": "..."}}}
    assert verdict_of(403, complaint_of(body)) == (False, False)


@pytest.mark.parametrize(
    ("error", "status", "whole_target"),
    [
        ({"code": 404}, 404, True),
        ({"code": "503"}, 503, False),
        ({"code": "rate_limit_exceeded"}, 429, False),
        ({"type": "invalid_request_error", "code": "invalid_api_key"}, 401, True),
        ({"code": 7, "type": "who_knows"}, 200, False),
    ],
)
def test_an_error_under_status_200_has_the_status_that_it_names(error, status, whole_target):
    found = Asked("'m'").status_error(200, complaint_of({"error": error}), headers={})
    assert (found.status, found.whole_target) == (status, whole_target)


# --------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("body", "codes", "message"),
    [
        ({"error": {"message": "m", "type": "t", "code": "c"}}, ("c", "t"), "m"),
        ([{"error": {"code": 400, "message": "m", "status": "INVALID"}}], ("INVALID",), "m"),
        ({"error": "gone wrong"}, (), "gone wrong"),
        ({"object": "error", "message": "m", "type": "t", "code": 404}, ("t",), "m"),
        ({"detail": "Not Found"}, (), "Not Found"),
        ({"detail": [{"loc": ["body"], "input": "x"}]}, (), ""),
        ({"error": {"code": "a code with blanks", "message": 7}}, (), ""),
        (
            {"error": {"code": "content_filter", "innererror": {"code": "Inner"}}},
            ("Inner", "content_filter"),
            "",
        ),
        ("text", (), ""),
        (None, (), ""),
        ([], (), ""),
    ],
)
def test_error_bodies_of_every_usual_form_are_read(body, codes, message):
    complaint = complaint_of(body)
    assert (complaint.codes, complaint.message) == (codes, message)


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "message",
    [
        PRIVATE,
        f"invalid content: {PRIVATE.upper()}!",
        "no maiden-name is  featherstonehaugh, please",
        "name: is\nFeatherstonehaugh",
        "не ASCII",
    ],
)
def test_words_that_repeat_the_call_are_left_out(message):
    assert said(message, "bad_request") == "'m' at host answered status 400 (bad_request)."


def test_quotations_keys_pictures_and_long_words_are_cut_out():
    message = (
        "model `secret-name`: key sk-abc** and data:image/png;base64,AAAA or '" + "x" * 50 + "' no"
    )
    assert said(message) == "'m' at host answered status 400: model ...: key ... and ... or ... no."


def test_short_texts_count_as_whole_words():
    assert said("is this right", private=["hi"]).endswith("400: is this right.")
    assert said("what does Hi mean", private=["hi"]).endswith("400.")
    assert said("what", private=["", "?!"]).endswith("400: what.")


def test_a_code_that_repeats_the_call_is_left_out():
    assert said("", "hunter2hunter2", private=["my password is hunter2hunter2"]).endswith("400.")


def test_long_words_are_cut_and_those_of_passing_failures_not_shown():
    assert len(said("word " * 200)) <= SHOWN_CHARS + 40
    assert "overloaded" not in said("overloaded", status=503)


def test_a_message_says_what_to_do():
    assert "'api_key_env'" in said("", status=401)
    assert "/v1" in said("", status=404)
    assert "requests_per_minute" in said("", status=429)


def test_what_is_private_is_in_no_repr():
    assert PRIVATE not in repr(Asked("'m'", (PRIVATE,)))


def test_the_texts_of_a_call_are_found_wherever_they_are():
    call = ChatCall(
        (
            {"role": "system", "content": "rules"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
        )
    )
    assert list(texts_of(call)) == ["rules", "look", "{}"]


# --------------------------------------------------------------------------- waiting


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 +99999999999999"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_milliseconds_or_a_date(headers, seconds):
    assert retry_after_s(headers) == seconds


def test_a_date_is_counted_from_now_where_the_answer_has_none():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < retry_after_s({"retry-after": later}) <= 60
