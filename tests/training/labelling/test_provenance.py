from __future__ import annotations

import pytest

from router_runtime.yaml_config import validate
from router_training.labelling.config import LabelConfig
from router_training.labelling.provenance import labelled_by
from router_training.labelling.rubrics import load
from router_training.labelling.trust import measure_trust

TARGET = {"kind": "compatible", "base_url": "http://127.0.0.1:9/v1"}
OWN = {"kind": "python", "function": "my_marks:score"}


def told(*, own=OWN, judge=None, target=TARGET, **changes):
    content = {
        "data": {"path": "rows.jsonl"},
        "candidates": [{"id": "c", "target": target}],
        "judge": {"models": [{"id": "j", "target": TARGET}], **(judge or {})},
        "scoring": {"scorers": {"own": own}, "default": ["own", "judge"]},
        **changes,
    }
    config = validate(LabelConfig, content, source="test")
    return labelled_by(
        config,
        rubric=load(config.judge.rubric),
        rows=0,
        records_sha256="0" * 64,
        cells={},
        trust=measure_trust([]),
    )


def test_another_version_of_a_users_function_is_another_scoring():
    assert told().scoring_sha256 == told().scoring_sha256
    newer = told(own={**OWN, "version": "2"})
    assert newer.scoring_sha256 != told().scoring_sha256
    assert newer.scorers == {"own": "python"}


@pytest.mark.parametrize(
    "changes",
    [
        {"own": {**OWN, "function": "my_marks:other"}},
        {"own": {**OWN, "decides": "good"}},
        {"own": "exact"},
    ],
)
def test_every_setting_of_a_scorer_is_in_the_digest(changes):
    assert told(**changes).scoring_sha256 != told().scoring_sha256


def test_how_a_candidate_was_asked_is_a_digest_and_where_it_is_stays_out():
    plain, moved = told(), told(target={**TARGET, "base_url": "http://127.0.0.2:9/v1"})
    assert moved.candidates == plain.candidates
    for changes in (
        {"ask": {"system": "Be brief."}},
        {"ask": {"parameters": {"temperature": 1}}},
        {"target": {**TARGET, "parameters": {"top_p": 0.5}}},
    ):
        (asked,) = told(**changes).candidates
        assert asked.parameters_sha256 != plain.candidates[0].parameters_sha256
    assert "127.0.0" not in str(plain.to_json())


def test_the_judge_is_told_with_its_rubric_and_its_rules():
    found = told(judge={"repeats": 3, "combine": "mean"}).judge
    assert (found.rubric, found.rubric_version, found.repeats) == ("correctness", 1, 3)
    assert (found.combine, found.candidates) == ("mean", ())
    assert found.rubric_sha256 == load("correctness").digest
    assert told().judge.combine == "majority"
    assert told(judge={"rubric": "quality"}).judge.combine == "mean"
    hotter = told(judge={"parameters": {"temperature": 1}}).judge
    assert hotter.models[0].parameters_sha256 != found.models[0].parameters_sha256
