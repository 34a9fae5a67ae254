import time

import pytest

from router_training.labelling.answer_letters import find_letter, reference_letter

CHOICES = ("Paris", "London", "dark red", "red")


def found(text, choices=CHOICES):
    return find_letter(text, letters="ABCD", choices=choices)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(c)", "C"),
        ("**D**", "D"),
        ("The answer is B.", "B"),
        ("The correct answer is (B) London.", "B"),
        ("Answer: C", "C"),
        ("**Answer:** C", "C"),
        ("**Answer: C**", "C"),
        ("answer: b", "B"),
        ("answer is option D", "D"),
        ("The correct option is: B", "B"),
        ("My answer is: `C`", "C"),
        ("Option B is correct.", "B"),
        ("B is the correct answer", "B"),
        ("A is not correct, B is correct", "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("I would choose A because it fits", "A"),
        ("I pick (B)", "B"),
        ("So it must be C, since it is dark.", "C"),
        ("The answer is **B**: London", "B"),
        ("The answer is B, not A", "B"),
        ("B) London", "B"),
        ("**B. London**", "B"),
        ("A) Paris\nB) London\nThe answer is B", "B"),
        ("First A seems right, the answer is A. No. Final answer: B", "B"),
        ("It's London.", "B"),
        ("dark red", "C"),
        ("I think it is dark red", "C"),
        ("I think it is red", "D"),
        ("\uff22", "B"),
        ("<answer>B</answer>", "B"),
        ('{"answer": "B", "because": "A is far"}', "B"),
        ("B\n\nExplanation: A is not it.", "B"),
        ("Option A is far away.\n\n**C**", "C"),
        ("The answer is most likely B.", "B"),
        ("The answer is clearly A", "A"),
    ],
)
def test_a_letter_is_found_in_many_phrasings(text, letter):
    assert found(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I choose A dog",
        "A cat sat there",
        "The answer is A or B",
        "The answer is either A or B",
        "The answer is A, B and C",
        "The answer is A. No, the answer is B.",
        "The answer is not B",
        "Option B is incorrect.",
        "We exclude (B)",
        "A) Paris is big\nB) London is not\n",
        "London, not Paris",
        "The answer is I think unclear",
        "I don't know",
        "None of the above",
        "Answer: E",
        "A bird",
        "The answer is A-level maths",
        "The answer is C#",
        "The answer is definitely A bird",
        "A\nB",
    ],
)
def test_an_ambiguous_or_missing_letter_is_none(text):
    assert found(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is C++.", "B"),
        ("The answer is c major", "A"),
        ("The answer is C.", "C"),
        ("The answer is A and B", "D"),
        ("The answer is A or B", None),
    ],
)
def test_what_begins_with_a_letter_and_is_an_options_text_names_that_option(text, letter):
    assert found(text, choices=("C major", "C++", "Java", "A and B")) == letter


def test_without_known_choices_only_letters_count():
    assert found("It's London.", choices=()) is None
    assert found("It's (B).", choices=()) == "B"


@pytest.mark.parametrize("reference", ["B", "b", "(B)", "B.", "B) London", "London", "london."])
def test_a_reference_may_be_written_in_several_ways(reference):
    assert reference_letter(reference, letters="ABCD", choices=CHOICES) == "B"


def test_a_reference_that_is_no_choice_has_no_letter():
    assert reference_letter("Berlin", letters="ABCD", choices=CHOICES) is None


@pytest.mark.parametrize(
    "text",
    [
        "answer:" + "*" * 20_000,
        "answer is " * 2000,
        "(" * 20_000,
        " " * 19_000 + "x",
        "answer is A" + " or A" * 4000,
        "answer is\n" * 2000,
    ],
)
def test_no_answer_takes_long(text):
    start = time.perf_counter()
    found(text)
    assert time.perf_counter() - start < 2
