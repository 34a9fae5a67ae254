from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.targets.sse import (
    EventCutter,
    StreamScan,
    data_of,
    is_done,
    is_event,
    json_of,
    says_nothing,
    split_events,
    text_bytes,
)

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def event(body, end="\n\n"):
    data = body if isinstance(body, str) else json.dumps(body)
    return f"data: {data}{end}".encode()


def chunk(text=None, *, finish=None, **more):
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


STREAM = [
    event(chunk("", usage=None)),
    event(chunk('He said "usage": {"x": 1} and \\ [DONE] then', usage=None)),
    b": a comment\n\n",
    event(chunk("wörld \U0001f600", usage=None)),
    event(chunk(finish="stop", usage=None)),
    event({"choices": [], "usage": USAGE}),
    event("[DONE]"),
]


def scanned(parts, *, hides_usage):
    scan = StreamScan(hides_usage=hides_usage)
    passed = b"".join(scan.feed(part) for part in parts) + scan.close()
    facts = (scan.usage, scan.finish, scan.done, scan.error, scan.text_bytes, scan.ending)
    return passed, facts, scan.complete


def cut_at(data, places):
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


pieces = st.sampled_from(
    [*STREAM, event(chunk("x"), end="\r\n\r\n"), b"\n", b"\r\n", b"\r", b"data: half", b"\n\n"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=9), st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_any_chunking_gives_the_same_bytes_and_the_same_facts(events, places, hides):
    data = b"".join(events)
    whole = scanned([data], hides_usage=hides)
    assert scanned(cut_at(data, places), hides_usage=hides) == whole
    assert scanned([data[at : at + 1] for at in range(len(data))], hides_usage=hides) == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(pieces, max_size=9), st.lists(st.integers(0, 10_000), max_size=12))
def test_events_are_cut_alike_in_any_chunking_and_nothing_is_lost(events, places):
    data = b"".join(events)
    cutter, found = EventCutter(), b""
    for part in cut_at(data, places):
        found += cutter.feed(part)
    assert found + cutter.rest() == data


def test_a_stream_passes_unchanged_but_for_the_hidden_usage():
    data = b"".join(STREAM)
    passed, facts, complete = scanned([data], hides_usage=True)
    assert passed == b"".join(STREAM[:-2])
    assert facts[0] == USAGE
    assert facts[1:4] == ("stop", True, None)
    assert facts[5] == STREAM[-1]
    assert complete


def test_usage_that_the_client_asked_for_passes():
    passed, facts, _ = scanned([b"".join(STREAM)], hides_usage=False)
    assert passed == b"".join(STREAM[:-1])
    assert facts[0] == USAGE


def test_usage_beside_a_choice_is_never_hidden():
    last = event(chunk("end", finish="stop", usage=USAGE))
    passed, facts, _ = scanned([last], hides_usage=True)
    assert (passed, facts[0]) == (last, USAGE)


def test_words_of_an_answer_are_not_taken_for_facts():
    passed, facts, complete = scanned([STREAM[1]], hides_usage=True)
    assert (passed, facts[:4], complete) == (STREAM[1], (None, None, False, None), False)


def test_the_length_of_texts_is_known_without_usage():
    _, facts, _ = scanned([event(chunk("abcd")), event(chunk("ef"))], hides_usage=False)
    assert facts[4] == 6
    assert text_bytes(b'{"message": {"content": "a\\"b", "refusal": null}, "id": "x"}') == 4


def test_an_error_event_passes_and_ends_everything():
    error = event({"error": {"message": "overloaded", "code": 503}})
    passed, facts, complete = scanned(
        [event(chunk("a")) + error + event("[DONE]")], hides_usage=False
    )
    assert passed == event(chunk("a")) + error
    assert facts[3]["error"]["code"] == 503
    assert not complete


def test_a_stream_without_done_is_complete_when_it_said_why_it_finished():
    assert scanned([event(chunk("a", finish="stop"))], hides_usage=False)[2]
    assert not scanned([event(chunk("a"))], hides_usage=False)[2]


def test_half_an_event_is_not_passed_on():
    half = event(chunk("b"))[:-9]
    assert scanned([event(chunk("a")) + half], hides_usage=False)[0] == event(chunk("a"))


def test_a_last_event_without_its_blank_line_counts():
    passed, facts, complete = scanned(
        [event(chunk("a")), event(chunk("b", finish="stop"), end="")], hides_usage=False
    )
    assert passed.endswith(b"}")
    assert (facts[1], complete) == ("stop", True)
    assert scanned([event("[DONE]", end="\n")], hides_usage=False)[2]


def test_an_endless_event_is_refused():
    scan = StreamScan(max_event_bytes=1000)
    for _ in range(20):
        assert scan.feed(b"x" * 100) == b""
    assert (scan.too_long, scan.over, scan.complete) == (True, True, False)


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_every_line_end_of_the_standard_ends_events(end):
    data = event("1", end) + event("2", end)
    assert split_events(data) == [event("1", end), event("2", end)]


def test_data_of_several_lines_is_joined():
    assert data_of(b"event: x\ndata: {\ndata:  1}\n\n") == b"{\n 1}"
    assert data_of(b": only a comment\n\n") is None
    assert json_of(b'data: {"a":\r\ndata: 1}\r\n\r\n') == {"a": 1}
    assert is_done(b"event: end\ndata: [DONE]\n\n")
    assert not is_done(event(chunk("[DONE]")))


@pytest.mark.parametrize(
    ("data", "known"),
    [
        (b"data: x\n\n", True),
        (b"data\n\n", True),
        (b": ping\n\n", True),
        (b"id: 1\r\nevent: e\r\nretry: 5\r\n\r\n", True),
        (b"\n\n", True),
        (b'{"id": 1}\n\n', False),
        (b"data: x\n<html>\n\n", False),
    ],
)
def test_what_is_no_event_is_known(data, known):
    assert is_event(data) is known


@pytest.mark.parametrize(
    ("body", "nothing"),
    [
        ({"choices": []}, True),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, True),
        ({"choices": [{"delta": {"role": "assistant", "content": None, "refusal": None}}]}, True),
        ({"choices": [{"delta": None, "finish_reason": "stop"}]}, True),
        ({"choices": [{"delta": {"content": "a"}}]}, False),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, False),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, False),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, False),
        ({"choices": [{"text": "a"}]}, False),
        ({"choices": [{"text": ""}]}, True),
    ],
)
def test_what_says_nothing_can_still_be_given_up(body, nothing):
    assert says_nothing(body) is nothing
