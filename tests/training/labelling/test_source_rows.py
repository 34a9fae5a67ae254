from __future__ import annotations

import datetime
from decimal import Decimal

import pytest

from router_runtime.errors import DataError
from router_training.labelling.config import SourceConfig
from router_training.labelling.source_columns import find_columns
from router_training.labelling.source_rows import to_record

PNG = {"bytes": b"png", "path": None}
IMAGE = {"type": "image"}


def convert(row, **config):
    source = SourceConfig.model_validate({"path": "x", **config})
    return to_record(row, find_columns(source, [row]), dataset="set")


def text(value):
    return {"type": "text", "text": value}


def test_usual_names_are_found_and_the_configured_ones_go_first():
    row = {"idx": 3, "question": "q", "prompt": "p", "answer": "a", "task": {"name": "t"}}
    assert convert(row)["prompt"] == "p"
    named = convert(row, columns={"prompt": "question", "dataset": "task.name"})
    assert (named["prompt"], named["dataset"], named["idx"]) == ("q", "t", 3)


def test_a_column_that_is_not_there_is_an_error_that_lists_the_columns():
    row = {"question": "q", "meta": {"a": 1}}
    for column in ("missing", "meta.b", "question.x"):
        with pytest.raises(DataError, match="'question', 'meta'"):
            convert(row, columns={"answer": column})
    with pytest.raises(DataError, match=r"data\.columns"):
        convert({"body": "x"})
    with pytest.raises(DataError, match="texts"):
        convert({"body": "x"}, shape="texts")


def test_a_prompt_with_pictures_of_several_columns_keeps_their_order():
    row = {"question": "q", "image_10": b"ten", "image_2": PNG, "image_1": b"one", "image_3": None}
    assert convert(row)["images"] == [b"one", PNG, b"ten"]
    named = convert(row, columns={"images": ["image_10", "image_1"]})
    assert named["images"] == [b"ten", b"one"]


def test_the_system_column_stands_before_the_conversation():
    record = convert({"prompt": "q", "system": "be brief"})
    assert [turn["role"] for turn in record["messages"]] == ["system", "user"]
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    assert convert({"messages": own, "system": "be brief"})["messages"] == own


def test_trailing_assistant_turns_are_the_reference_unless_a_column_is():
    turns = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": [text("two")]},
    ]
    record = convert({"messages": turns})
    assert (record["messages"], record["answer"]) == (turns[:3], "two")
    assert convert({"messages": turns, "answer": "given"})["answer"] == "given"


def test_trl_messages_keep_their_pictures_in_place():
    content = [{"type": "image", "text": None}, text("what?")]
    row = {"messages": [{"role": "user", "content": content}], "images": [PNG]}
    assert convert(row)["messages"] == row["messages"]


def test_image_marks_in_text_are_pictures_where_they_are_as_many():
    row = {"messages": [{"role": "user", "content": "<image>\na <image> b"}]}
    assert convert(row | {"images": [PNG]})["prompt"] == "<image>\na <image> b"
    record = convert(row | {"images": [PNG, PNG]})
    assert record["messages"][0]["content"] == [IMAGE, text("a "), IMAGE, text(" b")]


def test_a_single_question_about_pictures_is_a_prompt():
    row = {"messages": [{"role": "user", "content": "<image><image>\nsame?"}], "images": [PNG, PNG]}
    record = convert(row)
    assert record["prompt"] == "same?" and "messages" not in record


def test_rows_without_turns_fall_back_to_their_prompt():
    row = {"prompt": "p", "messages": None}
    source = SourceConfig(path="x")
    columns = find_columns(source, [row])
    assert columns.shape == "messages"
    assert to_record(row, columns, dataset=None)["prompt"] == "p"
    as_text = {"prompt": "p", "messages": '[{"role": "user", "content": "t"}]'}
    assert to_record(as_text, columns, dataset=None)["prompt"] == "t"


def test_a_prompt_of_turns_is_a_conversation():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert convert({"prompt": turns})["messages"] == turns


def test_fine_vision_texts_become_one_conversation_with_pictures_first():
    texts = [{"user": "a?", "assistant": "A"}, {"user": "b?", "assistant": "B"}]
    record = convert({"images": [PNG, PNG], "texts": texts, "source": "s"})
    roles = [turn["role"] for turn in record["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert record["messages"][0]["content"] == [IMAGE, IMAGE, text("a?")]
    assert (record["answer"], record["dataset"]) == ("B", "set")
    single = convert({"images": [PNG], "texts": texts[:1]})
    assert (single["prompt"], single["answer"], single["images"]) == ("a?", "A", [PNG])


def test_conversations_of_either_spelling_are_read():
    said = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "<image>\nClick March 29"},
        {"from": "gpt", "value": "done"},
    ]
    record = convert({"image": "a.png", "conversations": said})
    assert record["messages"][1]["content"] == [IMAGE, text("Click March 29")]
    assert (record["answer"], record["images"]) == ("done", ["a.png"])
    spoken = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert convert({"conversation": spoken})["prompt"] == "u"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 5}, "must be text"),
        ({"prompt": None, "answer": "a"}, "missing"),
        ({"messages": "no list"}, "list of turns"),
        ({"messages": "[broken"}, "JSON"),
        ({"messages": []}, "list of turns"),
        ({"messages": ["text"]}, "must be an object"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "asks nothing"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "'from'"),
        ({"texts": [{"question": "x"}]}, "'user'"),
        ({"prompt": "p", "answer": b"x"}, "bytes"),
        ({"prompt": "p", "choices": ["one"]}, "1 choices"),
        ({"prompt": "p", "choices": 5}, "must be a list"),
        ({"prompt": "p", "choices": "not a list"}, "neither"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": "z"}, "none of the choices"),
        ({"prompt": "p", "choices": ["x", "y"], "answer": 2}, "none of the choices"),
        ({"prompt": "p", "choices": ["B", "A"], "answer": "A"}, "position"),
    ],
)
def test_what_cannot_be_asked_is_an_error(row, words):
    with pytest.raises(DataError, match=words):
        convert(row)


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["x", "y", "z"], 2, "C"),
        (["x", "y", "z"], "y", "B"),
        (["x", "y", "z"], "(b)", "B"),
        (["x", "y", "z"], "1", "B"),
        (["7", "1", "3"], "1", "B"),
        (["x", "y"], None, None),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2", "B"),
        ({"text": ["x", "y"], "label": ["A", "B"]}, "A", "A"),
        ({"A": "x", "B": "y", "C": None}, "B", "B"),
        ('["x", "y"]', "A", "A"),
        ("['x', \"it's\"]", "B", "B"),
    ],
)
def test_choices_are_lettered_and_the_reference_is_the_letter(choices, answer, letter):
    record = convert({"question": "Which?", "choices": choices, "answer": answer})
    assert record["answer"] == letter
    lines = [f"{at}. {c}" for at, c in zip("ABC", record["choices"], strict=False)]
    assert record["prompt"] == "Which?\n\n" + "\n".join(lines)


