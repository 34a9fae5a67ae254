import time

import pytest

from router_training.labelling.answer_words import accepted, f1, rouge_l, words


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("  a  cat,\na dog ", "Cat dog"),
        ("U.S.A.", "usa"),
        ("don't", "don\u2019t"),
        ("well-known", "well known"),
        ("1,000,000", "1000000"),
        ("\uff15\uff10%", "50%"),
        ("\u22125", "-5"),
        ("**Paris**", "Paris!"),
        ("10\u00b2", "10^2"),
        ("\u200bPa\u00adris\ufeff", "Paris"),
        ("\u200e-5", "-5"),
        ("東京 都", "東京都"),
    ],
)
def test_spellings_of_one_answer_have_one_form(text, other):
    assert words(text) == words(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("1.5", "15"),
        ("-5", "5"),
        ("1/2", "12"),
        ("C++", "C"),
        ("50%", "50"),
        ("A", "B"),
        ("10\u00b2", "102"),
    ],
)
def test_what_means_something_else_keeps_another_form(text, other):
    assert words(text) != words(other)


def test_a_text_of_articles_alone_keeps_them():
    assert words("A") == ["a"]


def test_scripts_without_blanks_have_a_word_for_each_character():
    assert words("\u6771\u4eac is Tokyo") == ["\u6771", "\u4eac", "is", "tokyo"]
    assert len(words("\u0e44\u0e17\u0e22")) == 3
    assert words("\ud55c\uad6d\uc5b4 \ud14c\uc2a4\ud2b8") == [
        "\ud55c\uad6d\uc5b4",
        "\ud14c\uc2a4\ud2b8",
    ]


def test_a_json_list_of_texts_accepts_each_of_them():
    assert accepted('["Paris", "City of Paris"]') == ("Paris", "City of Paris")


@pytest.mark.parametrize("reference", ["[1, 2]", "[not json", "[]", "plain", '{"a": 1}'])
def test_every_other_reference_is_one_answer(reference):
    assert accepted(reference) == (reference,)


def test_f1_by_hand():
    # 2 shared of 3 and of 4 words: precision 2/3, recall 2/4
    assert f1("a b c".split(), "b c d e".split()) == pytest.approx(4 / 7)
    assert f1("x x".split(), "x".split()) == pytest.approx(2 / 3)
    assert f1([], []) == 1.0
    assert f1(["x"], []) == 0.0


def test_rouge_l_by_hand():
    # Lin (2004): "police killed the gunman" against two candidates
    reference = "police killed the gunman".split()
    assert rouge_l("police kill the gunman".split(), reference) == 3 / 4
    assert rouge_l("the gunman kill police".split(), reference) == 2 / 4
    assert rouge_l([], reference) == 0.0


def test_rouge_l_is_the_longest_common_subsequence_of_the_textbook():
    import random

    draw = random.Random(0)
    for _ in range(50):
        one = [draw.choice("abcd") for _ in range(draw.randrange(1, 20))]
        other = [draw.choice("abcd") for _ in range(draw.randrange(1, 20))]
        table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, x in enumerate(one):
            for j, y in enumerate(other):
                best = max(table[i][j + 1], table[i + 1][j])
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else best
        assert rouge_l(one, other) == pytest.approx(2 * table[-1][-1] / (len(one) + len(other)))


def test_long_texts_are_compared_quickly():
    start = time.perf_counter()
    rouge_l([str(n % 97) for n in range(20_000)], [str(n % 89) for n in range(20_000)])
    assert time.perf_counter() - start < 2
