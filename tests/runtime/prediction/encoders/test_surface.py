import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.prediction.encoders.surface import SURFACE_NAMES, surface_features


def feature(text, name):
    return surface_features(text)[SURFACE_NAMES.index(name)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("chars", "abc", np.log(4)),
        ("words", "one two three", np.log(4)),
        ("mean_word_length", "ab abcd", np.log(1 + 3)),
        ("long_word_share", "a sevenlt b eightltr", np.sqrt(2 / 4)),
        ("distinct_word_share", "Yes yes no no", 0.5),
        ("non_ascii_share", "aé", np.sqrt(0.5)),
        ("digit_share", "a1b2", np.sqrt(0.5)),
        ("capital_share", "Ab cD", np.sqrt(2 / 5)),
        ("operator_share", "1+1=2", np.sqrt(2 / 5)),
        ("bracket_share", "(a)b", np.sqrt(0.5)),
        ("quote_share", "'a'b", np.sqrt(0.5)),
        ("pause_share", "a,b;", np.sqrt(0.5)),
        ("math_share", "$x$y", np.sqrt(0.5)),
        ("space_share", "a b ", np.sqrt(0.5)),
        ("lines", "a\nb\nc", np.log(3)),
        ("question_marks", "Why? How?", np.log(3)),
        ("stops", "Stop. Go!", np.log(3)),
        ("code_words", "def f(): return None", np.log(3)),
        ("question_words", "What and where", np.log(3)),
        ("negations", "Not now, never", np.log(3)),
        ("logic_words", "If so, then go", np.log(3)),
        ("numbers", "from 3.5 to 1,000", np.log(3)),
        ("choice_markers", "Which?\nA) one\n(B) two\nC. three", np.log(4)),
    ],
)
def test_each_feature_measures_what_its_name_says(name, text, expected):
    assert feature(text, name) == pytest.approx(expected)


def test_every_feature_has_one_name():
    assert len(SURFACE_NAMES) == len(set(SURFACE_NAMES)) == len(surface_features("text"))


def test_an_empty_text_gives_zeros():
    np.testing.assert_array_equal(surface_features(""), 0.0)


def test_words_inside_words_do_not_count():
    assert feature("undefined classes", "code_words") == 0


@settings(deadline=None, max_examples=80)
@given(st.text(alphabet=st.characters(), max_size=200))
def test_features_are_finite_and_not_negative(text):
    values = surface_features(text)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