def test_choices_that_the_prompt_shows_are_not_repeated():
    row = {"question": "Which?\nA) x\nB) y", "options": ["x", "y"], "answer": "A"}
    assert convert(row)["prompt"] == row["question"]


def test_choices_stand_below_the_last_question_of_a_conversation():
    turns = [{"role": "user", "content": [IMAGE, text("Which?")]}]
    record = convert({"messages": turns, "images": [PNG], "choices": ["x", "y"]})
    content = record["messages"][0]["content"]
    assert content == [IMAGE, text("Which?"), text("A. x\nB. y")]
    assert len(turns[0]["content"]) == 2


def test_an_empty_list_of_choices_is_no_multiple_choice():
    record = convert({"question": "How many?", "options": "[]", "answer": "5"})
    assert (record["prompt"], record["answer"], record["choices"]) == ("How many?", "5", [])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (datetime.datetime(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 3, 4), "2024-01-02T03:04:00"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (Decimal("1.50"), "1.50"),
        (["a", "b"], ["a", "b"]),
        (3, 3),
        (float("nan"), None),
    ],
)
def test_answers_that_are_no_text_are_kept_as_they_are_written(answer, kept):
    assert convert({"prompt": "p", "answer": answer})["answer"] == kept


@pytest.mark.parametrize(
    ("value", "names"),
    [(None, []), ("exact", ["exact"]), ("exact, judge", ["exact", "judge"]), (["a"], ["a"])],
)
def test_a_row_may_name_its_scorers(value, names):
    assert convert({"prompt": "p", "scorer": value})["scorer"] == names


def test_a_prompt_and_a_completion_of_turns_are_question_and_reference():
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": [text("a")]}],
    }
    record = convert(row)
    assert (record["prompt"], record["answer"]) == ("q", "a")
    assert convert({"prompt": "q", "completion": "a"})["answer"] == "a"
    assert convert({"prompt": "q", "answer": ["a", "b"]})["answer"] == ["a", "b"]


def test_roles_of_chat_templates_are_understood_beside_content():
    said = [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]
    record = convert({"conversations": said})
    assert (record["prompt"], record["answer"]) == ("q", "a")
    kept = [{"role": "developer", "content": "d"}, {"role": "user", "content": "q"}]
    assert convert({"messages": kept})["messages"] == kept


def test_image_marks_in_a_prompt_are_pictures_where_they_are_as_many():
    placed = convert({"prompt": "a <image> b", "image": PNG})
    assert placed["messages"][0]["content"] == [text("a "), IMAGE, text(" b")]
    assert convert({"prompt": "<image>\nwhat?", "image": PNG})["prompt"] == "what?"
    assert convert({"prompt": "<image> is a tag"})["prompt"] == "<image> is a tag"


@pytest.mark.parametrize("other", ["image", "image_2"])
def test_of_two_columns_that_may_hold_pictures_none_is_left_out_silently(other):
    row = {"prompt": "q", "images": [b"one"], other: b"two"}
    with pytest.raises(DataError, match=rf"'images' and '{other}'.*data\.columns\.images"):
        convert(row)
    assert convert(row, columns={"images": ["images", other]})["images"] == [b"one", b"two"]


def test_a_question_that_may_lie_in_two_columns_is_named_by_the_config():
    row = {"instruction": "Translate.", "input": "house", "output": "Haus"}
    with pytest.raises(DataError, match="'instruction' and 'input'"):
        convert(row)
    assert convert(row, columns={"prompt": "input"})["prompt"] == "house"
    assert convert({"instruction": "q", "output": "a"})["prompt"] == "q"


@pytest.mark.parametrize("shape", ["messages", "texts", "conversations"])
def test_a_shape_that_no_column_has_is_an_error_beside_a_prompt_too(shape):
    with pytest.raises(DataError, match=rf"data\.shape is '{shape}'"):
        convert({"prompt": "q"}, shape=shape)


@pytest.mark.parametrize(
    ("key", "turns"),
    [
        ("messages", [{"role": "user", "content": "q"}]),
        ("texts", [{"user": "q", "assistant": "a"}]),
        ("conversations", [{"from": "human", "value": "q"}]),
    ],
)
def test_turns_under_any_name_are_found_where_the_config_names_them(key, turns):
    row = {"prompt": "other", "dialogue": turns}
    assert convert(row, columns={key: "dialogue"})["prompt"] == "q"
    assert convert(row)["prompt"] == "other"
