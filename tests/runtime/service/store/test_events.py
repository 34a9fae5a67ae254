"""A request as a line, and back as rows."""

from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.service.store import events


def rows(line):
    return events.decode(events.checked(line))


def test_a_line_holds_the_decision_and_its_attempts(make_event):
    found = rows(events.encode(make_event("d1", failed=("large",)), content=False))
    decision = found.decision
    assert (decision["decision_id"], decision["key_id"], decision["served"]) == (
        "d1",
        "k1",
        "small",
    )
    assert decision["probabilities"] == {"small": 0.8, "large": 0.9}
    assert decision["steps"] == [["filter", "all"]]
    assert (decision["propensity"], decision["novelty"]) == (1.0, 0.25)
    assert decision["cost_usd"] == 10**10  # one cent
    refused, answered = found.attempts
    assert (refused["number"], refused["model_id"], refused["error"]) == (0, "large", "status_503")
    assert (refused["cost_usd"], refused["input_tokens"]) == (None, None)
    assert (answered["number"], answered["cost_usd"]) == (1, 10**10)
    assert (answered["input_tokens"], answered["cached_input_tokens"]) == (100, 10)
    assert found.content is None


def test_a_refused_request_has_a_line_too(make_event):
    event = make_event("d1", routed=None, attempts=(), status=429, error="rate_limit_exceeded")
    found = rows(events.encode(event, content=False))
    assert (found.decision["status"], found.decision["chosen"]) == (429, None)
    assert found.attempts == []
    assert found.cost_pico == 0


def test_messages_are_in_the_line_only_where_content_is_kept(make_event):
    event = make_event("d1", messages=({"role": "user", "content": "canary-3"},))
    assert b"canary-3" not in events.encode(event, content=False)
    kept = rows(events.encode(event, content=True)).content
    assert kept["messages"] == '[{"role":"user","content":"canary-3"}]'


def test_values_of_other_kinds_are_written_as_what_they_are(make_event):
    event = make_event("d1", expected=MappingProxyType({"small": np.float64(0.5), "large": None}))
    found = rows(events.encode(event, content=False))
    assert found.decision["expected_cost"] == {"small": 0.5, "large": None}


@pytest.mark.parametrize("bad", ["lone \ud800 surrogate", "a \0 character"])
def test_what_no_database_takes_as_text_is_replaced(make_event, bad):
    event = make_event("d1", requested=bad, messages=({"role": "user", "content": bad},))
    found = rows(events.encode(event, content=True))
    assert "\0" not in found.decision["requested"]
    assert found.decision["requested"].startswith(bad[:2])
    assert found.content is not None


@given(st.data())
def test_a_line_that_was_cut_or_changed_is_told_from_a_whole_one(data):
    line = b"%08x %b\n" % (0x352441C2, b"abc")  # the CRC32 of "abc"
    assert events.checked(line) == b"abc"
    assert events.checked(line[: data.draw(st.integers(0, len(line) - 1))]) is None
    at = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    assert events.checked(line[:at] + bytes([other]) + line[at + 1 :]) is None


@pytest.mark.parametrize("text", [b"{}", b"[]", b"3", b"no JSON", b'{"v":2}', b'{"v":1}'])
def test_lines_of_another_version_are_not_guessed_at(text):
    assert events.decode(text) is None
