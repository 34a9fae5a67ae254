import sys
import time

import pytest

from router_runtime.errors import ConfigError
from router_runtime.types import Query
from router_training.labelling import scorers
from router_training.labelling.config import ScoringConfig
from router_training.labelling.samples import LabelSample
from router_training.labelling.scorers import Mark, build_scorers
from router_training.samples import Sample


def labelled(reference, choices=()):
    sample = Sample("s", Query("q"), reference, group="g", dataset=None, prompt="q")
    return LabelSample(sample, choices=choices)


def scorer(**config):
    scoring = ScoringConfig(scorers={"it": config}, default=("it",))
    return build_scorers(scoring)["it"]


def score(reference, text, choices=(), **config):
    return scorer(**config)(labelled(reference, choices), text)


def test_exact_forgives_case_punctuation_articles_and_blanks():
    assert score("Eiffel Tower", "the  eiffel tower!", kind="exact").score == 1
    assert score("Eiffel Tower", "Eiffel Tower, Paris", kind="exact").score == 0


def test_exact_without_normalising_forgives_outer_blanks_only():
    assert score("Paris", "Paris\n", kind="exact", normalise=False).score == 1
    assert score("Paris", "paris", kind="exact", normalise=False).score == 0


def test_exact_compares_as_it_is_what_has_no_words():
    assert score("?!", "?!", kind="exact").score == 1
    assert score("?!", "...", kind="exact").score == 0


def test_any_of_several_accepted_answers_is_right():
    accepted = '["Paris", "City of Light"]'
    assert score(accepted, "city of light", kind="exact").score == 1
    assert score('["3", "4"]', "it is 4", kind="numeric").score == 1


@pytest.mark.parametrize("kind", ["exact", "choice", "numeric", "overlap"])
def test_without_a_reference_there_is_no_score(kind):
    assert score(None, "B", kind=kind) == Mark(None, "the sample has no reference")


def test_a_choice_is_right_wrong_or_not_named():
    choices = ("Paris", "London")
    assert score("B", "The answer is B.", choices, kind="choice").score == 1
    assert score("B", "The answer is A.", choices, kind="choice").score == 0
    assert score("B", "Who knows", choices, kind="choice") == Mark(
        None, "no single choice is named"
    )
    assert score("Rome", "B", choices, kind="choice") == Mark(None, "the reference is no choice")


def test_a_letter_beyond_the_samples_choices_is_not_one():
    assert score("B", "C", ("Paris", "London"), kind="choice").score is None


def test_more_choices_than_letters_are_told():
    mark = score("B", "B", ("p", "q", "r"), kind="choice", letters="AB")
    assert mark == Mark(None, "there are more choices than the 2 letters")


def test_a_number_is_right_within_the_tolerance():
    assert score("100", "about 101", kind="numeric", relative=0.02).score == 1
    assert score("100", "about 103", kind="numeric", relative=0.02).score == 0
    assert score("100", "about 103", kind="numeric", absolute=5).score == 1


def test_what_is_no_number_has_no_score():
    assert score("3 to 4", "3", kind="numeric") == Mark(None, "the reference is not one number")
    assert score("3", "three", kind="numeric") == Mark(None, "no number is named")
    assert score("3.5", "3,5", kind="numeric").reason == "the number can be read in two ways"


def test_overlap_is_the_best_over_accepted_answers():
    assert score("b c d e", "x b c", kind="overlap").score == pytest.approx(4 / 7)
    assert score('["z", "b c d e"]', "x b c", kind="overlap").score == pytest.approx(4 / 7)
    assert score("killed by police", "police killed", kind="overlap").score == pytest.approx(0.8)
    rouge = score("killed by police", "police killed", kind="overlap", measure="rouge_l")
    assert rouge.score == pytest.approx(0.4)


@pytest.mark.parametrize("measure", ["f1", "rouge_l"])
def test_overlap_with_a_reference_without_words_is_no_score(measure):
    for reference in ("?!", "", '["...", ""]'):
        mark = score(reference, "", kind="overlap", measure=measure)
        assert mark == Mark(None, "the reference has no words")
    assert score("something", "", kind="overlap", measure=measure).score == 0
    assert score('["?!", "yes"]', "yes", kind="overlap", measure=measure).score == 1


def test_overlap_counts_characters_where_a_script_puts_no_blanks():
    # four characters said, two of them the reference's two
    assert score("東京", "東京です。", kind="overlap").score == pytest.approx(2 * 2 / (4 + 2))
    assert score("東京", "大阪", kind="overlap").score == 0
    assert score("東京", "東 京", kind="exact").score == 1


def test_a_pattern_finds_the_escaped_reference():
    assert score("a+b", "It is A+B", kind="regex", pattern=r"\b{reference}$").score == 1
    assert score("a+b", "It is aab", kind="regex", pattern=r"\b{reference}$").score == 0
    assert score("a", "A", kind="regex", pattern="{reference}", ignore_case=False).score == 0
    assert score(None, "a", kind="regex", pattern="{reference}").score is None
    assert score(None, "abc123", kind="regex", pattern=r"\d{3}").score == 1


def test_a_pattern_that_takes_exponential_time_is_given_up(monkeypatch):
    monkeypatch.setattr(scorers, "PATTERN_TIMEOUT_S", 0.1)
    start = time.perf_counter()
    mark = score(None, "a" * 60 + "b", kind="regex", pattern=r"(a|aa)+$")
    assert mark == Mark(None, "the pattern took longer than 0.1 s")
    assert time.perf_counter() - start < 2


def test_a_pattern_that_is_none_is_refused_by_name():
    with pytest.raises(ConfigError, match="Scorer 'it': its pattern is no regular expression"):
        scorer(kind="regex", pattern="(")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_marks_of_test.py").write_text(
        "def half(sample, text): return 0.5\n"
        "def right(sample, text): return sample.sample.reference in text\n"
        "def nothing(sample, text): return None\n"
        "def broken(sample, text): raise KeyError(text)\n"
        "def beyond(sample, text): return 2\n"
        "def words(sample, text): return 'good'\n"
        "def digits(sample, text): return '1'\n"
        "def unknown(sample, text): return float('nan')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_marks_of_test", None)


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("half", Mark(0.5)),
        ("right", Mark(1.0)),
        ("nothing", Mark(None, "my_marks_of_test:nothing returned None")),
        ("broken", Mark(None, "my_marks_of_test:broken raised KeyError")),
        ("words", Mark(None, "my_marks_of_test:words returned no score in [0, 1]")),
        ("digits", Mark(None, "my_marks_of_test:digits returned no score in [0, 1]")),
        ("unknown", Mark(None, "my_marks_of_test:unknown returned no score in [0, 1]")),
        ("beyond", Mark(None, "my_marks_of_test:beyond returned no score in [0, 1]")),
    ],
)
def test_a_function_gives_a_score_or_a_reason_that_quotes_nothing(module, name, mark):
    found = score("secret", "the secret", kind="python", function=f"my_marks_of_test:{name}")
    assert found == mark


@pytest.mark.parametrize(
    "function", ["no_such_module_here:f", "my_marks_of_test:absent", "my_marks_of_test:number"]
)
def test_a_function_that_cannot_be_had_is_refused_by_name(module, function):
    with pytest.raises(ConfigError, match=f"Scorer 'it': '{function}'"):
        scorer(kind="python", function=function)
