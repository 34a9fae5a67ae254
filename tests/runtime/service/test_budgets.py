from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.errors import RequestError
from router_runtime.service.budgets import (
    Ledger,
    PeriodMoney,
    from_nano,
    periods_at,
    remaining,
    reserve,
    settle,
    to_nano,
)


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()


def test_a_time_belongs_to_its_utc_day_and_month():
    day, month = periods_at(at(2026, 12, 31, 23, 59, 59))
    assert (day.name, month.name) == ("d:2026-12-31", "m:2026-12")
    assert day.end_s == month.end_s == at(2027, 1, 1)
    assert month.start_s == at(2026, 12, 1)


@given(st.floats(min_value=0, max_value=4e9))
def test_periods_contain_their_time_and_the_day_lies_in_the_month(when):
    day, month = periods_at(when)
    assert day.start_s <= when < day.end_s
    assert month.start_s <= day.start_s < day.end_s <= month.end_s


@given(st.decimals(min_value=0, max_value=1_000_000, places=12))
def test_dollars_are_counted_in_nano_dollars_and_never_too_low(usd):
    counted = from_nano(to_nano(usd))
    assert usd <= counted < usd + Decimal("1e-9")


def test_a_reservation_beyond_the_tighter_budget_is_refused_and_changes_nothing():
    monies = (PeriodMoney(periods_at(0.0)[0]), PeriodMoney(periods_at(0.0)[1]))
    limits = (to_nano(Decimal(1)), to_nano(Decimal("0.5")))
    reserve(monies, limits, before_nano=0, wanted_nano=to_nano(Decimal("0.4")))
    with pytest.raises(RequestError, match=r"0\.5 USD per month has 0\.1 USD left") as refused:
        reserve(monies, limits, before_nano=0, wanted_nano=to_nano(Decimal("0.2")))
    assert (refused.value.status, refused.value.code) == (402, "budget_exceeded")
    assert "1970-02-01" in str(refused.value)
    assert [money.reserved for money in monies] == [to_nano(Decimal("0.4"))] * 2
    assert remaining(monies, limits) == Decimal("0.1")


def test_a_reservation_replaces_the_one_before_and_less_is_never_refused():
    monies = (PeriodMoney(periods_at(0.0)[0]), PeriodMoney(periods_at(0.0)[1]))
    limits = (100, None)
    reserve(monies, limits, before_nano=0, wanted_nano=90)
    reserve(monies, limits, before_nano=90, wanted_nano=100)
    monies[0].spent = 500  # a call that cost more than was reserved
    reserve(monies, limits, before_nano=100, wanted_nano=30)
    assert monies[0].reserved == 30
    settle(monies, reserved_nano=30, spent_nano=7)
    assert (monies[0].reserved, monies[0].spent) == (0, 507)
    assert remaining(monies, limits) == 0


def test_a_new_day_starts_empty_and_the_month_goes_on():
    ledger = Ledger.opened(at(2026, 11, 20, 12))
    for money in ledger.at(at(2026, 11, 20, 12)):
        money.spent = 5
    day, month = ledger.at(at(2026, 11, 21))
    assert (day.spent, month.spent) == (0, 5)
    day, month = ledger.at(at(2026, 12, 1))
    assert (day.spent, month.spent) == (0, 0)
