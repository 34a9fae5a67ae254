"""Dollars in tables are exact."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from router_runtime.service.store.tables import from_pico, to_pico

USD = st.decimals(min_value=0, max_value=9_000_000, places=12, allow_nan=False)


@given(USD)
def test_dollars_with_twelve_decimals_survive(usd):
    assert from_pico(to_pico(usd)) == usd


@given(st.lists(USD, max_size=30))
def test_the_sum_of_what_is_kept_is_what_is_kept_of_the_sum(amounts):
    assert from_pico(sum(to_pico(usd) for usd in amounts)) == sum(amounts, Decimal(0))


def test_one_token_at_a_price_with_six_decimals_is_exact():
    assert from_pico(to_pico(Decimal("0.037501").scaleb(-6))) == Decimal("0.000000037501")


def test_what_is_finer_is_rounded_half_to_even():
    assert to_pico(Decimal("0.0000000000005")) == 0
    assert to_pico(Decimal("0.0000000000015")) == 2
