from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from router_runtime.pricing import Price
from router_runtime.targets.base import ChatCall
from router_training.labelling.spending import (
    DEFAULT_OUTPUT_TOKENS,
    IMAGE_TOKENS,
    Budget,
    output_limit,
    size_of,
    total,
)

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
PRICE = Price(Decimal(1), Decimal(10), image=Decimal("0.5"))


def call(content, **parameters):
    return ChatCall(({"role": "user", "content": content},), parameters)


def test_characters_are_counted_over_all_turns_and_parts_and_pictures_apart():
    turns = (
        {"role": "system", "content": "abcd"},
        {"role": "user", "content": [{"type": "text", "text": "青い"}, PICTURE, PICTURE]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
    )
    size = size_of(ChatCall(turns))
    assert (size.chars, size.wide_chars, size.images, size.turns) == (4 + 2 + 13, 2, 2, 3)
    assert size.input_tokens == 19 / 4 + 3 * 8 + 2 * IMAGE_TOKENS


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        ({}, None),
        ({"max_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 300, "n": 2}, 600),
        ({"max_tokens": "many", "n": 5}, None),
        ({"max_tokens": True}, None),
    ],
)
def test_the_answer_is_as_long_as_the_call_allows(parameters, limit):
    assert output_limit(parameters) == limit


def test_the_most_a_call_may_cost_counts_its_answer_pictures_and_dense_text():
    plain = size_of(call("x" * 100, max_tokens=50)).upper_cost_usd(PRICE)
    assert plain == Decimal(50 + 8 + 50 * 10) / 10**6
    wide = size_of(call("青" * 100, max_tokens=50)).upper_cost_usd(PRICE)
    assert wide - plain == Decimal(50) / 10**6
    shown = size_of(call([PICTURE], max_tokens=50)).upper_cost_usd(PRICE)
    assert shown == Decimal("0.5") + Decimal(8 + IMAGE_TOKENS + 500) / 10**6
    unlimited = size_of(call("")).upper_cost_usd(PRICE)
    assert unlimited == Decimal(8 + 10 * DEFAULT_OUTPUT_TOKENS) / 10**6
    assert size_of(call("x")).upper_cost_usd(None) == 0


def test_without_a_cap_everything_is_let_through_and_counted():
    async def main():
        budget = Budget(None)
        assert await budget.reserve(Decimal(10**9))
        await budget.settle(Decimal(10**9), Decimal("0.3"))
        return budget

    budget = asyncio.run(main())
    assert (budget.spent, budget.reserved) == (Decimal("0.3"), 0)


def test_a_call_that_fits_only_when_others_have_ended_waits_for_them():
    async def main():
        budget = Budget(Decimal(10), Decimal(4))
        assert await budget.reserve(Decimal(4))
        late = asyncio.create_task(budget.reserve(Decimal(4)))
        await asyncio.sleep(0)
        assert not late.done()
        await budget.settle(Decimal(4), Decimal(1))
        assert await late
        return budget

    assert asyncio.run(main()).spent == 5


def test_the_first_call_that_does_not_fit_ends_the_spending_for_all():
    async def main():
        budget = Budget(Decimal(10), Decimal(4))
        assert await budget.reserve(Decimal(5))
        waiting = asyncio.create_task(budget.reserve(Decimal(3)))
        await asyncio.sleep(0)
        assert not await budget.reserve(Decimal(7))
        assert not await waiting
        await budget.settle(Decimal(5), Decimal(0))
        assert not await budget.reserve(Decimal("0.01"))
        return budget

    assert asyncio.run(main()).reserved == 0


def test_a_cancelled_wait_takes_nothing():
    async def main():
        budget = Budget(Decimal(1))
        assert await budget.reserve(Decimal(1))
        waiting = asyncio.create_task(budget.reserve(Decimal(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        await budget.settle(Decimal(1), Decimal(0))
        assert await budget.reserve(Decimal(1))

    asyncio.run(main())


def test_what_was_spent_before_the_cap_was_lowered_leaves_nothing():
    budget = Budget(Decimal(1), Decimal(2))
    assert not asyncio.run(budget.reserve(Decimal(0)))


def test_unknown_costs_are_left_out_of_an_exact_sum():
    costs = [Decimal("0.1"), None, Decimal("1e-40")]
    assert str(total(costs)) == "0.1000000000000000000000000000000000000001"
