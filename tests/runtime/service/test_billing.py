from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.pricing import Price, Usage
from router_runtime.service.billing import (
    IMAGE_TOKENS,
    TYPICAL_OUTPUT_TOKENS,
    Bill,
    Size,
    attempt_of,
    estimate_total_tokens,
    reserve_usd,
    size_of,
    usage_of,
)
from router_runtime.service.values import Routed
from router_runtime.targets.streams import Tried

PRICE = Price(Decimal(1), Decimal(10), cached_input_mtok=Decimal("0.1"))
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}
BODY = {
    "messages": [
        {"role": "system", "content": "1234567890"},
        {"role": "user", "content": [{"type": "text", "text": "12345"}, PICTURE]},
    ],
    "max_tokens": 100,
}


def attempt(tried, price=PRICE, body=BODY):
    return attempt_of(tried, price=price, size=lambda: size_of(body))


# --------------------------------------------------------------------------- sizes


def test_a_request_is_measured_by_its_texts_and_pictures():
    assert size_of(BODY) == Size(15, 1, 100, 1)


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ({"input": "abcd"}, Size(4)),
        ({"input": ["abcd", "ef"]}, Size(6)),
        ({"input": [[1, 2, 3]]}, Size(12)),
        ({"prompt": "abc", "n": 3}, Size(3, n=3)),
        ({"max_completion_tokens": 5, "max_tokens": 9}, Size(0, 0, 5)),
        ({"max_tokens": "many", "n": True, "messages": None}, Size(0)),
        ({"messages": [{"role": "tool", "content": "ab"}, {"content": None}]}, Size(2)),
    ],
)
def test_other_requests_are_measured_too(body, size):
    assert size_of(body) == size


def test_tools_and_called_functions_count():
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "1234"}}]}
    assert size_of({"messages": [called]}).chars == 4
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert size_of({"tools": tools}).chars > 20


def test_a_request_counts_its_input_and_its_limit_before_it_is_answered():
    assert estimate_total_tokens(Size(40, 1, 7, 2)) == 10 + IMAGE_TOKENS + 14
    assert estimate_total_tokens(Size(40)) == 10 + TYPICAL_OUTPUT_TOKENS
    assert estimate_total_tokens(Size(0, 0, 10**6)) == TYPICAL_OUTPUT_TOKENS


# --------------------------------------------------------------------------- reservations


def test_a_reservation_is_the_input_and_the_whole_limit():
    assert reserve_usd(PRICE, Size(2000, 0, 100, 3)) == Decimal("0.001") + Decimal("0.003")
    assert reserve_usd(PRICE, Size(0), typical_output_tokens=10) == Decimal("0.0001")
    assert reserve_usd(PRICE, Size(2000, 0, 100), answers=False) == Decimal("0.001")
    assert reserve_usd(None, Size(2000)) == 0


@given(st.integers(0, 10**5), st.integers(0, 5), st.integers(0, 1000), st.integers(1, 4))
def test_a_reservation_covers_an_estimated_answer_of_full_length(chars, images, limit, n):
    size = Size(chars, images, limit, n)
    tried = Tried("m", None, text_bytes=4 * limit * n)
    spent = attempt_of(tried, price=PRICE, size=lambda: size).cost_usd
    assert spent <= reserve_usd(PRICE, size)


# --------------------------------------------------------------------------- attempts


def test_reported_usage_is_billed_exactly():
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 400},
    }
    found = attempt(Tried("m", None, 1.5, 0.5, usage))
    assert found.usage == Usage(1000, 50, 400)
    assert found.cost_usd == Decimal("0.0006") + Decimal("0.00004") + Decimal("0.0005")
    assert (found.estimated, found.seconds, found.first_byte_s) == (False, 1.5, 0.5)


def test_pictures_with_a_price_of_their_own_are_billed():
    price = Price(Decimal(0), Decimal(0), image=Decimal("0.01"))
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert attempt(Tried("m", None, usage=usage), price=price).cost_usd == Decimal("0.01")


@pytest.mark.parametrize("error", [None, "cut", "cancelled", "timeout", "protocol", "empty"])
def test_a_call_without_usage_that_may_be_billed_is_estimated(error):
    found = attempt(Tried("m", error, text_bytes=9))
    assert found.estimated
    assert found.usage == Usage(4 + IMAGE_TOKENS, 3, images=1)
    assert found.cost_usd == PRICE.cost(found.usage)


@pytest.mark.parametrize("error", ["connection", "status_503", "breaker_open", "budget", "busy"])
def test_a_call_that_cannot_have_cost_anything_costs_nothing(error):
    found = attempt(Tried("m", error))
    assert (found.usage, found.estimated, found.cost_usd) == (None, False, 0)


def test_a_failed_answer_that_tells_its_usage_is_billed():
    usage = {"prompt_tokens": 10, "completion_tokens": 0}
    found = attempt(Tried("m", "empty", usage=usage))
    assert (found.cost_usd, found.estimated) == (Decimal("0.00001"), False)


def test_without_a_price_there_is_usage_and_no_cost():
    found = attempt(Tried("m", None, usage={"prompt_tokens": 1, "completion_tokens": 1}), None)
    assert (found.usage, found.cost_usd) == (Usage(1, 1), None)


def test_embeddings_tell_no_completion_tokens():
    assert usage_of({"prompt_tokens": 8, "total_tokens": 8}) == Usage(8, 0)
    assert usage_of({"prompt_tokens": -5, "completion_tokens": "many"}) is None
    assert usage_of(None) is None


# --------------------------------------------------------------------------- a bill


def test_a_bill_follows_the_tries_as_they_end():
    tried, bill = [Tried("m", "status_500")], Bill("chat/completions", BODY, prices={"m": PRICE})
    assert [a.cost_usd for a in bill.attempts(tried)] == [0]
    first = bill.attempts(tried)[0]
    tried.append(Tried("m", None, usage={"prompt_tokens": 10, "completion_tokens": 1}))
    found = bill.attempts(tried)
    assert found[0] is first
    assert [a.cost_usd for a in found] == [0, Decimal("0.00002")]


def test_a_bill_knows_what_a_call_may_and_is_expected_to_cost():
    bill = Bill("chat/completions", {"max_tokens": 100}, prices={"m": PRICE, "free": None})
    assert bill.most_usd("m") == Decimal("0.001")
    assert bill.most_usd("free") is None
    routed = Routed(("m",), "x", expected_cost={"m": 0.25, "n": None})
    assert bill.expected_usd("m", routed) == Decimal("0.25")
    assert bill.expected_usd("n", routed) is None
    assert bill.expected_usd("m", None) is None
    assert Bill("embeddings", {}, prices={"m": PRICE}).most_usd("m") == 0
