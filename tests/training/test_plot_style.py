from __future__ import annotations

import pytest

from router_training.plot_style import (
    compact,
    cost_label,
    cost_scale,
    percent,
    shown_name,
    shown_names,
)


def test_a_long_name_keeps_its_beginning_and_end():
    assert shown_name("abcdefghij", longest=7) == "abc…hij"
    assert shown_name("abcdefg", longest=7) == "abcdefg"


def test_a_name_is_one_line_without_control_characters():
    assert shown_name("a\nb\x00c\u202ed") == "a b c d"
    assert shown_name("\n") == "(no name)"


def test_the_maker_goes_first_where_a_name_is_too_long():
    assert shown_names(["maker/some-model-70B", "b"], longest=14) == ["some-model-70B", "b"]


def test_names_that_would_look_alike_are_numbered():
    names = ["aaaaaaaaaa1aaaaaaaaaa", "aaaaaaaaaa2aaaaaaaaaa"]
    first, second = shown_names(names, longest=12)
    assert first != second
    assert max(map(len, (first, second))) <= 12


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.05, "0.05"),
        (1.0, "1"),
        (2.5, "2.5"),
        (1234.0, "1,234"),
        (1e-7, "1.00e-07"),
        (float("nan"), "-"),
    ],
)
def test_costs_are_short(value, text):
    assert compact(value) == text


def test_percent_has_the_decimals_that_it_needs():
    assert [percent(value) for value in (0.5, 0.675, 0.1 + 0.2)] == ["50%", "67.5%", "30%"]


def test_dollars_are_per_thousand_calls_and_relative_costs_are_not():
    assert "USD per 1,000" in cost_label("usd")
    assert "USD" not in cost_label("relative")
    assert (cost_scale("usd"), cost_scale("relative")) == (1000.0, 1.0)
