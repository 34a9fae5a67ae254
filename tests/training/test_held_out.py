from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router_runtime.errors import ArtifactError, DataError
from router_runtime.types import Query
from router_training.config import TrainingConfig
from router_training.held_out import (
    held_out,
    limited_rows,
    marks_of,
    row_provenance,
    rows_digest,
)
from router_training.labels import Evaluations, LabelMatrix
from router_training.samples import Sample
from router_training.splits import split_evaluations

SEED = 4


def records(n=60, text="question"):
    samples = tuple(
        Sample(str(i), Query(f"{text} {i}"), reference=None, group=str(i), dataset=None, prompt="")
        for i in range(n)
    )
    return Evaluations(samples, LabelMatrix.of_scores(("a", "b"), np.ones((n, 2))))


def provenance(data, **section):
    config = TrainingConfig(output="o", seed=SEED, data=section)
    kept = data.take(limited_rows(len(data), config.data.limit, seed=SEED))
    split = split_evaluations(kept, fractions=config.split.fractions, seed=SEED)
    return {"seed": SEED, **row_provenance(kept, split, config)}, split


def test_of_its_own_training_data_only_the_test_rows_are_used_and_it_is_said():
    training, split = provenance(records())
    found = held_out(training, records())
    assert found.rows.tolist() == split.test.tolist()
    assert "only the 12 test rows of 60 are evaluated" in found.message


def test_new_scores_and_costs_do_not_make_the_rows_new():
    training, split = provenance(records())
    data = records()
    judged_again = replace(data, labels=LabelMatrix.of_scores(("a", "b"), np.zeros((60, 2))))
    assert held_out(training, judged_again).rows.tolist() == split.test.tolist()


def test_all_rows_are_used_on_request_and_it_is_said():
    training, _ = provenance(records())
    found = held_out(training, records(), all_rows=True)
    assert len(found.rows) == 60
    assert "48 of them were trained on or tuned on" in found.message


def test_a_file_in_another_order_or_with_other_ids_is_known_row_by_row():
    training, split = provenance(records())
    order = np.random.default_rng(0).permutation(60)
    shuffled = records().take(order)
    renamed = tuple(replace(s, id=f"new {s.id}", group=f"new {s.group}") for s in shuffled.samples)
    for data in (shuffled, replace(shuffled, samples=renamed)):
        found = held_out(training, data)
        assert sorted(order[found.rows].tolist()) == split.test.tolist()
        assert "learned from 48 of the 60 records" in found.message
        assert "although 48 of them" in held_out(training, data, all_rows=True).message


def test_a_part_of_the_file_and_a_larger_file_are_known_row_by_row():
    training, split = provenance(records())
    part = records().take(np.arange(30))
    assert held_out(training, part).rows.tolist() == [r for r in split.test if r < 30]
    larger = held_out(training, records(100))
    assert larger.rows.tolist() == [*split.test, *range(60, 100)]


def test_records_that_were_all_learned_from_are_refused():
    training, split = provenance(records())
    with pytest.raises(DataError, match="learned from all of these records"):
        held_out(training, records().take(split.train))


def test_rows_that_served_to_add_a_model_are_no_longer_held_out():
    training, split = provenance(records())
    used = records().take(split.test[:5])
    extended = {**training, "added": [{"model": "c", "seen": marks_of(used)}]}
    found = held_out(extended, records())
    assert found.rows.tolist() == split.test[5:].tolist()
    assert "only the 7 test rows of 60" in found.message
    assert "5 more test rows served to add a model" in found.message
    assert held_out(extended, records(text="another")).message == ""


@pytest.mark.parametrize("section", [{"seen": "?"}, {"seen": 3}, {"added": 3}, {"added": [3]}])
def test_malformed_marks_are_refused(section):
    training, _ = provenance(records())
    with pytest.raises(ArtifactError, match="malformed"):
        held_out({**training, **section}, records(text="another"))


def test_other_records_are_used_whole_without_a_word():
    training, split = provenance(records())
    for data in (records(text="another"), records().take(split.test)):
        found = held_out(training, data)
        assert (len(found.rows), found.message) == (len(data), "")


def test_a_limited_run_is_recognised_in_the_whole_file():
    training, split = provenance(records(), limit=40)
    found = held_out(training, records())
    kept = limited_rows(60, 40, seed=SEED)
    assert found.rows.tolist() == kept[split.test].tolist()
    assert "although 32 of them" in held_out(training, records(), all_rows=True).message


def test_a_division_that_cannot_be_made_again_is_refused():
    training, _ = provenance(records())
    otherwise = {**training, "test_sha256": rows_digest(records().take([1, 2]))}
    with pytest.raises(DataError, match="trained on these very records"):
        held_out(otherwise, records())
    assert len(held_out(otherwise, records(), all_rows=True).rows) == 60


def test_an_artifact_of_an_earlier_version_is_recognised_by_its_data():
    data = records()
    with pytest.raises(DataError, match="--all-rows"):
        held_out({"seed": SEED, "data_sha256": data.fingerprint}, data)
    assert held_out({}, data).message == ""


def test_a_limit_takes_some_rows_in_order():
    rows = limited_rows(100, 10, seed=0)
    assert len(set(rows.tolist())) == 10
    assert rows.tolist() == sorted(rows.tolist())
    assert limited_rows(5, 10, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert limited_rows(3, None, seed=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "x"},
        {"seed": None},
        {"seed": -1},
        {"limit": "60"},
        {"limit": [1]},
        {"fractions": "abcd"},
        {"fractions": [0.5, 0.5]},
        {"fractions": [None] * 4},
    ],
)
def test_a_division_that_cannot_have_been_made_is_an_artifact_error(change):
    training, _ = provenance(records())
    with pytest.raises(ArtifactError, match="malformed"):
        held_out({**training, **change}, records())
