from __future__ import annotations

import json

import pytest

from router_runtime.errors import DataError
from router_runtime.prediction.adapter import QUESTION, TEXT_QUESTION, system_prompt
from router_training.adapter.conversations import read_conversations
from router_training.routing.classification import convert_to_classification

from .conftest import NAMES, SYSTEM, picture_rows, text_rows, turns, write_jsonl


def row(number, human, answer, *, system=SYSTEM, **more):
    said = [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
    first = [{"from": "system", "value": system}] if system else []
    return {"id": str(number), "conversations": first + said, **more}


def test_question_and_request_are_told_apart(texts):
    found = read_conversations(texts)
    assert (found.prompt.system, found.prompt.shows) == (SYSTEM, "request")
    assert found.prompt.text_question == "Which one?"
    assert found.train.model_ids == NAMES
    assert (len(found.train), len(found.validation), found.divided) == (96, 30, False)
    first = json.loads((texts / "train-classification.jsonl").read_text().splitlines()[0])
    shown = found.train.queries[0]
    asked = first["conversations"][1]["value"]
    assert found.prompt.asked(shown) == asked
    assert shown.text == asked.removeprefix("Which one?\n\n")


def test_pictures_come_before_the_text(pictures):
    found = read_conversations(pictures)
    assert found.prompt.shows == "both"
    assert found.prompt.question == "Which one?"
    assert all(len(query.images) == 1 for query in found.train.queries)


def test_the_seed_shape_has_pictures_alone(tmp_path):
    """One question for all rows, no request: the adapter looks at pictures alone."""
    rows = list(picture_rows(24, seed=0, folder=tmp_path))
    for at, each in enumerate(rows):
        human = "<image>\nWhich adapter should handle this screenshot?"
        each["conversations"] = turns(human, NAMES[at % 3])
    write_jsonl(tmp_path / "train.jsonl", rows)
    found = read_conversations(tmp_path / "train.jsonl")
    assert found.prompt.shows == "picture"
    assert found.prompt.question == "Which adapter should handle this screenshot?"
    assert {query.text for query in found.train.queries} == {""}
    assert found.divided and len(found.validation) in (2, 3)


def test_rows_that_share_no_question_are_requests_whole(tmp_path):
    rows = [row(at, f"request {at}\n\nmore", NAMES[at % 3], system="") for at in range(6)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    write_jsonl(tmp_path / "v.jsonl", [row(9, "another", NAMES[0], system="")])
    found = read_conversations(tmp_path / "t.jsonl", tmp_path / "v.jsonl")
    assert (found.prompt.system, found.prompt.text_question) == ("", "")
    assert found.prompt.asked(found.train.queries[0]) == "request 0\n\nmore"
    assert found.validation.queries[0].text == "another"


def test_what_the_converter_writes_is_put_back_word_by_word(tmp_path):
    (tmp_path / "images").mkdir()
    routing = []
    for at, given in enumerate(picture_rows(24, seed=0, folder=tmp_path)):
        asked = [
            {"from": "human", "value": "<image>\nfind it"},
            {"from": "gpt", "value": "click(1)"},
        ]
        if at % 3 == 0:
            del given["image"]
            asked[0]["value"] = f"find {at}"
        more = {"conversations": asked, "adapter": NAMES[at % 3], "label": at % 3}
        routing.append(given | more)
    write_jsonl(tmp_path / "train.jsonl", routing)
    convert_to_classification(tmp_path)
    found = read_conversations(tmp_path)
    assert found.prompt.system == system_prompt(NAMES)
    assert (found.prompt.question, found.prompt.text_question) == (QUESTION, TEXT_QUESTION)
    lines = (tmp_path / "train-classification.jsonl").read_text().splitlines()
    written = {r["id"]: r["conversations"][1]["value"] for r in map(json.loads, lines)}
    for sample in (*found.train.samples, *found.validation.samples):
        human = written[sample.id].removeprefix("<image>\n")
        assert found.prompt.asked(sample.query) == human


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "x", "conversations": [{"from": "human", "value": "a"}]}, "one question and its"),
        ({"id": "x", "conversations": "a"}, "one question and its answer"),
        (row("x", "Which one?\n\nb", NAMES[0], system="Other."), "system turn differs"),
        (row("x", "Which two?\n\nb", NAMES[0]), None),
        (row("x", "<image>\nWhich one?", NAMES[0], image="none.png"), "none.png"),
        (row("x", "Which one?\n\nb", ""), "conversations"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_or_left_out(tmp_path, bad, message):
    rows = [*text_rows(24, seed=0), bad]
    file = write_jsonl(tmp_path / "t.jsonl", rows)
    if message is None:  # without a common question all rows are requests whole
        assert read_conversations(file).prompt.text_question == ""
        return
    with pytest.raises(DataError, match=message) as caught:
        read_conversations(file)
    assert caught.value.row == 25
    found = read_conversations(file, on_bad_row="skip")
    assert len(found.train) + len(found.validation) == 24
    assert [skipped.row for skipped in found.train.skipped] == [25]


def test_a_question_of_its_own_in_the_validation_rows_is_refused(tmp_path, texts):
    other = write_jsonl(tmp_path / "v.jsonl", [row(1, "Which two?\n\nb", NAMES[0])])
    with pytest.raises(DataError, match="not the training rows'"):
        read_conversations(texts / "train-classification.jsonl", other)
    unknown = write_jsonl(tmp_path / "u.jsonl", [row(1, "Which one?\n\nb", "chandra-ocr")])
    with pytest.raises(DataError, match="chandra-ocr"):
        read_conversations(texts / "train-classification.jsonl", unknown)


def test_the_order_of_the_names_is_that_of_the_metadata(tmp_path):
    write_jsonl(tmp_path / "train-classification.jsonl", text_rows(24, seed=0))
    (tmp_path / "metadata.json").write_text(json.dumps({"adapters": list(reversed(NAMES))}))
    assert read_conversations(tmp_path).train.model_ids == tuple(reversed(NAMES))
    (tmp_path / "metadata.json").write_text(json.dumps({"adapters": ["a", "b"]}))
    assert read_conversations(tmp_path).train.model_ids == NAMES


def test_a_file_without_conversations_says_so(tmp_path):
    file = write_jsonl(tmp_path / "t.jsonl", [{"query": "a", "category": "b"}])
    with pytest.raises(DataError, match="No row is a conversation"):
        read_conversations(file)
