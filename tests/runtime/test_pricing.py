from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ConfigError
from router_runtime.pricing import Price, PriceTable, Usage, estimate_tokens, price_from_mapping

COUNT = st.integers(0, 10**7)


def test_a_call_costs_its_input_cached_input_output_and_pictures():
    price = Price("2.50", "10", cached_input_mtok="0.25", image="0.001")
    usage = Usage(input_tokens=3000, output_tokens=500, cached_input_tokens=1000, images=2)
    # 2000 x 2.50/M = .005; 1000 x .25/M = .00025; 500 x 10/M = .005; 2 x .001 = .002
    assert price.cost(usage) == Decimal("0.01225")


def test_cached_tokens_cost_as_much_as_others_when_no_cached_price_is_given():
    price = Price(2, 10)
    assert price.cost(Usage(1000, 0, cached_input_tokens=400)) == price.cost(Usage(1000, 0))


def test_costs_are_exact_where_floats_are_not():
    # 0.1 + 0.2 != 0.3 in floats; a dollar tenth of a million tokens is exactly 1e-7 per token
    assert Price(0.1, 0.2).cost(Usage(1, 1)) == Decimal("0.0000003")


@given(COUNT, COUNT, COUNT, COUNT)
@settings(deadline=None, max_examples=50)
def test_the_cost_of_summed_usage_is_the_sum_of_the_costs(a, b, c, d):
    price = Price("0.15", "0.60", image="0.0013")
    one, two = Usage(a, b, images=3), Usage(c, d, cached_input_tokens=c // 2)
    assert price.cost(one + two) == price.cost(one) + price.cost(two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_tokens": -1, "output_tokens": 0}, "input_tokens must be >= 0"),
        ({"input_tokens": 1, "output_tokens": 0, "cached_input_tokens": 2}, "must not exceed"),
    ],
)
def test_impossible_usage_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Usage(**arguments)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "cheap", None, True])
def test_impossible_prices_are_refused(value):
    with pytest.raises(ConfigError, match="input_mtok must be a finite number"):
        Price(value, 1)


def test_a_price_is_read_from_configured_values():
    assert price_from_mapping({"input_mtok": 0.24, "output_mtok": "0.24"}) == Price("0.24", "0.24")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"input_mtok": 1}, "gpt: missing: output_mtok"),
        ({"input_mtok": 1, "output_mtok": 1, "ouput": 2}, "gpt: unknown: ouput"),
        ({"input_mtok": 1, "output_mtok": -1}, "gpt: output_mtok must be"),
    ],
)
def test_a_wrong_price_says_whose_it_is_and_what_is_wrong(mapping, message):
    with pytest.raises(ConfigError, match=message):
        price_from_mapping(mapping, owner="gpt")


def test_four_characters_count_as_a_token():
    assert estimate_tokens(10) == 2.5
    assert estimate_tokens(np.array([0.0, 400.0])).tolist() == [0, 100]


def test_expected_dollars_of_each_query_at_each_model():
    table = PriceTable(("a", "b", "c"), (Price(1, 10), Price(2, 0, image="0.5"), None), (None,) * 3)
    cost = table.expected(
        np.array([1e6, 2e6]), np.array([[1e5] * 3, [0.0] * 3]), np.array([0.0, 1.0])
    )
    assert table.unit == "usd"
    np.testing.assert_allclose(cost, [[2.0, 2.0, np.nan], [2.0, 4.5, np.nan]])


def test_input_tokens_may_differ_by_model():
    table = PriceTable(("a", "b"), (Price(1, 1), Price(1, 1)), (None, None))
    cost = table.expected(np.array([[1e6, 2e6]]), np.zeros((1, 2)), np.zeros(1))
    assert cost.tolist() == [[1.0, 2.0]]


@given(COUNT, COUNT, st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_the_expected_cost_of_known_usage_is_the_actual_cost(n_input, n_output, n_images):
    price = Price("2.5", "10", image="0.001")
    expected = PriceTable(("a",), (price,), (None,)).expected(
        np.array([float(n_input)]), np.array([[float(n_output)]]), np.array([float(n_images)])
    )
    actual = float(price.cost(Usage(n_input, n_output, images=n_images)))
    assert expected[0, 0] == pytest.approx(actual, rel=1e-12)


def test_relative_factors_are_the_same_for_every_query():
    table = PriceTable(("a", "b"), (None, None), (1.0, None))
    assert table.unit == "relative"
    cost = table.expected(np.array([5.0, 9.0]), np.ones((2, 2)), np.zeros(2))
    np.testing.assert_array_equal(cost, [[1.0, np.nan]] * 2)


def test_nothing_configured_is_unknown():
    table = PriceTable(("a",), (None,), (None,))
    assert table.unit == "unknown"
    assert np.isnan(table.expected(np.ones(3), np.ones((3, 1)), np.ones(3))).all()


@pytest.mark.parametrize(
    ("prices", "factors", "message"),
    [
        ((Price(1, 1), None), (None, 0.3), r"dollars \(a\) and relative costs \(b\)"),
        ((None, None), (None, -0.3), "relative cost of 'b'"),
        ((None,), (None, None), "2 models"),
    ],
)
def test_contradictory_tables_are_refused(prices, factors, message):
    with pytest.raises(ConfigError, match=message):
        PriceTable(("a", "b"), prices, factors)


def test_a_cost_is_exact_whatever_precision_the_thread_rounds_to():
    with localcontext() as context:
        context.prec = 6
        cost = Price("0.15", "0.60").cost(Usage(1_234_567, 7_654_321))
    assert cost == Decimal("4.77777765")
    odd = Price("0.123456789", "0.987654321")
    usage = Usage(10**14 + 1, 10**14 + 3)
    exact = (10**14 + 1) * 123456789 + (10**14 + 3) * 987654321
    assert odd.cost(usage) * 10**15 == exact
