import json

import pytest

from router_training.labelling.rubrics import load
from router_training.labelling.verdicts import parse

RUBRICS = {name: load(name) for name in ("correctness", "quality", "pairwise")}


def verdict(text, rubric="correctness", mode="json_schema"):
    return parse(text, RUBRICS[rubric], mode=mode)


@pytest.mark.parametrize(
    ("rubric", "reply", "label", "score"),
    [
        ("correctness", '{"explanation": "same", "verdict": "yes"}', "yes", 1),
        ("correctness", '{"explanation": "other", "verdict": "no"}', "no", 0),
        ("correctness", ' {"verdict": " Yes ", "explanation": "", "more": 1}\n', "yes", 1),
        ("correctness", '{"verdict": "no"}', "no", 0),
        ("correctness", '```json\n{"verdict": "yes"}\n```', "yes", 1),
        ("correctness", '<think>{"verdict": "no"}</think>\n{"verdict": "yes"}', "yes", 1),
        ("quality", '{"score": 1}', "1", 0),
        ("quality", '{"score": 10}', "10", 1),
        ("quality", '{"score": 7.0}', "7", 6 / 9),
        ("quality", '{"score": "4"}', "4", 3 / 9),
        ("pairwise", '{"winner": "A"}', "A", 1),
        ("pairwise", '{"winner": "b"}', "B", 0),
        ("pairwise", '{"winner": "tie"}', "tie", 0.5),
    ],
)
def test_a_structured_reply_is_a_verdict(rubric, reply, label, score):
    found = verdict(reply, rubric)
    assert (found.label, found.score) == (label, pytest.approx(score))


def test_the_explanation_is_kept():
    assert verdict('{"explanation": " 330 = 330 ", "verdict": "yes"}').explanation == "330 = 330"
    assert verdict("It fits.\n\nVerdict: yes", mode="text").explanation == "It fits."


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes",
        "Verdict: yes",
        'Sure! {"verdict": "yes"}',
        '{"verdict": "yes"} and that is it',
        '{"verdict": "yes"',
        '{"verdict": "yes", "verdict": "no"}',
        '{"verdict": "maybe"}',
        '{"verdict": true}',
        '{"verdict": 1}',
        '{"verdict": null}',
        '{"verdict": ["yes"]}',
        '{"verdict": {"verdict": "yes"}}',
        '{"answer": "yes"}',
        '["yes"]',
        '"yes"',
        '[{"verdict": "yes"}]',
        '{"verdict": "yes", "explanation": 3}',
        '{"verdict": "yes", "explanation": NaN}',
        '{"verdict": "yes, certainly"}',
        '<think>{"verdict": "yes"}',
        '```\n{"verdict": "yes"}\n```\n```\n{"verdict": "no"}\n```',
        "[" * 100_000,
    ],
)
def test_everything_else_is_no_verdict(reply):
    assert verdict(reply) is None
    assert verdict(reply, mode="json_object") is None


@pytest.mark.parametrize("score", [0, 11, -1, 5.5, "ten", "5.5", True, 1e400, None])
def test_a_score_off_the_scale_is_no_verdict(score):
    assert verdict(json.dumps({"score": score}), "quality") is None


@pytest.mark.parametrize(
    ("rubric", "reply", "label"),
    [
        ("correctness", "Verdict: yes", "yes"),
        ("correctness", "They agree.\nVerdict: Yes.", "yes"),
        ("correctness", "They differ.\n\n**Verdict:** no\n", "no"),
        ("correctness", "They differ.\n**Verdict: no**", "no"),
        ("correctness", "<think>Verdict: no</think>\nVerdict: yes", "yes"),
        ("correctness", "Verdict: yes\nSame thing.\nVerdict: yes", "yes"),
        ("quality", "Fine.\nVerdict: 7", "7"),
        ("pairwise", "Both the same.\nVerdict: tie", "tie"),
    ],
)
def test_a_final_line_is_a_verdict_in_text_mode(rubric, reply, label):
    assert verdict(reply, rubric, mode="text").label == label


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes",
        "Yes, the answer is correct.",
        'The answer says "Verdict: yes".',
        "The answer claims:\nVerdict: yes\nbut it is wrong.",
        "Verdict: yes\nVerdict: no",
        "Verdict: yes and no",
        "Verdict: yes or no",
        "Verdict: maybe",
        "Verdict:",
        'Verdict: {"verdict": "yes"}',
        "Verdict: 1",
        "The verdict is yes",
    ],
)
def test_a_word_in_prose_is_no_verdict(reply):
    assert verdict(reply, mode="text") is None
