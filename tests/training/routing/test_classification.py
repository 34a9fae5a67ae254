from __future__ import annotations

import json
from pathlib import Path

import pytest

from router_runtime.errors import DataError
from router_training.labels import read_evaluations
from router_training.routing.classification import convert_to_classification


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(name: str, adapter: str, asked: str = "<image>\nClick March 29", **more: object) -> dict:
    return {
        "id": f"{adapter}_{name}",
        "image": f"images/{name}.png",
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "click()"}],
        "adapter": adapter,
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    def save(**parts: list[dict]) -> Path:
        for part, rows in parts.items():
            (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path

    return save


@pytest.fixture
def plain(folder, tmp_path):
    (tmp_path / "metadata.json").write_text('{"adapters": ["provider-select", "calendar"]}')
    return folder(train=[row("1", "calendar"), row("2", "provider-select")])


def test_the_answer_is_the_adapter_and_the_system_turn_lists_all_of_them(plain):
    assert convert_to_classification(plain) == {plain / "train-classification.jsonl": 2}
    first = rows_of(plain / "train-classification.jsonl")[0]
    assert list(first) == ["id", "image", "conversations"]
    assert first["image"] == "images/1.png"
    system, human, gpt = first["conversations"]
    assert "The adapters are: provider-select, calendar." in system["value"]
    assert human["value"] == (
        "<image>\nWhich adapter should handle this screenshot?\n\nClick March 29"
    )
    assert gpt == {"from": "gpt", "value": "calendar"}


@pytest.mark.parametrize(
    ("question", "human"),
    [
        ("picture", "<image>\nWhich adapter should handle this screenshot?"),
        ("request", "Which adapter should handle this request?\n\nClick March 29"),
    ],
)
def test_one_of_picture_and_request_can_be_asked_about_alone(question, human, plain):
    convert_to_classification(plain, question=question)
    first = rows_of(plain / "train-classification.jsonl")[0]
    assert first["conversations"][1]["value"] == human
    assert ("image" in first) == (question == "picture")


def test_every_part_that_is_there_is_converted(folder):
    made = folder(train=[row("1", "a")], val=[row("2", "b")], eval=[row("3", "b")])
    names = [path.name for path in convert_to_classification(made)]
    assert names == [f"{part}-classification.jsonl" for part in ("train", "val", "eval")]


def test_without_metadata_the_labels_give_the_order(folder):
    made = folder(train=[row("1", "a", label=1), row("2", "b", label=0)])
    convert_to_classification(made)
    system = rows_of(made / "train-classification.jsonl")[0]["conversations"][0]["value"]
    assert "The adapters are: b, a." in system


def test_the_adapters_own_answer_is_nowhere(plain):
    convert_to_classification(plain)
    assert "click()" not in (plain / "train-classification.jsonl").read_text()


def test_several_pictures_and_a_picture_without_text(folder):
    two = row("1", "a", asked="<image>\n<image>")
    two["images"] = ["images/1.png", two.pop("image")]
    made = folder(train=[two])
    convert_to_classification(made)
    found = rows_of(made / "train-classification.jsonl")[0]
    assert found["images"] == ["images/1.png", "images/1.png"]
    question = "Which adapter should handle this screenshot?"
    assert found["conversations"][1]["value"] == f"<image>\n<image>\n{question}"
    with pytest.raises(DataError, match=r"row 1: The row has no request"):
        convert_to_classification(made, question="request")


def test_a_row_without_a_picture_is_named_where_only_pictures_are_shown(folder):
    textual = {key: value for key, value in row("1", "a").items() if key != "image"}
    made = folder(train=[row("2", "a"), textual])
    with pytest.raises(DataError, match=r"train.jsonl, row 2: The row has no picture"):
        convert_to_classification(made, question="picture")
    assert not (made / "train-classification.jsonl").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"adapter": "c"}, r"row 2, field 'adapter': The adapter 'c' is none of provider-select"),
        ({"conversations": [{"from": "robot"}]}, r"row 2, field 'conversations'"),
    ],
)
def test_a_bad_row_is_named(bad, message, plain):
    rows = [row("1", "calendar"), {**row("2", "calendar"), **bad}]
    (plain / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message):
        convert_to_classification(plain)


def test_metadata_without_adapters_and_a_folder_without_rows_are_refused(plain):
    (plain / "metadata.json").write_text("{}")
    with pytest.raises(DataError, match=r"metadata.json: It does not list the adapters"):
        convert_to_classification(plain)
    (plain / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"no train.jsonl"):
        convert_to_classification(plain)


def test_the_rows_are_read_as_classes_named_by_the_last_turn(plain):
    convert_to_classification(plain, question="request")
    found = read_evaluations(plain / "train-classification.jsonl")
    assert found.model_ids == ("calendar", "provider-select")
    assert found.labels.Y.tolist() == [[1, 0], [0, 1]]
