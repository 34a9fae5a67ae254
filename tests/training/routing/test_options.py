from __future__ import annotations

from pathlib import Path

import pytest

from router_runtime.errors import ConfigError
from router_training.routing.options import AdapterOptions, Quota, parse_adapters


def test_adapters_come_in_the_order_of_their_data_sets():
    found = parse_adapters(["--b-dataset", "b.jsonl", "--a-dataset=a.jsonl"])
    assert found == (AdapterOptions("b", "b.jsonl"), AdapterOptions("a", "a.jsonl"))


def test_numbers_with_an_adapters_name_go_before_those_without():
    words = "--calendar-dataset c --chandra-ocr-dataset o --train-samples-calendar 27"
    words += " --train-images-chandra-ocr 3 --eval-samples-calendar=4 --eval-images-calendar 5"
    words += " --chandra-ocr-image-root pages"
    calendar, ocr = parse_adapters(words.split(), train=Quota(100), held_out=Quota(7, 8))
    assert calendar == AdapterOptions("calendar", "c", None, Quota(27), Quota(4, 5))
    assert ocr == AdapterOptions("chandra-ocr", "o", Path("pages"), Quota(100, 3), Quota(7, 8))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--a-dataset x --b-dataset y --colour red", r"'--colour' is no known option. Known: --<a"),
        ("--a-dataset x --b-dataset y stray", r"'stray' is no known option"),
        ("--a-dataset x --b-dataset", r"--b-dataset needs a value"),
        ("--a-dataset --b-dataset y", r"--a-dataset needs a value"),
        ("--a-dataset= --b-dataset y", r"--a-dataset needs a value"),
        ("--a-dataset x --a-dataset y", r"--a-dataset is given twice"),
        ("--a-dataset x", r"at least two adapters"),
        ("", r"at least two adapters"),
        ("--a-dataset x --b-dataset y --train-samples-c 3", r"'c' has no data set; add --c-data"),
        ("--a-dataset x --b-dataset y --train-samples-a 0", r"--train-samples-a is '0'"),
        ("--a-dataset x --b-dataset y --eval-images-a two", r"--eval-images-a is 'two'"),
        ("--../x-dataset x --b-dataset y", r"no known option"),
    ],
)
def test_what_is_no_known_form_is_an_error_that_names_it(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_adapters(words.split())
