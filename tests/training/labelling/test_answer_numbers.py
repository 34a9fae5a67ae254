import math
import time

import pytest

from router_training.labelling.answer_numbers import answer_number, reference_number, same


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 1,234.50 dollars.", 1234.5),
        ("First 3, then 7.", 7),
        ("x = -3", -3),
        ("x = \u22123", -3),
        ("-$5", -5),
        ("$\\$1{,}234$", 1234),
        ("from 10-15", 15),
        ("\\frac{3}{4}", 0.75),
        ("-\\dfrac{1}{2}", -0.5),
        ("about 3/4", 0.75),
        ("1 1/2 cups", 1.5),
        ("1.5e-3", 0.0015),
        ("1.5 \u00d7 10^3", 1500),
        ("1.5 \\times 10^{-3}", 0.0015),
        ("2^10", 1024),
        (".5", 0.5),
        ("1\u202f234\u202f567", 1234567),
        ("So \\boxed{42}. I checked it in 3 ways.", 42),
        ("\\boxed{\\frac{1}{4}}", 0.25),
        ("work\n#### 1,000\n", 1000),
        ("**42.**", 42),
        ("on 12/05/2020", 2020),
        ("minus 5", -5),
        ("It is negative $5.", -5),
        ("10 minus 3", 3),
        ("\u00bd", 0.5),
        ("1\u00bd cups", 1.5),
        ("\\frac34", 0.75),
        ("6.02\u00d710\u00b2\u00b3", 6.02e23),
        ("25 cm\u00b2", 25),
        ("1.234,56", 1234.56),
        ("1.000.000", 1_000_000),
        ("1.234", 1.234),
        ("1_000", 1000),
        ("\u0661\u0662\u0663", 123),
        ("\uff11\uff12", 12),
        ("The answer is 5. I checked it 3 times.", 5),
        ("Answer: 7\n\nNote: rounded to 2 decimals", 7),
        ("**Answer:** 3 + 4 = 7.", 7),
        ("The answer is 4. Wait, no. The answer is 5, surely.", 5),
        ("Answer: yes. That makes 9", 9),
        ("The answer is not 5 but \\boxed{6}", 6),
    ],
)
def test_an_answers_number_is_its_result_or_its_last(text, value):
    assert answer_number(text).value == pytest.approx(value)


@pytest.mark.parametrize("text", ["none", "", "H2O", "GPT-4", "x^2", "I cannot tell."])
def test_a_text_without_a_number_has_none(text):
    assert answer_number(text) is None


@pytest.mark.parametrize(
    "text", ["2\\pi", "\\sqrt{2}", "3\u03c0", "1e999", "\\frac{1}{0}", "9^9999"]
)
def test_what_is_more_than_its_digits_is_no_known_number(text):
    assert math.isnan(answer_number(text).value)
    assert same(answer_number(text), reference_number("2"), relative=0, absolute=1) is None


@pytest.mark.parametrize("reference", ["3 and 4", "(3, 5)", "no number", "2\\pi", "3,5", "1 234"])
def test_a_reference_that_is_not_one_number_is_none(reference):
    assert reference_number(reference) is None


def test_a_reference_may_have_its_working_before_the_mark():
    assert reference_number("5 + 3 = 8\n#### 8").value == 8


def agrees(answer, reference, relative=1e-6, absolute=1e-9):
    return same(
        answer_number(answer), reference_number(reference), relative=relative, absolute=absolute
    )


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("0.5", "50 %", True),
        ("50 percent", "50%", True),
        ("0.5", "50", False),
        ("0.5%", "50%", False),
        ("8", "9", False),
        ("3,5", "3.5", None),
        ("3,5", "5", True),
        ("3,5", "7", False),
        ("1 234", "1234", None),
        ("1.5 million", "1500000", True),
        ("1.5 million", "1.5", True),
        ("1.5", "1.5 million", True),
        ("1,500 thousand", "1.5 million", True),
        ("1.5 billion", "1.5 million", False),
        ("The answer is 7 (about 12 %).", "7", None),
        ("The answer is 7 (about 12 %).", "8", False),
        ("The answer is 3 + 4 = 7.", "4", False),
    ],
)
def test_numbers_agree_by_percent_sign_and_reading(answer, reference, expected):
    assert agrees(answer, reference) is expected


def test_either_tolerance_is_enough():
    assert agrees("101", "100", relative=0.01, absolute=0) is True
    assert agrees("101", "100", relative=0, absolute=1) is True
    assert agrees("101", "100", relative=0.009, absolute=0.9) is False


@pytest.mark.parametrize(
    "piece",
    [
        *("1,", "1 ", "1/", ".1", "1", "\\boxed{", "-", "1,111", "1.111", "\u00bd", "\u0663"),
        *("answer is 1 ", "answer: 1=", "minus ", "1 million "),
    ],
)
def test_no_answer_takes_long(piece):
    start = time.perf_counter()
    answer_number(piece * 20_000)
    assert time.perf_counter() - start < 2
